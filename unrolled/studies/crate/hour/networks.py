"""The networks that `crate-hour` looks at, by the names of their weights, and fresh ones of the same architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any

from torch import Tensor, nn

from unrolled.studies.cells import Context
from unrolled.studies.crate.causal.cells import Shipped, inputs
from unrolled.studies.crate.minutes.cells import Trial

CRATE, VIT = "crate_nano_patch4_32.cifar10_hour", "vit_nano_conv_patch4_32.cifar10"
FOUR_HOURS = ("crate_nano_patch4_32.cifar10_four_hours", "vit_nano_conv_patch4_32.cifar10_four_hours")
"""The same two, trained four times as long."""
OTHERS = ("aot_nano_conv_patch4_32.cifar10", "crate_nano_patch4_32.cifar10_conv", *FOUR_HOURS)
OLDER = ("crate_nano_patch4_32.cifar10",)
WORDS: Mapping[str, str] = MappingProxyType(
    {
        CRATE: "CRATE, one hour",
        VIT: "ViT, one hour",
        OTHERS[0]: "attention only, one hour",
        OTHERS[1]: "CRATE, one hour at twice the rate",
        FOUR_HOURS[0]: "CRATE, four hours",
        FOUR_HOURS[1]: "ViT, four hours",
        OLDER[0]: "CRATE as published, linear stem, 25 epochs",
    }
)


@dataclass(frozen=True, kw_only=True)
class Given:
    """Weights that ship with the package, or fresh ones in their place.

    Attributes:
        weights: their name.
        digest: of their file, so that results follow from the weights and not from their name; "" of fresh ones.
        drawn: seed of fresh weights of the same network; None: as they ship.
    """

    weights: str
    digest: str
    drawn: int | None = None

    def load(self, context: Context) -> nn.Module:
        """The network, in eval mode, of images as `shown` has them."""
        import unrolled
        from unrolled.instruments.control import untrained_control

        model = unrolled.create_model(self.weights, pretrained=True).eval()
        if self.drawn is not None:
            model = untrained_control(model, self.drawn)
        return model.to(context.device)


Looked = Given | Trial


def given(weights: str, drawn: int | None = None) -> Given:
    """Shipped weights by name.

    Raises:
        ValueError: none of that name ship.
    """
    from unrolled.checksums import file_digest
    from unrolled.models.registry import shipped_weights

    if (shipped := shipped_weights(weights)) is None:
        raise ValueError(f"{weights!r}: no such weights ship with the package; `unrolled list` names those that do")
    return Given(weights=weights, digest=file_digest(shipped[0])[:16] if drawn is None else "", drawn=drawn)


def load(network: Looked, context: Context) -> nn.Module:
    """The network, in eval mode, of images as `shown` has them."""
    if isinstance(network, Given):
        return network.load(context)
    import unrolled

    folder = network.file(context, "-run") / "model"  # `fit` would evaluate it once more
    return unrolled.create_model(str(folder), pretrained=True).eval().to(context.device)


def shown(model: Any, images: Tensor) -> Tensor:
    """uint8 pixels as a network that ships, or one that `unrolled train` made, was given them in training."""
    return inputs(Shipped(), model, images)


def studied(network: Given, context: Context) -> nn.Module:
    """The network behind a change of units, so that it takes images as studies have them, `pictures.as_input`."""
    model: Any = network.load(context)
    units = SimpleNamespace(pretrained_cfg=model.pretrained_cfg)  # not the model, which would hold itself

    def change(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (shown(units, args[0] * 64 + 127.5),)  # `as_input`, undone

    model.patch_embed.register_forward_pre_hook(change)
    return model  # type: ignore[no-any-return]
