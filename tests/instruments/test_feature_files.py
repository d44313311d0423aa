"""Features that people have: which files are read, which are refused, and what to type instead."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import unrolled
from unrolled.errors import CorruptFile, MissingData, UnsafeFile
from unrolled.instruments.features.files import is_feature_file, read_features

ROWS = np.random.default_rng(0).normal(size=(12, 4))


def write(path: Path) -> dict[str, np.ndarray]:
    """A file of its kind, and the layers that it holds."""
    one, two = ROWS.astype(np.float32), ROWS[:, :2]
    if path.name == "layers.npz":
        np.savez(path, one=one, two=two)
        return {"one": one, "two": two}
    if path.name == "stack.npz":
        np.savez(path, x=np.stack([one, one[::-1]], 1))
        return {"layer00": one, "layer01": one[::-1]}
    if path.name == "one.pt":
        torch.save(torch.from_numpy(one).bfloat16(), path)
        return {"one": torch.from_numpy(one).bfloat16().float().numpy()}
    if path.name == "layers.pt":
        torch.save({"one": torch.from_numpy(one), "two": torch.from_numpy(two)}, path)
        return {"one": one, "two": two}
    torch.save([torch.from_numpy(one), torch.from_numpy(one).flip(0)], path)
    return {"layer00": one, "layer01": one[::-1]}


@pytest.mark.parametrize("name", ["layers.npz", "stack.npz", "one.pt", "layers.pt", "list.pt"])
def test_files_of_arrays_are_read(name: str, tmp_path: Path) -> None:
    wanted = write(tmp_path / name)
    assert is_feature_file(tmp_path / name)
    found = read_features(tmp_path / name)
    assert list(found) == list(wanted)
    for layer, values in wanted.items():
        assert found[layer].dtype == (torch.float64 if values.dtype == np.float64 else torch.float32)
        np.testing.assert_array_equal(np.asarray(found[layer]), values)


class Harmful:
    """What a pickle would run."""

    def __reduce__(self) -> Any:
        return print, ("ran",)


def test_what_a_file_holds_besides_features_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "labelled.npz", x=ROWS, labels=np.arange(12))
    with pytest.raises(ValueError, match=r"labelled\.npz: every tensor must be .* there is labels \[12\]"):
        read_features(tmp_path / "labelled.npz")
    np.savez(tmp_path / "names.npz", x=ROWS, names=np.array(["a"] * 12))
    with pytest.raises(ValueError, match=r"names\.npz: names must be an array of numbers"):
        read_features(tmp_path / "names.npz")
    torch.save({"weight": torch.zeros(2, 2, 3, 3), "epoch": 3}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"there is weight \[2, 2, 3, 3\], epoch int"):
        read_features(tmp_path / "model.pt")
    torch.save({"x": Harmful()}, tmp_path / "harmful.pt")
    with pytest.raises(UnsafeFile, match=r"print to be read and was refused, not executed; re-save its tensors"):
        read_features(tmp_path / "harmful.pt")
    np.savez(tmp_path / "objects.npz", x=np.array([{}] * 12, dtype=object))
    with pytest.raises(UnsafeFile, match=r"objects\.npz holds pickled objects"):
        read_features(tmp_path / "objects.npz")
    assert capsys.readouterr().out == ""
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(CorruptFile, match=r"text\.npz is not an \.npz file"):
        read_features(tmp_path / "text.npz")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(CorruptFile, match=r"cut\.npz"):
        read_features(tmp_path / "cut.npz")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("x.parquet", "numpy.save('x.npy', pandas.read_parquet('x.parquet').to_numpy())"),
        ("x.csv", "numpy.save('x.npy', numpy.loadtxt('x.csv', delimiter=\",\"))"),
        ("x.h5", "numpy.save('x.npy', h5py.File('x.h5')[NAME][:])"),
        ("x.pkl", "numpy.save('x.npy', features)"),
    ],
)
def test_other_files_are_refused_with_the_line_that_saves_them_anew(name: str, line: str, tmp_path: Path) -> None:
    assert is_feature_file(tmp_path / name)
    with pytest.raises(MissingData):
        read_features(tmp_path / name)
    (tmp_path / name).write_bytes(b"1,2\n")
    with pytest.raises(ValueError, match=r"are not read") as error:
        read_features(tmp_path / name)
    assert line in str(error.value)


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (ROWS.tolist(), "features_a is a list of rows.*give numpy.array(features_a)"),
        (list(ROWS), "give numpy.stack(features_a)"),
        (list(torch.from_numpy(ROWS)), "give torch.stack(features_a)"),
        (torch.ones(12, 3, 2, 2), "features_a must be [n, d].*give features_a.mean((2, 3)), of channels at places"),
        (np.ones((12, 3, 2, 2)), "features_a.reshape(len(features_a), -1)"),
        (np.ones(12), "give one row a sample, features_a[:, None]"),
        (ROWS[:3], "features_a has 3 samples and features_b 12: rows must be the same samples"),
        ("a.npy", "features_a is a path: give what it holds, such as numpy.load('a.npy')"),
        ({"block": np.ones((12, 5, 3))}, "features_a: block must be [n, d].*give block.mean(1), of tokens"),
    ],
)
def test_compare_says_the_line_of_code_that_mends_its_features(features: Any, said: str) -> None:
    with pytest.raises(ValueError, match=".*".join(map(re.escape, said.split(".*")))):
        unrolled.compare(features, ROWS)


def test_a_table_of_pandas_is_its_numbers() -> None:
    class Table:
        """What pandas has: an array of its own, and columns to go over."""

        def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
            return ROWS

        def __iter__(self) -> Any:
            return iter(["a", "b"])

    assert unrolled.compare(Table(), ROWS, "cka", draws=9, resamples=0).score == pytest.approx(1)  # type: ignore[arg-type]


def test_one_number_a_row_is_refused_with_the_line_that_makes_it_a_column(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones(12))
    with pytest.raises(ValueError, match=r"float64 \(12,\); give one row a sample, x\[:, None\]"):
        read_features(tmp_path / "x.npy")


@pytest.mark.parametrize("name", ["maps.npy", "maps.npz", "maps.pt"])
def test_features_at_places_are_refused_with_the_line_that_pools_them(name: str, tmp_path: Path) -> None:
    maps, path = np.ones((12, 3, 2, 2), dtype=np.float32), tmp_path / name
    if path.suffix == ".npz":
        np.savez(path, maps=maps)
    elif path.suffix == ".npy":
        np.save(path, maps)
    else:
        torch.save({"maps": torch.from_numpy(maps)}, path)
    with pytest.raises(ValueError, match=r"\(?12, 3, 2, 2.*give maps\.mean\(\(2, 3\)\), of channels at places"):
        read_features(path)
