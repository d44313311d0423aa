"""Hugging Face data sets whose splits disagree, or call things by other names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.files import plain
from unrolled.data.images import open_images
from unrolled.data.text import open_text
from unrolled.errors import MissingData

datasets = pytest.importorskip("datasets")
VALUE, NAMES = datasets.Value, datasets.ClassLabel


def table(labels: list[Any], feature: Any, column: str = "label", **more: list[Any]) -> Any:
    rows = {"image": [{"bytes": plain(i), "path": None} for i in range(len(labels))], column: labels, **more}
    features = {"image": datasets.Image(), column: feature, **{key: VALUE("string") for key in more}}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def saved(folder: Path, **parts: Any) -> str:
    datasets.DatasetDict(parts).save_to_disk(str(folder / "set"))
    return f"hf:{folder / 'set'}"


def words(source: Any) -> list[str]:
    return [source.classes[source.load(index)[1]] for index in range(len(source))]


def test_a_test_split_in_another_order_is_mapped_by_name(tmp_path: Path) -> None:
    train = table([0, 1, 2], NAMES(names=["cat", "dog", "owl"]))
    test = table([0, 1, 2, 2], NAMES(names=["owl", "cat", "dog"]))
    source = open_images(saved(tmp_path, train=train, test=test), "test")
    assert source.classes == ["cat", "dog", "owl"]
    assert words(source) == ["owl", "cat", "dog", "dog"]


def test_names_that_training_lacks_are_refused_or_left_out(tmp_path: Path) -> None:
    train = table([0, 1], NAMES(names=["cat", "dog"]))
    test = table([0, 1, 2, 0], NAMES(names=["cow", "dog", "cat", "unused"]))
    name = saved(tmp_path, train=train, test=test)
    with pytest.raises(ValueError, match=r"class 'cow' is not one of the training split's \(cat, dog\)"):
        open_images(name, "test")
    source = open_images(name, "test", unknown_classes="skip")
    assert words(source) == ["dog", "cat"]
    assert [int(np.asarray(source.load(index)[0])[0, 0, 0]) for index in range(2)] == [1, 2]
    assert source.name(0).endswith("test[1]")
    assert source.passed_over == "2 images of classes that training lacks (cow)"
    other = table([0, 1], NAMES(names=["x", "y"]))
    other.save_to_disk(str(tmp_path / "set" / "test"))
    with pytest.raises(ValueError, match=r"test split .* has no images"):
        open_images(name, "test", unknown_classes="skip")


def test_words_and_truth_values_are_classes(tmp_path: Path) -> None:
    train = table(["cat", "dog", "cat"], VALUE("string"))
    test = table(["dog"], VALUE("string"))
    assert words(open_images(saved(tmp_path, train=train, test=test), "test")) == ["dog"]
    truth = table([True, False], VALUE("bool"), column="sick")
    truth.save_to_disk(str(tmp_path / "bool"))
    assert words(open_images(f"hf:{tmp_path / 'bool'},label=sick,train=train", "train")) == ["True", "False"]


def test_withheld_labels_are_named_and_another_split_can_be_chosen(tmp_path: Path) -> None:
    parts = {part: table([0, 1, 1], VALUE("int64")) for part in ("train", "validation")}
    name = saved(tmp_path, **parts, test=table([-1, -1], VALUE("int64")))
    with pytest.raises(ValueError, match=rf"all its labels are -1.*data='{name},test=validation'"):
        open_images(name, "test")
    assert len(open_images(f"{name},test=validation", "test")) == 3
    with pytest.raises(MissingData, match=r"no test split; if a split of another name is that, .*,test=NAME"):
        open_images(f"{name},test=none,val=none", "test")
    with pytest.raises(ValueError, match=r"has no split 'dev'; it has train, validation, test"):
        open_images(f"{name},test=dev", "test")


def test_an_empty_split_is_one_sentence(tmp_path: Path) -> None:
    names = NAMES(names=["a", "b"])
    name = saved(tmp_path, train=table([0, 1], names), test=table([], names))
    with pytest.raises(ValueError, match=r"the test split of .* has no images"):
        open_images(name, "test")


def test_other_columns_are_listed_and_can_be_chosen(tmp_path: Path) -> None:
    train = table([0, 1], VALUE("int32"), column="species", note=["x", "y"])
    name = saved(tmp_path, train=train, test=train)
    message = r"columns are image \(Image\), species \(int32\), note \(string\).*data='hf:.*set,label=species'\)"
    with pytest.raises(ValueError, match=message):
        open_images(name, "train")
    assert open_images(f"{name},label=species", "test").classes == ["0", "1"]
    assert open_images(f"{name},label=note", "train").classes == ["x", "y"]
    for wrong, said in (
        ("label=breed", "no column 'breed'"),
        ("label=image", "column image is no class"),
        ("image=note,label=note", "column note holds no images"),
        ("labels=note", "'labels=note' is not understood"),
        ("label=", "'label=' is not understood"),
    ):
        with pytest.raises(ValueError, match=said):
            open_images(f"{name},{wrong}", "train")


def test_several_columns_of_text_are_not_guessed_between(tmp_path: Path) -> None:
    lines = {"title": [f"t{i}" for i in range(100)], "body": [f"line {i} of a text" for i in range(100)]}
    name = saved(tmp_path, train=datasets.Dataset.from_dict(lines))
    with pytest.raises(ValueError, match=r"several columns of text \(title, body\); .*text=title"):
        open_text(name)
    assert "line 3 of a text\n" in open_text(f"{name},text=body").text
    with pytest.raises(ValueError, match="no column 'note'"):
        open_text(f"{name},text=note")
