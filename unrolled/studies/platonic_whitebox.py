"""Is CRATE closer to other models, to the brain and to language than a ViT of equal accuracy?

Nobody has measured it: there is no published value, and no direction was expected. Seeds within a kind are the floor of
noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from unrolled.studies.base import Budget, Expectation, Study
from unrolled.studies.platonic_zoo import GPU, QUICK, ZooConfig, settings_of, zoo

if TYPE_CHECKING:
    from torch import nn

    from unrolled.report import Report

_NOBODY = "nobody has measured this"
DIFFERENCES = {
    name: Expectation(
        statement=f"CRATE is closer to {what} than a ViT of equal accuracy (CRATE less ViT)",
        source=_NOBODY,
        published="none",
    )
    for name, what in (
        ("CNNs", "the zoo's CNNs"),
        ("CIFAR networks", "networks of CIFAR-10 trained by others"),
        ("ImageNet networks", "four networks of ImageNet"),
        ("human IT", "human inferior temporal cortex"),
        ("monkey IT", "monkey inferior temporal cortex"),
        ("MiniLM", "MiniLM's vectors of class names"),
        ("GloVe", "GloVe's vectors of class names"),
    )
}
EACH_OTHER = Expectation(
    statement="CRATE and ViT are as close to each other as seeds of one kind (mean of the two floors less CRATE-ViT)",
    source=_NOBODY,
    published="none",
)


@dataclass(kw_only=True)
class Config(ZooConfig):
    """Budgets change the zoo's training."""

    budgets: ClassVar[dict[Budget, dict[str, Any]]] = {"quick": QUICK, "cpu": {}, "gpu": GPU}

    within: float = 0.02
    """Two members have equal accuracy if it differs by no more."""
    k: int = 10
    """Neighbours, of images and of classes."""
    out: Path = Path("runs/platonic-whitebox")
    """Where the report and the kept values go."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.within < 1 or not 1 <= self.k < self.samples:
            raise ValueError("within must lie between 0 and 1, and k between 1 and samples - 1")


def run(config: Config, *, on_progress: Callable[[str], None] | None = None) -> Report:
    """Train the zoo, measure, compare; the report is also written to `config.out`.

    Raises:
        MissingData: CIFAR-10 is not in `config.data_dir`.
    """
    from unrolled.studies.platonic_whitebox_report import build
    from unrolled.studies.remembered import remembered

    began = time.perf_counter()
    records = zoo(config, on_progress=on_progress)
    kept = {**settings_of(config), "samples": config.samples, "members": config.members, "k": config.k}
    names = [name for name, record in records.items() if _compared(record)]
    cells = config.out / "cells"
    between = remembered(cells, "between", kept, lambda: _between(config, names))
    if on_progress is not None:
        on_progress(f"alignment between {len(names)} models")
    outside = remembered(cells, "outside", kept, lambda: {"values": _outside(config, records, names)})["values"]
    if on_progress is not None:
        on_progress(f"alignment with what is not of the zoo: {', '.join(k for k, v in outside.items() if v)}")
    found = compared(config, records, names, between, outside)
    report = build(config, records, found, seconds=time.perf_counter() - began)
    report.write(config.out)
    return report


def _compared(record: dict[str, Any]) -> bool:
    member = record["member"]
    return member["kind"] in ("crate", "vit") and member["taught"] == "labels" and not member["classes"]


def _between(config: Config, names: list[str]) -> dict[str, Any]:
    """Mutual k-NN and unbiased CKA of all CRATEs and ViTs with each other."""
    from unrolled.alignment.registry import CKA, MutualKNN
    from unrolled.studies.platonic_zoo import by_name, features
    from unrolled.studies.platonic_zoo_stats import pair_scores

    sets = [dict(features(config, by_name(config, name))) for name in names]
    last = [dict([list(layers.items())[-1]]) for layers in sets]
    return {
        "mutual k-NN": pair_scores(sets, MutualKNN(k=config.k), draws=19).gain.tolist(),
        "unbiased CKA, last layers": pair_scores(last, CKA(unbiased=True)).score.tolist(),
    }


def _outside(config: Config, records: dict[str, dict[str, Any]], names: list[str]) -> dict[str, list[float] | None]:
    """Alignment of every member in `names` with each target of `DIFFERENCES`; None where the target is missing."""
    import torch

    from unrolled.alignment.registry import MutualKNN, compare_rdms
    from unrolled.studies.platonic_downstream import class_means
    from unrolled.studies.platonic_zoo import by_name, features, last_layer, other_pictures, trained
    from unrolled.studies.platonic_zoo_given import CIFAR, IMAGENET, brain, given_features, word_vectors
    from unrolled.studies.platonic_zoo_stats import pair_scores

    sets = [dict(features(config, by_name(config, name))) for name in names]
    metric = MutualKNN(k=config.k)

    def near(others: list[Any]) -> list[float] | None:
        return pair_scores(sets, metric, against=others, draws=19).gain.mean(1).tolist() if others else None

    cnns = [
        name
        for name, record in records.items()
        if record["member"]["kind"] == "cnn"
        and record["member"]["taught"] == "labels"
        and not record["member"]["classes"]
    ]
    given = given_features(config)
    values: dict[str, list[float] | None] = dict.fromkeys(DIFFERENCES)
    values["CNNs"] = near([dict(features(config, by_name(config, name))) for name in cnns])
    values["CIFAR networks"] = near([dict(given[name]) for name in CIFAR if name in given])
    values["ImageNet networks"] = near([dict(given[name]) for name in IMAGENET if name in given])
    recorded = brain(config) if config.data == "cifar10" else None
    if recorded is not None:
        images = small(recorded.stimuli, 32)
        layers = [rdms(trained(config, by_name(config, name)), images) for name in names]
        for words, target in (("human IT", recorded.human.mean(0)), ("monkey IT", recorded.monkey)):
            values[words] = [max(compare_rdms(rdm.double(), target) for rdm in own) for own in layers]
    other = other_pictures(config)
    if other is not None:
        words_of = word_vectors(config, [name.split(",")[0].lower() for name in other.classes])
        means = [
            class_means(last_layer(trained(config, by_name(config, n)), other.images, config.device), other.labels, 100)
            for n in names
        ]
        for words, name in (("MiniLM", "minilm"), ("GloVe", "glove")):
            if name in words_of:
                known = torch.nonzero(words_of[name].norm(dim=1) > 0)[:, 0]
                sides = [{"class means": found[known]} for found in means]
                against = [{"words": words_of[name][known]}]
                values[words] = pair_scores(sides, metric, against=against, draws=199).gain[:, 0].tolist()
    return values


def small(stimuli: Any, side: int) -> Any:
    """uint8 images [n, 3, h, w] at another size, averaged."""
    import torch

    resized = torch.nn.functional.interpolate(stimuli.float(), (side, side), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)


def rdms(model: nn.Module, images: Any) -> list[Any]:
    """Dissimilarities [n, n] (1 - correlation) between images in every block, averaged over places."""
    from unrolled.alignment.registry import rdm
    from unrolled.instruments.features.extraction import extract
    from unrolled.studies.platonic_zoo import as_input

    where = next(model.parameters()).device
    return [rdm(layer) for layer in extract(model, as_input(images).to(where), layers="block*").values()]


def compared(
    config: Config,
    records: dict[str, dict[str, Any]],
    names: list[str],
    between: dict[str, Any],
    outside: dict[str, Any],
) -> dict[str, Any]:
    """Differences at equal accuracy, with bootstrap intervals over members, and the floor of seeds; plain values."""
    import numpy as np

    rows = [records[name] for name in names]
    accuracy = np.array([row["accuracy"] for row in rows])
    crate = np.array([row["member"]["kind"] == "crate" for row in rows])
    sizes = np.array([f"{row['member']['kind']} {row['member']['size']} {row['member']['share']}" for row in rows])
    equal = np.abs(accuracy[:, None] - accuracy[None, :]) <= config.within
    out: dict[str, Any] = {"members": names, "accuracy": accuracy.tolist(), "values": outside}
    out["matched"] = int((equal & crate[:, None] & ~crate[None, :]).sum())
    out["differences"] = {
        target: None if values is None else _difference(np.asarray(values), accuracy, crate, equal, sizes)
        for target, values in outside.items()
    }
    out["between"] = {metric: _groups(np.asarray(scores), crate, equal) for metric, scores in between.items()}
    out["scores"] = between
    return out


def _difference(values: Any, accuracy: Any, crate: Any, equal: Any, sizes: Any) -> dict[str, Any]:
    """CRATE less ViT: over pairs of equal accuracy, and with accuracy as a covariate over all members."""
    import numpy as np

    def matched(drawn: Any) -> float:
        i, j = drawn[crate[drawn]], drawn[~crate[drawn]]
        near = equal[np.ix_(i, j)]
        gaps = values[i][:, None] - values[j][None, :]
        return float(gaps[near].mean()) if near.any() else float("nan")

    def adjusted(drawn: Any) -> float:
        if len(set(accuracy[drawn])) < 4 or crate[drawn].all() or not crate[drawn].any():
            return float("nan")
        design = np.stack([np.ones(len(drawn)), accuracy[drawn], crate[drawn].astype(float)], 1)
        return float(np.linalg.lstsq(design, values[drawn], rcond=None)[0][2])

    everyone = np.arange(len(values))
    spread = [values[sizes == size].var(ddof=1) for size in set(sizes.tolist()) if (sizes == size).sum() > 1]
    return {
        "crate": float(values[crate].mean()),
        "vit": float(values[~crate].mean()),
        "matched": _with_interval(matched, everyone, crate),
        "adjusted": _with_interval(adjusted, everyone, crate),
        "seed_std": float(np.sqrt(np.mean(spread))) if spread else None,
    }


def _groups(scores: Any, crate: Any, equal: Any) -> dict[str, Any]:
    """Mean alignment of pairs of equal accuracy, by the kinds of the pair, and the floors less CRATE-ViT."""
    import numpy as np

    pairs = {"CRATE-CRATE": (True, True), "ViT-ViT": (False, False), "CRATE-ViT": (True, False)}

    def mean(which: tuple[bool, bool], drawn: Any) -> float:
        i, j = drawn[crate[drawn] == which[0]], drawn[crate[drawn] == which[1]]
        keep = equal[np.ix_(i, j)] & (i[:, None] != j[None, :])
        return float(scores[np.ix_(i, j)][keep].mean()) if keep.any() else float("nan")

    def gap(drawn: Any) -> float:
        floors = [mean(pairs[name], drawn) for name in ("CRATE-CRATE", "ViT-ViT")]
        return float(np.mean(floors)) - mean(pairs["CRATE-ViT"], drawn)

    everyone = np.arange(len(scores))
    out: dict[str, Any] = {}
    for name, which in pairs.items():

        def group(drawn: Any, which: tuple[bool, bool] = which) -> float:
            return mean(which, drawn)

        out[name] = _with_interval(group, everyone, crate)
    out["gap"] = _with_interval(gap, everyone, crate)
    return out


def _with_interval(statistic: Callable[[Any], float], everyone: Any, crate: Any) -> dict[str, float | None]:
    """The statistic with a 95 % interval from drawing members anew within each kind; None where it is undefined."""
    import numpy as np

    generator = np.random.default_rng(0)
    sides = [everyone[crate], everyone[~crate]]
    draws = [np.concatenate([generator.choice(side, len(side)) for side in sides]) for _ in range(1000)]
    values = np.array([statistic(drawn) for drawn in draws])
    values = values[np.isfinite(values)]
    value = statistic(everyone)
    # drawing two or three networks anew says nothing about others
    if not np.isfinite(value) or len(values) < 500 or min(len(side) for side in sides) < 4:
        return {"value": float(value) if np.isfinite(value) else None, "low": None, "high": None}
    low, high = np.quantile(values, [0.025, 0.975])
    return {"value": float(value), "low": float(low), "high": float(high)}


STUDY = Study(
    name="platonic-whitebox",
    title="White box against black box: who is closer to whom, at equal accuracy",
    citation="Question of this package; CRATE: arXiv 2306.01129, alignment: arXiv 2405.07987",
    config=Config,
    run=run,
    expectations=(EACH_OTHER, *DIFFERENCES.values()),
)
