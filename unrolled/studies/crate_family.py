"""The white-box family side by side at equal data: accuracy, parameters, operations, speed and memory.

Claims: each of CRATE-alpha's three changes raises accuracy (arXiv 2405.20299); CRATE stays a little below the ViT of
its width with far fewer parameters (arXiv 2306.01129); ToST and CBT keep accuracy at linear cost (arXiv 2412.17810,
2509.16875); attention alone nearly suffices (arXiv 2506.03790).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from unrolled.studies.base import Budget, Expectation, Study
from unrolled.studies.crate_members import NAMES, ComparedConfig, Data, Member, MembersConfig

if TYPE_CHECKING:
    from unrolled.report import Report

CONTROLS = ("crate-conv", "vit-48", "vit-52")  # CRATE with CBT's stem; ViTs of CRATE's parameters, and operations
FAMILY = ("crate", "overcomplete", "decoupled", "alpha", "tost", "cbt", "attention-only", "vit", *CONTROLS)
_ALPHA = "arXiv 2405.20299, build-up at B/32 (ImageNet-21K, then 1K), points"
_POINTS = "ImageNet-1K, accuracy in points"

# (expectation, kind, kind it is compared with); ranges were fixed before the members they judge were trained. CBT was
# first held against the CRATE without convolutions, and missed its range: CRATE with its stem came in, the range stayed
DIFFERENCES: tuple[tuple[Expectation, str, str], ...] = (
    (
        Expectation(
            statement="An overcomplete dictionary raises CRATE's accuracy", source=_ALPHA, published="+5.3", low=0.0
        ),
        "overcomplete",
        "crate",
    ),
    (
        Expectation(
            statement="Decoupling the dictionary that decodes raises accuracy further",
            source=_ALPHA,
            published="+2.0",
            low=0.0,
        ),
        "decoupled",
        "overcomplete",
    ),
    (
        Expectation(
            statement="The residual connection raises accuracy further", source=_ALPHA, published="+0.7", low=0.0
        ),
        "alpha",
        "decoupled",
    ),
    (
        Expectation(
            statement="A ViT of CRATE's width is more accurate (ViT less CRATE)",
            source=f"arXiv 2306.01129, table 1, small; {_POINTS}",
            published="72.4 - 69.2 = +3.2, with 1.7 times the parameters",
            low=0.0,
        ),
        "vit",
        "crate",
    ),
    (
        Expectation(
            statement="A ViT of as many parameters as CRATE is more accurate (ViT less CRATE)",
            source=f"arXiv 2306.01129, table 1, tiny; {_POINTS}",
            published="71.5 - 66.7 = +4.8",
            low=0.0,
        ),
        "vit-48",
        "crate",
    ),
    (
        Expectation(
            statement="A ViT of as many operations as CRATE is more accurate (ViT less CRATE)",
            source="a control that no paper has",
            published="none",
            low=0.0,
        ),
        "vit-52",
        "crate",
    ),
    (
        Expectation(
            statement="CBT comes within 3 points of CRATE (CBT less CRATE with the same convolutional stem)",
            source=f"arXiv 2509.16875, tiny and small; {_POINTS}, same stem",
            published="-1.5 and -0.7",
            low=-3.0,
            high=3.0,
        ),
        "cbt",
        "crate-conv",
    ),
    (
        Expectation(
            statement="ToST comes within 4 points of a ViT of its width (ToST less ViT)",
            source=f"the deep-representation-learning book, small; {_POINTS}",
            published="77.9 - 79.8 = -1.9",
            low=-4.0,
            high=4.0,
        ),
        "tost",
        "vit",
    ),
    (
        Expectation(
            statement="Attention alone comes within 5 points of CRATE (attention only less CRATE)",
            source="arXiv 2506.03790",
            published="close to the standard transformer, on text; no number for images",
            low=-5.0,
        ),
        "attention-only",
        "crate",
    ),
)
LINEAR = Expectation(
    statement="ToST and CBT cost linearly in tokens (larger exponent of operations, 1,024 to 4,096 tokens)",
    source="arXiv 2412.17810; arXiv 2509.16875",
    published="1",
    high=1.1,
)
QUADRATIC = Expectation(
    statement="CRATE and the ViT tend to quadratic cost (smaller exponent, 1,024 to 4,096 tokens)",
    source="softmax attention compares all tokens",
    published="towards 2",
    low=1.5,
)


@dataclass(kw_only=True)
class Config(ComparedConfig):
    """Budgets change the images; `quick` trains its own small members on digits, the others read those kept."""

    budgets: ClassVar[dict[Budget, dict[str, Any]]] = {
        "quick": {
            "data": ("digits",),
            "seeds": (0,),
            "train": True,
            "images": 1280,
            "workers": 1,
            "members": Path("runs/crate-quick"),
            "rounds": 1,
            "batch": 16,
            "sides": (8, 16),
        },
        "cpu": {},
        "gpu": {
            "train": True,
            "device": "cuda",
            "images": 1_280_000,
            "workers": 1,
            "members": Path("runs/crate-members-gpu"),
            "batch": 512,
        },
    }

    fit: int = 2000
    """Test images that the ridge readout of the controls is fitted on."""
    held_out: int = 1000
    """Further test images that it is scored on."""
    rounds: int = 7
    """Timed batches of each kind."""
    batch: int = 128
    """Images of a timed batch."""
    sides: tuple[int, ...] = (32, 64, 128, 256)
    """Sides of the images, in pixels, at which cost is followed; 256 makes 4,096 tokens."""
    out: Path = Path("runs/crate-family")
    """Where the report and the kept cells go."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.fit, self.held_out, self.rounds, self.batch) < 1:
            raise ValueError("fit, held_out, rounds and batch must be at least 1")
        sides = self.sides
        if not sides or list(sides) != sorted(set(sides)) or any(side % 4 or side < 8 for side in sides):
            raise ValueError(f"sides={sides}: must grow and be multiples of 4, at least 8")
        if sides[0] < 32 <= sides[-1]:
            raise ValueError(f"sides={sides}: images below 32 pixels have patches of 2, others of 4; do not mix them")


def run(config: Config, *, on_progress: Callable[[str], None] | None = None) -> Report:
    """Read (or train) the members, measure their cost, compare; the report is also written to `config.out`.

    Members that are not kept are `not run` unless `config.train` is set.

    Args:
        config: what to run.
        on_progress: given a line of text when a part is done.

    Raises:
        MissingData: members are to be trained and their images are not in `config.data_dir`.
    """
    from unrolled.studies.crate_family_report import build_report

    began = time.perf_counter()

    def tell(text: str) -> None:
        if on_progress is not None:
            on_progress(text)

    found: dict[str, dict[str, Any]] = {}
    for data in config.data:
        records = known(
            config, [Member(kind=kind, data=data, seed=seed) for kind in FAMILY for seed in config.seeds], on_progress
        )
        kinds = {kind: _of_kind(config, kind, data, records) for kind in FAMILY}
        found[data] = kinds
        run_count = sum(len(entry["accuracy"]) for entry in kinds.values())
        tell(f"{NAMES[data]}: {run_count} of {len(FAMILY) * len(config.seeds)} members")
    cost = _cost(config)
    tell(f"cost of {len(FAMILY)} kinds, load average {cost['load'][0]:.1f}")
    sizes = _sizes(config)
    tell(f"cost at {len(config.sides)} sizes of image")
    report = build_report(config, found, cost, sizes, seconds=time.perf_counter() - began)
    report.write(config.out)
    return report


def known(
    config: ComparedConfig, members: Sequence[Member], on_progress: Callable[[str], None] | None = None
) -> dict[str, dict[str, Any]]:
    """Records of the members that are kept with their weights, by name; of all where `config.train` is set."""
    from unrolled.studies.crate_members import kept, record, train_all, weights

    if config.train:
        return train_all(config, members, on_progress=on_progress)
    return {
        member.name: record(config, member)
        for member in members
        if kept(config, member) and weights(config, member).is_file()
    }


def training_log(config: MembersConfig, member: Member) -> list[dict[str, float]]:
    """Mean training loss since the look before, at each look: `step` and `loss`."""
    import torch

    from unrolled.studies.crate_members import weights

    saved = torch.load(weights(config, member), map_location="cpu", weights_only=True)
    return [entry for entry in json.loads(saved["log"]) if entry["step"]]  # before the first step there is no loss


def _of_kind(config: Config, kind: str, data: Data, records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Everything about one kind on one data set; lists are by seed, None is what was not run."""
    members = [Member(kind=kind, data=data, seed=seed) for seed in config.seeds]
    run_here = [member for member in members if member.name in records]
    first = Member(kind=kind, data=data, seed=config.seeds[0])
    return {
        "accuracy": {str(member.seed): records[member.name]["accuracy"] for member in run_here},
        "parameters": next((records[member.name]["parameters"] for member in run_here), None),
        "images": next((records[member.name]["images"] for member in run_here), None),
        "logs": [training_log(config, member) for member in run_here],
        "readout": readout(config, first) if first.name in records else None,
        "readout_untrained": readout(config, Member(kind=kind, data=data, seed=first.seed, trained=False)),
    }


def readout(config: Config, member: Member) -> float | None:
    """Accuracy of a ridge classifier on the mean of the last layer's tokens; None without the images."""
    import torch

    from unrolled.errors import MissingData
    from unrolled.studies.cells import remembered
    from unrolled.studies.crate_members import settings_of, trained
    from unrolled.studies.platonic_zoo import as_input, pictures, probe_accuracy

    def compute() -> dict[str, Any]:
        test = pictures(member.data, "test", config.data_dir)
        model = trained(config, member)
        fit = min(config.fit, len(test.labels) * 2 // 3)
        count = min(fit + config.held_out, len(test.labels))
        with torch.no_grad():
            features = torch.cat(
                [
                    model.forward_features(as_input(part).to(config.device)).mean(1).cpu()  # type: ignore[operator]
                    for part in test.images[:count].split(250)
                ]
            )
        labels = test.labels[:count]
        score = probe_accuracy((features[:fit], labels[:fit]), (features[fit:], labels[fit:]), len(test.classes))
        return {"accuracy": score, "fit": fit, "held_out": count - fit}

    settings = {**settings_of(config, member), "fit": config.fit, "held_out": config.held_out}
    try:
        return float(remembered(config.out / "cells", f"readout-{member.name}", settings, compute)["accuracy"])
    except MissingData:
        return None


def _cost(config: Config) -> dict[str, Any]:
    """`crate_costs.costs` of every kind, at the size of images of the first data set."""
    import torch

    from unrolled.studies.cells import remembered

    channels, side = (1, 8) if config.data[0] == "digits" else (3, 32)

    def compute() -> dict[str, Any]:
        from unrolled.studies.crate_costs import costs
        from unrolled.studies.crate_members import build

        generator = torch.Generator().manual_seed(0)
        images = torch.randn(config.batch, channels, side, side, generator=generator).to(config.device)
        labels = torch.randint(10, (config.batch,), generator=generator).to(config.device)
        models = {
            kind: build(Member(kind=kind), classes=10, channels=channels, side=side).to(config.device)
            for kind in FAMILY
        }
        return costs(models, images, labels, rounds=config.rounds, device=config.device)

    settings = {
        "kinds": list(FAMILY),
        "rounds": config.rounds,
        "batch": config.batch,
        "device": config.device,
        "side": side,
        "threads": torch.get_num_threads(),
    }
    return remembered(config.out / "cells", f"cost-{side}", settings, compute)


def _sizes(config: Config) -> dict[str, Any]:
    """`crate_costs.by_size` of every kind but the controls."""
    import torch

    from unrolled.studies.cells import remembered

    def compute() -> dict[str, Any]:
        from torch import nn

        from unrolled.studies.crate_costs import by_size
        from unrolled.studies.crate_members import build

        patch = 4 if min(config.sides) >= 32 else 2

        def maker(kind: str) -> Callable[[int], nn.Module]:
            return lambda side: build(Member(kind=kind), classes=10, side=side)

        return by_size(
            {kind: maker(kind) for kind in FAMILY if kind not in CONTROLS},
            config.sides,
            patch=patch,
            rounds=min(3, config.rounds),
            device=config.device,
        )

    settings = {
        "sides": list(config.sides),
        "rounds": config.rounds,
        "device": config.device,
        "threads": torch.get_num_threads(),
    }
    return remembered(config.out / "cells", "sizes", settings, compute)


def differences(kinds: dict[str, Any], one: str, other: str) -> list[float]:
    """Accuracy of `one` less that of `other`, in points, for each seed that both have."""
    first, second = kinds[one]["accuracy"], kinds[other]["accuracy"]
    return [100 * (first[seed] - second[seed]) for seed in first if seed in second]


def mean(values: Sequence[float]) -> float:
    """Mean, NaN of nothing."""
    return sum(values) / len(values) if values else math.nan


STUDY = Study(
    name="crate-family",
    title="The white-box family at equal data: accuracy and what it costs",
    citation="Y. Yu et al., White-box transformers via sparse rate reduction, arXiv 2306.01129, and its successors",
    config=Config,
    run=run,
    expectations=(*(expectation for expectation, _, _ in DIFFERENCES), LINEAR, QUADRATIC),
)
