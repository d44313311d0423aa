"""Ctrl-C, SIGTERM and a closed terminal: finish the step, save, say how to go on."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)  # not on every system
_STOP = [number for number in (signal.SIGINT, signal.SIGTERM, _HANGUP) if number is not None]


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop and its state is saved; the message says how to resume. The exit code is 130."""


class StopRequest:
    """While active, the first SIGINT, SIGTERM or SIGHUP only sets `.wanted`; a second SIGINT or SIGTERM interrupts at
    once. SIGHUP, of a terminal that was closed, comes from the kernel and from the shell; where it was ignored
    (`nohup`), it stays so.

    Outside the main thread Python allows no handlers, and none are installed. Loader processes inherit the handlers:
    there, SIGTERM ends the process and the others are left to the parent.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._owner = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in _STOP:
                if number == _HANGUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue
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
        if self.wanted and number != _HANGUP:
            raise KeyboardInterrupt
        self.wanted = True
