"""Fixtures shared by all tests. Nothing here needs a network or a folder outside the repository."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

_SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def shared() -> Path:
    """The folder of fixtures and real data beside the repository; tests that ask for it skip where it is absent."""
    if not _SHARED.is_dir():
        pytest.skip("the shared data folder is not here")
    return _SHARED


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
