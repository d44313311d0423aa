"""Features in files, whoever made them: folders of `unrolled extract`, `.npy`, `.npz`, `.safetensors` and `.pt`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unrolled.arrays import read_npy, read_npz
from unrolled.ops.rows import as_floats, as_rows
from unrolled.tensors import read_tensors

_MAPPED = 2**30
_OTHERS = {  # of files that are refused: how their numbers come into an array
    ".parquet": "pandas.read_parquet({}).to_numpy()",
    ".feather": "pandas.read_feather({}).to_numpy()",
    ".csv": 'numpy.loadtxt({}, delimiter=",")',
    ".h5": "h5py.File({})[NAME][:]",
    ".hdf5": "h5py.File({})[NAME][:]",
    ".mat": "scipy.io.loadmat({})[NAME]",
    ".pkl": "features",
    ".pickle": "features",
}
ARRAY_SUFFIXES = (".npy", ".npz", ".pt", ".safetensors", *_OTHERS)


def is_feature_file(path: str | Path) -> bool:
    """Whether `path` names features rather than a model: by its suffix, or by what the folder holds."""
    path = Path(path).expanduser()
    if path.suffix in ARRAY_SUFFIXES:
        return True
    return (path / "features.json").is_file() or (path / "features.safetensors").is_file()


def read_features(path: str | Path) -> Mapping[str, Tensor | np.ndarray]:
    """Layers by name, [n, d] each. A `.npy` file [n, d] of a GiB or more is mapped, not read.

    Args:
        path: a folder of `unrolled extract`, a `.npy` file [n, d] or [n, layers, d], a `.npz` or `.safetensors` file
            with one [n, d] a layer, or a `.pt` file of a tensor or of tensors by name.

    Raises:
        MissingData: there is no such file.
        CorruptFile: it is truncated or not what its name says.
        UnsafeFile: reading it would unpickle objects.
        ValueError: its arrays are not features; or a file of another kind, with the line of code that saves it anew.
    """
    from unrolled.errors import MissingData
    from unrolled.instruments.features.extraction import FeatureSet

    path = Path(path).expanduser()
    if path.suffix not in ARRAY_SUFFIXES:
        return FeatureSet.load(path)
    if not path.is_file():
        raise MissingData(f"{path}: there is no such file")
    if path.suffix in _OTHERS:
        array = _OTHERS[path.suffix].format(repr(path.name))
        raise ValueError(
            f"{path}: {path.suffix} files are not read; save the numbers [n, d] by "
            f"numpy.save({path.with_suffix('.npy').name!r}, {array}) and give that file"
        )
    if path.suffix == ".npy":
        return _read_npy(path)
    if path.suffix == ".npz":
        return _layers(path, {name: as_floats(array, f"{path}: {name}") for name, array in read_npz(path).items()})
    return _layers(path, read_tensors(path))


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
            f"{a} and {b} hold features of different images of {left.data}: they are not paired; extract as many for "
            "both, and leave none out on one side alone"
        )


def _read_npy(path: Path) -> Mapping[str, Tensor | np.ndarray]:
    array = read_npy(path, mapped_from=_MAPPED)
    large = isinstance(array, np.memmap)
    if array.dtype.kind not in "fiu" or array.ndim not in (2, 3) or not array.size:
        mend = f"; {_mended(array, path.stem)}" if array.ndim not in (2, 3) and array.dtype.kind in "fiu" else ""
        raise ValueError(f"{path}: needs numbers [n, d] or [n, layers, d], not {array.dtype} {array.shape}{mend}")
    if large and array.ndim == 2 and array.dtype.kind == "f":
        return {path.stem: array}
    return _layers(path, torch.from_numpy(array.astype(np.float64 if array.dtype == np.float64 else np.float32)))


def _mended(array: Any, name: str) -> str:
    """The line of code that makes features [n, d] of an array of another shape."""
    try:
        as_rows(array, name)
    except ValueError as error:
        return str(error).partition(": ")[2]
    return ""


def _layers(path: Path, content: Any) -> Mapping[str, Tensor]:
    """Layers by name of what a file holds: tensors [n, d] by name, or one [n, d] or [n, layers, d]."""
    if isinstance(content, Mapping) and len(content) == 1 and getattr(next(iter(content.values())), "ndim", 0) == 3:
        content = next(iter(content.values()))
    if isinstance(content, Tensor):
        content = {path.stem: content} if content.dim() != 3 else dict(enumerate(content.unbind(1)))
    elif isinstance(content, list | tuple):
        content = dict(enumerate(content))
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: needs a tensor, or tensors by name, not {type(content).__name__}")
    wrong = {
        str(name): list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        for name, value in content.items()
        if not isinstance(value, Tensor) or value.dim() != 2
    }
    if wrong or not content:
        shown = ", ".join(f"{name} {shape}" for name, shape in list(wrong.items())[:5]) or "nothing"
        first = next((name for name, value in content.items() if isinstance(value, Tensor) and value.dim() != 2), None)
        mend = "" if first is None else f"; {_mended(content[first], str(first))}"
        raise ValueError(f"{path}: every tensor must be the features [n, d] of one layer; there is {shown}{mend}")
    return {
        f"layer{name:02d}" if isinstance(name, int) else str(name): as_floats(value, f"{path}: {name}")
        for name, value in content.items()
    }
