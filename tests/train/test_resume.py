from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from train_helpers import EVERYTHING, assert_resumes_after_a_crash, assert_resumes_after_a_kill, assert_same_run

from unrolled.errors import CorruptFile
from unrolled.train import FinetuneConfig, Interrupted, fit, save_config
from unrolled.train.checkpoint import checkpoints

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("optimizer", "step"), [("adamw", 6), ("adamw", 8), ("lion", 6), ("muon", 8)])
def test_a_crashed_run_resumes_to_the_same_bits(config, splits, tmp_path, optimizer, step):
    straight = config(**EVERYTHING, optimizer=optimizer, out=tmp_path / "straight")
    broken = config(**EVERYTHING, optimizer=optimizer, out=tmp_path / "broken", resume="auto")
    assert_resumes_after_a_crash(straight, broken, step, splits)


def test_resuming_a_crate_after_each_of_many_stops_changes_nothing(config, splits, tmp_path):
    settings = {**EVERYTHING, "model": "crate_nano_patch2_8"}
    straight = fit(config(**settings, out=tmp_path / "straight"), data=splits)
    for steps in (1, 4, 5, 11, None):
        pieces = fit(config(**settings, out=tmp_path / "pieces", resume="auto", max_steps=steps), data=splits)
    # a run stopped by max_steps logs, validates and tests where it stops; what it trains must not change
    state_a, model_a = (final_weights(result.run_dir) for result in (straight, pieces))
    assert all((state_a[name] == model_a[name]).all() for name in state_a)


def final_weights(out: Path) -> Any:
    from safetensors.torch import load_file

    state = load_file(checkpoints(out / "checkpoints")[0] / "state.safetensors")
    return {name: tensor for name, tensor in state.items() if not name.startswith("best/")}


SCRIPT = """
import sys
from unrolled.train import TrainConfig, fit, load_config
fit(load_config(sys.argv[1], TrainConfig))
"""


def start(config: Any, folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    script, file = folder / "run.py", folder / "run.yaml"
    script.write_text(SCRIPT)
    save_config(config, file)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen([sys.executable, str(script), str(file)], env=environment, stderr=subprocess.PIPE, cwd=ROOT)


def wait_for_step(out: Path, step: int) -> None:
    """Until the run has logged `step`."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        status = out / "status.json"
        if status.exists() and json.loads(status.read_text())["step"] >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"the run never reached step {step}")


def digits(config: Any, **changes: Any) -> Any:
    """A run on the digits in 112 steps, each logged, so that a kill can be timed."""
    settings = {**EVERYTHING, "data": "digits", "batch_size": 16, "epochs": 1.4, "val_fraction": 0.1, "log_every": 1}
    return config(**{**settings, "checkpoint_every": 20, "auto_augment": None, "accumulate": 1, **changes})


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_killed_in_the_middle_of_an_epoch_resumes_to_the_same_bits(config, tmp_path, workers):
    straight = digits(config, out=tmp_path / "straight", workers=0)
    killed = digits(config, out=tmp_path / "killed", workers=workers, resume="auto")
    fit(straight)
    for attempt in range(2 if workers else 1):
        process = start(killed, tmp_path)
        wait_for_step(killed.out, 25 + 40 * attempt)
        time.sleep(random.random() / 2)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    fit(killed)
    assert_same_run(straight.out, killed.out)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 7, 23])
def test_a_fine_tuning_killed_after_its_first_checkpoint_resumes_to_the_same_bits(config, splits, tmp_path, steps):
    fit(config(out=tmp_path / "weights", max_steps=2), data=splits)
    settings = vars(digits(config, weights=tmp_path / "weights", checkpoint_every=10, batch_size=32))
    straight = FinetuneConfig(**{**settings, "out": tmp_path / "straight"})
    killed = FinetuneConfig(**{**settings, "out": tmp_path / "killed", "resume": "auto"})
    assert_resumes_after_a_kill(straight, killed, tmp_path, steps=steps)


def test_an_interrupted_run_saves_and_says_how_to_go_on(config, splits, tmp_path):
    def interrupt(record: dict[str, Any], model: Any) -> None:
        if record["step"] == 6:
            signal.raise_signal(signal.SIGINT)

    straight = config(**EVERYTHING, out=tmp_path / "straight")
    stopped = config(**EVERYTHING, out=tmp_path / "stopped", resume="auto")
    fit(straight, data=splits)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="resume='auto'") as caught:
        fit(stopped, data=splits, callbacks=[interrupt])
    assert signal.getsignal(signal.SIGINT) is before
    assert isinstance(caught.value, KeyboardInterrupt)
    newest = checkpoints(stopped.out / "checkpoints")[0]
    assert json.loads((stopped.out / "status.json").read_text())["state"] == "interrupted"
    assert newest.name in ("step-00000006", "step-00000007")
    fit(stopped, data=splits)
    assert_same_run(straight.out, stopped.out)


@pytest.mark.slow
def test_sigterm_to_a_real_process_saves(config, tmp_path):
    settings = digits(config, out=tmp_path / "run", resume="auto")
    process = start(settings, tmp_path)
    wait_for_step(settings.out, 25)
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert b"resume='auto'" in stderr
    status = json.loads((settings.out / "status.json").read_text())
    assert status["state"] == "interrupted"
    assert checkpoints(settings.out / "checkpoints")[0].name == f"step-{status['step']:08d}"


def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_used(config, splits, tmp_path, caplog):
    straight = config(**EVERYTHING, out=tmp_path / "straight")
    damaged = config(**EVERYTHING, out=tmp_path / "damaged", resume="auto")
    fit(straight, data=splits)
    fit(damaged, data=splits)
    newest = checkpoints(damaged.out / "checkpoints")[0]
    tensors = newest / "state.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    with pytest.raises(CorruptFile, match=r"step-00000012.state\.safetensors is truncated"):
        fit(dataclasses.replace(damaged, resume=str(newest)), data=splits)
    fit(damaged, data=splits)
    assert "step-00000012" in caplog.text
    assert "truncated" in caplog.text
    assert_same_run(straight.out, damaged.out)


def test_a_changed_configuration_is_refused_with_the_difference(config, splits):
    fit(config(max_steps=2), data=splits)
    with pytest.raises(ValueError, match=r"lr: 0\.002 -> 0\.1"):
        fit(config(resume="auto", lr=0.1), data=splits)
    fit(config(resume="auto", lr=0.1, force=True, max_steps=3), data=splits)


def test_an_earlier_run_is_not_overwritten_by_accident(config, splits):
    fit(config(max_steps=2), data=splits)
    with pytest.raises(ValueError, match=r"already holds a run .*step-00000002.*resume='auto'"):
        fit(config(max_steps=2), data=splits)
    result = fit(config(max_steps=1, force=True), data=splits)
    assert [path.name for path in checkpoints(result.run_dir / "checkpoints")] == ["step-00000001"]


def test_other_training_images_are_refused(config, splits):
    from unrolled.data import synthetic_images

    fit(config(max_steps=2), data=splits)
    splits.train = synthetic_images(48, size=8, classes=4, channels=1, seed=9)
    with pytest.raises(ValueError, match="other training images"):
        fit(config(resume="auto"), data=splits)


def test_a_checkpoint_of_another_architecture_is_refused(config, splits):
    fit(config(max_steps=2), data=splits)
    with pytest.raises(
        ValueError, match=r"another architecture.*has other shapes: cls_token \(1, 1, 16\) for \(1, 1, 32\)"
    ):
        fit(config(resume="auto", model_args={"depth": 2, "embed_dim": 32, "num_heads": 2}), data=splits)
    with pytest.raises(ValueError, match=r"another architecture: it lacks blocks\.2"):
        fit(config(resume="auto", model_args={"depth": 3, "embed_dim": 16, "num_heads": 2}), data=splits)


def test_only_the_newest_checkpoints_are_kept(config, splits):
    result = fit(config(checkpoint_every=3, keep=2), data=splits)
    assert [path.name for path in checkpoints(result.run_dir / "checkpoints")] == ["step-00000012", "step-00000009"]
    assert len(list((result.run_dir / "checkpoints").iterdir())) == 2


def test_a_checkpoint_of_another_run_does_not_go_on_in_a_folder_that_holds_one(config, splits, tmp_path):
    one = fit(config(out=tmp_path / "one", checkpoint_every=5, max_steps=5), data=splits)
    fit(config(out=tmp_path / "two", checkpoint_every=5, seed=1), data=splits)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "two").rglob("*")}
    checkpoint = str(checkpoints(one.run_dir / "checkpoints")[0])
    with pytest.raises(ValueError, match=r"already holds a run .* is of another one"):
        fit(config(out=tmp_path / "two", checkpoint_every=5, resume=checkpoint), data=splits)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "two").rglob("*")} == before
    straight = fit(config(out=tmp_path / "straight", checkpoint_every=5), data=splits)
    replaced = fit(config(out=tmp_path / "two", checkpoint_every=5, resume=checkpoint, force=True), data=splits)
    ours, theirs = (final_weights(run.run_dir) for run in (straight, replaced))
    assert all((ours[name] == theirs[name]).all() for name in ours)
    records = [json.loads(line) for line in (replaced.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert max(record["step"] for record in records) == 12
