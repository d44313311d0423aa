"""Depth: the algorithms are what they are called, models are shared, and what did not run is not given a number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from unrolled import studies
from unrolled.studies import mesa_train
from unrolled.studies.mesa.floors import chebyshev_predictions
from unrolled.studies.mesa_depth import Config, richardson_predictions, run, tuned
from unrolled.studies.mesa_train import FAST, PAPER_STEPS, constructed_model, constructed_recipe, new_model
from unrolled.tasks import LinearDynamics
from unrolled.theory.in_context import gradient_descent_predictions, least_squares_predictions

TINY: dict[str, Any] = {
    "seeds": (0, 1),
    "models": ("1", "2", "mesa"),
    "steps": (3, 2, 2),
    "batch_size": 4,
    "test_sequences": 16,
    "tuning_sequences": 16,
    "ridges": (1e-3,),
}


def test_one_step_is_gradient_descent_and_many_are_ridge_regression() -> None:
    states = LinearDynamics(dim=4, steps=12).sample(6, seed=0, dtype=torch.float64).inputs
    for size in (0.01, 0.1):
        one = richardson_predictions(states, 3.0, size, 1)
        torch.testing.assert_close(one, gradient_descent_predictions(states, size))
    ridge, largest = 0.5, 40.0
    exact = least_squares_predictions(states, ridge)
    many = richardson_predictions(states, ridge, 2 / (ridge + largest), 2000)
    torch.testing.assert_close(many, exact, atol=1e-6, rtol=1e-6)
    few = [
        (predict - exact).norm()
        for predict in (
            chebyshev_predictions(states, ridge, largest, 8),
            richardson_predictions(states, ridge, 2 / (ridge + largest), 8),
        )
    ]
    assert few[0] < few[1]


def test_settings_by_position_are_never_worse_where_they_are_chosen() -> None:
    sample = LinearDynamics(steps=20).sample(64, seed=3)

    def predict(states: torch.Tensor, ridge: float, inverse: float) -> torch.Tensor:
        return richardson_predictions(states, ridge, 1 / inverse, 2).clamp(-4, 4)

    fixed, pair, free = tuned(predict, sample, sample)
    assert (free <= fixed + 1e-6).all()
    assert free.mean() < 0.97 * fixed.mean()
    assert min(pair) > 0


def test_recipes_have_the_published_shapes_and_rates() -> None:
    assert set(FAST) == set(PAPER_STEPS)
    mesa = constructed_recipe("mesa", steps=5000, batch_size=256, published=True)
    assert (mesa.kind, mesa.heads, mesa.lr, mesa.warmup) == ("mesa", 4, 4e-4, None)
    assert mesa.extent == "5000 steps of 256"
    six = constructed_recipe("6", steps=100, batch_size=8)
    assert (six.layers, six.heads, six.dim_head) == (6, 4, 20)
    assert "paper: 15000 of 256" in six.extent
    assert "warm-up" in six.extent
    with pytest.raises(ValueError, match="name='3'"):
        constructed_recipe("3", steps=1, batch_size=1)


def test_a_new_model_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    recipe = constructed_recipe("2", steps=1, batch_size=1)
    one, two = (new_model(LinearDynamics(), recipe, seed=3) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_trained_model_is_taken_from_the_shared_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = LinearDynamics()
    recipe = constructed_recipe("1", steps=3, batch_size=4)
    first, log = constructed_model(world, "1", recipe, seed=0, device="cpu", folder=tmp_path)

    def untaken(*args: Any) -> torch.Tensor:
        raise AssertionError("trained again")

    monkeypatch.setattr(mesa_train, "sequence_loss", untaken)
    again, same = constructed_model(world, "1", recipe, seed=0, device="cpu", folder=tmp_path)
    assert log == same
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_the_report_gives_no_number_to_what_did_not_run(tmp_path: Path) -> None:
    said: list[str] = []
    config = Config(shared=tmp_path / "models", out=tmp_path / "out", **TINY)
    report = run(config, on_progress=said.append)
    assert len(said) == 7
    record = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    rows = {row[0]: row for row in record["sections"][0]["blocks"][1]["rows"]}
    assert rows["4 linear layers"][1] == rows["6 linear layers"][3] == "not run"
    assert "paper: 5000 of 256" in rows["1 mesa layer"][1]
    assert all(cell for row in rows.values() for cell in row)
    claims = {claim.statement: claim for claim in report.claims}
    assert claims["6 linear layers: held-out loss"].measured == "not run"
    assert claims["6 linear layers: held-out loss"].reproduced is None
    # a few steps from small weights predict about zero
    assert claims["1 linear layer: held-out loss"].reproduced is False
    losses = record["results"]["algorithms"]["losses"]
    assert losses["exact ridge"] < losses["without newest pair"]
    assert losses["Chebyshev by position 6"] < losses["zero"]
    assert losses["Chebyshev 1"] == pytest.approx(losses["Richardson 1"], rel=0.2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "models").iterdir()}
    run(config)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "models").iterdir()}


def test_bad_settings_are_refused_by_name() -> None:
    for settings, match in (
        ({"seeds": ()}, "seeds"),
        ({"models": ("3",), "steps": (1,)}, "models"),
        ({"steps": (1, 2)}, "steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"ridges": (0.0,)}, "ridges"),
    ):
        with pytest.raises(ValueError, match=match):
            Config(**settings)  # type: ignore[arg-type]
    assert studies.load("mesa-depth").config is Config
    for budget in ("quick", "cpu", "gpu"):
        Config.of_budget(budget)  # type: ignore[arg-type]
