"""How results of `crate-hour` are read: by network, beside fresh weights, with intervals over images or photos."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from types import MappingProxyType
from typing import Any

import numpy as np

from unrolled.data.corruptions import SEVERITIES
from unrolled.studies.cells import Cell, Result
from unrolled.studies.crate.emergence.cells import Baselines
from unrolled.studies.crate.emergence.claims import ByPhoto, Difference, difference
from unrolled.studies.crate.hour.among import Rates
from unrolled.studies.crate.hour.cells import Corrupted, HourConfig, Layers, Probe, Removed, Scores, Target
from unrolled.studies.crate.hour.networks import CRATE, FOUR_HOURS, OTHERS, VIT, Given, Looked, given
from unrolled.studies.crate.hour.photos import Cuts, Heads, OnPhotos, Things
from unrolled.studies.crate.hour.relation import Relation, relation
from unrolled.studies.crate.minutes.cells import Trial
from unrolled.studies.results import Estimate, Results, Values

MAP = "class token"
_ALIKE: Mapping[str, str] = MappingProxyType({OTHERS[1]: CRATE, FOUR_HOURS[0]: CRATE, FOUR_HOURS[1]: VIT})
"""Weights of the same architecture, whose fresh weights are the same."""
LAST = "R^c, last layer"
QUANTITIES: Mapping[str, Callable[[Sequence[float], Sequence[float], Sequence[float]], float]] = MappingProxyType(
    {
        LAST: lambda rate, orthonormal, nonzero: rate[-1],
        "R^c, mean over layers": lambda rate, orthonormal, nonzero: fmean(rate),
        "R^c, last over first": lambda rate, orthonormal, nonzero: rate[-1] / rate[0],
        "R^c with orthonormal bases, last layer": lambda rate, orthonormal, nonzero: orthonormal[-1],
        "R^c with orthonormal bases, mean": lambda rate, orthonormal, nonzero: fmean(orthonormal),
        "non-zero, last layer": lambda rate, orthonormal, nonzero: nonzero[-1],
    }
)
"""What may go with accuracy, from R^c, R^c with orthonormal bases and the share of non-zero entries of every layer."""
NOTHING = Estimate(math.nan, math.nan, math.nan, "nothing")
_MOST = 1.96  # standard errors, of a 95 % interval


class View:
    """Results by network; of what was not run there is None, or no values."""

    def __init__(self, results: Results[Any], config: HourConfig) -> None:
        self.results, self.config = results, config

    def of(self, cell: type[Cell], network: Looked | None, **columns: Any) -> Result | None:
        """What was measured of a network, the only row of it; of photos at `side` px unless another is named."""
        if issubclass(cell, OnPhotos):
            columns.setdefault("side", self.config.side)
        for row in self.results.of(cell):
            here = row.cell.columns
            same = type(row.cell) is cell and row.cell.network == network  # type: ignore[attr-defined]
            if same and all(here[name] == value for name, value in columns.items()):
                return row.result
        return None

    def fresh(self, cell: type[Cell], weights: str, **columns: Any) -> dict[int, Result]:
        """The same of fresh weights, by seed, where they were not looked at of those of the same architecture."""
        for name in (weights, _ALIKE.get(weights, weights)):
            known = {seed: self.of(cell, given(name, seed), **columns) for seed in self.config.seeds}
            if rows := {seed: row for seed, row in known.items() if row is not None}:
                return rows
        return {}

    @property
    def trials(self) -> dict[float, Trial]:
        """Trials that were looked at, by rate."""
        cells = [row.cell.network for row in self.results.of(Layers)]
        return {network.rate: network for network in cells if isinstance(network, Trial)}

    @property
    def comparisons(self) -> int:
        """How many networks at how many sizes are compared with a bump in the middle."""
        return len(self.config.looked_at) * (1 + len(self.config.other_sides))

    # layers

    def last_to_first(self, weights: str) -> Estimate | Values:
        """R^c of the last layer over that of the first, with the error over images."""
        if (layers := self.of(Layers, given(weights))) is None:
            return Values()
        mean, error = (layers["subspace_rate"][key] for key in ("mean", "error"))
        ratio = mean[-1] / mean[0]
        return self._over_images(ratio, ratio * math.hypot(error[-1] / mean[-1], error[0] / mean[0]))

    def thinning(self, weights: str) -> Estimate | Values:
        """Share of non-zero entries, last layer less first."""
        if (layers := self.of(Layers, given(weights))) is None:
            return Values()
        mean, error = (layers["nonzero"][key] for key in ("mean", "error"))
        return self._over_images(mean[-1] - mean[0], math.hypot(error[-1], error[0]))

    def _over_images(self, value: float, error: float) -> Estimate:
        basis = f"over {self.config.images} images, one network"
        return Estimate(value, value - _MOST * error, value + _MOST * error, basis)

    def fresh_layers(self, weights: str, read: Callable[[Result], float]) -> Values:
        """A number of the layers of fresh weights, by seed."""
        return Values({seed: read(row) for seed, row in self.fresh(Layers, weights).items()})

    def rate_learned(self, weights: str, read: Callable[[Result], Sequence[float]]) -> Values:
        """Mean over layers of what `read` gives, trained less fresh, by seed of the fresh weights."""
        layers = self.of(Layers, given(weights))
        return (
            Values() if layers is None else self.fresh_layers(weights, lambda r: fmean(read(layers)) - fmean(read(r)))
        )

    def compared(self) -> list[tuple[Looked, float, Result]]:
        """CRATEs whose accuracy is known, with it and with their layers."""
        names = [name for name in self.config.trained if name.startswith("crate_")]
        out: list[tuple[Looked, float, Result]] = []
        networks: list[Looked] = [*map(given, names), *self.trials.values()]
        for network in networks:
            layers, scores = self.of(Layers, network), self.of(Scores, network)
            if layers is not None and scores is not None:
                out.append((network, scores["accuracy"], layers))
        return out

    @property
    def students(self) -> list[Result]:
        """What was measured of the networks of `crate-aligned`."""
        return [row.result for row in self.results.of(Rates)]

    def among_students(self, quantity: str, *, alike: bool = True) -> Relation | None:
        """Rank correlation, over them, of accuracy with one of `QUANTITIES`, given passes and rate if `alike`."""
        if len(self.students) < 8:
            return None
        given_too = [[float(row[name]) for row in self.students] for name in ("passes", "rate")] if alike else []
        values = [
            QUANTITIES[quantity](row["subspace_rate"], row["orthonormal"], row["nonzero"]) for row in self.students
        ]
        return relation(values, [row["accuracy"] for row in self.students], given_too)

    def among_crates(self, quantity: str) -> Relation | None:
        """The same over the CRATEs of `compared`, given nothing."""
        every = self.compared()
        if len(every) < 4:
            return None
        layers = [(subspace_rate(each), orthonormal(each), each["nonzero"]["mean"]) for _, _, each in every]
        return relation([QUANTITIES[quantity](*each) for each in layers], [accuracy for _, accuracy, _ in every])

    # photos

    def rows(self, cell: type[Cell], weights: str | None, *, trained: bool = True, **columns: Any) -> dict[int, Result]:
        """What was measured of trained weights, alone, or of fresh ones, by seed; of None, of what is no network."""
        if weights is not None and not trained:
            return self.fresh(cell, weights, **columns)
        row = self.of(cell, None if weights is None else given(weights), **columns)
        return {} if row is None else {0: row}

    def by_photo(self, cell: type[Cell], weights: str | None, what: str = "jaccard", **which: Any) -> ByPhoto:
        """A list of the results, one number a photo."""
        return {seed: np.asarray(row[what]) for seed, row in self.rows(cell, weights, **which).items()}

    def photos(
        self, weights: str, *, trained: bool = True, what: str = "picked_photos", name: str = MAP, **columns: Any
    ) -> ByPhoto:
        """Jaccard by photo, of trained weights or, by seed, of fresh ones."""
        rows = self.rows(Things, weights, trained=trained, **columns)
        return {seed: np.asarray(row["maps"][name][what]) for seed, row in rows.items()}

    def baseline(self, name: str = "centre prior", side: int | None = None) -> np.ndarray | None:
        """Jaccard by photo of what needs no model, by default a bump in the middle."""
        scores = self.results.of(Baselines, side=side or self.config.side).first(name)
        return None if scores is None else np.asarray(scores)

    def against_fresh(self, weights: str, **which: Any) -> Difference | None:
        """Trained less every fresh network, in hundredths."""
        learnt, fresh = self.photos(weights, **which), self.photos(weights, trained=False, **which)
        return difference(dict.fromkeys(fresh, learnt[0]), fresh) if learnt and fresh else None

    def region_gain(self, weights: str) -> Difference | None:
        """How much better some head fits regions that people drew than one of fresh weights does, in hundredths."""
        learnt, fresh = self.by_photo(Heads, weights), self.by_photo(Heads, weights, trained=False)
        return difference(dict.fromkeys(fresh, learnt[0]), fresh) if learnt and fresh else None

    def cut(self, weights: str, what: str = "jaccard") -> ByPhoto:
        """Jaccard by photo of MaskCut's objects, or of a bump as large as they (`middle`)."""
        return self.by_photo(Cuts, weights, what)

    # other images

    def right(self, network: Given | None, target: Target) -> np.ndarray | None:
        """Which test images of a target a probe gets right, 0 or 100."""
        row = self.of(Probe, network, target=target)
        return None if row is None else _right(row)

    def transfer(self, weights: str, target: Target) -> Estimate:
        """Trained less the mean of fresh ones, points."""
        fresh = [_right(row) for row in self.fresh(Probe, weights, target=target).values()]
        return paired(self.right(given(weights), target), np.mean(fresh, 0) if fresh else None, "test images")

    # calibration

    def ece(self, weights: str, how: str = "plain") -> Estimate:
        """Expected calibration error, hundredths."""
        row = self.of(Scores, given(weights))
        return NOTHING if row is None else _drawn(100 * row[how]["ece"], 100 * np.array(row[how]["draws"]))

    def ece_difference(self, one: str, other: str) -> Estimate:
        """Of `one` less that of `other`, on the same draws of images."""
        rows = [self.of(Scores, given(name)) for name in (one, other)]
        if None in rows:
            return NOTHING
        a, b = (row["plain"] for row in rows if row is not None)
        return _drawn(100 * (a["ece"] - b["ece"]), 100 * (np.array(a["draws"]) - np.array(b["draws"])))

    # images made worse

    def errors(self, weights: str, name: str = "") -> np.ndarray | None:
        """Share of wrong answers by image, per cent, over severities of a corruption, or of all of them; or `clean`."""
        row = self.of(Corrupted, given(weights))
        if row is None:
            return None
        if name == "clean":
            return 100 * _digits(row["clean"])
        every = [_digits(row["wrong"][each]) for each in ([name] if name else row["wrong"])]
        return 100 * np.mean(every, axis=0) / len(SEVERITIES)

    # explanations

    def area(
        self, weights: str, way: str, method: str, *, seed: int | None = None, scale: str = "probability"
    ) -> np.ndarray | None:
        """Area under the curve of each image."""
        row = self.of(Removed, given(weights, seed))
        return None if row is None else np.array(row[scale][way][method]["areas"])

    def better(self, weights: str, way: str, method: str, than: str, **which: Any) -> Estimate:
        """By how much a method's curve is better than another's: lower in deletion, higher in insertion."""
        one, other = (self.area(weights, way, name, **which) for name in (method, than))
        return paired(other, one, "images") if way == "deletion" else paired(one, other, "images")


def _right(row: Result) -> np.ndarray:
    return 100.0 * _digits(row["right"])


def _digits(text: str) -> np.ndarray:
    return np.array([int(digit) for digit in text])


def paired(one: np.ndarray | None, other: np.ndarray | None, unit: str) -> Estimate:
    """Mean of `one` less `other`, with the interval of a bootstrap over `unit`; NaN if either is None."""
    from unrolled.instruments.regions.overlap import bootstrap_interval

    if one is None or other is None:
        return NOTHING
    low, high = bootstrap_interval(one - other)
    return Estimate(float((one - other).mean()), low, high, f"bootstrap over {len(one)} {unit}")


def over_images(scores: np.ndarray) -> Estimate:
    """A mean with the interval of a bootstrap over images."""
    return paired(scores, np.zeros_like(scores), "test images")


def _drawn(value: float, draws: np.ndarray) -> Estimate:
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(value, float(low), float(high), "bootstrap over test images")


def orthonormal(layers: Result) -> list[float]:
    """R^c with orthonormal bases, by layer."""
    rates: list[float] = np.mean(layers["orthonormal"], axis=0).tolist()
    return rates


def all_rate(layers: Result) -> list[float]:
    """R of all tokens, by layer."""
    rates: list[float] = layers["rate"]["mean"]
    return rates


def subspace_rate(layers: Result) -> list[float]:
    """R^c by layer."""
    rates: list[float] = layers["subspace_rate"]["mean"]
    return rates


def hundredths(value: Estimate) -> Estimate:
    """The same in another unit."""
    return Estimate(100 * value.value, 100 * value.low, 100 * value.high, value.basis)
