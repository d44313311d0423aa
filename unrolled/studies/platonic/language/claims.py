"""What is claimed of language models beside image networks, and how it is read off the results."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from unrolled.studies.claim import CONTROL, NOBODY, Claim
from unrolled.studies.platonic.language.cells import CIFAR, Agreement, LanguageConfig
from unrolled.studies.platonic.language.readers import Reader
from unrolled.studies.platonic.language.tasks import Bits, Colours, Continuation, InContext, Probe, Sums
from unrolled.studies.platonic.photos import label
from unrolled.studies.results import Estimate, Results, Values
from unrolled.studies.statistics import Array, correlation, over_models, rank_correlations, spearman

_PAPER = "arXiv 2405.07987, section 2 and figure 3"
_DOWNSTREAM = "arXiv 2405.07987, figure 4"
_MESA = "arXiv 2309.05858, discussion: mesa-optimisation may underlie the in-context learning of large language models"
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
    photos with the first image network. `size` counts parameters without tables.
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
        pairs: all pairs of models, captions in place.
        shuffled: the first image network with all text models, captions shuffled.
    """

    def __init__(self, results: Results[Any], config: LanguageConfig) -> None:
        self.results, self.config = results, config
        every = results.of(Agreement)
        self.pairs = every.where(exchanged=False)
        self.shuffled = every.where(exchanged=True)
        self.n = int(self.pairs.first("knn.n", 0))

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
                gain = fmean(row.result["knn"]["gain"] for row in rows)
                out.append(
                    Vision(
                        name_of(image), image, probe.get("accuracy", MISSING), probe.get("parameters", MISSING), gain
                    )
                )
        return out

    def beyond(self, trained: bool) -> Values:
        """1 for every pair beyond chance at 5 % false discoveries, the untrained twin's pairs among them, else 0."""
        from unrolled.alignment import benjamini_hochberg

        if not self.pairs:
            return Values()
        _, passed = benjamini_hochberg([row.result["knn"]["p_value"] for row in self.pairs])
        rows = zip(self.pairs, passed.tolist(), strict=True)
        by: dict[Hashable, float] = {
            row.cell.labels: float(yes) for row, yes in rows if self._trained(row.cell) == trained
        }
        return Values(by, "pair")

    def against_twin(self) -> Values:
        """Gain of the untrained twin's model less that of the twin, by image network."""
        twin = self.config.twin

        def gains(drawn: int | None) -> Values:
            rows = self._rows(replace(twin, text_drawn=drawn))
            return Values({row.cell.seen.image: row.result["knn"]["gain"] for row in rows}, "image network")

        return gains(None) - gains(twin.text_drawn)

    def context_of(self, *, twin: bool) -> Mapping[str, Any] | None:
        """What was learnt in context by the model that has an untrained twin, or by the twin; None if not run."""
        want = self.config.twin.label if twin else self.config.twin.label.removesuffix(", untrained")
        return next((row.result for row in self.results.of(InContext) if row.cell.reader.label == want), None)

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

        shuffled = [row.result["knn"]["gain"] for row in self.shuffled if row.cell.read.reader == reader]
        held = [(row.result["knn"]["held_out"]["score"], row.result["knn"]["held_out"]["chance"]) for row in rows]
        return Language(
            label=reader.label,
            size=size,
            captions=bits["captions"]["bits_per_byte"] if "captions" in bits else MISSING,
            general=bits["general"]["bits_per_byte"] if "general" in bits else MISSING,
            continuation=one(Continuation, "accuracy"),
            sums=one(Sums, "accuracy"),
            colours=one(Colours, "r2"),
            gain=fmean(row.result["knn"]["gain"] for row in rows),
            held_out=fmean((score - chance) / (1 - chance) for score, chance in held),
            cka=fmean(row.result["cka"]["gain"] for row in rows),
            shuffled=shuffled[0] if shuffled else MISSING,
        )


def trend(models: Sequence[Any], x: str, y: str = "gain", sign: float = 1.0) -> Estimate | Values:
    """Rank correlation of two numbers of models that have both, with its interval over models; none of fewer than 4."""
    pairs = [(sign * getattr(model, x), getattr(model, y)) for model in models]
    pairs = [pair for pair in pairs if all(map(math.isfinite, pair))]
    if len(pairs) < 4:
        return Values()
    return correlation(*zip(*pairs, strict=True))


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


def _of(read: Callable[[View], Any]) -> Callable[[Results[Any], LanguageConfig], Any]:
    return lambda results, config: read(View(results, config))


def _counted(view: View) -> str:
    models = view.trained
    given = len(view.given)
    control = spearman([-model.general for model in models], [model.shuffled for model in models])
    shuffled = f"; with shuffled captions {control:.2f}" if math.isfinite(control) else ""
    return f" ({len(models)} models, {given} of them trained by others{shuffled})"


def _unseen(view: View) -> list[Vision]:
    """Networks that learnt nothing of CIFAR-10, on which the probe is taken."""
    return [vision for vision in view.visions if vision.image not in CIFAR and "cifar10" not in vision.image]


def _score(view: View, *, twin: bool = False) -> Estimate | Values:
    context = view.context_of(twin=twin)
    if context is None:
        return Values()
    half = 1.96 * context["error"]
    return Estimate(context["score"], context["score"] - half, context["score"] + half, "standard error over excerpts")


def _disorder(view: View) -> str:
    context = view.context_of(twin=False)
    return "" if context is None else f"; tokens in disorder {context['disordered']:+.2f}"


def last_layer(context: Mapping[str, Any] | None) -> float:
    """How much lower the mesa-objective of the last layer is for its own context than for another; NaN of none."""
    return float(context["descent"][-2]["in_context"]) if context is not None else MISSING


def _stand_in(what: str, statement: str, published: str) -> Claim:
    return Claim(
        statement=statement,
        source=f"{_DOWNSTREAM}; another task, far smaller models",
        published=published,
        value=_of(lambda view: trend(view.trained, what)),
        low=0.0,
        outside="models whose agreement has nothing to do with the task: 0",
        spec=".2f",
    )


CLAIMS = (
    Claim(
        statement="Share of pairs of trained models beyond chance (5 % false discoveries, search over layers "
        "corrected)",
        source="arXiv 2602.14486: all 204 pairs of the paper's models at p < 0.05",
        published="1",
        value=_of(lambda view: view.beyond(True)),
        low=1.0,
        outside="pairs that agree by chance",
        control=_of(lambda view: view.beyond(False)),
        spec=".2f",
        detail=_of(lambda view: f" of {len(view.beyond(True))} pairs"),
    ),
    Claim(
        statement="Better language models agree more with vision (rank correlation of 1 - bits per byte on general "
        "text and score above chance, mean over image networks)",
        source=_PAPER,
        published="about linear, rising",
        value=_of(lambda view: trend(view.trained, "general", sign=-1.0)),
        low=0.0,
        outside="models whose agreement has nothing to do with how well they predict: 0",
        spec=".2f",
        detail=_of(_counted),
    ),
    Claim(
        statement="The same with bits per byte on captions",
        source=_PAPER,
        published="about linear, rising",
        value=_of(lambda view: trend(view.trained, "captions", sign=-1.0)),
        low=0.0,
        outside="models whose agreement has nothing to do with how well they predict: 0",
        spec=".2f",
    ),
    Claim(
        statement="The same of the models that others trained alone (general text)",
        source=_PAPER,
        published="about linear, rising",
        value=_of(lambda view: trend(view.given, "general", sign=-1.0)),
        low=0.0,
        unjudged="four models have 24 orders, and one of them is right by accident",
        spec=".2f",
    ),
    Claim(
        statement="Better language models agree more, size being equal (partial rank correlation given parameters)",
        source=NOBODY,
        published="no number",
        value=_of(lambda view: partial_trend(view.trained, "general", -1.0)),
        low=0.0,
        unjudged=NOBODY,
        spec=".2f",
    ),
    Claim(
        statement="Better image networks agree more with language (rank correlation of a linear probe of CIFAR-10 and "
        "score above chance, mean over text models; networks that learnt nothing of CIFAR-10)",
        source=_PAPER,
        published="rising",
        value=_of(lambda view: trend(_unseen(view), "accuracy")),
        low=0.0,
        outside="networks whose agreement has nothing to do with their probe: 0",
        spec=".2f",
        detail=_of(lambda view: f" ({len(_unseen(view))} networks)"),
    ),
    Claim(
        statement="Training makes the agreement (score above chance of a language model less that of its untrained "
        "twin)",
        source=_PAPER,
        published="implied, no number",
        value=_of(lambda view: view.against_twin()),
        low=0.0,
        unjudged=CONTROL,
    ),
    _stand_in(
        "continuation",
        "Models that tell which ending a caption has agree more (rank correlation with accuracy among four; in place "
        "of Hellaswag)",
        "linear, no number",
    ),
    _stand_in(
        "sums",
        "Models that tell the sum of two numbers agree more (rank correlation with accuracy among four; in place of "
        "GSM8K)",
        "rising late, no number",
    ),
    Claim(
        statement="Larger language models lay colours out more as people see them (rank correlation of parameters and "
        "r^2 with CIELAB, layer at half depth)",
        source="Abdou et al. 2021, as arXiv 2405.07987 cites it",
        published="rising, no number",
        value=_of(lambda view: trend(view.trained, "size", "colours")),
        low=0.0,
        outside="models whose colours have nothing to do with their size: 0",
        spec=".2f",
    ),
    Claim(
        statement="A real language model learns in context (loss of tokens 80 to 94 less that of tokens 4 to 18, nats)",
        source=_MESA,
        published="below 0",
        value=_of(_score),
        high=0.0,
        outside="models that make nothing of a longer context: 0",
        control=_of(lambda view: _score(view, twin=True)),
        spec=".2f",
        detail=_of(_disorder),
    ),
    Claim(
        statement="Its layers descend the least-squares objective of their own context (mesa-objective of the last "
        "layer, of another context less of its own, share of the mean state's)",
        source=_MESA,
        published="asked, no number",
        value=_of(lambda view: last_layer(view.context_of(twin=False))),
        low=0.0,
        unjudged=NOBODY,
        detail=_of(lambda view: f" (untrained twin {last_layer(view.context_of(twin=True)):.3f})"),
    ),
)
