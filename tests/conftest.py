"""Fixtures shared by all tests. Nothing here needs a network or a folder outside the repository."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

_SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_sessionstart() -> None:
    """Nothing that is imported or collected is garbage."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Nor will it be: collections go through what tests make alone, not through all of torch each time."""
    gc.enable()
    gc.freeze()


def pytest_unconfigure() -> None:
    """What the end of the process counts as leaked was only kept."""
    gc.unfreeze()


@pytest.fixture
def shared() -> Path:
    """The folder of fixtures and real data beside the repository; tests that ask for it skip where it is absent."""
    if not _SHARED.is_dir():
        pytest.skip("the shared data folder is not here")
    return _SHARED


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages have their words, tables and pictures, but empty drawings: a fifth of a verb's time on tiny data."""
    from unrolled.figures.panel import Panel

    monkeypatch.setattr(Panel, "_body", (1.0, 1.0, ""))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
