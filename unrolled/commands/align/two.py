"""`unrolled align`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from unrolled.commands.align.dependence import Dependence, dependence, noted
from unrolled.commands.align.options import AlignOptions, metrics_of
from unrolled.commands.align.report import align_report, p_value_note, score_table
from unrolled.commands.align.sides import features_of, stem
from unrolled.commands.align.twins import Twin, untrained_twins
from unrolled.commands.align.words import run_words
from unrolled.commands.options import verb
from unrolled.harness import Run
from unrolled.subjects.models import choose_device
from unrolled.terminal import progress, say, table

if TYPE_CHECKING:
    import torch
    from numpy import ndarray
    from torch import Tensor

    from unrolled.alignment import Comparison, Metric

    Features = Mapping[str, Tensor | ndarray]


@verb
def align(options: AlignOptions) -> None:
    """How far two representations of the same samples agree, and whether that is more than chance.

    Every layer of A is compared with every layer of B; the best pair is judged against the best pairs of randomly
    paired samples, which corrects for the search. Features of models stay in the folder and are used again.

        unrolled align runs/crate runs/vit --metric mutual_knn --metric cka
        unrolled align runs/crate timm:resnet18 --pretrained --layers-b "layer*"
        unrolled align features/crate features/vit --k 20
        unrolled align images.npy captions.npy --null moments
        unrolled align timm:resnet18 hf:ORG/NAME --pretrained --data wit --layers "layer*" --layers-b "block*"
        unrolled align given:mobilenet_v1_075 given:minilm --data flickr8k --split all --data-dir data

    Above 50,000 samples mutual_knn is estimated from 1,024 of them as queries against all, with its standard error, and
    unbiased_cka takes one pass; other metrics are refused.

    `unrolled align-grid` compares many models, every one with every other.
    """
    a, b = options.a, options.b
    if a is None or b is None:
        raise ValueError(
            "give two models, feature folders or arrays; or many in a file: unrolled align-grid MODELS.yaml"
        )
    from unrolled.alignment.scale import LARGE
    from unrolled.instruments.features.files import Rows, check_same_samples

    options, metrics = metrics_of(options)
    where = choose_device(options.device)
    run = Run(options, "align", stem(a), stem(b), keeps_features=True)
    sides = features_of(options, (a, b), run.folder, where)
    options, (left, right) = sides.options, sides.features
    rows = Rows.of(left)
    check_same_samples(rows, Rows.of(right), a, b)
    _check_neighbours(metrics, options.k, rows.samples)
    units = dependence(options.groups, options.blocks, rows, sides.pairs, quiet=options.quiet)
    notes: list[str] = []
    with noted(notes, {"features_a": f"A ({a})", "features_b": f"B ({b})"}, quiet=options.quiet):
        results = _compare(options, metrics, left, right, units, where)
    twins: list[Twin] = []
    without: list[str] = []
    if options.control and rows.samples <= LARGE:
        twins, without = untrained_twins(
            sides.subjects, sides.features, metrics, folder=run.folder / "features", dependence=units, where=where,
            seed=options.seed + 1, quiet=options.quiet,
        )  # fmt: skip
    for note in without:
        say(f"note: {note}", quiet=options.quiet)
    notes += without
    random = ["AB"[i] for i, subject in sides.subjects.items() if subject.random]
    report = align_report(options, results, rows.samples, notes, twins=twins, random=random)
    record = {
        "a": a, "b": b, "n": rows.samples, "comparisons": [each.to_dict() for each in results], "random": random,
        "untrained": [twin.record(options.metric) for twin in twins], "notes": notes,
    }  # fmt: skip
    scores = table(*score_table(options.metric, results, twins))
    named = zip(options.metric, results, strict=True)
    along = [f"{name}: {words}" for name, each in named if (words := run_words(each, name))]
    text = "\n".join([scores, p_value_note(options.metric, results), *along])
    run.finish(report, record, text, seeds=[options.seed], options=options)


def _check_neighbours(metrics: list[Metric], k: int, samples: int) -> None:
    if any(getattr(metric, "k", 1) >= samples for metric in metrics):
        raise ValueError(f"--k {k}: must be less than the {samples} samples; lower it or give more samples")


def _compare(
    options: AlignOptions,
    metrics: list[Metric],
    left: Features,
    right: Features,
    units: Dependence,
    where: torch.device,
) -> list[Comparison]:
    """All layers of A with all layers of B by every metric; of many samples, an estimate from some."""
    import torch

    from unrolled.alignment import compare
    from unrolled.alignment.scale import LARGE, compare_large
    from unrolled.instruments.features.files import Rows

    if (n := Rows.of(left).samples) > LARGE:
        if options.held_out:
            raise ValueError(f"--held-out: needs at most {LARGE:,} samples, not {n:,}; leave it out or give fewer")
        return [
            compare_large(
                left, right, metric, draws=options.draws, groups=units.groups, blocks=units.blocks, seed=options.seed
            )
            for metric in metrics
        ]
    first, second = ({name: torch.as_tensor(value).to(where) for name, value in side.items()} for side in (left, right))

    def shown(metric: Metric) -> Callable[[Iterable[Tensor]], Iterable[Tensor]]:
        total = options.draws if options.null == "permutation" else None  # moments draw until p is resolved
        return partial(progress, total=total, what=f"null of {metric.name}", quiet=options.quiet, unit="relabelling")

    bar = progress(metrics, total=len(metrics), what="compare", quiet=options.quiet, unit="metric")
    return [
        compare(
            first, second, metric, null=options.null, draws=options.draws, resamples=options.resamples,
            groups=units.groups, blocks=units.blocks, select_held_out=options.held_out, seed=options.seed,
            progress=shown(metric),
        )
        for metric in bar
    ]  # fmt: skip
