"""What `crate-denoising` computes: steps beside the score, stacks of them, and trained masked autoencoders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from unrolled.studies.cells import Cell, Columns
from unrolled.studies.crate.compared import NetworksConfig
from unrolled.studies.crate.denoising.steps import Stack, Steps
from unrolled.studies.crate.masked import MaskedLayers
from unrolled.studies.networks import Data
from unrolled.studies.study import AtLeast, Budgets, Count, Distinct, Rate, Seeds


@dataclass(kw_only=True)
class DenoisingConfig(NetworksConfig):
    """Synthetic tokens cost seconds; the trained networks are the roster's, trained once for all studies."""

    budgets: ClassVar[Budgets] = {
        "quick": {
            **{"seeds": (0,), "tokens": 256, "sets": 1, "rates": (0.3, 1.0)},
            **{"data": "digits", "images": 6400, "measured": 64, "workers": 1},
        },
        "cpu": {},
        "gpu": {"device": "cuda", "images": 1_280_000, "workers": 1},
    }

    seeds: Seeds = (0, 1, 2)
    """Subspaces and tokens of the synthetic part; weights of the trained networks."""
    heads: Count = 8
    """K, subspaces of the synthetic data, orthogonal to each other."""
    dim: Count = 64
    """d."""
    dim_head: Count = 8
    """p; K p = d, so that the subspaces fill the space."""
    tokens: Annotated[int, AtLeast(16)] = 512
    """n, tokens that attend to each other."""
    noise: Rate = 0.2
    """sigma, in units of the signal's standard deviation, where steps are compared and nothing else is said."""
    noises: Annotated[tuple[Rate, ...], Distinct()] = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
    """The sweep of sigma."""
    temperatures: Annotated[tuple[Rate, ...], Distinct()] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    """The sweep of the softmax's temperature, in units of the published one."""
    layers: Count = 12
    """Depth of the stacks."""
    rates: Annotated[tuple[Rate, ...], Distinct()] = (0.1, 0.3, 1.0)
    """kappa, what the steps of the stacks are multiplied by; the published model has 1, which must be the last."""
    layer_noise: Rate = 0.3
    """sigma of the tokens that go through the stacks."""
    sets: Count = 2
    """Sets of `tokens` tokens that go through the stacks."""
    data: Data = "tiny-imagenet-32"
    """What the masked autoencoders are trained on, and whose held-out images are measured."""
    measured: Count = 256
    """Held-out images whose features are measured."""
    trained: bool = True
    """Measure trained CRATE-MAEs too; without, the study needs no images and those rows are not run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads * self.dim_head > self.dim:
            raise ValueError(f"dim={self.dim}: {self.heads} orthogonal subspaces of {self.dim_head} do not fit")
        if self.rates[-1] != 1:  # the claims about published layers are judged on the last
            raise ValueError(f"rates={self.rates}: the last must be 1, the published step")


def cells(config: DenoisingConfig) -> Iterator[Cell]:
    """Every setting for every seed; CRATE-MAE trained and not."""
    for seed in config.seeds:
        for place in points(config):
            yield Steps(**place, seed=seed)
        for rate in config.rates:
            yield Stack(**stack(config, rate), seed=seed)
        for state in (True, False) if config.trained else ():
            network = config.network("mae", config.data, seed, trained=state)
            yield MaskedLayers(network=network, measured=config.measured)


def points(config: DenoisingConfig) -> list[Columns]:
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


def base(config: DenoisingConfig) -> Columns:
    """The setting that the claims are judged at."""
    shared = {name: getattr(config, name) for name in ("heads", "dim", "dim_head", "noise", "tokens")}
    return {**shared, "orthogonal": True, "temperature": 1.0, "eps": 1.0}


def stack(config: DenoisingConfig, rate: float) -> Columns:
    """The settings of a stack."""
    shared = {name: getattr(config, name) for name in ("heads", "dim", "dim_head", "tokens", "sets", "layers")}
    return {**shared, "noise": config.layer_noise, "rate": rate}
