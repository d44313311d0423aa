"""The page of `crate-hour`: layers, accuracy, other images, calibration, corruption.

Photos and explanations are in `tables`, `drawn` and `gallery`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from unrolled.data.corruptions import CORRUPTIONS
from unrolled.studies.cells import Result
from unrolled.studies.crate.emergence.claims import plural
from unrolled.studies.crate.hour import drawn, gallery, tables
from unrolled.studies.crate.hour.cells import EPS, HourConfig, Layers, Probe, Scores
from unrolled.studies.crate.hour.networks import WORDS, Looked, given
from unrolled.studies.crate.hour.view import (
    QUANTITIES,
    View,
    all_rate,
    hundredths,
    orthonormal,
    over_images,
    paired,
    subspace_rate,
)
from unrolled.studies.crate.minutes.cells import Trial
from unrolled.studies.results import NOT_RUN, Results, Values

if TYPE_CHECKING:
    from unrolled.report import LineChart, Report, Section, Series

TARGETS = {"tiny-imagenet-32": "Tiny-ImageNet-32", "fashion_mnist": "Fashion-MNIST"}


def words(weights: str) -> str:
    """What tables call a network."""
    return WORDS.get(weights, weights)


def report(report: Report, config: HourConfig, results: Results[Any]) -> None:
    """Headline, layers, R^c and accuracy, photos, other images, calibration, corruption, explanations, limits."""
    view = View(results, config)
    _headline(report, view)
    _layers(report, view)
    _accuracy(report, view)
    tables.things(report, view)
    tables.objects(report, view)
    drawn.sizes(report, view)
    drawn.regions(report, view)
    drawn.roles(report, view)
    gallery.pictures(report, view)
    _transfer(report, view)
    _calibration(report, view)
    _corruption(report, view)
    tables.explanations(report, view)
    report.section("What this does not show", _limits(view))


def _headline(report: Report, view: View) -> None:
    from unrolled.report import Fact

    crate = view.config.crate
    scores = view.of(Scores, given(crate))
    if scores is None:
        report.headline(f"No network was looked at: everything is {NOT_RUN}.")
        return
    rates = [view.rate_learned(crate, read).mean for read in (subspace_rate, orthonormal, all_rate)]
    gains = {TARGETS[target]: view.transfer(crate, target) for target in view.config.targets}
    transfer = [f"{gain:+.1f} points on {name}" for name, gain in gains.items() if math.isfinite(gain.value)]
    evidence = hundredths(view.better(crate, "deletion", "evidence", "random"))
    middle = tables.against_middle(view, crate)
    worse = paired(view.errors(crate), view.errors(view.config.vit), "test images")
    sentences = [
        f"{words(crate)} ({100 * scores['accuracy']:.1f} % on CIFAR-10), beside fresh weights: R^c {rates[0]:+.0f} "
        f"nats, with orthonormal bases in place of U_k {rates[1]:+.0f}; R, of all tokens, {rates[2]:+.0f}.",
        f"Its attention fits things {middle} than a bump in the middle of the photo." if middle else "",
        tables.ahead_of_middle(view),
        f"Features gain {' and '.join(transfer)}." if transfer else "",
        f"On corrupted images its errors less the ViT's are {worse:+.1f} points." if math.isfinite(worse.value) else "",
        f"Removing the patches that `explain` calls evidence costs {evidence:+.1f} hundredths of probability more than "
        "removing random ones."
        if math.isfinite(evidence.value)
        else "",
    ]
    report.headline(
        " ".join(filter(None, sentences)),
        [
            Fact(
                label="Share of non-zeros, last layer less first",
                value=f"{view.thinning(crate):+.2f}",
                detail=words(crate),
            ),
            Fact(label="Calibration error, hundredths", value=f"{view.ece(crate):.1f}", detail=words(crate)),
            Fact(
                label="Calibration error, hundredths",
                value=f"{view.ece(view.config.vit):.1f}",
                detail=words(view.config.vit),
            ),
        ],
    )


def _layers(report: Report, view: View) -> None:
    config = view.config
    section = report.section(
        "Layers",
        f"R^c, R and the share of non-zero entries on the first {config.images} test images, eps {EPS:g}, tokens "
        "divided by their norm, after the first half of each layer (non-zeros: after the whole layer). R^c grows with "
        "the size of U_k, which a network sets as it likes; with orthonormal bases of the same subspaces that is taken "
        f"out. Fresh weights: the mean over {plural(len(config.seeds), 'seed')}.",
    )
    table = []
    for name in config.trained:
        learnt, fresh = view.of(Layers, given(name)), list(view.fresh(Layers, name).values())
        if learnt is None:
            table.append([words(name), *[NOT_RUN] * 9])
            continue
        depth = len(subspace_rate(learnt))
        for layer in (0, depth - 1):
            fresh_of = [
                f"{Values({i: read(row)[layer] for i, row in enumerate(fresh)}):{spec}}" for read, spec in _QUANTITIES
            ]
            rate, error = (learnt["subspace_rate"][key][layer] for key in ("mean", "error"))
            columns = [
                f"{rate:.1f} ± {error:.1f}",
                *(f"{read(learnt)[layer]:{spec}}" for read, spec in _QUANTITIES[1:]),
            ]
            pairs = [part for pair in zip(columns, fresh_of, strict=True) for part in pair]
            table.append([words(name), str(layer), *pairs])
    section.table(
        [
            *("network", "layer", "R^c, trained", "fresh", "R^c, orthonormal bases, trained", "fresh"),
            *("R, trained", "fresh", "non-zero, trained", "fresh"),
        ],
        table,
        caption="The first and the last layer of each; all are in `report.json`. Trained R^c: ± one "
        "standard error over images; fresh: ± one standard deviation over seeds. R^c of networks of different width or "
        "kind does not compare in size.",
    )
    shown = [(name, color) for color, name in enumerate(config.looked_at)]
    panels = [
        _panel(view, title, read, shown)
        for title, (read, _) in zip(
            ("R^c, nats", "R^c with orthonormal bases, nats", "R, nats", "share of non-zero entries"),
            _QUANTITIES,
            strict=True,
        )
    ]
    if drawn := [panel for panel in panels if panel is not None]:
        section.figure(
            drawn,
            name="layers",
            caption="Dotted: fresh weights of the CRATE and of the ViT; bars are one standard deviation over seeds.",
        )


def _nonzero(layers: Result) -> list[float]:
    mean: list[float] = layers["nonzero"]["mean"]
    return mean


_QUANTITIES: tuple[tuple[Callable[[Result], Sequence[float]], str], ...] = (
    (subspace_rate, ".1f"),
    (orthonormal, ".1f"),
    (all_rate, ".1f"),
    (_nonzero, ".3f"),
)


def _panel(
    view: View, title: str, read: Callable[[Result], Sequence[float]], shown: Sequence[tuple[str, int]]
) -> LineChart | None:
    from unrolled.report import LineChart, Series
    from unrolled.studies.results import line

    lines: list[Series] = []
    for name, color in shown:
        learnt, fresh = view.of(Layers, given(name)), view.fresh(Layers, name)
        if learnt is not None:
            y = list(read(learnt))
            lines.append(Series(label=words(name), x=range(len(y)), y=y, color=color))
        if fresh and name in view.config.twins:
            depth = len(read(next(iter(fresh.values()))))
            means = [Values({seed: read(row)[layer] for seed, row in fresh.items()}) for layer in range(depth)]
            lines.append(line(f"{words(name)}: fresh", range(depth), means, color=color, dashed=True))
    return LineChart(title=title, x_label="layer", series=lines) if lines else None


def _accuracy(report: Report, view: View) -> None:
    every = view.compared()
    rows = [
        [
            _title(network), f"{100 * accuracy:.1f}", f"{subspace_rate(layers)[-1]:.1f}",
            f"{sum(subspace_rate(layers)) / len(subspace_rate(layers)):.1f}", f"{orthonormal(layers)[-1]:.1f}",
            f"{subspace_rate(layers)[-1] / subspace_rate(layers)[0]:.2f}", f"{_nonzero(layers)[-1]:.3f}",
        ]
        for network, accuracy, layers in every
    ]  # fmt: skip
    section = report.section(
        "R^c and accuracy among trained networks",
        f"Every CRATE of 6 layers and width 96 at hand. Accuracy is of {view.config.tested:,} test images, of trials "
        f"of {view.config.trial_tested:,}. Networks differ in recipe, length and rate at once, one seed each: the "
        "correlation over them is given and not judged. Students are the networks of `crate-aligned`: 4 layers of "
        "width 64 that learnt from the same 4,096 images, from labels or a trained network, two to four passes; those "
        "tested have three seeds and accuracies of all test images, trials one seed and those of 2,048 others.",
    )
    if rows:
        section.table(
            [
                *("network", "accuracy, %", "R^c, last layer", "mean over layers", "last, orthonormal bases"),
                *("last over first", "non-zero, last layer"),
            ],
            rows,
        )
    if len(every) > 1:
        from unrolled.report import Scatter

        x = [100 * accuracy for _, accuracy, _ in every]
        names = [_title(network) for network, *_ in every]
        section.figure(
            [
                Scatter(title="R^c of the last layer, nats", x_label="accuracy, %", x=x, names=names,
                        y=[subspace_rate(layers)[-1] for _, _, layers in every]),
                Scatter(title="with orthonormal bases, nats", x_label="accuracy, %", x=x, names=names,
                        y=[orthonormal(layers)[-1] for _, _, layers in every]),
            ],
            name="accuracy",
        )  # fmt: skip
    if students := view.students:
        _students(section, view, students)


def _students(section: Section, view: View, students: Sequence[Result]) -> None:
    from unrolled.report import Scatter

    rows = []
    for quantity in QUANTITIES:
        every = (view.among_crates(quantity), view.among_students(quantity, alike=False), view.among_students(quantity))
        rows.append([quantity, *(NOT_RUN if each is None else f"{each:+.2f}" for each in every)])
    section.table(
        [
            "Spearman's correlation of accuracy with", f"the {len(view.compared())} CRATEs",
            f"{len(students)} students", "students, given passes and rate",
        ],
        rows,
        caption="95 % by the wider of a bootstrap over networks and Fisher's z; p two-sided by permutation. "
        f"{len(QUANTITIES)} quantities are tried: a single p of {0.05 / len(QUANTITIES):.3f} is what 0.05 would be for "
        "one. Given: partial correlation of ranks. Students share their images and their teacher, so that they are "
        "less independent than the intervals say.",
    )  # fmt: skip
    section.figure(
        Scatter(
            title="students: R^c of the last layer, nats",
            x_label="accuracy, %",
            x=[100 * row["accuracy"] for row in students],
            y=[row["subspace_rate"][-1] for row in students],
            groups=[f"{row['passes']} passes" for row in students],
        ),
        name="students",
    )


def _title(network: Looked) -> str:
    if isinstance(network, Trial):
        return f"trial at {network.rate:g}, {network.epochs} passes"
    return words(network.weights)


def _transfer(report: Report, view: View) -> None:
    config = view.config
    rows = []
    for target in config.targets:
        pixels = view.of(Probe, None, target=target)
        if pixels is None:
            rows.append([TARGETS[target], NOT_RUN, *["-"] * 5])
            continue
        rows.append([TARGETS[target], "pixels at half the side", f"{100 * pixels['accuracy']:.1f}", *["-"] * 4])
        for name in config.trained:
            if (learnt := view.of(Probe, given(name), target=target)) is None:
                continue
            fresh = Values({k: 100 * row["accuracy"] for k, row in view.fresh(Probe, name, target=target).items()})
            over = paired(view.right(given(name), target), view.right(None, target), "test images")
            gain = view.transfer(name, target)
            rows.append(
                [
                    TARGETS[target], words(name), f"{100 * learnt['accuracy']:.1f}", learnt["site"],
                    f"{fresh:.1f}" if fresh else "-", f"{gain:+.1f}" if fresh else "-", f"{over:+.1f}",
                ]
            )  # fmt: skip
    chances = {TARGETS[target]: (view.of(Probe, None, target=target) or {}).get("chance") for target in config.targets}
    report.section(
        "Transfer",
        f"Ridge classifiers on frozen features of {config.probe_images:,} training images, scored on "
        f"{config.test_images:,} test images; layer (class token or mean of the patches) and penalty are chosen on a "
        "fifth of the training images. Always naming the commonest class: "
        + ", ".join(f"{name} {100 * value:.1f} %" for name, value in chances.items() if value is not None)
        + ".",
    ).table(
        ["images", "features", "accuracy, %", "layer", "fresh weights", "gain over fresh", "over pixels"],
        rows,
        caption="Gains in points, 95 % by a bootstrap over test images; fresh: mean and deviation over seeds. Of "
        "networks trained longer or at another rate they are the same; of attention only and the older CRATE none were "
        "probed.",
    )


def _calibration(report: Report, view: View) -> None:
    config = view.config
    rows = []
    for name in config.trained:
        if (row := view.of(Scores, given(name))) is None:
            rows.append([words(name), *[NOT_RUN] * 5])
            continue
        rows.append(
            [
                words(name), f"{100 * row['accuracy']:.2f}", f"{row['plain']['nll']:.3f}", f"{view.ece(name):.2f}",
                f"{row['temperature']:.2f}", f"{view.ece(name, 'cooled'):.2f}",
            ]
        )  # fmt: skip
    scored = config.tested - config.tested // 5
    report.section(
        "Calibration",
        f"Expected calibration error (15 bins) of {scored:,} test images, its 95 % by a bootstrap over them, which "
        "leans upwards; the temperature is fitted on the other fifth.",
    ).table(
        ["network", "accuracy, %", "loss, nats", "calibration error, %", "temperature", "error with it, %"],
        rows,
    )


def _corruption(report: Report, view: View) -> None:
    config = view.config
    rows = []
    for name in ("clean", *CORRUPTIONS, ""):
        crate, vit = (view.errors(each, name) for each in config.twins)
        what = name.replace("_", " ") or "all nine"
        if crate is None or vit is None:
            rows.append([what, *[NOT_RUN] * 3])
            continue
        apart = paired(crate, vit, "test images")
        rows.append([what, f"{over_images(crate):.1f}", f"{over_images(vit):.1f}", f"{apart:+.1f}"])
    section = report.section(
        "Corrupted images",
        f"Wrong answers, per cent, on the first {config.corrupted} test images made worse in nine ways: means over "
        "five severities, which are those of `unrolled train` and not of a published benchmark, so that errors compare "
        "with each other alone.",
    )
    section.table(
        ["images", words(config.crate), words(config.vit), "difference"],
        rows,
        caption="95 % by a bootstrap over images, of the difference over the same images.",
    )


def _limits(view: View) -> str:
    config = view.config
    return (
        "One network of each kind and recipe: intervals are over images or photos and say nothing of another seed of "
        "training. Fresh weights have seeds, and few. The CRATE, its ViT and the older CRATE differ in more than one "
        "thing; what is due to which was not measured. Rates of CRATE and ViT are the best of four tried alike. "
        "Numbers of images are small, so that differences below a few points stay open. Borders and corruptions were "
        "asked of the CRATE and the ViT of an hour alone. Of the others no fresh weights were looked at in MaskCut, "
        "regions and roles; heads on regions are held against those of the CRATE and the ViT of an hour where the "
        "architecture is the same. Whether a lower "
        f"R^c goes with accuracy was asked of {len(view.compared())} CRATEs that learnt for minutes to hours, and of "
        "many that learnt for seconds. BSDS marks no things, and no data set here marks parts of things. Training "
        f"images are CIFAR-10's at 32 px, re-encoded as JPEG at quality 75; at {config.side} px positions are "
        "interpolated. Many of COCO's things are small and at the border: a Jaccard index here does not compare with "
        "one on VOC. Removed patches become the mean colour, a picture that no network was trained on, and areas are "
        "of the probability of one class."
        + (" The photos were made up: their numbers test the code and nothing else." if config.source != "coco" else "")
    )
