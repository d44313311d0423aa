"""Ctrl-C and SIGTERM: finish the step, save, say how to go on."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop and its state is saved; the message says how to resume. The exit code is 130."""


class StopRequest:
    """While active, the first SIGINT or SIGTERM only sets `.wanted`; a second one interrupts at once.

    Outside the main thread Python allows no handlers, and none are installed. Loader processes inherit the handlers:
    there, SIGINT is left to the parent and SIGTERM ends the process.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._owner = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True
