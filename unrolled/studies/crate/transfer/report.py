"""The page of `crate-transfer`: claims; fine-tuning beside scratch, probes beside untrained; rate, length, limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

from unrolled.studies.cells import Columns
from unrolled.studies.claim import CONTROL, Claim
from unrolled.studies.crate.transfer.cells import (
    HELD_OUT,
    FineTuned,
    Probed,
    TransferConfig,
    Transferred,
    network_columns,
)
from unrolled.studies.kinds import KINDS, MASKED
from unrolled.studies.networks import BATCH
from unrolled.studies.results import NOT_RUN, Results, Values

if TYPE_CHECKING:
    from unrolled.report import LineChart, Report, Series

TITLES = {"cifar10": "CIFAR-10", "fashion_mnist": "Fashion-MNIST", "digits-turned": "digits, turned"}


class View:
    """The results as the page reads them: accuracies in per cent by seed, on the first target unless another is named.

    Of what was not run there are no values.
    """

    def __init__(self, results: Results[Transferred], config: TransferConfig) -> None:
        self.results, self.config, self.target = results, config, config.targets[0]
        self.targets = [target for target in config.targets if results.where(target=target)]

    def tuned(
        self, kind: str, trained: bool = True, *, labels: str = "all", target: str = "", **columns: Any
    ) -> Results[FineTuned]:
        """Fine-tunings, at the usual rate and length unless `rate` or `steps` says otherwise."""
        usual = {"rate": self.config.rate, "steps": self.config.steps, "target": target or self.target}
        network = network_columns(self.config, kind, trained)
        return self.results.of(FineTuned, **{**usual, **network, "labels": labels, **columns})

    def accuracy(self, kind: str, trained: bool = True, **which: Any) -> Values:
        """After fine-tuning."""
        return 100 * self.tuned(kind, trained, **which).values("accuracy")

    def gain(self, kind: str, **which: Any) -> Values:
        """Fine-tuned less from scratch, points."""
        return self.accuracy(kind, True, **which) - self.accuracy(kind, False, **which)

    def probes(self, kind: str | None, trained: bool = True, *, target: str = "") -> Results[Probed]:
        """Probes of a network, or of the pixels where `kind` is None."""
        rows = self.results.of(Probed, target=target or self.target)
        if kind is None:
            return Results(row for row in rows if row.cell.network is None)
        columns = network_columns(self.config, kind, trained)
        of_networks = Results(row for row in rows if row.cell.network is not None)
        return of_networks.where(**columns)

    def probed(self, kind: str, trained: bool = True) -> Values:
        """Ridge with all labels."""
        return 100 * self.probes(kind, trained).values("ridge.all.accuracy")

    @property
    def chances(self) -> str:
        """What always naming the commonest class gives, for every target."""
        chances = {row.cell.target: row.result["chance"] for row in self.results}
        return ", ".join(f"{100 * value:.1f} % ({TITLES[target]})" for target, value in chances.items())


_NOT_FOUND = "no published value was found"


def claim(
    statement: str,
    value: Callable[[View], Values],
    *,
    low: float,
    published: str,
    source: str,
    detail: Callable[[View], str] = lambda view: "",
    control: Callable[[View], Values] | None = None,
    **judged: Any,
) -> Claim:
    """A claim on CIFAR-10, in points; ranges fixed before any result, 2 points being the error of 3,000 images.

    `judged`: see `Claim`.
    """

    def details(results: Results[Any], config: TransferConfig) -> str:
        view = View(results, config)
        return f"{detail(view)}; {value(view).count}"

    return Claim(
        statement=statement,
        source=source,
        published=published,
        value=lambda results, config: value(View(results, config)),
        low=low,
        spec="+.1f",
        detail=details,
        unless=lambda config: "" if config.targets[0] == "cifar10" else f"{NOT_RUN} on CIFAR-10",
        control=None if control is None else lambda results, config: control(View(results, config)),
        **judged,
    )


def sides(kind: str) -> Callable[[View], str]:
    """Both sides of a gain, in words."""
    return lambda view: f" ({view.accuracy(kind):.1f} % less {view.accuracy(kind, False):.1f} %)"


CLAIMS = (
    claim(
        "CRATE pretrained with labels, fine-tuned on CIFAR-10, is ahead of the same CRATE from scratch (points)",
        lambda view: view.gain("crate"),
        low=2.0,
        published="fine-tuned accuracy 95.5 % (T) to 97.2 % (L) after ImageNet-1k",
        source="arXiv 2306.01129, transfer table; from-scratch values are not in it",
        unjudged="the table has no value from scratch",
        detail=sides("crate"),
    ),
    claim(
        "Pretrained with labels and fine-tuned on CIFAR-10, CRATE is at most 3 points behind a ViT of as many "
        "parameters (points, CRATE less ViT)",
        lambda view: view.accuracy("crate") - view.accuracy("vit-48"),
        low=-3.0,
        published="96.8 - 97.2 = -0.4",
        source="arXiv 2306.01129, transfer table: CRATE-B, 22.8 M parameters, beside ViT-S, 22.1 M",
        outside="networks as far apart as a CRATE from scratch is from a pretrained one, 8 points",
        control=lambda view: view.accuracy("crate", False) - view.accuracy("vit-48", False),
        detail=lambda view: (
            "; beside a ViT of width 96, with more than three times the parameters, "
            f"{view.accuracy('crate') - view.accuracy('vit'):+.1f}"
        ),
    ),
    claim(
        "CRATE-MAE, fine-tuned on CIFAR-10, is ahead of the same network from scratch (points)",
        lambda view: view.gain("mae"),
        low=2.0,
        published="not found",
        source="what masked pretraining is for; neither the paper nor the book has fine-tuned values that we could "
        "read",
        unjudged=_NOT_FOUND,
        detail=sides("mae"),
    ),
    claim(
        "Masked pretraining of CRATE gains more where labels are few (gain with few less gain with all, points)",
        lambda view: view.gain("mae", labels="few") - view.gain("mae"),
        low=0.0,
        published="not found",
        source="the usual reason for pretraining without labels; no number in the paper or the book",
        unjudged=_NOT_FOUND,
        detail=lambda view: (
            f" ({view.gain('mae', labels='few'):+.1f} with {view.config.few} labels a class, "
            f"{view.gain('mae'):+.1f} with all)"
        ),
    ),
    claim(
        "A linear probe of CRATE-MAE's frozen features on CIFAR-10 is at most 7 points behind ViT-MAE's (points)",
        lambda view: view.probed("mae") - view.probed("vit-mae"),
        low=-7.0,
        published="-0.5 (S), -7.0 (B)",
        source="book on deep representation learning, MAE table: S 79.4 and 79.9 %, B 80.9 and 87.9 %, with half "
        "(S) and a third (B) of the ViT-MAE's parameters",
        outside="the features of an untrained ViT of that width, 9 points behind",
        control=lambda view: view.probed("mae", False) - view.probed("vit-mae"),
        detail=lambda view: (
            f" ({view.probed('mae'):.1f} less {view.probed('vit-mae'):.1f} %, equal parameters; untrained "
            f"{view.probed('mae', False):.1f} and {view.probed('vit-mae', False):.1f} %)"
        ),
    ),
    claim(
        "CRATE-MAE's frozen features are ahead of the untrained network's (linear probe, CIFAR-10, points)",
        lambda view: view.probed("mae") - view.probed("mae", False),
        low=2.0,
        published="not found",
        source="implied by the same table; the control is not in it",
        unjudged=CONTROL,
    ),
)


def report(report: Report, config: TransferConfig, results: Results[Transferred]) -> None:
    """Headline, budgets, fine-tuning, probes, the rate, the length, limits."""
    from unrolled.report import Fact

    view = View(results, config)
    parts = [
        f"{KINDS[kind].words}, {'masked' if kind in MASKED else 'supervised'}, {view.accuracy(kind):.1f} % (scratch "
        f"{view.accuracy(kind, False):.1f} %) and {view.accuracy(kind, steps=config.longer):.1f} % "
        f"({view.accuracy(kind, False, steps=config.longer):.1f} %)"
        for kind in ("crate", "mae", "vit-mae")
        if kind in config.kinds
    ]
    report.headline(
        f"After {config.steps} and {config.longer} steps of fine-tuning on {TITLES[view.target]}: {'; '.join(parts)}.",
        [
            Fact(
                label=f"Gain of {KINDS[kind].words}, {amount}",
                value=f"{view.gain(kind, labels=labels):+.1f} points",
                detail=f"{TITLES[view.target]}, fine-tuned less from scratch",
            )
            for kind in ("crate", "mae")
            for labels, amount in (("all", "all labels"), ("few", f"{config.few} labels a class"))
        ],
    )
    _budget(report, config)
    _fine_tuning(report, view)
    _probes(report, view)
    _rate(report, view)
    _length(report, view)
    _limits(report, config)


def _budget(report: Report, config: TransferConfig) -> None:
    seen = network_columns(config, "crate", True)["images"]
    report.section(
        "Budgets",
        f"Every network saw {seen:,} images of {config.source} in pretraining, supervised ones with their labels, "
        f"masked ones without. Fine-tuning is the same for all: {config.steps} steps of {BATCH} images "
        f"({config.steps * BATCH:,} in all, with few labels the same ones again and again), every weight trained, "
        f"AdamW with peak rate {config.rate:g}, shifts and mirror images (of digits none). From scratch means the same "
        "network, untrained, with the same batches. Supervised networks read the class token, masked ones and their "
        f"untrained counterparts the mean of all tokens. Accuracies are on the first {config.test_images:,} test "
        "images; by none of them was anything chosen. Their standard error, from sampling of test images alone, is up "
        f"to {50 / config.test_images**0.5:.1f} points.",
    )


def _names(kind: str) -> list[str]:
    return [KINDS[kind].words, "masked" if kind in MASKED else "labels"]


def _fine_tuning(report: Report, view: View) -> None:
    config, amount = view.config, f"{view.config.few} a class"
    rows: list[list[Any]] = []
    for target, kind in product(config.targets, config.kinds):
        sizes = view.tuned(kind, target=target).values("parameters")
        row = [TITLES[target], *_names(kind), f"{sizes.mean:,.0f}" if sizes else NOT_RUN, len(sizes) or NOT_RUN]
        for labels in ("all", "few"):
            row += [f"{view.accuracy(kind, state, target=target, labels=labels):.1f}" for state in (True, False)]
            row.append(f"{view.gain(kind, target=target, labels=labels):+.1f}")
        rows.append(row)
    section = report.section("Fine-tuned").table(
        [
            *("target", "network", "pretrained with", "parameters", "seeds", "all labels, %", "scratch", "gain"),
            *(f"{amount}, %", "scratch", "gain"),
        ],
        rows,
        caption="Test accuracy after fine-tuning, from pretrained weights and from scratch; gains in points. "
        f"Chance: {view.chances}. Mean and standard deviation where there is more than one seed. CRATE-MAE "
        "visible only and CRATE-MAE are the same network from scratch.",
    )
    panels = [
        _lines(
            f"training loss, {TITLES[target]}, {'all labels' if labels == 'all' else f'{config.few} labels a class'}",
            "step",
            ("crate", "mae", "vit-mae"),
            "scratch",
            partial(view.tuned, target=target, labels=labels),
            lambda rows, label, **style: rows.curve(label, "curve", "loss", **style),
        )
        for target, labels in product(view.targets, ("all", "few"))
    ]
    if panels := [panel for panel in panels if panel.series]:
        section.figure(
            panels,
            name="curves",
            caption="Training loss in fine-tuning, nats, mean over the tenth of the steps before each point. Dotted: "
            "from scratch.",
        )


def _lines(
    title: str,
    x_label: str,
    kinds: Sequence[str],
    control: str,
    rows_of: Callable[[str, bool], Results[Any]],
    curve: Callable[..., Series],
) -> LineChart:
    """One line a network that was run, dotted for its control."""
    from unrolled.report import LineChart

    series = []
    for (place, kind), trained in product(enumerate(kinds), (True, False)):
        if rows := rows_of(kind, trained):
            label = KINDS[kind].words.removesuffix(" of width 48") + ("" if trained else f", {control}")
            series.append(curve(rows, label, color=place, dashed=not trained))
    return LineChart(title=title, x_label=x_label, series=series)


def _probes(report: Report, view: View) -> None:
    config = view.config
    columns = [(method, amount) for amount in ("all", "few") for method in ("ridge", "knn")]
    # without pretraining, what the encoder is shown makes no difference
    networks = [(kind, state) for kind in config.kinds for state in (True, False) if state or kind != "mae-visible"]
    rows: list[list[Any]] = []
    for target, (kind, state) in product(config.targets, [*networks, (None, False)]):
        probes = view.probes(kind, state, target=target)
        if kind is None:
            names = ["pixels, half the side", ""]
        else:
            names = [KINDS[kind].words, _names(kind)[1] if state else "untrained"]
        sites = ", ".join(sorted({row.result["ridge"]["all"]["site"] for row in probes})) or NOT_RUN
        scores = [f"{100 * probes.values(f'{method}.{amount}.accuracy'):.1f}" for method, amount in columns]
        rows.append([TITLES[target], *names, sites, *scores])
    used = view.probes(None).first("labels_used", {"all": 0, "few": 0})
    section = report.section(
        "Frozen features",
        "Ridge regression to one-hot labels, and the 20 nearest neighbours by cosine, on the output of one block: its "
        "class token or the mean of its patches. Block, pooling and penalty are chosen for each row and column on "
        f"{100 * HELD_OUT:.0f} % of the training images and never on test images. Masked autoencoders see whole "
        "images. The untrained network and the pixels say how much of an accuracy needs no pretraining.",
    ).table(
        [
            *("target", "network", "pretrained with", "block chosen (ridge)"),
            *(f"{'20-NN' if method == 'knn' else method}, {used[amount]:,} labels, %" for method, amount in columns),
        ],
        rows,
        caption=f"Test accuracy. Chance: {view.chances}.",
    )
    panels = [
        _lines(
            f"ridge accuracy, %, {TITLES[target]}",
            "block",
            ("crate", "vit-48", "vit", "mae", "vit-mae"),
            "untrained",
            partial(view.probes, target=target),
            _by_block,
        )
        for target in view.targets
    ]
    if panels := [panel for panel in panels if panel.series]:
        section.figure(
            panels,
            name="layers",
            caption="Test accuracy of ridge probes on the mean of the patches after each block, all labels of the "
            "probe images. Dotted: untrained.",
        )


def _by_block(rows: Results[Probed], label: str, **style: Any) -> Series:
    sites = [site for site in rows.first("ridge.all.sites") if site.endswith("mean")]
    line = rows.curve(label, "ridge.all.sites", sites, x=[int(site.split()[0]) for site in sites], **style)
    return line.scaled(100)


def _rate(report: Report, view: View) -> None:
    config, seed = view.config, view.config.seeds[0]
    report.section("Does the learning rate decide?").table(
        ["peak rate", "CRATE, pretrained, %", "CRATE, scratch, %", "CRATE-MAE, %", "gain of CRATE"],
        [
            [
                f"{rate:g}" + " (everywhere else)" * (rate == config.rate),
                *(f"{view.accuracy('crate', state, rate=rate, seed=seed):.1f}" for state in (True, False)),
                f"{view.accuracy('mae', rate=rate, seed=seed):.1f}",
                f"{view.gain('crate', rate=rate, seed=seed):+.1f}",
            ]
            for rate in sorted({config.rate, *config.rates})
        ],
        caption=f"Fine-tuned on {TITLES[view.target]} with all labels, one seed. One rate for all cannot be best for "
        "all; a conclusion that changes along this table is one about the rate.",
    )


def _length(report: Report, view: View) -> None:
    config, seed = view.config, view.config.seeds[0]
    rows = []
    for target, kind in product(view.targets, [kind for kind in config.longer_kinds if kind in config.kinds]):
        row = [TITLES[target], *_names(kind)]
        for steps in (config.steps, config.longer):
            which: Columns = {"target": target, "steps": steps, "seed": seed}
            row += [f"{view.accuracy(kind, state, **which):.1f}" for state in (True, False)]
            row.append(f"{view.gain(kind, **which):+.1f}")
        rows.append(row)
    short, long = (f"{steps * BATCH:,}" for steps in (config.steps, config.longer))
    report.section("Does the length decide?").table(
        [
            *("target", "network", "pretrained with"),
            *(f"{short} images, %", "scratch", "gain", f"{long}, %", "scratch", "gain"),
        ],
        rows,
        caption=f"Fine-tuned with all labels, one seed, for {config.steps} steps as everywhere else and for "
        f"{config.longer}. Gains in points. What scratch makes up for in the longer run was a head start.",
    )


def _limits(report: Report, config: TransferConfig) -> None:
    section = report.section(
        "What this does not show",
        "The published numbers are of networks of 5 to 80 million parameters, at 224 pixels, pretrained on 1.3 million "
        "images or more for hundreds of passes and fine-tuned for up to 200; here they have 0.1 to 0.5 million, see "
        "32 pixels and the few images that are said under Budgets. Only signs and orders can be compared, not values. "
        "So short a fine-tuning favours whatever starts near a solution, and even the longer one does not say that "
        "scratch would not catch up. Masked pretraining is known to need far more passes than supervised pretraining, "
        "and equal images are not equal costs: an autoencoder also runs a decoder. Networks differ in parameters where "
        "the table says so. With one seed, a few points may be chance.\n\n"
        "Reconstruction loss and pictures of CRATE-MAE beside a ViT-MAE of as many parameters are the subject of the "
        "study `crate-mae-layers`.",
    )
    if config.source == "digits":
        section.text("Source and target are the same digits, turned: this checks the machinery and no claim.")
