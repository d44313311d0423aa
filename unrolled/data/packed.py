"""Packed `.npz` files: encoded images end to end in one array.

Arrays: `payload` uint8 (all images), `offsets` (n + 1, image i is `payload[offsets[i]:offsets[i + 1]]`), `labels` (n),
`class_names`, and optionally `header`, bytes that every image starts with.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from unrolled.arrays import read_npz
from unrolled.data.sources import IN_MEMORY, BadImage, ImageSource, Picture, check_labels, decode, evenly
from unrolled.errors import CorruptFile


class PackedSource(ImageSource):
    """One packed file.

    The encoded bytes stay in memory; small images of one size are decoded once, on the first use of `take`.

    Raises:
        MissingData: the file is not there.
        CorruptFile: it is truncated, lacks an array, or its offsets do not describe its payload.
        UnsafeFile: it holds pickled objects, which are not read.
        ValueError: a label outside `class_names`.
    """

    def __init__(self, path: Path) -> None:
        arrays = _read(path)
        self._path = str(path)
        self._payload = arrays["payload"]
        self._header = arrays["header"].tobytes() if "header" in arrays else b""
        self._offsets = _checked_offsets(arrays["offsets"], len(self._payload), path)
        self.classes = [str(name) for name in arrays["class_names"]]
        self.labels = check_labels(arrays["labels"], count=len(self), classes=len(self.classes), what=str(path))
        self.description = f"packed file {path.name}, {len(self):,} images"
        self.native_size = self._probe_size()
        self._pixels: np.ndarray | None = None
        self._bad: dict[int, str] = {}
        self._uneven = False

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def load(self, index: int) -> tuple[Picture, int]:
        """Decoded image and label."""
        assert self.labels is not None
        return self._decode(index), int(self.labels[index])

    def name(self, index: int) -> str:
        """`FILE[index]`."""
        return f"{self._path}[{index}]"

    def in_memory(self) -> bool:
        """Whether all images have one size and fit; the first call decodes them (about 4 s for 50,000 small images)."""
        if self.native_size is None or self._uneven or len(self) * int(np.prod(self.native_size)) > IN_MEMORY:
            return False
        if self._pixels is None:
            self._decode_all()
        return not self._uneven

    def take(self, indices: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
        """See `ImageSource.take`."""
        if not self.in_memory():
            raise NotImplementedError(f"{self._path}: the images differ in size or are too many to keep decoded")
        assert self._pixels is not None
        bad = {p: self._bad[int(i)] for p, i in enumerate(indices) if int(i) in self._bad} if self._bad else {}
        return self._pixels[indices], bad

    def _decode(self, index: int) -> Image.Image:
        start, stop = int(self._offsets[index]), int(self._offsets[index + 1])
        if start == stop:
            raise BadImage("is empty")
        return decode(self._header + self._payload[start:stop].tobytes())

    def _decode_all(self) -> None:
        assert self.native_size is not None
        channels, height, width = self.native_size
        pixels = np.zeros((len(self), height, width, channels), np.uint8)
        for index in range(len(self)):
            try:
                image = self._decode(index)
            except BadImage as error:
                self._bad[index] = str(error)
                continue
            if _size(image) != self.native_size:
                self._uneven = True
                return
            pixels[index] = np.asarray(image).reshape(height, width, channels)
        self._pixels = pixels

    def _probe_size(self) -> tuple[int, int, int] | None:
        """The common size of a few images spread over the file; `_decode_all` finds the exceptions."""
        sizes = set()
        for index in evenly(8, len(self)):
            try:
                sizes.add(_size(self._decode(int(index))))
            except BadImage:  # named when it is asked for
                continue
        return sizes.pop() if len(sizes) == 1 else None


def packed_classes(path: Path) -> list[str]:
    """The class names of a packed file, without its images.

    Raises:
        CorruptFile: it has none, or is damaged.
    """
    arrays = read_npz(path, ("class_names",))
    if "class_names" not in arrays:
        raise CorruptFile(f"{path} is not a packed image file: it lacks class_names")
    return [str(name) for name in arrays["class_names"]]


def _size(image: Image.Image) -> tuple[int, int, int] | None:
    channels = {"L": 1, "RGB": 3}.get(image.mode)
    return None if channels is None else (channels, image.height, image.width)


def _read(path: Path) -> dict[str, np.ndarray]:
    arrays = read_npz(path, ("payload", "offsets", "labels", "class_names", "header"))
    lacking = [key for key in ("payload", "offsets", "labels", "class_names") if key not in arrays]
    if lacking:
        raise CorruptFile(f"{path} is not a packed image file: it lacks {', '.join(lacking)}")
    if arrays["payload"].dtype != np.uint8 or arrays["payload"].ndim != 1:
        raise CorruptFile(f"{path}: payload must be uint8 [bytes], not {arrays['payload'].dtype}")
    return arrays


def _checked_offsets(offsets: np.ndarray, size: int, path: Path) -> np.ndarray:
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or len(offsets) < 2:
        raise CorruptFile(f"{path}: offsets must be at least two integers, not {offsets.dtype} {offsets.shape}")
    offsets = offsets.astype(np.int64)
    if offsets[0] < 0 or (np.diff(offsets) < 0).any() or offsets[-1] > size:
        raise CorruptFile(f"{path}: offsets must not decrease and must stay within the {size:,} bytes of payload")
    return offsets
