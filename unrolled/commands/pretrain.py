"""`unrolled pretrain`, and `unrolled eval` of the runs it makes."""

from __future__ import annotations

import json as json_module
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from unrolled.commands.common import (
    Device,
    choose_device,
    data_settings,
    default_folder,
    drawn,
    named,
    of_all,
    open_model,
    run_settings,
    say_data,
    say_where,
    saying_how_to_resume,
    write_run,
)
from unrolled.commands.options import PRETRAIN_HEADINGS, AsJson, ConfigFiles, RecipeName, as_config, flags_of
from unrolled.locks import hold
from unrolled.train.pretrain_config import PretrainConfig

if TYPE_CHECKING:
    PretrainFlags = PretrainConfig
else:
    PretrainFlags = flags_of(PretrainConfig, PRETRAIN_HEADINGS)

_PRETRAIN = PretrainFlags()


def pretrain(
    *,
    settings: Annotated[PretrainFlags, Parameter(name="*")] = _PRETRAIN,
    config: ConfigFiles = (),
    recipe: RecipeName = None,
    json: AsJson = False,
) -> None:
    """Pretrain on images without their labels; everything about the run goes into one folder.

    `--task mae` completes images of which most patches were removed. `--task simdino` makes views of an image agree
    with a teacher, while the coding rate of the features keeps them from collapsing. Ctrl-C saves and stops; the same
    command with `--resume auto` goes on, bit for bit. What comes out is for `unrolled finetune --weights RUN`, `eval`,
    `trace`, `complete` and `segment`.

        unrolled pretrain --data cifar10 --data-dir data --out runs/mae
        unrolled pretrain --recipe mae_nano --model vit_mae_nano_patch4_32 --data-dir data
        unrolled pretrain --task simdino --data cifar10 --data-dir data --out runs/simdino
        unrolled finetune --weights runs/mae --data cifar10 --data-dir data
    """
    run_pretraining(as_config(PretrainConfig, settings), json=json)


def run_pretraining(chosen: PretrainConfig, *, json: bool) -> None:
    """Pretrain, write the report into the run folder, and print what came out."""
    from lightning_fabric.utilities.rank_zero import rank_zero_only

    import unrolled.train as training
    from unrolled.commands.pretrain_report import run_report, words

    began = time.perf_counter()
    with saying_how_to_resume("pretrain", chosen.out, chosen.model):
        result = training.pretrain(chosen)
    if getattr(rank_zero_only, "rank", 0) != 0:
        return
    hold(result.run_dir)
    chosen = training.load_config(result.run_dir / "config.yaml", PretrainConfig)
    facts = {
        "run": str(result.run_dir),
        "task": chosen.task,
        "model": chosen.model,
        "data": chosen.data,
        "parameters": sum(parameter.numel() for parameter in result.model.parameters()),
        "steps": result.steps,
        "chosen_step": result.chosen_step,
        "images_per_second": result.images_per_second,
        "test": result.test,
        "validation": [entry for entry in result.metrics if entry["split"] == "val"],
        "skipped": result.skipped,
    }
    report = run_report(chosen, result, facts, time.perf_counter() - began)
    page = report.write(result.run_dir).html
    say_where(page, quiet=chosen.quiet)
    if result.skipped:
        print(f"{len(result.skipped)} images could not be read and were left out", file=sys.stderr)
    if json:
        print(json_module.dumps({**facts, "report": str(page)}, indent=2))
        return
    score = f"test {words(chosen.task, result.test)}" if result.test else "no test split"
    print(
        f"{chosen.model} on {chosen.data}: {score}, {facts['parameters']:,} parameters, {result.steps:,} steps, "
        f"{result.images_per_second:,.0f} images/s; the model is in {result.run_dir}"
    )


def is_pretrain_run(model: str) -> bool:
    """Whether a MODEL argument is the folder of a run of pretraining."""
    return run_settings(model).get("task") in ("mae", "simdino")


def evaluate_pretrained(
    model: str,
    *,
    data: str | None,
    data_dir: Path | None,
    split: Literal["train", "val", "test", "all"],
    val_fraction: float | None,
    split_seed: int | None,
    samples: int | None,
    batch_size: int,
    workers: int,
    on_error: Literal["raise", "skip"],
    device: Device,
    out: Path | None,
    json: bool,
    quiet: bool,
) -> None:
    """The loss a run of pretraining was trained on, of the model it ended with, on a split."""
    import dataclasses

    from unrolled.commands.pretrain_report import evaluation_report, words
    from unrolled.data import open_images
    from unrolled.train import load_config
    from unrolled.train.pretraining import measure_run
    from unrolled.train.run import drawn_evenly

    folder = Path(named(model).removeprefix("local:")).expanduser()
    own = data_settings(model, None, data=data, data_dir=data_dir, image_size=None)
    changes = {key: own[key] for key in ("data", "data_dir", "image_size", "split_seed", "val_fraction")}
    if split_seed is not None:
        changes["split_seed"] = split_seed
    if val_fraction is not None or (split == "val" and not changes["val_fraction"]):
        changes["val_fraction"] = val_fraction or 0.1
    config = load_config(folder / "config.yaml", PretrainConfig)
    config = dataclasses.replace(
        config,
        **changes,
        accumulate=1,
        devices=1,
        num_nodes=1,
        workers=workers,
        on_error=on_error,
    )
    where = choose_device(device)
    everything = open_images(
        config.data, split, data_dir=config.data_dir, val_fraction=config.val_fraction, seed=config.split_seed,
        unknown_classes="skip",
    )  # fmt: skip
    say_data(quiet=quiet, **{split: everything})
    source = drawn_evenly(everything, samples, f"--samples {samples}")
    network = open_model(model, seed=config.seed).to(where)
    began = time.perf_counter()
    scores = measure_run(config, network, source, where, batch_size=batch_size)
    seconds = time.perf_counter() - began
    result = {
        "model": model,
        "task": config.task,
        "data": config.data,
        "split": split,
        **drawn(samples, len(everything)),
        **scores,
        "images_per_second": scores["images"] / seconds,
    }
    settings: dict[str, Any] = {
        "model": model,
        "data": config.data,
        "data_dir": config.data_dir,
        "split": split,
        "val_fraction": config.val_fraction,
        "split_seed": config.split_seed,
        "samples": samples,
        "batch_size": batch_size,
        "workers": workers,
        "on_error": on_error,
        "device": device,
    }
    report = evaluation_report(config, network, source, result, settings, seconds)
    page = write_run(out or default_folder("eval", model, config.data, settings), settings, report)
    say_where(page, quiet=quiet)
    if json:
        print(json_module.dumps({**result, "report": str(page)}, indent=2))
    else:
        print(
            f"{model} on {config.data} ({split}): {words(config.task, scores)}, "
            f"{scores['images']:,} images{of_all(result)}"
        )
