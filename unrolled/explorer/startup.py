"""What the first answers wait for, in words: torch takes seconds to import, and a page that waits says so."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Startup:
    """Steps of a start, reported by one thread and waited for by others.

    Args:
        done: nothing is waited for.
    """

    def __init__(self, *, done: bool = False) -> None:
        self._over = threading.Event()
        self._step = ""
        self._began = time.monotonic()
        if done:
            self._over.set()

    @contextmanager
    def running(self) -> Iterator[None]:
        """The block is the start: at its end, also by an error, nothing is waited for any more."""
        try:
            yield
        finally:
            self._over.set()

    def step(self, what: str) -> None:
        """Say what is being done now, such as `"importing torch"`."""
        self._step = what

    def wait(self) -> None:
        """Return when the start is over."""
        self._over.wait()

    def shown(self) -> dict[str, Any]:
        """What a page is told: the step, or None, and for how many seconds the start has been under way."""
        if self._over.is_set():
            return {"step": None, "seconds": 0.0}
        return {"step": self._step, "seconds": round(time.monotonic() - self._began, 1)}
