"""A model's layers beside what people, or cells, find alike: scores, ceiling, chance, untrained twins, held-out choice.

`beside_people(features, people)` answers; the result is a table, a drawing and sentences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unrolled.alignment.layers import LayerFeatures, named_layers
from unrolled.alignment.people import (
    Array,
    checked_rdms,
    correlation_rdms,
    noise_ceiling,
    resampled_scores,
    share_at_least,
    shuffled_best,
    unit_ranks,
    upper,
)
from unrolled.ops.rows import as_rows
from unrolled.tables import Tabular

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from unrolled.figures import LineChart

_HALVED = 8  # stimuli, so that a half has six pairs
_FLAT = 1e-9  # spread of correlation distances, of 0 to 2, that rounding alone may leave


@dataclass(frozen=True, kw_only=True)
class HeldOutLayer:
    """The layer chosen on one half of the stimuli and scored on the other.

    Attributes:
        score: mean over all halves.
        layers: how often each layer was chosen.
        n: stimuli of a half.
    """

    score: float
    layers: dict[str, int]
    n: int


@dataclass(frozen=True, kw_only=True)
class Untrained:
    """The same architecture with fresh weights: its best layer, and the mean score of every layer over the twins.

    Attributes:
        scores: of the best layer of each twin.
        layers: those layers.
        by_layer: [layers] mean over twins; a layer that tells no stimuli apart counts as 0.
        spread: [layers] their standard deviation; zeros of one twin.
        gain: score of the model less the twins' mean.
        interval: 95 % of the gain over resamplings of stimuli, people and twins.
    """

    scores: list[float]
    layers: list[str]
    by_layer: list[float]
    spread: list[float]
    gain: float
    interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True, repr=False)
class BesidePeople(Tabular):
    """How well the layers of a model agree with what people, or cells, find alike.

    Attributes:
        what: whom they stand beside, in words.
        stimuli: what was shown, in words.
        n: stimuli; people: rows of people, each of which counts the same.
        layers: names, in the order of the model.
        by_layer: mean over people of Spearman's correlation of all pairs of stimuli.
        intervals: 95 % each, over resamplings of stimuli and, of several, people.
        best: the layer that agrees most; score, interval: its own, the search not corrected.
        ceiling: of a perfect model, lower and upper bound (`noise_ceiling`); None of one person.
        chance: mean of the best layer's score after shuffling the stimuli, which corrects for the search.
        p: share of shufflings whose best layer is at least as good, with the data as one of them.
        held_out: the layer chosen on one half of the stimuli, judged on the other.
        untrained: twins with fresh weights; None where there are none.
        constant: layers that tell no stimuli apart, and were left out.
    """

    what: str
    stimuli: str
    n: int
    people: int
    layers: list[str]
    by_layer: list[float]
    intervals: list[tuple[float, float]]
    best: str
    score: float
    interval: tuple[float, float]
    ceiling: tuple[float, float] | None
    chance: float
    p: float
    held_out: HeldOutLayer
    untrained: Untrained | None
    constant: list[str]

    def records(self) -> list[dict[str, Any]]:
        """A row a layer: score, interval, and the untrained twins' mean."""
        rows: list[dict[str, Any]] = []
        for i, layer in enumerate(self.layers):
            low, high = self.intervals[i]
            row = {"layer": layer, "score": self.by_layer[i], "low": low, "high": high}
            rows.append(row | ({"untrained": self.untrained.by_layer[i]} if self.untrained else {}))
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python values, ready for JSON."""
        return asdict(self)

    def __repr__(self) -> str:
        return f"BesidePeople({' '.join(self.sentences())})"

    def sentences(self) -> list[str]:
        """What came out, in words: the layer, the ceiling, the untrained twins, the choice of the layer, chance."""
        low, high = self.interval
        lines = [
            f"{self.best} agrees most with {self.what}: Spearman {self.score:.3f}, 95 % interval {low:.2f} to "
            f"{high:.2f}, on {self.n} {self.stimuli}."
        ]
        if self.ceiling is not None:
            least, most = self.ceiling
            place = "beyond" if self.score > most else "within" if self.score >= least else "below"
            share = f": {max(0.0, self.score) / least:.0%} of its lower bound" if place == "below" and least > 0 else ""
            lines.append(
                f"A perfect model would reach {least:.3f} to {most:.3f} (noise ceiling); this is {place} it{share}."
            )
        lines += self._beside_untrained()
        judged = self.held_out
        chosen = max(judged.layers, key=judged.layers.__getitem__)
        lines.append(
            f"Where the layer is chosen on one half of the {self.stimuli} and judged on the other, it has "
            f"{judged.score:.3f}; {chosen} is chosen most often."
        )
        beyond = "more than chance" if self.p <= 0.05 else "no more than chance explains"
        lines.append(f"The best layer of shuffled {self.stimuli} has {self.chance:.3f} (p = {self.p:.3f}): {beyond}.")
        return lines

    def _beside_untrained(self) -> list[str]:
        if self.untrained is None:
            return []
        twins, (low, high) = self.untrained, self.untrained.interval
        verdict = (
            "training made it more alike" if low > 0
            else "training made it less alike" if high < 0
            else "that training made it more alike is not certain"
        )  # fmt: skip
        one = len(twins.scores) == 1
        who = "Its untrained twin reaches" if one else f"Its {len(twins.scores)} untrained twins reach on average"
        return [
            f"{who} {np.mean(twins.scores):.3f}, {twins.gain:+.3f} from there to the model (95 % interval {low:+.2f} "
            f"to {high:+.2f}): {verdict}."
        ]

    def panel(self) -> LineChart:
        """Scores along the layers, with the untrained twins' and the noise ceiling; bars are 95 % intervals."""
        from unrolled.figures import LineChart, Series

        x = [float(i) for i in range(len(self.layers))]
        half = [(high - low) / 2 for low, high in self.intervals]
        series = [Series(label="this model", x=x, y=self.by_layer, error=half, color=0)]
        if self.untrained is not None:
            twins = self.untrained
            error = twins.spread if len(twins.scores) > 1 else None
            series.append(Series(label="untrained", x=x, y=twins.by_layer, error=error, color=1, dashed=True))
        ends = [x[0], x[-1]] if len(x) > 1 else x
        for name, bound in zip(("ceiling, lower", "ceiling, upper"), self.ceiling or (), strict=False):
            series.append(Series(label=name, x=ends, y=[bound] * len(ends), color=2, dashed=True))
        return LineChart(title=f"Spearman with {self.what}", x_label="layer, from the input", series=series)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw `panel`; see `unrolled.figures.Panel.plot`."""
        return self.panel().plot(ax)


def beside_people(
    features: LayerFeatures, people: Array, *, what: str = "people", stimuli: str = "stimuli",
    untrained: Sequence[LayerFeatures] = (), draws: int = 200, halves: int = 20, seed: int = 0,
) -> BesidePeople:  # fmt: skip
    """Compare the layers of a model with what people find alike.

    Dissimilarity of two stimuli is 1 - Pearson correlation of their features. Every person's ranks of all pairs are
    correlated with the layer's; the score is the mean over people.

    Args:
        features: of n stimuli, in any form that `compare` takes: layer -> [n, d].
        people: their dissimilarities [s, n, n] of the same stimuli in the same order, or [n, n] of one.
        what, stimuli: whom and what, in words, for the sentences.
        untrained: features of the same stimuli and layers by twins with fresh weights.
        draws: resamplings for intervals, and shufflings for chance; the smallest p is 1 / (draws + 1).
        halves: how often the stimuli are halved to choose the layer on one half and judge it on the other, both ways.
        seed: of all these draws.

    Raises:
        ValueError: as `checked_rdms`; features of another number of stimuli, or none of whose layers tells them apart;
            twins with other layers; too few draws.
    """
    if draws < 10 or halves < 1:
        raise ValueError(f"draws must be at least 10 and halves at least 1, got {draws} and {halves}")
    judged = checked_rdms(people, "people")
    n = judged.shape[-1]
    if n < _HALVED:
        raise ValueError(f"people has {n} stimuli: at least {_HALVED} are needed, {_HALVED // 2} in each half")
    known = _distances(features, n, "features")
    constant = [name for name, rdm in known.items() if _flat(rdm)]
    layers = [name for name in known if name not in constant]
    if not layers:
        raise ValueError(
            f"features: no layer tells the {n} stimuli apart, all pairs are equally dissimilar; is the model dead, or "
            "its input constant?"
        )
    stack = np.stack([known[name] for name in layers])
    ranks, theirs = unit_ranks(upper(stack)), unit_ranks(upper(judged))
    scores = (ranks @ theirs.T).mean(1)
    best = int(scores.argmax())
    shuffled = shuffled_best(ranks, theirs.mean(0), n, draws, np.random.default_rng(seed))
    twins = [_distances(each, n, f"untrained[{i}]") for i, each in enumerate(untrained)]
    by_twin = np.array([[_score(twin, layer, theirs) for layer in layers] for twin in twins])
    tops = [int(row.argmax()) for row in by_twin]
    everything = np.concatenate([stack, *(twin[layers[top]][None] for twin, top in zip(twins, tops, strict=True))])
    generator = np.random.default_rng(seed)
    resampled = np.stack([resampled_scores(everything, judged, generator) for _ in range(draws)])
    bounds = np.quantile(resampled[:, : len(layers)], [0.025, 0.975], axis=0).T
    intervals = [(float(low), float(high)) for low, high in bounds]
    return BesidePeople(
        what=what, stimuli=stimuli, n=n, people=len(judged), layers=layers, by_layer=scores.tolist(),
        intervals=intervals, best=layers[best], score=float(scores[best]), interval=intervals[best],
        ceiling=noise_ceiling(judged) if len(judged) > 1 else None, chance=float(np.mean(shuffled)),
        p=share_at_least(shuffled, float(scores[best])), held_out=_held_out(layers, stack, judged, halves, seed),
        untrained=_untrained(layers, by_twin, tops, resampled, best, float(scores[best]), seed), constant=constant,
    )  # fmt: skip


def _distances(features: LayerFeatures, n: int, name: str) -> dict[str, Array]:
    """layer -> [n, n] correlation distances."""
    out = {}
    for layer, values in named_layers(features, name):
        rows = as_rows(values, f"{name}: {layer}")
        if len(rows) != n:
            raise ValueError(f"{name}: {layer} has {len(rows)} rows and people {n} stimuli: give a row a stimulus")
        out[layer] = correlation_rdms([rows.cpu()])[0]
    return out


def _flat(rdm: Array) -> bool:
    return bool(np.ptp(upper(rdm)) <= _FLAT)


def _score(twin: Mapping[str, Array], layer: str, theirs: Array) -> float:
    """Mean over people's unit ranks; 0 where the layer tells nothing apart."""
    if layer not in twin:
        raise ValueError(f"untrained: has no layer {layer!r}; give features of the same layers")
    return 0.0 if _flat(twin[layer]) else float((theirs @ unit_ranks(upper(twin[layer]))).mean())


def _untrained(
    layers: list[str], by_twin: Array, tops: list[int], resampled: Array, best: int, score: float, seed: int
) -> Untrained | None:
    if not tops:
        return None
    model, twins = resampled[:, best], resampled[:, len(layers) :]
    drawn = np.random.default_rng(seed).integers(len(tops), size=len(model))
    low, high = np.quantile(model - twins[np.arange(len(model)), drawn], [0.025, 0.975])
    scores = by_twin.max(1)
    return Untrained(
        scores=scores.tolist(), layers=[layers[top] for top in tops], by_layer=by_twin.mean(0).tolist(),
        spread=(by_twin.std(0, ddof=1) if len(tops) > 1 else 0 * by_twin[0]).tolist(),
        gain=score - float(scores.mean()), interval=(float(low), float(high)),
    )  # fmt: skip


def _held_out(layers: list[str], stack: Array, people: Array, halves: int, seed: int) -> HeldOutLayer:
    generator = np.random.default_rng(seed)
    n = stack.shape[-1]
    scores: list[float] = []
    chosen: Counter[str] = Counter()
    for _ in range(halves):
        order = generator.permutation(n)
        by_half = []
        for part in (order[: n // 2], order[n // 2 :]):
            some = np.ix_(part, part)
            ours, theirs = (unit_ranks(upper(np.stack([rdm[some] for rdm in rdms]))) for rdms in (stack, people))
            by_half.append((ours @ theirs.T).mean(1))
        for choose, judge in ((0, 1), (1, 0)):
            top = int(by_half[choose].argmax())
            chosen[layers[top]] += 1
            scores.append(float(by_half[judge][top]))
    counts = {name: chosen[name] for name in layers if chosen[name]}
    return HeldOutLayer(score=float(np.mean(scores)), layers=counts, n=n // 2)
