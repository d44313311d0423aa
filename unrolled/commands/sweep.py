"""What `unrolled ablate` and `unrolled patch` have in common: their flags, scores, scores that are kept, tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from unrolled.commands.options import check_counts
from unrolled.harness import OutputFlags, Run, settings_of
from unrolled.subjects.options import SubjectFlags
from unrolled.terminal import say

if TYPE_CHECKING:
    from torch import Tensor

    from unrolled.instruments.causal import Effects, Score, ScoreStore
    from unrolled.report import Section
    from unrolled.subjects.texts import TextReader

ScoreName = Literal[
    "accuracy", "probability", "logit", "logit-difference", "loss", "bits-per-byte", "nats-per-token", "jaccard"
]  # fmt: skip
_OF_ANSWERS = ("accuracy", "probability", "logit", "logit-difference", "loss")
OF_TEXTS = ("bits-per-byte", "nats-per-token")


@dataclass(frozen=True, kw_only=True)
class SweepFlags(SubjectFlags, OutputFlags):
    """Flags of a verb that changes places in a model one at a time."""

    model: str = field(kw_only=False)
    positions: tuple[str, ...] = ()
    """Tokens to change one at a time: numbers from 0, -1 for the last one, or `each`; default: all together. Token 0 of
    most models of images is the class token."""
    split: Literal["train", "test"] = "test"
    """Which part of the data, divided as in the run the weights are from."""
    images: int = 256
    """How many images, texts of a file, or windows of a corpus, drawn evenly from the whole split."""
    data: str | None = None
    """Data set or corpus of text; default: the one of the run folder, else digits."""
    text: tuple[str, ...] = ()
    """Texts for a language model, in quotes."""
    texts: Path | None = None
    """A file with one text a line, for a language model."""
    length: int | None = None
    """Tokens of a text; default: of a corpus those of the run, else 256, or as many as the model takes and learnt from
    where these are fewer; of texts all."""
    batch_size: int = 64
    """Images or texts in one forward pass, whose blocks are kept."""
    seed: int = 0
    """Of weights that are not loaded, of random directions and the bootstrap."""

    def __post_init__(self) -> None:
        check_counts(images=self.images, batch_size=self.batch_size)
        if self.length is not None:
            check_counts(length=self.length)
        positions_of(self.positions)


def positions_of(given: Sequence[str]) -> list[int] | Literal["each"] | None:
    """`--positions` as `causal.ablate` takes them.

    Raises:
        ValueError: neither numbers nor `each`, or one twice.
    """
    if not given:
        return None
    if list(given) == ["each"]:
        return "each"
    try:
        positions = [int(each) for each in given]
    except ValueError:
        positions = []
    if not positions or len(set(positions)) < len(positions):
        raise ValueError(f"--positions {' '.join(given)}: give whole numbers, none twice, or the word each")
    return positions


def store_of(run: Run, options: SweepFlags) -> ScoreStore:
    """The scores that an unfinished sweep left in the folder of a run; what it has of other settings is refused."""
    from unrolled.harness import plain_settings
    from unrolled.instruments.causal import ScoreStore
    from unrolled.instruments.causal.store import FILE

    store = ScoreStore(run.folder / FILE, plain_settings(settings_of(options)))
    if count := len(store):
        say(f"note: {run.folder} has {count:,} scores of a sweep that was stopped; it goes on", quiet=options.quiet)
    return store


def score_for(name: str, counts: Callable[[bool], list[int]] | None = None) -> tuple[Score, float]:
    """The score of that name, and of a score of whole texts the factor that belongs to its targets.

    Args:
        name: of `ScoreName`.
        counts: bytes (True) or tokens of all texts; None: these are no texts.

    Raises:
        ValueError: a score of texts for images.
    """
    from unrolled.instruments.causal import scores

    if name == "jaccard":
        raise ValueError("--score jaccard: is of `unrolled ablate` on photos with masks; take another score")
    if name not in OF_TEXTS:
        return scores.SCORES[name].score, math.nan
    if counts is None:
        raise ValueError(f"--score {name}: is of texts; of images take one of {', '.join(_OF_ANSWERS)}")
    bits = name == "bits-per-byte"
    return scores.of_tokens, scores.per_unit(counts(bits), bits=bits)


def predicted(reader: TextReader, ids: Sequence[Tensor]) -> Callable[[bool], list[int]]:
    """How many bytes (True) or tokens of each text are predicted: all but the first token."""

    def counts(bits: bool) -> list[int]:
        if short := [row + 1 for row, text in enumerate(ids) if len(text) < 2]:
            raise ValueError(f"text {short[0]} is one token, of which nothing is predicted; give longer texts")
        if not bits:
            return [len(text) - 1 for text in ids]
        if reader.bytes_of is None:
            raise ValueError("--score bits-per-byte: this tokenizer does not tell bytes; take nats-per-token")
        return [sum(map(reader.bytes_of, text[1:].tolist())) for text in ids]

    return counts


def causal_reader(options: SweepFlags) -> TextReader:
    """The language model that the flags mean.

    Raises:
        ValueError: it does not predict the next token.
    """
    from unrolled.subjects.texts import of_random_weights, open_reader

    reader = open_reader(options)
    if not reader.causal:
        raise ValueError(f"model: {options.model} does not predict the next token; give a causal language model")
    if reader.random:
        say(f"note: {of_random_weights(options.model)}")
    return reader


def has_intervals(effects: Effects) -> bool:
    """Whether there are intervals: few samples have none."""
    return not any(math.isnan(row.low) for row in effects)


def within(low: float, high: float, form: str = "+.4f") -> str:
    """An interval to stand behind its number; nothing where there is none."""
    return "" if math.isnan(low) else f" [{low:{form}}, {high:{form}}]"


def how_many_are_clear(effects: Effects) -> str:
    """The sentence on intervals."""
    if not has_intervals(effects):
        from unrolled.instruments.causal.effects import FEWEST

        count = len(effects[0].samples)
        few = "There is one sample" if count == 1 else f"There are {count} samples"
        return f"{few}: fewer than {FEWEST} have no intervals, and others may differ."
    clear = sum(row.low > 0 or row.high < 0 for row in effects)
    return f"{clear} of {len(effects)} places have an interval without 0, each by itself."


def cells_of(effects: Effects, first_order: Effects | None = None) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the table of every place."""
    patches = not math.isnan(effects.goal)
    intervals = has_intervals(effects)
    columns = ["place", "change", *(["share"] if patches else []), *(["95 % interval"] if intervals else [])]
    control = any(not math.isnan(row.control) for row in effects)
    columns += ["random change"] if control else []
    columns += ["first order"] if first_order is not None else []
    rows = []
    for row in effects:
        cells = [row.name, f"{row.change:+.4f}", *([f"{row.share:.3f}"] if patches else [])]
        cells += [f"[{row.low:+.4f}, {row.high:+.4f}]"] if intervals else []
        cells += [f"{row.control:+.4f}"] if control else []
        rows.append([*cells, *([f"{first_order[row.name].change:+.4f}"] if first_order is not None else [])])
    return columns, rows


def add_places(section: Section, effects: Effects, caption: str, first_order: Effects | None = None) -> None:
    """The heat map, or the curve, and the table of every place."""
    from dataclasses import replace

    panels = [effects.panel()]
    if first_order is not None:
        panels.append(replace(first_order.panel(), title="to first order"))
    section.figure(panels, name="places", caption=caption)
    columns, rows = cells_of(effects, first_order)
    section.table(["95 % interval over samples" if c == "95 % interval" else c for c in columns], rows)
