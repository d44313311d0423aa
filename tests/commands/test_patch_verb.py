"""`unrolled patch`: what stands in the report is what Python finds, of images and texts, and what cannot be is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unrolled import cli
from unrolled.commands.patch_pairs import partners

MODEL = ["crate_nano_patch2_8", "--data", "digits"]
TEXT = ["gpt2_nano", "--text", "ab cd", "xy zw", "--other", "ab xd", "xq zw"]


def test_every_place_is_reported_beside_its_first_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--images", "12", "--places", "block??", "block00/attn/head*", "--batch-size", "5"]
    assert cli.run(["patch", *MODEL, *flags, "--out", str(tmp_path / "a")]) == 0
    assert "block03" in capsys.readouterr().out
    results = json.loads((tmp_path / "a" / "report.json").read_text())["results"]
    rows = {row["name"]: row for row in results["places"]}
    assert rows["block03"]["share"] == pytest.approx(1, abs=1e-5)
    assert [row["name"] for row in results["first_order"]] == list(rows)
    assert -1 <= results["agreement"]["rank_correlation"] <= 1
    page = (tmp_path / "a" / "report.html").read_text()
    assert "random change" in page
    assert "The weights are random" in page
    config = ["--config", str(tmp_path / "a" / "config.yaml"), "--json", "--out", str(tmp_path / "b")]
    assert cli.run(["patch", *config]) == 0
    assert json.loads(capsys.readouterr().out)["places"] == results["places"]
    assert not list(tmp_path.rglob("scores.jsonl"))


def test_positions_of_texts_are_a_heat_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--places", "block??", "--positions", "each", "--json", "--out", str(tmp_path)]
    flags += ["--answer", "e", "--against", "a"]
    assert cli.run(["patch", *TEXT, *flags]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["places"]}
    assert rows["block00@0"]["change"] == 0  # the first letters are the same
    assert rows["block00@1"]["change"] != 0
    assert "position" in (tmp_path / "report.html").read_text()
    last = [
        "--positions",
        "-1",
        "--places",
        "block01",
        "--score",
        "bits-per-byte",
        "--json",
        "--out",
        str(tmp_path / "b"),
    ]
    assert cli.run(["patch", *TEXT, *last]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["places"]] == ["block01@-1"]
    assert found["clean"] > 1


def test_a_sender_and_its_receivers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--sender", "block00/attn/head1", "--answer", "e", "--against", "a", "--json", "--out", str(tmp_path)]
    assert cli.run(["patch", *TEXT, *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "block00/attn" not in [row["name"] for row in found["places"]]
    assert "block01/mlp" in [row["name"] for row in found["places"]]


def test_two_pictures_and_numbered_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        pixels = np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    pictures = ["--image", str(tmp_path / "a.png"), "--other-image", str(tmp_path / "b.png"), "--places", "block??"]
    small = ["crate_nano_patch4_32.cifar10", "--json", "--out", str(tmp_path / "out")]
    assert cli.run(["patch", *small, *pictures, "--answer", "cat", "--against", "ship"]) == 0
    assert json.loads(capsys.readouterr().out)["places"][-1]["share"] == pytest.approx(1, abs=1e-4)
    numbered = ["--pairs", "3:17", "5:9", "--places", "block00/subspace*", "--out", str(tmp_path / "c")]
    assert cli.run(["patch", *MODEL, *numbered, "--method", "activation", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pairs"] == 2
    assert found["first_order"] is None
    assert len(found["places"]) == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([*MODEL, "--places", "block00/atn"], "nearest are"),
        ([*MODEL, "--images", "1"], "--images"),
        ([*MODEL, "--pairs", "3-4"], "--pairs 3-4"),
        ([*MODEL, "--pairs", "3:100000"], "--pairs 3:100000"),
        ([*MODEL, "--answer", "twelve"], "--answer twelve"),
        ([*MODEL, "--answer", "99", "--images", "4"], "class 99 is none of the 10"),
        ([*MODEL, "--positions", "first"], "--positions first"),
        ([*MODEL, "--positions", "99", "--images", "4"], "no token 99 among 17"),
        ([*MODEL, "--score", "bits-per-byte"], "--score bits-per-byte: is of texts"),
        ([*MODEL, "--sender", "block03", "--places", "block00", "--images", "4"], "does not come after"),
        ([*MODEL, "--sender", "block0?", "--images", "4"], "sender: block0? is "),
        ([*MODEL, "--method", "attribution", "--score", "accuracy"], "has no gradient"),
        ([*MODEL, "--image", "a.png"], "--image, --other-image"),
        ([*TEXT, "--answer", "e", "--against", "e"], "are the same in every pair"),
        ([*MODEL, "--answer", "3", "--against", "3"], "are the same in every pair"),
        ([*TEXT, "one more"], "--other: are 3 texts for 2"),
        (["gpt2_nano", "--text", "ab"], "--other, --others"),
        (["gpt2_nano", "--text", "ab", "--other", "abc"], "text 1 has 3 tokens, and what it corrupts 2"),
        ([*TEXT, "--answer", "ab"], "--answer 'ab': is 2 tokens"),
    ],
)
def test_what_cannot_be_done_is_said(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["patch", *flags, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "report.json").exists()


def test_partners_are_others_of_other_classes() -> None:
    labels = torch.randint(3, (30,), generator=torch.Generator().manual_seed(0)).numpy()
    other = partners(30, labels, 0)
    assert sorted(other) == list(range(30))
    assert (labels[other] != labels).all()
    assert (partners(5, np.zeros(5, int), 0) != np.arange(5)).all()
    assert (partners(4, None, 1) != np.arange(4)).all()


def test_one_pair_has_no_interval_and_its_answers_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = ["gpt2_nano", "--text", "ab cd", "--other", "xy cd", "--answer", "e", "--against", "a"]
    assert cli.run(["patch", *pair, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "There is one sample: fewer than 8 have no intervals" in out
    assert "95 %" not in out
    page = (tmp_path / "report.html").read_text()
    assert "&#x27;e&#x27; (token 101)" in page or "'e' (token 101)" in page
    places = json.loads((tmp_path / "report.json").read_text())["results"]["places"]
    assert {row["low"] for row in places} == {None}
