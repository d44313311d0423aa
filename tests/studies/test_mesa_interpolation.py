"""Products of weights say all that a layer does, and mixing them with the construction's is exact at both ends."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unrolled.layers.linear_attention import LinearSelfAttention
from unrolled.studies.mesa.interpolation import STUDY, InterpolationConfig, construction, products_of, random_like
from unrolled.tasks import LinearDynamics, constructed_tokens
from unrolled.theory.in_context import gradient_descent_predictions

TINY: dict[str, Any] = {"steps": 4, "batch_size": 8, "test_sequences": 32, "points": 2, "coefficients": 3}


def test_products_predict_what_the_layer_predicts() -> None:
    torch.manual_seed(0)
    layer = LinearSelfAttention(12, 2, dim_head=5).double()
    states = LinearDynamics(dim=3, steps=9).sample(4, seed=0, dtype=torch.float64).inputs
    with torch.no_grad():
        expected = layer(constructed_tokens(states))[..., :3].clamp(-4, 4)
    torch.testing.assert_close(products_of(layer).predict(states, clip=4.0), expected)


@given(size=st.floats(1e-3, 1.0), seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_the_construction_is_one_gradient_step_whatever_it_is_scaled_like(size: float, seed: int) -> None:
    torch.manual_seed(seed)
    like = products_of(LinearSelfAttention(12, 2, dim_head=5))
    built = construction(like, size)
    states = LinearDynamics(dim=3, steps=9).sample(4, seed=0, dtype=torch.float64).inputs
    torch.testing.assert_close(built.predict(states, clip=1e9), gradient_descent_predictions(states, size))
    ratio, own = (x.values.norm(dim=(-2, -1)) / x.scores.norm(dim=(-2, -1)) for x in (built, like))
    used = built.scores.norm(dim=(-2, -1)) > 0
    torch.testing.assert_close(ratio[used], own[used])


def test_mixing_ends_at_both_and_random_products_have_the_norms() -> None:
    layer = LinearSelfAttention.gradient_descent(state_dim=3, step_size=0.1)
    own = products_of(layer)
    other = random_like(own, torch.Generator().manual_seed(0))
    torch.testing.assert_close(own.mixed(other, 0.0).scores, own.scores)
    torch.testing.assert_close(own.mixed(other, 1.0).values, other.values)
    torch.testing.assert_close(other.values.norm(), own.values.norm())
    # the construction stays itself when averaged with itself
    torch.testing.assert_close(own.mixed(construction(own, 0.1), 0.5).scores, own.scores)


def test_the_report_holds_both_ends_of_the_way(tmp_path: Path) -> None:
    report = STUDY.run(InterpolationConfig(seeds=(0, 1), out=tmp_path, kept=tmp_path / "kept", **TINY))
    record = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert len(record["results"]["rows"]) == 2
    for row in record["results"]["rows"]:
        assert [point["step"] for point in row["curve"]] == [0, 2, 4]
        last = row["curve"][-1]
        assert row["to_construction"][0] == pytest.approx(last["trained"])
        assert row["to_construction"][-1] == pytest.approx(last["constructed"])
        assert row["to_construction"][1] == pytest.approx(last["mixed"])
        assert last["constructed"] < 0.7 * row["zero_loss"]
    # four steps from weights near zero: the trained layer predicts zero
    assert report.claims[0].verdict == "not reproduced"
    assert "paper: 2500 of 512" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_quick_budget_finds_the_average_as_good(tmp_path: Path) -> None:
    config = InterpolationConfig.of_budget("quick", seeds=(0, 1), out=tmp_path, kept=tmp_path / "kept")
    report = STUDY.run(replace(config, budget="cpu"))
    assert report.claims[1].verdict == report.claims[3].verdict == "reproduced"
