"""Caption density: does agreement of image networks with language models rise with the number of captions they read?

Claim (arXiv 2405.07987): the more densely a caption describes its image, the more a language model's representation of
it agrees with a vision model's representation of the image.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from unrolled.data.sources import evenly
from unrolled.reading import Json
from unrolled.studies.cells import Cell, Context, Result, Row
from unrolled.studies.claim import AT_LEAST_0, CONTROL, Claim
from unrolled.studies.platonic.photos import (
    CAPTIONS,
    NETS,
    OfCaptions,
    OfJoined,
    OfPhotos,
    TextModel,
    label,
    open_photos,
)
from unrolled.studies.results import NOT_RUN, Results, Values
from unrolled.studies.statistics import of_pairs
from unrolled.studies.study import Budgets, Config, Count, Distinct, Study

if TYPE_CHECKING:
    from torch import Tensor

    from unrolled.report import Report

_PAPER = "arXiv 2405.07987, figure on caption density (Densely Captioned Images)"
Way = Literal["averaged", "joined", "foreign"]
WAYS: tuple[Way, ...] = ("averaged", "joined", "foreign")


@dataclass(kw_only=True)
class CaptionsConfig(Config):
    """Budgets change the number of photos and models."""

    budgets: ClassVar[Budgets] = {
        "quick": {
            "pairs": 128, "photos": 128, "images": ("given:mobilenet_v1_075", "given:squeezenet1_1"), "draws": 50,
            "texts": ("given:glove", "given:stories260k"),
        },
        "cpu": {},
        "gpu": {"device": "cuda", "photos": 2000, "draws": 1000},
    }  # fmt: skip

    data_dir: Path = Path("data")
    """Holds `flickr8k-2000` and `weights`."""
    pairs: Count = 2000
    """Photos whose features are computed or read; the same as in platonic-vision-language, so that they are shared."""
    photos: Count = 1024
    """Photos that are compared, drawn evenly from these; the paper's 1,024."""
    images: Annotated[tuple[str, ...], Distinct()] = tuple(f"given:{name}" for name in NETS)
    """Image networks; their last layers."""
    texts: Annotated[tuple[str, ...], Distinct()] = ("given:minilm", "given:glove", "given:stories260k")
    """Text models; their last layers."""
    k: Count = 10
    """Neighbours; the paper's 10."""
    draws: Count = 200
    """Relabellings for chance and p."""
    seed: int = 0
    """Of relabellings and of which foreign captions are taken."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.photos, self.pairs) < 4 * self.k:
            raise ValueError(f"pairs and photos must be at least {4 * self.k} for k={self.k}")


@dataclass(frozen=True, kw_only=True)
class Density(Cell):
    """The last layers of an image network and a text model that reads 1 to 5 captions, on some of the photos."""

    seen: OfPhotos
    read: OfCaptions
    photos: int
    k: int
    draws: int
    seed: int

    @property
    def labels(self) -> tuple[str, str]:
        """What tables call the two models."""
        return self.seen.label, self.read.model.label

    @property
    def name(self) -> str:
        """What progress calls it."""
        return " with ".join(self.labels)

    @property
    def joined(self) -> list[OfJoined]:
        """The text model reading 2 to 5 captions as one text."""
        model, pairs = self.read.model, self.read.pairs
        return [OfJoined(model=model, pairs=pairs, photos=self.photos, joined=n) for n in range(2, CAPTIONS + 1)]

    @property
    def needs(self) -> Sequence[Cell]:
        """The features, of the joined captions too."""
        return (*super().needs, *self.joined)

    def compute(self, context: Context) -> Result:
        """`scores`, as the function; the mean number of `words` read with 1 to 5 captions; `n`, the photos compared."""
        import torch

        captions = open_photos(context.data_dir, self.read.pairs).captions
        rows = evenly(self.photos, len(captions))
        each = last(self.read.by_photo(context))[rows]
        order = torch.randperm(len(each), generator=torch.Generator().manual_seed(self.seed))
        columns: dict[Way, list[list[Tensor]]] = {
            **averaged_columns(each, order),
            "joined": [[each[:, 0]], *([last(cell.load(context))] for cell in self.joined)],
        }
        counts = range(1, CAPTIONS + 1)
        return {
            "scores": scores(last(self.seen.load(context))[rows], columns, k=self.k, draws=self.draws, seed=self.seed),
            "words": [fmean(len(" ".join(captions[i][:count]).split()) for i in rows) for count in counts],
            "n": len(rows),
        }


def last(layers: Any) -> Tensor:
    """Features of the last layer."""
    return list(layers.values())[-1]


def averaged_columns(each: Tensor, order: Tensor) -> dict[Way, list[list[Tensor]]]:
    """Means of vectors of 1, 2, ... captions: the photo's own, and one own with the rest of another photo.

    Args:
        each: unit vectors [n, captions, d].
        order: permutation [n]: whose captions the foreign ones are.

    Returns:
        "averaged" and "foreign": for every number of captions the [n, d] of each cyclic run of captions. All captions
        are one choice only.
    """
    total = each.shape[1]
    same, foreign = [], []
    for count in range(1, total + 1):
        starts = range(total if count < total else 1)
        runs = [[(start + i) % total for i in range(count)] for start in starts]
        same.append([each[:, run].mean(1) for run in runs])
        foreign.append([(each[:, run[0]] + each[order][:, run[1:]].sum(1)) / count for run in runs])
    return {"averaged": same, "foreign": foreign}


def scores(
    image: Tensor, columns: dict[Way, list[list[Tensor]]], *, k: int, draws: int, seed: int
) -> dict[str, list[Result]]:
    """way -> for 1, 2, ... captions the score (mean over choices of captions), its spread, chance and p-value.

    Args:
        image: [n, d] of an image network.
        columns: as from `averaged_columns`.
        k: neighbours.
        draws, seed: relabellings, as in `compare`.
    """
    from unrolled.alignment import Representation, compare, get_metric

    metric = get_metric("mutual_knn", k=k)
    left = Representation(image, "image")

    def entry(choices: list[Tensor]) -> Result:
        values = [metric(left, Representation(choice, "text")) for choice in choices]
        judged = compare({"image": image}, {"text": choices[0]}, metric, draws=draws, resamples=0, seed=seed)
        return {
            "score": fmean(values), "std": stdev(values) if len(values) > 1 else None, "choices": len(values),
            "chance": judged.chance, "p_value": judged.p_value,
        }  # fmt: skip

    return {way: [entry(choices) for choices in by_count] for way, by_count in columns.items()}


def cells(config: CaptionsConfig) -> Iterator[Density]:
    """Every image network with every text model."""
    for text in config.texts:
        read = OfCaptions(model=TextModel(text=text), pairs=config.pairs)
        for image in config.images:
            seen = OfPhotos(image=image, pairs=config.pairs)
            yield Density(seen=seen, read=read, photos=config.photos, k=config.k, draws=config.draws, seed=config.seed)


def ratios(results: Results[Density], way: Way) -> dict[tuple[Hashable, Hashable], float]:
    """Score with all captions over that with one caption of the photo's own, of every pair of models."""
    one = "joined" if way == "joined" else "averaged"  # of joined captions the first comes first
    scores = ((row.cell.labels, row.result["scores"]) for row in results)
    return {pair: each[way][-1]["score"] / each[one][0]["score"] for pair, each in scores}


def ratio(results: Results[Density], way: Way) -> Values:
    """The same by models of the kind that differ more."""
    return of_pairs(ratios(results, way), ("image network", "text model"))


def _span(results: Results[Density], way: Way) -> str:
    every = ratios(results, way).values()
    return f" over {ratio(results, way).count} ({min(every):.2f} to {max(every):.2f} over {len(every)} pairs of models)"


def _more(way: Way) -> Claim:
    how = {"averaged": "vectors averaged", "joined": "read as one text"}[way]
    return Claim(
        statement=f"Five captions, {how}, agree more than one (ratio of scores)",
        source=_PAPER,
        published="rises, values in the figure only",
        value=lambda results, config: ratio(results, way),
        low=1.0,
        within=AT_LEAST_0,
        outside="four captions of other photos beside one of its own: 0.3 and less",
        control=lambda results, config: ratio(results, "foreign"),
        spec=".2f",
        detail=lambda results, config: _span(results, way),
    )


CLAIMS = (
    _more("averaged"),
    _more("joined"),
    Claim(
        statement="Captions of other photos do not help (ratio of scores: one own and four foreign over one own)",
        source=CONTROL,
        published="no such control",
        value=lambda results, config: ratio(results, "foreign"),
        high=1.0,
        within=AT_LEAST_0,
        unjudged=CONTROL,
        spec=".2f",
        detail=lambda results, config: _span(results, "foreign"),
    ),
)


def report(report: Report, config: CaptionsConfig, results: Results[Density]) -> None:
    """The answer, every pair of models, the scores by number of captions, limits."""
    _headline(report, config, results)
    _pairs(report, config, results)
    if results:
        _figure(report, config, results)
    report.section("What this does not show").text(
        "The paper shortens one dense caption to a number of words; here captions of different people are added, "
        "which also averages over their ways of writing, and repeats what they agree on rather than describing more. "
        "Averaging any five noisy views of a photo brings neighbours closer to its own, so that a rise says that "
        "captions hold something in common that the image network sees too; it does not say that a longer caption is "
        "needed."
    )


def _headline(report: Report, config: CaptionsConfig, results: Results[Density]) -> None:
    from unrolled.report import Fact

    top = max(results, key=lambda row: float(row.result["scores"]["averaged"][-1]["score"]), default=None)
    if top is None:
        report.headline("No pair of models was compared.")
        return
    image, text = top.cell.labels
    scores = top.result["scores"]
    one, every = scores["averaged"][0], scores["averaged"][-1]
    report.headline(
        f"With {CAPTIONS} captions instead of one, {text} goes from {one['score']:.3f} to {every['score']:.3f} "
        f"(mutual {config.k}-NN with {image}, n = {top.result['n']:,}), where chance gives {every['chance']:.4f}.",
        [
            Fact(label="One caption", value=f"{one['score']:.3f}", detail=f"± {one['std']:.3f} over which of them"),
            Fact(
                label=f"{CAPTIONS} captions, vectors averaged",
                value=f"{every['score']:.3f}",
                detail=f"p = {every['p_value']:.2g}",
            ),
            Fact(label=f"{CAPTIONS} captions, read as one text", value=f"{scores['joined'][-1]['score']:.3f}"),
        ],
    )


def _pairs(report: Report, config: CaptionsConfig, results: Results[Density]) -> None:
    def score(entry: Json) -> str:
        return f"{entry['score']:.4f}" + ("" if entry["std"] is None else f" ± {entry['std']:.4f}")

    rows: list[list[str]] = []
    for (cell, result, _), way in product(results, WAYS):
        entries = result["scores"][way]
        rows.append([
            *cell.labels, way, *map(score, entries),
            f"{entries[-1]['chance']:.4f}", f"{entries[-1]['p_value']:.3f}",
        ])  # fmt: skip
    rows += [[*cell.labels, "", *[NOT_RUN] * (CAPTIONS + 2)] for cell in results.missing if isinstance(cell, Density)]
    words = ", ".join(f"{value:.0f}" for value in results.first("words", ())) or NOT_RUN
    report.section(
        "Every pair of models",
        f"Mutual {config.k}-NN of the last layers. Averaged: every caption is read alone and the unit vectors are "
        "averaged; joined: the captions are read as one text; foreign (control): one caption of the photo, the others "
        "of another photo, averaged.",
    ).table(
        ["image network", "text model", "captions are", *(f"{i + 1}" for i in range(CAPTIONS)), "chance", "p"],
        rows,
        caption=f"n = {results.first('n', 0):,} photos. ± one standard deviation over which captions are taken (runs "
        "of neighbours); joined texts are taken in one order. Chance and p of the last column of scores, "
        f"{config.draws} relabellings. Mean number of words: {words}.",
    )


def _figure(report: Report, config: CaptionsConfig, results: Results[Density]) -> None:
    from unrolled.report import LineChart, Series

    words, n = results.first("words"), results.first("n")

    def line(row: Row[Density], way: Way, color: int) -> Series:
        entries = row.result["scores"][way]
        return Series(
            label=row.cell.seen.label + ("" if way == "averaged" else f", {way}"),
            x=words,
            y=[entry["score"] for entry in entries],
            color=color,
            error=[entry["std"] or 0.0 for entry in entries] if way == "averaged" else None,
            dashed=way != "averaged",
        )

    panels = []
    for text in config.texts:
        if rows := results.where(text=text):
            series = [line(rows[0], way, 0) for way in WAYS]
            series += [line(row, "averaged", color) for color, row in enumerate(rows) if color]
            series.append(Series(label="chance", x=words, y=[config.k / (n - 1)] * CAPTIONS, dashed=True))
            panels.append(LineChart(title=label(text), x_label="words read per photo", series=series))
    report.section("By number of captions").figure(
        panels,
        name="density",
        caption=f"Mutual {config.k}-NN of last layers, one panel a text model, 1 to {CAPTIONS} captions. Dotted: "
        "captions joined or foreign, for one image network, and chance.",
    )


STUDY = Study(
    name="platonic-captions",
    title="Caption density",
    question="Do language models agree more with image networks, the more captions of an image they read?",
    citation="M. Huh et al., The Platonic Representation Hypothesis, arXiv 2405.07987",
    config=CaptionsConfig,
    cells=cells,
    claims=CLAIMS,
    report=report,
)
