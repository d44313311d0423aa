"""What `crate-family` computes: the roster's networks, a readout of each, and what they cost in time and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar

import torch
from torch import nn

from unrolled.studies.cells import Cell, Columns, Context, Result
from unrolled.studies.crate.compared import ComparedConfig
from unrolled.studies.kinds import build
from unrolled.studies.networks import OfNetwork
from unrolled.studies.study import Budgets, Count, Distinct

CONTROLS = ("crate-conv", "vit-48", "vit-52")  # CRATE with CBT's stem; ViTs of CRATE's parameters, and operations
FAMILY = ("crate", "overcomplete", "decoupled", "alpha", "tost", "cbt", "attention-only", "vit", *CONTROLS)


@dataclass(kw_only=True)
class FamilyConfig(ComparedConfig):
    """Budgets change the images; networks are those of the shared roster."""

    budgets: ClassVar[Budgets] = {
        "quick": {
            **{"data": ("digits",), "seeds": (0,), "images": 1280, "workers": 1},
            **{"rounds": 1, "batch": 16, "sides": (8, 16)},
        },
        "cpu": {},
        "gpu": {"device": "cuda", "images": 1_280_000, "workers": 1, "batch": 512},
    }

    fit: Count = 2000
    """Test images that the ridge readout of the controls is fitted on."""
    held_out: Count = 1000
    """Further test images that it is scored on."""
    rounds: Count = 7
    """Timed batches of each kind."""
    batch: Count = 128
    """Images of a timed batch."""
    sides: Annotated[tuple[int, ...], Distinct()] = (32, 64, 128, 256)
    """Sides of the images, in pixels, at which cost is followed; 256 makes 4,096 tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sides = self.sides
        if list(sides) != sorted(sides) or any(side % 4 or side < 8 for side in sides):
            raise ValueError(f"sides={sides}: must grow and be multiples of 4, at least 8")
        if sides[0] < 32 <= sides[-1]:
            raise ValueError(f"sides={sides}: images below 32 pixels have patches of 2, others of 4; do not mix them")


@dataclass(frozen=True, kw_only=True)
class Readout(OfNetwork):
    """A ridge classifier on the mean of the last layer's tokens, fitted and scored on test images."""

    fit: int
    held_out: int

    def compute(self, context: Context) -> Result:
        """`accuracy`, and how many images it was fitted and scored on."""
        from unrolled.studies.networks import probe_accuracy
        from unrolled.studies.pictures import as_input, pictures

        test = pictures(self.network.data, "test", context.data_dir)
        model: Any = self.network.load(context)
        fit = min(self.fit, len(test.labels) * 2 // 3)
        count = min(fit + self.held_out, len(test.labels))
        with torch.no_grad():
            parts = test.images[:count].split(250)
            features = torch.cat(
                [model.forward_features(as_input(part).to(context.device)).mean(1).cpu() for part in parts]
            )
        labels = test.labels[:count]
        score = probe_accuracy((features[:fit], labels[:fit]), (features[fit:], labels[fit:]), len(test.classes))
        return {"accuracy": score, "fitted": fit, "scored": count - fit}


@dataclass(frozen=True, kw_only=True)
class Cost(Cell):
    """Parameters, operations, speed and memory of every kind, on images of one size; on this machine."""

    alone: ClassVar[bool] = True

    kinds: tuple[str, ...]
    channels: int
    side: int
    rounds: int
    batch: int
    where: str
    threads: int

    def compute(self, context: Context) -> Result:
        """As `unrolled.studies.crate.costs.costs` says."""
        from unrolled.studies.crate.costs import costs

        generator = torch.Generator().manual_seed(0)
        images = torch.randn(self.batch, self.channels, self.side, self.side, generator=generator).to(self.where)
        labels = torch.randint(10, (self.batch,), generator=generator).to(self.where)
        models = {kind: untrained(kind, channels=self.channels, side=self.side).to(self.where) for kind in self.kinds}
        return costs(models, images, labels, rounds=self.rounds, device=self.where)


@dataclass(frozen=True, kw_only=True)
class Growth(Cell):
    """Operations and time of one image's forward pass as the image grows; on this machine."""

    alone: ClassVar[bool] = True

    kinds: tuple[str, ...]
    sides: tuple[int, ...]
    rounds: int
    where: str
    threads: int

    def compute(self, context: Context) -> Result:
        """As `unrolled.studies.crate.costs.by_size` says."""
        from unrolled.studies.crate.costs import by_size

        def maker(kind: str) -> Callable[[int], nn.Module]:
            return lambda side: untrained(kind, side=side)

        patch = 4 if min(self.sides) >= 32 else 2
        kinds = {kind: maker(kind) for kind in self.kinds}
        return by_size(kinds, self.sides, patch=patch, rounds=self.rounds, device=self.where)


def untrained(kind: str, *, channels: int = 3, side: int) -> nn.Module:
    """A network of a kind, with the weights of seed 0."""
    return build(SimpleNamespace(kind=kind, seed=0), classes=10, channels=channels, side=side)


def cells(config: FamilyConfig) -> Iterator[Cell]:
    """All networks, readouts of the first seed beside the untrained ones, and what they cost."""
    machine: Columns = {"where": config.device, "threads": torch.get_num_threads()}
    channels, side = (1, 8) if config.data[0] == "digits" else (3, 32)
    yield Cost(kinds=FAMILY, channels=channels, side=side, rounds=config.rounds, batch=config.batch, **machine)
    kinds = tuple(kind for kind in FAMILY if kind not in CONTROLS)
    yield Growth(kinds=kinds, sides=config.sides, rounds=min(3, config.rounds), **machine)
    for data in config.data:
        for kind in FAMILY:
            for seed in config.seeds:
                yield config.network(kind, data, seed)
            for state in (True, False):
                each = config.network(kind, data, config.seeds[0], trained=state)
                yield Readout(network=each, fit=config.fit, held_out=config.held_out)
