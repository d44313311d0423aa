"""Self-supervised pretraining on images: `loop.py` with another objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from unrolled.train.loop import TrainResult, run_objective
from unrolled.train.objectives import Objective
from unrolled.train.pretrain_config import DEFAULT_MODELS, PretrainConfig, check_pretrain
from unrolled.train.run import Splits, build_loaders
from unrolled.train.steps import Callback

if TYPE_CHECKING:
    from unrolled.data import ImageSource


def pretrain(
    config: PretrainConfig,
    *,
    splits: Splits | None = None,
    model: nn.Module | None = None,
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Pretrain on images as `config` says, by completing them or by self-distillation.

    Args:
        config: the run.
        splits: images to use instead of those `config.data` names.
        model: a model to train, in place, instead of the one `config.model` names.
        callbacks: called with every metrics record and the model, on the first process.

    Returns:
        As `fit`; `test` has the scores of `train.masked.evaluate_masked` or `train.distill.evaluate_distilled`. The
        model of self-distillation is the teacher.

    Raises:
        ValueError: a setting or checkpoint this run cannot use, or a model without the objective.
        TrainingStopped: a non-finite loss, an undecodable image, a full disk; it names the last good checkpoint.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP, after saving; the message says how to resume.
    """
    check_pretrain(config)
    return run_objective(objective_of(config), splits=splits, model=model, callbacks=callbacks)


def objective_of(config: PretrainConfig) -> Objective:
    """The objective of a run, with the model of its task in place of "auto"."""
    if config.model == "auto":
        config = replace(config, model=DEFAULT_MODELS[config.task])
    if config.task == "mae":
        from unrolled.train.masked import MaskedReconstruction

        return MaskedReconstruction(config)
    from unrolled.train.distill import SelfDistillation

    return SelfDistillation(config)


def measure_run(
    config: PretrainConfig, model: nn.Module, source: ImageSource, device: torch.device, *, batch_size: int
) -> dict[str, Any]:
    """The scores of the model that a run ended with on other images, in this process.

    Args:
        config: the run's, for its task and how images are loaded; the loss of self-distillation depends on the batch
            size it was trained with.
        model: on `device`.
        source: the images.
        device: where the batches go.
        batch_size: images in one forward pass, which changes no score.
    """
    objective = objective_of(config)
    splits = Splits(train=source)
    model = objective.adapt(model, splits)
    objective.begin(model, splits, total=1, rank=0, device=device)
    loading = replace(config, batch_size=min(batch_size, len(source)), augment=False)
    loaders = build_loaders(loading, splits, model, rank=0, world_size=1)
    loader = loaders.evaluate(source)
    return objective.measure(model, loader, reduce=lambda sums: sums, on_batch=lambda: None, collective=False)
