"""Time for the next token by the length of what came before: from the cache, and by recomputing everything.

    python -m benchmarks.decode [--rounds 9] [--lengths 64 ... 4096] [--dim 256] [--svg docs/decode_cost.svg] [--quick]

Four language models that differ in their layers alone: MSSA (CRATE-GPT), token statistics (ToST-GPT), mesa layers and
softmax (GPT-2-shaped). At every length the models take turns and the least of `--rounds` times counts (recomputing
1,024 tokens and more: of at most 7). Before anything is timed, the logits of both ways must agree. Prints two tables in
Markdown, times and the caches' sizes, with what 1,000 more tokens cost and the exponent of length, both fitted to the
upper half of the lengths (a cached step has a fixed cost besides, which keeps its exponent below one); draws times
against length.
"""

from __future__ import annotations

import argparse
import math
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import CLOCKS, exponent, interleaved, machine
from unrolled.models.sequence import LanguageConfig, LanguageModel
from unrolled.report import LineChart, Series

KINDS: dict[str, dict[str, Any]] = {
    "CRATE-GPT": {"layers": "mssa", "second": "ista"},
    "ToST-GPT": {"layers": "tssa"},
    "mesa": {"layers": "mesa"},
    "GPT-2": {"layers": "softmax"},
}


def build(kind: str, dim: int, depth: int, length: int) -> LanguageModel:
    """A language model of this kind, in eval mode."""
    settings = {**KINDS[kind], "layers": (KINDS[kind]["layers"],) * depth}
    config = LanguageConfig(dim=dim, heads=dim // 64 or 1, vocab_size=512, max_length=length, **settings)
    return LanguageModel(config).eval()


def cache_bytes(state: Any) -> int:
    """What a model's state keeps."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, tuple):
        return sum(cache_bytes(part) for part in state)
    parts = vars(state).values() if hasattr(state, "__dict__") else ()
    return sum(cache_bytes(part) for part in parts)


@torch.inference_mode()
def step(model: LanguageModel, token: Tensor, state: Any) -> Tensor:
    return model(token, state=state, return_state=True)[0][:, -1]


@torch.inference_mode()
def recompute(model: LanguageModel, tokens: Tensor) -> Tensor:
    return model(tokens)[:, -1]


def measure(models: dict[str, LanguageModel], length: int, rounds: int, clock: str, device: str) -> dict[str, Any]:
    """Milliseconds for token number `length`, both ways, and kilobytes of the caches before it."""
    tokens = torch.randint(512, (1, length), device=device)
    runs, caches, errors = {}, {}, {}
    for kind, model in models.items():
        with torch.inference_mode():
            _, state = model(tokens[:, :-1], return_state=True)
        runs[kind] = partial(step, model, tokens[:, -1:], state)
        whole = recompute(model, tokens)
        errors[kind] = float((runs[kind]() - whole).abs().max() / whole.abs().max())
        if not errors[kind] <= 1e-3:
            raise SystemExit(f"{kind} at {length} tokens: cached and recomputed logits differ by {errors[kind]:.0e}")
        caches[kind] = cache_bytes(state) / 1024
    again = {kind: partial(recompute, model, tokens) for kind, model in models.items()}
    return {
        "length": length,
        "cached": interleaved(runs, rounds, CLOCKS[clock]),
        "recomputed": interleaved(again, rounds if length < 1024 else min(rounds, 7), CLOCKS[clock]),
        "cache": caches,
        "error": errors,
    }


def tables(rows: list[dict[str, Any]]) -> str:
    """Times and cache sizes by length, Markdown."""
    lengths = [row["length"] for row in rows]
    upper = [row for row in rows if row["length"] >= math.sqrt(lengths[0] * lengths[-1])]
    head = "| model | " + " | ".join(f"{n:,}" for n in lengths) + " |"
    rule = "\n| --- |" + " --: |" * (len(lengths) + 1)
    text = f"Milliseconds for the next token after so many tokens.\n\n{head} per 1,000 more | exponent |{rule} --: |"
    for way in ("cached", "recomputed"):
        for kind in rows[0][way]:
            x, y = [row["length"] for row in upper], [1e3 * row[way][kind] for row in upper]
            cells = " | ".join(f"{1e3 * row[way][kind]:.2f}" for row in rows)
            more = 1e3 * statistics.linear_regression(x, y).slope
            text += f"\n| {kind}, {way} | {cells} | {more:.2f} | {exponent(x, y):.2f} |"
    text += f"\n\nKilobytes of the cache (one sequence, fp32).\n\n{head} of GPT-2's at the end |{rule}"
    for kind in rows[0]["cache"]:
        cells = " | ".join(f"{row['cache'][kind]:,.0f}" for row in rows)
        last = rows[-1]["cache"]
        text += f"\n| {kind} | {cells} | {last[kind] / last['GPT-2']:.2f} |"
    worst = max(value for row in rows for value in row["error"].values())
    return text + f"\n\nLargest relative difference of the logits of the two ways: {worst:.0e}."


def draw(rows: list[dict[str, Any]]) -> str:
    """Milliseconds by length as a standalone SVG; recomputation dashed."""
    steps = [math.log2(row["length"]) for row in rows]
    series = [
        Series(
            label=kind if way == "cached" else f"{kind}, anew",
            x=steps,
            y=[1e3 * row[way][kind] for row in rows],
            color=place,
            dashed=way != "cached",
        )
        for way in ("cached", "recomputed")
        for place, kind in enumerate(rows[0][way])
    ]
    title = "milliseconds for the next token"
    return LineChart(title=title, x_label="log2 of the tokens before it", series=series, log_y=True).svg(
        "decode", standalone=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--svg", type=Path, help="where to draw, e.g. docs/decode_cost.svg")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    lengths, dim, depth = sorted(args.lengths), args.dim, args.depth
    if args.quick:
        lengths, dim, depth = [16, 32, 64, 128], 64, 2
    models = {kind: build(kind, dim, depth, lengths[-1]).to(args.device) for kind in KINDS}
    rows = [measure(models, length, args.rounds, args.clock, args.device) for length in lengths]
    print(f"{machine(args.device)}; width {dim}, depth {depth}, minimum of {args.rounds} rounds, {args.clock} clock\n")
    print(tables(rows))
    if args.svg:
        args.svg.write_text(draw(rows))


if __name__ == "__main__":
    main()
