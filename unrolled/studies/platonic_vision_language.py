"""Image networks against language models on captioned photos: does agreement rise with the quality of either side?

Claim (arXiv 2405.07987): vision and language models that were never trained together arrange the same samples alike,
the more so the better they are at their own task.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from unrolled.studies.base import Budget, Expectation, Study, StudyConfig
from unrolled.studies.platonic_features import NETS

if TYPE_CHECKING:
    from torch import Tensor

    from unrolled.report import Report
    from unrolled.studies.platonic_features import PairFeatures

_PAPER = "arXiv 2405.07987, section 2 and figure 3"
_NOTES = "reference figures that come with the weights and photos"
REFERENCE = {
    "given:efficientnet_lite0": 0.118,
    "given:mobilenet_v1_075": 0.102,
    "given:tiny_darknet": 0.087,
    "given:squeezenet1_1": 0.083,
}
# 0.004: the smallest gap between two of the four, so the third and the fourth are told apart only by VISION's order
REFERENCES = tuple(
    Expectation(
        statement=f"Last layer of {name} and MiniLM: mutual 10-NN on all 2,000 photos",
        source=_NOTES, published=f"{value:.3f}", low=value - 0.004, high=value + 0.004,
    )
    for name, value in zip(
        ("EfficientNet-Lite0", "MobileNet v1 0.75", "Tiny Darknet", "SqueezeNet 1.1"), REFERENCE.values(), strict=True
    )
)  # fmt: skip
CHANCE = Expectation(
    statement="Pairs shuffled, the same score is k / (n - 1)",
    source=_NOTES,
    published="0.005",
    low=0.0045,
    high=0.0055,
)
VISION = Expectation(
    statement="Better image networks agree more with language (rank correlation of accuracy and score, four networks)",
    source=f"{_PAPER}; order of the reference figures",
    published="rising",
    low=0.999,
)
LANGUAGE = Expectation(
    statement="Better language models agree more with vision (rank correlation of 1 - bits per byte and score)",
    source=_PAPER,
    published="about linear, rising",
    low=0.5,
)
BEYOND_CHANCE = Expectation(
    statement="Share of pairs of trained models beyond chance (5 % false discoveries, search over layers corrected)",
    source="arXiv 2602.14486: all 204 pairs of the paper's models at p < 0.05",
    published="1",
    low=1.0,
)
UNTRAINED = Expectation(
    statement="Training makes the agreement (score above chance: best of untrained image networks / worst of trained)",
    source=_PAPER,
    published="implied, no number",
    high=1.0,
)
LARGEST = Expectation(
    statement="Largest score (other photos, other models, another n: for the order of magnitude)",
    source=f"{_PAPER}: 1,024 Wikipedia pairs, models up to 65 B parameters",
    published="about 0.16",
)


@dataclass(kw_only=True)
class Config(StudyConfig):
    """Budgets change the number of photos, models and relabellings."""

    budgets: ClassVar[dict[Budget, dict[str, Any]]] = {
        "quick": {
            "pairs": 128, "images": ("given:mobilenet_v1_075", "given:squeezenet1_1"), "draws": 50, "resamples": 20,
            "untrained_images": ("given:squeezenet1_1",), "damages": (0.2,), "corpus_bytes": 4000,
        },
        "cpu": {},
        "gpu": {
            "device": "cuda", "draws": 1000, "resamples": 400,
            "untrained_images": tuple(f"given:{name}" for name in NETS),
            "more_images": ("hf:facebook/dinov2-base", "hf:openai/clip-vit-base-patch32"),
            "more_texts": ("hf:bigscience/bloom-560m", "hf:bigscience/bloom-1b1", "hf:bigscience/bloom-1b7"),
        },
    }  # fmt: skip

    data_dir: Path = Path("data")
    """Holds `flickr8k-2000`, `weights` and `text`."""
    pairs: int = 2000
    """Photos with their five captions, drawn evenly from the 2,000."""
    images: tuple[str, ...] = tuple(f"given:{name}" for name in NETS)
    """Image networks."""
    texts: tuple[str, ...] = ("given:minilm", "given:glove", "given:stories260k")
    """Text models; the reference figures are against the first."""
    more_images: tuple[str, ...] = ()
    """Further image networks, e.g. hf:ORG/NAME; those that cannot be had are `not run`."""
    more_texts: tuple[str, ...] = ()
    """Further language models, likewise."""
    untrained_images: tuple[str, ...] = ("given:efficientnet_lite0", "given:squeezenet1_1")
    """Image networks that are also run with weights drawn anew."""
    language_model: str = "given:stories260k"
    """Whose weights are damaged and drawn anew, for models of the same kind and different quality."""
    damages: tuple[float, ...] = (0.1, 0.2, 0.3)
    """Noise added to its matrices, in standard deviations of each."""
    corpus_bytes: int = 40_000
    """Characters of WikiText-2 (test) on which bits per byte are measured."""
    k: int = 10
    """Neighbours; the paper's 10."""
    draws: int = 200
    """Relabellings for p-values."""
    resamples: int = 100
    """Subsamples for intervals."""
    seed: int = 0
    """Of relabellings, subsamples, untrained weights and noise."""
    device: str = "cpu"
    """Where the models run."""
    features: Path = Path("runs/platonic-features")
    """Features are kept here; other studies of the same photos use them too."""
    out: Path = Path("runs/platonic-vision-language")
    """Where the report and the kept comparisons go."""

    def __post_init__(self) -> None:
        if min(len(self.images), len(self.texts)) < 1:
            raise ValueError("images and texts must name at least one model each")
        if self.k < 1 or self.pairs < 4 * self.k:
            raise ValueError(f"pairs={self.pairs} are too few for k={self.k}: give at least {4 * self.k}")
        if min(self.draws, self.corpus_bytes) < 1 or self.resamples < 2:
            raise ValueError("draws and corpus_bytes must be at least 1, resamples at least 2")


def run(config: Config, *, on_progress: Callable[[str], None] | None = None) -> Report:
    """Extract, compare, judge; the report is also written to `config.out`.

    Raises:
        MissingData: `data_dir` lacks the photos or the weights.
    """
    from unrolled.errors import MissingData
    from unrolled.studies.platonic_features import PairFeatures
    from unrolled.studies.platonic_vision_language_report import make_report

    began = time.perf_counter()
    say = on_progress or (lambda line: None)
    if not config.data_dir.expanduser().is_dir():
        raise MissingData(f"data_dir: there is no folder {config.data_dir}; it must hold flickr8k-2000 and weights")
    place = config.data_dir.expanduser()
    source = PairFeatures(data_dir=place, count=config.pairs, keep=config.features, device=config.device, say=say)
    report = make_report(config, measure(config, source, say), began)
    report.write(config.out)
    return report


def measure(config: Config, source: PairFeatures, say: Callable[[str], None]) -> dict[str, Any]:
    """All cells: comparisons of trained and untrained models, qualities of the language models, what was not run."""
    from unrolled.errors import MissingData, MissingExtra

    not_run: dict[str, str] = {}
    left: dict[tuple[str, str], Callable[[], dict[str, Tensor]]] = {}
    right: dict[tuple[str, str], Callable[[], dict[str, Tensor]]] = {}
    for spec in (*config.images, *config.more_images):
        left[spec, ""] = lambda spec=spec: source.images(spec)  # type: ignore[misc]
    for spec in config.untrained_images:
        left[spec, "untrained"] = lambda spec=spec: source.images(spec, untrained=config.seed)  # type: ignore[misc]
    for spec in (*config.texts, *config.more_texts):
        right[spec, ""] = lambda spec=spec: source.captions(spec)  # type: ignore[misc]
    for spec in config.texts:
        right[spec, "untrained"] = lambda spec=spec: source.captions(  # type: ignore[misc]
            spec, untrained=config.seed
        )
    for damage in config.damages:
        right[config.language_model, f"damaged {damage:g}"] = lambda damage=damage: source.captions(  # type: ignore[misc]
            config.language_model, damage=damage
        )
    anchor_image, anchor_text = (config.images[0], ""), (config.texts[0], "")
    jobs = [(a, b) for a in left for b in right if not a[1] and not b[1]]
    jobs += [(a, anchor_text) for a in left if a[1]] + [(anchor_image, b) for b in right if b[1]]
    cells = []
    held: dict[Any, dict[str, Tensor]] = {}
    for a, b in jobs:
        for key, table in ((a, left), (b, right)):
            if key not in held and key[0] not in not_run:
                try:
                    held[key] = _vectors(table[key]())
                except (MissingData, MissingExtra) as error:
                    if key[0] not in (*config.more_images, *config.more_texts):
                        raise
                    not_run[key[0]] = str(error)
        if a[0] not in not_run and b[0] not in not_run:
            cells.append(_compared(config, a, b, held[a], held[b]))
            say(f"{len(cells)} of {len(jobs)}: {' '.join((*a, *b))}: {cells[-1]['best']['score']:.4f}")
    return {"cells": cells, "language": _language(config, source), "not_run": not_run, "n": len(source)}


def _vectors(layers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """[n, d]: of captions their mean, which for neighbours by cosine is as good as their sum."""
    return {name: value.mean(1) if value.dim() == 3 else value for name, value in layers.items()}


def _compared(
    config: Config, a: tuple[str, str], b: tuple[str, str], left: dict[str, Tensor], right: dict[str, Tensor]
) -> dict[str, Any]:
    from unrolled.studies.remembered import remembered

    settings = {
        "a": a, "b": b, "k": config.k, "draws": config.draws, "resamples": config.resamples, "seed": config.seed,
        "rows": [len(next(iter(side.values()))) for side in (left, right)], "pairs": config.pairs,
    }  # fmt: skip
    name = "-".join("".join(c if c.isalnum() or c == "." else "_" for c in part) for part in (*a, *b) if part)
    found = remembered(config.out / "cells", name, settings, lambda: compare_pair(config, left, right))
    return {"image": a[0], "image_state": a[1], "text": b[0], "text_state": b[1], **found}


def compare_pair(config: Config, left: dict[str, Tensor], right: dict[str, Tensor]) -> dict[str, Any]:
    """Two models: the best layers with everything `compare` says, and the last layers in several metrics.

    Args:
        config: numbers of neighbours, relabellings and subsamples.
        left: layer -> [n, d] of the image network, in order.
        right: layer -> [n, d] of the text model, in order.
    """
    from unrolled.alignment import compare, prepare_features
    from unrolled.alignment.registry import get_metric

    knn = get_metric("mutual_knn", k=config.k)
    best = compare(
        left, right, knn, draws=config.draws, resamples=config.resamples, select_held_out=True, seed=config.seed
    ).to_dict()
    x, y = list(left.values())[-1], list(right.values())[-1]
    last: dict[str, Any] = {}
    for name in ("mutual_knn", "unbiased_cka", "cknna"):
        metric = knn if name == "mutual_knn" else get_metric(name, **({"k": config.k} if name == "cknna" else {}))
        one = compare({"x": x}, {"y": y}, metric, draws=config.draws, resamples=0, seed=config.seed)
        last[name] = {"score": one.score, "chance": one.chance, "p_value": one.p_value, "z": one.z}
    last["prepared"] = knn(prepare_features(x), prepare_features(y))
    last["first"] = [knn(value, y) for value in left.values()]
    return {"best": best, "last": last, "layers_image": list(left), "layers_text": list(right)}


def _language(config: Config, source: PairFeatures) -> list[dict[str, Any]]:
    """Bits per byte of every state of the language model; None where there is no corpus."""
    from unrolled.instruments.sequences.bits_per_byte import bits_per_byte
    from unrolled.studies.remembered import remembered

    states: list[tuple[str, dict[str, Any]]] = [("", {})]
    states += [(f"damaged {damage:g}", {"damage": damage}) for damage in config.damages]
    states += [("untrained", {"untrained": config.seed})]
    corpus = source.data_dir / "text" / "wikitext2_test.txt"
    found = []
    for state, options in states:

        def compute(options: dict[str, Any] = options) -> dict[str, Any]:
            text = corpus.read_text(encoding="utf-8")[: config.corpus_bytes]
            model = source.variant(config.language_model, **options)
            tokenizer = source.tokenizer(config.language_model)
            found = bits_per_byte(
                model, text, lambda piece: tokenizer.encode(piece, bos=False), length=256, start=tokenizer.bos_id
            )
            return {"bits_per_byte": found["bits_per_byte"]}

        settings = {"model": config.language_model, "options": options, "bytes": config.corpus_bytes}
        name = "language-" + (state or "trained").replace(" ", "-")
        there = corpus.is_file()
        kept = remembered(config.out / "cells", name, settings, compute) if there else {"bits_per_byte": None}
        found.append({"state": state, **kept})
    return found


STUDY = Study(
    name="platonic-vision-language",
    title="Image networks and language models on the same captioned photos",
    citation="M. Huh et al., The Platonic Representation Hypothesis, arXiv 2405.07987",
    config=Config,
    run=run,
    expectations=(*REFERENCES, CHANCE, VISION, LANGUAGE, BEYOND_CHANCE, UNTRAINED, LARGEST),
)
