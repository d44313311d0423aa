"""What networks of `crate-pretrain` are taught, each as a module that gives the loss of a batch and counts its work.

The same crops, mirror images and changes of colour make the views of `sigreg` and of `coding-rate`, and a projector of
the same size stands behind the backbone of both; it is thrown away afterwards.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unrolled.studies.pictures import as_input, augmented
from unrolled.theory import coding_rate
from unrolled.theory.gaussianity import gaussianity, random_directions
from unrolled.train.tasks.distill import balance, crop, distance, draw_boxes

Objective = Literal["mae", "mae-pixels", "sigreg", "coding-rate"]
WORDS: dict[Objective, str] = {
    "mae": "masks, patches normalised",
    "mae-pixels": "masks, pixels",
    "sigreg": "SIGReg",
    "coding-rate": "coding rate",
}
MASK_RATIO = 0.75
_PROJECTED, _HIDDEN = 64, 384
_SCALE = (0.2, 1.0)  # area of a view
_JITTER, _RECOLOURED, _GREY = 0.4, 0.8, 0.2
_GAUSSIAN, _DIRECTIONS = 0.05, 256
_RATE_EPS, _MOMENTUM = 0.71, 0.99


class Learner(nn.Module):
    """A network and what it is taught; `network` is what remains."""

    network: Any

    @abstractmethod
    def loss(self, pixels: Tensor, rows: Tensor, seed: int, step: int) -> Tensor:
        """The loss of a batch of uint8 images `[b, c, h, w]`, by their `rows` in the training images `[b]`.

        What is drawn follows from `seed` and `step`.
        """

    @property
    @abstractmethod
    def operations(self) -> float:
        """Of one training image: a backward pass counts as two forward ones, as usual."""

    def no_weight_decay(self) -> set[str]:
        """What the network itself exempts."""
        return {f"network.{name}" for name in self.network.no_weight_decay()}


class Masked(Learner):
    """Masked autoencoding of shifted and mirrored images."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def loss(self, pixels: Tensor, rows: Tensor, seed: int, step: int) -> Tensor:
        """As `Learner.loss`."""
        generator = _generator(seed, step)
        pixels = pixels if pixels.shape[1] == 1 else augmented(pixels, generator)
        noise = torch.rand(len(pixels), self.network.patch_embed.num_patches, generator=generator)
        device = next(self.network.parameters()).device
        loss: Tensor = self.network(as_input(pixels).to(device), MASK_RATIO, noise.to(device)).loss
        return loss

    @property
    def operations(self) -> float:
        """As `Learner.operations`."""
        return 3 * _forward(self.network, self.network)


class Views(Learner):
    """Two views of every image, and a projector behind the backbone, which is a classifier's without the classifier."""

    def __init__(self, network: Any, seed: int) -> None:
        super().__init__()
        self.network = network
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(104_729 + seed)
            self.projector = nn.Sequential(
                nn.Linear(network.num_features, _HIDDEN),
                nn.BatchNorm1d(_HIDDEN),
                nn.GELU(),
                nn.Linear(_HIDDEN, _PROJECTED),
            )

    def views(self, pixels: Tensor, rows: Tensor, seed: int, step: int) -> Tensor:
        """Two views of every image, `[2 b, c, h, w]`, the first of all before the second of all."""
        boxes = draw_boxes(seed, step, rows, 2, _SCALE, kind=0)
        size = (pixels.shape[2], pixels.shape[3])
        seen = crop(pixels.float() / 255, boxes, size).transpose(0, 1).flatten(0, 1)
        seen = recoloured(seen, _generator(seed, step))
        return as_input(255 * seen).to(next(self.network.parameters()).device)

    @property
    def operations(self) -> float:
        """As `Learner.operations`."""
        return 6 * self._seen_once

    @property
    def _seen_once(self) -> float:
        return _forward(nn.Sequential(self.network, self.projector), self.network)


class Gaussian(Views):
    """Views of an image agree, and projections on random directions are standard normal: LeJEPA (arXiv 2511.08544).

    Departures: two views instead of eight; both terms have the paper's weights, 0.05 and 0.95.
    """

    def loss(self, pixels: Tensor, rows: Tensor, seed: int, step: int) -> Tensor:
        """As `Learner.loss`."""
        z = self.projector(self.network(self.views(pixels, rows, seed, step))).unflatten(0, (2, -1))
        directions = random_directions(z.shape[-1], _DIRECTIONS, _generator(seed, step, 1)).to(z.device)
        apart = (z - z.mean(0)).square().mean()
        spread = torch.stack([gaussianity(view, directions) for view in z]).mean()
        return (1 - _GAUSSIAN) * apart + _GAUSSIAN * spread


class Rate(Views):
    """Views agree with a teacher, the student's average, and a coding rate keeps them apart: after SimDINO.

    The loss is that of `unrolled pretrain --task simdino`, of two views of the size of the image, with a projector and
    changes of colour (arXiv 2502.10385).
    """

    def __init__(self, network: Any, seed: int) -> None:
        super().__init__(network, seed)
        self.teacher = copy.deepcopy(self._student).requires_grad_(False)

    @property
    def _student(self) -> nn.Sequential:
        return nn.Sequential(self.network, self.projector)

    def loss(self, pixels: Tensor, rows: Tensor, seed: int, step: int) -> Tensor:
        """As `Learner.loss`; first the teacher follows the step before."""
        if step:
            self._follow()
        seen = self.views(pixels, rows, seed, step)
        with torch.no_grad():
            taught = _unit(self.teacher(seen))
        student = _unit(self._student(seen))  # [b, 2, d]
        rates = coding_rate(student.transpose(0, 1), _RATE_EPS)
        return distance(student, taught) - balance(len(student), student.shape[-1]) * rates.mean()

    @torch.no_grad()
    def _follow(self) -> None:
        teacher, student = (tuple(part.parameters()) for part in (self.teacher, self._student))
        torch._foreach_lerp_(teacher, student, 1 - _MOMENTUM)

    @property
    def operations(self) -> float:
        """As `Learner.operations`; the teacher sees both views too, forward only."""
        return 8 * self._seen_once


def learner(objective: Objective, network: Any, seed: int) -> Learner:
    """What teaches a network: a masked autoencoder, or a backbone without a classifier."""
    if objective in ("mae", "mae-pixels"):
        return Masked(network)
    return Gaussian(network, seed) if objective == "sigreg" else Rate(network, seed)


def recoloured(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Images `[n, c, h, w]` in [0, 1], four of five with brightness, contrast and saturation changed by up to 40 %, one
    of five grey; clipped to [0, 1]."""
    drawn = torch.rand(5, len(pixels), 1, 1, 1, generator=generator)
    brightness, contrast, saturation = 1 + _JITTER * (2 * drawn[:3] - 1)
    changed = (pixels * brightness).clamp(0, 1)
    middle = _grey(changed).mean((1, 2, 3), keepdim=True)
    changed = (middle + contrast * (changed - middle)).clamp(0, 1)
    changed = (_grey(changed) + saturation * (changed - _grey(changed))).clamp(0, 1)
    changed = torch.where(drawn[3] < _RECOLOURED, changed, pixels)
    return torch.where(drawn[4] < _GREY, _grey(changed).expand_as(pixels), changed)


def passes(network: Any) -> float:
    """Operations of supervised training on one image: forward, and twice as much backward."""
    return 3 * _forward(network, network)


def _grey(pixels: Tensor) -> Tensor:
    if pixels.shape[1] == 1:
        return pixels
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    return (pixels * weights).sum(1, keepdim=True)


def _unit(projected: Tensor) -> Tensor:
    """`[2 b, d]` as features of norm 1, `[b, 2, d]`."""
    return F.normalize(projected, dim=-1).unflatten(0, (2, -1)).transpose(0, 1)


def _forward(module: nn.Module, network: Any) -> float:
    """Operations of the forward pass of one image in training."""
    from unrolled.models.compare import count_flops

    channels = 1 if network.patch_embed.proj.weight.shape[1] == 1 else 3
    two = torch.zeros(2, channels, *network.patch_embed.img_size, device=next(module.parameters()).device)
    state = copy.deepcopy(module).train()  # counting runs it
    with torch.random.fork_rng(devices=[]):
        return math.floor(count_flops(state, two) / 2)


def _generator(seed: int, step: int, part: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(1_000_003 * (2 * seed + part) + step)
