"""The results of `platonic-language` as claims and page read them: models in numbers, and trends over models."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from unrolled.studies.platonic.language.cells import Agreement, LanguageConfig
from unrolled.studies.platonic.language.prompts import Prompt
from unrolled.studies.platonic.language.readers import Bytes, Reader
from unrolled.studies.platonic.language.tasks import Bits, Colours, Continuation, InContext, Probe, Sums
from unrolled.studies.platonic.photos import label
from unrolled.studies.results import Estimate, Results, Values
from unrolled.studies.statistics import Array, correlation, of_pairs, over_models, rank_correlations

_LABELS = {
    "given:resnet20": "ResNet-20", "given:resnet56": "ResNet-56", "given:vit_d128_p4": "ViT of CIFAR-10",
    "crate_nano_patch4_32.cifar10": "CRATE", "crate_nano_patch4_32.cifar10_conv": "CRATE, conv stem",
    "crate_mae_nano_patch4_32.cifar10": "CRATE-MAE",
}  # fmt: skip
MISSING = math.nan


def name_of(image: str) -> str:
    """What a report calls an image network."""
    return _LABELS.get(image, label(image))


class Language(NamedTuple):
    """A text model in numbers; NaN where something was not run.

    `gain` is the mean over image networks of the score above chance as a share of what is possible, `held_out` the same
    of layers chosen on the other half of the photos, `cka` of unbiased CKA, `shuffled` that of captions of other
    photos with the first image network. `coco` is the gain on COCO's photos, `beside_coco` that on Flickr8k of the same
    networks. `size` counts parameters without tables.
    """

    label: str
    size: float
    captions: float
    general: float
    continuation: float
    sums: float
    colours: float
    gain: float
    held_out: float
    cka: float
    shuffled: float
    coco: float
    beside_coco: float


class Vision(NamedTuple):
    """An image network in numbers: accuracy of its probe, parameters, and the mean over text models of the gain."""

    label: str
    image: str
    accuracy: float
    size: float
    gain: float


class View:
    """The results as claims and page read them.

    Attributes:
        pairs: all pairs of models on Flickr8k, captions in place.
        shuffled: the first image network with all text models, captions shuffled.
        coco: pairs of models on COCO.
    """

    def __init__(self, results: Results[Any], config: LanguageConfig) -> None:
        self.results, self.config = results, config
        every = results.of(Agreement)
        self.pairs = every.where(exchanged=False, collection="flickr8k")
        self.shuffled = every.where(exchanged=True)
        self.coco = every.where(exchanged=False, collection="coco")
        self.n, self.n_coco = (int(rows.first("knn.n", 0)) for rows in (self.pairs, self.coco))

    def languages(self, readers: Sequence[Reader]) -> list[Language]:
        """Those that were compared with all image networks, in numbers."""
        return [self._language(reader) for reader in readers if self._rows(reader)]

    @property
    def trained(self) -> list[Language]:
        """Language models as trained, which have bits per byte."""
        return self.languages(self.config.causal)

    @property
    def given(self) -> list[Language]:
        """Of these, those that others trained."""
        return self.languages(self.config.causal[len(self.config.bytes) :])

    @property
    def visions(self) -> list[Vision]:
        """The image networks in numbers."""
        probes = {row.cell.image: row.result for row in self.results.of(Probe)}
        out = []
        for image in self.config.images:
            rows = [row for row in self.pairs if row.cell.seen.image == image and self._trained(row.cell)]
            if rows:
                probe = probes.get(image, {})
                gain = fmean(_gain(row) for row in rows)
                out.append(
                    Vision(
                        name_of(image), image, probe.get("accuracy", MISSING), probe.get("parameters", MISSING), gain
                    )
                )
        return out

    def beyond(self, trained: bool) -> Values:
        """Share of pairs beyond chance, of trained models or of the twin's, by models of the kind that differ more."""
        shares: dict[tuple[Hashable, Hashable], float] = {
            (cell.read.reader, cell.seen.image): float(passed)
            for cell, passed in self.passed.items()
            if self._trained(cell) == trained
        }
        return of_pairs(shares, ("text model", "image network"))

    @property
    def passed(self) -> dict[Agreement, bool]:
        """Whether each pair is beyond chance at 5 % false discoveries, the untrained twin's pairs among them."""
        from unrolled.alignment import benjamini_hochberg

        if not self.pairs:
            return {}
        _, passed = benjamini_hochberg([row.result["knn"]["p_value"] for row in self.pairs])
        return dict(zip((row.cell for row in self.pairs), passed.tolist(), strict=True))

    @property
    def tally(self) -> str:
        """How many pairs of trained models there are, and whose are not beyond chance, in words."""
        passed = {cell: yes for cell, yes in self.passed.items() if self._trained(cell)}
        missed = [cell for cell, yes in passed.items() if not yes]
        here = sum(isinstance(cell.read.reader, Bytes) for cell in missed)
        words = f" of {len(passed)} pairs"
        if missed:
            whose = "all" if here == len(missed) else f"{here} of them"
            words += f"; {len(missed)} are not, {whose} of the models of bytes trained here"
        return words

    def against_twin(self) -> Values:
        """Gain of the untrained twin's model less that of the twin, by image network."""
        twin = self.config.twin

        def gains(drawn: int | None) -> Values:
            rows = self._rows(replace(twin, text_drawn=drawn))
            return Values({row.cell.seen.image: _gain(row) for row in rows}, "image network")

        return gains(None) - gains(twin.text_drawn)

    def context_of(self, *, twin: bool) -> Mapping[str, Any] | None:
        """What was learnt in context by the model that has an untrained twin, or by the twin; None if not run."""
        want = self.config.twin.label if twin else self.config.twin.label.removesuffix(", untrained")
        return next((row.result for row in self.results.of(InContext) if row.cell.reader.label == want), None)

    def of_prompt(self, what: str, *, twin: bool = False) -> Values:
        """Of a key of `prompts.judged`, tuned prompts less random ones, by seed: the model with a twin, or the twin."""
        rows = self.results.of(Prompt).where(text=self.config.untrained, text_drawn=self.config.seed if twin else None)
        return rows.values(f"tuned.{what}") - rows.values(f"random.{what}")

    def _trained(self, cell: Agreement) -> bool:
        return cell.read.reader != self.config.twin

    def _rows(self, reader: Reader) -> list[Any]:
        return [row for row in self.pairs if row.cell.read.reader == reader]

    def _language(self, reader: Reader) -> Language:
        rows = self._rows(reader)
        bits = {row.cell.domain: row.result for row in self.results.of(Bits) if row.cell.reader == reader}
        size = next((result["parameters"] for result in bits.values()), MISSING)

        def one(kind: Any, key: str) -> float:
            return next((float(row.result[key]) for row in self.results.of(kind) if row.cell.reader == reader), MISSING)

        shuffled = [_gain(row) for row in self.shuffled if row.cell.read.reader == reader]
        coco = {row.cell.seen.image: _gain(row) for row in self.coco if row.cell.read.reader == reader}
        beside = [_gain(row) for row in rows if row.cell.seen.image in coco]
        held = [(row.result["knn"]["held_out"]["score"], row.result["knn"]["held_out"]["chance"]) for row in rows]
        return Language(
            label=reader.label,
            size=size,
            captions=bits["captions"]["bits_per_byte"] if "captions" in bits else MISSING,
            general=bits["general"]["bits_per_byte"] if "general" in bits else MISSING,
            continuation=one(Continuation, "accuracy"),
            sums=one(Sums, "accuracy"),
            colours=one(Colours, "r2"),
            gain=fmean(_gain(row) for row in rows),
            held_out=fmean((score - chance) / (1 - chance) for score, chance in held),
            cka=fmean(row.result["cka"]["gain"] for row in rows),
            shuffled=shuffled[0] if shuffled else MISSING,
            coco=fmean(coco.values()) if coco else MISSING,
            beside_coco=fmean(beside) if beside else MISSING,
        )


def _gain(row: Any) -> float:
    return float(row.result["knn"]["gain"])


def trend(models: Sequence[Any], x: str, y: str = "gain", sign: float = 1.0, *, of: int = 1) -> Estimate | Values:
    """Rank correlation of two numbers of models that have both, with its interval over models; none of fewer than 4.

    `of` is how many trends are judged, as in `correlation`.
    """
    pairs = [(sign * getattr(model, x), getattr(model, y)) for model in models]
    pairs = [pair for pair in pairs if all(map(math.isfinite, pair))]
    if len(pairs) < 4:
        return Values()
    return correlation(*zip(*pairs, strict=True), of=of)


def partial_trend(models: Sequence[Language], x: str, sign: float) -> Estimate | Values:
    """Rank correlation of a number of models with their gain, given their size; with its interval over models."""
    rows = [(sign * getattr(model, x), model.gain, model.size) for model in models]
    table = np.array([row for row in rows if all(map(math.isfinite, row))], dtype=np.float64)
    if len(table) < 5:
        return Values()
    a, b, size = table.T

    def partial(drawn: Any) -> Array:
        ab, az, bz = (rank_correlations(s[drawn], t[drawn]) for s, t in ((a, b), (a, size), (b, size)))
        with np.errstate(invalid="ignore", divide="ignore"):
            value: Array = (ab - az * bz) / np.sqrt((1 - az**2) * (1 - bz**2))
        return value

    drawn, count = over_models(partial, len(table)), len(table)
    if not math.isfinite(drawn.value):
        return drawn
    basis = f"the wider of a bootstrap and Fisher's z over {count} models"
    return drawn.reaching(Estimate.of_ranks(drawn.value, count - 1, basis))  # one is spent on the size


def last_layer(context: Mapping[str, Any] | None) -> float:
    """How much lower the mesa-objective of the last layer is for its own context than for another; NaN of none."""
    return float(context["descent"][-2]["in_context"]) if context is not None else MISSING
