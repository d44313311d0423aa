"""Change many places one at a time and see what that does to a score: ablations, and patches from another run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unrolled.instruments.causal.effects import Effects
from unrolled.instruments.causal.prefix import Prefix
from unrolled.instruments.causal.scores import check_read
from unrolled.instruments.causal.spots import HALVES, Positions, Spot, at_positions, spots_of
from unrolled.instruments.causal.store import ScoreStore
from unrolled.instruments.editing import Change, Edit, Places, places_of
from unrolled.instruments.edits import bound, patch, zero
from unrolled.instruments.features.extraction import tensors_checksum, weights_checksum
from unrolled.modes import evaluating

Score = Callable[[Any, Any], Tensor]
"""(what the model returns, the targets of the batch) -> one number a sample, [b]."""
PLAIN, CLEAN = "= unchanged", "= clean"  # where scores of no place are kept


def ablate(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    score: Score,
    places: str | Sequence[str] = "block*/attn/head*",
    *,
    change: Change = zero,
    positions: Positions = None,
    control: bool = True,
    seed: int = 0,
    reuse: bool = True,
    store: ScoreStore | None = None,
) -> Effects:
    """Change places one at a time and see what that does to a score.

    What comes before a place is as it was and not computed again, which saves about half, and changes no bit of the
    result. Memory is that of one batch through all blocks, and a number for each sample and place.

    Args:
        model: any model that `unrolled.edit` takes; evaluated without gradients.
        batches: of (inputs, targets); inputs are given to the model, as keywords if they are a mapping.
        score: see `Score`; `scores` has the usual ones.
        places: names of `unrolled.edit`, with wildcards, and `blockNN/subspaceK`: what the tokens that enter a block
            have in the subspace of one of its heads.
        change: what is done to a place; zero by default.
        positions: see `Positions`.
        control: also change every place in a random direction, by as much at every token.
        seed: of the random directions and of the bootstrap.
        reuse: keep what comes before a place; False computes everything every time.
        store: where scores are kept as they are found, so that a sweep that was stopped goes on.

    Raises:
        ValueError: no batch, a score that is not one number a sample, no such position, and what `unrolled.edit`
            refuses.
    """
    sweep = _Sweep(model, score, places, positions, control, seed, reuse, store)
    with torch.no_grad(), evaluating(model):
        for inputs, targets in batches:
            sweep.add(inputs, targets, change)
    return sweep.effects()


def patching(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any, Any]],
    score: Score,
    places: str | Sequence[str] = HALVES,
    *,
    positions: Positions = None,
    control: bool = True,
    seed: int = 0,
    reuse: bool = True,
    store: ScoreStore | None = None,
) -> Effects:
    """Activation patching: bring what the clean run has in a place into the corrupted run, one place at a time.

    Args:
        batches: of (clean inputs, corrupted inputs of the same shape, targets).
        model, score, places, positions, control, seed, reuse, store: as in `ablate`. The control moves the place as far
            as the patch does at every token, in a random direction.

    Returns:
        The change of the score of the corrupted run by each patch, and its share of the difference of the runs.

    Raises:
        ValueError: as `ablate`; inputs of two shapes.
    """
    sweep = _Sweep(model, score, places, positions, control, seed, reuse, store)
    with torch.no_grad(), evaluating(model):
        for clean, corrupted, targets in batches:
            sweep.add(corrupted, targets, None, clean=clean)
    return sweep.effects()


class Scores:
    """The scores of a sweep by batch and place, as they are kept.

    Args:
        model: which they are of.
        store: where they are.
    """

    def __init__(self, model: nn.Module, store: ScoreStore) -> None:
        self._model, self._store = model, store
        self.batch = -1
        """Number of the batch that is looked at."""

    def has(self, inputs: Any, others: Any, targets: Any, names: Iterable[str], random: Iterable[str] = ()) -> bool:
        """Go to the next batch, which is checked to be the one it was; whether all of its scores are known."""
        self.batch += 1
        self._store.check(self.batch, lambda: tensors_checksum(_tensors((self._weights, inputs, others, targets))))
        return all(self.known(name) for name in names) and all(self.known(name, True) for name in random)

    def known(self, name: str, random: bool = False) -> bool:
        """Whether the scores of a place are known for this batch."""
        return self._store.has(self.batch, name, random)

    def add(self, name: str, values: np.ndarray, random: bool = False) -> None:
        """Keep the scores of a place for this batch."""
        self._store.add(self.batch, name, random, values)

    def count(self) -> int:
        """How many samples this batch has."""
        return len(self._store.get(self.batch, PLAIN))

    def column(self, name: str, random: bool = False) -> np.ndarray:
        """The scores of a place for all samples.

        Raises:
            ValueError: there was no batch.
        """
        if self.batch < 0:
            raise ValueError("batches: holds none; give at least one")
        return np.concatenate([self._store.get(number, name, random) for number in range(self.batch + 1)])

    @cached_property
    def _weights(self) -> str:
        return weights_checksum(self._model)


class _Sweep:
    """One sweep, batch by batch."""

    def __init__(
        self, model: nn.Module, score: Score, places: str | Sequence[str], positions: Positions, control: bool,
        seed: int, reuse: bool, store: ScoreStore | None,
    ) -> None:  # fmt: skip
        self._model, self._score, self._positions = model, score, positions
        self._control, self._seed, self._reuse = control, seed, reuse
        self._scores = Scores(model, ScoreStore() if store is None else store)
        self._places = places_of(model)
        self._wide = spots_of(model, self._places, places)
        self._spots: list[Spot] = self._wide if positions is None else []
        self._start = 0
        self._patches = False

    def add(self, inputs: Any, targets: Any, change: Change | None, clean: Any = None) -> None:
        """Change every spot in one batch; what is kept of it is not computed again."""
        self._patches = clean is not None
        names = [spot.name for spot in self._spots]
        whole = [PLAIN, CLEAN] if self._patches else [PLAIN]
        done = self._scores.has(inputs, clean, targets, [*whole, *names], names if self._control else ())
        if not done or not self._spots:
            self._run(inputs, targets, change, clean)
        self._start += self._scores.count()

    def _run(self, inputs: Any, targets: Any, change: Change | None, clean: Any) -> None:
        source: Mapping[str, Tensor] = {}
        if clean is not None:
            out, source = values_at(self._model, self._places, {spot.place for spot in self._wide}, clean)
            self._scores.add(CLEAN, scores_of(self._score, out, targets, clean))
        with Prefix(self._model, self._reuse) as prefix:
            with _counted(self._model, self._places, self._positions) as tokens:
                before = scores_of(self._score, call(self._model, inputs), targets, inputs)
            prefix.keep()
            if tokens:
                spots = at_positions(self._wide, self._positions, tokens[0])
                if self._spots and len(spots) != len(self._spots):
                    raise ValueError("positions: samples have different numbers of tokens; name those to change")
                self._spots = spots
            self._scores.add(PLAIN, before)
            for spot in self._spots:
                act = spot.change(patch(source) if change is None else change)
                for random in (False, True) if self._control else (False,):
                    if self._scores.known(spot.name, random):
                        continue
                    doing = AsLarge(act, self._seed, self._start) if random else act
                    with (
                        prefix.before(spot.place, self._places[spot.place][0], doing) as made,
                        Edit(self._model, {spot.place: made}, places=self._places),
                    ):
                        after = scores_of(self._score, call(self._model, inputs), targets, inputs)
                    self._scores.add(spot.name, after - before, random)

    def effects(self) -> Effects:
        """All samples together."""
        plain = self._scores.column(PLAIN)
        names = [spot.name for spot in self._spots]
        controls = {name: self._scores.column(name, True) for name in names} if self._control else {}
        goal = self._scores.column(CLEAN) if self._patches else None
        changes = {name: self._scores.column(name) for name in names}
        return Effects.of(changes, controls, plain, goal, seed=self._seed)


@contextmanager
def _counted(model: nn.Module, known: Places, positions: Positions) -> Iterator[list[int]]:
    """How many tokens enter the blocks, in a list, where positions are asked for."""
    counts: list[int] = []
    if positions is None:
        yield counts
        return
    place = next((name for name in known if name.endswith("embed")), None)
    if place is None:
        raise ValueError("positions: this model has no stack of blocks that tokens enter")

    def count(x: Tensor) -> Tensor:
        counts.append(x.shape[1])
        return x

    with Edit(model, {place: count}, places=known):
        yield counts


def values_at(
    model: nn.Module, known: Places, places: Iterable[str], inputs: Any, *, leaves: bool = False
) -> tuple[Any, PlaceValues]:
    """What the model returns, and what it has in places of `unrolled.edit`; as leaves or nodes of a graph."""
    targets = {id(known[place][0]): known[place][0] for place in places}
    values: dict[int, Tensor] = {}

    def reading(key: int) -> Change:
        def read(x: Tensor) -> Tensor:
            if leaves:
                x = x.clone() if x.requires_grad else x.detach().clone().requires_grad_()
            values[key] = x
            return x

        return read

    whole: Places = {str(key): (target, None) for key, target in targets.items()}
    with Edit(model, {str(key): reading(key) for key in targets}, places=whole):
        out = call(model, inputs)
    return out, PlaceValues(known, values)


class PlaceValues(Mapping[str, Tensor]):
    """Tensors by the names of places, read from the whole ones that they are parts of.

    Attributes:
        whole: those, by the id of their target.
    """

    def __init__(self, known: Places, whole: Mapping[int, Tensor]) -> None:
        self._known, self.whole = known, whole

    def __getitem__(self, name: str) -> Tensor:
        target, part = self._known[name]
        value = self.whole[id(target)]
        return value if part is None else value[..., part]

    def __iter__(self) -> Iterator[str]:
        return (name for name, (target, _) in self._known.items() if id(target) in self.whole)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def call(model: nn.Module, inputs: Any) -> Any:
    """What a model returns: inputs by keyword if they are a mapping, by position if they are a tuple."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def _tensors(value: Any) -> Iterator[tuple[str, Tensor]]:
    """What a batch is made of."""
    if isinstance(value, Tensor):
        yield "", value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from ((f"{name}/{inner}", tensor) for inner, tensor in _tensors(part))
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif value is not None:
        yield repr(value), torch.zeros(0)


def scores_of(score: Score, output: Any, targets: Any, inputs: Any) -> np.ndarray:
    """The scores of a batch; see `as_scores`.

    Raises:
        ValueError: it reads the last position, and there is padding.
    """
    check_read(score, output, inputs)
    return as_scores(score(output, targets))


def as_scores(values: Any) -> np.ndarray:
    """What a score returned, float64 [b].

    Raises:
        ValueError: it is not one number a sample.
    """
    scores = torch.as_tensor(values).detach().double().cpu()
    if scores.dim() != 1:
        raise ValueError(f"score: must return one number a sample, [b], not {list(scores.shape)}")
    return np.asarray(scores.numpy())


@dataclass(frozen=True)
class AsLarge:
    """A change in a random direction, as large at every token as another change is there."""

    change: Change
    seed: int
    start: int = 0
    """Number of the first sample: each has directions of its own, whatever batch it is in."""

    def bind(self, name: str) -> Change:
        """The change for a place."""
        return AsLarge(bound(self.change, name), self.seed, self.start)

    def __call__(self, x: Tensor) -> Tensor:
        """`x`, moved."""
        moved = self.change(x) - x
        seeds = np.random.SeedSequence(self.seed).generate_state(self.start + len(x), np.uint64)[self.start :]
        generators = (torch.Generator().manual_seed(int(each >> np.uint64(1))) for each in seeds)
        noise = torch.stack([torch.randn(x.shape[1:], generator=each) for each in generators]).to(x)
        if x.dim() < 3:  # codes of one atom: only the sign is random
            return x + moved.abs() * noise.sign()
        size = noise.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        return x + noise * (moved.norm(dim=-1, keepdim=True) / size)
