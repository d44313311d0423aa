"""Many models compared: every pair once, the same numbers however the work is shared, and nothing done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from unrolled.alignment import models as module
from unrolled.alignment.chance import compare
from unrolled.alignment.models import model_grid, tiles
from unrolled.instruments import FeatureSet
from unrolled.instruments.features.files import features_digest, is_feature_file, read_features


def write_models(folder: Path, count: int, *, n: int = 60, layers: int = 3) -> dict[str, Path]:
    """Models with features of a common signal, the more of it the later the model."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    signal_part = rng.normal(size=(n, layers, 5))
    paths = {}
    for i in range(count):
        values = i / count * signal_part @ rng.normal(size=(5, 8)) + rng.normal(size=(n, layers, 8))
        paths[f"m{i}"] = folder / f"m{i}.npy"
        np.save(paths[f"m{i}"], values.astype(np.float32))
    return paths


@pytest.mark.parametrize(("count", "size"), [(2, 1), (5, 2), (7, 3), (4, 8)])
def test_tiles_hold_every_pair_once(count: int, size: int) -> None:
    names = [f"m{i}" for i in range(count)]
    pairs = [
        tuple(sorted((a, b)))
        for rows, columns in tiles(names, size)
        for a in rows
        for b in columns
        if names.index(a) < names.index(b)
    ]
    assert sorted(pairs) == [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]


def test_a_pair_scores_as_it_does_alone(tmp_path: Path) -> None:
    paths = write_models(tmp_path, 4)
    grid = model_grid(paths, ("mutual_knn", "cka"), options={"k": 5}, null="permutation", draws=30, tile=2)
    pair = next(pair for pair in grid.of("mutual_knn") if (pair.a, pair.b) == ("m1", "m3"))
    alone = compare(read_features(paths["m1"]), read_features(paths["m3"]), "mutual_knn", k=5, draws=30, resamples=0)
    assert (pair.score, pair.p_value, pair.layers) == (alone.score, alone.p_value, alone.best)
    matrix = grid.matrix("mutual_knn")
    assert matrix[1, 3] == matrix[3, 1] == pair.score
    assert np.isnan(np.diag(matrix)).all()
    assert len(grid.pairs) == 12


def test_the_size_of_tiles_changes_nothing(tmp_path: Path) -> None:
    paths = write_models(tmp_path, 5)
    one, two = (model_grid(paths, null="moments", tile=size) for size in (1, 4))
    assert one.pairs == two.pairs


def test_metrics_with_a_direction_are_computed_both_ways(tmp_path: Path) -> None:
    paths = write_models(tmp_path, 3)
    grid = model_grid(paths, ("ridge_predictivity",), draws=5)
    assert len(grid.pairs) == 6
    assert np.isfinite(grid.matrix("ridge_predictivity")[~np.eye(3, dtype=bool)]).all()


def test_chance_is_found_significant_as_rarely_as_promised(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    paths = {}
    for i in range(12):
        paths[f"m{i}"] = tmp_path / f"m{i}.npy"
        np.save(paths[f"m{i}"], rng.normal(size=(200, 2, 16)).astype(np.float32))
    grid = model_grid(paths, null="moments")
    rejected = sum(pair.p_value <= 0.05 for pair in grid.pairs)
    assert rejected <= 9  # of 66; a level of 5 % gives more than 8 with probability 0.01
    assert min(grid.q_values("mutual_knn")) > 0.01


def test_metrics_are_named_as_they_are_spelled(tmp_path: Path) -> None:
    grid = model_grid(write_models(tmp_path, 2), ("Mutual-kNN",), options={"k": 4}, null="moments")
    assert grid.metrics == [pair.metric for pair in grid.of("mutual-knn")] == ["mutual_knn"]


def test_signal_is_found(tmp_path: Path) -> None:
    grid = model_grid(write_models(tmp_path, 6, n=200), null="moments")
    found = {(pair.a, pair.b): q for pair, q in zip(grid.pairs, grid.q_values("mutual_knn"), strict=True)}
    assert found["m4", "m5"] < 1e-3


def test_a_second_run_takes_finished_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_models(tmp_path, 5)
    whole = model_grid(paths, null="moments", tile=2, folder=tmp_path / "tiles")
    next((tmp_path / "tiles").glob("*.json")).write_text("[", encoding="utf-8")  # cut short
    calls = []
    real = module.score_tile
    monkeypatch.setattr(module, "score_tile", lambda job: calls.append(1) or real(job))
    assert model_grid(paths, null="moments", tile=2, folder=tmp_path / "tiles").pairs == whole.pairs
    assert len(calls) == 1
    np.save(paths["m4"], np.random.default_rng(9).normal(size=(60, 3, 8)))
    model_grid(paths, null="moments", tile=2, folder=tmp_path / "tiles")
    assert len(calls) == 3  # the two tiles with the changed model


def test_a_tile_that_does_not_fit_memory_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_models(tmp_path, 6)
    whole = model_grid(paths, null="moments", tile=6)
    real = module._score_tile

    def small_memory(job: dict) -> list[dict]:
        if len(set(job["rows"]) | set(job["columns"])) > 3:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory")
        return real(job)

    monkeypatch.setattr(module, "_score_tile", small_memory)
    with pytest.warns(UserWarning, match="6 x 6 models did not fit"):
        assert model_grid(paths, null="moments", tile=6).pairs == whole.pairs


def test_bad_input_is_named(tmp_path: Path) -> None:
    paths = write_models(tmp_path, 3)
    np.save(paths["m2"], np.zeros((59, 8)))
    with pytest.raises(ValueError, match=r"m2.*zero variance"):
        model_grid(paths, null="moments")
    np.save(paths["m2"], np.random.default_rng(0).normal(size=(59, 8)))
    with pytest.raises(ValueError, match="m2 59"):
        model_grid(paths, null="moments")
    with pytest.raises(ValueError, match="two models"):
        model_grid({"m0": paths["m0"]})
    with pytest.raises(ValueError, match="tile=0"):
        model_grid(paths, tile=0)
    with pytest.raises(ValueError, match="mutual_knn"):
        model_grid(paths, ("mutual_nkn",))


def test_models_of_different_images_are_not_compared(tmp_path: Path) -> None:
    values = torch.randn(20, 4)
    paths = {name: tmp_path / name for name in ("a", "b", "c")}
    for name, path in paths.items():
        FeatureSet(layers={"x": values}, data="digits (train)" if name == "c" else "digits (test)").save(path)
    with pytest.raises(ValueError, match=r"a holds features of digits \(test\) and c of digits \(train\)"):
        model_grid(paths, null="moments")
    FeatureSet(layers={"x": values}, data="digits (test)", indices=torch.arange(20)).save(paths["a"])
    FeatureSet(layers={"x": values}, data="digits (test)", indices=torch.arange(1, 21)).save(paths["b"])
    with pytest.raises(ValueError, match="a and b hold features of different images"):
        model_grid({name: paths[name] for name in "ab"}, null="moments")


def test_digests_tell_files_apart(tmp_path: Path) -> None:
    paths = write_models(tmp_path, 2)
    assert is_feature_file(paths["m0"])
    assert not is_feature_file("timm:resnet18")
    assert features_digest(paths["m0"]) != features_digest(paths["m1"])


DRIVER = """
import sys
from pathlib import Path
from dask.distributed import Client, LocalCluster
from unrolled.alignment.models import model_grid

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    paths = {path.stem: path for path in sorted(folder.glob("m*.npy"))}
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        model_grid(
            paths, ("mutual_knn",), draws=60, tile=1, folder=folder / "tiles", client=client,
            on_progress=lambda done, tiles: print(done, tiles, flush=True),
        )
"""


@pytest.mark.slow
def test_what_two_processes_were_killed_at_is_taken_up_with_the_same_numbers(tmp_path: Path) -> None:
    pytest.importorskip("dask.distributed")
    paths = write_models(tmp_path, 6)
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    command = [sys.executable, str(script), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True) as first:
        for line in first.stdout:
            if int(line.split()[0]) >= 4:
                os.killpg(first.pid, signal.SIGKILL)
                break
    deadline = time.monotonic() + 10
    while not list((tmp_path / "tiles").glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "tiles").glob("*.json")}
    assert len(kept) >= 4
    resumed = model_grid(paths, ("mutual_knn",), draws=60, tile=1, folder=tmp_path / "tiles")
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert resumed.pairs == model_grid(paths, ("mutual_knn",), draws=60, tile=8).pairs


def test_a_metric_whose_option_makes_it_symmetric_fills_both_halves(tmp_path: Path) -> None:
    grid = model_grid(write_models(tmp_path, 3), ("cycle_knn",), options={"direction": "mean"}, draws=5)
    matrix = grid.matrix("cycle_knn")
    off = ~np.eye(3, dtype=bool)
    assert np.isfinite(matrix[off]).all()
    assert (matrix == matrix.T)[off].all()
