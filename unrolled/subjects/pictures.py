"""Pictures of any shape into a model, and how large they are shown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from unrolled.subjects.options import OneModelFlags

Pixels = NDArray[np.uint8]

_SMALLEST, _LARGEST = 384, 768  # longer side of what is written
_SMALL = 96  # pictures up to this are enlarged pixel by pixel


@dataclass(frozen=True)
class Preparation:
    """How a model wants its pictures."""

    side: int
    patch: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fixed: tuple[int, int] | None
    """(height, width), for a model that takes one size only."""
    prefix: int | None = None
    """Tokens before the patches, where the model itself says it wrongly."""
    stride: int | None = None
    """Distance of neighbouring patches in pixels, where they overlap."""

    def size_of(self, picture: Image.Image) -> tuple[int, int]:
        """(height, width) at which the picture goes in: its own shape, or the model's one size."""
        from unrolled.data.pictures import fit_size

        step = self.patch if self.stride is None else (self.stride, self.stride)
        return self.fixed or fit_size((picture.height, picture.width), self.side, step)

    def grid(self, pixels: Tensor) -> tuple[int, int]:
        """(rows, columns) of patches of pictures `[..., h, w]` as `tensor` gives them."""
        return pixels.shape[-2] // self.patch[0], pixels.shape[-1] // self.patch[1]

    def tensor(self, picture: Image.Image) -> Tensor:
        """The whole picture, normalised, `[1, c, h, w]`; with a stride, its overlapping patches side by side."""
        import torch

        height, width = self.size_of(picture)
        small = picture.resize((width, height), Image.Resampling.BICUBIC).convert("RGB" if self.channels == 3 else "L")
        values = torch.from_numpy(np.array(small)).float().div(255).reshape(height, width, self.channels)
        whole = ((values - torch.tensor(self.mean)) / torch.tensor(self.std)).permute(2, 0, 1)[None]
        return whole if self.stride is None else spread(whole, self.patch, self.stride)

    def pixels(self, image: Tensor) -> Pixels:
        """Back from `[c, h, w]` to uint8 `[h, w, 3]`."""
        import torch

        values = image.detach().float().cpu().permute(1, 2, 0) * torch.tensor(self.std) + torch.tensor(self.mean)
        colours: Pixels = (values.clamp(0, 1) * 255).round().byte().expand(-1, -1, 3).numpy()
        return colours


def spread(images: Tensor, patch: tuple[int, int], stride: int) -> Tensor:
    """Larger images whose patches, side by side, are the overlapping patches of `images` at every `stride` pixels.

    A model then sees one token every `stride` pixels, without a change of its own. Borders are repeated outwards, so
    that the patches' centres lie evenly over the whole image.

    Args:
        images: `[b, c, h, w]`, h and w multiples of `stride`.
        patch: (height, width).
        stride: at most a patch.

    Returns:
        `[b, c, (h / stride) patch, (w / stride) patch]`.
    """
    from torch.nn import functional as F

    (p, q), (height, width) = patch, images.shape[-2:]
    rows, columns = height // stride, width // stride
    above, left = (p - stride) // 2, (q - stride) // 2
    around = F.pad(images, (left, q - stride - left, above, p - stride - above), mode="replicate")
    patches = F.unfold(around, patch, stride=stride).unflatten(1, (-1, p, q)).unflatten(-1, (rows, columns))
    return patches.permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)


def prepare(model: nn.Module, *, image_size: int | None, stride: int | None = None) -> Preparation:
    """What `model` expects; timm's vision transformers are made to take pictures of any size.

    Raises:
        ValueError: `image_size` is smaller than a patch, the model has one size and cannot take it, or its patches
            cannot overlap by `stride`.
    """
    from timm.layers.format import Format
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer
    from timm.models.xcit import Xcit

    from unrolled.data import model_input

    expects = model_input(model, image_size=image_size)
    channels, height, width = expects["input_size"]
    embedding: Any = getattr(model, "patch_embed", None)
    size = getattr(embedding, "patch_size", None) or getattr(getattr(model, "config", None), "patch_size", None) or 16
    patch = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    any_size = isinstance(model, VisionTransformer | Xcit) or (isinstance(model, Eva) and model.dynamic_img_size)
    if isinstance(model, VisionTransformer) and not model.dynamic_img_size and hasattr(embedding, "strict_img_size"):
        # as timm's `dynamic_img_size=True` does, for models that exist already
        model.dynamic_img_size, embedding.strict_img_size = True, False
        embedding.flatten, embedding.output_fmt = False, Format.NHWC
    if image_size is not None and image_size < max(patch):
        raise ValueError(f"image_size={image_size}: smaller than a patch of {patch[0]} x {patch[1]} pixels")
    expected = model_input(model)["input_size"][1:]
    if not any_size and image_size is not None and (image_size, image_size) != tuple(expected):
        hint = "; model_args={'dynamic_img_size': True} makes one that takes any" if isinstance(model, Eva) else ""
        raise ValueError(
            f"image_size: {type(model).__name__} takes pictures of {expected[0]} x {expected[1]} pixels only{hint}"
        )
    if stride is not None and not 1 <= stride <= min(patch):
        raise ValueError(f"stride={stride}: give 1 to {min(patch)}, the side of a patch")
    stem: Any = getattr(embedding, "proj", None)
    apart = getattr(stem, "kernel_size", None) == getattr(stem, "stride", 0) == patch
    if stride is not None and not (any_size and apart):
        reason = "has a stem of overlapping convolutions" if any_size else "takes one size of picture"
        raise ValueError(f"stride: {type(model).__name__} {reason}; give a vision transformer with a patch stem")

    def each(values: Sequence[float]) -> tuple[float, ...]:
        expected = tuple(float(value) for value in values)
        return expected if len(expected) == channels else (sum(expected) / len(expected),) * channels

    return Preparation(
        side=min(height, width),
        patch=patch,
        channels=channels,
        mean=each(expects["mean"]),
        std=each(expects["std"]),
        fixed=None if any_size else (height, width),
        prefix=0 if isinstance(model, Xcit) else None,  # its class token joins after the main blocks
        stride=None if stride is None or (stride, stride) == patch else stride,
    )


def opened_for_pictures(
    choice: OneModelFlags, where: torch.device, *, stride: int | None = None
) -> tuple[nn.Module, Preparation]:
    """The model on its device, and how it takes pictures; of a masked autoencoder the encoder, shown every patch."""
    from unrolled.models import MaskedAutoencoder
    from unrolled.subjects.models import open_model

    network = open_model(choice)
    network = (network.classifier(0).eval() if isinstance(network, MaskedAutoencoder) else network).to(where)
    return network, prepare(network, image_size=choice.image_size, stride=stride)


def canvas(picture: Image.Image) -> Image.Image:
    """The picture at the size of what is written: its longer side between 384 and 768 pixels; small ones stay crisp."""
    longer = max(picture.size)
    if longer <= _SMALL:  # whole pixels, each a square
        times = -(-_SMALLEST // longer)
        return picture.resize((times * picture.width, times * picture.height), Image.Resampling.NEAREST)
    scale = min(max(longer, _SMALLEST), _LARGEST) / longer
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)


def stems(paths: Sequence[Path]) -> list[str]:
    """A file name without ending for each path, all different, of safe characters."""
    used: set[str] = set()
    out: list[str] = []
    for path in paths:
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-.") or "picture"
        name, number = stem, 1
        while name.lower() in used:
            number += 1
            name = f"{stem}-{number}"
        used.add(name.lower())
        out.append(name)
    return out
