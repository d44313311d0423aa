"""`crate-hour` looks at weights by name beside fresh ones, in the units that they were trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unrolled.data.corruptions import CORRUPTIONS
from unrolled.models import create_model
from unrolled.studies.cells import Context, Row
from unrolled.studies.crate.aligned.cells import Lesson, Trial
from unrolled.studies.crate.emergence import maps
from unrolled.studies.crate.hour import STUDY, among, cells
from unrolled.studies.crate.hour.among import Rates, students
from unrolled.studies.crate.hour.cells import Corrupted, HourConfig, Layers, Removed, Scores
from unrolled.studies.crate.hour.networks import CRATE, OTHERS, VIT, given, load, shown, studied
from unrolled.studies.crate.hour.photos import CutRegions, Cuts, Edges, Heads, OnPhotos, Roles, Things, regions
from unrolled.studies.crate.hour.pictures import Pictured
from unrolled.studies.crate.hour.relation import relation
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


def test_of_every_image_it_is_counted_how_often_it_is_named_wrongly(
    images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = images[:4]
    with torch.no_grad():
        model = load(given(CRATE), Context())
        labels = model(shown(model, few)).argmax(1)
    labels[0] = (labels[0] + 1) % 10  # this one is wrong
    asked = Pictures(images=few, labels=labels, classes=tuple("0123456789"))
    monkeypatch.setattr(cells, "pictures", lambda *which: asked)
    cell = Corrupted(network=given(CRATE), corrupted=4)
    result = cell.compute(Context())
    assert result["clean"] == "1000"
    assert set(result["wrong"]) == set(CORRUPTIONS)
    assert all(len(digits) == 4 and max(digits) <= "5" for digits in result["wrong"].values())
    view = View(Results([Row(cell, result, 1.0)]), HourConfig())
    every = view.errors(CRATE)
    assert every is not None
    assert np.allclose(every, np.mean([view.errors(CRATE, name) for name in CORRUPTIONS], axis=0))  # type: ignore[arg-type]
    assert view.errors(CRATE, "clean") == pytest.approx([100, 0, 0, 0])
    assert view.errors(VIT) is None


def test_a_head_that_looks_at_a_region_fits_it_and_not_where_it_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two heads one looks at every region; the mean over regions is 1 but for what patches cut off."""

    def read(model: Any, scenes: Any, side: int) -> Any:
        for scene in scenes:
            inside, area, _ = regions(scene, (16, 16))
            share = inside.sum(1) / area.sum()
            inside = inside[(share >= 0.02) & (share <= 0.5)]  # made-up photos have one or two, which do not meet
            if not len(inside):
                inside = torch.ones(1, 256)
            attention = torch.stack([torch.rand(256, generator=torch.Generator().manual_seed(0)), inside[0]])
            yield (scene,), Looking(attention[None, None] / 1.0, (16, 16))

    class Looking:
        def __init__(self, attention: torch.Tensor, grid: tuple[int, int]) -> None:
            self.attention, self.grid = attention, grid

    monkeypatch.setattr(maps, "read", read)
    result = Heads(network=given(CRATE, 0), source="generated", photos=8, side=64).compute(Context())
    best = max(result["jaccard"])
    assert best > 0.8
    place = result["jaccard"].index(best)
    assert result["moved"][place] < best
    assert result["middle"][place] < best


@pytest.mark.parametrize("cell", [CutRegions, Edges, Heads])
def test_of_regions_a_layer_is_chosen_on_other_photos(cell: type[OnPhotos]) -> None:
    result = cell(network=given(CRATE), source="generated", photos=2, side=32).compute(Context())
    assert len(result["layers"]) == 6
    assert result["layer"] == max(range(6), key=result["layers"].__getitem__)


def test_objects_of_regions_are_not_taken_for_objects_of_things_nor_one_size_for_another() -> None:
    which: dict[str, Any] = {"network": given(CRATE), "source": "coco", "photos": 2}
    rows: list[Any] = [
        Row(kind(**which, side=side), {"jaccard": [number, number]}, 1.0)
        for kind, side, number in ((CutRegions, 64, 0.1), (Cuts, 32, 0.2), (Cuts, 64, 0.3))
    ]
    view = View(Results(rows), HourConfig())
    assert view.cut(CRATE)[0][0] == 0.3
    assert view.by_photo(Cuts, CRATE, side=32)[0][0] == 0.2
    assert view.by_photo(CutRegions, CRATE)[0][0] == 0.1


def test_two_numbers_that_a_third_explains_have_nothing_to_do_with_each_other() -> None:
    random = np.random.default_rng(0)
    third = random.normal(size=60)
    one, other = (third + 0.3 * random.normal(size=60) for _ in range(2))
    plain, given_it = relation(one, other), relation(one, other, [third])
    assert plain.rho.low > 0.7
    assert plain.p < 0.001
    assert abs(given_it.rho.value) < 0.3
    assert given_it.rho.low < 0 < given_it.rho.high
    assert given_it.p > 0.01


def test_without_networks_or_with_nothing_left_a_correlation_is_not_defined() -> None:
    assert f"{relation([1, 2, 3], [3, 1, 2]):+.2f}" == "not defined"
    assert f"{relation(range(9), [5, 3, 1, 2, 8, 9, 4, 7, 6], [range(9)]):+.2f}" == "not defined"
    assert relation(range(9), range(9)).rho.value == pytest.approx(1)


def test_a_student_has_its_accuracy_passes_and_rate_beside_its_layers(
    images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = Trial(data="cifar10", images=64, seed=0, epochs=2, lesson=Lesson(rate=0.02), held_out=8)
    model = load(given(CRATE, 0), Context())
    asked = Pictures(images=images, labels=torch.zeros(len(images), dtype=torch.long), classes=("a",))
    monkeypatch.setattr("unrolled.create_model", lambda *which, **how: model)
    monkeypatch.setattr(among, "pictures", lambda *which: asked)
    monkeypatch.setattr(Context, "result", lambda self, cell: {"accuracy": 0.4})
    result = Rates(network=student, looked_at=4, eps=0.1).compute(Context())
    assert (result["accuracy"], result["passes"], result["rate"]) == (0.4, 2, 0.02)
    assert [len(result[name]) for name in ("subspace_rate", "orthonormal", "nonzero")] == [6, 6, 6]
    assert len(students()) == 48


def test_the_best_and_the_worst_maps_are_shown_and_evidence_on_two_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"picked": [2, 1], "picked_photos": [0.2, 0.9, 0.5]}
    monkeypatch.setattr(Context, "result", lambda self, cell: {"maps": {"class token": chosen}})
    thing = Things(network=given(CRATE), source="generated", photos=3, side=32)
    result = Pictured(things=thing, each=1).compute(Context())
    assert [each["place"] for each in result["annotated"]] == [1, 0]
    best = result["annotated"][0]
    assert np.shape(best["silhouette"]) == (64, 64)
    assert np.shape(best["map"]) == np.shape(best["kept"]) == (8, 8)
    assert [np.shape(each["evidence"]) for each in result["samples"]] == [(8, 8), (8, 8)]
    known: Any = load(given(CRATE), Context())
    assert all(each["label"] in known.pretrained_cfg["label_names"] for each in result["samples"])
    assert all(0.1 <= each["probability"] <= 1 for each in result["samples"])


@pytest.mark.parametrize("weights", [None, CRATE])
def test_a_bump_is_as_large_as_the_mask_it_stands_beside(weights: str | None) -> None:
    cell = Cuts(network=weights and given(weights), source="generated", photos=2, side=32)  # type: ignore[arg-type]
    result = cell.compute(Context())
    assert len(result["jaccard"]) == len(result["middle"]) == 2
    assert all(0 <= value <= 1 for value in (*result["jaccard"], *result["middle"]))
    assert result["layer"] == max(range(len(result["layers"])), key=result["layers"].__getitem__)


def test_every_network_stands_beside_three_fresh_ones(tmp_path: Path) -> None:
    made = list(STUDY.cells(HourConfig(kept=tmp_path)))
    for kind in (Layers, Removed, Cuts, Heads, CutRegions):
        networks = [cell.network for cell in made if isinstance(cell, kind)]  # type: ignore[attr-defined]
        for weights in (CRATE, VIT):
            assert {given(weights), *(given(weights, seed) for seed in (0, 1, 2))} <= set(networks)
    for kind in (Cuts, Roles, Heads, CutRegions):  # of the further ones the trained weights alone
        networks = [cell.network for cell in made if type(cell) is kind]  # type: ignore[attr-defined]
        assert {*map(given, OTHERS)} <= {*networks}
        assert given(OTHERS[0], 0) not in networks
    for kind in (Roles, Edges):
        networks = [cell.network for cell in made if type(cell) is kind]  # type: ignore[attr-defined]
        assert {given(CRATE), given(VIT), given(CRATE, 0), given(VIT, 0)} <= set(networks)
    assert {cell.side for cell in made if type(cell) is Things} == {32, 64, 96}  # type: ignore[attr-defined]
