"""What `crate-bytes` computes: tuned language models of bytes after one pass over books, and what counting does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from unrolled.instruments.sequences.context import token_losses
from unrolled.studies.cells import Cell, Columns, Context, Result
from unrolled.studies.language import (
    BATCH,
    ByteModel,
    OfCorpus,
    TextConfig,
    Windows,
    excerpts,
    inner_parameters,
    of_parameters,
    opened,
)
from unrolled.studies.study import Budgets, Count, Distinct, Rate

if TYPE_CHECKING:
    from unrolled.models import LanguageConfig

ORDER = 5  # bytes in a row that are counted


class Family(NamedTuple):
    """One architecture.

    Attributes:
        frame: a name of `LANGUAGE_MODELS`.
        changes: what is different from it.
    """

    frame: str
    changes: Mapping[str, Any]


_ROTARY = {"rotary": 10000.0}
TWIN, CRATE, ALPHA, MESA = "LLaMA", "CRATE-GPT", "CRATE-alpha", "MesaNet"
FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "GPT-2": Family("gpt2_nano", {}),
        TWIN: Family("llama_nano", {}),
        "LLaMA, convolution": Family("llama_nano", {"layer_args": {"softmax": {**_ROTARY, "width": 4}}}),
        CRATE: Family("crate_gpt_nano", {}),
        ALPHA: Family("crate_alpha_gpt_nano", {}),
        "ToST": Family("tost_gpt_nano", {"layer_scale": 1.0}),
        "delta rule": Family("mesanet_nano", {"layers": ("delta",)}),
        MESA: Family("mesanet_nano", {}),
        "MesaNet, no convolution": Family("mesanet_nano", {"layer_args": {"mesanet": {"width": 1}}}),
    }
)


@dataclass(kw_only=True)
class BytesConfig(TextConfig):
    """Budgets change sizes, steps and seeds; all models see as many bytes and have GPT-2's parameters."""

    budgets: ClassVar[Budgets] = {
        "quick": {
            **{"corpora": ("tinyshakespeare",), "families": ("GPT-2", TWIN, CRATE), "twice": (), "longer": ()},
            **{"depth": 2, "dim": 32, "rates": (1e-2,), "length": 64, "batch_size": 8},
            **{"steps": 40, "trial_steps": 10, "early": 4, "late": 48, "window": 8},
            **{"test_bytes": 4_000, "val_bytes": 4_000, "workers": 1},
        },
        "cpu": {},
        "gpu": {
            **{"depth": 6, "dim": 384, "heads": 6, "length": 512, "batch_size": 32, "late": 480},
            **{"seeds": (0, 1, 2), "twice": (), "device": "cuda"},
            **{"test_bytes": 10**9, "val_bytes": 200_000, "workers": 1},
        },
    }

    corpora: Annotated[tuple[str, ...], Distinct()] = (
        "brown",
        "bronte",
        "darwin",
        "tinyshakespeare",
        "wikitext2-small",
    )
    """Names of `unrolled.data.text.open_text`; trained on together, tested on one by one."""
    families: Annotated[tuple[str, ...], Distinct()] = tuple(FAMILIES)
    """Which models."""
    seeds: tuple[int, ...] = (0,)
    """One training for each."""
    twice: tuple[str, ...] = (TWIN, CRATE, MESA)
    """Models that are trained once more, with the seed after the last."""
    longer: tuple[str, ...] = (TWIN, CRATE, ALPHA)
    """Models that are also trained for `long_steps`, first seed, at the rate of the others."""
    depth: Count = 4
    """Layers of every model."""
    dim: Count = 64
    """Width of the GPT-2 whose parameters all have."""
    heads: Count = 4
    """Heads of every model."""
    steps: Count = 3906
    """Training steps; by default 8 million bytes."""
    long_steps: Count = 14_648
    """Of the longer training; by default 30 million bytes."""
    rates: Annotated[tuple[Rate, ...], Distinct()] = (3e-3, 1e-2, 3e-2, 1e-1)
    """Peak learning rates that every model tries."""
    table_std: Rate = 0.2
    """Standard deviation of the initial tables of bytes and positions; 0.02 was worse for all in `crate-text`."""
    trial_steps: Count = 488
    """Steps of each trial; by default 1 million bytes."""
    val_bytes: Count = 60_000
    """At most so many bytes of the validation parts are predicted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for argument in ("families", "twice", "longer"):
            for family in getattr(self, argument):
                if family not in FAMILIES:
                    raise ValueError(f"{argument}: {family!r} is none of {', '.join(FAMILIES)}")

    def columns(self, family: str, *, long: bool = False) -> Columns:
        """The fields, but for the seed, of a trained model."""
        names = ("depth", "dim", "heads", "length", "batch_size", "rates", "trial_steps", "points", "val_bytes")
        return {
            "corpus": "+".join(self.corpora),
            "model": family,
            "steps": self.long_steps if long else self.steps,
            "table_stds": (self.table_std,),
            "optimizer": "muon",
            **{name: getattr(self, name) for name in names},
        }

    @property
    def plan(self) -> list[Trained]:
        """Every model in the order of training."""
        again = max(self.seeds) + 1
        first = [(family, seed, False) for seed in self.seeds for family in self.families]
        more = [(family, again, False) for family in self.families if family in self.twice]
        long = [(family, self.seeds[0], True) for family in self.families if family in self.longer]
        return [Trained(**self.columns(family, long=length), seed=seed) for family, seed, length in first + more + long]


@dataclass(frozen=True, kw_only=True)
class Trained(ByteModel):
    """A model of `FAMILIES` with about the parameters of a GPT-2 of width `dim`."""

    @property
    def frame(self) -> LanguageConfig:
        """As wide as makes it equal."""
        return frame_of(self.model, self.depth, self.dim, self.heads, self.length)


@dataclass(frozen=True, kw_only=True)
class Tested(Cell):
    """What a model spends on text it never saw, and on text it has just read.

    Attributes:
        network: the model.
        corpora: whose test parts it reads.
        test_bytes: at most so many of each.
        windows: where late is compared with early.
    """

    network: Trained
    corpora: tuple[str, ...]
    test_bytes: int
    windows: Windows

    @property
    def name(self) -> str:
        """In words."""
        return f"test of {self.network.name}"

    def compute(self, context: Context) -> Result:
        """By corpus, losses in nats, and `flops` of a byte.

        `read`, as `Windows.of`; `mixed`, the loss of a mixture with the counts of `Counted`, and `weight`, the share
        of the network in it, chosen on the validation part; `repeated` and `unrepeated`, the loss on the second half
        of a context that repeats its first half, and on the same bytes after another first half.
        """
        from unrolled.models.compare import count_flops
        from unrolled.studies.crate.bytes.counts import KneserNey

        model: Any = self.network.load(context).eval()
        length = self.network.length
        counts = KneserNey(self.network.text(context)["train"], ORDER)

        def nats(rows: Tensor) -> Tensor:
            rows = rows.to(context.device)
            return token_losses(model, rows[:, :-1], rows[:, 1:], batch_size=BATCH).double().cpu()

        held_out = excerpts(self.network.text(context)["val"], length, self.network.val_bytes)
        shares = torch.arange(1, 20) / 20
        weight = best_share(nats(held_out), counts.losses(held_out), shares)
        by_corpus = {}
        for corpus in self.corpora:
            rows = excerpts(opened(corpus, context.data_dir)["test"], length, self.test_bytes)
            losses = nats(rows)
            by_corpus[corpus] = {
                "read": self.windows.of(losses),
                "mixed": float(mixed(losses, counts.losses(rows), weight).mean()),
                **repeats(nats, rows),
            }
        flops = count_flops(model, torch.zeros(1, length, dtype=torch.long, device=context.device)) / length
        return {"by_corpus": by_corpus, "weight": weight, "flops": flops}


@dataclass(frozen=True, kw_only=True)
class Counted(OfCorpus):
    """What counting and packing do with the same text; `corpus` is what is counted.

    Attributes:
        corpora: whose test parts are read.
        length: bytes of an excerpt that are predicted.
        test_bytes: at most so many bytes of each are predicted, and packed.
        windows: where late is compared with early.
    """

    corpora: tuple[str, ...]
    length: int
    test_bytes: int
    windows: Windows

    def compute(self, context: Context) -> Result:
        """By corpus: `counts`, as `Windows.of`, of `KneserNey`; `xz`, nats a byte; and the bytes of each part."""
        from unrolled.studies.crate.bytes.counts import KneserNey, packed

        train = opened(self.corpus, context.data_dir)["train"]
        counts = KneserNey(train, ORDER)
        by_corpus = {}
        for corpus in self.corpora:
            parts = opened(corpus, context.data_dir)
            rows = excerpts(parts["test"], self.length, self.test_bytes)
            by_corpus[corpus] = {
                "counts": self.windows.of(counts.losses(rows)),
                "xz": packed(rows.flatten(), after=train),
                "sizes": {name: len(part) for name, part in parts.items()},
            }
        return {"by_corpus": by_corpus}


def cells(config: BytesConfig) -> Iterator[Cell]:
    """Counts first; then every model, its trials before it, and its test."""
    columns: Any = {"corpora": config.corpora, "test_bytes": config.test_bytes, "windows": config.windows}
    yield Counted(corpus="+".join(config.corpora), length=config.length, **columns)
    for network in config.plan:
        yield from network.trials
        yield network
        yield Tested(network=network, **columns)


@cache
def frame_of(family: str, depth: int, dim: int, heads: int, length: int) -> LanguageConfig:
    """A model of so many layers with about the parameters of a GPT-2 of width `dim`, tables left out."""
    from unrolled.models.sequence_config import language_config

    def of_width(name: str, width: int) -> LanguageConfig:
        frame, changes = FAMILIES[name]
        head = max(2, 2 * round(width / heads / 2))  # rotary positions turn pairs
        size: Any = {"depth": depth, "dim": width, "heads": heads, "dim_head": head, "max_length": length}
        return language_config(frame, vocab_size=256, **{**changes, **size})

    target = inner_parameters(replace(of_width("GPT-2", dim), dim_head=max(1, dim // heads)))
    return of_parameters(lambda width: of_width(family, width), target)


def mixed(network: Tensor, counts: Tensor, share: float) -> Tensor:
    """Nats of the mixture of two predictions whose losses are given, `share` of the first."""
    return -(share * torch.exp(-network) + (1 - share) * torch.exp(-counts)).log()


def best_share(network: Tensor, counts: Tensor, shares: Tensor) -> float:
    """Of `shares`, the one with which the mixture spends least."""
    return float(min(shares.tolist(), key=lambda share: float(mixed(network, counts, share).mean())))


def repeats(nats: Any, rows: Tensor) -> dict[str, float]:
    """Loss on the second half of contexts, where it is the first half again and where another excerpt came first.

    Args:
        nats: from excerpts [b, t + 1] to losses [b, t].
        rows: excerpts [b, t + 1], of which the first halves are used.
    """
    half = rows[:, : rows.shape[1] // 2]
    again, other = torch.cat([half, half], dim=1), torch.cat([half.roll(1, 0), half], dim=1)
    second = slice(half.shape[1], None)  # the first byte of the second half cannot be known to be a repetition
    return {
        "repeated": float(nats(again)[:, second].mean()),
        "unrepeated": float(nats(other)[:, second].mean()),
    }
