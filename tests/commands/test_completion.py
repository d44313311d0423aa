"""`unrolled completion`: what a shell answers to Tab, without starting Python or anything else."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from unrolled import cli
from unrolled.commands import completion as verb
from unrolled.commands.completion import script
from unrolled.studies import study_names

BASH = shutil.which("bash")
SHELLS = ("bash", "zsh", "fish", "powershell")


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    for shell in SHELLS:
        (folder / shell).write_text(script(shell), encoding="utf-8")  # type: ignore[arg-type]
    return folder


def tab(scripts: Path, *words: str) -> list[str]:
    """What bash offers for the last word, where no program can be found."""
    assert BASH is not None
    call = 'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _unrolled; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(
        [BASH, "--norc", "-c", call, str(scripts / "bash"), "unrolled", *words],
        env={"PATH": ""}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.skipif(BASH is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["ev"], ["eval"]),
        (["eval", "aot_nano_conv_patch4_32."], ["aot_nano_conv_patch4_32.cifar10"]),
        (["trace", "--model", "crate_mae_b"], ["crate_mae_base_patch16_224"]),
        (["align", "a.npy", "b.npy", "--metric", "cka", "--metric", "mut"], ["mutual_knn"]),
        (["train", "--data", "cif"], ["cifar10", "cifar100"]),
        (["train", "--task", ""], ["classify", "lm", "mlm"]),
        (["train", "--task", "lm", "--tok"], ["--tokenizer"]),
        (["pretrain", "--task", "s"], ["simdino"]),
        (["finetune", "--recipe", "crate_cifar10"], ["crate_cifar10_finetune"]),
        (["study", "mesa-o"], ["mesa-one-step"]),
        (["eval", "runs/nothing-of-that-name"], []),  # then the shell looks for files
    ],
)
def test_tab_in_bash(scripts: Path, words: list[str], offered: list[str]) -> None:
    assert sorted(tab(scripts, *words)) == offered


def test_every_verb_flag_and_study_is_in_every_script(scripts: Path) -> None:
    words = [*cli.VERBS, *study_names()]
    for name, each in cli.VERBS.items():
        for task in ("", *each.tasks) if name != "study" else ():
            app = cli.build([name, "--task", task] if task else [name])[name]
            words += [flag.name.lstrip("-") for flag in app.assemble_argument_collection() if flag.index is None]
    for shell in SHELLS:
        text = (scripts / shell).read_text(encoding="utf-8")
        assert not [word for word in words if word not in text], shell
    assert "-o default" in (scripts / "bash").read_text(encoding="utf-8")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_reads_its_script(shell: str, scripts: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    done = subprocess.run([shell, "-n", str(scripts / shell)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_it_is_installed_where_bash_looks(
    scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verb, "script", lambda shell: (scripts / shell).read_text(encoding="utf-8"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".bashrc").write_text("alias ll='ls -l'\n")
    for added in (True, False):  # the second time the line is there
        assert cli.run(["completion", "bash", "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["startup"] is added
        assert Path(answer["script"]).read_text(encoding="utf-8").startswith("# Bash completion for unrolled")
    startup = (tmp_path / ".bashrc").read_text()
    assert startup.startswith("alias ll='ls -l'\n")
    assert startup.count(answer["script"]) == startup.count('[ -f "') * 2 == 2


def test_with_a_file_nothing_else_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cli.run(["completion", "zsh", "--out", str(tmp_path / "file")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_shell_that_cannot_be_told_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cyclopts.completion import detect

    def unknown() -> str:
        raise detect.ShellDetectionError("?")

    monkeypatch.setattr(detect, "detect_shell", unknown)
    assert cli.run(["completion"]) == 2
    assert "shell: cannot be told from here; give bash, zsh, fish or powershell" in capsys.readouterr().err
