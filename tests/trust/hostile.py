"""What the tests of hostile files share: files that would run code, and a clock for what would never end."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from PIL import Image

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
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).convert("RGB").save(buffer, "png")
    return buffer.getvalue()


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
