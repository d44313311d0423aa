"""How often the test of `alignment.translation` passes: unrelated pairs, where it should be rare, and related ones.

    python -m benchmarks.translation_null --out runs/translation_null            # goes on where it stopped
    python -m benchmarks.translation_null --out runs/translation_null --table docs/howto/translate.md

A pair is two draws of one kind of features, 100 rows of 10 numbers each: of two independent worlds, or of one world
that the second side sees turned and with a little noise, other rows of it. The test is of three restarts and 19
rearrangements at 5 %. Every pair is a line of a file of its kind; the table has exact binomial intervals.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
World = Callable[[np.random.Generator, int], Array]

_ROWS, _WIDTH, _NOISE = 100, 10, 0.05
_SPREAD = np.geomspace(3, 0.5, _WIDTH)
PAIRS = {"unrelated": 60, "related": 20}


def _around(centres: Array, generator: np.random.Generator, rows: int) -> Array:
    return centres[generator.integers(len(centres), size=rows)] + 0.2 * generator.normal(size=(rows, _WIDTH))


def clumps(generator: np.random.Generator, rows: int) -> Array:
    """Eight, as many as the recipe looks for."""
    return _around(generator.normal(size=(8, _WIDTH)) * _SPREAD, generator, rows)


def many_clumps(generator: np.random.Generator, rows: int) -> Array:
    """Twenty."""
    return _around(generator.normal(size=(20, _WIDTH)) * _SPREAD, generator, rows)


def far_clumps(generator: np.random.Generator, rows: int) -> Array:
    """Eight, whose centres have heavy tails: Student's t with two degrees of freedom."""
    return _around(generator.standard_t(2, size=(8, _WIDTH)) * _SPREAD, generator, rows)


def nested_clumps(generator: np.random.Generator, rows: int) -> Array:
    """Three of three."""
    coarse = generator.normal(size=(3, _WIDTH)) * _SPREAD
    return _around(coarse[np.arange(9) % 3] + 0.5 * generator.normal(size=(9, _WIDTH)), generator, rows)


def no_clumps(generator: np.random.Generator, rows: int) -> Array:
    """A normal distribution of unequal variances."""
    return np.asarray(generator.normal(size=(rows, _WIDTH)) * _SPREAD)


KINDS: dict[str, World] = {
    kind.__name__: kind for kind in (clumps, many_clumps, far_clumps, nested_clumps, no_clumps)
}  # fmt: skip


def passes(kind: str, sort: str, number: int) -> dict[str, Any]:
    """Whether the test of one pair passes, and of a related one the mean rank of partners on other rows."""
    from unrolled.alignment.translation import Recipe, translate

    recipe = Recipe(clusters=8, rounds=10, anchor_sets=2, starts=4)
    generator = np.random.default_rng([number, sort == "related"])
    world = KINDS[kind]
    if sort == "unrelated":
        x, y = world(generator, _ROWS), world(generator, _ROWS)
        return {"passed": translate(x, y, recipe=recipe, restarts=3, seed=number).worked}
    x = world(generator, 3 * _ROWS)
    turn = np.linalg.qr(generator.normal(size=(_WIDTH, _WIDTH)))[0]
    y = x @ turn + _NOISE * generator.normal(size=x.shape)
    fitted = translate(x[:_ROWS], y[_ROWS : 2 * _ROWS], recipe=recipe, restarts=3, seed=number)
    return {"passed": fitted.worked, "mean_rank": fitted.scores(x[2 * _ROWS :], y[2 * _ROWS :]).mean_rank}


def run(folder: Path, kinds: Sequence[str]) -> None:
    """Pairs that are not there yet, the unrelated ones first."""
    folder.mkdir(parents=True, exist_ok=True)
    for sort, wanted in PAIRS.items():
        for kind in kinds:
            path = folder / f"{kind}-{sort}.jsonl"
            for number in range(len(_lines(path)), wanted):
                began = time.process_time()
                row = {**passes(kind, sort, number), "seconds": time.process_time() - began}
                with path.open("a") as file:
                    file.write(json.dumps(row) + "\n")


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def table(folder: Path) -> list[str]:
    """Lines of Markdown, a row a kind; what is not computed is said."""
    from scipy.stats import binomtest

    def share(kind: str, sort: str) -> str:
        rows = _lines(folder / f"{kind}-{sort}.jsonl")
        if not rows:
            return "not run"
        hits = sum(row["passed"] for row in rows)
        interval = binomtest(hits, len(rows)).proportion_ci()
        return f"{hits} of {len(rows)} ({100 * interval.low:.0f} to {100 * interval.high:.0f} %)"

    return [
        "| rows | unrelated, passed | related, passed |",
        "|---|---|---|",
        *(f"| {kind.replace('_', ' ')} | {share(kind, 'unrelated')} | {share(kind, 'related')} |" for kind in KINDS),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--out", type=Path, default=Path("runs/translation_null"), help="where pairs are kept")
    parser.add_argument("--table", type=Path, help="compute nothing; put the table into this page, in place of its own")
    given = parser.parse_args(arguments)
    if given.table is None:
        run(given.out, given.kinds)
        return
    page = given.table.read_text(encoding="utf-8")
    written = re.sub(r"\| rows \| unrelated.*?(?=\n\n)", lambda _: "\n".join(table(given.out)), page, flags=re.DOTALL)
    given.table.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()
