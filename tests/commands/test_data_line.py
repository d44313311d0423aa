"""Every run says in one line what was read and what was passed over."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unrolled.cli import run

MODEL = ["vit_nano_patch2_8", "--model-args.in-chans", "3", "--model-args.depth", "1"]
FIT = ["--model", *MODEL, "--max-steps", "1", "--batch-size", "4", "--accelerator", "cpu", "--warmup-epochs", "0"]
ON = ["--device", "cpu", "--batch-size", "8"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of ten photos, one of whose names is no UTF-8, and a folder of git's."""
    root = tmp_path_factory.mktemp("photos")
    for name in ("cat", "dog", ".git"):
        (root / name).mkdir()
        for number in range(10):
            pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    with contextlib.suppress(OSError):  # of a file system that takes UTF-8 names only
        (root / "cat" / "0.png").rename(root / "cat" / os.fsdecode(b"caf\xe9.png"))
    return root


@pytest.mark.parametrize(
    "command",
    [
        ["train", *FIT],
        ["pretrain", "--model", "vit_mae_nano_patch4_32", "--image-size", "32", "--max-steps", "1", "--batch-size", "4",
         "--accelerator", "cpu", "--warmup-epochs", "0"],
        ["eval", *MODEL, *ON],
        ["probe", *MODEL, *ON, "--method", "ridge", "--no-control", "--layers", "block00"],
        ["trace", *MODEL, *ON],
        ["extract", *MODEL, *ON],
    ],
    ids=lambda command: command[0],
)  # fmt: skip
def test_verbs_say_what_images_they_read(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert run([*command, "--data", "folder", "--data-dir", str(photos), "--out", str(tmp_path / "out")]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("data: ")]
    assert len(said) == 1
    assert "images of 2 classes (cat " in said[0]
    assert "(passed over: 1 hidden or system entries (.git))" in said[0]


def test_runs_on_text_say_what_they_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts, out = tmp_path / "texts", str(tmp_path / "run")
    (texts / ".git").mkdir(parents=True)
    for name in ("a.txt", ".git/a.txt"):
        (texts / name).write_text("".join(f"line {number} of a text\n" for number in range(400)))
    where = ["--data", "folder", "--data-dir", str(texts), "--out", out]
    flags = ["--length", "16", "--max-steps", "1", "--batch-size", "2", "--accelerator", "cpu"]
    assert run(["train", "--task", "lm", "--model", "crate_gpt_nano", *flags, *where]) == 0
    assert run(["eval", out, "--device", "cpu", "--out", str(tmp_path / "eval")]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("data: ")]
    assert len(said) == 2
    assert said[0] == said[1]
    assert said[0].startswith("data: folder: train 6,")
    assert said[0].endswith("(passed over: 1 hidden or system entries (.git))")


def test_a_finished_run_on_text_is_not_resumed_on_another_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--task", "lm", "--model", "crate_gpt_nano", "--data", "folder", "--length", "16", "--batch-size", "2"]
    flags += ["--epochs", "0.01", "--accelerator", "cpu", "--quiet", "--out", str(tmp_path / "run")]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("".join(f"line {number} of {name}\n" for number in range(400)))
    assert run(["train", *flags, "--data-dir", str(tmp_path / "one")]) == 0
    assert run(["train", *flags, "--data-dir", str(tmp_path / "two"), "--resume", "auto"]) == 2
    assert "was made on other training text" in capsys.readouterr().err


def test_segment_skips_a_photo_with_bad_annotations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pycocotools")
    images, notes = [], []
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3)).astype(np.uint8)
        (tmp_path / "val2017").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "val2017" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png"})
        square = [[4, 4, 20, 4, 20, 20, 4, 20]]
        notes.append({"id": number, "image_id": number, "category_id": 1, "segmentation": square})
    notes[1]["segmentation"], notes[2]["category_id"] = [[4, 4, 20, 20]], 9
    (tmp_path / "annotations").mkdir()
    data = {"images": images, "annotations": notes, "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(data))
    command = ["segment-eval", "coco", "--data-dir", str(tmp_path), "--model", "vit_nano_patch4_32", "--measure",
               "attention", "--device", "cpu", "--out", str(tmp_path / "out")]  # fmt: skip
    assert run(command) in (1, 2)
    said = capsys.readouterr().err
    assert "1.png: its annotation 1 has a polygon of 4 numbers" in said
    assert "data: COCO instances val2017, 4 images" in said
    assert run([*command, "--on-error", "skip", "--json"]) == 0
    skipped = json.loads(capsys.readouterr().out)["skipped"]
    assert len(skipped) == 2
    assert "2.png" in skipped[1]
    assert "category 9" in skipped[1]
