"""What `crate-mae-layers` computes: layers and completions of masked autoencoders, other completions, and sizes."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from unrolled.reading import Json
from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.crate.compared import NetworksConfig
from unrolled.studies.crate.mae_layers.completion import (
    baseline_scores,
    completed_by,
    completed_by_baselines,
    images_of,
    masks,
    model_scores,
    patches_of,
    showable,
)
from unrolled.studies.crate.masked import MaskedLayers
from unrolled.studies.kinds import MASKED
from unrolled.studies.networks import Data, OfNetwork
from unrolled.studies.pictures import as_input, pictures
from unrolled.studies.study import Budgets, Count, Seeds

# the registered models of the claim about size
BASE, VIT_BASE = "crate_mae_base_patch16_224", "vit_mae_base_patch16_224"
SIZES = (*(f"crate_mae_{size}_patch16_224" for size in ("tiny", "small", "base", "large")), VIT_BASE)


@dataclass(kw_only=True)
class MaeLayersConfig(NetworksConfig):
    """Networks are the roster's, trained once for all studies; measuring them takes minutes."""

    budgets: ClassVar[Budgets] = {
        "quick": {
            **{"seeds": (0,), "data": "digits", "images": 1280, "workers": 1},
            **{"measured": 64, "tested": 200, "lessons": 100},
        },
        "cpu": {},
        "gpu": {"device": "cuda", "images": 1_280_000, "workers": 1},
    }

    data: Data = "tiny-imagenet-32"
    """What networks are trained on, without labels, and whose held-out images are used."""
    seeds: Seeds = (0, 1, 2)
    """Of weights and training batches; masks on held-out images are always the same."""
    measured: Count = 256
    """Held-out images whose layers are measured."""
    tested: Count = 1000
    """Held-out images that are completed."""
    lessons: Count = 500
    """Training images that the factors of completions in pixels are fitted on."""
    shown: Count = 6
    """Completions in the report."""


@dataclass(frozen=True, kw_only=True)
class Completed(OfNetwork):
    """A masked autoencoder's completions of held-out images, and of so many pictures, which are `shown`."""

    tested: int
    lessons: int
    shown: int

    def compute(self, context: Context) -> Result:
        """As `model_scores` says, `parameters` that train, and `pictures`, completed without help."""
        test, lessons = images(self.network.data, context, self.tested, self.lessons)
        model: Any = self.network.load(context)
        scores = model_scores(model, test, lessons)
        result = {**scores, "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad)}
        if self.shown:
            weight, patch = next(model.parameters()), model.patch_embed.patch_size[0]
            pixels = as_input(showable(test, self.shown))
            removed = masks(pixels, patch)
            filled = completed_by(model, pixels.to(weight), removed.to(weight.device), scores["factor"])[0]
            result["pictures"] = packed(filled, patch, test)
        return result


@dataclass(frozen=True, kw_only=True)
class Baselines(Cell):
    """Completions of the same images by what learns nothing."""

    data: Data
    tested: int
    lessons: int
    shown: int

    def require(self, context: Context) -> None:
        """The images."""
        pictures(self.data, "test", context.data_dir)

    def compute(self, context: Context) -> Result:
        """`scores` as `baseline_scores` says, and `pictures`: images, what is visible of them, and completions."""
        test, lessons = images(self.data, context, self.tested, self.lessons)
        patch = 2 if test.shape[-1] < 32 else 4
        pixels = as_input(showable(test, self.shown))
        removed = masks(pixels, patch)
        whole = patches_of(pixels, patch)
        rows = {"image": whole, "visible": whole.masked_fill(removed[..., None], 0.0)}
        rows |= completed_by_baselines(pixels, removed, patch)
        return {
            "scores": baseline_scores(test, lessons, patch),
            "pictures": {name: packed(patches, patch, test) for name, patches in rows.items()},
        }


@dataclass(frozen=True, kw_only=True)
class Size(Cell):
    """A registered masked autoencoder in numbers of entries."""

    model: str

    def compute(self, context: Context) -> dict[str, int]:
        """Parameters by part.

        `positions` are the fixed tables of sines and cosines, which do not train; `dead` what the published code has
        besides: a second table of positions and an unused linear map between encoder and decoder.
        """
        from unrolled.models import create_model

        with torch.device("meta"):
            model: Any = create_model(self.model)
        parts = dict.fromkeys(("patches", "encoder", "decoder", "prediction", "tokens and norms", "positions"), 0)
        homes = {
            "patch_embed": "patches",
            "blocks": "encoder",
            "decoder_blocks": "decoder",
            "decoder_pred": "prediction",
        }
        for key, parameter in model.named_parameters():
            home = "positions" if key == "pos_embed" else homes.get(key.split(".")[0], "tokens and norms")
            parts[home] += parameter.numel()
        parts["trained"] = sum(parts.values()) - parts["positions"]
        parts["total"] = parts["trained"] + parts["positions"]
        dim = model.embed_dim
        parts["dead"] = dim * dim + dim + parts["positions"]
        parts["published"] = parts["total"] + parts["dead"]
        return parts


def cells(config: MaeLayersConfig) -> Iterator[Cell]:
    """Sizes, completions without learning, and every masked autoencoder of the roster, trained and not."""
    for model in SIZES:
        yield Size(model=model)
    seen = {"tested": config.tested, "lessons": config.lessons}
    yield Baselines(data=config.data, **seen, shown=config.shown)
    for kind in MASKED:
        for seed in config.seeds:
            for state in (True, False):
                network = config.network(kind, config.data, seed, trained=state)
                yield MaskedLayers(network=network, measured=config.measured)
                shown = config.shown if state and seed == config.seeds[0] else 0
                yield Completed(network=network, **seen, shown=shown)


def vit_mae_parameters(
    *, dim: int, depth: int, decoder_dim: int, decoder_depth: int, patch: int = 16, side: int = 224
) -> int:
    """Entries of a ViT-MAE with a decoder of its own width, positions of both included, MLPs four times as wide."""
    tokens, pixels = 1 + (side // patch) ** 2, 3 * patch**2

    def block(width: int) -> int:
        return 12 * width**2 + 13 * width

    encoder = pixels * dim + dim + dim + tokens * dim + depth * block(dim) + 2 * dim
    decoder = dim * decoder_dim + decoder_dim + decoder_dim + tokens * decoder_dim
    decoder += decoder_depth * block(decoder_dim) + 2 * decoder_dim + decoder_dim * pixels + pixels
    return encoder + decoder


def images(data: Data, context: Context, tested: int, lessons: int) -> tuple[Tensor, Tensor]:
    """The first held-out and the first training images, uint8."""
    test, train = (pictures(data, split, context.data_dir).images for split in ("test", "train"))
    return test[:tested], train[:lessons]


def packed(patches: Tensor, patch: int, like: Tensor) -> Json:
    """Patches `[n, m, p * p * c]` in the networks' unit as pictures `[n, h, w, c]` of bytes, in base 64."""
    whole = images_of(patches, patch, (like.shape[2], like.shape[3])).mul(64).add(127.5).round().clamp(0, 255)
    pixels = whole.to(torch.uint8).movedim(1, -1).cpu().numpy()
    return {"shape": list(pixels.shape), "bytes": b64encode(pixels.tobytes()).decode()}


def unpacked(record: Mapping[str, Any]) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    """Pictures as `packed` keeps them: `[h, w, 3]`, or `[h, w]` of grey ones."""
    pixels = np.frombuffer(b64decode(record["bytes"]), dtype=np.uint8).reshape(record["shape"])
    return [image[..., 0] if image.shape[-1] == 1 else image for image in pixels]
