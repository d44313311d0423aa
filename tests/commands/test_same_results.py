"""Every verb gives the same results for every batch size, number of workers and order of files, and for one seed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from tests.answers import answer_of
from tests.records import brain_records, judgement_records
from unrolled import cli
from unrolled.instruments import FeatureSet

MODEL = "crate_nano_patch4_32"
SMALL = ["--model-args.depth", "2"]
# what a result says of this run alone
_OWN = {
    "report",
    "folder",
    "seconds",
    "images_per_second",
    "tokens_per_second",
    "checksum",
    "reused",
    "reused_features",
}
# verbs without results that a batch could change: their batch size is the experiment, or they have none
_WITHOUT = {
    *(
        "list",
        "doctor",
        "completion",
        "convert",
        "train",
        "finetune",
        "pretrain",
        "study",
        "demo",
        "explore",
        "gallery",
    ),
    "generate",  # has no batch
}


@pytest.fixture(autouse=True)
def drawings() -> None:
    """They are drawn."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images of two classes and several shapes, of photos with masks, and of loose pictures."""
    root = tmp_path_factory.mktemp("data")
    brain_records(root)
    judgement_records(root)
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 5)):
        for label, colour in {"day": (220, 200, 90), "night": (20, 30, 90)}.items():
            (root / "classes" / split / label).mkdir(parents=True)
            for i in range(count):
                noise = rng.integers(0, 60, (32, 32, 3)) + np.array(colour)
                Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(
                    root / "classes" / split / label / f"{(7 * i) % count}.png"
                )
    (root / "grid.yaml").write_text(json.dumps({"models": {"one": MODEL, "two": "vit_nano_patch4_32"}}))
    for part in ("photos/images", "photos/masks", "pictures"):
        (root / part).mkdir(parents=True)
    for i, (width, height) in enumerate([(64, 48), (48, 64), (64, 48), (64, 48), (48, 64)]):
        photo = Image.fromarray(rng.integers(0, 90, (height, width, 3), dtype=np.uint8))
        mask = Image.new("L", (width, height))
        box = (8 + 3 * i, 6, 30 + 3 * i, 34)
        ImageDraw.Draw(photo).ellipse(box, fill=(250, 220 - 20 * i, 30))
        ImageDraw.Draw(mask).ellipse(box, fill=255)
        photo.save(root / "photos" / "images" / f"{i}.png")
        mask.save(root / "photos" / "masks" / f"{i}.png")
        if i < 3:
            photo.save(root / "pictures" / f"{i}.png")
    return root


def commands(data: Path) -> dict[str, list[str]]:
    """A command of each verb, and of each of its kinds of result."""
    classes = ["--data", "folder", "--data-dir", str(data / "classes")]
    grid = data / "grid.yaml"
    photos = ["--data-dir", str(data / "photos"), "--model", MODEL, *SMALL, "--image-size", "32", "--layers", "1"]
    return {
        "eval": ["eval", MODEL, *SMALL, *classes],
        "eval --robustness": ["eval", MODEL, *SMALL, *classes, "--robustness", "--robustness-images", "5"],
        "trace": ["trace", MODEL, *SMALL, *classes],
        "trace --text": ["trace", "crate_gpt_nano", "--model-args.depth", "2", "--text", "to be", "or not", "to be!",
                         "that is the question"],
        "ablate": ["ablate", MODEL, *SMALL, *classes, "--places", "block0?/attn", "block01/attn/head*"],
        "ablate --positions": ["ablate", MODEL, *SMALL, *classes, "--places", "block00", "block01/subspace0",
                               "--positions", "0", "-1", "--score", "logit-difference"],
        "ablate --text": ["ablate", "crate_gpt_nano", "--model-args.depth", "2", "--places", "block0?/attn", "--text",
                          "to be", "or not", "to be!", "that is the question"],
        "patch": ["patch", MODEL, *SMALL, *classes, "--places", "block0?/attn", "block01/attn/head*"],
        "patch --sender": ["patch", MODEL, *SMALL, *classes, "--sender", "block00/attn/head1"],
        "extract": ["extract", MODEL, *SMALL, *classes, "--layers", "block01"],
        "probe": ["probe", MODEL, *SMALL, *classes, "--layers", "block01", "--method", "linear", "knn", "ridge",
                  "--k", "3"],
        "align": ["align", MODEL, "vit_nano_patch4_32", *classes, "--metric", "mutual_knn", "--metric", "cka",
                  "--k", "3", "--draws", "19", "--layers", "block00", "block01"],
        "align-grid": ["align-grid", str(grid), *classes, "--metric", "cka", "--layers", "block00"],
        "translate": ["translate", MODEL, "vit_nano_patch4_32", "--data", "digits", "--images", "45", "--layers",
                      "block01", "--restarts", "2", "--controls", "1", "--width", "8"],
        "brain": ["brain", MODEL, *SMALL, "--data-dir", str(data), "--draws", "10", "--untrained", "1"],
        "brain, of texts": ["brain", "crate_gpt_nano", "--model-args.depth", "1", "--data-dir", str(data), "--draws",
                            "10", "--untrained", "1", "--concepts", "20"],
        "segment": ["segment", str(data / "pictures"), "--model", MODEL, *SMALL, "--method", "cluster"],
        "segment-eval": ["segment-eval", "masks", *photos, "--measure", "attention", "maskcut", "clusters"],
        "complete": ["complete", str(data / "pictures"), "--model", "crate_mae_nano_patch4_32"],
        "explain": ["explain", str(data / "pictures" / "0.png"), "--model", MODEL, *SMALL, *classes, "--images", "4"],
    }  # fmt: skip


NAMES = sorted(commands(Path("data")))


def result(command: list[str], out: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.run([*command, "--out", str(out), "--device", "cpu", "--quiet", "--json", *more]) == 0
    found = answer_of(command[0], capsys.readouterr().out)
    if command[0] == "extract":
        kept = FeatureSet.load(out)
        found["kept"] = {name: value.tolist() for name, value in kept.items()}
        found["rows"] = [kept.indices.tolist(), kept.labels.tolist()]  # type: ignore[union-attr]
    return found


def check_same(one: Any, other: Any, place: str = "") -> None:
    """Numbers are equal but for rounding, everything else is the same."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one.keys() - _OWN:
            check_same(one[key], other[key], f"{place}/{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), place
        for i, pair in enumerate(zip(one, other, strict=True)):
            check_same(*pair, f"{place}/{i}")
    elif isinstance(one, float) and isinstance(other, float):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-4, nan_ok=True), place
    else:
        assert one == other, place


def test_every_verb_is_among_them_or_has_nothing_to_compare() -> None:
    shown = {command[0] for command in commands(Path("data")).values()}
    assert shown | _WITHOUT >= set(cli.VERBS)
    assert not shown & _WITHOUT


SLOW = ("segment-eval", "translate", "eval --robustness")  # the rest of them take a second or two


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in NAMES])
def test_batches_workers_and_the_order_of_files_change_nothing(
    name: str,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    command = commands(data)[name]
    flags = flags_of(command[0])
    few, one = (["--batch-size", size] if "batch_size" in flags else [] for size in ("3", "1"))
    first = result(command, tmp_path / "first", capsys, *few)
    request.getfixturevalue("undrawn")
    turn_listings(monkeypatch)
    if "workers" in flags and name != "align-grid":  # whose workers are Dask's
        one += ["--workers", "2"]
    check_same(first, result(command, tmp_path / "other", capsys, *one))


def flags_of(verb: str) -> set[str]:
    """Flags of a verb, spelled as settings are."""
    arguments = cli.build([verb])[verb].assemble_argument_collection()
    return {argument.name.lstrip("-").replace("-", "_") for argument in arguments}


def turn_listings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders are listed backwards, as another file system may."""
    listdir, scandir = os.listdir, os.scandir

    class Backwards:
        def __init__(self, path: Any = ".") -> None:
            with scandir(path) as entries:
                self.entries = iter(sorted(entries, key=lambda entry: entry.name, reverse=True))

        def __iter__(self) -> Iterator[Any]:
            return self.entries

        def __next__(self) -> Any:
            return next(self.entries)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def close(self) -> None:
            pass

    monkeypatch.setattr(os, "listdir", lambda path=".": sorted(listdir(path), reverse=True))
    monkeypatch.setattr(os, "scandir", Backwards)


@pytest.mark.usefixtures("undrawn")
def test_pictures_are_the_same_whatever_stands_beside_them(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(data / "pictures" / f"{i}.png") for i in (2, 0, 1)]
    for verb, more in {
        "segment": ["--model", MODEL, *SMALL, "--method", "cluster"],
        "complete": ["--model", "crate_mae_nano_patch4_32"],
    }.items():
        several = result([verb, *paths, *more], tmp_path / verb, capsys)
        alone = result([verb, paths[1], *more], tmp_path / f"{verb}-one", capsys)
        check_same(alone["images"][0], several["images"][1])


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", ["eval", "trace", "extract", "align", "complete"])
def test_one_seed_gives_one_result_and_another_another(
    name: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = commands(data)[name]
    torch.manual_seed(1)
    one = result(command, tmp_path / "one", capsys, "--seed", "7")
    torch.manual_seed(2)
    check_same(one, result(command, tmp_path / "two", capsys, "--seed", "7"))
    with pytest.raises(AssertionError):
        check_same(
            one | ({"seed": 8} if "seed" in one else {}), result(command, tmp_path / "three", capsys, "--seed", "8")
        )
