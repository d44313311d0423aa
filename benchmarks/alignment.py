"""Speed of the alignment metrics against the published algorithms, written naively here and timed in the same run.

    python benchmarks/alignment.py            # mutual k-NN and CKA at n=8192, d=768; a small layer grid
    python benchmarks/alignment.py --grid     # also 454 x 352 layers at n=1024 and p-values for ten model pairs

Prints one JSON object. Features are random; times are wall seconds, single runs.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import unrolled.alignment as al
from unrolled.alignment.scale import mutual_knn_sampled
from unrolled.ops.neighbours import nearest_neighbours

Models = dict[str, tuple[int, int]]
METRICS = ("mutual_knn", "cka", "unbiased_cka", "cknna")
# (layers including embeddings, width) of the language and vision models of the published comparison
LANGUAGE = {
    "bloomz-560m": (25, 1024), "bloomz-1b1": (25, 1536), "bloomz-1b7": (25, 2048), "bloomz-3b": (31, 2560),
    "bloomz-7b1": (31, 4096), "open-llama-3b": (27, 3200), "open-llama-7b": (33, 4096), "open-llama-13b": (41, 5120),
    "llama-7b": (33, 4096), "llama-13b": (41, 5120), "llama-30b": (61, 6656), "llama-65b": (81, 8192),
}  # fmt: skip
VISION = {
    "vit-tiny": (12, 192), "vit-small": (12, 384), "vit-base": (12, 768), "vit-large": (24, 1024),
    "mae-base": (12, 768),
    "mae-large": (24, 1024), "mae-huge": (32, 1280), "dino-small": (12, 384), "dino-base": (12, 768),
    "dino-large": (24, 1024), "dino-giant": (40, 1536), "clip-base": (12, 768), "clip-large": (24, 1024),
    "clip-huge": (32, 1280), "clip-ft-base": (12, 768), "clip-ft-large": (24, 1024), "clip-ft-huge": (32, 1280),
}  # fmt: skip


def naive_mutual_knn(x: Tensor, y: Tensor, k: int) -> float:
    """Full sort of every row, dense masks: the published algorithm."""
    n, masks = len(x), []
    for side in (x, y):
        scores = side @ side.T
        scores.fill_diagonal_(-1e8)
        mask = torch.zeros(n, n)
        mask.scatter_(1, scores.argsort(dim=1, descending=True)[:, :k], 1.0)
        masks.append(mask)
    return float(((masks[0] * masks[1]).sum(1) / k).mean())


def naive_cka(x: Tensor, y: Tensor) -> float:
    """Centring by n x n products, three times three of them: the published algorithm."""
    n = len(x)
    h = torch.eye(n) - 1 / n
    k, l = x @ x.T, y @ y.T

    def hsic(p: Tensor, q: Tensor) -> Tensor:
        return torch.trace(p @ h @ q @ h)

    return float(hsic(k, l) / torch.sqrt(hsic(k, k) * hsic(l, l)))


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    value = function()
    return time.perf_counter() - start, value


def matmul_peak() -> float:
    """Floating-point operations a second of a large product here."""
    a, b = torch.randn(2, 3072, 3072)
    a @ b
    return 2 * 3072**3 / min(timed(lambda: a @ b)[0] for _ in range(3))


def pairs(n: int, d: int) -> tuple[Tensor, Tensor]:
    shared = torch.randn(n, 16)
    x, y = (torch.nn.functional.normalize(shared @ torch.randn(16, d) + torch.randn(n, d), dim=1) for _ in range(2))
    return x, y


def ratios(n: int, d: int) -> dict[str, Any]:
    x, y = pairs(n, d)
    peak = matmul_peak()
    ours, value = timed(lambda: al.mutual_knn(x, y))
    naive, expected = timed(lambda: naive_mutual_knn(x, y, 10))
    search, _ = timed(lambda: nearest_neighbours(x, 10))
    ours_cka, cka = timed(lambda: al.cka(x, y))
    naive_seconds, expected_cka = timed(lambda: naive_cka(x, y))
    return {
        "n": n, "d": d, "matmul_gflops": peak / 1e9,
        "mutual_knn": {
            "seconds": ours, "naive_seconds": naive, "ratio": naive / ours, "difference": abs(value - expected),
        },
        # multiplications actually done: each tile of scores serves rows and columns
        "search_share_of_peak": n * n * d / search / peak,
        "cka": {
            "seconds": ours_cka, "naive_seconds": naive_seconds, "ratio": naive_seconds / ours_cka,
            "difference": abs(cka - expected_cka),
        },
    }  # fmt: skip


def layers(models: Models, n: int, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Random features, one layer at a time."""
    generator = torch.Generator().manual_seed(seed)
    for name, (depth, width) in models.items():
        for layer in range(depth):
            yield f"{name}/{layer:02d}", torch.randn(n, width, generator=generator)


def grid(n: int, language: Models, vision: Models, draws: int, pairs: int) -> dict[str, Any]:
    models = enumerate((language, vision))
    prepare, sides = timed(lambda: [al.prepare_layers(layers(m, n, seed), METRICS) for seed, m in models])
    out: dict[str, Any] = {"n": n, "layers": [len(side.names) for side in sides], "prepare_seconds": prepare}
    for metric in METRICS:
        seconds, found = timed(partial(al.layer_grid, sides[0], sides[1], metric))
        z = (found.scores - found.null_mean) / found.null_std
        out[metric] = {"grid_seconds": seconds, "max": float(found.scores.max()), "z_std": float(z.std())}
    start = time.perf_counter()
    tests = {}
    for a, b in list(zip(language, list(vision) * 2, strict=False))[:pairs]:
        left, right = (only(side, name) for side, name in zip(sides, (a, b), strict=True))
        tests[f"{a} x {b}"] = {m: al.compare(left, right, m, draws=draws).p_value for m in METRICS}
    out["p_values"] = tests
    out["p_value_seconds"] = time.perf_counter() - start
    out["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return out


def only(side: al.Layers, model: str) -> al.Layers:
    kept = [i for i, name in enumerate(side.names) if name.startswith(f"{model}/")]
    prepared = {metric: [layers[i] for i in kept] for metric, layers in side.prepared.items()}
    return al.Layers([side.names[i] for i in kept], side.n, prepared, [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=8192, help="samples of the ratio benchmarks")
    parser.add_argument("--d", type=int, default=768, help="width of the ratio benchmarks")
    parser.add_argument("--grid", action="store_true", help="run the whole published grid (minutes)")
    parser.add_argument("--no-ratios", action="store_true", help="skip the ratio benchmarks")
    parser.add_argument("--draws", type=int, default=200, help="relabellings per model pair")
    parser.add_argument(
        "--sampled-n", type=int, default=0, help="also time the query-sampled estimate at this n, d=256"
    )
    arguments = parser.parse_args()
    torch.manual_seed(0)
    record: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if not arguments.no_ratios:
        record["ratios"] = ratios(arguments.n, arguments.d)
    if arguments.sampled_n:
        x, y = pairs(arguments.sampled_n, 256)
        seconds, estimate = timed(lambda: mutual_knn_sampled(x, y))
        record["sampled"] = {"seconds": seconds, "score": estimate.score, "standard_error": estimate.standard_error}
    if arguments.grid:
        record["grid"] = grid(1024, LANGUAGE, VISION, arguments.draws, 10)
    else:
        small = {"a": (6, 256)}, {"b": (5, 192)}
        record["grid"] = grid(256, *small, draws=19, pairs=1)
    json.dump(record, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
