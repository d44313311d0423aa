"""Paired data: rows stay paired whatever they come in, and what has no partner is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.files import plain
from unrolled.data.pairs import open_pairs, pair_names
from unrolled.errors import CorruptFile, MissingData, UnsafeFile


def pack(values: list[int]) -> dict[str, np.ndarray]:
    encoded = [plain(value, side=8) for value in values]
    return {
        "payload": np.frombuffer(b"".join(encoded), np.uint8),
        "offsets": np.cumsum([0, *map(len, encoded)]).astype(np.uint32),
    }


def captioned(root: Path, names: list[str]) -> Path:
    root.mkdir(exist_ok=True)
    for i, name in enumerate(names):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(plain(10 * i, side=8))
    return root


def grey(image: Any) -> int:
    return int(np.asarray(image)[0, 0, 0])


@pytest.mark.parametrize(
    "said",
    [
        {"a.png": ["one", "eins"], "sub/b.png": "two"},
        [{"image": "a.png", "caption": "one"}, {"image": "sub/b.png", "captions": ["two"]},
         {"file_name": "a.png", "caption": "eins"}],
        {"images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "sub/b.png"}],
         "annotations": [{"image_id": 1, "caption": "one"}, {"image_id": 2, "caption": "two"},
                         {"image_id": 1, "caption": "eins"}]},
    ],
)  # fmt: skip
def test_captions_json_is_read_in_each_of_its_forms(said: Any, tmp_path: Path) -> None:
    captioned(tmp_path, ["a.png", "sub/b.png"])
    (tmp_path / "captions.json").write_text(json.dumps(said))
    pairs = open_pairs("folder", data_dir=tmp_path)
    assert pairs.ids == ["a.png", "sub/b.png"]
    assert [pairs.texts(0), pairs.texts(1)] == [["one", "eins"], ["two"]]
    assert [grey(pairs.image(i)) for i in range(2)] == [0, 10]
    assert pairs.column() == ["one eins", "two"]
    assert pairs.column(use=1) == ["one", "two"]


@pytest.mark.parametrize("number", ["1", 1.0])
def test_ids_of_captions_are_the_same_as_text_and_as_numbers(number: Any, tmp_path: Path) -> None:
    captioned(tmp_path, ["a.png"])
    said = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": number, "caption": "one"}]}
    (tmp_path / "captions.json").write_text(json.dumps(said))
    assert open_pairs("folder", data_dir=tmp_path).captions == [["one"]]


@pytest.mark.parametrize(
    ("images", "annotations", "words"),
    [
        ([{"file_name": "a.png"}], [], "entry 0 of images lacks id"),
        (["x"], [], "entry 0 of images lacks id"),
        ([{"id": 1, "file_name": "a.png"}], [{"caption": "one"}], "entry 0 of annotations lacks image_id"),
        ([{"id": 1, "file_name": "a.png"}], ["x"], "entry 0 of annotations lacks image_id"),
    ],
)
def test_captions_json_that_lacks_what_is_needed_is_named(
    images: list[Any], annotations: list[Any], words: str, tmp_path: Path
) -> None:
    captioned(tmp_path, ["a.png"])
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    with pytest.raises(CorruptFile, match=rf"captions\.json: {words}"):
        open_pairs("folder", data_dir=tmp_path)


def test_a_table_of_captions_may_have_headings(tmp_path: Path) -> None:
    captioned(tmp_path, ["a.png", "b.png"])
    (tmp_path / "captions.tsv").write_text("file\tcaption\nb.png\ttwo\na.png\tone\nb.png\tzwei\n")
    assert open_pairs("folder", data_dir=tmp_path).captions == [["one"], ["two", "zwei"]]


def test_one_text_file_beside_each_image(tmp_path: Path) -> None:
    captioned(tmp_path, ["a.png", "b.png"])
    (tmp_path / "a.txt").write_text("one\neins\n")
    (tmp_path / "b.txt").write_text("two\n")
    assert open_pairs("folder", data_dir=tmp_path).captions == [["one", "eins"], ["two"]]
    (tmp_path / "b.txt").unlink()
    with pytest.raises(ValueError, match=r"without a caption: 'b\.png'"):
        open_pairs("folder", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"a.png": ["x"]}, r"without a caption: 'b\.png'"),
        ({"a.png": ["x"], "b.png": ["y"], "c.png": ["z"]}, r"images that are not there: 'c\.png'"),
        ({"a.png": ["x"], "b.png": ["y", "  "]}, r"empty text: 'b\.png'"),
        ({"a.png": ["x"], "b.png": []}, r"without a text: 'b\.png'"),
        ([{"caption": "x"}], "record 0 has no `image`"),
    ],
)
def test_what_is_not_paired_is_named(said: Any, words: str, tmp_path: Path) -> None:
    captioned(tmp_path, ["a.png", "b.png"])
    (tmp_path / "captions.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=words):
        open_pairs("folder", data_dir=tmp_path)


def test_many_offenders_are_counted(tmp_path: Path) -> None:
    captioned(tmp_path, [f"{i:02d}.png" for i in range(9)])
    (tmp_path / "captions.json").write_text("{}")
    with pytest.raises(ValueError, match=r"'04\.png' and 4 more"):
        open_pairs("folder", data_dir=tmp_path)


def test_flickr8k_is_divided_as_it_says(tmp_path: Path) -> None:
    names = ["x.jpg", "y.jpg", "z.jpg"]
    np.savez(tmp_path / "flickr8k_2000.npz", filenames=names, is_test=np.array([0, 1, 0], np.uint8), **pack([1, 2, 3]))
    texts = {name: [f"{name} {i}" for i in range(5)] for name in names}
    (tmp_path / "flickr8k_2000_captions.json").write_text(json.dumps(texts))
    assert open_pairs("flickr8k", data_dir=tmp_path).ids == names
    test, train = (open_pairs("flickr8k", part, data_dir=tmp_path) for part in ("test", "train"))
    assert (test.ids, train.ids) == (["y.jpg"], ["x.jpg", "z.jpg"])
    assert (grey(test.image(0)), grey(train.image(1))) == (2, 3)
    source = train.images()
    assert (len(source), source.native_size, grey(source.load(0)[0])) == (2, (3, 8, 8), 1)


def test_coco_leaves_out_photos_that_come_without_captions(tmp_path: Path) -> None:
    np.savez(tmp_path / "coco_panoptic_200.npz", image_ids=[7, 8], **pack([1, 2]))
    (tmp_path / "coco_panoptic_200_captions.json").write_text(json.dumps({"8": ["eight"]}))
    np.savez(tmp_path / "coco_extra_captioned.npz", image_ids=[9], **pack([3]))
    (tmp_path / "coco_extra_captioned_captions.json").write_text(json.dumps({"9": ["nine"]}))
    pairs = open_pairs("coco", data_dir=tmp_path)
    assert (pairs.ids, [grey(pairs.image(i)) for i in range(2)]) == (["8", "9"], [2, 3])


def test_packed_pairs_hold_pixels_or_encoded_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", texts=np.array([["x", "y"], ["z", "w"]]), **pack([5, 6]))
    pairs = open_pairs("packed", data_dir=tmp_path / "a.npz")
    assert (pairs.texts(1), grey(pairs.image(1)), pairs.ids) == (["z", "w"], 6, ["0", "1"])
    images = np.full((2, 4, 4, 3), 9, np.uint8)
    np.savez(tmp_path / "b.npz", images=images, texts=np.array(["x", "y"]), ids=np.array(["p", "q"]))
    assert open_pairs("packed", data_dir=tmp_path / "b.npz").ids == ["p", "q"]
    np.savez(tmp_path / "c.npz", images=images, texts=np.array(["x"]))
    with pytest.raises(ValueError, match="2 images, 1 rows of texts"):
        open_pairs("packed", data_dir=tmp_path / "c.npz")


def test_pickled_and_truncated_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", texts=np.array([{"x": 1}], dtype=object))
    with pytest.raises(UnsafeFile):
        open_pairs("packed", data_dir=tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:80])
    with pytest.raises(CorruptFile):
        open_pairs("packed", data_dir=tmp_path / "b.npz")


def test_pairs_of_texts(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("a dog\tein Hund\na cat\teine Katze\n", encoding="utf-8")
    pairs = open_pairs("text", data_dir=path)
    assert pairs.column("text") == ["a dog", "a cat"]
    assert pairs.column("text2") == ["ein Hund", "eine Katze"]
    with pytest.raises(ValueError, match="no images"):
        pairs.image(0)
    path.write_text("a dog\tein Hund\na cat\n")
    with pytest.raises(ValueError, match="line 2: has 1 columns"):
        open_pairs("text", data_dir=path)
    path.write_text("a dog\t\n")
    with pytest.raises(ValueError, match="empty text: '1'"):
        open_pairs("text", data_dir=path)


def test_a_hub_data_set_of_images_and_texts(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    images = [Image.fromarray(np.full((4, 4, 3), value, np.uint8)) for value in (3, 4)]
    table = datasets.Dataset.from_dict(
        {"image": images, "text": [["long", "short"], ["lang", "kurz"]]},
        features=datasets.Features({"image": datasets.Image(), "text": datasets.List(datasets.Value("string"))}),
    )
    table.save_to_disk(str(tmp_path / "wit"))
    pairs = open_pairs(f"hf:{tmp_path / 'wit'}")
    assert (pairs.texts(1), grey(pairs.image(1))) == (["lang", "kurz"], 4)
    two = datasets.Dataset.from_dict({"en": ["a", "b"], "de": ["x", "y"]})
    datasets.DatasetDict({"train": two, "test": two}).save_to_disk(str(tmp_path / "two"))
    assert open_pairs(f"hf:{tmp_path / 'two'}", "test").column("text2") == ["x", "y"]
    with pytest.raises(ValueError, match="has train, test"):
        open_pairs(f"hf:{tmp_path / 'two'}")


def test_bad_names_and_folders_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'flickr8k'"):
        open_pairs("flickr", data_dir=tmp_path)
    with pytest.raises(ValueError, match="not divided"):
        open_pairs("coco", "train", data_dir=tmp_path)
    with pytest.raises(ValueError, match="data_dir"):
        open_pairs("flickr8k")
    for name in ("flickr8k", "coco", "folder"):
        with pytest.raises(MissingData):
            open_pairs(name, data_dir=tmp_path)
    assert "wit" in pair_names()


def test_more_captions_than_there_are(tmp_path: Path) -> None:
    captioned(tmp_path, ["a.png"])
    (tmp_path / "captions.json").write_text(json.dumps({"a.png": ["x", "y"]}))
    with pytest.raises(ValueError, match="2 texts or more"):
        open_pairs("folder", data_dir=tmp_path).column(use=3)


def test_the_shared_pairs_open(shared: Path) -> None:
    if not (shared / "data" / "flickr8k-2000").is_dir():
        pytest.skip("the photos are not here")
    flickr = open_pairs("flickr8k", data_dir=shared / "data")
    assert (len(flickr), flickr.fewest, np.asarray(flickr.image(1999)).shape) == (2000, 5, (224, 224, 3))
    assert len(open_pairs("flickr8k", "test", data_dir=shared / "data")) == 500
    coco = open_pairs("coco", data_dir=shared / "data")
    assert len(coco) == 363
    assert "table" in coco.texts(0)[0]
