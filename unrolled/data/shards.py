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
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unrolled.data.files import Splits
from unrolled.data.listing import is_real
from unrolled.data.sources import BadImage, ImageSource, Picture, check_labels, decode
from unrolled.errors import CorruptFile, MissingData, require
from unrolled.reading import open_file, read_object, read_text

GROUP = 4
_MOST = 1_000_000
_IMAGES = frozenset({"bmp", "gif", "jpeg", "jpg", "pgm", "png", "ppm", "tif", "tiff", "webp"})
_LABELS = ("cls", "json")
_REMOTE = re.compile(r"(https?|hf|gs)://")


class ShardSource(ImageSource):
    """Images in tar shards, with labels as `KEY.cls` (text), or else `KEY.json` (an integer `label`).

    Args:
        shards: local paths or addresses.
        index: labels of the images of each shard, by that path or address, in the order of the shard.
        classes: class names.
    """

    def __init__(self, shards: list[str], index: dict[str, list[int]], *, classes: list[str], title: str) -> None:
        self._shards = shards
        per_shard = [np.asarray(index[shard], np.int64) for shard in shards]
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
        samples = [(key, encoded) for key, encoded, _ in _samples(self._shards[shard])]
        expected = int(self._starts[shard + 1] - self._starts[shard])
        if len(samples) != expected:
            raise CorruptFile(f"{self._shards[shard]} holds {len(samples)} samples, its index says {expected}")
        while len(self._open) >= GROUP:
            self._open.popitem(last=False)
        self._open[shard] = samples
        return samples


def open_shards(pattern: str, data_dir: Path | None, *, split: str, val_fraction: float, seed: int) -> Splits:
    """Shards by pattern: `wds:TRAIN` or `wds:TRAIN;TEST`, e.g. `wds:train-{000..127}.tar;val-*.tar`.

    `{000..127}` counts, `*` matches local files, and relative patterns start in `data_dir`. `index.json` and
    `classes.txt` (a name a line) are looked for beside local shards and in `data_dir`; without class names, classes are
    numbers. An index names shards by their path from where it lies, or by their file name if only one has it. A
    hold-out is whole shards drawn by the seed, not stratified, since a stream cannot be divided by class.

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
    chosen = [shard for number, shard in enumerate(shards) if (number in held) == (split == "val")]
    return {f"{split} held": _source(chosen, f"wds:{train} ({split})", data_dir, also=shards)}


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
    """What `index.json` must hold: {"labels": {shard: [label of each image]}}; add "classes": [names].

    A shard is called by its path from the folder that all of them are in; the index belongs there. Reads every shard
    once, from start to end; write the result with `json.dump`.
    """
    require("webdataset", extra="webdataset", feature="indexing shards")
    shards = expand_shards(pattern, data_dir)
    common = shards[0].rsplit("/", 1)[0].split("/")
    while any(shard.split("/")[: len(common)] != common for shard in shards):
        common.pop()
    start = len("/".join([*common, ""])) if "/" in shards[0] else 0
    return {"labels": {shard[start:]: [label for _, _, label in _samples(shard)] for shard in shards}}


def _source(shards: list[str], title: str, data_dir: Path | None, also: list[str] | None = None) -> ShardSource:
    """A source of `shards`; the shards in `also` count when classes are numbered, so that all splits agree."""
    everything = list(dict.fromkeys(shards + (also or [])))
    labels: dict[str, list[int]] = {}
    named: dict[str, list[str]] = {}
    for sidecar, of in _beside(everything, data_dir, "index.json").items():
        known = read_object(sidecar)
        if not _is_index(known):
            raise CorruptFile(f"{sidecar} is not an index of shards: it needs `labels`, shard -> list of integers")
        for shard in of:
            if (entry := _entry(shard, known["labels"], sidecar, everything)) is not None:
                labels.setdefault(shard, entry)
        if "classes" in known:
            named[str(sidecar)] = [str(name) for name in known["classes"]]
    for shard in everything:
        if shard not in labels:
            labels[shard] = _scan(shard)
    if not named:
        for sidecar in _beside(everything, data_dir, "classes.txt"):
            named[str(sidecar)] = [name.strip() for name in read_text(sidecar).splitlines() if name.strip()]
    if len({tuple(names) for names in named.values()}) > 1:
        raise ValueError(f"data: {' and '.join(named)} name other classes; keep one list of them for all shards")
    used = [label for shard in everything for label in labels[shard]]
    classes = next(iter(named.values()), [str(number) for number in range(max(used, default=-1) + 1)])
    return ShardSource(shards, labels, classes=classes, title=title)


def _is_index(known: dict[str, Any]) -> bool:
    labels = known.get("labels")
    return (
        isinstance(labels, dict)
        and all(isinstance(each, list) and all(type(label) is int for label in each) for each in labels.values())
        and isinstance(known.get("classes", []), list)
    )


def _beside(shards: list[str], data_dir: Path | None, file: str) -> dict[Path, list[str]]:
    """The files of that name that belong to shards, nearest first, and the shards of each."""
    files: dict[Path, list[str]] = {}
    for shard in shards:
        if not _REMOTE.match(shard):
            files.setdefault(Path(shard).parent / file, []).append(shard)
    if data_dir is not None:
        files[Path(data_dir).expanduser() / file] = list(shards)
    return {path: of for path, of in files.items() if path.is_file()}


def _entry(shard: str, labels: dict[str, list[int]], index: Path, everything: list[str]) -> list[int] | None:
    """What an index says of a shard: by its path from the index on, or else by as much of the end of its path as names
    no other shard.

    Raises:
        ValueError: several shards end so.
    """
    inside = Path(shard)
    if not _REMOTE.match(shard) and inside.is_relative_to(index.parent):
        path = inside.relative_to(index.parent).as_posix()
        if path in labels:
            return labels[path]
    ends = [key for key in labels if f"/{shard}".endswith(f"/{key}") and not _another(index.parent / key, shard)]
    if not ends:
        return None
    key = max(ends, key=len)
    if sum(f"/{other}".endswith(f"/{key}") for other in everything) > 1:
        raise ValueError(
            f"data: {index} has labels of {key}, and several shards are called so; name them with their folders "
            "(unrolled.data.index_shards does)"
        )
    return labels[key]


def _another(named: Path, shard: str) -> bool:
    """Whether what an index names is there and is not this shard."""
    return named.is_file() and not (Path(shard).is_file() and named.samefile(shard))


def _scan(shard: str) -> list[int]:
    """Labels of a local shard, without reading its images."""
    if _REMOTE.match(shard):
        raise MissingData(
            f"data: the labels in {shard} are not known beforehand; put an index.json that lists them into data_dir "
            "(unrolled.data.index_shards makes one)"
        )
    samples: OrderedDict[str, dict[str, bytes]] = OrderedDict()
    try:
        with open_file(shard) as stream, tarfile.open(fileobj=stream) as archive:
            for member in archive:
                key, suffix = _key(member.name)
                if not member.isfile() or not key or not suffix:
                    continue
                fields = samples.setdefault(key, {})
                if suffix in _LABELS:
                    handle = archive.extractfile(member)
                    assert handle is not None
                    fields[suffix] = handle.read()
            _check_end(archive, shard)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise CorruptFile(f"{shard} is damaged: {error}") from error
    return [_label(fields, f"{shard}: sample {key}") for key, fields in samples.items()]


def _check_end(archive: tarfile.TarFile, shard: str) -> None:
    """See that a shard whose members were all read ends as tar files do, in empty blocks and nothing else.

    A file that was cut between two members looks whole but for that; of several that were joined, only the first is
    ever read.

    Raises:
        CorruptFile: it does not.
    """
    stream: Any = archive.fileobj
    stream.seek(archive.offset)
    if len(block := stream.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE or any(block):
        raise CorruptFile(f"{shard} is cut short: it lacks the empty blocks that end a tar file; copy it again")
    while block := stream.read(2**20):
        if any(block):
            raise CorruptFile(f"{shard} goes on after its end, as joined tar files do; unpack it and pack it as one")


def _samples(shard: str) -> Iterator[tuple[str, bytes | None, int]]:
    """(key, encoded image, label) of every sample, read by webdataset without decoding anything.

    webdataset's own way of opening would run what follows `pipe:` in a file's name in a shell. Local shards are opened
    here, as files; addresses, which `expand_shards` has checked, by it.
    """
    tariterators = require("webdataset.tariterators", extra="webdataset", feature="reading shards")
    try:
        opened = tariterators.url_opener([{"url": shard}]) if _REMOTE.match(shard) else _local(shard)
        for sample in tariterators.group_by_keys(
            tariterators.tar_file_expander(opened, select_files=lambda name: _key(name)[0] != "")
        ):
            image = next((sample[suffix] for suffix in sample if suffix in _IMAGES), None)
            yield sample["__key__"], image, _label(sample, f"{shard}: sample {sample['__key__']}")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise CorruptFile(f"{shard} is damaged or cannot be read: {error}") from error


def _local(shard: str) -> Iterator[dict[str, Any]]:
    with open_file(shard) as stream:
        yield {"url": shard, "stream": stream}


def _label(sample: Mapping[str, Any], what: str) -> int:
    """The label of a sample, from the contents of its files by suffix: that of `.cls`, or else the `label` in `.json`.

    Raises:
        CorruptFile: it has none, or it is no integer.
    """
    try:
        if "cls" in sample:
            return int(sample["cls"])
        if "json" in sample and "label" in (record := json.loads(sample["json"])):
            if isinstance(record["label"], float) and not record["label"].is_integer():
                raise ValueError(record["label"])
            return int(record["label"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFile(f"{what}: the label must be an integer, in .cls or as `label` in .json") from error
    raise CorruptFile(f"{what} has no label (.cls, or .json with `label`)")


def _key(name: str) -> tuple[str, str]:
    """Sample and suffix of a file in a shard, as webdataset divides them; both empty for what is passed over: its own
    notes (`__x__`), and hidden and system entries."""
    match = re.match(r"((?:.*/)?[^./]+)\.([^/]+)$", name)
    parts = [part for part in name.split("/") if part != "."]
    if not match or re.match(r"__[^/]*__($|/)", name) or not all(map(is_real, parts)):
        return "", ""
    return match[1], match[2].lower()


def _braces(pattern: str) -> list[str]:
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not match:
        return [pattern]
    first, last = match.groups()
    numbers = range(int(first), int(last) + 1)
    if len(numbers) > _MOST:
        raise ValueError(f"data: {match[0]} stands for {len(numbers):,} shards, more than {_MOST:,}")
    return [
        item
        for n in numbers
        for item in _braces(pattern[: match.start()] + f"{n:0{len(first)}d}" + pattern[match.end() :])
    ]
