"""How well networks of `crate-pretrain` complete held-out images, image by image, beside harmonic inpainting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.crate.mae_layers.cells import packed
from unrolled.studies.crate.mae_layers.completion import (
    baseline_scores,
    completed_by,
    completed_by_baselines,
    fixed_noise_of,
    images_of,
    masks,
    model_scores,
    normalised,
    patches_of,
    psnr,
    showable,
)
from unrolled.studies.crate.pretrain.learning import Learnt
from unrolled.studies.crate.pretrain.networks import Data, images
from unrolled.studies.pictures import as_input
from unrolled.theory.inpainting import harmonic

_CHUNK = 250
HARMONIC = "harmonic inpainting"


@dataclass(frozen=True, kw_only=True)
class Completed(Cell):
    """A masked autoencoder's completions of the first test images, and of so many pictures, which are `shown`."""

    network: Learnt
    tested: int
    lessons: int
    shown: int

    def require(self, context: Context) -> None:
        """The images."""
        self.network.require(context)

    def compute(self, context: Context) -> Result:
        """`errors` by image in the network's own units, their mean `loss`, `psnr` in pixels without help, `pictures`.

        The units are squares of patches normalised to mean 0 and variance 1, or, of a network that was taught pixels,
        of the input, of which 64 grey levels are one. A network of normalised patches gets the mean of a patch from
        harmonic inpainting and its spread from the visible patches, for `psnr` and the pictures.
        """
        model: Any = self.network.load(context)
        test, lessons = of(self.network.data, context, self.tested, self.lessons)
        patch, device = model.patch_embed.patch_size[0], next(model.parameters()).device
        errors = []
        for pixels, gone in parts(test, patch):
            wanted = patches_of(pixels, patch)
            guess = guessed(model, pixels.to(device), gone.to(device)).cpu()
            errors.append(by_image(guess - (normalised(wanted) if model.norm_pix_loss else wanted), gone))
        error = torch.cat(errors)
        scores = model_scores(model, test, lessons) if model.norm_pix_loss else {"psnr": psnr(float(error.mean()))}
        result = {"errors": rounded(error), "loss": float(error.mean()), "psnr": scores["psnr"]}
        if not self.shown:
            return result
        few = as_input(showable(test, self.shown)).to(device)
        gone = masks(few, patch).to(device)
        if model.norm_pix_loss:
            seen = completed_by(model, few, gone, scores["factor"])[0]
        else:
            seen = torch.where(gone[..., None], guessed(model, few, gone), patches_of(few, patch))
        return {**result, "pictures": packed(seen.cpu(), patch, test)}


@dataclass(frozen=True, kw_only=True)
class Inpainted(Cell):
    """The same images completed by what learns nothing."""

    data: Data
    tested: int
    lessons: int
    shown: int

    def require(self, context: Context) -> None:
        """The images."""
        images(self.data, "test", context.data_dir)

    def compute(self, context: Context) -> Result:
        """`scores` as `baseline_scores` says; of harmonic inpainting `normalised` and `pixels`, errors by image in
        either unit, the former after the factor fitted on training images; `pictures`, the images among them."""
        test, lessons = of(self.data, context, self.tested, self.lessons)
        patch = 2 if test.shape[-1] < 32 else 4
        scores = baseline_scores(test, lessons, patch)
        factor = scores[HARMONIC]["factor"]
        in_patches, in_pixels = [], []
        for pixels, gone in parts(test, patch):
            size = (pixels.shape[2], pixels.shape[3])
            hidden = images_of(gone[..., None].expand(-1, -1, patch * patch), patch, size)
            guess, wanted = patches_of(harmonic(pixels, hidden), patch), patches_of(pixels, patch)
            in_patches.append(by_image(factor * normalised(guess) - normalised(wanted), gone))
            in_pixels.append(by_image(guess - wanted, gone))
        few = as_input(showable(test, self.shown))
        removed = masks(few, patch)
        whole = patches_of(few, patch)
        rows = {"image": whole, "visible": whole.masked_fill(removed[..., None], 0.0)}
        rows[HARMONIC] = completed_by_baselines(few, removed, patch)[HARMONIC]
        return {
            "scores": scores,
            "normalised": rounded(torch.cat(in_patches)),
            "pixels": rounded(torch.cat(in_pixels)),
            "pictures": {name: packed(patches, patch, test) for name, patches in rows.items()},
        }


def of(data: Data, context: Context, tested: int, lessons: int) -> tuple[Tensor, Tensor]:
    """The first test images, and the first training images, on which factors are fitted; uint8."""
    test, train = (images(data, part, context.data_dir).images for part in ("test", "train"))
    return test[:tested], train[:lessons]


def parts(pixels: Tensor, patch: int) -> Any:
    """Images as networks take them, and which of their patches are removed, part by part; the same for all networks."""
    for part, gone in zip(pixels.split(_CHUNK), masks(pixels, patch).split(_CHUNK), strict=True):
        yield as_input(part), gone


def guessed(model: Any, pixels: Tensor, gone: Tensor) -> Tensor:
    """What a masked autoencoder makes of patches, `[n, m, p * p * c]`, where those that are `gone` are removed."""
    with torch.no_grad():
        patches: Tensor = model(pixels, 0.75, fixed_noise_of(gone)).prediction
    return patches


def by_image(error: Tensor, gone: Tensor) -> Tensor:
    """Mean square `[n]` of errors `[n, m, k]` on the patches that are `gone` `[n, m]`."""
    return (error.square().mean(-1) * gone).sum(1) / gone.sum(1)


def rounded(values: Tensor) -> list[float]:
    """Numbers as a report holds many of them."""
    return [round(value, 5) for value in values.tolist()]
