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

from unrolled import studies
from unrolled.errors import MissingData
from unrolled.instruments import layerwise
from unrolled.studies.crate_ablations import (
    KINDS,
    PREDICTORS,
    SAME_LAYER,
    Config,
    layers,
    orthonormal_rates,
    predictors,
    relation,
    relations_of,
    run,
)
from unrolled.studies.crate_members import Member, build


def tiny(folder: Path, **changes: Any) -> Config:
    given = {"data": ("digits",), "seeds": (0,), "images": 128, "workers": 1, "samples": 4, "draws": 50}
    return Config(**{**given, "members": folder / "members", "out": folder / "out", **changes})  # type: ignore[arg-type]


def test_orthonormal_bases_change_nothing_where_subspaces_are_orthonormal() -> None:
    images = torch.randn(3, 1, 8, 8)
    for kind, equal in (("orthogonal", True), ("crate", False)):
        model = build(Member(kind=kind), classes=10, channels=1, side=8).eval()
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
    assert (found["members"], found["kinds"]) == (2 * kinds, kinds)
    assert found["rho_kinds"] == pytest.approx(-1)
    assert found["rho_members"] == pytest.approx(-1)
    assert found["low"] == pytest.approx(-1)
    assert found["p"] < 0.1


@given(seed=st.integers(0, 999))
@settings(max_examples=15, deadline=None)
def test_the_correlation_is_spearmans_with_ties(seed: int) -> None:
    from scipy.stats import spearmanr

    x, y = np.random.default_rng(seed).integers(0, 5, (2, 12)).astype(float)
    expected = spearmanr(x, y).statistic if np.ptp(x) and np.ptp(y) else math.nan
    found = relation(x, y, list("abcdefghijkl"), draws=10)
    assert found["rho_kinds"] == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_seeds_of_a_kind_do_not_count_as_independent() -> None:
    generator = np.random.default_rng(0)
    rejected = 0
    for draw in range(40):
        x, y = np.repeat(generator.normal(size=(2, 8)), 5, axis=1)
        kinds = [str(i // 5) for i in range(40)]
        rejected += relation(x, y, kinds, draws=100, seed=draw)["p"] <= 0.05
    assert rejected <= 6  # 2 expected; a test over the 40 members would reject about 20


def test_too_few_kinds_and_constant_sides_have_no_correlation() -> None:
    few = relation([1, 2, 3], [1, 2, 3], ["a", "b", "c"], draws=10)
    assert few["kinds"] == 3
    assert math.isnan(few["rho_kinds"])
    flat = relation([1] * 6, range(6), list("abcdef"), draws=10)
    assert math.isnan(flat["rho_kinds"])
    assert math.isnan(flat["p"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the study has trained its members and kept its cells."""
    folder = tmp_path_factory.mktemp("ablations")
    run(tiny(folder, train=True))
    return folder


def test_the_study_trains_measures_and_reports(folder: Path) -> None:
    record = json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))
    kinds = record["results"]["members"]["digits"]
    assert list(kinds) == list(KINDS)
    for entry in kinds.values():
        curve = entry["layers"]["0"]
        assert len(curve["subspace_rate"]) == len(curve["orthonormal"]) == 4
        assert all(0 < share <= 1 for share in curve["nonzero"])
    assert len(record["claims"]) == len(studies.load("crate-ablations").expectations)
    loss = 100 * (kinds["tied"]["accuracy"]["0"] - kinds["crate"]["accuracy"]["0"])
    assert record["claims"][0]["measured"] == f"{loss:+.1f} (digits, 1 seed)"
    assert record["claims"][0]["reproduced"] is None  # one seed is not judged
    again = relations_of(kinds, SAME_LAYER, draws=50)["last"]
    assert record["results"]["relations"]["digits"]["same layer"]["last"]["kinds"] == again["kinds"] == 9


def test_kept_layers_are_read_back(folder: Path) -> None:
    config = tiny(folder)
    member = Member(kind="tied", data="digits")
    before = (config.out / "cells" / f"layers-{member.name}.json").read_bytes()
    assert layers(config, member)["rate"]
    assert (config.out / "cells" / f"layers-{member.name}.json").read_bytes() == before


def test_members_that_are_not_kept_are_not_run(tmp_path: Path) -> None:
    report = run(tiny(tmp_path, data=("cifar10",), data_dir=tmp_path / "nowhere"))
    assert not (tmp_path / "members").exists()
    assert all(claim.measured.startswith("not run") for claim in report.claims)
    assert all(claim.reproduced is None for claim in report.claims)
    assert f"{len(KINDS)} of {len(KINDS)} members were not run" in (tmp_path / "out" / "report.html").read_text("utf-8")
    with pytest.raises(MissingData, match="data_dir"):
        run(tiny(tmp_path, data=("cifar10",), data_dir=tmp_path / "nowhere", train=True))


@pytest.mark.parametrize("changes", [{"seeds": ()}, {"data": ("mnist",)}, {"samples": 1}, {"draws": 0}, {"eps": 0.0}])
def test_bad_settings_are_refused_by_name(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        tiny(tmp_path, **changes)
