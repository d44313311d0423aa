"""A run that is interrupted names the command that goes on with it, and that command does."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import unrolled.train as training
from unrolled import cli
from unrolled.train import Interrupted

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--model-args.depth", "1", "--model-args.embed-dim", "16", "--model-args.num-heads", "2"]


@pytest.mark.parametrize(
    ("verb", "flags"),
    [
        ("train", []),
        ("train", ["--task", "lm"]),
        ("finetune", ["--weights", "w"]),
        ("pretrain", ["--task", "simdino"]),
        ("pretrain", ["--task", "mae"]),
    ],
)
def test_every_verb_that_trains_names_the_command(
    verb: str, flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: Any) -> None:
        raise Interrupted("stopped at step 3 of 9; run it again with resume='auto' to go on")

    monkeypatch.setattr(training, "fit", stop)
    assert cli.run([verb, *flags, "--out", "my runs/one"]) == 130
    said = capsys.readouterr().err
    assert said.startswith("interrupted: stopped at step 3 of 9; ")
    assert said.endswith(f", or: unrolled {verb} --config 'my runs/one/config.yaml' --resume auto\n")


@pytest.mark.slow
def test_the_command_it_names_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    flags = ["--task", "simdino", "--model", "crate_nano_patch2_8", *TINY, "--data", "digits", "--batch-size", "32"]
    flags += ["--local-crops", "0", "--epochs", "1000", "--log-every", "1", "--out", str(out), "--accelerator", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "unrolled", "pretrain", *flags]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    until = time.monotonic() + 120
    while not (out / "metrics.jsonl").is_file() or not (out / "metrics.jsonl").read_text().count("\n"):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=60)
    assert (process.returncode, printed) == (130, "")
    assert said.splitlines()[-1].startswith("interrupted: ")
    (step,) = [int(path.name.removeprefix("step-")) for path in (out / "checkpoints").iterdir()]
    assert f"stopped at step {step} of " in said
    resume = shlex.split(said.rsplit("or: unrolled ", 1)[1])
    assert cli.run([*resume, "--max-steps", str(step + 2), "--json"]) == 0
    assert f'"steps": {step + 2},' in capsys.readouterr().out
