"""`unrolled explain`, from the command line to the files it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unrolled import cli
from unrolled.commands.explain_report import among_sentence, removals_sentence

MODEL = ["--model", "crate_nano_patch4_32"]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (48, 96, 3), dtype=np.uint8)
    path = tmp_path / "noise.png"
    Image.fromarray(noise).save(path)
    return path


def run(*arguments: Any) -> int:
    return cli.run(["explain", *map(str, arguments), "--device", "cpu"])


@pytest.mark.parametrize("model", ["crate_nano_patch4_32", "vit_nano_patch4_32"])
def test_the_terms_and_the_pictures(
    model: str, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(picture, "--model", model, "--target", 3, "--out", out, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    halves = result["halves"]
    assert result["target"]["class"] == 3
    assert result["grid"] == [8, 16], "the shape of the picture is kept"
    assert result["constant"] + result["embed"] + sum(h["total"] for h in halves) == pytest.approx(result["logit"])
    evidence = np.array(result["evidence"])
    assert evidence.shape == (8, 16)
    assert evidence.sum() + result["elsewhere"] == pytest.approx(result["logit"])
    assert all(len(half["heads"]) == 4 for half in halves if half["kind"] == "attn")
    layers = len([half for half in halves if half["kind"] == "attn"])
    assert {path.name for path in out.glob("*.png")} == {
        "contact-sheet.png",
        "all-layers.png",
        *(f"layer-{layer}.png" for layer in range(layers)),
    }
    page = (out / "report.html").read_text()
    assert "The weights are random" in page
    assert ("ISTA has no skip around it" in page) == model.startswith("crate")
    assert ("inside an MLP" in page) == model.startswith("vit")
    assert json.loads((out / "report.json").read_text())["results"]["removals"]["patches"] == 13
    assert "When heads are removed" in page
    rows = result["removed"]["rows"]
    terms = {(row["layer"], row["head"]): row["term"] for row in rows if row["head"] is not None}
    assert terms == {(h["layer"], i): t for h in halves if h["kind"] == "attn" for i, t in enumerate(h["heads"])}
    assert any(row["kind"] == "mlp" for row in rows) == model.startswith("vit")
    assert -1 <= result["removed"]["rank_correlation"] <= 1


@pytest.mark.parametrize(("most", "said"), [(-2.0, False), (-1.6, True), (-1.2, True), (0.5, True)])
def test_evidence_that_is_worth_no_more_than_other_patches_is_said_to_be(most: float, said: bool) -> None:
    removals = {"patches": 6, "most for": most, "most against": 0.1, "random": {"mean": -1.0, "std": 0.3, "draws": 16}}
    assert ("not shown to be worth more than others" in removals_sentence(removals)) is said


def test_the_strongest_patch_is_painted_most(picture: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), (128, 128, 128)).save(picture)
    assert run(picture, *MODEL, "--image-size", 32, "--out", tmp_path / "out", "--quiet") == 0
    result = json.loads((tmp_path / "out/report.json").read_text())["results"]
    evidence = np.array(result["evidence"])
    painted = np.asarray(Image.open(tmp_path / "out/all-layers.png")).astype(int)
    side = painted.shape[0] // 8
    strongest = np.unravel_index(np.abs(evidence).argmax(), evidence.shape)
    centre = painted[int(strongest[0]) * side + side // 2, int(strongest[1]) * side + side // 2]
    assert (centre[0] > centre[2]) == (evidence[strongest] > 0), "orange is for the class, blue against it"


def test_against_another_class_and_names(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(picture, *MODEL, "--target", 1, "--against", 2, "--out", tmp_path / "out") == 0
    lines = capsys.readouterr().out.splitlines()
    target = json.loads((tmp_path / "out/report.json").read_text())["results"]["target"]
    assert lines[0].startswith("Class 1: ")
    assert lines[0].endswith(f" of 10, probability {target['probability']:.1%}.")
    assert lines[2].startswith("Terms of the logit of class 1 less that of class 2")
    assert lines[4].split()[:3] == ["layer", "head", "0"]
    assert lines[-2].startswith("Change of the logit without the ")
    assert lines[-1].startswith("Over many images: not run; --data")
    assert "class 1 against class 2" in (tmp_path / "out/report.html").read_text()
    assert run(picture, *MODEL, "--target", "cat", "--out", tmp_path / "out") == 2
    assert "names of this model's classes are not known" in capsys.readouterr().err


def test_removal_is_measured_on_many_images_of_a_data_set(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = [picture, *MODEL, "--data", "digits", "--out", tmp_path / "out", "--quiet"]
    flags = [*plain, "--images", 5]
    assert run(*flags, "--json") == 0
    found = json.loads(capsys.readouterr().out)["faithfulness"]
    assert (found["data"], found["images"]) == ("digits", 5)
    assert [(row["what"], row["share"]) for row in found["rows"]] == [
        (what, share) for what in ("removed", "kept") for share in (0.1, 0.3, 0.5)
    ]
    assert run(*flags) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("Over 5 test images of digits, without the 10% of patches with the most evidence")
    page = (tmp_path / "out" / "report.html").read_text()
    assert said in page
    assert "This is one picture." in page
    assert run(*plain, "--images", 0, "--json") == 0
    assert json.loads(capsys.readouterr().out)["faithfulness"] is None
    assert run(picture, *MODEL, "--data", "folder", "--out", tmp_path / "out") == 2
    assert "--data-dir" in capsys.readouterr().err


def test_bad_input(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", tmp_path / "out"]
    text = tmp_path / "notes.txt"
    text.write_text("not a picture")
    assert run(text, *MODEL, *out) == 1
    assert "is not a picture" in capsys.readouterr().err
    assert run(tmp_path / "none.png", *MODEL, *out) == 3
    assert run(picture, *MODEL, "--target", 5000, *out) == 2
    assert "--target 5000: the model has" in capsys.readouterr().err
    assert run(picture, "--model", "crate_nano_patch4_32", "--model-args.num-classes", 0, *out) == 2
    assert "no class head" in capsys.readouterr().err
    assert run(picture, "--model", "crate_mae_nano_patch4_32", *out) == 2
    assert "masked autoencoder" in capsys.readouterr().err
    assert run(picture, "--model", "tost_nano_patch4_32", *out) == 2
    assert "no exact sum" in capsys.readouterr().err
    assert run(picture, "--model", "timm:test_resnet", *out) == 2
    assert "no transformer blocks" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("probability", "lower", "said"),
    [
        (0.25, None, "Perhaps nothing like the picture is among the 10 classes of this model: the highest probability "
                    "is 25.0%"),
        (0.9, None, ""),
        (0.3, 0.02, "Probably nothing like the picture is among the 10 classes of this model: the highest probability "
                    "is 30.0%, and of 50 test images of cifar10 98% get as much or more"),
        (0.3, 0.2, ""),
    ],
)  # fmt: skip
def test_that_nothing_like_it_is_among_the_classes(probability: float, lower: float | None, said: str) -> None:
    among = {"classes": 10, "probability": probability, "lower": lower, "images": 50, "data": "cifar10"}
    sentence = among_sentence({"weights": "runs/x", "among": among})
    assert sentence.startswith(said)
    assert bool(sentence) == bool(said)
    assert among_sentence({"weights": "random", "among": among}) == ""


@pytest.mark.slow
def test_a_trained_model_says_it_where_it_is_unsure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages = []
    for seed in range(3):
        noise = np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{seed}.png")
        assert run(tmp_path / f"{seed}.png", "--out", tmp_path / "out", "--json", "--images", 0) == 0
        among = json.loads(capsys.readouterr().out)["among"]
        assert among["lower"] is None
        page = (tmp_path / "out" / "report.html").read_text()
        pages.append("Perhaps nothing like the picture is among the 10 classes" in page)
        assert pages[-1] == (among["probability"] < 0.3)
