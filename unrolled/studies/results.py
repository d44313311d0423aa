"""The table of a study, one row a cell, and the statistics that reports are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist, fmean, stdev
from typing import TYPE_CHECKING, Any, TypeVar

from unrolled.reading import Json
from unrolled.studies.cells import Cell, CellT, Row
from unrolled.tables import Tabular

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from unrolled.report import Series

NOT_RUN = "not run"
OtherT = TypeVar("OtherT", bound=Cell)
Path = str | Callable[[Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Values:
    """Numbers by what they were repeated over, mostly the seed; two of them are combined pair by pair.

    `f"{values:.1f}"` reads `45.3 ± 0.7`, mean and sample standard deviation; one value stands alone, and none reads
    `not run`. Of `one - other` only what both have remains.
    """

    by: Mapping[Hashable, float] = field(default_factory=dict)
    unit: str = "seed"

    def __len__(self) -> int:
        return len(self.by)

    def __iter__(self) -> Iterator[float]:
        return iter(self.by.values())

    @property
    def count(self) -> str:
        """`1 seed`, `3 seeds`, `6 pairs of models`."""
        what, of, rest = self.unit.partition(" of ")
        return f"{len(self)} {what}{'s' * (len(self) != 1)}{of}{rest}"

    @property
    def mean(self) -> float:
        """Over all; NaN of none."""
        return fmean(self) if self.by else float("nan")

    @property
    def deviation(self) -> float:
        """Sample standard deviation; NaN of fewer than two."""
        return _deviation(list(self))

    def interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """Student's interval of the mean; None of fewer than two, which say nothing of their spread."""
        if len(self) < 2:
            return None
        from scipy.stats import t

        half = float(t.ppf((1 + level) / 2, len(self) - 1)) * self.deviation / len(self) ** 0.5
        return self.mean - half, self.mean + half

    def map(self, function: Callable[[float], float]) -> Values:
        """`function` of each."""
        return Values({key: function(value) for key, value in self.by.items()}, self.unit)

    def __add__(self, other: Values | float) -> Values:
        return self._with(other, lambda a, b: a + b)

    def __sub__(self, other: Values | float) -> Values:
        return self._with(other, lambda a, b: a - b)

    def __mul__(self, other: Values | float) -> Values:
        return self._with(other, lambda a, b: a * b)

    def __truediv__(self, other: Values | float) -> Values:
        return self._with(other, lambda a, b: a / b)

    def __rmul__(self, factor: float) -> Values:
        return self * factor

    def __rsub__(self, number: float) -> Values:
        return self.map(lambda value: number - value)

    def __neg__(self) -> Values:
        return self.map(lambda value: -value)

    def __abs__(self) -> Values:
        return self.map(abs)

    def __format__(self, spec: str) -> str:
        if not self.by:
            return NOT_RUN
        spread = f" ± {self.deviation:{spec.lstrip('+')}}" if len(self) > 1 else ""
        return f"{self.mean:{spec}}{spread}"

    def _with(self, other: Values | float, of: Callable[[float, float], float]) -> Values:
        pairs = other.by if isinstance(other, Values) else dict.fromkeys(self.by, float(other))
        return Values({key: of(value, pairs[key]) for key, value in self.by.items() if key in pairs}, self.unit)


@dataclass(frozen=True)
class Estimate:
    """A number whose interval comes from elsewhere; `basis` says from what, such as "bootstrap over 98 photos"."""

    value: float
    low: float
    high: float
    basis: str

    def __format__(self, spec: str) -> str:
        if not math.isfinite(self.value):
            return "undefined"
        known = math.isfinite(self.low) and math.isfinite(self.high)
        return f"{self.value:{spec}} {f'[{self.low:{spec}}, {self.high:{spec}}]' if known else '(no interval)'}"

    @classmethod
    def of_ranks(cls, rho: float, n: int, basis: str, *, of: int = 1) -> Estimate:
        """Spearman's correlation of n pairs, at least 4, with its 95 % interval by Fisher's z (Bonett and Wright 2000).

        Of a perfect order z is infinite. It reaches from where the interval of the next lower correlation that n ranks
        can have does. Of several correlations that are looked at it is at 1 - 0.05 / of (Bonferroni).
        """
        nearest = math.copysign(min(abs(rho), 1 - 12 / (n * (n**2 - 1))), rho)
        reach = NormalDist().inv_cdf(1 - 0.025 / of)
        half = reach * math.sqrt((1 + nearest**2 / 2) / (n - 3))
        low, high = (math.tanh(math.atanh(nearest) + side * half) for side in (-1, 1))
        return cls(rho, min(low, rho), max(high, rho), basis)

    @classmethod
    def of_share(cls, share: float, n: int, basis: str) -> Estimate:
        """A share of n independent things, which need be no whole number of them, with its exact 95 % interval.

        Clopper and Pearson's (1934): of a share of 1 it ends at 1 and begins at 0.025^(1/n).
        """
        from scipy.stats import beta

        hits = share * n
        low = float(beta.ppf(0.025, hits, n - hits + 1)) if hits > 0 else 0.0
        high = float(beta.ppf(0.975, hits + 1, n - hits)) if hits < n else 1.0
        return cls(share, low, high, basis)

    def reaching(self, other: Estimate) -> Estimate:
        """This value with an interval that reaches as far as either, and the other's basis.

        An end that is not known gives way to the other's.
        """
        low = min(filter(math.isfinite, (self.low, other.low)), default=math.nan)
        high = max(filter(math.isfinite, (self.high, other.high)), default=math.nan)
        return Estimate(self.value, low, high, other.basis)


class Results(Tabular, Sequence[Row[CellT]]):
    """Rows of a study, and why the other cells have none."""

    def __init__(self, rows: Iterable[Row[CellT]], missing: Mapping[Cell, str] | None = None) -> None:
        self.rows, self.missing = tuple(rows), dict(missing or {})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def of(self, kind: type[OtherT], /, **columns: Any) -> Results[OtherT]:
        """Rows of one kind of cell, of which `where` has these columns."""
        rows: list[Any] = [row for row in self.rows if isinstance(row.cell, kind)]
        return Results[OtherT](rows).where(**columns)

    def where(self, **columns: Any) -> Results[CellT]:
        """Rows whose columns have these values.

        Raises:
            ValueError: no row has such a column.
        """
        known = {name for row in self.rows for name in row.cell.columns}
        if self.rows and (unknown := columns.keys() - known):
            raise ValueError(f"no cell here has a column {min(unknown)!r}; there are {', '.join(sorted(known))}")
        absent = object()
        return Results(
            row
            for row in self.rows
            if all(row.cell.columns.get(name, absent) == value for name, value in columns.items())
        )

    def by(self, unit: str = "seed") -> dict[Hashable, Row[CellT]]:
        """One row for each value of the column `unit`.

        Raises:
            ValueError: two rows have the same; it names the columns that must be given to tell them apart.
        """
        rows: dict[Hashable, Row[CellT]] = {}
        for row in self.rows:
            key = row.cell.columns[unit]
            if key in rows:
                one, other = rows[key].cell.columns, row.cell.columns
                apart = [name for name in {**one, **other} if one.get(name) != other.get(name)]
                raise ValueError(f"two rows have {unit}={key}; also give {', '.join(apart) or 'the kind of cell'}")
            rows[key] = row
        return rows

    def values(self, path: Path, unit: str = "seed") -> Values:
        """The results at `path` ("ridge.all.accuracy", "losses.-1"), by `unit`; a result that is None is left out.

        Instead of a path, a function of the result may compute the number.
        """
        numbers = {key: _at(row.result, path) for key, row in self.by(unit).items()}
        return Values({key: float(value) for key, value in numbers.items() if value is not None}, unit)

    def first(self, path: Path, default: Any = None) -> Any:
        """The result at `path` of the first row, for what all rows agree in; `default` of no row."""
        return _at(self.rows[0].result, path) if self.rows else default

    def correlation(self, x: Path, y: Path, unit: str = "seed") -> Values:
        """Spearman's rank correlation of two results over the rows of each `unit`, where it has more than one."""
        from scipy.stats import spearmanr

        points: dict[Hashable, list[tuple[float, float]]] = {}
        for row in self.rows:
            points.setdefault(row.cell.columns[unit], []).append((_at(row.result, x), _at(row.result, y)))
        several = {key: list(zip(*pairs, strict=True)) for key, pairs in points.items() if len(pairs) > 1}
        return Values({key: float(spearmanr(*sides).statistic) for key, sides in several.items()}, unit)

    def curve(
        self, label: str, path: Path, y: str | Sequence[str] = "", *, x: str | Sequence[float] = "step", **style: Any
    ) -> Series:
        """A line of a chart: the mean over rows, with the sample standard deviation as bars where there are several.

        Args:
            label: of the line.
            path: to a list of numbers, of records, or to a record of numbers; or a function of the result.
            y: of records the name of the number; of a record the names of its numbers, in order.
            x: of records the name of the place, or the places.
            **style: of `Series`.
        """
        from unrolled.report import Series

        curves = [_at(row.result, path) for row in self.rows]
        if isinstance(y, str):
            lines = [[point[y] for point in curve] if y else list(curve) for curve in curves]
        else:
            lines = [[curve[name] for name in y] for curve in curves]
        points = list(zip(*lines, strict=True))
        return Series(
            label=label,
            x=[point[x] for point in curves[0]] if isinstance(x, str) else x,
            y=[fmean(point) for point in points],
            error=[_deviation(point) for point in points] if len(curves) > 1 else None,
            **style,
        )

    def plot(
        self, path: Path, *, x: str, by: str | None = None, ax: Axes | None = None, unit: str = "seed", title: str = ""
    ) -> Axes:
        """Draw the results at `path` against a column, the mean over `unit` with the standard deviation as bars.

        Args:
            path: as in `values`.
            x: the column, of numbers.
            by: a column; each of its values has a line.
            ax: see `unrolled.figures.Panel.plot`.
            unit: what is averaged over.
            title: by default the path.
        """
        from unrolled.figures import LineChart

        lines = []
        for value in dict.fromkeys(row.cell.columns[by] for row in self.rows) if by else [None]:
            rows = self.where(**{by: value}) if by else self
            places = sorted({row.cell.columns[x] for row in rows})
            means = [rows.where(**{x: place}).values(path, unit) for place in places]
            lines.append(line(str(value) if by else title or str(path), places, means))
        return LineChart(title=title or str(path), x_label=x, series=lines).plot(ax)

    def records(self) -> list[Json]:
        """Every row as plain values: its cell's class, the columns, the result, the seconds; for `report.json`.

        A number of the result that is called as one of the others is "result." and its name.
        """
        records = []
        for row in self.rows:
            record: Json = {"cell": type(row.cell).__name__, **row.cell.columns, "seconds": row.seconds}
            result = {f"result.{name}" if name in record else name: value for name, value in row.result.items()}
            records.append({**record, **result})
        return records

    def __repr__(self) -> str:
        kinds = ", ".join(dict.fromkeys(type(row.cell).__name__ for row in self.rows))
        return f"Results({len(self.rows)} rows{f' of {kinds}' * bool(kinds)}, {len(self.missing)} missing)"


def line(label: str, x: Sequence[float], values: Sequence[Values], **style: Any) -> Series:
    """A line of a chart through means, with sample standard deviations as bars where all places have several values.

    Args:
        label: of the line.
        x: the places.
        values: at each place; a gap where there are none.
        **style: of `Series`.
    """
    from unrolled.report import Series

    error = [each.deviation for each in values] if all(len(each) > 1 for each in values) else None
    return Series(label=label, x=x, y=[each.mean for each in values], error=error, **style)


def _deviation(values: Sequence[float]) -> float:
    """Sample standard deviation; NaN of fewer than two, and where a value is not finite, as of a diverged training."""
    return stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else math.nan


def _at(result: Any, path: Path) -> Any:
    if not isinstance(path, str):
        return path(result)
    for name in path.split("."):
        result = result[name if isinstance(result, Mapping) else int(name)]
    return result
