"""The page of `crate-transfer`: claims, fine-tuning and probes beside scratch and untrained, the rate, limits."""

from __future__ import annotations

import time
from statistics import fmean
from typing import TYPE_CHECKING, Any

from unrolled.studies.crate_members import KINDS, MASKED, images_seen
from unrolled.studies.crate_transfer import (
    AGAINST_VIT,
    FEW_LABELS,
    PROBED,
    SUPERVISED,
    UNTRAINED,
    Config,
)
from unrolled.studies.crate_transfer import (
    MASKED as MASKED_CLAIM,
)
from unrolled.studies.crate_transfer_cells import BATCH, HELD_OUT, Job, member_of, untrained_kind

if TYPE_CHECKING:
    from unrolled.report import Claim, Report
    from unrolled.studies.base import Expectation

_NOT_RUN = "not run"
_TITLES = {"cifar10": "CIFAR-10", "fashion_mnist": "Fashion-MNIST", "digits-turned": "digits, turned"}


class Found:
    """Looks up cells; every accessor returns one value a seed, in per cent, and none where a cell was not run."""

    def __init__(self, config: Config, results: dict[str, Any]) -> None:
        self.config = config
        self.cells: list[dict[str, Any]] = results["cells"]

    def of(self, what: str, target: str, kind: str, trained: bool, **where: Any) -> dict[int, dict[str, Any]]:
        """Seed -> cell."""
        want = {"what": what, "target": target, "kind": kind, "trained": trained, **where}
        return {c["seed"]: c for c in self.cells if all(c[key] == value for key, value in want.items())}

    def tuned(
        self, target: str, kind: str, trained: bool, few: bool = False, rate: float | None = None, steps: int = 0
    ) -> dict[int, float]:
        """Seed -> accuracy after fine-tuning."""
        rate = self.config.rate if rate is None else rate
        kind = kind if trained else untrained_kind(kind)
        found = self.of("finetune", target, kind, trained, few=few, rate=rate, steps=steps)
        return {seed: 100 * cell["accuracy"] for seed, cell in found.items()}

    def probed(self, target: str, kind: str, trained: bool, method: str, amount: str) -> dict[int, float]:
        """Seed -> accuracy of a probe."""
        kind = kind if trained else untrained_kind(kind)
        found = self.of("pixels" if kind == "pixels" else "probe", target, kind, trained)
        return {seed: 100 * cell[method][amount]["accuracy"] for seed, cell in found.items()}

    def gain(self, target: str, kind: str, few: bool = False) -> dict[int, float]:
        """Seed -> fine-tuned accuracy less from scratch, points."""
        return less(self.tuned(target, kind, True, few), self.tuned(target, kind, False, few))


def less(one: dict[int, float], other: dict[int, float]) -> dict[int, float]:
    """The difference, seed by seed."""
    return {seed: value - other[seed] for seed, value in one.items() if seed in other}


def shown(values: dict[int, float], *, sign: bool = False) -> str:
    """Mean and deviation over seeds."""
    from unrolled.report import mean_std

    if not values:
        return _NOT_RUN
    text = mean_std(list(values.values()))
    return f"+{text}" if sign and not text.startswith("-") else text


def build_report(config: Config, results: dict[str, Any], began: float) -> Report:
    """Judge and lay out the results of `unrolled.studies.crate_transfer.run`."""
    from unrolled.report import Fact, Provenance, Report

    found = Found(config, results)
    target = results["targets"][0]
    title = _TITLES[target]
    report = Report(
        "Transfer of CRATE and CRATE-MAE",
        question=f"Does pretraining on {config.source}, with labels or by masking, help on other images, and whom?",
    )
    report.claims = _claims(found, target)
    parts = []
    for kind in ("crate", "mae", "vit-mae"):
        if kind in config.kinds:
            how = "masked" if kind in MASKED else "supervised"
            parts.append(
                f"{KINDS[kind].words}, {how}, {shown(found.tuned(target, kind, True))} % (scratch "
                f"{shown(found.tuned(target, kind, False))} %) and "
                f"{shown(found.tuned(target, kind, True, steps=config.longer))} % "
                f"({shown(found.tuned(target, kind, False, steps=config.longer))} %)"
            )
    report.headline(
        f"After {config.steps} and {config.longer} steps of fine-tuning on {title}: {'; '.join(parts)}.",
        [
            Fact(
                label=f"Gain of {KINDS[kind].words}, {amount}",
                value=f"{shown(found.gain(target, kind, few), sign=True)} points",
                detail=f"{title}, fine-tuned less from scratch",
            )
            for kind in ("crate", "mae")
            for few, amount in ((False, "all labels"), (True, f"{config.few} labels a class"))
        ],
    )
    _budget(report, config, results)
    _fine_tuning(report, found, results)
    _probes(report, found, results)
    _rates(report, found, target)
    _longer(report, found, results)
    _limits(report, config)
    report.results = results
    report.provenance = Provenance.collect(config=config, seeds=config.seeds, duration=time.perf_counter() - began)
    return report


def _claims(found: Found, target: str) -> list[Claim]:
    """Claims name CIFAR-10; on any other first target nothing is judged."""

    def judge(expected: Expectation, values: dict[int, float], more: str = "") -> Claim:
        from unrolled.report import Claim

        if values and target == "cifar10":
            more += f"; {len(values)} seed{'s' * (len(values) > 1)}"
            return expected.judge(fmean(values.values()), shown(values, sign=True) + more)
        measured = f"{_NOT_RUN} on CIFAR-10" if target != "cifar10" else _NOT_RUN + more
        return Claim(
            statement=expected.statement, source=expected.source, published=expected.published, measured=measured
        )

    def sides(kind: str, few: bool = False) -> str:
        one, other = (shown(found.tuned(target, kind, state, few)) for state in (True, False))
        return f" ({one} % less {other} %)"

    def masked_probe(kind: str, trained: bool = True) -> dict[int, float]:
        return found.probed(target, kind, trained, "ridge", "all")

    crate = found.tuned(target, "crate", True)
    wide = less(crate, found.tuned(target, "vit", True))
    gains = {few: found.gain(target, "mae", few) for few in (False, True)}
    return [
        judge(SUPERVISED, found.gain(target, "crate"), sides("crate")),
        judge(
            AGAINST_VIT,
            less(crate, found.tuned(target, "vit-48", True)),
            f"; beside a ViT of width 96, with more than three times the parameters, {shown(wide, sign=True)}",
        ),
        judge(MASKED_CLAIM, gains[False], sides("mae")),
        judge(
            FEW_LABELS,
            less(gains[True], gains[False]),
            f" ({shown(gains[True], sign=True)} with {found.config.few} labels a class, "
            f"{shown(gains[False], sign=True)} with all)",
        ),
        judge(
            PROBED,
            less(masked_probe("mae"), masked_probe("vit-mae")),
            f" ({shown(masked_probe('mae'))} less {shown(masked_probe('vit-mae'))} %, equal parameters; untrained "
            f"{shown(masked_probe('mae', False))} and {shown(masked_probe('vit-mae', False))} %)",
        ),
        judge(UNTRAINED, less(masked_probe("mae"), masked_probe("mae", False))),
    ]


def _budget(report: Report, config: Config, results: dict[str, Any]) -> None:
    seen = {images_seen(config, member_of(config, Job("probe", k, True, 0, ""))) for k in config.kinds}
    text = (
        f"Every member saw {max(seen):,} images of {config.source} in pretraining, supervised ones with their labels, "
        f"masked ones without. Fine-tuning is the same for all: {config.steps} steps of {BATCH} images "
        f"({config.steps * BATCH:,} in all, with few labels the same ones again and again), every weight trained, "
        f"AdamW with peak rate {config.rate:g}, shifts and mirror images (of digits none). From scratch means the same "
        "network, untrained, with the same batches. Supervised networks read the class token, masked ones and their "
        f"untrained counterparts the mean of all tokens. Accuracies are on the first {config.test_images:,} test "
        "images; by none of them was anything chosen. Their standard error, from sampling of test images alone, is up "
        f"to {50 / config.test_images**0.5:.1f} points."
    )
    missing = results["missing_members"]
    if missing:
        text += f"\n\nNot kept in the roster, and so not run: {', '.join(missing)}."
    if results["missing_targets"]:
        text += f"\n\nImages not found, and so not run: {', '.join(results['missing_targets'])}."
    report.section("Budgets", text)


def _how(kind: str) -> str:
    return "masked" if kind in MASKED else "labels"


def _fine_tuning(report: Report, found: Found, results: dict[str, Any]) -> None:
    from unrolled.report import LineChart, Series

    config = found.config
    rows: list[list[Any]] = []
    for target in config.targets:
        for kind in config.kinds:
            cells = found.of("finetune", target, kind, True, few=False, rate=config.rate, steps=0)
            size = f"{next(iter(cells.values()))['parameters']:,}" if cells else _NOT_RUN
            row = [_TITLES[target], KINDS[kind].words, _how(kind), size, len(cells) or _NOT_RUN]
            for few in (False, True):
                row += [shown(found.tuned(target, kind, state, few)) for state in (True, False)]
                row.append(shown(found.gain(target, kind, few), sign=True))
            rows.append(row)
    amount = f"{config.few} a class"
    section = report.section("Fine-tuned").table(
        [
            *("target", "network", "pretrained with", "parameters", "seeds"),
            *("all labels, %", "scratch", "gain"),
            *(f"{amount}, %", "scratch", "gain"),
        ],
        rows,
        caption="Test accuracy after fine-tuning, from pretrained weights and from scratch; gains in points. "
        f"Chance: {_chances(results)}. Mean and standard deviation where there is more than one seed. CRATE-MAE "
        "visible only and CRATE-MAE are the same network from scratch.",
    )
    panels = []
    for target in results["targets"]:
        for few_labels in (False, True):
            series = []
            for i, kind in enumerate(k for k in ("crate", "mae", "vit-mae") if k in config.kinds):
                for state in (True, False):
                    name = kind if state else untrained_kind(kind)
                    cells = found.of("finetune", target, name, state, few=few_labels, rate=config.rate, steps=0)
                    if cells:
                        curves = [cell["curve"] for cell in cells.values()]
                        label = KINDS[kind].words.removesuffix(" of width 48") + ("" if state else ", scratch")
                        series.append(
                            Series(
                                label=label,
                                x=[point["step"] for point in curves[0]],
                                y=[fmean(c[j]["loss"] for c in curves) for j in range(len(curves[0]))],
                                color=i,
                                dashed=not state,
                            )
                        )
            if series:
                words = f"{config.few} labels a class" if few_labels else "all labels"
                panels.append(
                    LineChart(title=f"training loss, {_TITLES[target]}, {words}", x_label="step", series=series)
                )
    if panels:
        section.figure(
            panels,
            name="curves",
            caption="Training loss in fine-tuning, nats, mean over the tenth of the steps before each point. Dashed: "
            "from scratch.",
        )


def _chances(results: dict[str, Any]) -> str:
    found = {c["target"]: c["chance"] for c in results["cells"]}
    return ", ".join(f"{100 * value:.1f} % ({_TITLES[target]})" for target, value in found.items())


def _probes(report: Report, found: Found, results: dict[str, Any]) -> None:
    from unrolled.report import LineChart, Series

    config = found.config
    amounts = next((c["labels"] for c in found.cells if c["what"] == "pixels"), {"all": 0, "few": 0})
    columns = [(method, amount) for amount in ("all", "few") for method in ("ridge", "knn")]
    rows: list[list[Any]] = []
    for target in config.targets:
        for kind in (*config.kinds, "pixels"):
            for state in (False,) if kind == "pixels" else (True, False):
                name = kind if state else untrained_kind(kind)
                cells = found.of("pixels" if kind == "pixels" else "probe", target, name, state)
                if kind == "mae-visible" and not state:
                    continue  # the row of CRATE-MAE
                words = "pixels, half the side" if kind == "pixels" else KINDS[kind].words
                weights = "" if kind == "pixels" else f"{_how(kind)}" if state else "untrained"
                sites = {cell["ridge"]["all"]["site"] for cell in cells.values()}
                where = ", ".join(sorted(sites)) if sites else _NOT_RUN
                rows.append(
                    [
                        *(_TITLES[target], words, weights, where),
                        *(shown(found.probed(target, kind, state, method, amount)) for method, amount in columns),
                    ]
                )
    section = report.section(
        "Frozen features",
        "Ridge regression to one-hot labels, and the 20 nearest neighbours by cosine, on the output of one block: its "
        "class token or the mean of its patches. Block, pooling and penalty are chosen for each row and column on "
        f"{100 * HELD_OUT:.0f} % of the training images and never on test images. Masked autoencoders see whole "
        "images. The untrained network and the pixels say how "
        "much of an accuracy needs no pretraining.",
    ).table(
        [
            *("target", "network", "pretrained with", "block chosen (ridge)"),
            *(f"{'20-NN' if m == 'knn' else m}, {amounts[a]:,} labels, %" for m, a in columns),
        ],
        rows,
        caption=f"Test accuracy. Chance: {_chances(results)}.",
    )
    panels = []
    for target in results["targets"]:
        series = []
        for i, kind in enumerate(k for k in ("crate", "vit-48", "vit", "mae", "vit-mae") if k in config.kinds):
            for state in (True, False):
                cells = found.of("probe", target, kind, state)
                if cells:
                    points = [cell["ridge"]["all"]["sites"] for cell in cells.values()]
                    depths = [site for site in points[0] if site.endswith("mean")]
                    label = KINDS[kind].words.removesuffix(" of width 48")
                    series.append(
                        Series(
                            label=label if state else f"{label}, untrained",
                            x=[int(site.split()[0]) for site in depths],
                            y=[100 * fmean(p[site] for p in points) for site in depths],
                            color=i,
                            dashed=not state,
                        )
                    )
        if series:
            panels.append(LineChart(title=f"ridge accuracy, %, {_TITLES[target]}", x_label="block", series=series))
    if panels:
        section.figure(
            panels,
            name="layers",
            caption="Test accuracy of ridge probes on the mean of the patches after each block, all labels of the "
            "probe images. Dashed: untrained.",
        )


def _rates(report: Report, found: Found, target: str) -> None:
    config = found.config
    rows = []
    for rate in sorted({config.rate, *config.rates}):
        crate, scratch, mae = (
            found.tuned(target, kind, state, rate=rate)
            for kind, state in (("crate", True), ("crate", False), ("mae", True))
        )
        first = {seed: value for seed, value in crate.items() if seed == config.seeds[0]}
        rows.append(
            [
                f"{rate:g}" + (" (everywhere else)" if rate == config.rate else ""),
                *(shown({s: v for s, v in part.items() if s == config.seeds[0]}) for part in (crate, scratch, mae)),
                shown(less(first, scratch), sign=True),
            ]
        )
    report.section("Does the learning rate decide?").table(
        ["peak rate", "CRATE, pretrained, %", "CRATE, scratch, %", "CRATE-MAE, %", "gain of CRATE"],
        rows,
        caption=f"Fine-tuned on {_TITLES[target]} with all labels, one seed. One rate for all cannot be best for all; "
        "a conclusion that changes along this table is one about the rate.",
    )


def _longer(report: Report, found: Found, results: dict[str, Any]) -> None:
    config, rows, first = found.config, list[list[Any]](), found.config.seeds[0]
    for target in results["targets"]:
        for kind in (kind for kind in config.longer_kinds if kind in config.kinds):
            row = [_TITLES[target], KINDS[kind].words, _how(kind)]
            for steps in (0, config.longer):
                both = (found.tuned(target, kind, state, steps=steps) for state in (True, False))
                one, other = ({seed: value for seed, value in values.items() if seed == first} for values in both)
                row += [shown(one), shown(other), shown(less(one, other), sign=True)]
            rows.append(row)
    short, long = (f"{steps * BATCH:,}" for steps in (config.steps, config.longer))
    report.section("Does the length decide?").table(
        [
            "target",
            "network",
            "pretrained with",
            f"{short} images, %",
            "scratch",
            "gain",
            f"{long}, %",
            "scratch",
            "gain",
        ],
        rows,
        caption=f"Fine-tuned with all labels, one seed, for {config.steps} steps as everywhere else and for "
        f"{config.longer}. Gains in points. What scratch makes up for in the longer run was a head start.",
    )


def _limits(report: Report, config: Config) -> None:
    report.section(
        "What this does not show",
        "The published numbers are of networks of 5 to 80 million parameters, at 224 pixels, pretrained on 1.3 million "
        "images or more for hundreds of passes and fine-tuned for up to 200; here they have 0.1 to 0.5 million, see "
        "32 pixels and the few images that are said under Budgets. Only signs and orders can be "
        "compared, not values. So short a fine-tuning favours whatever starts near a solution, and even "
        "the longer one does not say that scratch would not catch up. Masked pretraining is known to need far more "
        "passes than supervised pretraining, and equal images are not equal costs: an autoencoder also runs a decoder. "
        "Networks differ in parameters where the table says so. With one seed, a few points may be chance.\n\n"
        "Reconstruction loss and pictures of CRATE-MAE beside a ViT-MAE of as many parameters are the subject of the "
        "study `crate-mae-layers`."
        + (
            "\n\nThis is the quick budget: source and target are the same digits, turned, so it checks the machinery "
            "and no claim."
            if config.source == "digits"
            else ""
        ),
    )
