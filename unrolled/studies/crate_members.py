"""Small trained vision models that all `crate-...` studies share: one roster, one recipe, each trained once.

Every member is 4 layers deep, sees 32-pixel images in patches of 4, and as many of them as every other member; so
differences are of the kind, not of the budget. No kind had its recipe tuned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from unrolled.studies.base import StudyConfig
from unrolled.studies.cells import is_kept, remembered, train_kept, warmup_cosine
from unrolled.studies.platonic_zoo import Pictures, as_input, augmented, pictures
from unrolled.studies.processes import finished

Data = Literal["cifar10", "tiny-imagenet-32", "digits"]
NAMES = {"cifar10": "CIFAR-10", "tiny-imagenet-32": "Tiny-ImageNet-32", "digits": "digits"}
DEPTH = 4
_PEAK, _WEIGHT_DECAY, _BATCH = 2e-3, 0.05, 128
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


@dataclass(kw_only=True)
class MembersConfig(StudyConfig):
    """What the studies of these models have in common; the same settings mean the same members, trained once."""

    data_dir: Path = Path("data")
    """Folder with `cifar10` and `tiny-imagenet-32`."""
    members: Path = Path("runs/crate-members")
    """Where members are kept, for all studies."""
    images: int = 64_000
    """Images a member sees in training; of Tiny-ImageNet, which has 200 classes, half as many again."""
    workers: int = 2
    """Members trained at a time, each in a process with one thread; 1 stays in this process."""
    device: str = "cpu"
    """Where to train."""

    def __post_init__(self) -> None:
        if self.images < _BATCH or self.workers < 1:
            raise ValueError(f"images must be at least one batch, {_BATCH}, and workers at least 1")


@dataclass(kw_only=True)
class ComparedConfig(MembersConfig):
    """Of studies that compare kinds by members of several seeds."""

    data: tuple[Data, ...] = ("cifar10", "tiny-imagenet-32")
    """What members are trained on; claims are judged on the first."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Members of each kind."""
    train: bool = False
    """Train members that are not kept; without it their cells read `not run`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must name at least one, and none twice")
        if not self.data or len(set(self.data)) < len(self.data) or any(name not in NAMES for name in self.data):
            raise ValueError(f"data must name at least one of {', '.join(NAMES)}, and none twice")


@dataclass(frozen=True, kw_only=True)
class Member:
    """One model.

    Attributes:
        kind: of `KINDS`.
        data: what it is trained on; masked autoencoders without the labels.
        seed: what its weights and batches start from.
        trained: false for the untrained control.
        name: made of these.
    """

    kind: str
    data: Data = "cifar10"
    seed: int = 0
    trained: bool = True
    name: str = field(init=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r}: choose one of {', '.join(KINDS)}")
        parts = [self.kind, self.data, *([] if self.trained else ["untrained"]), f"seed{self.seed}"]
        object.__setattr__(self, "name", "-".join(parts))

    @property
    def words(self) -> str:
        """What tables call it."""
        return KINDS[self.kind].words

    @property
    def masked(self) -> bool:
        """Whether it is a masked autoencoder."""
        return self.kind in MASKED


def build(member: Member, *, classes: int, channels: int = 3, side: int = 32) -> nn.Module:
    """The untrained network; its weights follow from the seed alone."""
    from unrolled.models.registry import create_model

    kind = KINDS[member.kind]
    options: dict[str, Any] = {"depth": DEPTH, "in_chans": channels, "img_size": side, "patch_size": 4, **kind.options}
    options |= {} if member.masked else {"num_classes": classes}
    if side < 32:
        options["patch_size"] //= 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(member.seed)
        return create_model(kind.model, **options)


def trained(config: MembersConfig, member: Member) -> nn.Module:
    """The member's network, in eval mode; trained unless kept.

    Raises:
        MissingData: its images are not in `config.data_dir`.
    """
    from unrolled.instruments.trace import trace
    from unrolled.train.regularise import srr_loss

    test = pictures(member.data, "test", config.data_dir)
    channels, side = test.images.shape[1], test.images.shape[-1]
    model = build(member, classes=len(test.classes), channels=channels, side=side).to(config.device)
    if not member.trained:
        return model.eval()
    steps = images_seen(config, member) // _BATCH
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad], lr=_PEAK, weight_decay=_WEIGHT_DECAY
    )
    model.train()
    log: dict[str, float] = {"loss": 0.0, "steps": 0}

    @cache  # a finished member needs no training images
    def lessons() -> Pictures:
        return pictures(member.data, "train", config.data_dir)

    def loss_at(step: int) -> Tensor:
        found = lessons()
        generator = torch.Generator().manual_seed(1_000_003 * member.seed + step)
        rows = torch.randint(len(found.labels), (_BATCH,), generator=generator)
        images = found.images[rows]
        if member.data != "digits":  # digits fill their images and are not symmetric
            images = augmented(images, generator)
        batch = as_input(images).to(config.device)
        if member.masked:
            patches = (side // 4 if side >= 32 else side // 2) ** 2
            noise = torch.rand(_BATCH, patches, generator=generator).to(config.device)
            loss: Tensor = model(batch, _MASK_RATIO, noise)[0]
        elif weight := KINDS[member.kind].rate:
            with trace(model, patterns="block*", grad=True) as layers:
                loss = nn.functional.cross_entropy(model(batch), found.labels[rows].to(config.device))
            loss = loss + weight * srr_loss(model, layers, eps=0.5)
        else:
            loss = nn.functional.cross_entropy(model(batch), found.labels[rows].to(config.device))
        log["loss"] += float(loss.detach())
        log["steps"] += 1
        return loss

    def look(step: int) -> dict[str, float]:
        mean = log["loss"] / max(1.0, log["steps"])
        log["loss"] = log["steps"] = 0.0
        return {"loss": mean}

    often = max(1, steps // 10)
    train_kept(
        model,
        optimizer,
        loss_at,
        steps=steps,
        settings=settings_of(config, member),
        keep=weights(config, member),
        rate=warmup_cosine(_PEAK, warmup=max(1, steps // 20), steps=steps),
        clip_norm=1.0,
        look=look,
        look_at=range(often, steps + 1, often),
        every=often,  # the loss since the last look is not kept, so saves coincide with looks
    )
    return model.eval()


def weights(config: MembersConfig, member: Member) -> Path:
    """The file with the member's weights and its training log."""
    return config.members / "models" / f"{member.name}.pt"


def images_seen(config: MembersConfig, member: Member) -> int:
    """How many images training shows a member."""
    share = 1.5 if member.data == "tiny-imagenet-32" else 1.0
    return round(share * config.images) if member.trained else 0


def settings_of(config: MembersConfig, member: Member) -> dict[str, Any]:
    """What a member depends on, plain values."""
    kind = KINDS[member.kind]
    return {
        "model": kind.model,
        "options": dict(kind.options),
        "rate": kind.rate,
        "data": member.data,
        "seed": member.seed,
        "trained": member.trained,
        "images": images_seen(config, member),
        "device": config.device,
    }


def record(config: MembersConfig, member: Member) -> dict[str, Any]:
    """What is known of a member, trained if it is not kept.

    `parameters`, `images` seen, `seconds` it took, and `accuracy` on all test images, or for a masked autoencoder its
    `loss` on the first 2,000 test images under masks that are the same for all.
    """

    def compute() -> dict[str, Any]:
        began = time.perf_counter()
        model = trained(config, member)
        found = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
        spent = time.perf_counter() - began
        test = pictures(member.data, "test", config.data_dir)
        score = reconstruction(model, test) if member.masked else accuracy(model, test)
        return {
            **found,
            "images": images_seen(config, member),
            "seconds": spent,
            "loss" if member.masked else "accuracy": score,
        }

    return remembered(config.members / "cells", member.name, settings_of(config, member), compute)


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


def train_all(
    config: MembersConfig, members: Sequence[Member], *, on_progress: Callable[[str], None] | None = None
) -> dict[str, dict[str, Any]]:
    """Train what is missing; the record of every member, by name.

    Raises:
        MissingData: images are not in `config.data_dir`.
    """
    for data in {member.data for member in members}:
        pictures(data, "test", config.data_dir)  # said now rather than in every process
    missing = [member for member in members if not kept(config, member)]
    jobs = [(config, member) for member in missing]
    for done, ((_, member), found) in enumerate(finished(record, jobs, workers=config.workers), 1):
        if on_progress is not None:
            on_progress(f"{done} of {len(missing)}: {line(member, found)}")
    return {member.name: record(config, member) for member in members}


def kept(config: MembersConfig, member: Member) -> bool:
    """Whether the member's record is kept, so that asking for it trains nothing."""
    return is_kept(config.members / "cells", member.name, settings_of(config, member))


def line(member: Member, found: dict[str, Any]) -> str:
    """One member in a line, for progress."""
    score = f"loss {found['loss']:.3f}" if member.masked else f"accuracy {100 * found['accuracy']:.1f} %"
    return f"{member.name}: {score}, {found['parameters']:,} parameters, {found['seconds']:.0f} s"


def roster(kinds: Iterable[str], data: Data, seeds: Iterable[int]) -> list[Member]:
    """One member for each kind and seed."""
    seeds = tuple(seeds)
    return [Member(kind=kind, data=data, seed=seed) for kind in kinds for seed in seeds]
