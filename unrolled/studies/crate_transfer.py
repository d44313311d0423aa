"""Transfer to CIFAR-10 and Fashion-MNIST of members pretrained on Tiny-ImageNet, with labels and by masking.

Claims: pretraining helps CRATE (arXiv 2306.01129, transfer table) and CRATE-MAE (the book on deep representation
learning, MAE chapter). Every network is fine-tuned and probed beside the same network untrained, at equal budgets.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from unrolled.studies.base import Budget, Expectation, Study
from unrolled.studies.crate_members import KINDS, Data, Member, MembersConfig

if TYPE_CHECKING:
    from unrolled.report import Report

# ranges fixed before any result: 2 points are about the sampling error of an accuracy on 3,000 images
SUPERVISED = Expectation(
    statement="CRATE pretrained with labels, fine-tuned on CIFAR-10, is ahead of the same CRATE from scratch (points)",
    source="arXiv 2306.01129, transfer table; from-scratch values are not in it",
    published="fine-tuned accuracy 95.5 % (T) to 97.2 % (L) after ImageNet-1k",
    low=2.0,
)
AGAINST_VIT = Expectation(
    statement="Pretrained with labels and fine-tuned on CIFAR-10, CRATE is at most 3 points behind a ViT of as many "
    "parameters (points, CRATE less ViT)",
    source="arXiv 2306.01129, transfer table: CRATE-B, 22.8 M parameters, beside ViT-S, 22.1 M",
    published="96.8 - 97.2 = -0.4",
    low=-3.0,
)
MASKED = Expectation(
    statement="CRATE-MAE, fine-tuned on CIFAR-10, is ahead of the same network from scratch (points)",
    source="what masked pretraining is for; neither the paper nor the book has fine-tuned values that we could read",
    published="not found",
    low=2.0,
)
FEW_LABELS = Expectation(
    statement="Masked pretraining of CRATE gains more where labels are few (gain with few less gain with all, points)",
    source="the usual reason for pretraining without labels; no number in the paper or the book",
    published="not found",
    low=0.0,
)
PROBED = Expectation(
    statement="A linear probe of CRATE-MAE's frozen features on CIFAR-10 is at most 7 points behind ViT-MAE's (points)",
    source="book on deep representation learning, MAE table: S 79.4 and 79.9 %, B 80.9 and 87.9 %, with half "
    "(S) and a third (B) of the ViT-MAE's parameters",
    published="-0.5 (S), -7.0 (B)",
    low=-7.0,
)
UNTRAINED = Expectation(
    statement="CRATE-MAE's frozen features are ahead of the untrained network's (linear probe, CIFAR-10, points)",
    source="implied by the same table; the control is not in it",
    published="not found",
    low=2.0,
)


@dataclass(kw_only=True)
class Config(MembersConfig):
    """Members come from the shared roster; budgets change sizes, never the recipe."""

    budgets: ClassVar[dict[Budget, dict[str, Any]]] = {
        "quick": {
            "source": "digits",
            "targets": ("digits-turned",),
            "kinds": ("crate", "vit-48", "mae", "vit-mae"),
            "images": 2560,
            "seeds": (0,),
            "train_members": True,
            "members": Path("runs/crate-transfer/quick-members"),
            "workers": 1,
            "steps": 20,
            "longer": 40,
            "few": 10,
            "rates": (5e-4,),
            "test_images": 400,
            "probe_images": 800,
        },
        "cpu": {},
        "gpu": {
            "seeds_others": 3,
            "steps": 1000,
            "longer": 5000,
            "images": 1_280_000,
            "train_members": True,
            "members": Path("runs/crate-members-gpu"),
            "workers": 1,
            "device": "cuda",
        },
    }

    fashion_dir: Path | None = None
    """Folder with Fashion-MNIST's four files, or with a folder `fashion_mnist` of them (`--set fashion-dir=DIR`);
    default `data_dir`."""
    source: Data = "tiny-imagenet-32"
    """What members are pretrained on."""
    targets: tuple[str, ...] = ("cifar10", "fashion_mnist")
    """What they are transferred to: `cifar10`, `fashion_mnist`, or `digits-turned`, the digits by a quarter turn."""
    kinds: tuple[str, ...] = ("crate", "vit-48", "vit", "alpha", "mae", "mae-visible", "vit-mae")
    """Members, of the roster's kinds. Those that are not kept are not run, unless `train_members`."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the pretrained member, its classifier and its fine-tuning batches."""
    seeds_others: int = 1
    """How many of them the targets after the first get."""
    train_members: bool = False
    """Train members that are not kept."""
    steps: int = 80
    """Fine-tuning steps of 128 images, the same from pretrained weights and from scratch."""
    rate: float = 1e-3
    """Peak learning rate of fine-tuning, the same for all."""
    rates: tuple[float, ...] = (5e-4, 2e-3)
    """Further peaks, for CRATE and CRATE-MAE on the first target, to see whether conclusions hang on the rate."""
    longer: int = 500
    """Steps, at the usual rate and with all labels, to see whether conclusions hang on so short a fine-tuning."""
    longer_kinds: tuple[str, ...] = ("crate", "vit-48", "mae", "vit-mae")
    """Of `kinds`, those that are fine-tuned so long, and their untrained networks."""
    few: int = 100
    """Labels of a class where labels are few."""
    test_images: int = 3000
    """Held-out images for every accuracy."""
    probe_images: int = 5000
    """Training images for the probes, of which a fifth is held out to choose the layer and the penalty."""
    out: Path = Path("runs/crate-transfer")
    """Where the report goes, the results of cells and the fine-tuned models."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must name at least one, and none twice")
        for name in ("kinds", "longer_kinds"):
            if unknown := [kind for kind in getattr(self, name) if kind not in KINDS]:
                raise ValueError(f"{name}: {unknown[0]!r} is unknown; choose of {', '.join(KINDS)}")
        known = ("cifar10", "fashion_mnist", "digits-turned")
        if not self.targets or any(target not in known for target in self.targets):
            raise ValueError(f"targets={self.targets}: name at least one of {', '.join(known)}")
        if (self.source == "digits") != (self.targets == ("digits-turned",)):
            raise ValueError("targets: digits-turned goes with source='digits', and nothing else does")
        if self.seeds_others < 1:
            raise ValueError(f"seeds_others={self.seeds_others}: must be at least 1")
        if self.longer <= self.steps:
            raise ValueError(f"longer={self.longer}: must be more than steps={self.steps}")
        if min(self.steps, self.few, self.test_images, self.probe_images) < 1 or min(self.rate, *self.rates, 1) <= 0:
            raise ValueError("steps, few, test_images, probe_images, rate and rates must be positive")


def run(config: Config, *, on_progress: Callable[[str], None] | None = None) -> Report:
    """Fine-tune and probe what is kept of the roster; the report is also written to `config.out`.

    Args:
        config: what to run.
        on_progress: given a line of text for each result.

    Raises:
        MissingData: there is no image of the source, or of any target, in the folders named.
    """
    from unrolled.studies.crate_members import kept, train_all, weights
    from unrolled.studies.crate_transfer_cells import available, compute_all, jobs_of
    from unrolled.studies.crate_transfer_report import build_report

    began = time.perf_counter()
    targets = available(config)
    members = [Member(kind=kind, data=config.source, seed=seed) for kind in config.kinds for seed in config.seeds]
    if config.train_members:
        train_all(config, members, on_progress=on_progress)
    present = [member for member in members if kept(config, member) and weights(config, member).is_file()]
    results = {
        "targets": targets,
        "missing_members": [member.name for member in members if member not in present],
        "missing_targets": [target for target in config.targets if target not in targets],
        "cells": compute_all(config, jobs_of(config, present, targets), on_progress=on_progress),
    }
    report = build_report(config, results, began)
    report.write(config.out)
    return report


STUDY = Study(
    name="crate-transfer",
    title="Transfer of CRATE and CRATE-MAE: fine-tuned and probed, beside training from scratch",
    citation="Y. Yu et al., White-Box Transformers via Sparse Rate Reduction, arXiv 2306.01129; D. Pai et al., Masked "
    "Completion via Structured Diffusion with White-Box Transformers, arXiv 2404.02446",
    config=Config,
    run=run,
    expectations=(SUPERVISED, AGAINST_VIT, MASKED, FEW_LABELS, PROBED, UNTRAINED),
)
