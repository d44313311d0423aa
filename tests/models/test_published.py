"""Published checkpoints load from every wrapping, and nothing else does."""

import argparse
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from unrolled.errors import CorruptFile, MissingData, UnsafeFile
from unrolled.models import CRATE, create_model, load_published, load_weights

DIM, HEADS, PATCH, DEPTH, CLASSES = 12, 3, 4, 2, 5


def published_state(*, channels: int = 3, tokens: int = 16) -> dict[str, torch.Tensor]:
    """A random state dict in the layout of the published classifier."""
    g = torch.Generator().manual_seed(0)
    shapes = {
        "pos_embedding": (1, tokens + 1, DIM),
        "cls_token": (1, 1, DIM),
        "to_patch_embedding.1.weight": (channels * PATCH**2,),
        "to_patch_embedding.1.bias": (channels * PATCH**2,),
        "to_patch_embedding.2.weight": (DIM, channels * PATCH**2),
        "to_patch_embedding.2.bias": (DIM,),
        "to_patch_embedding.3.weight": (DIM,),
        "to_patch_embedding.3.bias": (DIM,),
        "mlp_head.0.weight": (DIM,),
        "mlp_head.0.bias": (DIM,),
        "mlp_head.1.weight": (CLASSES, DIM),
        "mlp_head.1.bias": (CLASSES,),
    }
    for i in range(DEPTH):
        layer = f"transformer.layers.{i}"
        shapes |= {
            f"{layer}.0.norm.weight": (DIM,),
            f"{layer}.0.norm.bias": (DIM,),
            f"{layer}.0.fn.qkv.weight": (DIM, DIM),
            f"{layer}.0.fn.to_out.0.weight": (DIM, DIM),
            f"{layer}.0.fn.to_out.0.bias": (DIM,),
            f"{layer}.1.norm.weight": (DIM,),
            f"{layer}.1.norm.bias": (DIM,),
            f"{layer}.1.fn.weight": (DIM, DIM),
        }
    return {key: torch.randn(shape, generator=g) * 0.3 for key, shape in shapes.items()}


WRAPPINGS = {
    "bare.pth": lambda s: s,
    "state_dict.pth.tar": lambda s: {"epoch": 3, "arch": "x", "state_dict": s, "best_acc1": torch.tensor(1.0)},
    "model.pt": lambda s: {"model": s},
    "module.pth.tar": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "optimizer": {"lr": 0.1}},
    "compiled.pth": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
}


@pytest.mark.parametrize("name", [*WRAPPINGS, "plain.safetensors", "module.safetensors"])
def test_every_wrapping_gives_the_same_model(tmp_path, name):
    state, path = published_state(), tmp_path / name
    if name.endswith(".safetensors"):
        save_file({("module." if "module" in name else "") + k: v for k, v in state.items()}, path)
    else:
        torch.save(WRAPPINGS[name](state), path)
    model = load_published(path, heads=HEADS)
    save_file(state, tmp_path / "reference.safetensors")
    reference = load_published(tmp_path / "reference.safetensors", heads=HEADS)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(model(images), reference(images))
    assert isinstance(model, CRATE)
    assert not model.load_report.missing
    assert not model.load_report.ignored
    assert "patch_embed.proj.weight" in model.load_report.reshaped


def test_the_golden_checkpoint_gives_the_published_logits_and_tokens(shared):
    model = load_published(shared / "golden/crate_cls.pth.tar", heads=4)
    golden = load_file(shared / "golden/crate_cls.safetensors")
    assert sum(p.numel() for p in model.parameters()) == 32_650
    with torch.no_grad():
        torch.testing.assert_close(model(golden["input"]), golden["logits"], rtol=0, atol=1e-5)
        intermediates = model.forward_intermediates(
            golden["input"], output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
        )
    for i, (tokens, prefix) in enumerate(intermediates):
        torch.testing.assert_close(torch.cat([prefix, tokens], 1), golden[f"tokens.{i}"], rtol=0, atol=1e-5)


def test_options_that_the_file_does_not_tell(tmp_path):
    path = tmp_path / "c.pth"
    torch.save(published_state(), path)
    with pytest.raises(ValueError, match=r"heads: .* width 12"):
        load_published(path)
    with pytest.raises(ValueError, match="heads=5 does not divide"):
        load_published(path, heads=5)
    model = load_published(path, heads=2, dim_head=6, image_size=(32, 24), pool="mean", step_size=0.2, sparsity=0.5)
    assert model.blocks[0].ista.step_size == 0.2
    assert model.blocks[0].ista.sparsity == 0.5
    assert model.pool_include_prefix
    assert model.pos_embed.shape[1] == 8 * 6 + 1
    assert "32 x 24" in model.load_report.reshaped["pos_embed"]
    assert model(torch.randn(1, 3, 32, 24)).shape == (1, CLASSES)
    with pytest.raises(ValueError, match="decoder_heads"):
        load_published(path, heads=2, decoder_heads=2)


def test_rectangular_position_tables_need_their_size(tmp_path):
    path = tmp_path / "c.pth"
    torch.save(published_state(tokens=8), path)
    with pytest.raises(ValueError, match="image_size"):
        load_published(path, heads=HEADS)
    model = load_published(path, heads=HEADS, image_size=(8, 16))
    assert "pos_embed" not in model.load_report.reshaped


def test_the_demo_head_is_the_composition_of_its_two_linear_layers(tmp_path):
    state = published_state()
    state["mlp_head.1.weight"], state["mlp_head.1.bias"] = torch.randn(DIM, DIM), torch.randn(DIM)
    plain = load_published(_saved(tmp_path / "a.pth", {"model": state}), heads=HEADS).eval()
    w, b = torch.randn(9, DIM), torch.randn(9)
    demo = load_published(
        _saved(tmp_path / "b.pth", {"model": {**state, "head.weight": w, "head.bias": b}}), heads=HEADS
    )
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(demo(images), plain(images) @ w.T + b, rtol=1e-4, atol=1e-4)


def _saved(path, checkpoint):
    torch.save(checkpoint, path)
    return path


class Boom:
    def __reduce__(self):
        return (os.system, ("echo executed > " + os.environ["BOOM"],))


def test_a_pickle_that_is_not_tensors_is_refused_not_executed(tmp_path, monkeypatch):
    monkeypatch.setenv("BOOM", str(tmp_path / "boom"))
    path = _saved(tmp_path / "evil.pth", {"state_dict": published_state(), "x": Boom()})
    with pytest.raises(UnsafeFile, match=r"posix\.system"):
        load_published(path, heads=HEADS)
    raw = tmp_path / "raw.pth"
    raw.write_bytes(pickle.dumps(Boom()))
    with pytest.raises((UnsafeFile, CorruptFile)):
        load_published(raw, heads=HEADS)
    assert not (tmp_path / "boom").exists()


def test_known_harmless_globals_are_an_opt_in(tmp_path):
    extras = {"args": argparse.Namespace(lr=0.1), "best_acc1": np.float64(71.0)}
    path = _saved(tmp_path / "n.pth", {"state_dict": published_state(), **extras})
    with pytest.raises(UnsafeFile, match=r"argparse\.Namespace"):
        load_published(path, heads=HEADS)
    assert load_published(path, heads=HEADS, allow=["argparse.Namespace", "numpy.scalar"]).load_report.mapped
    with pytest.raises(ValueError, match=r"allow=\['os.system'\]"):
        load_published(path, heads=HEADS, allow=["os.system"])


def test_damaged_missing_and_foreign_files(tmp_path):
    path = _saved(tmp_path / "c.pth", published_state())
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(CorruptFile, match=r"c\.pth"):
        load_published(path, heads=HEADS)
    save_file(published_state(), tmp_path / "c.safetensors")
    (tmp_path / "t.safetensors").write_bytes((tmp_path / "c.safetensors").read_bytes()[:3000])
    with pytest.raises(CorruptFile, match=r"t\.safetensors"):
        load_published(tmp_path / "t.safetensors", heads=HEADS)
    with pytest.raises(MissingData, match=r"none\.pth"):
        load_published(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="no published layout has these keys"):
        load_published(_saved(tmp_path / "other.pth", {"conv.weight": torch.zeros(3)}))
    with pytest.raises(ValueError, match="holds no tensors"):
        load_published(_saved(tmp_path / "empty.pth", {"state_dict": {}}))
    half = published_state()
    del half["transformer.layers.1.1.fn.weight"]
    with pytest.raises(ValueError, match=r"transformer\.layers\.1\.1\.fn\.weight is missing"):
        load_published(_saved(tmp_path / "half.pth", half), heads=HEADS)


def test_fine_tuning_starts_from_any_of_these(tmp_path):
    path = _saved(tmp_path / "c.pth", published_state())
    source = load_published(path, heads=HEADS)
    source.save_pretrained(tmp_path / "converted")
    for weights in (path, tmp_path / "converted", tmp_path / "converted/model.safetensors"):
        model = CRATE(image_size=32, patch_size=PATCH, num_classes=7, dim=DIM, depth=DEPTH, heads=HEADS)
        report = load_weights(model, weights)
        assert torch.equal(model.blocks[1].ista.dictionary, source.blocks[1].ista.dictionary)
        assert "not loaded" in report.reshaped["head.weight"]
        assert report.missing == ["head.bias", "head.weight"]
        assert "resampled from 17 to 65" in report.reshaped["pos_embed"]


def test_weights_of_another_architecture_are_refused_with_the_difference(tmp_path):
    vit = create_model("vit_nano_patch2_8")
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    with pytest.raises(ValueError, match="another architecture than CRATE"):
        load_weights(create_model("crate_nano_patch2_8"), tmp_path / "vit.pth")
    wider = create_model("crate_nano_patch2_8", embed_dim=48)
    torch.save(wider.state_dict(), tmp_path / "narrow.pth")
    with pytest.raises(ValueError, match="shapes do not fit"):
        load_weights(create_model("crate_nano_patch2_8"), tmp_path / "narrow.pth")
    with pytest.raises(MissingData, match=r"no model\.safetensors"):
        load_weights(wider, tmp_path)


def test_a_new_head_is_kept_although_the_old_one_would_fit(tmp_path):
    trained = create_model("crate_nano_patch2_8")
    trained.save_pretrained(tmp_path)
    model = create_model("crate_nano_patch2_8")
    fresh = model.head.weight.detach().clone()
    report = load_weights(model, tmp_path, head=False)
    assert torch.equal(model.head.weight, fresh)
    assert torch.equal(model.blocks[0].ista.dictionary, trained.blocks[0].ista.dictionary)
    assert set(report.reshaped) == {"head.weight", "head.bias"}
    assert "the classifier is new" in str(report)
    load_weights(model, tmp_path)
    assert torch.equal(model.head.weight, trained.head.weight)


def test_weights_of_a_classifier_with_two_heads(tmp_path):
    name = "deit_tiny_distilled_patch16_224"
    torch.save(create_model(name, num_classes=10).state_dict(), tmp_path / "w.pth")
    report = load_weights(create_model(name, num_classes=3), tmp_path / "w.pth")
    assert {key.split(".")[0] for key in report.reshaped} == {"head", "head_dist"}


def test_weights_meet_models_that_timm_did_not_make(tmp_path):
    class Tied(torch.nn.Module):
        def __init__(self, positions=9):
            super().__init__()
            self.embed = torch.nn.Embedding(5, 4)
            self.pos_embed = torch.nn.Parameter(torch.randn(1, positions, 4))
            self.out = torch.nn.Linear(4, 5, bias=False)
            self.out.weight = self.embed.weight

    source = Tied()
    save_file(
        {"embed.weight": source.embed.weight.data, "pos_embed": source.pos_embed.data}, tmp_path / "w.safetensors"
    )
    model = Tied()
    load_weights(model, tmp_path / "w.safetensors")
    assert torch.equal(model.out.weight, source.embed.weight)
    with pytest.raises(ValueError, match="shapes do not fit"):
        load_weights(Tied(positions=4), tmp_path / "w.safetensors")


def test_unknown_body_tensors_are_not_swallowed(tmp_path):
    model = create_model("crate_nano_patch2_8")
    save_file({**model.state_dict(), "blocks.6.norm1.weight": torch.ones(96)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"has \['blocks.6.norm1.weight'\]"):
        load_weights(model, tmp_path / "w.safetensors")


def test_positions_that_are_no_square_are_not_guessed(tmp_path):
    wide = create_model("crate_nano_patch4_32", img_size=(16, 32), num_classes=10)
    save_file(wide.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="no square grid"):
        load_weights(create_model("crate_nano_patch4_32", num_classes=10), tmp_path / "w.safetensors")
