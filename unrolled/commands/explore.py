"""`unrolled explore`."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from unrolled.commands.options import verb
from unrolled.harness import JsonFlags, QuietFlags, print_answer
from unrolled.subjects.options import Device, MachineFlags
from unrolled.terminal import say

if TYPE_CHECKING:
    from unrolled.explorer.models import Catalogue
    from unrolled.explorer.startup import Startup

HOST = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class ExploreOptions(MachineFlags, JsonFlags, QuietFlags):
    """Flags of `unrolled explore`."""

    model: tuple[str, ...] = ()
    """Further models to choose from, put first: any string other verbs take, or run folders."""
    pretrained: bool = False
    """Load the weights that timm has for the name (downloaded if need be); folders and hf: come with theirs."""
    runs: Path = Path("runs")
    """Folder of runs; every image model in it can be chosen."""
    images: Path | None = None
    """Folder of pictures whose neighbours two models are compared on; default: scikit-learn's digits."""
    port: int = 8765
    """Where the page is on 127.0.0.1; 0 takes any free port."""
    open_: Annotated[bool, Parameter(name="--open", negative="--no-open")] = True
    """Open it in the browser."""
    seed: int = 0
    """Of random weights."""
    device: Device = "auto"
    """What models run on."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port {self.port}: give a number from 0 to 65535")


@verb
def explore(options: ExploreOptions) -> None:
    """Look inside models in a browser: a local page for pictures, learning in context, and alignment.

    Only this machine can reach the page, and it asks no network. Pictures dropped on it stay in memory. Ctrl-C ends it.

        unrolled explore
        unrolled explore --model timm:vit_tiny_patch16_224 --pretrained
        unrolled explore --runs experiments --images photos/ --port 9000
    """
    from unrolled.errors import require

    # read by the hub's client when it is imported: what is not on this machine is not fetched
    os.environ["HF_HUB_OFFLINE"] = "1"
    for module in ("starlette", "uvicorn"):
        require(module, extra="explore", feature="unrolled explore")

    from unrolled.explorer import create_app
    from unrolled.explorer.models import Catalogue
    from unrolled.explorer.neighbours import ImageSet, pictures_in
    from unrolled.explorer.server import listen, serving
    from unrolled.explorer.startup import Startup

    listener = listen(HOST, options.port)
    catalogue = Catalogue(
        specs=options.model, runs=options.runs, pretrained=options.pretrained, device=options.device, seed=options.seed
    )
    images = ImageSet.digits
    if options.images is not None:
        pictures_in(options.images)  # a wrong folder is said now, and decoded when it is asked for
        images = partial(ImageSet.folder, options.images)
    startup = Startup()
    address = f"http://{HOST}:{listener.getsockname()[1]}/"
    app = create_app(catalogue, images, startup)
    # Ctrl-C is how it is meant to end
    with contextlib.suppress(KeyboardInterrupt), _noticed() as stop, serving(app, listener) as server:
        print_answer("explore", {"address": address}, address, json=options.json)
        if options.open_:
            _show(address)
        with startup.running():
            _load(catalogue, startup, quiet=options.quiet)
        say("ready; the page is open until Ctrl-C", quiet=options.quiet)
        while server.is_alive() and not stop.is_set():
            server.join(0.2)


@contextlib.contextmanager
def _noticed() -> Iterator[threading.Event]:
    """Set by Ctrl-C, besides the exception: one that is raised amid an import may be swallowed there."""
    stop = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # Python allows no handlers there
        yield stop
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _load(catalogue: Catalogue, startup: Startup, *, quiet: bool) -> None:
    """Import the libraries and warm them up now, not while somebody waits for the first picture."""

    def step(what: str) -> None:
        startup.step(what)
        say(f"{what} ...", quiet=quiet)

    step("importing torch and timm")
    importlib.import_module("unrolled.models.resolve")  # brings both
    from unrolled.explorer.look import look_at
    from unrolled.explorer.samples import sample

    catalogue.check_weights()
    first = catalogue.default()[0]
    step(f"opening {catalogue.choices[first].label}")
    with catalogue.lock:
        look_at(catalogue.open(first), sample("shapes"))


def _show(address: str) -> None:
    import webbrowser

    webbrowser.open(address)
