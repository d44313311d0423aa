"""Serving the explorer on loopback until it is stopped."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
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


def serve(app: Any, listener: socket.socket, *, when_ready: Callable[[], None] | None = None) -> None:
    """Answer requests until Ctrl-C or SIGTERM.

    Args:
        app: an ASGI application.
        listener: from `listen`; closed at the end.
        when_ready: called once, when requests are answered.
    """
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if when_ready is not None:
                when_ready()

    settings = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2, lifespan="off",
        h11_max_incomplete_event_size=16 * 2**10,
    )  # fmt: skip
    try:
        Server(settings).run(sockets=[listener])
    finally:
        listener.close()
