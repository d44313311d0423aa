"""Masked autoencoding: which patches are removed, the loss, and what it is beside that of trivial guesses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unrolled.models import MaskedAutoencoder
from unrolled.models.masked import removed_patches
from unrolled.modes import evaluating
from unrolled.train.config import MaskedConfig
from unrolled.train.task import Numbers
from unrolled.train.tasks.images import HELD_OUT_SEED, ImageTask


def mask_noise(seed: int, step: int, indices: Tensor, patches: int) -> Tensor:
    """Uniform numbers `[b, patches]` that follow from (seed, step, image) alone; the lowest are the patches kept.

    Args:
        seed: of the run.
        step: optimiser step.
        indices: int64 `[b]`, of the images in their source.
        patches: of an image.
    """
    rows = [
        np.random.Generator(np.random.SFC64([seed, step, int(index), 5])).random(patches, np.float32)
        for index in indices
    ]
    return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, patches)


class MaskedReconstruction(ImageTask):
    """Mean squared error on the patches that were removed (arXiv 2111.06377; of CRATE, arXiv 2404.02446)."""

    config: MaskedConfig
    model: MaskedAutoencoder

    def __init__(self, config: MaskedConfig, data: Any = None, model: nn.Module | None = None) -> None:
        if config.model == "auto":
            config = replace(config, model="crate_mae_nano_patch4_32")
        super().__init__(config, data, model)

    def adapt(self, model: nn.Module) -> MaskedAutoencoder:
        """The model itself, told in which units it predicts.

        Raises:
            ValueError: it is no masked autoencoder, or the mask ratio keeps or removes none of its patches.
        """
        config = self.config
        if not isinstance(model, MaskedAutoencoder):
            raise ValueError(
                f"model={config.model!r} has no masked objective; choose a masked autoencoder such as "
                "crate_mae_nano_patch4_32 (`unrolled list '*mae*'`), or task='simdino' for this model"
            )
        model.normalise_targets(config.norm_pix_loss)
        rows, columns = model.patch_embed.grid_size
        visible = rows * columns - removed_patches(rows * columns, config.mask_ratio)
        if not 0 < visible < rows * columns:
            raise ValueError(
                f"mask_ratio={config.mask_ratio} keeps {visible} of the {rows} x {columns} patches; choose one that "
                "keeps and removes at least one"
            )
        return model

    def inputs(self, fetched: Any, step: int) -> tuple[Tensor, ...]:
        """Images, and the noise that says what is removed of each."""
        rows, columns = self.model.patch_embed.grid_size
        noise = mask_noise(self.config.seed, step, fetched.indices, rows * columns)
        return fetched.images.to(self.device, non_blocking=True), noise.to(self.device, non_blocking=True)

    def mean_loss(self, wrapped: nn.Module, *part: Tensor) -> tuple[Tensor, Numbers]:
        """As `ImageTask.mean_loss`."""
        images, noise = part
        return wrapped(images, self.config.mask_ratio, noise).loss, {}

    def scores(self, wrapped: nn.Module, loader: Iterable[Any], on_batch: Callable[[], None]) -> dict[str, Any]:
        """As `evaluate_masked`."""
        return evaluate_masked(
            wrapped,
            self.model,
            loader,
            self.device,
            mask_ratio=self.config.mask_ratio,
            reduce=self.reduce,
            on_batch=on_batch,
            collective=self.collective,
        )

    def words(self, scores: dict[str, Any]) -> str:
        """As `Task.words`."""
        return f"loss {scores['loss']:.4f} (mean colour of the visible patches {scores['visible_mean_loss']:.4f})"


@torch.no_grad()
def evaluate_masked(
    wrapped: nn.Module,
    model: MaskedAutoencoder,
    loader: Iterable[Any],
    device: torch.device | str = "cpu",
    *,
    mask_ratio: float,
    reduce: Callable[[Tensor], Tensor] | None = None,
    on_batch: Callable[[], None] | None = None,
    collective: bool = False,
) -> dict[str, Any]:
    """Reconstruction loss of a masked autoencoder over a loader; every image is masked the same way every time.

    Args:
        wrapped: the model, or what it is wrapped in for several processes; its training mode is restored afterwards.
        model: the model.
        loader: batches with `images`, `indices` and `skipped`.
        device: where the batches go.
        mask_ratio: share of the patches removed.
        reduce, on_batch, collective: as in `evaluation.evaluate`.

    Returns:
        `loss`: mean squared error on the removed patches, in the units of the target. Beside it, in the same units,
        that of two guesses that see no shape: `visible_mean_loss`, the mean colour of the image's own visible patches,
        and `one_colour_loss`, the one colour that is best for all these images together. And `images`, `skipped`.

    Raises:
        ValueError: nothing to evaluate.
    """
    channels = model.decoder_pred.out_features // (model.patch_embed.patch_size[0] * model.patch_embed.patch_size[1])
    patches = model.patch_embed.grid_size[0] * model.patch_embed.grid_size[1]
    sums = torch.zeros(5 + 2 * channels, dtype=torch.float64)  # images, skipped, loss, visible mean, values, t, t^2
    with evaluating(wrapped):
        for batch in loader:
            sums[1] += len(batch.skipped)
            if collective and len(batch.indices) == 0:
                wrapped(batch.images.new_zeros(1, *batch.images.shape[1:]).to(device), mask_ratio)
            if len(batch.indices):
                images = batch.images.to(device, non_blocking=True)
                noise = mask_noise(HELD_OUT_SEED, 0, batch.indices, patches).to(device)
                loss, _, mask = wrapped(images, mask_ratio, noise)
                target = model.target(images).unflatten(-1, (-1, channels)).double()  # [b, n, p * p, c]
                gone = mask[..., None, None].double()
                colour = (target * (1 - gone)).sum((1, 2)) / ((1 - gone).sum((1, 2)) * target.shape[2])
                error = ((target - colour[:, None, None]).square().mean((2, 3)) * mask).sum(1) / mask.sum(1)
                sums[0] += len(images)
                sums[2] += loss.double().cpu() * len(images)
                sums[3] += error.sum().cpu()
                sums[4] += mask.sum().cpu() * target.shape[2]
                sums[5:] += torch.cat([(target * gone).sum((0, 1, 2)), (target.square() * gone).sum((0, 1, 2))]).cpu()
            if on_batch is not None:
                on_batch()
    if reduce is not None:
        sums = reduce(sums)
    count, skipped, total, visible, values = sums[:5].tolist()
    if count == 0:
        raise ValueError("nothing to evaluate: the split is empty or no image in it could be read")
    mean, square = sums[5 : 5 + channels] / values, sums[5 + channels :] / values
    return {
        "loss": total / count,
        "visible_mean_loss": visible / count,
        "one_colour_loss": float((square - mean.square()).mean()),
        "images": int(count),
        "skipped": int(skipped),
    }
