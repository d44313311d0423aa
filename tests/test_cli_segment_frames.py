"""`unrolled segment` on animations, folders of frames, batches and overlapping patches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from unrolled import cli
from unrolled.models import create_model
from unrolled.subjects.pictures import prepare, spread

MODEL = ["--model", "crate_nano_patch4_32"]


def run(*arguments: Any) -> int:
    return cli.run([*map(str, arguments), "--device", "cpu"])


def frame(place: int) -> Image.Image:
    """A disc on noise that moves to the right."""
    noise = np.random.default_rng(0).integers(0, 40, (40, 60, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    ImageDraw.Draw(image).ellipse((6 * place, 10, 6 * place + 20, 30), fill=(250, 220, 30))
    return image


def test_frames_of_an_animation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = [frame(i) for i in range(5)]
    frames[0].save(tmp_path / "disc.webp", save_all=True, append_images=frames[1:], lossless=True)
    arguments = ["segment", tmp_path / "disc.webp", *MODEL, "--method", "pca", "--json"]
    assert run(*arguments, "--batch-size", 3, "--out", tmp_path / "out") == 0
    found = json.loads(capsys.readouterr().out)["images"]
    assert [row["frame"] for row in found] == list(range(5))
    assert [row["files"]["pca"] for row in found] == [f"disc-{i:04d}-layer04-pca.png" for i in range(5)]
    assert (tmp_path / "out/contact-sheet.png").is_file()
    assert "disc.webp #4" in (tmp_path / "out/report.html").read_text()
    assert run(*arguments, "--frames", 2, "--out", tmp_path / "two") == 0
    assert len(json.loads(capsys.readouterr().out)["images"]) == 2


def test_many_frames_go_onto_several_sheets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unrolled.commands.segment.report._ROWS", 2)
    for i in range(5):
        frame(i).save(tmp_path / f"{i}.png")
    assert run("segment", tmp_path, *MODEL, "--method", "pca", "--out", tmp_path / "out") == 0
    sheets = sorted(path.name for path in (tmp_path / "out").glob("contact-sheet*"))
    assert sheets == ["contact-sheet-2.png", "contact-sheet-3.png", "contact-sheet.png"]
    assert len(list((tmp_path / "out").glob("*-pca.png"))) == 5
    text = (tmp_path / "out/report.html").read_text()
    assert "2 of 5 rows" in text
    assert "5 pictures" in text


def test_a_folder_of_frames_is_the_same_as_the_animation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "frames").mkdir()
    for i in (8, 9, 10):
        frame(i - 8).save(tmp_path / "frames" / f"{i}.png")
    out = tmp_path / "out"
    assert run("segment", tmp_path / "frames", *MODEL, "--method", "cluster", "--out", out, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["images"]
    assert [Path(row["image"]).name for row in rows] == ["8.png", "9.png", "10.png"]


def test_overlapping_patches_refine_the_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame(1).save(tmp_path / "disc.png")
    found = {}
    for stride in (4, 2, 1):
        arguments = [
            "--stride",
            stride,
            "--method",
            "cluster",
            "--clusters",
            2,
            "--layers",
            0,
            "--out",
            tmp_path,
            "--json",
        ]
        assert run("segment", tmp_path / "disc.png", *MODEL, *arguments) == 0
        found[stride] = json.loads(capsys.readouterr().out)["images"][0]
    assert [found[s]["grid"] for s in (4, 2, 1)] == [[8, 12], [16, 24], [32, 48]]
    disc = np.pi * 10**2 / (40 * 60)
    assert min(found[1]["clusters"]) == pytest.approx(disc, abs=0.03)


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_patches_side_by_side_are_those_at_every_stride(stride: int) -> None:
    images = torch.randn(2, 3, 12, 24)
    wide = spread(images, (4, 6), stride)
    assert wide.shape == (2, 3, 12 // stride * 4, 24 // stride * 6)
    row, column, top, left = 1, 2, (4 - stride) // 2, (6 - stride) // 2
    inside = images[:, :, row * stride + 4 - top - 4 :, column * stride - left :] if row * stride >= top else None
    if inside is not None and column * stride >= left:
        assert torch.equal(wide[:, :, row * 4 : row * 4 + 4, column * 6 : column * 6 + 6], inside[:, :, :4, :6])
    assert torch.equal(spread(images, (4, 6), stride).mean((2, 3)).isfinite().all(), torch.tensor(True))


def test_a_stride_of_a_patch_is_none() -> None:
    model = create_model("crate_nano_patch4_32")
    plain, same = prepare(model, image_size=None), prepare(model, image_size=None, stride=4)
    assert plain == same
    assert torch.equal(spread(torch.ones(1, 3, 8, 8), (4, 4), 4), torch.ones(1, 3, 8, 8))


@pytest.mark.parametrize("model", ["timm:test_vit", "timm:eva02_tiny_patch14_224"])
def test_positions_are_interpolated(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame(1).save(tmp_path / "disc.png")
    more = ["--model-args.dynamic-img-size", "true"] if "eva" in model else []
    patch = 14 if more else 16
    size = ["--image-size", 12 * patch, "--out", tmp_path]
    arguments = ["--model", model, *more, *size, "--method", "attention", "--layers", 0, "--json"]
    assert run("segment", tmp_path / "disc.png", *arguments) == 0
    assert json.loads(capsys.readouterr().out)["images"][0]["grid"] == [12, 18]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*MODEL, "--stride", "5"], "give 1 to 4"),
        ([*MODEL, "--frames", "0"], "--frames 0"),
        ([*MODEL, "--batch-size", "0"], "--batch-size 0"),
        (["--model", "tost_nano_patch4_32", "--stride", "2"], "overlapping convolutions"),
        (["--model", "timm:eva02_tiny_patch14_224", "--image-size", "96"], "--model-args.dynamic-img-size true"),
    ],
)
def test_what_does_not_fit_is_said(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame(0).save(tmp_path / "disc.png")
    assert run("segment", tmp_path / "disc.png", *arguments, "--out", tmp_path) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
