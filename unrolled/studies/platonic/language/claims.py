"""What is claimed of language models beside image networks, and how it is read off the results."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from unrolled.studies.claim import CONTROL, NOBODY, SHARE, Claim
from unrolled.studies.platonic.language.cells import CIFAR, LanguageConfig
from unrolled.studies.platonic.language.view import View, Vision, last_layer, partial_trend, trend
from unrolled.studies.results import Estimate, Results, Values
from unrolled.studies.statistics import spearman

_PAPER = "arXiv 2405.07987, section 2 and figure 3"
_DOWNSTREAM = "arXiv 2405.07987, figure 4"
TRENDS = 7
"""Trends over the same few models that are looked at: their intervals are corrected for their number."""
LEVEL = f"{100 - 5 / TRENDS:.1f} %"
_MESA = "arXiv 2309.05858, discussion: mesa-optimisation may underlie the in-context learning of large language models"


def _of(read: Callable[[View], Any]) -> Callable[[Results[Any], LanguageConfig], Any]:
    return lambda results, config: read(View(results, config))


def _trend(
    statement: str, value: Callable[[View], Any], detail: Callable[[View], str] = lambda view: "", **judged: Any
) -> Claim:
    """One of `TRENDS`."""
    return Claim(
        statement=statement,
        value=_of(value),
        low=0.0,
        spec=".2f",
        detail=_of(lambda view: f"; one of {TRENDS} trends: interval at {LEVEL}{detail(view)}"),
        **{"source": _PAPER, "published": "about linear, rising", **judged},
    )


def _counted(view: View) -> str:
    models = view.trained
    given = len(view.given)
    control = spearman([-model.general for model in models], [model.shuffled for model in models])
    shuffled = f"; with shuffled captions {control:.2f}" if math.isfinite(control) else ""
    return f"; {len(models)} models, {given} of them trained by others{shuffled}"


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


def _stand_in(what: str, statement: str, published: str) -> Claim:
    return _trend(
        statement,
        lambda view: trend(view.trained, what, of=TRENDS),
        source=f"{_DOWNSTREAM}; another task, far smaller models",
        published=published,
        outside="models whose agreement has nothing to do with the task: 0",
    )


CLAIMS = (
    Claim(
        statement="Share of pairs of trained models beyond chance (5 % false discoveries, search over layers "
        "corrected)",
        source="arXiv 2602.14486: all 204 pairs of the paper's models at p < 0.05",
        published="1",
        value=_of(lambda view: view.beyond(True)),
        low=1.0,
        within=SHARE,
        outside="pairs that agree by chance",
        control=_of(lambda view: view.beyond(False)),
        spec=".2f",
        detail=_of(lambda view: view.tally),
    ),
    _trend(
        "Better language models agree more with vision (rank correlation of 1 - bits per byte on general text and "
        "score above chance, mean over image networks)",
        lambda view: trend(view.trained, "general", sign=-1.0, of=TRENDS),
        _counted,
        outside="models whose agreement has nothing to do with how well they predict: 0",
    ),
    _trend(
        "The same with bits per byte on captions",
        lambda view: trend(view.trained, "captions", sign=-1.0, of=TRENDS),
        unjudged="general text is the source's axis (OpenWebText): captions are a second reading of it",
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
    _trend(
        "The same on photos of COCO (general text)",
        lambda view: trend(view.trained, "general", "coco", sign=-1.0, of=TRENDS),
        lambda view: f"; n = {view.n_coco} photos, {len(view.config.coco_images)} networks",
        outside="models whose agreement has nothing to do with how well they predict: 0",
    ),
    Claim(
        statement="Text models come in the same order on both collections (rank correlation of score above chance on "
        "Flickr8k and on COCO, the same networks)",
        source=NOBODY,
        published="no number",
        value=_of(lambda view: trend(view.languages(view.config.readers), "beside_coco", "coco")),
        low=0.0,
        unjudged=NOBODY,
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
    _trend(
        "Better image networks agree more with language (rank correlation of a linear probe of CIFAR-10 and score "
        "above chance, mean over text models; networks that learnt nothing of CIFAR-10)",
        lambda view: trend(_unseen(view), "accuracy", of=TRENDS),
        lambda view: f"; {len(_unseen(view))} networks",
        published="rising",
        outside="networks whose agreement has nothing to do with their probe: 0",
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
    _trend(
        "Larger language models lay colours out more as people see them (rank correlation of parameters and r^2 with "
        "CIELAB, layer at half depth)",
        lambda view: trend(view.trained, "size", "colours", of=TRENDS),
        source="Abdou et al. 2021, as arXiv 2405.07987 cites it",
        published="rising, no number",
        outside="models whose colours have nothing to do with their size: 0",
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
    Claim(
        statement="A tuned prompt makes it learn more in context, and its untrained twin less so (loss of values late "
        "in a sequence of pairs of words less that early, nats: after a tuned prompt less after random vectors as "
        "long, of the model less of the twin)",
        source=_MESA,
        published="below 0",
        value=_of(lambda view: view.of_prompt("score") - view.of_prompt("score", twin=True)),
        high=0.0,
        outside="prompts that only say what words there are: 0",
        spec=".2f",
        detail=_of(
            lambda view: (
                f" ({view.of_prompt('score'):.2f} of the model, {view.of_prompt('score', twin=True):.2f} of the twin)"
            )
        ),
    ),
    Claim(
        statement="And it predicts better what only the context says (nats of the late values, after a tuned prompt "
        "less after random vectors as long; added when one seed had been seen)",
        source=NOBODY,
        published="no number",
        value=_of(lambda view: view.of_prompt("late")),
        high=0.0,
        unjudged="knowing what words there are lowers it too",
        spec=".2f",
        detail=_of(lambda view: f" (untrained twin {view.of_prompt('late', twin=True):.2f})"),
    ),
    Claim(
        statement="And its layers descend the objective of their own context more (difference of the mesa-objective as "
        "above, tuned less random)",
        source=_MESA,
        published="asked, no number",
        value=_of(lambda view: view.of_prompt("descent")),
        low=0.0,
        unjudged=NOBODY,
        detail=_of(lambda view: f" (untrained twin {view.of_prompt('descent', twin=True):.3f})"),
    ),
)
