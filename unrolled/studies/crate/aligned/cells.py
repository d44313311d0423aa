"""What `crate-aligned` computes: trials of every way to learn, on held-out images, and the best of each, tested."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.study import Budgets, Config, Count, Distinct, Rate, Seeds

if TYPE_CHECKING:
    from unrolled.train.fitting import TrainResult
    from unrolled.train.run import Splits

Data = Literal["cifar10", "digits"]
BATCH = 64
DEPTH = 4
SHIPPED = "crate_nano_patch4_32.cifar10_conv"
_OTHER = 0.1
"""Mass of label smoothing."""
_MODELS: Mapping[Data, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "cifar10": ("crate_nano_patch4_32", {"stem": "conv", "compression": "derived"}),
        "digits": ("crate_nano_patch2_8", {"in_chans": 1}),
    }
)
_SMALL = {"dim": 64, "depth": DEPTH}


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What a student is told besides where its weights begin; the weight of what is not used is 0.

    Attributes:
        rate: peak of Muon.
        smoothing: of the labels.
        align_weight, layer: of the alignment of a layer, patch by patch.
        distil_weight, temperature: of the divergence from the teacher's logits.
    """

    rate: float = 1e-2
    smoothing: float = _OTHER
    align_weight: float = 0.0
    layer: int = 0
    distil_weight: float = 0.0
    temperature: float = 1.0

    @property
    def taught(self) -> bool:
        """Whether there is a teacher."""
        return bool(self.align_weight or self.distil_weight)


@dataclass(kw_only=True)
class AlignedConfig(Config):
    """Lengths are in passes over the labelled images, which are always seen as they are: so the teacher is asked once.

    `cpu` takes about 15 core-minutes.
    """

    budgets: ClassVar[Budgets] = {
        "quick": {
            "data": "digits", "images": 512, "held_out": 256, "layers": (0, 2), "align_weights": (1.0,),
            "distil_weights": (1.0, 2.0), "temperatures": (2.0,), "rates": (1e-2, 2e-2), "smoothings": (0.1,),
            "trial_epochs": 1, "epochs": 1, "seeds": (0,),
        },
        "cpu": {},
        "gpu": {"device": "cuda", "images": 16_384, "epochs": 12, "trial_epochs": 6, "seeds": (0, 1, 2, 3, 4)},
    }  # fmt: skip

    data_dir: Path = Path("data")
    """Folder with `cifar10`."""
    data: Data = "cifar10"
    """What is classified; `digits` only shows that the study runs."""
    images: Count = 4_096
    """Labelled images that a student has."""
    held_out: Count = 2_048
    """Other images of the training split, on which settings are chosen. The teacher has learned from them."""
    layers: Annotated[tuple[int, ...], Distinct()] = (0, 1, 2, 3)
    """Layers to align, of four."""
    align_weights: Annotated[tuple[Rate, ...], Distinct()] = (0.5, 2.0)
    """Weights of the alignment, each tried with every layer."""
    distil_weights: Annotated[tuple[Rate, ...], Distinct()] = (0.25, 0.5, 1.0, 2.0)
    """Weights of the logits."""
    temperatures: Annotated[tuple[Rate, ...], Distinct()] = (1.0, 4.0)
    """Temperatures of the logits, each tried with every weight."""
    rates: Annotated[tuple[Rate, ...], Distinct()] = (5e-3, 1e-2, 2e-2, 4e-2)
    """Peak rates of Muon that are tried without a teacher; with one it is 0.01."""
    smoothings: Annotated[tuple[float, ...], Distinct()] = (0.0, 0.1)
    """Label smoothing that is tried without a teacher, with every rate; with one it is 0.1."""
    trial_epochs: Count = 2
    """Passes of a trial."""
    epochs: Count = 3
    """Passes of the networks that are tested; without a teacher also as many as fit into the same time."""
    seeds: Seeds = (0, 1, 2)
    """Networks of each kind that are tested; trials have the first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(not 0 <= layer < DEPTH for layer in self.layers):
            raise ValueError(f"layers={self.layers}: the student has {DEPTH}, 0 to {DEPTH - 1}")
        if any(not 0 <= smoothing < 1 for smoothing in self.smoothings):
            raise ValueError(f"smoothings={self.smoothings}: must be at least 0 and below 1")
        counts = {"layers x align_weights": len(self.layers) * len(self.align_weights)}
        counts["distil_weights x temperatures"] = len(self.distil_weights) * len(self.temperatures)
        counts["rates x smoothings"] = len(self.rates) * len(self.smoothings)
        if len(set(counts.values())) > 1:
            named = ", ".join(f"{name} are {count}" for name, count in counts.items())
            raise ValueError(f"rates: every way to learn has as many trials, and {named}; give as many of each")
        if min(self.images, self.held_out) < BATCH:
            raise ValueError(f"images={self.images}, held_out={self.held_out}: give at least a batch of {BATCH}")


@dataclass(frozen=True, kw_only=True)
class Instructor(Cell):
    """A network to learn from: for CIFAR-10 the one that ships, for digits one trained here; or random weights."""

    data: Data
    trained: bool

    def require(self, context: Context) -> None:
        """The images."""
        from unrolled.studies.pictures import pictures

        pictures(self.data, "test", context.data_dir)

    def compute(self, context: Context) -> Result:
        """`parameters`, and the `accuracy` on all test images."""
        import torch

        from unrolled.models import create_model, from_pretrained
        from unrolled.subjects.images import batches
        from unrolled.train import TrainConfig, evaluate, fit

        name, arguments = _MODELS[self.data]
        if not self.trained:
            torch.manual_seed(0)
            untrained: Any = create_model(name, **arguments, num_classes=10)
            untrained.save_pretrained(self.spec(context))
        elif self.data == "digits":
            made = TrainConfig(
                model=name, model_args=dict(arguments), data="digits", epochs=4.0, warmup_epochs=1.0, batch_size=BATCH,
                optimizer="muon", lr=1e-2, augment=False, quiet=True, resume="auto", out=Path(self.spec(context)),
                accelerator=context.device,  # type: ignore[arg-type]
            )  # fmt: skip
            fit(made)
        model = from_pretrained(self.spec(context)).to(context.device)
        test = _opened(self.data, "test", context)
        scores = evaluate(model, batches(model, test, image_size=None, batch_size=256), context.device)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return {"parameters": parameters, "accuracy": scores["accuracy"]}

    def spec(self, context: Context) -> str:
        """As a teacher is named in training."""
        ships = self.trained and self.data == "cifar10"
        return SHIPPED if ships else str(self.file(context, "-network").absolute())


@dataclass(frozen=True, kw_only=True)
class Student(Cell, ABC):
    """A CRATE of four layers after some passes over the same images; a run that was stopped goes on.

    Batches of 64, Muon, weight decay 0.05, a cosine after an eighth of warm-up; its run folder is in the store.
    """

    data: Data
    images: int
    seed: int
    epochs: int

    def require(self, context: Context) -> None:
        """The images."""
        Instructor(data=self.data, trained=True).require(context)

    def fit(self, context: Context, lesson: Lesson, instructor: Instructor, held_out: int) -> TrainResult:
        """The run, tested on what is `held_out`, or without that on the test images; of a finished one its result."""
        from unrolled.train import TrainConfig, fit

        name, arguments = _MODELS[self.data]
        return fit(
            TrainConfig(
                model=name,
                model_args={**arguments, **_SMALL},
                data=self.data,
                seed=self.seed,
                epochs=float(self.epochs),
                eval_every=float(self.epochs),
                batch_size=BATCH,
                optimizer="muon",
                lr=lesson.rate,
                weight_decay=0.05,
                warmup_epochs=self.epochs / 8,
                augment=False,
                label_smoothing=lesson.smoothing,
                teacher=instructor.spec(context) if lesson.taught else None,
                align_weight=lesson.align_weight,
                align_layer=lesson.layer,
                distil_weight=lesson.distil_weight,
                distil_temperature=lesson.temperature,
                accelerator=context.device,  # type: ignore[arg-type]
                checkpoint_every=10**6,
                keep=1,
                out=self.file(context, "-run"),
                resume="auto",
                quiet=True,
            ),
            data=self.splits(context, held_out),
        )

    def splits(self, context: Context, held_out: int) -> Splits:
        """The first images of the training split in a random order, and what is scored."""
        import torch

        from unrolled.data.sources import Subset
        from unrolled.train.run import Splits

        train = _opened(self.data, "train", context)
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).numpy()
        shown = Subset(train, order[: self.images])
        if held_out:
            return Splits(train=shown, test=Subset(train, order[self.images : self.images + held_out]))
        return Splits(train=shown, test=_opened(self.data, "test", context))


@dataclass(frozen=True, kw_only=True)
class Trial(Student):
    """One lesson, scored on held-out images."""

    lesson: Lesson
    held_out: int

    @property
    def instructor(self) -> Instructor:
        """The trained one: nothing is tried with the other."""
        return Instructor(data=self.data, trained=True)

    @property
    def needs(self) -> Sequence[Cell]:
        """The teacher, of a lesson that has one."""
        return [self.instructor] if self.lesson.taught else []

    def compute(self, context: Context) -> Result:
        """`accuracy` on the images held out; None of a run that diverged."""
        from unrolled.errors import TrainingStopped

        try:
            result = self.fit(context, self.lesson, self.instructor, self.held_out)
        except TrainingStopped:
            return {"accuracy": None}
        assert result.test is not None
        return {"accuracy": result.test["accuracy"]}


@dataclass(frozen=True, kw_only=True)
class Scored(Student):
    """The best of some lessons by held-out accuracy, scored on the test images once.

    Attributes:
        way: how it learns, one of the report's names.
        lessons: those that were tried, of the first seed.
        trial_epochs, held_out: of the trials.
        trained: whether its teacher was; trials always had the trained one.
    """

    way: str
    lessons: tuple[Lesson, ...]
    trial_epochs: int
    held_out: int
    trained: bool = True

    @property
    def trials(self) -> Sequence[Trial]:
        """Of the lessons."""
        shared = {"data": self.data, "images": self.images, "seed": 0, "epochs": self.trial_epochs}
        return [Trial(lesson=lesson, held_out=self.held_out, **shared) for lesson in self.lessons]  # type: ignore[arg-type]

    @property
    def needs(self) -> Sequence[Cell]:
        """Trials, and the teacher if there is one."""
        taught = any(lesson.taught for lesson in self.lessons)
        return [*self.trials, *([Instructor(data=self.data, trained=self.trained)] if taught else [])]

    def compute(self, context: Context) -> Result:
        """The lesson that was `chosen`, `parameters`, and on the test images `accuracy` and `loss`."""
        chosen = max(self.trials, key=lambda trial: context.result(trial)["accuracy"] or 0.0).lesson
        result = self.fit(context, chosen, Instructor(data=self.data, trained=self.trained), held_out=0)
        assert result.test is not None
        last = next(row for row in reversed(result.metrics) if row["split"] == "train")
        return {
            "chosen": vars(chosen),
            "parameters": result.parameters,
            "accuracy": result.test["accuracy"],
            "loss": result.test["loss"],
            "misalignment": last.get("misalignment"),
        }


def lessons(config: AlignedConfig) -> dict[str, tuple[Lesson, ...]]:
    """What is tried for every way to learn: as many lessons each."""
    return {
        "labels alone": tuple(Lesson(rate=rate, smoothing=each) for rate in config.rates for each in config.smoothings),
        "logits": tuple(
            Lesson(distil_weight=weight, temperature=each)
            for weight in config.distil_weights
            for each in config.temperatures
        ),
        "aligned": tuple(
            Lesson(align_weight=weight, layer=layer) for layer in config.layers for weight in config.align_weights
        ),
    }


def cells(config: AlignedConfig) -> Iterator[Cell]:
    """All trials, then networks to be tested, all of one seed together."""
    tried = lessons(config)
    tested = []
    for seed in config.seeds:
        first = Scored(
            data=config.data, images=config.images, seed=seed, epochs=config.epochs, way="labels alone",
            lessons=tried["labels alone"], trial_epochs=config.trial_epochs, held_out=config.held_out,
        )  # fmt: skip
        tested += [
            first,
            replace(first, way="labels alone, longer", epochs=longer(config.epochs, config.data)),
            replace(first, way="logits", lessons=tried["logits"]),
            replace(first, way="aligned, untrained teacher", lessons=tried["aligned"], trained=False),
            *(
                replace(first, way=f"layer {layer}", lessons=tuple(x for x in tried["aligned"] if x.layer == layer))
                for layer in config.layers
            ),
        ]
    yield Instructor(data=config.data, trained=True)
    for each in tested:
        yield from each.trials
    yield Instructor(data=config.data, trained=False)
    yield from tested


STEP, ALIGNED_STEP, ASKED = 1.26e-3, 1.46e-3, 0.78e-3
"""Core-seconds an image of a training step without a projector and with one, and of asking the teacher: of one thread
of an Intel Xeon with AVX-512 and without AMX, in fp32, batches of 64."""


def longer(epochs: int, data: Data) -> int:
    """Passes without a teacher in the time of `epochs` with an aligned layer and a teacher that is asked once; at least
    one more."""
    return max(epochs + 1, round((epochs * ALIGNED_STEP + ASKED) / STEP)) if data == "cifar10" else epochs + 1


def _opened(data: Data, split: Literal["train", "test"], context: Context) -> Any:
    from unrolled.data import open_images

    return open_images(data, split, data_dir=None if data == "digits" else context.folder(data))
