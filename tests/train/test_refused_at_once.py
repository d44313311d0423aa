"""What no run can use is said before processes are started and wait for each other."""

from pathlib import Path

import pytest

from unrolled.errors import MissingData
from unrolled.train import TrainConfig, engine, fit


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def launched(config: object) -> None:
        raise AssertionError("processes were started")

    monkeypatch.setattr(engine, "launched", launched)


def test_a_folder_of_images_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"data_dir: .*nowhere does not exist"):
        fit(TrainConfig(data="folder", data_dir=tmp_path / "nowhere", devices=2, out=tmp_path / "run"))


def test_data_that_are_not_there_are_missed_by_the_process_that_starts_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(MissingData, match="nowhere"):
        fit(TrainConfig(data="imagenet", data_dir=tmp_path / "nowhere", devices=2, out=tmp_path / "run"))


@pytest.mark.parametrize("betas", [(2.0, 3.0), (0.9, 1.0), (-0.1, 0.9)])
def test_betas_are_named(betas: tuple[float, float], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="betas="):
        fit(TrainConfig(betas=betas, out=tmp_path / "run"))


def test_folders_may_be_strings() -> None:
    config = TrainConfig(out="runs/here", data_dir="photos", weights="runs/there")
    assert config.out == Path("runs/here")
    assert config.data_dir == Path("photos")
    assert config.weights == Path("runs/there")
