"""`unrolled align --groups` and `--blocks`: samples that depend on each other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from unrolled import cli
from unrolled.data.pairs import PairSource


@pytest.fixture
def sides(tmp_path: Path) -> list[str]:
    """Features of 20 groups of 6 rows, independent of each other but for the groups."""
    generator, paths = np.random.default_rng(0), []
    for name in ("x.npy", "y.npy"):
        own = generator.normal(size=(20, 1, 24)) + 0.02 * generator.normal(size=(20, 6, 24))
        np.save(tmp_path / name, own.reshape(120, 24).astype(np.float32))
        paths.append(str(tmp_path / name))
    return paths


def compared(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert cli.run(["align", *arguments, "--draws", "99", "--resamples", "10", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_groups_of_a_file_are_relabelled_whole(
    sides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out")]
    alone = compared(capsys, *sides, *out)
    assert alone["comparisons"][0]["p_value"] == 0.01
    assert "near copies of other rows" in alone["notes"][0]
    (tmp_path / "groups.txt").write_text("".join(f"photo {i // 6}\n" for i in range(120)))
    np.save(tmp_path / "groups.npy", np.arange(120) // 6)
    for name in ("groups.txt", "groups.npy"):
        found = compared(capsys, *sides, *out, "--groups", str(tmp_path / name), "--held-out")
        assert found["comparisons"][0]["p_value"] > 0.05
        assert found["comparisons"][0]["units"] == "20 groups of 6 rows"
        assert found["notes"] == []
    assert "relabelled are 20 groups of 6 rows" in (tmp_path / "out" / "report.html").read_text()
    assert compared(capsys, *sides, *out, "--blocks", "6")["comparisons"][0]["p_value"] > 0.05
    assert compared(capsys, *sides, *out, "--blocks", "shift")["comparisons"][0]["units"].startswith("circular")


def test_notes_and_the_way_of_p_are_printed(
    sides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--null", "moments", "--metric", "cka", "--metric", "svcca", "--resamples", "0", "--draws", "99"]
    assert cli.run(["align", *sides, *flags, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert f"note: A ({sides[0]}): " in said.err
    assert f"note: B ({sides[1]}): " in said.err
    assert "--groups" in said.err
    assert not {"features_a", "groups="} & set(said.err.replace(":", " ").split())
    notes = json.loads((tmp_path / "out" / "report.json").read_text())["results"]["notes"]
    assert notes[0].startswith(f"A ({sides[0]}): ")
    assert "--groups" in notes[0]
    assert "p: cka: " in said.out
    assert "svcca: " in said.out


def test_groups_of_a_grid(sides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "models.yaml").write_text(f"models:\n  a: {sides[0]}\n  b: {sides[1]}\n")
    (tmp_path / "groups.txt").write_text("".join(f"{i // 6}\n" for i in range(120)))
    flags = ["align-grid", str(tmp_path / "models.yaml"), "--json", "--quiet", "--out", str(tmp_path / "out")]
    assert cli.run(flags) == 0
    alone = json.loads(capsys.readouterr().out)["pairs"][0]
    assert alone["p_value"] < 0.01
    assert alone["p_method"]
    assert cli.run([*flags, "--groups", str(tmp_path / "groups.txt")]) == 0
    grouped = json.loads(capsys.readouterr().out)["pairs"][0]
    assert grouped["p_value"] > 0.05
    assert "relabellings" in grouped["p_method"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "relabelled are 20 groups of 6 rows" in page


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--groups", "GROUPS", "--blocks", "5"], 2, "--groups and --blocks: give one of them"),
        (["--groups", "GROUPS"], 2, "holds 3 labels for 120 samples"),
        (["--groups", "absent"], 3, "--groups absent: there is no such file"),
        (["--blocks", "many"], 2, "--blocks must be a number of rows"),
        (["--blocks", "100"], 2, "--blocks: blocks of 100 rows can trade places in 1 ways only"),
    ],
)
def test_bad_groups_are_named(
    flags: list[str], code: int, said: str, sides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "three").write_text("a\nb\nc\n")
    flags = [str(tmp_path / "three") if flag == "GROUPS" else flag for flag in flags]
    assert cli.run(["align", *sides, *flags, "--out", str(tmp_path / "out")]) == code
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1


def test_pairs_that_share_a_photo_or_a_text_are_grouped() -> None:
    def pairs(**more: object) -> PairSource:
        return PairSource(ids=list("abcd"), captions=[["p"], ["q"], ["p"], ["r"]], description="four", **more)  # type: ignore[arg-type]

    assert pairs().dependent() is None  # two photos may have the same caption
    assert pairs(groups=["one", "two", "two", "three"]).dependent() == [0, 1, 1, 3]
    same = pairs(others=["x", "x", "y", "z"]).dependent()
    assert same is not None
    assert len(set(same)) == 2  # x twice, and p of the first and third
    assert pairs(groups=["one", "two", "two", "one"]).take([3, 1, 0]).dependent() == [0, 1, 0]
    known = pairs(columns=lambda name: ["u", "v", "w", "u"] if name == "kind" else None)
    assert known.take([1, 0]).labels("kind") == ["v", "u"]
    assert known.labels("other") is None


def test_texts_that_repeat_are_relabelled_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"photo {i // 5}\tcaption {i} of {i // 5}" for i in range(60)]
    (tmp_path / "texts.tsv").write_text("\n".join(lines))
    from unrolled.commands.align.dependence import dependence
    from unrolled.instruments.features.files import Rows
    from unrolled.subjects.pairs import read_texts

    found = dependence(None, None, Rows(60, "", None), read_texts(tmp_path / "texts.tsv"), quiet=False)
    assert np.unique(found.groups, return_counts=True)[1].tolist() == [5] * 12
    assert "relabelled together: 12 groups of 5 rows" in capsys.readouterr().err


def test_rows_of_one_id_of_a_hub_are_of_one_photo() -> None:
    datasets = pytest.importorskip("datasets")
    from unrolled.data.pairs.files import _hub_pairs

    table = datasets.Dataset.from_dict({
        "id": [1, 2, 3, 4], "image_id": [7, 7, 8, 9], "caption": ["a", "b", "c", "d"], "title": ["k", "l", "m", "n"],
        "scene": ["in", "out", "in", "in"],
    })  # fmt: skip
    pairs = _hub_pairs(datasets, table, "hub", {})
    assert pairs.ids == ["1", "2", "3", "4"]
    assert pairs.groups == ["7", "7", "8", "9"]
    assert pairs.dependent() == [0, 0, 2, 3]
    assert pairs.take([3, 1]).labels("scene") == ["in", "out"]
    assert pairs.labels("absent") is None


def test_labels_of_all_rows_are_taken_by_the_rows_that_features_are_of(tmp_path: Path) -> None:
    import torch

    from unrolled.commands.align.dependence import dependence
    from unrolled.instruments.features.files import Rows

    (tmp_path / "photos").write_text("".join(f"{i // 8}\n" for i in range(96)))
    rows = Rows(48, "digits", torch.arange(0, 96, 2))
    found = dependence(str(tmp_path / "photos"), None, rows, None, quiet=True)
    assert found.groups == [str(i // 8) for i in range(0, 96, 2)]


def test_pairs_that_cannot_trade_places_are_taken_for_independent(capsys: pytest.CaptureFixture[str]) -> None:
    from unrolled.commands.align.dependence import Dependence, dependence
    from unrolled.instruments.features.files import Rows

    pairs = PairSource(
        ids=[str(i) for i in range(12)],
        captions=[["yes"]] * 12,
        others=[f"text {i}" for i in range(12)],
        description="d",
    )
    assert dependence(None, None, Rows(12, "", None), pairs, quiet=False) == Dependence()
    assert "p-values take them for independent" in capsys.readouterr().err
