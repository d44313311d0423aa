"""From a configuration to a run folder: held and timed while it is filled, then config.yaml, the report, the answer."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json as json_module
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from unrolled.locks import hold
from unrolled.reading import Json
from unrolled.subjects.runs import named
from unrolled.terminal import say, show

if TYPE_CHECKING:
    from unrolled.report import Report

Answer = Json
"""What came out of a verb: `--json` prints it, `report.json` holds it, and the page is laid out from it."""
Settings = dict[str, Any]
"""Flags by name, as `config.yaml` holds them."""


@dataclass(frozen=True, kw_only=True)
class JsonFlags:
    """How the answer is printed."""

    heading: ClassVar[str] = "Output"

    json: bool = False
    """Print JSON on stdout."""


@dataclass(frozen=True, kw_only=True)
class QuietFlags:
    """What is said while it is computed."""

    heading: ClassVar[str] = "Output"

    quiet: bool = False
    """No progress on stderr."""


@dataclass(frozen=True, kw_only=True)
class OutputFlags(JsonFlags, QuietFlags):
    """Where the answer goes. These are no settings: config.yaml does not hold them."""

    heading: ClassVar[str] = "Output"

    out: Path | None = None
    """Where config.yaml, report.html and report.json go."""


ANSWER = "unrolled.answer/1"
"""The `format` of what `--json` prints. Its number goes up when a documented key changes its name or its meaning;
docs/howto/json.md has the keys of every verb."""

_OUTPUT = {item.name for item in dataclasses.fields(OutputFlags)}
_SUBJECT = (
    *("image", "images", "model", "weights", "pretrained", "model_args"),
    *("data", "data_dir", "split", "stride", "labels", "text", "texts", "length", "stack"),
)


class Run:
    """A run of a verb: its folder, which no other process may have, and its clock, which starts now.

    Args:
        options: the flags of the verb, completed.
        verb: whose run it is.
        model, data: with the verb, what the folder is called after, without `--out`; see `default_folder`.
        keeps_features: whatever the folder holds, it is the one to use: features in it that fit are used again.

    Raises:
        ValueError: another process is at work in the folder.
    """

    def __init__(self, options: OutputFlags, verb: str, model: str, data: str, *, keeps_features: bool = False) -> None:
        subject = None if keeps_features else settings_of(options)
        self.folder = options.out or default_folder(verb, model, data, subject)
        hold(self.folder)
        self.options, self.verb = options, verb
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._began

    def finish(
        self, report: Report, results: Mapping[str, Any], text: str, *, seeds: Sequence[int], options: Any = None
    ) -> None:
        """Write `config.yaml` and the report with its results and provenance, say where it is, and answer.

        Args:
            report: the page.
            results: what came out, for report.json and `--json`.
            text: the same for a person, without `--json`.
            seeds: that it follows from.
            options: as they turned out to be, where that is not as they were given.
        """
        from unrolled.report import Provenance

        settings = settings_of(options or self.options)
        report.results = dict(results)
        report.provenance = Provenance.collect(config=settings, seeds=seeds, duration=self.seconds)
        write_settings(self.folder, settings)
        page = report.write(self.folder).html
        answer(self.verb, page, results, text, json=self.options.json, quiet=self.options.quiet)


def answer(verb: str, page: Path, facts: Mapping[str, Any], text: str, *, json: bool, quiet: bool) -> None:
    """Say on stderr where the report is, and print what came out as `print_answer` does."""
    say(f"report: {page}", quiet=quiet)
    print_answer(verb, {**facts, "report": str(page)}, text, json=json)


def print_answer(verb: str, facts: Mapping[str, Any], text: str, *, json: bool) -> None:
    """Print what came out: as text, or as one JSON object, with `format`, see `ANSWER`, and `verb` before the rest."""
    if not json:
        show(text)
        return
    from unrolled.report.provenance import plain

    values = {**plain(facts), "format": ANSWER, "verb": verb}
    print(json_module.dumps({"format": ANSWER, "verb": verb, **values}, indent=2), flush=True)


def settings_of(options: Any) -> Settings:
    """The flags of a verb that are settings, in the order of `--help`."""
    return {
        item.name: getattr(options, item.name) for item in flags_in_order(type(options)) if item.name not in _OUTPUT
    }


def flags_in_order(options: type[Any]) -> list[dataclasses.Field[Any]]:
    """The fields of a dataclass of flags: arguments, what is its own, then what it has from the classes it is made of.

    A field that says anew what it is stays among those it was first declared with.
    """
    classes = [each for each in options.__mro__ if dataclasses.is_dataclass(each)]

    def place(item: dataclasses.Field[Any]) -> tuple[bool, int]:
        return bool(item.kw_only), max(i for i, each in enumerate(classes) if item.name in each.__annotations__)

    return sorted(dataclasses.fields(options), key=place)


def default_folder(verb: str, model: str, data: str, subject: Mapping[str, Any] | None = None) -> Path:
    """`runs/VERB-MODEL-DATA`, of a folder its name alone; other characters than A-Z a-z 0-9 . _ become dashes.

    Args:
        verb: of the command.
        model: its MODEL argument.
        data: what it looks at, where the model's name does not say it all.
        subject: settings, of which those of the model and of what it looks at count. Where that folder holds the
            result of others, because names in different folders are alike, the next free one is taken: `...-2`.
    """
    spec = named(model)
    parts = [Path(spec.removeprefix("local:")).name if spec.startswith("local:") else spec, data]
    parts = [_short(re.sub(r"[^A-Za-z0-9._]+", "-", part).strip("-.")) for part in parts if part]
    name = "-".join([verb, *parts])
    folder, number = Path("runs") / name, 1
    if subject is not None:
        wanted = _subject(subject)
        while (folder / "config.yaml").is_file() and wanted != _subject_in(folder):
            number += 1
            folder = Path("runs") / f"{name}-{number}"
    return folder


def _short(name: str) -> str:
    """At most 80 letters: systems of files take 255, and a name may be as long already."""
    return name if len(name) <= 80 else f"{name[:71]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _subject_in(folder: Path) -> Settings:
    from unrolled.errors import CorruptFile
    from unrolled.reading import read_settings

    with contextlib.suppress(OSError, CorruptFile):
        return _subject(read_settings(folder / "config.yaml"))
    return {}


def _subject(settings: Mapping[str, Any]) -> Settings:
    """What was looked at; what is not said and what is nothing are the same."""
    return {key: plain_settings(settings[key]) for key in _SUBJECT if settings.get(key)}


def plain_settings(value: Any) -> Any:
    """Settings as YAML and JSON hold them."""
    if isinstance(value, list | tuple):
        return [plain_settings(item) for item in value]
    if isinstance(value, dict):
        return {key: plain_settings(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write `config.yaml`, which `--config` reads again; from now on the folder is this verb's."""
    import yaml

    hold(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump({key: plain_settings(value) for key, value in settings.items()}, sort_keys=False)
    (folder / "config.yaml").write_bytes(text.encode("utf-8", "backslashreplace"))
