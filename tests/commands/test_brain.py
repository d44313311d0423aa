"""`unrolled brain`: what is measured for which model, what is said, and where among the models measured here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.answers import answer_of
from tests.brain_places import places
from tests.records import N, brain_records, judgement_records
from unrolled import cli
from unrolled.commands.brain.places import FILE, measured, place

Shown = pytest.CaptureFixture[str]
IMAGES = ["crate_nano_patch4_32", "--model-args.depth", "2"]
TEXTS = ["crate_gpt_nano", "--model-args.depth", "1"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    brain_records(root)
    judgement_records(root)
    return root


def run(capsys: Shown, out: Path, data: Path, *tokens: str, twins: int = 2) -> dict[str, Any]:
    capsys.readouterr()
    flags = [
        "--data-dir",
        str(data),
        "--draws",
        "10",
        "--untrained",
        str(twins),
        "--device",
        "cpu",
        "--quiet",
        "--json",
    ]
    assert cli.run(["brain", *tokens, *flags, "--out", str(out)]) == 0
    return answer_of("brain", capsys.readouterr().out)


def test_a_model_of_images_stands_beside_brains_and_colours(data: Path, tmp_path: Path, capsys: Shown) -> None:
    answer = run(capsys, tmp_path, data, "crate_nano_patch4_32.cifar10")
    assert [(each["key"], each["n"], each["people"]) for each in answer["targets"]] == [
        ("human_it", N, 3), ("monkey_it", N, 1), ("colours", 12, 2),
    ]  # fmt: skip
    assert answer["weights"] == "pretrained"
    human, monkey, _ = answer["targets"]
    assert human["layers"] == [f"block{i:02d}" for i in range(6)]
    assert len(human["untrained"]["scores"]) == 2
    assert human["ceiling"] is not None
    assert monkey["ceiling"] is None
    assert human["place"]["of"] == len([m for m in measured()["human_it"] if m.group not in _WITHOUT]) + 1
    assert human["untrained"]["scores"][0] != human["untrained"]["scores"][1]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "noise ceiling" in page


_WITHOUT = ("untrained", "control", "recorded")


def test_words_come_before_numbers(data: Path, tmp_path: Path, capsys: Shown) -> None:
    flags = ["--data-dir", str(data), "--draws", "10", "--untrained", "1", "--device", "cpu", "--quiet", "--out"]
    assert cli.run(["brain", "crate_nano_patch4_32.cifar10", *flags, str(tmp_path / "trained")]) == 0
    text = " ".join(capsys.readouterr().out.split())
    order = ["agrees most with human IT", "noise ceiling", "untrained twin reaches", "Place", "beside best layer"]
    assert [text.index(each) for each in order] == sorted(text.index(each) for each in order)
    assert cli.run(["brain", *IMAGES, *flags, str(tmp_path / "random")]) == 0
    text = capsys.readouterr().out
    assert text.startswith("crate_nano_patch4_32 has random weights: nothing here was learned.")
    assert "training made it" not in text
    assert "This model has random weights" in (tmp_path / "random" / "report.html").read_text(encoding="utf-8")


def test_a_model_of_texts_reads_names(data: Path, tmp_path: Path, capsys: Shown) -> None:
    answer = run(capsys, tmp_path, data, *TEXTS, "--concepts", "20")
    assert [(each["key"], each["n"]) for each in answer["targets"]] == [("things", 20), ("colours_by_name", 12)]
    assert answer["targets"][0]["layers"][0] == "embed"
    assert cli.run(["brain", *TEXTS, "--data-dir", str(data), "--concepts", "1855", "--out", str(tmp_path)]) == 2
    assert "--concepts 1855: there are 1,854 things" in _error(capsys)


def test_features_in_a_file_say_by_their_rows_what_they_are_of(data: Path, tmp_path: Path, capsys: Shown) -> None:
    generator = np.random.default_rng(0)
    for rows, keys in ((N, ["human_it", "monkey_it"]), (12, ["colours"]), (30, ["things"])):
        path = tmp_path / f"{rows}.npz"
        np.savez(path, a=generator.normal(size=(rows, 5)), b=generator.normal(size=(rows, 5)))
        answer = run(capsys, tmp_path / "out", data, str(path), "--concepts", "20")
        assert [each["key"] for each in answer["targets"]] == keys
        assert all(each["untrained"] is None for each in answer["targets"])
        assert answer["targets"][0]["n"] == min(rows, 20)
    np.save(tmp_path / "other.npy", generator.normal(size=(7, 5)))
    assert cli.run(["brain", str(tmp_path / "other.npy"), "--data-dir", str(data), "--out", str(tmp_path / "o")]) == 2
    assert "these features have 7 rows; the records are of 14 photographs, 12 colours, 30 things" in _error(capsys)


def _error(capsys: Shown) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def test_without_records_it_says_what_to_put_where(data: Path, tmp_path: Path, capsys: Shown) -> None:
    assert cli.run(["brain", *IMAGES, "--data-dir", str(tmp_path), "--out", str(tmp_path / "out")]) == 3
    error = _error(capsys)
    assert str(tmp_path / "brain-92images") in error
    assert "docs/howto/brain.md" in error
    assert (ROOT / "docs/howto/brain.md").is_file()
    judgement_records(tmp_path)
    answer = run(capsys, tmp_path / "out", tmp_path, *IMAGES)
    assert [each["key"] for each in answer["targets"]] == ["colours"]
    assert answer["notes"][0].startswith("not measured: brain-92images was not found")


def test_the_table_of_places_is_that_of_the_committed_report() -> None:
    report = json.loads((ROOT / "docs/studies/platonic-brain/report.json").read_text(encoding="utf-8"))
    assert FILE.read_text(encoding="utf-8") == places(report), "python -m tests.study_docs"
    assert {"human_it", "monkey_it", "things", "colours_by_name"} == measured().keys()


def test_a_place_counts_trained_models_and_none_twice() -> None:
    table = [each for each in measured()["human_it"] if each.group not in _WITHOUT]
    first = place("human_it", 1.0, "mine")
    assert (first.rank, first.of, first.above, first.below) == (1, len(table) + 1, None, table[0])
    last = place("human_it", -1.0, "mine")
    assert (last.rank, last.above) == (len(table) + 1, table[-1])
    second = place("human_it", table[0].score, f"given:{table[0].name}")
    assert (second.rank, second.of, second.same) == (1, len(table), table[0])
    assert f"The table has this model at {table[0].score:.3f}" in second.sentence()
    assert not [each.name for each in table if "-random-" in each.name], "random weights are not trained"
    assert first.untrained is not None
    assert first.control is not None
    assert first.control.name == "pixels"
    assert place("colours", 0.5, "mine").sentence() == "No other model has been measured on this here."


def test_a_given_network_has_the_score_of_the_table(shared: Path, tmp_path: Path, capsys: Shown) -> None:
    """Shown, pooled and compared as in the study."""
    if not (shared / "data" / "weights").is_dir():
        pytest.skip("no weights")
    answer = run(capsys, tmp_path, shared / "data", "given:resnet20", twins=0)
    human, monkey, _ = answer["targets"]
    for each in (human, monkey):
        assert each["score"] == pytest.approx(each["place"]["same"]["score"], abs=0.002)
