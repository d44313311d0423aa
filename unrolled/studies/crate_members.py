"""Small trained vision models that all `crate-...` studies share: one roster, one recipe, each trained once.

Every member is 4 layers deep, sees 32-pixel images in patches of 4, and as many of them as every other member; so
differences are of the kind, not of the budget. No kind had its recipe tuned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import nn

from unrolled.studies.base import StudyConfig
from unrolled.studies.crate.networks import (
    BATCH,
    DEPTH,
    KINDS,
    MASKED,
    NAMES,
    Data,
    accuracy,
    build,
    reconstruction,
    train,
)
from unrolled.studies.platonic_zoo import pictures
from unrolled.studies.processes import finished
from unrolled.studies.remembered import checkpoint, is_kept, remembered

__all__ = ["BATCH", "DEPTH", "KINDS", "MASKED", "NAMES", "Data", "accuracy", "build", "reconstruction", "train"]


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
        if self.images < BATCH or self.workers < 1:
            raise ValueError(f"images must be at least one batch, {BATCH}, and workers at least 1")


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


def trained(config: MembersConfig, member: Member) -> nn.Module:
    """The member's network, in eval mode; trained unless kept.

    Raises:
        MissingData: its images are not in `config.data_dir`.
    """
    test = pictures(member.data, "test", config.data_dir)
    channels, side = test.images.shape[1], test.images.shape[-1]
    model = build(member, classes=len(test.classes), channels=channels, side=side).to(config.device)
    if member.trained:
        plan = SimpleNamespace(kind=member.kind, data=member.data, seed=member.seed, images=images_seen(config, member))
        keep = checkpoint(weights(config, member), settings_of(config, member))
        train(plan, model, lambda: pictures(member.data, "train", config.data_dir), keep)
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
