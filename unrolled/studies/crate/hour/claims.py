"""What `crate-hour` is asked; ranges are those of the studies that asked it of smaller trainings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from unrolled.studies.cells import Result
from unrolled.studies.claim import CONTROL, CORRELATION, NOBODY, Claim, Measured
from unrolled.studies.crate.emergence.claims import ByPhoto, Difference, difference, excess
from unrolled.studies.crate.hour.cells import Target
from unrolled.studies.crate.hour.drawn import role_excess
from unrolled.studies.crate.hour.networks import FOUR_HOURS, WORDS, given
from unrolled.studies.crate.hour.photos import Heads, Roles, Things
from unrolled.studies.crate.hour.relation import Relation
from unrolled.studies.crate.hour.view import LAST, MAP, View, all_rate, hundredths, orthonormal, paired, subspace_rate
from unrolled.studies.results import Estimate, Values

_CURVES = "arXiv 2306.01129, figures 3 and 4"
_EMERGENCE = "arXiv 2308.16271"
_BASES = "R^c with orthonormal bases, last layer"


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


def _rho(value: Relation | None) -> Measured:
    return Values() if value is None else _or_none(value.rho)


def _after_four_hours(view: View, scores: Callable[[View, str], ByPhoto] = View.photos) -> str:
    """The same difference of the two that learnt for four hours."""
    crate, vit = (scores(view, name) if name in view.config.others else {} for name in FOUR_HOURS)
    apart = difference(crate, vit)
    return "" if apart is None else f"; after four hours {apart.estimate:+.1f}"


def _others_and_the_middle(view: View) -> str:
    """The same difference of all other networks, corrected for all comparisons."""
    names = (view.config.vit, *view.config.others)
    apart = {name: difference(view.photos(name), view.baseline(), of=view.comparisons) for name in names}
    each = [f"{WORDS.get(name, name)} {by.estimate:+.1f}" for name, by in apart.items() if by is not None]
    return f"; corrected for {view.comparisons} comparisons: {', '.join(each)}" if each else ""


def _cuts_and_the_middle(view: View) -> str:
    """The same difference of all other networks, corrected for all."""
    count = len(view.config.looked_at)
    names = (view.config.vit, *view.config.others)
    apart = {name: difference(view.cut(name), view.cut(name, "middle"), of=count) for name in names}
    each = [f"{WORDS.get(name, name)} {by.estimate:+.1f}" for name, by in apart.items() if by is not None]
    return f"; corrected for {count} networks: {', '.join(each)}" if each else ""


def _last_layer(view: View, seed: int | None = None) -> Difference | None:
    row = view.of(Things, given(view.config.crate, seed))
    if row is None:
        return None
    scores = row["maps"][MAP]
    return difference({0: np.asarray(scores["picked_photos"])}, {0: np.asarray(scores["layer_photos"][-1])})


def _fresh_last_layer(view: View) -> Values:
    apart = {seed: _last_layer(view, seed) for seed in view.config.seeds}
    return Values({seed: each.estimate.value for seed, each in apart.items() if each is not None})


def _regions(view: View) -> str:
    vit = difference(view.by_photo(Heads, view.config.crate), view.by_photo(Heads, view.config.vit))
    fresh = view.region_gain(view.config.crate)
    ends = [("fresh weights", None if fresh is None else fresh.judged), ("the ViT", _alone(vit))]
    return "".join(f"; against {words} {value:+.1f}" for words, value in ends if value is not None)


def _roles(view: View) -> str:
    """Its p-value, and the same of fresh weights of both and of all other networks."""

    def p(row: Result) -> str:
        return f", p = {max(row['heads_p'], row['images_p']):.3f}"

    ends = {"fresh weights": view.config.crate, "fresh weights of the ViT": view.config.vit}
    beside = {words: view.rows(Roles, name, trained=False) for words, name in ends.items()}
    beside |= {WORDS.get(name, name): view.rows(Roles, name) for name in (view.config.vit, *view.config.others)}
    its = "".join(map(p, view.rows(Roles, view.config.crate).values()))
    rows = {words: next(iter(each.values())) for words, each in beside.items() if each}
    several = f"; p is not corrected for the {len(view.config.looked_at)} trained ones" if rows else ""
    return its + "".join(f"; {words} {excess(row):+.3f}{p(row)}" for words, row in rows.items()) + several


def _corrupted(view: View, name: str = "") -> Estimate:
    return paired(view.errors(view.config.crate, name), view.errors(view.config.vit, name), "test images")


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
        lambda view: _rho(view.among_crates(LAST)),
        source="arXiv 2509.16875",
        published="said of its models, no number",
        unjudged="a handful of networks of two recipes, most of them the same one at other rates",
        high=-0.5,
        within=CORRELATION,
        spec="+.2f",
        detail=lambda view: f"; with orthonormal bases {view.among_crates(_BASES):+.2f}",
    ),
    _claim(
        "The same among the networks of `crate-aligned`, given the passes they learnt for and their rate (partial "
        "correlation of ranks)",
        lambda view: _rho(view.among_students(LAST)),
        source="arXiv 2509.16875",
        published="said of its models, no number",
        high=-0.5,
        within=CORRELATION,
        outside="networks whose R^c has nothing to do with accuracy: 0",
        spec="+.2f",
        detail=lambda view: (
            f" over {len(view.students)} networks; given nothing {view.among_students(LAST, alike=False):+.2f}"
        ),
    ),
    _claim(
        "Its attention fits things better than the ViT's (difference in Jaccard index, times 100)",
        lambda view: _alone(difference(view.photos(view.config.crate), view.photos(view.config.vit))),
        source=f"{_EMERGENCE}, VOC12 mIoU, S/8, ImageNet-21K",
        published="23.9 against 14.1 (another scale: 12 layers, patch 8, 480 px)",
        low=0.0,
        outside="two kinds whose maps fit alike: 0",
        control=lambda view: _alone(
            None if (bump := view.baseline()) is None else difference({0: bump}, view.photos(view.config.vit))
        ),
        spec="+.1f",
        detail=_after_four_hours,
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
        lambda view: _alone(difference(view.photos(view.config.crate), view.baseline())),
        source=CONTROL,
        published="none",
        unjudged=CONTROL,
        low=0.0,
        spec="+.1f",
        detail=_others_and_the_middle,
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
        detail=lambda view: _after_four_hours(view, View.cut),
    ),
    _claim(
        "and better than a bump in the middle as large as each mask (difference, times 100)",
        lambda view: _alone(difference(view.cut(view.config.crate), view.cut(view.config.crate, "middle"))),
        source=CONTROL,
        published="none",
        unjudged=CONTROL,
        low=0.0,
        spec="+.1f",
        detail=_cuts_and_the_middle,
    ),
    _claim(
        "Some head of it looks at each region that people drew on BSDS: best head, against the same maps moved "
        "(difference in Jaccard index, times 100)",
        lambda view: _alone(
            difference(view.by_photo(Heads, view.config.crate), view.by_photo(Heads, view.config.crate, "moved"))
        ),
        source=f"{_EMERGENCE}, heads that attend to parts",
        published="shown in pictures, no test",
        unjudged="regions are no parts of named things",
        low=0.0,
        spec="+.1f",
        detail=_regions,
    ),
    _claim(
        "Its heads keep to the same kinds of things and stuff from photo to photo (consistency above chance, 0 to 1)",
        role_excess,
        source=f"{_EMERGENCE}, heads that attend to parts",
        published="shown in pictures, no test",
        unjudged="one network, and kinds of things are no parts of them",
        low=0.0,
        spec="+.3f",
        detail=_roles,
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
        "Errors on corrupted images, nine corruptions in five severities, of the CRATE less the ViT (points)",
        lambda view: _or_none(_corrupted(view)),
        source="a question of this package",
        published="none",
        unjudged=NOBODY,
        spec="+.1f",
        detail=lambda view: f"; on the same images, clean, {_corrupted(view, 'clean'):+.1f}",
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
