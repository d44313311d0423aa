"""Small trained image networks as plain modules: six of ImageNet, two residual networks and a ViT of CIFAR-10."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

State = dict[str, Tensor]


class MobileNetV1(nn.Module):
    """MobileNet v1 (arXiv 1704.04861) with TensorFlow's padding: images [b, 3, h, w] -> logits [b, classes].

    `stages.0` is the stem, `stages.i` the i-th pair of a depthwise and a pointwise convolution.
    """

    _WIDTHS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
    _STRIDED = (2, 4, 6, 12)

    def __init__(self, *, width: float = 1.0, num_classes: int = 1000) -> None:
        super().__init__()
        channels = [int(32 * width), *(int(c * width) for c in self._WIDTHS)]
        stages: list[nn.Module] = [_same_conv(3, channels[0], 3, stride=2)]
        for i, (before, after) in enumerate(pairwise(channels), start=1):
            depthwise = _same_conv(before, before, 3, stride=2 if i in self._STRIDED else 1, groups=before)
            stages.append(nn.Sequential(*depthwise, *_same_conv(before, after, 1)))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [b, classes]."""
        return cast(Tensor, self.head(self.stages(images).mean((2, 3))))


class TinyDarknet(nn.Module):
    """Tiny Darknet: images [b, 3, h, w] -> logits [b, classes], in Darknet's own order of the classes.

    `stages.i` is convolution i + 1 with its norm, activation and the pooling that may follow it.
    """

    _WIDTHS = (16, 32, 16, 128, 16, 128, 32, 256, 32, 256, 64, 512, 64, 512, 128)
    _POOLED = (1, 2, 6, 10)

    def __init__(self, *, kernels: tuple[int, ...], num_classes: int = 1000) -> None:
        super().__init__()
        stages, before = [], 3
        for i, (after, size) in enumerate(zip(self._WIDTHS, kernels, strict=True), start=1):
            stage = [
                nn.Conv2d(before, after, size, padding=size // 2, bias=False),
                nn.BatchNorm2d(after, eps=1e-3),
                nn.LeakyReLU(0.1),
            ]
            stages.append(nn.Sequential(*stage, *([nn.MaxPool2d(2)] if i in self._POOLED else [])))
            before = after
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(before, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [b, classes]."""
        return cast(Tensor, self.head(self.stages(images).mean((2, 3))))


class CifarResNet(nn.Module):
    """The residual networks for CIFAR-10 of arXiv 1512.03385: 6 n + 2 layers, [b, 3, h, w] -> logits [b, classes]."""

    def __init__(self, *, blocks: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(*(_Residual(before if i == 0 else after, after) for i in range(blocks)))
            for before, after in ((16, 16), (16, 32), (32, 64))
        )
        self.linear = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [b, classes]."""
        values = F.relu(self.bn1(self.conv1(images)))
        return cast(Tensor, self.linear(self.layer3(self.layer2(self.layer1(values))).mean((2, 3))))


class _Residual(nn.Module):
    """Two convolutions beside an identity that is subsampled and padded with zero channels where sizes change."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.stride, self.extra = (1, 0) if before == after else (2, (after - before) // 2)
        self.conv1 = nn.Conv2d(before, after, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)

    def forward(self, values: Tensor) -> Tensor:
        change = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(values)))))
        same = F.pad(values[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra, self.extra))
        return F.relu(change + same)


class PostNormViT(nn.Module):
    """A ViT of PyTorch's own encoder layers (post-norm, ReLU): [b, 3, 32, 32] -> logits [b, classes]."""

    def __init__(
        self, *, dim: int = 128, depth: int = 6, heads: int = 8, hidden: int = 256, patch_size: int = 4,
        tokens: int = 65, num_classes: int = 10,
    ) -> None:  # fmt: skip
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dim, patch_size, stride=patch_size)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, dim))
        layers = (nn.TransformerEncoderLayer(dim, heads, hidden, batch_first=True) for _ in range(depth))
        self.transformer = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.mlp_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [b, classes]."""
        patches = self.patch_embed["proj"](images).flatten(2).mT
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], 1) + self.pos_embed
        for layer in cast(nn.ModuleList, self.transformer["layers"]):
            tokens = layer(tokens)
        return cast(Tensor, self.mlp_head(tokens[:, 0]))


def efficientnet_lite0(state: State) -> nn.Module:
    """timm's EfficientNet-Lite0, from tensors in the same order under the names of another port."""
    return _efficientnet("tf_efficientnet_lite0", state)


def efficientnet_lite1(state: State) -> nn.Module:
    """Likewise Lite1."""
    return _efficientnet("tf_efficientnet_lite1", state)


def efficientnet_lite2(state: State) -> nn.Module:
    """Likewise Lite2."""
    return _efficientnet("tf_efficientnet_lite2", state)


def _efficientnet(name: str, state: State) -> nn.Module:
    import timm

    state = {key: value for key, value in state.items() if "num_batches_tracked" not in key}
    return _in_order(timm.create_model(name, drop_rate=0.0), state)


def squeezenet1_1(state: State) -> nn.Module:
    """torchvision's SqueezeNet 1.1."""
    from torchvision.models import squeezenet1_1 as build

    model: nn.Module = build(weights=None)
    model.load_state_dict(state)
    return model


def mobilenet_v1_075(state: State) -> nn.Module:
    """MobileNet v1 at 0.75 of its width."""
    names = ["conv1"] + [f"conv_{part}_{i}" for i in range(1, 14) for part in ("dw", "pw")]
    ordered = _convolutions(state, names, "{}_bn")
    ordered["weight"] = state["conv_preds.weight"].flatten(1)
    ordered["bias"] = state["conv_preds.bias"]
    return _in_order(MobileNetV1(width=0.75), ordered)


def tiny_darknet(state: State) -> nn.Module:
    """Tiny Darknet; its last convolution, on one pixel, is a linear layer."""
    ordered: State = {}
    for i in range(1, 16):
        ordered |= {f"conv_{i}.weight": state[f"conv_{i}.weight"], **_norm(state, f"bn_{i}")}
    ordered |= {"weight": state["conv_16.weight"].flatten(1), "bias": state["conv_16.bias"]}
    kernels = tuple(state[f"conv_{i}.weight"].shape[-1] for i in range(1, 16))
    return _in_order(TinyDarknet(kernels=kernels), ordered)


def cifar_resnet(state: State) -> nn.Module:
    """The residual network whose depth the state tells."""
    blocks = len({key.split(".")[1] for key in state if key.startswith("layer1.")})
    return _in_order(CifarResNet(blocks=blocks), state)


def vit_d128_p4(state: State) -> nn.Module:
    """The ViT of CIFAR-10."""
    model = PostNormViT()
    model.load_state_dict(state)
    return model


def _same_conv(before: int, after: int, size: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    from timm.layers import create_conv2d

    conv = create_conv2d(before, after, size, stride=stride, groups=groups, padding="same", bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after, eps=1e-3), nn.ReLU6())


def _convolutions(state: State, names: list[str], norm: str) -> State:
    tensors: State = {}
    for name in names:
        tensors |= {f"{name}.weight": state[f"{name}.weight"], **_norm(state, norm.format(name))}
    return tensors


def _norm(state: State, name: str) -> State:
    return {f"{name}.{part}": state[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")}


def _in_order(model: nn.Module, state: State) -> nn.Module:
    """Load tensors by their order: the same network, whose parts another port gave other names."""
    expected = OrderedDict(
        (key, value) for key, value in model.state_dict().items() if "num_batches_tracked" not in key
    )
    if [tuple(value.shape) for value in expected.values()] != [tuple(value.shape) for value in state.values()]:
        raise ValueError(f"the file holds {len(state)} tensors that are not those of {type(model).__name__}, in order")
    model.load_state_dict(dict(zip(expected, state.values(), strict=True)), strict=False)
    return model
