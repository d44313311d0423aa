"""What a study is: a question, a budgeted configuration, a function, and what counts as reproduced."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from unrolled.errors import MissingData
    from unrolled.report import Claim, Report

Budget = Literal["quick", "cpu", "gpu"]

QUICK_NOTICE = "Quick budget: checks that the study runs; too small to support any conclusion."
"""What every report of the `quick` budget opens with."""


@dataclass(kw_only=True)
class StudyConfig:
    """Base of every study's `Config`; a subclass lists in `budgets` what each budget changes of its defaults."""

    budgets: ClassVar[dict[Budget, dict[str, Any]]] = {}

    @classmethod
    def of_budget(cls, budget: Budget, **overrides: Any) -> Self:
        """The configuration of a budget: `quick` (to see that it runs), `cpu` (a laptop) or `gpu`.

        Raises:
            ValueError: no such budget.
        """
        if budget not in get_args(Budget):
            raise ValueError(f"budget={budget!r}: choose one of {', '.join(get_args(Budget))}")
        return cls(**{**cls.budgets.get(budget, {}), **overrides})

    @classmethod
    def parse(cls, given: Sequence[str]) -> dict[str, Any]:
        """The fields that texts `NAME=VALUE` set, for `of_budget`; of the same name the last counts.

        Args:
            given: names with `-` or `_`; values in YAML, several also as `a,b`.

        Raises:
            ValueError: a field there is not, or a value that is not of its type.
        """
        hints = get_type_hints(cls)
        known = {field.name: hints[field.name] for field in fields(cls)}
        found: dict[str, Any] = {}
        for text in given:
            spelled, equals, value = text.partition("=")
            name = spelled.strip().replace("-", "_")
            if not equals or name not in known:
                there = ", ".join(each.replace("_", "-") for each in known)
                raise ValueError(f"--set {text}: write NAME=VALUE with a setting of this study: {there}")
            try:
                found[name] = _typed(_yaml(value, known[name]), known[name])
            except ValueError as error:
                raise ValueError(f"--set {text}: {name.replace('_', '-')} must be {_words(known[name])}") from error
        return found


def data_missing(data: str, error: MissingData, *, flag: str = "--data-dir DIR") -> MissingData:
    """One sentence that a study's `data` are not there, why, and the flag that says where they are."""
    from unrolled.errors import MissingData

    first = error.__cause__ if isinstance(error.__cause__, MissingData) else error
    return MissingData(f"data_dir: {data} was not found ({str(first).removeprefix('data_dir: ')}); give {flag}")


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """A published statement with the range that counts as reproducing it; without a range nothing is judged."""

    statement: str
    source: str
    """Citation with the figure or table."""
    published: str
    """The source's value, as a reader wants to see it."""
    low: float | None = None
    high: float | None = None

    def judge(self, value: float, measured: str) -> Claim:
        """The claim beside `value`, shown as `measured`; a NaN is never a reproduction."""
        from unrolled.report import Claim

        verdict = None
        if self.low is not None or self.high is not None:
            verdict = (self.low is None or value >= self.low) and (self.high is None or value <= self.high)
        return Claim(
            statement=self.statement,
            source=self.source,
            published=self.published,
            measured=measured,
            reproduced=verdict,
        )


@dataclass(frozen=True, kw_only=True)
class Study:
    """A published claim that can be run."""

    name: str
    title: str
    citation: str
    config: type[StudyConfig]
    run: Callable[..., Report]
    """Called with the configuration, and optionally `on_progress`, which is given lines of text."""
    expectations: tuple[Expectation, ...] = ()

    def folder(self, config: StudyConfig) -> Path:
        """Where the report goes."""
        return Path(getattr(config, "out", Path("runs") / self.name))


def _yaml(text: str, hint: Any) -> Any:
    """Lists and texts in YAML for the values of `hint`; a path or name is taken as it stands."""
    if get_origin(hint) is not tuple:
        return text.strip()
    import yaml

    try:
        # this loader makes texts of all scalars: their type is the field's
        value = yaml.load(text, Loader=yaml.BaseLoader)
        return yaml.load(f"[{text}]", Loader=yaml.BaseLoader) if isinstance(value, str) else value
    except yaml.YAMLError as error:
        raise ValueError("not YAML") from error


def _typed(value: Any, hint: Any) -> Any:
    """`value`, of texts and lists of texts, as the type of a field."""
    origin, arguments = get_origin(hint), get_args(hint)
    if NoneType in arguments:
        if value in ("", "none", "null", "~"):
            return None
        return _typed(value, next(each for each in arguments if each is not NoneType))
    if origin is tuple:
        if not isinstance(value, list) or (arguments[-1] is not ... and len(value) != len(arguments)):
            raise ValueError("not a list of that length")
        each = [arguments[0]] * len(value) if arguments[-1] is ... else arguments
        return tuple(_typed(part, kind) for part, kind in zip(value, each, strict=True))
    if not isinstance(value, str) or not value:
        raise ValueError("not one value")
    if origin is Literal:
        if value not in arguments:
            raise ValueError("none of these")
        return value
    if hint is bool:
        if value.lower() not in ("true", "false"):
            raise ValueError("neither true nor false")
        return value.lower() == "true"
    if hint is float and not math.isfinite(float(value)):
        raise ValueError("not finite")
    return Path(value).expanduser() if hint is Path else hint(value)


def _words(hint: Any) -> str:
    """What values of a field's type are, for an error."""
    arguments = get_args(hint)
    if NoneType in arguments:
        return f"{_words(next(each for each in arguments if each is not NoneType))}, or none"
    if get_origin(hint) is tuple:
        if arguments[-1] is ...:
            return f"a list in YAML, each {_words(arguments[0])}"
        return f"[{', '.join(_words(each) for each in arguments)}]"
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a folder"}
    return names.get(hint, str(hint))
