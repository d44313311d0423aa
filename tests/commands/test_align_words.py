"""What the page of `unrolled align` says before its numbers: layers, random weights, untrained twins, chance."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from unrolled import cli
from unrolled.alignment import compare
from unrolled.commands.align.words import layer_words

FLAGS = ["--images", "40", "--k", "5", "--draws", "9", "--resamples", "5", "--quiet", "--json"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps: a model that counts as trained."""
    folder = tmp_path_factory.mktemp("run") / "digits"
    assert cli.run(["train", "--max-steps", "2", "--batch-size", "16", "--out", str(folder), "--quiet"]) == 0
    return folder


def page(folder: Path) -> str:
    text = re.sub(r"<style>.*?</style>|<svg.*?</svg>|<[^>]+>", " ", (folder / "report.html").read_text(), flags=re.S)
    return " ".join(text.split())


def test_a_random_model_is_named_and_a_trained_one_has_a_twin_beside_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [str(run), "vit_nano_patch2_8", *FLAGS, "--out", str(tmp_path)]
    capsys.readouterr()
    assert cli.run(["align", *flags, "--metric", "mutual_knn", "--metric", "cka"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["random"] == ["B"]
    (twin,) = result["untrained"]
    assert twin["side"] == "A"
    assert [each["metric"] for each in twin["scores"]] == ["mutual_knn", "cka"]
    text = page(tmp_path)
    assert "vit_nano_patch2_8 (random weights)" in text
    assert "B has random weights: nothing was learned there" in text
    score = twin["scores"][0]["score"]
    assert f"{score:.3g} with A untrained (the same architecture, fresh weights)" in text
    assert "A untrained" in text.split("Scores")[1]
    assert "95 % interval of the score" in text
    assert not re.search(r"\b[Nn]ull\b", text.split("How this was made")[0])
    assert (tmp_path / "features" / "a-untrained" / "features.json").is_file()


def test_the_twin_is_left_out_by_a_flag_and_files_have_none(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert cli.run(["align", str(run), "vit_nano_patch2_8", "--no-control", *FLAGS, "--out", str(tmp_path / "a")]) == 0
    assert json.loads(capsys.readouterr().out)["untrained"] == []
    assert not (tmp_path / "a" / "features" / "a-untrained").exists()
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 6)))
    assert cli.run(["align", str(tmp_path / "x.npy"), str(run), *FLAGS, "--out", str(tmp_path / "b")]) == 0
    assert [twin["side"] for twin in json.loads(capsys.readouterr().out)["untrained"]] == ["B"]


def layers(first: bool) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Two models of four layers that share their first, or their third."""
    draw = torch.Generator().manual_seed(0)
    a, b = ({f"block{i}": torch.randn(60, 5, generator=draw) for i in range(4)} for _ in "ab")
    shared = "block0" if first else "block2"
    return a, b | {shared: a[shared]}


@pytest.mark.parametrize("metric", ["mutual_knn", "procrustes"])
def test_first_layers_are_told_apart_from_later_ones(metric: str) -> None:
    early = layer_words(compare(*layers(first=True), metric, draws=9, resamples=0), metric)
    assert early.startswith(f"block0 of A and block0 of B agree best by {metric}. Both are among the first layers.")
    assert "so this says little of what was learned" in early
    assert "The last layers of both, block3 and block3, have" in early
    late = layer_words(compare(*layers(first=False), metric, draws=9, resamples=0), metric)
    assert late.startswith(f"block2 of A and block2 of B agree best by {metric}. Neither is among the first layers.")
    single = compare(layers(first=True)[0]["block0"], layers(first=True)[1]["block0"], metric, draws=9, resamples=0)
    assert layer_words(single, metric) == ""
    few = {name: dict(list(side.items())[:2]) for name, side in zip("ab", layers(first=True), strict=True)}
    words = layer_words(compare(few["a"], few["b"], metric, draws=9, resamples=0), metric)
    assert "Neither is" not in words
    assert "further up" not in words
    assert "both sides have too few to tell how far up this pair is" in words
    one = layer_words(compare(layers(first=True)[0], few["b"]["block1"], metric, draws=9, resamples=0), metric)
    assert "Neither is" not in one


def test_weights_that_no_seed_draws_have_no_twin() -> None:
    from unrolled.models.encoders import Encoder
    from unrolled.subjects.options import Reading
    from unrolled.subjects.subject import Subject

    module = torch.nn.Linear(4, 4)
    module.register_buffer("packed", torch.zeros(100, dtype=torch.int8))
    subject = Subject(Encoder(name="x", module=module, kind="image"), None, Reading(model="x"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="keeps its weights as constants"):
        subject.untrained(0)
