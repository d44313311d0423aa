"""Caption density: does agreement of image networks with language models rise with the number of captions they read?

Claim (arXiv 2405.07987): the more densely a caption describes its image, the more a language model's representation of
it agrees with a vision model's representation of the image.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, ClassVar

from unrolled.studies.base import Budget, Expectation, Study, StudyConfig
from unrolled.studies.platonic_features import NETS, label

if TYPE_CHECKING:
    from torch import Tensor

    from unrolled.report import Report
    from unrolled.studies.platonic_features import PairFeatures

_PAPER = "arXiv 2405.07987, figure on caption density (Densely Captioned Images)"
AVERAGED = Expectation(
    statement="Five captions, vectors averaged, agree more than one (smallest ratio of scores, all pairs of models)",
    source=_PAPER,
    published="rises, values in the figure only",
    low=1.0,
)
JOINED = Expectation(
    statement="Five captions, read as one text, agree more than one (smallest ratio of scores, all pairs of models)",
    source=_PAPER,
    published="rises, values in the figure only",
    low=1.0,
)
FOREIGN = Expectation(
    statement="Captions of other photos do not help (largest ratio of scores: one own and four foreign over one own)",
    source="control of this study",
    published="no such control",
    high=1.0,
)
WAYS = ("averaged", "joined", "foreign")


@dataclass(kw_only=True)
class Config(StudyConfig):
    """Budgets change the number of photos and models."""

    budgets: ClassVar[dict[Budget, dict[str, Any]]] = {
        "quick": {
            "pairs": 128, "photos": 128, "images": ("given:mobilenet_v1_075", "given:squeezenet1_1"), "draws": 50,
            "texts": ("given:glove", "given:stories260k"),
        },
        "cpu": {},
        "gpu": {"device": "cuda", "photos": 2000, "draws": 1000},
    }  # fmt: skip

    data_dir: Path = Path("data")
    """Holds `flickr8k-2000` and `weights`."""
    pairs: int = 2000
    """Photos whose features are computed or read; the same as in platonic-vision-language, so that they are shared."""
    photos: int = 1024
    """Photos that are compared, drawn evenly from these; the paper's 1,024."""
    images: tuple[str, ...] = tuple(f"given:{name}" for name in NETS)
    """Image networks; their last layers."""
    texts: tuple[str, ...] = ("given:minilm", "given:glove", "given:stories260k")
    """Text models; their last layers."""
    k: int = 10
    """Neighbours; the paper's 10."""
    draws: int = 200
    """Relabellings for chance and p."""
    seed: int = 0
    """Of relabellings and of which foreign captions are taken."""
    device: str = "cpu"
    """Where the models run."""
    features: Path = Path("runs/platonic-features")
    """Features are kept here; other studies of the same photos use them too."""
    out: Path = Path("runs/platonic-captions")
    """Where the report and the kept scores go."""

    def __post_init__(self) -> None:
        if min(len(self.images), len(self.texts)) < 1:
            raise ValueError("images and texts must name at least one model each")
        if self.k < 1 or min(self.photos, self.pairs) < 4 * self.k:
            raise ValueError(f"pairs and photos must be at least {4 * self.k} for k={self.k}")
        if self.draws < 1:
            raise ValueError("draws must be at least 1")


def run(config: Config, *, on_progress: Callable[[str], None] | None = None) -> Report:
    """Extract, compare, judge; the report is also written to `config.out`.

    Raises:
        MissingData: `data_dir` lacks the photos or the weights.
    """
    import numpy as np

    from unrolled.errors import MissingData
    from unrolled.studies.platonic_features import PairFeatures
    from unrolled.studies.remembered import remembered

    began = time.perf_counter()
    say = on_progress or (lambda line: None)
    place = config.data_dir.expanduser()
    if not place.is_dir():
        raise MissingData(f"data_dir: there is no folder {config.data_dir}; it must hold flickr8k-2000 and weights")
    source = PairFeatures(data_dir=place, count=config.pairs, keep=config.features, device=config.device, say=say)
    rows = np.linspace(0, len(source) - 1, min(config.photos, len(source))).round().astype(np.int64)
    settings = {name: getattr(config, name) for name in ("pairs", "photos", "k", "draws", "seed")}
    images: dict[str, Tensor] = {}
    cells: list[dict[str, Any]] = []
    for text in config.texts:
        columns: dict[str, list[list[Tensor]]] = {}
        for image in config.images:

            def compute(text: str = text, image: str = image, columns: Any = columns) -> dict[str, Any]:
                if not columns:
                    columns.update(_columns(source, text, rows, config.seed))
                if image not in images:
                    images[image] = list(source.images(image).values())[-1][rows]
                return {"scores": scores(config, images[image], columns)}

            name = f"{image}-{text}".replace(":", "_").replace("/", "_")
            kept = remembered(config.out / "cells", name, {**settings, "image": image, "text": text}, compute)
            cells.append({"image": image, "text": text, **kept})
            five = [kept["scores"]["averaged"][i]["score"] for i in (0, -1)]
            say(f"{label(image)}, {label(text)}: {five[0]:.4f} with one caption, {five[1]:.4f} with all averaged")
    words = [
        fmean(len(" ".join(source.pairs.captions[i][:count]).split()) for i in rows)
        for count in range(1, source.pairs.fewest + 1)
    ]
    report = _report(config, cells, words, len(rows), began)
    report.write(config.out)
    return report


def _columns(source: PairFeatures, text: str, rows: Any, seed: int) -> dict[str, list[list[Tensor]]]:
    """way -> for 1, 2, ... captions the [n, d] of each choice of captions."""
    import torch

    each = list(source.captions(text).values())[-1][rows]
    joined = []
    for count in range(1, each.shape[1] + 1):
        if count == 1:
            joined.append([each[:, 0]])
            continue
        texts = [" ".join(source.pairs.captions[i][:count]) for i in rows]
        joined.append([list(source.texts(text, texts).values())[-1]])
    order = torch.randperm(len(each), generator=torch.Generator().manual_seed(seed))
    return {**averaged_columns(each, order), "joined": joined}


def averaged_columns(each: Tensor, order: Tensor) -> dict[str, list[list[Tensor]]]:
    """Means of vectors of 1, 2, ... captions: the photo's own, and one own with the rest of another photo.

    Args:
        each: unit vectors [n, captions, d].
        order: permutation [n]: whose captions the foreign ones are.

    Returns:
        "averaged" and "foreign": for every number of captions the [n, d] of each cyclic run of captions. All captions
        are one choice only.
    """
    total = each.shape[1]
    own, foreign = [], []
    for count in range(1, total + 1):
        starts = range(total if count < total else 1)
        runs = [[(start + i) % total for i in range(count)] for start in starts]
        own.append([each[:, run].mean(1) for run in runs])
        foreign.append([(each[:, run[0]] + each[order][:, run[1:]].sum(1)) / count for run in runs])
    return {"averaged": own, "foreign": foreign}


def scores(config: Config, image: Tensor, columns: dict[str, list[list[Tensor]]]) -> dict[str, list[dict[str, Any]]]:
    """way -> for 1, 2, ... captions the score (mean over choices of captions), its spread, chance and p-value.

    Args:
        config: neighbours, relabellings and seed.
        image: [n, d] of an image network.
        columns: as from `averaged_columns`.
    """
    from unrolled.alignment import compare
    from unrolled.alignment.registry import Representation, get_metric

    metric = get_metric("mutual_knn", k=config.k)
    left = Representation(image, "image")
    found: dict[str, list[dict[str, Any]]] = {}
    for way, by_count in columns.items():
        found[way] = []
        for choices in by_count:
            values = [metric(left, Representation(choice, "text")) for choice in choices]
            judged = compare(
                {"image": image}, {"text": choices[0]}, metric, draws=config.draws, resamples=0, seed=config.seed
            )
            found[way].append({
                "score": fmean(values), "std": stdev(values) if len(values) > 1 else None, "choices": len(values),
                "chance": judged.chance, "p_value": judged.p_value,
            })  # fmt: skip
    return found


def _ratio(cell: dict[str, Any], way: str) -> float:
    return float(cell["scores"][way][-1]["score"] / cell["scores"]["averaged"][0]["score"])


def _report(config: Config, cells: list[dict[str, Any]], words: list[float], n: int, began: float) -> Report:
    from unrolled.report import Fact, LineChart, Provenance, Report, Series

    report = Report(
        "Caption density",
        question="Do language models agree more with image networks, the more captions of an image they read?",
    )
    ratios = {way: [_ratio(cell, way) for cell in cells] for way in WAYS}
    joined = [cell["scores"]["joined"][-1]["score"] / cell["scores"]["joined"][0]["score"] for cell in cells]

    def span(values: list[float]) -> str:
        return f"{min(values):.2f} to {max(values):.2f} over {len(values)} pairs of models"

    report.claims = [
        AVERAGED.judge(min(ratios["averaged"]), span(ratios["averaged"])),
        JOINED.judge(min(joined), span(joined)),
        FOREIGN.judge(max(ratios["foreign"]), span(ratios["foreign"])),
    ]
    top = max(cells, key=lambda cell: cell["scores"]["averaged"][-1]["score"])
    one, all_ = top["scores"]["averaged"][0], top["scores"]["averaged"][-1]
    total = len(words)
    report.headline(
        f"With {total} captions instead of one, {label(top['text'])} goes from {one['score']:.3f} to "
        f"{all_['score']:.3f} (mutual {config.k}-NN with {label(top['image'])}, n = {n:,}), where chance gives "
        f"{all_['chance']:.4f}.",
        [
            Fact(label="One caption", value=f"{one['score']:.3f}", detail=f"± {one['std']:.3f} over which of them"),
            Fact(label=f"{total} captions, vectors averaged", value=f"{all_['score']:.3f}",
                 detail=f"p = {all_['p_value']:.2g}"),
            Fact(label=f"{total} captions, read as one text", value=f"{top['scores']['joined'][-1]['score']:.3f}"),
        ],
    )  # fmt: skip
    rows = [
        [label(cell["image"]), label(cell["text"]), way, *(_shown(entry) for entry in cell["scores"][way]),
         f"{cell['scores'][way][-1]['chance']:.4f}", f"{cell['scores'][way][-1]['p_value']:.3f}"]
        for cell in cells for way in WAYS
    ]  # fmt: skip
    report.section(
        "Every pair of models",
        f"Mutual {config.k}-NN of the last layers. Averaged: every caption is read alone and the unit vectors are "
        "averaged; joined: the captions are read as one text; foreign (control): one caption of the photo, the others "
        "of another photo, averaged.",
    ).table(
        ["image network", "text model", "captions are", *(f"{i + 1}" for i in range(total)), "chance", "p"],
        rows,
        caption=f"n = {n:,} photos. ± one standard deviation over which captions are taken (runs of neighbours); "
        f"joined texts are taken in one order. Chance and p of the last column of scores, {config.draws} relabellings. "
        f"Mean number of words: {', '.join(f'{value:.0f}' for value in words)}.",
    )
    panels = [
        LineChart(
            title=label(text), x_label="words read per photo",
            series=[
                *(
                    Series(
                        label=f"{label(cell['image'])}" if way == "averaged" else f"{label(cell['image'])}, {way}",
                        x=words, y=[entry["score"] for entry in cell["scores"][way]], color=color,
                        error=[entry["std"] or 0.0 for entry in cell["scores"][way]] if way == "averaged" else None,
                        dashed=way != "averaged",
                    )
                    for color, cell in enumerate(each for each in cells if each["text"] == text)
                    for way in (WAYS if color == 0 else ("averaged",))
                ),
                Series(label="chance", x=words, y=[config.k / (n - 1)] * total, dashed=True),
            ],
        )
        for text in config.texts
    ]  # fmt: skip
    report.section("By number of captions").figure(
        panels, name="density",
        caption=f"Mutual {config.k}-NN of last layers, one panel a text model, 1 to {total} captions. Dashed: captions "
        "joined or foreign, for one image network, and chance.",
    )  # fmt: skip
    report.section("What this does not show").text(
        "The paper shortens one dense caption to a number of words; here captions of different people are added, "
        "which also averages over their ways of writing, and repeats what they agree on rather than describing more. "
        "Averaging any five noisy views of a photo brings neighbours closer to its own, so that a rise says that "
        "captions hold something in common that the image network sees too; it does not say that a longer caption is "
        "needed."
    )
    report.results = {"cells": cells, "words": words, "n": n, "k": config.k}
    report.provenance = Provenance.collect(config=config, seeds=[config.seed], duration=time.perf_counter() - began)
    return report


def _shown(entry: dict[str, Any]) -> str:
    return f"{entry['score']:.4f}" + ("" if entry["std"] is None else f" ± {entry['std']:.4f}")


STUDY = Study(
    name="platonic-captions",
    title="Denser captions agree more with images",
    citation="M. Huh et al., The Platonic Representation Hypothesis, arXiv 2405.07987",
    config=Config,
    run=run,
    expectations=(AVERAGED, JOINED, FOREIGN),
)
