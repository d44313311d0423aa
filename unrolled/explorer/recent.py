"""The last things of a kind, by a name."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """A memory that forgets what was asked for least lately.

    Args:
        limit: how many are remembered.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._values: OrderedDict[str, T] = OrderedDict()

    def add(self, name: str, value: T) -> str:
        """Remember one, and return its name."""
        with self._lock:
            self._values[name] = value
            self._values.move_to_end(name)
            while len(self._values) > self._limit:
                self._values.popitem(last=False)
        return name

    def get(self, name: str) -> T:
        """One that was added or asked for lately.

        Raises:
            KeyError: forgotten, or never added.
        """
        with self._lock:
            self._values.move_to_end(name)
            return self._values[name]
