"""The members of the zoo: what each is, how it is built, and what labels it is taught."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

Kind = Literal["crate", "vit", "cnn"]
Taught = Literal["labels", "half shuffled", "all shuffled", "nothing"]
KINDS: tuple[Kind, ...] = ("crate", "vit", "cnn")
WORDS = {"crate": "CRATE", "vit": "ViT", "cnn": "CNN"}
# width and number of blocks; a CNN has three stages, whose widths are 1, 2 and 4 times the first
SIZES: dict[str, dict[str, tuple[int, int]]] = {
    "crate": {"small": (48, 3), "large": (96, 4)},
    "vit": {"small": (48, 3), "large": (96, 4)},
    "cnn": {"small": (8, 3), "large": (16, 3)},
}


@dataclass(frozen=True, kw_only=True)
class Member:
    """One network of the zoo.

    Attributes:
        kind, size, seed: architecture and what its weights and batches start from.
        taught: the labels of its training; "nothing" is the random network.
        classes: the only classes it saw, if not all.
        share: of the training steps.
        name: made of these.
    """

    kind: Kind
    size: str
    seed: int
    taught: Taught = "labels"
    classes: tuple[int, ...] = ()
    share: float = 1.0
    name: str = field(init=False)

    def __post_init__(self) -> None:
        parts = [self.kind, self.size]
        parts += {"labels": [], "nothing": ["random"]}.get(self.taught, [self.taught.replace(" ", "-")])
        parts += [f"classes{self.classes[0]}to{self.classes[-1]}"] if self.classes else []
        parts += ["brief"] if self.share < 1 else []
        object.__setattr__(self, "name", "-".join([*parts, f"seed{self.seed}"]))

    @property
    def sound(self) -> bool:
        """Whether it was taught true labels of all classes."""
        return self.taught == "labels" and not self.classes

    @property
    def group(self) -> str:
        """What it was taught, in words."""
        if self.taught == "labels":
            return "half of the classes" if self.classes else "true labels"
        return {"nothing": "untrained"}.get(self.taught, f"labels {self.taught}")

    def steps(self, full: int) -> int:
        """Training steps, given those of a full training."""
        return 0 if self.taught == "nothing" else max(1, round(self.share * full))

    def taught_labels(self, labels: Tensor, classes: int) -> Tensor:
        """The labels it is taught for images with these; -1 for images it does not see."""
        labels = labels.clone()
        if self.classes:
            labels[~torch.isin(labels, torch.tensor(self.classes))] = -1
        if self.taught in ("half shuffled", "all shuffled"):
            # drawn anew instead of permuted, so that every class stays about as frequent and none keeps its images
            generator = torch.Generator().manual_seed(7919 + self.seed)
            drawn = torch.randint(classes, labels.shape, generator=generator)
            wrong = torch.rand(labels.shape, generator=generator) < (0.5 if self.taught == "half shuffled" else 1.0)
            labels = torch.where(wrong, drawn, labels)
        return labels


def roster(which: Literal["full", "few"]) -> tuple[Member, ...]:
    """All members: 36, or 11 small ones."""
    half = (tuple(range(5)), tuple(range(5, 10)))
    if which == "few":
        few = [Member(kind=kind, size="small", seed=seed) for kind in KINDS for seed in (0, 1)]
        few += [Member(kind="cnn", size="small", seed=0, taught="all shuffled")]
        few += [Member(kind="cnn", size="small", seed=0, classes=half[0])]
        few += [Member(kind=kind, size="small", seed=7, taught="nothing") for kind in KINDS]
        return tuple(few)
    members = []
    for kind in KINDS:
        members += [Member(kind=kind, size=size, seed=seed) for size in ("small", "large") for seed in (0, 1, 2)]
        members += [Member(kind=kind, size="small", seed=3, taught=taught) for taught in _SHUFFLED]
        members += [Member(kind=kind, size="small", seed=4, classes=half[0])]
        members += [Member(kind=kind, size="large", seed=seed, taught="nothing") for seed in (7, 8)]
    # ViTs and CNNs stopped early are as accurate as a CRATE at the end, for comparisons at equal accuracy
    members += [Member(kind="vit", size="large", seed=seed, share=0.25) for seed in (5, 6)]
    members += [Member(kind="cnn", size="small", seed=5, share=0.25)]
    return tuple(members)


_SHUFFLED: tuple[Taught, Taught] = ("half shuffled", "all shuffled")


def short_name(member: dict[str, Any]) -> str:
    """A name for figures, from a member's fields: `ViT l0`, `CNN s3 50 %` (large or small, seed, what was spoiled)."""
    marks = {"nothing": " untrained", "half shuffled": " 50 %", "all shuffled": " 100 %"}.get(member["taught"], "")
    marks += " 5 cl." if member["classes"] else ""
    return f"{WORDS[member['kind']]} {member['size'][0]}{member['seed']}{marks}"


def build(member: Member, *, side: int, channels: int, classes: int) -> nn.Module:
    """The untrained network for images [channels, side, side]; its weights follow from the seed alone."""
    from timm.models.vision_transformer import VisionTransformer

    from unrolled.models.crate import CRATE
    from unrolled.studies.kinds import SmallResNet

    width, depth = SIZES[member.kind][member.size]
    patch = 8 if side >= 32 else 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(member.seed)
        if member.kind == "cnn":
            return SmallResNet(width=width, channels=channels, classes=classes, stride=2 if side >= 32 else 1)
        if member.kind == "crate":
            return CRATE(
                image_size=side, patch_size=patch, channels=channels, num_classes=classes, dim=width, depth=depth,
                heads=4, pool="avg", stem="linear",
            )  # fmt: skip
        return VisionTransformer(
            img_size=side, patch_size=patch, in_chans=channels, num_classes=classes, embed_dim=width, depth=depth,
            num_heads=4, mlp_ratio=2.0, global_pool="avg",
        )  # fmt: skip
