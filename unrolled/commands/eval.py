"""`unrolled eval`."""

from __future__ import annotations

import json as json_module
import time
from pathlib import Path
from typing import Any, Literal

from unrolled.commands.common import (
    Device,
    batches,
    choose_device,
    data_settings,
    default_folder,
    open_model,
    progress,
    say_where,
    write_run,
)
from unrolled.commands.pretrain import evaluate_pretrained, is_pretrain_run
from unrolled.commands.settings import AsJson, ConfigFiles, ModelArgs, Pretrained, Quiet
from unrolled.commands.text import evaluate_run, is_text_run


def evaluate(
    model: str,
    *,
    data: str | None = None,
    data_dir: Path | None = None,
    split: Literal["train", "val", "test"] = "test",
    val_fraction: float | None = None,
    split_seed: int | None = None,
    weights: Path | None = None,
    pretrained: Pretrained = False,
    model_args: ModelArgs = None,
    image_size: int | None = None,
    batch_size: int = 128,
    workers: int = 0,
    on_error: Literal["raise", "skip"] = "raise",
    device: Device = "auto",
    out: Path | None = None,
    config: ConfigFiles = (),
    json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Accuracy and loss of a model, or of the model a run ended with, on a data set.

    Preprocessing is the model's own; a folder with config.yaml, report.html and report.json says what was measured. Of
    a run on text it is loss and bits per byte, with the tokenizer and context of the run; of a run of `unrolled
    pretrain`, the loss it was trained on, beside trivial guesses.

        unrolled eval runs/digits
        unrolled eval local:models/crate-small --data folder --data-dir val
        unrolled eval timm:vit_tiny_patch16_224 --pretrained --data imagenet

    Parameters
    ----------
    model
        A run folder, or any model by one string (`unrolled list`, timm:NAME, local:DIR, package.module:factory).
    data
        Data set; default: the one of the run folder, else digits.
    data_dir
        Where the data are; default: that of the run folder.
    split
        Which part of the data.
    val_fraction
        Share of the training split that is validation; default: that of the run, else 0.1 with --split val.
    split_seed
        Which images belong to which split, where the data set does not say; default: that of the run, else 0.
    weights
        Load these instead: a folder of `unrolled convert`, a run folder or a published checkpoint.
    image_size
        Side in pixels; default: the model's own input size.
    batch_size
        Images in one forward pass.
    workers
        Loader processes; 0 loads in this process.
    on_error
        An undecodable image stops the evaluation, or is named, counted and left out.
    device
        What to run on.
    out
        Where config.yaml, report.html and report.json go; default: runs/eval-MODEL-DATA.
    """
    if is_text_run(model):
        evaluate_run(
            model,
            data=data,
            data_dir=data_dir,
            split=split,
            batch_size=batch_size,
            device=device,
            out=out,
            json=json,
            quiet=quiet,
        )
        return
    if weights is None and is_pretrain_run(model):
        evaluate_pretrained(
            model,
            data=data,
            data_dir=data_dir,
            split=split,
            val_fraction=val_fraction,
            split_seed=split_seed,
            batch_size=batch_size,
            workers=workers,
            on_error=on_error,
            device=device,
            out=out,
            json=json,
            quiet=quiet,
        )
        return
    from unrolled.data import open_images
    from unrolled.train import evaluate as measure

    own = data_settings(model, weights, data=data, data_dir=data_dir, image_size=image_size)
    data, data_dir, image_size = own["data"], own["data_dir"], own["image_size"]
    split_seed = own["split_seed"] if split_seed is None else split_seed
    if val_fraction is None:
        val_fraction = own["val_fraction"] or (0.1 if split == "val" else 0.0)
    where = choose_device(device)
    source = open_images(data, split, data_dir=data_dir, val_fraction=val_fraction, seed=split_seed)
    network = open_model(
        model, weights=weights, pretrained=pretrained, model_args=model_args, classes=len(source.classes)
    ).to(where)
    loader = batches(network, source, image_size=image_size, batch_size=batch_size, workers=workers, on_error=on_error)
    total = -(-len(source) // batch_size)
    began = time.perf_counter()
    scores = measure(network, progress(loader, total=total, what="eval", quiet=quiet), where)
    seconds = time.perf_counter() - began
    settings: dict[str, Any] = {
        "model": model,
        "data": data,
        "data_dir": data_dir,
        "split": split,
        "val_fraction": val_fraction,
        "split_seed": split_seed,
        "weights": weights,
        "pretrained": pretrained,
        "model_args": model_args or {},
        "image_size": image_size,
        "batch_size": batch_size,
        "workers": workers,
        "on_error": on_error,
        "device": device,
    }
    result = {"model": model, "data": data, "split": split, **scores, "images_per_second": scores["images"] / seconds}
    page = _report(out or default_folder("eval", model, data), settings, result, network, seconds)
    say_where(page, quiet=quiet)
    if json:
        print(json_module.dumps({**result, "report": str(page)}, indent=2))
    else:
        unread = f", {scores['skipped']} unreadable" if scores["skipped"] else ""
        print(
            f"{model} on {data} ({split}): accuracy {100 * scores['accuracy']:.2f} %, "
            f"top-5 {100 * scores['top5']:.2f} %, loss {scores['loss']:.4f} nats, {scores['images']:,} images{unread}"
        )


def _report(folder: Path, settings: dict[str, Any], result: dict[str, Any], network: Any, seconds: float) -> Path:
    from unrolled.report import Fact, Provenance, Report

    report = Report(
        f"{result['model']} on {result['data']}", question=f"How accurate is it on the {result['split']} split?"
    )
    accuracy = f"{100 * result['accuracy']:.2f} %"
    report.headline(
        f"{accuracy} of {result['images']:,} images are classified correctly.",
        [
            Fact(label="Accuracy", value=accuracy, detail=f"{result['images']:,} images"),
            Fact(label="Top-5 accuracy", value=f"{100 * result['top5']:.2f} %"),
            Fact(label="Loss", value=f"{result['loss']:.4f}", detail="cross-entropy, nats"),
            Fact(label="Parameters", value=f"{sum(p.numel() for p in network.parameters()):,}"),
        ],
    )
    report.results = result
    report.provenance = Provenance.collect(config=settings, seeds=[], duration=seconds)
    return write_run(folder, settings, report)
