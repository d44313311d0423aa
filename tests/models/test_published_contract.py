"""What holds for every published layout: each tensor of a file is used, known to be dead, or refused."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from unrolled.models import create_model, language_config, load_published, load_weights
from unrolled.models.published import LAYOUTS
from unrolled.models.sequence_config import LanguageConfig

D, HEADS, PATCH, SIDE, DEPTH, CLASSES, WORDS, LENGTH = 8, 2, 4, 16, 2, 5, 11, 6
TOKENS = (SIDE // PATCH) ** 2 + 1
Tree = dict[str, Tensor]


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape) * 0.4


def norm(name: str, *, bias: bool = True) -> Tree:
    return {f"{name}.weight": 1 + draw(D)} | ({f"{name}.bias": draw(D)} if bias else {})


def linear(name: str, rows: int = D, columns: int = D, *, bias: bool = True) -> Tree:
    return {f"{name}.weight": draw(rows, columns)} | ({f"{name}.bias": draw(rows)} if bias else {})


def conv_stem(name: str) -> Tree:
    tree: Tree = {}
    for i, (before, after) in enumerate([(3, D // 2), (D // 2, D)]):
        tree |= {f"{name}.{2 * i}.0.weight": draw(after, before, 3, 3)}
        tree |= {f"{name}.{2 * i}.1.weight": 1 + draw(after), f"{name}.{2 * i}.1.bias": draw(after)}
        tree |= {f"{name}.{2 * i}.1.running_mean": draw(after), f"{name}.{2 * i}.1.running_var": 1 + draw(after) ** 2}
        tree |= {f"{name}.{2 * i}.1.num_batches_tracked": torch.tensor(7)}
    return tree


def frame() -> Tree:
    tree = {"cls_token": draw(1, 1, D), "pos_embedding": draw(1, TOKENS, D)}
    tree |= norm("mlp_head.0") | linear("mlp_head.1", CLASSES)
    for i in range(DEPTH):
        tree |= norm(f"transformer.layers.{i}.0.norm") | norm(f"transformer.layers.{i}.1.norm")
        tree |= {f"transformer.layers.{i}.1.fn.weight": draw(D, D)}
    return tree


def crate() -> Tree:
    values = 3 * PATCH**2
    tree = frame() | linear("to_patch_embedding.2", D, values) | norm("to_patch_embedding.3")
    tree |= {"to_patch_embedding.1.weight": 1 + draw(values), "to_patch_embedding.1.bias": draw(values)}
    for i in range(DEPTH):
        fn = f"transformer.layers.{i}.0.fn"
        tree |= linear(f"{fn}.qkv", bias=False) | linear(f"{fn}.to_out.0")
    return tree


def cbt(kind: str = "cbsa") -> Tree:
    tree = frame() | conv_stem("to_patch_embedding.proj")
    for i in range(DEPTH):
        fn = f"transformer.layers.{i}.0.fn"
        tree |= linear(f"{fn}.proj" if kind == "cbsa" else f"{fn}.qkv", bias=False) | linear(f"{fn}.to_out")
        if kind == "cbsa":
            tree |= {f"{fn}.step_x": draw(HEADS, 1, 1), f"{fn}.step_rep": draw(HEADS, 1, 1)}
        elif kind == "tssa":
            tree |= {f"{fn}.temp": 1 + draw(HEADS, 1)}
    return tree


def masked() -> Tree:
    tree = {name: draw(1, TOKENS, D) for name in ("pos_embed", "decoder_pos_embed")}
    tree |= {"cls_token": draw(1, 1, D), "mask_token": draw(1, 1, D)} | norm("norm") | norm("decoder_norm")
    tree |= linear("decoder_embed") | linear("decoder_pred", 3 * PATCH**2)
    tree |= {"patch_embed.proj.weight": draw(D, 3, PATCH, PATCH), "patch_embed.proj.bias": draw(D)}
    for stack, attention, other in (("blocks", 0, 1), ("decoder_blocks", 1, 0)):
        for i in range(DEPTH):
            layers = f"{stack}.{i}.layers.0"
            tree |= norm(f"{layers}.0.norm") | norm(f"{layers}.1.norm") | {f"{layers}.{other}.fn.weight": draw(D, D)}
            tree |= linear(f"{layers}.{attention}.fn.qkv", bias=False) | linear(f"{layers}.{attention}.fn.to_out.0")
    return tree


def alpha() -> Tree:
    tree = {key: value for key, value in frame().items() if not key.endswith("1.fn.weight")}
    tree |= {"conv1.weight": draw(D, 3, PATCH, PATCH), "conv1.bias": draw(D)}
    for i in range(DEPTH):
        layer = f"transformer.layers.{i}"
        tree |= linear(f"{layer}.0.fn.qkv", bias=False) | linear(f"{layer}.0.fn.to_out.0", bias=False)
        tree |= {f"{layer}.1.fn.{name}": draw(D, 4 * D) for name in ("D", "D1")}
    return tree


def alpha_jax(*, biased: bool = True) -> Tree:
    tree = {"cls": draw(1, 1, D), "pos_embedding": draw(1, TOKENS, D)}
    tree |= {"embedding/kernel": draw(PATCH, PATCH, 3, D), "head/kernel": draw(D, CLASSES)}
    tree |= {"embedding/bias": draw(D), "head/bias": draw(CLASSES)} if biased else {}
    norms = ["encoder_norm"]
    for i in range(DEPTH):
        block = f"Transformer/encoderblock_{i}"
        attention = f"{block}/MultiHeadDotProductSubspaceAttention_0"
        norms += [f"{block}/LayerNorm_0", f"{block}/LayerNorm_1"]
        tree |= {f"{attention}/proj/kernel": draw(D, HEADS, D // HEADS)}
        tree |= {f"{attention}/out/kernel": draw(HEADS, D // HEADS, D)}
        tree |= {f"{block}/OvercompleteISTABlock_0/{name}": draw(D, 4 * D) for name in ("D", "D1")}
    return tree | {f"{name}/scale": 1 + draw(D) for name in norms} | {f"{name}/bias": draw(D) for name in norms}


def clipa() -> Tree:
    tree = {"conv1.weight": draw(D, 3, PATCH, PATCH), "class_embedding": draw(D), "proj": draw(D, CLASSES)}
    tree |= {"positional_embedding": draw(TOKENS, D)} | norm("ln_post")
    for i in range(DEPTH):
        block = f"transformer.resblocks.{i}"
        tree |= norm(f"{block}.ln_1") | norm(f"{block}.ln_2") | linear(f"{block}.attn.out_proj", bias=False)
        tree |= {f"{block}.attn.in_proj_weight": draw(D, D).repeat(3, 1)}
        tree |= {f"{block}.mlp.{name}": draw(D, 4 * D) for name in ("c_fc", "c_proj")}
    tree = {f"visual.{key}": value for key, value in tree.items()}
    text = {"token_embedding.weight": draw(7, D), "logit_scale": torch.tensor(2.0), "positional_embedding": draw(4, D)}
    return tree | text | {"transformer.resblocks.0.mlp.c_fc.weight": draw(D, D), "text_projection": draw(D, D)}


def tost(*, biased: bool = True) -> Tree:
    tree = {"cls_token": draw(1, 1, D), "pos_embeder.token_projection.weight": draw(D, 64, 1, 1)}
    tree |= {"pos_embeder.token_projection.bias": draw(D)} | norm("norm") | linear("head", CLASSES)
    tree |= conv_stem("patch_embed.proj")
    for stack in ("blocks", "cls_attn_blocks"):
        for i in range(DEPTH):
            block, causes = f"{stack}.{i}", stack == "blocks"
            tree |= norm(f"{block}.norm1") | norm(f"{block}.norm2")
            tree |= linear(f"{block}.mlp.fc1", 4 * D) | linear(f"{block}.mlp.fc2", D, 4 * D)
            tree |= {f"{block}.gamma{half}": 1 + draw(D) for half in (1, 2)}
            tree |= linear(f"{block}.attn.qkv", D if causes else 3 * D, bias=biased)
            tree |= linear(f"{block}.attn.to_out.0" if causes else f"{block}.attn.proj")
            tree |= {f"{block}.attn.temp": 1 + draw(HEADS, 1)} if causes else {}
    return tree


def text_frame() -> Tree:
    tree = {"transformer.wte.weight": draw(WORDS, D), "transformer.wpe.weight": draw(LENGTH, D)}
    masks = {f"transformer.h.{i}.attn.bias": torch.ones(LENGTH, LENGTH).tril()[None, None] for i in range(DEPTH)}
    return tree | masks | {"lm_head.weight": tree["transformer.wte.weight"].clone()}


def tost_language() -> Tree:
    tree = text_frame() | norm("transformer.ln_f", bias=False)
    for i in range(DEPTH):
        h = f"transformer.h.{i}"
        tree |= norm(f"{h}.ln_1", bias=False) | norm(f"{h}.ln_2", bias=False)
        tree |= linear(f"{h}.attn.c_attn", bias=False) | linear(f"{h}.attn.c_proj", bias=False)
        tree |= {f"{h}.attn.temp": 1 + draw(HEADS, 1), f"{h}.attn.denom_bias": draw(HEADS, LENGTH, 1)}
        tree |= linear(f"{h}.mlp.c_fc", 4 * D, bias=False) | linear(f"{h}.mlp.c_proj", D, 4 * D, bias=False)
        tree |= {f"{h}.gamma{half}": 1 + draw(D) for half in (1, 2)}
    return tree


def crate_gpt() -> Tree:
    tree = text_frame()
    for i in range(DEPTH):
        h = f"transformer.h.{i}"
        tree |= norm(f"{h}.prenorm_1") | norm(f"{h}.prenorm_2") | {f"{h}.ista.weight": draw(D, D)}
        tree |= linear(f"{h}.attn.c_attn", bias=False) | linear(f"{h}.attn.c_proj")
    return tree


def bert() -> Tree:
    e = "crate.embeddings"
    tree = {f"{e}.word_embeddings.weight": draw(WORDS, D), f"{e}.position_embeddings.weight": draw(LENGTH + 4, D)}
    tree |= {f"{e}.token_type_embeddings.weight": draw(1, D)} | norm(f"{e}.LayerNorm")
    for i in range(DEPTH):
        layer = f"crate.encoder.layer.{i}"
        tree |= norm(f"{layer}.attention.self.prenorm") | norm(f"{layer}.output.prenorm")
        tree |= linear(f"{layer}.attention.self.qkv", bias=False) | linear(f"{layer}.attention.output.dense")
        tree |= {f"{layer}.output.weight": draw(D, D)}
    tree |= linear("lm_head.dense") | norm("lm_head.layer_norm") | {"lm_head.bias": draw(WORDS)}
    tree |= {"lm_head.decoder.bias": tree["lm_head.bias"].clone(), f"{e}.position_ids": torch.arange(LENGTH + 4)[None]}
    return tree | linear("crate.pooler.dense")


# the layout's name, what may follow it -> its tree
TREES: dict[str, Callable[[], Tree]] = {
    "CRATE": crate,
    "CBT": cbt,
    "CBT: TSSA": partial(cbt, "tssa"),
    "CBT: MSSA": partial(cbt, "mssa"),
    "CRATE-MAE": masked,
    "CRATE-alpha": alpha,
    "CRATE-alpha (JAX)": alpha_jax,
    "CRATE-alpha (JAX): image tower": partial(alpha_jax, biased=False),
    "CRATE-alpha (CLIPA)": clipa,
    "ToST": tost,
    "ToST: no biases": partial(tost, biased=False),
    "ToST (language)": tost_language,
    "CRATE-GPT": crate_gpt,
    "CRATE-BERT": bert,
}


def load(tree: Tree, folder: Any) -> Any:
    save_file({key: value.contiguous() for key, value in tree.items()}, folder / "w.safetensors")
    told = any(part in key for key in tree for part in (".temp", "step_x", "/proj/kernel"))
    return load_published(folder / "w.safetensors", **({} if told else {"heads": HEADS}))


@torch.no_grad()
def output(model: Any) -> Tensor:
    g = torch.Generator().manual_seed(3)
    if model.load_report.layout in ("ToST (language)", "CRATE-GPT", "CRATE-BERT"):
        # all tokens, so that every row of the tables is read
        return model(torch.arange(LENGTH * 2).reshape(2, LENGTH) % WORDS)
    images = torch.randn(2, 3, SIDE, SIDE, generator=g)
    if model.load_report.layout == "CRATE-MAE":
        return model(images, noise=torch.rand(2, TOKENS - 1, generator=g)).prediction
    return model(images)


def test_every_layout_is_here():
    assert {name.split(":")[0] for name in TREES} == {layout.name for layout in LAYOUTS}


@pytest.mark.parametrize("name", TREES)
def test_every_tensor_is_used_or_known_to_be_dead(name, tmp_path):
    tree = TREES[name]()
    model = load(tree, tmp_path)
    report, before = model.load_report, output(model)
    assert report.layout == name.split(":")[0]
    assert not report.missing
    assert report.mapped.keys() | report.ignored.keys() == tree.keys()
    assert all(report.ignored.values())  # the reasons
    copies = {"lm_head.bias": "lm_head.decoder.bias"}
    for key, value in tree.items():
        fixed = key in copies.values() or "attn.bias" in key  # may not be anything else: see below
        if value.is_floating_point() and not fixed:
            moved = {copy: 1.5 * value for copy in (key, copies.get(key)) if copy in tree}
            after = output(load({**tree, **moved}, tmp_path))
            assert torch.equal(before, after) == (key in report.ignored), key


@pytest.mark.parametrize("name", TREES)
def test_a_tensor_that_is_not_known_is_refused_by_name(name, tmp_path):
    tree = TREES[name]()
    # something that a variant of the layout might have, beside a tensor of it
    for key in (next(iter(tree)), next(key for key in tree if "0" in key)):
        parent = key.rpartition("/" if "/" in key else ".")[0]
        unknown = f"{parent}{'/' if '/' in key else '.'}gamma3".lstrip("./")
        with pytest.raises(ValueError, match=unknown.replace(".", r"\.")):
            load({**tree, unknown: draw(D)}, tmp_path)


@pytest.mark.parametrize(
    ("name", "key"),
    [("CRATE-BERT", "lm_head.decoder.bias"), ("CRATE-GPT", "transformer.h.1.attn.bias")],
)
def test_what_is_dead_only_as_published_is_checked(name, key, tmp_path):
    tree = TREES[name]()
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        load({**tree, key: 1 - tree[key]}, tmp_path)


def layer_norm(tree: Tree, name: str, z: Tensor) -> Tensor:
    return F.layer_norm(z, (D,), tree[f"{name}.weight"], tree.get(f"{name}.bias"))


def ista(z: Tensor, d: Tensor) -> Tensor:
    return torch.relu(z + 0.1 * (z @ d - z @ d.T @ d) - 0.01)


@torch.no_grad()
@pytest.mark.parametrize("side", [16, 48])  # grids of 4 and of 12: cells are repeated, and overlap
def test_cbt_computes_what_was_published(side, tmp_path):
    tree, images = cbt(), torch.randn(2, 3, side, side)
    n, p = (side // PATCH) ** 2, D // HEADS
    tree["pos_embedding"] = draw(1, n + 1, D)
    z = images
    for i in (0, 2):
        stem = f"to_patch_embedding.proj.{i}"
        z = F.conv2d(z, tree[f"{stem}.0.weight"], stride=2, padding=1)
        bn = [tree[f"{stem}.1.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias")]
        z = F.batch_norm(z, *bn)
        z = F.gelu(z) if i == 0 else z
    z = torch.cat([tree["cls_token"].expand(2, -1, -1), z.flatten(2).mT], 1) + tree["pos_embedding"]
    for i in range(DEPTH):
        layer = f"transformer.layers.{i}"
        w = layer_norm(tree, f"{layer}.0.norm", z) @ tree[f"{layer}.0.fn.proj.weight"].T
        grid = w[:, :-1].reshape(2, side // PATCH, side // PATCH, D)  # the class token among them, the last patch not
        pooled = F.adaptive_avg_pool2d(grid.movedim(-1, 1), 8).flatten(2).mT
        updates = []
        for k in range(HEADS):
            own, pool = w[..., k * p : (k + 1) * p], pooled[..., k * p : (k + 1) * p]
            a = (pool @ own.mT / p**0.5).softmax(-1)
            q = pool + tree[f"{layer}.0.fn.step_rep"][k] * (a @ own)
            updates.append(tree[f"{layer}.0.fn.step_x"][k] * (a.mT @ ((q @ q.mT / p**0.5).softmax(-1) @ q)))
        z = z + F.linear(torch.cat(updates, -1), *(tree[f"{layer}.0.fn.to_out.{kind}"] for kind in ("weight", "bias")))
        z = ista(layer_norm(tree, f"{layer}.1.norm", z), tree[f"{layer}.1.fn.weight"])
    logits = F.linear(layer_norm(tree, "mlp_head.0", z[:, 0]), tree["mlp_head.1.weight"], tree["mlp_head.1.bias"])
    torch.testing.assert_close(load(tree, tmp_path)(images), logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_crate_gpt_computes_what_was_published(tmp_path):
    tree, ids, p = crate_gpt(), torch.tensor([[3, 1, 4, 1, 5, 9]]), D // HEADS
    z = tree["transformer.wte.weight"][ids] + tree["transformer.wpe.weight"]
    future = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    for i in range(DEPTH):
        h = f"transformer.h.{i}"
        w = layer_norm(tree, f"{h}.prenorm_1", z) @ tree[f"{h}.attn.c_attn.weight"].T
        heads = w.split(p, -1)
        attended = [(own @ own.mT / p**0.5).masked_fill(future, -torch.inf).softmax(-1) @ own for own in heads]
        z = z + F.linear(torch.cat(attended, -1), tree[f"{h}.attn.c_proj.weight"], tree[f"{h}.attn.c_proj.bias"])
        z = ista(layer_norm(tree, f"{h}.prenorm_2", z), tree[f"{h}.ista.weight"])
    torch.testing.assert_close(load(tree, tmp_path)(ids), z @ tree["lm_head.weight"].T, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["tost_language", "tost_vision", "tost_vision_bias", "cbt"])
def test_golden_checkpoints_agree_to_the_last_digits(shared, name):
    model = load_published(next((shared / "golden").glob(f"{name}.pt*")))
    golden = load_file(shared / f"golden/{name}.safetensors")
    torch.testing.assert_close(model(golden["input"]), golden["logits"], rtol=0, atol=1e-6)
    assert not model.load_report.ignored


def test_models_built_from_files_are_saved_with_what_no_tensor_shows(tmp_path):
    for name in ("CBT", "ToST"):
        model = load(TREES[name](), tmp_path)
        again = type(model).from_pretrained(model.save_pretrained(tmp_path / name)).eval()
        images = torch.randn(1, 3, SIDE, SIDE)
        assert torch.equal(model(images), again(images))
    model = load(tost_language(), tmp_path)
    model.save_pretrained(tmp_path / "text")
    again = type(model).from_pretrained(tmp_path / "text").eval()
    ids = torch.arange(LENGTH)[None]
    assert torch.equal(model(ids), again(ids))


def test_weights_for_a_model_that_computes_otherwise_say_so(tmp_path):
    tree = cbt()
    load(tree, tmp_path)
    arguments = {"embed_dim": D, "depth": DEPTH, "num_heads": HEADS, "img_size": SIDE, "num_classes": CLASSES}
    model = create_model("cbt_nano_patch4_32", **arguments)
    report = load_weights(model, tmp_path / "w.safetensors")
    assert report.settings == {"pooled": "leading where published, patches here"}
    assert "pooled: leading" in str(report)
    same = create_model("cbt_nano_patch4_32", pooled="leading", **arguments).eval()
    assert not load_weights(same, tmp_path / "w.safetensors").settings
    images = torch.randn(1, 3, SIDE, SIDE)
    assert torch.equal(same(images), load(tree, tmp_path)(images))


def test_published_sizes_of_tost_take_published_weights():
    for name in ("tost_tiny_patch16_224", "tost_medium_patch8_224"):
        with torch.device("meta"):
            state = create_model(name).state_dict()
        assert state["blocks.0.attn.subspaces.bias"].shape == state["cls_attn_blocks.0.attn.q.bias"].shape


@pytest.mark.parametrize("name", ["vit_mae_nano_patch4_32", "vit_mae_base_patch16_224"])
def test_vit_mae_has_the_published_epsilon_everywhere(name):
    with torch.device("meta"):
        model = create_model(name)
    assert {module.eps for module in model.modules() if isinstance(module, torch.nn.LayerNorm)} == {1e-6}


def test_scales_and_pooled_tokens_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"layer_scale: second='ista' replaces"):
        language_config("crate_gpt_nano", layer_scale=1.0)
    with pytest.raises(ValueError, match="pooled='some'"):
        create_model("cbt_nano_patch4_32", pooled="some")
    with pytest.raises(ValueError, match="pooled: is CBSA's"):
        create_model("crate_nano_patch4_32", pooled="leading")
    assert isinstance(language_config("tost_gpt_nano", layer_scale=1e-5), LanguageConfig)
