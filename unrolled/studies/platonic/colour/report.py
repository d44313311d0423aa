"""The claims and the report of `platonic-colour`: scores beside chance, layouts, and how much free choices matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from unrolled.studies.claim import Claim
from unrolled.studies.platonic.colour.cells import (
    TEXTS,
    BesidePeople,
    ByPeople,
    ByPixels,
    ByWords,
    ColourConfig,
    Source,
    chosen,
)
from unrolled.studies.results import NOT_RUN, Results, Values
from unrolled.studies.statistics import PValue

if TYPE_CHECKING:
    from unrolled.report import Report, Scatter

_BY_CHANCE = "words or pixels without the order of colours: a p that is as often above 0.5 as below"
_SHOWN = "arXiv 2405.07987, section 4.1, figure 8 (shown, not scored)"


def by_pixels(results: Results[Any], config: ColourConfig, source: Source = "cifar10") -> Results[ByPixels]:
    """Layouts by pixels, one a draw, with the choices that claims are judged at."""
    return results.of(ByPixels, source=source, **chosen(config))


def best_words(results: Results[Any]) -> Results[ByWords]:
    """Of the text models the one with the smallest p."""
    return Results(sorted(results.of(ByWords), key=lambda row: row.result["p"])[:1])


def largest_p(rows: Results[Any]) -> PValue | Values:
    """Over draws; no values where there are none."""
    return PValue(max(rows.values("p"))) if rows else Values()


def _mirrors(statement: str, rows: Callable[[Results[Any], Any], Results[Any]], high: float, **claim: Any) -> Claim:
    def detail(results: Results[Any], config: ColourConfig) -> str:
        measured = rows(results, config)
        model = measured[0].cell.columns.get("model")
        r2, null = measured.values("r2"), measured.values("null")
        return f"{f' ({model})' if model else ''}; R2 {r2:.2f} against {null:.2f} by chance"

    return Claim(
        statement=statement,
        value=lambda results, config: largest_p(rows(results, config)),
        high=high,
        spec=".4f",
        detail=detail,
        **claim,
    )


CLAIMS = (
    _mirrors(
        "Colours laid out by the PMI of neighbouring pixels of CIFAR-10 mirror CIELAB (p of Procrustes R2)",
        by_pixels,
        0.01,
        source=_SHOWN,
        published="shown, no number",
        outside=_BY_CHANCE,
        control=lambda results, config: largest_p(by_pixels(results, config, "made-up")),
    ),
    _mirrors(
        "Colour words laid out by a language model mirror CIELAB (smallest p over the text models)",
        lambda results, config: best_words(results),
        0.05 / len(TEXTS),
        source=_SHOWN,
        published="shown, no number",
        outside=_BY_CHANCE,
    ),
    _mirrors(
        "So do people's ratings of 93 colours (p of Procrustes R2)",
        lambda results, config: results.of(ByPeople),
        0.01,
        source="ratings of Kawakita et al. 2023",
        published="not in the paper",
        unjudged="the paper does not say it; a control of the method",
    ),
)


def report(report: Report, config: ColourConfig, results: Results[Any]) -> None:
    """Scores beside chance, layouts, choices; what lacks its data is said to be not run."""
    from unrolled.report import Fact

    pixels, words, people = by_pixels(results, config), best_words(results), results.of(ByPeople)
    summary = "CIFAR-10 was not run: its images are not here."
    if pixels:
        summary = (
            f"The layout by neighbouring pixels of CIFAR-10 meets {pixels.values('r2'):.2f} of CIELAB's variance, "
            f"against {pixels.values('null'):.2f} by chance."
        )
    best = words[0].cell.model if words else ""
    if words and people:
        summary += (
            f" The best text model, {best}, meets {words.values('r2'):.2f} against {words.values('null'):.2f}; people "
            f"{people.values('r2'):.2f} against {people.values('null'):.2f}."
        )
    report.headline(
        summary,
        [
            Fact(label="R2, pixels", value=f"{pixels.values('r2'):.2f}"),
            Fact(label="R2, words", value=f"{words.values('r2'):.2f}", detail=best),
            Fact(label="R2, people", value=f"{people.values('r2'):.2f}", detail="93 colours"),
        ],
    )
    _scores(report, config, results)
    _choices(report, config, results.of(ByPixels, source="cifar10", seed=config.seeds[0]))
    report.section(
        "What this does not show",
        f"R2 rewards any three-dimensional layout with few points: {config.permutations} permutations of the colours "
        "give chance and p, and R2 counts only against them. CIFAR-10 here is stored as JPEG with halved colour "
        "resolution, so chromatic neighbours are alike for the codec's sake as well. The paper's 20 colour words and "
        "their CIELAB centroids were shared privately; these words and values are from the xkcd survey. Its language "
        "models are hundreds of times larger.",
    )


def _scores(report: Report, config: ColourConfig, results: Results[Any]) -> None:
    def beside(source: Source) -> Results[BesidePeople]:
        return results.of(BesidePeople, source=source, **chosen(config))

    def row(name: str, rows: Results[Any], people: str = "-") -> list[str]:
        if not rows:
            return [name, *[NOT_RUN] * 6]
        r2, null, spearman = (f"{rows.values(key):.3f}" for key in ("r2", "null", "spearman"))
        return [name, f"{rows.values('n'):.0f}", r2, null, f"{largest_p(rows):.4f}", spearman, people]

    sources: dict[str, Source] = {
        "CIFAR-10, neighbouring pixels": "cifar10",
        "CIFAR-10, pairs shuffled": "shuffled",
        "made-up images, smooth in RGB": "made-up",
    }
    ratings = {source: beside(source).values("pmi") for source in sources.values()}
    ceiling = beside("cifar10").first("lab")
    section = report.section(
        "Layouts beside CIELAB",
        f"Pixels: {config.pairs:,} pairs at most {config.radius:g} pixels apart, colours in {config.bins} parts of "
        f"each of R, G and B, those in fewer than {config.min_count} pairs left out; pairs that never occur: "
        f"{config.zeros}. Dissimilarity is max(PMI) - PMI. Words: {', '.join(TEXTS)}, Euclidean distance "
        "of vectors averaged over three short sentences (GloVe: the word). Each is embedded in three dimensions by "
        "stress majorisation and laid over CIELAB by shift, turn, mirror and scale.",
    ).table(
        ["source", "colours", "R2", "chance", "p", "Spearman with CIELAB", "Spearman with people"],
        [
            *(
                row(name, by_pixels(results, config, source), f"{ratings[source]:.3f}" if ratings[source] else "-")
                for name, source in sources.items()
            ),
            *(row(f"words, {model}", results.of(ByWords, model=model)) for model in TEXTS),
            row("people, 93 colours", results.of(ByPeople)),
        ],
        caption=f"Mean and standard deviation over {len(config.seeds)} draws of images and pixels (the others: one). "
        "Chance is R2 with permuted colours, p the largest over draws. Spearman with people: of PMI with ratings, over "
        "pairs of the 93 colours in different bins"
        + (f"; CIELAB itself has {ceiling:.2f} there." if ceiling is not None else "."),
    )
    words = results.of(ByWords)
    layouts: dict[str, Results[Any]] = {
        "neighbouring pixels": by_pixels(results, config),
        f"words, {words[0].cell.model if words else ''}": words,
        "people": results.of(ByPeople),
    }
    if panels := [_map(title, rows[0].result) for title, rows in layouts.items() if rows]:
        section.figure(
            panels,
            name="layouts",
            caption="Where each colour lies after being laid over CIELAB, and where it should be, in the plane of a* "
            "(green to red) and b* (blue to yellow).",
        )


def _map(title: str, result: Any) -> Scatter:
    from unrolled.report import Scatter

    n, points = result["n"], [*result["lab"], *result["placed"]]
    return Scatter(
        title=title,
        x_label="a*",
        y_label="b*",
        x=[a for _, a, _ in points],
        y=[b for _, _, b in points],
        names=[*[""] * n, *result.get("words", [""] * n)],
        groups=["CIELAB"] * n + ["laid over"] * n,
        equal=True,
    )


def _choices(report: Report, config: ColourConfig, layouts: Results[ByPixels]) -> None:
    rows = sorted(layouts, key=lambda row: (row.cell.counted.radius, row.cell.counted.bins, row.cell.zeros))
    table = [
        [
            *(cell.counted.bins, f"{cell.counted.radius:g}", cell.zeros, f"{100 * result['never']:.0f} %", result["n"]),
            *(f"{result[key]:.3f}" for key in ("r2", "null", "spearman")),
        ]
        for cell, result, _ in rows
    ]
    report.section(
        "How much the free choices matter",
        "The paper states neither the number of bins nor what becomes of pairs that never occur. One draw of images "
        "and pixels.",
    ).table(
        ["bins", "radius", "pairs that never occur", "share of them", "colours", "R2", "chance", "Spearman"],
        table or [[NOT_RUN] * 8],
        caption="Add half: half a count for every pair. Floor: the smallest PMI that occurs. Leave out: the embedding "
        "ignores them, and Spearman (with CIELAB distances) takes the floor.",
    )
