"""WebDataset shards: tar files of images and labels, for what does not fit a disk.

How they are read. A shard is read from start to end and its encoded images are held in memory, a few shards at a time.
The order of an epoch is: shards in a seeded order, cut into groups of `GROUP`; within a group, the images of all its
shards in a seeded order. It is a function of seed and epoch, so a resumed run opens only the shards it still needs. The
price: mixing reaches no further than a group, every loader process reads every shard it needs an image of, and each
process holds GROUP shards in memory. Keep shards near 100 MB.

The labels of each shard must be known beforehand: `index.json` (see `index_shards`) says them; without one, local
shards are scanned when they are opened, and remote ones are refused.
"""

from __future__ import annotations

import glob
import json
import re
import tarfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unrolled.data.files import Splits
from unrolled.data.sources import BadImage, ImageSource, Picture, check_labels, decode
from unrolled.errors import CorruptFile, MissingData, require
from unrolled.reading import open_file, read_object, read_text

GROUP = 4
_MOST = 1_000_000
_IMAGES = frozenset({"bmp", "gif", "jpeg", "jpg", "pgm", "png", "ppm", "tif", "tiff", "webp"})
_REMOTE = re.compile(r"(https?|hf|gs)://")


class ShardSource(ImageSource):
    """Images in tar shards, with labels as `KEY.cls` (text) or `KEY.json` (an integer `label`).

    Args:
        shards: local paths or addresses.
        index: labels of the images of each shard, by file name, in the order of the shard.
        classes: class names.
    """

    def __init__(self, shards: list[str], index: dict[str, list[int]], *, classes: list[str], title: str) -> None:
        self._shards = shards
        per_shard = [np.asarray(index[_base(shard)], np.int64) for shard in shards]
        self._starts = np.concatenate([[0], np.cumsum([len(labels) for labels in per_shard])])
        self.classes = classes
        self.labels = check_labels(np.concatenate(per_shard), count=len(self), classes=len(classes), what=title)
        self.description = f"{title}, {len(self):,} images in {len(shards)} shards"
        self._open: OrderedDict[int, list[tuple[str, bytes | None]]] = OrderedDict()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def load(self, index: int) -> tuple[Picture, int]:
        """Decoded image and label; reads the whole shard unless it is one of the last `GROUP` read."""
        assert self.labels is not None
        shard, position = self._where(index)
        _, encoded = self._images(shard)[position]
        if encoded is None:
            raise BadImage("has no image in its sample")
        return decode(encoded), int(self.labels[index])

    def name(self, index: int) -> str:
        """`SHARD[position]`."""
        shard, position = self._where(index)
        return f"{self._shards[shard]}[{position}]"

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Shards in a seeded order, and images in a seeded order within each group of `GROUP` shards."""
        rng = np.random.default_rng(np.random.SeedSequence((seed, epoch, 5)))
        shards = rng.permutation(len(self._shards))
        parts = []
        for start in range(0, len(shards), GROUP):
            group = [np.arange(self._starts[s], self._starts[s + 1]) for s in shards[start : start + GROUP]]
            parts.append(rng.permutation(np.concatenate(group)))
        return np.concatenate(parts)

    def _where(self, index: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return shard, int(index - self._starts[shard])

    def _images(self, shard: int) -> list[tuple[str, bytes | None]]:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        found = [(key, encoded) for key, encoded, _ in _samples(self._shards[shard])]
        expected = int(self._starts[shard + 1] - self._starts[shard])
        if len(found) != expected:
            raise CorruptFile(f"{self._shards[shard]} holds {len(found)} samples, its index says {expected}")
        while len(self._open) >= GROUP:
            self._open.popitem(last=False)
        self._open[shard] = found
        return found


def open_shards(pattern: str, data_dir: Path | None, *, split: str, val_fraction: float, seed: int) -> Splits:
    """Shards by pattern: `wds:TRAIN` or `wds:TRAIN;TEST`, e.g. `wds:train-{000..127}.tar;val-*.tar`.

    `{000..127}` counts, `*` matches local files, and relative patterns start in `data_dir`. `index.json` and
    `classes.txt` (a name a line) are looked for beside local shards and in `data_dir`; without class names, classes are
    numbers. A hold-out is whole shards drawn by the seed, not stratified, since a stream cannot be divided by class.

    Raises:
        MissingExtra: `webdataset` is not installed.
        MissingData: no shard fits, or a remote set has no index.
        CorruptFile: a shard is damaged.
        ValueError: a pattern that would run a command, or a label outside the classes.
    """
    require("webdataset", extra="webdataset", feature=f"data `wds:{pattern}`")
    train, _, test = pattern.partition(";")
    if split == "test" and not test:
        raise MissingData(f"data: wds:{pattern} names no test shards; write `wds:TRAIN;TEST`")
    shards = expand_shards(train, data_dir)
    if split == "test":
        tested = expand_shards(test, data_dir)
        return {"test": _source(tested, f"wds:{test}", data_dir, also=shards)}
    if not val_fraction:
        return {"train": _source(shards, f"wds:{train}", data_dir)}
    count = max(1, round(val_fraction * len(shards)))
    if count >= len(shards):
        raise ValueError(f"val_fraction: cannot hold {count} of {len(shards)} shards out; use more or smaller shards")
    held = np.random.default_rng(np.random.SeedSequence((seed, 1))).permutation(len(shards))[:count]
    kept = [shard for number, shard in enumerate(shards) if (number in held) == (split == "val")]
    return {f"{split} held": _source(kept, f"wds:{train} ({split})", data_dir, also=shards)}


def expand_shards(pattern: str, data_dir: Path | None = None) -> list[str]:
    """Every shard a pattern stands for, in order."""
    if pattern.startswith("pipe:"):
        raise ValueError(f"data: wds:{pattern} would run a command, which is refused; give paths or addresses")
    local = not _REMOTE.match(pattern)
    if local and "://" in pattern:
        raise ValueError(f"data: wds:{pattern}: only local paths, http(s)://, hf:// and gs:// are read")
    if local and data_dir is not None:
        pattern = str(Path(data_dir).expanduser() / pattern)
    shards = _braces(pattern)
    if local:
        shards = [path for item in shards for path in (sorted(glob.glob(item)) if glob.has_magic(item) else [item])]
        lost = [path for path in shards if not Path(path).is_file()]
        if lost or not shards:
            raise MissingData(f"data: no shard {lost[0] if lost else pattern}")
    return shards


def index_shards(pattern: str, data_dir: Path | None = None) -> dict[str, Any]:
    """What `index.json` must hold: {"labels": {shard file name: [label of each image]}}; add "classes": [names].

    Reads every shard once, from start to end; write the result beside the shards with `json.dump`.
    """
    require("webdataset", extra="webdataset", feature="indexing shards")
    return {"labels": {_base(s): [label for _, _, label in _samples(s)] for s in expand_shards(pattern, data_dir)}}


def _source(shards: list[str], title: str, data_dir: Path | None, also: list[str] | None = None) -> ShardSource:
    """A source of `shards`; the shards in `also` count when classes are numbered, so that all splits agree."""
    known: dict[str, Any] = {"labels": {}}
    sidecar = _beside(shards, data_dir, "index.json")
    if sidecar is not None:
        known = read_object(sidecar)
        if not _is_index(known):
            raise CorruptFile(f"{sidecar} is not an index of shards: it needs `labels`, shard -> list of integers")
    labels: dict[str, list[int]] = known["labels"]
    for shard in dict.fromkeys(shards + (also or [])):
        if _base(shard) not in labels:
            labels[_base(shard)] = _scan(shard)
    names = _beside(shards, data_dir, "classes.txt")
    if "classes" in known:
        classes = [str(name) for name in known["classes"]]
    elif names is not None:
        classes = [name.strip() for name in read_text(names).splitlines() if name.strip()]
    else:
        used = [label for shard in shards + (also or []) for label in labels[_base(shard)]]
        classes = [str(number) for number in range(max(used, default=-1) + 1)]
    return ShardSource(shards, labels, classes=classes, title=title)


def _is_index(known: dict[str, Any]) -> bool:
    labels = known.get("labels")
    return (
        isinstance(labels, dict)
        and all(isinstance(each, list) and all(type(label) is int for label in each) for each in labels.values())
        and isinstance(known.get("classes", []), list)
    )


def _beside(shards: list[str], data_dir: Path | None, file: str) -> Path | None:
    folders = [] if _REMOTE.match(shards[0]) else [Path(shards[0]).parent]
    folders += [] if data_dir is None else [Path(data_dir).expanduser()]
    return next((folder / file for folder in folders if (folder / file).is_file()), None)


def _scan(shard: str) -> list[int]:
    """Labels of a local shard, without reading its images."""
    if _REMOTE.match(shard):
        raise MissingData(
            f"data: the labels in {shard} are not known beforehand; put an index.json that lists them into data_dir "
            "(unrolled.data.index_shards makes one)"
        )
    labels: OrderedDict[str, int | None] = OrderedDict()
    try:
        with open_file(shard) as stream, tarfile.open(fileobj=stream) as archive:
            for member in archive:
                key, suffix = _key(member.name)
                if not member.isfile() or not key or not suffix:
                    continue
                labels.setdefault(key, None)
                if suffix in ("cls", "json"):
                    handle = archive.extractfile(member)
                    assert handle is not None
                    labels[key] = _label(suffix, handle.read(), f"{shard}: {member.name}")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise CorruptFile(f"{shard} is damaged: {error}") from error
    lacking = [key for key, label in labels.items() if label is None]
    if lacking:
        raise CorruptFile(f"{shard}: sample {lacking[0]} has no label (.cls or .json)")
    return [label for label in labels.values() if label is not None]


def _samples(shard: str) -> Iterator[tuple[str, bytes | None, int]]:
    """(key, encoded image, label) of every sample, read by webdataset without decoding anything.

    webdataset's own way of opening would run what follows `pipe:` in a file's name in a shell. Local shards are opened
    here, as files; addresses, which `expand_shards` has checked, by it.
    """
    tariterators = require("webdataset.tariterators", extra="webdataset", feature="reading shards")
    try:
        opened = tariterators.url_opener([{"url": shard}]) if _REMOTE.match(shard) else _local(shard)
        for sample in tariterators.group_by_keys(tariterators.tar_file_expander(opened)):
            image = next((sample[suffix] for suffix in sample if suffix in _IMAGES), None)
            suffix = next((suffix for suffix in ("cls", "json") if suffix in sample), None)
            if suffix is None:
                raise CorruptFile(f"{shard}: sample {sample['__key__']} has no label (.cls or .json)")
            yield sample["__key__"], image, _label(suffix, sample[suffix], f"{shard}: {sample['__key__']}")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise CorruptFile(f"{shard} is damaged or cannot be read: {error}") from error


def _local(shard: str) -> Iterator[dict[str, Any]]:
    with open_file(shard) as stream:
        yield {"url": shard, "stream": stream}


def _label(suffix: str, text: bytes, what: str) -> int:
    try:
        return int(text) if suffix == "cls" else int(json.loads(text)["label"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFile(f"{what}: the label must be an integer, in .cls or as `label` in .json") from error


def _key(name: str) -> tuple[str, str]:
    """Sample and suffix of a file in a shard, as webdataset divides them; both empty for what it passes over."""
    found = re.match(r"((?:.*/)?[^./]+)\.([^/]+)$", name)
    if not found or re.match(r"__[^/]*__($|/)", name):
        return "", ""
    return found[1], found[2].lower()


def _base(shard: str) -> str:
    return shard.rsplit("/", 1)[-1]


def _braces(pattern: str) -> list[str]:
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not found:
        return [pattern]
    first, last = found.groups()
    numbers = range(int(first), int(last) + 1)
    if len(numbers) > _MOST:
        raise ValueError(f"data: {found[0]} stands for {len(numbers):,} shards, more than {_MOST:,}")
    return [
        item
        for n in numbers
        for item in _braces(pattern[: found.start()] + f"{n:0{len(first)}d}" + pattern[found.end() :])
    ]
