"""`unrolled ablate`: what stands in the report is what Python finds, and bad places are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unrolled import cli

MODEL = ["crate_nano_patch2_8", "--data", "digits", "--images", "24"]


def test_every_place_is_reported_beside_a_random_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = ["--places", "block00/attn/head*", "block03/ista"]
    assert cli.run(["ablate", *MODEL, *places, "--out", str(tmp_path), "--score", "loss"]) == 0
    out = capsys.readouterr().out
    assert "block00/attn/head3" in out
    assert "loss (nats) without a change" in out
    results = json.loads((tmp_path / "report.json").read_text())["results"]
    assert [row["name"] for row in results["places"]] == [*(f"block00/attn/head{i}" for i in range(4)), "block03/ista"]
    assert all(row["low"] <= row["change"] <= row["high"] for row in results["places"])
    assert "random change" in (tmp_path / "report.html").read_text()
    assert cli.run(["ablate", "--config", str(tmp_path / "config.yaml"), "--json", "--out", str(tmp_path / "b")]) == 0
    assert json.loads(capsys.readouterr().out)["places"] == results["places"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--places", "block00/atn"], "nearest are"),
        (["--images", "0"], "--images"),
        (["--change", "nothing"], "--change"),
    ],
)
def test_what_cannot_be_done_is_said(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["ablate", *MODEL, *flags]) == 2
    assert message in capsys.readouterr().err
