"""The kinds of small vision networks that studies share: what each is made of, and how it is built from a seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

DEPTH = 4  # blocks, unless a kind says otherwise
_CRATE, _VIT = "crate_nano_patch4_32", "vit_nano_patch4_32"
_MAE, _VIT_MAE = "crate_mae_nano_patch4_32", "vit_mae_nano_patch4_32"
_ALPHA = {"sparsifier": "overcomplete"}
_PIXELS = {"norm_pix_loss": True}
_SMALL, _LARGE = {"embed_dim": 48, "depth": 3}, {"embed_dim": 96, "depth": 4}
_MEAN, _VIT_MEAN = {"pool": "avg"}, {"global_pool": "avg", "mlp_ratio": 2.0}
_COARSE = (8, 2)


class Kind(NamedTuple):
    """One architecture: what tables call it, the registered model it is made from, and what is changed of it."""

    words: str
    model: str
    options: Mapping[str, Any] = MappingProxyType({})
    rate: float = 0.0
    """Weight of the sparse rate reduction of all layers, in nats per token at eps 0.5, in the loss."""
    patch: tuple[int, int] = (4, 2)
    """Side of a patch of images of 32 pixels and more, and of smaller ones."""


# all of width 96 unless the words say otherwise; alpha's three changes come one by one
KINDS: dict[str, Kind] = {
    "crate": Kind("CRATE", _CRATE),
    "overcomplete": Kind("CRATE, overcomplete", _CRATE, _ALPHA),
    "decoupled": Kind("CRATE, overcomplete and decoupled", _CRATE, {**_ALPHA, "decoupled": True}),
    "alpha": Kind("CRATE-alpha (with residual)", _CRATE, {**_ALPHA, "decoupled": True, "residual": True}),
    "tost": Kind("ToST", "tost_nano_patch4_32"),
    "cbt": Kind("CBT", "cbt_nano_patch4_32"),
    "crate-conv": Kind("CRATE with CBT's stem", _CRATE, {"stem": "conv"}),  # CBT and ToST begin with convolutions
    "attention-only": Kind("attention only", "aot_nano_patch4_32"),
    "vit": Kind("ViT", _VIT),
    # as wide as `unrolled.models.compare.matched_width` says: CRATE's parameters, CRATE's operations
    "vit-48": Kind("ViT of width 48", _VIT, {"embed_dim": 48}),
    "vit-52": Kind("ViT of width 52", _VIT, {"embed_dim": 52}),
    # ablations of CRATE
    "tied": Kind("tied output", _CRATE, {"output": "tied", "bias": False}),
    "step-0.02": Kind("step 0.02", _CRATE, {"step_size": 0.02}),
    "step-0.5": Kind("step 0.5", _CRATE, {"step_size": 0.5}),
    "sparsity-0.02": Kind("sparsity 0.02", _CRATE, {"sparsity": 0.02}),
    "sparsity-0.5": Kind("sparsity 0.5", _CRATE, {"sparsity": 0.5}),
    "learned": Kind("learned step and threshold", _CRATE, {"learn_step_size": True, "learn_sparsity": True}),
    "derived": Kind("derived compression", _CRATE, {"compression": "derived"}),
    "negated": Kind("negated compression", _CRATE, {"compression": "negated"}),
    # what might strengthen emergence
    "registers": Kind("four registers", _CRATE, {"reg_tokens": 4}),
    "orthogonal": Kind("orthogonal subspaces", _CRATE, {"orthogonal": True}),
    "regularised": Kind("rate reduction in the loss", _CRATE, rate=0.1),
    "width-48": Kind("width 48", _CRATE, {"embed_dim": 48}),
    "patch-8": Kind("patches of 8", _CRATE, patch=(8, 4)),
    # masked autoencoders, encoder and decoder of 4 layers each
    "mae": Kind("CRATE-MAE", _MAE, _PIXELS),
    "mae-visible": Kind("CRATE-MAE, visible only", _MAE, {**_PIXELS, "encoder": "visible"}),
    "vit-mae": Kind("ViT-MAE of width 48", _VIT_MAE, {**_PIXELS, "encoder": "visible", "embed_dim": 48}),
    # what is aligned: three families in two sizes, 16 patches, classified from the mean of all tokens
    "crate-small": Kind("CRATE small", _CRATE, {**_SMALL, **_MEAN}, patch=_COARSE),
    "crate-large": Kind("CRATE large", _CRATE, {**_LARGE, **_MEAN}, patch=_COARSE),
    "vit-small": Kind("ViT small", _VIT, {**_SMALL, **_VIT_MEAN}, patch=_COARSE),
    "vit-large": Kind("ViT large", _VIT, {**_LARGE, **_VIT_MEAN}, patch=_COARSE),
    "cnn-small": Kind("CNN small", "SmallResNet", {"width": 8}),
    "cnn-large": Kind("CNN large", "SmallResNet", {"width": 16}),
}
MASKED = ("mae", "mae-visible", "vit-mae")
BLOCKS = tuple(name for name, kind in KINDS.items() if kind.model != "SmallResNet")
"""Kinds that are blocks over tokens."""


def build(network: Any, *, classes: int, channels: int = 3, side: int = 32) -> nn.Module:
    """The untrained network of a `kind` and a `seed`, from which its weights follow."""
    kind = KINDS[network.kind]
    fine = side < 32
    frame = {"depth": DEPTH, "in_chans": channels, "img_size": side, "patch_size": kind.patch[fine]}
    head = {} if network.kind in MASKED else {"num_classes": classes}
    from unrolled.models import create_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(network.seed)
        if kind.model == "SmallResNet":
            return SmallResNet(**kind.options, channels=channels, classes=classes, stride=1 if fine else 2)
        return create_model(kind.model, **{**frame, **kind.options, **head})


def stages(model: nn.Module) -> list[Callable[[Tensor], Tensor]]:
    """The network as a chain: embedding, every block or stage, classifier; their composition is the model."""
    if isinstance(model, SmallResNet):
        return [model.stem, model.layer1, model.layer2, model.layer3, model.classify]
    vit: Any = model

    def embed(x: Tensor) -> Tensor:
        tokens: Tensor = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(x))))
        return tokens

    def classify(tokens: Tensor) -> Tensor:
        logits: Tensor = vit.forward_head(vit.norm(tokens))
        return logits

    return [embed, *vit.blocks, classify]


class SmallResNet(nn.Module):
    """Three stages of one residual block each, after a 3x3 convolution; the layout of He et al. 2016 for CIFAR-10.

    The stages' widths are 1, 2 and 4 times the first.
    """

    def __init__(self, *, width: int, channels: int, classes: int, stride: int):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.layer1 = _Residual(width, width, 1)
        self.layer2 = _Residual(width, 2 * width, 2)
        self.layer3 = _Residual(2 * width, 4 * width, 2)
        self.head = nn.Linear(4 * width, classes)

    def classify(self, x: Tensor) -> Tensor:
        """[b, c, h, w] of the last stage to logits [b, classes]."""
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """[b, channels, h, w] to logits [b, classes]."""
        return self.classify(self.layer3(self.layer2(self.layer1(self.stem(x)))))


class _Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.skip = nn.Identity() if before == after else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.skip(x))
