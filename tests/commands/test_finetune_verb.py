from __future__ import annotations

import json
from pathlib import Path

import pytest

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
