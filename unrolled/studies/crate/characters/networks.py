"""Networks of `crate-characters`: nanoGPT's way to train one, trials of optimisers and rates, and what came of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unrolled.data.tokens import token_batches
from unrolled.instruments.sequences.context import token_losses
from unrolled.models.encoder import parameters
from unrolled.studies.cells import Cell, Columns, Context, Result
from unrolled.studies.crate.bytes.cells import CRATE, MESA, TWIN, frame_of
from unrolled.studies.language import BATCH, OfCorpus, excerpts, new_model, opened
from unrolled.studies.training import train_resumable, warmup_cosine
from unrolled.train.muon import Muon, layer_matrices

if TYPE_CHECKING:
    from unrolled.models import LanguageConfig

GPT2, CONVOLVED, UNCONVOLVED = "GPT-2", "LLaMA, convolution", "MesaNet, no convolution"
_TRAINED_ON = 0.9  # of the text, as in nanoGPT
_TIMED = 7  # steps
Optimizer = Literal["adamw", "muon"]


class Recipe(NamedTuple):
    """What is tuned."""

    optimizer: Optimizer
    rate: float


PACES: Mapping[str, Mapping[Optimizer, int]] = MappingProxyType(
    {
        GPT2: {"adamw": 54, "muon": 76},
        CRATE: {"adamw": 66, "muon": 131},
        MESA: {"adamw": 232, "muon": 261},
        TWIN: {"adamw": 74, "muon": 103},
        CONVOLVED: {"adamw": 89, "muon": 119},
        UNCONVOLVED: {"adamw": 249, "muon": 274},
        "ToST": {"adamw": 70, "muon": 99},
        "CRATE-alpha": {"adamw": 84, "muon": 114},
    }
)
"""Processor milliseconds of a step of the `cpu` budget, by family: of one thread of an Intel Xeon with AVX-512 and
without AMX, in fp32, untrained. They turn processor time into steps, once for all machines."""


@dataclass(frozen=True, kw_only=True)
class Training(OfCorpus):
    """A model of a family with about the parameters of a GPT-2 of width `dim`, and nanoGPT's way to train one.

    Batches of random excerpts, weight decay 0.1 on all but vectors, gradients clipped at norm 1, betas of 0.9 and 0.99,
    a twentieth of the steps for warming up and a cosine to a tenth of the peak; no dropout. Muon takes the matrices of
    the layers, AdamW all or the rest.

    Attributes:
        model: what tables call it.
        depth: layers.
        dim: width of the GPT-2 that it is sized by.
        heads: of every layer.
        length: characters of context.
        batch_size: excerpts in a step.
        steps: of training.
        table_std: standard deviation of the initial tables of characters and positions; None leaves them as they are.
        tail: characters at the end of the training part that trials are compared by.
        seed: of the initial weights and the excerpts.
    """

    model: str
    depth: int
    dim: int
    heads: int
    length: int
    batch_size: int
    steps: int
    table_std: float | None
    tail: int
    seed: int

    def frame(self, symbols: int) -> LanguageConfig:
        """The network over so many characters."""
        return replace(frame_of(self.model, self.depth, self.dim, self.heads, self.length), vocab_size=symbols)

    def fit(
        self, context: Context, recipe: Recipe, text: Tensor, rows: Tensor, *, steps: int, looks: Sequence[int] = ()
    ) -> Fitted:
        """The model after so many steps on `text`, and its mean loss on excerpts `rows` at `looks`, in nats."""
        symbols = characters(self.corpus, context.data_dir).symbols
        model = new_model(self.frame(symbols), seed=self.seed, table_std=self.table_std).to(context.device)
        optimizer, rows = _optimizer(model, recipe), rows.to(context.device)

        def loss_at(step: int) -> Tensor:
            batch = token_batches(text, batch_size=self.batch_size, length=self.length, seed=self.seed, step=step)
            batch = batch.to(context.device)
            return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

        curve = train_resumable(
            model,
            optimizer,
            loss_at,
            steps=steps,
            keep=self.checkpoint(context),
            rate=warmup_cosine(recipe.rate, warmup=max(1, steps // 20), steps=steps, floor=0.1 * recipe.rate),
            clip_norm=1.0,
            look=lambda step: {"loss": float(nats(model, rows).mean())},
            look_at=looks,
            every=100,
        )
        return Fitted(model, curve, lambda: _step(model, optimizer, loss_at))


class Fitted(NamedTuple):
    """A trained model, its loss at the looks, and one more training step, with which it is no longer the same."""

    model: Any
    curve: list[Result]
    step: Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Trial(Training):
    """With one optimiser at one rate, without the tail of the training part, on which it is scored.

    Attributes:
        optimizer: AdamW for all, or Muon for the matrices of the layers.
        rate: at its peak.
    """

    optimizer: Optimizer
    rate: float

    def compute(self, context: Context) -> Result:
        """`loss` in nats a character; None of a training that diverged."""
        text = characters(self.corpus, context.data_dir).train
        if len(text) - self.tail <= self.length:
            raise ValueError(f"tail={self.tail}: leaves nothing of {len(text)} characters to learn from; lower it")
        rows = excerpts(text[-self.tail :], self.length, self.tail)
        fitted = self.fit(context, Recipe(self.optimizer, self.rate), text[: -self.tail], rows, steps=self.steps)
        loss = float(nats(fitted.model, rows.to(context.device)).mean())
        return {"loss": loss if math.isfinite(loss) else None}


@dataclass(frozen=True, kw_only=True)
class Trained(Training):
    """By the recipe that its trials chose, on nanoGPT's whole training part; scored on its whole validation part.

    Nothing is chosen by that part: the last weights are what counts, and looks only draw the curve.

    Attributes:
        adamw_rates, muon_rates: what is tried; a single rate in both needs no trial.
        trial_steps: of each trial.
        looks: steps after which the validation part is also predicted.
        test_characters: at most so many of it are.
        like: the family whose processor time it is trained for instead of `steps`, those of that family; "" for none.
    """

    adamw_rates: tuple[float, ...]
    muon_rates: tuple[float, ...]
    trial_steps: int
    looks: tuple[int, ...]
    test_characters: int
    like: str = ""

    @property
    def name(self) -> str:
        """In words."""
        recipe = "" if self.trial_steps else " as published"
        how_long = f"the time of {self.like}" if self.like else f"{self.steps} steps"
        return f"{self.model}{recipe}, {self.corpus}, {how_long}, seed {self.seed}"

    @property
    def recipes(self) -> list[Recipe]:
        """What is tried."""
        return [Recipe("adamw", rate) for rate in self.adamw_rates] + [Recipe("muon", rate) for rate in self.muon_rates]

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The trainings that choose; none where there is no choice."""
        if len(self.recipes) < 2:
            return ()
        names = ("corpus", "model", "depth", "dim", "heads", "length", "batch_size", "table_std", "tail")
        shared: Columns = {name: getattr(self, name) for name in names}
        return tuple(Trial(**shared, **recipe._asdict(), steps=self.trial_steps, seed=0) for recipe in self.recipes)

    @property
    def needs(self) -> Sequence[Cell]:
        """The trials, and those of the model whose time it has."""
        return self.trials + (self._other.trials if self.like else ())

    def compute(self, context: Context) -> Result:
        """How it was trained, what it costs, and what it spends on a character, in nats.

        `optimizer`, `rate`, `steps`; `width`, `parameters` (in all and `without_embeddings`), `flops` of a character's
        forward pass, `milliseconds` of processor time of a step at the end; `curve` (a `loss` at each step of `looks`
        and at the end), `loss`, and `by_position`, the mean at each place of the context.
        """
        from unrolled.models.compare import count_flops

        recipe, steps = self.chosen(context), self.duration(context)
        text = characters(self.corpus, context.data_dir)
        rows = excerpts(text.test, self.length, self.test_characters)
        fitted = self.fit(context, recipe, text.train, rows, steps=steps, looks=self.looks)
        losses = nats(fitted.model, rows.to(context.device))
        token = torch.zeros(1, self.length, dtype=torch.long, device=context.device)
        return {
            **recipe._asdict(),
            "steps": steps,
            "width": self.frame(text.symbols).dim,
            "parameters": parameters(fitted.model),
            "flops": count_flops(fitted.model.eval(), token) / self.length,
            "curve": [*fitted.curve, {"step": steps, "loss": float(losses.mean())}],
            "loss": float(losses.mean()),
            "by_position": losses.mean(0).tolist(),
            "milliseconds": 1e3 * min(_seconds(fitted.step) for _ in range(_TIMED)),
        }

    def chosen(self, context: Context) -> Recipe:
        """The recipe of the trial with the lowest loss."""
        if not self.trials:
            return self.recipes[0]
        losses = [context.result(trial)["loss"] for trial in self.trials]
        return min(zip(losses, self.recipes, strict=True), key=lambda pair: math.inf if pair[0] is None else pair[0])[1]

    def duration(self, context: Context) -> int:
        """Steps: `steps`, or as many as take the processor time of `like` after these."""
        if not self.like:
            return self.steps
        paces = [PACES[cell.model][cell.chosen(context).optimizer] for cell in (self._other, self)]
        return max(1, round(self.steps * paces[0] / paces[1]))

    @property
    def _other(self) -> Trained:
        return replace(self, model=self.like, like="")


class Characters(NamedTuple):
    """A text as ids, from 0, of its characters in the order of their codes."""

    train: Tensor
    """The first nine tenths, [n] int64."""
    test: Tensor
    """The rest, nanoGPT's validation part."""
    symbols: int
    """How many there are."""


@cache
def characters(corpus: str, data_dir: Path) -> Characters:
    """The parts of a corpus in ASCII, as nanoGPT divides it.

    Raises:
        MissingData: the corpus is not there.
    """
    parts = opened(corpus, data_dir)
    symbols, ids = torch.cat([parts[part] for part in ("train", "val", "test")]).unique(return_inverse=True)
    cut = int(_TRAINED_ON * len(ids))
    return Characters(ids[:cut], ids[cut:], len(symbols))


def nats(model: nn.Module, rows: Tensor) -> Tensor:
    """Loss of every character of excerpts [b, length + 1] but the first, [b, length] in float64."""
    return token_losses(model, rows[:, :-1], rows[:, 1:], batch_size=BATCH).double().cpu()


def _optimizer(model: nn.Module, recipe: Recipe) -> Muon:
    """Of AdamW there are groups of that alone."""
    named = dict(model.named_parameters())
    ours = set(layer_matrices(model)) if recipe.optimizer == "muon" else set()
    groups: list[dict[str, Any]] = [
        {"params": [p for path, p in named.items() if path not in ours and p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in named.values() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if ours:
        groups.append({"params": [named[path] for path in sorted(ours)], "weight_decay": 0.1, "muon": True})
    return Muon(groups, lr=recipe.rate, betas=(0.9, 0.99))


def _step(model: nn.Module, optimizer: Muon, loss_at: Callable[[int], Tensor]) -> None:
    model.train()
    optimizer.zero_grad()
    loss_at(0).backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def _seconds(step: Callable[[], None]) -> float:
    """Of the processor, so that what else the machine does hardly counts."""
    began = time.process_time()
    step()
    return time.process_time() - began
