"""`unrolled eval`."""

from __future__ import annotations

import dataclasses
import json as json_module
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unrolled.commands.common import (
    Device,
    batches,
    by_class_names,
    check_counts,
    choose_device,
    class_names,
    data_settings,
    default_folder,
    drawn,
    named,
    of_all,
    open_model,
    progress,
    run_settings,
    say_data,
    say_where,
    shipped,
)
from unrolled.commands.eval_report import at_bound, write_report
from unrolled.commands.pretrain import evaluate_pretrained, is_pretrain_run
from unrolled.commands.settings import AsJson, ConfigFiles, ModelArgs, Pretrained, Quiet
from unrolled.commands.text import evaluate_run, is_text_run

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor, nn

    from unrolled.data import ImageSource

_HELD_OUT = 0.2
_ENOUGH = 50  # images, below which no temperature is fitted
_TEMPERATURES = (0.01, 100.0)  # the range it is looked for in


def evaluate(
    model: str,
    *,
    data: str | None = None,
    data_dir: Path | None = None,
    split: Literal["train", "val", "test", "all"] = "test",
    labels: Path | None = None,
    classes_by: Literal["name", "number"] = "name",
    unknown_classes: Literal["raise", "skip"] = "raise",
    samples: int | None = None,
    stride: int | None = None,
    robustness: bool = False,
    robustness_images: int = 1000,
    val_fraction: float | None = None,
    split_seed: int | None = None,
    weights: Path | None = None,
    pretrained: Pretrained = False,
    model_args: ModelArgs = None,
    image_size: int | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    on_error: Literal["raise", "skip"] = "raise",
    seed: int = 0,
    device: Device = "auto",
    out: Path | None = None,
    config: ConfigFiles = (),
    json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Accuracy, loss and calibration of a model, or of the model a run ended with, on a data set.

    Preprocessing is the model's own; a folder with config.yaml, report.html and report.json says what was measured. Of
    a classifier's run that was interrupted it is the newest checkpoint. Of a run on text it is loss and bits per byte,
    with the tokenizer and context of the run; of a run of `unrolled pretrain`, its loss beside trivial guesses.

        unrolled eval runs/digits
        unrolled eval local:models/crate-small --data folder --data-dir val
        unrolled eval timm:vit_tiny_patch16_224 --pretrained --data imagenet --data-dir imagenet --labels real.json
        unrolled eval timm:vit_tiny_patch16_224 --pretrained --data folder --data-dir matched-frequency --split all
        unrolled eval runs/cifar10 --robustness
        unrolled eval runs/cifar10 --samples 1000
        unrolled eval runs/pets --data folder --data-dir other-pets

    Parameters
    ----------
    model
        A run folder, or any model by one string (`unrolled list`, timm:NAME, local:DIR, package.module:factory).
    data
        Data set; default: the one of the run folder, else digits.
    data_dir
        Where the data are; default: that of the run folder.
    split
        Which part of the data; all: a folder of classes that is one test set (ImageNet-V2). Class folders named by
        numbers are then the labels.
    labels
        real.json of ImageNet ReaL: also the share of predictions that are among an image's labels, over the images that
        have some. The images are those of the ImageNet validation set, under their own names.
    classes_by
        name: an image's class is the model's class of the same name, where both name theirs; images of classes that the
        model does not know are left out and counted. number: labels are taken as they are.
    unknown_classes
        What to do with images of this split whose class the data's own training split lacks.
    samples
        Use so many images of the split, drawn evenly, or of a text so many excerpts of its context; default: all.
    stride
        Of a run on text: tokens between the starts of two windows of its context. By default blocks do not overlap, and
        a token is predicted from 1 token up to the whole context; a half of the context gives each at least the other
        half, at twice the cost.
    robustness
        Errors on images made worse in nine ways and five severities: 45 forward passes an image.
    robustness_images
        How many of the images for that, drawn evenly.
    val_fraction
        Share of the training split that is validation; default: that of the run, else 0.1 with --split val.
    split_seed
        Which images belong to which split, where the data set does not say; default: that of the run, else 0.
    weights
        Load these instead: a folder of `unrolled convert`, a run folder or a published checkpoint.
    image_size
        Side in pixels; default: the model's own input size.
    batch_size
        Images, or excerpts of text, in one forward pass; default: 128, of a run on text that of the run.
    workers
        Loader processes; 0 loads in this process.
    on_error
        An undecodable image stops the evaluation, or is named, counted and left out.
    seed
        Of weights that are not loaded, of the corruptions, and, where the data have no validation part to fit the
        temperature on, of the fifth of the images it is then fitted on.
    device
        What to run on.
    out
        Where config.yaml, report.html and report.json go; default: runs/eval-MODEL-DATA.
    """
    check_counts(robustness_images=robustness_images, batch_size=batch_size, image_size=image_size, stride=stride)
    check_counts(0, workers=workers, seed=seed, split_seed=split_seed)
    if is_text_run(model):
        if split == "all" or labels is not None or robustness:
            raise ValueError("--split all, --labels and --robustness are for images; leave them out")
        _refuse_model_flags(image_size=image_size, pretrained=pretrained, model_args=model_args, weights=weights)
        evaluate_run(
            model, data=data, data_dir=data_dir, split=split, samples=samples, stride=stride, batch_size=batch_size,
            device=device, out=out, json=json, quiet=quiet,
        )  # fmt: skip
        return
    if stride is not None:
        raise ValueError("--stride: is for runs on text; leave it out")
    batch_size = batch_size or 128
    if weights is None and is_pretrain_run(model):
        if labels is not None or robustness:
            raise ValueError("--labels and --robustness are for classifiers; leave them out, or probe this run")
        _refuse_model_flags(image_size=image_size, pretrained=pretrained, model_args=model_args)
        evaluate_pretrained(
            model, data=data, data_dir=data_dir, split=split, val_fraction=val_fraction, split_seed=split_seed,
            samples=samples, batch_size=batch_size, workers=workers, on_error=on_error, device=device, out=out,
            json=json, quiet=quiet,
        )  # fmt: skip
        return
    import torch

    from unrolled.data import open_images
    from unrolled.data.classes import one_class_note
    from unrolled.data.real_labels import RealLabels
    from unrolled.data.sources import Subset
    from unrolled.train import evaluate as measure
    from unrolled.train.run import drawn_evenly

    own = data_settings(model, weights, data=data, data_dir=data_dir, image_size=image_size)
    data, data_dir, image_size = own["data"], own["data_dir"], own["image_size"]
    split_seed = own["split_seed"] if split_seed is None else split_seed
    if val_fraction is None:
        val_fraction = own["val_fraction"] or (0.1 if split == "val" else 0.0)
    where = choose_device(device)
    everything = open_images(
        data, split, data_dir=data_dir, val_fraction=val_fraction, seed=split_seed, unknown_classes=unknown_classes
    )
    say_data(quiet=quiet, **{split: everything})
    stopped: dict[str, Any] = {}
    unfinished = None if weights is not None else _unfinished(model)
    if unfinished is None:
        network = open_model(
            model, weights=weights, pretrained=pretrained, model_args=model_args, classes=len(everything.classes),
            seed=seed,
        )  # fmt: skip
    else:
        network, stopped["step"] = _newest(unfinished, everything)
    network = network.to(where)
    run = run_settings(str(weights) if weights is not None else model)
    trained_on = run.get("data") or shipped(model)
    elsewhere = trained_on != data or Path(run.get("data_dir") or data_dir or "") != Path(data_dir or "")
    names = class_names(network, model, weights=weights, pretrained=pretrained)
    there = len(everything)
    if elsewhere and isinstance(everything, Subset) and "to test on" in everything.description and not quiet:
        whole = len(everything.base)
        print(f"note: {data} has no test part: {there:,} of its {whole:,} images were drawn; --split all takes all",
              file=sys.stderr)  # fmt: skip
    named_alike = tuple(everything.classes) in names
    everything, said = by_class_names(everything, names, what=model, by=classes_by)
    if not said and not named_alike and trained_on is not None and elsewhere:
        said = (
            f"{model} was trained on {trained_on if trained_on != data else f'other {data} data'}; its classes are "
            f"taken for those of {data} by their number, so the scores mean something only if they are the same"
        )
    elif weights is not None and not names and trained_on is None:
        said = f"{weights} names no classes; its outputs are taken for those of {data} by their number"
    source = drawn_evenly(everything, samples, f"--samples {samples}")
    notes = [note for note in (said, one_class_note(source)) if note]
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    real = None if labels is None else RealLabels(labels, everything)

    def look(images: ImageSource, what: str) -> tuple[dict[str, Any], Tensor, Tensor, Tensor]:
        """Scores of the images, and their logits, labels and numbers."""
        loader = batches(
            network, images, image_size=image_size, batch_size=batch_size, workers=workers, on_error=on_error
        )
        bar = progress(loader, total=-(-len(images) // batch_size), what=what, quiet=quiet)
        kept: list[tuple[Tensor, Tensor, Tensor]] = []
        found = measure(
            network, bar, where, on_logits=lambda z, batch: kept.append((z.cpu(), batch.labels, batch.indices))
        )
        logits, truth, indices = (torch.cat(parts) for parts in zip(*kept, strict=True))
        return found, logits, truth, indices

    began = time.perf_counter()
    scores, logits, truth, indices = look(source, "eval")
    seconds = time.perf_counter() - began
    result = {"model": model, "data": data, "split": split, **stopped, **drawn(samples, len(everything)), **scores,
              "images_per_second": scores["images"] / seconds}  # fmt: skip
    if len(everything) < there:
        result["unknown"] = there - len(everything)  # images of classes that the model does not have
    if notes:
        result["notes"] = notes
    if real is not None:
        real.check_classes(logits.shape[1])
        if source is not everything:
            assert isinstance(source, Subset)
            indices = torch.from_numpy(source.indices)[indices]  # of all images, which `real` counts
        right, judged = real.score(logits.argmax(1), indices)
        if not judged:
            raise ValueError(f"labels: none of the {len(indices):,} images has a label in {labels}")
        result["real"] = {"accuracy": right / judged, "images": judged, "without": len(indices) - judged}
    if bool(torch.isfinite(logits).all()):
        validation = None
        if split in ("train", "test"):
            validation = _validation(own, samples, lambda s: by_class_names(s, names, what=model, by=classes_by)[0])
        fit_on = None if validation is None else look(validation, "temperature")[1:3]
        result["calibration"] = calibration(logits, truth, fit_on=fit_on, seed=seed)
    if robustness:
        result["robustness"] = _corrupted(
            network, source, where, images=robustness_images, image_size=image_size, batch_size=batch_size,
            workers=workers, on_error=on_error, seed=seed, quiet=quiet,
        )  # fmt: skip
    settings: dict[str, Any] = {
        "model": model,
        "data": data,
        "data_dir": data_dir,
        "split": split,
        "labels": labels,
        "classes_by": classes_by,
        "unknown_classes": unknown_classes,
        "samples": samples,
        "robustness": robustness,
        "robustness_images": robustness_images,
        "val_fraction": val_fraction,
        "split_seed": split_seed,
        "weights": weights,
        "pretrained": pretrained,
        "model_args": model_args or {},
        "image_size": image_size,
        "batch_size": batch_size,
        "workers": workers,
        "on_error": on_error,
        "seed": seed,
        "device": device,
    }
    page = write_report(
        out or default_folder("eval", model, data, settings), settings, result, network, time.perf_counter() - began
    )
    say_where(page, quiet=quiet)
    print(json_module.dumps({**result, "report": str(page)}, indent=2) if json else _line(result))


def _refuse_model_flags(**given: Any) -> None:
    """Refuse what would be ignored of a run that is measured as it was trained."""
    for name, value in given.items():
        if value:
            raise ValueError(f"--{name.replace('_', '-')}: this run is measured as it was trained; leave it out")


def _validation(
    own: dict[str, Any], samples: int | None, labelled: Callable[[ImageSource], ImageSource]
) -> ImageSource | None:
    """The images a run held out for validation, or its data set's own validation split; at most `samples` of them.

    Divided as in the run and never as the flags say: under another division they were trained on. `labelled` gives them
    the labels that the model has for their classes.
    """
    from unrolled.data import open_images
    from unrolled.errors import MissingData
    from unrolled.train.run import drawn_evenly

    try:
        source = labelled(
            open_images(
                own["data"], "val", data_dir=own["data_dir"], val_fraction=own["val_fraction"], seed=own["split_seed"]
            )
        )
    except (ValueError, MissingData):  # there is none, or none of classes that the model knows
        return None
    if len(source) < _ENOUGH:
        return None
    return drawn_evenly(source, None if samples is None else min(max(samples, _ENOUGH), len(source)), "--samples")


def calibration(
    logits: Tensor, labels: Tensor, *, fit_on: tuple[Tensor, Tensor] | None = None, seed: int = 0
) -> dict[str, Any]:
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

    found = dataclasses.asdict(reliability(logits, labels))
    validation = fit_on is not None and bool(torch.isfinite(fit_on[0]).all())
    if fit_on is not None and validation:
        held, truth = fit_on
        rest = torch.arange(len(labels))
    elif len(labels) < _ENOUGH:
        return {**found, "temperature": None}
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
        **found,
        "temperature": {
            "value": value, "bound": bound, "validation": validation, "fitted_on": len(held), "right": right,
            "judged_on": len(rest), "before": before, "after": after,
        },
    }  # fmt: skip


def _unfinished(model: str) -> Path | None:
    """The folder of an interrupted run, if that is what MODEL is."""
    spec = named(model)
    if not spec.startswith("local:"):
        return None
    from unrolled.train.unfinished import is_unfinished

    folder = Path(spec.removeprefix("local:")).expanduser()
    return folder if is_unfinished(folder) else None


def _newest(run: Path, source: ImageSource) -> tuple[nn.Module, int]:
    from unrolled.train.unfinished import newest_model

    network, step = newest_model(run, source)
    print(
        f"note: {run} was interrupted; measured is its newest checkpoint, of step {step:,} (--resume auto goes on)",
        file=sys.stderr,
    )
    return network, step


def _corrupted(
    network: nn.Module,
    source: ImageSource,
    where: torch.device,
    *,
    images: int,
    image_size: int | None,
    batch_size: int,
    workers: int,
    on_error: Literal["raise", "skip"],
    seed: int,
    quiet: bool,
) -> dict[str, Any]:
    import numpy as np

    from unrolled.data import eval_loader, eval_transform, model_input
    from unrolled.data.sources import Subset
    from unrolled.train.robustness import corruption_errors, relative_errors

    count = min(images, len(source))
    part = Subset(source, np.linspace(0, len(source) - 1, count).round().astype(np.int64))
    expects = model_input(network, native_size=source.native_size, image_size=image_size)
    plain = eval_transform(
        expects["input_size"], (0.0,), (1.0,), interpolation=expects["interpolation"], crop_pct=expects["crop_pct"]
    )
    loader = eval_loader(part, plain, batch_size=batch_size, workers=workers, on_error=on_error)
    bar = progress(loader, total=-(-count // batch_size), what="corruptions", quiet=quiet)
    found = corruption_errors(network, bar, where, mean=expects["mean"], std=expects["std"], seed=seed)
    return {**found, "relative": relative_errors(found)}


def _line(result: dict[str, Any]) -> str:
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
        found = result["robustness"]
        text += (
            f"\nerror on corrupted images {100 * found['mean_error']:.2f} %, clean {100 * found['clean']:.2f} %, "
            f"{found['images']:,} images"
        )
    return text
