"""`unrolled segment-eval`, from the command line to the tables it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.files import disc, disc_mask
from unrolled import cli

MODEL = ["--model", "crate_nano_patch4_32"]


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    """A folder of three photos of a yellow disc on noisy blue, the last upright, and of masks of the discs."""
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for i in range(3):
        for part, image in {"images": disc(i), "masks": disc_mask()}.items():
            (image.transpose(Image.Transpose.ROTATE_90) if i == 2 else image).save(tmp_path / part / f"{i}.png")
    return tmp_path


def run(*arguments: Any) -> int:
    return cli.run([*map(str, arguments), "--device", "cpu"])


def test_attention_and_objects_beside_their_baselines(marked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pycocotools")
    out = marked / "out"
    arguments = ["segment-eval", "masks", "--data-dir", marked, "--out", out, "--image-size", 48, *MODEL]
    assert run(*arguments, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    rows = result["attention"]
    systems = [(row["system"], row["layer"]) for row in rows if row["by"] == "mass"]
    assert systems == [(system, layer) for layer in range(6) for system in ("model", "untrained")]
    assert [row["system"] for row in rows if row["by"] is None] == ["centre prior", "colour", "whole photo"]
    for row in [*rows, *result["layers"]]:
        assert row.get("images", row.get("photos")) == 3
        assert 0 <= row["low"] <= row["averaged"] <= row["high"] <= 1
        assert row["mean"] <= row["best"]
    share = np.pi * 20**2 / (60 * 120)
    plain = {row["system"]: row for row in result["layers"] if row["by"] is None}
    assert plain["whole photo"]["averaged"] == pytest.approx(share, abs=0.01)
    assert plain["colour"]["averaged"] > 0.75, "colour alone finds a yellow disc"
    heads = [row for row in result["heads"] if row["system"] == "model" and row["by"] == "mass"]
    assert [(row["layer"], row["head"]) for row in heads[:5]] == [(0, 0), (0, 1), (0, 2), (0, 3), (0, None)]
    for row in heads:
        assert row["miou"] == pytest.approx((row["things"] + row["background"]) / 2)
        assert row["margin"] == pytest.approx(row["things"] - row["chance"])
    objects = {row["system"]: row for row in result["maskcut"]}
    assert set(objects) == {"model", "untrained", "model's masks, moved", "colour", "centre prior"}
    assert objects["colour"]["segm"]["AP50"] == 1
    assert objects["colour"]["instances"] == 3
    for row in objects.values():
        low, high = row["segm"]["interval"]["AP"]
        assert 0 <= low <= high <= 1
        assert "earlier" in row["confidence"]
    page = (out / "report.html").read_text()
    assert "The weights are random" in page
    assert "of each class on each photo, then the mean over the classes of a photo, then over photos" in page
    assert "an oracle: the head that fits best" in page
    assert "bootstrap over images" in page
    assert "masks found earlier are surer" in page
    assert len(list((out / "figures").glob("layers-heads-*.svg"))) == 4


def test_what_is_measured_and_how_objects_are_ranked_can_be_chosen(
    marked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pycocotools")
    arguments = ["masks", "--data-dir", marked, "--out", marked / "out", "--limit", 2, "--layers", 0, -1]
    asked = ["--measure", "maskcut", "clusters", "--confidence", "area", "--batch-size", 1]
    assert run("segment-eval", *arguments, *asked, *MODEL, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert not {"attention", "heads", "layers"} & set(result)
    assert [row["layer"] for row in result["maskcut"] if row["system"] == "model"] == [0, 5]
    assert "share of the image" in result["maskcut"][0]["confidence"]
    regions = {row["system"]: row for row in result["clusters"]}
    assert regions["one region"]["covering"] < regions["colour"]["covering"]
    assert "boundary_f" not in regions["colour"], "one mask is no segmentation by a person"
    assert 0 < regions["model"]["boundary_jaccard"] < 1
    page = (marked / "out" / "report.html").read_text()
    grid = regions["every patch"]["boundary_jaccard"]
    assert f"the {grid:.3f} of a border around every patch, which knows nothing of the photo" in page
    best = max(row["boundary_jaccard"] for row in result["clusters"] if row["system"] == "model")
    assert f"has a boundary Jaccard of {best:.3f}, {'less' if best < grid else 'more'} than" in page
    assert run("segment-eval", *arguments, "--measure", "clusters", *MODEL) == 0
    said = capsys.readouterr().out
    header = next(line for line in said.splitlines() if line.startswith("system"))
    for column in ("system", "layer", "covering", "95 %", "mIoU", "boundary Jaccard", "images"):
        assert column in header
        assert f"\n  {column}: " in said, "every column is explained"
    assert "\n  colour: no network" in said
    assert "boundary F" not in said, "only what is there"
    assert run("segment-eval", *arguments, "--measure", "attention", *MODEL, "--quiet") == 0
    said = capsys.readouterr().out
    assert "centre prior" in said
    assert "Columns" not in said


def test_scores_of_another_model_of_the_same_name_get_a_folder_of_their_own(
    marked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(marked)
    arguments = ["segment-eval", "masks", "--data-dir", marked, "--image-size", 16, "--measure", "clusters"]
    for more in ([], ["--model-args.depth", 2], ["--limit", 2]):
        assert run(*arguments, *MODEL, *more, "--layers", 1, "--quiet") == 0
    assert sorted(folder.name for folder in (marked / "runs").iterdir()) == [
        "segment-eval-crate_nano_patch4_32-masks",
        "segment-eval-crate_nano_patch4_32-masks-2",
    ]


def test_of_one_photo_there_is_no_other_half_to_choose_a_head_on(
    marked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["masks", "--data-dir", marked, "--limit", 1, "--measure", "attention", "--layers", 0]
    assert run("segment-eval", *arguments, *MODEL, "--out", marked / "out", "--json") == 0
    text = capsys.readouterr().out
    assert "NaN" not in text
    assert {row["fixed"] for row in json.loads(text)["layers"]} == {None}


def test_a_model_whose_attention_is_unknown(marked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tost = ["segment-eval", "masks", "--data-dir", marked, "--model", "tost_nano_patch4_32", "--out", marked / "o"]
    assert run(*tost) == 2
    assert "--measure maskcut or clusters" in capsys.readouterr().err.splitlines()[-1]
    assert run(*tost, "--facet", "token", "--measure", "clusters", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    systems = [row["system"] for row in result["clusters"]]
    assert systems == ["model", "untrained", "colour", "one region", "every patch"]


def test_regions_of_an_image_in_two_halves() -> None:
    from unrolled.commands.segment.measures import evaluate
    from unrolled.commands.segment.options import SegmentEvalOptions
    from unrolled.data import MaskSource, Scene
    from unrolled.models import create_model
    from unrolled.subjects.pictures import prepare

    class Halves(MaskSource):
        description = "halves"

        def __len__(self) -> int:
            return 1

        def load(self, index: int) -> Scene:
            pixels = np.zeros((64, 64, 3), np.uint8)
            pixels[:, 32:] = (250, 200, 0)
            return Scene(Image.fromarray(pixels), segmentations=(np.repeat([[0] * 32 + [1] * 32], 64, 0),))

        def name(self, index: int) -> str:
            return "halves"

    torch.manual_seed(0)
    network = create_model("crate_nano_patch4_32").eval()
    settings = SegmentEvalOptions(data="masks", data_dir=Path(), measure=("clusters",), layers=(0,), clusters=2)
    tables = evaluate(network, prepare(network, image_size=None), Halves(), 1, settings, lambda items: items)
    found = {row["system"]: row for row in tables["clusters"]}
    assert set(found) == {"model", "untrained", "colour", "one region", "every patch"}
    assert (found["colour"]["covering"], found["colour"]["miou"], found["colour"]["boundary_f"]) == (1, 1, 1)
    assert found["one region"]["covering"] == pytest.approx(0.5)
    assert found["one region"]["miou"] == pytest.approx(0.25)
    assert found["one region"]["boundary_f"] == 0
    assert found["colour"]["boundary_jaccard"] == 1
    assert found["one region"]["boundary_jaccard"] == 0
    assert found["every patch"]["recall"] == 1
    assert found["every patch"]["precision"] < 0.5


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["segment-eval", "masks"], 2, "--data-dir"),
        (["segment-eval", "masks", "--data-dir", "gone"], 3, "gone"),
        (["segment-eval", "masks", "--data-dir", ".", "--limit", "0"], 2, "--limit 0"),
        (["segment-eval", "masks", "--data-dir", ".", "--batch-size", "0"], 2, "--batch-size 0"),
        (["segment"], 2, "give at least one picture"),
        (["segment", "--eval", "coco", "--measure", "maskcut"], 2, "is a verb of its own now: unrolled segment-eval"),
    ],
)
def test_eval_says_what_is_missing(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments, *MODEL) == code
    assert message in capsys.readouterr().err.splitlines()[-1]
