"""No flag takes an infinite number or NaN, on the command line or in Python."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import pytest

from unrolled import cli
from unrolled.commands.options import whole
from unrolled.train.config import FinetuneConfig, kinds


def of_floats(hint: Any) -> bool:
    return hint is float or any(of_floats(inner) for inner in typing.get_args(hint))


def fields() -> list[tuple[type, str]]:
    return [
        (cls, item.name)
        for cls in (*kinds(), FinetuneConfig)
        for item in dataclasses.fields(cls)
        if of_floats(typing.get_type_hints(cls)[item.name])
    ]


@pytest.mark.parametrize(("cls", "name"), fields(), ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_no_setting_of_a_run_is_infinite(cls: Any, name: str, value: float) -> None:
    pair = "tuple" in str(typing.get_type_hints(cls)[name])
    config = cls(**{name: (0.5, value) if pair else value})
    with pytest.raises(ValueError, match=f"{name}={value} must be a finite number"):
        config.check()


def flags() -> list[tuple[str, str]]:
    found = []
    for verb in cli.VERBS.keys() - {"train", "pretrain", "finetune", "demo", "study"}:  # settings, see above
        for argument in cli.build([verb])[verb].assemble_argument_collection():
            if of_floats(argument.hint):
                found.append((verb, argument.name))
    return sorted(found)


@pytest.mark.parametrize(("verb", "flag"), flags())
@pytest.mark.parametrize("value", ["inf", "nan"])
def test_no_flag_is_infinite(verb: str, flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    needed = {"convert": ["x", "--out", "x"], "segment-eval": ["masks"]}.get(verb, ["x"])
    assert cli.run([verb, *needed, flag, value]) == 2
    assert "must be a finite number" in capsys.readouterr().err


@pytest.mark.parametrize("verb", sorted(cli.VERBS.keys() - {"demo", "study"}))
def test_no_whole_number_is_rounded(verb: str) -> None:
    """cyclopts takes 1.5 for 2."""
    for argument in cli.build([verb])[verb].assemble_argument_collection():
        if argument.hint in (int, int | None):
            assert argument.parameter.converter is whole, argument.name


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("1.5", "1.5 is no whole number"),
        ("x", "x is no whole number"),
        ("a.b", "a.b is no whole number"),
        ("9" * 30, f"{'9' * 30} is beyond 64 bits"),
    ],
)
def test_what_is_no_whole_number_is_said(value: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["train"], ["trace", "crate_nano_patch2_8"]):
        assert cli.run([*command, "--seed", value]) == 2
        assert f"--seed: {message}" in capsys.readouterr().err


def test_no_argument_of_a_model_is_infinite(capsys: pytest.CaptureFixture[str]) -> None:
    assert flags()
    for verb in ("trace", "extract"):
        assert cli.run([verb, "crate_nano_patch2_8", "--model-args.step-size", "inf"]) == 2
        assert "step_size=inf must be a finite number" in capsys.readouterr().err
