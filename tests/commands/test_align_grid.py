"""`unrolled align-grid` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from unrolled import cli


def write_grid(folder: Path, count: int = 5) -> Path:
    rng = np.random.default_rng(0)
    common = rng.normal(size=(80, 5))
    lines = []
    for i in range(count):
        noise = rng.normal(size=(80, 8))
        np.save(folder / f"m{i}.npy", (i * common @ rng.normal(size=(5, 8)) / 4 + noise).astype(np.float32))
        lines.append(f"  m{i}: {{model: {folder}/m{i}.npy, competence: {i / count}, group: {'ab'[i % 2]}}}")
    path = folder / "models.yaml"
    path.write_text("models:\n" + "\n".join(lines) + "\n")
    return path


def test_a_grid_writes_matrix_clusters_map_and_trend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = write_grid(tmp_path)
    out = tmp_path / "out"
    flags = ["--metric", "mutual_knn", "--metric", "cka", "--out", str(out), "--quiet"]
    assert cli.run(["align-grid", str(grid), *flags, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert len(said["pairs"]) == 20
    assert {pair["metric"] for pair in said["pairs"]} == {"mutual_knn", "cka"}
    assert all(0 <= pair["p_value"] <= pair["q_value"] + 1e-12 <= 1 + 1e-9 for pair in said["pairs"])
    figures = {path.stem for path in (out / "figures").glob("*.csv")}
    assert {"cka-map", "cka-trend", "mutual-knn-map", "mutual-knn-trend"} <= figures
    assert "furthest" in (out / "report.html").read_text()
    before = {path: path.stat().st_mtime_ns for path in (out / "tiles").iterdir()}
    assert cli.run(["align-grid", str(grid), *flags]) == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "tiles").iterdir()} == before
    assert "m3" in capsys.readouterr().out


def test_models_with_random_weights_are_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not "3 of 3 pairs agree beyond chance" where only two of the models have learned anything."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.normal(size=(40, 6)))
    np.save(tmp_path / "y.npy", rng.normal(size=(40, 6)))
    grid = tmp_path / "models.yaml"
    grid.write_text(f"models:\n  one: {tmp_path}/x.npy\n  two: {tmp_path}/y.npy\n  vit: vit_nano_patch2_8\n")
    flags = ["--images", "40", "--k", "5", "--out", str(tmp_path / "out"), "--quiet"]
    assert cli.run(["align-grid", str(grid), *flags]) == 0
    assert "vit (random)" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert " of 1 pairs of trained models agree beyond chance" in report["summary"]
    assert "vit has random weights, and " in report["summary"]
    assert " of 2 pairs with them agree beyond chance too" in report["summary"]
    assert [report["results"]["models"][name]["random"] for name in ("one", "two", "vit")] == [False, False, True]
    assert "vit (random)" in (tmp_path / "out" / "report.html").read_text()


def test_models_are_run_where_features_are_not_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = tmp_path / "models.yaml"
    grid.write_text(
        "models:\n  crate: crate_nano_patch2_8\n  other: {model: crate_nano_patch2_8, pool: cls}\n"
        "  vit: {model: vit_nano_patch2_8, layers: 'block*'}\n"
    )
    flags = ["--images", "40", "--k", "3", "--null", "permutation", "--draws", "9", "--out", str(tmp_path / "out")]
    assert cli.run(["align-grid", str(grid), *flags, "--quiet", "--json"]) == 0
    pairs = json.loads(capsys.readouterr().out)["pairs"]
    assert [(pair["a"], pair["b"]) for pair in pairs] == [("crate", "other"), ("crate", "vit"), ("other", "vit")]
    assert all(pair["n"] == 40 for pair in pairs)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("models: 3", "at least two lines"),
        ("models:\n  a: b\n", "at least two lines"),
        ("models:\n  a: x.npy\n  b: {modle: y.npy}\n", "must be a model"),
        ("models:\n  a: x.npy\n  b: {model: y.npy, grup: 1}\n", "did you mean 'group'"),
        ("models:\n  a: x.npy\n  b: {model: y.npy, competence: high}\n", "competence must be a number"),
        ("models: [", "not valid YAML"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, said: str) -> None:
    (tmp_path / "grid.yaml").write_text(content)
    assert cli.run(["align-grid", str(tmp_path / "grid.yaml"), "--quiet"]) == 2
    assert said in capsys.readouterr().err


def test_a_missing_file_and_missing_models_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["align-grid", str(tmp_path / "no.yaml"), "--quiet"]) == 3
    assert cli.run(["align", "--quiet"]) == 2
    assert "many in a file: unrolled align-grid MODELS.yaml" in capsys.readouterr().err
    assert cli.run(["align-grid", str(tmp_path), "--quiet"]) == 2
    assert "is a folder" in capsys.readouterr().err
    grid = write_grid(tmp_path)
    for spelling in (["--grid", str(grid)], [f"--grid={grid}"], ["x.npy", "--grid", str(grid), "--workers", "2"]):
        assert cli.run(["align", *spelling, "--quiet"]) == 2
        assert "is a verb of its own now: unrolled align-grid MODELS.yaml" in capsys.readouterr().err
    assert cli.run(["align-grid", str(grid), "--workers", "0", "--quiet"]) == 2


def test_a_wrong_metric_is_said_before_models_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "grid.yaml").write_text("models:\n  a: crate_nano_patch2_8\n  b: vit_nano_patch2_8\n")
    flags = [str(tmp_path / "grid.yaml"), "--metric", "mutual_nn", "--out", str(tmp_path / "out"), "--quiet"]
    assert cli.run(["align-grid", *flags]) == 2
    assert "--metric mutual_nn is not known; did you mean 'mutual_knn'?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
