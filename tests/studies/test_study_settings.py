"""A study's own settings on the command line: `unrolled study NAME --set NAME=VALUE`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from unrolled import cli, studies
from unrolled.errors import MissingData
from unrolled.studies.base import StudyConfig, data_missing


@dataclass(kw_only=True)
class Config(StudyConfig):
    """One field of every type that studies have."""

    fashion_dir: Path | None = None
    out: Path = Path("runs/x")
    steps: int = 3
    limit: int | None = None
    rate: float = 0.1
    train: bool = False
    data: Literal["cifar10", "two words"] = "cifar10"
    device: str = "cpu"
    kinds: tuple[str, ...] = ("a",)
    seeds: tuple[int, ...] = (0,)
    rates: tuple[float, ...] = (0.1,)
    sizes: tuple[tuple[int, int], ...] = ((1, 2),)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("fashion-dir=a/b c#1", Path("a/b c#1")),
        ("fashion_dir=none", None),
        ("steps=5", 5),
        ("limit=7", 7),
        ("limit=null", None),
        ("rate=1e-3", 0.001),
        ("train=true", True),
        ("data=two words", "two words"),
        ("device=3", "3"),
        ("kinds=crate", ("crate",)),
        ("kinds=[crate, vit-48]", ("crate", "vit-48")),
        ("seeds=0,1,2", (0, 1, 2)),
        ("rates=[1e-3, 2]", (0.001, 2.0)),
        ("sizes=[[3, 4], [5, 6]]", ((3, 4), (5, 6))),
    ],
)
def test_a_text_becomes_a_value_of_the_fields_type(text: str, value: Any) -> None:
    (found,) = Config.parse([text]).values()
    assert found == value
    assert type(found) is type(value)


def test_the_last_of_a_name_counts() -> None:
    assert Config.of_budget("quick", **Config.parse(["steps=1", "steps=2", "rate=3"])) == Config(steps=2, rate=3.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stpes=5", "fashion-dir, out, steps"),
        ("steps", "write NAME=VALUE"),
        ("steps=", "a whole number"),
        ("steps=1.5", "a whole number"),
        ("rate=fast", "a number"),
        ("rate=nan", "a number"),
        ("train=1", "true or false"),
        ("data=cifar", "one of cifar10, two words"),
        ("seeds=[0", "a list in YAML, each a whole number"),
        ("seeds=[0, x]", "each a whole number"),
        ("seeds={a: 1}", "each a whole number"),
        ("sizes=[1, 2]", r"each \[a whole number, a whole number\]"),
        ("out=", "a folder"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Config.parse([text])


def test_settings_of_every_study_are_of_types_that_texts_can_become(tmp_path: Path) -> None:
    for name in studies.STUDIES:
        config = studies.load(name).config
        assert config.parse([f"out={tmp_path}"]) == {"out": tmp_path}


def test_the_verb_sets_them_and_refuses_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # no such folder: the study stops before it computes anything, naming the flag that there is
    flags = ["study", "crate-transfer", "--data-dir", str(tmp_path), "--set", f"out={tmp_path}", "--set"]
    assert cli.run([*flags, "targets=fashion_mnist", "--set", "source=tiny-imagenet-32"]) == 3
    assert capsys.readouterr().err.rstrip().endswith("give --set fashion-dir=DIR")
    assert cli.run([*flags, "fashon-dir=x"]) == 2
    assert "fashion-dir" in capsys.readouterr().err
    assert cli.run([*flags, f"data-dir={tmp_path}"]) == 2
    assert "also given as --data-dir" in capsys.readouterr().err


def test_missing_data_are_told_in_one_sentence_with_the_last_flag() -> None:
    inner = MissingData("data_dir: /x does not exist")
    said = data_missing("cifar10", inner)
    said.__cause__ = inner
    assert str(said) == "data_dir: cifar10 was not found (/x does not exist); give --data-dir DIR"
    again = data_missing("cifar10", said, flag="--set fashion-dir=DIR")
    assert str(again) == "data_dir: cifar10 was not found (/x does not exist); give --set fashion-dir=DIR"
