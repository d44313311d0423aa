"""The page of `crate-characters`: models beside counts at equal characters and equal time, curves, choices, limits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from unrolled.studies.crate.bytes.cells import ORDER
from unrolled.studies.crate.characters.cells import CharactersConfig
from unrolled.studies.crate.characters.claims import PUBLISHED, View
from unrolled.studies.crate.characters.networks import GPT2, PACES
from unrolled.studies.results import NOT_RUN, Results, Values

if TYPE_CHECKING:
    from unrolled.report import Report, Series

_PLACES = {family: place for place, family in enumerate((*PACES, PUBLISHED))}  # in the palette


def report(report: Report, config: CharactersConfig, results: Results[Any]) -> None:
    """Headline, models, curves, what was chosen, limits."""
    view = View(results, config)
    _headline(report, view)
    _models(report, view)
    _curves(report, view)
    _trials(report, view)
    _limits(report, view)


def _headline(report: Report, view: View) -> None:
    from unrolled.report import Fact

    losses = {family: view.losses(family) for family in view.config.families}
    ranked = sorted((family for family in losses if losses[family]), key=lambda family: losses[family].mean)
    if not ranked:
        report.headline(f"No model is kept: losses are {NOT_RUN}.")
        return
    best = ranked[0]
    words = (
        f"After {_millions(view.config)} characters, {best} has the lowest loss on nanoGPT's validation part, "
        f"{losses[best]:.3f} nats a character"
    )
    others = [family for family in dict.fromkeys([*ranked[1:2], GPT2]) if family != best and losses.get(family)]
    words += "".join(f", {family} {losses[family]:.3f}" for family in others) + "."
    if (counted := view.counted("loss")) is not None:
        ahead = sum(losses[family].mean < counted for family in ranked)
        words += (
            f" Counting {ORDER} characters in a row spends {counted:.3f}: {ahead or 'none'} of {len(ranked)} are ahead "
            "of it."
        )
    timed = {family: view.losses(family, timed=True) for family in (GPT2, *view.config.as_long)}
    timed = {family: values for family, values in timed.items() if values}
    if len(timed) > 1:
        first = min(timed, key=lambda family: timed[family].mean)
        words += f" After as much processor time as GPT-2 takes for them it is {first}, {timed[first]:.3f}."
    if published := view.losses(PUBLISHED):
        words += f" nanoGPT's own recipe comes to {published:.3f}; its README says 1.88."
    report.headline(
        words, [Fact(label=name, value=f"{losses[name]:.3f}", detail="nats a character") for name in ranked]
    )


def _models(report: Report, view: View) -> None:
    config = view.config
    looks = [look for look in config.looks if look < config.steps]
    rows: list[list[Any]] = []
    for family in (PUBLISHED, *config.families):
        networks, timed = view.networks(family), view.networks(family, timed=True)
        if not networks and not timed:
            rows.append([family, *[NOT_RUN] * (len(looks) + 9)])
            continue
        either = networks or timed
        pace = Values({place: row.result["milliseconds"] for place, row in enumerate([*networks, *timed])}).mean
        as_long = [f"{timed.first('steps'):,}", f"{view.losses(family, timed=True):.3f}"] if timed else ["", ""]
        rows.append(
            [
                *(family, len(networks), either.first("width")),
                f"{either.first('parameters.without_embeddings'):,}",
                f"{either.first('flops') / 1e6:.2f}",
                f"{pace:.0f}",
                f"{pace * config.steps / 1e3:,.0f}",
                *(f"{view.losses(family, after=look):.3f}" for look in looks),
                f"{view.losses(family):.3f}",
                *(["", ""] if family == PUBLISHED else as_long),
            ]
        )
    symbols, counted = view.counted("symbols"), view.counted("loss")
    for name, loss in (
        (f"{ORDER}-gram counts, Kneser-Ney", counted),
        ("chance", None if symbols is None else math.log(symbols)),
    ):
        words = NOT_RUN if loss is None else f"{loss:.3f}"
        rows.append([name, *[""] * (6 + len(looks)), words, "", ""])
    report.section(
        "Every model",
        "Loss on all of nanoGPT's validation part, the last tenth of the text, in nats a character: in excerpts side "
        f"by side, every character predicted from the 1 to {config.length} before it in its excerpt. nanoGPT itself "
        "draws excerpts at random. Nothing was chosen by this part. As much time: trained, with a whole schedule, for "
        "the processor time of GPT-2 instead of its characters.",
    ).table(
        [
            *("model", "seeds", "width", "parameters", "MFLOPs a character", "ms a step", "core-seconds"),
            *(f"after {look:,} steps" for look in looks),
            *(f"after {config.steps:,}", "steps in as much time", "loss"),
        ],
        rows,
        caption=f"Parameters without the tables of characters and positions. {config.depth} layers, {config.heads} "
        f"heads, {config.steps:,} steps of {config.batch_size} excerpts of {config.length} characters "
        f"({_millions(config)}). Operations are those of a forward pass; training takes three times as many. ms a "
        f"step: processor time of the shortest of seven training steps at the end, by which core-seconds of all "
        "steps are reckoned; steps in as much time follow from paces that were measured before, on untrained "
        "networks. ± one standard deviation over seeds where there are two; counts know all of the training part.",
    )


def _curves(report: Report, view: View) -> None:
    from unrolled.report import LineChart

    families = [family for family in (PUBLISHED, *view.config.families) if view.networks(family)]
    if not families:
        return

    def line(family: str, *, over_time: bool) -> Series:
        networks = view.networks(family)
        steps = [look["step"] for look in networks.first("curve")]
        pace = networks.values("milliseconds").mean / 1e3
        places = [step * pace if over_time else step for step in steps]
        return networks.curve(family, "curve", "loss", x=places, color=_PLACES[family])

    positions = list(range(1, view.config.length + 1))
    report.section("By characters, by time and by position").figure(
        [
            LineChart(
                title="validation loss (nats a character)",
                x_label="training step",
                series=[line(family, over_time=False) for family in families],
            ),
            LineChart(
                title="validation loss by time (nats a character)",
                x_label="core-seconds",
                series=[line(family, over_time=True) for family in families],
            ),
            LineChart(
                title="validation loss by position (nats a character)",
                x_label="characters before it",
                series=[
                    view.networks(family).curve(family, "by_position", x=positions, color=_PLACES[family])
                    for family in families
                ],
                log_x=True,
            ),
        ],
        name="curves",
        caption="Means over seeds. The rate falls along the whole of a curve, so that a point in its middle is worse "
        "than a training that ends there; the table has trainings that do.",
    )


def _trials(report: Report, view: View) -> None:
    config = view.config
    rows = []
    for family in config.families:
        networks = view.networks(family) or view.networks(family, timed=True)
        chosen = f"{networks.first('optimizer')}, {networks.first('rate'):g}" if networks else NOT_RUN
        rows.append([family, *(f"{loss:.3f}" for loss in view.trials(family)), chosen])
    tried = [*(f"AdamW, {rate:g}" for rate in config.adamw_rates), *(f"Muon, {rate:g}" for rate in config.muon_rates)]
    report.section(
        "What was chosen",
        f"Optimiser and peak rate, by {len(tried)} trials of {config.trial_steps} steps for every model alike, on the "
        f"last {config.tail:,} characters of the training part, which trials do not learn from. All else is nanoGPT's "
        "for all: weight decay 0.1, gradients clipped at norm 1, betas of 0.9 and 0.99, a twentieth of the steps for "
        "warming up and a cosine to a tenth of the peak, no dropout. Initial tables have a standard deviation of "
        f"{config.table_std:g}, in nanoGPT's recipe of 0.02.",
    ).table(["model", *tried, "chosen"], rows, caption="Loss at the end of a trial, nats a character.")


def _limits(report: Report, view: View) -> None:
    config = view.config
    seeds = {len(view.networks(family)) for family in config.families} - {0}
    report.section(
        "What this does not show",
        f"A million characters of text, contexts of {config.length} characters, minutes of training: what is learned "
        f"here is spelling, and how fast. Equal parameters are {operations(view)}, and unequal time: small "
        "matrices, Muon and above all MesaNet's solver cost more than their operations say, and the ratio is of this "
        "code on one thread. Every model has its own published frame; the pairs with and without the convolution say "
        "what that is worth in each. A rate that is best in its trials can be too high for the whole training: where "
        "two are level there, a row hangs on which was taken. "
        + ("Models with one seed have no error bar. " if 1 in seeds else "")
        + "nanoGPT's loss is of random excerpts, of which 240 have a standard error of "
        + _sampling(view)
        + ".",
    )


def operations(view: View) -> str:
    """How far apart the operations of the models are, in words."""
    flops = [rows.first("flops") for family in view.config.families if (rows := view.networks(family))]
    if not flops:
        return "not equal operations"
    return f"operations that differ by up to {100 * (max(flops) / min(flops) - 1):.0f} %"


def _sampling(view: View) -> str:
    deviation = view.counted("excerpt_deviation")
    return NOT_RUN if deviation is None else f"{deviation / 240**0.5:.3f} (by the spread of counts over excerpts)"


def _millions(config: CharactersConfig) -> str:
    return f"{config.steps * config.batch_size * config.length / 1e6:.3g} million"
