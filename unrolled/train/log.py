"""What a run writes while it goes: `metrics.jsonl`, other loggers on request, `status.json`, and progress on stderr."""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import json
import math
import os
import secrets
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from unrolled.errors import CorruptFile, require
from unrolled.reading import printable, read_text
from unrolled.train.checkpoint import write_atomic
from unrolled.train.config import RunConfig
from unrolled.train.config_files import as_plain

METRICS = "metrics.jsonl"


class MetricsLog:
    """Records, one JSON object a line in `metrics.jsonl`, repeated to the loggers the configuration names.

    Every record has `split` (train, val or test) and `step`, the number of optimiser steps done. Only the first process
    writes.
    """

    def __init__(self, config: RunConfig, *, write: bool = True) -> None:
        self._config, self._write = config, write
        self._path = config.out / METRICS
        self._mirrors: list[Any] = []
        for name in config.loggers:  # a missing package is said before training, not after it
            if name in _MIRRORS:
                require(name, extra="trackio" if name == "trackio" else "track", feature=f"the {name} logger")

    def open(self, position: int | None, step: int) -> None:
        """Start logging; when resuming, forget what was logged after the checkpoint of `step` was written (the log was
        `position` bytes long then): the resumed run logs it again."""
        if not self._write:
            return
        if position is not None and self.position() > position:
            os.truncate(self._path, position)
        start = None if position is None else step
        self._mirrors = [_MIRRORS[name](self._config, start) for name in self._config.loggers if name in _MIRRORS]

    def position(self) -> int:
        """Bytes written so far; a checkpoint remembers them."""
        return self._path.stat().st_size if self._path.exists() else 0

    def add(self, record: dict[str, Any]) -> None:
        """Append one record. Values that JSON has no number for (inf, NaN) become null."""
        if not self._write:
            return
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain) + "\n")
        for mirror in self._mirrors:
            mirror.add(plain)

    def records(self) -> list[dict[str, Any]]:
        """Everything logged, the part before a resume included."""
        return read_metrics(self._path)

    def close(self) -> None:
        """Finish the loggers, and write `metrics.csv` if asked for."""
        if not self._write:
            return
        if "csv" in self._config.loggers and (records := self.records()):
            columns = list(dict.fromkeys(key for record in records for key in record))
            text = io.StringIO()
            table = csv.DictWriter(text, columns, lineterminator="\n")
            table.writeheader()
            table.writerows(records)
            write_atomic(self._path.with_suffix(".csv"), text.getvalue().encode())
        for mirror in self._mirrors:
            mirror.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    lines = read_text(path).split("\n")[:-1]
    try:
        records = [json.loads(line) for line in lines if line]
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{path}: a line is not valid JSON: {error}") from error
    if not all(isinstance(record, dict) and isinstance(record.get("step", 0), int) for record in records):
        raise CorruptFile(f"{path}: a line is no record of a run")
    return records


class _TensorBoard:
    def __init__(self, config: RunConfig, resumed_at: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = None if resumed_at is None else resumed_at + 1
        self._writer = SummaryWriter(str(config.out / "tensorboard"), purge_step=purge)

    def add(self, record: dict[str, Any]) -> None:
        for key, value in _numbers(record).items():
            self._writer.add_scalar(f"{record['split']}/{key}", value, record["step"])

    def close(self) -> None:
        self._writer.close()


class _Service:
    """wandb, and trackio, which has the same calls. The name a run has there is kept in its folder, so a resumed run
    continues it and another run in a folder of the same name does not; steps logged twice around a kill carry equal
    values."""

    def __init__(self, module: str, config: RunConfig, resumed_at: int | None) -> None:
        self._module = importlib.import_module(module)
        file = config.out / f"{module}.txt"
        if resumed_at is None or not file.exists():
            file.write_text(f"{config.out.resolve().name}-{secrets.token_hex(4)}", encoding="utf-8")
        name = file.read_text(encoding="utf-8")
        options = {"dir": str(config.out), "id": name} if module == "wandb" else {}
        self._module.init(project="unrolled", name=name, config=as_plain(config), resume="allow", **options)

    def add(self, record: dict[str, Any]) -> None:
        self._module.log({f"{record['split']}/{k}": v for k, v in _numbers(record).items()}, step=record["step"])

    def close(self) -> None:
        self._module.finish()


_MIRRORS: dict[str, Any] = {
    "tensorboard": _TensorBoard,
    "wandb": partial(_Service, "wandb"),
    "trackio": partial(_Service, "trackio"),
}


def _numbers(record: dict[str, Any]) -> dict[str, float]:
    return {k: v for k, v in record.items() if k != "step" and isinstance(v, (int, float)) and not isinstance(v, bool)}


def write_status(
    folder: Path, state: str, step: int, total: int, message: str = "", *, chosen_step: int | None = None
) -> None:
    """`status.json`: `state` is running, finished, interrupted or stopped; written in one move.

    `chosen_step` is the step whose weights a finished run kept.
    """
    status: dict[str, Any] = {
        "state": state,
        "step": step,
        "total_steps": total,
        "message": message,
        "updated": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if chosen_step is not None:
        status["chosen_step"] = chosen_step
    write_atomic(folder / "status.json", json.dumps(status, indent=1).encode())


class Progress:
    """Loss, speed and time left on stderr: a bar on a terminal, a plain line every so often in a log file.

    Speed is that of the steps alone, without the first, which also starts loaders and compiles; time left counts on as
    much time beside the steps (validations, checkpoints) as there has been. A terminal that was closed, or a reader
    that left, ends nothing but the progress.
    """

    def __init__(
        self, *, total: int, start: int, batch_size: int, show: bool, every: float = 10.0, unit: str = "images"
    ) -> None:
        self._total, self._start, self._batch, self._show, self._unit = total, start, batch_size, show, unit
        self._every, self._last, self._text = every, time.monotonic(), ""
        self._first: float | None = None
        self._beside = 0.0
        self._bar: Any = None
        if show and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            from tqdm import tqdm

            self._bar = tqdm(
                total=total,
                initial=start,
                bar_format="{percentage:3.0f}%|{bar}| {desc}",
                file=sys.stderr,
                dynamic_ncols=True,
                ascii=True if "NO_COLOR" in os.environ else None,
            )

    def step(self, done: int, loss: float) -> None:
        """`done` optimiser steps are finished; `loss` is that of the last one."""
        now = time.monotonic()
        self._text = f"step {done:,}/{self._total:,}  loss {loss:.4f}"
        if self._first is None:
            self._first, self._beside = now, 0.0
        elif (steps := done - self._start - 1) and (elapsed := now - self._first) > self._beside:
            speed = steps * self._batch / (elapsed - self._beside)
            left = duration((self._total - done) * elapsed / steps)
            self._text += f"  {speed:,.0f} {self._unit}/s  {left} left"
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.set_description_str(self._text, refresh=False)
                self._bar.update()
        elif self._show and now - self._last >= self._every:
            self._last = now
            self.note(self._text)

    @contextlib.contextmanager
    def beside(self, what: str) -> Iterator[None]:
        """Within the block no steps are made, but `what`, which the bar says."""
        began = time.monotonic()
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.set_description_str(", ".join(filter(None, (self._text, what))))
        yield
        self._beside += time.monotonic() - began

    def note(self, text: str) -> None:
        """One line, above the bar if there is one."""
        text = printable(text, keep="\n\t")
        with contextlib.suppress(OSError):
            if self._bar is not None:
                self._bar.write(text, file=sys.stderr)
            elif self._show:
                sys.stderr.write(text + "\n")
                sys.stderr.flush()

    def close(self) -> None:
        """Leave the terminal tidy."""
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.close()


def duration(seconds: float) -> str:
    """As a clock shows it, e.g. 0:07 or 1:02:30."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
