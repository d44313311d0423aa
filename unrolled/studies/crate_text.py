"""CRATE-GPT, CRATE-alpha, ToST and MesaNet as language models beside GPT-2's frame, at equal parameters and bytes.

A second GPT-2, wider, has CRATE-GPT's operations instead of its parameters.

Claims (the CRATE book's language-model tables; arXiv 2506.05233): white-box language models work, behind GPT-2 in loss;
the overcomplete dictionary of CRATE-alpha recovers a part of what CRATE loses; MesaNet is level with softmax attention.
The published models differ in size, so that a smaller one and a worse one cannot be told apart; here they are of one
size. A second, smaller table compares CRATE-BERT with BERT on masked bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from unrolled.studies.base import Budget, Expectation, Study, StudyConfig
from unrolled.studies.processes import finished

if TYPE_CHECKING:
    from unrolled.report import Report

_BOOK = "Learning Deep Representations of Data Distributions (book), tables of CRATE-GPT and ToST; OpenWebText"
CRATE = Expectation(
    statement="CRATE-GPT is behind GPT-2 (difference of losses, bits per byte)",
    source=_BOOK,
    published="3.37 (CRATE base, 60M) against 2.85 (GPT-2 base, 124M) and 3.04 (small), nats per BPE token",
    low=0.0,
)
OPERATIONS = Expectation(
    statement="CRATE-GPT is behind a GPT-2 of as many operations too (difference of losses, bits per byte)",
    source="a control that no source has",
    published="none",
    low=0.0,
)
ALPHA = Expectation(
    statement="CRATE-alpha is ahead of CRATE (difference of losses, bits per byte)",
    source=_BOOK,
    published="3.28 (alpha small, 57M) against 3.37 (CRATE base, 60M), nats per BPE token",
    high=0.0,
)
TOST = Expectation(
    statement="ToST is behind GPT-2 (difference of losses, bits per byte)",
    source=_BOOK,
    published="3.20 (ToST base) against 2.85 (GPT-2 base), nats per BPE token",
    low=0.0,
)
MESA = Expectation(
    statement="MesaNet is level with softmax attention, or ahead (difference of losses, bits per byte)",
    source="arXiv 2506.05233, table 2, 940M parameters, SlimPajama",
    published="perplexity 10.83 against 10.86, a difference of -0.003 nats per token",
    high=0.05,
)
CONTEXT = Expectation(
    statement="Every model is better late in its context than early (largest change, bits per byte)",
    source="what a language model is for; no published value",
    published="no value",
    high=0.0,
)
MASKED = Expectation(
    statement="CRATE-BERT against BERT (difference of masked losses, nats per byte)",
    source="transformers pull request 27759 (code only)",
    published="no value found",
)
# name in this study -> whose frame it has: a name of `unrolled.models.sequence.LANGUAGE_MODELS` or its `ENCODERS`
MODELS = {
    "GPT-2": "gpt2_nano",
    "CRATE-GPT": "crate_gpt_nano",
    "CRATE-alpha": "crate_alpha_gpt_nano",
    "ToST": "tost_gpt_nano",
    "MesaNet": "mesanet_nano",
    "GPT-2 wider": "gpt2_nano",
}
WIDER = "GPT-2 wider"  # has CRATE-GPT's operations; all others have GPT-2's parameters
MASKED_MODELS = {"BERT": "bert_nano", "CRATE-BERT": "crate_bert_nano"}
SLOW = "MesaNet"


@dataclass(kw_only=True)
class Config(StudyConfig):
    """Budgets change sizes, steps and seeds; every model sees GPT-2's bytes and, but for one, has its parameters."""

    budgets: ClassVar[dict[Budget, dict[str, Any]]] = {
        "quick": {
            "seeds": (0,),
            "depth": 2,
            "dim": 32,
            "rates": (3e-3, 1e-2),
            "length": 64,
            "batch_size": 8,
            "steps": 60,
            "trial_steps": 15,
            "masked_steps": 40,
            "masked_trial_steps": 10,
            "early": 4,
            "late": 48,
            "window": 8,
            "test_bytes": 8_000,
            "val_bytes": 8_000,
            "workers": 1,
        },
        "cpu": {},
        "gpu": {
            "corpus": "bronte",
            "depth": 6,
            "dim": 384,
            "heads": 6,
            "length": 512,
            "batch_size": 32,
            "steps": 4000,
            "trial_steps": 600,
            "masked_steps": 4000,
            "seeds_slow": 3,
            "rates": (3e-4, 1e-3, 3e-3),
            "masked_trial_steps": 600,
            "late": 480,
            "test_bytes": 10**9,
            "val_bytes": 100_000,
            "workers": 1,
            "device": "cuda",
        },
    }

    corpus: str = "tinyshakespeare"
    """A name of `unrolled.data.text.open_text`."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One training for each: initial weights and excerpts."""
    seeds_slow: int = 2
    """How many of them MesaNet gets, whose step takes four times as long."""
    seeds_masked: int = 2
    """How many of them the masked models get."""
    depth: int = 4
    """Layers of every model."""
    dim: int = 64
    """Width of GPT-2 and BERT; that of the others follows from equal parameters."""
    heads: int = 4
    """Heads of every model."""
    length: int = 128
    """Bytes of context."""
    batch_size: int = 16
    """Excerpts in a step."""
    steps: int = 550
    """Training steps of a language model."""
    masked_steps: int = 550
    """Training steps of a masked model."""
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    """Peak learning rates that every model tries, each with each of `table_stds`."""
    table_stds: tuple[float, ...] = (0.02, 0.2)
    """Standard deviations of the initial tables of bytes and positions that every model tries. GPT-2's is 0.02; a layer
    of CRATE hands on its tokens only through a step of ISTA, which drops what is small beside the attention's update.
    """
    trial_steps: int = 80
    """Steps of each of these trials, and of the control on shuffled text."""
    masked_trial_steps: int = 60
    """Steps of each trial of a masked model."""
    early: int = 4
    """First position of the early window, counted from 0."""
    late: int = 112
    """First position of the late window."""
    window: int = 16
    """Positions in each."""
    points: int = 6
    """Looks at the validation part during training."""
    test_bytes: int = 50_000
    """At most so many bytes of the test part are predicted."""
    val_bytes: int = 16_000
    """At most so many bytes of the validation part are."""
    workers: int = 2
    """Models trained at a time, each in a process with one thread; 1 stays in this process."""
    data_dir: Path = Path("data")
    """Where the corpus is."""
    device: str = "cpu"
    """Where to train."""
    out: Path = Path("runs/crate-text")
    """Where the report goes, and the trained cells, which a second run takes from there."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must name at least one, and none twice")
        if min((*self.rates, *self.table_stds)) <= 0 or not self.rates or not self.table_stds:
            raise ValueError("rates and table_stds must name at least one each, and all must be positive")
        if not 0 <= self.early < self.late or self.late + self.window > self.length:
            raise ValueError("early, late, window: must be 0 <= early < late, and late + window at most length")
        counts = ("steps", "trial_steps", "masked_steps", "masked_trial_steps", "batch_size", "points", "window")
        for name in (*counts, "depth", "workers", "seeds_slow", "seeds_masked"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.dim < 2 * self.heads or self.length < 8:
            raise ValueError("dim must be at least twice heads, and length at least 8")


def run(config: Config, *, on_progress: Callable[[str], None] | None = None) -> Report:
    """Choose settings, train every model, measure, compare; the report is also written to `config.out`.

    Args:
        config: what to run.
        on_progress: given a line of text when a model is trained.

    Raises:
        MissingData: the corpus is not in `config.data_dir`.
    """
    from unrolled.studies.crate_text_cells import Job, baselines, chosen, costs, opened, record
    from unrolled.studies.crate_text_report import build_report

    began = time.perf_counter()
    opened(config.corpus, config.data_dir)  # a missing corpus is named now rather than in every process
    every = (*MODELS, *MASKED_MODELS)
    trials = [
        Job(model=model, rate=rate, table_std=std)
        for model in every
        for rate in config.rates
        for std in config.table_stds
    ]
    _compute(config, trials, on_progress)
    best = {model: chosen(config, [job for job in trials if job.model == model]) for model in every}
    final = [replace(best[model], seed=seed, part="full") for model, seed in plan(config)]
    shuffled = [replace(best[model], part="shuffled") for model in MODELS]
    _compute(config, [*final, *shuffled], on_progress)
    results: dict[str, Any] = {
        "chosen": {model: {"rate": job.rate, "table_std": job.table_std} for model, job in best.items()},
        "trials": [record(config, job) for job in trials],
        "cells": [record(config, job) for job in final],
        "shuffled": [record(config, job) for job in shuffled],
        "baselines": baselines(config),
        "costs": costs(config),
    }
    report = build_report(config, results, began)
    report.write(config.out)
    return report


def plan(config: Config) -> list[tuple[str, int]]:
    """Model and seed of every full training."""
    counts = {SLOW: config.seeds_slow, **dict.fromkeys(MASKED_MODELS, config.seeds_masked)}
    return [(model, seed) for model in (*MODELS, *MASKED_MODELS) for seed in config.seeds[: counts.get(model)]]


def _compute(config: Config, jobs: list[Any], on_progress: Callable[[str], None] | None) -> None:
    """Train what is not kept, `config.workers` models at a time."""
    from unrolled.studies.crate_text_cells import in_words, kept, record

    missing = [job for job in jobs if not kept(config, job)]
    # long trainings first, so that the processes end together
    ordered = [(config, job) for job in sorted(missing, key=lambda job: job.model != SLOW)]
    for done, (_, found) in enumerate(finished(record, ordered, workers=config.workers), 1):
        if on_progress is not None:
            on_progress(f"{done} of {len(missing)}: {in_words(found)}")


STUDY = Study(
    name="crate-text",
    title="White-box language models and GPT-2 at equal parameters",
    citation="S. Buchanan, D. Pai, P. Wang, Y. Ma, Learning Deep Representations of Data Distributions, 2025; "
    "J. von Oswald et al., MesaNet, arXiv 2506.05233",
    config=Config,
    run=run,
    expectations=(CRATE, OPERATIONS, ALPHA, TOST, MESA, CONTEXT, MASKED),
)
