"""`crate-hour` looks at weights by name beside fresh ones, in the units that they were trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from unrolled.models import create_model
from unrolled.studies.cells import Context, Row
from unrolled.studies.crate.hour import STUDY, cells
from unrolled.studies.crate.hour.cells import HourConfig, Layers, Removed, Scores
from unrolled.studies.crate.hour.networks import CRATE, VIT, given, load, shown, studied
from unrolled.studies.crate.hour.photos import Cuts
from unrolled.studies.crate.hour.removal import METHODS, RANDOM, SHARES, curves
from unrolled.studies.crate.hour.view import View
from unrolled.studies.pictures import Pictures, as_input
from unrolled.studies.results import Results


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(256, (50, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("weights", [CRATE, VIT])
def test_in_the_units_of_studies_a_network_says_what_it_says_in_its_own(weights: str, images: torch.Tensor) -> None:
    network = given(weights)
    own, other = load(network, Context()), studied(network, Context())
    with torch.no_grad():
        torch.testing.assert_close(own(shown(own, images[:2])), other(as_input(images[:2])), rtol=1e-3, atol=1e-3)


def test_results_follow_from_the_weights_and_fresh_ones_from_their_seed() -> None:
    assert given(CRATE).digest != given(VIT).digest
    assert given(CRATE, 0).digest == ""
    first, again, other = (load(given(CRATE, seed), Context()).state_dict()["head.weight"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, load(given(CRATE), Context()).state_dict()["head.weight"])


def test_of_weights_that_do_not_ship_the_setting_is_named() -> None:
    with pytest.raises(ValueError, match=r"others='crate_nano_patch4_32\.mars': no such weights ship"):
        HourConfig(others=("crate_nano_patch4_32.mars",))


def test_patches_are_removed_and_kept_from_none_to_all() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_model("crate_nano_patch4_32", img_size=16, depth=1, embed_dim=24, num_classes=3).eval()
        images = torch.randn(3, 3, 16, 16)
    measured = curves(model, images)
    with torch.no_grad():
        whole = model(images).double().softmax(1)
        empty = model(torch.zeros(1, 3, 16, 16)).double().softmax(1)[0]
    target = whole.argmax(1)
    ends = [float(whole.amax(1).mean()), float(empty[target].mean())]
    for way, (none, every) in {"deletion": ends, "insertion": ends[::-1]}.items():
        for method in (*METHODS, RANDOM):
            record = measured["probability"][way][method]
            assert len(record["curve"]) == len(SHARES)
            assert len(record["areas"]) == len(images)
            assert record["curve"][0] == pytest.approx(none, abs=1e-3)
            assert record["curve"][-1] == pytest.approx(every, abs=1e-3)
    assert measured["logit"]["deletion"] != measured["probability"]["deletion"]


def test_a_curve_that_is_lower_in_deletion_and_higher_in_insertion_is_better() -> None:
    config = HourConfig(seeds=(0,))
    ways = {
        "deletion": {"evidence": {"areas": [0.2, 0.3]}, RANDOM: {"areas": [0.5, 0.7]}},
        "insertion": {"evidence": {"areas": [0.6, 0.5]}, RANDOM: {"areas": [0.4, 0.4]}},
    }
    row: Row[Any] = Row(Removed(network=given(CRATE), explained=2), {"probability": ways}, 1.0)
    view = View(Results([row]), config)
    assert view.better(CRATE, "deletion", "evidence", RANDOM).value == pytest.approx(0.35)
    assert view.better(CRATE, "insertion", "evidence", RANDOM).value == pytest.approx(0.15)


def test_layers_and_calibration_are_of_the_first_test_images(
    images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = torch.arange(len(images)) % 10
    asked = Pictures(images=images, labels=labels, classes=tuple("0123456789"))
    monkeypatch.setattr(cells, "pictures", lambda *which: asked)
    layers = Layers(network=given(VIT, 0), looked_at=20).compute(Context())
    assert len(layers["subspace_rate"]["mean"]) == 6
    assert [len(rates) for rates in layers["orthonormal"]] == [6] * 10
    scores = Scores(network=given(CRATE), tested=50).compute(Context())
    with torch.no_grad():
        model = load(given(CRATE), Context())
        right = model(shown(model, images)).argmax(1) == labels
    assert scores["accuracy"] == pytest.approx(float(right.double().mean()))
    assert min(scores["plain"]["draws"]) >= 0


@pytest.mark.parametrize("weights", [None, CRATE])
def test_a_bump_is_as_large_as_the_mask_it_stands_beside(weights: str | None) -> None:
    cell = Cuts(network=weights and given(weights), source="generated", photos=2, side=32)  # type: ignore[arg-type]
    result = cell.compute(Context())
    assert len(result["jaccard"]) == len(result["middle"]) == 2
    assert all(0 <= value <= 1 for value in (*result["jaccard"], *result["middle"]))
    assert result["layer"] == max(range(len(result["layers"])), key=result["layers"].__getitem__)


def test_every_network_stands_beside_three_fresh_ones(tmp_path: Path) -> None:
    made = list(STUDY.cells(HourConfig(kept=tmp_path)))
    for kind in (Layers, Removed, Cuts):
        networks = [cell.network for cell in made if isinstance(cell, kind)]  # type: ignore[attr-defined]
        for weights in (CRATE, VIT):
            assert {given(weights), *(given(weights, seed) for seed in (0, 1, 2))} <= set(networks)
