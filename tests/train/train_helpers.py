"""What the training tests share besides fixtures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from unrolled.train import fit, save_config
from unrolled.train.checkpoint import checkpoints
from unrolled.train.config import RunConfig

TINY = {"depth": 2, "embed_dim": 16, "num_heads": 2}

EVERYTHING: dict[str, Any] = {
    "model_args": {**TINY, "drop_rate": 0.1, "drop_path_rate": 0.2},
    "augment": True,
    "pad_crop": None,
    "auto_augment": "rand-m5-n1",
    "random_erasing": 0.2,
    "mixup": 0.5,
    "cutmix": 0.5,
    "label_smoothing": 0.1,
    "ema": 0.9,
    "accumulate": 2,
    "checkpoint_every": 5,
}


def small_network(pretrained: bool = False, num_classes: int = 4) -> torch.nn.Module:
    """A convolutional network that says what it expects of images, in colour: `train_helpers:small_network`."""
    generator = torch.Generator().manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3, stride=2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(6, num_classes),
    )  # fmt: skip
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    network.pretrained_cfg = {  # type: ignore[assignment]
        "input_size": (3, 16, 16), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "interpolation": "bicubic",
        "crop_pct": 0.9,
    }  # fmt: skip
    return network


def final_state(out: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Everything a run leaves that must not depend on whether it was interrupted."""
    newest = checkpoints(out / "checkpoints")[0]
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        record.pop("images_per_second", None)
        record.pop("tokens_per_second", None)
    return load_file(newest / "state.safetensors"), load_file(out / "model" / "model.safetensors"), records


def assert_same_run(one: Path, other: Path) -> None:
    """Bit for bit: weights, optimiser, average, best weights, saved model, and the log."""
    (state_a, model_a, log_a), (state_b, model_b, log_b) = final_state(one), final_state(other)
    for a, b in ((state_a, state_b), (model_a, model_b)):
        assert a.keys() == b.keys()
        different = [name for name in a if not torch.equal(a[name], b[name])]
        assert different == []
    assert log_a == log_b


class Crash(Exception):
    """What stops a run where it should not."""


def crash_at(step: int) -> Any:
    """A callback that does, at the first record of `step` or later."""

    def callback(record: dict[str, Any], model: Any) -> None:
        if record["step"] >= step:
            raise Crash

    return callback


def assert_resumes_after_a_crash(straight: RunConfig, broken: RunConfig, step: int, data: Any = None) -> None:
    """`broken`, which crashes at `step` and goes on, leaves what `straight` leaves, bit for bit."""
    fit(straight, data=data)
    with pytest.raises(Crash):
        fit(broken, data=data, callbacks=[crash_at(step)])
    fit(broken, data=data)
    assert_same_run(straight.out, broken.out)


def assert_resumes_after_a_kill(straight: RunConfig, killed: RunConfig, folder: Path, *, steps: int = 3) -> None:
    """The same of a process of its own that is killed `steps` steps after its first checkpoint."""
    fit(straight)
    kill_after_a_checkpoint(killed, folder, steps=steps)
    fit(killed)
    assert_same_run(straight.out, killed.out)


_RUN = """
import sys, torch
import unrolled.train as train
torch.set_num_threads(1)
train.fit(train.load_config(sys.argv[2], getattr(train, sys.argv[1])))
"""


def kill_after_a_checkpoint(config: RunConfig, folder: Path, *, steps: int = 3) -> None:
    """`fit` the configuration in a process of its own, and kill that with SIGKILL `steps` steps after the first
    checkpoint it wrote, before it has ended.

    Every step is to be logged (`log_every=1`), and there must be enough of them.
    """
    file = folder / "run.yaml"
    save_config(config, file)
    threads = str(torch.get_num_threads())  # as many as this process has: other sums, other bits
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": threads}
    command = [sys.executable, "-c", _RUN, type(config).__name__, str(file)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    deadline, status, first = time.monotonic() + 120, config.out / "status.json", None
    while first is None or json.loads(status.read_text())["step"] < first + steps:
        if first is None and (written := checkpoints(config.out / "checkpoints")):
            first = int(written[-1].name.removeprefix("step-"))
        assert time.monotonic() < deadline, "no checkpoint was written"
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert json.loads(status.read_text())["state"] == "running"
    assert checkpoints(config.out / "checkpoints")
    assert not (config.out / "model").exists()
