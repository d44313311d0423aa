"""Few-shot prompts: what a gate leaves out, what tuning changes and what it leaves alone, and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from unrolled.studies.cells import computed
from unrolled.studies.mesa.few_shot import STUDY
from unrolled.studies.mesa.few_shot.cells import BOTH, GATED_WAYS, PUBLISHED_WAYS, FewShotConfig
from unrolled.studies.mesa.few_shot.gates import ContentGate, FixedGate, gated, parity_gate
from unrolled.studies.mesa.few_shot.prompts import Tuned, least_squares_losses, prompt_losses, prompts_of, tune
from unrolled.studies.mesa.stacks import new_model
from unrolled.studies.training import Checkpoint
from unrolled.tasks.regression import Y
from unrolled.theory.in_context import least_squares_predictions, ridge_regression

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
TUNING: dict[str, Any] = {"steps": 3, "batch_size": 2, "lr": 1e-2}


def model_of(kind: Any) -> Any:
    return new_model(FewShotConfig(**TINY).recipe(kind), 0)


def test_least_squares_uses_the_pairs_it_says() -> None:
    world = prompts_of(110)
    prompts = world.sample(16, seed=2**41 + 7, dtype=torch.float64)
    x, y = prompts.tokens[:, prompts.queries], prompts.answers
    clean, _ = least_squares_losses(world, count=16, ridges=(0.1,), overlapping=False)
    found = ridge_regression(x[:, :12], y[:, :12], 0.1) @ x[:, 12, :, None]
    torch.testing.assert_close(clean[:, 12], 0.5 * (found[..., 0] - y[:, 12]).square().sum(-1))
    overlapping, ridge = least_squares_losses(world, count=16, ridges=(0.1,), overlapping=True)
    theirs = prompts.pair_losses(least_squares_predictions(prompts.tokens, 0.1))
    torch.testing.assert_close(overlapping.mean(0), theirs)
    assert ridge == 0.1


def test_an_open_gate_changes_nothing_and_a_shut_one_leaves_nothing() -> None:
    model, world = model_of("hybrid"), prompts_of(110)
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
    world = prompts_of(110)
    layer: Any = gated(model_of("hybrid"), parity_gate(world)).blocks[1].attn
    z = torch.randn(1, 110, 40)
    other = z.clone()
    shut = (world.sample(1, seed=0).kinds != Y).nonzero()[3, 0]
    other[:, shut] = torch.randn(40)
    with torch.no_grad():
        same, changed = layer(z), layer(other)
    torch.testing.assert_close(same[:, shut + 1 :], changed[:, shut + 1 :])
    assert not torch.allclose(same[:, shut], changed[:, shut])


def test_a_masked_softmax_model_is_the_model_itself_where_all_is_seen() -> None:
    model, tokens = model_of("softmax"), prompts_of(110).sample(2, seed=0).tokens
    with torch.no_grad():
        torch.testing.assert_close(gated(model, FixedGate(torch.ones(110)))(tokens), model(tokens))
        masked = gated(model, parity_gate(prompts_of(110)))(tokens)
    assert torch.isfinite(masked).all()
    with pytest.raises(ValueError, match="FixedGate"):
        gated(model, ContentGate(40, 4))


@pytest.mark.parametrize("gate", ["none", "content", "squares", "position", "position and ridge"])
def test_tuning_moves_what_is_tuned_and_not_the_weights(gate: Any) -> None:
    model, world = model_of("hybrid"), prompts_of(110, eos=True, prefix=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    started = Tuned(world, gate=gate, seed=0).state_dict()
    user, tuned = tune(model, world, gate=gate, seed=0, **TUNING)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(not torch.equal(started[name], value) for name, value in tuned.state_dict().items())
    inside = user.blocks[1].attn
    assert (gate == "none") == (inside is model.blocks[1].attn)
    assert gate == "none" or inside.get_submodule("gate") is tuned.gate


def test_tuning_leaves_the_global_generator_alone_and_goes_on_from_its_file(tmp_path: Path) -> None:
    model, world = model_of("hybrid"), prompts_of(110, eos=True)
    state = torch.random.get_rng_state()
    keep = Checkpoint(tmp_path / "tuned.pt", "key")
    _, one = tune(model, world, gate="content", seed=1, keep=keep, **TUNING)
    assert torch.equal(state, torch.random.get_rng_state())
    _, two = tune(model, world, gate="content", seed=1, keep=keep, **TUNING)
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())


def test_shuffled_answers_tell_an_oracle_nothing() -> None:
    class CleanRegression(nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x, y = tokens[:, ::2].double(), tokens[:, 1::2].double()
            out = torch.zeros_like(tokens)
            for i in range(1, x.shape[1]):
                out[:, 2 * i] = (ridge_regression(x[:, :i], y[:, :i], 1e-3) @ x[:, i, :, None])[..., 0].float()
            return out

    world = prompts_of(110)
    real = prompt_losses(CleanRegression(), world, count=64)
    shuffled = prompt_losses(CleanRegression(), world, count=64, shuffled=True)
    assert real[29] < 2e-3
    assert shuffled[29] > 1.6


def test_the_report_holds_every_way_to_ask_and_says_what_was_not_run(tmp_path: Path) -> None:
    folders: dict[str, Any] = {"out": tmp_path, "kept": tmp_path / "kept"}
    report = STUDY.run(FewShotConfig(seeds=(0, 1), **TINY, **folders))
    assert len(report.claims) == 11
    rows = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["results"]["rows"]
    asked = [row for row in rows if row["cell"] == "Asked"]
    assert len(asked) == 2 * len(PUBLISHED_WAYS | GATED_WAYS) + len(BOTH)
    assert {row["kind"] for row in rows if row["cell"] == "TwoTasks"} == {"softmax", "hybrid"}
    # of a gate put in for prompts, dynamics say nothing
    assert all((row["dynamics"] is None) == (row["gate"] != "none") for row in asked if row["trained_on"] != "both")
    assert all((row["eos_norm"] is None) != row["eos"] for row in asked)
    # two steps teach nothing: what rests on a trained model is refused
    assert report.claims[1].verdict == "not reproduced"
    assert report.claims[0].verdict != "not run"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "paper: 7 layers, 15000 of 128" in page
    assert "not run" not in page
    without = STUDY.run(FewShotConfig(seeds=(0,), **{**TINY, "both_seeds": 0}, **folders))
    assert without.claims[1].verdict == "undecided"  # of one seed
    assert "not run" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_model_that_has_learned_nothing_is_outside_what_a_switch_of_tasks_costs() -> None:
    class Nothing(nn.Module):
        def forward(self, tokens: Any) -> Any:
            return 0 * tokens

    claim = next(claim for claim in STUDY.claims if claim.statement.startswith("Two tasks"))
    losses = prompt_losses(Nothing(), prompts_of(110, switch_at=40), count=512)
    assert all(claim.place((loss, loss)) == "outside" for loss in losses)


def test_with_nothing_but_least_squares_the_rest_is_not_run(tmp_path: Path) -> None:
    config = FewShotConfig(**TINY, out=tmp_path, kept=tmp_path / "kept", only_kept=True)
    computed(next(iter(STUDY.cells(config))), config.context)
    report = STUDY.run(config)
    assert [claim.verdict == "not run" for claim in report.claims] == [False] + [True] * 10
    assert "loses not run on raw prompts" in report.summary


@pytest.mark.slow
def test_the_quick_budget_finds_that_gates_help(quick: Any) -> None:
    loss = {
        row["gate"]: row["losses"][29]
        for row in quick("mesa-few-shot")[1].results["rows"]
        if row["cell"] == "Asked" and row["kind"] == "hybrid" and not row["eos"]
    }
    assert loss["parity"] < 0.5 * loss["none"]


def test_an_unknown_gate_is_named() -> None:
    with pytest.raises(ValueError, match="gate"):
        Tuned(prompts_of(110), gate="parities")  # type: ignore[arg-type]
