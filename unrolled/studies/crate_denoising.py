"""Compression as denoising: MSSA beside the true score, stacks of it, and the decoder that runs them backwards.

Claim (arXiv 2404.02446 and 2306.01129): the encoder's compression steps are approximately steps along the score of the
tokens' distribution, a mixture of noisy low-dimensional Gaussians, so layers denoise; the decoder's steps are their
reversal in time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from unrolled.studies.base import Budget, Expectation, Study
from unrolled.studies.crate_members import Data, MembersConfig

if TYPE_CHECKING:
    from unrolled.report import Report

_MAE = "arXiv 2404.02446, section 2: structured denoising and diffusion"
SCORE = Expectation(
    statement="A gradient step on R^c of all tokens points along the score (mean cosine)",
    source=_MAE,
    published="approximately equal, no number",
    low=0.9,
)
SCORE_ATTENTION = Expectation(
    statement="MSSA(Z) - Z, the softmax form of that step, points along the score (mean cosine)",
    source=_MAE,
    published="approximately equal, no number",
    low=0.9,
)
SCORE_TOKEN = Expectation(
    statement="A softmax over heads of a token's projections, the step's model, points along the score (mean cosine)",
    source="arXiv 2306.01129, section 2.2",
    published="equal as the noise vanishes",
    low=0.9,
)
LAYERS = Expectation(
    statement="Layers Z + MSSA(LN Z) denoise (squared error after all of them over that before)",
    source="arXiv 2404.02446; arXiv 2506.03790 proves that the signal-to-noise ratio grows with every layer",
    published="falls layer by layer",
    high=0.7,
)
REVERSAL = Expectation(
    statement="The decoder's steps undo the encoder's (error with the decoder over that of the rescaled code)",
    source="arXiv 2404.02446, section 2",
    published="approximately inverse, no number",
    high=0.5,
)
MIRROR = Expectation(
    statement="Decoder layer L - l of a trained CRATE-MAE resembles encoder layer l (CKA above that of other pairs)",
    source="arXiv 2404.02446: encoder and decoder mirror each other layer by layer",
    published="by design, no number",
    low=0.05,
)


@dataclass(kw_only=True)
class Config(MembersConfig):
    """Synthetic tokens cost seconds; the trained models are the roster's, trained once for all studies."""

    budgets: ClassVar[dict[Budget, dict[str, Any]]] = {
        "quick": {
            "seeds": (0,),
            "tokens": 256,
            "sets": 1,
            "rates": (0.3, 1.0),
            "data": "digits",
            "images": 6400,
            "measured": 64,
            "workers": 1,
            "members": Path("runs/crate-denoising/quick-members"),
        },
        "cpu": {},
        "gpu": {
            "device": "cuda",
            "images": 1_280_000,
            "members": Path("runs/crate-members-gpu"),
            "workers": 1,
        },
    }

    seeds: tuple[int, ...] = (0, 1, 2)
    """Subspaces and tokens of the synthetic part; weights of the trained models."""
    heads: int = 8
    """K, subspaces of the synthetic data, orthogonal to each other."""
    dim: int = 64
    """d."""
    dim_head: int = 8
    """p; K p = d, so that the subspaces fill the space."""
    tokens: int = 512
    """n, tokens that attend to each other."""
    noise: float = 0.2
    """sigma, in units of the signal's standard deviation, where steps are compared and nothing else is said."""
    noises: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
    """The sweep of sigma."""
    temperatures: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    """The sweep of the softmax's temperature, in units of the published one."""
    layers: int = 12
    """Depth of the stacks."""
    rates: tuple[float, ...] = (0.1, 0.3, 1.0)
    """kappa, what the steps of the stacks are multiplied by; the published model has 1, which must be the last."""
    layer_noise: float = 0.3
    """sigma of the tokens that go through the stacks."""
    sets: int = 2
    """Sets of `tokens` tokens that go through the stacks."""
    data: Data = "tiny-imagenet-32"
    """What the masked autoencoders are trained on, and whose held-out images are measured."""
    measured: int = 256
    """Held-out images whose features are measured."""
    trained: bool = True
    """Measure trained CRATE-MAEs too; without, the study needs no images and those rows are not run."""
    out: Path = Path("runs/crate-denoising")
    """Where the report goes, and the cells, which a second run takes from there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must name at least one, and none twice")
        if min(self.heads, self.dim_head, self.layers, self.sets, self.measured) < 1 or self.tokens < 16:
            raise ValueError("heads, dim_head, layers, sets and measured must be at least 1, tokens at least 16")
        if self.heads * self.dim_head > self.dim:
            raise ValueError(f"dim={self.dim}: {self.heads} orthogonal subspaces of {self.dim_head} do not fit")
        if not self.rates or not self.noises or not self.temperatures:
            raise ValueError("noises, temperatures and rates must each name at least one")
        if min(*self.noises, *self.temperatures, *self.rates, self.noise, self.layer_noise) <= 0:
            raise ValueError("noises, temperatures and rates must be positive")
        if self.rates[-1] != 1:  # the claims about published layers are judged on the last
            raise ValueError(f"rates={self.rates}: the last must be 1, the published step")


def run(config: Config, *, on_progress: Callable[[str], None] | None = None) -> Report:
    """Measure, compare; the report is also written to `config.out`.

    Args:
        config: what to run.
        on_progress: given a line of text after each part.

    Raises:
        MissingData: `config.trained` and no images in `config.data_dir`.
    """
    from unrolled.studies.crate_denoising_report import build
    from unrolled.studies.remembered import remembered

    def say(text: str) -> None:
        if on_progress is not None:
            on_progress(text)

    began = time.perf_counter()
    cells = config.out / "cells"
    found: dict[str, Any] = {"steps": {}, "stacks": {}, "trained": None}
    for place in points(config):
        runs = []
        for seed in config.seeds:
            settings = {**place, "seed": seed}

            def compare(settings: dict[str, Any] = settings) -> dict[str, Any]:
                from unrolled.studies.crate_denoising_steps import compare_steps

                return compare_steps(**settings)

            runs.append(remembered(cells, name_of("steps", settings), settings, compare))
        found["steps"][name_of("steps", place)] = {"settings": place, "runs": runs}
    say(f"steps beside the score: {len(found['steps'])} settings, {len(config.seeds)} draws each")
    for rate in config.rates:
        runs = []
        for seed in config.seeds:
            settings = stack_settings(config, rate, seed)

            def stack(settings: dict[str, Any] = settings) -> dict[str, Any]:
                from unrolled.studies.crate_denoising_steps import denoise_by_layers, reverse_by_layers

                return {**denoise_by_layers(**settings), "reverse": reverse_by_layers(**settings)}

            runs.append(remembered(cells, name_of("stack", {"rate": rate, "seed": seed}), settings, stack))
        found["stacks"][str(rate)] = runs
        say(f"stacks of {config.layers} layers, kappa {rate}: {len(runs)} draws")
    if config.trained:
        from unrolled.studies.crate_mae_features import measure_members

        found["trained"] = measure_members(
            config, ("mae",), config.data, config.seeds, images=config.measured, folder=cells, on_progress=on_progress
        )
    report = build(config, found, time.perf_counter() - began)
    report.write(config.out)
    return report


def points(config: Config) -> list[dict[str, Any]]:
    """Where steps are compared: one sweep along each axis through `base`."""
    here = base(config)
    places = [here]
    places += [{**here, "noise": noise} for noise in config.noises]
    places += [{**here, "noise": noise, "temperature": t} for noise in (0.1, 0.2, 0.4) for t in config.temperatures]
    places += [{**here, "heads": heads} for heads in (1, 2, 4) if heads < config.heads]
    places += [{**here, "orthogonal": False, "heads": heads} for heads in (config.heads, 2 * config.heads)]
    places += [{**here, "tokens": tokens} for tokens in (config.tokens // 8, 4 * config.tokens)]
    places += [{**here, "eps": eps} for eps in (0.25, 0.5, 2.0, 4.0)]
    return [place for i, place in enumerate(places) if place not in places[:i]]


def base(config: Config) -> dict[str, Any]:
    """The setting that the claims are judged at."""
    shared = {name: getattr(config, name) for name in ("heads", "dim", "dim_head", "noise", "tokens")}
    return {**shared, "orthogonal": True, "temperature": 1.0, "eps": 1.0}


def stack_settings(config: Config, rate: float, seed: int) -> dict[str, Any]:
    """What one draw of the stacks depends on."""
    shared = {name: getattr(config, name) for name in ("heads", "dim", "dim_head", "tokens", "sets", "layers")}
    return {**shared, "noise": config.layer_noise, "rate": rate, "seed": seed}


def name_of(kind: str, settings: dict[str, Any]) -> str:
    """A cell's name: its settings in a row."""
    return "-".join([kind, *(f"{key.replace('_', '')}{value}" for key, value in settings.items())])


def over_runs(runs: list[dict[str, Any]], *keys: str) -> list[float]:
    """One number of every run."""
    values = []
    for entry in runs:
        value: Any = entry
        for key in keys:
            value = value[key]
        values.append(float(value))
    return values


def mean_curve(curves: list[list[float]]) -> list[float]:
    """The mean over runs, point by point."""
    return [fmean(values) for values in zip(*curves, strict=True)]


STUDY = Study(
    name="crate-denoising",
    title="Compression steps and the score of a mixture of subspaces",
    citation="D. Pai et al., Masked Completion via Structured Diffusion with White-Box Transformers, arXiv 2404.02446",
    config=Config,
    run=run,
    expectations=(SCORE, SCORE_ATTENTION, SCORE_TOKEN, LAYERS, REVERSAL, MIRROR),
)
