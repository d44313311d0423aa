"""Each variant of the white-box family against its published form: equal outputs first, then time, taking turns.

    python -m benchmarks.family [--rounds 9] [--device cpu|cuda] [--threads 1] [--clock wall|cpu] [--quick]

The published forms are `benchmarks.published_forms`. Prints a table in Markdown: milliseconds of both, the ratio, and
the ratio that was asked for. Outputs must agree to 1e-5 in float32 before anything is timed (relative to the largest
output; on a GPU without TF32); whole encoders, whose layers amplify rounding, are compared in float64. "Operation"
means without the projections before and after it, which both forms share.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import published_forms
from benchmarks.timing import CLOCKS, interleaved, machine
from unrolled.layers import CBSA, TSSA, CRATEBlock
from unrolled.models import MaskedAutoencoder

DTYPES = (torch.float32, torch.bfloat16)


@dataclass
class Row:
    """One comparison: two functions of no arguments, and the ratio of their times that was asked for."""

    name: str
    size: str
    published: Callable[[], Any]
    ours: Callable[[], Any]
    target: float | None = None
    check: Callable[[], tuple[Tensor, Tensor]] | None = None


def no_grad(run: Callable[..., Tensor], *args: Any) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.inference_mode():
            return run(*args)

    return call


def with_backward(run: Callable[..., Tensor], *args: Any) -> Callable[[], None]:
    leaf = args[-1].clone().requires_grad_()

    def call() -> None:
        leaf.grad = None
        run(*args[:-1], leaf).sum().backward()

    return call


def describe(z: Tensor) -> str:
    b, n, d = z.shape
    return f"{b} x {n} tokens, d = {d}, {'fp32' if z.dtype == torch.float32 else 'bf16'}"


def alpha(dims: list[tuple[int, int, int]], device: str, tokens: int) -> list[Row]:
    """CRATE-alpha blocks, inference."""
    rows = []
    for dim, heads, batch in dims:
        block = CRATEBlock(dim, heads, sparsifier="overcomplete", decoupled=True, residual=True, bias=False)
        for dtype in DTYPES:
            own = copy.deepcopy(block).to(device, dtype).eval()
            z = torch.randn(batch, tokens, dim).to(device, dtype)
            forms = no_grad(published_forms.alpha_block, own, z), no_grad(own, z)
            rows.append(Row("CRATE-alpha block, inference", describe(z), *forms, target=1.2))
    return rows


def statistics(shapes: list[tuple[int, int, int, int]], device: str) -> list[Row]:
    """Token statistics: the operation itself and, for the first shape, with its projections."""
    rows = []
    for index, (dim, heads, batch, tokens) in enumerate(shapes):
        for dtype in DTYPES:
            whole = TSSA(dim, heads).to(device, dtype)
            z = torch.randn(batch, tokens, dim).to(device, dtype)
            itself: Any = copy.deepcopy(whole)
            itself.subspaces, itself.output = nn.Identity(), nn.Identity()
            layers = [("TSSA operation", itself, 1.5)] + [("TSSA with projections", whole, None)] * (index == 0)
            for name, layer, target in layers:
                for kind, wrap in (("forward", no_grad), ("forward and backward", with_backward)):
                    forms = wrap(published_forms.token_statistics, layer, z), wrap(layer, z)
                    check = partial(both, no_grad(published_forms.token_statistics, layer, z), no_grad(layer, z))
                    goal = target if kind == "forward" else None
                    rows.append(Row(f"{name}, {kind}", describe(z), *forms, target=goal, check=check))
    return rows


def contraction(dim: int, heads: int, batch: int, side: int, device: str) -> list[Row]:
    """CBSA, forward and with backward."""
    rows = []
    for dtype in DTYPES:
        layer = CBSA(dim, heads).to(device, dtype)
        z = torch.randn(batch, 1 + side**2, dim).to(device, dtype)
        check = partial(both, no_grad(published_forms.contract_and_broadcast, layer, z), no_grad(layer, z))
        for kind, wrap in (("forward", no_grad), ("forward and backward", with_backward)):
            forms = wrap(published_forms.contract_and_broadcast, layer, z), wrap(layer, z)
            rows.append(Row(f"CBSA layer, {kind}", describe(z), *forms, check=check))
    return rows


def masked(size: dict[str, Any], batch: int, device: str) -> list[Row]:
    """CRATE-MAE's encoder at 75 % masking: published at full length, ours at full length and on what is visible."""
    rows = []
    model = MaskedAutoencoder(**size, decoder_depth=1).eval()
    patches = model.pos_embed.shape[1] - 1
    noise = torch.rand(batch, patches, device=device)
    for dtype in DTYPES:
        full = copy.deepcopy(model).to(device, dtype)
        visible = copy.deepcopy(full)
        visible.encoder = "visible"
        images = torch.randn(batch, 3, full.patch_embed.img_size[0], full.patch_embed.img_size[0]).to(device, dtype)

        def ours(m: Any, x: Tensor) -> Tensor:
            tokens = m.patch_embed(x)
            order, kept = m._order(tokens.flatten(1, 2), 0.75, noise)
            return m._encode(tokens.flatten(1, 2), m.pos_embed, order[:, :kept], order.argsort(1))

        def published(m: Any, x: Tensor) -> Tensor:
            return published_forms.encoder(m, published_forms.masked_tokens(m, x, noise)[0])

        def on_visible(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
            """The published layers on the visible tokens alone, and ours at the same places of its output."""
            z, kept = published_forms.masked_tokens(m, x, noise)
            places = torch.cat([kept.new_zeros(len(kept), 1), kept + 1], 1).unsqueeze(-1).expand(-1, -1, z.shape[-1])
            with torch.inference_mode():  # ours adds positions again, for the decoder
                positions = m.pos_embed.expand(len(z), -1, -1).gather(1, places)
                return published_forms.encoder(m, z.gather(1, places)) + positions, ours(m, x).gather(1, places)

        words = f"{batch} images of {patches} patches, d = {size['dim']}, {'fp32' if dtype == DTYPES[0] else 'bf16'}"
        first, last = no_grad(published, full, images), no_grad(ours, visible, images)
        exact = copy.deepcopy(full).double(), images.double()
        check = partial(both, no_grad(published, *exact), no_grad(ours, *exact))
        rows.append(Row("MAE encoder, all tokens", words, first, no_grad(ours, full, images), check=check))
        seen = partial(on_visible, copy.deepcopy(visible).double(), images.double())
        rows.append(Row("MAE encoder, visible tokens only", words, first, last, target=2.0, check=seen))
    return rows


def both(published: Callable[[], Tensor], ours: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    return published(), ours()


def difference(row: Row) -> float:
    """Largest difference of the outputs over the largest output."""
    with torch.no_grad():
        published, ours = row.check() if row.check else both(row.published, row.ours)
    return float((published.double() - ours.double()).abs().max() / published.double().abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    device, many = args.device, 8 if args.device == "cuda" else 1
    if args.quick:
        rows = alpha([(48, 2, 2)], device, 50) + statistics([(48, 4, 2, 50), (48, 4, 1, 128)], device)
        rows += contraction(48, 4, 2, 12, device)
        rows += masked({"image_size": 64, "patch_size": 8, "dim": 48, "depth": 2, "heads": 4}, 2, device)
    else:
        rows = alpha([(192, 3, 16 * many), (384, 6, 8 * many), (768, 12, 4 * many)], device, 197)
        rows += statistics([(384, 8, 16 * many, 196), (192, 4, 16 * many, 196), (384, 8, many, 4096)], device)
        rows += contraction(384, 6, 8 * many, 28, device)
        rows += masked({"dim": 576, "depth": 12, "heads": 12}, 4 * many, device)
    print(f"{machine(device)}, minimum of {args.rounds} rounds, {args.clock} clock\n")
    print("| form | size | published, ms | here, ms | speed-up | asked | largest relative difference |")
    print("| --- | --- | --: | --: | --: | --: | --: |")
    for row in rows:
        apart = difference(row)
        if "fp32" in row.size and not apart <= 1e-5:
            raise SystemExit(f"{row.name}, {row.size}: outputs differ by {apart:.1e}; not the same function")
        runs: dict[str, Callable[[], object]] = {"published": row.published, "ours": row.ours}
        best = interleaved(runs, args.rounds, CLOCKS[args.clock])
        published, ours = 1e3 * best["published"], 1e3 * best["ours"]
        asked = "" if row.target is None else f"{row.target:.1f}"
        times = f"{published:.2f} | {ours:.2f} | {published / ours:.2f}"
        print(f"| {row.name} | {row.size} | {times} | {asked} | {apart:.0e} |", flush=True)


if __name__ == "__main__":
    main()
