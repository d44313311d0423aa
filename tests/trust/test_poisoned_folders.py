"""Every verb, standing in a folder that somebody else prepared: no code runs, nothing waits, errors are one line."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hostile import SEEN, ends_within, pickled, png, said_plainly

from unrolled import cli
from unrolled.cli import VERBS

MODULE = f"import pathlib\npathlib.Path.cwd().joinpath({SEEN!r}).touch()\ndef make(*a, **k): return None\n"
RUN = "task: classify\nmodel: poison:make\ndata: digits\n"


def _config(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "config.yaml").write_text(text)

    return write


def _pipe(folder: Path) -> None:
    (folder / f"pipe:touch {SEEN} #.tar").write_bytes(b"")
    (folder / "config.yaml").write_text("model: crate_nano_patch2_8\ndata: 'wds:[p]ipe*.tar'\n")


def _fifos(folder: Path) -> None:
    for name in ("config.yaml", "config.json", "model.safetensors", "weights.pth", "report.json", "picture.png"):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)


def _devices(folder: Path) -> None:
    for name in ("config.yaml", "config.json", "model.safetensors", "weights.pth", "picture.png"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("/dev/zero")


def _architecture(folder: Path) -> None:
    described = {"architecture": "poison:make", "model_args": {"depth": 1}, "num_classes": 10}
    (folder / "config.json").write_text(json.dumps(described))


def _pickles(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"architecture": "crate_nano_patch2_8", "num_classes": 10}))
    for name in ("model.safetensors", "pytorch_model.bin", "weights.pth"):
        (folder / name).write_bytes(pickled())


def _hugging_face(folder: Path) -> None:
    code = {"auto_map": {"AutoConfig": "poison.make", "AutoModel": "poison.make"}}
    (folder / "config.json").write_text(json.dumps({"model_type": "poison", **code}))


DOUBLED = "a0: &a0 [x, x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(40))
# settings that are none: verbs read them by the same functions, which `READERS` call in every way there is
MALFORMED: dict[str, Callable[[Path], None]] = {
    "null": _config("null\n"),
    "a list": _config("- model\n"),
    "data as a list": _config("model: crate_nano_patch2_8\ndata: [digits]\n"),
    "deep": _config("model: " + "[" * 600),
    "references without end": _config(DOUBLED),
    "itself": _config("model: &m [*m]\n"),
    "too large": _config("# " + "x" * 2**21),
    "no text": lambda folder: (folder / "config.yaml").write_bytes(b"\xff\xfe\x00model"),
}
READERS = ("train", "eval", "segment", "align-grid", "generate", "explore", "study")
POISONS: dict[str, Callable[[Path], None]] = {
    "a model that is code": _config(RUN),
    "data that are a command": _pipe,
    "data that are an address": _config("model: crate_nano_patch2_8\ndata: wds:http://localhost:1/a.tar\n"),
    "a scheduler": _config("scheduler: tcp://localhost:1\n"),
    "a cluster": _config("cluster: tcp://localhost:1\nseeds: [0]\n"),
    "models that are code": _config("models: [crate_nano_patch2_8, 'poison:make']\nseeds: [0]\nepochs: 0.1\n"),
    "weights that are code": _architecture,
    "weights that are pickles": _pickles,
    "a Hugging Face model with code": _hugging_face,
    "pipes": _fifos,
    "devices": _devices,
    "a tag": _config(f"model: !!python/object/apply:os.system ['touch {SEEN}']\n"),
    **MALFORMED,
}

HERE = ["--out", "out", "--quiet"]
USES: dict[str, list[list[str]]] = {
    "demo": [["--config", "config.yaml", "--quiet"]],
    "train": [["--config", "config.yaml", *HERE], ["--weights", ".", *HERE], ["--weights", "weights.pth", *HERE]],
    "pretrain": [["--config", "config.yaml", *HERE], ["--weights", ".", "--data", "digits", *HERE]],
    "finetune": [["--config", "config.yaml", *HERE], ["--weights", ".", *HERE], ["--weights", "weights.pth", *HERE]],
    "eval": [["."], ["local:."], ["--config", "config.yaml"], ["crate_nano_patch2_8", "--weights", "."]],
    "trace": [
        ["."],
        [".", "--text", "a text"],
        ["hf:.", "--text", "a text"],
        ["--config", "config.yaml"],
        ["crate_nano_patch2_8", "--weights", "weights.pth"],
    ],
    "ablate": [["."], [".", "--text", "a text"], ["--config", "config.yaml"]],
    "patch": [["."], ["--config", "config.yaml"], [".", "--image", "picture.png", "--other-image", "picture.png"]],
    "extract": [["."], ["--config", "config.yaml"]],
    "probe": [["."], ["--config", "config.yaml"], ["crate_nano_patch2_8", "--weights", "."]],
    "align": [[".", "."], ["--config", "config.yaml"]],
    "align-grid": [["config.yaml"], ["--config", "config.yaml"]],
    "translate": [[".", "."], ["--config", "config.yaml"]],
    "brain": [["."], ["--config", "config.yaml"]],
    "segment": [["picture.png", "--model", "."], ["picture.png", "--config", "config.yaml"]],
    "segment-eval": [["coco", "--data-dir", ".", "--model", "."], ["--config", "config.yaml"]],
    "explain": [["picture.png", "--model", "."], ["picture.png", "--config", "config.yaml"]],
    "complete": [["picture.png", "--model", "."], ["picture.png", "--config", "config.yaml"]],
    "generate": [["."], ["local:."], ["hf:."], ["--config", "config.yaml"]],
    "explore": [["--model", ".", "--no-open", "--port", "0"], ["--config", "config.yaml", "--no-open", "--port", "0"]],
    "convert": [["weights.pth", "converted"], [".", "converted"]],
    "study": [
        ["no-such-study", "--data-dir", "."],
        ["demo", "--config", "config.yaml", "--quiet"],
        ["mesa-floors", "--config", "config.yaml", "--only-kept", "--quiet"],
    ],
    "gallery": [["--studies", ".."], ["--config", "config.yaml"]],
    "list": [],
    "completion": [],
    "doctor": [],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """`tmp_path/run`, in which we stand and a module `poison` lies, and modules that are called like optional ones."""
    place = tmp_path / "run"
    place.mkdir()
    for name in ("poison", "wandb", "trackio", "sentence_transformers", "peft", "kernels", "accelerate"):
        (place / f"{name}.py").write_text(MODULE)
    (place / "picture.png").write_bytes(png())
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield place
    sys.modules.pop("poison", None)


def test_every_verb_is_used() -> None:
    assert USES.keys() == VERBS.keys()


@pytest.mark.parametrize(
    ("verb", "poison"),
    [
        (verb, poison)
        for verb, uses in USES.items()
        for poison in POISONS
        if uses and (poison not in MALFORMED or verb in READERS)
    ],
)
def test_no_verb_runs_what_a_folder_says(
    verb: str, poison: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    POISONS[poison](folder)
    for use in USES[verb]:
        with ends_within(30):
            code = cli.run([verb, *use])
        error = capsys.readouterr().err
        assert not (folder / SEEN).exists(), use
        assert code in (1, 2, 3), (use, error)
        said_plainly(error)
        assert str(folder) not in sys.path


# --- a run that is finished and whole, but for its config.yaml


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert cli.run(["train", "--max-steps", "1", "--batch-size", "32", "--quiet", "--out", str(folder)]) == 0
    return folder


BROKEN = [
    "null", "a list", "a tag", "data as a list", "deep", "references without end", "itself", "too large", "no text",
    "pipes", "devices", "data that are an address",
]  # fmt: skip


@pytest.mark.parametrize("verb", ["eval", "trace", "extract", "probe"])
@pytest.mark.parametrize("how", BROKEN)
def test_a_run_is_never_measured_on_other_data_than_its_own(
    verb: str, how: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "config.yaml").unlink()
    POISONS[how](run)
    with ends_within(30):
        assert cli.run([verb, str(run), "--out", str(tmp_path / "out"), "--quiet"]) in (1, 2, 3)
    assert "config.yaml" in said_plainly(capsys.readouterr().err)


def test_a_folder_of_runs_with_broken_ones_is_still_listed(finished: Path, tmp_path: Path) -> None:
    from unrolled.explorer.models import Catalogue

    for how in BROKEN:
        run = tmp_path / how
        shutil.copytree(finished, run)
        (run / "config.yaml").unlink()
        POISONS[how](run)
    shutil.copytree(finished, tmp_path / "good")
    with ends_within(30):
        listed = [choice.label for choice in Catalogue(runs=tmp_path).choices.values() if choice.group == "Your runs"]
    assert "good" in listed
    assert not {"null", "a list", "a tag"}.intersection(listed)
