"""Language models whose layers are softmax, linear, delta-rule or mesa attention, and hybrids that start with softmax.

Claim (arXiv 2309.05858, appendix): behind a first softmax layer, mesa layers predict text better than linear ones and
gain more from a longer context, at every size; beside an all-softmax model they are level with 2 layers and behind with
4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

import torch

from unrolled.models.sequence_config import LanguageConfig
from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.claim import Claim
from unrolled.studies.language import (
    ByteModel,
    Counts,
    Predicted,
    TextConfig,
    bits,
    least_favourable,
)
from unrolled.studies.results import NOT_RUN, Results, Values
from unrolled.studies.study import AtLeast, Budgets, Count, Distinct, Rate, Seeds, Study

if TYPE_CHECKING:
    from unrolled.report import LineChart, Report

Model = Literal["softmax", "linear", "delta", "mesa", "hybrid-linear", "hybrid-delta", "hybrid-mesa"]
MODELS: tuple[Model, ...] = get_args(Model)
MIXTURE = "brown+bronte+darwin+tinyshakespeare+wikitext2-small"
_SOURCE = "arXiv 2309.05858, figures 26 to 28"
_COLORS = {"softmax": 0, "linear": 1, "delta": 2, "mesa": 3}
_BIN = 8


@dataclass(kw_only=True)
class MesaTextConfig(TextConfig):
    """Budgets change sizes, steps and seeds. The first corpus and depth get every model and seed, the rest a few."""

    budgets: ClassVar[Budgets] = {
        "quick": {
            **{"corpora": ("tinyshakespeare",), "depths": (2,), "models": ("softmax", "hybrid-linear", "hybrid-mesa")},
            **{"seeds": (0,), "steps": 100, "rates": (1e-2,), "test_bytes": 20_000, "val_bytes": 4_000},
        },
        "cpu": {},
        "gpu": {
            **{"corpora": ("brown", "bronte", "tinyshakespeare"), "compared": MODELS},
            **{"seeds": (0, 1, 2), "seeds_elsewhere": 3, "steps": 4000, "dim": 512, "heads": 8, "length": 1024},
            **{"mlp_from": 3, "batch_size": 32, "early": 32, "late": 992, "window": 16},
            **{"test_bytes": 10**9, "val_bytes": 200_000, "device": "cuda"},
        },
    }

    corpora: Annotated[tuple[str, ...], Distinct()] = (MIXTURE,)
    """Names of `unrolled.data.text.open_text`, several with a plus between them for their mixture; the paper's is the
    Pile."""
    depths: Annotated[tuple[int, ...], Distinct(), AtLeast(2)] = (2, 4)
    """Layers."""
    mlp_from: Count = 2
    """Models of so many layers have a ReLU MLP in each. The paper's has 3: its 2 layers are attention alone, which at
    this budget do not even learn which byte follows which."""
    models: tuple[Model, ...] = MODELS
    """Of the first corpus and depth."""
    compared: tuple[Model, ...] = ("softmax", "hybrid-linear", "hybrid-mesa")
    """Models of the other corpora and depths, which the claims are about."""
    seeds: Seeds = (0, 1, 2)
    """One training for each, of the compared models at the first corpus and depth: initial weights and excerpts."""
    seeds_elsewhere: Count = 1
    """How many of them everything else gets."""
    dim: Count = 128
    """Width; the paper's 756."""
    heads: Count = 4
    """Heads; the paper's 12."""
    length: Count = 256
    """Bytes of context; the paper's 1024 are GPT-2 tokens."""
    batch_size: Count = 4
    steps: Count = 3906
    """Training steps; by default 4 million bytes."""
    optimizer: Literal["adamw", "muon"] = "muon"
    """AdamW for all, or Muon for the matrices of the layers. With AdamW at 3e-3 and 0.6 million bytes, softmax and
    hybrids were worse than a table of bigrams."""
    rates: Annotated[tuple[Rate, ...], Distinct()] = (3e-3, 1e-2, 3e-2)
    """Peak learning rates that every model of every size tries with the seed 0."""
    trial_steps: Count = 488
    """Steps of each trial."""
    table_std: Rate = 0.2
    """Standard deviation of the initial tables of bytes and positions, as in `crate-bytes`."""
    early: Annotated[int, AtLeast(0)] = 8
    """First position of the score's early window, counted from 0."""
    late: Count = 240
    """First position of its late window."""
    window: Count = 8
    points: Count = 8
    val_bytes: Count = 40_000
    """At most so many bytes of the validation part are predicted."""

    @property
    def plan(self) -> Iterator[tuple[str, int, Model, int]]:
        """Corpus, depth, model and seed of every training."""
        for corpus in self.corpora:
            for depth in self.depths:
                first = (corpus, depth) == (self.corpora[0], self.depths[0])
                if not first and corpus != self.corpora[0] and depth != self.depths[0] and self.seeds_elsewhere == 1:
                    continue  # with one seed elsewhere, one size of each further corpus is enough
                for model in self.models if first else self.compared:
                    whole = first and model in self.compared
                    for seed in self.seeds if whole else self.seeds[: self.seeds_elsewhere]:
                        yield corpus, depth, model, seed


@dataclass(frozen=True, kw_only=True)
class Layered(ByteModel):
    """A model of layers of one kind, the first softmax in a hybrid.

    Attributes:
        second: half of a layer behind the attention, `relu` or `none`.
    """

    second: str

    @property
    def frame(self) -> LanguageConfig:
        """GPT-2's frame but for the layers, the MLP and the output matrix."""
        kind = self.model.removeprefix("hybrid-")
        layers = ("softmax" if self.model.startswith("hybrid-") else kind,) + (kind,) * (self.depth - 1)
        return LanguageConfig(
            vocab_size=256,
            layers=layers,
            dim=self.dim,
            heads=self.heads,
            second=self.second,
            max_length=self.length,
            tied=False,  # attention alone has no other path for which byte follows which
            layer_args={name: {"normalize": True} for name in ("linear", "mesa") if name in layers},
        )


@dataclass(frozen=True, kw_only=True)
class Tables(Counts):
    """What has no context beyond one byte, on the test part: how often a byte comes, and how often after another."""

    def compute(self, context: Context) -> Result:
        """`unigram` and `bigram`, each as `Windows.of`; `sizes` of the parts."""
        train, rows, sizes = self.parts(context)
        single = torch.bincount(train, minlength=256).double() + 1
        unigram = single / single.sum()
        pairs = torch.bincount(train[:-1] * 256 + train[1:], minlength=256 * 256).double().view(256, 256)
        bigram = (pairs + unigram) / (pairs.sum(1, keepdim=True) + 1)
        return {
            "unigram": self.windows.of(-unigram.log()[rows[:, 1:]]),
            "bigram": self.windows.of(-bigram.log()[rows[:, :-1], rows[:, 1:]]),
            "sizes": sizes,
        }


def cells(config: MesaTextConfig) -> Iterator[Cell]:
    """The tables of every corpus, then every model, tested beside itself untrained on a few excerpts."""
    for corpus in config.corpora:
        yield Tables(corpus=corpus, length=config.length, test_bytes=config.test_bytes, windows=config.windows)
    for corpus, depth, model, seed in config.plan:
        names = ("length", "batch_size", "dim", "heads", "steps", "points", "rates", "optimizer", "val_bytes")
        trained = Layered(
            **{name: getattr(config, name) for name in names},
            corpus=corpus,
            depth=depth,
            model=model,
            seed=seed,
            table_stds=(config.table_std,),
            trial_steps=config.trial_steps if len(config.rates) > 1 else 0,
            second="relu" if depth >= config.mlp_from else "none",
        )
        untrained = replace(trained, steps=0, points=1, rates=config.rates[:1], trial_steps=0)
        few = min(32 * (config.length + 1), config.test_bytes)
        for network, test_bytes in ((trained, config.test_bytes), (untrained, few)):
            yield network
            yield Predicted(network=network, test_bytes=test_bytes, windows=config.windows)


def in_words(corpus: str) -> str:
    """What a page calls a corpus, or a mixture of several."""
    return "the mixture" if "+" in corpus else corpus


def on_test(
    results: Results[Any], corpus: str, depth: int, model: str, *, untrained: bool = False
) -> Results[Predicted]:
    """Losses of a model on the test part, one row a seed."""
    rows = results.of(Predicted, corpus=corpus, depth=depth, model=model)
    return Results(row for row in rows if (row.cell.network.steps == 0) == untrained)


def _differences(
    results: Results[Any], config: MesaTextConfig, other: str, path: str, depth: int | None
) -> dict[str, Values]:
    """Of `hybrid-mesa` less another model, by place, where both are."""
    differences = {}
    for corpus, layers in product(config.corpora, config.depths):
        ours, theirs = (on_test(results, corpus, layers, model).values(path) for model in ("hybrid-mesa", other))
        if (values := ours - theirs) and depth in (None, layers):
            differences[f"{in_words(corpus)}, {layers} layers"] = values
    return differences


def _claim(other: str, path: str, worst: Callable[[Values], float], depth: int | None = None, **claim: Any) -> Claim:
    """About a difference of `hybrid-mesa` to another model, judged where it is least favourable."""

    def worst_first(results: Results[Any], config: MesaTextConfig) -> tuple[Values, str]:
        return least_favourable(_differences(results, config, other, path, depth), worst)

    return Claim(
        value=lambda results, config: worst_first(results, config)[0],
        detail=lambda results, config: worst_first(results, config)[1],
        source=_SOURCE,
        **claim,
    )


# the least favourable place decides
CLAIMS = (
    _claim(
        *("hybrid-linear", "loss", lambda values: values.mean),
        statement="Hybrid-mesa predicts better than hybrid-linear everywhere (largest difference of losses, nats per "
        "byte)",
        published="lower at every size; figures only, no numbers",
        high=0.0,
        outside="layers that learn as fast: 0",
    ),
    _claim(
        *("hybrid-linear", "score", lambda values: values.mean),
        statement="Hybrid-mesa gains more from context than hybrid-linear everywhere (largest difference of scores)",
        published="lower at every size; figures only, positions of the score not stated",
        high=0.0,
        unjudged="scores of models this small are noise, and the source does not say which positions it compares",
    ),
    _claim(
        *("softmax", "loss", lambda values: abs(values.mean), 2),
        statement="With 2 layers hybrid-mesa is level with softmax (difference of losses, nats per byte)",
        published="about 0; figures only",
        unjudged="the figures do not say how level; 0.05 either way was wider than what is called better above",
    ),
    _claim(
        *("softmax", "loss", lambda values: -values.mean, 4),
        statement="With 4 layers hybrid-mesa is behind softmax (difference of losses, nats per byte)",
        published="above 0; figures only",
        low=0.0,
        outside="models that are level: 0",
    ),
)


def report(report: Report, config: MesaTextConfig, results: Results[Any]) -> None:
    """Headline, every model beside the tables, losses by position, validation losses, limits."""
    _headline(report, config, results)
    _models(report, config, results)
    _figures(report, config, results)
    report.section(
        "Limits",
        f"The paper trains wider models (756, context 1024 tokens) on the Pile. Here the width is {config.dim}, the "
        f"context {config.length} bytes, and a model sees {_seen(config) / 1e6:.2f} million bytes: every cell is far "
        f"below the paper's steps. {_rates(config)} "
        "The paper does not say between which positions its score is taken: here it is the mean loss at positions "
        f"{config.late} to {config.late + config.window - 1} less that at {config.early} to "
        f"{config.early + config.window - 1}, counted from 0. Of the paper's sizes the one-layer model with shifted "
        f"keys is left out, and models have MLPs from {config.mlp_from} layers on (the paper's from 4). Keys and "
        "queries are l2-normalised, without the feature map the paper gives its linear layers. The delta rule is not "
        "part of the paper's comparison. `wikitext2-small` trains on WikiText-2's validation part, so its numbers are "
        "not comparable with published ones.",
    )


def _rates(config: MesaTextConfig) -> str:
    rates = ", ".join(f"{rate:g}" for rate in config.rates)
    if len(config.rates) == 1:
        return f"All models share one learning rate ({rates}), which was not tuned for any."
    return (
        f"Every model of every size tried the learning rates {rates} for {config.trial_steps} steps with the seed 0 "
        "and learnt at the one with the lowest validation loss."
    )


def _seen(config: MesaTextConfig) -> int:
    return config.steps * config.batch_size * config.length


def _headline(report: Report, config: MesaTextConfig, results: Results[Any]) -> None:
    from unrolled.report import Fact

    corpus, depth = config.corpora[0], config.depths[0]
    losses: dict[str, Values] = {model: on_test(results, corpus, depth, model).values("loss") for model in MODELS}
    run_here = [model for model in MODELS if losses[model]]
    best = min(run_here, key=lambda model: losses[model].mean, default="softmax")
    shown = list(dict.fromkeys(["hybrid-mesa", "hybrid-linear", "softmax", best]))
    shown = [model for model in shown if model in run_here] or shown
    bigram = results.of(Tables, corpus=corpus).first("bigram.loss")
    trained = [row.result for row in results.of(Predicted) if row.cell.network.steps]
    helped = sum(result["score"] < -2 * result["score_error"] for result in trained)
    report.headline(
        f"On {in_words(corpus)} with {depth} layers the held-out loss is "
        + ", ".join(f"{losses[model]:.3f} ({model})" for model in shown)
        + f" nats per byte after {_seen(config) / 1e6:.2f} million bytes; a bigram table has "
        f"{NOT_RUN if bigram is None else f'{bigram:.3f}'}. "
        + (
            f"{helped} of {len(trained)} trainings lose less late in the context than early (two errors)."
            if helped
            else "No model loses less late in the context than early, so that scores compare noise."
        ),
        [
            *(Fact(label=f"Loss, {model}", value=f"{losses[model]:.3f}", detail="nats per byte") for model in shown),
            Fact(
                label="In-context score, hybrid-mesa",
                value=f"{on_test(results, corpus, depth, 'hybrid-mesa').values('score'):.3f}",
                detail=f"nats, positions {config.late}.. against {config.early}..",
            ),
        ],
    )


def _models(report: Report, config: MesaTextConfig, results: Results[Any]) -> None:
    section = report.section(
        "Every model",
        "Loss and bits per byte are on the test part, which nothing was chosen by. The in-context score is the loss "
        "late in the context less the loss early: the more negative, the more a longer context helps. A bigram table "
        "has no context, so its score is only how much harder the late bytes of these excerpts are. Untrained models "
        "are near ln 256 = 5.545 and a score of 0.",
    )
    for corpus in config.corpora:
        rows: list[list[Any]] = []
        for depth in config.depths:
            for model in dict.fromkeys((*config.models, *config.compared)):
                scores = on_test(results, corpus, depth, model)
                if not scores:
                    rows.append([depth, model, *[NOT_RUN] * 8])
                    continue
                network = results.of(Layered, corpus=corpus, depth=depth, model=model, steps=config.steps)
                before = on_test(results, corpus, depth, model, untrained=True).values("loss")
                loss = scores.values("loss")
                rows.append(
                    [
                        *(depth, model, f"{network.first('parameters.all'):,}", f"{network.first('rate'):g}"),
                        len(scores),
                        *(f"{loss:.3f}", f"{loss.map(bits):.3f}", f"{scores.values('score'):.3f}"),
                        *(f"{scores.values('score_error').mean:.3f}", f"{before.mean:.3f}"),
                    ]
                )
        tables = results.of(Tables, corpus=corpus)
        for name in ("unigram", "bigram") if tables else ():
            counts = tables.first(name)
            numbers = (counts["loss"], bits(counts["loss"]), counts["score"], counts["score_error"])
            rows.append(["", f"{name} table", "", "", "", *(f"{number:.3f}" for number in numbers), ""])
        sizes = tables.first("sizes", dict.fromkeys(("train", "val", "test"), 0))
        section.table(
            [
                *("layers", "model", "parameters", "rate", "seeds", "loss", "bits per byte", "score", "its error"),
                "untrained loss",
            ],
            rows,
            caption=f"{corpus.replace('+', ', ')}: {sizes['train']:,} bytes for training, {sizes['val']:,} for "
            f"validation, {sizes['test']:,} for the test (at most {config.test_bytes:,} used). Every model saw "
            f"{_seen(config):,} bytes. Loss in nats per byte, ± one standard deviation over seeds; the error of "
            "the score is its standard error over excerpts.",
        )


def _figures(report: Report, config: MesaTextConfig, results: Results[Any]) -> None:
    from unrolled.report import LineChart, Series

    corpus, depth = config.corpora[0], config.depths[0]
    starts = range(0, config.length - _BIN + 1, _BIN)
    where = [start + (_BIN - 1) / 2 for start in starts]

    def binned(result: Mapping[str, Any]) -> list[float]:
        return [fmean(result["curve"][start : start + _BIN]) for start in starts]

    def panel(hybrids: bool) -> LineChart | None:
        lines = [
            rows.curve(model, binned, x=where, color=_COLORS[model.removeprefix("hybrid-")])
            for model in MODELS
            if (model == "softmax" or model.startswith("hybrid-") == hybrids)
            and (rows := on_test(results, corpus, depth, model))
        ]
        for row in results.of(Tables, corpus=corpus):
            lines.append(Series(label="bigram table", x=where, y=binned(row.result["bigram"]), color=4, dashed=True))
        title = "test loss, first layer softmax" if hybrids else "test loss, layers of one kind"
        title = f"{title} (nats per byte)"
        return LineChart(title=title, x_label="position in the context", series=lines) if lines else None

    if panels := [chart for hybrids in (False, True) if (chart := panel(hybrids))]:
        report.section("By position").figure(
            panels,
            name="positions",
            caption=f"{in_words(corpus)}, {depth} layers, mean over seeds and over {_BIN} neighbouring positions; bars "
            "are one standard deviation where there are several seeds.",
        )
    training = [
        rows.curve(
            model,
            "validation",
            "loss",
            color=_COLORS[model.removeprefix("hybrid-")],
            dashed=not model.startswith("hybrid-") and model != "softmax",
        )
        for model in MODELS
        if (rows := results.of(Layered, corpus=corpus, depth=depth, model=model, steps=config.steps))
    ]
    if training:
        report.section("During training").figure(
            LineChart(title="validation loss (nats per byte)", x_label="training step", series=training),
            name="training",
            caption=f"{in_words(corpus)}, {depth} layers, mean over seeds; bars are one standard deviation where "
            "there are several. The untrained models (5.545) are left out of the picture.",
        )


STUDY = Study(
    name="mesa-language",
    title="Mesa layers as language models",
    question="Do mesa layers predict text better than linear ones, and gain more from a longer context?",
    citation="J. von Oswald et al., Uncovering mesa-optimization algorithms in Transformers, arXiv 2309.05858",
    config=MesaTextConfig,
    cells=cells,
    claims=CLAIMS,
    report=report,
)
