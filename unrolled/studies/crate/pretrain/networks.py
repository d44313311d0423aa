"""The masked autoencoders of `crate-pretrain`, the backbone that all its objectives share, and the images they see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from unrolled.studies.cells import Context
from unrolled.studies.pictures import Pictures, pictures

Data = Literal["cifar10", "digits"]
Part = Literal["train", "held out", "test"]
HELD_OUT = 0.1
_CRATE, _VIT = "crate_mae_nano_patch4_32", "vit_mae_nano_patch4_32"
_SMALL = {"in_chans": 1, "img_size": 8, "patch_size": 2, "depth": 2}  # of the digits
_VISIBLE = {"encoder": "visible"}


class Form(NamedTuple):
    """A masked autoencoder: what tables call it, the registered model it is made from, and what is changed of it."""

    words: str
    model: str
    arguments: Mapping[str, Any]


FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "crate": Form("CRATE-MAE", _CRATE, {**_VISIBLE, "compression": "derived"}),
        "vit": Form("ViT-MAE of equal parameters", _VIT, {**_VISIBLE, "embed_dim": 48}),
        # the published network and what its decoder's R^c may hang on
        "published": Form("published step, learned output", _CRATE, {}),
        "tied": Form("published step, tied output", _CRATE, {"output": "tied", "bias": False}),
        "derived": Form("derived step, learned output", _CRATE, {"compression": "derived"}),
        "derived-tied": Form(
            "derived step, tied output", _CRATE, {"compression": "derived", "output": "tied", "bias": False}
        ),
    }
)
"""All of six and six layers. The first two encode visible patches alone, as MAE does; the others all, as published."""


def autoencoder(form: str, data: Data, seed: int, *, normalised: bool = True) -> Any:
    """The untrained masked autoencoder of a form, whose weights follow from the seed."""
    from unrolled.models import create_model

    made = FORMS[form]
    frame = {**_SMALL, "decoder_depth": 2} if data == "digits" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create_model(made.model, **{**frame, **made.arguments, "norm_pix_loss": normalised})


def classifier(model: Any, seed: int, classes: int) -> nn.Module:
    """A network under a new classifier of the mean of its tokens; of a masked autoencoder the encoder.

    0 classes leave the classifier out: what is left are features.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7919 + seed)
        if hasattr(model, "decoder_blocks"):
            return model.classifier(classes, pool="mean")  # type: ignore[no-any-return]
        model.reset_classifier(classes)
        return model  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class Fresh:
    """A masked autoencoder that learnt nothing."""

    form: str
    data: Data
    seed: int

    def load(self, context: Context) -> nn.Module:
        """The network, in eval mode."""
        return autoencoder(self.form, self.data, self.seed).eval().to(context.device)  # type: ignore[no-any-return]


@cache
def images(data: Data, part: Part, folder: Path) -> Pictures:
    """Pictures of a part: of the training split, in random order, the last tenth is held out.

    Raises:
        MissingData: they are not in `folder`.
    """
    if part == "test":
        return pictures(data, "test", folder)
    whole = pictures(data, "train", folder)
    taught = len(whole.labels) - round(HELD_OUT * len(whole.labels))
    rows = slice(0, taught) if part == "train" else slice(taught, None)
    return Pictures(images=whole.images[rows], labels=whole.labels[rows], classes=whole.classes)
