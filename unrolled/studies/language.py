"""Language models of bytes that studies train: the training as a cell, and what a model spends on held-out text."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unrolled.data.text import open_text
from unrolled.data.tokens import ByteTokenizer, token_batches
from unrolled.errors import MissingData
from unrolled.instruments.sequences.context import score_of, token_losses
from unrolled.models.encoder import build_language_model, parameters
from unrolled.studies.cells import Cell, Context, Result, data_missing
from unrolled.studies.results import Values
from unrolled.studies.study import AtLeast, Config, Count, Seeds
from unrolled.studies.training import Log, train_resumable, warmup_cosine
from unrolled.train.muon import Muon, layer_matrices

if TYPE_CHECKING:
    from unrolled.models import LanguageConfig

BATCH = 16  # excerpts that are predicted at a time


@dataclass(kw_only=True)
class TextConfig(Config):
    """Settings of studies that train language models of bytes."""

    seeds: Seeds = (0, 1, 2)
    """One training for each: initial weights and excerpts."""
    length: Annotated[int, AtLeast(8)] = 128
    """Bytes of context."""
    batch_size: Count = 16
    """Excerpts in a step."""
    steps: Count = 550
    """Training steps."""
    points: Count = 6
    """Looks at the validation part during training."""
    early: Annotated[int, AtLeast(0)] = 4
    """First position of the early window, counted from 0."""
    late: Count = 112
    """First position of the late window."""
    window: Count = 16
    """Positions in each; more than one is for less noise."""
    test_bytes: Count = 50_000
    """At most so many bytes of the test part are predicted."""
    data_dir: Path = Path("data")
    """Where the corpora are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.early >= self.late or self.late + self.window > self.length:
            raise ValueError("early, late, window: must be early < late, and late + window at most length")

    @property
    def windows(self) -> Windows:
        """Where late is compared with early."""
        return Windows(early=self.early, late=self.late, window=self.window)


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Two windows of a context: their first positions, counted from 0, and how many positions are in each."""

    early: int
    late: int
    window: int

    def of(self, losses: Tensor) -> Result:
        """Losses [b, length] in nats, in numbers.

        `loss`, their mean; `score`, the loss late in the context less that early, negative if a longer context helps;
        `score_error`, its standard error over excerpts; `curve`, the mean at each position.
        """
        score = score_of(losses, early=self.early, late=self.late, window=self.window)
        return {
            "loss": fmean(score["curve"]),
            "score": score["score"],
            "score_error": score["standard_error"],
            "curve": score["curve"],
        }

    def read(self, model: nn.Module, rows: Tensor) -> Result:
        """The same of a model that predicts excerpts [b, length + 1], but for the first byte of each."""
        return self.of(token_losses(model, rows[:, :-1], rows[:, 1:], batch_size=BATCH))


@dataclass(frozen=True, kw_only=True)
class OfCorpus(Cell):
    """What follows from the bytes of a text.

    Attributes:
        corpus: a name of `open_text`.
    """

    corpus: str

    def require(self, context: Context) -> None:
        """The text."""
        opened(self.corpus, context.data_dir)


@dataclass(frozen=True, kw_only=True)
class Counts(OfCorpus):
    """What counting bytes of the training part predicts of the test part.

    Attributes:
        length: bytes of an excerpt that are predicted.
        test_bytes: at most so many bytes are predicted.
        windows: where late is compared with early.
    """

    length: int
    test_bytes: int
    windows: Windows

    def parts(self, context: Context) -> tuple[Tensor, Tensor, dict[str, int]]:
        """Bytes [n] of the training part, excerpts [b, length + 1] of the test part, and the sizes of all parts."""
        parts = opened(self.corpus, context.data_dir)
        rows = excerpts(parts["test"], self.length, self.test_bytes)
        return parts["train"], rows, {name: len(part) for name, part in parts.items()}


@dataclass(frozen=True, kw_only=True)
class ByteModel(OfCorpus):
    """A language model of bytes and its training; a subclass says which network.

    Attributes:
        model: what tables call it.
        depth: layers.
        dim: width; where the subclass says so, of the model that this one is sized by.
        heads: of every layer.
        seed: of the initial weights and the excerpts.
        length: bytes of context.
        batch_size: excerpts in a step.
        steps: of training; 0 is the untrained control.
        rates: peak learning rates to choose from.
        table_stds: standard deviations of the initial tables of bytes and positions to choose from; None leaves them as
            the network's own.
        trial_steps: each pair of these is tried for so many steps, and the one chosen that ends with the lowest
            validation loss; 0 where there is one pair.
        points: looks at the validation part.
        val_bytes: at most so many bytes of it are predicted.
        shuffled: the bytes of every part are permuted.
        optimizer: AdamW for all, or Muon for the matrices of the layers.
    """

    model: str
    depth: int
    dim: int
    heads: int
    seed: int
    length: int
    batch_size: int
    steps: int
    rates: tuple[float, ...]
    table_stds: tuple[float | None, ...] = (None,)
    trial_steps: int = 0
    points: int
    val_bytes: int
    shuffled: bool = False
    optimizer: Literal["adamw", "muon"] = "adamw"

    @property
    @abstractmethod
    def frame(self) -> LanguageConfig:
        """The network."""

    @property
    def name(self) -> str:
        """In words; of a trial with what it tries."""
        std = self.table_stds[0]
        trial = f", rate {self.rates[0]:g}, tables {std:g}" if std is not None and not self.trial_steps else ""
        order = ", shuffled" if self.shuffled else ""
        return f"{self.model}, {self.depth} layers, {self.corpus}{order}, {self.steps} steps, seed {self.seed}{trial}"

    @property
    def trials(self) -> tuple[Self, ...]:
        """The trainings that choose."""
        if not self.trial_steps:
            return ()
        short = replace(self, seed=0, steps=self.trial_steps, trial_steps=0, points=1, shuffled=False)
        return tuple(replace(short, rates=(rate,), table_stds=(std,)) for rate in self.rates for std in self.table_stds)

    @property
    def needs(self) -> Sequence[Cell]:
        """The trials."""
        return self.trials

    def compute(self, context: Context) -> Result:
        """`rate` and `table_std`, as chosen; `width`, `parameters`; `validation`, the loss there at every look.

        Losses are in nats per predicted byte. Parameters are counted in all and `without_embeddings`.
        """
        rate, std = self.chosen(context)
        model, looks = self._trained(context)
        return {
            "rate": rate,
            "table_std": std,
            "width": self.frame.dim,
            "parameters": parameters(model),
            "validation": looks,
        }

    def load(self, context: Context) -> Any:
        """The model, from the store if it was trained before."""
        return self._trained(context)[0]

    def chosen(self, context: Context) -> tuple[float, float | None]:
        """Peak rate and scale of the tables."""
        best = self
        if self.trials:
            best = min(self.trials, key=lambda trial: context.result(trial)["validation"][-1]["loss"])
        return best.rates[0], best.table_stds[0]

    def text(self, context: Context) -> dict[str, Tensor]:
        """Bytes [n] of the parts train, val and test."""
        parts = opened(self.corpus, context.data_dir)
        if not self.shuffled:
            return parts
        generator = torch.Generator().manual_seed(self.seed)
        return {name: part[torch.randperm(len(part), generator=generator)] for name, part in parts.items()}

    def task(self, rows: Tensor, *, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """What is read of excerpts [b, length + 1], and what is to be said: [b, length] each, -100 where nothing is."""
        return rows[:, :-1], rows[:, 1:]

    def _trained(self, context: Context) -> tuple[nn.Module, Log]:
        device, steps = context.device, self.steps
        rate, std = self.chosen(context)
        model = new_model(self.frame, seed=self.seed, table_std=std).to(device)
        text = self.text(context)
        held_out = excerpts(text["val"], self.length, self.val_bytes)
        inputs, targets = (part.to(device) for part in self.task(held_out, seed=0, step=0))

        def loss_at(step: int) -> Tensor:
            rows = token_batches(
                text["train"], batch_size=self.batch_size, length=self.length, seed=self.seed, step=step
            )
            read, truth = self.task(rows, seed=self.seed, step=step)
            return F.cross_entropy(model(read.to(device)).flatten(0, 1), truth.to(device).flatten())

        def look(step: int) -> dict[str, float]:
            losses = token_losses(model, inputs, targets, batch_size=BATCH)
            return {"loss": float(losses[targets != -100].double().mean())}

        looks = train_resumable(
            model,
            _optimizer(model, self.optimizer, rate),
            loss_at,
            steps=steps,
            keep=self.checkpoint(context),
            rate=warmup_cosine(rate, warmup=max(1, steps // 10), steps=steps, floor=0.1 * rate),
            clip_norm=1.0,
            look=look,
            look_at=[round(steps * point / self.points) for point in range(1, self.points + 1)],
            every=100,
        )
        return model, looks


def _optimizer(model: nn.Module, name: str, rate: float) -> torch.optim.Optimizer:
    """Betas of 0.9 and 0.95; a weight decay of 0.1 on all but vectors."""
    named = dict(model.named_parameters())
    ours = set(layer_matrices(model)) if name == "muon" else set()
    groups: list[dict[str, Any]] = [
        {"params": [p for path, p in named.items() if path not in ours and p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in named.values() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))
    groups.append({"params": [named[path] for path in sorted(ours)], "weight_decay": 0.1, "muon": True})
    return Muon(groups, lr=rate, betas=(0.9, 0.95))


@dataclass(frozen=True, kw_only=True)
class Predicted(Cell):
    """What a model spends on the test part, by which nothing was chosen.

    Attributes:
        network: the model.
        test_bytes: at most so many bytes are predicted.
        windows: where late is compared with early.
        disordered: the bytes of each excerpt are permuted.
    """

    network: ByteModel
    test_bytes: int
    windows: Windows
    disordered: bool = False

    @property
    def name(self) -> str:
        """In words."""
        return f"test of {self.network.name}{', disordered' * self.disordered}"

    def compute(self, context: Context) -> Result:
        """As `Windows.of`."""
        rows = excerpts(self.network.text(context)["test"], self.network.length, self.test_bytes)
        if self.disordered:
            generator = torch.Generator().manual_seed(0)
            rows = torch.stack([row[torch.randperm(len(row), generator=generator)] for row in rows])
        return self.windows.read(self.network.load(context), rows.to(context.device))


@cache
def opened(corpus: str, data_dir: Path) -> dict[str, Tensor]:
    """Bytes [n] of the three parts of a corpus: train, val and test.

    Of several, with a plus between their names, the training parts follow each other; of the held-out parts a block of
    each follows a block of the one before, so that the first bytes are shared evenly.

    Raises:
        MissingData: the corpus is not there.
    """
    if len(names := corpus.split("+")) > 1:
        each = [opened(name, data_dir) for name in names]
        train = torch.cat([parts["train"] for parts in each])
        return {"train": train} | {part: alternating([parts[part] for parts in each]) for part in ("val", "test")}
    encode = ByteTokenizer().encode
    try:
        return {part: encode(open_text(corpus, part, data_dir=data_dir).text) for part in ("train", "val", "test")}
    except MissingData as error:
        raise data_missing(corpus, error) from error


def alternating(texts: Sequence[Tensor], block: int = 2048) -> Tensor:
    """Blocks of texts [n] in turn, as long as all have one, [m]."""
    count = min(len(text) for text in texts) // block
    return torch.stack([text[: count * block].view(count, block) for text in texts], dim=1).flatten()


def excerpts(text: Tensor, length: int, most: int) -> Tensor:
    """Excerpts that follow each other, [b, length + 1]: each byte but the first of an excerpt is predicted once.

    Args:
        text: bytes [n].
        length: bytes that are predicted of an excerpt.
        most: bytes that may be used.

    Raises:
        ValueError: there are fewer than two excerpts.
    """
    count = min(len(text), most) // (length + 1)
    if count < 2:
        raise ValueError(f"length={length}: a held-out part has fewer than two excerpts; lower it")
    return text[: count * (length + 1)].view(count, length + 1)


def new_model(frame: LanguageConfig, *, seed: int = 0, table_std: float | None = None) -> nn.Module:
    """An untrained model.

    Args:
        frame: the network.
        seed: what its weights follow from.
        table_std: standard deviation that the tables of bytes and positions are drawn with; None leaves the network's.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = build_language_model(frame)
        for table in (model.embed, model.positions):
            if table is not None and table_std is not None:
                nn.init.normal_(table.weight, std=table_std)
    return model


def inner_parameters(frame: LanguageConfig) -> int:
    """Parameters of a network without its tables of tokens and positions."""
    with torch.device("meta"):
        return parameters(new_model(frame))["without_embeddings"]


def of_parameters(of_width: Callable[[int], LanguageConfig], target: int) -> LanguageConfig:
    """The network of a family that has about `target` parameters without its tables.

    An even width, which is faster, unless it misses by more than 1 %.

    Args:
        of_width: the family, by width; the count grows with it.
        target: parameters.
    """

    def miss(width: int) -> float:
        return abs(inner_parameters(of_width(width)) / target - 1)

    low, high = 2, 4
    while inner_parameters(of_width(high)) <= target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if inner_parameters(of_width(middle)) <= target else (low, middle)
    near = range(max(1, low - 1), high + 2)
    return of_width(min(near, key=lambda width: (miss(width) > 0.01, width % 2, miss(width))))


def least_favourable(values: Mapping[str, Values], worst: Callable[[Values], float]) -> tuple[Values, str]:
    """Of values by name those of which `worst` is largest; and in words what these are, then the others."""
    if not values:
        return Values(), ""
    first, *others = sorted(values, key=lambda name: -worst(values[name]))
    words = [f" ({first}, {values[first].count})"]
    words += [f"; {values[name]:.3f} ({name}, {values[name].count})" for name in others]
    return values[first], "".join(words)


def bits(nats: float) -> float:
    """Nats as bits."""
    return nats / math.log(2)
