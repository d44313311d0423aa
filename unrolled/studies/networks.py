"""Small vision networks that studies share: one roster, one recipe; the training is a cell.

All see 32-pixel images, or digits, in batches of 128; in one study as many as every other of its networks; so
differences are of the kind, not of the budget. No kind had its recipe tuned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.kinds import KINDS, MASKED, build
from unrolled.studies.pictures import Pictures, as_input, augmented, pictures
from unrolled.studies.training import Checkpoint, Log, MeanLoss, train_resumable, warmup_cosine

Data = Literal["cifar10", "tiny-imagenet-32", "digits"]
Taught = Literal["labels", "half shuffled", "all shuffled"]
NAMES = {"cifar10": "CIFAR-10", "tiny-imagenet-32": "Tiny-ImageNet-32", "digits": "digits"}
BATCH = 128
_PEAK, _WEIGHT_DECAY = 2e-3, 0.05
_MASK_RATIO = 0.75


@dataclass(frozen=True, kw_only=True)
class Network(Cell):
    """One network of the roster and its training.

    Attributes:
        kind: of `KINDS`.
        data: what it is trained on; masked autoencoders without the labels.
        seed: what its weights and batches start from.
        images: seen in training; 0 is the untrained control.
        taught: true labels, or labels of which half or all are drawn anew.
        classes: the only ones it is shown, if not all.
    """

    kind: str
    data: Data
    seed: int
    images: int
    taught: Taught = "labels"
    classes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r}: choose one of {', '.join(KINDS)}")
        if 0 < self.images < BATCH:
            raise ValueError(f"images={self.images}: give at least one batch, {BATCH}, or 0 for an untrained network")

    @property
    def words(self) -> str:
        """What tables call it."""
        return KINDS[self.kind].words

    @property
    def awaited(self) -> bool:
        """Whether there is anything to train."""
        return self.images > 0

    @property
    def masked(self) -> bool:
        """Whether it is a masked autoencoder."""
        return self.kind in MASKED

    @property
    def sound(self) -> bool:
        """Whether it was taught true labels of all classes."""
        return self.images > 0 and self.taught == "labels" and not self.classes

    def require(self, context: Context) -> None:
        """The images it is trained and tested on."""
        pictures(self.data, "test", context.data_dir)

    def compute(self, context: Context) -> Result:
        """`parameters`, `curve` (training loss, mean since the point before), and its score on test images.

        The score is the `accuracy` on all of them (of its classes), or of a masked autoencoder its `loss` on the first
        2,000.
        """
        model, curve = self._trained(context)
        test = pictures(self.data, "test", context.data_dir)
        score = reconstruction(model, test) if self.masked else accuracy(model, test.of_classes(self.classes))
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return {"parameters": parameters, "curve": curve, "loss" if self.masked else "accuracy": score}

    def load(self, context: Context) -> nn.Module:
        """The network, in eval mode; from the store if it was trained before."""
        return self._trained(context)[0]

    def _trained(self, context: Context) -> tuple[nn.Module, Log]:
        test = pictures(self.data, "test", context.data_dir)
        channels, side = test.images.shape[1], test.images.shape[-1]
        model = build(self, classes=len(test.classes), channels=channels, side=side).to(context.device)
        if not self.images:
            return model.eval(), []
        curve = train(self, model, lambda: self.lessons(context), self.checkpoint(context))
        return model.eval(), curve

    def lessons(self, context: Context) -> Pictures:
        """The training images, with the labels it is taught."""
        shown = pictures(self.data, "train", context.data_dir).of_classes(self.classes)
        return replace(shown, labels=taught_labels(self.taught, shown.labels, len(shown.classes), self.seed))


@dataclass(frozen=True, kw_only=True)
class OfNetwork(Cell):
    """What is measured of a network of the roster."""

    network: Network

    def require(self, context: Context) -> None:
        """The images."""
        self.network.require(context)


def taught_labels(taught: Taught, labels: Tensor, classes: int, seed: int) -> Tensor:
    """`labels` [n] as they are taught."""
    if taught == "labels":
        return labels
    # drawn anew instead of permuted, so that every class stays about as frequent and none keeps its images
    generator = torch.Generator().manual_seed(7919 + seed)
    drawn = torch.randint(classes, labels.shape, generator=generator)
    wrong = torch.rand(labels.shape, generator=generator) < (0.5 if taught == "half shuffled" else 1.0)
    return torch.where(wrong, drawn, labels)


def images_seen(images: int, data: Data) -> int:
    """How many images training shows where it is to show `images`: of 200 classes half as many again."""
    return round(1.5 * images) if data == "tiny-imagenet-32" else images


def train(network: Any, model: nn.Module, read: Callable[[], Pictures], keep: Checkpoint | None) -> Log:
    """Train `model` in place on `network.images` images; the mean loss since the look before, at ten looks."""
    from unrolled.instruments.trace import trace
    from unrolled.train.regularise import srr_loss

    steps = network.images // BATCH
    masked, weight = network.kind in MASKED, KINDS[network.kind].rate
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad], lr=_PEAK, weight_decay=_WEIGHT_DECAY
    )
    model.train()
    lessons = cache(read)  # a finished network needs no training images

    def loss_at(step: int) -> Tensor:
        lesson = lessons()
        generator = torch.Generator().manual_seed(1_000_003 * network.seed + step)
        rows = torch.randint(len(lesson.labels), (BATCH,), generator=generator)
        images = lesson.images[rows]
        if network.data != "digits":  # digits fill their images and are not symmetric
            images = augmented(images, generator)
        batch = as_input(images).to(device)
        if masked:
            grid: Any = model.patch_embed
            noise = torch.rand(BATCH, grid.num_patches, generator=generator).to(device)
            loss: Tensor = model(batch, _MASK_RATIO, noise)[0]
        elif weight:
            with trace(model, patterns="block*", grad=True) as layers:
                loss = nn.functional.cross_entropy(model(batch), lesson.labels[rows].to(device))
            loss = loss + weight * srr_loss(model, layers, eps=0.5)
        else:
            loss = nn.functional.cross_entropy(model(batch), lesson.labels[rows].to(device))
        return loss

    often, mean = max(1, steps // 10), MeanLoss(loss_at)
    return train_resumable(
        model,
        optimizer,
        mean.at,
        steps=steps,
        keep=keep,
        rate=warmup_cosine(_PEAK, warmup=max(1, steps // 20), steps=steps),
        clip_norm=1.0,
        look=mean.look,
        look_at=range(often, steps + 1, often),
        every=often,
    )


def accuracy(model: nn.Module, test: Pictures) -> float:
    """Share of test images the model gets right."""
    device = next(model.parameters()).device
    with torch.no_grad():
        guesses = [model(as_input(part).to(device)).argmax(1).cpu() for part in test.images.split(500)]
    return float((torch.cat(guesses) == test.labels).double().mean())


def probe_accuracy(fit: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int) -> float:
    """Accuracy on `test` of a ridge classifier fitted on `fit`, each (features [n, d], labels [n])."""
    from unrolled.instruments.readouts.probes import fit_readout

    readout = fit_readout(fit[0], nn.functional.one_hot(fit[1], classes).double())
    return float((readout(test[0]).argmax(-1) == test[1]).double().mean())


def reconstruction(model: nn.Module, test: Pictures, count: int = 2000) -> float:
    """Loss of a masked autoencoder on the first `count` test images, masks from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    images = test.images[:count]
    patch: Any = model.patch_embed
    rows, columns = patch.grid_size
    noise = torch.rand(len(images), rows * columns, generator=generator)
    device = next(model.parameters()).device
    total = 0.0
    with torch.no_grad():
        for part, drawn in zip(images.split(500), noise.split(500), strict=True):
            total += len(part) * float(model(as_input(part).to(device), _MASK_RATIO, drawn.to(device))[0])
    return total / len(images)
