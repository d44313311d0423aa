"""Two real processes on the CPU (gloo), judged by the files they write and by leaving with success."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from train_helpers import TINY

from unrolled.train import DistillConfig, MaskedConfig, TextConfig, TrainConfig, fit, save_config
from unrolled.train.config import RunConfig

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
from unrolled.train import fit, load_config
fit(load_config(sys.argv[1]))
"""


def settings(out: Path, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "model": "crate_nano_patch2_8",
        "model_args": TINY,
        "data": "digits",
        "epochs": 0.5,
        "batch_size": 48,
        "accumulate": 2,
        "val_fraction": 0.1,
        "eval_every": 0.25,
        "ema": 0.9,
        "warmup_epochs": 0.1,
        "log_every": 2,
        "augment": False,
        "accelerator": "cpu",
        "quiet": True,
        "out": out,
    }
    return TrainConfig(**{**values, **changes})


def run_processes(config: RunConfig, tmp_path: Path, *, torchrun: bool = False) -> None:
    (tmp_path / "run.py").write_text(SCRIPT)
    save_config(config, tmp_path / "run.yaml")
    command = [sys.executable]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    if torchrun:
        command += ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    clean = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR")}
    environment = {**clean, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_PORT": port}
    done = subprocess.run(
        [*command, "run.py", "run.yaml"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]


def assert_same_to_rounding(one: Path, other: Path) -> None:
    first, second = (
        [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()] for out in (one, other)
    )
    assert [(r["split"], r["step"]) for r in first] == [(r["split"], r["step"]) for r in second]
    for a, b in zip(first, second, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    a, b = (load_file(out / "model" / "model.safetensors") for out in (one, other))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    one, two = settings(tmp_path / "one"), settings(tmp_path / "two", devices=2)
    fit(one)
    run_processes(two, tmp_path)
    environment = json.loads((two.out / "env.json").read_text())
    assert (environment["strategy"], environment["processes"]) == ("ddp", 2)
    assert_same_to_rounding(one.out, two.out)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["lm", "mlm"])
def test_two_processes_train_on_text_as_one_does(tmp_path, task):
    """Masks fall unevenly on the processes; every masked token of a step counts the same."""
    lines = [f"line {i} and {i % 7} are numbers" for i in range(900)]
    (tmp_path / "tinyshakespeare.txt").write_text("\n".join(lines))
    own: dict[str, Any] = {"task": task, "model_args": {"dim": 16, "heads": 2}, "accumulate": 2, "ema": 0.9}
    own |= {"data_dir": tmp_path, "length": 16, "batch_size": 16, "eval_samples": 9, "eval_every": 2, "log_every": 2}
    own |= {"epochs": 1.0, "warmup_steps": 2, "max_steps": 6, "accelerator": "cpu", "quiet": True}
    one, two = TextConfig(out=tmp_path / "one", **own), TextConfig(out=tmp_path / "two", **own, devices=2)
    fit(one)
    run_processes(two, tmp_path)
    assert json.loads((two.out / "env.json").read_text())["processes"] == 2
    assert_same_to_rounding(one.out, two.out)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "optimizer"), [("ddp", "adamw"), ("fsdp", "adamw"), ("fsdp", "muon")])
def test_a_run_may_change_its_number_of_processes_when_it_resumes(tmp_path, strategy, optimizer):
    one = settings(tmp_path / "one", optimizer=optimizer)
    moved = settings(tmp_path / "moved", optimizer=optimizer, resume="auto", val_fraction=0.1)
    fit(one)
    for stop, changes in (
        (4, {"devices": 2, "strategy": strategy}),
        (8, {}),
        (None, {"devices": 2, "strategy": strategy}),
    ):
        step = TrainConfig(**{**vars(moved), "max_steps": stop, **changes})
        if changes:
            run_processes(step, tmp_path, torchrun=True)
            assert json.loads((moved.out / "env.json").read_text())["strategy"] == strategy
        else:
            fit(step)
    a, b = (load_file(out / "model" / "model.safetensors") for out in (one.out, moved.out))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["mae", "simdino"])
def test_two_processes_pretrain_as_one_does(tmp_path, task):
    """Masks and views do not depend on who draws them. The coding rate, of the images one process sees, is left out."""
    model = {"img_size": 8, "patch_size": 2, "in_chans": 1, **TINY}
    own: dict[str, Any] = {"model_args": model, "data": "digits", "epochs": 0.5, "batch_size": 48, "accumulate": 2}
    own |= {"eval_every": 0.25, "warmup_epochs": 0.1, "max_steps": 6, "log_every": 2, "accelerator": "cpu"}
    own |= {"quiet": True, **({"ema": 0.9, "augment": False} if task == "mae" else {"rate_weight": 0.0})}
    kind: Any = MaskedConfig if task == "mae" else DistillConfig
    one, two = kind(**own, out=tmp_path / "one"), kind(**own, out=tmp_path / "two", devices=2)
    fit(one)
    run_processes(two, tmp_path)
    assert json.loads((two.out / "env.json").read_text())["processes"] == 2
    assert_same_to_rounding(one.out, two.out)
