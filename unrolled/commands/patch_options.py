"""The flags of `unrolled patch`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from unrolled.commands.sweep import ScoreName, SweepFlags

Method = Literal["both", "activation", "attribution"]


@dataclass(frozen=True, kw_only=True)
class PatchOptions(SweepFlags):
    """Flags of `unrolled patch`."""

    places: tuple[str, ...] = ("block??", "block*/attn", "block*/mlp", "block*/ista")
    """What is patched, one at a time: blocks, halves, heads (`block03/attn/head2`), subspaces of what enters a block
    (`block03/subspace2`), atoms (`block03/ista/atom17`), with the wildcards * and ?. With --sender: the receivers."""
    method: Method = "both"
    """`activation` patches each place in a run of its own, `attribution` does so to first order, all at once."""
    sender: str | None = None
    """Path patching: only this place is patched, and what it does through each receiver (--places) alone is seen."""
    score: ScoreName | None = None
    """What is looked at, of the clean input's answer; default: its logit less that of the corrupted input's answer. Of
    texts also bits-per-byte and nats-per-token, of the clean text's tokens."""
    other: tuple[str, ...] = ()
    """The corrupted text of each --text."""
    others: Path | None = None
    """The corrupted texts of --texts, one a line."""
    image: Path | None = None
    """A clean picture, in place of data."""
    other_image: Path | None = None
    """The corrupted picture."""
    pairs: tuple[str, ...] = ()
    """Which images of the data: numbers CLEAN:CORRUPTED, such as 3:17; default: each of --images with another of them,
    of another class where there is one."""
    answer: str | None = None
    """Right answer to every pair: a class by number or name, or a text that is one token; default: the label of the
    clean image, or what the model says of the clean input."""
    against: str | None = None
    """The other answer; default: the same of the corrupted input."""
    out: Path | None = None
    """Where config.yaml, report.html and report.json go; default: runs/patch-MODEL-DATA. A sweep that was stopped goes
    on there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sender is not None and self.positions:
            raise ValueError("--positions: are of patches without --sender; leave one of them out")
        if self.sender is not None and self.method != "both":
            raise ValueError("--method: is of patches without --sender; leave one of them out")
        if self.method == "attribution" and self.score == "accuracy":
            raise ValueError("--score accuracy: has no gradient, so there is no --method attribution of it")
