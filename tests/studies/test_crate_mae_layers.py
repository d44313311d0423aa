"""CRATE-MAE's sizes, its baselines and its page: counts are exact, inpainting solves its equation, nobody is helped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unrolled.models import create_model, list_models
from unrolled.report import Report
from unrolled.studies.cells import Cell, Context, Row
from unrolled.studies.crate.mae_layers import STUDY
from unrolled.studies.crate.mae_layers.cells import (
    BASE,
    VIT_BASE,
    Baselines,
    Completed,
    MaeLayersConfig,
    Size,
    packed,
    unpacked,
    vit_mae_parameters,
)
from unrolled.studies.crate.mae_layers.claims import CLAIMS
from unrolled.studies.crate.mae_layers.completion import (
    BASELINES,
    baseline_scores,
    completed_by,
    fixed_noise_of,
    images_of,
    masks,
    mean_colour,
    model_scores,
    nearest_patch,
    normalised,
    patches_of,
    showable,
)
from unrolled.studies.crate.masked import MaskedLayers
from unrolled.studies.kinds import DEPTH, build
from unrolled.studies.networks import Network, reconstruction
from unrolled.studies.pictures import Pictures, as_input
from unrolled.studies.results import Results
from unrolled.theory.inpainting import harmonic

TINY: dict[str, Any] = {
    **{"data": "digits", "images": 128, "seeds": (0,), "measured": 16, "tested": 40, "lessons": 20},
    **{"shown": 2, "workers": 1},
}


def parts_of(model: str) -> dict[str, int]:
    return Size(model=model).compute(Context())


def network(kind: str = "mae", seed: int = 0, images: int = 0) -> Network:
    return Network(kind=kind, data="digits", seed=seed, images=images)


def test_sizes_are_those_of_the_registry_and_the_published_ones() -> None:
    base, vit = parts_of(BASE), parts_of(VIT_BASE)
    assert base["total"] == list_models(BASE)[0].parameters
    assert base["published"] == 44_638_464
    assert vit["published"] == 143_836_416
    parts = ("patches", "encoder", "decoder", "prediction", "tokens and norms")
    assert base["trained"] == sum(base[key] for key in parts)


def test_the_formula_counts_what_a_vit_mae_has() -> None:
    """With a decoder as wide as the encoder it is what the published code of CRATE-MAE's baseline holds."""
    assert vit_mae_parameters(dim=768, depth=12, decoder_dim=768, decoder_depth=8) == parts_of(VIT_BASE)["published"]
    assert vit_mae_parameters(dim=768, depth=12, decoder_dim=512, decoder_depth=8) == 111_907_840


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 3]))
def test_patches_are_the_models_and_go_back(rows: int, columns: int, patch: int, channels: int) -> None:
    images = torch.rand(2, channels, rows * patch, columns * patch)
    patches = patches_of(images, patch)
    torch.testing.assert_close(images_of(patches, patch, (rows * patch, columns * patch)), images)
    if rows == columns:
        model = create_model(
            *("crate_mae_nano_patch4_32",),
            **{"img_size": rows * patch, "patch_size": patch, "in_chans": channels, "embed_dim": 8, "num_heads": 2},
            depth=1,
        )
        torch.testing.assert_close(model.patchify(images), patches)


def test_a_constant_image_is_completed_exactly_and_the_nearest_patch_is_near() -> None:
    images = torch.full((1, 1, 8, 8), 3.0)
    removed = masks(images, 2)
    assert int(removed.sum()) == 12
    gone = images_of(removed[..., None].expand(-1, -1, 4), 2, (8, 8))
    torch.testing.assert_close(harmonic(images, gone), images)
    patches = torch.arange(9.0).reshape(1, 9, 1)
    hidden = torch.ones(1, 9, dtype=torch.bool)
    hidden[0, [0, 5]] = False
    assert nearest_patch(patches, hidden, 3)[0, :, 0].tolist() == [0, 0, 5, 0, 5, 5, 0, 5, 5]
    assert mean_colour(patches, hidden, 1)[0, :, 0].tolist() == [0, 2.5, 2.5, 2.5, 2.5, 5, 2.5, 2.5, 2.5]


def test_scores_are_the_models_own_loss_and_completions_keep_what_is_visible() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8, generator=generator)
    model = build(network(), classes=10, channels=1, side=8).eval()
    found = model_scores(model, images, images)
    test = Pictures(images=images, labels=torch.zeros(12), classes=("a",))
    assert found["loss"] == pytest.approx(reconstruction(model, test), rel=1e-4)
    removed = masks(images, 2)
    pixels = as_input(images)
    assert torch.equal(model(pixels, 0.75, fixed_noise_of(removed)).mask.bool(), removed)
    filled, _ = completed_by(model, pixels, removed, 1.0)
    assert torch.equal(filled[~removed], patches_of(pixels, 2)[~removed])
    changed = images_of(torch.where(removed[..., None], 1.5, patches_of(pixels, 2)), 2, (8, 8))
    torch.testing.assert_close(completed_by(model, changed, removed, 1.0)[0], filled)  # no help from what is removed


def test_a_fitted_factor_never_loses_to_a_constant_on_its_own_lessons() -> None:
    images = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = baseline_scores(images, images, 2)
    target = normalised(patches_of(as_input(images), 2))
    constant = float(target.square().mean(-1)[masks(images, 2)].mean())
    assert set(found) == set(BASELINES)
    assert all(entry["loss"] <= constant + 1e-6 for entry in found.values())


def test_pages_show_no_photo_of_a_data_set() -> None:
    photos, grey = torch.zeros(9, 3, 32, 32, dtype=torch.uint8), torch.arange(9 * 64).reshape(9, 1, 8, 8) % 17
    shown = showable(photos, 6)
    assert (shown.shape, shown.dtype) == ((6, 3, 32, 32), torch.uint8)
    assert len({picture.numpy().tobytes() for picture in shown}) == 6
    assert int(shown.flatten(1).amin(1).min()) < 60 < 150 < int(shown.flatten(1).amax(1).min()), "pictures, not blanks"
    assert torch.equal(showable(grey.byte(), 2), grey[:2].byte())
    assert len(showable(photos, 0)) == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_kept_as_bytes(channels: int) -> None:
    images = torch.randint(0, 256, (2, channels, 8, 8), dtype=torch.uint8)
    one, _ = unpacked(packed(patches_of(as_input(images), 2), 2, images))
    expected = images[0].movedim(0, -1).numpy()
    assert (one == (expected[..., 0] if channels == 1 else expected)).all()


def test_a_tiny_study_reports(tmp_path: Path) -> None:
    report = STUDY.run(MaeLayersConfig(**TINY, kept=tmp_path / "kept", out=tmp_path))
    rows = report.results["rows"]
    assert len(json.loads((tmp_path / "report.json").read_text())["claims"]) == len(CLAIMS)
    scores = {(row["kind"], row["images"]): row for row in rows if row["cell"] == "Completed"}
    assert set(scores) == {(kind, images) for kind in ("mae", "mae-visible", "vit-mae") for images in (0, 128)}
    assert {key for key, row in scores.items() if "pictures" in row} == {key for key in scores if key[1]}
    loss = {key: row["loss"] for key, row in scores.items()}
    assert report.claims[4].measured.startswith(f"{loss['mae', 128] / loss['vit-mae', 128]:.3f}")
    (grid,) = (s.blocks[0].panels[0] for s in report.sections if s.title == "Completions")  # type: ignore[union-attr]
    assert [row.label for row in grid.rows] == [  # type: ignore[union-attr]
        *("image", "visible", *BASELINES),
        *("CRATE-MAE", "CRATE-MAE, visible only", "ViT-MAE of width 48"),
    ]


def test_a_fall_that_the_untrained_network_has_too_is_not_reproduced() -> None:
    def layers(ratio: float, **columns: int) -> Row[Cell]:
        ends = [{"rate_after": 2.0, "nonzero": 0.5}, {"rate_after": 2.0 * ratio, "nonzero": 0.4}]
        return Row(MaskedLayers(network=network(**columns), measured=4), {"encoder": ends, "decoder": ends}, 1.0)

    trained = [layers(0.5 - seed / 100, seed=seed, images=128) for seed in (0, 1)]
    config = MaeLayersConfig(**{**TINY, "seeds": (0, 1)})
    for control, verdict in ((1.1, "reproduced"), (0.9, "controls do the same")):
        claim = CLAIMS[0].judge(Results([*trained, layers(control)]), config)
        assert claim.verdict == verdict
        assert claim.measured.startswith(f"-0.505 ± 0.007; untrained {control - 1:.3f}")


@pytest.mark.parametrize(("after", "words"), [(1.9, "none of the 4"), (2.1, "4 of the 4")])
def test_the_page_says_in_how_many_decoder_layers_the_step_raises_r_c(after: float, words: str) -> None:
    rates = dict.fromkeys(("rate_z", "rate_before", "plain_before", "plain_after", "nonzero", "density"), 2.0)
    stack = [{**rates, "rate_after": after}] * DEPTH
    row = Row(MaskedLayers(network=network(images=128), measured=4), {"encoder": stack, "decoder": stack}, 1.0)
    report = Report("t")
    STUDY.report(report, MaeLayersConfig(**TINY), Results([row]))
    section = next(each for each in report.to_dict()["sections"] if each["title"] == "Layer by layer")
    assert f"should raise it: {words} of trained CRATE-MAEs do" in section["blocks"][-1]["text"]


def test_a_ratio_of_one_seed_decides_nothing() -> None:
    config = MaeLayersConfig(**TINY)
    loss = Row(Completed(network=network(images=128), tested=4, lessons=4, shown=0), {"loss": 0.5}, 1.0)
    seen = Row(Baselines(data="digits", tested=4, lessons=4, shown=1), {"scores": {BASELINES[2]: {"loss": 0.25}}}, 1.0)
    claims = [claim.judge(Results([loss, seen]), config) for claim in CLAIMS]  # type: ignore[list-item]
    assert [claim.measured for claim in claims[4:]] == ["not run", "2.000", "not run"]
    assert claims[5].over == "one seed"
    assert claims[5].why.endswith("undecided")
