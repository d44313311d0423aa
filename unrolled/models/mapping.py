"""From a published state dict to ours: what is taken, what is left, and what cannot be read off shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from timm.layers import to_2tuple
from torch import Tensor, nn

from unrolled.models.building import check_finite_weights

StateDict = dict[str, Tensor]


@dataclass
class LoadReport:
    """What became of every tensor of a checkpoint.

    Attributes:
        layout: name of the layout that was recognised.
        mapped: published key -> our key, for everything that was loaded.
        missing: parameters of the model that the file does not have (they keep their initial values).
        ignored: key of the file -> why the model's output does not depend on it.
        reshaped: our key -> what was done to it beyond renaming.
        settings: argument -> how the model differs from the one the weights are of, which no tensor shows.
    """

    layout: str
    mapped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)
    reshaped: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"{self.layout}: {len(self.mapped)} tensors loaded"]
        if self.missing:
            parts.append(f"missing: {', '.join(self.missing)}")
        for reason in dict.fromkeys(self.ignored.values()):
            keys = [key for key, why in self.ignored.items() if why == reason]
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            parts.append(f"ignored: {', '.join(keys[:3])}{more} ({reason})")
        parts += [f"{key}: {how}" for key, how in (self.reshaped | self.settings).items()]
        return "; ".join(parts)


@dataclass(frozen=True)
class Options:
    """What a caller says of a checkpoint; `load_published` documents it. None: not said."""

    heads: int | None = None
    decoder_heads: int | None = None
    dim_head: int | None = None
    image_size: int | tuple[int, int] | None = None
    pool: str | None = None
    step_size: float | None = None
    sparsity: float | None = None

    def refuse(self, what: str, *names: str) -> None:
        """Raise `ValueError` if one of `names` was given, because `what` has no such thing."""
        for name in names:
            if getattr(self, name) is not None:
                raise ValueError(f"{name}: this checkpoint is {what}, which has no such thing; leave it out")

    def ista(self, *, sparsity: float = 0.1) -> dict[str, Any]:
        """Step size and sparsity, published values where not said."""
        return {
            "step_size": 0.1 if self.step_size is None else self.step_size,
            "sparsity": sparsity if self.sparsity is None else self.sparsity,
        }


class Reader:
    """Takes tensors out of a published state dict, one after the other, and keeps account.

    Every tensor of the file must be taken, or be known to have no influence on what the published model computes
    (`ignore`): a tensor that is neither belongs to a model that we do not know.
    """

    def __init__(self, state: StateDict, layout: str) -> None:
        self.state, self.tensors, self.report = state, StateDict(), LoadReport(layout)

    def ignore(self, dead: dict[str, str]) -> None:
        """Leave out what is known to be dead: pattern of the keys -> why nothing depends on them."""
        for pattern, reason in dead.items():
            self.report.ignored |= {key: reason for key in self.state if fnmatchcase(key, pattern)}

    def ignore_copy(self, published: str, original: str) -> None:
        """Leave out a tensor that is tied to another one.

        Raises:
            ValueError: it differs from the other.
        """
        if published in self.state:
            if not torch.equal(self.state[published], self.state[original]):
                raise ValueError(f"checkpoint: {published} and {original} are one tensor where published; here not")
            self.report.ignored[published] = f"a copy of {original}"

    def ignore_causal_masks(self, pattern: str) -> None:
        """Leave out masks that language models keep as buffers: 1 where a token attends, `[1, 1, n, n]`.

        Raises:
            ValueError: one is another mask, or no mask.
        """
        for key in [key for key in self.state if fnmatchcase(key, pattern)]:
            mask = self.state[key]
            if mask.ndim != 4 or not torch.equal(mask != 0, torch.ones_like(mask, dtype=torch.bool).tril()):
                raise ValueError(f"checkpoint: {key} is no causal mask; no published model has it")
            self.report.ignored[key] = "the causal mask"

    def take(
        self, published: str, ours: str, how: Callable[[Tensor], Tensor] | None = None, *, optional: bool = False
    ) -> None:
        """Take a tensor under our name, changed by `how`.

        Raises:
            ValueError: it is not there.
        """
        if published in self.state:
            tensor = self.state[published]
            self.tensors[ours] = tensor if how is None else how(tensor).contiguous()
            self.report.mapped[published] = ours
        elif not optional:
            raise ValueError(
                f"checkpoint: {published} is missing; the file is no whole {self.report.layout} checkpoint"
            )

    def pair(self, published: str, ours: str, *, optional: bool = False) -> None:
        """Take `weight` and `bias`."""
        for kind in ("weight", "bias"):
            self.take(f"{published}.{kind}", f"{ours}.{kind}", optional=optional)

    def depth(self, prefix: str, separator: str = ".") -> int:
        """How many numbered layers there are under `prefix`."""
        numbers = {key.removeprefix(prefix).split(separator)[0] for key in self.state if key.startswith(prefix)}
        return 1 + max((int(number) for number in numbers if number.isdigit()), default=-1)

    def finish(self, model: nn.Module, options: Options, native: tuple[int, int] | None) -> nn.Module:
        """Copy everything taken into `model`, resample its positions if another size was asked for, and report.

        Raises:
            ValueError: shapes do not fit, the model has parameters that the file lacks, or the file has tensors that
                the model has no place for.
        """
        unknown = sorted(self.state.keys() - self.report.mapped.keys() - self.report.ignored.keys())
        if unknown:
            shown = ", ".join(unknown[:3]) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
            raise ValueError(
                f"checkpoint: {shown}: no published {self.report.layout} has this, and leaving it out would give "
                "another model than was trained; remove what is known to be of no influence, and load the rest"
            )
        fill(model, self.tensors, self.report)
        if self.report.missing:
            missing = ", ".join(self.report.missing[:3])
            raise ValueError(f"checkpoint: {missing} missing; the file is no whole {self.report.layout} checkpoint")
        if options.image_size is not None and native is not None:
            h, w = to_2tuple(options.image_size)
            if (h, w) != native:
                model.set_input_size(img_size=(h, w))  # type: ignore[operator]
                self.report.reshaped["pos_embed"] = f"resampled to {h} x {w} pixels"
        return model


def fill(model: nn.Module, tensors: StateDict, report: LoadReport) -> nn.Module:
    """Copy `tensors` (our names) into `model`, complete `report`, and attach it."""
    expected = model.state_dict()
    wrong = [
        f"{key} {list(t.shape)} for {list(expected[key].shape) if key in expected else 'nothing'}"
        for key, t in tensors.items()
        if key not in expected or expected[key].shape != t.shape
    ]
    if wrong:
        raise ValueError(f"checkpoint: shapes do not fit the model they imply: {', '.join(wrong)}")
    report.missing = sorted(expected.keys() - tensors.keys())
    model.load_state_dict(tensors, strict=False)
    check_finite_weights(model, "the file")
    model.load_report = report  # type: ignore[assignment]
    return model


def find_heads(options: Options, width: int, inner: int, published: dict[int, int]) -> tuple[int, int]:
    """Heads and their dimension, from what was said, or else from the published model of that width.

    Raises:
        ValueError: they cannot be known, or do not multiply to the projection's rows.
    """
    heads, dim_head = options.heads or published.get(width), options.dim_head
    if heads is None:
        raise ValueError(f"heads: the file does not tell, and width {width} is not a published one; give heads=")
    if dim_head is None and inner % heads:
        raise ValueError(f"heads={heads} does not divide the {inner} rows of the projection; give another, or dim_head")
    dim_head = dim_head or inner // heads
    if heads * dim_head != inner:
        raise ValueError(f"heads={heads} x dim_head={dim_head} is not the {inner} rows of the projection")
    return heads, dim_head


def find_grid(tokens: int, patch: int, image_size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns of the position table: square, unless `image_size` says which rectangle."""
    side = math.isqrt(tokens)
    if side**2 == tokens:
        return side, side
    if image_size is not None and not isinstance(image_size, int):
        rows, columns = image_size[0] // patch, image_size[1] // patch
        if rows * columns == tokens:
            return rows, columns
    raise ValueError(f"image_size: the {tokens} positions are no square; give the (height, width) it was trained at")


def find_patch(values: int) -> tuple[int, int]:
    """(channels, patch side) of a patch with that many values."""
    for channels in (3, 1):
        side = math.isqrt(values // channels)
        if channels * side**2 == values:
            return channels, side
    raise ValueError(f"checkpoint: a patch of {values} values is neither square RGB nor square grey")


def find_sizes(state: StateDict, key: str, dimensions: int) -> tuple[int, ...]:
    """The shape of a tensor that must have so many dimensions."""
    if state[key].ndim != dimensions:
        raise ValueError(f"checkpoint: {key} is {list(state[key].shape)}, but must have {dimensions} dimensions")
    return tuple(state[key].shape)


def third(part: int, t: Tensor) -> Tensor:
    """Query, key or value (0, 1, 2) of a stack of the three."""
    return t.chunk(3)[part]


def find_rows(state: StateDict, key: str) -> int:
    """The first size of a tensor that must be there."""
    if key not in state:
        raise ValueError(f"checkpoint: {key} is missing; the file is not a whole checkpoint")
    return state[key].shape[0]


def check_heads(options: Options, heads: int, dim_head: int) -> None:
    """Where the file tells the heads, refuse others."""
    if options.heads not in (None, heads) or options.dim_head not in (None, dim_head):
        raise ValueError(f"heads, dim_head: the file has {heads} x {dim_head}; leave them out")


@dataclass(frozen=True)
class Layout:
    """A published state-dict layout: keys that only it has (any of them), and what builds the model."""

    name: str
    markers: tuple[str, ...]
    build: Callable[[StateDict, Options], nn.Module]

    def matches(self, state: dict[str, Any]) -> bool:
        """Whether a state dict is in this layout."""
        return any(marker in state for marker in self.markers)
