"""The shared models and the worlds they are trained in: right regressions, one training for all, a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unrolled import studies
from unrolled.studies import mesa_models
from unrolled.studies.mesa_models import predictor, recipe, tokens_of, train_all, trained, untrained, world_of
from unrolled.studies.mesa_regression import lagged, ridge_predictions, steps_predictions
from unrolled.studies.mesa_worlds import Config, run
from unrolled.tasks import LinearDynamics
from unrolled.theory.in_context import least_squares_predictions

TINY: dict[str, Any] = {
    "effort": "quick",
    "steps": 2,
    "batch_size": 4,
    "test_sequences": 32,
    "workers": 1,
    "lags": (1, 4),
}


@given(seed=st.integers(0, 99), dim=st.integers(2, 5), ridge=st.floats(0.05, 10))
@settings(max_examples=8, deadline=None)
def test_regression_uses_every_pair_seen_and_is_the_limit_of_proposition_2(seed: int, dim: int, ridge: float) -> None:
    states = LinearDynamics(dim=dim, steps=12).sample(3, seed=seed).inputs.double()
    exact = ridge_predictions(states, states, ridge)
    torch.testing.assert_close(exact, least_squares_predictions(states, ridge), rtol=1e-6, atol=1e-8)
    bound = float(ridge + states.square().sum((1, 2)).max())
    stepped = steps_predictions(states, states, ridge, bound, 400)
    torch.testing.assert_close(stepped, exact, rtol=1e-4, atol=1e-5)


def test_lagged_observations_never_look_ahead() -> None:
    states = torch.arange(1.0, 5.0)[None, :, None]
    assert lagged(states, 3)[0].tolist() == [[1, 0, 0], [2, 1, 0], [3, 2, 1], [4, 3, 2]]


@pytest.mark.parametrize("world", mesa_models.PLACES)
@pytest.mark.parametrize("kind", mesa_models.KINDS)
def test_every_kind_predicts_observations_causally_in_every_world(kind: Any, world: Any) -> None:
    each = recipe(kind, world, "quick")
    model = untrained(each, 0)
    states = world_of(each).sample(2, seed=0).inputs
    changed = states.clone()
    changed[:, 30:] += 1
    predict = predictor(each, model)
    assert predict(states).shape == states.shape
    torch.testing.assert_close(predict(states)[:, :30], predict(changed)[:, :30], rtol=1e-4, atol=1e-5)
    assert [name for name in each.layers if name != "mesa"] == {"softmax": ["softmax"] * 2, "hybrid": ["softmax"]}.get(
        kind, []
    )


def test_the_linear_stack_reads_constructed_tokens_of_one_world_only() -> None:
    each = recipe("linear", "full", "quick")
    states = world_of(each).sample(2, seed=0).inputs
    assert tokens_of(each, states).shape == (2, 50, 40)
    assert predictor(each, untrained(each, 0))(states).shape == states.shape
    with pytest.raises(ValueError, match="world"):
        recipe("linear", "partial", "quick")


def test_a_model_is_trained_once_and_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    each = recipe("softmax", "full", "quick", steps=3, batch_size=4)
    model, log = trained(each, seed=0, folder=tmp_path)
    monkeypatch.setattr(mesa_models, "sequence_loss", None)  # a second training would fail
    again, kept = trained(each, seed=0, folder=tmp_path)
    assert log == kept
    assert {entry["step"] for entry in log} == {0, 1, 2, 3}
    assert len(log[0]["binding"]) == len(log[0]["sensitivity"]) == mesa_models.LAGS + 1
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
    with pytest.raises(TypeError):
        trained(each, seed=1, folder=tmp_path)


@pytest.mark.slow  # two processes that import everything
def test_two_trainings_at_a_time_give_the_same_models(tmp_path: Path) -> None:
    each = recipe("softmax", "full", "quick", steps=2, batch_size=4)
    jobs, said = [(each, 0), (each, 1)], []
    train_all(jobs, folder=tmp_path / "two", workers=2, on_progress=said.append)
    assert len(said) == 2
    for seed in (0, 1):
        parallel, _ = trained(each, seed=seed, folder=tmp_path / "two")
        alone, _ = trained(each, seed=seed, folder=tmp_path / "one")
        torch.testing.assert_close(parallel.embed.weight, alone.embed.weight, rtol=1e-4, atol=1e-6)


def test_the_report_sets_every_stack_beside_its_controls(tmp_path: Path) -> None:
    config = Config(seeds=(0,), out=tmp_path / "out", models=tmp_path / "models", **TINY)
    report = run(config)
    assert len(report.claims) == 5
    record = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    controls = record["results"]["controls"]
    assert controls["full"]["loss"]["exact ridge"] == pytest.approx(0.186, abs=0.02)
    assert controls["nonlinear"]["loss"]["exact ridge"] < 0.7 * controls["nonlinear"]["loss"]["naive"]
    assert controls["partial"]["loss"]["exact ridge"] < 0.5 * controls["partial"]["loss"]["naive"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "paper: 10000 of 256" in page
    assert "untrained" in page


def test_bad_settings_are_refused_by_name() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"seeds": ()}, "seeds"),
        ({"kinds": ("linear",)}, "kinds"),
        ({"worlds": ("flat",)}, "worlds"),
        ({"effort": "more"}, "effort"),
        ({"lags": (0,)}, "lags"),
    ]
    for settings_, match in wrong:
        with pytest.raises(ValueError, match=match):
            Config(**settings_)
    assert studies.load("mesa-worlds").config is Config
