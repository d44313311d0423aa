"""What `crate-ablations` measures of layers, how it correlates, and what it says of members that are not there."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unrolled.instruments import layerwise
from unrolled.studies.cells import Row
from unrolled.studies.crate.ablations import STUDY
from unrolled.studies.crate.ablations.cells import KINDS, SAME_LAYER, AblationsConfig, Layers, orthonormal_rates
from unrolled.studies.crate.ablations.claims import CLAIMS, PREDICTORS, predictors, relation, relation_of
from unrolled.studies.kinds import build
from unrolled.studies.networks import Network
from unrolled.studies.results import Results


def tiny(folder: Path, **changes: Any) -> AblationsConfig:
    given = {"data": ("digits",), "seeds": (0,), "images": 128, "workers": 1, "samples": 4, "draws": 50}
    return AblationsConfig(**{**given, "kept": folder / "kept", "out": folder / "out", **changes})  # type: ignore[arg-type]


def network(kind: str, *, seed: int = 0, images: int = 0) -> Network:
    return Network(kind=kind, data="digits", seed=seed, images=images)


def test_orthonormal_bases_change_nothing_where_subspaces_are_orthonormal() -> None:
    images = torch.randn(3, 1, 8, 8)
    for kind, equal in (("orthogonal", True), ("crate", False)):
        model = build(network(kind), classes=10, channels=1, side=8).eval()
        measured = [row["subspace_rate"] for row in layerwise(model, images)]
        assert (orthonormal_rates(model, images, 0.1) == pytest.approx(measured, rel=1e-4)) is equal


def test_predictors_read_the_layers() -> None:
    curves = {"subspace_rate": [4.0, 3.0, 2.0], "orthonormal": [8.0, 6.0, 6.0], "nonzero": [0.5, 0.4, 0.3]}
    untrained = {"subspace_rate": [5.0, 5.0, 5.5]}
    found = predictors(curves, untrained, 7)
    assert list(found) == list(PREDICTORS)
    assert list(found.values()) == [2.0, 9.0, 0.5, 6.0, 0.75, 0.3, 5.5, 7.0]


@given(seed=st.integers(0, 999), kinds=st.integers(5, 9))
@settings(max_examples=15, deadline=None)
def test_a_monotone_relation_is_found_with_its_sign(seed: int, kinds: int) -> None:
    generator = np.random.default_rng(seed)
    x = generator.permutation(kinds) + 0.01 * generator.random(kinds)
    found = relation([*x, *x], [*-np.exp(x), *-np.exp(x)], [*map(str, range(kinds))] * 2, draws=200)
    assert (found.networks, found.kinds) == (2 * kinds, kinds)
    assert (found.of_networks, found.of_kinds.value, found.of_kinds.low) == pytest.approx((-1, -1, -1))
    assert found.p < 0.1


@given(seed=st.integers(0, 999))
@settings(max_examples=15, deadline=None)
def test_the_correlation_is_spearmans_with_ties(seed: int) -> None:
    from scipy.stats import spearmanr

    x, y = np.random.default_rng(seed).integers(0, 5, (2, 12)).astype(float)
    expected = spearmanr(x, y).statistic if np.ptp(x) and np.ptp(y) else math.nan
    found = relation(x, y, list("abcdefghijkl"), draws=10)
    assert found.of_kinds.value == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_seeds_of_a_kind_do_not_count_as_independent() -> None:
    generator = np.random.default_rng(0)
    rejected = 0
    for draw in range(40):
        x, y = np.repeat(generator.normal(size=(2, 8)), 5, axis=1)
        kinds = [str(i // 5) for i in range(40)]
        rejected += relation(x, y, kinds, draws=100, seed=draw).p <= 0.05
    assert rejected <= 6  # 2 expected; a test over the 40 networks would reject about 20


def test_too_few_kinds_and_constant_sides_have_no_correlation() -> None:
    few = relation([1, 2, 3], [1, 2, 3], ["a", "b", "c"], draws=10)
    assert (few.kinds, few.enough) == (3, False)
    flat = relation([1] * 6, range(6), list("abcdef"), draws=10)
    assert flat.enough
    assert math.isnan(few.of_kinds.value)
    assert math.isnan(flat.of_kinds.value)
    assert (f"{flat.of_kinds:+.2f}", flat.confidence) == ("undefined", "")


def layers(kind: str, *rates: float, nonzero: tuple[float, float] = (0.5, 0.4), **columns: int) -> Row[Any]:
    cell = Layers(network=network(kind, **columns), samples=4, eps=0.1)
    return Row(cell, {"subspace_rate": rates, "orthonormal": rates, "nonzero": list(nonzero)}, 1.0)


def scored(kind: str, score: float, **columns: int) -> Row[Any]:
    return Row(network(kind, images=128, **columns), {"accuracy": score, "parameters": 7}, 1.0)


def test_what_the_untrained_network_does_too_is_not_reproduced(tmp_path: Path) -> None:
    config = tiny(tmp_path, seeds=(0, 1))
    trained = [layers("crate", 4.0, 2.0, nonzero=(0.5, 0.4 - seed / 100), seed=seed, images=128) for seed in (0, 1)]
    for control, verdict in ((0.55, "reproduced"), (0.45, "controls do the same")):
        rows = Results([*trained, layers("crate", 4.0, 3.0, nonzero=(0.5, control))])
        fall, learned, thinner = (claim.judge(rows, config) for claim in CLAIMS[-4:-1])
        assert fall.measured == "0.50 ± 0.00 (2 seeds); untrained 0.75"
        assert learned.measured == "-0.25 ± 0.00 (2 seeds)"
        assert thinner.verdict == verdict
        assert fall.verdict == "controls do the same"
        assert (learned.verdict, learned.why) == ("not judged", "a control of this package; as expected")


def test_the_relation_is_of_the_networks_that_were_run(tmp_path: Path) -> None:
    rows: list[Row[Any]] = []
    for place, kind in enumerate(KINDS[:5]):
        rows += [layers(kind, 2.0, 1.0), layers(kind, 2.0, 1.0 + place, images=128)]
        rows += [scored(kind, 0.9 - place / 10), scored(kind, 0.0, seed=1)]  # whose layers were not run
    found = relation_of(Results(rows), tiny(tmp_path), "last", "digits")
    assert (found.networks, found.kinds) == (5, 5)
    assert found.of_kinds.value == pytest.approx(-1)
    assert relation_of(Results(rows), tiny(tmp_path), "last", "digits", SAME_LAYER[:3]).kinds == 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the study has trained its networks and kept its cells."""
    folder = tmp_path_factory.mktemp("ablations")
    STUDY.run(tiny(folder))
    return folder


@pytest.mark.slow
def test_the_study_trains_measures_and_reports(folder: Path) -> None:
    record = json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))
    rows = record["results"]["rows"]
    scores = {row["kind"]: row["accuracy"] for row in rows if row["cell"] == "Network"}
    assert list(scores) == list(KINDS)
    curves = [row for row in rows if row["cell"] == "Layers"]
    assert {(row["kind"], row["images"]) for row in curves} == {(kind, n) for kind in KINDS for n in (0, 128)}
    for curve in curves:
        assert len(curve["subspace_rate"]) == len(curve["orthonormal"]) == 4
        assert all(0 < share <= 1 for share in curve["nonzero"])
    assert len(record["claims"]) == len(CLAIMS)
    loss = 100 * (scores["tied"] - scores["crate"])
    assert record["claims"][0]["measured"] == f"{loss:+.1f} (digits, 1 seed); one seed decides nothing"
    assert f"{len(SAME_LAYER)} kinds and {len(SAME_LAYER)} networks" in json.dumps(record["sections"])


@pytest.mark.slow
def test_networks_that_are_not_there_are_not_run(folder: Path, tmp_path: Path) -> None:
    report = STUDY.run(tiny(folder, data=("digits", "cifar10"), out=tmp_path, only_kept=True))
    written = (tmp_path / "report.html").read_text("utf-8")
    assert f"{len(KINDS)} of {2 * len(KINDS)} networks were not run" in written
    assert "All networks trained on CIFAR-10: not run." in written
    assert all(claim.measured.split(" (digits")[1].startswith(", 1 seed)") for claim in report.claims[:8])
