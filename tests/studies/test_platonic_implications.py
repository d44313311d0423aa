"""Matching kernels without pairs, and a report of what convergence allows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unrolled import studies
from unrolled.studies import platonic_implications
from unrolled.studies.platonic_implications import Config, match_kernels, retrieved, run

TINY: dict[str, Any] = {
    "seeds": (0,), "events": 6, "training_steps": (0, 5), "batch_size": 32, "starts": 3, "symbols": (3,),
    "private": (0.0, 0.9), "network_steps": 3, "neighbours": 2,
}  # fmt: skip


@given(seed=st.integers(0, 999))
@settings(max_examples=10, deadline=None)
def test_a_reordered_kernel_is_put_back_in_order_without_pairs(seed: int) -> None:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(8, 9))
    turn = np.linalg.qr(generator.normal(size=(9, 9)))[0]
    order = generator.permutation(8)
    y = (x @ turn)[order]
    # symbol order[i] of x is symbol i of y
    truth = np.argsort(order)
    found = match_kernels(x @ x.T, y @ y.T, starts=10, seed=0)
    assert (found == truth).all()
    assert retrieved(x, y, found, truth) == 1.0
    assert retrieved(x, y, generator.permutation(8), truth) <= 1.0


def test_the_report_holds_the_claims_and_a_second_run_takes_its_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(out=tmp_path, **TINY)
    report = run(config)
    record = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert set(record["results"]) == {"translation", "joint", "private", "networks"}
    (cell,) = record["results"]["translation"]
    assert [row["steps"] for row in cell["rows"]] == [0, 5, None]
    # with unlimited training, a modality's own kernel predicts as well as anything can
    assert cell["own"] == pytest.approx(cell["least"], abs=0.02)
    assert cell["least"] < cell["unconditional"]
    assert len(report.claims) == 5
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for words in ("by chance", "untrained", "shuffled"):
        assert words in page

    def fails(*_: Any) -> dict[str, Any]:
        raise AssertionError("computed again")

    for part in ("_translation", "_joint", "_private", "_networks"):
        monkeypatch.setattr(platonic_implications, part, fails)
    assert run(config).results == report.results


@pytest.mark.slow
def test_the_quick_budget_matches_modalities_without_pairs(tmp_path: Path) -> None:
    report = run(Config.of_budget("quick", out=tmp_path))
    assert report.claims[0].reproduced
    assert report.claims[2].reproduced


def test_bad_settings_are_refused_by_name() -> None:
    for given_, match in (
        ({"seeds": ()}, "seeds"), ({"starts": 0}, "starts"), ({"symbols": (99,)}, "symbols"),
        ({"private": (2.0,)}, "private"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            Config(**given_)  # type: ignore[arg-type]
    assert studies.load("platonic-implications").config is Config
