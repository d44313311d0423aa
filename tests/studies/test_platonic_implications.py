"""Matching kernels without pairs, and a report of what convergence allows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unrolled.report import Report
from unrolled.studies.cells import Row
from unrolled.studies.platonic.implications import STUDY
from unrolled.studies.platonic.implications.cells import ImplicationsConfig, Translated
from unrolled.studies.platonic.implications.matching import match_kernels, retrieved
from unrolled.studies.results import Results

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
    found = match_kernels(x @ x.T, y @ y.T, starts=40, seed=0)  # of 1,000 seeds, ten starts miss three and 40 none
    assert (found == truth).all()
    assert retrieved(x, y, found, truth) == 1.0
    assert retrieved(x, y, generator.permutation(8), truth) <= 1.0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImplicationsConfig, Report]:
    out = tmp_path_factory.mktemp("implications")
    config = ImplicationsConfig(out=out, kept=out / "kept", **TINY)
    return config, STUDY.run(config)


def rows_of(report: Report, cell: str) -> list[dict[str, Any]]:
    return [row for row in report.results["rows"] if row["cell"] == cell]


def test_the_report_holds_the_claims_and_their_controls(tiny: tuple[ImplicationsConfig, Report]) -> None:
    config, report = tiny
    translated = rows_of(report, "Translated")
    assert [row["steps"] for row in translated] == [0, 5, None]
    assert [len(rows_of(report, cell)) for cell in ("Joined", "Private", "Networks")] == [1, 2, 1]
    # with unlimited training, a modality's own kernel predicts as well as anything can
    assert translated[-1]["own"] == pytest.approx(translated[-1]["least"], abs=0.02)
    assert translated[-1]["least"] < translated[-1]["unconditional"]
    # one seed has no interval
    assert [claim.verdict for claim in report.claims] == [
        *("undecided", "undecided", "undecided", "not judged", "undecided", "undecided")
    ]
    assert "a match at random" in report.claims[2].measured
    page = (STUDY.folder(config) / "report.html").read_text(encoding="utf-8")
    for words in ("by chance", "untrained", "shuffled"):
        assert words in page


def test_specialists_and_untrained_networks_stand_beside_generalists(tiny: tuple[ImplicationsConfig, Report]) -> None:
    (networks,) = rows_of(tiny[1], "Networks")
    assert set(networks["matched"]) == {"generalist", "specialist", "untrained"}
    assert list(networks["alignment"]) == [
        "generalist and generalist", "generalist and specialist", "specialist and specialist",
        "untrained and untrained",
    ]  # fmt: skip


def test_what_is_not_kept_is_not_run(tiny: tuple[ImplicationsConfig, Report], tmp_path: Path) -> None:
    config, report = tiny
    more = replace(config, out=tmp_path, only_kept=True, seeds=(0, 1), symbols=(3, 4), private=(0.5, 1.0))
    partly = STUDY.run(more)
    assert partly.claims[0].measured == report.claims[0].measured
    assert [claim.verdict for claim in partly.claims] == [
        *("undecided", "not run", "undecided", "not judged", "undecided", "not run")
    ]


def test_bits_saved_are_judged_beside_modalities_that_were_not_trained() -> None:
    config = ImplicationsConfig()

    def verdict(untrained: float) -> str:
        rows: list[Row[Any]] = []
        for seed in config.seeds:
            for steps, bits in ((0, 3.0 - untrained), (None, 1.5)):
                cell: Any = Translated(seed=seed, events=16, steps=steps, batch_size=1024, starts=20)
                rows.append(
                    Row(cell, {"unconditional": 3.0, "bits": bits + 0.01 * seed, "shuffled": 2.4 + 0.1 * seed}, 1.0)
                )
        claim, random = (STUDY.claims[place].judge(Results(rows), config) for place in (2, 3))
        assert "a match at random 0.45" in claim.measured
        assert random.why.endswith("; as expected")
        return str(claim.verdict)

    assert verdict(0.1) == "controls do the same"
    assert verdict(-0.1) == "reproduced"


@pytest.mark.slow
def test_the_quick_budget_matches_modalities_without_pairs(tmp_path: Path) -> None:
    config = ImplicationsConfig.of_budget("quick", out=tmp_path, kept=tmp_path / "kept", seeds=(0, 1))
    claims = STUDY.run(replace(config, budget="cpu")).claims
    assert claims[0].verdict == "reproduced", claims[0].measured
    assert float(claims[2].measured.split()[0]) > 0.5
