"""A model knows its classes by name: other data are judged by the same names, or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unrolled.cli import run
from unrolled.train import FinetuneConfig, TrainConfig, fit
from unrolled.train.run import Splits
from unrolled.train.unfinished import newest_model

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


def pictures(root: Path, names: dict[str, str] | None = None, each: int = 12) -> Path:
    """A folder of one-coloured pictures: class -> colour, by default each colour under its own name."""
    for name, colour in (names or {colour: colour for colour in COLOURS}).items():
        for number in range(each):
            path = root / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(number).integers(0, 40, (8, 8, 3))
            Image.fromarray((np.array(COLOURS[colour]) * 0.8 + noise).astype(np.uint8)).save(path)
    return root


FLAGS = ["--model", "vit_nano_patch2_8", "--model-args.in-chans", "3", "--batch-size", "12", "--lr", "0.01",
         "--warmup-epochs", "0", "--no-augment", "--accelerator", "cpu", "--quiet", "--data", "folder"]  # fmt: skip


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that tells three colours apart."""
    root = tmp_path_factory.mktemp("colours")
    data = pictures(root / "data")
    assert run(["train", *FLAGS, "--data-dir", str(data), "--epochs", "12", "--out", str(root / "run")]) == 0
    return root / "run"


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any], str]:
    code = run([*arguments, "--json", "--quiet"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if captured.out else {}, captured.err


def on(capsys: pytest.CaptureFixture[str], colours: Path, data: Path, *more: str) -> tuple[int, dict[str, Any], str]:
    where = ["--data-dir", str(data), "--split", "all", "--out", str(data.parent / "eval"), "--device", "cpu"]
    return ask(capsys, "eval", str(colours), *where, *more)


def test_a_run_keeps_the_names_of_its_classes(colours: Path) -> None:
    assert json.loads((colours / "model" / "config.json").read_text())["label_names"] == list(COLOURS)


def test_other_data_are_judged_by_the_names_of_their_classes(
    colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, own, _ = on(capsys, colours, pictures(tmp_path / "same" / "x"))
    assert (code, own["accuracy"], own["images"]) == (0, 1.0, 36)
    some = pictures(tmp_path / "some" / "x", {"red": "red", "green": "green"})
    code, found, said = on(capsys, colours, some)
    assert (code, found["accuracy"], found["images"]) == (0, 1.0, 24)
    assert "unknown" not in found
    more = pictures(tmp_path / "more" / "x", {"amber": "red", "green": "green", "zinc": "blue", "red": "red"})
    code, found, said = on(capsys, colours, more)
    assert (code, found["accuracy"], found["images"], found["unknown"]) == (0, 1.0, 24, 24)
    assert "left out: 24 of 48 images, of 2 classes it lacks (amber, zinc)" in said


def test_data_of_which_no_class_is_known_are_refused(
    colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = pictures(tmp_path / "x", {"cat": "blue", "dog": "green", "owl": "red"})
    code, _, said = on(capsys, colours, other)
    assert code == 2
    assert "(cat, dog, owl) are none of those of" in said
    assert "(blue, green, red)" in said
    code, found, said = on(capsys, colours, other, "--classes-by", "number")
    assert (code, found["accuracy"]) == (0, 1.0)
    assert "taken for those of folder by their number" in said


def test_weights_are_judged_by_their_names_too(
    colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = pictures(tmp_path / "x", {"red": "red", "green": "green"})
    where = ["--data", "folder", "--data-dir", str(some), "--split", "all", "--out", str(tmp_path / "eval")]
    named = ["vit_nano_patch2_8", "--model-args.in-chans", "3", "--weights", str(colours), "--device", "cpu"]
    code, found, _ = ask(capsys, "eval", *named, *where)
    assert (code, found["accuracy"], found["images"]) == (0, 1.0, 24)
    file = [str(colours / "model" / "model.safetensors") if word == str(colours) else word for word in named]
    code, found, _ = ask(capsys, "eval", *file, *where)
    assert (code, found["accuracy"], found["images"]) == (0, 1.0, 24)
    alone = shutil.copy(colours / "model" / "model.safetensors", tmp_path / "alone.safetensors")
    file = [str(alone) if word == str(colours) else word for word in named]
    every = [str(pictures(tmp_path / "every")) if word == str(some) else word for word in where]
    code, found, said = ask(capsys, "eval", *file, *every)
    assert (code, found["accuracy"], found["images"]) == (0, 1.0, 36)
    assert "alone.safetensors names no classes; its outputs are taken for those of folder by their number" in said


def test_training_goes_on_from_a_head_only_for_the_same_classes(colours: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "model": "vit_nano_patch2_8", "model_args": {"in_chans": 3}, "data": "folder", "batch_size": 4, "max_steps": 1,
        "lr": 1e-9, "weights": colours, "accelerator": "cpu", "quiet": True, "val_fraction": 0.0,
    }  # fmt: skip
    kept = {}
    for name, names in (("same", None), ("other", {"cat": "blue", "dog": "green", "owl": "red"})):
        data = pictures(tmp_path / name, names)
        result = fit(TrainConfig(**settings, data_dir=data, out=tmp_path / f"run-{name}"))
        kept[name] = "head.weight" in result.load_report.mapped
        assert json.loads((result.run_dir / "model" / "config.json").read_text())["label_names"] == list(
            names or COLOURS
        )
    assert kept == {"same": True, "other": False}
    tuned = fit(
        FinetuneConfig(**{**settings, "val_fraction": 0.5}, data_dir=tmp_path / "other", out=tmp_path / "tuned")
    )
    described = json.loads((tuned.run_dir / "model" / "config.json").read_text())
    assert described["label_names"] == ["cat", "dog", "owl"]


def test_an_interrupted_run_knows_its_classes(colours: Path, tmp_path: Path) -> None:
    from unrolled.data import open_images

    other = pictures(tmp_path / "x", {"red": "red", "green": "green"})
    network, _ = newest_model(colours, open_images("folder", "all", data_dir=other))
    assert network.num_classes == 3
    assert list(network.pretrained_cfg["label_names"]) == list(COLOURS)  # type: ignore[index, arg-type]


def test_explain_names_the_classes_without_the_data(
    colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = pictures(tmp_path, {"x": "red"}, each=1) / "x" / "0.png"
    code, found, _ = ask(
        capsys, "explain", str(picture), "--model", str(colours), "--target", "red", "--out", str(tmp_path / "explain")
    )
    assert (code, found["target"]["name"]) == (0, "2 (red)")


def test_one_class_alone_comes_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = pictures(tmp_path / "one", {"red": "red"})
    flags = ["4" if flag == "12" else flag for flag in FLAGS if flag != "--quiet"]
    assert run(["train", *flags, "--data-dir", str(data), "--max-steps", "1", "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert "data: train: 9 images of 1 class (red 9); test: 3 images of 1 class (red 3)" in said
    for count in (9, 3):  # what is trained on, and what is tested on
        assert f"all {count} images are of one class (red): a model that always answers it is right every time" in said
    code, _, said = on(capsys, tmp_path / "run", data)
    assert code == 0
    assert "note: all 12 images are of one class (red)" in said


def test_a_finished_run_is_not_resumed_on_other_held_out_images(colours: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        model="vit_nano_patch2_8", model_args={"in_chans": 3}, data="folder", batch_size=4, max_steps=1, epochs=1,
        accelerator="cpu", quiet=True, out=tmp_path / "run",
    )  # fmt: skip
    from unrolled.data import open_images

    train = open_images("folder", "train", data_dir=colours.parent / "data")
    other = open_images("folder", "all", data_dir=pictures(tmp_path / "other", each=2))
    fit(config, data=Splits(train=train, test=open_images("folder", "test", data_dir=colours.parent / "data")))
    config.resume = "auto"
    with pytest.raises(ValueError, match="or with others held out"):
        fit(config, data=Splits(train=train, test=other))


def test_classes_that_a_run_left_out_are_left_out_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    pictures(data / "train")
    pictures(data / "test", {"amber": "red", **{name: name for name in COLOURS}})
    run_dir, device = str(tmp_path / "run"), ["--device", "cpu"]
    train = ["train", *FLAGS, "--data-dir", str(data), "--epochs", "1"]
    assert run([*train, "--unknown-classes", "skip", "--out", run_dir]) == 0
    capsys.readouterr()
    code, found, said = ask(capsys, "eval", run_dir, "--out", str(tmp_path / "eval"), *device)
    assert (code, found["images"]) == (0, 36), said
    code, found, said = ask(capsys, "probe", run_dir, "--no-control", "--out", str(tmp_path / "probe"), *device)
    assert (code, found["test"]) == (0, 36), said
    for verb in ("eval", "probe"):
        code, _, said = ask(capsys, verb, run_dir, "--unknown-classes", "raise", "--out", str(tmp_path / "no"), *device)
        assert code == 2
        assert "class 'amber'" in said


def test_one_class_is_said_of_quiet_training_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = pictures(tmp_path / "data", {"red": "red"}, each=24)
    assert run(["train", *FLAGS, "--data-dir", str(data), "--max-steps", "1", "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert said.startswith("note: all ")
    assert "images are of one class (red): a model that always answers it is right every time" in said
    assert "step 1" not in said
    assert "data:" not in said
