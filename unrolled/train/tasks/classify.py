"""Classification of images, trained from scratch or fine-tuned."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from unrolled.instruments.anatomy import find_stacks
from unrolled.instruments.readouts.confusion import MOST_CLASSES, Confusion, Decisions
from unrolled.instruments.trace import trace
from unrolled.models import MaskedAutoencoder
from unrolled.train.config import FinetuneConfig, TrainConfig
from unrolled.train.evaluation import check_labels, evaluate, logits_of
from unrolled.train.optim import Mixing
from unrolled.train.regularise import orthogonality_loss, srr_loss
from unrolled.train.run import build_model, model_of
from unrolled.train.task import Numbers
from unrolled.train.tasks.images import ImageTask


class Classify(ImageTask):
    """Cross-entropy of classes, smoothed and mixed as the configuration says, with minus the sparse rate reduction of
    the layers' tokens and the price of overlapping subspaces if they have a weight."""

    classifies = True
    config: TrainConfig
    confusion: Confusion | None = None

    def __init__(self, config: TrainConfig, data: Any = None, model: nn.Module | None = None) -> None:
        if isinstance(config, FinetuneConfig) and config.model == "auto" and model is None:
            config = replace(config, **model_of(config))
        super().__init__(config, data, model)

    def new_model(self) -> nn.Module:
        """With as many classes as the images have; of a masked autoencoder the encoder alone, once it has weights."""
        return build_model(self.config, self.data.train)

    def adapt(self, model: nn.Module) -> nn.Module:
        """The classifier of a masked autoencoder; any other model itself."""
        if not isinstance(model, MaskedAutoencoder):
            return model
        if not isinstance(self.config, FinetuneConfig):
            raise ValueError(
                f"model={self.config.model!r} is a masked autoencoder and has no classes: `unrolled pretrain` it, then "
                "`unrolled finetune --weights RUN`; or train a classifier such as crate_nano_patch4_32"
            )
        return model.classifier(self.data.classes)

    def begin(self, model: nn.Module, result: nn.Module, total: int) -> None:
        """Also sees that the layers to regularise exist."""
        super().begin(model, result, total)
        config = self.config
        self.mixing = Mixing(config, self.data.classes) if config.mixup or config.cutmix else None
        self.smoothing = 0.0 if self.mixing else config.label_smoothing
        if config.orthogonality_weight:
            orthogonality_loss(model)
        if config.srr_weight:
            stack = next((stack for stack in find_stacks(model) if not stack.prefix), None)
            if stack is None:
                raise ValueError(f"srr_weight: {config.model} has no transformer layers to take it of; leave it at 0")
            depth = len(stack.blocks)
            chosen = config.srr_layers if config.srr_layers is not None else tuple(range(depth))
            if not chosen or any(not -depth <= layer < depth for layer in chosen):
                raise ValueError(
                    f"srr_layers={list(chosen)}: {config.model} has {depth} layers, 0 to {depth - 1}, or negative from "
                    "the end"
                )
            self.traced = [stack.name(layer % depth) for layer in chosen]

    def inputs(self, fetched: Any, step: int) -> tuple[Tensor, ...]:
        """Images and labels, mixed."""
        check_labels(fetched.labels, fetched.indices, self.data.classes)
        images = fetched.images.to(self.device, non_blocking=True)
        targets = fetched.labels.to(self.device, non_blocking=True)
        return self.mixing(images, targets) if self.mixing is not None else (images, targets)

    def mean_loss(self, wrapped: nn.Module, *part: Tensor) -> tuple[Tensor, Numbers]:
        """As `ImageTask.mean_loss`."""
        images, targets = part
        config = self.config
        numbers: Numbers = {}
        if config.srr_weight:
            with trace(self.model, patterns=self.traced, grad=True) as traced:
                loss = self._cross_entropy(wrapped, images, targets, numbers)
            term = srr_loss(self.model, traced, eps=config.srr_eps, layers=config.srr_layers)
            loss, numbers["srr"] = loss + config.srr_weight * term, -term.detach()
        else:
            loss = self._cross_entropy(wrapped, images, targets, numbers)
        if config.orthogonality_weight:
            term = orthogonality_loss(self.model)
            loss, numbers["orthogonality"] = loss + config.orthogonality_weight * term, term.detach()
        return loss, numbers

    def _cross_entropy(self, wrapped: nn.Module, images: Tensor, targets: Tensor, numbers: Numbers) -> Tensor:
        logits = logits_of(wrapped(images)).float()
        if targets.ndim == 1:  # mixed images have no one class
            numbers["accuracy"] = (logits.detach().argmax(-1) == targets).float().mean()
        return F.cross_entropy(logits, targets, label_smoothing=self.smoothing)

    def scores(self, wrapped: nn.Module, loader: Iterable[Any], on_batch: Callable[[], None]) -> dict[str, Any]:
        """Accuracy and plain cross-entropy; `confusion` is then of the same images."""
        names = self.data.train.classes
        decisions = Decisions(len(names)) if len(names) <= MOST_CLASSES else None

        def decide(logits: Tensor, batch: Any) -> None:
            if decisions is not None and logits.shape[-1] == len(names):
                decisions.add(logits, batch.labels, batch.indices)

        scores = evaluate(
            wrapped, loader, self.device, reduce=self.reduce, on_batch=on_batch, on_logits=decide,
            collective=self.collective,
        )  # fmt: skip
        if decisions is not None:
            fabric = self.fabric
            self.confusion = decisions.result(
                names, reduce=self.reduce, rank=fabric.global_rank, world=fabric.world_size
            )
        return scores

    def goodness(self, scores: dict[str, Any]) -> Any:
        """Accuracy first, then loss."""
        return scores["accuracy"], -scores["loss"]

    def words(self, scores: dict[str, Any]) -> str:
        """As `Task.words`."""
        return f"accuracy {100 * scores['accuracy']:.2f} %"
