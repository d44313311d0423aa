"""A plain function as a metric: the same numbers as the metric it computes, with chance, p-value and interval."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import unrolled
from unrolled import alignment as al
from unrolled.alignment import CKA, get_metric


def sides() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, generator=generator)
    noise = torch.randn(40, 5, generator=generator)
    return {"a0": noise, "a1": x}, {"b0": x + 0.3 * noise, "b1": noise.flip(0)}


def own_cka(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    return (x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())


def distance(x: Tensor, y: Tensor, power: float = 1.0) -> float:
    return float((1 - own_cka(x, y)) ** power)


def test_it_is_judged_as_the_metric_it_computes() -> None:
    ours, theirs = (unrolled.compare(*sides(), metric, draws=50) for metric in (own_cka, "cka"))
    assert torch.allclose(ours.scores, theirs.scores, atol=1e-6)
    assert ours.best == theirs.best == ("a1", "b0")
    assert ours.p_value == theirs.p_value
    assert ours.chance == pytest.approx(theirs.chance, abs=1e-6)
    assert ours.interval == pytest.approx(theirs.interval, abs=1e-2)
    assert ours.metric == "own_cka()"
    assert ours.calibrated is None  # the best value of a function is not known
    assert "calibrated" not in ours.summary()


def test_a_distance_with_options() -> None:
    found = unrolled.compare(*sides(), distance, draws=50, higher_is_closer=False, power=2.0)
    assert found.best == ("a1", "b0")
    assert found.score == pytest.approx((1 - float(own_cka(sides()[0]["a1"], sides()[1]["b0"]))) ** 2, abs=1e-6)
    assert found.p_value == pytest.approx(1 / 51)
    assert found.metric == "distance(power=2.0)"


def test_its_range_is_declared_and_held() -> None:
    found = unrolled.compare(*sides(), own_cka, draws=50, range=(0, 1), symmetric=True)
    theirs = unrolled.compare(*sides(), "cka", draws=50)
    assert found.calibrated == pytest.approx(theirs.calibrated, abs=1e-6)
    assert found.metric == "own_cka()"
    near = unrolled.compare({"x": sides()[0]["a1"]}, {"y": sides()[0]["a1"] + 1e-4}, own_cka, draws=9, range=(0, 1))
    assert near.interval is not None
    assert near.interval[1] <= 1
    for ends in (1, (0,), ("a", "b"), (1, 0), (0, float("nan"))):
        with pytest.raises(ValueError, match="range must be the smallest and the largest value"):
            unrolled.compare(*sides(), own_cka, draws=9, range=ends)
    with pytest.raises(ValueError, match=r"metric: own_cka returned 0\.\d+, outside its range=\(0\.9, 1\.0\)"):
        unrolled.compare(*sides(), own_cka, draws=9, range=(0.9, 1))
    with pytest.raises(ValueError, match=r"range must be .*, got \(1, 0\)"):
        unrolled.compare(*sides(), own_cka, range=(1, 0))


def test_groups_halves_and_chance_level() -> None:
    found = unrolled.compare(*sides(), own_cka, draws=20, groups=[i // 2 for i in range(40)], select_held_out=True)
    assert found.held_out is not None
    mean, _ = al.chance_level(own_cka, sides()[0]["a0"], sides()[1]["b1"], draws=20)
    assert 0 < mean < 1


@pytest.mark.parametrize("options", [{}, {"power": 2.0, "root": 1}])
def test_what_cannot_be_called_is_refused_before_anything_is_computed(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"metric: .* cannot be called as function\(x, y"):
        unrolled.compare(*sides(), distance if options else rows_of_one, **options)


def test_what_is_no_number_is_said() -> None:
    with pytest.raises(ValueError, match="metric: rows returned a Tensor; return a number"):
        unrolled.compare(*sides(), rows)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_finite_number_is_never_significant(value: float) -> None:
    def blank(x: Tensor, y: Tensor) -> float:
        return value

    with pytest.raises(ValueError, match=f"metric: blank returned {value}; return a finite number"):
        unrolled.compare(*sides(), blank, draws=9)


def test_a_score_that_is_nan_has_no_p_value_and_a_nan_by_chance_counts_as_reached() -> None:
    with pytest.raises(ValueError, match="score is NaN"):
        al.permutation_p_value(math.nan, torch.zeros(19))
    assert al.permutation_p_value(2.0, torch.tensor([math.nan, 1.0, 3.0])) == 3 / 4
    assert al.permutation_p_value(-2.0, torch.tensor([math.nan, -1.0, -3.0]), higher_is_closer=False) == 3 / 4


def rows(x: Tensor, y: Tensor) -> Tensor:
    return x


def test_a_class_is_as_its_object() -> None:
    assert repr(get_metric(CKA, unbiased=True)) == repr(CKA(unbiased=True))


def rows_of_one(x: Tensor) -> Tensor:
    return x
