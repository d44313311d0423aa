"""What `crate-emergence` judges, and how it is read off the results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from unrolled.studies.claim import CONTROL, SHARE, Claim
from unrolled.studies.crate.emergence.cells import (
    Baselines,
    Borders,
    EmergenceConfig,
    Objects,
    OnPhotos,
    Parts,
    Segmentation,
    map_of,
)
from unrolled.studies.crate.emergence.maps import RULE
from unrolled.studies.results import Estimate, Results, Values
from unrolled.studies.statistics import corrected

_SOURCE = "arXiv 2308.16271"
STATES = ("trained", "untrained")
ByPhoto = dict[int, np.ndarray]
"""Scores by photo `[photos]` of each seed that was run."""


class View:
    """Results by question; all of the size at which everything is measured, unless another is named."""

    def __init__(self, results: Results[Any], config: EmergenceConfig) -> None:
        self.results, self.config = results, config

    def rows(self, cell: type[OnPhotos], kind: str, state: str = "trained", *, side: int | None = None) -> Results[Any]:
        """What was measured of a kind, one row a seed."""
        networks, side = self.config.networks(kind, state), side or self.config.side
        return Results(row for row in self.results.of(cell) if row.cell.network in networks and row.cell.side == side)

    def values(self, cell: type[OnPhotos], kind: str, state: str, read: Callable[[Any], float]) -> Values:
        """A number of each seed."""
        return self.rows(cell, kind, state).values(read)

    def scores(
        self, kind: str, state: str = "trained", *, what: str = "picked_photos", side: int | None = None,
        name: str = "", rule: str = RULE,
    ) -> ByPhoto:  # fmt: skip
        """Jaccard by photo; of the kind's own map unless it is named."""
        return {
            row.cell.network.seed: np.asarray(row.result["maps"][name or map_of(kind)][rule][what])
            for row in self.rows(Segmentation, kind, state, side=side)
        }

    def means(self, kind: str, state: str = "trained", **which: Any) -> Values:
        """The mean over photos of `scores`."""
        return Values({seed: float(scores.mean()) for seed, scores in self.scores(kind, state, **which).items()})

    def baseline(self, name: str) -> np.ndarray | None:
        """Jaccard by photo of what needs no model; None where it was not run."""
        scores = self.results.of(Baselines, side=self.config.side).first(name)
        return None if scores is None else np.asarray(scores)

    def colour(self, cell: type[Objects | Borders]) -> Results[Any]:
        """What was found in the patches' colours, at most one row."""
        return Results(row for row in self.results.of(cell) if row.cell.network is None)

    def learned(self, kind: str, name: str = "") -> Difference | None:
        """Trained less untrained."""
        return difference(self.scores(kind, name=name), self.scores(kind, "untrained", name=name))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A paired difference on the same photos.

    Attributes:
        estimate: times 100; 95 % by a bootstrap over photos of the mean over seeds.
        seeds: the mean of every seed, times 100.
    """

    estimate: Estimate
    seeds: tuple[float, ...]

    @property
    def verdict(self) -> str:
        """`up` or `down` where the interval and all seeds say so, else `unclear`."""
        if self.estimate.low > 0 and min(self.seeds) > 0:
            return "up"
        return "down" if self.estimate.high < 0 and max(self.seeds) < 0 else "unclear"

    @property
    def judged(self) -> Values | Estimate:
        """What verdicts rest on: the ends further out of the intervals over photos and over seeds."""
        seeds = Values(dict(enumerate(self.seeds)))
        over = seeds.interval()
        if over is None:
            return seeds
        low, high = min(over[0], self.estimate.low), max(over[1], self.estimate.high)
        return Estimate(
            self.estimate.value, low, high, f"the wider of those over {self.count} and by {self.estimate.basis}"
        )

    @property
    def count(self) -> str:
        """How many seeds, in words."""
        return plural(len(self.seeds), "seed")

    def __str__(self) -> str:
        return f"{self.estimate:+.1f}, {self.count}"


def difference(a: ByPhoto, b: ByPhoto | np.ndarray | None, *, of: int = 1) -> Difference | None:
    """Scores `a` less `b`, paired by seed, or the same `b` for all; None if no seed has both.

    Seeds are averaged before photos are resampled. Of several differences that are looked at, `of` of them, the
    interval is at 1 - 0.05 / of (Bonferroni), from so many draws that fifty lie beyond each end.
    """
    from unrolled.instruments.regions.overlap import bootstrap_interval

    seeds = [seed for seed in a if b is not None and (not isinstance(b, dict) or seed in b)]
    if not seeds or b is None:
        return None
    table = 100 * np.stack([a[seed] - (b[seed] if isinstance(b, dict) else b) for seed in seeds])
    low, high = bootstrap_interval(table.mean(0), level=1 - 0.05 / of, draws=2000 * of)
    estimate = Estimate(float(table.mean()), low, high, f"bootstrap over {table.shape[1]} photos{corrected(of)}")
    return Difference(estimate=estimate, seeds=tuple(table.mean(1).tolist()))


PLACES = "Layers and heads count from 0, as the names of `unrolled.edit` do: 3/2 is `block03/attn/head2`."


def head_name(index: int, heads: int) -> str:
    """What tables call a head, from 0 as in `unrolled.edit`; the last is the mean over heads."""
    return "mean" if index == heads else str(index)


def plural(count: int, noun: str) -> str:
    """A number of things, in words."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def excess(result: Mapping[str, Any]) -> float:
    """Consistency of heads above that of either shuffle."""
    return float(result["consistency"] - max(result["heads_chance"], result["images_chance"]))


def _last_layer(view: View) -> Difference | None:
    layers = view.scores("crate", what="layer_photos")
    return difference(view.scores("crate"), {seed: table[-1] for seed, table in layers.items()})


def _ap50(view: View, kind: str) -> Values:
    return view.values(Objects, kind, "trained", lambda result: 100 * result["bbox"]["AP50"])


def _coloured(view: View) -> Values:
    """What colours of patches give less the ViT's keys."""
    colours = [100 * row.result["bbox"]["AP50"] for row in view.colour(Objects)]
    return fmean(colours) - _ap50(view, "vit") if colours else Values()


def _centre(view: View, like: str) -> ByPhoto:
    """The centre prior's scores by photo, for every seed of a kind."""
    scores = view.baseline("centre prior")
    return {} if scores is None else dict.fromkeys(view.scores(like), scores)


def _objects(view: View) -> str:
    colour = "".join(f"; colour of patches {100 * row.result['bbox']['AP50']:.2f}" for row in view.colour(Objects))
    return f" ({_ap50(view, 'crate'):.2f} against {_ap50(view, 'vit'):.2f}{colour})"


def _roles(view: View) -> Values:
    """1 for every seed whose heads keep to their parts by both shuffles, and more than untrained ones; else 0."""
    plain = view.values(Parts, "crate", "untrained", excess)
    return view.values(
        Parts,
        "crate",
        "trained",
        lambda result: float(max(result["heads_p"], result["images_p"]) < 0.05 and excess(result) > plain.mean),
    )


def _share(passed: Values) -> Estimate | Values:
    """The share of seeds that pass, with its exact interval: Student's of three that agree has no width."""
    return Estimate.of_share(passed.mean, len(passed), f"exact, over {passed.count}") if passed else passed


def _roles_words(view: View) -> str:
    passed = _roles(view)
    above, plain = (view.values(Parts, "crate", state, excess) for state in STATES)
    return f" ({sum(passed):.0f} of {passed.count}; consistency above chance {above:.3f}, untrained {plain.mean:.3f})"


def _by_token(view: View) -> str:
    token = view.learned("mae", "class token")
    return "" if token is None else f"; read by the class token {token}"


def _differs(
    statement: str,
    of: Callable[[View], Difference | None],
    *,
    source: str,
    published: str,
    low: float = 0.0,
    more: Callable[[View], str] = lambda view: "",
    control: Callable[[View], Difference | None] | None = None,
    **judged: Any,
) -> Claim:
    """About a difference in Jaccard index, times 100, judged by the wider of its intervals. `judged`: see `Claim`."""

    def read(of: Callable[[View], Difference | None]) -> Callable[[Results[Any], EmergenceConfig], Values | Estimate]:
        def value(results: Results[Any], config: EmergenceConfig) -> Values | Estimate:
            apart = of(View(results, config))
            return Values() if apart is None else apart.judged

        return value

    def detail(results: Results[Any], config: EmergenceConfig) -> str:
        view = View(results, config)
        apart = of(view)
        return "" if apart is None else f", {apart.count}{more(view)}"

    return Claim(
        statement=statement,
        source=source,
        published=published,
        value=read(of),
        low=low,
        spec="+.1f",
        detail=detail,
        control=None if control is None else read(control),
        **judged,
    )


CLAIMS = (
    _differs(
        "A trained CRATE's attention fits things better than a ViT's (difference in Jaccard index, times 100)",
        lambda view: difference(view.scores("crate"), view.scores("vit")),
        source=f"{_SOURCE}, VOC12 mIoU, S/8, ImageNet-21K",
        published="23.9 against 14.1 (another scale: 12 layers, patch 8, 480 px)",
        outside="two kinds whose maps fit alike: 0",
        control=lambda view: difference(_centre(view, like="vit"), view.scores("vit")),
    ),
    _differs(
        "Training makes it appear: trained against untrained CRATE (difference, times 100)",
        lambda view: view.learned("crate"),
        source=CONTROL,
        published="-",
        unjudged=CONTROL,
    ),
    _differs(
        "It is more than looking at the middle: trained CRATE against a centre prior (difference, times 100)",
        lambda view: difference(view.scores("crate"), view.baseline("centre prior")),
        source=CONTROL,
        published="-",
        unjudged=CONTROL,
    ),
    _differs(
        "The last layer is a poor choice: best head of the best layer less that of the last layer (times 100)",
        _last_layer,
        source="arXiv 2509.16875: CRATE-S on VOC12, Jaccard .57 in layer 8 of 12, .39 in layer 12",
        published="+18",
        outside="a last layer that is the best: 0, or less where layers were chosen on other photos",
        low=1e-6,  # the last layer may be the one that was chosen
    ),
    Claim(
        statement="Jaccard index of a CRATE's best map with things",
        source="arXiv 2509.16875, VOC12, CRATE-S/16 at ImageNet scale, best map chosen with the answer",
        published=".65 foreground (another scale and data; not judged)",
        value=lambda results, config: View(results, config).means("crate"),
        unjudged="another scale and other data",
        detail=lambda results, config: ", layer and head chosen on other photos",
    ),
    Claim(
        statement="MaskCut finds more objects in a CRATE's keys than in a ViT's (difference in box AP50, times 100)",
        source=f"{_SOURCE}, COCO val2017, S/8",
        published="2.9 against 0.1 (another scale)",
        value=lambda results, config: _ap50(View(results, config), "crate") - _ap50(View(results, config), "vit"),
        low=0.0,
        outside="two kinds whose keys hold as many objects: 0",
        control=lambda results, config: _coloured(View(results, config)),
        spec="+.2f",
        detail=lambda results, config: _objects(View(results, config)),
    ),
    Claim(
        statement="A trained CRATE's heads keep to their parts across photos (share of seeds where both shuffles say "
        "so at 5 %, and more than an untrained one's)",
        source=f"{_SOURCE}, figures of single heads: leg, body, face, ear",
        published="shown in pictures, no test",
        value=lambda results, config: _share(_roles(View(results, config))),
        low=0.5,
        within=SHARE,
        outside="heads that follow no part: 0.05 of networks, or fewer",
        spec=".2f",
        detail=lambda results, config: _roles_words(View(results, config)),
    ),
    _differs(
        "It appears in CRATE-MAE too: trained against untrained (difference, times 100)",
        lambda view: view.learned("mae"),
        source="arXiv 2404.02446, attention maps of CRATE-MAE",
        published="shown in pictures",
        outside="maps that training leaves as they are: 0",
        more=_by_token,
    ),
)
