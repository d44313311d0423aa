"""The command line as a user meets it."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from unrolled import cli
from unrolled.commands import pretrain as pretrain_verb
from unrolled.commands import train as train_verbs
from unrolled.errors import CorruptFile, MissingData, MissingExtra, TrainingStopped
from unrolled.train import config_files as config_module
from unrolled.train.config import DistillConfig, FinetuneConfig, MaskedConfig, RunConfig, TextConfig, TrainConfig

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The configuration a command line amounts to, without training."""

    def resolve(*arguments: str) -> RunConfig:
        seen: list[RunConfig] = []
        for module in (train_verbs, pretrain_verb):
            monkeypatch.setattr(module, "run_training", lambda _, config, **__: seen.append(config))
        assert cli.run(arguments) == 0
        return seen[0]

    return resolve


def refuse(error: BaseException) -> Callable[..., None]:
    def raiser(*_: Any, **__: Any) -> None:
        raise error

    return raiser


# --- help


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from unrolled.cli import VERBS, run\n"
        "for verb in ['', *VERBS]:\n"
        "    assert run([*filter(None, [verb]), '--help']) == 0, verb\n"
        "    heavy = {'torch', 'timm', 'numpy', 'torchvision', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "    assert not heavy, (verb, heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def test_help_lists_the_flags_with_defaults_under_headings(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Peak learning rate. [default: 0.002]" in text
    assert text.index("Model ─") < text.index("Data ─") < text.index("Augmentation and loss ─") < text.index("Output ─")
    assert cli.run(["finetune", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Peak learning rate. [default: 5e-05]" in text


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_is_complete(verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every example on a line of its own, a text for every flag, and defaults as one would type them."""
    module, function = cli.VERBS[verb].function.split(":")
    doc = getattr(importlib.import_module(module), function).__doc__ or ""
    examples = [line.strip() for line in doc.splitlines() if re.match(r" {8}(unrolled|torchrun) ", line)]
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.run([verb, "--help"]) == 0
    text = capsys.readouterr().out
    lines = [line.strip() for line in text.splitlines()]
    assert examples
    assert [example for example in examples if example not in lines] == []
    assert not re.search(r"\[default: *[](\[{]|--empty-", text)
    arguments = cli.build([verb])[verb].assemble_argument_collection(parse_docstring=True)
    assert [each.name for each in arguments if each.show and not each.parameter.help] == []


def test_no_color_is_honoured() -> None:
    for extra, coloured in (({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)):
        environment = {key: value for key, value in os.environ.items() if key not in {"NO_COLOR", "FORCE_COLOR"}}
        environment |= {"TERM": "xterm-256color", **extra}
        command = [sys.executable, "-m", "unrolled", "--help"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=60)
        assert ("\x1b[3" in done.stdout) == coloured


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in cli.VERBS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import unrolled

    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == unrolled.__version__


# --- wrong usage: one line, exit code 2


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["trian"], ["'trian'", "train"]),
        (["train", "--epoch", "3"], ["--epoch", "--epochs"]),
        (["train", "--epochs", "many"], ["--epochs", "many"]),
        (["train", "--precision", "fp31"], ["--precision", "fp31", "fp32"]),
        (["train", "digits"], ["unexpected argument: digits; name it: --model, --data"]),
        (["train", "--config", "absent.yaml"], ["--config", "absent.yaml"]),
        (["train", "--recipe", "absent"], ["recipe", "absent"]),
        (["train", "--model-args.a.b", "1"], ["--model-args.NAME"]),
        (["list", "crete*"], ["crete*", "did you mean crate"]),
        (["list", "nosuch"], ["nosuch", "`unrolled list` shows all"]),
        (["list", "*.imagenet"], ["imagenet", '`unrolled list "*.*"` shows all weights']),
    ],
)
def test_wrong_usage_is_one_line(
    arguments: list[str], fragments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    for fragment in fragments:
        assert fragment in captured.err


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("epochz: 3\n", ["epochz", "epochs"]),
        ("- 3\n", ["name: value"]),
        ("epochs: [3\n", ["not valid YAML"]),
        ("model_args: 3\n", ["model_args"]),
        ("epochs: many\n", ["epochs", "many"]),
        ("epochs: [1, 2]\n", ["epochs"]),
    ],
)
def test_a_wrong_config_file_is_named(
    text: str, fragments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert cli.run(["train", "--config", str(path)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    for fragment in [*fragments, "run.yaml"]:
        assert fragment in message


# --- where settings come from


def test_defaults_are_those_of_the_dataclass(resolved: Callable[..., Any]) -> None:
    assert resolved("train") == TrainConfig()
    assert resolved("finetune") == FinetuneConfig()
    assert resolved("pretrain") == MaskedConfig()
    assert resolved("pretrain", "--task", "simdino") == DistillConfig()
    assert resolved("train", "--task=lm") == TextConfig()
    assert resolved("train", "--task", "mlm") == TextConfig(task="mlm")


def test_layers(resolved: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "low.yaml").write_text("epochs: 3\nlr: 1e-3\nseed: 4\nbatch-size: 16\nclip_grad: null\n")
    (tmp_path / "high.yaml").write_text("lr: 2e-3\n")
    monkeypatch.setenv("UNROLLED_SEED", "5")
    monkeypatch.setenv("UNROLLED_BATCH_SIZE", "32")
    (tmp_path / "mine.yaml").write_text("epochs: 100\nhflip: 0.25\n")
    monkeypatch.setattr(config_module, "recipes", lambda: {"mine": tmp_path / "mine.yaml"})
    files = ["--config", str(tmp_path / "low.yaml"), "--config", str(tmp_path / "high.yaml")]
    config = resolved("train", *files, "--recipe", "mine", "--batch-size", "64")
    assert config.hflip == 0.25  # the recipe alone says
    assert config.epochs == 3  # the file over the recipe
    assert config.lr == 2e-3  # the last file over the first
    assert config.clip_grad is None
    assert config.seed == 5  # the environment over the files
    assert config.batch_size == 64  # the flag over everything


def test_model_arguments_are_merged_and_typed(
    resolved: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.yaml").write_text(
        "model_args: {step_size: 0.1, heads: 4, learned: true, size: [8, 8], eps: 1e-3}\n"
    )
    monkeypatch.setenv("UNROLLED_MODEL_ARGS_SPARSITY", "0.3")
    config = resolved(
        "train", "--config", str(tmp_path / "run.yaml"), "--model-args.step-size", "2e-1", "--model-args.pool", "mean"
    )
    assert config.model_args == {
        "step_size": 0.2,
        "heads": 4,
        "learned": True,
        "size": [8, 8],
        "eps": 0.001,
        "sparsity": 0.3,
        "pool": "mean",
    }


def test_flags_of_every_kind(resolved: Callable[..., Any]) -> None:
    flags = "--clip-grad none --no-augment --betas 0.9 0.95 --loggers csv tensorboard --crop-scale 0.5 1 --data-dir x"
    config = resolved("train", *flags.split(), "--resume", "auto")
    assert config.clip_grad is None
    assert config.augment is False
    assert config.betas == (0.9, 0.95)
    assert config.loggers == ("csv", "tensorboard")
    assert config.crop_scale == (0.5, 1.0)
    assert config.data_dir == Path("x")
    assert config.resume == "auto"


@pytest.mark.parametrize("verb", ["train", "finetune"])
def test_a_saved_configuration_replays(verb: str, resolved: Callable[..., Any], tmp_path: Path) -> None:
    from dataclasses import asdict

    flags = "--model-args.step-size 0.2 --betas 0.9 0.95 --clip-grad none --compile --loggers tensorboard csv"
    config = resolved(verb, *flags.split(), "--weights", "w.pth")
    plain = json.loads(json.dumps(asdict(config), default=str))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(plain))
    assert resolved(verb, "--config", str(tmp_path / "config.yaml")) == config


def test_shipped_recipes_parse(resolved: Callable[..., Any]) -> None:
    for name in config_module.recipes():
        verb = "finetune" if "finetune" in name else "pretrain" if "mae" in name or "simdino" in name else "train"
        assert resolved(verb, "--recipe", name) != TrainConfig()


# --- errors and exit codes


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("data='x' is not known"), 2),
        (MissingExtra("needs `datasets`: pip install 'unrolled[hf]'"), 3),
        (MissingData("there is no folder x"), 3),
        (TrainingStopped("the loss is not finite at step 3"), 1),
        (CorruptFile("x.pt is truncated"), 1),
        (OSError(28, "No space left on device", "runs/x"), 1),
        (RuntimeError("unforeseen\nin two lines"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_become_exit_codes(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_verbs, "run_training", refuse(error))
    assert cli.run(["train"]) == code
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "Traceback" not in message
    assert cli.run(["train", "--debug"]) == code
    if code != 130:
        assert "Traceback" in capsys.readouterr().err


def test_output_into_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m unrolled doctor | head -n 1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.stdout.strip() == "software"
    assert done.returncode == 0
    assert "Broken" not in done.stderr
