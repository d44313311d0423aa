"""Pictures and annotations that are not as they should be, each through `unrolled segment`."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.files import disc, disc_mask, encoded
from unrolled import cli

MODEL = ["--model", "crate_nano_patch4_32"]


def run(*arguments: Any) -> int:
    return cli.run([*map(str, arguments), "--device", "cpu"])


def photo(seed: int = 0) -> Image.Image:
    return disc(seed, scale=1)


def claims(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "data", "code", "message"),
    [
        ("cut.png", encoded(photo())[:500], 1, "cannot be decoded"),
        ("empty.png", b"", 1, "is empty"),
        ("words.jpg", b"not a picture", 1, "not a picture in a known format"),
        ("huge.png", claims(60_000, 60_000), 2, "at most 50,000,000"),
    ],
)
def test_a_picture_that_cannot_be_shown_is_named(
    name: str, data: bytes, code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(data)
    assert run("segment", tmp_path / name, *MODEL, "--out", tmp_path / "out") == code
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ")
    assert name in said
    assert message in said
    assert not (tmp_path / "out").exists()


def test_colours_of_every_kind_of_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, turn = photo(), Image.Exif()
    turn[0x0112] = 6
    clear = base.convert("RGBA")
    clear.putalpha(Image.fromarray(np.where(np.indices((30, 60))[1] < 30, 255, 0).astype(np.uint8)))
    files = {
        "a-cmyk.jpg": encoded(base.convert("CMYK"), "JPEG", quality=95),
        "b-sixteen.png": encoded(Image.fromarray(np.asarray(base.convert("L")).astype(np.uint16) * 257)),
        "c-palette.gif": encoded(base, "GIF"),
        "d-alpha.png": encoded(clear),
        "e-grey.png": encoded(base.convert("LA")),
        "f-turned.jpg": encoded(base, "JPEG", exif=turn),
        "g-moving.webp": encoded(base, "WEBP", save_all=True, append_images=[photo(1)], duration=40),
        "h-tiny.png": encoded(base.resize((3, 2))),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    arguments = ["--method", "maskcut", "--frames", 1, "--out", tmp_path / "out", "--json"]
    assert run("segment", *(tmp_path / name for name in files), *MODEL, *arguments) == 0
    rows = {Path(row["image"]).name: row for row in json.loads(capsys.readouterr().out)["images"]}
    assert list(rows) == list(files)
    assert rows["f-turned.jpg"]["grid"] == [16, 8]
    shapes = {name: row["grid"] for name, row in rows.items() if name not in ("f-turned.jpg", "h-tiny.png")}
    assert set(map(tuple, shapes.values())) == {(8, 16)}
    for row in rows.values():
        assert row["blank"] is False
        assert all(0 < area < 1 for area in row["objects"])
        assert (tmp_path / "out" / row["files"]["maskcut"]).is_file()


def test_a_model_without_class_token_says_whose_attention_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo().save(tmp_path / "disc.png")
    bare = ["--model", "timm:test_vit", "--model-args.class-token", "false", "--model-args.global-pool", "avg"]
    arguments = ["--layers", 0, "--method", "attention", "--image-size", 64, "--out", tmp_path, "--json"]
    assert run("segment", tmp_path / "disc.png", *bare, *arguments) == 0
    assert json.loads(capsys.readouterr().out)["images"][0]["attention_query"] == "mean of patch tokens"
    assert "attention of the mean of patch tokens" in (tmp_path / "report.html").read_text()


# --- annotated sets


def test_scores_of_a_model_without_class_token_say_whose_attention_it_is(
    marked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = ["--model", "timm:test_vit", "--model-args.class-token", "false", "--model-args.global-pool", "avg"]
    arguments = ["--data-dir", marked, "--measure", "attention", "--layers", 0, "--image-size", 64]
    assert run("segment-eval", "masks", *arguments, *bare, "--out", marked / "out", "--json") == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert notes == ["Attention is that of the mean of patch tokens: the model has no class token."]
    assert notes[0] in (marked / "out/report.html").read_text()


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    """Two photos of a disc and masks of the discs."""
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for i in range(2):
        photo(i).save(tmp_path / "images" / f"{i}.png")
        disc_mask(scale=1).save(tmp_path / "masks" / f"{i}.png")
    return tmp_path


def shrink(folder: Path) -> str:
    Image.new("L", (20, 10), 255).save(folder / "masks/1.png")
    return "its mask has 20 x 10 pixels, the image 60 x 30"


def damage(folder: Path) -> str:
    path = folder / "images/1.png"
    path.write_bytes(path.read_bytes()[:500])
    return "cannot be decoded"


def colour(folder: Path) -> str:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 60, 3), dtype=np.uint8)).save(folder / "masks/1.png")
    return "one channel of region numbers"


@pytest.mark.parametrize("spoil", [shrink, damage, colour])
def test_a_spoilt_photo_or_mask_is_named_or_left_out(
    spoil: Callable[[Path], str], marked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = spoil(marked)
    arguments = ["segment-eval", "masks", "--data-dir", marked, "--measure", "attention", "--layers", 0, *MODEL]
    assert run(*arguments, "--out", marked / "out") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert message in said
    assert "images/1.png" in said
    assert "--on-error skip" in said
    assert run(*arguments, "--out", marked / "out", "--on-error", "skip", "--json") == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert any(line.startswith("skipped: ") and message in line for line in captured.err.splitlines())
    assert {row["images"] for row in result["attention"]} == {1}
    assert message in result["skipped"][0]
    assert "1 could not be read" in (marked / "out/report.html").read_text()


def test_annotated_photos_that_are_not_there(marked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (marked / "images/0.png").unlink()
    arguments = ["segment-eval", "masks", "--data-dir", marked, "--measure", "attention", "--layers", 0, *MODEL]
    assert run(*arguments, "--out", marked / "out") == 3
    said = capsys.readouterr().err.splitlines()[-1]
    assert "1 of 2 images" in said
    assert "--on-error skip" in said
    assert run(*arguments, "--out", marked / "out", "--on-error", "skip", "--json") == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == ["0.jpg: missing"]


def test_a_coco_file_of_photos_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pycocotools")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    photo().save(tmp_path / "val2017/000000000001.jpg")
    box = {"bbox": [20, 5, 20, 20], "area": 400, "iscrowd": 0, "category_id": 1}
    coco = {
        "images": [{"id": i, "file_name": f"{i:012d}.jpg", "height": 30, "width": 60} for i in (1, 2)],
        "annotations": [
            box | {"id": i, "image_id": i, "segmentation": [[20, 5, 40, 5, 40, 25, 20, 25]]} for i in (1, 2)
        ],
        "categories": [{"id": 1, "name": "disc", "supercategory": "shape"}],
    }
    (tmp_path / "annotations/instances_val2017.json").write_text(json.dumps(coco))
    arguments = ["segment-eval", "coco", "--data-dir", tmp_path, "--limit", 5, "--layers", 0, *MODEL]
    assert run(*arguments, "--out", tmp_path / "out") == 3
    assert "000000000002.jpg" in capsys.readouterr().err.splitlines()[-1]
    assert run(*arguments, "--out", tmp_path / "out", "--on-error", "skip", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["skipped"] == ["000000000002.jpg: missing"]
    assert {row["instances"] for row in result["maskcut"]} == {1}


def test_nothing_is_found_in_a_photo_of_one_colour(marked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pycocotools")
    for i in range(2):
        Image.new("RGB", (60, 30), (200, 30, 30)).save(marked / "images" / f"{i}.png")
    arguments = ["--measure", "attention", "maskcut", "clusters", "--out", marked / "out"]
    assert run("segment-eval", "masks", "--data-dir", marked, *arguments, *MODEL, "--json") == 0
    text = capsys.readouterr().out
    assert "NaN" not in text
    result = json.loads(text)
    found = {row["system"]: row["predicted"] for row in result["maskcut"]}
    assert found == {"model": 0, "untrained": 0, "model's masks, moved": 0, "colour": 0, "centre prior": 2}
    for row in result["maskcut"]:
        assert row["segm"]["AP"] is not None


def test_a_mask_drawn_on_a_turned_photo_fits(marked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turn = Image.Exif()
    turn[0x0112] = 3  # upside down
    for i in range(2):
        (marked / "images" / f"{i}.png").unlink()
        upright = photo(i).rotate(180)
        ImageDraw.Draw(upright).rectangle((0, 0, 19, 30), fill=(250, 220, 30))  # covers the right side once turned
        upright.save(marked / "images" / f"{i}.jpg", exif=turn)
        mask = Image.new("L", (60, 30))
        mask.paste(255, (40, 0, 60, 30))
        mask.save(marked / "masks" / f"{i}.png")
    arguments = ["--measure", "attention", "--layers", 0, "--out", marked / "out"]
    assert run("segment-eval", "masks", "--data-dir", marked, *arguments, *MODEL, "--json") == 0
    rows = {row["system"]: row for row in json.loads(capsys.readouterr().out)["attention"]}
    assert rows["colour"]["best"] > 0.5
