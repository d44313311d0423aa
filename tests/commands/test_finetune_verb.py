from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import unrolled
from unrolled import cli

SHORT = ["--max-steps", "1", "--batch-size", "32", "--quiet"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert cli.run(["train", *SHORT, "--out", str(folder)]) == 0
    return folder


def test_the_model_that_the_weights_describe_is_named(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["finetune", "--weights", str(run_folder), "--out", str(tmp_path), *SHORT]
    assert cli.run(flags) == 0
    assert capsys.readouterr().out.startswith("crate_nano_patch2_8 on digits: ")
    assert cli.run([*flags, "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "crate_nano_patch2_8"


def test_the_report_has_the_speed_that_the_terminal_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--max-steps", "3", "--log-every", "1", "--batch-size", "16", "--quiet", "--json"]
    assert cli.run(["train", *flags, "--out", str(tmp_path)]) == 0
    speed = json.loads(capsys.readouterr().out)["images_per_second"]
    facts = {fact["label"]: fact["value"] for fact in json.loads((tmp_path / "report.json").read_text())["facts"]}
    assert facts["Training speed"] == f"{speed:,.0f} images/s"


@pytest.mark.parametrize("name", ["crate_nano_patch4_32.cifar10", "crate_mae_nano_patch4_32.cifar10"])
def test_weights_that_ship_are_taken_by_name(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    flags = ["--weights", name, "--data", "digits", "--lr", "1e-9", "--out", str(out), *SHORT]
    assert cli.run(["finetune", *flags]) == 0
    assert capsys.readouterr().out.startswith(f"{name.split('.')[0]} on digits: ")
    shipped = unrolled.create_model(name, pretrained=True).state_dict()
    tuned = unrolled.create_model(f"local-dir:{out / 'model'}", pretrained=True)
    key = "blocks.0.ista.dictionary"
    assert torch.allclose(tuned.state_dict()[key], shipped[key], atol=1e-5)
    written = json.loads((out / "model" / "config.json").read_text())
    assert "airplane" not in json.dumps(written)  # the classes of CIFAR-10 are not the digits
    again = unrolled.create_model("crate_nano_patch4_32.cifar10", pretrained=True)
    assert again.pretrained_cfg["label_names"][0] == "airplane"


def test_train_and_eval_take_them_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "crate_nano_patch4_32.cifar10"
    flags = ["--model", "crate_nano_patch4_32", "--weights", name, "--data", "digits"]
    assert cli.run(["train", *flags, "--out", str(tmp_path / "run"), *SHORT]) == 0
    assert "weights that ship" in (tmp_path / "run" / "report.html").read_text()
    assert cli.run(["eval", *flags[1:], "--samples", "20", "--out", str(tmp_path / "eval")]) == 0
    assert cli.run(["finetune", "--weights", "crate_nano_patch4_32.cifar11", "--out", str(tmp_path / "x"), *SHORT]) == 3
    assert "nor do weights of that name ship" in capsys.readouterr().err
