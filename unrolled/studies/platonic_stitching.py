"""Stitching and Rosetta neurons: can one network go on where another stopped, and do they share units?

Claims gathered by arXiv 2405.07987: networks of different seeds and kinds can be stitched by an affine map, early
layers best (Lenc and Vedaldi 2015, Bansal et al. 2021), and share neurons (Dravid et al. 2023).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from unrolled.studies.base import Budget, Expectation, Study
from unrolled.studies.platonic_zoo import GPU, QUICK, ZooConfig, settings_of, zoo

if TYPE_CHECKING:
    from torch import Tensor, nn

    from unrolled.report import Report

SEEDS = Expectation(
    statement="Networks that differ by seed are stitched with little loss (accuracy kept, mean over kinds, directions "
    "and depths)",
    source="Y. Bansal, P. Nakkiran, B. Barak, Revisiting model stitching, NeurIPS 2021, on ResNets trained to the end",
    published="a few points lost; no number at hand",
    low=0.9,
)
CONTROL = Expectation(
    statement="A trained front is worth more than an untrained one (accuracy kept, another seed less untrained, mean)",
    source="control of this package",
    published="not measured",
    low=0.0,
)
EARLY = Expectation(
    statement="Early layers are stitched best (accuracy kept at the first cut less that at the last, trained pairs)",
    source="Lenc and Vedaldi 2015, as cited by arXiv 2405.07987",
    published="stated, no number",
    low=0.0,
)
ROSETTA = Expectation(
    statement="Networks of different kinds share units (fewest mutual pairs above the 5 % threshold of relabelling)",
    source="A. Dravid et al., Rosetta neurons, ICCV 2023",
    published="found in classifiers and generators; no number for such networks",
    low=1.0,
)
CUTS = (1, 2, 3)


@dataclass(kw_only=True)
class Config(ZooConfig):
    """Budgets change the zoo and the steps of the stitching maps."""

    budgets: ClassVar[dict[Budget, dict[str, Any]]] = {
        "quick": {**QUICK, "stitch_steps": 8, "cuts": (1, 2), "units": 80, "draws": 19},
        "cpu": {},
        "gpu": {**GPU, "stitch_steps": 2000},
    }

    stitch_steps: int = 80
    """Training steps of a stitching map, which starts from the ridge regression between the two layers."""
    cuts: tuple[int, ...] = CUTS
    """Blocks or stages of the front; the back begins after as many of its own."""
    matched: int = 512
    """Training images of the regression."""
    tested: int = 2000
    """Held-out images of the stitched networks."""
    units: int = 400
    """Held-out images over which units are correlated."""
    draws: int = 50
    """Relabellings of these images."""
    out: Path = Path("runs/platonic-stitching")
    """Where the report and the kept results go; stitching maps are kept in it too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.cuts or not set(self.cuts) <= set(CUTS):
            raise ValueError(f"cuts={self.cuts}: choose some of {CUTS}")
        if min(self.stitch_steps, self.matched, self.tested, self.draws) < 1 or self.units < 20:
            raise ValueError("stitch_steps, matched, tested and draws must be at least 1, units at least 20")


def routes(size: str) -> list[tuple[str, str, str]]:
    """What is stitched: a word for the sort of pair, front, back."""
    kinds = ("crate", "vit", "cnn")
    found = [("itself", f"{kind}-{size}-seed0", f"{kind}-{size}-seed0") for kind in kinds]
    for kind in kinds:
        one, two = f"{kind}-{size}-seed0", f"{kind}-{size}-seed1"
        found += [("another seed", one, two), ("another seed", two, one)]
    for front, back in (("crate", "vit"), ("vit", "crate"), ("cnn", "vit"), ("vit", "cnn")):
        found.append(("another kind", f"{front}-{size}-seed0", f"{back}-{size}-seed0"))
    found += [("untrained", f"{kind}-{size}-random-seed7", f"{kind}-{size}-seed0") for kind in kinds]
    return found


def run(config: Config, *, on_progress: Callable[[str], None] | None = None) -> Report:
    """Stitch and match units; the report is also written to `config.out`.

    Raises:
        MissingData: CIFAR-10 is not in `config.data_dir`.
    """
    from unrolled.studies.platonic_stitching_report import build
    from unrolled.studies.remembered import remembered

    began = time.perf_counter()
    records = zoo(config, on_progress=on_progress)
    size = "large" if config.members == "full" else "small"
    shared = {
        **settings_of(config), "stitch_steps": config.stitch_steps, "matched": config.matched, "tested": config.tested,
    }  # fmt: skip
    stitched = []
    for sort, front, back in routes(size):
        for cut in config.cuts:

            def compute(front: str = front, back: str = back, cut: int = cut) -> dict[str, Any]:
                return stitch(config, front, back, cut)

            name = f"{front}-into-{back}-cut{cut}"
            cell = remembered(config.out / "cells", name, {**shared, "name": name}, compute)
            own = records[back]["accuracy"]
            stitched.append({"sort": sort, "front": front, "back": back, "cut": cut, "own": own, **cell})
            if on_progress is not None:
                on_progress(f"{name}: accuracy {100 * cell['accuracy']:.1f} % of the back's own {100 * own:.1f} %")
    shared = {**settings_of(config), "units": config.units, "draws": config.draws}
    matched = []
    done: set[frozenset[str]] = set()
    for sort, a, b in routes(size):
        if sort == "itself" or frozenset((a, b)) in done:
            continue  # pairs are symmetric
        done.add(frozenset((a, b)))

        def match(a: str = a, b: str = b) -> dict[str, Any]:
            return units(config, a, b)

        name = f"rosetta-{a}-{b}"
        matched.append({"sort": sort, "a": a, "b": b, **remembered(config.out / "cells", name, shared, match)})
        if on_progress is not None:
            on_progress(f"{name}: {matched[-1]['found']} mutual pairs above the threshold")
    report = build(config, stitched, matched, seconds=time.perf_counter() - began)
    report.write(config.out)
    return report


def stitch(config: Config, front: str, back: str, cut: int) -> dict[str, Any]:
    """Accuracy of the front's first `cut` blocks and the back's others, joined by a regressed, then trained map."""
    import torch

    from unrolled.alignment.network_stitching import Layout, Stitched, layer_values
    from unrolled.studies.platonic_zoo import Pictures, accuracy, as_input, by_name, pictures, stages, trained
    from unrolled.studies.remembered import checkpoint
    from unrolled.studies.training import train_kept

    began = time.perf_counter()
    test = pictures(config.data, "test", config.data_dir)
    train = pictures(config.data, "train", config.data_dir)
    models = [trained(config, by_name(config, name)).requires_grad_(False) for name in (front, back)]
    chains: list[list[Any]] = [list(stages(model)) for model in models]
    chosen = as_input(train.images[: config.matched]).to(config.device)
    layouts = [
        Layout.of(layer_values(chain, chosen[:2], cut + 1), prefix=_prefix(model))
        for chain, model in zip(chains, models, strict=True)
    ]
    joint = Stitched(front=chains[0][: cut + 1], back=chains[1][cut + 1 :], source=layouts[0], target=layouts[1]).to(
        config.device
    )
    joint.match(chosen, layer_values(chains[1], chosen, cut + 1))
    held_out = Pictures(images=test.images[: config.tested], labels=test.labels[: config.tested], classes=test.classes)
    regressed = accuracy(joint, held_out)
    optimizer = torch.optim.AdamW(joint.parameters(), lr=1e-3, weight_decay=0.0)

    def loss_at(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        rows = torch.randint(len(train.labels), (config.batch_size,), generator=generator)
        logits = joint(as_input(train.images[rows]).to(config.device))
        return torch.nn.functional.cross_entropy(logits, train.labels[rows].to(config.device))

    name = f"{front}-into-{back}-cut{cut}"
    train_kept(
        joint,
        optimizer,
        loss_at,
        steps=config.stitch_steps,
        keep=checkpoint(
            config.out / "models" / f"{name}.pt", {**settings_of(config), "name": name, "matched": config.matched}
        ),
        clip_norm=1.0,
    )
    return {
        "regressed": regressed, "accuracy": accuracy(joint, held_out), "reference": accuracy(models[1], held_out),
        "weights": sum(parameter.numel() for parameter in joint.parameters()), "seconds": time.perf_counter() - began,
    }  # fmt: skip


def units(config: Config, a: str, b: str) -> dict[str, Any]:
    """Mutual best correlated units of all blocks of two members, over held-out images and a 4 x 4 grid of places."""
    import torch

    from unrolled.alignment.network_stitching import Layout, layer_values, on_grid, rosetta
    from unrolled.studies.platonic_zoo import as_input, by_name, pictures, stages, trained

    images = as_input(pictures(config.data, "test", config.data_dir).images[: config.units]).to(config.device)
    sides, layers = [], []
    for name in (a, b):
        model = trained(config, by_name(config, name))
        chain: list[Any] = list(stages(model))
        values, owner = [], []
        for depth in range(2, len(chain)):
            value = layer_values(chain, images, depth)
            values.append(on_grid(value, Layout.of(value, prefix=_prefix(model)), (4, 4)))
            owner += [depth - 1] * values[-1].shape[2]
        sides.append(torch.cat(values, 2))
        layers.append(owner)
    found = rosetta(sides[0], sides[1], draws=config.draws)
    return {
        "found": found.found, "mutual": len(found.pairs), "units": found.units, "threshold": found.threshold,
        "median": float(found.correlation.median()), "best": found.correlation[:20].tolist(),
        "null_pairs": float(found.null_pairs.double().mean()),
        "layers": [[layers[0][i], layers[1][j]] for i, j in found.pairs[: found.found].tolist()],
    }  # fmt: skip


def _prefix(model: nn.Module) -> int:
    return int(getattr(model, "num_prefix_tokens", 0))


def kept(cell: dict[str, Any]) -> float:
    """Accuracy of a stitched network as a share of the back's own on the same images."""
    return float(cell["accuracy"] / cell["reference"]) if cell["reference"] else 0.0


def summary(stitched: list[dict[str, Any]]) -> dict[str, dict[int, list[float]]]:
    """Accuracy kept by sort of pair and cut."""
    out: dict[str, dict[int, list[float]]] = {}
    for cell in stitched:
        out.setdefault(cell["sort"], {}).setdefault(cell["cut"], []).append(kept(cell))
    return out


def flat(by_cut: dict[int, list[float]]) -> float:
    """Mean over cuts and pairs."""
    return fmean(value for values in by_cut.values() for value in values)


STUDY = Study(
    name="platonic-stitching",
    title="Stitching networks, and units they share",
    citation="M. Huh et al., arXiv 2405.07987, sections on stitching and Rosetta neurons",
    config=Config,
    run=run,
    expectations=(SEEDS, CONTROL, EARLY, ROSETTA),
)
