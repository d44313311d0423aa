"""What is read of a folder, what is passed over, and that both are said."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unrolled.data.classes import reading_note
from unrolled.data.images import open_images
from unrolled.data.listing import PassedOver, files_below, printable
from unrolled.data.pairs import open_pairs
from unrolled.data.pictures import find_pictures
from unrolled.data.sounds import open_sounds
from unrolled.data.sources import ImageSource
from unrolled.errors import MissingData


def picture(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(path)
    return path


def folder(root: Path, parts: tuple[str, ...] = ("",), each: int = 5) -> Path:
    """Five images of each of the classes a and b in every part."""
    for part in parts:
        for name in "ab":
            for number in range(each):
                picture(root / part / name / f"{number}.png", number)
    return root


def labels(source: ImageSource) -> list[int]:
    assert source.labels is not None
    return source.labels.tolist()


def hidden_notebooks(root: Path) -> str:
    folder(root / "a" / ".ipynb_checkpoints")
    return "1 hidden or system entries (.ipynb_checkpoints)"


def macosx(root: Path) -> str:
    picture(root / "__MACOSX" / "a" / "._0.png")
    return "1 hidden or system entries (__MACOSX)"


def synology(root: Path) -> str:
    picture(root / "a" / "@eaDir" / "0.png" / "thumb.jpg")
    return "1 hidden or system entries (@eaDir)"


def resource_forks(root: Path) -> str:
    (root / "a" / "._0.png").write_bytes(b"\0\5\x16\7")
    return "1 hidden or system entries (._0.png)"


def system_files(root: Path) -> str:
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (root / "b" / name).write_bytes(b"x")
    return "3 hidden or system entries (.DS_Store, Thumbs.db, desktop.ini)"


def git(root: Path) -> str:
    picture(root / ".git" / "x.png")
    return "1 hidden or system entries (.git)"


def other_files(root: Path) -> str:
    (root / "a" / "notes.TXT").write_text("x")
    (root / "README").write_text("x")
    return "1 files outside the class folders (README), 1 files of other kinds (.txt)"


def a_pipe(root: Path) -> str:
    os.mkfifo(root / "a" / "x.png")
    return "1 pipes, sockets or devices (x.png)"


def a_link_upwards(root: Path) -> str:
    (root / "a" / "again").symlink_to(root / "a")
    return "1 links to folders that were read already (again)"


@pytest.mark.parametrize(
    "litter",
    [hidden_notebooks, macosx, synology, resource_forks, system_files, git, other_files, a_pipe, a_link_upwards],
)
def test_litter_never_counts_and_is_said(tmp_path: Path, litter: Callable[[Path], str]) -> None:
    root = folder(tmp_path / "set")
    words = litter(root)
    source = open_images("folder", "all", data_dir=root)
    assert (source.classes, len(source)) == (["a", "b"], 10)
    assert source.passed_over == words
    train = open_images("folder", "train", data_dir=root)
    assert reading_note(train=train) == f"train: 8 images of 2 classes (a 4, b 4) (passed over: {words})"


@pytest.mark.parametrize("litter", [hidden_notebooks, macosx, synology, resource_forks, git])
def test_every_reader_of_folders_passes_litter_over(tmp_path: Path, litter: Callable[[Path], str]) -> None:
    root = folder(tmp_path / "set")
    litter(root)
    images = {path.relative_to(root).as_posix() for path in root.glob("[ab]/[0-4].png")}
    for name in images:
        (root / name).with_suffix(".txt").write_text("a caption")
        (root / name).with_suffix(".wav").write_bytes(b"RIFF")
    assert set(open_pairs("folder", data_dir=root).ids) == images
    assert set(open_sounds(root).ids) == {name.replace(".png", ".wav") for name in images}
    assert [path.name for path in find_pictures([root / "a"])] == [f"{number}.png" for number in range(5)]


@pytest.mark.parametrize(
    "parts",
    [("train", "test"), ("Train", "Val"), ("training", "validation"), ("TRAIN", "valid"), ("Training", "Testing")],
)
def test_parts_are_known_by_all_their_names(tmp_path: Path, parts: tuple[str, str]) -> None:
    root = folder(tmp_path, parts)
    picture(root / "raw" / "x.png")
    train, test = open_images("folder", "train", data_dir=root), open_images("folder", "test", data_dir=root)
    assert (train.classes, len(train), len(test)) == (["a", "b"], 10, 10)
    assert train.passed_over == "1 folders beside the parts (raw)"
    assert not {train.name(i) for i in range(10)} & {test.name(i) for i in range(10)}


def test_one_part_under_two_names_is_refused(tmp_path: Path) -> None:
    folder(tmp_path, ("train", "val", "valid"))
    with pytest.raises(ValueError, match=r"val and valid, which are one part \(val\)"):
        open_images("folder", "train", data_dir=tmp_path)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("bus", "train", "car"):
        for number in range(5):
            picture(tmp_path / name / f"{number}.png")
    assert open_images("folder", "train", data_dir=tmp_path).classes == ["bus", "car", "train"]


def test_a_test_folder_without_classes_is_no_test_split(tmp_path: Path) -> None:
    folder(tmp_path, ("train", "val"))
    picture(tmp_path / "test" / "1.png")
    test = open_images("folder", "test", data_dir=tmp_path)
    assert (len(test), test.passed_over) == (10, "1 parts without class folders (test)")
    shutil.rmtree(tmp_path / "val")
    with pytest.raises(MissingData, match="neither test/ nor val/ with class folders"):
        open_images("folder", "test", data_dir=tmp_path)


def test_a_lonely_part_says_how_it_is_taken(tmp_path: Path) -> None:
    folder(tmp_path, ("val",))
    with pytest.raises(MissingData, match=rf"give {tmp_path}/val, with split='all'"):
        open_images("folder", "test", data_dir=tmp_path)


def test_links_are_followed_as_torchvision_does(tmp_path: Path) -> None:
    root, elsewhere = folder(tmp_path / "set"), folder(tmp_path / "elsewhere", each=3)
    (root / "c").symlink_to(elsewhere / "a")
    (root / "a" / "more").symlink_to(elsewhere / "b")
    (root / "b" / "extra.png").symlink_to(elsewhere / "a" / "0.png")
    source = open_images("folder", "all", data_dir=root)
    assert source.classes == ["a", "b", "c"]
    assert np.bincount(labels(source)).tolist() == [8, 6, 3]
    assert source.passed_over == ""


def test_a_broken_link_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    root = folder(tmp_path)
    (root / "a" / "9.png").symlink_to(tmp_path / "gone.png")
    source = open_images("folder", "all", data_dir=root)
    assert len(source) == 11
    with pytest.raises(ValueError, match=r"cannot be decoded|No such file|is no"):
        source.load(5)


def test_names_that_are_no_utf8_are_read_and_shown(tmp_path: Path) -> None:
    root = folder(tmp_path / "set")
    odd = os.fsdecode(b"caf\xe9")
    try:
        picture(root / odd / f"{odd}.png")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    source = open_images("folder", "all", data_dir=root)
    assert source.classes == ["a", "b", "caf\\xe9"]
    assert source.name(10) == f"{root}/caf\\xe9/caf\\xe9.png"
    assert source.load(10)[1] == 2
    source.name(10).encode()


def test_accents_are_one_whatever_their_form(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    folder(tmp_path, ("train", "test"))
    picture(tmp_path / "train" / composed / "0.png")
    picture(tmp_path / "test" / decomposed / "0.png")
    test = open_images("folder", "test", data_dir=tmp_path)
    assert (test.classes, labels(test)[-1]) == (["a", "b", composed], 2)
    picture(tmp_path / "train" / decomposed / "0.png")
    if len(list((tmp_path / "train").iterdir())) == 4:
        with pytest.raises(ValueError, match="two folders called café"):
            open_images("folder", "test", data_dir=tmp_path)


def test_unknown_classes_are_refused_or_left_out(tmp_path: Path) -> None:
    folder(tmp_path, ("train", "test"))
    picture(tmp_path / "test" / "c" / "0.png")
    with pytest.raises(ValueError, match=r"class 'c' .*\(unknown_classes='skip'\)"):
        open_images("folder", "test", data_dir=tmp_path)
    test = open_images("folder", "test", data_dir=tmp_path, unknown_classes="skip")
    assert (len(test), test.passed_over) == (10, "1 images of classes that training lacks (c)")


def test_read_only_folders_are_read(tmp_path: Path) -> None:
    root = folder(tmp_path / "set")
    places = [root, *(path for path in root.rglob("*") if path.is_dir())]
    for place in places:
        place.chmod(0o555)
    try:
        assert len(open_images("folder", "train", data_dir=root)) == 8
    finally:
        for place in places:
            place.chmod(0o755)
    assert not [path for path in root.rglob("*") if path.is_file() and path.suffix != ".png"]


def test_a_listing_is_sorted_and_counts_by_kind(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.csv", "d.csv", "e"):
        (tmp_path / name).write_text("x")
    passed = PassedOver()
    assert [path.name for path in files_below(tmp_path, {".txt"}, passed)] == ["a.txt", "b.txt"]
    assert passed.summary() == "3 files of other kinds (.csv, without ending)"
    assert printable(os.fsdecode(b"a\xff")) == "a\\xff"
