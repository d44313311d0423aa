"""What `crate-characters` computes: trials of optimisers and rates, networks after nanoGPT's budget, and counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from unrolled.studies.cells import Cell, Columns, Context, Result
from unrolled.studies.crate.bytes.cells import CRATE, MESA, ORDER, TWIN
from unrolled.studies.crate.characters.networks import CONVOLVED, GPT2, PACES, Trained, characters
from unrolled.studies.language import OfCorpus, excerpts
from unrolled.studies.study import AtLeast, Budgets, Config, Count, Distinct, Rate, Seeds

CORPUS = "tinyshakespeare"
PUBLISHED_RATE = 1e-3


@dataclass(kw_only=True)
class CharactersConfig(Config):
    """Budgets change sizes, steps and seeds; all models see as many characters and have GPT-2's parameters."""

    budgets: ClassVar[Budgets] = {
        "quick": {
            **{"families": (GPT2, CRATE), "published_seeds": (0,), "twice": (), "as_long": (CRATE,)},
            **{"depth": 2, "dim": 32, "length": 32, "adamw_rates": (1e-3,), "muon_rates": (1e-2,)},
            **{"steps": 40, "trial_steps": 10, "looks": (20,), "tail": 4_000, "test_characters": 4_000},
        },
        "cpu": {},
        "gpu": {"device": "cuda", "seeds": (0, 1, 2), "twice": (), "as_long": tuple(PACES)[1:]},
    }

    families: Annotated[tuple[str, ...], Distinct()] = tuple(PACES)
    """Which models."""
    published_seeds: Seeds = (0, 1, 2)
    """Trainings of GPT-2 by nanoGPT's own recipe, one for each."""
    seeds: Seeds = (0,)
    """One training of every model for each."""
    twice: tuple[str, ...] = (GPT2, CRATE, MESA, TWIN)
    """Models that are trained once more, with the seed after the last."""
    as_long: tuple[str, ...] = (CRATE, MESA, TWIN, CONVOLVED)
    """Models that are also trained for the processor time of GPT-2."""
    depth: Count = 4
    """Layers of every model."""
    dim: Count = 128
    """Width of the GPT-2 whose parameters all have."""
    heads: Count = 4
    """Heads of every model."""
    length: Count = 64
    """Characters of context."""
    batch_size: Count = 12
    """Excerpts in a step."""
    steps: Count = 2000
    """Training steps; by default 1.54 million characters."""
    adamw_rates: tuple[Rate, ...] = (1e-3, 3e-3)
    """Peak rates of AdamW that every model tries."""
    muon_rates: tuple[Rate, ...] = (1e-2, 3e-2)
    """Peak rates of Muon that every model tries."""
    trial_steps: Count = 150
    """Steps of each trial."""
    table_std: Rate = 0.2
    """Standard deviation of the initial tables of characters and positions of the tuned models."""
    tail: Count = 30_000
    """Last characters of the training part, by which trials are compared; trials do not learn from them."""
    looks: Annotated[tuple[Count, ...], Distinct()] = (250, 500, 1000)
    """Steps after which a training is also looked at."""
    test_characters: Annotated[int, AtLeast(2)] = 10**6
    """At most so many characters of nanoGPT's validation part are predicted; by default all."""
    data_dir: Path = Path("data")
    """Where the corpus is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for argument in ("families", "twice", "as_long"):
            for family in getattr(self, argument):
                if family not in PACES:
                    raise ValueError(f"{argument}: {family!r} is none of {', '.join(PACES)}")
        if GPT2 in self.as_long:
            raise ValueError(f"as_long: {GPT2} is what the others are compared with; leave it out")
        if not self.adamw_rates and not self.muon_rates:
            raise ValueError("adamw_rates, muon_rates: name at least one rate")

    def columns(self, family: str, *, timed: bool = False) -> Columns:
        """The fields, but for the seed, of a tuned model; of one trained for the processor time of GPT-2 if `timed`."""
        names = ("adamw_rates", "muon_rates", "trial_steps", "table_std")
        return {
            **{"model": family, "like": GPT2 if timed else "", "looks": () if timed else self._looks},
            **{name: getattr(self, name) for name in names},
            **self._sizes,
        }

    @property
    def published_columns(self) -> Columns:
        """The fields, but for the seed, of a GPT-2 as nanoGPT trains it."""
        recipe = {"adamw_rates": (PUBLISHED_RATE,), "muon_rates": (), "trial_steps": 0, "table_std": None}
        return {"model": GPT2, "like": "", "looks": self._looks, **recipe, **self._sizes}

    @property
    def plan(self) -> list[Trained]:
        """Every model in the order of training: nanoGPT's, then family by family, then second seeds."""
        again = max(self.seeds) + 1
        first = [(family, seed) for seed in self.seeds for family in self.families]
        second = [(family, again) for family in self.families if family in self.twice]
        tuned = [
            Trained(**self.columns(family, timed=timed), seed=seed)
            for family, seed in first + second
            for timed in ((True, False) if family in self.as_long else (False,))
        ]
        return [*(Trained(**self.published_columns, seed=seed) for seed in self.published_seeds), *tuned]

    @property
    def _looks(self) -> tuple[int, ...]:
        return tuple(look for look in self.looks if look < self.steps)

    @property
    def _sizes(self) -> Columns:
        names = ("depth", "dim", "heads", "length", "batch_size", "steps", "tail", "test_characters")
        return {"corpus": CORPUS, **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True, kw_only=True)
class Counted(OfCorpus):
    """What counting characters of nanoGPT's training part predicts of its validation part.

    Attributes:
        length: characters of an excerpt that are predicted.
        test_characters: at most so many are.
    """

    length: int
    test_characters: int

    def compute(self, context: Context) -> Result:
        """`symbols`, `sizes` of both parts, `loss` and `by_position` in nats, and `excerpt_deviation`.

        That is the standard deviation of an excerpt's mean loss, which says how exact a sample of excerpts is.
        """
        from unrolled.studies.crate.bytes.counts import KneserNey

        text = characters(self.corpus, context.data_dir)
        losses = KneserNey(text.train, ORDER).losses(excerpts(text.test, self.length, self.test_characters))
        return {
            "symbols": text.symbols,
            "sizes": {"train": len(text.train), "test": len(text.test)},
            "loss": float(losses.mean()),
            "by_position": losses.mean(0).tolist(),
            "excerpt_deviation": float(losses.mean(1).std()),
        }


def cells(config: CharactersConfig) -> Iterator[Cell]:
    """Counts first, then every model in the order of the plan, its trials before it."""
    yield Counted(corpus=CORPUS, length=config.length, test_characters=config.test_characters)
    for network in config.plan:
        yield from network.trials
        yield network
