"""The page of `crate-pretrain`: completion, the decoder, features, how rates were chosen, training, limits."""

from __future__ import annotations

import math
from statistics import fmean
from typing import TYPE_CHECKING, Any

from unrolled.studies.crate.longer import STAYS, TIMES, Length, errors_after, exponent
from unrolled.studies.crate.mae_layers.report import draw_completions
from unrolled.studies.crate.pretrain.cells import (
    DECODERS,
    EARLIER,
    OBJECTIVES,
    PAIR,
    QUESTIONS,
    Layers,
    PretrainConfig,
    Probed,
)
from unrolled.studies.crate.pretrain.claims import (
    beside_inpainting,
    change,
    fresh,
    inpainted,
    learnt,
    loss,
    probe,
    shipped_beside_inpainting,
    tuned,
)
from unrolled.studies.crate.pretrain.completion import HARMONIC, Completed, Inpainted
from unrolled.studies.crate.pretrain.learning import Learning, Learnt, Trial, TuningTrial
from unrolled.studies.crate.pretrain.networks import FORMS, Fresh
from unrolled.studies.crate.pretrain.objectives import WORDS, Objective
from unrolled.studies.networks import BATCH, NAMES
from unrolled.studies.results import NOT_RUN, Estimate, Results, Values

if TYPE_CHECKING:
    from unrolled.report import Forest, Report

_PARTS = ("rise", "step", "plain", "linear")


def report(report: Report, config: PretrainConfig, results: Results[Any]) -> None:
    """Headline, completion, decoder, features, rates, training, limits."""
    _headline(report, config, results)
    if {"completion", "ship"} & set(config.questions):
        _completion(report, config, results)
    if {"decoder", "ship"} & set(config.questions):
        _decoder(report, config, results)
    if results.of(Probed):
        _features(report, config, results)
    _trials(report, config, results)
    _training(report, config, results)
    _longer(report, config, results)
    if left := [question for question in QUESTIONS if question not in config.questions]:
        report.section("Not asked", f"The study can also be asked for {', '.join(left)} (`questions`).")
    longer = " but training from scratch as long as both, whose trials were as long" * ("features" in config.questions)
    report.section(
        "What this does not show",
        "Networks of at most 350,000 parameters on small images, one recipe in which only rates were tuned, with as "
        f"many trials of as many operations for all{longer}. What is best after a fifth of a training can be too high "
        "for the whole of it, and a rate that suits an objective need not leave weights that are easy to train on: of "
        "masks it is chosen by their loss. The weights in the losses of SIGReg and of the coding rate are "
        "published ones and were not tuned, and papers train them hundreds of times longer. Operations are those of "
        "matrix products and attention; norms, crops and changes of colour are not counted. The images are CIFAR-10 "
        "re-encoded as JPEG at quality 75, which costs trained networks about 10 points. With all test images the "
        "standard error of an accuracy near 60 % is 0.5 points, beside that over seeds. The ViT-MAE is compared by its "
        "loss: it was neither probed nor fine-tuned."
        + ("" if "derived-tied" in config.longer else " The derived step with tied outputs was not trained longer."),
    )


def _headline(report: Report, config: PretrainConfig, results: Results[Any]) -> None:
    from unrolled.report import Fact

    beside = beside_inpainting(results, config)
    scores = {objective: score for objective in OBJECTIVES if (score := probe(results, config, objective))}
    shipped = shipped_beside_inpainting(results, config)
    words, facts = [], []
    if beside:
        words.append(f"CRATE-MAE has {beside:.3f} times the loss of {HARMONIC}")
        facts.append(Fact(label=f"CRATE-MAE over {HARMONIC}", value=f"{beside:.3f}", detail=beside.count))
    if isinstance(shipped, Estimate):
        words.append(
            f"a CRATE-MAE of pixels, trained longer, {shipped.value:.3f} times the squared error of {HARMONIC}"
        )
    steps = {form: 100 * change(learnt(results, Layers, config.trial, form=form), "step") for form in DECODERS}
    if steps["published"] and steps["derived-tied"]:
        words.append(
            f"a layer's step in the decoder changes R^c by {steps['published']:+.0f} % as published, by "
            f"{steps['derived-tied']:+.0f} % derived and with tied output"
        )
    if scores:
        untrained = probe(results, config, None)
        each = ", ".join(f"{score:.1f} ({WORDS[name]})" for name, score in scores.items())
        words.append(f"a linear probe of features learnt at equal operations has {each} %, untrained {untrained:.1f} %")
        facts += [Fact(label=f"probe, {WORDS[name]}", value=f"{x:.1f} %", detail=x.count) for name, x in scores.items()]
        facts.append(Fact(label="probe, untrained", value=f"{untrained:.1f} %", detail="the same encoder"))
    report.headline(f"{'; '.join(words) or 'Nothing is computed yet'}.", facts)


def _completion(report: Report, config: PretrainConfig, results: Results[Any]) -> None:
    section = report.section(
        "Completion",
        f"The first {config.tested:,} test images of {NAMES[config.data]}, three quarters of the patches removed, the "
        "same of all; errors on removed patches. `normalised` is the mean squared error of patches of mean 0 and "
        "variance 1, which the networks were taught; completions by other means are normalised too, and multiplied by "
        "a factor fitted on training images. PSNR is in pixels, and nobody is told the mean or spread of a removed "
        "patch: networks of normalised patches get the mean from harmonic inpainting and the spread from visible "
        "patches. CRATE-MAE and ViT-MAE have equal parameters and learn with equal operations: the ViT, which works "
        "less on an image, sees more, and takes longer. Both encode visible patches alone, and CRATE-MAE has the "
        "derived compression step; the published CRATE-MAE encodes all patches, by the published step.",
    )
    rows: list[list[Any]] = []
    for form in PAIR if "completion" in config.questions else ():
        made, done = (learned(results, config, form), learnt(results, Completed, config.length, form=form))
        rows.append(
            [FORMS[form].words, *_cost(made), f"{loss(results, config, form):.3f}", f"{done.values('psnr'):.2f}"]
        )
    made = learned(results, config, "crate", "mae-pixels")
    done = learnt(results, Completed, config.ship, objective="mae-pixels")
    if "ship" in config.questions:
        rows.append(["CRATE-MAE of pixels, longer", *_cost(made), "taught pixels", f"{done.values('psnr'):.2f}"])
    for name, entry in results.of(Inpainted).first("scores", {}).items():
        rows.append([name, 0, "-", "-", "-", f"{entry['loss']:.3f}", f"{entry['psnr']:.2f}"])
    section.table(
        ["completion", "parameters", "MFLOPs a training image", "images seen", "rate", "normalised", "PSNR, dB"],
        rows,
        caption=f"Networks of {config.length:g} x 10^12 operations ({config.ship:g} of pixels), mean and standard "
        "deviation over seeds.",
    )
    plain = inpainted(results, "pixels")
    if done and plain:
        section.text(
            f"In squared units of the input (64 grey levels) the network of pixels has {done.first('loss'):.4f}, "
            f"{HARMONIC} {fmean(plain):.4f}."
        )
    _pictures(report, config, results)


def _pictures(report: Report, config: PretrainConfig, results: Results[Any]) -> None:
    shown = dict(results.of(Inpainted).first("pictures", {}))
    for row in results.of(Completed, seed=config.seeds[0]):
        if "pictures" in row.result:
            network = row.cell.network
            pixels = ", pixels" if network.objective == "mae-pixels" else ""
            shown[FORMS[network.form].words + pixels] = row.result["pictures"]
    draw_completions(report, config.data, shown, "Nobody is told the brightness or contrast of a removed patch.")


def _decoder(report: Report, config: PretrainConfig, results: Results[Any]) -> None:
    section = report.section(
        "The decoder",
        f"R^c of tokens of unit norm by the layer's own subspaces, on {config.measured} test images, in the decoder of "
        "forms that encode all patches, as published, and below them of networks that ship. A decoder layer is a free "
        "linear map, then a reversed compression step. `rise`: R^c after the step of the last layer over that of the "
        "first, less 1, as the paper's figures show it; `step`: what the reversed step alone changes, over what it was "
        "before it, less 1, mean of the layers; `orthonormal`: the same by orthonormal bases of the subspaces, so that "
        "the size of weights plays no part; `maps`: what the linear maps alone change. Of the published step the "
        "first-order term is left out, so that "
        "adding it raises R^c for most tokens and subtracting it lowers it; the derived step has that term. A learned "
        "output matrix may undo the sign of either, a tied one cannot.",
    )
    lengths = {"short": config.trial, "long": config.long}
    table = []
    for form in DECODERS if "decoder" in config.questions else ():
        rows: dict[str, Results[Layers]] = {"untrained": fresh(results, Layers, form=form)}
        rows |= {name: learnt(results, Layers, length, form=form) for name, length in lengths.items()}
        for name, each in rows.items():
            if each or name != "long" or form in config.longer:
                table.append([FORMS[form].words, name, *(f"{change(each, part):+.3f}" for part in _PARTS)])
    earlier = Results(row for row in results.of(Layers) if "weights" in row.cell.columns)
    if earlier:
        parts = [f"{fmean(earlier.first(part)):+.3f}" for part in _PARTS]
        table.append([f"`{EARLIER}`, which ships: published, visible patches", "490,000 images", *parts])
    ship = learnt(results, Layers, config.ship, objective="mae-pixels")
    if ship:
        table.append(
            [
                "derived step, learned output, visible patches, pixels; ships",
                f"{config.ship:g} x 10^12 operations",
                *(f"{change(ship, part):+.3f}" for part in _PARTS),
            ]
        )
    section.table(
        ["form", "training", "rise", "step", "orthonormal", "maps"],
        table,
        caption=f"Short: {config.trial:g}, long: {config.long:g} x 10^12 operations. Mean and standard deviation over "
        "seeds.",
    )
    _by_layer(report, config, results)


def _by_layer(report: Report, config: PretrainConfig, results: Results[Any]) -> None:
    from unrolled.report import LineChart

    lines = []
    for place, form in enumerate(DECODERS):
        for rows, words in (
            (learnt(results, Layers, config.trial, form=form), ""),
            (learnt(results, Layers, config.long, form=form), ", long"),
            (fresh(results, Layers, form=form), ", untrained"),
        ):
            if rows:
                layers = range(1, 1 + len(rows.first("decoder")))
                lines.append(
                    rows.curve(
                        FORMS[form].words + words,
                        "decoder",
                        "rate_after",
                        x=layers,
                        color=place,
                        dashed=words == ", untrained",
                    )
                )
    if lines:
        report.section("R^c by layer of the decoder").figure(
            [LineChart(title="R^c, nats", x_label="layer of the decoder", series=lines)],
            name="decoder",
            caption="After the reversed step. Dotted: untrained. Bars are one standard deviation over seeds.",
        )


def _features(report: Report, config: PretrainConfig, results: Results[Any]) -> None:
    scores = {WORDS[each]: _scores(results, config, each) for each in OBJECTIVES}
    scores |= {
        "none": _scores(results, config, None),
        "none, trained as long as both": _scores(results, config, None, whole=True),
    }
    seen = {WORDS[each]: learned(results, config, "crate", each) for each in OBJECTIVES}
    table = []
    for words, values in scores.items():
        made = seen.get(words)
        images = "0" if made is None else f"{made.first('images'):,}" if made else NOT_RUN
        table.append([words, images, *("-" if value is None else f"{value:.1f}" for value in values.values())])
    measures = list(scores["none"])
    chance = results.of(Probed).first("chance")
    section = report.section(
        "Features",
        f"Accuracy on all test images, per cent, of one encoder of CRATE after {config.length:g} x 10^12 operations of "
        "each objective, its decoder, projector or teacher included. The linear probe is a ridge classifier of frozen "
        f"features of {config.fitted:,} training images; layer, pooling and ridge are chosen on held-out ones. "
        f"Fine-tuning trains the whole encoder with {config.tuning_few:g} x 10^12 operations on {100 * config.few:g} % "
        f"of the labels, or {config.tuning_all:g} on all. The last row is supervised training alone with the "
        "operations of pretraining and fine-tuning together, at the rate that is best at that length; rates of the "
        "others are the best of shorter trials, so that a part of what it is ahead by may be the rate's."
        + (f" Chance is {100 * chance:.0f} %." if chance else ""),
    )
    section.table(
        ["pretraining", "images seen", *measures],
        table,
        caption="Mean and standard deviation over seeds. SIGReg and the coding rate see two views of an image, with "
        "the same crops, mirror images and changes of colour, behind a projector of the same size; masks see shifts "
        "and mirror images.",
    )
    section.figure(
        [_forest(each, {words: values[each] for words, values in scores.items()}) for each in measures],
        name="features",
        caption="Bars are 95 % intervals of the mean over seeds. Dashed: without pretraining.",
    )


def _scores(
    results: Results[Any], config: PretrainConfig, objective: Objective | None, *, whole: bool = False
) -> dict[str, Values | None]:
    """Accuracies by what is measured; of a `whole` training, as long as pretraining and fine-tuning, no probe."""
    return {
        "linear probe": None if whole else probe(results, config, objective),
        f"{100 * config.few:g} % of the labels": tuned(results, config, objective, few=True, whole=whole),
        "all labels": tuned(results, config, objective, few=False, whole=whole),
    }


def _forest(title: str, scores: dict[str, Values | None]) -> Forest:
    from unrolled.report import Forest

    rows = {words: values for words, values in scores.items() if values is not None}
    return Forest(
        title=title.capitalize(),
        x_label="accuracy on test images, %",
        names=list(rows),
        values=[values.mean for values in rows.values()],
        interval=[values.interval() or (math.nan, math.nan) for values in rows.values()],
        beside=rows["none"].mean if rows["none"] else None,
    )


def _trials(report: Report, config: PretrainConfig, results: Results[Any]) -> None:
    section = report.section(
        "How the rates were chosen",
        f"On the tenth of the training images that is held out, after {config.trial:g} x 10^12 operations of "
        "pretraining, seed 0: of autoencoders by the loss, of other objectives by the accuracy of a linear probe. "
        f"Batches of {BATCH}, Muon with weight decay 0.05, a sixteenth of warm-up, then a cosine; label smoothing 0.1 "
        "in fine-tuning.",
    )
    table = []
    trials = results.of(Trial)
    for objective, form, masked in dict.fromkeys(
        (row.cell.objective, row.cell.form, row.cell.masked) for row in trials
    ):
        rows = {row.cell.rate: row.result for row in trials.where(objective=objective, form=form)}
        words = FORMS[form].words if masked else "the encoder of CRATE-MAE"
        table.append([WORDS[objective], words, *(_trial(rows.get(rate)) for rate in config.rates)])
    section.table(
        ["objective", "network", *(f"rate {rate:g}" for rate in config.rates)],
        table or [[NOT_RUN] * (2 + len(config.rates))],
        caption="Loss where there is one, and the probe's accuracy, per cent.",
    )
    chosen = [
        [
            *(_start(row.cell.network), f"{100 * row.cell.share:g} %", f"{row.cell.tuning:g} x 10^12"),
            *(f"{row.cell.rate:g}", _accuracy(row.result)),
        ]
        for row in results.of(TuningTrial)
    ]
    if chosen:
        section.table(
            ["start of fine-tuning", "labels", "operations", "rate", "held-out accuracy, %"],
            chosen,
            caption="The first seed.",
        )


def _training(report: Report, config: PretrainConfig, results: Results[Any]) -> None:
    """What the autoencoders learnt with the images seen: the one whose weights ship, and those that are compared."""
    from unrolled.report import LineChart

    charts = []
    for title, networks in (
        ("patches normalised", [(FORMS[form].words, learned(results, config, form)) for form in PAIR]),
        ("pixels", [("CRATE-MAE", learned(results, config, "crate", "mae-pixels"))]),
    ):
        lines = [
            rows.curve(words, "curve", "loss", x=[BATCH * point["step"] / 1000 for point in rows.first("curve")])
            for words, rows in networks
            if rows
        ]
        if lines:
            label = "thousand images seen"
            charts.append(LineChart(title=f"training loss, {title}", x_label=label, series=lines))
    if charts:
        report.section("During training").figure(
            charts,
            name="curves",
            caption="Errors on removed patches, of pixels in squares of 64 grey levels: mean of the augmented batches "
            "since the point before. Bars are one standard deviation over seeds where there are several.",
        )


def _longer(report: Report, config: PretrainConfig, results: Results[Any]) -> None:
    """An extrapolation of the autoencoders that are compared, from the trial that was chosen and the full length."""
    rows = []
    for form in PAIR:
        made = learned(results, config, form)
        held = made.values("loss")
        rate = made.first("rate") if made else math.nan
        tried = results.of(Trial, objective="mae", form=form, operations=config.trial, rate=rate)
        if len(held) < 2 or not tried or held.mean >= tried.first("loss"):
            continue
        short = Length(config.trial, tried.first("loss"), held.deviation, len(held) - 1)
        long = Length(config.length, held.mean, held.deviation / len(held) ** 0.5, len(held) - 1)
        after = (f"{each:.3f}" for each in errors_after(short, long))
        rows.append([FORMS[form].words, f"{short.error:.3f}", f"{held:.3f}", f"{-exponent(short, long):.2f}", *after])
    if not rows:
        return
    times = f"{TIMES * config.length:g} x 10^12"
    report.section(
        "What longer training would likely change",
        f"Nothing was compared after {times} operations: this is extrapolated from the trial at the rate that was "
        "chosen and the full length, by losses on held-out training images. The power says how they fall with the "
        "operations; if that goes on, and if none, half or three quarters of the loss stays for good (the floor), it "
        "comes to:",
    ).table(
        [
            *("network", f"{config.trial:g} x 10^12", f"{config.length:g} x 10^12", "power"),
            *(f"{times}, floor {words}" for words in STAYS),
        ],
        rows,
        caption="95 % by the spread over seeds of the full length (Student's), taken for the trial's too. The trial is "
        "the best of its rates by the same images, which flatters it. Two lengths cannot show that the curve bends.",
    )


def learned(results: Results[Any], config: PretrainConfig, form: str, objective: str = "mae") -> Results[Learnt]:
    """Rows of trainings of a form at the full length."""
    length = config.ship if objective == "mae-pixels" else config.length
    return results.of(Learnt, objective=objective, form=form, operations=length)


def _cost(made: Results[Learnt]) -> list[str]:
    if not made:
        return [NOT_RUN] * 4
    first = made[0].result
    return [f"{first['parameters']:,}", f"{first['flops'] / 1e6:.0f}", f"{first['images']:,}", f"{first['rate']:g}"]


def _trial(result: Any) -> str:
    if result is None:
        return NOT_RUN
    if result["probe"] is None:
        return "diverged"
    words = f"{100 * result['probe']:.1f} %"
    return words if result["loss"] is None else f"{result['loss']:.3f}, {words}"


def _start(network: Learning | Fresh) -> str:
    return WORDS[network.objective] if isinstance(network, Learning) else "scratch"


def _accuracy(result: Any) -> str:
    return "diverged" if result["accuracy"] is None else f"{100 * result['accuracy']:.1f}"
