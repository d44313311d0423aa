"""CRATE's ablations with layer curves, and whether a lower R^c predicts a higher accuracy.

Claims: tying the output and a large step cost accuracy, other steps and thresholds do not (arXiv 2306.01129, B/16); R^c
and the share of non-zero entries fall with depth (the same, figures 3 and 4); a lower R^c at the last layer goes with
a higher accuracy (arXiv 2509.16875).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from unrolled.studies.base import Budget, Expectation, Study
from unrolled.studies.crate_members import NAMES, ComparedConfig, Data, Member

if TYPE_CHECKING:
    from torch import Tensor, nn

    from unrolled.report import Report

Array = np.ndarray[Any, np.dtype[np.float64]]
ABLATIONS = ("tied", "step-0.02", "step-0.5", "sparsity-0.02", "sparsity-0.5", "learned", "derived", "negated")
SAME_LAYER = ("crate", *ABLATIONS)
# whatever has MSSA, so that R^c means the same
KINDS = (
    *SAME_LAYER,
    *("overcomplete", "decoupled", "alpha", "attention-only"),
    *("registers", "orthogonal", "regularised"),
)
PREDICTORS = {
    "last": "R^c, last layer",
    "sum": "R^c, summed over layers",
    "fall": "R^c, last to first layer",
    "last_orthonormal": "R^c with orthonormal bases, last layer",
    "fall_orthonormal": "R^c with orthonormal bases, last to first",
    "nonzero": "non-zero entries, last layer",
    "untrained": "control: R^c of the untrained network, last layer",
    "parameters": "control: number of parameters",
}
_SOURCE = "arXiv 2306.01129, ablations of CRATE-B, ImageNet-1K; less 70.8"
_CLOSE = {"low": -2.0, "high": 2.0}

# accuracy less CRATE's, in points; all ranges of this module were fixed before any member was trained
DIFFERENCES: dict[str, Expectation] = {
    "tied": Expectation(
        statement="Tying the output to the subspaces costs accuracy", source=_SOURCE, published="-7.5", high=0.0
    ),
    "step-0.5": Expectation(
        statement="A step of 0.5 instead of 0.1 costs accuracy", source=_SOURCE, published="-4.1", high=0.0
    ),
    "step-0.02": Expectation(
        statement="A step of 0.02 instead of 0.1 changes accuracy by less than 2 points",
        source=_SOURCE,
        published="-0.1",
        **_CLOSE,
    ),
    "sparsity-0.02": Expectation(
        statement="A sparsity of 0.02 instead of 0.1 changes accuracy by less than 2 points",
        source=_SOURCE,
        published="0.0",
        **_CLOSE,
    ),
    "sparsity-0.5": Expectation(
        statement="A sparsity of 0.5 instead of 0.1 changes accuracy by less than 2 points",
        source=_SOURCE,
        published="-0.3",
        **_CLOSE,
    ),
    "learned": Expectation(
        statement="Learning step and threshold: change of accuracy", source="nobody published it", published="none"
    ),
    "derived": Expectation(
        statement="The compression step as derived, with its first-order term: change of accuracy",
        source="arXiv 2411.17182",
        published="value not found",
    ),
    "negated": Expectation(
        statement="The compression step with the opposite sign: change of accuracy",
        source="arXiv 2411.17182",
        published="value not found",
    ),
}
_CURVES = "arXiv 2306.01129, figures 3 and 4, small"
FALL = Expectation(
    statement="R^c falls from the first to the last layer of a trained CRATE (ratio)",
    source=_CURVES,
    published="about 600 / 1100 = 0.55",
    high=1.0,
)
LEARNED_FALL = Expectation(
    statement="R^c falls by more than in the untrained network (ratio less the control's)",
    source="a control that no paper has",
    published="none",
    high=0.0,
)
SPARSER = Expectation(
    statement="The share of non-zero entries falls from the first to the last layer (difference)",
    source=_CURVES,
    published="about 0.2 - 0.5 = -0.3",
    high=0.0,
)
PREDICTS = Expectation(
    statement="A lower R^c at the last layer goes with a higher accuracy (Spearman correlation over kinds)",
    source="arXiv 2509.16875",
    published="said of its models, no number",
    high=-0.5,
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
            "samples": 32,
            "draws": 500,
        },
        "cpu": {},
        "gpu": {
            "train": True,
            "device": "cuda",
            "images": 1_280_000,
            "workers": 1,
            "members": Path("runs/crate-members-gpu"),
            "samples": 1000,
        },
    }

    samples: int = 300
    """Test images that layers are measured on; the paper takes 1,000."""
    eps: float = 0.1
    """Distortion of the coding rates."""
    draws: int = 4000
    """Permutations and bootstrap samples."""
    out: Path = Path("runs/crate-ablations")
    """Where the report and the kept cells go."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.samples, self.draws) < 2 or not self.eps > 0:
            raise ValueError("samples and draws must be at least 2, and eps positive")


def run(config: Config, *, on_progress: Callable[[str], None] | None = None) -> Report:
    """Read (or train) the members, measure their layers, correlate; the report is also written to `config.out`.

    Members that are not kept are `not run` unless `config.train` is set.

    Args:
        config: what to run.
        on_progress: given a line of text when a part is done.

    Raises:
        MissingData: images are needed and not in `config.data_dir`.
    """
    from unrolled.studies.crate_ablations_report import build_report

    began = time.perf_counter()
    found: dict[str, dict[str, Any]] = {}
    for data in config.data:
        members = [Member(kind=kind, data=data, seed=seed) for kind in KINDS for seed in config.seeds]
        records = known(config, members, on_progress)
        found[data] = {kind: _of_kind(config, kind, data, records) for kind in KINDS}
        if on_progress is not None:
            on_progress(f"{NAMES[data]}: layers of {len(records)} of {len(members)} members")
    relations = {
        data: {
            "all": relations_of(kinds, KINDS, draws=config.draws),
            "same layer": relations_of(kinds, SAME_LAYER, draws=config.draws),
        }
        for data, kinds in found.items()
    }
    report = build_report(config, found, relations, seconds=time.perf_counter() - began)
    report.write(config.out)
    return report


def _of_kind(config: Config, kind: str, data: Data, records: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Accuracy and layers of every seed that was run, and the layers of the untrained control of the first seed."""
    here = [member for seed in config.seeds if (member := Member(kind=kind, data=data, seed=seed)).name in records]
    control = Member(kind=kind, data=data, seed=config.seeds[0], trained=False)
    return {
        "accuracy": {str(member.seed): records[member.name]["accuracy"] for member in here},
        "parameters": records[here[0].name]["parameters"] if here else None,
        "images": records[here[0].name]["images"] if here else None,
        "layers": {str(member.seed): layers(config, member) for member in here},
        "untrained": layers(config, control) if here else None,
    }


def layers(config: Config, member: Member) -> dict[str, list[float]]:
    """By layer: `rate` R, `subspace_rate` R^c, `orthonormal` R^c with orthonormal bases, and `nonzero` entries.

    Rates are in nats an image, on l2-normalised tokens at Z+half; `nonzero` is a fraction, at Z+1.
    """
    from unrolled.instruments.rates import layerwise
    from unrolled.studies.crate_members import settings_of, trained
    from unrolled.studies.platonic_zoo import as_input, pictures
    from unrolled.studies.remembered import remembered

    def compute() -> dict[str, Any]:
        test = pictures(member.data, "test", config.data_dir)
        images = as_input(test.images[: config.samples]).to(config.device)
        model = trained(config, member)
        rows = layerwise(model, images, eps=config.eps)
        found = {key: [row[key] for row in rows] for key in ("rate", "subspace_rate", "nonzero")}
        return {**found, "orthonormal": orthonormal_rates(model, images, config.eps)}

    settings = {**settings_of(config, member), "samples": config.samples, "eps": config.eps}
    return remembered(config.out / "cells", f"layers-{member.name}", settings, compute)


def orthonormal_rates(model: nn.Module, images: Tensor, eps: float) -> list[float]:
    """R^c of each layer at Z+half with an orthonormal basis of each head's subspace in place of U_k.

    R^c grows with the norm of U_k, which a network sets as it likes; this part of it is taken out. Mean over images, in
    nats.
    """
    import torch

    from unrolled.instruments.anatomy import find_stacks, head_subspaces
    from unrolled.instruments.trace import trace
    from unrolled.theory import normalize_tokens, subspace_coding_rate

    stack = find_stacks(model)[0]
    names = [f"{stack.name(index)}/half" for index in range(len(stack.blocks))]
    bases = {
        name: torch.linalg.qr(head_subspaces(block)).Q for name, (_, block) in zip(names, stack.blocks, strict=True)
    }

    def reduce(name: str, tokens: Tensor) -> Tensor:
        return subspace_coding_rate(normalize_tokens(tokens), bases[name], eps)

    with torch.no_grad(), trace(model, patterns=names, reduce=reduce) as found:
        for part in images.split(50):
            model(part)
    return [float(torch.cat(found[name]).mean()) for name in names]


def predictors(
    curves: Mapping[str, Sequence[float]], untrained: Mapping[str, Sequence[float]], parameters: int
) -> dict[str, float]:
    """The numbers of `PREDICTORS` of one member, from its layers and those of its untrained control."""
    rate, basis = curves["subspace_rate"], curves["orthonormal"]
    return {
        "last": rate[-1],
        "sum": sum(rate),
        "fall": rate[-1] / rate[0],
        "last_orthonormal": basis[-1],
        "fall_orthonormal": basis[-1] / basis[0],
        "nonzero": curves["nonzero"][-1],
        "untrained": untrained["subspace_rate"][-1],
        "parameters": float(parameters),
    }


def relations_of(kinds: Mapping[str, Any], among: Sequence[str], *, draws: int) -> dict[str, Any]:
    """How each predictor and accuracy go together over members and over kinds, see `relation`."""
    of, accuracy, values = [], [], []
    for kind in among:
        entry = kinds[kind]
        for seed, found in entry["accuracy"].items():
            of.append(kind)
            accuracy.append(found)
            values.append(predictors(entry["layers"][seed], entry["untrained"], entry["parameters"]))
    return {key: relation([v[key] for v in values], accuracy, of, draws=draws) for key in PREDICTORS}


def relation(x: Sequence[float], y: Sequence[float], of: Sequence[str], *, draws: int, seed: int = 0) -> dict[str, Any]:
    """Spearman's correlation over members, and over kinds, whose seeds are not independent of each other.

    Args:
        x: of each member.
        y: of each member.
        of: the kind of each member.
        draws: bootstrap samples of kinds, and permutations.
        seed: of both.

    Returns:
        `members` and `kinds` (how many), `rho_members`, `rho_kinds` (of means over seeds), `low` and `high` (95 %
        bootstrap interval of `rho_kinds`, kinds drawn) and `p` (two-sided, kinds permuted). NaN where there are fewer
        than four kinds or a side is constant.
    """
    names = list(dict.fromkeys(of))
    found: dict[str, Any] = {"members": len(x), "kinds": len(names)}
    nothing = float("nan")
    if len(names) < 4:
        return {**found, **dict.fromkeys(("rho_members", "rho_kinds", "low", "high", "p"), nothing)}
    a, b = (
        np.array([np.mean([value for value, kind in zip(side, of, strict=True) if kind == name]) for name in names])
        for side in (x, y)
    )
    generator = np.random.default_rng(seed)
    rho = float(_spearman(a, b))
    drawn = generator.integers(len(names), size=(draws, len(names)))
    boot = _spearman(a[drawn], b[drawn])
    boot = boot[np.isfinite(boot)]  # a draw of one kind alone has none
    low, high = np.quantile(boot, [0.025, 0.975]).tolist() if len(boot) > draws / 2 else (nothing, nothing)
    null = _spearman(a, generator.permuted(np.tile(b, (draws, 1)), axis=1))
    p = float((1 + (np.abs(null) >= abs(rho) - 1e-9).sum()) / (draws + 1)) if np.isfinite(rho) else nothing
    both = float(_spearman(np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)))
    return {**found, "rho_members": both, "rho_kinds": rho, "low": low, "high": high, "p": p}


def _spearman(x: Array, y: Array) -> Array:
    """Rank correlation along the last axis, NaN where a side is constant."""
    from scipy.stats import rankdata

    a, b = (rankdata(side, axis=-1) for side in (x, y))
    a, b = (ranks - ranks.mean(-1, keepdims=True) for ranks in (a, b))
    scale = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    with np.errstate(invalid="ignore"):
        return np.asarray((a * b).sum(-1) / np.where(scale > 0, scale, np.nan), dtype=np.float64)


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


STUDY = Study(
    name="crate-ablations",
    title="CRATE's ablations, layer by layer, and what R^c says about accuracy",
    citation="Y. Yu et al., White-box transformers via sparse rate reduction, arXiv 2306.01129",
    config=Config,
    run=run,
    expectations=(*DIFFERENCES.values(), FALL, LEARNED_FALL, SPARSER, PREDICTS),
)
