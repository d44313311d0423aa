"""`unrolled eval` of classifiers of images."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unrolled.commands.class_report import class_records, class_sections
from unrolled.commands.eval.options import EvalOptions, drawn, of_all
from unrolled.commands.eval.report import at_bound, eval_report
from unrolled.harness import Answer, Run
from unrolled.reading import Json
from unrolled.subjects.images import batches, say_data
from unrolled.subjects.models import by_class_names, choose_device, class_names, open_trained
from unrolled.subjects.runs import DataOf, run_settings, shipped
from unrolled.terminal import progress, say

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from torch import Tensor, nn

    from unrolled.data import ImageSource
    from unrolled.data.real_labels import RealLabels
    from unrolled.instruments.readouts.confusion import Confusion

_HELD_OUT = 0.2
_ENOUGH = 50  # images, below which no temperature is fitted
_TEMPERATURES = (0.01, 100.0)  # the range it is looked for in


@dataclass(frozen=True)
class _Scored:
    """Scores of images, and [n] logits, labels and numbers of them."""

    scores: Json
    logits: Tensor
    labels: Tensor
    indices: Tensor


def evaluate_classifier(options: EvalOptions) -> None:
    """Accuracy, loss and calibration; errors on corrupted images if asked for."""
    import torch

    from unrolled.data import open_images
    from unrolled.data.classes import one_class_note
    from unrolled.data.real_labels import RealLabels
    from unrolled.data.sources import Subset
    from unrolled.train.run import drawn_evenly

    options, data = options.divided()
    where = choose_device(options.device)
    whole = open_images(
        data.data, options.split, data_dir=data.data_dir, val_fraction=options.val_fraction or 0.0,
        seed=options.split_seed or 0,
        unknown_classes=options.unknown_classes or "raise",
    )  # fmt: skip
    say_data(quiet=options.quiet, **{options.split: whole})
    network, stopped = open_trained(options, whole, head=True)
    network = network.to(where)
    names = class_names(network, options)
    everything, note = _labelled(options, data, whole, names)
    source = drawn_evenly(everything, options.samples, f"--samples {options.samples}")
    notes = [each for each in (note, one_class_note(source)) if each]
    for each in notes:
        say(f"note: {each}")
    real = None if options.labels is None else RealLabels(options.labels, everything)
    run = Run(options, "eval", options.model, data.data)
    scored = _look(options, network, source, where, "eval")
    result = {
        "model": options.model, "data": data.data, "split": options.split, **stopped,
        **drawn(options.samples, len(everything)), **scored.scores,
        "images_per_second": scored.scores["images"] / run.seconds,
    }  # fmt: skip
    if len(everything) < len(whole):
        result["unknown"] = len(whole) - len(everything)  # images of classes that the model does not have
    if notes:
        result["notes"] = notes
    if real is not None:
        rows = scored.indices
        if source is not everything:
            assert isinstance(source, Subset)
            rows = torch.from_numpy(source.indices)[rows]  # of all images, which `real` counts
        result["real"] = _real(options, real, scored.logits, rows)
    confusion = None
    if bool(torch.isfinite(scored.logits).all()):
        result["calibration"] = _calibrated(options, data, network, names, scored, where)
        confusion = _confusion(source, next(iter(names), ()), scored)
    if confusion is not None:
        result |= class_records(confusion, source)
    if options.robustness:
        result["robustness"] = _corrupted(options, network, source, where)
    report = eval_report(result, network)
    if confusion is not None:
        class_sections(report, confusion, source)
    run.finish(report, result, _line(result), seeds=[options.seed], options=options)


def _labelled(
    options: EvalOptions, dataset: DataOf, source: ImageSource, names: list[tuple[str, ...]]
) -> tuple[ImageSource, str]:
    """The images with the labels that the model has for their classes, and what is to be said of that."""
    from unrolled.data.sources import Subset

    model, data = options.model, dataset.data
    run = run_settings(str(options.weights or model))
    trained_on = run.get("data") or shipped(model)
    elsewhere = trained_on != data or Path(run.get("data_dir") or dataset.data_dir or "") != Path(
        dataset.data_dir or ""
    )
    if elsewhere and isinstance(source, Subset) and "to test on" in source.description:
        say(
            f"note: {data} has no test part: {len(source):,} of its {len(source.base):,} images were drawn; "
            "--split all takes all",
            quiet=options.quiet,
        )
    named_alike = tuple(source.classes) in names
    labelled, note = by_class_names(source, names, what=model, by=options.classes_by)
    if not note and not named_alike and trained_on is not None and elsewhere:
        note = (
            f"{model} was trained on {trained_on if trained_on != data else f'other {data} data'}; its classes are "
            f"taken for those of {data} by their number, so the scores mean something only if they are the same"
        )
    elif options.weights is not None and not names and trained_on is None:
        note = f"{options.weights} names no classes; its outputs are taken for those of {data} by their number"
    return labelled, note


def _look(options: EvalOptions, network: nn.Module, images: ImageSource, where: torch.device, what: str) -> _Scored:
    import torch

    from unrolled.train import evaluate as measure

    size = options.batch_size or 128
    loader = batches(
        network, images, image_size=options.image_size, batch_size=size, workers=options.workers,
        on_error=options.on_error,
    )  # fmt: skip
    bar = progress(loader, total=-(-len(images) // size), what=what, quiet=options.quiet)
    batches_scored: list[tuple[Tensor, Tensor, Tensor]] = []
    scores = measure(
        network, bar, where, on_logits=lambda z, batch: batches_scored.append((z.cpu(), batch.labels, batch.indices))
    )
    return _Scored(scores, *(torch.cat(parts) for parts in zip(*batches_scored, strict=True)))


def _confusion(source: ImageSource, names: Sequence[str], scored: _Scored) -> Confusion | None:
    """The decisions class by class; None with too many classes. Without names of the model's, those of the images."""
    from unrolled.instruments.readouts.confusion import MOST_CLASSES, Decisions

    count = scored.logits.shape[1]
    if count > MOST_CLASSES:
        return None
    known = list(names) if len(names) == count else list(source.classes)
    known = [*known[:count], *(str(number) for number in range(len(known), count))]
    decisions = Decisions(count)
    decisions.add(scored.logits, scored.labels, scored.indices)
    return decisions.result(known)


def _real(options: EvalOptions, real: RealLabels, logits: Tensor, indices: Tensor) -> Json:
    """How many predictions are among the labels of ImageNet ReaL; `indices` are of all images."""
    real.check_classes(logits.shape[1])
    right, judged = real.score(logits.argmax(1), indices)
    if not judged:
        raise ValueError(f"labels: none of the {len(indices):,} images has a label in {options.labels}")
    return {"accuracy": right / judged, "images": judged, "without": len(indices) - judged}


def _calibrated(
    options: EvalOptions,
    data: DataOf,
    network: nn.Module,
    names: list[tuple[str, ...]],
    scored: _Scored,
    where: torch.device,
) -> Json:
    """`calibration` with a temperature fitted on validation images, where there are some that were not looked at."""
    validation = None
    if options.split in ("train", "test"):
        validation = _validation(
            data, options.samples, lambda s: by_class_names(s, names, what=options.model, by=options.classes_by)[0]
        )
    held = None if validation is None else _look(options, network, validation, where, "temperature")
    fit_on = None if held is None else (held.logits, held.labels)
    return calibration(scored.logits, scored.labels, fit_on=fit_on, seed=options.seed)


def _validation(
    data: DataOf, samples: int | None, labelled: Callable[[ImageSource], ImageSource]
) -> ImageSource | None:
    """The images a run held out for validation, or its data set's own validation split; at most `samples` of them.

    Divided as in the run and never as the flags say: under another division they were trained on. `labelled` gives them
    the labels that the model has for their classes.
    """
    from unrolled.data import open_images
    from unrolled.data.sources import Subset
    from unrolled.errors import MissingData

    try:
        source = labelled(
            open_images(data.data, "val", data_dir=data.data_dir, val_fraction=data.val_fraction, seed=data.split_seed)
        )
    except (ValueError, MissingData):  # there is none, or none of classes that the model knows
        return None
    if len(source) < _ENOUGH:
        return None
    return source if samples is None else Subset.evenly(source, max(samples, _ENOUGH))


def calibration(logits: Tensor, labels: Tensor, *, fit_on: tuple[Tensor, Tensor] | None = None, seed: int = 0) -> Json:
    """Calibration of all samples, and before and after a temperature, on samples it was not fitted on.

    Args:
        logits: [n, c].
        labels: integers [n].
        fit_on: logits and labels of validation samples, to fit the temperature on; without them it is fitted on a fifth
            of these samples, and compared on the other four.
        seed: of the fifth.

    Returns:
        the fields of `Reliability`, and `temperature`: None for fewer than 50 samples without `fit_on`, else `value`,
        `bound` ("low" or "high" if the fit ended there, else None), `validation`, whether it was fitted on such
        samples, `fitted_on`, of which `right` are classified correctly, `judged_on`, and `before` and `after`, the same
        fields on the samples it is judged on.
    """
    import torch

    from unrolled.instruments.readouts.reliability import fit_temperature, reliability

    scores = dataclasses.asdict(reliability(logits, labels))
    validation = fit_on is not None and bool(torch.isfinite(fit_on[0]).all())
    if fit_on is not None and validation:
        held, truth = fit_on
        rest = torch.arange(len(labels))
    elif len(labels) < _ENOUGH:
        return {**scores, "temperature": None}
    else:
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        cut = round(_HELD_OUT * len(labels))
        held, truth, rest = logits[order[:cut]], labels[order[:cut]], order[cut:]
    low, high = _TEMPERATURES
    value = fit_temperature(held, truth, low=low, high=high)
    right = int((held.argmax(1) == truth).sum())
    if right == len(held):
        value = low  # the loss falls all the way, but is too small to be told from 0 before it gets there
    bound = "low" if value < 1.01 * low else "high" if value > 0.99 * high else None  # it stops just short of them
    before, after = (dataclasses.asdict(reliability(logits[rest], labels[rest], temperature=at)) for at in (1.0, value))
    return {
        **scores,
        "temperature": {
            "value": value, "bound": bound, "validation": validation, "fitted_on": len(held), "right": right,
            "judged_on": len(rest), "before": before, "after": after,
        },
    }  # fmt: skip


def _corrupted(options: EvalOptions, network: nn.Module, source: ImageSource, where: torch.device) -> Json:
    from unrolled.data import eval_loader, eval_transform, model_input
    from unrolled.data.sources import Subset
    from unrolled.train.robustness import corruption_errors, relative_errors

    part, size = Subset.evenly(source, options.robustness_images), options.batch_size or 128
    expects = model_input(network, native_size=source.native_size, image_size=options.image_size)
    plain = eval_transform(
        expects["input_size"], (0.0,), (1.0,), interpolation=expects["interpolation"], crop_pct=expects["crop_pct"]
    )
    loader = eval_loader(part, plain, batch_size=size, workers=options.workers, on_error=options.on_error)
    bar = progress(loader, total=-(-len(part) // size), what="corruptions", quiet=options.quiet)
    errors = corruption_errors(network, bar, where, mean=expects["mean"], std=expects["std"], seed=options.seed)
    return {**errors, "relative": relative_errors(errors)}


def _line(result: Answer) -> str:
    unread = f", {result['skipped']} unreadable" if result["skipped"] else ""
    unread += f", {result['unknown']:,} of classes it does not know left out" if "unknown" in result else ""
    text = (
        f"{result['model']} on {result['data']} ({result['split']}): accuracy {100 * result['accuracy']:.2f} %, "
        f"top-5 {100 * result['top5']:.2f} %, loss {result['loss']:.4f} nats, "
        f"{result['images']:,} images{of_all(result)}{unread}"
    )
    if "calibration" in result:
        text += f"\ncalibration error {100 * result['calibration']['ece']:.2f} %"
        if (fitted := result["calibration"]["temperature"]) is not None:
            after = f"{100 * fitted['after']['ece']:.2f} % with a temperature of {fitted['value']:.2f} fitted on"
            if fitted["validation"]:
                text += f", {after} {fitted['fitted_on']:,} validation images"
            else:  # compared on the same images
                text += f"; on four fifths of the images {100 * fitted['before']['ece']:.2f} %, {after} the other fifth"
            if fitted["bound"] is not None:
                text += f"\nnote: {at_bound(fitted)}"
    if "real" in result:
        text += f"\nReaL accuracy {100 * result['real']['accuracy']:.2f} %, {result['real']['images']:,} images"
    if "robustness" in result:
        robustness = result["robustness"]
        text += (
            f"\nerror on corrupted images {100 * robustness['mean_error']:.2f} %, clean "
            f"{100 * robustness['clean']:.2f} %, {robustness['images']:,} images"
        )
    return text
