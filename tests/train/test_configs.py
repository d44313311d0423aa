"""Every kind of run has its own settings and no others; files of earlier versions, which had all, are still read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import yaml

import unrolled.train
from unrolled import cli
from unrolled.train import DistillConfig, FinetuneConfig, MaskedConfig, TextConfig, TrainConfig, fit, load_config
from unrolled.train.config import HEADINGS, RunConfig, heading_of, kinds
from unrolled.train.config_files import SETTINGS, as_plain, save_config
from unrolled.train.state import check_same

COMMANDS: dict[type[RunConfig], list[str]] = {
    TrainConfig: ["train"],
    TextConfig: ["train", "--task", "mlm"],
    FinetuneConfig: ["finetune"],
    MaskedConfig: ["pretrain"],
    DistillConfig: ["pretrain", "--task", "simdino"],
}
KINDS = pytest.mark.parametrize("kind", COMMANDS, ids=lambda kind: kind.__name__)
ONLY = {
    "classes": (
        {"mixup", "cutmix", "srr_weight", "orthogonality_weight", "teacher", "align_weight", "distil_weight"},
        {TrainConfig, FinetuneConfig},
    ),
    "images": ({"image_size", "val_fraction", "workers", "on_error", "weights"}, set(COMMANDS) - {TextConfig}),
    "augmented images": ({"augment", "crop_scale", "hflip"}, {TrainConfig, FinetuneConfig, MaskedConfig}),
    "texts": ({"tokenizer", "length", "mask_share", "held_out"}, {TextConfig}),
    "masks": ({"mask_ratio", "norm_pix_loss"}, {MaskedConfig}),
    "views": ({"rate_weight", "teacher_momentum", "local_crops"}, {DistillConfig}),
}


def earlier(config: RunConfig, **changes: Any) -> dict[str, Any]:
    """The settings of a run as the version before wrote them: those of all kinds of runs."""
    values: dict[str, Any] = {}
    for kind in (*kinds(), type(config)):
        values |= as_plain(kind())
    return {**values, **as_plain(config), **changes}


@KINDS
def test_a_choice_that_is_none_is_named_with_those_there_are(kind: type[RunConfig]) -> None:
    start = {"weights": Path("weights")} if kind is FinetuneConfig else {}
    choices = {name: get_args(hint) for name, hint in get_type_hints(kind).items() if get_origin(hint) is Literal}
    assert {"strategy", "precision", "accelerator"} <= choices.keys()
    for name, allowed in choices.items():
        with pytest.raises(ValueError, match=rf"{name}='no such'.*{allowed[-1] if name != 'task' else ''}"):
            kind(**{name: "no such"}, **start).check()
    if "fsdp" not in choices["strategy"]:
        with pytest.raises(ValueError, match=r"strategy='fsdp' must be 'auto' or 'ddp' with task="):
            kind(strategy="fsdp").check()


@KINDS
def test_a_verb_shows_the_flags_of_its_task_alone(
    kind: type[RunConfig], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.run([*COMMANDS[kind], "--help"]) == 0
    words = capsys.readouterr().out.split()
    listed = words[words.index("Model") :]
    order = ["--task", "--model", "--model-args", *(["--weights"] if "--weights" in listed else []), "--data"]
    order = order[1:] if kind is FinetuneConfig else order  # where there is only one task
    assert list(dict.fromkeys(word for word in listed if word in order)) == order
    for what, (names, having) in ONLY.items():
        shown = {name for name in names if f"--{name.replace('_', '-')}" in words}
        assert shown == (names if kind in having else set()), what


@KINDS
def test_every_setting_stands_under_a_heading(kind: type[RunConfig]) -> None:
    assert {heading_of(kind, item.name) for item in dataclasses.fields(kind)} <= set(HEADINGS)
    order = [HEADINGS.index(str(heading_of(kind, name))) for name in as_plain(kind())]
    assert order == sorted(order), "config.yaml is in the order of --help"


@KINDS
def test_the_flags_of_another_task_are_unknown(kind: type[RunConfig], capsys: pytest.CaptureFixture[str]) -> None:
    own = {item.name for item in dataclasses.fields(kind)}
    flag, tasks = ("--mask-ratio", "mae") if "mask_ratio" not in own else ("--tokenizer", "lm or mlm")
    assert cli.run([*COMMANDS[kind], flag, "1"]) == 2
    said = f"error: {flag}: is a flag of other runs; add --task {tasks}, or leave it out\n"
    assert said == capsys.readouterr().err


@pytest.mark.parametrize("how", ["flag", "joined", "environment", "file", "two files", "environment over file"])
def test_the_task_may_stand_wherever_settings_do(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for task in ("lm", "classify"):
        (tmp_path / f"{task}.yaml").write_text(f"task: {task}\n")
    text, images = (["--config", str(tmp_path / f"{task}.yaml")] for task in ("lm", "classify"))
    if "environment" in how:
        monkeypatch.setenv("UNROLLED_TASK", "lm")
    flags = {
        "flag": ["--task", "lm"],
        "joined": ["--task=lm"],
        "environment": [],
        "file": text,
        "two files": [*images, *text],
        "environment over file": images,
    }[how]
    assert cli.run(["train", *flags, "--length", "0"]) == 2
    assert "--length 0 must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            TrainConfig(task="lm"),
            "TrainConfig is for 'classify'; such a run has a configuration of its own, TextConfig",
        ),
        (TextConfig(task="classify"), "TextConfig is for 'lm' or 'mlm'; .* TrainConfig"),
        (MaskedConfig(task="simdino"), "MaskedConfig is for 'mae'; .* DistillConfig"),
        (TrainConfig(task="clasify"), "task='clasify': TrainConfig is for 'classify'$"),  # type: ignore[arg-type]
    ],
)
def test_a_task_with_the_configuration_of_another_is_refused(config: RunConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(config)


@pytest.mark.parametrize("gone", ["fit_text", "pretrain", "finetune", "PretrainConfig", "LanguageResult"])
def test_names_that_are_gone_say_what_to_use(gone: str) -> None:
    with pytest.raises(ImportError, match=f"unrolled.train.{gone} is gone; use "):
        getattr(unrolled.train, gone)


# --- files


@KINDS
def test_the_kind_of_a_run_is_read_off_its_file(kind: type[RunConfig], tmp_path: Path) -> None:
    save_config(kind(seed=3), tmp_path / "config.yaml")
    again = load_config(tmp_path / "config.yaml")
    assert isinstance(again, TrainConfig if kind is FinetuneConfig else kind)
    assert as_plain(again) == as_plain(kind(seed=3))


@KINDS
def test_a_file_of_the_version_before_is_read(
    kind: type[RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = earlier(kind(seed=3))
    if kind is TextConfig:
        values["eval_every"] = 1.0  # epochs
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    assert values.keys() >= SETTINGS - {"steps"}
    assert load_config(tmp_path / "config.yaml", kind) == kind(seed=3)
    from unrolled.commands import pretrain, train

    seen: list[RunConfig] = []
    for module in (train, pretrain):
        monkeypatch.setattr(module, "run_training", lambda _, config, **__: seen.append(config))
    assert cli.run([COMMANDS[kind][0], "--config", str(tmp_path / "config.yaml")]) == 0
    assert seen == [kind(seed=3)]


@KINDS
def test_a_run_of_the_version_before_goes_on_unless_it_was_another(kind: type[RunConfig], tmp_path: Path) -> None:
    config = kind(seed=3)
    elsewhere = next(name for name in ("mask_ratio", "length") if name not in as_plain(config))
    then = earlier(config, **{elsewhere: 0.3})  # which nobody looked at
    if kind is TextConfig:
        then["eval_every"] = 1.0  # epochs
    check_same(config, then, tmp_path)
    with pytest.raises(ValueError, match=r"lr: 0\.5 -> "):
        check_same(config, {**then, "lr": 0.5}, tmp_path)


def test_epochs_may_differ_where_steps_say_how_long_a_run_is(tmp_path: Path) -> None:
    config = TrainConfig(steps=9, warmup_steps=0)
    check_same(config, as_plain(TrainConfig(steps=9, warmup_steps=0, epochs=3, warmup_epochs=1)), tmp_path)
    with pytest.raises(ValueError, match="steps: None -> 9"):
        check_same(config, as_plain(TrainConfig()), tmp_path)
    with pytest.raises(ValueError, match=r"epochs: 3 -> 30\.0"):
        check_same(TrainConfig(warmup_steps=0), as_plain(TrainConfig(epochs=3, warmup_steps=0)), tmp_path)


def test_validations_that_were_counted_in_other_epochs_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"eval_every: '2\.0 epochs' -> 250"):
        check_same(TextConfig(eval_every=250), earlier(TextConfig(), eval_every=2.0), tmp_path)


def test_a_setting_of_another_kind_of_run_is_refused_in_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("tokenizer: characters\n")
    message = r"config.yaml: tokenizer: is a setting of other runs \(task lm, mlm\); leave it out"
    with pytest.raises(ValueError, match=message):
        load_config(tmp_path / "config.yaml", TrainConfig)
    assert cli.run(["train", "--config", str(tmp_path / "config.yaml")]) == 2
    assert "tokenizer: is a setting of other runs (task lm, mlm)" in capsys.readouterr().err
