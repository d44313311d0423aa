"""The page of the study of white box against black box: pairs at equal accuracy, targets outside the zoo."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unrolled.studies.platonic_members import WORDS, short_name
from unrolled.studies.platonic_whitebox import DIFFERENCES, EACH_OTHER
from unrolled.studies.platonic_zoo_stats import number

if TYPE_CHECKING:
    from unrolled.report import Report
    from unrolled.studies.platonic_whitebox import Config


def build(config: Config, records: dict[str, dict[str, Any]], found: dict[str, Any], *, seconds: float) -> Report:
    """The report from what `platonic_whitebox.compared` found."""
    from unrolled.report import Claim, Fact, Provenance, Report

    report = Report(
        "White box against black box at equal accuracy",
        question="Is CRATE closer to other models, to the brain and to language than a ViT that is as accurate?",
    )
    points = 100 * config.within
    gap = found["between"]["mutual k-NN"]["gap"]
    claims = [(EACH_OTHER, _shown(gap))]
    for target, expectation in DIFFERENCES.items():
        entry = found["differences"][target]
        claims.append((expectation, "not run" if entry is None else _shown(entry["matched"])))
    report.claims = [
        Claim(statement=e.statement, source=e.source, published=e.published, measured=measured)
        for e, measured in claims
    ]
    clear = {
        target: entry["matched"]["value"]
        for target, entry in found["differences"].items()
        if entry is not None
        and entry["matched"]["low"] is not None
        and (entry["matched"]["low"] > 0 or entry["matched"]["high"] < 0)
    }
    closer = [target for target, value in clear.items() if value > 0]
    farther = [target for target, value in clear.items() if value < 0]
    bare = all(e is None or e["matched"]["low"] is None for e in found["differences"].values())
    if not found["matched"]:
        said = (
            f"No CRATE and ViT here are within {points:.0f} points of accuracy: nothing is compared at equal accuracy."
        )
    elif bare:
        said = f"{len(found['members'])} networks are too few to say whether CRATE or ViT is closer to anything."
    else:
        said = (
            f"At equal accuracy CRATE is closer than ViT to {', '.join(closer) or 'nothing'} and farther from "
            f"{', '.join(farther) or 'nothing'}; elsewhere the interval holds zero."
        )
    report.headline(
        said,
        [
            Fact(label="Pairs of equal accuracy", value=str(found["matched"]), detail=f"within {points:.0f} points"),
            Fact(label="CRATE-ViT below the seeds' floor", value=_shown(gap), detail="mutual k-NN above chance"),
        ],
    )
    _sections(report, config, records, found)
    report.results = found
    seeds = sorted({records[name]["member"]["seed"] for name in found["members"]})
    report.provenance = Provenance.collect(config=config, seeds=seeds, duration=seconds)
    return report


def _sections(report: Report, config: Config, records: dict[str, dict[str, Any]], found: dict[str, Any]) -> None:
    from unrolled.report import Scatter

    points = 100 * config.within
    groups = ("CRATE-CRATE", "ViT-ViT", "CRATE-ViT")
    report.section(
        "To each other",
        f"Mean alignment of pairs whose accuracy differs by at most {points:.0f} points. Pairs of one kind, mostly "
        "seeds of one size, say how close two networks can be expected to come; CRATE with ViT is read against them.",
    ).table(
        ["metric", *groups, "floors less CRATE-ViT"],
        [
            [metric, *(_shown(entry[group]) for group in groups), _shown(entry["gap"])]
            for metric, entry in found["between"].items()
        ],
        caption=f"Mutual {config.k}-NN above chance at the best layers; 95 % bootstrap intervals over members, drawn "
        "within each kind.",
    )
    rows = [records[name] for name in found["members"]]
    kinds = [WORDS[row["member"]["kind"]] for row in rows]
    names = [short_name(row["member"]) for row in rows]
    panels = [
        Scatter(
            title=f"closeness to {target}", x_label="accuracy in %", x=[100 * a for a in found["accuracy"]], y=values,
            names=names, groups=kinds,
        )
        for target, values in found["values"].items()
        if values is not None
    ]  # fmt: skip
    section = report.section(
        "To what is not CRATE or ViT",
        "Networks: mutual k-NN above chance of the best pair of layers, mean over the networks. Brains: Spearman "
        "between dissimilarities of 92 photographs at 32 px in the best block and in inferior temporal cortex; people "
        "agree with one another at 0.38 to 0.67. Language: mutual k-NN above chance of the class means of "
        "Tiny-ImageNet's images with vectors of the classes' names. The first difference is the mean over pairs of "
        "equal accuracy; the second takes accuracy as a covariate over all members, a straight line that small samples "
        "cannot check.",
    )
    section.table(
        ["closeness to", "CRATE", "ViT", "at equal accuracy", "accuracy as covariate", "seeds"],
        [
            [target, *["not run"] * 5]
            if entry is None
            else [
                *(target, number(entry["crate"]), number(entry["vit"])),
                *(_shown(entry["matched"]), _shown(entry["adjusted"]), number(entry["seed_std"])),
            ]
            for target, entry in found["differences"].items()
        ],
        caption="CRATE less ViT with a 95 % bootstrap interval over members; seeds: standard deviation among networks "
        "that differ by seed alone. Seven targets were looked at: one interval in twenty misses zero by chance.",
    )
    if panels:
        section.figure(panels, name="targets", caption="One point a network.")
    report.section("Every network").table(
        ["network", "accuracy %", *found["values"]],
        [
            [names[i], f"{100 * found['accuracy'][i]:.1f}"]
            + ["not run" if values is None else number(values[i]) for values in found["values"].values()]
            for i in range(len(rows))
        ],
        caption="Brief ViTs had a quarter of the training, so as to be no more accurate than a CRATE.",
    )
    report.section(
        "What this does not show",
        "Both kinds are small and trained for minutes on small images. Equal accuracy is not equal training: a ViT "
        "that was stopped early is compared with a CRATE that was not, and CRATE has fewer weights at the same width.",
    )


def _shown(entry: dict[str, float | None]) -> str:
    if entry["value"] is None:
        return "undefined"
    if entry["low"] is None:
        return f"{entry['value']:+.3f}, too few for an interval"
    return f"{entry['value']:+.3f} [{entry['low']:+.3f}, {entry['high']:+.3f}]"
