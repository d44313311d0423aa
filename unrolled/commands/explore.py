"""`unrolled explore`."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from unrolled.commands.options import verb
from unrolled.harness import JsonFlags, QuietFlags, print_answer
from unrolled.subjects.models import choose_device
from unrolled.subjects.options import Device, MachineFlags
from unrolled.terminal import say

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
    from unrolled.explorer.look import look_at
    from unrolled.explorer.models import Catalogue
    from unrolled.explorer.neighbours import ImageSet
    from unrolled.explorer.samples import sample
    from unrolled.explorer.server import listen, serve

    listener = listen(HOST, options.port)
    catalogue = Catalogue(
        specs=options.model, runs=options.runs, pretrained=options.pretrained, device=choose_device(options.device),
        seed=options.seed,
    )  # fmt: skip
    app = create_app(catalogue, None if options.images is None else ImageSet.folder(options.images))
    with catalogue.lock:  # libraries load and warm up now, not while somebody waits for the first picture
        look_at(catalogue.open(catalogue.default()[0]), sample("shapes"))
    address = f"http://{HOST}:{listener.getsockname()[1]}/"
    print_answer("explore", {"address": address}, address, json=options.json)
    say("the page is open until Ctrl-C", quiet=options.quiet)
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is how it is meant to end
        serve(app, listener, when_ready=(lambda: _show(address)) if options.open_ else None)


def _show(address: str) -> None:
    import webbrowser

    webbrowser.open(address)
