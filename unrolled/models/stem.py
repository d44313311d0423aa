"""From pixels to tokens."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from timm.layers import PatchEmbed, to_2tuple
from torch import Tensor, nn
from torch.nn import functional as F

from unrolled.ops.recording import knows_sizes


class LinearStem(PatchEmbed):
    """Patches, each projected linearly: timm's `PatchEmbed`, with errors that name the input's fault.

    `proj.weight` is `[d, c, p, p]`. Input `[b, c, h, w]`, any size the patch divides; output `[b, h / p, w / p, d]`
    (or `[b, n, d]` when flattening).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Embed images."""
        self.check(x)
        return super().forward(x)

    def check(self, x: Tensor) -> None:
        """Raise `ValueError` for images that cannot be cut into this stem's patches."""
        if not knows_sizes(x):
            return
        first = next(module for module in self.proj.modules() if isinstance(module, nn.Conv2d))
        channels, (p, q) = first.in_channels, self.patch_size
        if not isinstance(x, Tensor):
            raise ValueError(f"images: need a tensor [batch, {channels}, height, width], not a {type(x).__name__}")
        if not x.is_floating_point():
            raise ValueError(
                f"images: are {str(x.dtype).removeprefix('torch.')}, need floats: divide by 255, then normalise by the "
                "mean and std that `unrolled.models.model_input(model)` names"
            )
        if x.dim() != 4 or x.shape[1] != channels:
            raise ValueError(
                f"images: need [batch, {channels}, height, width], got {list(x.shape)}; set in_chans, or convert"
            )
        if x.shape[2] % p or x.shape[3] % q or 0 in x.shape[2:]:
            raise ValueError(
                f"images of {x.shape[2]} x {x.shape[3]} pixels are not divisible by the patch of {p} x {q}: resize"
            )


class LayerNormStem(LinearStem):
    """The published stem: patches are normalised, projected, and normalised again (arXiv 2306.01129, as built).

    | published layer        | attribute    | shape          |
    |------------------------|--------------|----------------|
    | LayerNorm on the patch | `patch_norm` | `[c p p]`      |
    | Linear                 | `proj`       | `[d, c, p, p]` |
    | LayerNorm              | `norm`       | `[d]`          |

    Departure: a patch is flattened as (channel, row, column), the order of a convolution's weight, where the
        published one is (row, column, channel); `load_published` permutes.
    """

    def __init__(
        self, *, patch_size: int, in_chans: int, embed_dim: int, device: Any = None, dtype: Any = None, **kwargs: Any
    ) -> None:
        """Arguments as timm's `PatchEmbed`."""
        placed: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(patch_size=patch_size, in_chans=in_chans, embed_dim=embed_dim, **placed, **kwargs)
        self.patch_norm = nn.LayerNorm(in_chans * patch_size**2, **placed)
        self.norm = nn.LayerNorm(embed_dim, **placed)

    def forward(self, x: Tensor) -> Tensor:
        """Embed images."""
        self.check(x)
        b, c, h, w = x.shape
        p, q = self.patch_size
        patches = x.reshape(b, c, h // p, p, w // q, q).permute(0, 2, 4, 1, 3, 5).reshape(b, h // p, w // q, c * p * q)
        tokens = self.norm(F.linear(self.patch_norm(patches), self.proj.weight.flatten(1), self.proj.bias))
        return tokens.flatten(1, 2) if self.flatten else tokens

    def set_input_size(self, img_size: Any = None, patch_size: Any = None) -> None:
        """Change the input size; another patch size is refused: the patch normalisation has no resampled form."""
        if patch_size is not None and to_2tuple(patch_size) != tuple(self.patch_size):
            raise ValueError("patch_size: cannot change on a LayerNorm stem; build a model with stem='linear'")
        super().set_input_size(img_size=img_size)


class ConvStem(LinearStem):
    """3 x 3 convolutions of stride 2 with batch normalisation and GELU between them, until a patch is one token.

    The stem of XCiT (arXiv 2106.09681), ToST and CBT. `proj` holds a `Sequential(Conv2d, BatchNorm2d)` for each halving
    and a GELU between two; the width doubles up to `embed_dim`.
    """

    def __init__(
        self, *, patch_size: int, in_chans: int, embed_dim: int, device: Any = None, dtype: Any = None, **kwargs: Any
    ) -> None:
        """Arguments as timm's `PatchEmbed`.

        Raises:
            ValueError: the patch is no power of two, or the width cannot be halved that often.
        """
        placed: dict[str, Any] = {"device": device, "dtype": dtype}
        halvings = patch_size.bit_length() - 1
        if patch_size < 2 or patch_size != 1 << halvings:
            raise ValueError(f"patch_size={patch_size}: a convolutional stem needs a power of two; use stem='linear'")
        if embed_dim % (1 << (halvings - 1)):
            raise ValueError(
                f"dim={embed_dim}: a convolutional stem of patch {patch_size} halves it {halvings - 1} times"
            )
        super().__init__(patch_size=patch_size, in_chans=in_chans, embed_dim=embed_dim, **placed, **kwargs)
        widths = [in_chans, *(embed_dim >> (halvings - 1 - i) for i in range(halvings))]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            convolution = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False, **placed)
            layers += [nn.Sequential(convolution, nn.BatchNorm2d(after, **placed)), nn.GELU()]
        self.proj = nn.Sequential(*layers[:-1])  # type: ignore[assignment]

    def set_input_size(self, img_size: Any = None, patch_size: Any = None) -> None:
        """Change the input size; another patch size is refused: it would take other convolutions."""
        if patch_size is not None and to_2tuple(patch_size) != tuple(self.patch_size):
            raise ValueError("patch_size: cannot change on a convolutional stem; build a model with stem='linear'")
        super().set_input_size(img_size=img_size)


_STEMS: dict[str, type[LinearStem]] = {"layernorm": LayerNormStem, "linear": LinearStem, "conv": ConvStem}


def stem_named(stem: str) -> type[LinearStem]:
    """The class of `layernorm`, `linear` or `conv`.

    Raises:
        ValueError: there is no such stem.
    """
    if stem not in _STEMS:
        raise ValueError(f"stem={stem!r}: choose one of {sorted(_STEMS)}")
    return _STEMS[stem]
