"""`unrolled eval` of runs of pretraining."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from unrolled.commands.eval.options import EvalOptions, drawn, of_all
from unrolled.harness import Run
from unrolled.subjects.images import say_data
from unrolled.subjects.models import choose_device, open_model
from unrolled.subjects.runs import named
from unrolled.train.config import PretrainConfig


def evaluate_pretrained(options: EvalOptions) -> None:
    """The loss a run of pretraining was trained on, of the model it ended with, on a split."""
    from unrolled.commands.pretrain_report import evaluation_report, words
    from unrolled.data import open_images
    from unrolled.train import load_config
    from unrolled.train.fitting import measure_run
    from unrolled.train.run import drawn_evenly

    if options.labels is not None or options.robustness:
        raise ValueError("--labels and --robustness are for classifiers; leave them out, or probe this run")
    options.refuse("image_size", "pretrained", "model_args")
    options, data = options.divided()
    config = load_config(Path(named(options.model).removeprefix("local:")).expanduser() / "config.yaml")
    assert isinstance(config, PretrainConfig)
    config = replace(
        config, data=data.data, data_dir=data.data_dir, image_size=data.image_size, split_seed=options.split_seed or 0,
        val_fraction=options.val_fraction or 0.0, accumulate=1, devices=1, num_nodes=1, workers=options.workers,
        on_error=options.on_error,
    )  # fmt: skip
    where = choose_device(options.device)
    everything = open_images(
        config.data, options.split, data_dir=config.data_dir, val_fraction=config.val_fraction,
        seed=config.split_seed, unknown_classes="skip",
    )  # fmt: skip
    say_data(quiet=options.quiet, **{options.split: everything})
    source = drawn_evenly(everything, options.samples, f"--samples {options.samples}")
    network = open_model(replace(options, seed=config.seed)).to(where)
    run = Run(options, "eval", options.model, config.data)
    scores = measure_run(config, network, source, where, batch_size=options.batch_size or 128)
    result = {
        "model": options.model,
        "task": config.task,
        "data": config.data,
        "split": options.split,
        **drawn(options.samples, len(everything)),
        **scores,
        "images_per_second": scores["images"] / run.seconds,
    }
    text = (
        f"{options.model} on {config.data} ({options.split}): {words(config.task, scores)}, "
        f"{scores['images']:,} images{of_all(result)}"
    )
    run.finish(evaluation_report(config, network, source, result), result, text, seeds=[], options=options)
