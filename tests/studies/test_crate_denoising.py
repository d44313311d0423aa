"""Compression beside the score: what is exact must be exact, and the study must say what it did not run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from unrolled.studies.cells import Context
from unrolled.studies.crate.denoising import STUDY
from unrolled.studies.crate.denoising.cells import DenoisingConfig, points
from unrolled.studies.crate.denoising.claims import CLAIMS
from unrolled.studies.crate.denoising.steps import (
    STACKS,
    Stack,
    Steps,
    attend,
    compression_steps,
    mixture,
    normalized,
    published_temperature,
    stack_step,
)

PLACE: dict[str, Any] = {"heads": 4, "dim": 16, "dim_head": 4, "noise": 0.2, "tokens": 64, "seed": 0}
STACK: dict[str, Any] = {**PLACE, "tokens": 32, "sets": 2, "layers": 4}
TINY: dict[str, Any] = {
    **{key: PLACE[key] for key in ("heads", "dim", "dim_head")},
    **{"tokens": 32, "sets": 1, "layers": 3, "seeds": (0, 1), "noises": (0.1, 0.2, 0.4), "temperatures": (0.5, 1.0)},
    **{"rates": (0.3, 1.0), "trained": False, "workers": 1},
}


def test_the_token_wise_form_is_the_score_as_noise_vanishes() -> None:
    found = Steps(**{**PLACE, "noise": 0.01}).compute(Context())["steps"]["softmax over heads"]
    assert found["cosine"] > 0.999
    assert found["error"] < 0.02
    assert found["removed"] == pytest.approx(1, abs=1e-3)


def test_no_step_removes_more_than_the_best_denoiser() -> None:
    known = mixture(heads=4, dim=16, dim_head=4, noise=0.3, orthogonal=True, seed=0)
    found = Steps(**{**PLACE, "noise": 0.3, "tokens": 2000}).compute(Context())
    assert found["best_error"] < found["noisy_error"]
    assert all(step["removed"] < 1.02 for step in found["steps"].values())
    assert known.noise == 0.3


def test_the_derived_step_is_the_layers_own() -> None:
    """Where the subspaces fill the space, MSSA(Z) - Z is what `compression="derived"` adds."""
    from unrolled.layers.mssa import MSSA

    known = mixture(heads=4, dim=16, dim_head=4, noise=0.2, orthogonal=True, seed=1)
    z = known.sample(20)[1]
    layer = MSSA(16, 4, output="tied", compression="derived", dtype=torch.float64)
    layer.subspaces.weight.data = known.subspaces.mT.flatten(0, 1)
    steps = compression_steps(z, known, temperature=2.0, eps=1.0)  # sqrt(p)
    torch.testing.assert_close(steps["MSSA(Z) - Z"], layer(z[None])[0].detach())


def test_the_published_temperature_is_what_layer_norm_leaves() -> None:
    z = torch.randn(1, 50, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z = normalized(z)
    assert published_temperature(z, 4) == pytest.approx(2.0)
    scaled = 3 * z  # in another unit attention is the same, in that unit
    u = mixture(heads=4, dim=16, dim_head=4, noise=0.2, orthogonal=True, seed=0).subspaces
    torch.testing.assert_close(
        attend(scaled, u, published_temperature(scaled, 4)), 3 * attend(z, u, published_temperature(z, 4))
    )


def test_score_steps_approach_the_best_denoiser_and_random_subspaces_do_not_denoise() -> None:
    sizes = {"heads": 8, "dim": 64, "dim_head": 8, "tokens": 128, "sets": 1}
    found = Stack(**sizes, noise=0.3, layers=10, rate=0.3, seed=0).denoised()
    errors = {kind: stack["error"] for kind, stack in found["stacks"].items()}
    assert errors["score"][-1] == pytest.approx(found["best"], rel=0.15)
    assert errors["published, random subspaces"][-1] > 0.98 * errors["published, random subspaces"][0]
    assert min(errors["published"]) < 0.95 * errors["published"][0]
    assert all(errors[kind][0] == errors["score"][0] for kind in STACKS)
    with pytest.raises(ValueError, match="kind='scores'"):
        stack_step("scores", mixture(**_known()), torch.zeros(0), rate=1.0)


def _known() -> dict[str, Any]:
    return {"heads": 2, "dim": 4, "dim_head": 2, "noise": 0.2, "orthogonal": True, "seed": 0}


def test_small_steps_are_undone_by_the_decoder_and_exactly_by_iterating() -> None:
    found = Stack(**STACK, rate=0.05).reversed()
    assert found["none"][-1] == found["decoder"][-1] == 0
    assert found["decoder"][0] < 0.1 * found["rescaled"][0] < found["none"][0]
    assert found["random"][0] > 5 * found["decoder"][0]
    assert found["iterations"]["2"][0] < 0.5 * found["decoder"][0]
    assert found["iterations"]["20"][0] < 1e-9


def test_a_tiny_study_says_what_it_measured_and_what_it_did_not_run(tmp_path: Path) -> None:
    config = DenoisingConfig(**TINY, kept=tmp_path / "kept", out=tmp_path)
    report = STUDY.run(config)
    written = json.loads((tmp_path / "report.json").read_text())
    assert len(written["claims"]) == len(CLAIMS)
    assert written["claims"][-1]["measured"] == "not run"
    assert "sigma 0.2, 4 subspaces of 4 in 16 dimensions" in written["claims"][0]["measured"]
    counts = [row["cell"] for row in report.results["rows"]]
    assert (counts.count("Steps"), counts.count("Stack")) == (2 * len(points(config)), 2 * len(config.rates))
    sweep = next(
        block
        for block in written["sections"][0]["blocks"]
        if block["kind"] == "table" and "setting" in block["columns"]
    )
    named = [row[0] for row in sweep["rows"]]
    assert named.count("as above") == 1
    assert len(set(named)) == len(points(config)), "every setting is told from every other"
    tables = [block for section in written["sections"] for block in section["blocks"] if block["kind"] == "table"]
    assert all(table["caption"] for table in tables)


def test_trained_autoencoders_are_shown_beside_untrained_ones(tmp_path: Path) -> None:
    few = {"layers": 1, "seeds": (0,), "trained": True, "data": "digits", "images": 128, "measured": 16}
    report = STUDY.run(DenoisingConfig(**{**TINY, **few}, kept=tmp_path / "kept", out=tmp_path))
    trained, untrained = (row for row in report.results["rows"] if row["cell"] == "MaskedLayers")
    assert (trained["images"], untrained["images"]) == (128, 0)
    assert trained["encoder"] != untrained["encoder"]
    assert report.claims[-1].measured.startswith(
        f"{trained['mirror']['all']:.3f}; untrained {untrained['mirror']['all']:.3f}"
    )
    (section,) = (section for section in report.sections if section.title == "Trained CRATE-MAE")
    assert len(section.blocks) == 4
