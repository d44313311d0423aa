"""What a mutual k-NN score means: chance, Gaussian copies, the number of samples, copies of rows, bounds.

python -m benchmarks.knn_facts          # computes, and writes docs/ideas/knn.md and docs/ideas/knn.json
python -m benchmarks.knn_facts --page   # the page alone, from the numbers
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor

import unrolled.alignment as al

N, K = 1024, 10
SCORE = 0.2  # whose meaning is asked for
WIDTHS = (8, 64, 512)
CORRELATIONS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
SAMPLES = (256, 1024, 4096)
COPIES = (1, 2, 5, 11, 21, 51)
DRAWS = 5
DOCS = Path(__file__).resolve().parents[1] / "docs" / "ideas"


def pair(n: int, d: int, correlation: float, seed: int) -> tuple[Tensor, Tensor]:
    """Independent Gaussian units [n, d], and a copy of each that correlates so much with it."""
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, n, d, generator=generator)
    return x, correlation * x + math.sqrt(1 - correlation**2) * noise


def scores(n: int, d: int, correlation: float) -> dict[str, Any]:
    """Mean and standard deviation of the score over draws."""
    values = [al.mutual_knn(*pair(n, d, correlation, seed), K) for seed in range(DRAWS)]
    return {"n": n, "d": d, "correlation": correlation, "mean": fmean(values), "deviation": stdev(values)}


def chance(n: int) -> dict[str, Any]:
    """Exact mean and standard deviation over all relabellings of one pair of independent sides."""
    metric = al.MutualKNN(k=K)
    sides = [[metric.prepare(side)] for side in pair(n, 64, 0.0, 0)]
    moments = metric.null_moments(*sides)
    assert moments is not None
    mean, deviation = (float(each) for each in moments)
    return {"n": n, "mean": mean, "deviation": math.sqrt(deviation)}


def copies(m: int) -> dict[str, Any]:
    """One side of groups of m equal rows, the other the same rows told apart by a little noise."""
    groups = torch.randn(N // m, 64, generator=torch.Generator().manual_seed(0)).repeat_interleave(m, 0)
    noise = torch.randn(groups.shape, generator=torch.Generator().manual_seed(1))
    return {"copies": m, "score": al.mutual_knn(al.Representation(groups), al.Representation(groups + 0.05 * noise), K)}


def facts() -> dict[str, Any]:
    """All numbers of the page."""
    return {
        "chance": [chance(n) for n in SAMPLES],
        "gaussian": [scores(N, d, correlation) for d in WIDTHS for correlation in CORRELATIONS],
        "samples": [scores(n, d, 0.9) for d in WIDTHS for n in SAMPLES],
        "copies": [copies(m) for m in COPIES],
    }


def correlation_of(found: dict[str, Any], d: int, score: float) -> float:
    """The correlation of Gaussian copies that gives a score, between the two nearest that were drawn."""
    points = [(row["mean"], row["correlation"]) for row in found["gaussian"] if row["d"] == d]
    return float(np.interp(score, *zip(*points, strict=True)))


def markdown(found: dict[str, Any]) -> str:
    """The page."""
    here = next(row for row in found["chance"] if row["n"] == N)
    means = {d: correlation_of(found, d, SCORE) for d in WIDTHS}
    above = (SCORE - here["mean"]) / here["deviation"]
    falls = {(row["d"], row["n"]): row["mean"] for row in found["samples"]}
    middle = WIDTHS[len(WIDTHS) // 2]
    few, many = falls[middle, SAMPLES[0]], falls[middle, SAMPLES[-1]]
    by_n = {row["n"]: row["mean"] for row in found["chance"]}
    like = ", ".join(f"{value:.2f} ({d} units)" for d, value in means.items())
    blocks = [
        f"# What {SCORE} means: bounds of mutual k-NN",
        f"`mutual_knn` is the share of the k = {K} nearest neighbours that two representations have in common. The "
        "numbers of this page are written by `python -m benchmarks.knn_facts`.",
        "## Chance, and how far it goes",
        "Where rows are paired at random, the expected score is k / (n - 1), whatever the features are; its spread "
        "over all relabellings is known exactly too (here of two independent sets of 64 Gaussian units).",
        _table(
            ["n", "chance", "standard deviation"],
            [[f"{row['n']:,}", f"{row['mean']:.4f}", f"{row['deviation']:.5f}"] for row in found["chance"]],
        ),
        f"So {SCORE} at n = {N:,} is {SCORE / here['mean']:.0f} times chance and {above:.0f} standard deviations above "
        "it. Hardly any two networks that see the same images are at chance: random weights keep neighbourhoods of "
        "pixels. The untrained twin is the better zero ([chance and controls](chance.md)).",
        "## Copies with noise",
        "y is a copy of x, unit by unit correlated so much with it; independent Gaussian units, "
        f"n = {N:,}, mean of {DRAWS} draws.",
        _table(
            ["correlation", *(f"{d} units" for d in WIDTHS)],
            [
                [f"{at:g}", *(f"{row['mean']:.3f}" for row in found["gaussian"] if row["correlation"] == at)]
                for at in CORRELATIONS
            ],
        ),
        f"A score of {SCORE} is what copies with a correlation of {like} have: far from chance, and far from the same "
        "neighbourhoods. Scores near 1 need copies that are nearly exact.",
        "## It falls with n at fixed k",
        "The tenth neighbour of a larger set is nearer, and harder to agree on. The same copies, with a correlation of "
        "0.9:",
        _table(
            ["n", *(f"{d} units" for d in WIDTHS), "chance"],
            [[f"{n:,}", *(f"{falls[d, n]:.3f}" for d in WIDTHS), f"{by_n[n]:.4f}"] for n in SAMPLES],
        ),
        f"Compare scores of one n only: {few:.2f} and {many:.2f} are the same {middle} units. "
        "[`platonic-samples`](../studies/platonic-samples/README.md) has it for networks, where k = n / 100 stays.",
        "## If A is like B and B like C",
        "Then A is like C at least as much as the two leave over: **s(A, C) >= s(A, B) + s(B, C) - 1**, so 0.9 and 0.9 "
        "give at least 0.8. Of the k neighbours of a sample in B, a are shared with A and c with C; at least a + c - k "
        "are in both, and so shared by A and C. The mean over samples is the bound.",
        "It says nothing below: 0.4 and 0.4 leave A and C free to share nothing. In other words 1 - s keeps the "
        "triangle inequality. With ties for the last place the score is a cosine of shared-out places, and the bound "
        "holds only for scores without them.",
        "## Ceilings where many rows belong to one",
        "If one side cannot tell m rows apart (five captions, one photo), its neighbours among them are a draw, and no "
        "other side can agree with it fully. The other side here is the same but for noise of 5 % that tells copies "
        f"apart, and costs what m = 1 shows; n about {N:,}, {middle} units.",
        _table(
            ["equal rows m", "score", "sqrt(k / (m - 1))"],
            [[str(row["copies"]), f"{row['score']:.3f}", _ceiling(row["copies"])] for row in found["copies"]],
        ),
        "With more copies than neighbours, the k places are shared out among m - 1 rows, and the best cosine with k of "
        "them is sqrt(k / (m - 1)). Give such rows as `groups=` for p-values, or keep one of each.",
    ]
    return "\n\n".join(blocks) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _ceiling(m: int) -> str:
    return f"{math.sqrt(K / (m - 1)):.3f}" if m - 1 >= K else ""


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="compute nothing")
    numbers = DOCS / "knn.json"
    if not parser.parse_args(arguments).page:
        torch.set_num_threads(1)
        numbers.write_text(json.dumps(facts(), indent=1) + "\n")
    (DOCS / "knn.md").write_text(markdown(json.loads(numbers.read_text())))


if __name__ == "__main__":
    main()
