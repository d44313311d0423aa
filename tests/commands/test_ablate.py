"""`unrolled ablate`: what stands in the report is what Python finds, and bad places are named."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

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
    page = (tmp_path / "report.html").read_text()
    assert "random change" in page
    assert page.index("What the columns mean") < page.index("Every place")
    assert cli.run(["ablate", "--config", str(tmp_path / "config.yaml"), "--json", "--out", str(tmp_path / "b")]) == 0
    assert json.loads(capsys.readouterr().out)["places"] == results["places"]


def test_a_language_model_is_swept_in_bits_per_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts.txt").write_text("To be, or not to be\nthat is the question\nWhether 'tis nobler\n")
    flags = ["gpt2_nano", "--texts", str(tmp_path / "texts.txt"), "--batch-size", "2", "--places", "block00/attn/head*"]
    found = {}
    for score in ("bits-per-byte", "nats-per-token"):
        command = ["ablate", *flags, "--score", score, "--json", "--out", str(tmp_path / score)]
        assert cli.run(command) == 0
        found[score] = json.loads(capsys.readouterr().out)
    # bytes are tokens here
    assert found["bits-per-byte"]["unchanged"] == pytest.approx(found["nats-per-token"]["unchanged"] / math.log(2))
    assert "bits per byte" in (tmp_path / "bits-per-byte" / "report.html").read_text()
    assert cli.run(["ablate", *flags, "--score", "accuracy", "--out", str(tmp_path / "c")]) == 2
    assert "of texts take bits-per-byte" in capsys.readouterr().err
    assert cli.run(["ablate", *flags, "--positions", "each", "--out", str(tmp_path / "d")]) == 2
    assert "different numbers of tokens" in capsys.readouterr().err


def test_heads_and_the_segmentation_of_photos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("images", "masks"):
        (tmp_path / "photos" / part).mkdir(parents=True)
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 255, (32, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / "images" / f"{i}.png")
        mask = np.zeros((32, 48), np.uint8)
        mask[4:20, 8 : 20 + 4 * i] = 255
        Image.fromarray(mask).save(tmp_path / "photos" / "masks" / f"{i}.png")
    model = ["crate_nano_patch4_32", "--data", "masks", "--data-dir", str(tmp_path / "photos"), "--image-size", "32"]
    flags = ["--places", "block00/attn/head*", "--score", "jaccard", "--json", "--out", str(tmp_path / "out")]
    assert cli.run(["ablate", *model, *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 < found["unchanged"] < 1
    assert len(found["places"]) == 4
    assert cli.run(["ablate", "crate_nano_patch4_32", "--score", "jaccard", "--out", str(tmp_path / "b")]) == 2
    assert "--data: --score jaccard needs annotated photos" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--places", "block00/atn"], "nearest are"),
        (["--images", "0"], "--images"),
        (["--change", "nothing"], "--change"),
        (["--length", "8"], "--length: is of texts"),
    ],
)
def test_what_cannot_be_done_is_said(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["ablate", *MODEL, *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_classifier_of_transformers_comes_with_its_head_and_is_read_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(**sizes, image_size=16, patch_size=4, num_labels=10)
    saved = transformers.ViTForImageClassification(config).eval()
    saved.save_pretrained(tmp_path / "model")
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "model")
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    spec = f"hf:{tmp_path / 'model'}"
    with torch.no_grad():
        logits = saved(torch.tensor(pixels).permute(2, 0, 1)[None] / 127.5 - 1).logits[0]
    flags = ["--json", "--device", "cpu", "--out"]
    loaded = []
    kind = transformers.AutoModelForImageClassification
    load = kind.from_pretrained

    def counted(*args: object, **options: object) -> object:
        loaded.append(args)
        return load(*args, **options)

    monkeypatch.setattr(kind, "from_pretrained", counted)
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", counted)
    assert cli.run(["explain", str(tmp_path / "a.png"), "--model", spec, *flags, str(tmp_path / "x")]) == 0
    assert len(loaded) == 1
    assert json.loads(capsys.readouterr().out)["logit"] == pytest.approx(float(logits.max()), abs=1e-4)
    assert "not split into heads" in (tmp_path / "x" / "report.html").read_text()
    digits = ["--data", "digits", "--images", "4", "--places", "block00/attn/head*"]
    assert cli.run(["ablate", spec, *digits, *flags, str(tmp_path / "y")]) == 0
    assert 0 < json.loads(capsys.readouterr().out)["unchanged"] < 1
