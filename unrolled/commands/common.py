"""What the verbs that run a model share."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unrolled.commands.options import check_counts as check_counts
from unrolled.harness import default_folder as default_folder
from unrolled.harness import write_settings as write_settings
from unrolled.subjects.images import batches as batches
from unrolled.subjects.images import images_of as images_of
from unrolled.subjects.images import say_data as say_data
from unrolled.subjects.models import by_class_names as by_class_names
from unrolled.subjects.models import choose_device as choose_device
from unrolled.subjects.models import open_model as open_model
from unrolled.subjects.options import Device as Device
from unrolled.subjects.runs import data_of as data_of
from unrolled.subjects.runs import named as named
from unrolled.subjects.runs import run_settings as run_settings
from unrolled.subjects.runs import shipped as shipped
from unrolled.terminal import progress as progress
from unrolled.terminal import say
from unrolled.terminal import table as table
from unrolled.trust import consequence


def data_settings(
    model: str, weights: Path | None, *, data: str | None, data_dir: Path | None, image_size: int | None
) -> dict[str, Any]:
    """`data_of`, as a mapping."""
    return vars(data_of(model, weights, data=data, data_dir=data_dir, image_size=image_size))


def write_run(folder: Path, settings: Mapping[str, Any], report: Any) -> Path:
    """Write `config.yaml` and the report; return the path of `report.html`."""
    write_settings(folder, settings)
    page: Path = report.write(folder).html
    return page


def say_where(report: Path, *, quiet: bool) -> None:
    """Say on stderr where the report is."""
    say(f"report: {report}", quiet=quiet)


def drawn(samples: int | None, there: int) -> dict[str, int]:
    """What `--samples` adds to a result: how many were asked for, and of how many; nothing without the flag."""
    return {} if samples is None else {"samples": samples, "samples_of": there}


def of_all(result: Mapping[str, Any]) -> str:
    """What such a result says after a number of samples: `` drawn evenly from 10,000``, or nothing."""
    return f" drawn evenly from {result['samples_of']:,}" if "samples_of" in result else ""


@contextlib.contextmanager
def saying_how_to_resume(verb: str, out: Path, model: str) -> Iterator[None]:
    """Add the command that goes on with the run of `model` in `out` to what an interrupted one says."""
    from unrolled.train.signals import Interrupted

    try:
        yield
    except Interrupted as stop:
        command = f"unrolled {verb} --config {shlex.quote(str(out / 'config.yaml'))} --resume auto"
        if consequence("model", model) is not None:  # the file may not name code: the person does
            command += f" --model {shlex.quote(model)}"
        raise Interrupted(f"{stop}, or: {command}") from None
