"""`unrolled explore`."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from unrolled.commands.common import Device, choose_device
from unrolled.commands.settings import ConfigFiles, Pretrained, Quiet

HOST = "127.0.0.1"


def explore(
    *,
    model: Annotated[tuple[str, ...], Parameter(negative="", consume_multiple=True)] = (),
    pretrained: Pretrained = False,
    runs: Path = Path("runs"),
    images: Path | None = None,
    port: int = 8765,
    open_: Annotated[bool, Parameter(name="--open", negative="--no-open", help="Open it in the browser.")] = True,
    seed: int = 0,
    device: Device = "auto",
    config: ConfigFiles = (),
    quiet: Quiet = False,
) -> None:
    """Look inside models in a browser: a local page for pictures, learning in context, and alignment.

    Only this machine can reach the page, and it asks no network. Pictures dropped on it stay in memory. Ctrl-C ends it.

        unrolled explore
        unrolled explore --model timm:vit_tiny_patch16_224 --pretrained
        unrolled explore --runs experiments --images photos/ --port 9000

    Parameters
    ----------
    model
        Further models to choose from, put first: any string other verbs take, or run folders.
    runs
        Folder of runs; every image model in it can be chosen.
    images
        Folder of pictures whose neighbours two models are compared on; default: scikit-learn's digits.
    port
        Where the page is on 127.0.0.1; 0 takes any free port.
    seed
        Of random weights.
    device
        What models run on.
    """
    from unrolled.errors import require

    if not 0 <= port <= 65535:
        raise ValueError(f"--port {port}: give a number from 0 to 65535")
    # read by the hub's client when it is imported: what is not on this machine is not fetched
    os.environ["HF_HUB_OFFLINE"] = "1"
    for module in ("starlette", "uvicorn"):
        require(module, extra="explore", feature="unrolled explore")

    from unrolled.explorer import create_app
    from unrolled.explorer.look import look_at
    from unrolled.explorer.models import Catalogue
    from unrolled.explorer.neighbours import ImageSet
    from unrolled.explorer.samples import sample
    from unrolled.explorer.server import listen, serve

    listener = listen(HOST, port)
    catalogue = Catalogue(specs=model, runs=runs, pretrained=pretrained, device=choose_device(device), seed=seed)
    app = create_app(catalogue, None if images is None else ImageSet.folder(images))
    with catalogue.lock:  # libraries load and warm up now, not while somebody waits for the first picture
        look_at(catalogue.open(catalogue.default()[0]), sample("shapes"))
    address = f"http://{HOST}:{listener.getsockname()[1]}/"
    print(address, flush=True)
    if not quiet:
        print("the page is open until Ctrl-C", file=sys.stderr)
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is how it is meant to end
        serve(app, listener, when_ready=(lambda: _show(address)) if open_ else None)


def _show(address: str) -> None:
    import webbrowser

    webbrowser.open(address)
