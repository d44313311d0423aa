"""Configurations of runs as files: recipes, the `config.yaml` of a run folder, and files of earlier versions.

This module imports nothing heavy, like `config.py`.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from unrolled.errors import CorruptFile, suggestion
from unrolled.train.config import HEADINGS, RunConfig, TrainConfig, heading_of, kinds
from unrolled.trust import check_model_args, check_settings

C = TypeVar("C", bound=RunConfig)


def recipes() -> dict[str, Path]:
    """The recipes that ship with the package: name -> YAML file."""
    folder = Path(__file__).resolve().parents[1] / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def recipe(name: str) -> Path:
    """The file of a shipped recipe.

    Raises:
        ValueError: no such recipe; the nearest name is suggested.
    """
    known = recipes()
    if name not in known:
        raise ValueError(f"recipe {name!r} is not known; {suggestion(name, known)}")
    return known[name]


@overload
def load_config(path: Path | str | None, cls: type[C], **overrides: Any) -> C: ...
@overload
def load_config(path: Path | str | None, cls: None = None, **overrides: Any) -> RunConfig: ...
def load_config(path: Path | str | None, cls: type[RunConfig] | None = None, **overrides: Any) -> RunConfig:
    """Read a flat YAML file of settings; `overrides` win over the file, the file over the defaults.

    Args:
        path: a YAML file, e.g. `recipe("digits")` or a run folder's `config.yaml`; None: defaults and overrides.
        cls: of the configuration, e.g. `FinetuneConfig`; default: that of the `task`, without one `TrainConfig`.
        overrides: field values.

    Raises:
        ValueError: an unknown key (the nearest one is suggested), or a value of the wrong type.
        UnsafeFile: the file names code, and nobody said to trust it; see `unrolled.trust`.
        CorruptFile: no file of settings.
        MissingData: no such file.
    """
    from unrolled.reading import read_settings

    values = {} if path is None else read_settings(path)
    check_settings({name: value for name, value in values.items() if name not in overrides}, str(path))
    if cls is None:
        task = overrides.get("task", values.get("task"))
        cls = next((kind for kind in kinds() if task in kind.tasks), TrainConfig)
    hints = typing.get_type_hints(cls)
    known = _names(cls)
    values = of_this_kind({name: value for name, value in values.items() if name not in overrides}, known, str(path))
    result: dict[str, Any] = {}
    for where, given in ((str(path), values), ("overrides", overrides)):
        for name, value in given.items():
            if name not in known:
                raise ValueError(f"{where}: unknown key {name!r}; {suggestion(str(name), known)}")
            try:
                result[name] = _coerce(value, hints[name])
            except (TypeError, ValueError) as error:
                raise ValueError(f"{where}: {name}: {error}") from error
    return cls(**result)


def of_this_kind(values: Mapping[str, Any], known: Collection[str], where: str) -> dict[str, Any]:
    """What a file says, without settings that only other kinds of runs have: earlier versions wrote those too.

    Args:
        values: what the file says.
        known: names of this kind's settings.
        where: the file, for messages.

    Raises:
        ValueError: the file is none of an earlier version and has such a setting.
    """
    values = as_now(values, known)
    for name in values:
        if name not in known and (tasks := tasks_with(name)):
            raise ValueError(f"{where}: {name}: is a setting of other runs (task {', '.join(tasks)}); leave it out")
    return dict(values)


def tasks_with(name: str) -> list[str]:
    """The tasks whose runs have a setting."""
    return [task for kind in kinds() if name in _names(kind) for task in kind.tasks]


def as_now(values: Mapping[str, Any], known: Collection[str]) -> Mapping[str, Any]:
    """The settings that an earlier version wrote, of one kind of run and as this version counts them.

    Earlier versions had one configuration for images and text, wrote all of it, and looked only at what concerned the
    run. Validations of a run on text came every so many epochs; now it is steps.
    """
    if not {"augment", "tokenizer"} <= values.keys():
        return values
    now = {name: value for name, value in values.items() if name in known or name not in SETTINGS}
    if "tokenizer" in known and "eval_every" in now:
        now["eval_every"] = None if now["eval_every"] == 1 else f"{now['eval_every']} epochs"
    return now


def run_values(settings: dict[str, Any], where: Path) -> dict[str, Any]:
    """The settings of a run that other commands use, checked: they are as in `TrainConfig` or of another verb.

    Raises:
        CorruptFile: one is of another type.
    """
    hints = typing.get_type_hints(TrainConfig)
    for name in ("model", "data", "data_dir", "image_size", "val_fraction", "split_seed"):
        if settings.get(name) is not None:
            try:
                _coerce(settings[name], hints[name])
            except (TypeError, ValueError) as error:
                raise CorruptFile(f"{where}: {name}: {error}") from error
    check_model_args(settings.get("model_args") or {}, f"{where}: model_args")
    if not isinstance(settings.get("task", ""), str):
        raise CorruptFile(f"{where}: task: expected str, got {settings['task']!r}")
    return settings


def save_config(config: RunConfig, path: Path | str) -> None:
    """Write `config` as YAML that `load_config` reads back to an equal record."""
    import yaml

    Path(path).write_text(yaml.safe_dump(as_plain(config), sort_keys=False), encoding="utf-8")


def as_plain(config: RunConfig) -> dict[str, Any]:
    """`config` as JSON-able values, block by block: paths become strings, tuples lists."""
    names = sorted(_names(type(config)), key=lambda name: HEADINGS.index(str(heading_of(type(config), name))))
    return {name: _plain(getattr(config, name)) for name in names}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _names(kind: type[RunConfig]) -> list[str]:
    return [item.name for item in dataclasses.fields(kind)]


SETTINGS = frozenset(name for kind in kinds() for name in _names(kind))
"""Every setting of any kind of run."""


def _coerce(value: Any, hint: Any) -> Any:
    """`value` as what `hint` asks for. YAML reads `2e-4` as a string, so numbers are also accepted as text."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _coerce(value, next(arg for arg in args if arg is not type(None)))
    if origin is Literal:
        if value not in args:
            raise ValueError(f"{value!r} is not one of {', '.join(map(str, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"expected a list, got {value!r}")
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(inner) != len(value):
            raise ValueError(f"expected {len(inner)} values, got {value!r}")
        return tuple(_coerce(item, kind) for item, kind in zip(value, inner, strict=True))
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"expected `key: value` pairs, got {value!r}")
        return dict(value)
    if hint is Path:
        if not isinstance(value, (str, Path)):
            raise ValueError(f"expected a path, got {value!r}")
        return Path(value).expanduser()
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise ValueError(f"expected {getattr(hint, '__name__', hint)}, got {value!r}")
