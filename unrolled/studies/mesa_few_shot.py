"""Few-shot regression by models of dynamics: what EOS tokens and prefixes repair, and what removes the spurious pairs.

Claim (arXiv 2309.05858): a Transformer trained on linear dynamics alone learns linear regression from prompts
x_1, y_1, x_2, y_2, ...; a tuned EOS token between pairs and a tuned prefix help. Its plateau is that of pairs
(y_i, x_{i+1}) which mean nothing. Beyond the paper: gates that keep such pairs out of a mesa layer's sums.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from unrolled.studies.base import Budget, Expectation, Study, StudyConfig

if TYPE_CHECKING:
    from unrolled.report import Report
    from unrolled.studies.mesa_prompts import Plan

_SOURCE = "arXiv 2309.05858, figures 8 and 18; means of the released results"
_OWN = "not in the paper; its best is 0.55 to 0.59"
OVERLAPPING = Expectation(
    statement="Least squares on all neighbouring tokens, the spurious pairs included: loss at pair 30",
    source=_SOURCE,
    published="0.68",
    low=0.62,
    high=0.74,
)
RAW = Expectation(
    statement="Trained on dynamics alone, the hybrid learns regression from raw prompts: loss at pair 30",
    source=_SOURCE,
    published="0.77, from 2.14 at pair 1",
    low=0.6,
    high=0.95,
)
ASCENT = Expectation(
    statement="Early ascent: largest loss over that at pair 1, raw prompts, hybrid",
    source=_SOURCE,
    published="2.51 / 2.14 = 1.17, at pairs 4 to 6",
    low=1.05,
)
EOS = Expectation(
    statement="A tuned EOS token between pairs: loss at pair 30, hybrid",
    source=_SOURCE,
    published="0.59",
    low=0.45,
    high=0.73,
)
PREFIX = Expectation(
    statement="EOS and a tuned prefix of 20 tokens: loss at pair 30, hybrid",
    source=_SOURCE,
    published="0.61",
    low=0.45,
    high=0.75,
)
ZERO = Expectation(
    statement="The tuned EOS token is about the zero vector (its norm; x and y have 1.8, it started near 1)",
    source=_SOURCE,
    published="< 0.01",
    high=0.1,
)
SOFTMAX = Expectation(
    statement="EOS helps the softmax model too: its loss at pair 30 over that of raw prompts",
    source=_SOURCE,
    published="0.72 / 0.92 = 0.78",
    high=0.95,
)
SWITCH = Expectation(
    statement="Two tasks in one prompt: loss at the first pair after the switch, hybrid",
    source=_SOURCE,
    published="about 2.1, decaying to about 1.0",
    low=1.6,
    high=2.6,
)
MASKED = Expectation(
    statement="Leaving out every second pair by hand (raw prompts, hybrid) removes at least 95 % of what pair 30 loses "
    "over the clean floor: share left",
    source=_OWN,
    published="no value",
    high=0.05,
)
LEARNED = Expectation(
    statement="So does a learned gate by position, with the ridge tuned too: share left",
    source=_OWN,
    published="no value",
    high=0.05,
)
CONTENT = Expectation(
    statement="And a gate that reads the tokens and their squares, tuned together with EOS: share left",
    source=_OWN,
    published="no value",
)
EXPECTATIONS = (OVERLAPPING, RAW, ASCENT, EOS, PREFIX, ZERO, SOFTMAX, SWITCH, MASKED, LEARNED, CONTENT)

# cell -> (model, EOS, prefix tokens, gate); "parity" and "parity on softmax" are by hand, with nothing tuned
PROMPTS: dict[str, tuple[str, bool, int, str]] = {
    "softmax, raw": ("softmax", False, 0, "none"),
    "softmax, EOS": ("softmax", True, 0, "none"),
    "softmax, EOS + prefix": ("softmax", True, 20, "none"),
    "hybrid, raw": ("hybrid", False, 0, "none"),
    "hybrid, EOS": ("hybrid", True, 0, "none"),
    "hybrid, EOS + prefix": ("hybrid", True, 20, "none"),
    "softmax, raw, masked by hand": ("softmax", False, 0, "parity"),
    "hybrid, raw, gated by hand": ("hybrid", False, 0, "parity"),
    "hybrid, raw, gate by position": ("hybrid", False, 0, "position"),
    "hybrid, raw, gate by position and ridge": ("hybrid", False, 0, "position and ridge"),
    "hybrid, raw, gate by content": ("hybrid", False, 0, "content"),
    "hybrid, EOS, gate by content": ("hybrid", True, 0, "content"),
    "hybrid, EOS, gate by squares": ("hybrid", True, 0, "squares"),
}
BOTH = {"trained on both, EOS": "none", "trained on both, EOS, gate by squares": "squares"}
PUBLISHED = {  # at pairs 10, 30 and 68
    "softmax, raw": ("1.43", "0.92", "0.77"),
    "softmax, EOS": ("1.16", "0.72", "0.59"),
    "softmax, EOS + prefix": ("1.00", "0.65", "0.55"),
    "hybrid, raw": ("1.59", "0.77", "0.65"),
    "hybrid, EOS": ("0.92", "0.59", "0.58"),
    "hybrid, EOS + prefix": ("0.88", "0.61", "0.59"),
    "least squares on overlapping pairs": ("1.37", "0.68", "0.53"),
}


@dataclass(kw_only=True)
class Config(StudyConfig):
    """Budgets change steps, sizes and seeds.

    The bounds of the claims lie around the published values, or are this package's where there are none. They were set
    before the first report, but after a trial of one seed and 900 steps had shown what to expect; none was moved since.
    The gate by squares was added after that trial, because a linear one did little; it has no bound.
    """

    budgets: ClassVar[dict[Budget, dict[str, Any]]] = {
        "quick": {
            "seeds": (0,),
            "tokens": 110,
            "hybrid_steps": 400,
            "softmax_steps": 120,
            "tune_steps": 40,
            "both_seeds": 0,
            "test_prompts": 256,
            "tune_batch": 8,
        },
        "cpu": {},
        "gpu": {
            "seeds": (0, 1, 2, 3, 4),
            "tokens": 224,
            "softmax_layers": 7,
            "hybrid_steps": 15_000,
            "softmax_steps": 15_000,
            "batch_size": 128,
            "lr": 8e-4,
            "tune_steps": 5000,
            "tune_batch": 128,
            "tune_lr": 1e-3,
            "both_seeds": 5,
            "test_prompts": 4096,
            "device": "cuda",
        },
    }

    seeds: tuple[int, ...] = (0, 1)
    """One model of each kind for each: initial weights, sequences, tuned tokens."""
    tokens: int = 120
    """Tokens of a sequence of dynamics and of a prompt; the paper's 224."""
    softmax_layers: int = 3
    """Layers of the softmax model; the paper's 7. The hybrid is one softmax and one mesa layer."""
    hybrid_steps: int = 1200
    """Training steps of a hybrid; the paper's code has 15000."""
    softmax_steps: int = 1200
    """Training steps of a softmax model."""
    batch_size: int = 16
    """Sequences per step; the paper's code has 128."""
    lr: float = 3e-3
    """Peak learning rate of training; the paper's code has 8e-4, for ten times the steps."""
    tune_steps: int = 300
    """Steps of tuning; the paper's 5000."""
    tune_batch: int = 16
    """Prompts per step of tuning."""
    tune_lr: float = 1e-2
    """Learning rate of tuned tokens and gates; the paper's 1e-3, for its steps."""
    both_seeds: int = 1
    """For how many of the seeds hybrids are also trained on dynamics and prompts together; 0 leaves them out."""
    test_prompts: int = 512
    """Held-out prompts and sequences."""
    ridges: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0)
    """Ridges of the least-squares references, chosen on prompts of their own."""
    device: str = "cpu"
    """Where to train."""
    out: Path = Path("runs/mesa-few-shot")
    """Where the report goes, and the trained cells, which a second run takes from there."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must name at least one, and none twice")
        counts = ("softmax_layers", "hybrid_steps", "softmax_steps", "batch_size", "tune_steps", "tune_batch")
        for name in (*counts, "test_prompts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.tokens < 110:
            raise ValueError(
                f"tokens must be at least 110, so that 30 pairs with EOS follow a prefix, not {self.tokens}"
            )
        if not 0 <= self.both_seeds <= len(self.seeds):
            raise ValueError(f"both_seeds must lie between 0 and the {len(self.seeds)} seeds, not {self.both_seeds}")
        if not self.ridges or not min(self.ridges) > 0:
            raise ValueError("ridges must name at least one, all positive")

    @property
    def plan(self) -> Plan:
        """What the cells of the study depend on."""
        from unrolled.studies.mesa_prompts import Plan

        return Plan(
            tokens=self.tokens,
            softmax_layers=self.softmax_layers,
            steps={"softmax": self.softmax_steps, "hybrid": self.hybrid_steps},
            batch_size=self.batch_size,
            lr=self.lr,
            tune_steps=self.tune_steps,
            tune_batch=self.tune_batch,
            tune_lr=self.tune_lr,
            device=self.device,
        )


def run(config: Config, *, on_progress: Callable[[str], None] | None = None) -> Report:
    """Train on dynamics, tune, ask; the report is also written to `config.out`.

    Args:
        config: what to run.
        on_progress: given a line of text when each cell is done.
    """
    from unrolled.studies.mesa_few_shot_report import build_report
    from unrolled.studies.remembered import remembered

    began = time.perf_counter()
    settings = {**asdict(config.plan), "test": config.test_prompts, "ridges": config.ridges}
    cells: dict[str, list[dict[str, Any]]] = {}

    def cell(name: str, seed: int, compute: Callable[[], dict[str, Any]]) -> None:
        file = f"{name}-seed{seed}".replace(", ", "-").replace(" + ", "-").replace(" ", "_")
        done = remembered(config.out / "cells", file, {**settings, "cell": name, "seed": seed}, compute)
        cells.setdefault(name, []).append(done)
        if on_progress is not None:
            on_progress(f"{name}, seed {seed}: loss at pair 30 {done['losses'][29]:.4f}")

    for which in ("overlapping", "clean"):
        cell(f"least squares on {which} pairs", 0, lambda which=which: _least_squares(config, which))  # type: ignore[misc]
    for seed in config.seeds:
        for name in PROMPTS:
            cell(name, seed, lambda name=name, seed=seed: run_one(config, name, seed))  # type: ignore[misc]
        for kind in ("softmax", "hybrid"):
            cell(f"two tasks, {kind}", seed, lambda kind=kind, seed=seed: _two_tasks(config, kind, seed))  # type: ignore[misc]
    for seed in config.seeds[: config.both_seeds]:
        for name, gate in BOTH.items():
            cell(name, seed, lambda gate=gate, seed=seed: _trained_on_both(config, gate, seed))  # type: ignore[misc]
    report = build_report(config, cells, time.perf_counter() - began)
    report.write(config.out)
    return report


def run_one(config: Config, name: str, seed: int) -> dict[str, Any]:
    """One entry of `PROMPTS`: losses by pair, beside the same of shuffled answers and of the untrained model."""
    from unrolled.studies.mesa_prompts import build, dynamics_losses, gated, parity_gate, prompt_losses, tune

    kind, eos, prefix, gate = PROMPTS[name]
    plan = config.plan
    world = plan.prompts(eos=eos, prefix=prefix)
    model = _model(config, kind, seed)
    tuned = None
    if gate == "parity":
        user = gated(model, parity_gate(world).to(plan.device))
    else:
        keep = config.out / "models" / f"{kind}-eos{int(eos)}-prefix{prefix}-{gate.replace(' ', '_')}-seed{seed}.pt"
        user, tuned = tune(model, world, plan, gate=gate, seed=seed, keep=keep)
    ask = {"count": config.test_prompts, "device": plan.device}
    untrained = build(kind, plan, seed)
    result = {
        "seed": seed,
        "losses": prompt_losses(user, world, tuned, **ask),  # type: ignore[arg-type]
        "shuffled": prompt_losses(user, world, tuned, shuffled=True, **ask),  # type: ignore[arg-type]
        "untrained": prompt_losses(untrained, world, tuned, **ask),  # type: ignore[arg-type]
    }
    if gate == "none" and not eos:
        result["dynamics"] = dynamics_losses(model, plan, config.test_prompts)
    if tuned is not None and tuned.eos is not None:
        result["eos_norm"] = float(tuned.eos.detach().norm())
    if gate.startswith("position") and tuned is not None:
        result["gate"] = tuned.gate.logits.detach().sigmoid().tolist()  # type: ignore[operator, union-attr]
    return result


def _model(config: Config, kind: str, seed: int) -> Any:
    from unrolled.studies.mesa_prompts import train_on_dynamics

    return train_on_dynamics(kind, config.plan, seed, config.out / "models" / f"{kind}-seed{seed}.pt")


def _least_squares(config: Config, which: str) -> dict[str, Any]:
    from unrolled.studies.mesa_prompts import least_squares_losses

    losses, ridge = least_squares_losses(
        config.plan.prompts(), count=config.test_prompts, ridges=config.ridges, overlapping=which == "overlapping"
    )
    return {"losses": losses, "ridge": ridge}


def _two_tasks(config: Config, kind: str, seed: int) -> dict[str, Any]:
    from unrolled.studies.mesa_prompts import prompt_losses

    # the paper's 81 of 228 tokens, as a share
    world = config.plan.prompts(switch_at=round(config.tokens * 81 / 228))
    losses = prompt_losses(_model(config, kind, seed), world, count=config.test_prompts, device=config.device)
    first = int(world.sample(1, seed=0).task.argmax())
    return {"seed": seed, "losses": losses, "switch": first + 1}


def _trained_on_both(config: Config, gate: str, seed: int) -> dict[str, Any]:
    from unrolled.studies.mesa_prompts import dynamics_losses, prompt_losses, train_on_both

    plan, world = config.plan, config.plan.prompts(eos=True)
    model, tuned = train_on_both(plan, seed, gate=gate, keep=config.out / "models" / f"both-{gate}-seed{seed}.pt")
    ask = {"count": config.test_prompts, "device": plan.device}
    return {
        "seed": seed,
        "losses": prompt_losses(model, world, tuned, **ask),  # type: ignore[arg-type]
        "shuffled": prompt_losses(model, world, tuned, shuffled=True, **ask),  # type: ignore[arg-type]
        "dynamics": dynamics_losses(model, plan, config.test_prompts),
    }


STUDY = Study(
    name="mesa-few-shot",
    title="Few-shot regression by models of dynamics, and what removes the spurious pairs",
    citation="J. von Oswald et al., Uncovering mesa-optimization algorithms in Transformers, arXiv 2309.05858",
    config=Config,
    run=run,
    expectations=EXPECTATIONS,
)
