"""The model of a run that was stopped before it wrote one: its newest checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from unrolled.errors import MissingData
from unrolled.models import MaskedAutoencoder
from unrolled.models.building import check_finite_weights
from unrolled.train.checkpoint import check_architecture, checkpoints, load_newest
from unrolled.train.config import TrainConfig
from unrolled.train.config_files import load_config
from unrolled.train.run import build_model

if TYPE_CHECKING:
    from unrolled.data import ImageSource


def is_unfinished(run: Path) -> bool:
    """Whether `run` is the folder of a training run with checkpoints and without the model a run ends with."""
    return (
        (run / "config.yaml").is_file()
        and not any((place / "config.json").is_file() for place in (run, run / "model"))
        and bool(checkpoints(run / "checkpoints"))
    )


def newest_model(run: Path, source: ImageSource) -> tuple[nn.Module, int]:
    """The model of an image classifier's newest good checkpoint, in eval mode, and the step it is from.

    Its weights are the moving average where the run keeps one, else those of the step; never those of the best
    validation so far, which the finished run may end with.

    Args:
        run: its folder.
        source: images of any data set; of a run that does not say what its classes are, of its own.

    Raises:
        MissingData: there is no checkpoint.
        CorruptFile: all checkpoints are damaged.
        ValueError: the configuration makes another architecture.
        UnsafeFile: the configuration names code, and nobody said to trust it; see `unrolled.trust`.
    """
    config = load_config(run / "config.yaml", TrainConfig)
    newest = load_newest(run / "checkpoints")
    if newest is None:
        raise MissingData(f"model: {run} has no checkpoint")
    path, tensors, state = newest
    parts = {
        part: {name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}
        for part in ("average/", "model/")
    }
    weights = parts["average/"] or parts["model/"]
    classes = state.get("classes") or source.classes
    model: Any = build_model(config, source, len(classes))
    if isinstance(model, MaskedAutoencoder):  # fine-tuned as a classifier, see `Classify.adapt`
        model = model.classifier(len(classes))
    check_architecture(model, weights, path)
    model.load_state_dict(weights)
    model.pretrained_cfg = {**(getattr(model, "pretrained_cfg", None) or {}), "label_names": state.get("classes") or ()}
    check_finite_weights(model, path)
    return model.eval(), int(state["step"])
