"""What changing places in a model did to a score: one row a place, with intervals over samples."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from unrolled.instruments.regions.overlap import bootstrap_intervals
from unrolled.instruments.sites import unknown
from unrolled.tables import Tabular

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from unrolled.figures import HeatMap, LineChart

_NO_NUMBER = float("nan")
FEWEST = 8
"""Samples that a bootstrap interval needs: resampled, fewer of them say too little of how others would differ."""


@dataclass(frozen=True)
class Effect:
    """What changing one place did to the score.

    Attributes:
        name: the place.
        change: mean over samples of the score with the place changed, less the score without.
        low, high: 95 % bootstrap interval of `change` over samples; NaN of fewer than `FEWEST`.
        control: the same for a change in a random direction, as large at every token; NaN where none was asked for.
        samples: `change` of every sample.
        control_samples: what the random change did to every sample; None where none was asked for.
        share: of a patch, `change` by the difference of the two runs: 1 brings back all of it; NaN of what is no patch.
    """

    name: str
    change: float
    low: float
    high: float
    control: float
    samples: np.ndarray = field(repr=False)
    control_samples: np.ndarray | None = field(default=None, repr=False)
    share: float = _NO_NUMBER


@dataclass(frozen=True, repr=False)
class Effects(Tabular, Sequence[Effect]):
    """Effects of many places on one score, in the order of the model.

    Attributes:
        rows: one a place.
        score: mean score of the unchanged model; of patches, on the corrupted inputs.
        goal: of patches, the mean score on the clean inputs; else NaN.
    """

    rows: tuple[Effect, ...]
    score: float
    goal: float = _NO_NUMBER

    @classmethod
    def of(
        cls,
        changes: Mapping[str, np.ndarray],
        controls: Mapping[str, np.ndarray],
        score: np.ndarray,
        goal: np.ndarray | None = None,
        *,
        seed: int = 0,
    ) -> Effects:
        """From the changes of every sample by place, those of random changes if there are any, and the scores."""
        table = np.stack(list(changes.values()), axis=1)  # [samples, places]
        known = len(table) >= FEWEST
        low, high = bootstrap_intervals(table, seed=seed) if known else [np.full(len(changes), np.nan)] * 2
        best = _NO_NUMBER if goal is None else float(goal.mean())
        gap = best - float(score.mean())
        rows = tuple(
            Effect(
                name, float(samples.mean()), float(low[i]), float(high[i]),
                float(controls[name].mean()) if name in controls else _NO_NUMBER, samples, controls.get(name),
                float(samples.mean()) / gap if gap else _NO_NUMBER,
            )
            for i, (name, samples) in enumerate(changes.items())
        )  # fmt: skip
        return cls(rows, float(score.mean()), best)

    def __getitem__(self, index: Any) -> Any:
        """One row by number or name, or several by a slice.

        Raises:
            KeyError: there is no row of that name.
        """
        if not isinstance(index, str):
            return self.rows[index]
        names = [row.name for row in self.rows]
        if index not in names:
            raise KeyError(unknown(index, names))
        return self.rows[names.index(index)]

    def __len__(self) -> int:
        return len(self.rows)

    def records(self) -> list[dict[str, Any]]:
        """The rows without what each sample did, and `share` where there are patches."""
        keys = ["name", "change", "low", "high", "control", *(["share"] if self.goal == self.goal else [])]
        return [{key: getattr(row, key) for key in keys} for row in self.rows]

    def __repr__(self) -> str:
        return f"Effects({len(self)} places, score {self.score:.4g} without a change)"

    def agreement(self, other: Effects, *, seed: int = 0) -> tuple[float, float, float]:
        """Rank correlation (Spearman's) of the changes of the places that both have, with its 95 % interval.

        The interval resamples samples, the same in both, so both must be of the same samples; of fewer than `FEWEST` it
        is NaN.
        All is NaN of fewer than three places, or where one of them changes nothing.
        """
        from scipy.stats import rankdata

        mine = {row.name: row.samples for row in self.rows}
        both = [row.name for row in other.rows if row.name in mine]
        if len(both) < 3:
            return _NO_NUMBER, _NO_NUMBER, _NO_NUMBER
        tables = [np.stack([effects[name].samples for name in both], axis=1) for effects in (self, other)]

        def rho(means: np.ndarray, others: np.ndarray) -> float:
            one, two = (rankdata(each) - (len(both) + 1) / 2 for each in (means, others))
            size = float(np.sqrt((one @ one) * (two @ two)))
            return float(one @ two) / size if size else _NO_NUMBER

        n = len(tables[0])
        index = np.random.default_rng(seed).integers(n, size=(1000, n))
        drawn = [rho(*(table[rows].mean(0) for table in tables)) for rows in index]
        known = n >= FEWEST and np.isfinite(drawn).any()
        low, high = np.nanquantile(drawn, [0.025, 0.975]) if known else (_NO_NUMBER, _NO_NUMBER)
        return rho(*(table.mean(0) for table in tables)), float(low), float(high)

    def panel(self) -> HeatMap | LineChart:
        """Layers by heads, or places by positions, as a heat map where the names are such; else a line along them."""
        from unrolled.figures import HeatMap, LineChart, Series

        for pattern, what in (
            (r"(.*block\d+)/attn/head(\d+)", "head"),
            (r"(.*block\d+)/subspace(\d+)", "subspace"),
            (r"(.*)@(-?\d+)", "position"),
        ):
            matches = [re.fullmatch(pattern, row.name) for row in self.rows]
            if not all(matches):
                continue
            places = [(match[1], int(match[2])) for match in matches if match]
            lines = list(dict.fromkeys(line for line, _ in places))
            columns = sorted({column for _, column in places}, key=lambda at: (at < 0, at))
            values = np.full((len(lines), len(columns)), np.nan)
            for (line, column), row in zip(places, self.rows, strict=True):
                values[lines.index(line), columns.index(column)] = row.change
            return HeatMap(
                title="change of the score", values=values, rows=lines, columns=list(map(str, columns)),
                column_label=what, signed=True,
            )  # fmt: skip
        x = list(range(len(self)))
        series = [Series(label="changed", x=x, y=[row.change for row in self.rows])]
        if not np.isnan([row.control for row in self.rows]).any():
            series.append(Series(label="random", x=x, y=[row.control for row in self.rows], dashed=True))
        return LineChart(title="change of the score", x_label="place", series=series)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw `panel`; see `unrolled.figures.Panel.plot`."""
        return self.panel().plot(ax)
