"""The flags of a verb, made from a dataclass: a field is a flag, its docstring the help, its default the default."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, TypeVar, get_args, get_origin, get_type_hints

from cyclopts import CoercionError, Group, Parameter, Token, convert

from unrolled.errors import check_finite
from unrolled.harness import JsonFlags, QuietFlags, Settings, flags_in_order
from unrolled.train.config import HEADINGS, RunConfig

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
AsJson = Annotated[bool, Parameter(name="--json", negative="", show_default=False, help="Print JSON on stdout.")]
Quiet = Annotated[bool, Parameter(name="--quiet", negative="", show_default=False, help="No progress on stderr.")]
REPEATED = Parameter(consume_multiple=False)  # `--metric a --metric b`, so that an argument may follow
SWITCH = Parameter(negative="", show_default=False)
_ONE_WAY = ("json", "pretrained", "quiet", "refine")  # switches that are off unless they are given

_HEADINGS = (*HEADINGS[:2], "Features", *HEADINGS[2:])  # as classes of flags name them, in the order of `--help`

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def verb(function: F) -> F:
    """The verb whose flags are the fields of the dataclass that `function` takes first; `--config` is added."""
    config = next(iter(get_type_hints(function).values()))
    flags = flags_of(config)
    required = any(item.default is item.default_factory for item in dataclasses.fields(config))  # both are missing

    def run(options: Any = None, **others: Any) -> Any:
        others.pop("config", None)  # its files have been read already
        return function(as_config(config, flags() if options is None else options), **others)

    parameters = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    first = inspect.Parameter(
        "options", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Annotated[flags, Parameter(name="*")],
        default=inspect.Parameter.empty if required else flags(),
    )  # fmt: skip
    files = inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, annotation=ConfigFiles, default=())
    run.__signature__ = inspect.Signature([first, *parameters, files])  # type: ignore[attr-defined]
    run.__name__, run.__doc__, run.__module__ = function.__name__, function.__doc__, function.__module__
    run.__annotations__ = {each.name: each.annotation for each in (first, *parameters, files)}
    return run  # type: ignore[return-value]


def flags_of(config: type[T]) -> type[T]:
    """A dataclass with the fields of a configuration, each with its help and the heading `--help` lists it under.

    A class has a `heading` for the fields that it declares; what has only one value is not shown.
    """
    hints = get_type_hints(config, include_extras=True)
    docs = _field_docs(config)
    specs: list[tuple[str, Any, Any]] = []
    in_order = dataclasses.fields(config) if issubclass(config, RunConfig) else flags_in_order(config)
    for item in in_order:  # blocks of settings of a run extend others: what they add stands behind
        hint, *metadata = (
            get_args(hints[item.name]) if get_origin(hints[item.name]) is Annotated else (hints[item.name],)
        )
        choice = get_origin(hint) is not Literal or len(get_args(hint)) > 1
        parameter = Parameter(
            negative_iterable=(), consume_multiple=True, validator=finite, help=docs.get(item.name), show=choice
        )
        metadata += [Parameter(converter=whole)] if hint in (int, int | None) else []
        metadata += [] if (group := _group(config, item)) is None else [Parameter(group=group)]
        metadata += [SWITCH] if item.name in _ONE_WAY and issubclass(config, JsonFlags | QuietFlags) else []
        default = dataclasses.field(default=item.default, default_factory=item.default_factory, kw_only=item.kw_only)  # type: ignore[call-overload]
        specs.append((item.name, Annotated[(hint, parameter, *metadata)], default))  # type: ignore[valid-type]
    flags = dataclasses.make_dataclass(config.__name__, specs)
    flags.__module__ = config.__module__  # Python 3.11 says "types", which cyclopts takes for a builtin
    return flags


def _group(config: type[Any], item: dataclasses.Field[Any]) -> Group | None:
    """The heading of the class that declared a field first; arguments stand with what is the verb's own."""
    first = [each for each in config.__mro__ if item.name in vars(each).get("__annotations__", ())][-1]
    heading = vars(first).get("heading") if item.kw_only else None
    return None if heading is None else Group(heading, sort_key=_HEADINGS.index(heading))


def open_flags_of(config: type[Any], without: Sequence[str] = ()) -> type[Any]:
    """A dataclass with the fields of a configuration, all None until a flag sets them; help shows the real defaults.

    So a verb can tell what was given from what was not, and put a preset below it: see `given`.
    """
    hints = get_type_hints(config, include_extras=True)
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


def given(flags: Any) -> Settings:
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


def whole(hint: Any, tokens: Sequence[Token]) -> int | None:
    """The converter of flags that are whole numbers: cyclopts rounds 1.5 to 2, and torch takes no more than 64 bits."""
    (text,) = (token.value for token in tokens)
    try:
        if "." in text and not float(text).is_integer():
            raise ValueError
        value: int | None = convert(hint, [text])
    except (CoercionError, ValueError) as error:  # cyclopts' own would not name the flag: it is of the text alone
        raise ValueError(f"{text} is no whole number") from error
    if value is not None and not -(2**63) <= value < 2**63:
        raise ValueError(f"{text} is beyond 64 bits")
    return value


def finite(_: Any, value: Any) -> None:
    """The validator of every flag."""
    check_finite(value, "value")


def check_counts(least: int = 1, **given: int | None) -> None:
    """Refuse flags that are below `least`; None is a flag that was not given.

    Raises:
        ValueError: naming the first of them.
    """
    for name, value in given.items():
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} {value}: give at least {least}")


def shown_default(value: Any) -> str | None:
    """A default as one would type it, for `--help`: `a b` of several values, and nothing of none."""
    if value is None or value in ((), [], {}):
        return None
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
