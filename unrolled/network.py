"""The Hugging Face hub where it cannot be reached: said after one short try, instead of half a minute of retries."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from unrolled.errors import MissingData

PATIENCE = 3.0
"""Seconds that the hub has to answer."""


@contextmanager
def hub(name: str) -> Iterator[None]:
    """Within the block only copies on this machine are used, if the hub cannot be reached.

    Args:
        name: `ORG/NAME` of what is wanted; of a folder on this machine nothing is.

    Raises:
        MissingData: it cannot be reached, and there is no copy.
    """
    from huggingface_hub import constants

    if Path(name).is_dir() or constants.HF_HUB_OFFLINE or reachable(constants.ENDPOINT):
        yield
        return
    datasets = getattr(sys.modules.get("datasets"), "config", None)  # has copied the constant
    constants.HF_HUB_OFFLINE = True
    if datasets is not None:
        before, datasets.HF_HUB_OFFLINE = datasets.HF_HUB_OFFLINE, True
    try:
        yield
    except OSError as error:  # the hub's errors of missing files and of offline mode are
        raise MissingData(
            f"{name}: {constants.ENDPOINT} cannot be reached from here, and there is no whole copy on this machine"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = False
        if datasets is not None:
            datasets.HF_HUB_OFFLINE = before


def reachable(address: str) -> bool:
    """Whether the server of an address, or the proxy that leads to it, takes a connection within `PATIENCE`."""
    parts = urlsplit(address)
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    answered = []

    def knock() -> None:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            socket.create_connection((parts.hostname or "", port), timeout=PATIENCE).close()
        except OSError:
            return
        answered.append(True)

    trying = threading.Thread(target=knock, daemon=True)  # looking up a name heeds no timeout
    trying.start()
    trying.join(PATIENCE)
    return bool(answered)
