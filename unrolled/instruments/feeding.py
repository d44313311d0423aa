"""Models run over samples in fixed memory: batches of images or of token ids in, means and their spread out."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unrolled.modes import evaluating

CHUNK = 32
_IDS = ("input_ids", "tokens")
_TOWERS_OF_IMAGES = ("vision", "visual", "image")


@dataclass(frozen=True)
class Shown:
    """One batch that a model is shown: images, or token ids with what else it takes by name."""

    first: Tensor | None
    """Given by position."""
    named: dict[str, Tensor] = field(default_factory=dict)

    @property
    def _any(self) -> Tensor:
        return next(iter(self.named.values())) if self.first is None else self.first

    @property
    def of_text(self) -> bool:
        """Whether these are token ids."""
        return self.first is None or not self.first.is_floating_point()

    def __len__(self) -> int:
        return len(self._any)

    def mask(self, stack: str) -> Tensor | None:
        """Which tokens of a stack of blocks count, bool `[b, n]`; None: all. `stack` is its prefix in a trace."""
        if any(word in stack for word in _TOWERS_OF_IMAGES):
            return None
        mask = self.named.get("decoder_attention_mask" if stack.startswith("decoder") else "attention_mask")
        return None if mask is None else mask.bool()

    def split(self, size: int) -> Iterator[Shown]:
        """Batches of at most `size` samples."""
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            first = None if self.first is None else self.first[rows]
            yield Shown(first, {name: value[rows] for name, value in self.named.items()})

    def run(self, model: nn.Module) -> None:
        """One forward pass, on the device and, of images, in the dtype of the model; nothing is cached."""
        weight = next((p for p in model.parameters() if p.is_floating_point()), self._any)

        def moved(value: Tensor) -> Tensor:
            value = value.to(weight.device)
            return value.to(weight.dtype) if value.is_floating_point() else value

        named: dict[str, Any] = {name: moved(value) for name, value in self.named.items()}
        if self.of_text and "use_cache" in inspect.signature(model.forward).parameters:
            named["use_cache"] = False
        model(*(() if self.first is None else (moved(self.first),)), **named)


def batches_of(inputs: Tensor | Mapping[str, Any] | Iterable[Any], batch_size: int | None) -> Iterator[Shown]:
    """Batches of images, or of token ids, however they come; see `rates.layerwise`.

    Raises:
        ValueError: not a batch that is known, pixels that are not finite, or a mask that leaves a text empty.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    if isinstance(inputs, Tensor | Mapping):
        inputs, batch_size = [inputs], batch_size or CHUNK
    for item in inputs:
        shown = _shown(item)
        if len(shown):
            yield from shown.split(batch_size or len(shown))


def _shown(item: Any) -> Shown:
    batch = getattr(item, "images", item)
    if isinstance(batch, Mapping):
        if any(name in batch for name in _IDS):
            return _texts({name: value for name, value in batch.items() if isinstance(value, Tensor)})
        batch = batch.get("images", batch.get("pixel_values"))
    elif isinstance(batch, list | tuple):
        batch = batch[0] if batch else None
    if not isinstance(batch, Tensor):
        raise ValueError(
            "images: a batch must be a tensor, (images, labels), have .images, or be a mapping with input_ids, got "
            f"{type(item).__name__}"
        )
    if batch.dim() == 2 and not batch.is_floating_point():
        _check_ids(batch)
        return Shown(batch)
    if not batch.is_floating_point() or batch.dim() != 4:
        raise ValueError(
            "images: needs preprocessed floating images [b, c, h, w], or token ids [b, n], got "
            f"{batch.dtype} {tuple(batch.shape)}"
        )
    if not bool(torch.isfinite(batch).all()):
        raise ValueError("images: some pixels are NaN or infinite")
    return Shown(batch)


def _texts(named: dict[str, Tensor]) -> Shown:
    ids = next(named[name] for name in _IDS if name in named)
    _check_ids(ids)
    for name in ("attention_mask", "decoder_attention_mask"):
        mask = named.get(name)
        if mask is None:
            continue
        of = named.get("decoder_input_ids", ids) if name.startswith("decoder") else ids
        if mask.shape != of.shape or not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError(f"{name}: must be 0 and 1 of shape {tuple(of.shape)}, as its ids, got {tuple(mask.shape)}")
        if not bool(mask.any(1).all()):
            raise ValueError(f"{name}: leaves a text without a token; leave empty texts out")
    return Shown(None, named)


def _check_ids(ids: Tensor) -> None:
    if ids.dim() != 2 or ids.is_floating_point() or ids.dtype == torch.bool or (len(ids) and not ids.shape[1]):
        raise ValueError(f"input_ids: must be whole numbers [b, n] with a token, got {ids.dtype} {tuple(ids.shape)}")


class Spread:
    """Mean and variance of many quantities in one pass (Chan, Golub and LeVeque's update of Welford's)."""

    def __init__(self) -> None:
        self.count = 0
        """Of samples."""
        self.keys: list[tuple[int, str]] = []
        self._of = self._mean = self._squares = np.zeros(0)

    def add(self, keys: list[tuple[int, str]], values: np.ndarray) -> None:
        """Take in `values` [quantities, samples]; NaN where a sample does not have a quantity."""
        if not self.count:
            self.keys = keys
            self._of, self._mean, self._squares = (np.zeros(len(keys)) for _ in range(3))
        assert keys == self.keys
        known = ~np.isnan(values)
        n = known.sum(1)
        mean = np.where(known, values, 0).sum(1) / np.maximum(n, 1)
        total, delta = self._of + n, np.where(n > 0, mean - self._mean, 0)
        within = np.where(known, values - mean[:, None], 0) ** 2
        self._squares = self._squares + within.sum(1) + delta**2 * self._of * n / np.maximum(total, 1)
        self._mean = self._mean + delta * n / np.maximum(total, 1)
        self._of = total
        self.count += values.shape[1]

    def result(self) -> dict[tuple[int, str], tuple[float, float, float, int]]:
        """Mean, unbiased standard deviation, standard error, and number of samples of each quantity that any has."""
        std = np.sqrt(self._squares / np.maximum(self._of - 1, 1))
        error = std / np.sqrt(np.maximum(self._of, 1))
        columns = zip(self._mean.tolist(), std.tolist(), error.tolist(), self._of.astype(int).tolist(), strict=True)
        return {key: values for key, values in zip(self.keys, columns, strict=True) if values[-1]}


@contextmanager
def settled(models: list[nn.Module], device: torch.device | str | None) -> Iterator[None]:
    """Models in eval mode and on `device`; afterwards as they were, module by module."""
    homes = [next((p.device for p in model.parameters()), None) for model in models]
    with ExitStack() as modes:
        try:
            for model in models:
                modes.enter_context(evaluating(model))
                if device is not None:
                    model.to(device)
            yield
        finally:
            for model, home in zip(models, homes, strict=True):
                if device is not None and home is not None:
                    model.to(home)
