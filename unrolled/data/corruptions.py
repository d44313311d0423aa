"""Images made worse on purpose: noise, blur, light and compression in five severities, the same for every run.

The families are those of common-corruption benchmarks; their strengths are chosen here and grow with the side of the
image, so errors are comparable with each other and not with published ones. What is random about an image (noise, the
direction of motion) follows from its index and a seed, and is the same at every severity.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

SEVERITIES = (1, 2, 3, 4, 5)
_SMALL, _LARGE = 32, 224

# strength at severity 1..5 for images of 32 and of 224 pixels; lengths are shares of the side
_STRENGTHS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "gaussian_noise": ((0.04, 0.06, 0.08, 0.10, 0.13), (0.08, 0.12, 0.17, 0.24, 0.32)),
    "shot_noise": ((400, 200, 120, 80, 50), (60, 30, 15, 8, 5)),
    "impulse_noise": ((0.01, 0.02, 0.04, 0.06, 0.09), (0.03, 0.06, 0.10, 0.16, 0.24)),
    "defocus_blur": ((0.020, 0.028, 0.038, 0.050, 0.066), (0.013, 0.018, 0.025, 0.032, 0.042)),
    "motion_blur": ((0.06, 0.09, 0.12, 0.16, 0.21), (0.04, 0.06, 0.08, 0.11, 0.14)),
    "brightness": ((0.06, 0.12, 0.18, 0.25, 0.33), (0.10, 0.18, 0.27, 0.36, 0.46)),
    "contrast": ((0.75, 0.60, 0.45, 0.32, 0.20), (0.55, 0.42, 0.31, 0.20, 0.10)),
    "jpeg": ((80, 65, 50, 37, 26), (30, 22, 16, 11, 7)),
    "pixelate": ((0.90, 0.80, 0.70, 0.60, 0.50), (0.60, 0.50, 0.40, 0.32, 0.25)),
}

CORRUPTIONS = tuple(_STRENGTHS)
"""What `corrupt` knows."""


def strength(name: str, severity: int, side: int) -> float:
    """How strong a corruption is on images of `side` pixels.

    The unit is the family's own: standard deviation of the noise, photons of a white pixel, share of pixels hit, radius
    and length as shares of the side, what is added, what is left of the contrast, JPEG quality, share of the side that
    is left. Between 32 and 224 pixels it is interpolated, geometrically in both, and beyond them it stays.

    Raises:
        ValueError: unknown name or severity.
    """
    if name not in _STRENGTHS:
        raise ValueError(f"name: unknown corruption {name!r}; choose from {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be 1 to 5, not {severity}")
    small, large = (row[severity - 1] for row in _STRENGTHS[name])
    share = min(1.0, max(0.0, math.log(max(side, 1) / _SMALL) / math.log(_LARGE / _SMALL)))
    return float(small ** (1 - share) * large**share)


def corrupt(image: np.ndarray, name: str, severity: int, *, index: int = 0, seed: int = 0) -> np.ndarray:
    """One corrupted image.

    Args:
        image: uint8 [h, w, c] with c in 1, 3.
        name: one of `CORRUPTIONS`.
        severity: 1 (mild) to 5.
        index: of the image in its data set; with `seed` it decides what is random.
        seed: 0 or more.

    Returns:
        uint8 [h, w, c].

    Raises:
        ValueError: another kind of image, name or severity.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3) or 0 in image.shape:
        raise ValueError(f"image must be uint8 [h, w, 1 or 3], not {image.dtype} {image.shape}")
    if index < 0 or seed < 0:
        raise ValueError(f"index={index}, seed={seed}: both must be 0 or more")
    amount = strength(name, severity, min(image.shape[:2]))
    rng = np.random.default_rng(np.random.SeedSequence((seed, index, zlib.crc32(name.encode()))))
    changed = _FAMILIES[name](image, amount, rng)
    if changed.dtype == np.uint8:
        return changed
    return np.rint(changed.clip(0, 1) * 255).astype(np.uint8)


def _gaussian_noise(image: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    return _unit(image) + amount * rng.standard_normal(image.shape, np.float32)


def _shot_noise(image: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    return (rng.poisson(_unit(image) * amount) / amount).astype(np.float32)


def _impulse_noise(image: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    hit = rng.random(image.shape[:2]) < amount
    salt = rng.random(image.shape[:2]) < 0.5
    return np.where(hit[..., None], np.where(salt, 255, 0)[..., None], image).astype(np.uint8)


def _defocus_blur(image: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    radius = amount * min(image.shape[:2])
    steps = np.linspace(-radius, radius, 25)
    y, x = np.meshgrid(steps, steps, indexing="ij")
    inside = x**2 + y**2 <= radius**2 * (1 + 1e-9)
    return _blur(image, y[inside], x[inside])


def _motion_blur(image: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, math.pi)
    length = amount * min(image.shape[:2])
    along = np.linspace(-length / 2, length / 2, 4 * math.ceil(length) + 1)
    return _blur(image, along * math.sin(angle), along * math.cos(angle))


def _blur(image: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The mean of the image moved by each (y, x) in pixels, bilinearly; the border is repeated."""
    reach = math.ceil(max(np.abs(y).max(), np.abs(x).max()) + 1e-9)
    kernel = np.zeros((2 * reach + 2, 2 * reach + 2), np.float64)
    row, column = np.floor(y).astype(int), np.floor(x).astype(int)
    for down in (0, 1):
        for right in (0, 1):
            weight = np.abs(1 - down - (y - row)) * np.abs(1 - right - (x - column))
            np.add.at(kernel, (row + reach + down, column + reach + right), weight / len(y))
    weights = torch.from_numpy(kernel[:-1, :-1].astype(np.float32))[None, None]
    pixels = torch.from_numpy(_unit(image)).permute(2, 0, 1)[:, None]
    out = F.conv2d(F.pad(pixels, (reach,) * 4, mode="replicate"), weights)
    return out[:, 0].permute(1, 2, 0).numpy()


def _brightness(image: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    return _unit(image) + np.float32(amount)


def _contrast(image: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    pixels = _unit(image)
    mean = pixels.mean((0, 1), keepdims=True)
    return (pixels - mean) * np.float32(amount) + mean


def _jpeg(image: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    file = io.BytesIO()
    _picture(image).save(file, "JPEG", quality=round(amount))
    return np.asarray(Image.open(file)).reshape(image.shape)


def _pixelate(image: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    small = (max(1, round(width * amount)), max(1, round(height * amount)))
    coarse = _picture(image).resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(coarse).reshape(image.shape)


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def _unit(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32) / 255


_FAMILIES: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "motion_blur": _motion_blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "jpeg": _jpeg,
    "pixelate": _pixelate,
}
