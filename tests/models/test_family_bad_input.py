"""What users get wrong with the family: the error is a `ValueError` that names it, on every member alike."""

import itertools
import math

import pytest
import torch
from torch import nn

from unrolled.models import CRATE, MaskedAutoencoder, ToST, create_model, load_published, load_weights
from unrolled.models.encoder import build_language_model
from unrolled.models.published import LAYOUTS, unwrap
from unrolled.models.sequence_config import ENCODERS, LANGUAGE_MODELS, language_config

GOLDEN = {
    "CRATE": ("crate_cls.pth.tar", 4),
    "CRATE-MAE": ("crate_mae.pth", 4),
    "CRATE-alpha": ("crate_alpha.pth", 4),
    "ToST": ("tost_vision.pth", None),
}
SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "num_heads": 4, "depth": 1}
VISION = ("crate", "crate_alpha", "aot", "cbt", "tost", "crate_mae", "vit_mae")
TEXT = tuple(name for name in (*LANGUAGE_MODELS, *ENCODERS) if name.endswith("nano"))


def vision(family, **kwargs):
    return create_model(f"{family}_nano_patch4_32", **{**SMALL, **kwargs})


def language(name):
    return build_language_model(language_config(name, vocab_size=11, max_length=8)).eval()


def saved(path, state):
    torch.save(state, path)
    return path


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(LAYOUTS, 2)), ids=lambda layout: layout.name)
def test_two_families_in_one_file_are_told_apart(tmp_path, first, second):
    state = {first.markers[0]: torch.zeros(4, 4), second.markers[0]: torch.zeros(4, 4)}
    with pytest.raises(ValueError, match="at once; save the state dict of one model alone") as error:
        load_published(saved(tmp_path / "x.pth", state))
    assert first.name in str(error.value)
    assert second.name in str(error.value)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_a_marker_alone_is_no_checkpoint(tmp_path, layout):
    for tensor in (torch.zeros(3, 5), torch.zeros(0), torch.tensor(1.0)):
        with pytest.raises(ValueError, match=r"missing|fit"):
            load_published(saved(tmp_path / "x.pth", {layout.markers[0]: tensor}), image_size=None)


@pytest.mark.parametrize("name", GOLDEN)
def test_a_published_file_without_one_tensor_or_with_a_misshapen_one(shared, tmp_path, name):
    file, heads = GOLDEN[name]
    state = unwrap(torch.load(shared / "golden" / file, weights_only=True))
    dead = {"pos_embed", "decoder_embed.weight", "decoder_embed.bias"} if name == "CRATE-MAE" else set()
    for key in sorted(state.keys() - dead)[::3]:
        rest = {other: t for other, t in state.items() if other != key}
        others = [rest]
        if state[key].ndim:
            others += [
                {**rest, key: t} for t in (state[key][:0], state[key].flatten()[:-1], torch.cat([state[key]] * 2))
            ]
        for other in others:
            with pytest.raises(ValueError, match=r"checkpoint|no published layout|fit|heads|image_size"):
                load_published(saved(tmp_path / "x.pth", other), heads=heads)


@pytest.mark.parametrize("name", GOLDEN)
def test_arguments_and_models_of_another_family_are_refused(shared, name):
    file, _ = GOLDEN[name]
    path = shared / "golden" / file
    wrong = {"decoder_heads": 2} if name != "CRATE-MAE" else {"pool": "mean"}
    with pytest.raises(ValueError, match="has no such thing"):
        load_published(path, heads=4, **wrong)
    own = {"CRATE": "crate", "CRATE-MAE": "crate_mae", "CRATE-alpha": "crate_alpha", "ToST": "tost"}[name]
    for family in VISION:
        if family != own:
            with pytest.raises(ValueError, match="another architecture"):
                load_weights(vision(family, num_classes=0 if "mae" in family else 3), path)


@pytest.mark.parametrize("family", ["crate_mae", "vit_mae"])
@pytest.mark.parametrize("ratio", [0, 0.0, 1, 1.0, -0.5, 1.5, 0.999, math.nan, math.inf])
def test_a_mask_ratio_that_keeps_or_removes_nothing(family, ratio):
    model = vision(family, num_classes=0)
    with pytest.raises(ValueError, match="mask_ratio="):
        model(torch.randn(1, 3, 16, 16), ratio)
    with pytest.raises(ValueError, match="mask_ratio="):
        model.complete(torch.randn(1, 3, 16, 16), ratio)


@pytest.mark.parametrize("family", VISION)
def test_grids_that_are_odd_oblong_or_tiny_work(family):
    model = vision(family, num_classes=0 if "mae" in family else 3).eval()
    for h, w in ((20, 12), (4, 28), (36, 4), (52, 44)):
        with torch.no_grad():
            out = model(torch.randn(2, 3, h, w))
        if "mae" in family:
            assert out.prediction.shape == (2, (h // 4) * (w // 4), 48)
            assert torch.isfinite(out.loss)
        else:
            assert out.shape == (2, 3)
            assert torch.isfinite(out).all()


@pytest.mark.parametrize("family", VISION)
@pytest.mark.parametrize(
    "shape", [(1, 3, 18, 16), (1, 3, 16, 15), (1, 3, 0, 16), (1, 3, 2, 2), (1, 1, 16, 16), (3, 16)]
)
def test_images_that_cannot_be_cut_into_patches(family, shape):
    model = vision(family, num_classes=0 if "mae" in family else 3)
    with pytest.raises(ValueError, match="images"):
        model(torch.randn(shape))


@pytest.mark.parametrize("build", [CRATE, ToST, MaskedAutoencoder])
def test_models_are_not_built_on_odd_grids(build):
    for size in (0, 10, (16, 18), (4, 3)):
        with pytest.raises(ValueError, match="image_size"):
            build(image_size=size, patch_size=4, dim=16, heads=4, depth=1)


@pytest.mark.parametrize("name", TEXT)
def test_texts_that_are_empty_too_long_or_in_unknown_tokens(name):
    model = language(name)
    for tokens, message in (
        (torch.zeros(1, 0, dtype=torch.long), "empty sequence"),
        (torch.zeros(0, 3, dtype=torch.long), "empty sequence"),
        (torch.tensor([[3, 11]]), "unknown token 11"),
        (torch.tensor([[-1, 3]]), "unknown token -1"),
        (torch.zeros(1, 3), "integers"),
        (torch.zeros(3, dtype=torch.long), "integers"),
    ):
        with pytest.raises(ValueError, match=message):
            model(tokens)


@pytest.mark.parametrize("name", TEXT)
def test_past_the_position_table_the_error_says_why_nothing_is_interpolated(name):
    model, tokens = language(name), torch.zeros(1, 9, dtype=torch.long)
    if name.startswith(("mesanet", "llama")):  # have no table: longer is fine
        assert model(tokens).shape == (1, 9, 11)
        return
    with pytest.raises(ValueError, match=r"max_length=8.*stretching the table would move every token"):
        model(tokens)
    if name in LANGUAGE_MODELS:
        assert model.generate(tokens[:, :5], 6).shape == (1, 11)  # goes on with the last 8
        _, state = model(tokens[:, :8], return_state=True)
        with pytest.raises(ValueError, match="max_length=8"):
            model(tokens[:, :1], state=state)


@pytest.mark.parametrize("name", [name for name in TEXT if name in LANGUAGE_MODELS])
def test_generation_from_nothing_or_nonsense(name):
    model = language(name)
    for prompt, message in (
        (torch.zeros(1, 0, dtype=torch.long), "empty sequence"),
        (torch.tensor([[12]]), "unknown token 12"),
        (torch.zeros(3, dtype=torch.long), "integers"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(prompt, 2)
    with pytest.raises(ValueError, match="new tokens"):
        model.generate(torch.zeros(1, 2, dtype=torch.long), -1)
    assert isinstance(model, nn.Module)


def test_a_state_of_another_member_is_refused():
    first, second = language("crate_gpt_nano"), language("tost_gpt_nano")
    tokens = torch.zeros(1, 2, dtype=torch.long)
    for a, b in ((first, second), (second, first)):
        _, state = a(tokens, return_state=True)
        with pytest.raises(ValueError, match="state"):
            b(tokens, state=state)
