"""The four idx files of MNIST and its relatives, packed or not, as their authors publish them."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from unrolled.data.sources import ArraySource
from unrolled.errors import CorruptFile

IDX_NAMES = ("fashion_mnist", "kmnist", "mnist")
_PARTS = {"train": "train", "test": "t10k"}
_MOST = 2**31  # bytes; the largest of these sets has 47 million


def find_idx(name: str, folder: Path, part: str) -> tuple[Path, Path] | None:
    """Image and label file of `part` in `folder`, `folder/NAME` or `folder/NA-ME`, `.gz` or unpacked; None without."""
    for place in (folder, folder / name, folder / name.replace("_", "-")):
        paths = []
        for kind in ("images-idx3", "labels-idx1"):
            stem = f"{_PARTS[part]}-{kind}-ubyte"
            paths += [path for path in (place / stem, place / f"{stem}.gz") if path.is_file()][:1]
        if len(paths) == 2:
            return paths[0], paths[1]
    return None


def open_idx(name: str, part: str, images: Path, labels: Path) -> ArraySource:
    """One split of a data set in idx files.

    Args:
        name: one of `IDX_NAMES`; it decides the names of the classes.
        part: "train" or "test".
        images: idx file of uint8 [n, h, w].
        labels: idx file of uint8 [n].

    Raises:
        CorruptFile: a file is damaged, or the two do not belong together; the file is named.
    """
    from torchvision import datasets

    kinds = {"fashion_mnist": datasets.FashionMNIST, "kmnist": datasets.KMNIST, "mnist": datasets.MNIST}
    pixels, numbers = read_idx(images), read_idx(labels)
    if pixels.ndim != 3 or numbers.ndim != 1 or len(pixels) != len(numbers):
        raise CorruptFile(
            f"{images} has shape {pixels.shape} and {labels.name} {numbers.shape}; they must be [n, h, w] and [n]"
        )
    return ArraySource(pixels, numbers, classes=kinds[name].classes, title=f"{name}/{part}")


def read_idx(path: Path) -> np.ndarray:
    """An array of bytes from an idx file: two zero bytes, type 8, the number of axes, big-endian sizes, the values.

    Raises:
        CorruptFile: damaged, of another type, or not as long as its header says.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as stream:
            head = stream.read(4)
            if len(head) < 4 or head[:3] != b"\0\0\x08" or not 1 <= head[3] <= 4:
                raise CorruptFile(f"{path} is not an idx file of bytes")
            shape = tuple(int.from_bytes(stream.read(4), "big") for _ in range(head[3]))
            count = int(np.prod(shape, dtype=object))
            data = stream.read(count + 1) if count < _MOST else b""
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CorruptFile(f"{path} is truncated or damaged: {error}") from error
    if len(data) != count:
        raise CorruptFile(f"{path} is truncated or damaged: its header says {shape}, {count:,} bytes")
    return np.frombuffer(data, np.uint8).reshape(shape)
