"""How `crate-causal` counts classes and patches, what it removes, and what it says of heads."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from unrolled.studies.cells import Row
from unrolled.studies.crate.causal import STUDY, cells, claims, locality
from unrolled.studies.crate.causal.cells import CausalConfig, Removal, Shipped
from unrolled.studies.kinds import build
from unrolled.studies.networks import Network
from unrolled.studies.results import Estimate, Results


def tiny(folder: Path, **changes: Any) -> CausalConfig:
    given: dict[str, Any] = {"data": "digits", "seeds": (0,), "images": 128, "workers": 1, "tested": 40, "atoms": 1}
    return CausalConfig(**{**given, "kept": folder / "kept", "out": folder / "out", **changes})


def test_the_effective_number_counts_what_is_alike() -> None:
    amounts = torch.tensor([[1.0, -1.0, 1.0, 1.0], [0.0, 0.0, 3.0, 0.0], [2.0, -2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    numbers = locality.effective_number(amounts).tolist()
    assert numbers[:3] == pytest.approx([4, 1, 2])
    assert np.isnan(numbers[3])


def test_means_are_those_of_each_class() -> None:
    values, labels = torch.tensor([1.0, 3.0, 5.0, 2.0]).double(), torch.tensor([0, 0, 2, 2])
    means = locality.class_means(values, labels, 3)
    assert means[[0, 2]].tolist() == [2.0, 3.5]
    assert torch.isnan(means[1])


def test_one_class_that_falls_is_told_from_all_and_noise_from_both() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(10).repeat(50)
    noise = 0.1 * torch.randn(3, 500, generator=generator).double()
    one, all_of_them = noise[:1] - (labels == 3).double(), noise[1:2] - 1
    assert locality.classes_left(one, labels) < 0.25
    assert locality.classes_left(all_of_them, labels) == pytest.approx(1, abs=0.01)
    # no effect at all: few classes seem hit, and as few under shuffled labels
    assert float(locality.class_numbers(noise[2:], labels)[0]) < 8
    assert locality.classes_left(noise[2:], labels) == pytest.approx(1, abs=0.25)


def test_the_jackknife_has_the_standard_error_of_a_mean() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(1))
    value, error = locality.jackknife(lambda rows: float(values[rows].mean()), 400, folds=400)
    assert value == pytest.approx(float(values.mean()))
    assert error == pytest.approx(float(values.std() / 20), rel=1e-3)
    assert locality.jackknife(lambda rows: float(values[rows].mean()), 400)[1] == pytest.approx(error, rel=0.6)


def test_heads_that_serve_the_class_they_mark_are_found_and_general_ones_are_not() -> None:
    rng = np.random.default_rng(2)
    marks = rng.normal(size=(16, 10))
    falls = 0.02 * marks + 0.01 * rng.normal(size=(16, 10)) + np.linspace(0, 1, 10) + np.arange(16)[:, None]
    linked = locality.marked_classes(marks, falls)
    assert linked["fall"] > linked["null_high"]
    assert linked["correlation"] > 0.7
    assert linked["p"] < 0.01
    # heads that look at the same classes, and classes that always fall, are no meaning of a head
    general = locality.marked_classes(
        np.linspace(0, 5, 10) + 0.1 * rng.normal(size=(16, 10)), np.linspace(0, 1, 10) + 0.1 * rng.normal(size=(16, 10))
    )
    assert general["null_low"] <= general["fall"] <= general["null_high"]
    assert general["p"] > 0.05


@pytest.mark.parametrize("kind", ["crate", "vit"])
def test_what_is_removed_is_gone_and_the_random_removal_takes_as_much(kind: str) -> None:
    model = build(SimpleNamespace(kind=kind, seed=0), classes=10, channels=1, side=8).eval()
    x = torch.randn(2, 17, 96, generator=torch.Generator().manual_seed(3))
    (first, *_), (atom, *_), (head, *_) = (list(cells._places(model, what, 1)) for what in ("subspace", "atom", "head"))
    basis = cells_subspace(model)
    assert first.name == "embed"
    assert float((first.change(x) @ basis).abs().max()) < 1e-4
    for change in (first.change, first.random):
        assert int(torch.linalg.matrix_rank((x - change(x)).reshape(-1, 96), rtol=1e-4)) == 24
    moved = x - atom.change(x)
    assert torch.equal(moved[..., atom.unit], x[..., atom.unit])
    assert int((moved != 0).any(0).any(0).sum()) == 1
    torch.testing.assert_close((atom.random(x) - x).norm(dim=-1), moved.norm(dim=-1))
    part = x[..., :24]
    assert not head.change(part).any()
    torch.testing.assert_close((head.random(part) - part).norm(dim=-1), part.norm(dim=-1))


def cells_subspace(model: Any) -> torch.Tensor:
    from unrolled.instruments import edits

    return edits.subspace(model, "block00", 0)


def test_claims_read_networks_and_the_shipped_one() -> None:
    def row(network: Any, what: Any, more: float) -> Row[Any]:
        judged = {name: {"value": more, "error": 0.1} for name in ("classes", "classes_random", "classes_more")}
        return Row(Removal(network=network, what=what, tested=100, atoms=1), judged, 1.0)

    networks = {
        (kind, seed): Network(kind=kind, data="cifar10", seed=seed, images=128)
        for kind in ("crate", "vit")
        for seed in (0, 1)
    }
    rows = [row(network, "head", 0.1 * seed - (kind == "crate")) for (kind, seed), network in networks.items()]
    rows += [
        row(Shipped(), "subspace", -0.5),
        row(Network(kind="crate", data="cifar10", seed=0, images=0), "head", 9.0),
    ]
    results, config = Results(rows), CausalConfig(seeds=(0, 1))
    difference = claims.classes(results, config, "crate", "head") - claims.classes(results, config, "vit", "head")
    assert difference.by == pytest.approx({0: -1.0, 1: -1.0})
    found = claims.shipped(results, "subspace", "classes_more")
    assert isinstance(found, Estimate)
    assert (found.low, found.high) == pytest.approx((-0.5 - 0.196, -0.5 + 0.196))
    assert np.isnan(claims.shipped(results, "head", "classes_more"))  # type: ignore[arg-type]


def test_the_study_removes_and_reports(tmp_path: Path) -> None:
    STUDY.run(tiny(tmp_path, kinds=("crate",)))
    record = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    rows = [row for row in record["results"]["rows"] if row["cell"] == "Removal"]
    assert {(row["kind"], bool(row["images"]), row["what"]) for row in rows} == {
        *(("crate", True, what) for what in ("subspace", "head", "atom")),
        ("crate", False, "subspace"),
    }
    crate = next(row for row in rows if row["kind"] == "crate" and row["what"] == "subspace")
    assert len(crate["places"]) == len(crate["random"]) == 16
    assert all(0 < place["energy"] < 1 for place in crate["places"])
    assert all(place["subspace_rate"] > 0 for place in crate["places"])
    assert {claim["verdict"] for claim in record["claims"]} <= {"not judged", "not run"}
    assert "undecided" in record["summary"]


def test_kinds_that_have_no_such_places_are_refused(tmp_path: Path) -> None:
    for kinds in (("vit",), ("crate", "cnn-small"), ("crate", "mae")):
        with pytest.raises(ValueError, match="kinds="):
            tiny(tmp_path, kinds=kinds)
