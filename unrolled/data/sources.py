"""What an image data set is: `len`, `load`, `name`, labels and classes. The other files here make or use one.

A source knows nothing of batches, devices or augmentation. An image that cannot be used raises `BadImage` with the
reason alone; whoever asked for it knows which one it was.
"""

from __future__ import annotations

import io
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from unrolled.data.listing import printable
from unrolled.errors import CorruptFile, MissingData
from unrolled.reading import open_file

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is decoded; Pillow's other decoders are rarely exercised and some of them start programs."""

Picture = Image.Image | np.ndarray
"""A PIL image, or an array [h, w, c]: uint8, or floating point in 0..1."""

IN_MEMORY = 200 * 2**20  # bytes of decoded pixels a source may keep


class BadImage(ValueError):
    """An image that cannot be decoded or has unusable pixels; the message is the reason, without the image's name."""


class ImageSource(ABC):
    """Images with labels, addressed by index.

    Attributes:
        classes: class names; a label is an index into them.
        native_size: (channels, height, width) where every image has the same, else None.
        labels: int64 [n] where they are known without decoding images, else None.
        description: what this is, in words for a report.
        passed_over: what was found beside the images and left out, in words; empty where nothing was.
    """

    classes: list[str]
    native_size: tuple[int, int, int] | None = None
    labels: np.ndarray | None = None
    description: str = ""
    passed_over: str = ""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def load(self, index: int) -> tuple[Picture, int]:
        """Image and label at `index`.

        Raises:
            BadImage: the image cannot be decoded or used.
        """

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call image `index` in a message: a path, or the data set's name and a number."""

    def in_memory(self) -> bool:
        """Whether `take` works: all images have one size and are small enough to be kept decoded."""
        return False

    def take(self, indices: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
        """Decoded pixels, uint8 [len(indices), h, w, c], and {position in `indices`: reason} for those that are bad."""
        raise NotImplementedError(f"{type(self).__name__} keeps no decoded pixels")

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """The order of training epoch `epoch`: a permutation of range(len(self)) that depends on both numbers only."""
        return np.random.default_rng(np.random.SeedSequence((seed, epoch, 0))).permutation(len(self))


class ArraySource(ImageSource):
    """Images held as one array.

    Args:
        images: [n, h, w] or [n, h, w, c] with c in 1, 3, 4; uint8, or floating point in 0..1. A floating-point image
            with NaN, infinite or out-of-range pixels is bad and is named when it is met.
        labels: integers [n].
        classes: class names.
        title: used by `name`.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, *, classes: Sequence[str], title: str, description: str = ""
    ) -> None:
        images = images[..., None] if images.ndim == 3 else images
        if images.ndim != 4 or images.shape[3] not in (1, 3, 4):
            raise ValueError(f"images must be [n, h, w] or [n, h, w, c] with 1, 3 or 4 channels, not {images.shape}")
        if images.dtype != np.uint8 and images.dtype.kind != "f":
            raise ValueError(f"images must be uint8 or floating point in 0..1, not {images.dtype}")
        self.classes = list(classes)
        self.labels = check_labels(labels, count=len(images), classes=len(self.classes), what=title)
        self.native_size = (images.shape[3], images.shape[1], images.shape[2])
        self.description = description or f"{title}, {len(images):,} images"
        self._images = images
        self._title = title

    def __len__(self) -> int:
        return len(self._images)

    def load(self, index: int) -> tuple[Picture, int]:
        """Image uint8 [h, w, c] and label."""
        assert self.labels is not None
        return as_uint8(self._images[index]), int(self.labels[index])

    def name(self, index: int) -> str:
        """`TITLE[index]`."""
        return f"{self._title}[{index}]"

    def in_memory(self) -> bool:
        """True: the array is there already."""
        return True

    def take(self, indices: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
        """See `ImageSource.take`."""
        images = self._images[indices]
        if images.dtype == np.uint8:
            return images, {}
        pixels = np.zeros(images.shape, np.uint8)
        bad: dict[int, str] = {}
        for position, image in enumerate(images):
            try:
                pixels[position] = as_uint8(image)
            except BadImage as error:
                bad[position] = str(error)
        return pixels, bad


class FileSource(ImageSource):
    """Image files on disk.

    Args:
        paths: one file per image.
        labels: integers [n].
        classes: class names.
        root: the folder they are from, for messages.
    """

    def __init__(
        self, paths: Sequence[Path], labels: np.ndarray, *, classes: Sequence[str], root: Path, description: str = ""
    ) -> None:
        self.classes = list(classes)
        self.labels = check_labels(labels, count=len(paths), classes=len(self.classes), what=printable(root))
        self.description = description or f"{printable(root)}, {len(paths):,} images"
        self.paths = [str(path) for path in paths]

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int) -> tuple[Picture, int]:
        """Decoded image and label."""
        assert self.labels is not None
        return decode(Path(self.paths[index])), int(self.labels[index])

    def name(self, index: int) -> str:
        """The path of the file, in printable characters."""
        return printable(self.paths[index])


class Subset(ImageSource):
    """Some images of another source; indices count from 0 again, names stay the same."""

    def __init__(self, base: ImageSource, indices: np.ndarray, *, description: str = "") -> None:
        self.base = base
        self.indices = np.asarray(indices, np.int64)
        self.classes = base.classes
        self.native_size = base.native_size
        self.passed_over = base.passed_over
        self.labels = None if base.labels is None else base.labels[self.indices]
        self.description = description or f"{len(self.indices):,} of {base.description}"

    @classmethod
    def evenly(cls, base: ImageSource, most: int) -> Subset:
        """At most `most` of the images, drawn evenly, as sets are often sorted by class."""
        return cls(base, evenly(most, len(base)))

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, index: int) -> tuple[Picture, int]:
        """Image and label of the base source."""
        return self.base.load(int(self.indices[index]))

    def name(self, index: int) -> str:
        """The name in the base source."""
        return self.base.name(int(self.indices[index]))

    def in_memory(self) -> bool:
        """Whether the base source is."""
        return self.base.in_memory()

    def take(self, indices: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
        """See `ImageSource.take`."""
        return self.base.take(self.indices[indices])


def check_labels(labels: np.ndarray, *, count: int, classes: int, what: str) -> np.ndarray:
    """Labels as int64 [count], or a ValueError that names the first one outside the classes."""
    labels = np.asarray(labels)
    if labels.shape != (count,) or (labels.dtype.kind not in "iu" and count):
        raise ValueError(f"{what}: labels must be {count} integers, not {labels.dtype} {labels.shape}")
    labels = labels.astype(np.int64)
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(outside):
        first = int(outside[0])
        raise ValueError(
            f"{what}: label {labels[first]} of image {first} is outside the {classes} classes 0..{classes - 1} "
            f"({len(outside):,} such labels); correct the labels or the list of classes"
        )
    return labels


def as_uint8(image: np.ndarray) -> np.ndarray:
    """A floating-point image in 0..1 as uint8 (rounded); uint8 passes through."""
    if image.dtype == np.uint8:
        return image
    if not np.isfinite(image).all():
        raise BadImage("has NaN or infinite pixels")
    low, high = float(image.min()), float(image.max())
    if low < 0 or high > 1:
        raise BadImage(f"has floating-point pixels from {low:g} to {high:g}; scale them to 0..1")
    pixels: np.ndarray = np.rint(image * 255).astype(np.uint8)
    return pixels


def decode(data: bytes | Path) -> Image.Image:
    """Decode an encoded image completely, so that a truncated one is found here and not in a transform.

    Raises:
        BadImage: not an image of `FORMATS`, truncated, or larger than Pillow's limit for decompression bombs.
    """
    try:
        with (
            open_file(data) if isinstance(data, Path) else io.BytesIO(data) as stream,
            Image.open(stream, formats=FORMATS) as image,
        ):
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise BadImage(f"has {image.width} x {image.height} pixels, more than the {limit:,} allowed")
            image.load()
            return image
    except BadImage:
        raise
    except CorruptFile as error:
        raise BadImage("is a folder, a pipe or a device") from error
    except Image.DecompressionBombError as error:
        raise BadImage(f"has too many pixels: {error}") from error
    except UnidentifiedImageError as error:
        raise BadImage("is not an image in a known format") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error) as error:
        # what Pillow's decoders raise on damaged files; anything else is a fault of ours and must show
        raise BadImage(f"cannot be decoded: {error}") from error


def stratified_split(
    labels: np.ndarray | None, count: int, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split range(count) in two, class by class, as a function of the labels and the seed.

    Args:
        labels: integers [count]; None splits without regard to class.
        count: number of images.
        fraction: share of the second part, in (0, 1); its size is ceil(count * fraction), largest remainders first.
        seed: which split.

    Returns:
        Sorted indices of the first part and of the second. A class keeps at least one image in the first part.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie strictly between 0 and 1, not {fraction}")
    rng = np.random.default_rng(np.random.SeedSequence((seed, 1)))
    groups = np.zeros(count, np.int64) if labels is None else labels
    members = [np.flatnonzero(groups == label) for label in np.unique(groups)]
    exact = np.array([len(group) * fraction for group in members])
    take = np.floor(exact).astype(np.int64)
    room = np.array([len(group) - 1 for group in members])
    # break ties between equal remainders at random, else the first classes would always give more
    by_remainder = np.lexsort((rng.random(len(members)), take - exact))
    missing = int(np.ceil(round(count * fraction, 9))) - int(take.sum())
    for group in by_remainder:
        if missing > 0 and take[group] < room[group]:
            take[group] += 1
            missing -= 1
    held = [rng.permutation(group)[:number] for group, number in zip(members, np.minimum(take, room), strict=True)]
    second = np.sort(np.concatenate(held)) if held else np.zeros(0, np.int64)
    if len(second) == 0:
        raise ValueError(f"a share of {fraction} of {count} images holds out none; ask for a larger share")
    return np.setdiff1d(np.arange(count), second), second


def evenly(count: int, total: int) -> NDArray[np.int64]:
    """`count` of `total` places, evenly apart, the first and the last among them; all if there are fewer."""
    return np.linspace(0, total - 1, min(count, total)).round().astype(np.int64)


def existing_folder(data_dir: Path | None, *, what: str) -> Path:
    """`data_dir` as a folder that exists, or an error that says what should be there."""
    if data_dir is None:
        raise ValueError(f"data_dir: `{what}` needs the folder where the data are")
    folder = Path(data_dir).expanduser()
    if not folder.exists():
        raise MissingData(f"data_dir: {printable(folder)} does not exist")
    return folder
