"""Features in files, whoever made them: folders of `unrolled extract`, `.npy` and `.safetensors`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unrolled.arrays import read_npy

_MAPPED = 2**30
ARRAY_SUFFIXES = (".npy", ".safetensors")


def is_feature_file(path: str | Path) -> bool:
    """Whether `path` names features rather than a model: by its suffix, or by what the folder holds."""
    path = Path(path).expanduser()
    if path.suffix in ARRAY_SUFFIXES:
        return True
    return (path / "features.json").is_file() or (path / "features.safetensors").is_file()


def read_features(path: str | Path) -> Mapping[str, Tensor | np.ndarray]:
    """Layers by name, [n, d] each. A `.npy` file [n, d] of a GiB or more is mapped, not read.

    Args:
        path: a folder of `unrolled extract`, a `.npy` file [n, d] or [n, layers, d], or a `.safetensors` file with one
            [n, d] a layer.

    Raises:
        MissingData: there is no such file.
        CorruptFile: it is truncated or not what its name says.
        UnsafeFile: reading it would unpickle objects.
        ValueError: its arrays are not features.
    """
    from unrolled.errors import MissingData
    from unrolled.instruments.features.extraction import FeatureSet

    path = Path(path).expanduser()
    if path.suffix not in ARRAY_SUFFIXES:
        return FeatureSet.load(path)
    if not path.is_file():
        raise MissingData(f"{path}: there is no such file")
    return _read_npy(path) if path.suffix == ".npy" else _read_safetensors(path)


def features_digest(path: str | Path) -> str:
    """Tells these features from others: the checksum a folder keeps, else one of the whole file."""
    from unrolled.checksums import file_digest
    from unrolled.instruments.features.extraction import read_descriptors

    path = Path(path).expanduser()
    if path.suffix not in ARRAY_SUFFIXES:
        return str(read_descriptors(path)["checksum"])
    return file_digest(path)


class Rows(NamedTuple):
    """Which samples features are of: how many, of what data in words ("" if nobody said), and int64 [n] indices."""

    samples: int
    data: str
    indices: Tensor | None

    @classmethod
    def of(cls, features: Mapping[str, Tensor | np.ndarray]) -> Rows:
        """Of layers by name, [n, d] each, as `read_features` gives them."""
        from unrolled.instruments.features.extraction import FeatureSet

        samples = len(next(iter(features.values())))
        known = features if isinstance(features, FeatureSet) else None
        return cls(samples, known.data if known else "", known.indices if known else None)


def check_same_samples(left: Rows, right: Rows, a: str, b: str) -> None:
    """Raise ValueError if rows of features called `a` and `b` are known not to be the same samples."""
    if left.samples != right.samples:
        raise ValueError(
            f"{a} has {left.samples} samples and {b} {right.samples}: rows must be the same samples in order"
        )
    if left.data and right.data and left.data != right.data:
        raise ValueError(
            f"{a} holds features of {left.data} and {b} of {right.data}: they are not paired; extract both from the "
            "same data"
        )
    if left.indices is not None and right.indices is not None and not left.indices.equal(right.indices):
        raise ValueError(
            f"{a} and {b} hold features of different images of {left.data}: they are not paired; extract both with the "
            "same images= and on_error="
        )


def _read_npy(path: Path) -> Mapping[str, Tensor | np.ndarray]:
    array = read_npy(path, mapped_from=_MAPPED)
    large = isinstance(array, np.memmap)
    if array.dtype.kind not in "fiu" or array.ndim not in (2, 3) or not array.size:
        raise ValueError(f"{path}: needs numbers [n, d] or [n, layers, d], not {array.dtype} {array.shape}")
    if large and array.ndim == 2 and array.dtype.kind == "f":
        return {path.stem: array}
    values = torch.from_numpy(array.astype(np.float64 if array.dtype == np.float64 else np.float32))
    if values.dim() == 2:
        return {path.stem: values}
    return {f"layer{i:02d}": values[:, i] for i in range(values.shape[1])}


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from unrolled.errors import CorruptFile

    try:
        arrays = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CorruptFile(f"{path} is truncated or not a .safetensors file: {error}") from error
    wrong = {name: list(value.shape) for name, value in arrays.items() if value.dim() != 2}
    if wrong or not arrays:
        raise ValueError(f"{path}: every tensor must be the features [n, d] of one layer, not {wrong or 'empty'}")
    return arrays
