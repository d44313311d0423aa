"""What a person types may name code; what a file brings along may not."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.files import plain, tar
from unrolled import cli
from unrolled.errors import UnsafeFile
from unrolled.locks import owned
from unrolled.models.resolve import resolve_model
from unrolled.train import TrainConfig, load_config, save_config
from unrolled.trust import check, check_model_args, command_line, consequence, require_typed, trusting

CODE = """
from pathlib import Path
from typing import Any
from torch import nn

Path(__file__).with_name("ran").touch()


def make(num_classes=10, **kwargs):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))


def tiny(num_classes=10, **kwargs):
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(3 * 16, num_classes))
"""
SHORT = ["--max-steps", "1", "--batch-size", "32", "--quiet"]


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to stand in, with `foreign.py`, which leaves a file `ran` when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "foreign.py").write_text(CODE)
    yield tmp_path
    sys.modules.pop("foreign", None)


def unfinished(run: Path, **settings: object) -> Path:
    """A folder as a training run leaves it that was stopped after its first checkpoint."""
    (run / "checkpoints" / "step-00000001").mkdir(parents=True)
    for name in ("state.json", "tensors.safetensors"):
        (run / "checkpoints" / "step-00000001" / name).write_text("{}")
    save_config(TrainConfig(**settings), run / "config.yaml")  # type: ignore[arg-type]
    return run


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("model", "os:system", "import os and call system"),
        ("model", ["crate_nano_patch2_8", "a.b:c"], "import a.b and call c"),
        ("architecture", "a.b:c", "import a.b and call c"),
        ("a", "a.b:c", "import a.b and call c"),
        ("data", "wds:https://host/x.tar", "open https://host/x.tar"),
        ("data", "wds:a.tar;gs://bucket/x.tar", "open gs://bucket/x.tar"),
        ("data", "wds:pipe:touch x", "open pipe:touch x"),
        ("scheduler", "tcp://host:8786", "connect to the Dask scheduler tcp://host:8786, which can run code here"),
        *(("model", spec, None) for spec in ("crate_nano_patch2_8", "timm:x", "local:a", "hf:a/b", "given:x", "tv:x")),
        *(("data", spec, None) for spec in ("digits", "hf:a/b", "wds:train-*.tar", "wds:hf://datasets/a/b/x.tar")),
        ("model", None, None),
        ("model", 3, None),
    ],
)
def test_what_a_setting_would_do(name: str, value: object, what: str | None) -> None:
    assert consequence(name, value) == what
    if what is not None:
        with pytest.raises(UnsafeFile, match=r"or open it within `unrolled.trust.trusting\(\)` if you trust whoever"):
            check(name, value, "config.yaml")
        with command_line([]), pytest.raises(UnsafeFile, match=r"line, or add --trust if you trust whoever made the"):
            check(name, value, "config.yaml")
        with trusting():
            check(name, value, "config.yaml")


def test_what_counts_as_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    require_typed("model", "a:b")  # no command line: the string is the program's own
    for tokens in (["eval", "a:b"], ["eval", "--model", "a:b"], ["eval", "--model=a:b"]):
        with command_line(tokens):
            check("model", "a:b", "config.yaml")
            require_typed("model", "a:b")
    with command_line(["eval", "a:bc", "--model=xa:b"]), pytest.raises(UnsafeFile):
        require_typed("model", "a:b")
    with command_line([], trusted=True):
        require_typed("model", "a:b")
    monkeypatch.setenv("UNROLLED_MODEL", "a:b")
    with command_line([]):
        require_typed("model", "a:b")


def test_a_stopped_run_that_names_code(foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = unfinished(foreign / "run", model="os:system", model_args={"command": f"touch {foreign / 'ran'}"})
    for where in ("run", "local:run"):
        assert cli.run(["eval", where]) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert "config.yaml: its model 'os:system' would import os and call system" in said
    assert not (foreign / "ran").exists()
    with pytest.raises(UnsafeFile):
        load_config(run / "config.yaml", TrainConfig)
    assert load_config(run / "config.yaml", TrainConfig, model="crate_nano_patch2_8").model == "crate_nano_patch2_8"


def test_weights_that_name_code(foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = foreign / "weights"
    weights.mkdir()
    (weights / "config.json").write_text(json.dumps({"architecture": "foreign:make", "model_args": {}}))
    for command in (["finetune", "--weights", "weights", *SHORT], ["eval", "weights"], ["trace", "local:weights"]):
        assert cli.run(command) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert "would import foreign and call make" in said
        assert "give foreign:make as the model and this folder as its --weights" in said
    assert not (foreign / "ran").exists()


def test_own_code_is_typed_replayed_and_trusted(foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["--model", "foreign:tiny", *SHORT]
    assert cli.run(["train", *typed, "--out", "run"]) == 0
    assert (foreign / "ran").exists()
    replay = ["train", "--config", "run/config.yaml", "--out", "again", "--quiet"]
    assert cli.run(replay) == 1
    assert "run/config.yaml: its model 'foreign:tiny' would import foreign" in capsys.readouterr().err
    assert cli.run([*replay, "--model", "foreign:tiny"]) == 0
    assert cli.run([*replay, "--trust", "--force"]) == 0
    assert cli.run(["train", *typed, "--out", "run", "--resume", "auto"]) == 0
    capsys.readouterr()
    for command in (["eval", "run", "--trust"], ["eval", "foreign:tiny", "--weights", "run"]):
        assert cli.run([*command, "--out", "scores", "--json", "--quiet"]) == 0
    first, second = capsys.readouterr().out.split("\n}\n")[:2]
    assert json.loads(first + "}")["loss"] == json.loads(second + "}")["loss"]


def test_no_file_trusts_itself(foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (foreign / "own.yaml").write_text("trust: true\nmodel: foreign:tiny\n")
    assert cli.run(["train", "--config", "own.yaml", *SHORT]) == 2
    assert "unknown key 'trust'" in capsys.readouterr().err
    assert not (foreign / "ran").exists()


def test_how_to_resume_names_the_code_again(foreign: Path) -> None:
    from unrolled.commands.train import saying_how_to_resume
    from unrolled.train import Interrupted

    for model, said in (("foreign:tiny", "--resume auto --model foreign:tiny"), ("crate_gpt_nano", "--resume auto")):
        with pytest.raises(Interrupted) as stop, saying_how_to_resume("train", Path("run"), model):
            raise Interrupted("stopped")
        assert str(stop.value).endswith(said)


def test_modules_of_the_working_folder_are_found_only_for_code_that_was_typed(foreign: Path) -> None:
    run = unfinished(foreign / "run", data="wds:none-*.tar")
    (run / "webdataset.py").write_text("import pathlib; pathlib.Path(__file__).with_name('ran').touch()\n")
    os.chdir(run)
    cli.run(["eval", "."])
    assert str(run) not in sys.path
    with pytest.raises(ModuleNotFoundError):
        __import__("foreign")


def test_python_m_does_not_look_into_the_working_folder(tmp_path: Path) -> None:
    import subprocess

    (tmp_path / "cyclopts.py").write_text("raise SystemExit('of the working folder')\n")
    done = subprocess.run(
        [sys.executable, "-m", "unrolled", "--version"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).resolve().parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_name_of_a_shard_is_a_name(foreign: Path) -> None:
    pytest.importorskip("webdataset")
    from unrolled.data import open_images
    from unrolled.data.shards import index_shards

    members = [
        (f"{n:03d}.{kind}", data) for n in range(4) for kind, data in (("png", plain()), ("cls", b"%d" % (n % 2)))
    ]
    tar(foreign / "pipe:touch ran #.tar", members)
    for pattern in ("wds:*.tar", "wds:[p]ipe*.tar"):
        assert open_images(pattern, "train").load(3)[1] == 1
    assert index_shards("*.tar") == {"labels": {"pipe:touch ran #.tar": [0, 1, 0, 1]}}
    assert not (foreign / "ran").exists()


def test_a_run_whose_data_are_an_address(foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unfinished(foreign / "run", data="wds:https://localhost:1/x.tar")
    assert cli.run(["eval", "run"]) == 1
    assert "would open https://localhost:1/x.tar" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["pretrained_cfg_overlay", "checkpoint_path", "trust_remote_code", "pretrained"])
def test_arguments_of_a_model_say_nothing_about_loading(name: str, foreign: Path) -> None:
    with pytest.raises(ValueError, match="is no argument of a model"):
        check_model_args({name: "x"})
    if name != "pretrained":
        with pytest.raises(ValueError, match="is no argument of a model"):
            resolve_model("crate_nano_patch2_8", **{name: "x"})
    for settings in (f"model_args: {{{name}: x}}", "model_args: [1]"):
        (foreign / "own.yaml").write_text(settings)
        assert cli.run(["trace", "crate_nano_patch2_8", "--config", "own.yaml"]) == 2


def test_a_hugging_face_folder_with_code_of_its_own(foreign: Path) -> None:
    pytest.importorskip("transformers")
    code = {"auto_map": {"AutoConfig": "foreign.Config", "AutoModel": "foreign.Model"}}
    for kind in ("nothing-like-this", "vit"):
        config = {"model_type": kind, "architectures": ["Model"], "hidden_size": 8, **code}
        (foreign / "config.json").write_text(json.dumps(config))
        if kind == "nothing-like-this":
            with pytest.raises(UnsafeFile, match="code of its own"):
                resolve_model(f"hf:{foreign}")
        else:
            resolve_model(
                f"hf:{foreign}", hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8
            )
    (foreign / "config.json").write_text(json.dumps({"model_type": "vit", "attn_implementation": "evil/kernel"}))
    attention = "what the file asks for"
    try:
        model: Any = resolve_model(f"local:{foreign}")
        attention = model.config._attn_implementation
    except UnsafeFile as error:
        refusal = str(error)
    # transformers 5.0 does not ask a file which attention to take
    assert attention in ("sdpa", "eager") or "evil/kernel, which is code" in refusal
    assert not (foreign / "ran").exists()


def test_a_sentence_transformer_with_code_of_its_own(foreign: Path) -> None:
    from unrolled.models.encoders import _check_modules

    for kind, refused in (("sentence_transformers.models.Transformer", False), ("foreign.make", True)):
        (foreign / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": kind}]))
        if refused:
            with pytest.raises(UnsafeFile, match=r"would import foreign\.make"):
                _check_modules(str(foreign))
        else:
            _check_modules(str(foreign))


@pytest.mark.parametrize("name", ["config.yaml", "report.html.part", "figures/curves.svg", "figures"])
def test_nothing_is_written_through_a_link(name: str, foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    precious = foreign / "elsewhere"
    precious.mkdir()
    (precious / "bashrc").write_text("precious")
    link = foreign / "out" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(precious if name == "figures" else precious / "bashrc")
    line = ["eval", "crate_nano_patch2_8", "--data", "digits", "--samples", "2", "--out", "out"]
    assert cli.run(line) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{name} is a link to" in said
    assert "remove the link, choose another --out" in said
    assert [path.name for path in precious.iterdir()] == ["bashrc"]
    assert (precious / "bashrc").read_text() == "precious"
    assert cli.run([*line, "--trust"]) == 0


def test_a_pipe_in_a_folder_to_write_to_is_not_waited_for(foreign: Path) -> None:
    out = foreign / "out"
    out.mkdir()
    os.mkfifo(out / "metrics.jsonl")
    with pytest.raises(UnsafeFile, match=r"metrics\.jsonl is a pipe or a device; remove it"), owned(out):
        pass


def test_links_within_a_folder_and_hidden_folders_are_no_danger(foreign: Path) -> None:
    out = foreign / "out"
    (out / ".venv").mkdir(parents=True)
    (out / ".venv" / "python").symlink_to("/usr/bin/env")
    (out / "newest").symlink_to("config.yaml")
    with owned(out):
        pass


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_a_lock_that_is_none(kind: str, foreign: Path) -> None:
    lock = foreign / ".lock"
    if kind == "folder":
        lock.mkdir()
    elif kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.symlink_to("bashrc")
    with pytest.raises(ValueError, match="not a lock; remove it"), owned(foreign):
        pass
