"""Reading files of tensors without running anything in them."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from unrolled.arrays import read_npz
from unrolled.checksums import check_file
from unrolled.errors import CorruptFile, MissingData, UnsafeFile

# how a NumPy scalar is unpickled; files name it by where NumPy kept it when they were written
_NUMPY_SCALAR = np.float64(0).__reduce__()[0]

# what published training checkpoints are known to hold besides tensors; harmless to construct, allowed by name only
ALLOWED_GLOBALS: dict[str, list[Any]] = {
    "argparse.Namespace": [argparse.Namespace],
    "numpy.scalar": [
        np.dtype,
        (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
        (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
        *(getattr(np.dtypes, name) for name in ("Float64DType", "Float32DType", "Int64DType")),
    ],
}


def read_tensors(path: str | Path, *, allow: Sequence[str] = ()) -> Any:
    """Read a checkpoint file; only tensors and plain containers are ever built.

    Args:
        path: a `.safetensors` file, a `.npz` of arrays, or anything `torch.save` wrote.
        allow: names of `ALLOWED_GLOBALS` that may be constructed as well.

    Returns:
        What the file holds, on the CPU.

    Raises:
        MissingData: no such file.
        UnsafeFile: the file asks for something else; the message names it.
        CorruptFile: the file is truncated or damaged, or not the one that `SHA256SUMS` beside it was written for.
        ValueError: `allow` has an unknown name.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingData(f"{path}: no such checkpoint file")
    unknown = set(allow) - ALLOWED_GLOBALS.keys()
    if unknown:
        raise ValueError(f"allow={sorted(unknown)}: only {sorted(ALLOWED_GLOBALS)} can be allowed")
    check_file(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise CorruptFile(f"{path}: truncated or damaged safetensors file ({error})") from error
    if path.suffix == ".npz":
        return {name: _tensor(array) for name, array in read_npz(path).items()}
    permitted = [thing for name in allow for thing in ALLOWED_GLOBALS[name]]
    try:
        with torch.serialization.safe_globals(permitted):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = _unsafe_globals(path, permitted)
        if not wanted:
            raise CorruptFile(f"{path}: truncated, damaged, or no checkpoint at all") from error
        options = [name for name in ALLOWED_GLOBALS if name not in allow]
        more = [thing for name in options for thing in ALLOWED_GLOBALS[name]]
        enough = not _unsafe_globals(path, [*permitted, *more])
        trusted = f"if you trust it, allow what of {options} it needs by name, or " if enough else ""
        raise UnsafeFile(
            f"{path}: needs {', '.join(wanted)} to be read and was refused, not executed; {trusted}re-save its tensors "
            "(of a model, its state dict) as safetensors"
        ) from error
    except (RuntimeError, OSError, zipfile.BadZipFile) as error:
        raise CorruptFile(f"{path}: truncated or damaged ({str(error).splitlines()[0]})") from error
    except (EOFError, LookupError, ValueError, TypeError, AttributeError) as error:  # of bytes that are no pickle
        raise CorruptFile(f"{path}: truncated, damaged, or no checkpoint at all") from error


def _tensor(array: np.ndarray) -> Tensor:
    if array.dtype == np.dtype("V2"):  # how NumPy stores JAX's bfloat16
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16).float()
    return torch.from_numpy(array)


def _unsafe_globals(path: Path, permitted: list[Any]) -> list[str]:
    try:
        with torch.serialization.safe_globals(permitted):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, zipfile.BadZipFile):
        return []
