"""From a picture to a normalised tensor: timm's transforms behind a record of what they do.

The record (`TransformSpec`) lets the loader see that a transform is deterministic, or that it is the CIFAR habit (pad,
crop, flip), and do a whole batch of decoded pixels at once with the same arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from unrolled.data.sources import BadImage, Picture, as_uint8
from unrolled.memory import check_fits


class Augments(Protocol):
    """Settings of augmentation; `train.config.Augmentation` says what each does."""

    augment: bool
    crop_scale: tuple[float, float]
    pad_crop: int | None
    hflip: float
    alternate_flip: bool
    color_jitter: float
    auto_augment: str | None
    random_erasing: float


@dataclass(frozen=True)
class TransformSpec:
    """What a transform does. Equal records do the same.

    Attributes:
        input_size: (channels, height, width) of the result.
        mean, std: one value per channel, for pixels in 0..1.
        interpolation: of resizing.
        crop_pct: share of the resized side that the centre crop keeps.
        augment: False is evaluation preprocessing: resize the shorter side, crop the centre, normalise.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float = 1.0
    augment: bool = False
    crop_scale: tuple[float, float] = (0.08, 1.0)
    pad_crop: int | None = None
    hflip: float = 0.0
    color_jitter: float = 0.0
    auto_augment: str | None = None
    random_erasing: float = 0.0

    @property
    def deterministic(self) -> bool:
        """Whether an image always gives the same tensor."""
        return not self.augment

    def batchable(self, native_size: tuple[int, int, int] | None) -> bool:
        """Whether a batch of images of `native_size` needs no resizing and at most padding, cropping and flipping."""
        if (
            native_size is None
            or native_size[1:] != self.input_size[1:]
            or native_size[0] not in (1, self.input_size[0])
        ):
            return False
        if not self.augment:
            return all(math.floor(side / self.crop_pct) == side for side in self.input_size[1:])
        plain = not (self.color_jitter or self.auto_augment or self.random_erasing)
        return self.pad_crop is not None and plain


class ImageTransform:
    """Callable: picture -> float32 [c, h, w]. Grey becomes RGB or RGB grey as the number of channels asks.

    Random draws come from Python's, NumPy's and torch's global generators, which the loader seeds per image.
    """

    def __init__(self, spec: TransformSpec) -> None:
        self.spec = spec
        self._steps = _steps(spec)
        # RandAugment and colour jitter are defined on RGB, so grey models see the augmented image turned grey
        self._rgb_first = spec.input_size[0] == 3 or bool(spec.augment and (spec.color_jitter or spec.auto_augment))

    def __call__(self, picture: Picture) -> Tensor:
        """Transform one picture.

        Raises:
            BadImage: NaN or out-of-range pixels, or a channel count other than 1, 3 or 4.
        """
        image = to_pil(picture)
        mode = "RGB" if self._rgb_first else "L"
        tensor: Tensor = self._steps(image if image.mode == mode else image.convert(mode))
        return tensor

    def batch(self, pixels: np.ndarray, crops: tuple[np.ndarray, np.ndarray, np.ndarray] | None) -> Tensor:
        """Many images of the native size at once; see `TransformSpec.batchable`.

        Args:
            pixels: uint8 [b, h, w, c].
            crops: rows and columns in 0..2 * pad_crop, and flips (bool), each [b]; None for no cropping.

        Returns:
            float32 [b, c, h, w], equal to what the picture-by-picture transform gives for the same crops.
        """
        if crops is not None and self.spec.pad_crop is not None:
            pixels = crop_and_flip(pixels, self.spec.pad_crop, *crops)
        images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).float().div_(255)
        if images.shape[1] != self.spec.input_size[0]:
            images = images.repeat(1, self.spec.input_size[0], 1, 1)
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.spec.mean, self.spec.std))
        return images.sub_(mean).div_(std)


def train_transform(
    config: Augments,
    input_size: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bicubic",
) -> ImageTransform:
    """The training transform a configuration asks for; with `augment` off, the evaluation transform.

    Args:
        config: such as a `TrainConfig`.
        input_size: (channels, height, width); 1 or 3 channels.
        mean, std: for pixels in 0..1, one value for each channel; one value serves three channels, and three are
            averaged for grey.
        interpolation: of resizing: `bilinear`, `bicubic`, `lanczos`, `nearest` or (random resized crop) `random`.

    Raises:
        ValueError: a setting out of range, named.
    """
    if not config.augment:
        return eval_transform(input_size, mean, std, "bilinear" if interpolation == "random" else interpolation)
    low, high = config.crop_scale
    if not 0 < low <= high <= 1:
        raise ValueError(f"crop_scale must be two shares of the area, 0 < low <= high <= 1, not {config.crop_scale}")
    if config.pad_crop is not None and config.pad_crop < 0:
        raise ValueError(f"pad_crop must be a number of pixels, 0 or more, not {config.pad_crop}")
    for key in ("hflip", "random_erasing"):
        if not 0 <= getattr(config, key) <= 1:
            raise ValueError(f"{key} must be a probability, not {getattr(config, key)}")
    if config.color_jitter < 0:
        raise ValueError(f"color_jitter must be 0 or more, not {config.color_jitter}")
    return ImageTransform(
        TransformSpec(
            **_common(input_size, mean, std, interpolation),
            augment=True,
            crop_scale=(low, high),
            pad_crop=config.pad_crop,
            hflip=0.0 if config.alternate_flip else config.hflip,  # the loader mirrors then
            color_jitter=config.color_jitter,
            auto_augment=config.auto_augment or None,
            random_erasing=config.random_erasing,
        )
    )


def eval_transform(
    input_size: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bicubic",
    crop_pct: float | None = None,
) -> ImageTransform:
    """Resize the shorter side to size / crop_pct, crop the centre, normalise.

    Args:
        input_size, mean, std, interpolation: see `train_transform`.
        crop_pct: default 0.875 (224 of 256), but 1 up to 64 pixels, where cropping would cost the picture.
    """
    if crop_pct is None:
        crop_pct = 1.0 if max(input_size[1:]) <= 64 else 0.875
    if not 0 < crop_pct <= 1:
        raise ValueError(f"crop_pct must lie in (0, 1], not {crop_pct}")
    return ImageTransform(TransformSpec(**_common(input_size, mean, std, interpolation), crop_pct=crop_pct))


def model_input(
    model: nn.Module, *, native_size: tuple[int, int, int] | None = None, image_size: int | None = None
) -> dict[str, Any]:
    """What a model expects of its images; the one place where training, evaluation and tracing ask.

    Args:
        model: a timm-style model, whose `pretrained_cfg` says it, one of Hugging Face, or any other.
        native_size: (channels, height, width) of the images, for a model that says nothing; without it, 224 pixels.
        image_size: side in pixels to use instead.

    Returns:
        `input_size` (channels, height, width), `mean`, `std`, `interpolation` and `crop_pct`. The size is the one the
        model was built for (`img_size=160`), and the channels those of its first convolution, whatever its
        `pretrained_cfg` still says. Without a description, normalisation is ImageNet's.
    """
    from timm.data import resolve_data_config

    described = bool(getattr(model, "pretrained_cfg", None))
    given: dict[str, Any] = {} if described or native_size is None else {"input_size": (3, *native_size[1:])}
    given |= getattr(model, "normalisation", {})  # Hugging Face's
    config: dict[str, Any] = dict(resolve_data_config(given, model=model))
    channels, height, width = config["input_size"]
    built = getattr(getattr(model, "patch_embed", None), "img_size", None)
    size = getattr(getattr(model, "config", None), "image_size", None)  # Hugging Face's
    if built is not None:
        height, width = built
    elif not described and isinstance(size, int):
        height = width = size
    if image_size is not None:
        height = width = image_size
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is not None and first.in_channels in (1, 3):
        channels = first.in_channels
    config["input_size"] = (channels, height, width)
    # decoded, resized, cropped, as numbers, and as tokens: an image is held several times
    check_fits(8 * 4 * channels * height * width, f"image_size: an image of {height} x {width} pixels")
    for key in ("mean", "std"):  # one channel of a model described with three: their average
        if len(config[key]) not in (1, channels):
            config[key] = (sum(config[key]) / len(config[key]),)
    if max(height, width) <= 64:
        config["crop_pct"] = 1.0
    return config


def to_pil(picture: Picture) -> Image.Image:
    """A picture as an 8-bit PIL image. 16-bit grey keeps its upper 8 bits; floating point must lie in 0..1."""
    if isinstance(picture, Image.Image):
        if picture.mode == "F":
            return Image.fromarray(as_uint8(np.asarray(picture)))
        if picture.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip at 255
            return Image.fromarray((np.asarray(picture).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
        return picture
    if picture.ndim != 3 or picture.shape[2] not in (1, 3, 4):
        raise BadImage(f"has shape {picture.shape}; [h, w, c] with 1, 3 or 4 channels is understood")
    pixels = as_uint8(picture)
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def crop_and_flip(pixels: np.ndarray, pad: int, rows: np.ndarray, columns: np.ndarray, flips: np.ndarray) -> np.ndarray:
    """Pad [b, h, w, c] with `pad` black pixels, crop each image at (row, column) to its old size, then flip some."""
    count, height, width, _ = pixels.shape
    padded = np.pad(pixels, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    across = np.where(flips[:, None], np.arange(width)[::-1], np.arange(width)) + columns[:, None]
    down = rows[:, None] + np.arange(height)
    cropped: np.ndarray = padded[np.arange(count)[:, None, None], down[:, :, None], across[:, None, :]]
    return cropped


def _common(
    input_size: tuple[int, int, int], mean: Sequence[float], std: Sequence[float], interpolation: str
) -> dict[str, Any]:
    if len(input_size) != 3 or min(input_size) < 1:
        raise ValueError(f"input_size must be (channels, height, width), not {tuple(input_size)}")
    channels = int(input_size[0])
    if channels not in (1, 3):
        raise ValueError(
            f"input_size: pictures have 1 or 3 channels, not {channels}; build the model with in_chans 1 or 3"
        )
    if interpolation not in ("bilinear", "bicubic", "lanczos", "nearest", "random"):
        raise ValueError(f"interpolation must be bilinear, bicubic, lanczos, nearest or random, not {interpolation!r}")
    values = {"mean": _per_channel(mean, channels, "mean"), "std": _per_channel(std, channels, "std")}
    if min(values["std"]) <= 0:
        raise ValueError(f"std must be positive, not {tuple(std)}")
    size = (channels, int(input_size[1]), int(input_size[2]))
    return {"input_size": size, "interpolation": interpolation, **values}


def _per_channel(values: Sequence[float], channels: int, name: str) -> tuple[float, ...]:
    given = tuple(float(value) for value in values)
    if len(given) == channels:
        return given
    if len(given) == 1:
        return given * channels
    if len(given) == 3 and channels == 1:
        return (sum(given) / 3,)
    raise ValueError(f"{name} has {len(given)} values for {channels} channels")


def _steps(spec: TransformSpec) -> Any:
    """timm's transform for `spec`; with `pad_crop`, its cropping is replaced by torchvision's."""
    from timm.data.transforms_factory import create_transform, transforms_imagenet_train
    from torchvision import transforms

    size = spec.input_size[1:]
    if not spec.augment:
        return create_transform(
            spec.input_size,
            interpolation=spec.interpolation,
            mean=spec.mean,
            std=spec.std,
            crop_pct=spec.crop_pct,
        )
    grey = spec.input_size[0] == 1
    try:
        crop, colour, final = transforms_imagenet_train(
            size,
            scale=spec.crop_scale,
            hflip=spec.hflip,
            color_jitter=spec.color_jitter or None,
            force_color_jitter=spec.color_jitter > 0,
            auto_augment=spec.auto_augment,
            interpolation=spec.interpolation,
            mean=spec.mean * 3 if grey else spec.mean,
            std=spec.std * 3 if grey else spec.std,
            re_prob=spec.random_erasing,
            separate=True,
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(f"auto_augment: {spec.auto_augment!r} is not a policy timm knows, e.g. rand-m9-n2") from error
    if grey:
        final.transforms[1] = transforms.Normalize(mean=spec.mean, std=spec.std)
        colour.transforms.append(transforms.Grayscale())
    if spec.pad_crop is not None:
        flip = [transforms.RandomHorizontalFlip(spec.hflip)] if spec.hflip else []
        fit = _Fit(size, spec.interpolation)
        crop = transforms.Compose([fit, transforms.RandomCrop(size, padding=spec.pad_crop), *flip])
    return transforms.Compose([crop, colour, final])


class _Fit:
    """Resize the shorter side and crop the centre to `size`; nothing where the image has that size."""

    def __init__(self, size: tuple[int, int], interpolation: str) -> None:
        from timm.data.transforms import CenterCropOrPad, ResizeKeepRatio

        self._size = size
        self._resize = ResizeKeepRatio(size, interpolation=interpolation)
        self._crop = CenterCropOrPad(size)

    def __call__(self, image: Image.Image) -> Any:
        if (image.height, image.width) == self._size:
            return image
        return self._crop(self._resize(image))
