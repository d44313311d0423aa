"""The page of `crate-codes`: the answer, what codes are worth by k, which atoms are shared, the lasso, limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unrolled.studies.crate.codes.cells import KINDS, SORTS, Codes, CodesConfig, Lasso, Sort
from unrolled.studies.crate.codes.claims import WORDS, agreement, answer, lasso, worth
from unrolled.studies.crate.compared import accuracy
from unrolled.studies.kinds import KINDS as ROSTER
from unrolled.studies.networks import NAMES
from unrolled.studies.results import NOT_RUN, Results, line

if TYPE_CHECKING:
    from unrolled.report import Report

_QUANTITIES = {
    "variance": "variance of the tokens rebuilt",
    "recovered": "share of the loss recovered",
    "selectivity": "selectivity for classes",
}


def report(report: Report, config: CodesConfig, results: Results[Any]) -> None:
    """Answer, worth, agreement, lasso, limits."""
    from unrolled.report import Fact

    crate, fitted = (
        [worth(results, config, "crate", sort, key) for key in ("variance", "recovered")]
        for sort in ("own", "autoencoder")
    )
    report.headline(
        f"{answer(results, config)} With {config.k} of 96 codes a token, CRATE's own rebuild {crate[0]:.2f} of the "
        f"variance of its tokens and bring back {crate[1]:.2f} of the loss, an autoencoder's {fitted[0]:.2f} and "
        f"{fitted[1]:.2f}.",
        [
            *(
                Fact(
                    label=f"{ROSTER[kind].words}, accuracy",
                    value=f"{accuracy(results, kind, config.data):.1f} %",
                    detail=NAMES[config.data],
                )
                for kind in KINDS
            ),
            Fact(
                label="Codes that are not 0",
                value=f"{worth(results, config, 'crate', 'own', 'nonzero'):.0f}",
                detail="of 96 a token, as ISTA leaves them",
            ),
        ],
    )
    _worth(report, config, results)
    _agreement(report, results)
    _lasso(report, config, results)
    _limits(report, config)


def _worth(report: Report, config: CodesConfig, results: Results[Any]) -> None:
    from unrolled.report import LineChart

    section = report.section(
        "What codes are worth",
        f"Tokens that leave layer {config.layer + 1} of 4, coded with k of 96 numbers not 0. `Own codes` are a token's "
        "k largest entries: of CRATE they are ISTA's codes, of a ViT entries in a basis like any other. `Random "
        "directions` are the k largest entries of tokens turned at random; like a ViT's they may be negative, which "
        "ISTA's codes and an autoencoder's are not. Both are read out by a regression on the tokens that the "
        f"autoencoder is fitted to, of {config.fitted:,} training images; everything is measured on {config.tested:,} "
        "test images. The share of the loss recovered is 1 if the network loses nothing when the rebuilt tokens take "
        "the place of the true ones, and 0 if it loses as much as with the mean token everywhere. Selectivity is the "
        "share of the variance of an atom's mean over an image that classes explain, mean over atoms.",
    )
    if not results.of(Codes):
        section.text(f"{NOT_RUN}.")
        return
    for kind in KINDS:
        panels = []
        for key, title in _QUANTITIES.items():
            lines = []
            for place, sort in enumerate(SORTS):
                values = [worth(results, config, kind, sort, key, k=k) for k in config.ks]
                if any(values):
                    lines.append(line(WORDS[sort], config.ks, values, color=place, dashed=sort == "random"))
            if key == "selectivity" and lines:
                shuffled = [worth(results, config, kind, "own", "shuffled", k=k) for k in config.ks]
                lines.append(line("labels shuffled", config.ks, shuffled, color=3, dashed=True))
            if lines:
                panels.append(LineChart(title=title, x_label="codes of a token that are not 0", series=lines))
        if panels:
            section.figure(
                panels,
                name=f"worth-{kind}",
                caption=f"{ROSTER[kind].words}; bars are one standard deviation over seeds.",
            )
    table: list[list[str | int]] = []
    for kind, trained in (*((kind, True) for kind in KINDS), ("crate", False)):
        for sort, wide in (*((sort, False) for sort in SORTS), ("autoencoder", True)):
            sorted_: Sort = sort  # type: ignore[assignment]
            values = [
                worth(results, config, kind, sorted_, key, wide=wide, trained=trained)
                for key in (*_QUANTITIES, "shuffled", "used")
            ]
            if values[0]:
                name = f"{ROSTER[kind].words}{'' if trained else ', untrained'}"
                words = f"{WORDS[sorted_]}{f' of {config.wide} atoms' if wide else ''}"
                table.append([name, words, len(values[0]), *(f"{value:.3f}" for value in values)])
    section.table(
        ["tokens of", "codes", "seeds", "variance", "loss recovered", "selectivity", "labels shuffled", "atoms used"],
        table,
        caption=f"k = {config.k}; mean and standard deviation over seeds. As they are, without a regression, CRATE's "
        f"own {config.k} codes leave {worth(results, config, 'crate', 'own', 'plain'):.3f} of the variance explained; "
        "all of them are the token itself.",
    )


def _agreement(report: Report, results: Results[Any]) -> None:
    table: list[list[str | int]] = []
    for words, sort, kinds, coder in _compared():
        values = [agreement(results, sort, kinds, coder, key) for key in ("correlation", "chance", "above")]
        if values[0]:
            table.append([words, WORDS[coder], len(values[0]), *(f"{value:.3f}" for value in values)])
    section = report.section(
        "Which atoms are shared",
        "Codes of the same patches by two dictionaries, their atoms matched one to one so that the sum of correlations "
        "is largest; the mean correlation of the matched. Chance: the same, when the other network is shown other "
        "images, places kept. Pairs of three networks share networks, so their spread is too small.",
    )
    if not table:
        section.text(f"{NOT_RUN}.")
        return
    section.table(["between", "codes", "pairs", "correlation", "chance", "above chance"], table)


def _compared() -> list[tuple[str, str, tuple[str, str], Sort]]:
    rows: list[tuple[str, str, tuple[str, str], Sort]] = []
    for kind in KINDS:
        words = ROSTER[kind].words
        rows.append((f"two autoencoders of one {words}", "draw", (kind, kind), "autoencoder"))
        rows += [(f"two seeds of {words}", "seed", (kind, kind), sort) for sort in ("own", "autoencoder")]
    return [*rows, *(("CRATE and ViT", "kind", ("crate", "vit"), sort) for sort in ("own", "autoencoder"))]


def _lasso(report: Report, config: CodesConfig, results: Results[Any]) -> None:
    section = report.section(
        "Are ISTA's codes codes?",
        "ISTA takes one step on the lasso of its own input X by its dictionary D. If its codes A were a sparse code of "
        "X, D A would rebuild X. What a network learns need not keep to that: the next layer reads A, not D A.",
    )
    if not results.of(Lasso):
        section.text(f"{NOT_RUN}.")
        return
    section.table(
        ["CRATE", "seeds", "variance of X by D A", "lasso of A over that of X", "codes not 0"],
        [
            [
                "trained" if trained else "untrained",
                len(lasso(results, config, "loss", trained=trained)),
                *(f"{lasso(results, config, key, trained=trained):.3f}" for key in ("variance", "loss", "nonzero")),
            ]
            for trained in (True, False)
        ],
        caption="Mean and standard deviation over seeds. A variance below 0: the mean token would do better.",
    )


def _limits(report: Report, config: CodesConfig) -> None:
    report.section(
        "What this does not show",
        f"Networks of 4 layers and width 96 after {config.images:,} images, one layer of them; codes as wide as the "
        f"tokens, and autoencoders of {config.steps:,} steps: those of large models have many times as many atoms and "
        "steps, and may gain more. CRATE's dictionaries are square; CRATE-alpha's wider ones are not looked at. Own "
        "codes are cut to k where they have more, which nothing trained them for: that asks whether they are sparse "
        "codes, not whether the network works. Selectivity is for ten classes; what atoms mean beyond them is not "
        "asked. Atoms that agree are not atoms that matter.",
    )
