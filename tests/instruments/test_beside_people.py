"""Layers beside people: what is chosen and judged, what twins are for, and what is refused rather than NaN."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.records import rdm
from unrolled.alignment import beside_people, noise_ceiling
from unrolled.alignment.people import agreement, correlation_rdms

N = 24


def people(seed: int = 0, noise: float = 0.4) -> tuple[torch.Tensor, Any]:
    """Features of stimuli, and three people who see them with noise."""
    generator = np.random.default_rng(seed)
    base = generator.normal(size=(N, 8))
    seen = [torch.from_numpy(base + noise * generator.normal(size=base.shape)) for _ in range(3)]
    return torch.from_numpy(base), correlation_rdms(seen)


def noise(seed: int, d: int = 8) -> torch.Tensor:
    return torch.randn(N, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_layer_that_sees_as_people_do_is_best_everywhere() -> None:
    base, judged = people()
    layers = {"first": noise(1), "middle": base, "last": noise(2), "dead": torch.ones(N, 4)}
    twins = [{name: noise(10 * i + len(name)) for name in layers} for i in range(3)]
    result = beside_people(layers, judged, what="they", untrained=twins, draws=60)
    assert (result.best, result.constant) == ("middle", ["dead"])
    assert result.layers == ["first", "middle", "last"]
    assert result.score == max(result.by_layer)
    assert result.held_out.layers == {"middle": 40}
    assert result.held_out.score == pytest.approx(result.score, abs=0.1)
    assert result.p == pytest.approx(1 / 61)
    assert result.ceiling == noise_ceiling(judged)
    assert result.untrained is not None
    assert result.untrained.gain == pytest.approx(result.score - np.mean(result.untrained.scores))
    assert result.untrained.interval[0] > 0
    assert "training made it more alike" in " ".join(result.sentences())
    assert "middle agrees most with they" in repr(result)
    assert [row["layer"] for row in result.records()] == result.layers
    assert all(low <= high for low, high in result.intervals)


def test_the_score_is_the_mean_of_spearmans_correlations() -> None:
    from scipy.stats import spearmanr

    base, judged = people()
    above = np.triu_indices(N, 1)
    ours = (1 - np.corrcoef(base))[above]
    expected = np.mean([spearmanr(ours, one[above]).statistic for one in judged])
    assert beside_people({"a": base}, judged, draws=10).score == pytest.approx(expected)
    alone = beside_people({"a": base}, judged[0], draws=10)
    assert (alone.people, alone.ceiling, alone.untrained) == (1, None, None)
    assert "ceiling" not in " ".join(alone.sentences())


def test_a_model_is_not_above_a_twin_that_is_as_alike() -> None:
    base, judged = people()
    result = beside_people({"a": base}, judged, untrained=[{"a": base + 0.01 * noise(1)}], draws=60)
    assert result.untrained is not None
    low, high = result.untrained.interval
    assert low < 0 < high
    assert "is not certain" in " ".join(result.sentences())


def test_chance_and_held_out_choice_allow_for_the_search() -> None:
    _, judged = people()
    result = beside_people({f"layer{i}": noise(i) for i in range(12)}, judged, draws=99)
    assert result.p > 0.02
    assert result.chance > 0
    assert abs(result.held_out.score) < result.score


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            rdm(np.random.default_rng(0), n=3),
            "people has 3 stimuli, 3 pairs: a correlation over pairs needs at least 4",
        ),
        (rdm(np.random.default_rng(0), n=6), "people has 6 stimuli: at least 8 are needed, 4 in each half"),
        (np.ones((2, N, N)), r"people\[0\] is constant: all pairs are equally dissimilar"),
        (np.full((N, N), np.nan), r"people\[0\] has NaN or infinite dissimilarities"),
        (np.arange(N * N, dtype=float).reshape(N, N), r"people\[0\] is not symmetric"),
        (np.zeros((N, 3)), r"people must be \[people, n, n\] or \[n, n\]"),
        (np.broadcast_to(0.0, (5000, 5000)), "people has 5,000 stimuli: at most 4,096"),
    ],
)
def test_people_who_cannot_be_compared_are_refused(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        beside_people({"a": noise(0)[: len(given)]}, given, draws=10)


def test_features_that_cannot_be_compared_are_refused() -> None:
    _, judged = people()
    with pytest.raises(ValueError, match="no layer tells the 24 stimuli apart"):
        beside_people({"a": torch.ones(N, 3), "b": torch.eye(N)}, judged, draws=10)
    with pytest.raises(ValueError, match="a has 5 rows and people 24 stimuli"):
        beside_people({"a": noise(0)[:5]}, judged, draws=10)
    with pytest.raises(ValueError, match="untrained: has no layer 'a'"):
        beside_people({"a": noise(0)}, judged, untrained=[{"b": noise(1)}], draws=10)
    with pytest.raises(ValueError, match="draws must be at least 10"):
        beside_people({"a": noise(0)}, judged, draws=1)
    with pytest.raises(ValueError, match="give at least 2"):
        noise_ceiling(judged[:1])
    with pytest.raises(ValueError, match="people has 3 stimuli"):
        agreement(np.ones((1, 3, 3)), np.ones((2, 3, 3)), draws=10)


def test_it_draws_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    base, judged = people()
    twins = [{"a": noise(1), "b": noise(2)}] * 2
    result = beside_people({"a": base, "b": noise(3)}, judged, untrained=twins, draws=10)
    panel = result.panel()
    assert [series.label for series in panel.series] == ["this model", "untrained", "ceiling, lower", "ceiling, upper"]
    assert result.plot().get_figure() is not None
