"""The claims of one trained linear layer: what the weights say is what they compute, and the study reports it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unrolled import studies
from unrolled.layers.linear_attention import LinearSelfAttention
from unrolled.studies import mesa_train
from unrolled.studies.cells import Context
from unrolled.studies.mesa.one_step import STUDY, Layer, OneStepConfig
from unrolled.studies.mesa_train import TUNE_SEED, Recipe, best_step_size, structure, train
from unrolled.tasks import LinearDynamics, constructed_tokens, sequence_loss
from unrolled.theory.in_context import gradient_descent_predictions

TINY: dict[str, Any] = {"steps": 6, "batch_size": 8, "sizes_batch_size": 8, "test_sequences": 64, "points": 2}


@given(size=st.floats(1e-3, 10.0), dim=st.integers(2, 6))
@settings(max_examples=20, deadline=None)
def test_the_construction_is_recognised_with_its_step_size(size: float, dim: int) -> None:
    found = structure(LinearSelfAttention.gradient_descent(state_dim=dim, step_size=size), dim)
    assert found.step_size == pytest.approx(size, rel=1e-6)
    assert found.cosine == pytest.approx(1.0)
    assert found.query_key_on_diagonals == found.output_value_on_diagonals == pytest.approx(1.0)
    # d entries of each of two products of (4 d)^2 entries
    assert found.nonzero == pytest.approx(1 / (16 * dim))


def test_the_reading_does_not_depend_on_how_the_weights_are_factored() -> None:
    torch.manual_seed(0)
    layer = LinearSelfAttention(dim=12, heads=2, dim_head=5)
    before = structure(layer, 3)
    turn = torch.randn(5, 5)
    with torch.no_grad():  # another basis of the first head's keys, and a scale moved from values to the output
        layer.query.weight[:5] = turn.mT @ layer.query.weight[:5]
        layer.key.weight[:5] = torch.linalg.inv(turn) @ layer.key.weight[:5]
        layer.value.weight *= 3
        layer.output.weight /= 3
    after = structure(layer, 3)
    assert after.cosine == pytest.approx(before.cosine, abs=1e-5)
    assert after.step_size == pytest.approx(before.step_size, abs=1e-5)


def test_random_weights_are_no_gradient_step() -> None:
    torch.manual_seed(0)
    found = structure(LinearSelfAttention(dim=40, heads=2, dim_head=20), 10)
    assert abs(found.cosine) < 0.1
    assert found.query_key_on_diagonals == pytest.approx(0.1, abs=0.03)
    assert found.nonzero == 1
    with pytest.raises(ValueError, match="layer"):
        structure(LinearSelfAttention(dim=30, heads=1, dim_head=10), 10)


def test_the_best_step_size_is_best() -> None:
    world = LinearDynamics(dim=4, steps=20)
    sample = world.sample(2048, seed=TUNE_SEED)
    best = best_step_size(world)

    def loss(step_size: float) -> float:
        return float(sequence_loss(gradient_descent_predictions(sample.inputs, step_size), sample.targets))

    assert loss(best) < min(loss(0.97 * best), loss(1.03 * best))


def test_training_is_a_function_of_the_seed_and_leaves_the_global_generator_alone() -> None:
    world = LinearDynamics(dim=3, steps=10)
    before = torch.random.get_rng_state()
    one, two, other = (train(world, Recipe(steps=3, batch_size=4), seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    tokens = constructed_tokens(world.sample(2, seed=9).inputs)
    assert torch.equal(one(tokens), two(tokens))
    assert not torch.equal(one(tokens), other(tokens))


def test_the_report_holds_the_claims_and_marks_short_training(tmp_path: Path) -> None:
    config = OneStepConfig(seeds=(0, 1), sizes=((1, 3),), out=tmp_path, kept=tmp_path / "kept", **TINY)
    report = STUDY.run(config)
    record = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [row["dim"] for row in record["results"]["rows"]] == [10, 10, 3]
    assert len(report.claims) == 5
    # six steps from weights near zero predict zero: the verdict must be negative
    assert report.claims[0].verdict == "not reproduced"
    assert report.claims[3].verdict == "not judged"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "paper: 5000 of 256" in page
    assert "By position" in page


def test_an_interrupted_training_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer(seed=0, heads=1, dim=3, batch_size=4, steps=8, test_sequences=16, points=2)
    whole = layer.compute(Context(kept=tmp_path / "whole"))
    context = Context(kept=tmp_path / "parts")
    train_kept = mesa_train.train_kept

    def stops(*given: Any, **options: Any) -> Any:
        loss_at = given[2]

        def loss(step: int) -> Any:
            if step == 6:
                raise KeyboardInterrupt
            return loss_at(step)

        return train_kept(*given[:2], loss, *given[3:], **{**options, "every": 4})

    with monkeypatch.context() as patch:
        patch.setattr(mesa_train, "train_kept", stops)
        with pytest.raises(KeyboardInterrupt):
            layer.compute(context)
    assert layer.file(context, ".pt").is_file()
    assert layer.compute(context) == whole


@pytest.mark.slow
def test_the_quick_budget_finds_the_gradient_step(tmp_path: Path) -> None:
    report = STUDY.run(OneStepConfig.of_budget("quick", budget="cpu", out=tmp_path, kept=tmp_path / "kept"))
    assert report.claims[-1].verdict == "reproduced"
    assert "1.0" in report.claims[0].measured


def test_bad_settings_are_refused_by_name() -> None:
    for settings_, match in (({"seeds": ()}, "seeds"), ({"steps": 0}, "steps"), ({"sizes": ((0, 3),)}, "sizes")):
        with pytest.raises(ValueError, match=match):
            OneStepConfig(**settings_)
    assert studies.load("mesa-one-step") is STUDY
