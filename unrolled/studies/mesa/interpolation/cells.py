"""Settings and cells of `mesa-interpolation`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from unrolled.studies.cells import Cell
from unrolled.studies.mesa.constructed import Constructed, Recipe, constructed_recipe
from unrolled.studies.mesa.interpolation.deep import MixedStack
from unrolled.studies.mesa.interpolation.one_layer import Mixed
from unrolled.studies.study import AtLeast, Budgets, Config, Count, Distinct, Seeds

Depth = Literal["2", "4", "6"]
# of a laptop, as `mesa-depth` has them
_STEPS: dict[Depth, int] = {"2": 1000, "4": 1200, "6": 2500}
_BATCH_SIZE: dict[Depth, int] = {"2": 256, "4": 256, "6": 32}


@dataclass(kw_only=True)
class InterpolationConfig(Config):
    """Budgets change the number of steps, sequences and seeds; one layer's rate is the paper's for this experiment.

    Stacks are those of `mesa-depth` and `mesa-compressed` where settings are equal, as those of the budget `cpu` are.
    """

    budgets: ClassVar[Budgets] = {
        "quick": {
            "seeds": (0,),
            "steps": 1000,
            "batch_size": 32,
            "test_sequences": 1024,
            "points": 10,
            "deep": ("2",),
            "deep_steps": (300,),
            "deep_batch_size": (32,),
        },
        "cpu": {},
        "gpu": {
            "seeds": (0, 1, 2, 3, 4),
            "batch_size": 512,
            "deep_steps": (5000, 15_000),
            "deep_batch_size": (512, 512),
            "published": True,
            "device": "cuda",
        },
    }

    seeds: Seeds = (0, 1, 2)
    """One layer and one stack of each depth for each: initial weights and training sequences; one set of tests."""
    steps: Count = 2500
    """Training steps of one layer; the paper's 2500."""
    batch_size: Count = 128
    """Sequences per step of one layer; the paper's 512."""
    test_sequences: Count = 4096
    """Held-out sequences."""
    points: Count = 20
    """Looks at the held-out sequences during training: the points of the curves."""
    coefficients: Annotated[int, AtLeast(2)] = 11
    """Mixing coefficients from 0 (trained) to 1 (constructed)."""
    deep: Annotated[tuple[Depth, ...], Distinct()] = ("2", "6")
    """Numbers of layers of stacks."""
    deep_steps: tuple[Count, ...] = ()
    """Training steps of each stack; if not given, 1000, 1200 and 2500 of 2, 4 and 6 layers; the paper's are 5000, 10000
    and 15000."""
    deep_batch_size: tuple[Count, ...] = ()
    """Sequences per step of each stack; if not given, 256, 256 and 32; the paper's 512."""
    published: bool = False
    """Train stacks with the paper's constant learning rate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.deep_steps = self.deep_steps or tuple(_STEPS[depth] for depth in self.deep)
        self.deep_batch_size = self.deep_batch_size or tuple(_BATCH_SIZE[depth] for depth in self.deep)
        for name in ("deep_steps", "deep_batch_size"):
            if len(value := getattr(self, name)) != len(self.deep):
                raise ValueError(f"{name}={value}: must have one number for each of deep={self.deep}")


def cells(config: InterpolationConfig) -> Iterator[Cell]:
    """One layer for every seed, then stacks, each beside that of the next seed."""
    recipe = Recipe(steps=config.steps, batch_size=config.batch_size, lr=2e-4)
    for seed in config.seeds:
        network = Constructed(recipe=recipe, seed=seed, points=config.points, moments=True)
        yield Mixed(network=network, test_sequences=config.test_sequences, coefficients=config.coefficients)
    following = (*config.seeds[1:], config.seeds[0] if len(config.seeds) > 1 else config.seeds[0] + 1)
    for name, steps, batch_size in zip(config.deep, config.deep_steps, config.deep_batch_size, strict=True):
        recipe = constructed_recipe(name, steps=steps, batch_size=batch_size, published=config.published)
        for seed, other in zip(config.seeds, following, strict=True):
            yield MixedStack(
                network=Constructed(recipe=recipe, seed=seed),
                other_seed=other,
                test_sequences=config.test_sequences,
                coefficients=config.coefficients,
            )
