"""The mesa solve of this checkout beside that of another revision, and beside itself without its checks, in turns.

    python -m benchmarks.mesa_revisions [REVISION] [--rounds 9] [--clock wall|cpu] [--quick]

Prints milliseconds and ratios in Markdown: the sizes of `benchmarks/mesa.py`, forward and with backward, fixed ridges
under decay, whole MesaNet layers, and steps of decoding. Without the checks every condition number counts as small, so
that the last column is what looking at them costs where they are.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import CLOCKS, interleaved, machine

HERE = Path(__file__).resolve().parents[1]
RIDGE = 0.25


class Copy:
    """The package as it stands in a folder, imported beside other copies of it."""

    def __init__(self, root: Path, *, checked: bool = True) -> None:
        ours = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "unrolled"}
        sys.path.insert(0, str(root))
        try:
            self.mesa = importlib.import_module("unrolled.ops").mesa
            self.layer = importlib.import_module("unrolled.layers.mesa").MesaNetLayer
            for module in ("chunk", "predict", "recurrent") if not checked else ():
                importlib.import_module(f"unrolled.ops.mesa_solve.{module}").conditioned = lambda *_: True
        finally:
            sys.path.remove(str(root))
            for name in [name for name in sys.modules if name.split(".")[0] == "unrolled"]:
                del sys.modules[name]
            sys.modules.update(ours)


def unit(*shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1)


def cases(quick: bool) -> dict[str, Callable[[Copy], Callable[[], Any]]]:
    """What is timed: for each name, a copy of the package -> a call of it."""
    found: dict[str, Callable[[Copy], Callable[[], Any]]] = {}
    sizes = [(2, 256, 32)] if quick else [(8, 2048, 64), (1024, 50, 20), (8, 2048, 128), (1, 16384, 64)]

    def solve(n: int, t: int, d: int, backward: bool, least: float | None) -> Callable[[Copy], Callable[[], Any]]:
        q, k, v = (unit(1, n, t, d).requires_grad_(backward) for _ in range(3))
        decay = None if least is None else least + (1 - least) * torch.rand(1, n, t)

        def of(copy: Copy) -> Callable[[], Any]:
            def forward() -> Any:
                out = copy.mesa(q, k, v, RIDGE, decay)
                return out.sum().backward() if backward else out

            return forward

        return of

    for n, t, d in sizes:
        for backward in (False, True):
            ways = "forward and backward" if backward else "forward"
            found[f"{n} x {t} steps of {d}, {ways}"] = solve(n, t, d, backward, None)
    for least in (0.9975, 0.9):
        for backward in (False, True):
            ways = "forward and backward" if backward else "forward"
            found[f"decay from {least}, {ways}"] = solve(*sizes[0], backward, least)

    def layer(backward: bool) -> Callable[[Copy], Callable[[], Any]]:
        tokens = torch.randn(2 if quick else 8, 64 if quick else 512, 256)

        def of(copy: Copy) -> Callable[[], Any]:
            torch.manual_seed(0)
            block = copy.layer(dim=256, heads=4, dim_head=64)
            return lambda: block(tokens).sum().backward() if backward else block(tokens)

        return of

    found["MesaNet layer, forward"] = layer(False)
    found["MesaNet layer, forward and backward"] = layer(True)

    def step(batch: int, heads: int, d: int) -> Callable[[Copy], Callable[[], Any]]:
        q, k, v = (unit(batch, heads, 65, d) for _ in range(3))

        def of(copy: Copy) -> Callable[[], Any]:
            def decode() -> None:
                state = None
                for t in range(64):
                    now = slice(t, t + 1)
                    _, state = copy.mesa(
                        q[:, :, now], k[:, :, now], v[:, :, now], RIDGE, state=state, return_state=True
                    )

            return decode

        return of

    for batch, heads, d in [(1, 4, 32)] if quick else [(1, 4, 32), (1, 8, 64), (8, 8, 64)]:
        found[f"64 steps of decoding, {batch} x {heads} heads of {d}"] = step(batch, heads, d)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", nargs="?", help="what git calls the other one; none: only the cost of the checks")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        copies = {"here": Copy(HERE), "unchecked": Copy(HERE, checked=False)}
        if arguments.revision is not None:
            packed = Path(folder) / "package.tar"
            command = ["git", "-C", str(HERE), "archive", "-o", str(packed), arguments.revision, "unrolled"]
            subprocess.run(command, check=True)
            subprocess.run(["tar", "-xf", str(packed), "-C", folder], check=True)
            copies[arguments.revision] = Copy(Path(folder))
        print(f"{machine()}, {arguments.clock} clock\n")
        print(f"| ms | {' | '.join(copies)} | {' | '.join(f'here / {name}' for name in list(copies)[1:])} |")
        print("|" + " --- |" * (2 * len(copies)))
        for name, case in cases(arguments.quick).items():
            calls = {label: case(copy) for label, copy in copies.items()}
            with torch.set_grad_enabled("backward" in name):
                best = interleaved(calls, arguments.rounds, CLOCKS[arguments.clock])
            times = " | ".join(f"{1e3 * best[label]:.1f}" for label in copies)
            ratios = " | ".join(f"{best['here'] / best[label]:.2f}" for label in list(copies)[1:])
            print(f"| {name} | {times} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
