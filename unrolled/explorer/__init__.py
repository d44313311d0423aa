"""A local web page to look inside models: pictures, learning in context, alignment. Bound to this machine."""

from __future__ import annotations

from typing import Any

__all__ = ["create_app"]


def __getattr__(name: str) -> Any:
    if name != "create_app":
        raise AttributeError(f"module 'unrolled.explorer' has no attribute {name!r}")
    from unrolled.explorer.app import create_app

    return create_app
