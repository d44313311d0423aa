"""Another package adds a model, a metric, a data set and a study by entry points, and nothing here changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

import unrolled
from unrolled import alignment, cli, studies
from unrolled.data import open_images
from unrolled.models.registry import list_models
from unrolled.plugins import plugins

PACKAGE = Path(__file__).resolve().parent / "plugin"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    plugins.cache_clear()
    monkeypatch.syspath_prepend(str(PACKAGE))
    yield
    plugins.cache_clear()


@pytest.mark.usefixtures("installed")
def test_a_metric_is_asked_for_by_its_name() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, generator=g)
    result = alignment.compare(x, 2 * x, "same_nearest")
    assert result.score == 1
    assert (result.p_value or 1) < 0.05
    with pytest.raises(ValueError, match="same_nearest"):  # listed among those there are
        alignment.get_metric("samest")
    with pytest.raises(ValueError, match="unrolled-example promises it"):
        alignment.get_metric("broken")


@pytest.mark.usefixtures("installed")
def test_a_metric_with_a_hyphen_in_its_name_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert repr(alignment.get_metric("Same-Nearest")) == repr(alignment.get_metric("same_nearest"))
    assert repr(alignment.get_metric("mutual-knn")) == "MutualKNN(k=10)"
    hyphened = EntryPoint("mutual-knn", "unrolled_example.metric:SameNearest", "unrolled.metrics")
    monkeypatch.setitem(plugins("metrics"), "mutual-knn", hyphened)
    assert type(alignment.get_metric("mutual-knn")).__name__ == "SameNearest"
    assert repr(alignment.get_metric("mutual_knn")) == "MutualKNN(k=10)"


@pytest.mark.usefixtures("installed")
def test_a_data_set_has_a_name() -> None:
    assert len(open_images("stripes", "test")) == 16
    with pytest.raises(ValueError, match="did you mean 'stripes'"):
        open_images("stripe", "test")


@pytest.mark.usefixtures("installed")
def test_a_study_is_run_and_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "example-sums" in studies.study_names()
    out = ["--out", str(tmp_path / "out"), "--kept", str(tmp_path / "kept")]
    assert cli.run(["study", "example-sums", "--steps", "100", *out]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert '"reproduced"' in json.dumps(report)
    assert cli.run(["study", "example-sum"]) == 2
    assert "did you mean 'example-sums'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_is_built_listed_and_trained_in_another_process(tmp_path: Path) -> None:
    """In another, as timm cannot forget a name."""
    training = "'--data', 'stripes', '--epochs', '1', '--batch-size', '32', '--out', 'run'"
    script = (
        "from unrolled.cli import run\n"
        "assert run(['list', 'example*']) == 0\n"
        f"assert run(['train', '--model', 'example_nano_patch4_32', {training}]) == 0\n"
        "assert run(['eval', 'run']) == 0"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(PACKAGE), str(PACKAGE.parents[1])])
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "added by unrolled-example" in done.stdout
    assert "accuracy" in done.stdout


def test_without_the_package_the_names_are_unknown() -> None:
    assert "example_nano_patch4_32" not in [info.name for info in list_models()]
    with pytest.raises(ValueError, match="not known"):
        unrolled.create_model("example_nano_patch4_32")
