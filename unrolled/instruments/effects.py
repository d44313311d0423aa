"""What changes of many places did to a score, to read, to draw and to show as a table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from unrolled.tables import Tabular

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from unrolled.figures import HeatMap, LineChart


@dataclass(frozen=True)
class Effect:
    """What changing one place did to the score.

    Attributes:
        name: the place.
        change: mean over samples of the score with the place changed, less the score without.
        low, high: 95 % bootstrap interval of `change` over samples.
        control: the same for a change in a random direction, as large at every token; NaN where none was asked for.
        samples: `change` of every sample.
    """

    name: str
    change: float
    low: float
    high: float
    control: float
    samples: np.ndarray = field(repr=False)


@dataclass(frozen=True, repr=False)
class Effects(Tabular, Sequence[Effect]):
    """Effects of many places on one score, in the order of the model.

    Attributes:
        rows: one a place.
        score: mean score of the unchanged model.
    """

    rows: tuple[Effect, ...]
    score: float

    def __getitem__(self, index: Any) -> Any:
        """One row by number or name, or several by a slice."""
        if isinstance(index, str):
            return next(row for row in self.rows if row.name == index)
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def records(self) -> list[dict[str, Any]]:
        """The rows without what each sample did."""
        keys = ("name", "change", "low", "high", "control")
        return [{key: getattr(row, key) for key in keys} for row in self.rows]

    def __repr__(self) -> str:
        return f"Effects({len(self)} places, score {self.score:.4g} without a change)"

    def panel(self) -> HeatMap | LineChart:
        """Layers by heads as a heat map where the places are heads, else the changes along the places."""
        from unrolled.figures import HeatMap, LineChart, Series

        heads = [re.fullmatch(r"(.*block\d+)/attn/head(\d+)", row.name) for row in self.rows]
        if not all(heads):
            x = list(range(len(self)))
            series = [Series(label="removed", x=x, y=[row.change for row in self.rows])]
            if not np.isnan([row.control for row in self.rows]).any():
                series.append(Series(label="random", x=x, y=[row.control for row in self.rows], dashed=True))
            return LineChart(title="change of the score", x_label="place", series=series)
        places = [(match[1], int(match[2])) for match in heads if match]
        layers = list(dict.fromkeys(layer for layer, _ in places))
        values = np.full((len(layers), 1 + max(head for _, head in places)), np.nan)
        for (layer, head), row in zip(places, self.rows, strict=True):
            values[layers.index(layer), head] = row.change
        return HeatMap(
            title="change of the score without the head",
            values=values,
            rows=layers,
            columns=[str(head) for head in range(values.shape[1])],
            column_label="head",
            signed=True,
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw `panel`; see `unrolled.figures.Panel.plot`."""
        return self.panel().plot(ax)


class Shares(Tabular, dict[str, float]):
    """A number for each place, in the order of the model; `what` says what number."""

    def __init__(self, values: Mapping[str, float], what: str) -> None:
        super().__init__(values)
        self.what = what

    def records(self) -> list[dict[str, Any]]:
        """Name and value of each place."""
        return [{"name": name, "value": value} for name, value in self.items()]

    def __repr__(self) -> str:
        largest = sorted(self, key=lambda name: -abs(self[name]))[:3]
        first = ", ".join(f"{name} {self[name]:.3g}" for name in largest)
        return f"Shares({len(self)} places, {self.what}; largest: {first})"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the values against the layers, a line for each place in them; see `unrolled.figures.Panel.plot`."""
        from unrolled.figures import LineChart, Series

        lines: dict[str, list[tuple[int, float]]] = {}
        for name, value in self.items():
            match = re.fullmatch(r"(.*)block(\d+)(?:/(.*))?", name)
            place = f"{match[1]}{match[3] or 'output'}" if match else name
            lines.setdefault(place, []).append((int(match[2]) if match else 0, value))
        series = [Series(label=k, x=[x for x, _ in v], y=[y for _, y in v]) for k, v in lines.items()]
        return LineChart(title=self.what, x_label="layer", series=series).plot(ax)
