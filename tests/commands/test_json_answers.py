"""`--json`: every verb prints one object, of one format, with the keys that docs/howto/json.md names."""

from __future__ import annotations

import ast
import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import unrolled
from tests.answers import answer_of, documented
from unrolled import cli

Shown = pytest.CaptureFixture[str]
STEP = ["--max-steps", "1", "--batch-size", "16", "--accelerator", "cpu", "--quiet"]
# verbs whose answers `test_same_results` looks at, with each of their kinds of result
ELSEWHERE = {
    *("eval", "trace", "ablate", "patch", "extract", "probe", "align", "align-grid", "brain", "segment"),
    *("complete", "explain", "segment-eval", "translate"),
}


@pytest.fixture(autouse=True)
def drawings() -> None:
    """They are drawn."""


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("texts")
    (root / "a.txt").write_text("to be or not to be, that is the question\n" * 40)
    command = ["train", "--task", "lm", "--data", "folder", "--data-dir", str(root), "--model", "crate_gpt_nano"]
    sizes = ["--model-args.depth", "1", "--length", "8", *STEP]
    assert cli.run([*command, *sizes, "--out", str(root / "run")]) == 0
    return root


def published(folder: Path) -> Path:
    model = unrolled.create_model("crate_tiny_patch16_224", depth=1)
    torch.save({"state_dict": model.state_dict()}, folder / "own.pth")
    return folder / "own.pth"


COMMANDS: dict[str, Callable[[Path, Path], list[list[str]]]] = {
    "list": lambda tmp, texts: [["list", "crate_nano*"],
                                ["list", "--compare", "crate_nano_patch2_8", "--batch-size", "1", "--device", "cpu"]],
    "completion": lambda tmp, texts: [["completion", "fish", "--out", str(tmp / "script")]],
    "doctor": lambda tmp, texts: [["doctor"]],
    "train": lambda tmp, texts: [["train", *STEP, "--out", str(tmp)],
                                 ["train", "--config", str(texts / "run" / "config.yaml"), "--resume", "auto"]],
    "finetune": lambda tmp, texts: [["finetune", "--weights", "crate_nano_patch4_32.cifar10", *STEP, "--out",
                                     str(tmp)]],
    "pretrain": lambda tmp, texts: [["pretrain", "--data", "digits", *STEP, "--out", str(tmp)]],
    "eval": lambda tmp, texts: [["eval", str(texts / "run"), "--out", str(tmp), "--quiet"]],
    "generate": lambda tmp, texts: [["generate", str(texts / "run"), "--prompt", "to", "--tokens", "2"]],
    "study": lambda tmp, texts: [["study"]],
    "gallery": lambda tmp, texts: [["gallery", "--out", str(tmp / "site"), "--quiet"]],
}  # fmt: skip


def test_every_verb_is_on_the_page_and_has_the_flag() -> None:
    assert list(documented()) == list(cli.VERBS)
    app = cli.build()
    for name in cli.VERBS:
        flags = {each for argument in app[name].assemble_argument_collection() for each in argument.names}
        assert "--json" in flags, name


@pytest.mark.parametrize("verb", COMMANDS)
def test_the_answer_has_the_keys_of_the_page(verb: str, texts: Path, tmp_path: Path, capsys: Shown) -> None:
    for command in COMMANDS[verb](tmp_path, texts):
        capsys.readouterr()
        assert cli.run([*command, "--json"]) == 0
        answer_of(verb, capsys.readouterr().out)


def test_a_study_and_the_demo(tmp_path: Path, capsys: Shown) -> None:
    from unrolled.commands import study
    from unrolled.report import Report

    class Quick:
        name = "demo"

        def folder(self, config: Any) -> Path:
            return tmp_path

        def run(self, config: Any, **_: Any) -> Report:
            report = Report("A study", question="Does it?")
            report.write(tmp_path)
            return report

    class Config:
        def __init__(self) -> None:
            self.out = tmp_path

    for verb in ("study", "demo"):
        study.run_study(Quick(), Config(), verb=verb, json=True, quiet=True)  # type: ignore[arg-type]
        assert answer_of(verb, capsys.readouterr().out)["study"] == "demo"


def test_a_published_checkpoint(tmp_path: Path, capsys: Shown) -> None:
    checkpoint = Path(__file__).parents[2].parent / "shared" / "golden" / "crate_cls.pth.tar"
    if not checkpoint.is_file():
        pytest.skip("needs the shared folder")
    command = ["convert", str(checkpoint), str(tmp_path / "out"), "--heads", "4", "--json"]
    assert cli.run(command) == 0
    answer_of("convert", capsys.readouterr().out)


def test_the_page_says_where_it_is(monkeypatch: pytest.MonkeyPatch, capsys: Shown) -> None:
    pytest.importorskip("starlette")
    monkeypatch.setattr("unrolled.explorer.server.serving", lambda *_: contextlib.nullcontext(threading.Thread()))
    monkeypatch.setattr("unrolled.commands.explore._load", lambda *_, **__: None)
    monkeypatch.setattr(threading.Thread, "join", lambda *_: None)
    assert cli.run(["explore", "--port", "0", "--no-open", "--json", "--quiet", "--device", "cpu"]) == 0
    assert answer_of("explore", capsys.readouterr().out)["address"].startswith("http://127.0.0.1:")


def test_no_answer_is_left_untried() -> None:
    assert ELSEWHERE | COMMANDS.keys() | {"study", "demo", "convert", "explore"} == cli.VERBS.keys()


def test_only_one_place_prints_json() -> None:
    root = Path(unrolled.__file__).parent
    for path in sorted((root / "commands").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Attribute) and node.attr == "dumps"), path


def test_a_failure_prints_no_answer(tmp_path: Path, capsys: Shown) -> None:
    assert cli.run(["eval", "crate_nano_patch2_9", "--json", "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") >= 1
