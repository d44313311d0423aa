"""Where a verb's settings come from: defaults < recipe < YAML files < `UNROLLED_*` variables < flags.

Each source fills only what the stronger ones left open, so they are applied strongest first.
"""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import CycloptsError, Token
from cyclopts.config import Dict, Env

from unrolled.errors import CorruptFile, MissingData
from unrolled.harness import Settings
from unrolled.reading import read_settings
from unrolled.train.config_files import of_this_kind, recipe, recipes
from unrolled.trust import check, check_model_args

if TYPE_CHECKING:
    from cyclopts import App, Argument, ArgumentCollection

ENV_PREFIX = "UNROLLED_"


# verb -> keys of files that it wrote when it was two verbs in one -> what they are called now; "": not its own
_FORMER = {
    "segment": dict.fromkeys(("eval", "measure", "confidence", "data_dir", "limit"), ""),
    "segment-eval": {"eval": "data", **dict.fromkeys(("images", "method", "refine", "frames"), "")},
}


def layered(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill what the flags left open from the environment, then the YAML files, then the recipe."""
    model_args = arguments.get("--model-args", None)
    flags = _take_tokens(model_args)
    Env(ENV_PREFIX, command=False, show=False)(app, commands, arguments)
    files = [*reversed(_given(arguments, "--config")), *(str(recipe(name)) for name in _given(arguments, "--recipe"))]
    layers = [(file, read_yaml(file, arguments, commands[0] if commands else "")) for file in files]
    for _, layer in layers:
        layer.pop("force", None)  # what is in a folder is thrown away only by who types it
    if model_args is not None:
        _merge_model_args(model_args, [layer.pop("model_args", None) for _, layer in layers], flags)
    for source, layer in layers:
        for argument in arguments:
            if not argument.tokens and (name := _spelled(argument)) in layer:  # else a stronger source has decided
                check(name, layer[name], source)
        Dict(layer, source=source, use_commands_as_keys=False)(app, commands, arguments)


def read_yaml(path: str, arguments: ArgumentCollection, verb: str) -> Settings:
    """The mapping in a YAML file, every key checked against the verb's flags and spelled with underscores."""
    try:
        data = read_settings(Path(path).expanduser())
    except MissingData as error:
        raise CycloptsError(msg=f"--config: there is no file {path}") from error
    except (OSError, CorruptFile) as error:
        raise CycloptsError(msg=f"--config: {error}") from error
    known = {_spelled(argument) for argument in arguments if argument.parse} - {"config", "recipe"}
    former = _FORMER.get(verb, {})
    settings = {key.replace("-", "_"): value for key, value in data.items()}
    if verb == "segment" and settings.get("eval"):
        raise CycloptsError(msg=f"{path} is of annotated images: unrolled segment-eval --config {path}")
    settings = {former.get(key) or key: value for key, value in settings.items() if former.get(key, key)}
    if "task" in known:
        settings = of_this_kind(settings, known, path)
    check_model_args(settings.get("model_args") or {}, f"model_args in {path}")
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=1)
            raise CycloptsError(msg=f"unknown key {key!r} in {path}." + (f" Did you mean {near[0]!r}?" if near else ""))
    return settings


def asked_for(name: str, tokens: Sequence[str]) -> str | None:
    """What a setting is going to be, before it is known which flags there are; None if nothing says so.

    Files that cannot be read are passed over: `layered` complains of them.
    """

    def of_flag(flag: str) -> list[str]:
        pairs = [value for token, value in pairwise(tokens) if token == flag]
        return [*pairs, *(token.partition("=")[2] for token in tokens if token.startswith(f"{flag}="))]

    values: list[Any] = [*reversed(of_flag(f"--{name}")), os.environ.get(ENV_PREFIX + name.upper())]
    known = recipes()
    files: list[str | Path] = [
        *reversed(of_flag("--config")),
        *(known[each] for each in of_flag("--recipe") if each in known),
    ]
    for file in files:
        with contextlib.suppress(OSError, ValueError):
            values.append(read_settings(Path(file).expanduser()).get(name))
    return next((str(value) for value in values if value is not None), None)


def _spelled(argument: Argument) -> str:
    """The name of a setting as files spell it."""
    return argument.name.lstrip("-").replace("-", "_")


def did_you_mean(name: str, known: list[str]) -> str:
    """` Did you mean a or b?`, or an empty string if nothing is near."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def literal(text: str) -> Any:
    """What a person means by the text of a flag: a number, true/false, none, a list or the text itself."""
    import yaml

    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _given(arguments: ArgumentCollection, name: str) -> list[str]:
    argument = arguments.get(name, None)
    return [token.value for token in argument.tokens] if argument is not None else []


def _take_tokens(argument: Argument | None) -> list[Token]:
    tokens = [] if argument is None else list(argument.tokens)
    if argument is not None:
        argument.tokens.clear()
    return tokens


def _merge_model_args(argument: Argument, layers: list[Settings | None], flags: list[Token]) -> None:
    """Make one typed mapping of `--model-args`: cyclopts would let any flag hide the whole mapping of a file."""
    merged: Settings = {}
    for layer in reversed(layers):
        for key, value in (layer or {}).items():
            merged[str(key).replace("-", "_")] = literal(value) if isinstance(value, str) else value
    for token in _take_tokens(argument) + flags:  # the environment's, then the flags'
        if len(token.keys) != 1:
            example = "write --model-args.NAME VALUE, for example --model-args.step-size 0.2"
            raise CycloptsError(msg=f"{token.keyword}: {example}")
        merged[token.keys[0].replace("-", "_")] = literal(token.value)
    check_model_args(merged, "--model-args")
    if merged:
        argument.append(Token(keyword="--model-args", source="merged", implicit_value=merged))
