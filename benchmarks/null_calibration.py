"""How often independent features look aligned: false positive rates of every metric under both nulls, with intervals.

    python -m benchmarks.null_calibration                       # all cells of 1,000 draws; goes on where it stopped
    python -m benchmarks.null_calibration --minutes 20 --n 60   # what fits
    python -m benchmarks.null_calibration --table docs          # the table of what has been computed
    python -m benchmarks.null_calibration --go-on docs          # first take over the cells of that table

A cell is a metric, a null, a kind of features and a number of samples. Both sides of a draw are independent, so
p-values of at most 5 % must have a share of at most 5 %, and so on. Cells are kept in `--out`, a hundred draws at a
time. Both nulls of one kind of features are computed in one pass.

The null "permutation" is the test of 199 relabellings, which cannot say 0.1 %. Its relabellings end once ten have
reached the score: at 1 % and 5 % the decision is then that of all 199.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

import unrolled.alignment as al

METRICS: dict[str, dict[str, Any]] = {
    "mutual_knn": {}, "unbiased_cka": {}, "cka": {}, "cknna": {}, "rsa": {}, "cycle_knn": {}, "svcca": {"dims": 3},
    "procrustes": {}, "soft_matching": {}, "pwcca": {}, "lcs_knn": {}, "edit_knn": {}, "stitching": {},
    "ridge_predictivity": {}, "pls_predictivity": {},
}  # fmt: skip
NULLS = ("permutation", "moments")
SAMPLES = (60, 200, 1000)
LEVELS = (0.05, 0.01, 0.001)
GROUP = 5  # rows of a group
RELABELLINGS = 199
MOST = 999  # relabellings of the null "moments" where it has to draw
CHUNK = 100


def normal(n: int, generator: torch.Generator) -> Tensor:
    """Eight independent directions."""
    return torch.randn(n, 8, generator=generator)


def t2(n: int, generator: torch.Generator) -> Tensor:
    """Heavy tails: Student's t with two degrees of freedom, the whole row at once."""
    scale = torch.randn(n, 2, generator=generator).square().sum(1, keepdim=True) / 2
    return normal(n, generator) / scale.sqrt()


def clusters(n: int, generator: torch.Generator) -> Tensor:
    """Five clusters well apart."""
    centres = 3 * torch.randn(5, 8, generator=generator)
    return centres[torch.randint(5, (n,), generator=generator)] + normal(n, generator)


def low_rank(n: int, generator: torch.Generator) -> Tensor:
    """Two directions, and a little noise."""
    plane = torch.randn(n, 2, generator=generator) @ torch.randn(2, 8, generator=generator)
    return plane + 0.05 * normal(n, generator)


def ties(n: int, generator: torch.Generator) -> Tensor:
    """Twenty one-hot categories: every row has copies."""
    return torch.eye(20)[torch.randint(20, (n,), generator=generator)]


def groups(n: int, generator: torch.Generator) -> Tensor:
    """Groups of five rows that are much alike; given as groups to the test."""
    shared = torch.randn(n // GROUP, 1, 8, generator=generator)
    return (shared + 0.3 * torch.randn(n // GROUP, GROUP, 8, generator=generator)).flatten(0, 1)


KINDS = {kind.__name__: kind for kind in (normal, t2, clusters, low_rank, ties, groups)}


@dataclass(frozen=True)
class Cell:
    """What is simulated."""

    metric: str
    null: str
    kind: str
    n: int

    @property
    def file(self) -> str:
        """Name of its record."""
        return f"{self.metric}-{self.null}-{self.kind}-{self.n}.json"


def cells(metrics: Sequence[str], nulls: Sequence[str], kinds: Sequence[str], samples: Sequence[int]) -> Iterator[Cell]:
    """Those of few samples first; the nulls of one kind of features stand together."""
    for n, metric, kind, null in itertools.product(sorted(samples), metrics, kinds, nulls):
        yield Cell(metric, null, kind, n)


def p_values(metric: str, kind: str, n: int, draw: int, nulls: Sequence[str] = NULLS) -> dict[str, tuple[float, str]]:
    """p-value of one pair of independent sides by each null, and how it was found."""
    generator = torch.Generator().manual_seed(draw)
    plain = al.get_metric(metric, **METRICS[metric])
    x, y = (al.prepare_layers(KINDS[kind](n, generator), [plain]) for _ in range(2))
    labels = np.arange(n) // GROUP if kind == "groups" else None
    units = al.Units.of(n, labels)
    chosen = plain.for_units(units)
    sides = x.of(chosen), y.of(chosen)
    # both nulls relabel alike, so each relabelling is scored once
    again, drawn = itertools.tee(chosen.null_grids(*sides, units.relabellings(MOST, draw)))
    found = {}
    if "permutation" in nulls:
        score, higher = float(chosen.grid(*sides)), chosen.higher_is_closer
        found["permutation"] = _permutation(score, itertools.islice(drawn, RELABELLINGS), higher), "relabellings"
    if "moments" in nulls:
        chosen.null_grids = lambda *_: again  # type: ignore[method-assign]
        tested = al.compare(x, y, chosen, null="moments", draws=MOST, resamples=0, groups=labels, seed=draw)
        assert tested.p_value is not None
        found["moments"] = tested.p_value, tested.p_method
    return found


def _permutation(score: float, null: Iterable[Tensor], higher: bool) -> float:
    reached = 0
    for grid in null:
        reached += al.permutation_p_value(score, grid.flatten(), higher_is_closer=higher) == 1.0
        if reached == 10:  # p > 0.05 whatever the others are
            return 1.0
    return (1 + reached) / (RELABELLINGS + 1)


def extend(folder: Path, wanted: Sequence[Cell], draws: int) -> int:
    """Up to a chunk more draws of cells that differ in the null alone, kept in their files.

    Returns:
        Draws of the cell that has the fewest.
    """
    records = {cell.null: _record(folder / cell.file, cell) for cell in wanted}
    cell, start = wanted[0], min(record["draws"] for record in records.values())
    began = time.perf_counter()
    for draw in range(start, min(draws, start + CHUNK)):
        missing = [null for null, record in records.items() if record["draws"] == draw]
        for null, (p, method) in p_values(cell.metric, cell.kind, cell.n, draw, missing).items():
            record, way = records[null], _way(method)
            record["reached"] = [old + (p <= level) for old, level in zip(record["reached"], LEVELS, strict=True)]
            record["methods"][way] = record["methods"].get(way, 0) + 1
            record["draws"] += 1
    for each in wanted:
        record = records[each.null]
        record["seconds"] += (time.perf_counter() - began) / len(wanted)
        part = (folder / each.file).with_suffix(".part")
        part.write_text(json.dumps(record))
        part.replace(folder / each.file)
    return min(record["draws"] for record in records.values())


def _record(path: Path, cell: Cell) -> dict[str, Any]:
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    return {**asdict(cell), "draws": 0, "reached": [0] * len(LEVELS), "methods": {}, "seconds": 0.0}


def _way(method: str) -> str:
    for way in ("Pearson III", "Pareto"):
        if method.startswith(way):
            return way
    return "relabellings"


def run(folder: Path, wanted: Sequence[Sequence[Cell]], draws: int, minutes: float | None) -> None:
    """Compute what is missing, until the time is up."""
    folder.mkdir(parents=True, exist_ok=True)
    end = None if minutes is None else time.monotonic() + 60 * minutes
    for together in wanted:
        while min(_record(folder / cell.file, cell)["draws"] for cell in together) < draws:
            if end is not None and time.monotonic() > end:
                return
            extend(folder, together, draws)


def table(folder: Path, draws: int) -> dict[str, Any]:
    """All cells with their rates; those with fewer draws are left out and counted as not run."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    whole = [record for record in found if record["draws"] >= draws]
    tested = sum(len(_levels(record)) for record in whole)
    rows = []
    for record in whole:
        rates = []
        for level, reached in zip(_levels(record), record["reached"], strict=False):
            # all cells hold at once with 95 %: of hundreds of single intervals some would miss by chance
            interval = stats.binomtest(reached, record["draws"]).proportion_ci(1 - 0.05 / max(1, tested))
            rates.append({
                "level": level, "rate": reached / record["draws"], "low": interval.low, "high": interval.high,
                "holds": bool(interval.low <= level),
            })  # fmt: skip
        rows.append(
            {**{key: record[key] for key in ("metric", "null", "kind", "n", "draws", "methods")}, "rates": rates}
        )
    every = len(list(cells(list(METRICS), NULLS, list(KINDS), SAMPLES)))
    return {"draws": draws, "cells": every, "computed": len(rows), "tested": tested, "rows": rows}


def take_over(path: Path, folder: Path) -> None:
    """Cells of a table as files of `folder`, where they are not there yet; `run` then leaves them out."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in json.loads(path.read_text())["rows"]:
        cell = Cell(row["metric"], row["null"], row["kind"], row["n"])
        counts = [round(rate["rate"] * row["draws"]) for rate in row["rates"]]
        record = {
            **asdict(cell), "draws": row["draws"], "reached": counts + [0] * (len(LEVELS) - len(counts)),
            "methods": row["methods"], "seconds": 0.0,
        }  # fmt: skip
        if not (folder / cell.file).exists():
            (folder / cell.file).write_text(json.dumps(record))


def _levels(record: dict[str, Any]) -> tuple[float, ...]:
    return LEVELS if record["null"] == "moments" else LEVELS[:2]


def _alone(found: dict[str, Any]) -> int:
    """Rates whose own exact interval of 95 % lies above their level."""
    counts = [
        (round(rate["rate"] * row["draws"]), row["draws"], level)
        for row in found["rows"]
        for rate, level in zip(row["rates"], _levels(row), strict=True)
    ]
    return sum(stats.binomtest(hits, draws).proportion_ci().low > level for hits, draws, level in counts)


def markdown(found: dict[str, Any]) -> str:
    """The table as a page."""
    rows = {(row["metric"], row["null"], row["n"], row["kind"]): row for row in found["rows"]}
    above = [row for row in found["rows"] if not all(rate["holds"] for rate in row["rates"])]
    done = found["computed"] == found["cells"]
    lines = [
        "# False positive rates of the alignment metrics",
        "",
        f"Shares of independent pairs with p of at most 5 % / 1 % / 0.1 %, in per cent, of {found['draws']:,} draws a "
        f"cell: {'all' if done else found['computed']} of {found['cells']} cells"
        f"{'' if done else ', the others say `not run`'}. The null `permutation` is of 199 "
        "relabellings, which cannot say 0.1 %. `groups` are given as groups. In "
        f"{'no cell' if not above else f'{len(above)} cells (in bold)'} the interval lies above its level: exact "
        f"binomial intervals that hold for all {found['tested']} rates at once with 95 %. Each by itself, the 95 % "
        f"interval of {_alone(found)} rates lies above, where chance alone would have about "
        f"{0.025 * found['tested']:.0f}; metrics are tested on the same draws, so they are high and low together.",
        "",
        "`python -m benchmarks.null_calibration` computes what is missing, `--table docs` writes this page.",
    ]
    for n in SAMPLES:
        lines += [
            "",
            f"## {n:,} samples",
            "",
            f"| metric | null | {' | '.join(KINDS)} |",
            "|---" * (2 + len(KINDS)) + "|",
        ]
        for metric, null in itertools.product(METRICS, NULLS):
            shown = [_shown(rows.get((metric, null, n, kind))) for kind in KINDS]
            lines.append(f"| {metric} | {null} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _shown(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not run"
    parts = [f"{100 * rate['rate']:.1f}" for rate in row["rates"]]
    return " / ".join(part if rate["holds"] else f"**{part}**" for part, rate in zip(parts, row["rates"], strict=True))


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=list(METRICS))
    parser.add_argument("--nulls", nargs="+", choices=NULLS, default=list(NULLS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--n", nargs="+", type=int, default=list(SAMPLES), help="samples")
    parser.add_argument("--draws", type=int, default=1000, help="pairs of independent sides a cell")
    parser.add_argument("--minutes", type=float, help="stop after as many")
    parser.add_argument("--part", default="1/1", help="I/K: every K-th pair of cells, for K processes side by side")
    parser.add_argument("--out", type=Path, default=Path("runs/null_calibration"), help="where cells are kept")
    parser.add_argument("--table", type=Path, help="compute nothing; write null_calibration.md and .json there")
    parser.add_argument("--go-on", type=Path, help="folder of an earlier table, whose cells are taken over first")
    given = parser.parse_args(arguments)
    if given.go_on is not None:
        take_over(given.go_on / "null_calibration.json", given.out)
    if given.table is not None:
        found = table(given.out, given.draws)
        (given.table / "null_calibration.md").write_text(markdown(found))
        (given.table / "null_calibration.json").write_text(json.dumps(found, indent=1) + "\n")
        return
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*copies of other rows|.*correlate perfectly")
    first, step = (int(part) for part in given.part.split("/"))
    wanted = cells(given.metrics, given.nulls, given.kinds, given.n)
    together = [list(group) for _, group in itertools.groupby(wanted, lambda cell: (cell.n, cell.metric, cell.kind))]
    run(given.out, together[first - 1 :: step], given.draws, given.minutes)


if __name__ == "__main__":
    main()
