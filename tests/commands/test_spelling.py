"""What the library says of arguments is said of flags on the command line, and of arguments in Python."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import unrolled
from unrolled.cli import build, in_flags
from unrolled.commands.spelling import arguments_of, as_flags
from unrolled.commands.verbs import VERBS
from unrolled.models.mapping import Options, find_heads


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
        ("leave its images out (unknown_classes='skip')", "leave its images out (--unknown-classes skip)"),
        ("give data='hf:o/n,label=a'", "give --data hf:o/n,label=a"),
        ("model_args={'img_size': 32, 'pre_norm': True} makes one",
         "--model-args.img-size 32 --model-args.pre-norm true makes one"),
        ("does not fit; give model_args={'num_classes': ...}", "does not fit; give --model-args.num-classes ..."),
    ],
)  # fmt: skip
def test_arguments_are_named_as_flags(message: str, expected: str) -> None:
    assert said(message, "train") == expected


def test_what_was_given_by_its_place_is_named_without_dashes() -> None:
    assert said("model='crate_x' is not known", "eval", "crate_x") == "model crate_x is not known"
    assert said("model='crate_x' is not known", "eval", "--model", "crate_x") == "--model crate_x is not known"


def test_flags_of_one_study_are_its_own() -> None:
    assert said("seeds=[] must not be empty", "study", "mesa-depth").startswith("--seeds")


def test_notes_begin_with_what_they_are_about() -> None:
    tokens = ["train"]
    app = build(tokens)
    note = "data: train 8 images; seen at 8 x 8, as image_size=8 says; give a smaller warmup_epochs"
    assert in_flags(note, app, tokens, headed=False) == (
        "data: train 8 images; seen at 8 x 8, as --image-size 8 says; give a smaller --warmup-epochs"
    )


def test_what_convert_needs_to_know_is_a_flag_of_its_own() -> None:
    with pytest.raises(ValueError, match="is not a published one") as error:
        find_heads(Options(), 48, 48, {})
    message = "--heads: the file does not tell, and width 48 is not a published one; give --heads"
    assert said(str(error.value), "convert", "a.pth", "b") == message


LIBRARY = ("alignment", "data", "explorer", "instruments", "layers", "models", "ops", "studies", "subjects", "tasks",
           "theory", "train", "weights")  # fmt: skip


PIPS = (
    "--dest",
    "--no-deps",
    "--only-binary",
    "--platform",
    "--python-version",
    "--disable-pip-version-check",
    "--quiet",
)
"""Flags of pip, which `make models` calls."""


def said_by(tree: ast.Module) -> Iterator[ast.Constant]:
    """The texts of a module that are no docstrings: of a statement by themselves."""
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
            yield node


@pytest.mark.parametrize("part", LIBRARY)
def test_the_library_speaks_of_arguments(part: str) -> None:
    """Flags are for the command line to say; a command in full is one in any language."""
    for path in sorted((Path(unrolled.__file__).parent / part).rglob("*.py")):
        tree = ast.parse(path.read_text())
        joined = {id(each): node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for each in node.values}
        for node in said_by(tree):
            if "--" not in node.value and "=..." not in node.value:
                continue
            whole = ast.unparse(joined.get(id(node), node))
            flags = re.findall(r"(?<![\w-])--[a-z][a-z-]+", re.sub(r"`unrolled [^`]*`", "", whole))
            if path.name == "offline.py":
                flags = [flag for flag in flags if flag not in PIPS]
            assert not flags or (path.name == "text.py" and "library_name" in whole), (path, flags)
            assert not re.search(r"\b[a-z_]+=\.\.\.", whole), (path, "dots would be glued to the flag")


@pytest.mark.parametrize(
    "tokens",
    [(name, *task) for name, verb in VERBS.items() for task in [(), *(("--task", each) for each in verb.tasks)]],
)
def test_help_speaks_of_flags(tokens: tuple[str, ...]) -> None:
    """A word in code that is the Python name of another flag is none, unless the flag has it as a value."""
    found = build(tokens)[tokens[0]].assemble_argument_collection(parse_docstring=True)
    names = {each.name.lstrip("-").replace("-", "_") for each in found if each.names}
    for each in found:
        words = set(re.findall(r"`([a-z_]+)`", each.parameter.help or "")) - set(each.get_choices() or ())
        assert not words & names, (each.name, words & names)
