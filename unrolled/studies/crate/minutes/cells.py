"""What `crate-minutes` computes: trials of the rate for every family, and trainings of some minutes at the best one."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.study import Budgets, Config, Distinct, Rate, Seeds

if TYPE_CHECKING:
    from unrolled.train.fitting import TrainResult

Data = Literal["cifar10", "digits"]
_IMAGES: Mapping[Data, int] = {"cifar10": 50_000, "digits": 1_440}
_SMALL = {"in_chans": 1, "img_size": 8, "patch_size": 2}  # of the digits
BATCH = 128
HELD_OUT = 0.1
_CRATE, _VIT = "crate_nano_patch4_32", "vit_nano_patch4_32"
_CONV = {"stem": "conv"}


class Family(NamedTuple):
    """One architecture.

    Attributes:
        words: what tables call it.
        model, arguments: how it is made; all begin with the same convolutions.
        pace: training images a core-minute, augmentation and optimiser included: of one thread of an Intel Xeon with
            AVX-512 and without AMX, in fp32 (`python -m benchmarks.training_pace`). It turns minutes into images, once
            for all machines.
    """

    words: str
    model: str
    arguments: Mapping[str, Any]
    pace: int


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "crate": Family("CRATE", _CRATE, {**_CONV, "compression": "derived"}, 26_500),
        "published-step": Family("CRATE, published compression", _CRATE, _CONV, 27_000),
        "attention-only": Family("attention only", "aot_nano_patch4_32", {**_CONV, "compression": "derived"}, 31_200),
        "alpha": Family("CRATE-alpha", "crate_alpha_nano_patch4_32", {**_CONV, "dim": 64}, 18_600),
        "tost": Family("ToST", "tost_nano_patch4_32", {}, 13_700),
        "cbt": Family("CBT", "cbt_nano_patch4_32", {}, 14_400),
        "vit": Family("ViT of CRATE's operations", _VIT, {**_CONV, "embed_dim": 56}, 22_900),
        # its pace is the ViT's times 0.97, their ratio on a Xeon with AMX
        "cct": Family("ViT with CCT's pooling", "vit_nano_conv_seqpool_patch4_32", {}, 22_200),
    }
)
"""Beside `studies.kinds.KINDS` and not of it: those are networks of four blocks, trained by one recipe for all, which
studies share; these are as deep as their names say, begin with the same convolutions, and are trained by core-minutes
at a rate chosen for each."""


@dataclass(kw_only=True)
class MinutesConfig(Config):
    """Budgets are core-minutes of one network, turned into whole epochs by the pace of its family.

    `cpu` is CRATE beside its ViT at one hour, one seed, about two and a half core-hours with the trials. All of it
    takes days of a core: every name after `--families`, `--trial 6 --minutes 20 60 240 --seeds 0 1 2`.
    """

    budgets: ClassVar[Budgets] = {
        "quick": {"data": "digits", "rates": (1e-2,), "trial": 0.05, "minutes": (0.05,), "seeds": (0,)},
        "cpu": {},
        "gpu": {"device": "cuda", "families": tuple(FAMILIES), "minutes": (20.0, 60.0, 240.0), "seeds": (0, 1, 2)},
    }

    data_dir: Path = Path("data")
    """Folder with `cifar10`."""
    data: Data = "cifar10"
    """What is classified; `digits` only shows that the study runs."""
    families: Annotated[tuple[str, ...], Distinct()] = ("crate", "vit")
    """Which networks: `crate`, `published-step`, `attention-only`, `alpha`, `tost`, `cbt`, `vit`, `cct`."""
    rates: Annotated[tuple[Rate, ...], Distinct()] = (3e-3, 5e-3, 1e-2, 2e-2)
    """Peak rates of Muon, each tried once for every family, on held-out images."""
    trial: Rate = 4.0
    """Core-minutes that give a trial its whole passes: as many as they have over all images, to the nearest."""
    minutes: Annotated[tuple[Rate, ...], Distinct()] = (60.0,)
    """Core-minutes of the networks that are tested."""
    seeds: Seeds = (0,)
    """Networks of each family and length."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for family in self.families:
            if family not in FAMILIES:
                raise ValueError(f"families: {family!r} is none of {', '.join(FAMILIES)}")


@dataclass(frozen=True, kw_only=True)
class Trained(Cell, ABC):
    """A network of a family after some epochs; its run folder is in the store, and a run that was stopped goes on.

    The recipe is one for all: batches of 128, Muon, weight decay 0.05, a cosine after a sixteenth of warm-up, label
    smoothing 0.1, crops with four pixels of padding and flips. Only the rate is tuned.
    """

    family: str
    data: Data
    seed: int
    epochs: int

    def require(self, context: Context) -> None:
        """The images."""
        from unrolled.studies.pictures import pictures

        pictures(self.data, "test", context.data_dir)

    def fit(self, context: Context, *, rate: float, held_out: float) -> TrainResult:
        """The run; of a finished one its result."""
        from unrolled.train import TrainConfig, fit

        family, digits = FAMILIES[self.family], self.data == "digits"
        return fit(
            TrainConfig(
                model=family.model,
                model_args={**family.arguments, **(_SMALL if digits else {})},
                data=self.data,
                data_dir=None if digits else context.folder(self.data),
                val_fraction=held_out,
                eval_every=float(self.epochs),
                seed=self.seed,
                epochs=float(self.epochs),
                batch_size=BATCH,
                optimizer="muon",
                lr=rate,
                weight_decay=0.05,
                warmup_epochs=self.epochs / 16,
                pad_crop=0 if digits else 4,
                hflip=0.0 if digits else 0.5,
                label_smoothing=0.1,
                accelerator=context.device,  # type: ignore[arg-type]
                out=self.file(context, "-run"),
                resume="auto",
                quiet=True,
            )
        )


@dataclass(frozen=True, kw_only=True)
class Trial(Trained):
    """At one rate, without a tenth of the training images, on which it is scored."""

    rate: float

    def compute(self, context: Context) -> Result:
        """`accuracy` and `loss` on the images held out; None of a run that diverged."""
        from unrolled.errors import TrainingStopped

        try:
            result = self.fit(context, rate=self.rate, held_out=HELD_OUT)
        except TrainingStopped:
            return {"accuracy": None, "loss": None}
        last = next(row for row in reversed(result.metrics) if row["split"] == "val")
        return {"accuracy": last["accuracy"], "loss": last["loss"]}


@dataclass(frozen=True, kw_only=True)
class Scored(Trained):
    """At the best of the rates tried, with all training images, scored on the test images once.

    Attributes:
        minutes: that the epochs stand for.
        rates, trial_epochs: of its family's trials, all of seed 0.
    """

    minutes: float
    rates: tuple[float, ...]
    trial_epochs: int

    @property
    def needs(self) -> Sequence[Trial]:
        """The trials."""
        trial = partial(Trial, family=self.family, data=self.data, epochs=self.trial_epochs, seed=0)
        return [trial(rate=rate) for rate in self.rates]

    def compute(self, context: Context) -> Result:
        """`parameters`, `flops` of an image, `rate`, `images` seen, `accuracy`, `loss`, and the training `curve`."""
        import torch

        from unrolled.models.compare import count_flops

        rate = max(self.needs, key=lambda trial: context.result(trial)["accuracy"] or 0.0).rate
        result = self.fit(context, rate=rate, held_out=0.0)
        assert result.test is not None  # both data sets have a test split
        example = torch.zeros(1, 1, 8, 8) if self.data == "digits" else torch.zeros(1, 3, 32, 32)
        return {
            "parameters": sum(parameter.numel() for parameter in result.model.parameters()),
            "flops": count_flops(result.model.cpu(), example),
            "rate": rate,
            "images": result.steps * BATCH,
            "accuracy": result.test["accuracy"],
            "loss": result.test["loss"],
            "curve": [
                {"epoch": row["epoch"], "loss": row["loss"]} for row in result.metrics if row["split"] == "train"
            ],
        }


def cells(config: MinutesConfig) -> Iterator[Cell]:
    """Trials of every family first, then the short networks before the long ones, all seeds of one length together."""
    tested = [
        Scored(
            family=family,
            data=config.data,
            seed=seed,
            epochs=epochs(family, config.data, minutes),
            minutes=minutes,
            rates=config.rates,
            trial_epochs=epochs(family, config.data, config.trial),
        )
        for minutes in sorted(config.minutes)
        for family in config.families
        for seed in config.seeds
    ]
    for each in tested:
        yield from each.needs
    yield from tested


def trial_minutes(family: str, data: Data, passes: int) -> float:
    """Core-minutes of so many passes over the training images that are not held out."""
    return passes * (1 - HELD_OUT) * _IMAGES[data] / FAMILIES[family].pace


def epochs(family: str, data: Data, minutes: float) -> int:
    """Whole passes over the training images in so many core-minutes, at least one."""
    return max(1, round(minutes * FAMILIES[family].pace / _IMAGES[data]))
