"""A run folder belongs to one process, and to the others of its group: a lock that ends with the process that holds it.

The lock is `flock` on the file `.lock` in the folder, not the file's existence: whatever ends the process, a SIGKILL or
a power cut too, ends the lock. Of processes that work together only the first takes it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from unrolled.trust import check_nothing_leads_out

try:
    import fcntl
except ImportError:  # not a POSIX system: nothing is locked
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
logger = logging.getLogger(__name__)


@dataclass
class _Held:
    """A lock of this process: its file, the thread that took it, and how often it did."""

    file: int
    thread: int
    times: int = 1


_held: dict[Path, _Held] = {}
_holding = contextlib.ExitStack()


def _forget() -> None:
    """A forked process, such as a loader's, closes what it inherited: it must not keep a lock past its parent's end."""
    for held in _held.values():
        with contextlib.suppress(OSError):
            os.close(held.file)
    _held.clear()
    _holding.pop_all()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextlib.contextmanager
def owned(folder: str | Path) -> Iterator[None]:
    """Within the block `folder`, which is made if need be, is this process's; blocks of one thread may be nested.

    Raises:
        ValueError: another process, or another thread of this one, has it; the message names the process.
        UnsafeFile: links in it lead out of it, see `unrolled.trust.check_nothing_leads_out`.
    """
    path = Path(folder).absolute()
    new = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    path = path.resolve()
    held = _held.get(path)
    if held is not None and held.thread == threading.get_ident():
        held.times += 1
    else:
        check_nothing_leads_out(path, str(folder))
        _held[path] = held = _Held(_lock(path, str(folder)), threading.get_ident())
    try:
        yield
    finally:
        if _held.get(path) is held:  # not so in a forked process
            held.times -= 1
            if not held.times:
                del _held[path]
                with contextlib.suppress(OSError):
                    (path / LOCK).unlink()  # still locked: nobody can have taken it over
                with contextlib.suppress(OSError):
                    os.close(held.file)
                if new:
                    with contextlib.suppress(OSError):  # nothing was written: an error came first
                        path.rmdir()


def hold(folder: str | Path) -> None:
    """Own `folder` until `release_held`; for a verb, which `cli.run` ends.

    Raises:
        ValueError: as in `owned`.
    """
    _holding.enter_context(owned(folder))


def release_held() -> None:
    """Give back every folder that `hold` took."""
    _holding.close()


def _lock(folder: Path, named: str) -> int:
    """The open and locked `.lock` of a folder."""
    path = folder / LOCK
    while True:
        if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
            raise ValueError(f"out={named!r}: {path} is a link, a folder or a pipe, not a lock; remove it")
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = _owner(file)
            os.close(file)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise ValueError(
                    f"out={named!r} is in use by {owner}; wait for it, stop it, or choose another out="
                ) from None
            if error.errno not in _UNSUPPORTED:
                raise
            logger.warning("%s: this file system has no locks; start no second run in it", folder)
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            same = os.path.samestat(os.fstat(file), os.stat(path))
        except FileNotFoundError:
            same = False
        if same:
            break
        os.close(file)  # its owner removed it in between
    record = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now().isoformat(" ", "seconds")}
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(record).encode(), 0)
    return file


def _owner(file: int) -> str:
    """Who wrote a lock file, in words."""
    try:
        record = json.loads(os.pread(file, 1000, 0))
        pid, host = int(record["pid"]), str(record["host"])[:64]
        since = datetime.fromisoformat(record["since"])
    except (ValueError, KeyError, TypeError, OSError):
        return "another process"
    if pid == os.getpid() and host == socket.gethostname():
        return f"another thread of this process, {pid},"
    return f"process {pid} on {host!r}, since {since:%Y-%m-%d %H:%M:%S}"
