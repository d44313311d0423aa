"""What the tests of hostile files share: ways to write one, commands that read it, and how the reader has to end."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import struct
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
from PIL import Image

from tests.files import encoded
from unrolled import cli

Make = Callable[[Path], None]
"""Writes what is hostile into a folder."""

SEEN = "code-ran"
"""The file that code leaves behind in the working folder, if any runs."""


class Touch:
    """Unpickling one runs a command."""

    def __reduce__(self) -> object:
        return os.system, (f"touch {SEEN}",)


def pickled() -> bytes:
    """A pickle that runs code."""
    return pickle.dumps(Touch())


def png(side: int = 32) -> bytes:
    """A picture that is good."""
    return encoded(Image.linear_gradient("L").resize((side, side)).convert("RGB"))


@contextlib.contextmanager
def ends_within(seconds: float) -> Iterator[None]:
    """Fail what waits for a pipe, or counts for ever."""

    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"did not end within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def said_plainly(error: str) -> str:
    """The line on stderr that says what is wrong: one, and not that of an error nobody thought of."""
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, error
    assert "--debug" not in lines[0], lines[0]
    assert "Traceback" not in error, error
    return lines[0]


def linked(path: Path, to: str) -> None:
    """A symbolic link, in a folder that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(to)


MODEL = "crate_nano_patch2_8"
SHORT = ["--quiet", "--out", "out"]
IMAGES = ["--data-dir", ".", "--batch-size", "4", *SHORT]


def tensors(header: object, payload: bytes = b"", *, size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + payload


def described(folder: Path, **config: object) -> None:
    (folder / "config.json").write_text(json.dumps({"architecture": MODEL, "num_classes": 10, **config}))


def member(name: str, kind: bytes = tarfile.REGTYPE, to: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    return member


def classes(folder: Path, *pictures: tuple[str, bytes]) -> None:
    for label in ("a", "b"):
        (folder / label).mkdir()
        for number in range(6):
            (folder / label / f"{number}.png").write_bytes(png(8))
    for name, data in pictures:
        (folder / name).write_bytes(data)


def write(name: str, data: bytes | str) -> Make:
    def make(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)

    return make


def both(*parts: Make) -> Make:
    def make(folder: Path) -> None:
        for part in parts:
            part(folder)

    return make


def report(**changes: object) -> str:
    block = {
        "kind": "figure",
        "name": "x",
        "caption": "",
        "panels": [{"title": "t", "description": "d", "columns": [], "rows": []}],
    }
    report = {
        "format": "unrolled.report/1",
        "title": "t",
        "question": "",
        "summary": "",
        "facts": [],
        "claims": [],
        "sections": [{"title": "s", "blocks": [block]}],
        "provenance": {},
    }
    return json.dumps({**report, **changes})


def svg(body: str) -> Make:
    return both(
        write("studies/mesa-x/report.json", report()),
        write("studies/mesa-x/figures/x.svg", f'<svg xmlns="http://www.w3.org/2000/svg">{body}</svg>'),
    )


EVAL = ["eval", ".", "--data", "digits", *SHORT]
GALLERY = ["gallery", "--studies", "studies", "--out", "site"]
COMPARE = ["align", "bad.npy", "good.npy", *SHORT]
FOLDER = ["eval", MODEL, "--data", "folder", "--split", "all", *IMAGES]
SHARDS = ["eval", MODEL, "--data", "wds:*.tar;*.tar", *IMAGES]
PACKED = ["eval", MODEL, "--data", "packed", *IMAGES]
SEGMENT = ["segment", "bad.png", "--model", MODEL, *SHORT]
TEXT = ["train", "--task", "lm", "--data", "folder", "--data-dir", ".", "--max-steps", "1", *SHORT]
HUB = ["eval", MODEL, "--data", "hf:set", *SHORT]
"""Reads `set`, a folder."""


def refused(
    make: Make, command: list[str], place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`command`, run where `make` wrote, ends in one plain line: nothing ran, waited, passed or showed what it read."""
    for word, package in (("wds:", "webdataset"), ("hf:", "datasets")):
        if any(word in part for part in command):
            pytest.importorskip(package)
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", list(sys.path))
    np.save(place / "good.npy", np.eye(4, dtype=np.float32))
    make(place)
    with ends_within(30):
        code = cli.run(command)
    captured = capsys.readouterr()
    assert not (place / SEEN).exists()
    assert code in (1, 2, 3), captured
    assert len(said_plainly(captured.err)) < 600
    assert "root:" not in captured.err, "the content of a file is nobody's"
    assert not list(place.glob("site/**/*.svg"))
