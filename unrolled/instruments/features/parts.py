"""Features of many samples, computed in parts: several processes share them, and a killed extraction goes on.

A part is a fixed range of samples whatever the number of processes, so that features are the same, bit for bit on
devices of one kind, however many there were and however often they were stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from unrolled.errors import CorruptFile, MissingData
from unrolled.instruments.features.extraction import FeatureSet, read_descriptors

PART = 1024


@dataclass(frozen=True)
class Processes:
    """The processes that share an extraction: this one's `rank` of `world`, and a `barrier` that waits for all."""

    rank: int = 0
    world: int = 1
    barrier: Callable[[], object] = lambda: None


def extract_in_parts(
    folder: Path,
    compute: Callable[[int, int], FeatureSet],
    *,
    key: str,
    total: int,
    batch_size: int,
    rows: Tensor | None = None,
    processes: Processes | None = None,
) -> FeatureSet:
    """The features of samples 0 to `total`, computed part by part below `folder`/parts, joined and saved in `folder`.

    Args:
        folder: on a file system that all processes see.
        compute: from the first sample and the one after the last to their features; `indices` count from the first.
        key: tells these features from others; finished parts count only under the same key.
        total: samples.
        batch_size: parts hold whole batches.
        rows: int64 [total], which of the data the samples are, for the `indices` of the result; default: 0 to `total`.
        processes: those that share the work; all must call this.
    """
    shared = processes or Processes()
    size = -(-PART // batch_size) * batch_size
    bounds = [(start, min(start + size, total)) for start in range(0, total, size)]

    def computed(start: int, stop: int, key: str | None = None) -> FeatureSet:
        result = compute(start, stop)
        indices = None if result.indices is None else result.indices + start
        indices = indices if indices is None or rows is None else rows[indices]
        return replace(result, indices=indices, key=result.key if key is None else key)

    if len(bounds) == 1 and shared.world == 1:
        result = computed(0, total)
        result.save(folder)
        return result
    where = [folder / "parts" / f"{start:09d}-{stop:09d}" for start, stop in bounds]
    for i, (start, stop) in enumerate(bounds):
        if i % shared.world == shared.rank and not _done(where[i], _part_key(key, start, stop)):
            computed(start, stop, _part_key(key, start, stop)).save(where[i])
    shared.barrier()
    if shared.rank == 0:
        _join([FeatureSet.load(part) for part in where], key).save(folder)
        shutil.rmtree(folder / "parts")
    shared.barrier()
    return FeatureSet.load(folder)


def _part_key(key: str, start: int, stop: int) -> str:
    return f"{key}:{start}-{stop}"


def _done(folder: Path, key: str) -> bool:
    try:
        return bool(read_descriptors(folder)["key"] == key and FeatureSet.load(folder).samples)
    except (CorruptFile, MissingData):
        return False


def _join(parts: list[FeatureSet], key: str) -> FeatureSet:
    first = parts[0]

    def joined(values: list[Tensor | None]) -> Tensor | None:
        known = [value for value in values if value is not None]
        return torch.cat(known) if len(known) == len(parts) else None

    return replace(
        first,
        layers={name: torch.cat([part[name] for part in parts]) for name in first},
        indices=joined([part.indices for part in parts]),
        labels=joined([part.labels for part in parts]),
        skipped=[name for part in parts for name in part.skipped],
        key=key,
    )
