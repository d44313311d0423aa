"""Data sets that come from elsewhere, made small and local here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image

from tests.files import encoded, plain, tar
from unrolled.data.images import (
    ImageSource,
    dataset_names,
    eval_loader,
    eval_transform,
    open_images,
    train_loader,
)
from unrolled.data.shards import GROUP, expand_shards, index_shards
from unrolled.errors import CorruptFile, MissingData

TRANSFORM = eval_transform((3, 12, 12), (0.5,), (0.5,))


def no_network(*args: object, **kwargs: object) -> None:
    raise OSError("no network")


# --- torchvision


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = b"".join(int(size).to_bytes(4, "big") for size in array.shape)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


def test_fashion_mnist_from_its_own_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", 30), ("t10k", 20)):
        raw = tmp_path / "FashionMNIST" / "raw"
        write_idx(raw / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        write_idx(raw / f"{part}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    train = open_images("fashion-mnist", "train", data_dir=tmp_path, val_fraction=1 / 3)
    test = open_images("fashion_mnist", "test", data_dir=tmp_path)
    assert (len(train), len(test), test.native_size) == (20, 20, (1, 28, 28))
    assert test.classes[1] == "Trouser"
    assert test.name(3) == "fashion_mnist/test[3]"


def test_pets_from_its_own_files(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    base = tmp_path / "oxford-iiit-pet"
    for folder in ("images", "annotations"):
        (base / folder).mkdir(parents=True)
    names = [f"{'beagle' if i % 2 else 'Bengal'}_{i}" for i in range(6)]
    for name, picture in zip(names, pictures, strict=False):
        Image.fromarray(picture).save(base / "images" / f"{name}.jpg")
    lines = [f"{name} {i % 2 + 1} 1 1\n" for i, name in enumerate(names)]
    (base / "annotations" / "trainval.txt").write_text("".join(lines[:4]))
    (base / "annotations" / "test.txt").write_text("".join(lines[4:]))
    train, test = (open_images("pets", split, data_dir=tmp_path) for split in ("train", "test"))  # type: ignore[arg-type]
    assert (len(train), len(test)) == (4, 2)
    assert test.classes == ["Bengal", "Beagle"]
    assert test.load(1)[1] == 1
    assert test.name(1).endswith("beagle_5.jpg")


class _FakeFlowers:
    """As torchvision's Flowers102 after reading its lists, without the files' check sums."""

    def __init__(self, root: Path, split: str, download: bool) -> None:
        count = {"train": 4, "val": 4, "test": 6}[split]
        self._labels = [index % 2 for index in range(count)]
        self._image_files = [Path(root) / f"{split}_{index}.jpg" for index in range(count)]
        self.classes = ["pink primrose", "daisy"]


def test_flowers_may_train_on_both_official_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets, "Flowers102", _FakeFlowers)
    sizes = {
        (name, split): len(open_images(name, split, data_dir=tmp_path))  # type: ignore[arg-type]
        for name, split in [
            ("flowers102", "train"),
            ("flowers102", "val"),
            ("flowers102", "test"),
            ("flowers102_trainval", "train"),
        ]
    }
    assert list(sizes.values()) == [4, 4, 6, 8]
    with pytest.raises(ValueError, match="no validation split"):
        open_images("flowers102_trainval", "val", data_dir=tmp_path)
    held = open_images("flowers102_trainval", "val", data_dir=tmp_path, val_fraction=0.25)
    assert len(held) == 2


def test_a_download_is_tried_only_when_needed_and_its_failure_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", no_network)
    with pytest.raises(MissingData, match=r"cifar10 is not in .* could not be downloaded \(no network\)"):
        open_images("cifar10", "train", data_dir=tmp_path)
    monkeypatch.setenv("UNROLLED_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(MissingData, match="elsewhere"):
        open_images("cifar10", "train")


def test_a_failed_download_leaves_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(dataset: Any) -> None:
        Path(dataset.raw_folder).mkdir(parents=True)
        raise RuntimeError("no network")

    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "download", download)
    (tmp_path / "mine").mkdir()
    for folder in (tmp_path, tmp_path / "deep" / "new"):
        with pytest.raises(MissingData, match="no network"):
            open_images("fashion_mnist", "train", data_dir=folder)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["deep", "mine"]


def test_imagenet_is_a_folder(image_folder: Path) -> None:
    assert len(open_images("imagenet", "train", data_dir=image_folder)) == 9
    assert len(open_images("imagenet", "test", data_dir=image_folder)) == 3
    with pytest.raises(ValueError, match="data_dir: `imagenet` needs"):
        open_images("imagenet", "train")


def test_names_are_listed() -> None:
    assert {"digits", "cifar10", "flowers102", "folder", "packed", "hf:ORG/NAME"} <= set(dataset_names())


# --- Hugging Face


def hub_table(pictures: list[np.ndarray], **columns: Any) -> Any:
    datasets = pytest.importorskip("datasets")
    labels = columns.pop("labels", None) or [index % 3 for index in range(len(pictures))]
    feature = columns.pop("feature", datasets.ClassLabel(names=["a", "b", "c"]))
    features = datasets.Features({"picture": datasets.Image(), "label": feature, "note": datasets.Value("string")})
    rows = {
        "picture": [{"bytes": encoded(p), "path": None} for p in pictures],
        "label": labels,
        "note": ["x"] * len(pictures),
    }
    return datasets.Dataset.from_dict(rows, features=features)


def test_hub_data_set_from_disk(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    datasets = pytest.importorskip("datasets")
    parts = {"train": hub_table(pictures[:9]), "validation": hub_table(pictures[9:])}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "set"))
    name = f"hf:{tmp_path / 'set'}"
    train, test = open_images(name, "train"), open_images(name, "test")
    assert (len(train), len(test), train.classes) == (9, 3, ["a", "b", "c"])
    picture, label = train.load(4)
    assert np.array_equal(np.asarray(picture), pictures[4])
    assert label == 1
    assert len(open_images(name, "val", val_fraction=0.3)) == 3
    batches = list(train_loader(train, TRANSFORM, batch_size=4, seed=0, steps=2, workers=1))
    assert batches[0].images.shape == (4, 3, 12, 12)


def test_hub_labels_may_be_numbers_or_words(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    datasets = pytest.importorskip("datasets")
    words = hub_table(pictures, labels=["cat", "dog"] * 6, feature=datasets.Value("string"))
    words.save_to_disk(str(tmp_path / "words"))
    test = open_images(f"hf:{tmp_path / 'words'}", "test")
    assert test.classes == ["cat", "dog"]
    assert len(test) == 3
    words.to_parquet(str(tmp_path / "parquet" / "train.parquet"))
    train = open_images(f"hf:{tmp_path / 'parquet'}", "train", data_dir=tmp_path / "cache")
    assert len(train) == 9
    unlabelled = hub_table(pictures, labels=[-1] * 12, feature=datasets.Value("int64"))
    unlabelled.save_to_disk(str(tmp_path / "unlabelled"))
    with pytest.raises(ValueError, match="label -1 of image 0"):
        open_images(f"hf:{tmp_path / 'unlabelled'}", "train")


def test_hub_columns_that_lack_are_named(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    table = hub_table(pictures)
    table.remove_columns("picture").save_to_disk(str(tmp_path / "blind"))
    with pytest.raises(ValueError, match="no image column; its columns are label"):
        open_images(f"hf:{tmp_path / 'blind'}", "train")
    table.remove_columns("label").save_to_disk(str(tmp_path / "mute"))
    with pytest.raises(ValueError, match="no label column"):
        open_images(f"hf:{tmp_path / 'mute'}", "train")


def test_hub_without_network_is_missing_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", no_network)
    with pytest.raises(MissingData, match="hf:nobody/nothing could not be read"):
        open_images("hf:nobody/nothing", "train", data_dir=tmp_path)


# --- WebDataset


def write_shards(folder: Path, pictures: list[np.ndarray], *, shards: int, each: int, prefix: str = "train") -> None:
    pytest.importorskip("webdataset")
    for shard in range(shards):
        files = []
        for number in range(shard * each, (shard + 1) * each):
            picture, label = plain(number, side=12), str(number % 3)
            parts = {"json": f'{{"label": {label}}}'.encode(), "png": picture}
            if number % 2 == 0:
                parts = {"png": picture, "cls": label.encode()}
            files += [(f"part/{number:05d}.{suffix}", content) for suffix, content in parts.items()]
        tar(folder / f"{prefix}-{shard:03d}.tar", files)


@pytest.fixture
def shards(tmp_path: Path, pictures: list[np.ndarray]) -> Path:
    write_shards(tmp_path / "wds", pictures, shards=10, each=5)
    write_shards(tmp_path / "wds", pictures, shards=1, each=7, prefix="val")
    return tmp_path / "wds"


def opened(folder: Path, split: str = "train", **changes: Any) -> ImageSource:
    pattern = "wds:train-{000..009}.tar;val-*.tar"
    return open_images(pattern, split, data_dir=folder, **changes)  # type: ignore[arg-type]


def test_shards_hold_images_and_labels(shards: Path) -> None:
    train, test = opened(shards), opened(shards, "test")
    assert (len(train), len(test), train.classes) == (50, 7, ["0", "1", "2"])
    for index in (0, 7, 49):
        picture, label = train.load(index)
        assert np.asarray(picture)[0, 0, 0] == index
        assert label == index % 3
    assert train.name(7).endswith("train-001.tar[2]")
    seen = [int(i) for batch in eval_loader(test, TRANSFORM, batch_size=4) for i in batch.indices]
    assert seen == list(range(7))


def test_shards_resume_exactly_and_read_only_what_they_need(shards: Path) -> None:
    whole = list(train_loader(opened(shards), TRANSFORM, batch_size=5, seed=3, steps=14))
    assert len({int(i) for batch in whole[:10] for i in batch.indices}) == 50
    for start, workers in ((1, 0), (9, 2), (12, 0)):
        part = list(
            train_loader(
                opened(shards), TRANSFORM, batch_size=5, seed=3, start_step=start, steps=14 - start, workers=workers
            )
        )
        assert all(np.array_equal(a.images, b.images) for a, b in zip(whole[start:], part, strict=True))
    # the last batch of the epoch needs the last group of shards only
    source = opened(shards)
    last = set(source.order(3, 0)[-5:] // 5)
    for shard in set(range(10)) - last:
        (shards / f"train-{shard:03d}.tar").unlink()
    batch = next(train_loader(source, TRANSFORM, batch_size=5, seed=3, start_step=9))
    assert np.array_equal(batch.images, whole[9].images)
    assert len(last) <= GROUP


def test_shards_are_held_out_whole(shards: Path) -> None:
    train, val = (opened(shards, split, val_fraction=0.2, seed=1) for split in ("train", "val"))
    names = [{source.name(i).split("[")[0] for i in range(len(source))} for source in (train, val)]
    assert [len(part) for part in names] == [8, 2]
    assert not names[0] & names[1]
    with pytest.raises(ValueError, match="no validation split"):
        opened(shards, "val")


def test_an_index_names_labels_and_classes(shards: Path) -> None:
    index = index_shards("train-*.tar", shards)
    assert index["labels"]["train-001.tar"] == [5 % 3, 6 % 3, 7 % 3, 8 % 3, 9 % 3]
    (shards / "index.json").write_text(json.dumps({**index, "classes": ["x", "y", "z", "unused"]}))
    assert opened(shards).classes == ["x", "y", "z", "unused"]
    index["labels"]["train-000.tar"].append(0)
    (shards / "index.json").write_text(json.dumps(index))
    with pytest.raises(CorruptFile, match="holds 5 samples, its index says 6"):
        opened(shards).load(0)
    (shards / "index.json").write_text("[]")
    with pytest.raises(CorruptFile, match="must hold an object"):
        opened(shards)


def test_shards_that_cannot_be_read_are_explained(shards: Path) -> None:
    with pytest.raises(MissingData, match="no shard"):
        open_images("wds:none-*.tar", "train", data_dir=shards)
    with pytest.raises(MissingData, match="names no test shards"):
        open_images("wds:train-*.tar", "test", data_dir=shards)
    with pytest.raises(ValueError, match="would run a command"):
        open_images("wds:pipe:cat x.tar", "train")
    with pytest.raises(ValueError, match="only local paths"):
        open_images("wds:ftp://host/x.tar", "train")
    with pytest.raises(MissingData, match=r"index\.json"):
        open_images("wds:https://host.invalid/x-{0..3}.tar", "train")
    path = shards / "train-004.tar"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(CorruptFile, match=r"train-004\.tar"):
        opened(shards)


def test_braces_count_with_their_zeros() -> None:
    assert expand_shards("https://host/{a..b}-{08..10}.tar") == [
        f"https://host/{{a..b}}-{n}.tar" for n in ("08", "09", "10")
    ]
