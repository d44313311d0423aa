"""Segmentation that nobody taught: whether objects and parts appear in small CRATEs, and what makes them appear.

Claims (arXiv 2308.16271): trained to classify, a CRATE's class token attends to objects, its heads to their parts, and
MaskCut finds objects in its keys, where a ViT's does not. Layer and head are chosen on photos of COCO's training set
and scored on others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from unrolled.studies.base import Budget, Expectation, Study
from unrolled.studies.crate_members import DEPTH, KINDS, MASKED, Data, Member, MembersConfig, build, kept, settings_of

if TYPE_CHECKING:
    from torch import nn

    from unrolled.report import Report
    from unrolled.studies.crate_emergence_photos import Shot

_SOURCE = "arXiv 2308.16271"
_CLASSES = 200
PENULTIMATE = DEPTH - 2
BETTER = Expectation(
    statement="A trained CRATE's attention fits things better than a ViT's (lower end of the interval of the "
    "difference in Jaccard index, times 100)",
    source=f"{_SOURCE}, VOC12 mIoU, S/8, ImageNet-21K",
    published="23.9 against 14.1 (another scale: 12 layers, patch 8, 480 px)",
    low=0.0,
)
LEARNED = Expectation(
    statement="Training makes it appear: trained against untrained CRATE (lower end of the interval, times 100)",
    source="a control of ours",
    published="-",
    low=0.0,
)
PRIOR = Expectation(
    statement="It is more than looking at the middle: trained CRATE against a centre prior (lower end, times 100)",
    source="a control of ours",
    published="-",
    low=0.0,
)
INSIDE = Expectation(
    statement="The last layer is a poor choice: best head of the best layer less that of the last layer (times 100)",
    source="arXiv 2509.16875: CRATE-S on VOC12, Jaccard .57 in layer 8 of 12, .39 in layer 12",
    published="+18",
    low=1e-6,  # the last layer may be the one that was chosen
)
JACCARD = Expectation(
    statement="Jaccard index of a CRATE's best map with things",
    source="arXiv 2509.16875, VOC12, CRATE-S/16 at ImageNet scale, best map chosen with the answer",
    published=".65 foreground (another scale and data; not judged)",
)
OBJECTS = Expectation(
    statement="MaskCut finds more objects in a CRATE's keys than in a ViT's (smallest difference in box AP50 over "
    "seeds, times 100)",
    source=f"{_SOURCE}, COCO val2017, S/8",
    published="2.9 against 0.1 (another scale)",
    low=0.0,
)
ROLES = Expectation(
    statement="A trained CRATE's heads keep to their parts across photos (share of seeds where both shuffles say so at "
    "5 %, and more than an untrained one's)",
    source=f"{_SOURCE}, figures of single heads: leg, body, face, ear",
    published="shown in pictures, no test",
    low=1.0,
)
MASKED_TOO = Expectation(
    statement="It appears in CRATE-MAE too: trained against untrained (lower end of the interval, times 100)",
    source="arXiv 2404.02446, attention maps of CRATE-MAE",
    published="shown in pictures",
    low=0.0,
)


@dataclass(kw_only=True)
class Config(MembersConfig):
    """Models are the roster's, trained beforehand for all studies: what is not kept is reported as not run."""

    budgets: ClassVar[dict[Budget, dict[str, Any]]] = {
        "quick": {
            "source": "generated",
            "photos": 12,
            "border_photos": 6,
            "seeds": (0,),
            "kinds": ("crate", "vit", "mae"),
            "changes": ("registers",),
            "other_sides": (32,),
            "members": Path("runs/crate-members-quick"),
        },
        "cpu": {},
        "gpu": {
            "device": "cuda",
            "images": 1_280_000,
            "members": Path("runs/crate-members-gpu"),
            "workers": 1,
        },
    }

    source: Literal["coco", "generated"] = "coco"
    """Annotated photos: COCO and BSDS from `data_dir`, or made-up ones, which need no files."""
    data: Data = "tiny-imagenet-32"
    """What the members are trained on."""
    kinds: tuple[str, ...] = ("crate", "alpha", "vit", "mae", "vit-mae")
    """Measured in every way; names of the roster."""
    changes: tuple[str, ...] = ("registers", "orthogonal", "regularised", "tied", "width-48", "patch-8")
    """Changes of CRATE, measured by their attention alone."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of weights and training batches."""
    side: int = 64
    """Pixels of a side at which everything is measured; the members were trained at 32."""
    other_sides: tuple[int, ...] = (32, 96)
    """Further sizes, with two seeds of the trained kinds and one untrained."""
    photos: int = 100
    """Photos of either half, to choose layer and head by and to report on."""
    border_photos: int = 50
    """Photos of BSDS."""
    parts: int = 8
    """Commonest categories, things and stuff, that heads may keep to."""
    out: Path = Path("runs/crate-emergence")
    """Where the report goes, and the measured cells, which a second run takes from there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must name at least one, and none twice")
        unknown = [kind for kind in (*self.kinds, *self.changes) if kind not in KINDS]
        if unknown or "crate" not in self.kinds:
            raise ValueError(f"kinds and changes: choose from {', '.join(KINDS)}, and 'crate' among kinds")
        if any(side < 8 or side % 4 for side in (self.side, *self.other_sides)):
            raise ValueError("side and other_sides must be multiples of 4, the patch, and at least 8")
        if min(self.photos, self.border_photos, self.parts) < 2:
            raise ValueError("photos, border_photos and parts must be at least 2")
        if self.data == "digits":
            raise ValueError("data='digits': grey images of 8 pixels; choose 'tiny-imagenet-32' or 'cifar10'")
        if self.source not in ("coco", "generated"):
            raise ValueError(f"source={self.source!r}: choose 'coco' or 'generated'")


def map_of(kind: str) -> str:
    """The kind of map that scores a kind: a masked autoencoder's class token is trained for nothing."""
    return "seed patch" if kind in MASKED else "class token"


def run(config: Config, *, on_progress: Callable[[str], None] | None = None) -> Report:
    """Measure the members that are kept, and untrained twins; the report is also written to `config.out`.

    Args:
        config: what to run.
        on_progress: given a line of text for each member.

    Raises:
        MissingData: the photos are not in `config.data_dir`.
    """
    from unrolled.studies.crate_emergence_report import build as page

    began = time.perf_counter()
    shots, edges = photos_of(config)
    found: dict[str, Any] = {
        "segmentation": {str(side): {} for side in (config.side, *config.other_sides)},
        **{"objects": {}, "borders": {}, "consistency": {}},
    }
    _baselines(config, found, shots, edges)
    for kind in (*config.kinds, *config.changes):
        for state in ("trained", "untrained"):
            for place, seed in enumerate(config.seeds):
                member = Member(kind=_twin(kind, state), data=config.data, seed=seed, trained=state == "trained")
                _measure(config, found, member, kind, place, shots, edges)
                if on_progress is not None:
                    on_progress(_line(config, found, kind, state, place, member))
    report = page(config, found, time.perf_counter() - began)
    report.write(config.out)
    return report


def photos_of(config: Config) -> tuple[tuple[Shot, ...], tuple[Shot, ...]]:
    """Photos with things, and photos with borders."""
    from unrolled.studies.crate_emergence_photos import bsds, coco, generated

    if config.source == "generated":
        made = generated(config.photos)
        return made, made[-config.border_photos :]
    return coco(config.data_dir, config.photos), bsds(config.data_dir, config.border_photos)


def network(config: Config, member: Member) -> nn.Module:
    """The member, shown whole images; a trained one must be kept."""
    from unrolled.studies.crate_emergence_maps import whole
    from unrolled.studies.crate_members import trained

    if member.trained:
        return whole(trained(config, member))
    return whole(build(member, classes=_CLASSES).to(config.device))


def _twin(kind: str, state: str) -> str:
    """A kind that differs in its loss alone is, untrained, a CRATE."""
    return "crate" if state == "untrained" and KINDS[kind].rate else kind


def _measure(
    config: Config,
    found: dict[str, Any],
    member: Member,
    kind: str,
    place: int,
    shots: tuple[Shot, ...],
    edges: tuple[Shot, ...],
) -> None:
    """One member's cells into `found`, None where it is not kept."""
    from unrolled.studies import crate_emergence_maps as maps

    state = "trained" if member.trained else "untrained"
    here = not member.trained or kept(config, member)
    loaded: list[nn.Module] = []

    def model() -> nn.Module:
        if not loaded:
            loaded.append(network(config, member))
        return loaded[0]

    def put(table: dict[str, Any], name: str, settings: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> None:
        result = (
            _cell(config, f"{name}-{member.name}", settings_of(config, member) | settings, compute) if here else None
        )
        table.setdefault(kind, {}).setdefault(state, []).append(result)

    for side in (config.side, *config.other_sides):
        if side != config.side and (kind not in config.kinds or place >= (2 if member.trained else 1)):
            continue
        table = found["segmentation"][str(side)]
        put(table, f"maps-{side}", {"side": side}, lambda side=side: maps.segmentation(model(), shots, side))  # type: ignore[misc]
    if kind not in config.kinds or (not member.trained and place):
        return
    side, layer = config.side, PENULTIMATE
    own = {"side": side, "layer": layer}
    put(found["objects"], "objects", own, lambda: maps.objects(model(), shots, side, layer))
    put(
        found["borders"],
        "borders",
        own | {"edges": len(edges)},
        lambda: maps.borders(model(), edges, side, layer),
    )
    put(
        found["consistency"],
        "parts",
        own | {"parts": config.parts, "map": map_of(kind)},
        lambda: maps.consistency(model(), shots, side, layer, config.parts, map_of(kind)),
    )


def _baselines(config: Config, found: dict[str, Any], shots: tuple[Shot, ...], edges: tuple[Shot, ...]) -> None:
    from unrolled.studies import crate_emergence_maps as maps

    found["baselines"] = {
        str(side): _cell(
            config, f"baselines-{side}", {"side": side}, lambda side=side: maps.segmentation_baselines(shots, side, 4)  # type: ignore[misc]
        )
        for side in (config.side, *config.other_sides)
    }  # fmt: skip
    side = config.side
    found["colour"] = {
        "objects": _cell(config, "objects-colour", {"side": side}, lambda: maps.objects(None, shots, side, 0)),
        "borders": _cell(
            config,
            "borders-colour",
            {"side": side, "edges": len(edges)},
            lambda: maps.borders(None, edges, side, 0),
        ),
    }


def _cell(config: Config, name: str, settings: dict[str, Any], compute: Callable[[], Any]) -> Any:
    from unrolled.studies.remembered import remembered

    return remembered(
        config.out / "cells", name, {**settings, "source": config.source, "photos": config.photos}, compute
    )


def _line(config: Config, found: dict[str, Any], kind: str, state: str, place: int, member: Member) -> str:
    result = found["segmentation"][str(config.side)][kind][state][place]
    if result is None:
        return f"{member.name}: not run"
    picked = result["maps"][map_of(kind)]["fraction"]
    return f"{member.name}: Jaccard {np.mean(picked['picked_photos']):.3f}, layer {picked['picked'][0] + 1}"


def scores(runs: Sequence[dict[str, Any] | None] | None, name: str, rule: str, what: str) -> dict[int, np.ndarray]:
    """Scores by photo `[photos]` of each seed that was run, by its place among the seeds."""
    return {
        place: np.asarray(result["maps"][name][rule][what])
        for place, result in enumerate(runs or [])
        if result is not None
    }


def difference(a: dict[int, np.ndarray], b: dict[int, np.ndarray] | np.ndarray) -> dict[str, Any] | None:
    """Paired difference of `a` less `b` on the same photos; None if no seed has both.

    Seeds are averaged before photos are resampled.

    Returns:
        `mean`, `low` and `high` (95 %, bootstrap over photos), `seeds`, the mean of every seed, and `verdict`: `up` or
        `down` where the interval and all seeds say so, else `unclear`.
    """
    from unrolled.instruments.overlap import bootstrap_interval

    places = [place for place in a if not isinstance(b, dict) or place in b]
    if not places:
        return None
    table = np.stack([a[place] - (b[place] if isinstance(b, dict) else b) for place in places])
    low, high = bootstrap_interval(table.mean(0))
    each = table.mean(1)
    verdict = "up" if low > 0 and (each > 0).all() else "down" if high < 0 and (each < 0).all() else "unclear"
    return {
        "mean": float(table.mean()),
        "low": low,
        "high": high,
        "seeds": each.tolist(),
        "verdict": verdict,
    }


STUDY = Study(
    name="crate-emergence",
    title="Segmentation that nobody taught",
    citation="Y. Yu et al., Emergence of Segmentation with Minimalistic White-Box Transformers, arXiv 2308.16271",
    config=Config,
    run=run,
    expectations=(BETTER, LEARNED, PRIOR, INSIDE, JACCARD, OBJECTS, ROLES, MASKED_TOO),
)
