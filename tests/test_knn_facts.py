"""The page of facts about mutual k-NN says what its numbers say, and these are what the metric gives."""

from __future__ import annotations

import json
import math

import pytest

from benchmarks import knn_facts as kf

FOUND = json.loads((kf.DOCS / "knn.json").read_text())


def test_the_page_is_that_of_its_numbers() -> None:
    assert kf.markdown(FOUND) == (kf.DOCS / "knn.md").read_text()


def test_the_numbers_are_the_metric_s() -> None:
    assert kf.chance(256) == pytest.approx(FOUND["chance"][0], rel=1e-3)
    assert kf.scores(256, 8, 0.9) == pytest.approx(FOUND["samples"][0], rel=0.02)


def test_chance_is_what_it_must_be_and_agreement_falls_with_n() -> None:
    assert [row["mean"] for row in FOUND["chance"]] == pytest.approx([kf.K / (n - 1) for n in kf.SAMPLES], rel=1e-4)
    for d in kf.WIDTHS:
        by_n = [row["mean"] for row in FOUND["samples"] if row["d"] == d]
        assert by_n == sorted(by_n, reverse=True)
        by_correlation = [row["mean"] for row in FOUND["gaussian"] if row["d"] == d and row["correlation"] >= 0.3]
        assert by_correlation == sorted(by_correlation)


def test_copies_have_the_ceiling_that_is_derived() -> None:
    for row in FOUND["copies"]:
        if row["copies"] > kf.K:
            assert row["score"] == pytest.approx(math.sqrt(kf.K / (row["copies"] - 1)), abs=1e-3)
