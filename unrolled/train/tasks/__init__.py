"""The kinds of runs: which task a configuration stands for."""

from __future__ import annotations

from typing import Any

from torch import nn

from unrolled.train.config import DistillConfig, MaskedConfig, RunConfig, TextConfig, TrainConfig
from unrolled.train.task import Task
from unrolled.train.tasks.classify import Classify
from unrolled.train.tasks.distill import SelfDistillation
from unrolled.train.tasks.language import Language
from unrolled.train.tasks.masked import MaskedReconstruction

TASKS: dict[type[RunConfig], Any] = {
    TrainConfig: Classify,
    MaskedConfig: MaskedReconstruction,
    DistillConfig: SelfDistillation,
    TextConfig: Language,
}


def task_of(config: RunConfig, data: Any = None, model: nn.Module | None = None) -> Task:
    """The task of a run, with the model of its kind in place of "auto".

    Args:
        config: of one of the kinds of `TASKS`.
        data: to train on instead of what `config.data` names.
        model: to train instead of the one `config.model` names.

    Raises:
        ValueError: the configuration is of no kind, or it fine-tunes from weights that do not say what they are of.
    """
    kind = next((TASKS[cls] for cls in type(config).__mro__ if cls in TASKS), None)
    if kind is None:
        names = ", ".join(cls.__name__ for cls in TASKS)
        raise ValueError(f"config: {type(config).__name__} says not what is trained; give one of {names}")
    task: Task = kind(config, data, model)
    return task
