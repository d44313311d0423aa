"""The application: a page, its pictures, and the answers it asks for. State is in memory and ends with the process."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from functools import partial, wraps
from hashlib import sha256
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from unrolled import __version__
from unrolled.errors import MissingData, MissingExtra
from unrolled.explorer.guard import Guard, TooLarge, body
from unrolled.explorer.look import DETAILS, TAU, Look, curves, look_at, objects, similar
from unrolled.explorer.models import Catalogue
from unrolled.explorer.neighbours import ImageSet, Neighbours, shared
from unrolled.explorer.recent import Recent
from unrolled.explorer.samples import SAMPLES, encode, sample
from unrolled.explorer.startup import Startup
from unrolled.explorer.switches import predict_without

MAX_UPLOAD = 10 * 2**20
MAX_PIXELS = 50_000_000
MAX_JSON = 64 * 2**10
MOST_LOOKS, MOST_UPLOADS = 12, 8
STATIC = Path(__file__).parent / "static"

Answer = Callable[[Request], Any]


def create_app(
    catalogue: Catalogue, images: Callable[[], ImageSet] = ImageSet.digits, startup: Startup | None = None
) -> Starlette:
    """The explorer as an ASGI application.

    Args:
        catalogue: models to choose from.
        images: reads the set whose neighbours are compared.
        startup: what answers that need models wait for.
    """
    startup = Startup(done=True) if startup is None else startup
    pages = _Pages(catalogue, images, startup)
    needs_models = partial(_answer, startup=startup)
    routes = [
        Route("/", lambda request: FileResponse(STATIC / "index.html")),
        Route("/api/start", _answer(pages.start)),
        Route("/api/startup", _answer(pages.startup)),
        Route("/api/sample/{name}", _answer(pages.sample)),
        Route("/api/look", needs_models(pages.look), methods=["POST"]),
        Route("/api/look/{look}/objects", needs_models(pages.objects)),
        Route("/api/look/{look}/similar", needs_models(pages.similar)),
        Route("/api/look/{look}/curves", needs_models(pages.curves)),
        Route("/api/look/{look}/without", needs_models(pages.without), methods=["POST"]),
        Route("/api/world", needs_models(pages.world), methods=["POST"]),
        Route("/api/set", _answer(pages.images)),
        Route("/api/set/{image:int}", _answer(pages.image)),
        Route("/api/agreement", needs_models(pages.agreement), methods=["POST"]),
        Route("/api/neighbours", needs_models(pages.neighbours)),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard)],
        exception_handlers={HTTPException: _refused, Exception: _failed},
    )


class _Pages:
    """What is asked for, by name."""

    def __init__(self, catalogue: Catalogue, images: Callable[[], ImageSet], startup: Startup) -> None:
        self._catalogue, self._startup = catalogue, startup
        # in memory only, until newer ones push them out; uploads by what they are, so that none need be sent twice
        self._looks, self._uploads = Recent[Look](MOST_LOOKS), Recent[bytes](MOST_UPLOADS)
        self._neighbours = Neighbours(images)

    async def start(self, request: Request) -> dict[str, Any]:
        default = self._catalogue.default()
        return {
            "version": __version__,
            "models": [choice.shown() for choice in self._catalogue.choices.values()],
            "default": default,
            "sample": "three" if self._catalogue.choices[default[0]].data == "digits" else "flower",
            "samples": [{"name": name, "title": title} for name, title in SAMPLES.items()],
            "details": list(DETAILS),
            "limits": {"bytes": MAX_UPLOAD},
        }

    async def startup(self, request: Request) -> dict[str, Any]:
        return self._startup.shown()

    async def sample(self, request: Request) -> Response:
        picture = await run_in_threadpool(sample, request.path_params["name"])
        shown = picture if picture.width >= 64 else picture.resize((160, 160), 0)
        return _png(await run_in_threadpool(encode, shown, side=240))

    async def look(self, request: Request) -> dict[str, Any]:
        model, detail, name = _text(request, "model"), _whole(request, "detail", 1), request.query_params.get("sample")
        upload = request.query_params.get("upload")
        data = None
        if upload is not None:
            data = _in_memory(self._uploads, upload)
        elif name is None:
            data = await body(request, MAX_UPLOAD)

        def work() -> dict[str, Any]:
            from unrolled.data.pictures import read_picture

            if data is None:
                picture = sample(str(name))
            else:
                picture = read_picture(data, max_bytes=MAX_UPLOAD, max_pixels=MAX_PIXELS)
            with self._catalogue.lock:
                result = look_at(self._catalogue.open(model), picture, detail)
            sent = None if data is None else self._uploads.add(sha256(data).hexdigest()[:24], data)
            return {"id": self._looks.add(secrets.token_urlsafe(12), result), "upload": sent, **result.answer}

        return await run_in_threadpool(work)

    async def objects(self, request: Request) -> dict[str, Any]:
        layer, tau = _whole(request, "layer"), _number(request, "tau", TAU)
        return await run_in_threadpool(objects, self._look_in_memory(request), layer, tau)

    async def similar(self, request: Request) -> dict[str, Any]:
        layer, patch = _whole(request, "layer"), _whole(request, "patch")
        return await run_in_threadpool(similar, self._look_in_memory(request), layer, patch)

    async def curves(self, request: Request) -> dict[str, Any]:
        look = self._look_in_memory(request)

        def work() -> dict[str, Any]:
            with self._catalogue.lock:
                return curves(look)

        return await run_in_threadpool(work)

    async def without(self, request: Request) -> dict[str, Any]:
        look, off = self._look_in_memory(request), await _sent(request, "off")
        if not isinstance(off, list) or not all(isinstance(name, str) for name in off):
            raise ValueError("off: expected a list of names")

        def work() -> dict[str, Any]:
            with self._catalogue.lock:
                return predict_without(look.opened, look.pixels, off)

        return await run_in_threadpool(work)

    async def world(self, request: Request) -> dict[str, Any]:
        asked = await _sent(request, "world")

        def work() -> dict[str, Any]:
            from unrolled.explorer import worlds

            return worlds.run(worlds.World.from_request(asked))

        return await run_in_threadpool(work)

    async def images(self, request: Request) -> dict[str, Any]:
        def work() -> dict[str, Any]:
            images = self._neighbours.set
            return {"title": images.title, "names": list(images.names), "k": self._neighbours.k}

        return await run_in_threadpool(work)

    async def image(self, request: Request) -> Response:
        return _png(await run_in_threadpool(lambda: self._neighbours.set.thumbnail(request.path_params["image"])))

    async def agreement(self, request: Request) -> dict[str, Any]:
        a, b = _text(request, "a"), _text(request, "b")

        def work() -> dict[str, Any]:
            with self._catalogue.lock:
                return self._neighbours.agreement(self._catalogue.open(a), self._catalogue.open(b))

        return await run_in_threadpool(work)

    async def neighbours(self, request: Request) -> dict[str, Any]:
        image = _whole(request, "image")
        asked = [(_text(request, side), _whole(request, f"layer_{side}")) for side in ("a", "b")]

        def work() -> dict[str, Any]:
            with self._catalogue.lock:
                results = [self._neighbours.of(self._catalogue.open(model), layer, image) for model, layer in asked]
            return {"a": results[0], "b": results[1], "shared": shared(*results)}

        return await run_in_threadpool(work)

    def _look_in_memory(self, request: Request) -> Any:
        return _in_memory(self._looks, request.path_params["look"])


def _in_memory(store: Recent[Any], name: str) -> Any:
    try:
        return store.get(name)
    except KeyError as error:
        raise HTTPException(410, "this picture is no longer in memory; choose it again") from error


async def _sent(request: Request, name: str) -> Any:
    """The JSON that a request brings, called `name` where it is none."""
    data = await body(request, MAX_JSON)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: the request is not JSON") from error


def _answer(work: Answer, startup: Startup | None = None) -> Any:
    """A route: what `work` returns as JSON, and what a person did wrong as a sentence.

    Args:
        work: asked when `startup` is over.
        startup: default nothing that is waited for.
    """

    @wraps(work)
    async def route(request: Request) -> Response:
        if startup is not None:
            await run_in_threadpool(startup.wait)
        try:
            result = await work(request)
        except TooLarge as error:
            return _error_answer(413, error)
        except (MissingData, MissingExtra) as error:
            return _error_answer(404, error)
        except ValueError as error:
            return _error_answer(422, error)
        return result if isinstance(result, Response) else _Json(result)

    return route


class _Json(JSONResponse):
    """Names of files need not be text, which JSON can say in ASCII only."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def _error_answer(status: int, error: BaseException) -> JSONResponse:
    return _Json({"error": " ".join(str(error).split())}, status)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    """A fault of ours: the terminal gets the traceback from the server, the page one line without paths."""
    return JSONResponse({"error": f"{type(error).__name__}: the terminal of `unrolled explore` says more"}, 500)


def _png(data: bytes) -> Response:
    return Response(data, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})


def _text(request: Request, name: str) -> str:
    value = request.query_params.get(name)
    if not value:
        raise ValueError(f"{name}: missing")
    return value


def _whole(request: Request, name: str, default: int | None = None) -> int:
    text = request.query_params.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.removeprefix("-").isdecimal() or len(text) > 9:
        raise ValueError(f"{name}: expected a whole number")
    return int(text)


def _number(request: Request, name: str, default: float) -> float:
    text = request.query_params.get(name)
    try:
        return default if text is None else float(text)
    except ValueError as error:
        raise ValueError(f"{name}: expected a number") from error
