"""What `crate-hour` is asked, and how it is read off the results."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from unrolled.studies.cells import Cell, Result
from unrolled.studies.claim import CONTROL, NOBODY, Claim, Measured
from unrolled.studies.crate.emergence.cells import Baselines
from unrolled.studies.crate.emergence.claims import ByPhoto, Difference, difference
from unrolled.studies.crate.hour.cells import Corrupted, HourConfig, Layers, Probe, Removed, Scores, Target
from unrolled.studies.crate.hour.networks import Given, Looked, given
from unrolled.studies.crate.hour.photos import Cuts, Things
from unrolled.studies.crate.minutes.cells import Trial
from unrolled.studies.results import Estimate, Results, Values
from unrolled.studies.statistics import spearman

MAP = "class token"
_CURVES = "arXiv 2306.01129, figures 3 and 4"
_EMERGENCE = "arXiv 2308.16271"
_NOTHING = Estimate(math.nan, math.nan, math.nan, "nothing")
_MOST = 1.96  # standard errors, of a 95 % interval


class View:
    """Results by network; of what was not run there is None, or no values."""

    def __init__(self, results: Results[Any], config: HourConfig) -> None:
        self.results, self.config = results, config

    def of(self, cell: type[Cell], network: Looked | None, **columns: Any) -> Result | None:
        """What was measured of a network, the only row of it."""
        for row in self.results.of(cell):
            here = row.cell.columns
            if row.cell.network == network and all(here[name] == value for name, value in columns.items()):  # type: ignore[attr-defined]
                return row.result
        return None

    def fresh(self, cell: type[Cell], weights: str, **columns: Any) -> dict[int, Result]:
        """The same of fresh weights, by seed."""
        rows = {seed: self.of(cell, given(weights, seed), **columns) for seed in self.config.seeds}
        return {seed: row for seed, row in rows.items() if row is not None}

    @property
    def trials(self) -> dict[float, Trial]:
        """Trials that were looked at, by rate."""
        cells = [row.cell.network for row in self.results.of(Layers)]
        return {network.rate: network for network in cells if isinstance(network, Trial)}

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
        names = [name for name in self.config.trained if name != self.config.vit]
        out: list[tuple[Looked, float, Result]] = []
        networks: list[Looked] = [*map(given, names), *self.trials.values()]
        for network in networks:
            layers, scores = self.of(Layers, network), self.of(Scores, network)
            if layers is not None and scores is not None:
                out.append((network, scores["accuracy"], layers))
        return out

    def rate_and_accuracy(self, read: Callable[[Result], float]) -> Estimate:
        """Rank correlation, over CRATEs, of accuracy with a number of the layers."""
        every = self.compared()
        if len(every) < 4:
            return _NOTHING
        rho = spearman([read(layers) for _, _, layers in every], [accuracy for _, accuracy, _ in every])
        return Estimate.of_ranks(rho, len(every), f"Fisher's z over {len(every)} networks")

    # photos

    def photos(
        self, weights: str, *, trained: bool = True, what: str = "picked_photos", side: int | None = None,
        name: str = MAP,
    ) -> ByPhoto:  # fmt: skip
        """Jaccard by photo, of trained weights or, by seed, of fresh ones."""
        which = {"side": side or self.config.sides[0]}
        own = self.of(Things, given(weights), **which) if trained else None
        rows = {} if own is None else {0: own}
        rows = rows if trained else self.fresh(Things, weights, **which)
        return {seed: np.asarray(row["maps"][name][what]) for seed, row in rows.items()}

    def middle(self, side: int | None = None) -> np.ndarray | None:
        """Jaccard by photo of the bump in the middle."""
        scores = self.results.of(Baselines, side=side or self.config.sides[0]).first("centre prior")
        return None if scores is None else np.asarray(scores)

    def against_fresh(self, weights: str, **which: Any) -> Difference | None:
        """Trained less every fresh network, in hundredths."""
        own, fresh = self.photos(weights, **which), self.photos(weights, trained=False, **which)
        return difference(dict.fromkeys(fresh, own[0]), fresh) if own and fresh else None

    def cut(self, weights: str, what: str = "jaccard") -> ByPhoto:
        """Jaccard by photo of MaskCut's objects, or of a bump as large as they (`middle`)."""
        row = self.of(Cuts, given(weights))
        return {} if row is None else {0: np.asarray(row[what])}

    # other images

    def right(self, network: Given | None, target: Target) -> np.ndarray | None:
        """Which test images of a target a probe gets right, 0 or 100."""
        row = self.of(Probe, network, target=target)
        return None if row is None else 100.0 * np.array([int(digit) for digit in row["right"]])

    def transfer(self, weights: str, target: Target) -> Estimate:
        """Trained less the mean of fresh ones, points."""
        fresh = [self.right(given(weights, seed), target) for seed in self.config.seeds]
        known = [each for each in fresh if each is not None]
        return paired(self.right(given(weights), target), np.mean(known, 0) if known else None, "test images")

    # calibration and corruptions

    def ece(self, weights: str, how: str = "plain") -> Estimate:
        """Expected calibration error, hundredths."""
        row = self.of(Scores, given(weights))
        return _NOTHING if row is None else _drawn(100 * row[how]["ece"], 100 * np.array(row[how]["draws"]))

    def ece_difference(self, one: str, other: str) -> Estimate:
        """Of `one` less that of `other`, on the same draws of images."""
        rows = [self.of(Scores, given(name)) for name in (one, other)]
        if None in rows:
            return _NOTHING
        a, b = (row["plain"] for row in rows if row is not None)
        return _drawn(100 * (a["ece"] - b["ece"]), 100 * (np.array(a["draws"]) - np.array(b["draws"])))

    def errors(self, weights: str, name: str = "mean_error") -> Values:
        """Error on corrupted images, per cent, by batch; `clean`, or of one corruption."""
        row = self.of(Corrupted, given(weights))
        if row is None:
            return Values(unit="batch")
        every = [{**each, **each["corruptions"]}[name] for each in row["batches"]]
        return Values({place: 100 * value for place, value in enumerate(every)}, "batch")

    def rise(self, weights: str) -> Values:
        """Mean error on corrupted images less that on clean ones, points."""
        return self.errors(weights) - self.errors(weights, "clean")

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


def paired(one: np.ndarray | None, other: np.ndarray | None, unit: str) -> Estimate:
    """Mean of `one` less `other`, with the interval of a bootstrap over `unit`; NaN if either is None."""
    from unrolled.instruments.regions.overlap import bootstrap_interval

    if one is None or other is None:
        return _NOTHING
    low, high = bootstrap_interval(one - other)
    return Estimate(float((one - other).mean()), low, high, f"bootstrap over {len(one)} {unit}")


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


def _or_none(value: Estimate | Difference | None) -> Measured:
    """No values where nothing was run."""
    estimate = value.judged if isinstance(value, Difference) else value
    return Values() if estimate is None or (isinstance(estimate, Estimate) and math.isnan(estimate.value)) else estimate


def _alone(value: Difference | None) -> Measured:
    """The difference of two networks, by its interval over photos."""
    return Values() if value is None else value.estimate


def _claim(statement: str, value: Callable[[View], Measured], *, detail: Callable[[View], str] = lambda view: "",
           control: Callable[[View], Measured] | None = None, **rest: Any) -> Claim:  # fmt: skip
    return Claim(
        statement=statement,
        value=lambda results, config: value(View(results, config)),
        detail=lambda results, config: detail(View(results, config)),
        control=None if control is None else lambda results, config: control(View(results, config)),
        **rest,
    )


def _last_layer(view: View, seed: int | None = None) -> Difference | None:
    row = view.of(Things, given(view.config.crate, seed), side=view.config.sides[0])
    if row is None:
        return None
    scores = row["maps"][MAP]
    return difference({0: np.asarray(scores["picked_photos"])}, {0: np.asarray(scores["layer_photos"][-1])})


def _fresh_last_layer(view: View) -> Values:
    apart = {seed: _last_layer(view, seed) for seed in view.config.seeds}
    return Values({seed: each.estimate.value for seed, each in apart.items() if each is not None})


def _transfer_claim(target: Target, words: str) -> Claim:
    return _claim(
        f"Features of the CRATE carry over to {words}: ridge probe, less that of fresh weights (points)",
        lambda view: _or_none(view.transfer(view.config.crate, target)),
        source="a question of this package",
        published="none",
        unjudged=NOBODY,
        low=0.0,
        spec="+.1f",
        detail=lambda view: f"; the ViT {view.transfer(view.config.vit, target):+.1f}",
    )


CLAIMS = (
    _claim(
        "R^c falls from the first to the last layer of the CRATE trained for an hour (ratio)",
        lambda view: view.last_to_first(view.config.crate),
        source=_CURVES,
        published="about 600 / 1100 = 0.55",
        high=1.0,
        outside="a network whose layers expand their tokens, as the decoders of `crate-mae-layers` should",
        control=lambda view: view.fresh_layers(view.config.crate, lambda r: subspace_rate(r)[-1] / subspace_rate(r)[0]),
        spec=".2f",
    ),
    _claim(
        "The share of non-zero entries falls from its first to its last layer (difference)",
        lambda view: view.thinning(view.config.crate),
        source=_CURVES,
        published="about 0.2 - 0.5 = -0.3",
        high=0.0,
        outside="layers that fill up, as the last one of the paper's figures does",
        control=lambda view: view.fresh_layers(
            view.config.crate, lambda r: r["nonzero"]["mean"][-1] - r["nonzero"]["mean"][0]
        ),
        spec=".2f",
    ),
    _claim(
        "Training lowers R^c, mean over layers (nats, trained less fresh weights)",
        lambda view: view.rate_learned(view.config.crate, subspace_rate),
        source=CONTROL,
        published="none",
        unjudged=CONTROL,
        high=0.0,
        spec="+.1f",
        detail=lambda view: (
            f"; with orthonormal bases {view.rate_learned(view.config.crate, orthonormal):+.1f}; R of "
            f"all tokens {view.rate_learned(view.config.crate, all_rate):+.1f}"
        ),
    ),
    _claim(
        "A lower R^c at the last layer goes with a higher accuracy (Spearman correlation over trained CRATEs)",
        lambda view: _or_none(view.rate_and_accuracy(lambda r: subspace_rate(r)[-1])),
        source="arXiv 2509.16875",
        published="said of its models, no number",
        unjudged="a handful of networks of two recipes, most of them the same one at other rates",
        high=-0.5,
        spec="+.2f",
        detail=lambda view: f"; with orthonormal bases {view.rate_and_accuracy(lambda r: orthonormal(r)[-1]):+.2f}",
    ),
    _claim(
        "Its attention fits things better than the ViT's (difference in Jaccard index, times 100)",
        lambda view: _alone(difference(view.photos(view.config.crate), view.photos(view.config.vit))),
        source=f"{_EMERGENCE}, VOC12 mIoU, S/8, ImageNet-21K",
        published="23.9 against 14.1 (another scale: 12 layers, patch 8, 480 px)",
        low=0.0,
        outside="two kinds whose maps fit alike: 0",
        control=lambda view: _alone(
            None if (bump := view.middle()) is None else difference({0: bump}, view.photos(view.config.vit))
        ),
        spec="+.1f",
    ),
    _claim(
        "Training makes it appear: against fresh weights (difference, times 100)",
        lambda view: _or_none(view.against_fresh(view.config.crate)),
        source=CONTROL,
        published="none",
        unjudged=CONTROL,
        low=0.0,
        spec="+.1f",
    ),
    _claim(
        "It is more than looking at the middle: against a bump there (difference, times 100)",
        lambda view: _alone(difference(view.photos(view.config.crate), view.middle())),
        source=CONTROL,
        published="none",
        unjudged=CONTROL,
        low=0.0,
        spec="+.1f",
    ),
    _claim(
        "The last layer is a poor choice: best head of the best layer less that of the last layer (times 100)",
        lambda view: _alone(_last_layer(view)),
        source="arXiv 2509.16875: CRATE-S on VOC12, Jaccard .57 in layer 8 of 12, .39 in layer 12",
        published="+18",
        outside="a last layer that is the best: 0, or less where layers were chosen on other photos",
        low=1e-6,
        control=_fresh_last_layer,
        spec="+.1f",
    ),
    _claim(
        "What MaskCut finds in its keys fits things better than in the ViT's (difference in Jaccard index, times 100)",
        lambda view: _alone(difference(view.cut(view.config.crate), view.cut(view.config.vit))),
        source=f"{_EMERGENCE}, COCO val2017, S/8",
        published="box AP50 2.9 against 0.1",
        unjudged="another quantity than average precision",
        low=0.0,
        spec="+.1f",
    ),
    _claim(
        "and better than a bump in the middle as large as each mask (difference, times 100)",
        lambda view: _alone(difference(view.cut(view.config.crate), view.cut(view.config.crate, "middle"))),
        source=CONTROL,
        published="none",
        unjudged=CONTROL,
        low=0.0,
        spec="+.1f",
    ),
    _transfer_claim("tiny-imagenet-32", "Tiny-ImageNet-32"),
    _transfer_claim("fashion_mnist", "Fashion-MNIST"),
    _claim(
        "Calibration: expected calibration error of the CRATE less that of the ViT (hundredths)",
        lambda view: _or_none(view.ece_difference(view.config.crate, view.config.vit)),
        source="a question of this package",
        published="none",
        unjudged=NOBODY,
        spec="+.2f",
        detail=lambda view: f"; {view.ece(view.config.crate):.2f} and {view.ece(view.config.vit):.2f}",
    ),
    _claim(
        "Corruptions: what they add to the error, CRATE less ViT (points)",
        lambda view: view.rise(view.config.crate) - view.rise(view.config.vit),
        source="a question of this package",
        published="none",
        unjudged=NOBODY,
        spec="+.1f",
        detail=lambda view: f"; {view.rise(view.config.crate):.1f} and {view.rise(view.config.vit):.1f}",
    ),
    _claim(
        "Removing the patches with most evidence (`unrolled explain`) costs the CRATE more than random ones (area "
        "between the curves of the probability, hundredths)",
        lambda view: _or_none(hundredths(view.better(view.config.crate, "deletion", "evidence", "random"))),
        source="a question of this package; the measure is that of arXiv 1806.07421",
        published="none",
        unjudged=NOBODY,
        low=0.0,
        spec="+.1f",
        detail=lambda view: (
            f"; the ViT {hundredths(view.better(view.config.vit, 'deletion', 'evidence', 'random')):+.1f}"
        ),
    ),
    _claim(
        "and keeping only them leaves it more (hundredths)",
        lambda view: _or_none(hundredths(view.better(view.config.crate, "insertion", "evidence", "random"))),
        source="a question of this package; the measure is that of arXiv 1806.07421",
        published="none",
        unjudged=NOBODY,
        low=0.0,
        spec="+.1f",
        detail=lambda view: (
            f"; the ViT {hundredths(view.better(view.config.vit, 'insertion', 'evidence', 'random')):+.1f}"
        ),
    ),
)


def hundredths(value: Estimate) -> Estimate:
    """The same in another unit."""
    return Estimate(100 * value.value, 100 * value.low, 100 * value.high, value.basis)
