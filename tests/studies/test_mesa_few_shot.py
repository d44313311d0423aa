"""Few-shot prompts: what a gate leaves out, what tuning changes and what it leaves alone, and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from unrolled import studies
from unrolled.studies.mesa_few_shot import BOTH, PROMPTS, Config, run
from unrolled.studies.mesa_prompts import (
    ContentGate,
    FixedGate,
    Plan,
    Tuned,
    build,
    gated,
    least_squares_losses,
    parity_gate,
    prompt_losses,
    tune,
)
from unrolled.tasks.regression import Y
from unrolled.theory.in_context import least_squares_predictions, ridge_regression

PLAN = Plan(
    tokens=110,
    softmax_layers=2,
    steps={"softmax": 2, "hybrid": 2},
    batch_size=2,
    lr=1e-3,
    tune_steps=3,
    tune_batch=2,
    tune_lr=1e-2,
)
TINY: dict[str, Any] = {
    "tokens": 110,
    "softmax_layers": 2,
    "hybrid_steps": 2,
    "softmax_steps": 2,
    "batch_size": 2,
    "tune_steps": 2,
    "tune_batch": 2,
    "test_prompts": 8,
    "both_seeds": 1,
}


def test_least_squares_uses_the_pairs_it_says() -> None:
    world = PLAN.prompts()
    prompts = world.sample(16, seed=2**41 + 7, dtype=torch.float64)
    x, y = prompts.tokens[:, prompts.queries], prompts.answers
    clean, _ = least_squares_losses(world, count=16, ridges=(0.1,), overlapping=False)
    found = ridge_regression(x[:, :12], y[:, :12], 0.1) @ x[:, 12, :, None]
    assert clean[12] == pytest.approx(float(0.5 * (found[..., 0] - y[:, 12]).square().sum(-1).mean()))
    overlapping, ridge = least_squares_losses(world, count=16, ridges=(0.1,), overlapping=True)
    theirs = prompts.pair_losses(least_squares_predictions(prompts.tokens, 0.1))
    torch.testing.assert_close(torch.tensor(overlapping, dtype=torch.float64), theirs)
    assert ridge == 0.1


def test_an_open_gate_changes_nothing_and_a_shut_one_leaves_nothing() -> None:
    model, world = build("hybrid", PLAN, 0), PLAN.prompts()
    prompts = world.sample(2, seed=0)
    with torch.no_grad():
        plain = model(prompts.tokens)
        torch.testing.assert_close(gated(model, FixedGate(torch.ones(110)))(prompts.tokens), plain)
        shut = gated(model, FixedGate(torch.zeros(110)))
        update = shut.blocks[1].attn(torch.randn(2, 110, 40))
    assert float(update.abs().max()) == 0
    assert not torch.allclose(shut(prompts.tokens), plain)


def test_a_gated_token_leaves_later_ones_alone() -> None:
    """What stands where the gate of the mesa layer is shut does not reach later sums."""
    world = PLAN.prompts()
    layer: Any = gated(build("hybrid", PLAN, 0), parity_gate(world)).blocks[1].attn
    z = torch.randn(1, 110, 40)
    other = z.clone()
    shut = (world.sample(1, seed=0).kinds != Y).nonzero()[3, 0]
    other[:, shut] = torch.randn(40)
    with torch.no_grad():
        same, changed = layer(z), layer(other)
    torch.testing.assert_close(same[:, shut + 1 :], changed[:, shut + 1 :])
    assert not torch.allclose(same[:, shut], changed[:, shut])


def test_a_masked_softmax_model_is_the_model_itself_where_all_is_seen() -> None:
    model, tokens = build("softmax", PLAN, 0), PLAN.prompts().sample(2, seed=0).tokens
    with torch.no_grad():
        torch.testing.assert_close(gated(model, FixedGate(torch.ones(110)))(tokens), model(tokens))
        masked = gated(model, parity_gate(PLAN.prompts()))(tokens)
    assert torch.isfinite(masked).all()
    with pytest.raises(ValueError, match="FixedGate"):
        gated(model, ContentGate(40, 4))


@pytest.mark.parametrize("gate", ["none", "content", "squares", "position", "position and ridge"])
def test_tuning_moves_what_is_tuned_and_not_the_weights(gate: str) -> None:
    model, world = build("hybrid", PLAN, 0), PLAN.prompts(eos=True, prefix=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    started = Tuned(world, gate=gate, seed=0).state_dict()
    user, tuned = tune(model, world, PLAN, gate=gate, seed=0, keep=None)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(not torch.equal(started[name], value) for name, value in tuned.state_dict().items())
    inside = user.blocks[1].attn
    assert (gate == "none") == (inside is model.blocks[1].attn)
    assert gate == "none" or inside.get_submodule("gate") is tuned.gate


def test_tuning_leaves_the_global_generator_alone_and_goes_on_from_its_file(tmp_path: Path) -> None:
    model, world = build("hybrid", PLAN, 0), PLAN.prompts(eos=True)
    state = torch.random.get_rng_state()
    _, one = tune(model, world, PLAN, gate="content", seed=1, keep=tmp_path / "tuned.pt")
    assert torch.equal(state, torch.random.get_rng_state())
    _, two = tune(model, world, PLAN, gate="content", seed=1, keep=tmp_path / "tuned.pt")
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())


def test_shuffled_answers_tell_an_oracle_nothing() -> None:
    class CleanRegression(nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x, y = tokens[:, ::2].double(), tokens[:, 1::2].double()
            out = torch.zeros_like(tokens)
            for i in range(1, x.shape[1]):
                out[:, 2 * i] = (ridge_regression(x[:, :i], y[:, :i], 1e-3) @ x[:, i, :, None])[..., 0].float()
            return out

    world = PLAN.prompts()
    real = prompt_losses(CleanRegression(), world, count=64)
    shuffled = prompt_losses(CleanRegression(), world, count=64, shuffled=True)
    assert real[29] < 2e-3
    assert shuffled[29] > 1.6


def test_the_report_holds_every_cell_and_a_second_run_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(seeds=(0,), out=tmp_path, **TINY)
    said: list[str] = []
    report = run(config, on_progress=said.append)
    assert len(said) == 2 + len(PROMPTS) + 2 + len(BOTH)
    assert len(report.claims) == 11
    record = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert set(record["results"]["cells"]) >= {*PROMPTS, *BOTH}
    # two steps teach nothing: what rests on a trained model is refused
    assert report.claims[1].reproduced is False
    assert report.claims[0].reproduced is not None
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "paper: 7 layers, 15000 of 128" in page
    assert "not run" not in page
    monkeypatch.setattr("unrolled.studies.mesa_few_shot.run_one", lambda *a, **k: pytest.fail("trained again"))
    assert run(config).results == report.results


def test_what_is_not_run_says_so(tmp_path: Path) -> None:
    run(Config(seeds=(0,), out=tmp_path, **{**TINY, "both_seeds": 0}))
    assert "not run" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_quick_budget_finds_that_gates_help(tmp_path: Path) -> None:
    report = run(Config.of_budget("quick", out=tmp_path))
    cells = report.results["cells"]
    raw, gate = (cells[name][0]["losses"][29] for name in ("hybrid, raw", "hybrid, raw, gated by hand"))
    assert gate < 0.5 * raw


def test_bad_settings_are_refused_by_name() -> None:
    for bad, match in (
        ({"seeds": ()}, "seeds"),
        ({"tokens": 60}, "tokens"),
        ({"both_seeds": 9}, "both_seeds"),
        ({"tune_steps": 0}, "tune_steps"),
        ({"ridges": (0.0,)}, "ridges"),
    ):
        with pytest.raises(ValueError, match=match):
            Config(**bad)
    with pytest.raises(ValueError, match="gate"):
        Tuned(PLAN.prompts(), gate="parity")
    assert studies.load("mesa-few-shot").config is Config
