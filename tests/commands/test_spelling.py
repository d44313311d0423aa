"""What the library says of arguments is said of flags on the command line, and of arguments in Python."""

import pytest

from unrolled.cli import build
from unrolled.commands.spelling import arguments_of, as_flags


def said(message: str, *tokens: str) -> str:
    return as_flags(message, arguments_of(build(tokens), tokens), tokens)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("out='my run' already holds a run; give resume='auto', another out=, or force=True",
         "--out 'my run' already holds a run; give --resume auto, another --out, or --force"),
        ("epochs=0.0 must be positive", "--epochs 0.0 must be positive"),
        ("val_fraction=0 leaves nothing; hold out a share", "--val-fraction 0 leaves nothing; hold out a share"),
        ("data_dir: `folder` needs the folder", "--data-dir: `folder` needs the folder"),
        ("srr_layers=[0, 9]: the model has 4", "--srr-layers 0 9: the model has 4"),
        ("eval_samples=3: nothing is held out; give val_fraction, e.g. 0.1",
         "--eval-samples 3: nothing is held out; give --val-fraction, e.g. 0.1"),
        ("choose a strategy other than 'fsdp'", "choose a strategy other than 'fsdp'"),
        ("/a/data_dir/b.png: is damaged", "/a/data_dir/b.png: is damaged"),
        ("its model 'os:system' would import os", "its model 'os:system' would import os"),
        ("name='crate' is not known: did you mean 'mesanet'?", "--model crate is not known: did you mean 'mesanet'?"),
        ("optimizer='it\\'s'. is none", "--optimizer 'it'\"'\"'s'. is none"),
        ("width=3 is no flag here", "width=3 is no flag here"),
    ],
)  # fmt: skip
def test_arguments_are_named_as_flags(message: str, expected: str) -> None:
    assert said(message, "train") == expected


def test_what_was_given_by_its_place_is_named_without_dashes() -> None:
    assert said("model='crate_x' is not known", "eval", "crate_x") == "model crate_x is not known"
    assert said("model='crate_x' is not known", "eval", "--model", "crate_x") == "--model crate_x is not known"


def test_flags_of_one_study_are_its_own() -> None:
    assert said("seeds=[] must not be empty", "study", "mesa-depth").startswith("--seeds")
