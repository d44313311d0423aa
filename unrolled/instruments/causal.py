"""What places in a model cause: ablations of many places, attribution and path patching, the logit lens."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from unrolled.instruments.anatomy import find_stacks, unwrap
from unrolled.instruments.editing import Change, Edit, Places, edit, places_of
from unrolled.instruments.edits import patch, zero
from unrolled.instruments.readouts.probes import evaluating
from unrolled.instruments.regions.overlap import bootstrap_intervals
from unrolled.instruments.sites import first_tensor
from unrolled.instruments.trace import trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from unrolled.figures import HeatMap, LineChart

Score = Callable[[Any, Any], Tensor]
"""(what the model returns, the targets of the batch) -> one number a sample, [b]."""


@dataclass(frozen=True)
class Effect:
    """What changing one place did to the score.

    Attributes:
        name: the place.
        change: mean over samples of the score with the place changed, less the score without.
        low, high: 95 % bootstrap interval of `change` over samples.
        control: the same for a change in a random direction, as large at every token; NaN where none was asked for.
        samples: `change` of every sample.
    """

    name: str
    change: float
    low: float
    high: float
    control: float
    samples: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Effects(Sequence[Effect]):
    """Effects of many places on one score, in the order of the model.

    Attributes:
        rows: one a place.
        score: mean score of the unchanged model.
    """

    rows: tuple[Effect, ...]
    score: float

    def __getitem__(self, index: Any) -> Any:
        """One row by number or name, or several by a slice."""
        if isinstance(index, str):
            return next(row for row in self.rows if row.name == index)
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"Effects({len(self)} places, score {self.score:.4g} without a change)"

    def panel(self) -> HeatMap | LineChart:
        """Layers by heads as a heat map where the places are heads, else the changes along the places."""
        from unrolled.figures import HeatMap, LineChart, Series

        heads = [re.fullmatch(r"(.*block\d+)/attn/head(\d+)", row.name) for row in self.rows]
        if not all(heads):
            x = list(range(len(self)))
            series = [Series(label="removed", x=x, y=[row.change for row in self.rows])]
            if not np.isnan([row.control for row in self.rows]).any():
                series.append(Series(label="random", x=x, y=[row.control for row in self.rows], dashed=True))
            return LineChart(title="change of the score", x_label="place", series=series)
        places = [(match[1], int(match[2])) for match in heads if match]
        layers = list(dict.fromkeys(layer for layer, _ in places))
        values = np.full((len(layers), 1 + max(head for _, head in places)), np.nan)
        for (layer, head), row in zip(places, self.rows, strict=True):
            values[layers.index(layer), head] = row.change
        return HeatMap(
            title="change of the score without the head",
            values=values,
            rows=layers,
            columns=[str(head) for head in range(values.shape[1])],
            column_label="head",
            signed=True,
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw `panel`; see `unrolled.figures.Panel.plot`."""
        return self.panel().plot(ax)


def ablate(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    score: Score,
    places: str | Sequence[str] = "block*/attn/head*",
    *,
    change: Change = zero,
    control: bool = True,
    seed: int = 0,
    reuse: bool = True,
) -> Effects:
    """Change places one at a time and see what that does to a score.

    A place in block l leaves the blocks before it as they were: their outputs are kept from the unchanged pass and not
    computed again, which saves about half, and changes no bit of the result. Memory is that of one batch through all
    blocks.

    Args:
        model: any model that `unrolled.edit` takes; evaluated without gradients.
        batches: of (inputs, targets); inputs are given to the model, as keywords if they are a mapping.
        score: see `Score`.
        places: names of `unrolled.edit`, with wildcards.
        change: what is done to a place; zero by default.
        control: also change every place in a random direction, by as much at every token.
        seed: of the random directions and of the bootstrap.
        reuse: keep the outputs of earlier blocks; False computes everything every time.

    Raises:
        ValueError: no batch, a score that is not one number a sample, and what `unrolled.edit` refuses.
    """
    known = places_of(model)
    names = _named(known, model, places)
    samples: dict[tuple[str, bool], list[Tensor]] = {key: [] for key in product(names, (False, True))}
    plain: list[Tensor] = []
    with torch.no_grad(), evaluating(model):
        for inputs, targets in batches:
            with _Earlier(model, reuse) as earlier:
                before = _scores(score, _call(model, inputs), targets)
                earlier.keep()
                start = sum(map(len, plain))
                plain.append(before)
                for place, random in product(names, (False, True) if control else (False,)):
                    act = _AsLarge(change, seed, start).bind(place) if random else change
                    with earlier.skip_to(place), Edit(model, {place: act}, places=known):
                        after = _scores(score, _call(model, inputs), targets)
                    samples[place, random].append(after - before)
    if not plain:
        raise ValueError("batches: holds none; give at least one (inputs, targets)")
    table = np.stack([torch.cat(samples[name, False]).numpy() for name in names], axis=1)  # [samples, places]
    low, high = bootstrap_intervals(table, seed=seed)
    others = [float(torch.cat(samples[name, True]).mean()) if control else float("nan") for name in names]
    means = table.mean(0)
    rows = [
        Effect(name, float(means[i]), float(low[i]), float(high[i]), others[i], table[:, i])
        for i, name in enumerate(names)
    ]
    return Effects(tuple(rows), float(torch.cat(plain).mean()))


def patching(
    model: nn.Module,
    clean: Any,
    corrupted: Any,
    score: Callable[[Any], Tensor],
    places: str | Sequence[str] = ("block??", "block*/attn", "block*/mlp", "block*/ista"),
) -> dict[str, float]:
    """How much of the clean run's score each place brings back when it is patched into the corrupted run.

    Args:
        model: any model that `unrolled.edit` takes.
        clean, corrupted: two inputs of one shape.
        score: number, or one a sample, of what the model returns.
        places: names of `unrolled.edit`.

    Returns:
        (patched - corrupted) / (clean - corrupted) of each place: 1 where it brings back everything.

    Raises:
        ValueError: both runs have the same score.
    """
    known = places_of(model)
    names = _named(known, model, places)
    with torch.no_grad(), evaluating(model):
        with trace(model, heads=True) as source:
            best = float(score(_call(model, clean)).mean())
        with _Earlier(model, True) as earlier:
            worst = float(score(_call(model, corrupted)).mean())
            earlier.keep()
            if best == worst:
                raise ValueError(f"clean, corrupted: both score {best:g}, so there is nothing to bring back")
            out = {}
            for place in names:
                with earlier.skip_to(place), Edit(model, {place: patch(source)}, places=known):
                    out[place] = (float(score(_call(model, corrupted)).mean()) - worst) / (best - worst)
    return out


def attribution(
    model: nn.Module,
    clean: Any,
    corrupted: Any,
    score: Callable[[Any], Tensor],
    places: str | Sequence[str] = ("block??", "block*/attn", "block*/mlp", "block*/ista"),
) -> dict[str, float]:
    """`patching` to first order, all places in two forward passes and one backward: gradient times difference.

    Returns:
        The change of the mean score that patching each place would make if the score were linear in it.
    """
    wanted = [places] if isinstance(places, str) else list(places)
    readable = [name for name in trace(model).names if any(fnmatchcase(name, pattern) for pattern in wanted)]
    patterns = readable or wanted  # where none is, trace says what is near
    with evaluating(model):
        with torch.no_grad(), trace(model, patterns=patterns) as source:
            _call(model, clean)
        with torch.enable_grad(), trace(model, patterns=patterns, grad=True) as here:
            value = score(_call(model, corrupted)).mean()
        names = [name for name in here if here[name].requires_grad]
        gradients = torch.autograd.grad(value, [here[name] for name in names], allow_unused=True)
    return {
        name: 0.0 if g is None else float((g * (source[name] - here[name].detach())).sum())
        for name, g in zip(names, gradients, strict=True)
    }


def path_patching(
    model: nn.Module,
    clean: Any,
    corrupted: Any,
    score: Callable[[Any], Tensor],
    sender: str,
    receivers: Sequence[str],
) -> float:
    """What `sender` does to the score through `receivers` alone: the change of the mean score.

    The sender is patched from the clean run into the corrupted one while every other half of a block, but for the
    receivers, stays as it was; what the receivers then are is patched into a run of its own.

    Raises:
        ValueError: a receiver that the sender does not come before.
    """
    halves = [n for n in places_of(model) if re.fullmatch(r".*block\d+/(attn|mlp|ista)", n)]
    for receiver in receivers:
        if _order(receiver) <= _order(sender):
            raise ValueError(f"receivers: {receiver} does not come after {sender}")
    with torch.no_grad(), evaluating(model):
        with trace(model, heads=True) as source:
            _call(model, clean)
        with trace(model, heads=True) as base:
            before = float(score(_call(model, corrupted)).mean())
        frozen = [n for n in halves if n not in receivers and not sender.startswith(n) and not _inside(n, receivers)]
        last = max(map(_order, receivers))
        held: dict[str, Change] = {name: patch(base) for name in frozen if _order(name) <= last}
        with edit(model, {**held, sender: patch(source)}), trace(model, heads=True) as through:
            _call(model, corrupted)
        with edit(model, {receiver: patch(through) for receiver in receivers}):
            return float(score(_call(model, corrupted)).mean()) - before


def logit_lens(model: nn.Module, inputs: Any) -> dict[str, Tensor]:
    """What the head would say of the tokens between the blocks: logits of every `embed` and `blockNN`.

    Args:
        model: a classifier of timm (`forward_head` after the final norm), or a language model with a final norm and a
            head.
        inputs: given to the model, as keywords if they are a mapping.

    Raises:
        ValueError: the model has no head that tokens can be given.
    """
    inner: Any = unwrap(model)
    with torch.no_grad(), evaluating(model):
        with trace(model) as t:
            _call(model, inputs)
        tokens = {name: t[name] for name in t if re.fullmatch(r"embed|block\d+", name)}
        norm = next((module for name, module in _finals(inner) if name == "norm"), nn.Identity())
        head = next((module for name, module in _finals(inner) if name == "head"), None)
        if head is None or not tokens:
            raise ValueError("model: has no single stack of blocks with a head that reads its tokens")
        if callable(getattr(inner, "forward_head", None)):
            return {name: inner.forward_head(norm(z)) for name, z in tokens.items()}
        return {name: head(norm(z)) for name, z in tokens.items()}


def _finals(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    from unrolled.instruments.anatomy import final_sites

    yield from final_sites(model, find_stacks(model))


def _order(name: str) -> tuple[int, int]:
    """Where a place stands in its stack: by block, then attention, then the second half, then the whole block."""
    match = re.search(r"block(\d+)(?:/(attn|half|mlp|ista))?", name)
    if match is None:
        return (-1, 0)
    return int(match[1]), {"attn": 0, "half": 1, "mlp": 2, "ista": 2, None: 3}[match[2]]


def _inside(name: str, receivers: Sequence[str]) -> bool:
    return any(receiver.startswith(f"{name}/") for receiver in receivers)


def _named(known: Places, model: nn.Module, places: str | Sequence[str]) -> list[str]:
    patterns = [places] if isinstance(places, str) else list(places)
    names = [name for name in known if any(fnmatchcase(name, pattern) for pattern in patterns)]
    if not names:
        edit(model, dict.fromkeys(patterns, zero))  # says what is near
        raise ValueError(f"places: {', '.join(patterns)} match nothing")
    return sorted(names, key=_order)


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def _scores(score: Score, output: Any, targets: Any) -> Tensor:
    values = torch.as_tensor(score(output, targets)).detach().double().cpu()
    if values.dim() != 1:
        raise ValueError(f"score: must return one number a sample, [b], not {list(values.shape)}")
    return values


@dataclass(frozen=True)
class _AsLarge:
    """A change in a random direction, as large at every token as another change is there."""

    change: Change
    seed: int
    start: int = 0
    """Number of the first sample: each has directions of its own, whatever batch it is in."""

    def bind(self, name: str) -> Change:
        bind = getattr(self.change, "bind", None)
        change = self.change if bind is None else bind(name)

        def act(x: Tensor) -> Tensor:
            moved = change(x) - x
            seeds = np.random.SeedSequence(self.seed).generate_state(self.start + len(x), np.uint64)[self.start :]
            generators = (torch.Generator().manual_seed(int(each >> np.uint64(1))) for each in seeds)
            noise = torch.stack([torch.randn(x.shape[1:], generator=each) for each in generators]).to(x)
            if x.dim() < 3:  # codes of one atom: only the sign is random
                return x + moved.abs() * noise.sign()
            size = noise.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
            return x + noise * (moved.norm(dim=-1, keepdim=True) / size)

        return act


class _Earlier:
    """Outputs of the blocks in one forward pass, which stand in for the blocks before a place that is changed."""

    def __init__(self, model: nn.Module, reuse: bool) -> None:
        self._stacks = find_stacks(unwrap(model)) if reuse else []
        self._outputs: dict[nn.Module, Any] = {}
        self._recording = ExitStack()

    def __enter__(self) -> _Earlier:
        def remember(block: nn.Module, args: Any, output: Any) -> None:
            self._outputs[block] = output

        for stack in self._stacks:
            for _, block in stack.blocks:
                handle = block.register_forward_hook(remember)
                self._recording.callback(handle.remove)
        return self

    def __exit__(self, *error: object) -> None:
        self._recording.close()
        self._outputs.clear()

    def keep(self) -> None:
        """What ran so far is the unchanged pass."""
        self._recording.close()

    @contextmanager
    def skip_to(self, place: str) -> Iterator[None]:
        """Within the block, blocks of the place's stack before it return what they returned."""
        with ExitStack() as restored:
            for stack in self._stacks:
                names = [stack.name(index) for index in range(len(stack.blocks))]
                here = next((i for i, name in enumerate(names) if place == name or place.startswith(f"{name}/")), 0)
                for _, block in stack.blocks[:here]:
                    if block in self._outputs and first_tensor(self._outputs[block]) is not None:
                        block.forward = _returning(self._outputs[block])  # type: ignore[method-assign]
                        restored.callback(delattr, block, "forward")
            yield


def _returning(output: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: output
