"""Serving the explorer on loopback."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, so that a port that is taken is known before models are loaded.

    Args:
        host: an address of loopback.
        port: 0 for any that is free.

    Raises:
        ValueError: the port is taken or not allowed.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(64)
    except OSError as error:
        listener.close()
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        why = "is taken" if error.errno == errno.EADDRINUSE else "is not allowed"
        raise ValueError(f"port={port}: {why}; give another, or 0 for any that is free") from error
    return listener


@contextmanager
def serving(app: Any, listener: socket.socket) -> Iterator[threading.Thread]:
    """Answer requests in a thread during a block, whose own thread stays free to load models; closed at the end.

    Args:
        app: an ASGI application.
        listener: from `listen`; closed at the end.

    Yields:
        the thread, which ends only by a fault of the server.
    """
    import uvicorn

    settings = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2, lifespan="off",
        h11_max_incomplete_event_size=16 * 2**10,
    )  # fmt: skip
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="explorer", daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield thread
    finally:
        server.should_exit = True
        thread.join(5)
        listener.close()
