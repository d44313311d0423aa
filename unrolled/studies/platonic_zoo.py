"""A zoo of small CRATEs, ViTs and CNNs, good and bad ones, that several studies of alignment share.

Members differ in kind, size, seed, length of training, and in what they were taught: all classes, half of the classes,
shuffled labels, nothing. Each is trained once and kept with its accuracies and features.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from unrolled.studies.base import StudyConfig
from unrolled.studies.kinds import stages as stages
from unrolled.studies.networks import probe_accuracy as probe_accuracy
from unrolled.studies.pictures import Pictures as Pictures
from unrolled.studies.pictures import as_input as as_input
from unrolled.studies.pictures import augmented as augmented
from unrolled.studies.pictures import pictures as pictures
from unrolled.studies.platonic_members import Member, build, roster
from unrolled.studies.processes import finished
from unrolled.studies.remembered import checkpoint, is_kept, remembered
from unrolled.studies.training import train_kept, warmup_cosine

if TYPE_CHECKING:
    from unrolled.instruments.features.extraction import FeatureSet

Images = Literal["held-out", "other"]
LAYERS = ("block*", "layer*")
QUICK: dict[str, Any] = {
    "data": "digits",
    "members": "few",
    "steps": 60,
    "samples": 300,
    "workers": 1,
    "zoo": Path("runs/platonic-zoo-quick"),
}
GPU: dict[str, Any] = {"steps": 20000, "device": "cuda", "workers": 1, "zoo": Path("runs/platonic-zoo-gpu")}
_PEAK, _WEIGHT_DECAY = 2e-3, 0.05
_PROBE_FIT, _PROBE_TEST = 4000, 2000
_OTHER_CLASSES = 100


@dataclass(kw_only=True)
class ZooConfig(StudyConfig):
    """What the studies over the zoo have in common; the same settings mean the same members, trained once."""

    data: Literal["cifar10", "digits"] = "cifar10"
    """Images the members learn; `digits` (8x8, with scikit-learn) need no files."""
    data_dir: Path = Path("data")
    """Folder with `cifar10` and, for transfer, `tiny-imagenet-32`."""
    zoo: Path = Path("runs/platonic-zoo")
    """Where members are kept, for all studies."""
    members: Literal["full", "few"] = "full"
    """Which members: 36, or 11 for a quick look."""
    steps: int = 1400
    """Training steps of a member; "brief" ones have a quarter."""
    batch_size: int = 128
    """Images per step."""
    samples: int = 1000
    """Held-out images whose features are compared; Huh et al. take 1,000."""
    workers: int = 2
    """Members trained at a time, each in a process with one thread; 1 stays in this process."""
    device: str = "cpu"
    """Where to train."""

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.workers) < 1:
            raise ValueError("steps, batch_size and workers must be at least 1")
        if self.samples < 40:
            raise ValueError(f"samples={self.samples}: neighbours and kernels need at least 40")
        if self.data not in ("cifar10", "digits") or self.members not in ("full", "few"):
            raise ValueError("data must be 'cifar10' or 'digits', members 'full' or 'few'")


def settings_of(config: ZooConfig) -> dict[str, Any]:
    """What the members depend on, plain values."""
    return {name: getattr(config, name) for name in ("data", "steps", "batch_size", "device")}


def zoo(config: ZooConfig, *, on_progress: Callable[[str], None] | None = None) -> dict[str, dict[str, Any]]:
    """Train what is missing; return what is known of every member, by name.

    A record holds `member` (its fields), `accuracy` on all test images by its own classifier, `probe` (accuracy of a
    ridge classifier on its last layer), `transfer` (the same on Tiny-ImageNet's images, which it never saw; None
    without them), `parameters`, `images` (seen in training) and `seconds`.

    Raises:
        MissingData: the images are not in `config.data_dir`.
    """
    pictures(config.data, "test", config.data_dir)  # said now rather than in every process
    names = [member.name for member in roster(config.members)]
    missing = [name for name in names if not _kept(config, name)]
    # long trainings first, so that the processes end together
    jobs = [(config, name) for name in sorted(missing, key=_cost, reverse=True)]
    for done, (_, record) in enumerate(finished(member_record, jobs, workers=config.workers), 1):
        if on_progress is not None:
            on_progress(f"zoo, {done} of {len(missing)}: {_line(record)}")
    return {name: member_record(config, name) for name in names}


def member_record(config: ZooConfig, name: str) -> dict[str, Any]:
    """What `zoo` says of one member, trained if it is not kept."""
    member = by_name(config, name)

    def compute() -> dict[str, Any]:
        began = time.perf_counter()
        model = trained(config, member)
        test = pictures(config.data, "test", config.data_dir)
        record = {
            "member": asdict(member),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "images": member.steps(config.steps) * config.batch_size,
            "accuracy": accuracy(model, test, member.classes),
            "probe": _probe(config, model, test, _PROBE_FIT, _PROBE_TEST),
        }
        other = other_pictures(config)
        record["transfer"] = None if other is None else _probe(config, model, other, *_part(other))
        return {**record, "seconds": time.perf_counter() - began}

    return remembered(config.zoo / "cells", member.name, _settings(config, member), compute)


def _kept(config: ZooConfig, name: str) -> bool:
    return is_kept(config.zoo / "cells", name, _settings(config, by_name(config, name)))


def _settings(config: ZooConfig, member: Member) -> dict[str, Any]:
    return {**settings_of(config), **asdict(member)}


def by_name(config: ZooConfig, name: str) -> Member:
    """The member called so."""
    return next(member for member in roster(config.members) if member.name == name)


def trained(config: ZooConfig, member: Member) -> nn.Module:
    """The member's network, in eval mode; trained unless kept."""
    test = pictures(config.data, "test", config.data_dir)
    channels, side = test.images.shape[1], test.images.shape[-1]
    model = build(member, side=side, channels=channels, classes=len(test.classes)).to(config.device)
    steps = member.steps(config.steps)
    if steps:
        optimizer = torch.optim.AdamW(model.parameters(), lr=_PEAK, weight_decay=_WEIGHT_DECAY)
        model.train()

        @cache  # a finished member needs no training images
        def lessons() -> tuple[Pictures, Tensor, Tensor]:
            train = pictures(config.data, "train", config.data_dir)
            labels = member.taught_labels(train.labels, len(train.classes))
            return train, labels, torch.nonzero(labels >= 0)[:, 0]

        def loss_at(step: int) -> Tensor:
            train, labels, rows = lessons()
            generator = torch.Generator().manual_seed(1_000_003 * member.seed + step)
            chosen = rows[torch.randint(len(rows), (config.batch_size,), generator=generator)]
            images = train.images[chosen]
            if config.data == "cifar10":  # digits fill their images and are not symmetric
                images = augmented(images, generator)
            return nn.functional.cross_entropy(
                model(as_input(images).to(config.device)), labels[chosen].to(config.device)
            )

        train_kept(
            model,
            optimizer,
            loss_at,
            steps=steps,
            keep=checkpoint(config.zoo / "models" / f"{member.name}.pt", {**settings_of(config), **asdict(member)}),
            rate=warmup_cosine(_PEAK, warmup=max(1, steps // 20), steps=steps),
            clip_norm=1.0,
        )
    return model.eval()


def features(config: ZooConfig, member: Member, images: Images = "held-out") -> FeatureSet:
    """Features of all layers, averaged over places: of `config.samples` held-out images, or of other images.

    Raises:
        MissingData: other images are asked for and there are none.
    """
    from unrolled.errors import MissingData
    from unrolled.instruments.features.extraction import extract

    found = pictures(config.data, "test", config.data_dir) if images == "held-out" else other_pictures(config)
    if found is None:
        raise MissingData(f"data_dir: {config.data_dir} holds no tiny-imagenet-32")
    chosen = as_input(found.images[: config.samples])
    if config.device != "cpu":
        chosen = chosen.to(config.device)
    return extract(
        trained(config, member),
        chosen,
        layers=LAYERS[1] if member.kind == "cnn" else LAYERS[0],
        batch_size=500,
        name=member.name,
        data=f"{config.data if images == 'held-out' else 'tiny-imagenet-32'}, first {len(chosen)} {images}",
        cache=config.zoo / "features",
    )


def last_layer(model: nn.Module, images: Tensor, device: str = "cpu") -> Tensor:
    """[n, d] features of the last block or stage, averaged over places; `images` uint8 [n, c, h, w]."""
    rows = []
    with torch.no_grad():
        for part in images.split(500):
            tokens = as_input(part).to(device)
            for stage in stages(model)[:-1]:
                tokens = stage(tokens)
            first = int(getattr(model, "num_prefix_tokens", 0))  # the class token is not read out
            rows.append((tokens.mean((2, 3)) if tokens.ndim == 4 else tokens[:, first:].mean(1)).cpu())
    return torch.cat(rows)


def accuracy(model: nn.Module, test: Pictures, classes: tuple[int, ...] = ()) -> float:
    """Share of test images (of the classes named, if any) that the member's own classifier gets right."""
    device = next(model.parameters()).device
    keep = torch.isin(test.labels, torch.tensor(classes)) if classes else torch.ones(len(test.labels)).bool()
    images, labels = test.images[keep], test.labels[keep]
    with torch.no_grad():
        guesses = [model(as_input(part).to(device)).argmax(1).cpu() for part in images.split(500)]
    return float((torch.cat(guesses) == labels).double().mean())


def _probe(config: ZooConfig, model: nn.Module, found: Pictures, fit: int, test: int) -> float:
    fit, test = (fit, test) if len(found.labels) >= fit + test else _part(found)
    used = last_layer(model, found.images[: fit + test], config.device)
    labels = found.labels[: fit + test]
    return probe_accuracy((used[:fit], labels[:fit]), (used[fit:], labels[fit:]), len(found.classes))


def _part(found: Pictures) -> tuple[int, int]:
    fit = round(0.75 * len(found.labels))
    return fit, len(found.labels) - fit


def other_pictures(config: ZooConfig) -> Pictures | None:
    """Tiny-ImageNet's validation images of its first 100 classes at 32 px, shuffled; None for digits or without them.

    No member has seen such an image, so a probe on them measures how well features transfer.
    """
    from unrolled.errors import MissingData

    if config.data != "cifar10":
        return None
    try:
        found = pictures("tiny-imagenet-32", "test", config.data_dir)
    except MissingData:
        return None
    keep = found.labels < _OTHER_CLASSES
    return Pictures(images=found.images[keep], labels=found.labels[keep], classes=found.classes[:_OTHER_CLASSES])


def _cost(name: str) -> int:
    return ("-large" in name) + ("vit-large" in name) - 2 * ("random" in name or "brief" in name)


def _line(record: dict[str, Any]) -> str:
    transfer = "not run" if record["transfer"] is None else f"{100 * record['transfer']:.1f} %"
    return (
        f"{record['member']['name']}: accuracy {100 * record['accuracy']:.1f} %, probe {100 * record['probe']:.1f} %, "
        f"transfer {transfer}, {record['seconds']:.0f} s"
    )
