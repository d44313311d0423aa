"""Any picture from a stranger, decoded safely: limits first, the way up it was taken, three 8-bit channels."""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from unrolled.data.files import IMAGES as SUFFIXES
from unrolled.data.listing import files_in, printable
from unrolled.data.sources import FORMATS, evenly
from unrolled.errors import CorruptFile, MissingData

MAX_BYTES = 64 * 2**20
MAX_PIXELS = 50_000_000
MAX_FRAMES = 100
_ANIMATED = ("GIF", "PNG", "WEBP")

# what Pillow's decoders raise on damaged files; anything else is a fault of ours and must show
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


def read_picture(
    source: Path | str | bytes, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS, name: str | None = None
) -> Image.Image:
    """Decode one picture to RGB, as a viewer would show it.

    It is turned as its EXIF record says, without the record. Transparency is laid on white, CMYK and palettes become
    RGB, of 16 bits the upper 8 are kept, floating point in 0..1 is scaled, and of an animation the first frame is
    taken. Colour profiles are not applied.

    Args:
        source: a path, or the encoded bytes.
        max_bytes: of the file.
        max_pixels: width times height, read from the header before anything is decoded.
        name: what to call it in messages; default the path.

    Raises:
        MissingData: no such file.
        CorruptFile: empty, not a picture in one of `FORMATS`, or damaged.
        ValueError: a folder, or larger than the limits.
    """
    name = name or ("the picture" if isinstance(source, bytes) else printable(source))
    return next(_decoded(_data(source, name, max_bytes), name, max_pixels, 1))


def read_frames(
    source: Path | str | bytes,
    *,
    most: int = MAX_FRAMES,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    name: str | None = None,
) -> Iterator[Image.Image]:
    """The frames of an animation (GIF, PNG, WebP) in order, each as `read_picture` decodes it; of a still picture one.

    Args:
        source: a path, or the encoded bytes.
        most: of a longer animation so many frames are drawn evenly, the first and the last among them.
        max_bytes: of the file.
        max_pixels: of a frame.
        name: what to call it in messages; default the path.

    Raises:
        MissingData, CorruptFile, ValueError: as `read_picture`.
    """
    if most < 1:
        raise ValueError(f"most={most}: give at least 1")
    name = name or ("the picture" if isinstance(source, bytes) else printable(source))
    yield from _decoded(_data(source, name, max_bytes), name, max_pixels, most)


def _data(source: Path | str | bytes, name: str, max_bytes: int) -> bytes:
    data = source if isinstance(source, bytes) else _bytes(Path(source).expanduser(), name, max_bytes)
    if not data:
        raise CorruptFile(f"{name}: is empty")
    if len(data) > max_bytes:
        raise _too_large(name, len(data), max_bytes)
    return data


def _decoded(data: bytes, name: str, max_pixels: int, most: int) -> Iterator[Image.Image]:
    for frame in _frames(data, name, max_pixels, most):
        yield _rgb(frame, name)


def _frames(data: bytes, name: str, max_pixels: int, most: int) -> Iterator[Image.Image]:
    """Frames turned upright, in the file's own mode."""
    try:
        with _quiet():
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        with image:
            width, height = image.size
            if width * height > max_pixels:
                raise _TooManyPixels(width, height)
            # the pages of a TIFF are pictures of their own, not frames
            count = getattr(image, "n_frames", 1) if most > 1 and image.format in _ANIMATED else 1
            for index in evenly(most, count):
                with _quiet():
                    if count > 1:
                        image.seek(int(index))
                    image.load()
                    turned = ImageOps.exif_transpose(image)
                yield turned
    except (_TooManyPixels, Image.DecompressionBombError) as error:
        amount = error if isinstance(error, _TooManyPixels) else "too many"  # Pillow's own is another sentence
        raise ValueError(f"{name}: has {amount} pixels; at most {max_pixels:,} are decoded") from error
    except UnidentifiedImageError as error:
        raise CorruptFile(f"{name}: is not a picture in a known format ({', '.join(FORMATS)})") from error
    except _DAMAGED as error:
        raise CorruptFile(f"{name}: cannot be decoded: {error}") from error


def find_pictures(places: Iterable[Path | str]) -> list[Path]:
    """The files among `places`, and the pictures, by the end of their names, directly in the folders among them.

    Those of a folder come in the order of their names with numbers read as numbers: frame 2 is before frame 10.

    Raises:
        MissingData: a place does not exist, or a folder without pictures.
    """
    pictures: list[Path] = []
    for place in (Path(place).expanduser() for place in places):
        if place.is_dir():
            inside = sorted(files_in(place, SUFFIXES), key=_natural)
            if not inside:
                raise MissingData(f"{place}: holds no pictures ({', '.join(sorted(SUFFIXES))})")
            pictures += inside
        elif not place.exists():
            raise MissingData(f"{place}: does not exist")
        else:
            pictures.append(place)
    return pictures


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), part) if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def fit_size(size: tuple[int, int], side: int, multiple: tuple[int, int], *, longest: float = 2.0) -> tuple[int, int]:
    """The (height, width) at which a picture goes into a model: its shape kept, whole patches.

    Args:
        size: (height, width) of the picture.
        side: what the shorter side becomes.
        multiple: (height, width) of a patch; both sides are rounded to multiples of it, at least one.
        longest: the longer side is at most this many times the shorter; a picture longer still is squeezed.
    """
    height, width = size
    ratio = min(max(height, width) / min(height, width), longest)
    wanted = (side * ratio, float(side)) if height >= width else (float(side), side * ratio)
    rows, columns = (max(1, round(value / step)) * step for value, step in zip(wanted, multiple, strict=True))
    return rows, columns


@contextmanager
def _quiet() -> Iterator[None]:
    """Sizes are judged here, by the caller's limit; Pillow's own warnings would be a second opinion."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _TooManyPixels(ValueError):
    def __init__(self, width: int, height: int) -> None:
        super().__init__(f"{width:,} x {height:,}")


def _too_large(name: str, size: int, limit: int) -> ValueError:
    return ValueError(f"{name}: is {size / 2**20:,.1f} MiB, more than the {limit / 2**20:,.1f} MiB that are read")


def _bytes(path: Path, name: str, limit: int) -> bytes:
    if path.is_dir():
        raise ValueError(f"{name}: is a folder; give a picture")
    if not path.exists():
        raise MissingData(f"{name}: does not exist")
    if not path.is_file():  # a pipe or a device may never end
        raise ValueError(f"{name}: is not a file")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise _too_large(name, size, limit)
        return file.read(limit + 1)


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        values = np.asarray(image)
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise ValueError(f"{name}: has floating-point pixels outside 0..1, or NaN; scale them to 0..1")
        return Image.fromarray((values * 255).round().astype(np.uint8)).convert("RGB")
    if image.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip at 255
        high = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
        return Image.fromarray(high.astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
