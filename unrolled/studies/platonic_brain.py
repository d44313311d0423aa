"""Networks beside brains and human judgement: dissimilarities of 92 photographs, 1,854 things and 93 colours.

Claim (arXiv 2405.07987, section 2.4, citing others): representations of networks align with those of brains. Measured
by representational similarity analysis against inferior temporal (IT) cortex, with people's own agreement as ceiling.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from unrolled.studies.base import Budget, Expectation, Study, StudyConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from unrolled.report import Report

_RECORDS = "N. Kriegeskorte et al., Neuron 2008; recomputed from the records of rsatoolbox"
MONKEY = Expectation(
    statement="Human and monkey IT see the 92 photographs alike (Spearman)",
    source=_RECORDS,
    published="0.439",
    low=0.434,
    high=0.444,
)
CEILING_LOW = Expectation(
    statement="Noise ceiling of human IT, lower bound (mean Spearman of a person with the others)",
    source=_RECORDS,
    published="0.377",
    low=0.367,
    high=0.387,
)
CEILING_HIGH = Expectation(
    statement="Noise ceiling of human IT, upper bound (mean Spearman of a person with all)",
    source=_RECORDS,
    published="0.672",
    low=0.662,
    high=0.682,
)
TRAINED = Expectation(
    statement="A trained ImageNet network is closer to human IT than the same network untrained (smallest difference)",
    source="arXiv 2405.07987, section 2.4, citing Yamins et al. 2014 and Schrimpf et al. 2018",
    published="stated, no number",
    low=0.0,
)
WORDS = Expectation(
    statement="Word vectors order things as people do (larger of GloVe's and MiniLM's Spearman)",
    source="arXiv 2405.07987, section 2.4, on human judgement; no experiment there",
    published="not measured",
)
IMAGENET = ("efficientnet_lite0", "mobilenet_v1_075", "tiny_darknet", "squeezenet1_1")
CIFAR = ("resnet20", "resnet56", "vit_d128_p4")
TEXTS = ("minilm", "glove", "stories260k")
_CONTROLS = ("pixels", "random numbers")
_RECORDED = ("monkeyIT", "animacy", "HMAX", "V1", "Silhouette")


@dataclass(kw_only=True)
class Config(StudyConfig):
    """Budgets change which networks are measured and how often images are resampled."""

    budgets: ClassVar[dict[Budget, dict[str, Any]]] = {
        "quick": {"draws": 50, "networks": IMAGENET[-1:], "members": 0, "concepts": 150},
        "cpu": {},
        "gpu": {"draws": 1000, "concepts": 1000, "device": "cuda"},
    }

    data_dir: Path = Path("data")
    """Folder with `brain-92images`, `human-similarity` and `weights`."""
    zoo: Path = Path("runs/platonic-zoo")
    """Kept members of the zoo of `platonic-vision`; without them their rows are not run."""
    members: int = 60
    """At most so many of them."""
    networks: tuple[str, ...] = IMAGENET + CIFAR
    """Given networks; each is also measured untrained."""
    draws: int = 200
    """Resamplings of images and people, and as many shufflings of the images."""
    concepts: int = 400
    """Things, drawn from 1,854, whose names are compared with human judgement."""
    seed: int = 0
    """Of resamplings, untrained networks and the choice of things."""
    device: str = "cpu"
    """Where networks run."""
    out: Path = Path("runs/platonic-brain")
    """Where the report and the kept cells go."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.networks if name not in IMAGENET + CIFAR]
        if unknown:
            raise ValueError(f"networks: unknown {unknown[0]!r}; known are {', '.join(IMAGENET + CIFAR)}")
        if self.draws < 10 or self.members < 0 or self.concepts < 20:
            raise ValueError("draws must be at least 10, members not negative, concepts at least 20")


def run(config: Config, *, on_progress: Callable[[str], None] | None = None) -> Report:
    """Measure every network layer by layer, then words; the report is also written to `config.out`.

    Args:
        config: what to run.
        on_progress: given a line of text per cell.

    Raises:
        MissingData: the records are not in `config.data_dir`; nothing can be run without them.
    """
    from unrolled.models.given import GIVEN
    from unrolled.studies.platonic.human import brains
    from unrolled.studies.platonic_brain_report import make_report
    from unrolled.studies.remembered import remembered

    began = time.perf_counter()
    records = brains(config.data_dir)

    def cell(name: str, compute: Callable[[], dict[str, Any]], **more: Any) -> dict[str, Any]:
        settings = {"draws": config.draws, "seed": config.seed, "device": config.device} | more
        result = remembered(config.out / "cells", name.replace(" ", "-"), settings, compute)
        if on_progress is not None:
            on_progress(f"{name}: {result['score']:.3f}, {result['seconds']:.1f} s")
        return result

    def measured(name: str, group: str, layers: Callable[[], dict[str, Any]], **more: Any) -> dict[str, Any]:
        return cell(f"{group}-{name}", lambda: _measure(config, records, name, group, layers()), **more)

    results = [
        measured(name, "recorded", lambda n=name: {n: records.models[n]})  # type: ignore[misc]
        for name in _RECORDED
    ]
    for name in _CONTROLS:
        results.append(measured(name, "control", partial(_control, config, records, name)))
    missing: list[str] = []
    for name in config.networks:
        weights = config.data_dir / "weights" / GIVEN[name].file
        if not weights.is_file():
            missing.append(name)
            continue
        group = "ImageNet" if name in IMAGENET else "CIFAR-10"
        results.append(measured(name, group, partial(_given, config, records, name, trained=True)))
        results.append(measured(name, "untrained", partial(_given, config, records, name, trained=False)))
    members = kept_members(config.zoo)[: config.members]
    for member, path in members:
        layers = partial(_member, config, records, member, path)
        results.append(measured(member.name, f"zoo {member.kind}", layers, file=path.stat().st_mtime_ns))
    words = [
        cell(f"{what}-{name}", partial(_words, config, what, name), concepts=config.concepts)
        for what, name in _askable(config)
    ]
    report = make_report(config, records, results, words, missing, len(members), began)
    report.write(config.out)
    return report


def _measure(
    config: Config, records: Any, name: str, group: str, layers: dict[str, NDArray[np.float64]]
) -> dict[str, Any]:
    """Agreement of dissimilarities [92, 92] of each layer with human and monkey IT."""
    import numpy as np

    from unrolled.studies.platonic.human import agreement, unit_ranks, upper

    began = time.perf_counter()
    stacked = np.stack(list(layers.values()))
    found = agreement(stacked, records.human, draws=config.draws, seed=config.seed)
    monkey = unit_ranks(upper(stacked)) @ unit_ranks(upper(records.monkey))
    together = unit_ranks(upper(stacked)) @ unit_ranks(upper(records.human.mean(0)))
    return {
        "name": name, "group": group, "layers": list(layers), "by_layer": found.by_layer.tolist(),
        "best": list(layers)[found.best], "score": found.score, "tau": found.tau, "interval": list(found.interval),
        "null": found.null, "p": found.p, "monkey": float(monkey.max()), "human_mean": float(together[found.best]),
        "seconds": time.perf_counter() - began,
    }  # fmt: skip


def _control(config: Config, records: Any, name: str) -> dict[str, Any]:
    import torch

    from unrolled.studies.platonic.human import correlation_rdms

    if name == "pixels":
        features = small_pictures(records.stimuli).flatten(1)
    else:
        features = torch.randn(len(records.stimuli), 500, generator=torch.Generator().manual_seed(config.seed))
    return {name: correlation_rdms([features])[0]}


def small_pictures(stimuli: NDArray[np.uint8]) -> Any:
    """Photographs [n, h, w, 3] as uint8 pixels [n, 3, 32, 32], averaged over the pixels that become one."""
    import numpy as np
    import torch
    from PIL import Image

    resized = [np.asarray(Image.fromarray(one).resize((32, 32), Image.Resampling.BOX)) for one in stimuli]
    return torch.as_tensor(np.stack(resized)).permute(0, 3, 1, 2)


def _given(config: Config, records: Any, name: str, *, trained: bool) -> dict[str, Any]:
    """Dissimilarities of every layer of a given network, features averaged over a 4 x 4 grid of places."""
    import torch
    from PIL import Image

    from unrolled.models.given import find_weights, open_given
    from unrolled.studies.platonic.photos import drawn_anew

    model = open_given(name, find_weights(config.data_dir))
    assert model.transform is not None
    images = torch.stack([model.transform(Image.fromarray(one)) for one in records.stimuli])
    # batch norms of an untrained network take their statistics from the photographs: without any it would be dead
    module = model.module if trained else drawn_anew(model.module, config.seed, images)
    return _rdms(config, module, images, model.layers)


def _rdms(config: Config, model: nn.Module, images: Any, layers: tuple[str, ...]) -> dict[str, Any]:
    from unrolled.instruments.features.extraction import extract
    from unrolled.studies.platonic.human import correlation_rdms

    features = extract(model.to(config.device), images.to(config.device), layers=layers, pooling="grid", batch_size=23)
    return dict(zip(features, correlation_rdms(list(features.values())), strict=True))


def kept_members(folder: Path) -> list[tuple[Any, Path]]:
    """Trained members of the zoo whose weights lie in `folder`, and those that need none; empty without a zoo."""
    if importlib.util.find_spec("unrolled.studies.platonic_members") is None:
        return []
    members = importlib.import_module("unrolled.studies.platonic_members").roster("full")
    paths = [(member, folder / "models" / f"{member.name}.pt") for member in members]
    trained = [(member, path) for member, path in paths if path.is_file()]
    return trained + [(member, folder) for member, _ in paths if member.taught == "nothing"] if trained else []


def _member(config: Config, records: Any, member: Any, path: Path) -> dict[str, Any]:
    import torch

    build = importlib.import_module("unrolled.studies.platonic_members").build
    model: nn.Module = build(member, side=32, channels=3, classes=10)
    if path.is_file():
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["model"])
    images = (small_pictures(records.stimuli).float() - 127.5) / 64
    return _rdms(config, model.eval(), images, ("layer*",) if member.kind == "cnn" else ("block*",))


def _askable(config: Config) -> list[tuple[str, str]]:
    """What there are judgements of, with the vectors that there are."""
    from unrolled.models.given import GIVEN

    folder = config.data_dir / "human-similarity"
    return [
        (what, name)
        for what, file, names in (
            ("things", "things1854_human.npz", TEXTS),
            ("colours", "colour93_human.npz", ("CIELAB", *TEXTS)),
        )
        for name in names
        if (folder / file).is_file()
        and (name == "CIELAB" or (config.data_dir / "weights" / GIVEN[name].file).is_file())
    ]


def _words(config: Config, what: str, name: str) -> dict[str, Any]:
    """Agreement of names' vectors with human judgement, of things or of colours."""
    import numpy as np
    import torch

    from unrolled.models.given import find_weights
    from unrolled.studies.platonic.human import agreement, colours, correlation_rdms, noise_ceiling, word_vectors

    began = time.perf_counter()
    if what == "things":
        texts, people = _things(config)
    else:
        found = colours(config.data_dir)
        texts, people = found.names, found.groups
    if name == "CIELAB":
        lab = torch.as_tensor(found.lab)
        rdm = torch.cdist(lab, lab).numpy()
    else:
        vectors = word_vectors(name, texts, find_weights(config.data_dir))
        known = (vectors.norm(dim=1) > 0).nonzero()[:, 0].numpy()
        people = people[np.ix_(np.arange(len(people)), known, known)]
        rdm = correlation_rdms([vectors[torch.as_tensor(known)]])[0]
    found_agreement = agreement(rdm[None], people, draws=config.draws, seed=config.seed)
    return {
        "what": what, "name": name, "n": len(rdm), "score": found_agreement.score, "tau": found_agreement.tau,
        "interval": list(found_agreement.interval), "null": found_agreement.null, "p": found_agreement.p,
        "ceiling": list(noise_ceiling(people)), "seconds": time.perf_counter() - began,
    }  # fmt: skip


def _things(config: Config) -> tuple[list[str], NDArray[np.float64]]:
    """Names of some of the 1,854 things and their dissimilarities [4, n, n] in four groups of people."""
    import numpy as np

    from unrolled.studies.platonic.human import read_arrays

    path = config.data_dir / "human-similarity" / "things1854_human.npz"
    found = read_arrays(path, ("concepts", "group_embeddings"))
    total = len(found["concepts"])
    chosen = np.sort(np.random.default_rng(config.seed).choice(total, min(config.concepts, total), replace=False))
    vectors = np.clip(found["group_embeddings"][:, chosen].astype(np.float64), 0, None)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return [str(found["concepts"][i]).replace("_", " ") for i in chosen], 1 - vectors @ vectors.transpose(0, 2, 1)


def smallest_gain(results: list[dict[str, Any]]) -> float:
    """Least difference between an ImageNet network and itself untrained; NaN if none was measured."""
    untrained = {cell["name"]: cell["score"] for cell in results if cell["group"] == "untrained"}
    gains = [c["score"] - untrained[c["name"]] for c in results if c["group"] == "ImageNet" and c["name"] in untrained]
    return min(gains, default=math.nan)


STUDY = Study(
    name="platonic-brain",
    title="Networks, brains and human judgement: what they find alike",
    citation="M. Huh et al., The Platonic Representation Hypothesis, arXiv 2405.07987; N. Kriegeskorte et al., 2008",
    config=Config,
    run=run,
    expectations=(MONKEY, CEILING_LOW, CEILING_HIGH, TRAINED, WORDS),
)
