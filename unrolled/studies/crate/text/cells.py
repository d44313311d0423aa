"""What `crate-text` computes: models of one size trained and tested, controls without order, counts, costs, samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unrolled.data.tokens import ByteTokenizer, mask_tokens
from unrolled.studies.cells import Cell, Columns, Context, Result
from unrolled.studies.crate.text.frames import MASK, MASKED_MODELS, MODELS, frame_of, operations
from unrolled.studies.language import (
    BATCH,
    ByteModel,
    Counts,
    OfCorpus,
    Predicted,
    TextConfig,
    excerpts,
    new_model,
    opened,
)
from unrolled.studies.study import Budgets, Count, Distinct, Rate

if TYPE_CHECKING:
    from unrolled.models import LanguageConfig

ORDERS = (1, 2, 3, 5)
SLOW = "MesaNet"
_PROMPT = 32
Part = Literal["full", "untrained", "shuffled"]


@dataclass(kw_only=True)
class CrateTextConfig(TextConfig):
    """Budgets change sizes, steps and seeds; every model sees GPT-2's bytes and, but for one, has its parameters."""

    budgets: ClassVar[Budgets] = {
        "quick": {
            **{"seeds": (0,), "depth": 2, "dim": 32, "rates": (3e-3, 1e-2), "length": 64, "batch_size": 8},
            **{"steps": 60, "trial_steps": 15, "masked_steps": 40, "masked_trial_steps": 10},
            **{"early": 4, "late": 48, "window": 8, "test_bytes": 8_000, "val_bytes": 8_000, "workers": 1},
        },
        "cpu": {},
        "gpu": {
            **{"corpus": "bronte", "depth": 6, "dim": 384, "heads": 6, "length": 512, "batch_size": 32},
            **{"steps": 4000, "trial_steps": 600, "masked_steps": 4000, "masked_trial_steps": 600},
            **{"seeds_slow": 3, "rates": (3e-4, 1e-3, 3e-3), "late": 480},
            **{"test_bytes": 10**9, "val_bytes": 100_000, "workers": 1, "device": "cuda"},
        },
    }

    corpus: str = "tinyshakespeare"
    """A name of `unrolled.data.text.open_text`."""
    seeds_slow: Count = 2
    """How many of the seeds MesaNet gets, whose step takes four times as long."""
    seeds_masked: Count = 2
    """How many of them the masked models get."""
    depth: Count = 4
    """Layers of every model."""
    dim: Count = 64
    """Width of GPT-2 and BERT; that of the others follows from equal parameters."""
    heads: Count = 4
    """Heads of every model."""
    steps: Count = 550
    """Training steps of a language model."""
    masked_steps: Count = 550
    """Training steps of a masked model."""
    rates: Annotated[tuple[Rate, ...], Distinct()] = (1e-3, 3e-3, 1e-2)
    """Peak learning rates that every model tries, each with each of `table_stds`."""
    table_stds: Annotated[tuple[Rate, ...], Distinct()] = (0.02, 0.2)
    """Standard deviations of the initial tables of bytes and positions that every model tries. GPT-2's is 0.02; a layer
    of CRATE hands on its tokens only through a step of ISTA, which drops what is small beside the attention's update.
    """
    trial_steps: Count = 80
    """Steps of each of these trials, and of the control on shuffled text."""
    masked_trial_steps: Count = 60
    """Steps of each trial of a masked model."""
    val_bytes: Count = 16_000
    """At most so many bytes of the validation part are predicted."""
    workers: Count = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim < 2 * self.heads:
            raise ValueError(f"dim={self.dim}: must be at least twice heads={self.heads}")

    @property
    def plan(self) -> list[tuple[str, int]]:
        """Model and seed of every full training, the longest first, so that processes end together."""
        counts = {SLOW: self.seeds_slow, **dict.fromkeys(MASKED_MODELS, self.seeds_masked)}
        models = sorted((*MODELS, *MASKED_MODELS), key=lambda model: model != SLOW)
        return [(model, seed) for model in models for seed in self.seeds[: counts.get(model)]]

    def columns(self, model: str, part: Part = "full") -> Columns:
        """The fields, but for the seed, of a model: trained, untrained, or trained on shuffled bytes."""
        masked = model in MASKED_MODELS
        trial_steps = self.masked_trial_steps if masked else self.trial_steps
        steps = {"full": self.masked_steps if masked else self.steps, "untrained": 0, "shuffled": trial_steps}
        names = ("corpus", "depth", "dim", "heads", "length", "batch_size", "rates", "table_stds")
        return {
            "model": model,
            **{name: getattr(self, name) for name in names},
            "steps": steps[part],
            "trial_steps": trial_steps,
            "points": self.points if part == "full" else 1,
            "val_bytes": min(self.val_bytes, self.test_bytes),
            "shuffled": part == "shuffled",
        }


@dataclass(frozen=True, kw_only=True)
class Sized(ByteModel):
    """A model of `MODELS` or `MASKED_MODELS`, sized by a GPT-2, or BERT, of width `dim`."""

    @property
    def frame(self) -> LanguageConfig:
        """As wide as makes it equal."""
        return frame_of(self.model, self.depth, self.dim, self.heads, self.length)

    @property
    def masked(self) -> bool:
        """Whether masked bytes are predicted, rather than the next one."""
        return self.model in MASKED_MODELS

    def task(self, rows: Tensor, *, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """The next byte, or the masked ones."""
        return masked(rows, seed=seed, step=step) if self.masked else super().task(rows, seed=seed, step=step)


@dataclass(frozen=True, kw_only=True)
class Filled(Cell):
    """Masked bytes of the test part, the same ones for all, predicted by a masked model."""

    network: Sized
    test_bytes: int

    @property
    def name(self) -> str:
        """In words."""
        return f"test of {self.network.name}"

    def compute(self, context: Context) -> Result:
        """Mean `loss` in nats and `accuracy` over the masked bytes."""
        model = self.network.load(context).eval()
        text = self.network.text(context)["test"]
        inputs, targets = masked(excerpts(text, self.network.length, self.test_bytes))
        losses, hits = [], []
        with torch.no_grad():
            for some, truth in zip(inputs.split(BATCH), targets.split(BATCH), strict=True):
                known = truth != -100
                logits = model(some.to(context.device)).cpu()[known].float()
                losses.append(F.cross_entropy(logits, truth[known], reduction="none"))
                hits.append(logits.argmax(-1) == truth[known])
        return {"loss": float(torch.cat(losses).double().mean()), "accuracy": float(torch.cat(hits).double().mean())}


@dataclass(frozen=True, kw_only=True)
class Written(Cell):
    """What a model writes after the first bytes of the test part."""

    network: Sized

    @property
    def name(self) -> str:
        """In words."""
        return f"sample of {self.network.name}"

    def compute(self, context: Context) -> Result:
        """`prompt` and `text`, drawn at temperature 0.8."""
        length = self.network.length
        prompt = self.network.text(context)["test"][: min(_PROMPT, length // 2)]
        model = self.network.load(context).eval()
        count = length - len(prompt)
        written = model.generate(prompt[None].to(context.device), count, temperature=0.8, seed=0)[0].cpu()
        decode = ByteTokenizer().decode
        return {"prompt": decode(prompt), "text": decode(written[len(prompt) :])}


@dataclass(frozen=True, kw_only=True)
class Counted(Counts):
    """What counting bytes of the training part in a row predicts of the test part."""

    def compute(self, context: Context) -> Result:
        """`ngrams` by order; `masked`, the unigram on what is masked for the masked models; `sizes` of the parts."""
        from unrolled.studies.crate.text.ngrams import NGrams

        train, rows, sizes = self.parts(context)
        counted, known = NGrams(train), masked(rows)[1] != -100
        frequent = torch.bincount(train, minlength=256).argmax()
        return {
            "ngrams": {str(order): self.windows.of(counted.losses(rows, order)) for order in ORDERS},
            "masked": {
                "loss": float(counted.losses(rows, 1)[known].mean()),
                "accuracy": float((rows[:, 1:][known] == frequent).double().mean()),
            },
            "sizes": sizes,
        }


@dataclass(frozen=True, kw_only=True)
class Cost(OfCorpus):
    """What every model costs in training and in decoding, on one thread of this machine."""

    alone: ClassVar[bool] = True

    depth: int
    dim: int
    heads: int
    length: int
    batch_size: int
    where: str

    def compute(self, context: Context) -> Result:
        """By model.

        `operations` per byte; `bytes_per_second` in training; `cached_ms` and `recomputed_ms` per byte in decoding;
        `state`, numbers that decoding remembers after `length` bytes.
        """
        from unrolled.studies.crate.costs import best_seconds

        text = opened(self.corpus, context.data_dir)["val"]
        rows = excerpts(text, self.length, len(text)).repeat(self.batch_size, 1)[: self.batch_size].to(self.where)
        sizes = (self.depth, self.dim, self.heads, self.length)
        networks = {model: new_model(frame_of(model, *sizes), table_std=0.02).to(self.where) for model in MODELS}
        steps = {model: _step(network, rows) for model, network in networks.items()}
        decodes = {
            f"{model} {name}": _decode(network, rows[:1, :1], self.length - 1, cache)
            for model, network in networks.items()
            for name, cache in (("cached", True), ("recomputed", False))
        }
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in training, and steadier
        try:
            taken = best_seconds(steps, rounds=7, device=self.where)
            taken |= best_seconds(decodes, rounds=3, device=self.where)
        finally:
            torch.set_num_threads(threads)
        each = 1e3 / (self.length - 1)
        return {
            model: {
                "operations": operations(network, self.length) / self.length,
                "bytes_per_second": rows[:, 1:].numel() / taken[model],
                "cached_ms": each * taken[f"{model} cached"],
                "recomputed_ms": each * taken[f"{model} recomputed"],
                "state": _numbers(network(rows[:1, :-1], return_state=True)[1].layers),
            }
            for model, network in networks.items()
        }


def cells(config: CrateTextConfig) -> Iterator[Cell]:
    """Every model trained, tested beside itself untrained and on bytes without order; counts; costs; samples."""
    predicted = partial(Predicted, test_bytes=config.test_bytes, windows=config.windows)
    for model, seed in config.plan:
        network, untrained = (Sized(**config.columns(model, part), seed=seed) for part in ("full", "untrained"))
        yield from network.trials
        yield network
        for each in (network, untrained):
            yield Filled(network=each, test_bytes=config.test_bytes) if each.masked else predicted(network=each)
        if not network.masked:
            yield predicted(network=network, disordered=True)
            yield Written(network=network)
    for model in MODELS:
        yield predicted(network=Sized(**config.columns(model, "shuffled"), seed=0))
    yield Counted(corpus=config.corpus, length=config.length, test_bytes=config.test_bytes, windows=config.windows)
    names = ("corpus", "depth", "dim", "heads", "length", "batch_size")
    yield Cost(**{name: getattr(config, name) for name in names}, where=config.device)


def masked(rows: Tensor, *, seed: int = 0, step: int = 0) -> tuple[Tensor, Tensor]:
    """Excerpts [b, length + 1] with some bytes masked, and these, -100 elsewhere: [b, length] each."""
    return mask_tokens(rows[:, 1:], vocab_size=MASK + 1, mask_id=MASK, seed=seed, step=step)


def _step(network: nn.Module, rows: Tensor) -> Callable[[], None]:
    def step() -> None:
        network.zero_grad()
        loss = F.cross_entropy(network(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]

    return step


def _decode(network: Any, prompt: Tensor, count: int, cache: bool) -> Callable[[], Tensor]:
    return lambda: network.generate(prompt, count, cache=cache)


def _numbers(state: Any) -> int:
    """Numbers in all tensors of a nested tuple."""
    if isinstance(state, Tensor):
        return state.numel()
    return sum(_numbers(part) for part in state) if isinstance(state, tuple | list) else 0
