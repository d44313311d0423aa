"""Odd data of every kind, as they come: each gives the right numbers, or one sentence that names what is wrong."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.files import plain, tar
from unrolled.data.classes import reading_note
from unrolled.data.images import open_images
from unrolled.data.masks import open_masks
from unrolled.data.pairs import open_pairs
from unrolled.data.sources import BadImage
from unrolled.data.text import open_text

BOOK = "".join(f"line {number} of a text\n" for number in range(400))


def write(root: Path, *names: str, content: bytes | None = None) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(plain(number) if content is None else content)
    return root


def labels(root: Path, split: Any = "all", name: str = "folder") -> list[str]:
    """The class of every image, by name."""
    source = open_images(name, split, data_dir=root)
    return [source.classes[source.load(index)[1]] for index in range(len(source))]


# --- folders of images


def endings_in_any_case(root: Path) -> Any:
    return labels(write(root, "a/0.PNG", "a/1.JpEg", "b/2.TIF"))


def numbered_classes(root: Path) -> Any:
    write(root, *(f"train/{n}/0.png" for n in (1, 2, 10)), "test/10/0.png", "test/2/0.png")
    source = open_images("folder", "test", data_dir=root)
    return source.classes, labels(root, "test")


def another_format_than_the_name_says(root: Path) -> Any:
    return labels(write(root, "a/0.jpg", "b/0.gif"))


def an_empty_file(root: Path) -> Any:
    write(write(root, "a/0.png", "b/0.png"), "a/1.png", content=b"")
    return open_images("folder", "all", data_dir=root).load(1)


def a_folder_that_ends_like_a_picture(root: Path) -> Any:
    return labels(write(root, "a/x.png/0.png", "b/0.png"))


def a_class_linked_as_another(root: Path) -> Any:
    write(root, "a/0.png")
    (root / "b").symlink_to(root / "a")
    return labels(root)


def links_in_a_circle(root: Path) -> Any:
    write(root, "a/0.png", "b/0.png")
    (root / "a" / "x").symlink_to(root / "b")
    (root / "b" / "y").symlink_to(root / "a")
    return labels(root)


def a_class_without_images(root: Path) -> Any:
    return labels(write(write(root, "a/0.png"), "b/notes.txt", content=b"x"))


def an_empty_folder(root: Path) -> Any:
    return labels(root)


def a_file_for_a_folder(root: Path) -> Any:
    return labels(write(root, "a.png") / "a.png")


def a_test_split_without_one_class(root: Path) -> Any:
    return labels(write(root, "train/a/0.png", "train/b/0.png", "train/c/0.png", "test/c/0.png"), "test")


def classes_in_another_case(root: Path) -> Any:
    return labels(write(root, "train/cat/0.png", "test/Cat/0.png"), "test")


def names_with_line_ends_and_colours(root: Path) -> Any:
    source = open_images("folder", "all", data_dir=write(root, "a\nb/0.png", "\x1b[31mred/0.png"))
    return reading_note(all=source)


def many_classes(root: Path) -> Any:
    write(root, *(f"c{n}/{i}.png" for n in range(9) for i in range(1 + n % 3)))
    return reading_note(all=open_images("folder", "all", data_dir=root))


def a_hundred_levels(root: Path) -> Any:
    return labels(write(root, "a/" + "x/" * 100 + "0.png", "b/0.png"))


# --- Hugging Face


def table(column: list[Any], feature: Any) -> Any:
    datasets = pytest.importorskip("datasets")
    rows = {"image": [{"bytes": plain(i), "path": None} for i in range(len(column))], "label": column}
    return datasets.Dataset.from_dict(rows, datasets.Features({"image": datasets.Image(), "label": feature}))


def hub(root: Path, split: str = "test", **parts: tuple[list[Any], Any]) -> list[str]:
    datasets = pytest.importorskip("datasets")
    made = {part: table(column, feature(datasets)) for part, (column, feature) in parts.items()}
    datasets.DatasetDict(made).save_to_disk(str(root / "set"))
    return labels(root / "cache", split, f"hf:{root / 'set'}")


def words(datasets: Any) -> Any:
    return datasets.Value("string")


def numbers(datasets: Any) -> Any:
    return datasets.Value("int64")


def names(*of: str) -> Callable[[Any], Any]:
    return lambda datasets: datasets.ClassLabel(names=list(of))


def names_in_training_words_in_the_test(root: Path) -> Any:
    return hub(root, train=([0, 1], names("dog", "cat")), test=(["cat", "dog", "cat"], words))


def words_in_training_names_in_the_test(root: Path) -> Any:
    return hub(root, train=(["cat", "dog"], words), test=([0, 1], names("dog", "cat")))


def numbers_with_gaps(root: Path) -> Any:
    return hub(root, train=([0, 5], numbers), test=([5, 0], numbers))


def a_number_that_training_lacks(root: Path) -> Any:
    return hub(root, train=([0, 1], numbers), test=([1, 7], numbers))


def a_row_without_a_label(root: Path) -> Any:
    return hub(root, "train", train=(["cat", None], words), test=(["cat"], words))


def some_labels_withheld(root: Path) -> Any:
    return hub(root, train=([0, 1], numbers), test=([1, -1], numbers))


# --- shards


def shards(root: Path, *members: tuple[str, bytes], name: str = "0.tar", mode: Any = "w") -> Any:
    pytest.importorskip("webdataset")
    tar(root / name, members, mode)
    return labels(root, "train", f"wds:{name}")


def suffixes_in_capitals(root: Path) -> Any:
    return shards(root, ("a.PNG", plain()), ("a.CLS", b"1"), ("b.png", plain()), ("b.cls", b"0"))


def a_label_that_is_no_integer(root: Path) -> Any:
    return shards(root, ("a.png", plain()), ("a.cls", b"1.0"))


def a_negative_label(root: Path) -> Any:
    return shards(root, ("a.png", plain()), ("a.cls", b"-1"))


def class_names_from_windows(root: Path) -> Any:
    (root / "classes.txt").write_bytes("\ufeffcat\r\ndog\r\n".encode())
    return shards(root, ("a.png", plain()), ("a.cls", b"1"), ("b.png", plain()), ("b.cls", b"0"))


def a_compressed_shard(root: Path) -> Any:
    return shards(root, ("a.png", plain()), ("a.cls", b"1"), name="0.tar.gz", mode="w:gz")


def a_compressed_shard_cut_short(root: Path) -> Any:
    a_compressed_shard(root)
    data = (root / "0.tar.gz").read_bytes()
    (root / "0.tar.gz").write_bytes(data[: len(data) // 2])
    return labels(root, "train", "wds:0.tar.gz")


def an_index_of_fewer_images(root: Path) -> Any:
    (root / "index.json").write_text(json.dumps({"labels": {"0.tar": [1]}}))
    return shards(root, ("a.png", plain()), ("a.cls", b"1"), ("b.png", plain()), ("b.cls", b"0"))


def one_name_in_two_folders_of_a_shard(root: Path) -> Any:
    return shards(root, ("x/a.png", plain()), ("x/a.cls", b"1"), ("y/a.png", plain()), ("y/a.cls", b"0"))


def a_sample_without_an_image(root: Path) -> Any:
    return shards(root, ("a.txt", b"x"), ("a.cls", b"0"))


# --- texts


def text(root: Path, part: Any = "train") -> str:
    return open_text("folder", part, data_dir=root).text


def an_empty_file_among_texts(root: Path) -> Any:
    write(root, "a.txt", content=BOOK.encode())
    whole = text(root)
    return text(write(root, "b.txt", content=b"")).count("\n") - whole.count("\n")


def a_compressed_text_in_capitals(root: Path) -> Any:
    return "line 7 of" in text(write(root, "A.TXT.GZ", content=gzip.compress(BOOK.encode())))


def a_compressed_text_cut_short(root: Path) -> Any:
    return text(write(root, "a.txt.gz", content=gzip.compress(BOOK.encode())[:100]))


def a_text_in_latin_1(root: Path) -> Any:
    return text(write(root, "a.txt", content=BOOK.encode() + "café".encode("latin-1")))


def a_text_without_line_ends(root: Path) -> Any:
    return text(write(root, "a.txt", content=b"word " * 1000))


def one_part_in_a_file_and_a_folder(root: Path) -> Any:
    write(root, "train.txt", "Training/b.txt", content=BOOK.encode())
    write(root, "TEST.txt", content=b"held out\n" * 50)
    return text(root, "test").count("held out"), "held out" in text(root), "held out" in text(root, "val")


def folders_of_texts_in_a_circle(root: Path) -> Any:
    write(root, "a/a.txt", content=BOOK.encode())
    before = text(root)
    (root / "a" / "b").symlink_to(root)
    return text(root) == before


# --- masks


def mask(root: Path, pixels: np.ndarray) -> Any:
    write(root, "images/a.png", content=b"")
    (root / "masks").mkdir(exist_ok=True)
    Image.fromarray(np.zeros((*pixels.shape[:2], 3), np.uint8)).save(root / "images" / "a.png")
    Image.fromarray(pixels).save(root / "masks" / "a.png")
    scene = open_masks("masks", data_dir=root).load(0)
    return [region.category for region in scene.regions]


def a_mask_without_regions(root: Path) -> Any:
    return mask(root, np.zeros((4, 4), np.uint8))


def a_mask_of_sixteen_bits(root: Path) -> Any:
    return mask(root, np.array([[0, 300], [7, 300]], np.uint16))


def a_mask_in_three_equal_channels(root: Path) -> Any:
    return mask(root, np.dstack([np.array([[0, 1], [2, 2]], np.uint8)] * 3))


def a_mask_in_colours(root: Path) -> Any:
    return mask(root, np.dstack([np.array([[0, value], [2, 2]], np.uint8) for value in (1, 2, 3)]))


def a_picture_without_a_mask_of_its_own(root: Path) -> Any:
    mask(root, np.ones((4, 4), np.uint8))
    (root / "images" / "a.png").rename(root / "images" / "b.png")
    return open_masks("masks", data_dir=root)


def coco(root: Path, *categories: dict[str, Any], **record: Any) -> Any:
    pytest.importorskip("pycocotools")
    write(root, "val2017/sub/a.png", content=plain())
    (root / "annotations").mkdir()
    note = {"image_id": 1, "category_id": 1, "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]], **record}
    data = {"images": [{"id": 1, "file_name": "sub/a.png"}], "annotations": [note], "categories": list(categories)}
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(data))
    return [(region.category, int(region.mask.sum())) for region in open_masks("coco", data_dir=root).load(0).regions]


def a_photo_in_a_sub_folder(root: Path) -> Any:
    return coco(root, {"id": 1, "name": "cat"})


def two_categories_of_one_number(root: Path) -> Any:
    return coco(root, {"id": 1, "name": "cat"}, {"id": 1, "name": "dog"})


def a_category_without_a_name(root: Path) -> Any:
    return coco(root, {"id": 1})


def a_polygon_of_words(root: Path) -> Any:
    return coco(root, {"id": 1, "name": "cat"}, segmentation=[["a", "b", "c", "d", "e", "f"]])


# --- pairs


def captions(root: Path, name: str, content: bytes) -> Any:
    write(write(root, "a.png", "b.png", "._a.png"), name, content=content)
    pairs = open_pairs("folder", data_dir=root)
    return dict(zip(pairs.ids, pairs.captions, strict=True))


def captions_from_windows(root: Path) -> Any:
    return captions(root, "captions.tsv", "\ufeffa.png\tone\r\nb.png\ttwo\r\n".encode())


def captions_with_separators_of_lines(root: Path) -> Any:
    return captions(root, "captions.tsv", "a.png\tone\u2028still\nb.png\ttwo\x0cstill\n".encode())


def captions_of_a_photo_that_is_not_there(root: Path) -> Any:
    return captions(root, "captions.json", b'{"a.png": "one", "b.png": "two", "c.png": "three"}')


EXPECTED: dict[Callable[[Path], Any], Any] = {
    endings_in_any_case: ["a", "a", "b"],
    numbered_classes: (["1", "2", "10"], ["2", "10"]),
    another_format_than_the_name_says: ["a", "b"],
    an_empty_file: BadImage("not an image|cannot be decoded|is empty"),
    a_folder_that_ends_like_a_picture: ["a", "b"],
    a_class_linked_as_another: ["a", "b"],
    links_in_a_circle: ["a", "a", "b", "b"],
    a_class_without_images: ValueError("class folder .*/b has no images"),
    an_empty_folder: ValueError("has no class folders"),
    a_file_for_a_folder: ValueError(r"a\.png is a file; give the folder"),
    a_test_split_without_one_class: ["c"],
    classes_in_another_case: ValueError("class 'Cat' that the training split does not have"),
    names_with_line_ends_and_colours: r"all: 2 images of 2 classes (\x1b[31mred 1, a\nb 1)",
    many_classes: "all: 18 images of 9 classes, 1 to 3 of each",
    a_hundred_levels: ["a", "b"],
    names_in_training_words_in_the_test: ["cat", "dog", "cat"],
    words_in_training_names_in_the_test: ["dog", "cat"],
    numbers_with_gaps: ["5", "0"],
    a_number_that_training_lacks: ValueError("label 7 of image 1 is outside the 2 classes"),
    a_row_without_a_label: ValueError("row 1 has no label"),
    some_labels_withheld: ValueError("label -1 of image 1 is outside"),
    suffixes_in_capitals: ["1", "0"],
    a_label_that_is_no_integer: ValueError("sample a: the label must be an integer"),
    a_negative_label: ValueError("label -1 of image 0 is outside"),
    class_names_from_windows: ["dog", "cat"],
    a_compressed_shard: ["1"],
    a_compressed_shard_cut_short: ValueError(r"0\.tar\.gz is damaged"),
    an_index_of_fewer_images: ValueError("holds 2 samples, its index says 1"),
    one_name_in_two_folders_of_a_shard: ["1", "0"],
    a_sample_without_an_image: BadImage("has no image in its sample"),
    an_empty_file_among_texts: 1,
    a_compressed_text_in_capitals: True,
    a_compressed_text_cut_short: ValueError(r"a\.txt\.gz: cannot be decompressed"),
    a_text_in_latin_1: ValueError(r"a\.txt: is not UTF-8 text \(byte \d+\)"),
    a_text_without_line_ends: ValueError("too few to hold out a part"),
    one_part_in_a_file_and_a_folder: (50, False, False),
    folders_of_texts_in_a_circle: True,
    a_mask_without_regions: [],
    a_mask_of_sixteen_bits: ["7", "300"],
    a_mask_in_three_equal_channels: ["1", "2"],
    a_mask_in_colours: BadImage("is a colour image"),
    a_picture_without_a_mask_of_its_own: FileNotFoundError("1 of 1 images .* are missing, the first is a"),
    a_photo_in_a_sub_folder: [("cat", 16)],
    two_categories_of_one_number: ValueError("several categories have the id 1"),
    a_category_without_a_name: ValueError("entry 0 of categories lacks name"),
    a_polygon_of_words: BadImage("a segmentation that cannot be read"),
    captions_from_windows: {"a.png": ["one"], "b.png": ["two"]},
    captions_with_separators_of_lines: {"a.png": ["one\u2028still"], "b.png": ["two\x0cstill"]},
    captions_of_a_photo_that_is_not_there: ValueError("captions of images that are not there: 'c.png'"),
}


@pytest.mark.parametrize("case", EXPECTED, ids=lambda case: case.__name__)
def test_odd_data_give_the_right_numbers_or_one_sentence(tmp_path: Path, case: Callable[[Path], Any]) -> None:
    expected = EXPECTED[case]
    if isinstance(expected, Exception):
        with pytest.raises(type(expected), match=str(expected)) as raised:
            case(tmp_path)
        assert "\n" not in str(raised.value)
    else:
        assert case(tmp_path) == expected
    assert os.access(tmp_path, os.W_OK)
