"""Batches whose content is a function of the seed and the step alone.

The order of epoch e is `source.order(seed, e)`; step s of it is one slice, and the random draws for image i come from
(seed, e, i), or (seed, i) for mirrors that alternate. Nothing depends on workers, on the number of processes or on
where a run was resumed.

Three ways to the same batch, chosen by source and transform, never by chance:
- pixels: small images kept decoded, the whole batch cropped, flipped and normalised at once;
- cached: small images under a transform without chance, transformed once and then indexed;
- one by one: everything else, in this process or in workers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count as counter
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from unrolled.data.sources import BadImage, ImageSource, Picture
from unrolled.data.transforms import ImageTransform, TransformSpec
from unrolled.errors import TrainingStopped

OnError = Literal["raise", "skip"]
Transform = Callable[[Picture], Tensor]

_CACHED = 256 * 2**20  # bytes of transformed images that are kept


@dataclass
class Batch:
    """Images of one step, on the CPU.

    Attributes:
        images: float32 [b, c, h, w].
        labels: int64 [b].
        indices: int64 [b], into the source.
        skipped: names of the images left out of this batch because they could not be used, with the reason.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    skipped: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Batch:
        """The batch with images and labels on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


def steps_per_epoch(source: ImageSource, batch_size: int) -> int:
    """Whole batches in one pass. The rest of a pass is left out; another order leaves out others in the next one.

    Raises:
        ValueError: `batch_size` is not positive or exceeds the number of images.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
    if batch_size > len(source):
        raise ValueError(
            f"batch_size: {batch_size} is more than the {len(source)} images of {source.description or 'the source'}; "
            f"use at most {len(source)}"
        )
    return len(source) // batch_size


def train_loader(
    source: ImageSource,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    steps: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    on_error: OnError = "raise",
    alternate_flip: bool = False,
) -> Iterator[Batch]:
    """Training batches from `start_step` on, epoch after epoch.

    Args:
        source: the training images.
        transform: from `train_transform`, or any callable on a picture that draws from the global generators.
        batch_size: images per step over all processes; a multiple of `world_size`.
        seed: fixes order and augmentation together with the step.
        start_step: the first step to yield; the batches are those an uninterrupted run would see.
        steps: how many batches to yield; None: no end.
        rank, world_size: this process takes every `world_size`-th image of the batch.
        workers: loader processes. Ignored where the images are kept in memory, which is faster.
        on_error: stop at an image that cannot be used, or leave it out and name it in `Batch.skipped`.
        alternate_flip: mirror half of the images, drawn by `seed`, in even epochs and the others in odd ones, after
            `transform`, which should mirror none.

    Raises:
        ValueError: an argument out of range, or (while iterating) a label outside the classes.
        TrainingStopped: while iterating: an unusable image with on_error "raise", or no usable image in this process's
            share of a batch.
    """
    per_epoch = steps_per_epoch(source, batch_size)
    _check(source, seed=seed, rank=rank, world_size=world_size, workers=workers, on_error=on_error)
    if batch_size % world_size:
        raise ValueError(f"batch_size: {batch_size} images cannot be shared evenly by {world_size} processes")
    if start_step < 0 or (steps is not None and steps < 0):
        raise ValueError(f"start_step and steps must be 0 or more, not {start_step} and {steps}")
    plan = _TrainPlan(source, seed, batch_size, per_epoch, rank, world_size)
    wanted: Iterable[int] = counter(start_step) if steps is None else range(start_step, start_step + steps)
    mirrors = _mirrors(len(source), seed) if alternate_flip else None
    return _iterate(_Steps(source, transform, plan, seed, on_error, mirrors), wanted, workers)


def _mirrors(count: int, seed: int) -> np.ndarray:
    """Which images are mirrored in even epochs, bool [count]."""
    return np.random.default_rng(np.random.SeedSequence((seed, 0, 5))).random(count) < 0.5


def eval_loader(
    source: ImageSource,
    transform: Transform,
    *,
    batch_size: int,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    on_error: OnError = "raise",
) -> Iterator[Batch]:
    """Every image once, in order; the last batch may be smaller.

    Each process gets every `world_size`-th image of each batch, none twice, and as many batches as the others. A batch
    may therefore be empty, images [0, c, h, w]: where the last one has fewer images than there are processes, and where
    all its images were skipped. Other arguments and errors as in `train_loader`.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
    _check(source, seed=0, rank=rank, world_size=world_size, workers=workers, on_error=on_error)
    plan = _EvalPlan(len(source), batch_size, rank, world_size)
    wanted = range(-(-len(source) // batch_size))
    return _iterate(_Steps(source, transform, plan, 0, on_error), wanted, workers)


def _check(source: ImageSource, *, seed: int, rank: int, world_size: int, workers: int, on_error: str) -> None:
    if len(source) == 0:
        raise ValueError(f"{source.description or 'the source'} has no images")
    if seed < 0 or workers < 0:
        raise ValueError(f"seed and workers must be 0 or more, not {seed} and {workers}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must lie in 0..world_size - 1, not {rank} of {world_size}")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error must be 'raise' or 'skip', not {on_error!r}")


@dataclass
class _TrainPlan:
    """Step -> epoch and this process's share of the global batch."""

    source: ImageSource
    seed: int
    batch_size: int
    per_epoch: int
    rank: int
    world_size: int
    _epoch: int = -1
    _order: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def __call__(self, step: int) -> tuple[int, np.ndarray]:
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self.source.order(self.seed, epoch)
        start = position * self.batch_size
        return epoch, self._order[start + self.rank : start + self.batch_size : self.world_size]


@dataclass
class _EvalPlan:
    """As `_TrainPlan`, in order and once."""

    count: int
    batch_size: int
    rank: int
    world_size: int

    def __call__(self, step: int) -> tuple[int, np.ndarray]:
        start = step * self.batch_size
        stop = min(start + self.batch_size, self.count)
        return 0, np.arange(start + self.rank, stop, self.world_size)


class _Steps(Dataset):
    """Batches by step number; what loader processes are given."""

    def __init__(
        self,
        source: ImageSource,
        transform: Transform,
        plan: _TrainPlan | _EvalPlan,
        seed: int,
        on_error: OnError,
        mirrors: np.ndarray | None = None,
    ) -> None:
        self.source = source
        self.transform = transform
        self.plan = plan
        self.seed = seed
        self.on_error = on_error
        self.mirrors = mirrors
        self.gather = _gatherer(source, transform, seed)

    def __getitem__(self, step: int) -> Batch | Exception:
        try:
            return self.batch(step)
        except (TrainingStopped, ValueError) as error:
            return error  # crosses a process border as it is, and is raised when its turn comes

    def batch(self, step: int) -> Batch:
        epoch, indices = self.plan(step)
        if len(indices) == 0:
            return self._empty([])
        images, labels, bad = self.gather(indices, epoch)
        if self.mirrors is not None:
            mirrored = torch.from_numpy(self.mirrors[indices] != bool(epoch % 2))
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        outside = np.flatnonzero((labels < 0) | (labels >= len(self.source.classes)))
        for position in outside:
            if position not in bad:
                raise ValueError(
                    f"label {labels[position]} of {self.source.name(int(indices[position]))} is outside the "
                    f"{len(self.source.classes)} classes; correct the label or the list of classes"
                )
        if not bad:
            return Batch(images, torch.from_numpy(labels), torch.from_numpy(indices.astype(np.int64)))
        named = [f"{self.source.name(int(indices[p]))} (index {indices[p]}): {bad[p]}" for p in sorted(bad)]
        if self.on_error == "raise":
            more = f" (and {len(named) - 1} more in this batch)" if len(named) > 1 else ""
            raise TrainingStopped(
                f"batch {step}: unusable image {named[0]}{more}; repair or remove it, or choose on_error='skip'"
            )
        good = np.array([p for p in range(len(indices)) if p not in bad], np.int64)
        if len(good) == 0:
            if isinstance(self.plan, _EvalPlan):
                return self._empty(named)
            raise TrainingStopped(
                f"batch {step}: none of its {len(indices)} images can be used; the first is {named[0]}"
            )
        return Batch(
            images[torch.from_numpy(good)],
            torch.from_numpy(labels[good]),
            torch.from_numpy(indices[good].astype(np.int64)),
            named,
        )

    def _empty(self, skipped: list[str]) -> Batch:
        size = self.transform.spec.input_size if isinstance(self.transform, ImageTransform) else (0, 0, 0)
        none = torch.zeros(0, dtype=torch.long)
        return Batch(torch.zeros((0, *size)), none, none.clone(), skipped)


# images [b, c, h, w] (rows of bad ones undefined), labels int64 [b], {position: reason} of the bad ones
_Gathered = tuple[Tensor, np.ndarray, dict[int, str]]


def _gatherer(source: ImageSource, transform: Transform, seed: int) -> _OneByOne | _Pixels | _Cached:
    if isinstance(transform, ImageTransform):
        if transform.spec.batchable(source.native_size) and source.in_memory():
            return _Pixels(source, transform, seed)
        size = len(source) * int(np.prod(transform.spec.input_size)) * 4
        if transform.spec.deterministic and size <= _CACHED and source.in_memory():
            return _Cached(source, transform)
    return _OneByOne(source, transform, seed)


class _OneByOne:
    in_process = False

    def __init__(self, source: ImageSource, transform: Transform, seed: int) -> None:
        self.source, self.transform, self.seed = source, transform, seed

    def __call__(self, indices: np.ndarray, epoch: int) -> _Gathered:
        tensors: list[Tensor | None] = []
        labels = np.zeros(len(indices), np.int64)
        bad: dict[int, str] = {}
        with _own_generators() as seed_generators:
            for position, index in enumerate(indices):
                seed_generators((self.seed, epoch, int(index), 3))
                try:
                    picture, labels[position] = self.source.load(int(index))
                    tensors.append(self.transform(picture))
                except BadImage as error:
                    bad[position] = str(error)
                    tensors.append(None)
        filler = next((torch.zeros_like(t) for t in tensors if t is not None), torch.zeros(0))
        return torch.stack([filler if t is None else t for t in tensors]), labels, bad


class _Pixels:
    in_process = True

    def __init__(self, source: ImageSource, transform: ImageTransform, seed: int) -> None:
        assert source.labels is not None
        self.source, self.transform, self.seed, self.labels = source, transform, seed, source.labels
        self._epoch = -1
        self._crops: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def __call__(self, indices: np.ndarray, epoch: int) -> _Gathered:
        pixels, bad = self.source.take(indices)
        pad = self.transform.spec.pad_crop
        crops = None
        if self.transform.spec.augment and pad is not None:
            if epoch != self._epoch or self._crops is None:
                # one draw for every image of the epoch, so that an image's crop does not depend on its batch
                rng = np.random.default_rng(np.random.SeedSequence((self.seed, epoch, 4)))
                n = len(self.source)
                offsets = rng.integers(0, 2 * pad + 1, (2, n))
                self._epoch, self._crops = epoch, (offsets[0], offsets[1], rng.random(n) < self.transform.spec.hflip)
            rows, columns, flips = self._crops
            crops = rows[indices], columns[indices], flips[indices]
        return self.transform.batch(pixels, crops), self.labels[indices], bad


_tensors: WeakKeyDictionary[ImageSource, dict[TransformSpec, tuple[Tensor, np.ndarray, dict[int, str]]]]
_tensors = WeakKeyDictionary()


class _Cached:
    in_process = True

    def __init__(self, source: ImageSource, transform: ImageTransform) -> None:
        assert source.labels is not None
        self.source, self.transform, self.labels = source, transform, source.labels
        cached = _tensors.setdefault(source, {})
        if transform.spec not in cached:
            room = torch.zeros((len(source), *transform.spec.input_size))
            cached[transform.spec] = room, np.zeros(len(source), bool), {}
        self.images, self.ready, self.bad = cached[transform.spec]

    def __call__(self, indices: np.ndarray, epoch: int) -> _Gathered:
        for index in indices[~self.ready[indices]]:
            try:
                self.images[index] = self.transform(self.source.load(int(index))[0])
            except BadImage as error:
                self.bad[int(index)] = str(error)
            self.ready[index] = True
        bad = {p: self.bad[int(i)] for p, i in enumerate(indices) if int(i) in self.bad} if self.bad else {}
        return self.images[torch.from_numpy(indices)], self.labels[indices], bad


@contextmanager
def _own_generators() -> Iterator[Callable[[Sequence[int]], None]]:
    """Python's, NumPy's and torch's CPU generators may be seeded inside; outside they go on as if nothing happened."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()

    def seed_generators(words: Sequence[int]) -> None:
        first, second, third = np.random.SeedSequence(tuple(words)).generate_state(3)
        random.seed(int(first))
        np.random.seed(int(second))
        torch.default_generator.manual_seed(int(third))  # not torch.manual_seed, which reseeds accelerators too

    try:
        yield seed_generators
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _as_it_is(item: Any) -> Any:
    return item


class _StepSampler(Sampler[int]):
    def __init__(self, steps: Iterable[int]) -> None:
        self._steps = steps

    def __iter__(self) -> Iterator[int]:
        return iter(self._steps)


def _iterate(steps: _Steps, wanted: Iterable[int], workers: int) -> Iterator[Batch]:
    if workers == 0 or steps.gather.in_process:
        for step in wanted:
            yield steps.batch(step)
        return
    # a generator of its own: DataLoader would otherwise draw from, and so disturb, the caller's
    loader = DataLoader(
        steps,
        batch_size=None,
        sampler=_StepSampler(wanted),
        num_workers=workers,
        collate_fn=_as_it_is,
        generator=torch.Generator(),
    )
    for item in loader:
        if isinstance(item, Exception):
            raise item
        yield item
