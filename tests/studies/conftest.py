"""What tests of several studies start from: runs of whole studies, and a corpus."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from unrolled import studies
from unrolled.report import Report

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Report]]:
    """The configuration and the report of a study's quick budget, run once; `MissingData` if it needs what is absent.

    All studies share one store; data are taken from the folder beside the repository, where there is one.
    """
    folder = tmp_path_factory.mktemp("quick")

    @cache
    def run(name: str) -> tuple[Any, Report]:
        study = studies.load(name)
        config = study.config.of_budget("quick", out=folder / name, kept=folder / "kept")
        if hasattr(config, "data_dir"):
            config.data_dir = DATA
        return config, study.run(config)

    return run


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A data folder with a short text under the name of a corpus."""
    lines = [f"to be or not to be, said number {i}, that is the question of {i % 7}" for i in range(300)]
    (tmp_path / "tinyshakespeare.txt").write_text("\n".join(lines))
    return tmp_path
