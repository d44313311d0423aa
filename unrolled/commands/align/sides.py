"""Two sides of the same samples, each a model or features in files: their flags, and their features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unrolled.subjects.options import PairFlags, Reading, Side

if TYPE_CHECKING:
    import torch
    from numpy import ndarray
    from torch import Tensor

    from unrolled.data.pairs import PairSource
    from unrolled.subjects.subject import Subject

    Features = Mapping[str, Tensor | ndarray]


@dataclass(frozen=True, kw_only=True)
class TwoSides(PairFlags):
    """What is compared with what."""

    a: str | None = field(default=None, kw_only=False)
    """A run folder or any model by one string, a folder of `unrolled extract`, or an array file: .npy [n, d] or
    [n, layers, d], .npz, .safetensors or .pt with one [n, d] a layer."""
    b: str | None = field(default=None, kw_only=False)
    """As A; row i must be the same sample."""
    data: str | None = None
    """Data set both models see; default: the one of the first that is a run folder, else digits."""
    side: Side | None = None
    """What A is fed with of paired data (flickr8k, coco, wit, folder, packed, hf:ORG/NAME@REVISION, text): the image,
    its captions as one text, or of pairs of texts the first (text) or the second (text2); default: image."""
    side_b: Side | None = None
    """The same for B; default: text."""
    texts: Path | None = None
    """A file with one text a line, or a .tsv of two columns, for two text models."""
    layers_b: tuple[str, ...] | None = None
    """The same as `--layers` for B alone; default: as for A."""


@dataclass(frozen=True, kw_only=True)
class Sides:
    """A and B: their features, and the models among them by number.

    Attributes:
        options: completed.
        features: of A and of B.
        subjects: the sides that are models.
        pairs: what they are shown, if it is paired data.
    """

    options: Any
    features: list[Features]
    subjects: dict[int, Subject]
    pairs: PairSource | None


def features_of(options: Any, specs: tuple[str, str], folder: Path, where: torch.device) -> Sides:
    """Features of A and of B, read from files or computed; the options completed; the pairs, if they are of pairs.

    Args:
        options: a verb's, with the flags of `TwoSides`, of models, samples and features.
        specs: A and B.
        folder: features of models are kept below it.
        where: the device.
    """
    from unrolled.instruments.features.files import is_feature_file, read_features
    from unrolled.subjects.pairs import Paired
    from unrolled.subjects.subject import Subject, material_for

    features: dict[int, Features] = {i: read_features(spec) for i, spec in enumerate(specs) if is_feature_file(spec)}
    pairs, subjects = None, {}
    if models := [spec for i, spec in enumerate(specs) if i not in features]:
        material, options = material_for(
            models, options, side=options.side or options.side_b, texts=options.texts, quiet=options.quiet
        )
        pairs = material.pairs if isinstance(material, Paired) else None
        layers = (options.layers, options.layers_b or options.layers)
        for i in (i for i in (0, 1) if i not in features):
            # another seed for B: A and B must not be one model by accident
            reading = Reading.of(options, model=specs[i], layers=layers[i], seed=options.seed + i)
            subjects[i] = Subject.of(reading, material, where, side=_side(i, options))
        for i, subject in subjects.items():  # both could be opened: what is wrong with B is not said after hours of A
            features[i], _ = subject.features(folder / "features" / "ab"[i], quiet=options.quiet)
    checked = [_checked(features[i], spec) for i, spec in enumerate(specs)]
    return Sides(options=options, features=checked, subjects=subjects, pairs=pairs)


def stem(spec: str) -> str:
    """What a folder is called after of A or B."""
    from unrolled.instruments.features.files import ARRAY_SUFFIXES

    return Path(spec.removeprefix("local:")).stem if "/" in spec or Path(spec).suffix in ARRAY_SUFFIXES else spec


def _side(i: int, options: Any) -> Side:
    """What side `i` is fed with: as said, else images against captions, or first against second texts."""
    given: Side | None = (options.side, options.side_b)[i]
    if given is not None:
        return given
    if options.texts is not None and options.texts.suffix != ".tsv":
        return "text"
    defaults: tuple[Side, Side] = ("text", "text2") if options.texts or options.data == "text" else ("image", "text")
    return defaults[i]


def _checked(side: Features, spec: str) -> Features:
    from unrolled.instruments.features.extraction import check_finite

    for name, value in side.items():
        check_finite(value, f"{spec}, {name}", "drop these samples on both sides")
    return side
