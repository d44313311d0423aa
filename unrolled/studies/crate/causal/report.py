"""The page of `crate-causal`: how local removals are, what predicts them, what heads are for, limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from unrolled.studies.crate.causal.cells import PREDICTORS, SHIPPED, WHATS, CausalConfig, Removal, Shipped, What
from unrolled.studies.crate.causal.claims import CLAIMS, classes, marked, mean_of, predicts, removals, shipped
from unrolled.studies.crate.compared import accuracy
from unrolled.studies.kinds import KINDS as ROSTER
from unrolled.studies.networks import NAMES
from unrolled.studies.results import NOT_RUN, Results, Values

if TYPE_CHECKING:
    from unrolled.report import Report

_SORTS = {"places": "", "random": "random"}
_WORDS: dict[What, str] = {"subspace": "subspace U_k", "head": "head", "atom": "atom (of a ViT: entry)"}
_PREDICTOR = {"subspace_rate": "R^c", "rate": "R", "energy": "energy"}


def report(report: Report, config: CausalConfig, results: Results[Any]) -> None:
    """Headline, locality, prediction, heads, limits."""
    _headline(report, config, results)
    _locality(report, config, results)
    _prediction(report, config, results)
    _heads(report, config, results)
    _limits(report, config, results)


def _headline(report: Report, config: CausalConfig, results: Results[Any]) -> None:
    from unrolled.report import Fact

    places = [claim.came_out(results, config) for claim in CLAIMS]
    words = {"inside": "came out so", "outside": "did not", "undecided": "undecided", "not judged": "not judged"}
    counts = [
        f"{places.count(place)} {word}" for place, word in (words | {NOT_RUN: NOT_RUN}).items() if place in places
    ]
    report.headline(
        f"{_finding(results, config)} Of {len(places)} expectations: {', '.join(counts)}.",
        [
            Fact(label=ROSTER[kind].words, value=f"{accuracy(results, kind, config.data):.1f} %", detail="accuracy")
            for kind in config.kinds
        ],
    )


def _finding(results: Results[Any], config: CausalConfig) -> str:
    """One sentence on locality and prediction; of `SHIPPED` where no other was run."""
    local = classes(results, config, "crate", "subspace")
    if local:
        others = [
            f"{words} {values:.2f}"
            for words, values in (
                ("random subspaces", classes(results, config, "crate", "subspace", "classes_random")),
                ("values of a ViT's heads", classes(results, config, "vit", "subspace")),
            )
            if values
        ]
        name, numbers = "CRATE", (f"{local:.2f}", ", ".join(others), f"{predicts(results, config, 'crate'):+.2f}")
    else:
        packaged = [
            shipped(results, "subspace", path)
            for path in ("classes", "classes_random", "predicts.places_subspace_rate")
        ]
        if isinstance(packaged[0], float):
            return f"Networks were {NOT_RUN}."
        name = f"`{SHIPPED}`"
        numbers = (f"{packaged[0]:.2f}", f"random subspaces {packaged[1]:.2f}", f"{packaged[2]:+.2f}")
    return (
        f"Without a subspace U_k of {name} the classes hit are {numbers[0]} of what no preference for classes would "
        f"give ({numbers[1]}); the fall of R^c goes with the rise of the loss at a rank correlation of {numbers[2]}."
    )


def _rows(results: Results[Any], config: CausalConfig) -> list[tuple[str, str, What, Results[Removal]]]:
    """Name, kind, what was removed, and the networks, of all that there are."""
    sets: list[tuple[str, str, What, Results[Removal]]] = []
    for what in WHATS:
        sets += [(ROSTER[kind].words, kind, what, removals(results, config, kind, what)) for kind in config.kinds]
        if what == "subspace":
            sets.append(("CRATE, untrained", "", what, removals(results, config, "crate", what, trained=False)))
        sets.append(("CRATE of 6 layers", SHIPPED, what, removals(results, config, SHIPPED, what)))
    return [each for each in sets if each[3]]


def _locality(report: Report, config: CausalConfig, results: Results[Any]) -> None:
    section = report.section(
        "How local removals are",
        f"Each place is removed by itself and {config.tested:,} test images of {NAMES[config.data]} are classified. "
        "`loss` and `accuracy` are the changes, a mean over places. `classes` is the effective number of classes whose "
        "probability of the right class changes, (sum |change|)^2 / sum change^2, over what the same removals give "
        "under shuffled labels: 1 if no class is hit more than another, lower the fewer are; it is comparable where "
        "changes are small and noisy too. `patches` is the effective share of an image's patches whose last tokens "
        "change. Beside each stands a random removal: a subspace of as many dimensions, or as long a step at every "
        "token in a random direction.",
    )
    table: list[list[str | int]] = []
    for name, _, what, rows in _rows(results, config):
        cells: list[str] = []
        for key, scale, spec in (("loss", 1, "+.3f"), ("accuracy", 100, "+.1f")):
            cells += [f"{_mean(rows, sort, key, scale):{spec}}" for sort in _SORTS]
        cells += [f"{rows.values(f'{key}.value'):.2f}" for key in ("classes", "classes_random")]
        cells += [f"{_mean(rows, sort, 'patches', 100):.0f}" for sort in _SORTS]
        table.append([_WORDS[what], name, len(rows), *cells])
    if not table:
        section.text(f"{NOT_RUN}.")
        return
    section.table(
        [
            *("removed", "from", "seeds", "loss, nats", "random", "accuracy, points", "random"),
            *("classes", "random", "patches, %", "random"),
        ],
        table,
        caption="Mean and standard deviation over seeds, where there are several.",
    )
    _scatter(report, config, results)
    words = [
        f"{_WORDS[what]} {shipped(results, what, 'classes_more'):+.3f}"
        for what in WHATS
        if not isinstance(shipped(results, what, "classes_more"), float)
    ]
    if words:
        section.text(
            f"Of `{SHIPPED}`, which ships with the package, `classes` less that of the random removals, with 95 % "
            f"intervals over images: {', '.join(words)}."
        )


def _mean(rows: Results[Removal], sort: str, key: str, scale: float) -> Values:
    return rows.values(lambda result: scale * mean_of(result[sort], key))


def _scatter(report: Report, config: CausalConfig, results: Results[Any]) -> None:
    """Every removal of the first seed: size of the effect against the classes it hits."""
    from unrolled.report import Scatter

    panels = []
    for what in WHATS:
        groups: list[str] = []
        points: list[tuple[float, float]] = []
        for kind in config.kinds:
            row = removals(results, config, kind, what).where(seed=config.seeds[0])
            for sort in _SORTS if kind == "crate" else ("places",):
                places = [place for place in row.first(sort, []) if place["classes"] is not None]
                points += [(100 * place["probability"], place["classes"]) for place in places]
                groups += [f"{kind}{', random' * (sort == 'random')}"] * len(places)
        if points:
            x, y = zip(*points, strict=True)
            title = f"effective number of classes: {what}s"
            panels.append(
                Scatter(title=title, x_label="change of the right class's probability, points", x=x, y=y, groups=groups)
            )
    if panels:
        report.section("Size and spread of every removal").figure(
            panels,
            name="removals",
            caption=f"Seed {config.seeds[0]}; each point is one removal. Where the effect is small the number is that "
            "of noise, about 6.4 of 10: compare points of the same size of effect.",
        )


def _prediction(report: Report, config: CausalConfig, results: Results[Any]) -> None:
    from unrolled.report import Scatter

    section = report.section(
        "Does the objective predict what is lost?",
        "Before the removal and after it, at the tokens that enter the layer, divided by their norms, eps 0.1: the "
        "fall of R^c of the layer's own subspaces, the fall of R, and, as a predictor that knows no objective, the "
        "share of the tokens' energy that is taken away. Each is set against the rise of the loss, over all subspaces "
        "of a network, and within each layer, where only its heads are compared.",
    )
    rows = [each for each in _rows(results, config) if each[2] == "subspace"]
    if not rows:
        section.text(f"{NOT_RUN}.")
        return
    table: list[list[str | int]] = []
    for name, _, _, networks in rows:
        for sort, words in (("places", "U_k"), ("random", "random")):
            numbers = [
                f"{networks.values(f'predicts.{sort}_{predictor}{within}.value'):+.2f}"
                for predictor in PREDICTORS
                for within in ("", "_within")
            ]
            table.append([name, words, len(networks), *numbers])
    section.table(
        ["network", "removed", "seeds", *(f"{_PREDICTOR[p]}{w}" for p in PREDICTORS for w in ("", ", within"))],
        table,
        caption="Spearman's rank correlation with the rise of the loss, mean and standard deviation over seeds.",
    )
    panels = []
    for kind, title in ((SHIPPED, "CRATE of 6 layers"), ("crate", "CRATE"), ("vit", "ViT")):
        networks = removals(results, config, kind, "subspace")
        places = networks.first("places", [])
        if places:
            panels.append(
                Scatter(
                    title=f"rise of the loss, nats: {title}",
                    x_label="fall of R^c, nats",
                    x=[place["subspace_rate"] for place in places],
                    y=[place["loss"] for place in places],
                    groups=[f"layer {place['layer']}" for place in places],
                )
            )
    section.figure(panels, name="predicts", caption="One point a subspace U_k; the first seed.")


def _heads(report: Report, config: CausalConfig, results: Results[Any]) -> None:
    from unrolled.models.registry import CIFAR10
    from unrolled.report import HeatMap

    section = report.section(
        "Do heads have the meanings that their maps suggest?",
        "On one half of the images: which class makes a head's class token look at patches most, beyond what other "
        "heads and classes do. On the other half: by how much that class falls when the head is set to zero, again "
        "beyond other heads and classes. Beside it the correlation of the two tables over all heads and classes, and "
        "what remains when classes are renamed at random.",
    )
    sets = [each for each in _rows(results, config) if each[2] == "head"]
    if not sets:
        section.text(f"{NOT_RUN}.")
        return
    section.table(
        ["network", "seeds", "fall, points", "renamed, 95 %", "correlation", "p, by seed"],
        [
            [
                name,
                len(rows),
                f"{marked(results, config, kind):+.2f}",
                " to ".join(f"{marked(results, config, kind, end).mean:+.2f}" for end in ("null_low", "null_high")),
                f"{marked(results, config, kind, 'correlation'):+.2f}",
                ", ".join(f"{p:.3f}" for p in rows.values("marked.p")),
            ]
            for name, kind, _, rows in sets
        ],
        caption="Fall in the probability of the right class of the marked class, mean over heads.",
    )
    kind = SHIPPED if removals(results, config, SHIPPED, "head") else "crate"
    places = removals(results, config, kind, "head").first("places", [])
    if places:
        values = 100 * np.array([place["by_class"] for place in places])
        section.figure(
            HeatMap(
                title="change of the right class's probability, points",
                values=values,
                rows=[f"{place['layer']}.{place['unit']}" for place in places],
                columns=list(CIFAR10)
                if config.data == "cifar10"
                else [str(number) for number in range(values.shape[1])],
                row_label="layer.head",
                column_label="class",
                signed=True,
            ),
            name="heads",
            caption="Change of every class without each head, "
            + ("the CRATE of 6 layers." if kind == SHIPPED else f"CRATE, seed {config.seeds[0]}."),
        )


def _limits(report: Report, config: CausalConfig, results: Results[Any]) -> None:
    scores = {kind: accuracy(results, kind, config.data) for kind in config.kinds}
    words = ", ".join(f"{ROSTER[kind].words} {value:.1f} %" for kind, value in scores.items())
    big = results.of(Shipped).first("accuracy")
    shown = f" The CRATE of 6 layers, {100 * big:.1f} %, has one seed and no rival." if big else ""
    report.section(
        "What this does not show",
        f"Networks are small and far from the best ({words}); the ViT of CRATE's width is the nearest in accuracy that "
        f"the roster has, not equal to the digit.{shown} Ten classes are few for heads to share out, and no parts of "
        "things are annotated: the parts of arXiv 2308.16271 are not tested, classes are. A removal at once takes a "
        "subspace from attention and from the tokens that go past it, and what two removals do together is not seen. "
        "Zero is one way of removing; means or other images' values may give other numbers. Atoms are a few of each "
        "dictionary, and an entry of a ViT's tokens is no atom: the row is there to show what any direction does.",
    )
