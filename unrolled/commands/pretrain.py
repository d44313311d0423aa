"""`unrolled pretrain`, and `unrolled eval` of the runs it makes."""

from __future__ import annotations

import json as json_module
import time
from pathlib import Path
from typing import Any, Literal

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
    write_run,
)
from unrolled.commands.options import AsJson, RecipeName, verb
from unrolled.commands.train import run_training
from unrolled.train.config import DistillConfig, MaskedConfig, PretrainConfig


@verb
def pretrain(config: MaskedConfig, *, recipe: RecipeName = None, json: AsJson = False) -> None:
    """Pretrain on images without their labels, by completing images of which most patches were removed.

    Everything about the run goes into one folder. Ctrl-C saves and stops; the same command with `--resume auto` goes
    on, bit for bit. What comes out is for `unrolled finetune --weights RUN`, `eval`, `trace`, `complete` and `segment`.
    The other way, self-distillation, has flags of its own: `unrolled pretrain --task simdino --help`.

        unrolled pretrain --data cifar10 --data-dir data --out runs/mae
        unrolled pretrain --recipe mae_nano --model vit_mae_nano_patch4_32 --data-dir data
        unrolled pretrain --task simdino --data cifar10 --data-dir data --out runs/simdino
        unrolled finetune --weights runs/mae --data cifar10 --data-dir data
    """
    run_training("pretrain", config, json=json)


@verb
def pretrain_distilled(config: DistillConfig, *, recipe: RecipeName = None, json: AsJson = False) -> None:
    """Pretrain on images without their labels, by self-distillation.

    Views of an image agree with a teacher, while the coding rate of the features keeps them from collapsing. Everything
    about the run goes into one folder. Ctrl-C saves and stops; the same command with `--resume auto` goes on, bit for
    bit. What comes out is for `unrolled finetune --weights RUN`, `eval`, `trace` and `segment`.

        unrolled pretrain --task simdino --data cifar10 --data-dir data --out runs/simdino
        unrolled finetune --weights runs/simdino --data cifar10 --data-dir data
    """
    run_training("pretrain", config, json=json)


def is_pretrain_run(model: str) -> bool:
    """Whether a MODEL argument is the folder of a run of pretraining."""
    return run_settings(model).get("task") in (*MaskedConfig.tasks, *DistillConfig.tasks)


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
    from unrolled.train.fitting import measure_run
    from unrolled.train.run import drawn_evenly

    folder = Path(named(model).removeprefix("local:")).expanduser()
    own = data_settings(model, None, data=data, data_dir=data_dir, image_size=None)
    changes = {key: own[key] for key in ("data", "data_dir", "image_size", "split_seed", "val_fraction")}
    if split_seed is not None:
        changes["split_seed"] = split_seed
    if val_fraction is not None or (split == "val" and not changes["val_fraction"]):
        changes["val_fraction"] = val_fraction or 0.1
    config = load_config(folder / "config.yaml")
    assert isinstance(config, PretrainConfig)
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
