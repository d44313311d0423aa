"""Small vision networks that the studies of white-box layers share: one roster, one recipe; the training is a cell.

Every network is 4 layers deep, sees 32-pixel images in patches of 4, and as many of them as every other one; so
differences are of the kind, not of the budget. No kind had its recipe tuned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from unrolled.studies.cells import Cell, Context
from unrolled.studies.platonic_zoo import Pictures, as_input, augmented, pictures
from unrolled.studies.training import Checkpoint, train_kept, warmup_cosine

Data = Literal["cifar10", "tiny-imagenet-32", "digits"]
NAMES = {"cifar10": "CIFAR-10", "tiny-imagenet-32": "Tiny-ImageNet-32", "digits": "digits"}
DEPTH, BATCH = 4, 128
_PEAK, _WEIGHT_DECAY = 2e-3, 0.05
_MASK_RATIO = 0.75
_CRATE = "crate_nano_patch4_32"
_MAE, _VIT_MAE = "crate_mae_nano_patch4_32", "vit_mae_nano_patch4_32"
_ALPHA = {"sparsifier": "overcomplete"}
_PIXELS = {"norm_pix_loss": True}


class Kind(NamedTuple):
    """One architecture: what tables call it, the registered model it is made from, and what is changed of it."""

    words: str
    model: str
    options: Mapping[str, Any] = MappingProxyType({})
    rate: float = 0.0
    """Weight of the sparse rate reduction of all layers, in nats per token at eps 0.5, in the loss."""


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
    "vit": Kind("ViT", "vit_nano_patch4_32"),
    # as wide as `unrolled.models.compare.matched_width` says: CRATE's parameters, CRATE's operations
    "vit-48": Kind("ViT of width 48", "vit_nano_patch4_32", {"embed_dim": 48}),
    "vit-52": Kind("ViT of width 52", "vit_nano_patch4_32", {"embed_dim": 52}),
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
    "patch-8": Kind("patches of 8", _CRATE, {"patch_size": 8}),
    # masked autoencoders, encoder and decoder of 4 layers each
    "mae": Kind("CRATE-MAE", _MAE, _PIXELS),
    "mae-visible": Kind("CRATE-MAE, visible only", _MAE, {**_PIXELS, "encoder": "visible"}),
    "vit-mae": Kind("ViT-MAE of width 48", _VIT_MAE, {**_PIXELS, "encoder": "visible", "embed_dim": 48}),
}
MASKED = ("mae", "mae-visible", "vit-mae")


@dataclass(frozen=True, kw_only=True)
class Network(Cell):
    """One network of the roster and its training.

    Attributes:
        kind: of `KINDS`.
        data: what it is trained on; masked autoencoders without the labels.
        seed: what its weights and batches start from.
        images: seen in training; 0 is the untrained control.
    """

    kind: str
    data: Data
    seed: int
    images: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r}: choose one of {', '.join(KINDS)}")
        if 0 < self.images < BATCH:
            raise ValueError(f"images={self.images}: give at least one batch, {BATCH}, or 0 for an untrained network")

    @property
    def words(self) -> str:
        """What tables call it."""
        return KINDS[self.kind].words

    @property
    def masked(self) -> bool:
        """Whether it is a masked autoencoder."""
        return self.kind in MASKED

    def require(self, context: Context) -> None:
        """The images it is trained and tested on."""
        pictures(self.data, "test", context.data_dir)

    def compute(self, context: Context) -> dict[str, Any]:
        """`parameters`, `curve` (training loss, mean since the point before), and its score on test images.

        The score is the `accuracy` on all of them, or of a masked autoencoder its `loss` on the first 2,000.
        """
        model, curve = self._trained(context)
        test = pictures(self.data, "test", context.data_dir)
        score = reconstruction(model, test) if self.masked else accuracy(model, test)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return {"parameters": parameters, "curve": curve, "loss" if self.masked else "accuracy": score}

    def load(self, context: Context) -> nn.Module:
        """The network, in eval mode; from the store if it was trained before."""
        return self._trained(context)[0]

    def _trained(self, context: Context) -> tuple[nn.Module, list[dict[str, Any]]]:
        test = pictures(self.data, "test", context.data_dir)
        channels, side = test.images.shape[1], test.images.shape[-1]
        model = build(self, classes=len(test.classes), channels=channels, side=side).to(context.device)
        if not self.images:
            return model.eval(), []
        curve = train(self, model, lambda: pictures(self.data, "train", context.data_dir), self.checkpoint(context))
        return model.eval(), curve


@dataclass(frozen=True, kw_only=True)
class OfNetwork(Cell):
    """What is measured of a network of the roster."""

    network: Network

    @property
    def needs(self) -> Sequence[Cell]:
        """The training."""
        return (self.network,) if self.network.images else ()

    def require(self, context: Context) -> None:
        """The images."""
        self.network.require(context)


def images_seen(images: int, data: Data) -> int:
    """How many images training shows where it is to show `images`: of 200 classes half as many again."""
    return round(1.5 * images) if data == "tiny-imagenet-32" else images


def build(network: Any, *, classes: int, channels: int = 3, side: int = 32) -> nn.Module:
    """The untrained network of a `kind` and a `seed`, from which its weights follow."""
    kind = KINDS[network.kind]
    options: dict[str, Any] = {"depth": DEPTH, "in_chans": channels, "img_size": side, "patch_size": 4, **kind.options}
    options |= {} if network.kind in MASKED else {"num_classes": classes}
    if side < 32:
        options["patch_size"] //= 2
    from unrolled.models.registry import create_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(network.seed)
        return create_model(kind.model, **options)


def train(
    network: Any, model: nn.Module, read: Callable[[], Pictures], keep: Checkpoint | None
) -> list[dict[str, Any]]:
    """Train `model` in place on `network.images` images; the mean loss since the look before, at ten looks."""
    from unrolled.instruments.trace import trace
    from unrolled.train.regularise import srr_loss

    steps = network.images // BATCH
    masked, weight = network.kind in MASKED, KINDS[network.kind].rate
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad], lr=_PEAK, weight_decay=_WEIGHT_DECAY
    )
    model.train()
    log = {"loss": 0.0, "steps": 0}
    lessons = cache(read)  # a finished network needs no training images

    def loss_at(step: int) -> Tensor:
        found = lessons()
        generator = torch.Generator().manual_seed(1_000_003 * network.seed + step)
        rows = torch.randint(len(found.labels), (BATCH,), generator=generator)
        images = found.images[rows]
        if network.data != "digits":  # digits fill their images and are not symmetric
            images = augmented(images, generator)
        batch = as_input(images).to(device)
        if masked:
            grid: Any = model.patch_embed
            noise = torch.rand(BATCH, grid.num_patches, generator=generator).to(device)
            loss: Tensor = model(batch, _MASK_RATIO, noise)[0]
        elif weight:
            with trace(model, patterns="block*", grad=True) as layers:
                loss = nn.functional.cross_entropy(model(batch), found.labels[rows].to(device))
            loss = loss + weight * srr_loss(model, layers, eps=0.5)
        else:
            loss = nn.functional.cross_entropy(model(batch), found.labels[rows].to(device))
        log["loss"] += float(loss.detach())
        log["steps"] += 1
        return loss

    def look(step: int) -> dict[str, float]:
        mean = log["loss"] / max(1, log["steps"])
        log.update(loss=0.0, steps=0)
        return {"loss": mean}

    often = max(1, steps // 10)
    return train_kept(
        model,
        optimizer,
        loss_at,
        steps=steps,
        keep=keep,
        rate=warmup_cosine(_PEAK, warmup=max(1, steps // 20), steps=steps),
        clip_norm=1.0,
        look=look,
        look_at=range(often, steps + 1, often),
        every=often,  # the loss since the last look is not kept, so saves coincide with looks
    )


def accuracy(model: nn.Module, test: Pictures) -> float:
    """Share of test images the model gets right."""
    device = next(model.parameters()).device
    with torch.no_grad():
        guesses = [model(as_input(part).to(device)).argmax(1).cpu() for part in test.images.split(500)]
    return float((torch.cat(guesses) == test.labels).double().mean())


def reconstruction(model: nn.Module, test: Pictures, count: int = 2000) -> float:
    """Loss of a masked autoencoder on the first `count` test images, masks from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    images = test.images[:count]
    patch: Any = model.patch_embed
    rows, columns = patch.grid_size
    noise = torch.rand(len(images), rows * columns, generator=generator)
    device = next(model.parameters()).device
    total = 0.0
    with torch.no_grad():
        for part, drawn in zip(images.split(500), noise.split(500), strict=True):
            total += len(part) * float(model(as_input(part).to(device), _MASK_RATIO, drawn.to(device))[0])
    return total / len(images)
