"""Features in parts: the same however many processes share them and however often they are stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from unrolled import cli
from unrolled.instruments import FeatureSet
from unrolled.instruments.features import parts as features_parts
from unrolled.instruments.features.parts import Processes, extract_in_parts

ROOT = Path(features_parts.__file__).parents[3]


class Computed:
    """Features that are the sample's number, and a record of what was asked for."""

    def __init__(self, *, fails_from: int | None = None) -> None:
        self.ranges: list[tuple[int, int]] = []
        self.fails_from = fails_from

    def __call__(self, start: int, stop: int) -> FeatureSet:
        if start == self.fails_from:
            raise KeyboardInterrupt
        self.ranges.append((start, stop))
        rows = torch.arange(start, stop)
        return FeatureSet(
            layers={"a": rows[:, None].float()}, model="m", data="d", pooling="mean", indices=rows - start,
            weights="w", key="ignored", skipped=[f"s{start}"],
        )  # fmt: skip


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_parts, "PART", 10)


def test_parts_are_whole_batches_and_join_in_order(tmp_path: Path) -> None:
    compute = Computed()
    found = extract_in_parts(tmp_path, compute, key="k", total=25, batch_size=4)
    assert compute.ranges == [(0, 12), (12, 24), (24, 25)]
    assert found["a"][:, 0].tolist() == found.indices.tolist() == list(range(25))
    assert found.skipped == ["s0", "s12", "s24"]
    assert found.key == FeatureSet.load(tmp_path).key == "k"
    assert not (tmp_path / "parts").exists()


def test_indices_are_rows_of_the_data_in_one_part_and_in_several(tmp_path: Path) -> None:
    rows = torch.arange(25) * 3 + 1
    for size in (4, 100):
        found = extract_in_parts(tmp_path / str(size), Computed(), key="k", total=25, batch_size=size, rows=rows)
        assert found.indices is not None
        assert found.indices.equal(rows)
        assert FeatureSet.load(tmp_path / str(size)).indices.equal(rows)  # type: ignore[union-attr]


def test_an_interrupted_extraction_computes_only_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        extract_in_parts(tmp_path, Computed(fails_from=20), key="k", total=25, batch_size=5)
    again = Computed()
    assert extract_in_parts(tmp_path, again, key="k", total=25, batch_size=5).samples == 25
    assert again.ranges == [(20, 25)]


def test_parts_of_another_request_do_not_count(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        extract_in_parts(tmp_path, Computed(fails_from=20), key="other", total=25, batch_size=5)
    again = Computed()
    extract_in_parts(tmp_path, again, key="k", total=25, batch_size=5)
    assert len(again.ranges) == 3


def test_a_damaged_part_is_computed_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        extract_in_parts(tmp_path, Computed(fails_from=20), key="k", total=25, batch_size=5)
    path = tmp_path / "parts/000000000-000000010/features.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    again = Computed()
    extract_in_parts(tmp_path, again, key="k", total=25, batch_size=5)
    assert again.ranges == [(0, 10), (20, 25)]


def test_processes_share_the_parts(tmp_path: Path) -> None:
    first = Computed()

    def other_process() -> None:  # what rank 1 does before the barrier lets rank 0 on
        other = Computed()
        for start, stop in ((10, 20),):
            part = other(start, stop)
            part = FeatureSet(**{**vars(part), "key": f"k:{start}-{stop}", "indices": part.indices + start})
            part.save(tmp_path / f"parts/{start:09d}-{stop:09d}")

    found = extract_in_parts(tmp_path, first, key="k", total=25, batch_size=5, processes=Processes(0, 2, other_process))
    assert first.ranges == [(0, 10), (20, 25)]
    assert found["a"][:, 0].tolist() == list(range(25))


@pytest.mark.slow
def test_two_processes_resume_what_one_was_killed_at_with_the_same_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["-m", "unrolled", "extract", "crate_nano_patch2_8", "--split", "train", "--images", "1437"]
    flags += ["--batch-size", "16", "--device", "cpu", "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    monkeypatch.undo()  # parts are as large here as in other processes
    assert cli.run([*flags[2:], "--out", str(tmp_path / "whole")]) == 0
    command = [sys.executable, *flags, "--out", str(tmp_path / "killed")]
    part = tmp_path / "killed/parts/000000000-000001024/features.json"
    with subprocess.Popen(command, env=environment) as process:
        deadline = time.monotonic() + 120
        while not part.is_file() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launcher, *flags, "--out", str(tmp_path / "killed")], env=environment, check=True, timeout=180)
    assert FeatureSet.load(tmp_path / "killed").checksum == FeatureSet.load(tmp_path / "whole").checksum
