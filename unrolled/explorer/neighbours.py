"""Two models on one set of images: how far their neighbourhoods agree, and the neighbours of one image side by side."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from unrolled.data.sources import evenly
from unrolled.explorer.models import Opened, prepared
from unrolled.explorer.samples import digits, encode
from unrolled.reading import printable

if TYPE_CHECKING:
    from torch import Tensor

MOST_IMAGES = 400
FEWEST_IMAGES = 20
DIGITS = 300
K = 10
DRAWS = 200
_SIDE, _BATCH, _MOST_MODELS = 256, 32, 6


@dataclass(frozen=True)
class ImageSet:
    """Square images in memory, with a name for each."""

    title: str
    images: tuple[Image.Image, ...]
    names: tuple[str, ...]

    @classmethod
    def digits(cls) -> ImageSet:
        """300 of scikit-learn's handwritten digits, thirty of each."""
        images, labels = digits()
        chosen = [np.flatnonzero(labels == number)[: DIGITS // 10] for number in range(10)]
        order = np.stack(chosen, 1).ravel().tolist()
        names = [f"a handwritten {labels[i]}" for i in order]
        return cls(f"{DIGITS} handwritten digits (scikit-learn)", tuple(images[i] for i in order), tuple(names))

    @classmethod
    def folder(cls, folder: Path) -> ImageSet:
        """The pictures directly in a folder, cropped square; of more than 400, every so-many-th.

        Raises:
            MissingData: no such folder, or no pictures in it.
            ValueError: fewer than 20 that can be read.
        """
        from unrolled.data.pictures import read_picture

        paths = pictures_in(folder)
        paths = [paths[i] for i in evenly(MOST_IMAGES, len(paths))]
        images, names, unread = [], [], []
        for path in paths:
            try:
                images.append(_square(read_picture(path)))
                names.append(printable(path.stem))
            except (ValueError, OSError) as error:
                unread.append(str(error))
        if len(images) < FEWEST_IMAGES:
            raise ValueError(
                f"images={str(folder)!r}: {len(images)} pictures can be read; neighbours need at least "
                f"{FEWEST_IMAGES}; the first that cannot: {unread[0]}"
            )
        note = f", {len(unread)} left out that cannot be read" if unread else ""
        title = f"{len(images)} pictures of {printable(folder.resolve().name)}{note}"
        return cls(title, tuple(images), tuple(names))

    def thumbnail(self, index: int) -> bytes:
        """PNG of one image.

        Raises:
            ValueError: no such image.
        """
        if not 0 <= index < len(self.images):
            raise ValueError(f"image={index}: there are images 0 to {len(self.images) - 1}")
        image = self.images[index]
        if image.width < 64:  # a few pixels are clearer as squares than blurred
            factor = -(-96 // image.width)
            image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
        return encode(image, side=112)


def pictures_in(folder: Path) -> list[Path]:
    """What a set may be made of, before anything is decoded.

    Raises:
        MissingData: no such folder, or no pictures in it.
        ValueError: fewer than 20.
    """
    from unrolled.data.pictures import find_pictures

    paths = find_pictures([folder])
    if len(paths) < FEWEST_IMAGES:
        raise ValueError(
            f"images={str(folder)!r}: {len(paths)} pictures are in it; neighbours need at least {FEWEST_IMAGES}"
        )
    return paths


class Neighbours:
    """Features of the set in the models that were asked for lately.

    Args:
        images: reads the set, when it is first asked for: decoding a folder takes seconds.
    """

    def __init__(self, images: Callable[[], ImageSet]) -> None:
        self._read = images
        self._reading = threading.Lock()
        self._set: ImageSet | None = None
        self._features: OrderedDict[str, dict[str, Tensor]] = OrderedDict()

    @property
    def set(self) -> ImageSet:
        """The images.

        Raises:
            MissingData, ValueError: as `ImageSet.folder`.
        """
        with self._reading:
            if self._set is None:
                self._set = self._read()
            return self._set

    @property
    def k(self) -> int:
        """How many neighbours are compared."""
        return min(K, len(self.set.images) // 3)

    def features(self, opened: Opened) -> dict[str, Tensor]:
        """Layer -> `[n, d]`, tokens averaged. The catalogue's lock must be held."""
        from unrolled.instruments import extract

        key = opened.choice.id
        if key not in self._features:
            features = extract(opened.network, self._batches(opened), name=opened.choice.label)
            self._features[key] = {name: features[name] for name in features.layers}
            while len(self._features) > _MOST_MODELS:
                self._features.popitem(last=False)
        self._features.move_to_end(key)
        return self._features[key]

    def agreement(self, a: Opened, b: Opened) -> dict[str, Any]:
        """Mutual k-nearest-neighbour score of all pairs of layers, judged against relabelled images."""
        from unrolled.alignment.chance import compare

        comparison = compare(self.features(a), self.features(b), "mutual_knn", k=self.k, draws=DRAWS, resamples=50)
        left, right = comparison.layers
        return {
            "images": comparison.n,
            "k": self.k,
            "layers": [list(left), list(right)],
            "scores": [[_plain(value) for value in row] for row in comparison.scores.tolist()],
            "best": [left.index(comparison.best[0]), right.index(comparison.best[1])],
            "score": _plain(comparison.score),
            "chance": _plain(comparison.chance),
            "p_value": None if comparison.p_value is None else _plain(comparison.p_value),
            "draws": DRAWS,
            "calibrated": None if comparison.calibrated is None else _plain(comparison.calibrated),
            "threshold": None if comparison.threshold is None else _plain(comparison.threshold),
            "interval": None if comparison.interval is None else [_plain(value) for value in comparison.interval],
        }

    def of(self, opened: Opened, layer: int, image: int) -> list[dict[str, Any]]:
        """The k nearest images by cosine similarity at one layer, nearest first, the image itself left out.

        Raises:
            ValueError: no such layer or image.
        """
        from unrolled.ops.rows import unit_rows

        features = list(self.features(opened).values())
        if not 0 <= layer < len(features):
            raise ValueError(f"layer={layer}: there are layers 0 to {len(features) - 1}")
        if not 0 <= image < len(self.set.images):
            raise ValueError(f"image={image}: there are images 0 to {len(self.set.images) - 1}")
        rows = unit_rows(features[layer].double())  # neighbours are told apart where all cosines are nearly 1
        similarity = rows @ rows[image]
        similarity[image] = -2.0
        best = similarity.topk(self.k)
        return [
            {"image": index, "name": self.set.names[index], "similarity": _plain(value, 12)}
            for index, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def _batches(self, opened: Opened) -> Iterator[Tensor]:
        import torch

        how = prepared(opened, 1)
        for start in range(0, len(self.set.images), _BATCH):
            yield torch.cat([how.tensor(image) for image in self.set.images[start : start + _BATCH]])


def _square(picture: Image.Image) -> Image.Image:
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    out = picture.crop((left, top, left + side, top + side))
    return out.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC) if side > _SIDE else out


def shared(a: Sequence[dict[str, Any]], b: Sequence[dict[str, Any]]) -> list[int]:
    """Images that both lists of neighbours hold."""
    return sorted({row["image"] for row in a} & {row["image"] for row in b})


def _plain(value: float, digits: int = 5) -> float | None:
    return None if value != value else float(f"{value:.{digits}g}")
