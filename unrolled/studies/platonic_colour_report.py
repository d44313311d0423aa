"""The report of `platonic-colour`: scores beside chance, layouts, and how much the free choices matter."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from unrolled.studies.platonic_colour import PEOPLE, PIXELS, TEXTS, WORDS, Config

if TYPE_CHECKING:
    from unrolled.report import Report, Scatter

Cells = list[dict[str, Any]]


def make_report(config: Config, pixels: Cells, words: Cells, people: Cells, began: float) -> Report:
    """The report from all cells; what lacks its data is said to be not run."""
    from unrolled.report import Fact, Provenance, Report, mean_std

    report = Report(
        "Colours laid out by pixels, words and people",
        question="Do co-occurring pixels and language alone give the layout of colours that people perceive?",
    )
    plain = [c for c in pixels if _plain(config, c)]
    real = [c for c in plain if c["source"] == "cifar10"]
    best = min(words, key=lambda c: float(c["p"])) if words else None
    nothing = math.nan
    report.claims = [
        PIXELS.judge(max((c["p"] for c in real), default=nothing), _scored(real)),
        WORDS.judge(best["p"] if best else nothing, f"{best['name']}: {_scored([best])}" if best else "not run"),
        PEOPLE.judge(people[0]["p"] if people else nothing, _scored(people)),
    ]
    said = (
        "CIFAR-10 was not run: its images are not here."
        if not real
        else (
            f"The layout by neighbouring pixels of CIFAR-10 meets {mean_std([c['r2'] for c in real], digits=2)} of "
            f"CIELAB's variance, against {mean_std([c['null'] for c in real], digits=2)} by chance."
        )
    )
    if best and people:
        said += f" The best text model, {best['name']}, meets {best['r2']:.2f} against {best['null']:.2f}; people "
        said += f"{people[0]['r2']:.2f} against {people[0]['null']:.2f}."
    report.headline(
        said,
        [
            Fact(label="R2, pixels", value=mean_std([c["r2"] for c in real], digits=2) if real else "not run"),
            Fact(
                label="R2, words", value=f"{best['r2']:.2f}" if best else "not run", detail=best["name"] if best else ""
            ),
            Fact(label="R2, people", value=f"{people[0]['r2']:.2f}" if people else "not run", detail="93 colours"),
        ],
    )
    _scores(report, config, plain, words, people)
    _choices(report, config, [c for c in pixels if c["source"] == "cifar10"])
    report.section(
        "What this does not show",
        f"R2 rewards any three-dimensional layout with few points: {config.permutations} permutations of the colours "
        "give chance and p, and R2 counts only against them. CIFAR-10 here is stored as JPEG with halved colour "
        "resolution, so chromatic neighbours are alike for the codec's sake as well. The paper's 20 colour words and "
        "their CIELAB centroids were shared privately; these words and values are from the xkcd survey. Its language "
        "models are hundreds of times larger.",
    )
    report.results = {"pixels": pixels, "words": words, "people": people}
    report.provenance = Provenance.collect(config=config, seeds=config.seeds, duration=time.perf_counter() - began)
    return report


def _plain(config: Config, cell: dict[str, Any]) -> bool:
    return all(cell[key] == getattr(config, key) for key in ("bins", "radius", "zeros"))


def _scored(cells: Cells) -> str:
    from unrolled.report import mean_std

    if not cells:
        return "not run"
    r2, null = (mean_std([c[key] for c in cells], digits=2) for key in ("r2", "null"))
    return f"p {max(c['p'] for c in cells):.4f}; R2 {r2} against {null} by chance"


def _scores(report: Report, config: Config, plain: Cells, words: Cells, people: Cells) -> None:
    from unrolled.report import mean_std

    def row(name: str, cells: Cells) -> list[str]:
        if not cells:
            return [name, *["not run"] * 6]
        beside = [c["people"]["pmi"] for c in cells if c.get("people")]
        return [
            name, mean_std([c["n"] for c in cells], digits=0), mean_std([c["r2"] for c in cells], digits=3),
            mean_std([c["null"] for c in cells], digits=3), f"{max(c['p'] for c in cells):.4f}",
            mean_std([c["spearman"] for c in cells], digits=3), mean_std(beside, digits=3) if beside else "-",
        ]  # fmt: skip

    def of(source: str) -> Cells:
        return [c for c in plain if c["source"] == source]

    by_name = {c["name"]: c for c in words}
    ceiling = next((c["people"]["lab"] for c in of("cifar10") if c["people"]), None)
    section = report.section(
        "Layouts beside CIELAB",
        f"Pixels: {config.pairs:,} pairs at most {config.radius:g} pixels apart, colours in {config.bins} parts of "
        f"each of R, G and B, those in fewer than {config.min_count} pairs left out; pairs that never occur: "
        f"{config.zeros}. Dissimilarity is max(PMI) - PMI. Words: {', '.join(t for t in TEXTS)}, Euclidean distance "
        "of vectors averaged over three short sentences (GloVe: the word). Each is embedded in three dimensions by "
        "stress majorisation and laid over CIELAB by shift, turn, mirror and scale.",
    ).table(
        ["source", "colours", "R2", "chance", "p", "Spearman with CIELAB", "Spearman with people"],
        [
            row("CIFAR-10, neighbouring pixels", of("cifar10")),
            row("CIFAR-10, pairs shuffled", of("shuffled")),
            row("made-up images, smooth in RGB", of("made-up")),
            *(row(f"words, {name}", [by_name[name]] if name in by_name else []) for name in TEXTS),
            row("people, 93 colours", people),
        ],
        caption=f"Mean and standard deviation over {len(config.seeds)} draws of images and pixels (the others: one). "
        "Chance is R2 with permuted colours, p the largest over draws. Spearman with people: of PMI with ratings, over "
        "pairs of the 93 colours in different bins"
        + (f"; CIELAB itself has {ceiling:.2f} there." if ceiling is not None else "."),
    )
    panels = [
        _map("neighbouring pixels", of("cifar10")[:1]),
        *(_map(f"words, {c['name']}", [c]) for c in words[:1]),
        _map("people", people),
    ]
    shown = [panel for panel in panels if panel is not None]
    if shown:
        section.figure(
            shown,
            name="layouts",
            caption="Where each colour lies after being laid over CIELAB, and where it should be, in the plane of a* "
            "(green to red) and b* (blue to yellow).",
        )


def _map(title: str, cells: Cells) -> Scatter | None:
    from unrolled.report import Scatter

    if not cells:
        return None
    cell = cells[0]
    names = cell.get("words", [""] * cell["n"])
    return Scatter(
        title=title,
        x_label="a*",
        y_label="b*",
        x=[p[1] for p in cell["lab"]] + [p[1] for p in cell["placed"]],
        y=[p[2] for p in cell["lab"]] + [p[2] for p in cell["placed"]],
        names=[""] * cell["n"] + list(names),
        groups=["CIELAB"] * cell["n"] + ["laid over"] * cell["n"],
        equal=True,
    )


def _choices(report: Report, config: Config, cells: Cells) -> None:
    section = report.section(
        "How much the free choices matter",
        "The paper states neither the number of bins nor what becomes of pairs that never occur. One draw of images "
        "and pixels.",
    )
    chosen = [c for c in cells if c["seed"] == config.seeds[0]]
    section.table(
        ["bins", "radius", "pairs that never occur", "share of them", "colours", "R2", "chance", "Spearman"],
        [
            [
                c["bins"], f"{c['radius']:g}", c["zeros"], f"{100 * c['never']:.0f} %", c["n"], f"{c['r2']:.3f}",
                f"{c['null']:.3f}", f"{c['spearman']:.3f}",
            ]
            for c in sorted(chosen, key=lambda c: (c["radius"], c["bins"], c["zeros"]))
        ]
        or [["not run"] * 8],
        caption="Add half: half a count for every pair. Floor: the smallest PMI that occurs. Leave out: the embedding "
        "ignores them, and Spearman (with CIELAB distances) takes the floor.",
    )  # fmt: skip
