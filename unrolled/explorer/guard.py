"""What stands before every request: only this machine's browser, only this page's own scripts, bounded bodies.

A page of another site must not be able to use a server on loopback. It cannot name our host in a request (a name of
its own that resolves to 127.0.0.1 is refused: DNS rebinding), and a request it makes the browser send says so.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class TooLarge(ValueError):
    """A body above its limit."""


class Guard:
    """Refuses requests that are not from a page of this server, and adds `HEADERS` to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As an ASGI application; anything but HTTP is not served."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise ValueError("only HTTP is served")

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        reason = refusal(Headers(scope=scope))
        if reason is None:
            await self._app(scope, receive, with_headers)
        else:
            await JSONResponse({"error": reason}, 403)(scope, receive, with_headers)


def refusal(headers: Headers) -> str | None:
    """Why a request is refused, or None."""
    host = headers.get("host", "")
    if _name(f"//{host}") not in HOSTS:
        return "this server answers to 127.0.0.1 and localhost only"
    origin = headers.get("origin")
    if origin is not None and (not origin.startswith("http://") or origin.removeprefix("http://") != host):
        return "requests from pages of other sites are refused"
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return "requests from pages of other sites are refused"
    return None


async def body(request: Request, limit: int) -> bytes:
    """The body, given up on as soon as it is known to be longer than `limit` bytes.

    Raises:
        TooLarge: it is.
    """
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > limit:
        raise TooLarge(f"at most {limit / 2**20:.3g} MB can be sent; make the picture smaller first")
    out = bytearray()
    async for chunk in request.stream():
        out += chunk
        if len(out) > limit:
            raise TooLarge(f"at most {limit / 2**20:.3g} MB can be sent; make the picture smaller first")
    return bytes(out)


def _name(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None
