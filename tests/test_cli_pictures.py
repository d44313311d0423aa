"""`unrolled segment` and `unrolled complete`, from the command line to the files they write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.files import disc
from unrolled import cli
from unrolled.subjects.pictures import canvas

MODEL = ["--model", "crate_nano_patch4_32"]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "disc.png"
    disc().save(path)
    return path


def run(*arguments: Any) -> int:
    return cli.run([*map(str, arguments), "--device", "cpu"])


def opened(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_overlays_and_sheet(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run("segment", picture, *MODEL, "--layers", 0, -2, "--out", out, "--json") == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert [row["layer"] for row in result["images"]] == [0, 4]
    for row in result["images"]:
        assert row["grid"] == [8, 16], "the shape of the picture is kept"
        assert set(row["files"]) == {"attention", "pca", "maskcut", "cluster"}
        for name in row["files"].values():
            assert opened(out / name).shape == (192, 384, 3)
        assert sum(row["clusters"]) == pytest.approx(1)
        assert row["attention_peak"] > 1
        assert all(0 < area < 1 for area in row["objects"])
    assert opened(out / "contact-sheet.png").shape[1] > 5 * 240
    page = (out / "report.html").read_text()
    assert "The weights are random" in page
    assert "Attention by head" in page
    assert result["weights"] == "random"
    assert "random weights" in captured.err


def test_the_same_command_gives_the_same_pictures(picture: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run("segment", picture, *MODEL, "--method", "attention", "--out", tmp_path / name, "--quiet") == 0
    files = sorted(path.name for path in (tmp_path / "a").glob("*.png"))
    assert files == ["contact-sheet.png", "disc-layer04-attention.png"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    again = ["--config", str(tmp_path / "a" / "config.yaml"), "--out", str(tmp_path / "c")]
    assert cli.run(["segment", *again]) == 0
    assert (tmp_path / "c" / files[1]).read_bytes() == (tmp_path / "a" / files[1]).read_bytes()


def test_clusters_find_the_disc(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--method", "cluster", "--clusters", 2, "--layers", 0, "--image-size", 64, "--out", tmp_path, "--json"]
    assert run("segment", picture, *MODEL, *arguments) == 0
    row = json.loads(capsys.readouterr().out)["images"][0]
    assert row["grid"] == [16, 32]
    assert min(row["clusters"]) == pytest.approx(np.pi * 20**2 / (60 * 120), abs=0.06)


@pytest.mark.parametrize("model", ["timm:test_vit", "crate_mae_nano_patch4_32", "vit_nano_patch4_32"])
def test_other_models(model: str, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("segment", picture, "--model", model, "--layers", -1, "--out", tmp_path / "out", "--json") == 0
    row = json.loads(capsys.readouterr().out)["images"][0]
    assert row["grid"][1] == 2 * row["grid"][0]
    assert row["attention_query"] == "class token"


def test_a_model_whose_attention_is_unknown(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tost = ["segment", picture, "--model", "tost_nano_patch4_32", "--layers", 0, "--out", tmp_path / "out"]
    assert run(*tost) == 2
    assert "--facet token" in capsys.readouterr().err
    assert run(*tost, "--facet", "token", "--method", "pca", "--method", "maskcut") == 0


def test_no_object_is_invented(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (30, 50), (200, 30, 30)).save(tmp_path / "plain.png")
    assert run("segment", tmp_path / "plain.png", *MODEL, "--out", tmp_path / "out", "--json") == 0
    row = json.loads(capsys.readouterr().out)["images"][0]
    assert row["blank"] is True
    assert "objects" not in row
    for name in row["files"].values():
        assert (opened(tmp_path / "out" / name) == (200, 30, 30)).all()


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 3000)])
def test_tiny_and_narrow_pictures(size: tuple[int, int], tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "odd.png")
    assert run("segment", tmp_path / "odd.png", *MODEL, "--out", tmp_path / "out", "--quiet") == 0


def test_a_bad_picture_stops_the_run_or_is_left_out(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(picture.read_bytes()[:100])
    assert run("segment", bad, picture, *MODEL, "--out", tmp_path / "out") == 1
    assert "bad.jpg: cannot be decoded" in capsys.readouterr().err.splitlines()[-1]
    arguments = ["--on-error", "skip", "--method", "pca", "--json", "--out", tmp_path / "out"]
    assert run("segment", bad, picture, *MODEL, *arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert [Path(row["image"]).name for row in result["images"]] == ["disc.png"]
    assert "bad.jpg" in result["skipped"][0]
    assert run("segment", bad, *MODEL, *arguments) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--layers", "99"], 2, "choose from 0 to 5"),
        (["--clusters", "0"], 2, "--clusters 0"),
        (["--mass", "0"], 2, "--mass 0"),
        (["--image-size", "2"], 2, "smaller than a patch"),
        (["--method", "magic"], 2, "magic"),
        (["gone.png"], 3, "gone.png: does not exist"),
    ],
)
def test_segment_says_what_is_wrong(
    arguments: list[str], code: int, message: str, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("segment", picture, *arguments, *MODEL, "--out", tmp_path / "out") == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last


def test_pictures_of_one_name_do_not_overwrite_each_other(picture: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    Image.open(picture).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "more" / "disc.bmp")
    out = tmp_path / "out"
    assert run("segment", picture, tmp_path / "more", *MODEL, "--method", "pca", "--out", out, "--quiet") == 0
    assert opened(out / "disc-layer04-pca.png").shape == (192, 384, 3)
    assert opened(out / "disc-2-layer04-pca.png").shape == (384, 192, 3)


def test_small_pictures_stay_crisp(tmp_path: Path) -> None:
    small = np.random.default_rng(0).integers(0, 256, (20, 28, 3), dtype=np.uint8)
    large = np.asarray(canvas(Image.fromarray(small)))
    assert large.shape == (280, 392, 3)
    np.testing.assert_array_equal(large[7::14, 7::14], small)
    assert len(np.unique(large[:14, :14].reshape(-1, 3), axis=0)) == 1, "a pixel is a square of one colour"
    assert max(canvas(Image.new("RGB", (2000, 100))).size) == 768


def test_every_column_is_explained(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("segment", picture, *MODEL, "--method", "maskcut", "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    header = said.splitlines()[0]
    assert "objects (area)" in header
    for name in ("layer", "patches", "objects (area)"):
        assert f"\n{name}: " in said
    assert "Objects (area): share of the picture" in (tmp_path / "out/report.html").read_text()


# --- complete

MAE = ["--model", "crate_mae_nano_patch4_32"]


def test_complete(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run("complete", picture, *MAE, "--mask-ratio", 0.5, "--out", out, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    row = result["images"][0]
    assert (row["grid"], row["removed"]) == ([8, 16], 64)
    original, left, filled, bare, inpainted = (
        opened(out / row["files"][k]) for k in ("input", "mask", "completion", "prediction", "inpainting")
    )
    assert original.shape == (32, 64, 3)
    gone = (left != original).any(-1)
    assert gone.mean() == pytest.approx(0.5, abs=0.01)
    assert np.array_equal(filled[~gone], original[~gone]), "what was left is untouched"
    assert np.array_equal(filled[gone], bare[gone])
    assert np.array_equal(inpainted[~gone], original[~gone])
    guesses = {"": filled[gone], "_mean_colour": original[~gone].mean(0), "_inpainting": inpainted[gone]}
    for name, guess in guesses.items():
        error = np.mean((original[gone].astype(float) - guess) ** 2)
        ratio = 10 * np.log10(255**2 / error)
        assert row[f"psnr{name}"] == pytest.approx(ratio, abs=1e-9), "of the removed pixels alone"
    assert "The weights are random" in (out / "report.html").read_text()


def test_predictions_come_back_as_the_colours_they_are(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from unrolled.models import create_model

    model = create_model("crate_mae_nano_patch4_32")
    colour = torch.tensor([250, 220, 30]) / 255  # the disc's, whatever the model sees
    mean, std = (torch.tensor(model.pretrained_cfg[key]) for key in ("mean", "std"))
    torch.nn.init.zeros_(model.decoder_pred.weight)
    model.decoder_pred.bias.data = ((colour - mean) / std).repeat(16)
    folder = tmp_path / "mae"
    model.save_pretrained(folder)
    Image.new("RGB", (50, 50), (250, 220, 30)).save(tmp_path / "yellow.png")
    out = tmp_path / "out"
    assert run("complete", picture, tmp_path / "yellow.png", "--model", folder, "--out", out, "--json") == 0
    other, yellow = json.loads(capsys.readouterr().out)["images"]
    assert (opened(out / other["files"]["prediction"]) == (250, 220, 30)).all()
    assert other["psnr"] < other["psnr_mean_colour"]
    assert yellow["psnr"] is None, "a completion without error has no finite ratio"
    assert yellow["loss"] == pytest.approx(0, abs=1e-6)
    assert "random" not in (out / "report.html").read_text().split("<h2")[0]


def test_small_pictures_fill_the_contact_sheet(picture: Path, tmp_path: Path) -> None:
    assert run("complete", picture, *MAE, "--out", tmp_path, "--quiet") == 0
    with Image.open(tmp_path / "contact-sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    shown = (pixels[48:] != 255).any(-1)  # below the names and the caption
    # four pictures of 32 x 64, each pixel three wide, stand in columns of 240
    assert shown.any(0).sum() >= 4 * 3 * 64 * 0.95
    assert shown.any(1).sum() >= 3 * 32 * 0.95


def test_normalised_patches_are_said_to_flatter(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model-args.norm-pix-loss", "true", "--out", tmp_path, "--quiet"]
    assert run("complete", picture, *MAE, *arguments) == 0
    page = (tmp_path / "report.html").read_text()
    assert "flatter" in page
    assert "which this model is not told" in page[page.index("Numbers") :]
    assert "flatter" in capsys.readouterr().out
    assert run("complete", picture, *MAE, "--out", tmp_path / "plain", "--quiet") == 0
    assert "flatter" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "crate_nano_patch4_32"], "no masked autoencoder"),
        ([*MAE, "--mask-ratio", "1"], "--mask-ratio 1"),
        ([*MAE, "--mask-ratio", "0.999"], "at least one"),
    ],
)
def test_complete_says_what_is_wrong(
    arguments: list[str], message: str, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("complete", picture, *arguments, "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("verb", "model", "trained"),
    [
        (["segment", "--method", "attention"], "crate_nano_patch4_32.cifar10", True),
        (["segment", "--method", "attention"], "crate_nano_patch4_32", False),
        (["explain"], "crate_nano_patch4_32.cifar10", True),
        (["explain"], "crate_nano_patch4_32", False),
    ],
)
def test_weights_that_ship_are_not_called_random(
    verb: list[str], model: str, trained: bool, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *flags = verb
    assert run(name, picture, *flags, "--model", model, "--out", tmp_path / "out") == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert ("The weights are random" in page) is not trained
    assert ("random weights" in capsys.readouterr().err) is not trained
