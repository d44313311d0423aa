"""`unrolled translate` as a user meets it: turned features, models of digits, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from unrolled import cli
from unrolled.alignment.translation import Translation, thirds

Shown = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x.npy [240, 8] in clumps, and y.npy, the same samples turned and moved."""
    folder = tmp_path_factory.mktemp("features")
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(20, 8)) * np.geomspace(3, 0.5, 8)
    x = centres[generator.integers(20, size=240)] + 0.2 * generator.normal(size=(240, 8))
    turn = np.linalg.qr(generator.normal(size=(8, 8)))[0]
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", 2 * x @ turn + 1)
    return folder


def translate(files: Path, out: Path, *flags: str) -> int:
    few = {"--restarts": "3", "--controls": "2"}
    left = [word for flag, value in few.items() if flag not in flags for word in (flag, value)]
    return cli.run(
        ["translate", str(files / "x.npy"), str(files / "y.npy"), *left, "--quiet", "--out", str(out), *flags]
    )


def test_turned_features_are_translated_and_a_second_run_goes_on(files: Path, tmp_path: Path, capsys: Shown) -> None:
    assert translate(files, tmp_path, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["n"], answer["fitted"], answer["layers"]) == (240, [80, 80], ["x", "y"])
    scores = answer["scores"]
    assert scores["paired"]["top1"] == 1
    assert scores["unpaired"]["mean_rank"] < 0.5 * scores["unpaired"]["chance_rank"]
    assert answer["worked"] in (None, False), "two controls cannot reach p = 0.05"
    assert sum(each["chosen"] for each in answer["restarts"]) == 1
    chosen = next(each for each in answer["restarts"] if each["chosen"])
    assert chosen["criterion"] == max(each["criterion"] for each in answer["restarts"])
    assert chosen["mean_rank"] == scores["unpaired"]["mean_rank"]
    x, y = (np.load(files / f"{side}.npy") for side in "xy")
    scored, only_a, only_b = thirds(240, 0)
    assert not set(only_a) & set(only_b)
    back = Translation.load(tmp_path / "translation.safetensors").scores(x[scored], y[scored])
    assert back.to_dict() == scores["unpaired"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert answer["verdict"] in page
    assert answer["directions"] == [8, 8], "no more than there are columns"
    assert "leading 8 principal directions" in page
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "attempts").iterdir()}
    assert translate(files, tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out) == answer
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "attempts").iterdir()} == times


def test_pairs_and_a_linear_map(files: Path, tmp_path: Path, capsys: Shown) -> None:
    assert translate(files, tmp_path, "--pairs", "10", "--map", "linear", "--controls", "0") == 0
    text = capsys.readouterr().out
    assert text.splitlines()[1].startswith("10 pairs")
    assert "partners shuffled" in text
    assert "Not tested" in text


def test_known_pairs_are_not_of_one_class_where_samples_stand_in_the_order_of_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unrolled.alignment import translation

    rows = np.arange(240.0)[:, None] ** np.arange(1, 4)
    for side in "xy":
        np.save(tmp_path / f"{side}.npy", rows)
    given = []

    def fitted(*sides: object, pairs: tuple[np.ndarray, np.ndarray], **settings: object) -> None:
        given.append(pairs)
        raise ValueError("enough was seen")

    monkeypatch.setattr(translation, "translate", fitted)
    assert translate(tmp_path, tmp_path / "out", "--pairs", "10") == 2
    ((x, y),) = given
    assert (x == y).all()
    assert x[0, 0] < 60, "from the first part of the data"
    assert x[-1, 0] > 180, "to the last"
    assert set(x[:, 0].astype(int)) <= set(thirds(240, 0)[1]), "of those that A alone is shown, none that scores"


def test_models_of_digits(tmp_path: Path, capsys: Shown) -> None:
    command = ["translate", "crate_nano_patch2_8", "vit_nano_patch2_8", "--data", "digits", "--images", "30"]
    few = ["--restarts", "1", "--controls", "0", "--quiet", "--json", "--out", str(tmp_path)]
    assert cli.run([*command, *few]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["layers"] == ["block05", "block05"], "the last that the pattern names"
    assert answer["random"] == ["A", "B"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pairs", "1"], "--pairs 1: give at least 2"),
        (["--pairs", "81"], "--pairs 81: there are 80 samples"),
        (["--restarts", "0"], "--restarts 0: give at least 1"),
        (["--images", "5"], "--images 5: give at least 24"),
        (["--width", "1"], "--width 1: give at least 2"),
        (["--seed", "-1"], "--seed -1: give at least 0"),
    ],
)
def test_what_is_wrong_is_one_line(flags: list[str], message: str, files: Path, tmp_path: Path, capsys: Shown) -> None:
    assert translate(files, tmp_path, *flags) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_two_sides_are_needed_of_as_many_samples(files: Path, tmp_path: Path, capsys: Shown) -> None:
    assert cli.run(["translate", str(files / "x.npy")]) == 2
    assert "unrolled translate A B" in capsys.readouterr().err
    np.save(tmp_path / "few.npy", np.load(files / "x.npy")[:20])
    few = str(tmp_path / "few.npy")
    assert cli.run(["translate", few, few, "--out", str(tmp_path / "out")]) == 2
    assert "has 20 samples: at least 24" in capsys.readouterr().err
    np.save(tmp_path / "flat.npy", np.ones((240, 8)))
    assert cli.run(["translate", str(files / "x.npy"), str(tmp_path / "flat.npy"), "--out", str(tmp_path / "out")]) == 2
    assert "flat.npy: layer flat has zero variance" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("b", "message"),
    [
        ("crate_nano_patch2_9", "did you mean crate_nano_patch2_8"),
        ("given:minilmm", "did you mean 'minilm'?"),
        ("gvien:minilm", "did you mean given:minilm?"),
    ],
)
def test_a_mistyped_b_is_refused_before_a_is_computed(b: str, message: str, tmp_path: Path, capsys: Shown) -> None:
    out = tmp_path / "out"
    assert (
        cli.run(["translate", "crate_nano_patch2_8", b, "--data", "digits", "--images", "30", "--out", str(out)]) == 2
    )
    assert message in capsys.readouterr().err
    assert not (out / "features").exists()
