"""Classification of images, trained from scratch or fine-tuned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unrolled.data import model_input
from unrolled.instruments.readouts.confusion import MOST_CLASSES, Confusion, Decisions
from unrolled.instruments.trace import trace
from unrolled.models import MaskedAutoencoder
from unrolled.train.config import FinetuneConfig, TrainConfig
from unrolled.train.evaluation import check_labels, evaluate, logits_of
from unrolled.train.optim import Mixing
from unrolled.train.regularise import layer_names, main_stack, orthogonality_loss, srr_loss
from unrolled.train.run import build_model, drawn_evenly, model_of
from unrolled.train.task import Numbers
from unrolled.train.tasks.images import ImageTask
from unrolled.train.teacher import Teacher, divergence
from unrolled.train.whitening import IMAGES, whiten_stem


class Classify(ImageTask):
    """Cross-entropy of classes, smoothed and mixed as the configuration says, with what else has a weight: minus the
    sparse rate reduction of the layers' tokens, the price of overlapping subspaces, what a teacher says."""

    classifies = True
    config: TrainConfig
    confusion: Confusion | None = None
    teacher: Teacher | None = None

    def __init__(self, config: TrainConfig, data: Any = None, model: nn.Module | None = None) -> None:
        if isinstance(config, FinetuneConfig) and config.model == "auto" and model is None:
            config = replace(config, **model_of(config))
        super().__init__(config, data, model)

    def open(self, fabric: Any) -> None:
        """Also opens the teacher, before anything of the run is drawn."""
        super().open(fabric)
        if self.config.teacher is not None:
            self.teacher = Teacher(self.config.teacher)
            self.teacher_digest = self.teacher.digest

    def build(self, *, resumed: bool) -> nn.Module:
        """Also whitens the stem, and makes what is learned beside the model, drawn after it: the model begins as
        without a teacher."""
        model = super().build(resumed=resumed)
        if self.config.whiten_stem and not resumed:
            count = min(IMAGES, len(self.data.train))
            some = drawn_evenly(self.data.train, count, "whiten_stem")  # sets are often sorted by class
            whiten_stem(model, (batch.images for batch in self.loaders.once(some)))
        if self.teacher is not None:
            self.teacher.meet(model, self.config, self.data.train)
            self.beside = self.teacher.projector
        return model

    def tensors(self) -> dict[str, Tensor]:
        """The projector of an aligned layer."""
        if self.teacher is None or self.teacher.projector is None:
            return {}
        return {f"projector.{name}": tensor for name, tensor in self.teacher.projector.state_dict().items()}

    def notes(self) -> list[str]:
        """Also of the teacher."""
        return [*super().notes(), *([] if self.teacher is None else [f"teacher: {self.teacher.words}"])]

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
        if config.small_size is not None:
            _check_small(model, config.small_size, self.loaders.size)
        if config.orthogonality_weight:
            orthogonality_loss(model)
        self.traced: list[str] = []
        if config.srr_weight:
            stack = main_stack(model, "srr_weight", config.model)
            chosen = list(range(len(stack.blocks)) if config.srr_layers is None else config.srr_layers)
            self.traced = layer_names(stack, chosen, f"srr_layers={chosen}", config.model)
        if self.teacher is not None:
            self.teacher.module.to(self.device)
            self.traced += [self.teacher.layer] if config.align_weight else []

    def start(self, step: int, steps: int) -> None:
        """As `Task.start`; a teacher that will see the same views again and again is asked once."""
        super().start(step, steps)
        fixed = not self.config.augment and self.mixing is None
        if self.teacher is not None and fixed and self.total > self.steps_per_epoch and steps:
            self.teacher.remember(self.loaders.once(self.data.train), len(self.data.train), self.device)

    def inputs(self, fetched: Any, step: int) -> tuple[Tensor, ...]:
        """Images and labels, mixed, and where there is a teacher which images they are."""
        check_labels(fetched.labels, fetched.indices, self.data.classes)
        images = fetched.images.to(self.device, non_blocking=True)
        targets = fetched.labels.to(self.device, non_blocking=True)
        images = self._smaller(images, step)
        images, targets = self.mixing(images, targets) if self.mixing is not None else (images, targets)
        return (images, targets) if self.teacher is None else (images, targets, fetched.indices)

    def _smaller(self, images: Tensor, step: int) -> Tensor:
        """Images `[b, c, h, w]` of `small_size` in the first steps."""
        side = self.config.small_size
        if side is None or step >= round(self.config.small_share * self.total):
            return images
        return F.interpolate(images, size=_small(side, images.shape[-2:]), mode="bilinear", antialias=True)

    def mean_loss(self, wrapped: nn.Module, *part: Tensor) -> tuple[Tensor, Numbers]:
        """As `ImageTask.mean_loss`."""
        images, targets, *indices = part
        config = self.config
        numbers: Numbers = {}
        looked_at: Any = trace(self.model, patterns=self.traced, grad=True) if self.traced else nullcontext({})
        with looked_at as traced:
            logits = logits_of(wrapped(images)).float()
        if targets.ndim == 1:  # mixed images have no one class
            numbers["accuracy"] = (logits.detach().argmax(-1) == targets).float().mean()
        loss = F.cross_entropy(logits, targets, label_smoothing=self.smoothing)
        if config.srr_weight:
            term = srr_loss(self.model, traced, eps=config.srr_eps, layers=config.srr_layers)
            loss, numbers["srr"] = loss + config.srr_weight * term, -term.detach()
        if config.orthogonality_weight:
            term = orthogonality_loss(self.model)
            loss, numbers["orthogonality"] = loss + config.orthogonality_weight * term, term.detach()
        if self.teacher is not None:
            answer = self.teacher(images, *indices)
            if config.align_weight:
                term = self.teacher.misalignment(traced[self.teacher.layer], answer, self.beside)
                loss, numbers["misalignment"] = loss + config.align_weight * term, term.detach()
            if answer.logits is not None:
                term = divergence(logits, answer.logits, config.distil_temperature)
                loss, numbers["divergence"] = loss + config.distil_weight * term, term.detach()
        return loss, numbers

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


def _small(side: int, size: Sequence[int]) -> tuple[int, int]:
    """Images of `size` whose shorter side becomes `side`."""
    height, width = size
    return round(height * side / min(size)), round(width * side / min(size))


def _check_small(model: nn.Module, side: int, size: tuple[int, int]) -> None:
    """Refuse a `small_size` that is not smaller, or that the model does not take.

    Raises:
        ValueError: so it is.
    """
    if side >= min(size):
        raise ValueError(f"small_size={side}: is no smaller than the images, {size[0]} x {size[1]} pixels")
    channels = model_input(model)["input_size"][0]
    images = next(model.parameters()).new_zeros(1, channels, *_small(side, size))
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(images)
    except (ValueError, AssertionError, RuntimeError) as error:
        raise ValueError(f"small_size={side}: the model does not take such images: {error}") from error
    finally:
        model.train(training)
