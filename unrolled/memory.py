"""How much memory there is, asked before something absurd is built or read, which would end the process."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_GROUP = Path("/sys/fs/cgroup")


def available_bytes() -> int | None:
    """Memory this process can still get, in bytes: what the machine has free, and its container; None if not known."""
    sizes: list[int] = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        sizes.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    with contextlib.suppress(OSError, ValueError):
        limit = int((_GROUP / "memory.max").read_text(encoding="ascii"))  # "max": no limit
        sizes.append(limit - int((_GROUP / "memory.current").read_text(encoding="ascii")))
    if not sizes:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return max(0, min(sizes)) if sizes else None


def check_fits(needed: int, what: str) -> None:
    """Refuse what needs more memory than there is.

    Args:
        needed: bytes.
        what: begins the message, naming the argument or file.

    Raises:
        ValueError: it does not fit.
    """
    available = available_bytes()
    if available is not None and needed > available:
        raise ValueError(f"{what} needs {needed / 2**30:,.1f} GiB of memory, and {available / 2**30:,.1f} are free")
