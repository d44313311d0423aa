"""WebDataset shards: whose label an image gets, and shards that are not whole."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tests.files import plain, tar
from unrolled.data.images import open_images
from unrolled.data.shards import index_shards
from unrolled.errors import CorruptFile

pytest.importorskip("webdataset")


def shard(path: Path, samples: list[dict[str, bytes]], start: int = 0) -> Path:
    """A tar of samples, {suffix: content} each; images get `start` and on as their value."""
    return tar(
        path,
        (
            (f"{number:03d}.{suffix}", content)
            for number, files in enumerate(samples)
            for suffix, content in {"png": plain(start + number), **files}.items()
        ),
    )


def cls(*labels: int) -> list[dict[str, bytes]]:
    return [{"cls": str(label).encode()} for label in labels]


def read(folder: Path, pattern: str = "wds:p*/0.tar") -> list[tuple[int, int]]:
    """(value, label) of every image."""
    source = open_images(pattern, "train", data_dir=folder)
    found = [source.load(index) for index in range(len(source))]
    return [(int(np.asarray(picture)[0, 0, 0]), label) for picture, label in found]


TWO = [(0, 0), (1, 1), (2, 2), (10, 2), (11, 1), (12, 0)]


def two(folder: Path) -> Path:
    shard(folder / "p1" / "0.tar", cls(0, 1, 2))
    shard(folder / "p2" / "0.tar", cls(2, 1, 0), start=10)
    return folder


def test_shards_of_one_name_keep_their_own_labels(tmp_path: Path) -> None:
    assert read(two(tmp_path)) == TWO


def test_an_index_tells_shards_of_one_name_apart(tmp_path: Path) -> None:
    index = index_shards("p*/0.tar", two(tmp_path))
    assert index == {"labels": {"p1/0.tar": [0, 1, 2], "p2/0.tar": [2, 1, 0]}}
    swapped = {"labels": {"p1/0.tar": [2, 2, 2], "p2/0.tar": [0, 0, 0]}, "classes": ["x", "y", "z"]}
    (tmp_path / "index.json").write_text(json.dumps(swapped))
    assert [label for _, label in read(tmp_path)] == [2, 2, 2, 0, 0, 0]
    (tmp_path / "index.json").write_text(json.dumps({"labels": {"0.tar": [0, 1, 2]}}))
    with pytest.raises(ValueError, match=r"labels of 0\.tar, and several shards are called so"):
        read(tmp_path)


def test_an_index_of_one_shard_says_nothing_of_another_whose_path_ends_like_it(tmp_path: Path) -> None:
    two(tmp_path)
    shard(tmp_path / "0.tar", cls(1, 1, 1), start=20)
    shard(tmp_path / "more" / "p1" / "0.tar", cls(2, 2, 2), start=30)
    (tmp_path / "index.json").write_text(json.dumps({"labels": {"0.tar": [1, 1, 1], "p1/0.tar": [0, 1, 2]}}))
    assert read(tmp_path, "wds:more/p1/0.tar") == [(30, 2), (31, 2), (32, 2)]
    assert read(tmp_path, "wds:p2/0.tar") == TWO[3:]
    assert read(tmp_path, "wds:p1/0.tar") == TWO[:3]


def test_an_index_beside_each_shard_is_of_that_shard(tmp_path: Path) -> None:
    two(tmp_path)
    for part, labels in (("p1", [1, 1, 1]), ("p2", [2, 2, 2])):
        (tmp_path / part / "index.json").write_text(json.dumps({"labels": {"0.tar": labels}}))
    assert [label for _, label in read(tmp_path)] == [1, 1, 1, 2, 2, 2]
    (tmp_path / "p1" / "classes.txt").write_text("a\nb\nc\n")
    (tmp_path / "p2" / "classes.txt").write_text("c\nb\na\n")
    with pytest.raises(ValueError, match="name other classes"):
        read(tmp_path)


@pytest.mark.parametrize(
    "files",
    [
        {"cls": b"1", "json": b'{"caption": "x"}'},
        {"json": b'{"caption": "x"}', "cls": b"1"},
        {"cls": b"1", "json": b'{"label": 0}'},
        {"json": b'{"label": 0}', "cls": b"1\n"},
        {"json": b'{"label": 1, "caption": "x"}'},
        {"cls": b"1", "json": b"[]"},
    ],
)
def test_one_order_of_labels_when_scanning_and_when_reading(tmp_path: Path, files: dict[str, bytes]) -> None:
    shard(tmp_path / "p" / "0.tar", [files, {"cls": b"0"}])
    assert read(tmp_path) == [(0, 1), (1, 0)]
    assert index_shards("p/0.tar", tmp_path)["labels"] == {"0.tar": [1, 0]}


@pytest.mark.parametrize("files", [{"json": b'{"label": 1.7}'}, {"json": b'{"label": null}'}, {"cls": b"1.0"}])
def test_a_label_is_an_integer(tmp_path: Path, files: dict[str, bytes]) -> None:
    shard(tmp_path / "p" / "0.tar", [{"cls": b"0"}, files])
    with pytest.raises(CorruptFile, match=r"0\.tar: sample 001: the label must be an integer"):
        open_images("wds:p/0.tar", "train", data_dir=tmp_path)


@pytest.mark.parametrize("files", [{"json": b'{"caption": "x"}'}, {"txt": b"1"}, {"json": b"[1]"}])
def test_a_sample_without_a_label_is_named(tmp_path: Path, files: dict[str, bytes]) -> None:
    shard(tmp_path / "p" / "0.tar", [{"cls": b"0"}, files])
    with pytest.raises(CorruptFile, match=r"0\.tar: sample 001 has no label"):
        read(tmp_path)


def whole(folder: Path) -> bytes:
    return shard(folder / "p" / "0.tar", cls(*[0, 1, 2] * 3)).read_bytes()


@pytest.mark.parametrize("samples", [1, 3, 8, 9])
def test_a_shard_cut_between_two_samples_is_damaged(tmp_path: Path, samples: int) -> None:
    data = whole(tmp_path)
    with tarfile.open(tmp_path / "p" / "0.tar") as archive:
        ends = [0, *(member.offset_data + -(-member.size // 512) * 512 for member in archive)]
    (tmp_path / "p" / "0.tar").write_bytes(data[: ends[2 * samples]])
    with pytest.raises(CorruptFile, match=r"0\.tar is cut short"):
        read(tmp_path)
    index = {"labels": {"0.tar": [0, 1, 2] * 3}}
    (tmp_path / "index.json").write_text(json.dumps(index))
    if samples < 9:
        with pytest.raises(CorruptFile, match=f"holds {samples} samples, its index says 9"):
            read(tmp_path)


def test_a_shard_cut_elsewhere_or_joined_is_damaged(tmp_path: Path) -> None:
    data = whole(tmp_path)
    path = tmp_path / "p" / "0.tar"
    for cut in (300, 700, 1500, 4096):
        path.write_bytes(data[:cut])
        with pytest.raises(CorruptFile, match=r"0\.tar"):
            read(tmp_path)
    path.write_bytes(data + data)
    with pytest.raises(CorruptFile, match="as joined tar files do"):
        read(tmp_path)
    path.write_bytes(data)
    assert len(read(tmp_path)) == 9


def test_what_systems_add_to_tars_is_passed_over(tmp_path: Path) -> None:
    added = {"./._a.png": b"x", "./a.png": plain(3), "./a.cls": b"0", "__MACOSX/._a.png": b"x", ".DS_Store": b"x"}
    tar(tmp_path / "p" / "0.tar", added.items())
    assert read(tmp_path) == [(3, 0)]
