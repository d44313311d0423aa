"""What a block does with the parts that were found by name is checked, and refused where it is something else."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import unrolled
from tests.instruments.architectures import VOCABULARY, build
from unrolled.instruments import causal, edits, head_subspaces, layerwise
from unrolled.instruments.naming import module_places

_WIDE = {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 24}
_TEXT = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SHORT = {"max_position_embeddings": 32}
_GPT2 = {"n_embd": 16, "n_head": 4, "n_layer": 2, "n_positions": 32}
_GROUPED = {"num_key_value_heads": 2}
IDS = torch.randint(3, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
NAMES = {"block00/attn", "block00/half", "block00/mlp"}


def of_transformers(cls: str, **settings: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    kind = getattr(transformers, cls)
    model = kind(kind.config_class(**settings)).eval()
    return noisy(model)


def noisy(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


class Block(nn.Module):
    """A pre-norm block of the usual names, which does something else with its halves."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.norm1, self.first, self.extra = (nn.LayerNorm(16) for _ in range(3))
        self.norm2 = nn.LayerNorm(16) if kind != "unknown norm" else nn.Identity()
        if kind == "unknown norm":
            del self.norm2
        self.attn = timm.layers.Attention(16, num_heads=4, qkv_bias=True)
        self.mlp = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        attn = self.attn(self.norm1(x))
        if self.kind == "unknown norm":
            half = x + attn
            return half + self.mlp(self.extra(half))
        half = x + (0.5 * attn if self.kind == "scaled" else attn)
        if self.kind == "wiped":
            half = self.extra(half)
            return x + attn + self.mlp(self.norm2(half))
        mlp = self.mlp(self.norm2(half))
        return half + (1.5 * mlp if self.kind == "scaled second" else mlp)


class Model(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(kind), Block(kind)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


TOKENS = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("kind", "refused"),
    [
        ("usual", set()),
        ("scaled", {"block00/attn"}),
        ("scaled second", {"block00/mlp"}),
        ("wiped", NAMES - {"block00/attn"}),
        ("unknown norm", {"block00/half"}),
    ],
)
@torch.no_grad()
def test_what_does_not_add_up_is_refused_and_the_rest_is_there(kind: str, refused: set[str]) -> None:
    torch.manual_seed(0)
    model = noisy(Model(kind)).eval()
    for _ in range(2):  # what was found in the first pass holds in the next
        with unrolled.trace(model) as t:
            model(TOKENS)
        assert NAMES - set(t) == refused
        assert {"embed", "block00", "block01"} <= set(t)
        assert len(list(t)) == len(t)
    for name in refused & set(t.names):
        with pytest.raises(ValueError, match=rf"{name} of Block is not what the name says"):
            t[name]
        if not name.endswith("/half"):
            with (
                pytest.raises(ValueError, match=rf"edits: {name} of Block is not"),
                unrolled.edit(model, {name: edits.zero}),
            ):
                model(TOKENS)


@torch.no_grad()
def test_a_first_edit_of_what_is_no_part_is_refused_and_others_are_not() -> None:
    torch.manual_seed(0)
    model = noisy(Model("scaled")).eval()
    with (
        pytest.raises(ValueError, match="block00/attn of Block is not"),
        unrolled.edit(model, {"block00/attn": lambda x: x + 1}),
    ):
        model(TOKENS)
    model = noisy(Model("scaled")).eval()
    with unrolled.edit(model, {"block00/attn": edits.zero}):
        model(TOKENS)  # half of nothing is nothing
    with unrolled.trace(model) as t:
        model(TOKENS)
    assert "block00/attn" not in t
    for kind in ("usual", "scaled"):
        model = noisy(Model(kind)).eval()
        with unrolled.edit(model, {"block01": edits.zero, "block00/mlp": edits.zero}), unrolled.trace(model) as t:
            assert not bool(model(TOKENS).any())
        assert "block00/half" in t


@torch.no_grad()
def test_the_rate_between_the_halves_is_refused_where_that_is_not_known() -> None:
    torch.manual_seed(0)
    model = noisy(Model("unknown norm")).eval()

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.inner = nn.Conv2d(3, 16, 8, stride=8), model

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.embed(x).flatten(2).mT)  # type: ignore[no-any-return]

    with pytest.raises(ValueError, match="block00/half of Block is not what the name says"):
        layerwise(Reader().eval(), IMAGES)


@torch.no_grad()
def test_in_train_mode_dropout_between_is_said() -> None:
    model = of_transformers("OPTForCausalLM", **_TEXT, **_SHORT, **_OPT, dropout=0.5).train()
    with unrolled.trace(model) as t:
        model(IDS)
    with pytest.raises(ValueError, match=r"call model\.eval\(\) if it is dropout"):
        t["block00/attn"]
    model.eval()
    with unrolled.trace(model) as t:
        model(IDS)
    assert "block00/attn" in t


_OPT = {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2, "ffn_dim": 24, "word_embed_proj_dim": 16}
LENSES = {
    "granite": ("GraniteForCausalLM", {**_WIDE, **_TEXT, **_GROUPED, "logits_scaling": 8.0}),
    "cohere2": ("Cohere2ForCausalLM", {**_WIDE, **_TEXT, **_GROUPED}),
    "gemma2": ("Gemma2ForCausalLM", {**_WIDE, **_TEXT, **_GROUPED, "head_dim": 4, "final_logit_softcapping": 1.0}),
    "mpt": ("MptForCausalLM", {"d_model": 16, "n_heads": 4, "n_layers": 2, "max_seq_len": 32, **_TEXT}),
    "xglm": (
        "XGLMForCausalLM",
        {"d_model": 16, "ffn_dim": 24, "num_layers": 2, "attention_heads": 4, **_SHORT, **_TEXT},
    ),
    "gpt2": ("GPT2LMHeadModel", {**_GPT2, **_TEXT}),
}


@pytest.mark.parametrize("name", LENSES)
@torch.no_grad()
def test_the_lens_of_the_last_block_is_what_a_language_model_says(name: str) -> None:
    cls, settings = LENSES[name]
    model = of_transformers(cls, **settings)
    found = causal.logit_lens(model, {"input_ids": IDS})
    torch.testing.assert_close(found["block01"], model(IDS).logits)
    with unrolled.trace(model) as t:
        model(IDS)
    assert {"norm", "head"} <= set(t)


@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        ("DistilBertForMaskedLM", {"dim": 16, "n_heads": 4, "n_layers": 2, "hidden_dim": 24}),
        ("ModernBertForMaskedLM", {**_WIDE, "cls_token_id": 1, "sep_token_id": 2}),
        ("ElectraForMaskedLM", {**_WIDE, **_SHORT, "embedding_size": 16}),
    ],
)
def test_a_head_of_more_than_a_norm_and_a_layer_has_no_lens(cls: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{cls} does more between its last block and its logits"):
        causal.logit_lens(of_transformers(cls, **settings, **_TEXT), IDS)


@torch.no_grad()
def test_the_head_of_modernbert_is_what_gives_its_logits() -> None:
    model, inputs = build("modernbert")
    with unrolled.trace(model) as t:
        out = model(**inputs)
    assert torch.equal(t["head"], out.logits)


@torch.no_grad()
def test_a_classifier_has_a_lens_of_the_token_it_reads() -> None:
    model, inputs = build("hf-vit")
    found = causal.logit_lens(model, inputs)
    torch.testing.assert_close(found["block01"][:, 0], model(**inputs).logits)
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=4, depths=(1, 1), num_heads=(2, 4)
    )
    with pytest.raises(ValueError, match="change their width"):
        causal.logit_lens(swin.eval(), IMAGES)


@torch.no_grad()
def test_attention_weights_of_t5_are_not_its_position_bias() -> None:
    settings = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
    model = of_transformers("T5EncoderModel", **settings, **_TEXT)
    model.set_attn_implementation("eager")
    with unrolled.trace(model, attention=True) as t:
        out = model(IDS, output_attentions=True)
    for index, weights in enumerate(out.attentions):
        assert torch.equal(t[f"block{index:02d}/attention"], weights)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 7))


class Biased(nn.Module):
    """Attention that returns its bias in place of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Linear(16, 16)
        self.num_heads = 4

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        return self.value(hidden_states), torch.randn(len(hidden_states), 4, 5, 5)


@torch.no_grad()
def test_what_is_returned_and_is_no_share_is_not_taken_for_attention() -> None:
    model = Model("usual").eval()
    model.config = type("Config", (), {"_attn_implementation": "eager"})()  # type: ignore[assignment]
    for block in model.blocks:
        block.attn = Biased()
        block.forward = lambda x, attn=block.attn: x + attn(hidden_states=x)[0]
    model.eval()
    with pytest.raises(ValueError, match="Biased returns no attention weights"), unrolled.trace(model, attention=True):
        model(TOKENS)


def test_a_block_that_runs_again_is_not_measured_as_one_layer() -> None:
    model = of_transformers("AlbertModel", **{**_WIDE, "num_hidden_layers": 3}, **_TEXT, **_SHORT, embedding_size=16)
    with pytest.raises(ValueError, match="more than once in one pass"):
        layerwise(model, IDS)


@torch.no_grad()
def test_halves_side_by_side_in_a_block_are_no_stack() -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch16_18x2_224", depth=2, img_size=32, embed_dim=48, num_heads=3).eval()
    with unrolled.trace(model) as t:
        model(IMAGES)
    assert list(t) == ["embed", "block00", "block01", "norm", "head"]
    assert torch.equal(t["norm"], model.norm(t["block01"]))
    with pytest.raises(ValueError, match="2 attention layers side by side"):
        layerwise(model, IMAGES)
    assert head_subspaces(model.blocks[0].attns[1]).shape == (3, 48, 16)


@pytest.mark.parametrize("name", ["post", "respost", "pre"])
@torch.no_grad()
def test_the_published_protocol_measures_what_attention_reads(name: str) -> None:
    from unrolled.instruments.meter import _project
    from unrolled.theory import coding_rate, normalize_tokens

    torch.manual_seed(0)
    kinds = {"respost": "vit_relpos_medium_patch16_rpn_224", "pre": "vit_tiny_patch16_224"}
    if name == "post":
        model: Any
        model, inputs = build("bert")
        given, z, block = inputs["input_ids"], "embed", model.bert.encoder.layer[0]
    else:
        model = timm.create_model(kinds[name], img_size=32, depth=2, embed_dim=48, num_heads=3)
        model, given, block = noisy(model).eval(), IMAGES, model.blocks[0]
        z = "blocks.0.norm1" if name == "pre" else "embed"
    with unrolled.trace(model, patterns=z) as t:
        model(given)
    w = normalize_tokens(_project(t[z], head_subspaces(block)))
    expected = coding_rate(w, 0.1).sum(-1).mean()
    row = layerwise(model, given, protocol="published")[0]
    assert row["subspace_rate"] == pytest.approx(float(expected), rel=1e-4)


@torch.no_grad()
def test_what_a_block_multiplies_is_edited_as_it_is_added() -> None:
    model, inputs = build("granite")
    with unrolled.trace(model) as t:
        plain = model(**inputs).logits
    with unrolled.edit(model, {"block*/attn": lambda x: x.clone(), "block*/mlp": lambda x: x.clone()}):
        assert torch.equal(model(**inputs).logits, plain)
    moved = torch.randn(16, generator=torch.Generator().manual_seed(3))
    for place in ("block00/attn", "block00/half"):
        with unrolled.edit(model, {place: lambda x: x + moved}), unrolled.trace(model) as changed:
            model(**inputs)
        torch.testing.assert_close(changed["block00/half"], t["block00/half"] + moved)
    with unrolled.edit(model, {"block00/mlp": edits.zero}), unrolled.trace(model) as cut:
        model(**inputs)
    assert torch.equal(cut["block00"], cut["block00/half"])
    assert {"block00/half", "block00"} <= set(places := module_places(model))
    assert not {"block00/attn", "block00/mlp"} & set(places)  # no module returns these
