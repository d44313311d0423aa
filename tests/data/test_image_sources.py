from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unrolled.data.images import BadImage, open_images, synthetic_images
from unrolled.data.packed import PackedSource
from unrolled.data.sources import ArraySource, decode, stratified_split
from unrolled.errors import CorruptFile, MissingData, UnsafeFile

WritePacked = Callable[..., Path]


def test_digits_are_split_by_class_and_by_seed() -> None:
    train, test = open_images("digits", "train"), open_images("digits", "test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.native_size == (1, 8, 8)
    assert train.classes == [str(n) for n in range(10)]
    assert train.labels is not None
    assert test.labels is not None
    whole = np.bincount(train.labels) + np.bincount(test.labels)
    assert np.abs(np.bincount(test.labels) - whole * 0.2).max() < 1
    names = [{source.name(i) for i in range(len(source))} for source in (train, test)]
    assert not names[0] & names[1]
    again, other = open_images("digits", "test"), open_images("digits", "test", seed=1)
    assert [again.name(i) for i in range(360)] == [test.name(i) for i in range(360)]
    assert {other.name(i) for i in range(360)} != names[1]
    picture, label = test.load(7)
    assert np.asarray(picture).shape == (8, 8, 1)
    assert label == test.labels[7]
    assert np.asarray(picture).max() > 200


def test_validation_is_held_out_of_training_only() -> None:
    parts = {split: open_images("digits", split, val_fraction=0.1, seed=3) for split in ("train", "val", "test")}  # type: ignore[arg-type]
    names = {split: {source.name(i) for i in range(len(source))} for split, source in parts.items()}
    assert len(names["train"]) + len(names["val"]) == 1437
    assert len(names["val"]) == 144
    assert not names["train"] & names["val"]
    assert not names["val"] & names["test"]
    with pytest.raises(ValueError, match="val_fraction"):
        open_images("digits", "val")


@settings(max_examples=50, deadline=None)
@given(
    labels=st.lists(st.integers(0, 5), min_size=4, max_size=80),
    fraction=st.floats(0.05, 0.6),
    seed=st.integers(0, 1000),
)
def test_a_split_is_a_partition_and_keeps_every_class_in_training(
    labels: list[int], fraction: float, seed: int
) -> None:
    values = np.array(labels)
    if len(np.unique(values)) == len(values):
        return  # one image a class: nothing can be held out
    first, second = stratified_split(values, len(values), fraction, seed)
    assert sorted([*first, *second]) == list(range(len(values)))
    assert set(values[first]) == set(values)
    for label in np.unique(values):
        members, held = (values == label).sum(), (values[second] == label).sum()
        assert held <= members * fraction + 1
    again = stratified_split(values, len(values), fraction, seed)
    assert np.array_equal(second, again[1])


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'cifar10'"):
        open_images("cifr10", "train")
    with pytest.raises(ValueError, match="did you mean 'oxford_iiit_pet'"):
        open_images("oxford-iit-pet", "train")
    with pytest.raises(ValueError, match="split must be"):
        open_images("digits", "dev")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="val_fraction"):
        open_images("digits", "train", val_fraction=1.0)


def test_synthetic_sets_share_their_patterns() -> None:
    train, test = (synthetic_images(200, size=8, classes=4, channels=1, seed=seed) for seed in (0, 1))
    means = np.stack([train.take(np.flatnonzero(train.labels == label))[0].mean(0) for label in range(4)])
    pixels = test.take(np.arange(200))[0].astype(float)
    nearest = ((pixels[:, None] - means) ** 2).sum((2, 3, 4)).argmin(1)
    assert test.labels is not None
    assert (nearest == test.labels).mean() > 0.95
    assert not np.array_equal(train.take(np.arange(9))[0], test.take(np.arange(9))[0])


def test_floating_point_images_must_be_finite_and_scaled() -> None:
    images = np.full((3, 4, 4), 0.5, np.float32)
    images[1, 2, 2] = np.nan
    images[2] *= 255
    source = ArraySource(images, np.zeros(3, int), classes=["x"], title="t")
    assert np.asarray(source.load(0)[0]).max() == 128
    with pytest.raises(BadImage, match="NaN"):
        source.load(1)
    with pytest.raises(BadImage, match="scale them"):
        source.load(2)
    _, bad = source.take(np.array([2, 0, 1]))
    assert sorted(bad) == [0, 2]
    with pytest.raises(ValueError, match="channels"):
        ArraySource(np.zeros((3, 4, 4, 7), np.uint8), np.zeros(3, int), classes=["x"], title="t")


def test_labels_outside_the_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="label 5 of image 2 is outside the 3 classes"):
        ArraySource(np.zeros((4, 2, 2), np.uint8), np.array([0, 1, 5, -1]), classes=list("abc"), title="t")


def test_folder(image_folder: Path) -> None:
    train = open_images("folder", "train", data_dir=image_folder)
    test = open_images("folder", "test", data_dir=str(image_folder))
    assert (len(train), len(test)) == (9, 3)
    assert train.classes == test.classes == ["a", "b", "c"]
    picture, label = train.load(8)
    assert isinstance(picture, Image.Image)
    assert (picture.size, label) == ((12, 12), 2)
    assert train.name(8).endswith("c/08.png")
    val = open_images("folder", "val", data_dir=image_folder, val_fraction=0.3)
    assert all("/train/" in val.name(i) for i in range(len(val)))
    with pytest.raises(ValueError, match="no validation split"):
        open_images("folder", "val", data_dir=image_folder)
    (image_folder / "val").rename(image_folder / "test")
    (image_folder / "val" / "b").mkdir(parents=True)
    (image_folder / "test" / "b").rename(image_folder / "val" / "b")
    own = open_images("folder", "val", data_dir=image_folder)
    assert own.load(0)[1] == 1
    assert len(open_images("folder", "test", data_dir=image_folder)) == 2


def test_one_folder_of_classes_is_split_by_seed(image_folder: Path) -> None:
    parts = [open_images("folder", split, data_dir=image_folder / "train") for split in ("train", "test")]  # type: ignore[arg-type]
    assert [len(part) for part in parts] == [7, 2]


def test_missing_and_empty_folders(image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data_dir: `folder` needs"):
        open_images("folder", "train")
    with pytest.raises(MissingData, match="does not exist"):
        open_images("folder", "train", data_dir=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no class folders"):
        open_images("folder", "train", data_dir=tmp_path / "empty")
    (image_folder / "val" / "d").mkdir()
    with pytest.raises(ValueError, match="class 'd' that the training split does not have"):
        open_images("folder", "test", data_dir=image_folder)
    (image_folder / "train" / "e").mkdir()
    with pytest.raises(ValueError, match="has no images"):
        open_images("folder", "train", data_dir=image_folder)


def test_undecodable_files_say_why(tmp_path: Path, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "picture.jpg"
    Image.fromarray(np.tile(pictures[0], (20, 20, 1))).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadImage, match="truncated"):
        decode(path)
    path.write_bytes(b"")
    with pytest.raises(BadImage, match="known format"):
        decode(path)
    with pytest.raises(BadImage, match="no such file"):
        decode(tmp_path / "gone.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(BadImage, match="240 x 240 pixels"):
        decode(whole)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadImage, match="too many pixels"):
        decode(whole)


def test_packed_files_are_found_by_name(tmp_path: Path, write_packed: WritePacked, pictures: list[np.ndarray]) -> None:
    write_packed(tmp_path / "cifar10_train_jpeg.npz")
    write_packed(tmp_path / "cifar10_test_jpeg.npz")
    for name, folder in (("cifar10", tmp_path), ("packed", tmp_path)):
        source = open_images(name, "train", data_dir=folder)
        assert (len(source), source.native_size, source.classes) == (12, (3, 12, 12), ["a", "b", "c"])
        picture, label = source.load(4)
        assert np.array_equal(np.asarray(picture), pictures[4])
        assert label == 1
        pixels, bad = source.take(np.array([4, 0]))
        assert np.array_equal(pixels[0], pictures[4])
        assert not bad
    nested = tmp_path / "other"
    write_packed(nested / "tiny-imagenet-32" / "tiny32_train_250.npz")
    write_packed(nested / "tiny-imagenet-32" / "tiny32_val.npz")
    assert len(open_images("tiny-imagenet-32", "test", data_dir=nested)) == 12
    assert len(open_images("tiny-imagenet-32", "train", data_dir=nested, val_fraction=0.25)) == 9
    assert len(open_images("packed", "test", data_dir=nested / "tiny-imagenet-32" / "tiny32_val.npz")) == 3
    (tmp_path / "cifar10_test_jpeg.npz").unlink()
    with pytest.raises(MissingData, match="no packed test file"):
        open_images("packed", "test", data_dir=tmp_path)
    write_packed(tmp_path / "b_train.npz")
    with pytest.raises(ValueError, match="several packed train files"):
        open_images("packed", "train", data_dir=tmp_path)


def test_a_packed_header_is_put_before_every_image(tmp_path: Path, write_packed: WritePacked) -> None:
    path = write_packed(tmp_path / "x_train.npz")
    arrays = dict(np.load(path))
    blobs = [arrays["payload"][a:b] for a, b in zip(arrays["offsets"], arrays["offsets"][1:], strict=False)]
    short = [blob[8:] for blob in blobs]
    offsets = np.concatenate([[0], np.cumsum([len(blob) for blob in short])])
    headed = write_packed(tmp_path / "h_train.npz", payload=np.concatenate(short), offsets=offsets, header=blobs[0][:8])
    assert np.array_equal(PackedSource(headed).take(np.arange(12))[0], PackedSource(path).take(np.arange(12))[0])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"offsets": None}, CorruptFile, "lacks offsets"),
        ({"offsets": np.arange(13)[::-1]}, CorruptFile, "must not decrease"),
        ({"offsets": np.arange(13) * 10**6}, CorruptFile, "must not decrease and must stay within"),
        ({"offsets": np.arange(13) - 5}, CorruptFile, "offsets must not"),
        ({"offsets": np.arange(13.0)}, CorruptFile, "offsets must be"),
        ({"payload": np.zeros(9)}, CorruptFile, "payload must be uint8"),
        ({"labels": np.arange(12)}, ValueError, "label 3 of image 3 is outside the 3 classes"),
        ({"labels": np.arange(5)}, ValueError, "labels must be 12 integers"),
        ({"class_names": np.array(["a", {}], object)}, UnsafeFile, "pickled"),
    ],
)
def test_damaged_packed_files_are_refused(
    tmp_path: Path, write_packed: WritePacked, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        PackedSource(write_packed(tmp_path / "x_train.npz", **changes))


def test_a_truncated_packed_file_is_refused(tmp_path: Path, write_packed: WritePacked) -> None:
    path = write_packed(tmp_path / "x_train.npz")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CorruptFile, match="truncated"):
        PackedSource(path)
    with pytest.raises(MissingData):
        PackedSource(tmp_path / "none.npz")


def test_the_real_packed_cifar(shared: Path) -> None:
    source = open_images("cifar10", "test", data_dir=shared / "data")
    assert (len(source), source.native_size) == (10_000, (3, 32, 32))
    assert source.classes[:2] == ["airplane", "automobile"]
    held = open_images("cifar10", "val", data_dir=shared / "data", val_fraction=0.1)
    assert held.labels is not None
    assert np.bincount(held.labels).tolist() == [500] * 10
    picture, _ = held.load(0)
    assert isinstance(picture, Image.Image)
    assert picture.size == (32, 32)


def test_packed_files_with_classes_in_another_order_are_matched_by_name(
    tmp_path: Path, write_packed: WritePacked
) -> None:
    write_packed(tmp_path / "x_train.npz")
    write_packed(tmp_path / "x_test.npz", class_names=np.array(["c", "a", "b"]))
    test = open_images("packed", "test", data_dir=tmp_path)
    assert test.classes == ["a", "b", "c"]
    assert [test.load(index)[1] for index in range(6)] == [2, 0, 1, 2, 0, 1]
    write_packed(tmp_path / "x_test.npz", class_names=np.array(["a", "b", "d"]))
    with pytest.raises(ValueError, match=r"class 'd' that the training file does not have \(a, b, c\)"):
        open_images("packed", "test", data_dir=tmp_path)
    some = open_images("packed", "test", data_dir=tmp_path, unknown_classes="skip")
    assert (len(some), some.passed_over) == (8, "4 images of classes that training lacks (d)")
