"""Completion without learning: mean colour, nearest visible patch, harmonic inpainting; and how completions are scored.

A masked autoencoder of the roster predicts every patch normalised to mean 0 and variance 1, and its loss is in those
units: it need not know how bright a patch is or how strong its contrast. A completion by other means is normalised in
the same way, then multiplied by one factor fitted on training images. In pixels nobody is helped: the model's patches
get the mean of the harmonic completion there and a spread in proportion to that of the visible patches, the proportion
fitted on training images.
"""

from __future__ import annotations

from math import log10
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from unrolled.models.masked import removed_patches
from unrolled.studies.crate.masked import fixed_noise
from unrolled.studies.pictures import as_input
from unrolled.theory.inpainting import harmonic

_EPS = 1e-6  # of the model's own patch normalisation
_CHUNK = 250
_UNIT = 64.0  # grey levels to one unit of the networks' input
BASELINES = ("mean colour of visible patches", "nearest visible patch", "harmonic inpainting")


def masks(images: Tensor, patch: int, mask_ratio: float = 0.75) -> Tensor:
    """Which patches are removed `[n, rows * columns]`, true for removed; the same for every model."""
    noise = fixed_noise(len(images), (images.shape[2] // patch) * (images.shape[3] // patch))
    order = noise.argsort(dim=1, stable=True).argsort(dim=1)
    return order >= noise.shape[1] - removed_patches(noise.shape[1], mask_ratio)


def showable(images: Tensor, count: int) -> Tensor:
    """Pictures that may be passed on, of the size of `images`, `[count, c, h, w]` uint8, to complete on a page.

    Of grey `images`, which are scikit-learn's digits, the first. In the place of photos that their data sets do not
    license, squares of scikit-learn's two photos (CC BY 2.0), at most six.
    """
    if images.shape[1] == 1 or not count:
        return images[:count]
    squares = []
    for photo in load_sample_images().images:
        side = photo.shape[0]
        for left in (0, (photo.shape[1] - side) // 2, photo.shape[1] - side):
            square = Image.fromarray(photo[:, left : left + side])
            squares.append(np.asarray(square.resize((images.shape[3], images.shape[2]), Image.Resampling.BOX)))
    return torch.from_numpy(np.stack(squares[:count])).movedim(-1, 1)


def patches_of(images: Tensor, patch: int) -> Tensor:
    """Images `[n, c, h, w]` as patches `[n, m, p * p * c]` in the models' order (row, column, channel)."""
    x = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def images_of(patches: Tensor, patch: int, size: tuple[int, int]) -> Tensor:
    """The inverse of `patches_of`; `size` is (h, w)."""
    x = patches.unflatten(1, (size[0] // patch, size[1] // patch)).unflatten(-1, (patch, patch, -1))
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def mean_colour(patches: Tensor, removed: Tensor, channels: int = 3) -> Tensor:
    """Every removed patch in the mean colour of the visible ones; `patches` `[n, m, p * p * c]`."""
    seen = (~removed).to(patches)[..., None]
    mean = (patches * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True)  # of each pixel of a patch
    colour = mean.unflatten(-1, (-1, channels)).mean(-2).repeat(1, 1, patches.shape[-1] // channels)
    return torch.where(removed[..., None], colour, patches)


def nearest_patch(patches: Tensor, removed: Tensor, columns: int) -> Tensor:
    """Every removed patch a copy of the nearest visible one; of several, the first in reading order."""
    place = torch.arange(patches.shape[1], device=patches.device)
    y, x = place // columns, place % columns
    distance = ((y[:, None] - y) ** 2 + (x[:, None] - x) ** 2).to(patches)  # [to, from]
    distance = distance + 1e-3 * place / len(place)
    far = torch.where(removed[:, None, :], torch.inf, distance)
    index = far.argmin(-1)
    return patches.gather(1, index[..., None].expand(-1, -1, patches.shape[-1]))


def completed_by_baselines(images: Tensor, removed: Tensor, patch: int) -> dict[str, Tensor]:
    """Patches `[n, m, p * p * c]` as each of `BASELINES` completes them."""
    size = (images.shape[2], images.shape[3])
    whole = patches_of(images, patch)
    gone = images_of(removed[..., None].expand(-1, -1, patch * patch), patch, size)
    completed = (
        mean_colour(whole, removed, images.shape[1]),
        nearest_patch(whole, removed, size[1] // patch),
        patches_of(harmonic(images, gone), patch),
    )
    return dict(zip(BASELINES, completed, strict=True))


def baseline_scores(images: Tensor, lessons: Tensor, patch: int) -> dict[str, dict[str, float]]:
    """`loss` in the models' units and `psnr` in dB of every baseline on the removed patches, and the fitted `factor`.

    Args:
        images: held-out, uint8 `[n, c, h, w]`.
        lessons: training images that the factors are fitted on, uint8.
        patch: side of a patch.
    """
    taught, scored = _sums(lessons, patch), _sums(images, patch)
    scores = {}
    for name in BASELINES:
        product, energy = taught[name][:2]
        factor = product / energy if energy else 0.0
        product, energy, error = scored[name]
        loss = scored["target"][0] - 2 * factor * product + factor**2 * energy
        scores[name] = {"loss": loss, "psnr": psnr(error), "factor": factor}
    return scores


def _sums(images: Tensor, patch: int) -> dict[str, list[float]]:
    """Of every baseline, means over removed patches: normalised guess times target, its square, the pixels' error."""
    totals: dict[str, list[float]] = {"target": [0.0], **{name: [0.0] * 3 for name in BASELINES}}
    removed = masks(images, patch)
    count = float(removed.sum())
    for part, gone in zip(images.split(_CHUNK), removed.split(_CHUNK), strict=True):
        pixels = as_input(part)
        target = patches_of(pixels, patch)
        wanted = normalised(target)
        totals["target"][0] += float((wanted.square().mean(-1) * gone).sum()) / count
        for name, guess in completed_by_baselines(pixels, gone, patch).items():
            guessed = normalised(guess)
            for i, value in enumerate((guessed * wanted, guessed.square(), (guess - target).square())):
                totals[name][i] += float((value.mean(-1) * gone).sum()) / count
    return totals


def normalised(patches: Tensor) -> Tensor:
    """Every patch with mean 0 and variance 1, as the models' targets are."""
    variance, mean = torch.var_mean(patches, -1, keepdim=True)
    result: Tensor = (patches - mean) / (variance + _EPS).sqrt()
    return result


def psnr(error: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error in units of the networks' input."""
    return 10 * log10(255**2 / (max(error, 1e-12) * _UNIT**2))


def completed_by(model: nn.Module, images: Tensor, removed: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Patches as the model completes them without help, and what it adds to their means, `[n, m, p * p * c]`.

    Args:
        model: a masked autoencoder that predicts normalised patches.
        images: `[n, c, h, w]` as the model takes them.
        removed: `[n, m]`.
        factor: what the spread of visible patches is multiplied by.
    """
    network: Any = model
    patch = network.patch_embed.patch_size[0]
    whole = patches_of(images, patch)
    noise = fixed_noise_of(removed)
    with torch.no_grad():
        guess = network(images, 0.75, noise.to(images)).prediction.to(whole)
    gone = images_of(removed[..., None].expand(-1, -1, patch * patch), patch, (images.shape[2], images.shape[3]))
    level = patches_of(harmonic(images, gone), patch).mean(-1, keepdim=True)
    seen = (~removed).to(whole)[..., None]
    deviation = whole.var(-1, keepdim=True).add(_EPS).sqrt()
    spread = (deviation * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True)
    return torch.where(removed[..., None], level + factor * spread * guess, whole), spread * guess


def fixed_noise_of(removed: Tensor) -> Tensor:
    """Noise that makes a model remove exactly the patches `removed`."""
    return removed.float()


def model_scores(model: nn.Module, images: Tensor, lessons: Tensor) -> dict[str, float]:
    """`loss` in the model's units, `psnr` without help, `psnr_helped` with the true mean and variance, `factor`.

    Args:
        model: a masked autoencoder that predicts normalised patches.
        images: held-out, uint8 `[n, c, h, w]`.
        lessons: training images that the factor of the spread is fitted on, uint8.
    """
    network: Any = model
    factor = _factor(network, lessons)
    totals = [0.0, 0.0, 0.0]
    count = 0.0
    patch = network.patch_embed.patch_size[0]
    for pixels, gone in _parts(network, images):
        target = patches_of(pixels, patch)
        variance, mean = torch.var_mean(target, -1, keepdim=True)
        with torch.no_grad():
            guess = network(pixels, 0.75, fixed_noise_of(gone).to(pixels)).prediction
        bare, _ = completed_by(network, pixels, gone, factor)
        count += float(gone.sum())
        errors = (guess - normalised(target), bare - target, mean + (variance + _EPS).sqrt() * guess - target)
        for i, error in enumerate(errors):
            totals[i] += float((error.square().mean(-1) * gone).sum())
    loss, plain, helped = (total / count for total in totals)
    return {"loss": loss, "psnr": psnr(plain), "psnr_helped": psnr(helped), "factor": factor}


def _factor(network: Any, lessons: Tensor) -> float:
    patch = network.patch_embed.patch_size[0]
    above = below = 0.0
    for pixels, gone in _parts(network, lessons):
        level, added = completed_by(network, pixels, gone, 0.0)
        keep = gone[..., None].to(added)
        above += float((keep * added * (patches_of(pixels, patch) - level)).sum())
        below += float((keep * added.square()).sum())
    return max(0.0, above / below) if below else 0.0


def _parts(network: Any, images: Tensor) -> Any:
    removed = masks(images, network.patch_embed.patch_size[0])
    device = next(network.parameters()).device
    for part, gone in zip(images.split(_CHUNK), removed.split(_CHUNK), strict=True):
        yield as_input(part).to(device), gone.to(device)
