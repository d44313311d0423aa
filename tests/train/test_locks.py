"""A run folder belongs to one group of processes, and whatever ends them gives it back."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from train_helpers import EVERYTHING, TINY

from unrolled import cli
from unrolled.locks import LOCK, owned
from unrolled.train import fit
from unrolled.train.checkpoint import checkpoints

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
HOLD = "import sys, time; from unrolled.locks import owned\nwith owned(sys.argv[1]): print(flush=True); time.sleep(60)"


LINES = [
    "train --max-steps 1",
    "train --task lm --data folder --data-dir TEXTS --max-steps 1",
    "pretrain --task simdino --model crate_nano_patch2_8 --data digits --max-steps 1",
    "finetune --weights crate_nano_patch4_32.cifar10 --data digits --max-steps 1",
    "eval crate_nano_patch2_8 --data digits --samples 2",
    "trace crate_nano_patch2_8 --data digits --images 2",
    "extract crate_nano_patch2_8 --data digits --images 2",
    "probe crate_nano_patch2_8 --data digits --samples 50 --test-samples 20",
    "align crate_nano_patch2_8 vit_nano_patch2_8 --data digits --images 20",
    "align-grid MODELS --data digits --images 20",
    "translate crate_nano_patch2_8 vit_nano_patch2_8 --data digits --images 30",
    "brain crate_nano_patch2_8",
    "ablate crate_nano_patch2_8 --data digits --images 20",
    "patch crate_nano_patch2_8 --data digits --images 20",
    "segment PICTURE",
    "segment-eval masks --data-dir MASKS --model crate_nano_patch2_8",
    "explain PICTURE",
    "complete PICTURE --model crate_mae_nano_patch4_32.cifar10",
    "study mesa-floors --budget quick",
    "demo",
    "gallery --studies DOCS",
]
WITHOUT = {"list", "doctor", "completion", "explore", "convert", "generate"}  # they write no run folder


@pytest.fixture
def taken(tmp_path: Path) -> Any:
    """A folder that another process owns, and that process."""
    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], env=ENVIRONMENT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield folder, process
    process.kill()
    process.communicate()


def test_a_second_process_is_told_who_the_first_is(taken: Any) -> None:
    folder, process = taken
    with (
        pytest.raises(ValueError, match=rf"run' is in use by process {process.pid} on .*; wait for it, stop it"),
        owned(folder),
    ):
        pass


def test_a_kill_gives_the_folder_back(taken: Any) -> None:
    folder, process = taken
    process.kill()
    process.wait()
    assert (folder / LOCK).is_file()
    with owned(folder):
        pass
    assert not (folder / LOCK).exists()


@pytest.mark.parametrize("resume", [None, "auto"])
def test_two_runs_in_one_folder(taken: Any, config: Any, splits: Any, resume: str | None) -> None:
    folder, process = taken
    with pytest.raises(ValueError, match=f"in use by process {process.pid}"):
        fit(config(out=folder, resume=resume), data=splits)
    assert list(folder.iterdir()) == [folder / LOCK]


@pytest.mark.parametrize("line", LINES)
def test_every_verb_that_writes_a_folder_respects_its_owner(
    line: str, taken: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    folder, process = taken
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    (tmp_path / "models.yaml").write_text("models:\n  one: crate_nano_patch2_8\n  two: vit_nano_patch2_8\n")
    for part in ("images", "masks"):
        (tmp_path / "set" / part).mkdir(parents=True)
        Image.fromarray(np.eye(32, dtype=np.uint8)).save(tmp_path / "set" / part / "a.png")
    known = {"PICTURE": str(tmp_path / "a.png"), "DOCS": str(ROOT / "docs" / "studies")}
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("to be or not to be\n" * 50)
    known |= {"MODELS": str(tmp_path / "models.yaml"), "MASKS": str(tmp_path / "set"), "TEXTS": str(tmp_path / "texts")}
    words = [known.get(word, word) for word in line.split()]
    assert cli.run([*words, "--quiet", "--out", str(folder)]) == 2
    assert f"in use by process {process.pid} on" in capsys.readouterr().err.splitlines()[-1]
    assert list(folder.iterdir()) == [folder / LOCK]


def test_no_verb_that_writes_a_folder_is_forgotten() -> None:
    assert {line.split()[0] for line in LINES} | WITHOUT == cli.VERBS.keys()


def test_blocks_of_one_thread_may_be_nested_and_another_thread_is_another_owner(tmp_path: Path) -> None:
    said: list[str] = []

    def other() -> None:
        try:
            with owned(tmp_path):
                pass
        except ValueError as error:
            said.append(str(error))

    with owned(tmp_path):
        with owned(tmp_path / "." / "."):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "another thread of this process" in said[0]


def test_a_fork_that_outlives_its_parent_does_not_keep_the_folder(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    owner = os.fork()
    if not owner:
        with owned(tmp_path / "run"):
            if not os.fork():  # as a loader's worker
                os.write(writer, b"x")
                time.sleep(5)
                os._exit(0)
            time.sleep(60)
    os.read(reader, 1)
    os.kill(owner, signal.SIGKILL)
    os.waitpid(owner, 0)
    with owned(tmp_path / "run"):
        pass


def test_an_owner_that_wrote_nonsense_is_still_one(taken: Any) -> None:
    folder, _ = taken
    (folder / LOCK).write_bytes(b"\x1b[31m not json")
    with pytest.raises(ValueError, match="in use by another process; wait"), owned(folder):
        pass


def test_an_error_before_the_run_leaves_no_folder(tmp_path: Path) -> None:
    assert cli.run(["train", "--model", "no_such_model", "--quiet", "--out", str(tmp_path / "run")]) == 2
    assert not (tmp_path / "run").exists()


COMMAND = ["train", "--data", "digits", "--batch-size", "16", "--epochs", "1000", "--log-every", "1"]
COMMAND += ["--checkpoint-every", "10000", "--model", "vit_nano_patch2_8", "--accelerator", "cpu"]
COMMAND += [word for name, value in TINY.items() for word in (f"--model-args.{name.replace('_', '-')}", str(value))]


def _until_step(out: Path, step: int) -> None:
    until = time.monotonic() + 120
    while not (out / "status.json").is_file() or json.loads((out / "status.json").read_text())["step"] < step:
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.slow
def test_a_closed_terminal_stops_a_run_that_then_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    child, terminal = pty.fork()  # a session of its own, whose terminal it is
    if not child:
        os.chdir(ROOT)
        os.execve(sys.executable, [sys.executable, "-m", "unrolled", *COMMAND, "--out", str(out)], ENVIRONMENT)
    _until_step(out, 3)
    os.close(terminal)  # the kernel sends SIGHUP, and what is written to stderr fails
    until = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        assert time.monotonic() < until
        time.sleep(0.02)
    assert os.waitstatus_to_exitcode(ended[1]) == 130
    status = json.loads((out / "status.json").read_text())
    assert status["state"] == "interrupted"
    step = status["step"]
    assert [path.name for path in checkpoints(out / "checkpoints")] == [f"step-{step:08d}"]
    assert cli.run([*COMMAND, "--out", str(out), "--resume", "auto", "--max-steps", str(step + 1), "--quiet"]) == 0


def test_hangups_never_stop_a_run_at_once_and_nohup_is_respected(config: Any, splits: Any) -> None:
    def hang_up(record: dict[str, Any], model: Any) -> None:
        if record["step"] == 6:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGHUP)  # the kernel's and the shell's

    from unrolled.train import Interrupted

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup themselves
    try:
        with pytest.raises(Interrupted):
            fit(config(**EVERYTHING), data=splits, callbacks=[hang_up])
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        fit(config(**EVERYTHING, resume="auto"), data=splits, callbacks=[hang_up])
    finally:
        signal.signal(signal.SIGHUP, before)
