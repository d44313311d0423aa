"""A small run that uses everything with state: augmentation, mixing, dropout, averaging, accumulation, validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from train_helpers import TINY

from unrolled.data import synthetic_images
from unrolled.train import TrainConfig
from unrolled.train.run import Splits


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Runs in this process and in others must use the same number of threads to agree to the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def drawings(undrawn: None) -> None:
    """Of runs in this folder only those of `test_run` are drawn."""


@pytest.fixture
def splits() -> Splits:
    """Small colour images of four classes."""
    train, val, test = (synthetic_images(n, size=8, classes=4, channels=1, seed=s) for s, n in enumerate((48, 16, 24)))
    return Splits(train=train, val=val, test=test)


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., TrainConfig]:
    """Makes the configuration of a run of 12 steps in 3 epochs."""

    def make(**changes: Any) -> TrainConfig:
        settings: dict[str, Any] = {
            "model": "vit_nano_patch2_8",
            "model_args": TINY,
            "epochs": 3,
            "batch_size": 12,
            "warmup_epochs": 1,
            "log_every": 2,
            "augment": False,
            "accelerator": "cpu",
            "quiet": True,
            "out": tmp_path / "run",
        }
        return TrainConfig(**{**settings, **changes})

    return make
