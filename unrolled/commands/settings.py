"""Where a verb's settings come from: defaults < recipe < YAML files < `UNROLLED_*` variables < flags.

Each source fills only what the stronger ones left open, so they are applied strongest first.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import inspect
import os
import textwrap
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, TypeVar, get_args, get_origin, get_type_hints

from cyclopts import CycloptsError, Group, Parameter, Token
from cyclopts.config import Dict, Env

from unrolled.errors import CorruptFile, MissingData, check_finite
from unrolled.reading import read_settings
from unrolled.train.config import HEADINGS, heading_of
from unrolled.train.config_files import of_this_kind, recipe, recipes
from unrolled.trust import check, check_model_args

if TYPE_CHECKING:
    from cyclopts import App, Argument, ArgumentCollection

ENV_PREFIX = "UNROLLED_"

ConfigFiles = Annotated[
    tuple[Path, ...],
    Parameter(
        name="--config",
        negative="",
        consume_multiple=False,
        show_default=False,
        help="YAML file of settings, such as the config.yaml of a run; may be repeated, the last one wins.",
    ),
]
RecipeName = Annotated[
    str | None, Parameter(name="--recipe", help="Start from a shipped recipe, below every other setting.")
]
SEVERAL = Parameter(negative="", consume_multiple=True)  # `--layers a b c`
AsJson = Annotated[bool, Parameter(name="--json", negative="", show_default=False, help="Print JSON on stdout.")]
Quiet = Annotated[bool, Parameter(name="--quiet", negative="", show_default=False, help="No progress on stderr.")]
ModelArgs = Annotated[
    dict[str, Any] | None,
    Parameter(name="--model-args", help="The model's own arguments, e.g. `--model-args.step-size 0.2`."),
]
Pretrained = Annotated[
    bool,
    Parameter(
        name="--pretrained",
        negative="",
        show_default=False,
        help="Load the weights that timm has for the name (downloaded if need be); folders and hf: come with theirs.",
    ),
]

T = TypeVar("T")


def flags_of(config: type[T]) -> type[T]:
    """A subclass of a configuration dataclass whose fields carry the heading `--help` lists them under: that of the
    class they come from."""
    hints: dict[str, Any] = get_type_hints(config, include_extras=True)
    specs: list[tuple[str, Any, Any]] = []
    for item in dataclasses.fields(config):  # type: ignore[arg-type]
        heading = heading_of(config, item.name)
        group = None if heading is None else Group(heading, sort_key=HEADINGS.index(heading))
        choice = get_origin(hints[item.name]) is not Literal or len(get_args(hints[item.name])) > 1
        parameter = Parameter(negative_iterable=(), consume_multiple=True, group=group, show=choice)
        default = dataclasses.field(default=item.default, default_factory=item.default_factory)  # type: ignore[call-overload]
        annotated: Any = Annotated[hints[item.name], parameter]  # type: ignore[valid-type,name-defined]
        specs.append((item.name, annotated, default))
    flags = dataclasses.make_dataclass(config.__name__, specs, bases=(config,), kw_only=True)
    flags.__module__ = config.__module__  # Python 3.11 says "types", which cyclopts takes for a builtin
    return flags


def open_flags_of(config: type[Any], without: Sequence[str] = ()) -> type[Any]:
    """A dataclass with the fields of a configuration, all None until a flag sets them; help shows the real defaults.

    So a verb can tell what was given from what was not, and put a preset below it: see `given`.
    """
    hints: dict[str, Any] = get_type_hints(config, include_extras=True)
    specs: list[tuple[str, Any, Any]] = []
    docs = _field_docs(config)
    for item in dataclasses.fields(config):
        if item.name in without:
            continue
        default = item.default_factory() if callable(item.default_factory) else item.default
        parameter = Parameter(
            negative_iterable=(),
            negative="" if hints[item.name] is bool else None,
            consume_multiple=True,
            show_default=partial(_shown, default) if _shown(default) else False,
            help=docs.get(item.name),
        )
        hint: Any = Annotated[Optional[hints[item.name]], parameter]  # noqa: UP045 (a type that is made at run time)
        specs.append((item.name, hint, dataclasses.field(default=None)))
    flags = dataclasses.make_dataclass(f"{config.__name__}Flags", specs, kw_only=True)
    flags.__module__ = config.__module__
    return flags


def _shown(default: Any, _: Any = None) -> str:
    nested = isinstance(default, tuple) and all(isinstance(part, tuple) for part in default)
    return shown_default(tuple(value for part in default for value in part) if nested else default) or ""


def given(flags: Any) -> dict[str, Any]:
    """What was set of an instance of `open_flags_of(...)`."""
    values = ((item.name, getattr(flags, item.name)) for item in dataclasses.fields(flags))
    return {name: value for name, value in values if value is not None}


def _field_docs(config: type[Any]) -> dict[str, str]:
    """The text below each field, of a class and of those it is made from."""
    docs: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        if not dataclasses.is_dataclass(cls):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in pairwise(body.body):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                docs[field.target.id] = inspect.cleandoc(str(text.value.value))
    return docs


def as_config(config: type[T], flags: T) -> T:
    """The plain configuration with the values of `flags`, an instance of `flags_of(config)`."""
    return config(**{item.name: getattr(flags, item.name) for item in dataclasses.fields(config)})  # type: ignore[arg-type]


def layered(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill what the flags left open from the environment, then the YAML files, then the recipe."""
    model_args = arguments.get("--model-args", None)
    flags = _take_tokens(model_args)
    Env(ENV_PREFIX, command=False, show=False)(app, commands, arguments)
    files = [*reversed(_given(arguments, "--config")), *(str(recipe(name)) for name in _given(arguments, "--recipe"))]
    layers = [(file, read_yaml(file, arguments)) for file in files]
    if model_args is not None:
        _merge_model_args(model_args, [layer.pop("model_args", None) for _, layer in layers], flags)
    for source, layer in layers:
        for argument in arguments:
            if not argument.tokens and (name := _spelled(argument)) in layer:  # else a stronger source has decided
                check(name, layer[name], source)
        Dict(layer, source=source, use_commands_as_keys=False)(app, commands, arguments)


def read_yaml(path: str, arguments: ArgumentCollection) -> dict[str, Any]:
    """The mapping in a YAML file, every key checked against the verb's flags and spelled with underscores."""
    try:
        data = read_settings(Path(path).expanduser())
    except MissingData as error:
        raise CycloptsError(msg=f"--config: there is no file {path}") from error
    except (OSError, CorruptFile) as error:
        raise CycloptsError(msg=f"--config: {error}") from error
    known = {_spelled(argument) for argument in arguments if argument.parse} - {"config", "recipe"}
    settings = {key.replace("-", "_"): value for key, value in data.items()}
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


def finite(_: Any, value: Any) -> None:
    """The validator of every flag."""
    check_finite(value, "value")


def shown_default(value: Any) -> str | None:
    """A default as one would type it, for `--help`: `a b` of several values, and nothing of none."""
    if value is None or value in ((), [], {}):
        return None
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


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


def _merge_model_args(argument: Argument, layers: list[dict[str, Any] | None], flags: list[Token]) -> None:
    """Make one typed mapping of `--model-args`: cyclopts would let any flag hide the whole mapping of a file."""
    merged: dict[str, Any] = {}
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
