"""What is claimed of image networks and language models, and how it is read off the results."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import asdict
from math import nan
from typing import Any, NamedTuple, TypeVar

from unrolled.studies.claim import CONTROL, EARLIER, SHARE, Claim
from unrolled.studies.platonic.photos import TOP1, label
from unrolled.studies.platonic.vision_language.cells import Compared, Quality, VisionLanguageConfig
from unrolled.studies.results import Results, Values
from unrolled.studies.statistics import of_pairs, spearman

T = TypeVar("T")
_PAPER = "arXiv 2405.07987, section 2 and figure 3"
_NOTES = "reference figures that come with the weights and photos"
REFERENCE = {"efficientnet_lite0": 0.118, "mobilenet_v1_075": 0.102, "tiny_darknet": 0.087, "squeezenet1_1": 0.083}


class State(NamedTuple):
    """A state of the language model: bits per byte, and the best layers' score with the first image network."""

    words: str
    bits_per_byte: float
    score: float
    chance: float


class View:
    """The results as claims and page read them.

    Attributes:
        pairs: all pairs of models.
        trained: those of models as they are.
        anchored: of these, those with the first text model.
        drawn: image networks drawn anew.
        n: how many photos were compared.
    """

    def __init__(self, results: Results[Any], config: VisionLanguageConfig) -> None:
        self.results, self.config = results, config
        self.pairs = results.of(Compared)
        self.trained = self.pairs.where(image_drawn=None, text_drawn=None, damage=0.0)
        self.anchored = self.trained.where(text=config.texts[0])
        self.drawn = self.pairs.where(image_drawn=config.seed)
        self.n = int(self.pairs.first("best.n", 0))

    @property
    def adjusted(self) -> dict[Compared, tuple[float, bool]]:
        """p-values adjusted over all pairs, controls included, and whether they allow for 5 % false discoveries."""
        from unrolled.alignment import benjamini_hochberg

        if not self.pairs:
            return {}
        adjusted, passed = benjamini_hochberg([row.result["best"]["p_value"] for row in self.pairs])
        cells = [row.cell for row in self.pairs]
        return dict(zip(cells, zip(adjusted.tolist(), passed.tolist(), strict=True), strict=True))

    @property
    def states(self) -> list[State]:
        """Of the language model, those that were also compared."""
        scores = self.pairs.where(image=self.config.images[0], image_drawn=None)
        states = []
        for cell, result, _ in self.results.of(Quality):
            if best := scores.where(**asdict(cell.model)).first("best"):
                words = cell.model.state or "as trained"
                states.append(State(words, result["bits_per_byte"], best["score"], best["chance"]))
        return states

    @property
    def last(self) -> dict[str, float]:
        """Score of the last layers of every given image network, by its name."""
        scores = {row.cell.photos.image: row.result["last"]["mutual_knn"]["score"] for row in self.anchored}
        return {name: scores[f"given:{name}"] for name in TOP1 if f"given:{name}" in scores}

    @property
    def by_accuracy(self) -> float:
        """Rank correlation of the networks' accuracy with these."""
        last = self.last
        return spearman([TOP1[name] for name in last], list(last.values())) if len(last) == len(TOP1) else nan

    @property
    def by_quality(self) -> float:
        """Rank correlation of the language model's quality with its score."""
        states = self.states
        if len(states) < 4:
            return nan
        return spearman([-state.bits_per_byte for state in states], [state.score for state in states])

    def beyond(self, pairs: Results[Compared]) -> Values:
        """Share of pairs that are beyond chance, by models of the kind that differ more."""
        adjusted = self.adjusted
        passed: dict[tuple[Hashable, Hashable], float] = {
            row.cell.labels: float(adjusted[row.cell][1]) for row in pairs
        }
        return of_pairs(passed, ("image network", "text model"))

    @property
    def untrained(self) -> float:
        """Best of untrained image networks over worst of trained.

        Above chance: ties, as of features that are all but constant, raise a score and its chance level alike.
        """
        drawn, trained = (
            [row.result["best"]["score"] - row.result["best"]["chance"] for row in rows]
            for rows in (self.drawn, self.anchored)
        )
        return max(drawn) / min(trained) if drawn and trained else nan

    @property
    def largest(self) -> float:
        """Score of all pairs of trained models."""
        return max((row.result["best"]["score"] for row in self.trained), default=nan)

    @property
    def shuffled(self) -> str:
        """What chance was found from, and is, in words."""
        return f" over {self.config.draws} relabellings; k / (n - 1) = {self.config.k / (self.n - 1):.4f}"


def of(read: Callable[[View], T]) -> Callable[[Results[Any], VisionLanguageConfig], T]:
    """`read` of the view of the results."""
    return lambda results, config: read(View(results, config))


def _networks(config: VisionLanguageConfig) -> str:
    count = len({f"given:{name}" for name in TOP1} & {*config.images, *config.more_images})
    return "" if count == len(TOP1) else f"not run: needs the four networks, not {count}"


def _states(config: VisionLanguageConfig) -> str:
    count = len(config.states)
    return "" if count >= 4 else f"not run: {count} states with bits per byte are too few"


CLAIMS = (
    *(
        Claim(
            statement=f"Last layer of {label(f'given:{name}')} and MiniLM: mutual 10-NN on all 2,000 photos",
            source=_NOTES,
            published=f"{value:.3f}",
            value=of(lambda view, name=name: view.last.get(name, nan)),  # type: ignore[misc]
            unjudged=EARLIER,
            spec=".4f",
        )
        for name, value in REFERENCE.items()
    ),
    Claim(
        statement="Pairs shuffled, the same score is k / (n - 1)",
        source=_NOTES,
        published="0.005",
        value=of(lambda view: view.anchored.first("last.mutual_knn.chance", nan)),
        unjudged="an identity: it cannot fail",
        spec=".4f",
        detail=of(lambda view: view.shuffled),
    ),
    Claim(
        statement="Better image networks agree more with language (rank correlation of accuracy and score, four "
        "networks)",
        source=_PAPER,
        published="rising",
        value=of(lambda view: view.by_accuracy),
        unjudged="four networks, whose order was known from this project's own earlier numbers",
        spec=".2f",
        detail=of(lambda view: f" ({' > '.join(f'{x:.3f}' for x in sorted(view.last.values(), reverse=True))})"),
        unless=_networks,
    ),
    Claim(
        statement="Better language models agree more with vision (rank correlation of 1 - bits per byte and score)",
        source=_PAPER,
        published="about linear, rising",
        value=of(lambda view: view.by_quality),
        unjudged="one model of 260,000 parameters in a few states says nothing of better models",
        spec=".2f",
        detail=of(lambda view: f" over {len(view.states)} states of one model"),
        unless=_states,
    ),
    Claim(
        statement="Share of pairs of trained models beyond chance (5 % false discoveries, search over layers "
        "corrected)",
        source="arXiv 2602.14486: all 204 pairs of the paper's models at p < 0.05",
        published="1",
        value=of(lambda view: view.beyond(view.trained)),
        low=1.0,
        within=SHARE,
        outside="pairs that agree by chance: few at this rate of false discoveries",
        control=of(lambda view: view.beyond(view.drawn)),
        spec=".2f",
        detail=of(lambda view: f" of {len(view.trained)} pairs"),
    ),
    Claim(
        statement="Training makes the agreement (score above chance: best of untrained image networks / worst of "
        "trained)",
        source=_PAPER,
        published="implied, no number",
        value=of(lambda view: view.untrained),
        high=1.0,
        unjudged=CONTROL,
        point=True,
        spec=".2f",
        detail=of(lambda view: f" ({len(view.drawn)} untrained networks)"),
    ),
    Claim(
        statement="Largest score (other photos, other models, another n: for the order of magnitude)",
        source=f"{_PAPER}: 1,024 Wikipedia pairs, models up to 65 B parameters",
        published="about 0.16",
        value=of(lambda view: view.largest),
        unjudged="other photos and other models",
        detail=of(lambda view: f" at n = {view.n:,}"),
    ),
)
