r"""Self-distillation kept from collapsing by a coding rate: SimDINO.

Source: Simplifying DINO via Coding Rate Regularization, arXiv 2502.10385. With z the class token's features of a view,
divided by their norm, the student minimises

$$\tfrac{1}{2}\,\mathbb{E}\,\|z_s(v) - z_t(g)\|^2 - \gamma\, R_\epsilon\big(Z_s(g)\big), \qquad
  R_\epsilon(Z) = \tfrac{1}{2} \log\det\Big(I + \frac{d}{n \epsilon^2} Z^\top Z\Big)$$

over pairs of a large view g, which the teacher sees, and any other view v of the same image. R is
`theory.coding_rate` of the features of n images: the layers of a CRATE take steps on the same objective.

Departures: the features are the backbone's own, without a projector; R is of the student's features, as in the paper
(published code: of their mean with the teacher's); weight decay is constant; views are cropped and flipped out of the
image at the model's input size, without changes of colour.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unrolled.models import MaskedAutoencoder
from unrolled.modes import evaluating
from unrolled.theory import coding_rate
from unrolled.train.config import DistillConfig
from unrolled.train.evaluation import logits_of
from unrolled.train.optim import copy_into
from unrolled.train.task import Numbers
from unrolled.train.tasks.images import HELD_OUT_SEED, ImageTask

_SHAPE = (math.log(3 / 4), math.log(4 / 3))  # of a crop, as log(width / height)


def balance(images: int, dim: int) -> float:
    """gamma of `rate_weight` 1: 1 / dim + 1 / images, as published, so that both terms pull about equally."""
    return 1 / dim + 1 / images


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the mean squared distance over pairs of views.

    Args:
        student: `[b, v, d]`, the first g of the v views being the large ones.
        teacher: `[b, g, d]`.

    Returns:
        A scalar; a view is not compared with itself.
    """
    squares = (student[:, :, None] - teacher[:, None]).square().sum(-1)  # [b, v, g]
    other = ~torch.eye(student.shape[1], teacher.shape[1], dtype=torch.bool, device=student.device)
    return 0.5 * squares[:, other].mean()


def draw_boxes(seed: int, step: int, indices: Tensor, views: int, scale: tuple[float, float], *, kind: int) -> Tensor:
    """Where to crop: `[b, views, 5]` of centre x, centre y, width, height (shares of the image) and flip (0 or 1).

    They follow from (seed, step, image, kind) alone. The area is uniform in `scale`, the shape log-uniform from 3 / 4
    to 4 / 3, as far as it fits into the image.
    """
    drawn = [
        np.random.Generator(np.random.SFC64([seed, step, int(index), 6 + kind])).random((views, 5)) for index in indices
    ]
    u = np.stack(drawn) if drawn else np.zeros((0, views, 5))
    area = scale[0] + (scale[1] - scale[0]) * u[..., 0]
    shape = np.exp(_SHAPE[0] + (_SHAPE[1] - _SHAPE[0]) * u[..., 1])
    width, height = np.minimum(np.sqrt(area * shape), 1), np.minimum(np.sqrt(area / shape), 1)
    x, y = width / 2 + (1 - width) * u[..., 2], height / 2 + (1 - height) * u[..., 3]
    return torch.from_numpy(np.stack([x, y, width, height, u[..., 4] < 0.5], -1)).float()


def crop(images: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes `[b, v, 5]` of `draw_boxes` cut out of images `[b, c, h, w]` and resized: `[b, v, c, *size]`."""
    b, v = boxes.shape[:2]
    c = images.shape[1]
    if b * v == 0:
        return images.new_zeros(b, v, c, *size)
    x, y, width, height, flip = boxes.flatten(0, 1).to(images.device).unbind(-1)
    theta = images.new_zeros(b * v, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = width * (1 - 2 * flip), 2 * x - 1
    theta[:, 1, 1], theta[:, 1, 2] = height, 2 * y - 1
    grid = F.affine_grid(theta, [b * v, c, *size], align_corners=False)
    repeated = images[:, None].expand(-1, v, -1, -1, -1).flatten(0, 1)
    cut = F.grid_sample(repeated, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return cut.unflatten(0, (b, v))


class SelfDistillation(ImageTask):
    """A student that agrees with its own average about the views of an image, while its features stay spread out.

    Under accumulation, and in several processes, the coding rate is that of the images which one pass sees together.
    """

    selects: ClassVar[bool] = False
    config: DistillConfig

    def __init__(self, config: DistillConfig, data: Any = None, model: nn.Module | None = None) -> None:
        if config.model == "auto":
            config = replace(config, model="crate_nano_patch4_32")
        super().__init__(config, data, model)

    def adapt(self, model: nn.Module) -> nn.Module:
        """The model itself.

        Raises:
            ValueError: it is a masked autoencoder, whose output is no feature.
        """
        if isinstance(model, MaskedAutoencoder):
            raise ValueError(
                f"model={self.config.model!r} is a masked autoencoder, whose output is no feature; choose a backbone "
                "such as crate_nano_patch4_32, or task='mae'"
            )
        return model

    def begin(self, model: nn.Module, result: nn.Module, total: int) -> None:
        """Also makes the teacher, equal to the student."""
        from unrolled.data import model_input

        super().begin(model, result, total)
        config = self.config
        expects = model_input(model, native_size=self.data.train.native_size, image_size=config.image_size)
        channels, *sides = expects["input_size"]
        patch = getattr(getattr(model, "patch_embed", None), "patch_size", (1, 1))
        patch = (patch, patch) if isinstance(patch, int) else tuple(patch)
        self.large = (sides[0], sides[1])
        half = [max(p, round(side / 2 / p) * p) for side, p in zip(sides, patch, strict=True)]
        self.small = (half[0], half[1]) if config.local_size is None else (config.local_size, config.local_size)
        self.teacher = copy.deepcopy(model).requires_grad_(False)
        self.teacher.eval()
        self._check(channels)

    def _check(self, channels: int) -> None:
        """Raise `ValueError` unless the model makes features of both sizes."""
        for size, what in ((self.large, "images"), (self.small, "small views")):
            if what == "small views" and not self.config.local_crops:
                continue
            try:
                with torch.no_grad():
                    features = logits_of(self.teacher(torch.zeros(1, channels, *size, device=self.device)))
            except (AssertionError, RuntimeError, ValueError) as error:
                raise ValueError(
                    f"local_size: {self.config.model} takes no {what} of {size[0]} x {size[1]} pixels ({error}); give "
                    f"local_size {self.large[0]}, or local_crops 0"
                ) from error
            if not isinstance(features, Tensor) or features.dim() != 2:
                raise ValueError(
                    f"model={self.config.model!r} gives no feature vector for an image; choose a backbone such as "
                    "crate_nano_patch4_32"
                )

    def views(self, images: Tensor, indices: Tensor, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Two large views and the small ones: `[b, 2, c, h, w]` and `[b, local_crops, c, h', w']`."""
        config = self.config
        large = draw_boxes(seed, step, indices, 2, config.global_scale, kind=0)
        small = draw_boxes(seed, step, indices, config.local_crops, config.local_scale, kind=1)
        return crop(images, large, self.large), crop(images, small, self.small)

    def inputs(self, fetched: Any, step: int) -> tuple[Tensor, ...]:
        """As `views`, of the images of a step."""
        images = fetched.images.to(self.device, non_blocking=True)
        return self.views(images, fetched.indices, self.config.seed, step)

    def mean_loss(self, wrapped: nn.Module, *part: Tensor) -> tuple[Tensor, Numbers]:
        """As `ImageTask.mean_loss`; further `distance` and `rate`."""
        config = self.config
        student, teacher = self._features(wrapped, *part)
        apart = distance(student, teacher)
        rates = coding_rate(student[:, : teacher.shape[1]].transpose(0, 1), config.rate_eps)  # of each large view
        rate = rates.mean()
        gamma = config.rate_weight * balance(len(student), student.shape[-1])
        loss = apart - gamma * rate if gamma else apart
        return loss, {"distance": apart.detach(), "rate": rate.detach()}

    def _features(self, wrapped: nn.Module, large: Tensor, small: Tensor) -> tuple[Tensor, Tensor]:
        """Unit features of the student `[b, 2 + local_crops, d]` and of the teacher `[b, 2, d]`."""
        parts = [_unit(wrapped(views.flatten(0, 1)), views) for views in (large, small) if views.shape[1]]
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.precision)
        with torch.no_grad(), torch.autocast(self.device.type, half, enabled=half is not None):
            taught = _unit(self.teacher(large.flatten(0, 1)), large)
        return torch.cat(parts, 1), taught

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """The teacher follows: by 1 - momentum, which falls to 0 along a cosine."""
        rest = (1 - self.config.teacher_momentum) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.total)))
        student = self.model.state_dict()
        for name, tensor in self.teacher.state_dict().items():
            if tensor.is_floating_point():
                tensor.lerp_(student[name], rest)
            else:
                tensor.copy_(student[name])

    def tensors(self) -> dict[str, Tensor]:
        """The teacher."""
        return self.teacher.state_dict()

    def finish(self) -> None:
        """The run ends with the teacher."""
        copy_into(self.model, self.teacher.state_dict())

    @torch.no_grad()
    def scores(self, wrapped: nn.Module, loader: Iterable[Any], on_batch: Callable[[], None]) -> dict[str, Any]:
        """How far student and teacher are apart on fixed views, and the coding rate of the features of all images.

        At the end of a run, when the model is the teacher, both are the teacher.

        Returns:
            `distance`, half the mean squared one; `rate` of the student's features, in nats, and what it can be:
            `collapsed_rate` if all are equal, `largest_rate` if they lie in all directions alike; `loss` of both, and
            `images`, `skipped`.

        Raises:
            ValueError: nothing to evaluate.
        """
        config = self.config
        counts, second = torch.zeros(3, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
        with evaluating(wrapped):
            for batch in loader:
                images = batch.images.to(self.device, non_blocking=True)
                if len(images) == 0:  # then the others wait in their forward pass
                    images = images.new_zeros(1, *images.shape[1:]) if self.collective else images
                indices = batch.indices if len(batch.indices) else torch.zeros(len(images), dtype=torch.long)
                counts[2] += len(batch.skipped)
                if len(images):
                    student, teacher = self._features(wrapped, *self.views(images, indices, HELD_OUT_SEED, 0))
                    flat = student[:, : teacher.shape[1]].flatten(0, 1).double().cpu()
                    moment = flat.T @ flat / teacher.shape[1]
                    second = moment * 0 if len(second) == 0 else second
                    if len(batch.indices):
                        counts[0] += len(images)
                        counts[1] += distance(student, teacher).double().cpu() * len(images)
                        second = second + moment
                on_batch()
        sums = self.reduce(torch.cat([counts, second.flatten()]))
        count, apart, skipped = sums[:3].tolist()
        if count == 0:
            raise ValueError("nothing to evaluate: the split is empty or no image in it could be read")
        dim = math.isqrt(len(sums) - 3)
        eye = torch.eye(dim, dtype=sums.dtype)
        scale = dim / config.rate_eps**2
        rate = 0.5 * float(torch.linalg.slogdet(eye + scale / count * sums[3:].view(dim, dim)).logabsdet)
        gamma = config.rate_weight * balance(min(config.batch_size, int(count)), dim)
        return {
            "loss": apart / count - gamma * rate,
            "distance": apart / count,
            "rate": rate,
            "collapsed_rate": 0.5 * math.log1p(scale),
            "largest_rate": 0.5 * dim * math.log1p(1 / config.rate_eps**2),
            "images": int(count),
            "skipped": int(skipped),
        }

    def words(self, scores: dict[str, Any]) -> str:
        """As `Task.words`."""
        return (
            f"distance {scores['distance']:.4f}, coding rate {scores['rate']:.2f} nats (collapsed "
            f"{scores['collapsed_rate']:.2f}, at most {scores['largest_rate']:.2f})"
        )


def _unit(features: Any, views: Tensor) -> Tensor:
    """Features of flattened views, divided by their norm: `[b, v, d]`, in float32 at least."""
    return F.normalize(logits_of(features).float(), dim=-1).unflatten(0, views.shape[:2])
