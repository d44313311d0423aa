"""What a run on images minimises, behind the few calls the loop makes; classification, the first of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unrolled.train.config import FinetuneConfig, TrainConfig
from unrolled.train.evaluation import check_labels, evaluate, logits_of
from unrolled.train.optim import Mixing
from unrolled.train.regularise import orthogonality_loss, srr_loss
from unrolled.train.run import Splits, build_model

Numbers = dict[str, Tensor]


class Objective:
    """A loss on batches of images, and how a model is measured by it.

    Whatever is random in it must follow from (seed, step, image), and whatever it learns besides the model must be in
    `tensors`; then a run that is killed and resumed ends like one that was not.
    """

    selects: ClassVar[bool] = True
    """Whether the best validation chooses the weights the run ends with; otherwise they are the last."""
    augments: ClassVar[bool] = True
    """Whether images come augmented; otherwise as for evaluation, because the objective makes its own views."""
    classifies: ClassVar[bool] = False
    """Whether the model's outputs stand for the classes of the images."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def build(self, splits: Splits) -> nn.Module:
        """The model `config` names, randomly initialised."""
        raise NotImplementedError

    def adapt(self, model: nn.Module, splits: Splits) -> nn.Module:
        """The model that is trained, given the one the weights have been loaded into."""
        return model

    def begin(self, model: nn.Module, splits: Splits, *, total: int, rank: int, device: torch.device) -> None:
        """Called once, with the model on its device, before a checkpoint is restored; `total` is in steps."""
        self.model, self.splits, self.total, self.rank, self.device = model, splits, total, rank, device

    def batch(self, batch: Any, step: int) -> tuple[Tensor, ...]:
        """What the loss of a step is made of, on the device, image by image along the first dimension."""
        raise NotImplementedError

    def loss(self, wrapped: nn.Module, *part: Tensor) -> tuple[Tensor, Numbers]:
        """The mean loss of (a part of) what `batch` returned, and further scalars to log."""
        raise NotImplementedError

    def after_step(self, step: int) -> None:
        """Called when the weights have changed for the `step`-th time."""

    def tensors(self) -> dict[str, Tensor]:
        """State besides the model's, live, for checkpoints."""
        return {}

    def finish(self) -> None:
        """Called when training has ended and the model holds the weights that were chosen."""

    def measure(
        self,
        wrapped: nn.Module,
        loader: Iterable[Any],
        *,
        reduce: Callable[[Tensor], Tensor],
        on_batch: Callable[[], None],
        collective: bool,
    ) -> dict[str, Any]:
        """Scores, `loss` among them, on all images of a loader, as `evaluation.evaluate`."""
        raise NotImplementedError

    def goodness(self, scores: dict[str, Any]) -> Any:
        """Of validation scores: the best are those of the largest value."""
        return -scores["loss"]

    def words(self, scores: dict[str, Any]) -> str:
        """Validation scores in words."""
        return f"loss {scores['loss']:.4f}"


class Classify(Objective):
    """Cross-entropy of classes, smoothed and mixed as the configuration says, with minus the sparse rate reduction of
    the layers' tokens if it has a weight."""

    classifies = True

    def build(self, splits: Splits) -> nn.Module:
        """With as many classes as the images have; of a masked autoencoder the encoder alone, once it has weights."""
        return build_model(self.config, splits.train)

    def adapt(self, model: nn.Module, splits: Splits) -> nn.Module:
        """The classifier of a masked autoencoder; any other model itself."""
        from unrolled.models import MaskedAutoencoder

        if not isinstance(model, MaskedAutoencoder):
            return model
        if not isinstance(self.config, FinetuneConfig):
            raise ValueError(
                f"model={self.config.model!r} is a masked autoencoder and has no classes: `unrolled pretrain` it, then "
                "`unrolled finetune --weights RUN`; or train a classifier such as crate_nano_patch4_32"
            )
        return model.classifier(splits.classes)

    def begin(self, model: nn.Module, splits: Splits, *, total: int, rank: int, device: torch.device) -> None:
        """Also sees that the layers to regularise exist."""
        super().begin(model, splits, total=total, rank=rank, device=device)
        config: TrainConfig = self.config
        self.mixing = Mixing(config, splits.classes) if config.mixup or config.cutmix else None
        self.smoothing = 0.0 if self.mixing else config.label_smoothing
        if config.orthogonality_weight:
            orthogonality_loss(model)
        if config.srr_weight:
            from unrolled.instruments.anatomy import find_stacks

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

    def batch(self, batch: Any, step: int) -> tuple[Tensor, ...]:
        """Images and labels, mixed."""
        check_labels(batch.labels, batch.indices, self.splits.classes)
        inputs = batch.images.to(self.device, non_blocking=True)
        targets = batch.labels.to(self.device, non_blocking=True)
        return self.mixing(inputs, targets) if self.mixing is not None else (inputs, targets)

    def loss(self, wrapped: nn.Module, *part: Tensor) -> tuple[Tensor, Numbers]:
        """As `Objective.loss`."""
        images, targets = part
        config: TrainConfig = self.config
        numbers: Numbers = {}
        if config.srr_weight:
            from unrolled.instruments.trace import trace

            with trace(self.model, patterns=self.traced, grad=True) as traced:
                loss = self._cross_entropy(wrapped, images, targets)
            term = srr_loss(self.model, traced, eps=config.srr_eps, layers=config.srr_layers)
            loss, numbers["srr"] = loss + config.srr_weight * term, -term.detach()
        else:
            loss = self._cross_entropy(wrapped, images, targets)
        if config.orthogonality_weight:
            term = orthogonality_loss(self.model)
            loss, numbers["orthogonality"] = loss + config.orthogonality_weight * term, term.detach()
        return loss, numbers

    def _cross_entropy(self, wrapped: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        logits = logits_of(wrapped(images)).float()
        return F.cross_entropy(logits, targets, label_smoothing=self.smoothing)

    def measure(
        self,
        wrapped: nn.Module,
        loader: Iterable[Any],
        *,
        reduce: Callable[[Tensor], Tensor],
        on_batch: Callable[[], None],
        collective: bool,
    ) -> dict[str, Any]:
        """Accuracy and plain cross-entropy."""
        return evaluate(wrapped, loader, self.device, reduce=reduce, on_batch=on_batch, collective=collective)

    def goodness(self, scores: dict[str, Any]) -> Any:
        """Accuracy first, then loss."""
        return scores["accuracy"], -scores["loss"]

    def words(self, scores: dict[str, Any]) -> str:
        """As `Objective.words`."""
        return f"accuracy {100 * scores['accuracy']:.2f} %"
