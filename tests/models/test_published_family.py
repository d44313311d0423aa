"""Published checkpoints of the family: the fixtures to 1e-5, synthetic trees where there is none."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from unrolled.errors import CorruptFile, UnsafeFile
from unrolled.models import CRATE, MaskedAutoencoder, ToST, create_model, load_published, load_weights


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@torch.no_grad()
def test_golden_masked_autoencoder(shared):
    model = load_published(shared / "golden/crate_mae.pth", heads=4)
    golden = load_file(shared / "golden/crate_mae.safetensors")
    loss, prediction, mask = model(golden["input"], noise=golden["noise"])
    close(loss, golden["loss"].squeeze(), 1e-6)
    close(prediction, golden["pred"])
    assert torch.equal(mask, golden["mask"])
    z = model._pos_embed(model.patch_embed(golden["input"]))
    last = model.blocks[-1]
    z = last.norm1(model.blocks[:-1](z))
    close(last.attn.attention(z), golden["attention_last"])
    close(last.attn.subspaces(z), golden["shared_qkv_last"])
    assert set(model.load_report.ignored) == {"pos_embed", "decoder_embed.weight", "decoder_embed.bias"}
    assert model(torch.randn(1, 3, 448, 40)).prediction.shape == (1, 56 * 5, 192)


@pytest.mark.parametrize(("name", "kwargs"), [("crate_alpha", {"heads": 4}), ("tost_vision", {})])
@torch.no_grad()
def test_golden_classifiers(shared, name, kwargs):
    model = load_published(shared / f"golden/{name}.pth", **kwargs)
    golden = load_file(shared / f"golden/{name}.safetensors")
    close(model(golden["input"]), golden["logits"])
    assert not model.load_report.missing
    assert not model.load_report.ignored
    assert model(torch.randn(1, 3, 448, 320)).shape == (1, 10)
    large = load_published(shared / f"golden/{name}.pth", image_size=448, **kwargs)
    assert large(torch.randn(1, 3, 448, 448)).shape == (1, 10)


def test_golden_checkpoints_start_other_models(shared):
    source = load_published(shared / "golden/crate_alpha.pth", heads=4)
    arguments = {"embed_dim": 48, "depth": 2, "num_heads": 4, "patch_size": 8, "img_size": 64}
    model = create_model("crate_alpha_nano_patch4_32", num_classes=3, **arguments)
    report = load_weights(model, shared / "golden/crate_alpha.pth")
    assert "head.weight" in report.reshaped
    assert torch.equal(model.blocks[1].ista.decoder, source.blocks[1].ista.decoder)


DIM, HEADS, PATCH, CLASSES = 12, 3, 4, 5


def jax_tree(*, prefix=""):
    g = torch.Generator().manual_seed(0)
    shapes = {
        "cls": (1, 1, DIM),
        "pos_embedding": (1, 17, DIM),
        "embedding/kernel": (PATCH, PATCH, 3, DIM),
        "embedding/bias": (DIM,),
        "encoder_norm/scale": (DIM,),
        "encoder_norm/bias": (DIM,),
        "head/kernel": (DIM, CLASSES),
        "head/bias": (CLASSES,),
    }
    for i in range(2):
        block = f"Transformer/encoderblock_{i}"
        attention = f"{block}/MultiHeadDotProductSubspaceAttention_0"
        shapes |= {f"{block}/LayerNorm_{j}/{kind}": (DIM,) for j in (0, 1) for kind in ("scale", "bias")}
        shapes |= {f"{attention}/proj/kernel": (DIM, HEADS, 4), f"{attention}/out/kernel": (HEADS, 4, DIM)}
        shapes |= {f"{block}/OvercompleteISTABlock_0/{name}": (DIM, 4 * DIM) for name in ("D", "D1")}
    return {f"{prefix}{key}": torch.randn(shape, generator=g) * 0.3 for key, shape in shapes.items()}


def flax_forward(tree, images):
    """What the flax model computes, written with its own contractions."""

    def norm(x, name):
        return F.layer_norm(x, (DIM,), tree[f"{name}/scale"], tree[f"{name}/bias"], eps=1e-6)

    patches = images.permute(0, 2, 3, 1).unflatten(2, (4, PATCH)).unflatten(1, (4, PATCH))
    x = torch.einsum("nhpwqc,pqcd->nhwd", patches, tree["embedding/kernel"]) + tree["embedding/bias"]
    x = torch.cat([tree["cls"].expand(len(x), -1, -1), x.flatten(1, 2)], 1) + tree["pos_embedding"]
    for i in range(2):
        block = f"Transformer/encoderblock_{i}"
        attention = f"{block}/MultiHeadDotProductSubspaceAttention_0"
        w = torch.einsum("nld,dhp->nlhp", norm(x, f"{block}/LayerNorm_0"), tree[f"{attention}/proj/kernel"])
        weights = (torch.einsum("nqhp,nkhp->nhqk", w, w) / 2).softmax(-1)
        x = x + torch.einsum("nhqk,nkhp,hpd->nqd", weights, w, tree[f"{attention}/out/kernel"])
        y, d = norm(x, f"{block}/LayerNorm_1"), tree[f"{block}/OvercompleteISTABlock_0/D"]
        first = torch.relu(0.1 * y @ d - 0.01)
        second = torch.relu(first - 0.1 * (first @ d.T - y) @ d - 0.01)
        x = x + second @ tree[f"{block}/OvercompleteISTABlock_0/D1"].T
    return norm(x, "encoder_norm")[:, 0] @ tree["head/kernel"] + tree["head/bias"]


def nested(tree):
    out = {}
    for key, value in tree.items():
        *path, last = key.split("/")
        here = out
        for part in path:
            here = here.setdefault(part, {})
        here[last] = value
    return out


@pytest.mark.parametrize("form", ["npz", "params.npz", "nested.pt"])
def test_the_jax_tree_gives_what_the_flax_model_computes(tmp_path, form):
    tree, path = jax_tree(), tmp_path / form
    if form == "nested.pt":
        torch.save({"params": nested(tree)}, path)
    else:
        prefix = "params/" if form.startswith("params") else ""
        moments = {f"opt/mu/{key}": value.numpy() for key, value in tree.items()} if prefix else {}
        path = path.with_suffix(".npz")
        np.savez(path, **{f"{prefix}{key}": value.numpy() for key, value in tree.items()}, **moments)
    model = load_published(path)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model(images), flax_forward(tree, images), rtol=1e-4, atol=1e-4)
    assert model.blocks[0].attn.heads == HEADS
    assert not model.load_report.ignored
    with pytest.raises(ValueError, match="3 x 4"):
        load_published(path, heads=4)


def test_half_precision_arrays_of_jax_are_read(tmp_path):
    tree = jax_tree()
    halves = {key: value.bfloat16().view(torch.int16).numpy().view("V2") for key, value in tree.items()}
    np.savez(tmp_path / "half.npz", **halves)
    np.savez(tmp_path / "full.npz", **{key: value.bfloat16().float().numpy() for key, value in tree.items()})
    images = torch.randn(1, 3, 16, 16)
    assert torch.equal(load_published(tmp_path / "half.npz")(images), load_published(tmp_path / "full.npz")(images))


def test_arrays_with_objects_and_broken_archives_are_refused(tmp_path):
    np.savez(tmp_path / "o.npz", a=np.array([object()], dtype=object))
    with pytest.raises(UnsafeFile):
        load_published(tmp_path / "o.npz")
    (tmp_path / "b.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(CorruptFile):
        load_published(tmp_path / "b.npz")


def published_mae(model, *, seed=1):
    """A state dict in the published layout that holds `model`'s weights, dead parameters included."""
    names = {"attn.subspaces.weight": "0.fn.qkv.weight", "attn.output": "0.fn.to_out.0", "norm1": "0.norm"}
    encoder = {**names, "norm2": "1.norm", "ista.dictionary": "1.fn.weight"}
    decoder = {key: value.replace("0.", "1.", 1) for key, value in names.items() if key != "norm1"}
    decoder |= {"norm1": "0.norm", "linear.weight": "0.fn.weight", "norm2": "1.norm"}
    state = {}
    for key, value in model.state_dict().items():
        stack, _, rest = key.partition(".")
        if stack in ("blocks", "decoder_blocks"):
            index, _, rest = rest.partition(".")
            table = encoder if stack == "blocks" else decoder
            ours = next(name for name in table if rest == name or rest.startswith(f"{name}."))
            key = f"{stack}.{index}.layers.0.{table[ours]}{rest.removeprefix(ours)}"
        state["decoder_pos_embed" if key == "pos_embed" else key] = value
    d = model.embed_dim
    g = torch.Generator().manual_seed(seed)
    dead = {"pos_embed": (1, 17, d), "decoder_embed.weight": (d, d), "decoder_embed.bias": (d,)}
    return {**state, **{key: torch.randn(shape, generator=g) for key, shape in dead.items()}}


def test_masked_autoencoders_of_other_heads_and_wrappings(tmp_path):
    source = MaskedAutoencoder(
        image_size=16, patch_size=4, dim=24, depth=2, heads=4, decoder_heads=6, decoder_depth=1, sparsity=0.5
    ).eval()
    torch.save({"model": {f"module.{k}": v for k, v in published_mae(source).items()}}, tmp_path / "m.pth")
    model = load_published(tmp_path / "m.pth", heads=4, decoder_heads=6)
    images, noise = torch.randn(2, 3, 16, 16), torch.rand(2, 16)
    for a, b in zip(model(images, noise=noise), source(images, noise=noise), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="pool"):
        load_published(tmp_path / "m.pth", heads=4, pool="mean")
    with pytest.raises(ValueError, match="decoder_heads=5"):
        load_published(tmp_path / "m.pth", heads=4, decoder_heads=5)
    larger = load_published(tmp_path / "m.pth", heads=4, image_size=(32, 24))
    assert larger.patch_embed.grid_size == (8, 6)
    assert not larger.pos_embed.requires_grad


def test_families_mixed_up_and_torn_files_are_refused(tmp_path):
    source = MaskedAutoencoder(image_size=16, patch_size=4, dim=24, depth=1, heads=4)
    state = published_mae(source)
    torn = {key: value for key, value in state.items() if "to_out" not in key}
    torch.save(torn, tmp_path / "torn.pth")
    with pytest.raises(ValueError, match=r"attn\.output\.bias"):
        load_published(tmp_path / "torn.pth", heads=4)
    torch.save(state, tmp_path / "m.pth")
    with pytest.raises(ValueError, match="another architecture than ToST"):
        load_weights(ToST(image_size=16, patch_size=4, dim=24, depth=1, heads=4), tmp_path / "m.pth")
    with pytest.raises(ValueError, match="another architecture than CRATE"):
        load_weights(CRATE(image_size=16, patch_size=4, dim=24, depth=1, heads=4), tmp_path / "m.pth")
    torch.save({"blocks.0.attn.qkv.weight": torch.zeros(3)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="no published layout"):
        load_published(tmp_path / "x.pth")


def test_options_a_family_does_not_have_are_named(shared):
    for argument in ({"pool": "mean"}, {"sparsity": 0.1}, {"decoder_heads": 2}):
        with pytest.raises(ValueError, match=next(iter(argument))):
            load_published(shared / "golden/tost_vision.pth", **argument)
    with pytest.raises(ValueError, match="the file has 4 x 16"):
        load_published(shared / "golden/tost_vision.pth", heads=2)
