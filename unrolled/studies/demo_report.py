"""The page the demo writes: from the outcomes of its runs to a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from unrolled.report import (
    Fact,
    ImageGrid,
    ImageRow,
    Provenance,
    Report,
    heat,
    learning_curves,
    mean_std,
    trace_section,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from unrolled.studies.demo import Attention, Config, Outcome

Outcomes = Mapping[str, Sequence["Outcome"]]


def build(config: Config, outcomes: Outcomes, *, seconds: float) -> Report:
    """The report of all runs; `outcomes` holds one entry per seed for every model, in the order of `config.models`."""
    from unrolled.studies.demo import EXPECTED

    labels = _labels(list(outcomes))
    report = Report(
        f"{' and '.join(labels.values())} on handwritten digits",
        question="Does a transformer whose layers are steps of sparse rate reduction learn as well as a plain one, and "
        "what does each of its layers do?",
    )
    _headline(report, outcomes, labels)
    white_box = [model for model in outcomes if model.startswith("crate")]
    if white_box:
        accuracies = [run.accuracy for run in outcomes[white_box[0]]]
        report.claims.append(EXPECTED.judge(fmean(accuracies), f"{mean_std(accuracies, scale=100)} %"))
    _result(report, config, outcomes, labels)
    report.section("Learning curves").figure(
        learning_curves({labels[model]: [run.metrics for run in runs] for model, runs in outcomes.items()}),
        name="curves",
        caption=f"{_over(config)} Validation images are {100 * config.val_fraction:g} % of the training images, held "
        "out for these curves only: the last weights were tested. The training loss is averaged since the last point; "
        "dotted lines are the validation loss.",
    )
    traces = {labels[model]: [run.trace for run in runs] for model, runs in outcomes.items()}
    trace_section(report, traces, images="test images")
    _attention(report, config, outcomes, labels)
    report.results = {
        labels[model]: {
            "model": model,
            "parameters": runs[0].parameters,
            "test_accuracy": [run.accuracy for run in runs],
            "test_accuracy_mean": fmean(run.accuracy for run in runs),
            "test_images": runs[0].images,
            "images_per_second": [run.images_per_second for run in runs],
            "seconds": [run.seconds for run in runs],
            "trace": [run.trace for run in runs],
        }
        for model, runs in outcomes.items()
    }
    report.provenance = Provenance.collect(config=config, seeds=config.seeds, duration=seconds)
    return report


def _labels(models: Sequence[str]) -> dict[str, str]:
    """Short names of the models where these are unambiguous."""
    short = {"crate": "CRATE", "vit": "ViT"}
    families = [model.split("_")[0] for model in models]
    return {
        model: short[family] if family in short and families.count(family) == 1 else model
        for model, family in zip(models, families, strict=True)
    }


def _over(config: Config) -> str:
    if len(config.seeds) == 1:
        return "One seed."
    return f"Mean over {len(config.seeds)} seeds; bars are one standard deviation."


def _million(count: int) -> str:
    return f"{count / 1e6:.2f} M"


def _headline(report: Report, outcomes: Outcomes, labels: Mapping[str, str]) -> None:
    said, facts = [], []
    for model, runs in outcomes.items():
        accuracy = f"{mean_std([run.accuracy for run in runs], scale=100)} %"
        said.append(
            f"{labels[model]} reaches {accuracy} on unseen digits with {_million(runs[0].parameters)} parameters"
        )
        seeds = f"{len(runs)} seeds" if len(runs) > 1 else "1 seed"
        facts.append(
            Fact(label=f"{labels[model]} test accuracy", value=accuracy, detail=f"{seeds}, {runs[0].images} images")
        )
    for model, runs in outcomes.items():
        speed = fmean(run.images_per_second for run in runs)
        facts.append(
            Fact(
                label=f"{labels[model]} parameters",
                value=_million(runs[0].parameters),
                detail=f"trains at {speed:,.0f} images/s on one core",
            )
        )
    report.headline("; ".join(said) + ".", facts)


def _result(report: Report, config: Config, outcomes: Outcomes, labels: Mapping[str, str]) -> None:
    rows: list[list[str | float]] = [
        [
            labels[model],
            mean_std([100 * run.accuracy for run in runs], digits=2),
            f"{100 * min(run.accuracy for run in runs):.2f}",
            runs[0].parameters,
            mean_std([run.images_per_second for run in runs], digits=0),
            mean_std([run.seconds for run in runs]),
        ]
        for model, runs in outcomes.items()
    ]
    several = f"Mean ± standard deviation over {len(config.seeds)} seeds. " if len(config.seeds) > 1 else ""
    report.section(
        "The result",
        "Same width, depth, recipe, images and seeds for all. The images are 8 x 8 pixels, cut into 16 patches of "
        f"2 x 2. The recipe was chosen for CRATE on validation images; its {config.epochs:g} epochs are a short "
        "budget, which favours what learns fast. Each run looked at the test images once, after training.",
    ).table(
        ["model", "test accuracy (%)", "worst seed (%)", "parameters", "training (images/s)", "run (s)"],
        rows,
        caption=f"{several}Speed and time are of one core while the others were busy with other runs.",
    )


def _attention(report: Report, config: Config, outcomes: Outcomes, labels: Mapping[str, str]) -> None:
    section = report.section(
        "Where the class token looks",
        "The prediction is read from the class token. These maps show how much of its attention goes to each of the "
        "image's patches. In CRATE it is shared by how alike two tokens are in the subspace of a head, in ViT by query "
        "and key.",
    )
    pictures = {labels[model]: runs[0].attention for model, runs in outcomes.items()}
    own = "Every map runs from dark, its own smallest value, to light, its largest."
    section.figure(
        _panels(pictures, lambda found: found.maps[max(len(found.maps) - 2, 0)], "head"),
        name="attention-heads",
        caption="Attention of the class token, head by head, in the last layer but one. The first test image of each "
        f"of six classes; seed {config.seeds[0]}. {own}",
    )
    section.figure(
        _panels(pictures, lambda found: found.maps.mean(1), "layer", count=4),
        name="attention-layers",
        caption=f"Attention of the class token, averaged over heads, in every layer; seed {config.seeds[0]}. {own}",
    )


def _panels(
    pictures: Mapping[str, Sequence[Attention]],
    pick: Callable[[Attention], NDArray[np.float32]],
    unit: str,
    *,
    count: int | None = None,
) -> list[ImageGrid]:
    """One panel for each image: a row for each model, with the image and the maps `pick` takes, [n, rows, columns]."""
    panels = []
    for same in list(zip(*pictures.values(), strict=True))[:count]:
        rows = []
        for label, found in zip(pictures, same, strict=True):
            maps = pick(found)
            names = ["image", *(f"{unit} {i}" if len(maps) < 5 else str(i) for i in range(len(maps)))]
            said = label if found.guess == found.label else f"{label}, which reads it as {found.guess}"
            rows.append(ImageRow(label=said, images=[found.image, *map(heat, maps)], names=names))
        title = f"Digit {same[0].label}"
        models = " and ".join(pictures)
        alt = f"A handwritten {same[0].label} and, for {models}, maps of the class token's attention to it."
        panels.append(ImageGrid(title=title, rows=rows, alt=alt))
    return panels
