"""The page of `crate-denoising`: steps beside the score, stacks, the way back, trained masked autoencoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import log2
from typing import TYPE_CHECKING, Any

from unrolled.studies.cells import Columns
from unrolled.studies.crate.compared import of_kind
from unrolled.studies.crate.denoising.cells import DenoisingConfig, base, points
from unrolled.studies.crate.denoising.claims import at, cosine, left, stacks, undone, where
from unrolled.studies.crate.denoising.steps import STACKS, STEPS, Steps
from unrolled.studies.crate.masked import EPS, MaskedLayers
from unrolled.studies.results import NOT_RUN, Results, Values

if TYPE_CHECKING:
    from unrolled.report import HeatMap, Report, Series

_CHARTED = (
    *("softmax over heads", "R^c of a token", "R^c of all tokens"),
    *("MSSA(Z) - Z", "a MSSA(Z) - Z", "a MSSA(Z) - Z, unlimited"),
)
_SHORT = {
    "published, random subspaces": "random",
    "softmax over heads": "softmax",
    "R^c of a token": "R^c, token",
    "R^c of all tokens": "R^c, all",
    "MSSA(Z) - Z": "MSSA - Z",
    "a MSSA(Z) - Z": "a MSSA - Z",
    "a MSSA(Z) - Z, unlimited": "unlimited",
}


def report(report: Report, config: DenoisingConfig, results: Results[Any]) -> None:
    """Headline, steps, stacks, the way back, trained networks, limits."""
    from unrolled.report import Fact

    along = {step: cosine(results, config, step) for step in STEPS}
    report.headline(
        f"At {where(config)}, the cosine with the score (1: the same direction) is "
        f"{along['softmax over heads']:.2f} for a softmax over heads, {along['R^c of a token']:.2f} for -grad R^c of "
        f"one token, {along['R^c of all tokens']:.2f} for -grad R^c of all tokens and {along['MSSA(Z) - Z']:.2f} for "
        f"MSSA(Z) - Z. {config.layers} published layers change the squared error by a factor of "
        f"{left(results, config):.2f} (below 1 they denoise).",
        [
            Fact(
                label="-grad R^c and the score",
                value=f"{along['R^c of all tokens']:.2f}",
                detail="mean cosine over tokens; 1: the same direction",
            ),
            Fact(
                label="MSSA(Z) - Z and the score",
                value=f"{along['MSSA(Z) - Z']:.2f}",
                detail="mean cosine over tokens",
            ),
            Fact(
                label="Error with the decoder / without",
                value=f"{undone(results, config):.3f}",
                detail=f"{config.layers} layers, {_draws(config)}",
            ),
        ],
    )
    _steps(report, config, results)
    _stacks(report, config, results)
    _reversal(report, config, results)
    _trained(report, config, results)
    _limits(report)


def _steps(report: Report, config: DenoisingConfig, results: Results[Any]) -> None:
    from unrolled.report import LineChart

    section = report.section(
        "Steps beside the score",
        "Tokens Z are drawn from a mixture of subspaces U_k with noise sigma, in units of the signal. Its score, the "
        "gradient of the log density, is known in closed form, and sigma^2 times it, the best denoiser minus the "
        "token, is what a step should be. R^c is the coding rate within the subspaces, which CRATE's attention MSSA "
        "is derived to lower. The subspaces are the true ones, and nothing is trained.",
    )
    here = at(results, config)
    section.table(
        ["step", "what it is", "cosine", "error", "of the best removed"],
        [
            [step, words, *(f"{here.values(f'steps.{step}.{key}'):.3f}" for key in ("cosine", "error", "removed"))]
            for step, words in STEPS.items()
        ],
        caption=f"Steps at sigma {config.noise:g}, {config.heads} orthogonal subspaces, {config.tokens} tokens, "
        f"published temperature; mean and standard deviation over {_draws(config)}. Cosine: with sigma^2 times the "
        "score, mean over tokens. Error: of the best common multiple of the step, relative to the score step (1 is no "
        "better than no step). Of the best removed: the share of the squared error removed by the best multiple of the "
        "step, over what the best denoiser removes.",
    )
    panels = [
        LineChart(
            title="cosine with the score",
            x_label="log2 of sigma (0: noise as strong as signal)",
            series=[
                _sweep(config, results, step, "noise", config.noises, color) for color, step in enumerate(_CHARTED)
            ],
            y_range=(-1.0, 1.05),
        )
    ]
    panels += [
        LineChart(
            title=f"cosine with the score, sigma {noise:g}",
            x_label="log2 of temperature / published",
            series=[
                _sweep(config, results, step, "temperature", config.temperatures, color, noise=noise)
                for color, step in enumerate(_CHARTED[3:], 3)
            ],
            y_range=(-1.0, 1.05),
        )
        for noise in (0.1, 0.2, 0.4)
    ]
    section.figure(
        panels,
        name="cosines",
        caption="First: by noise. Others: by temperature of the softmax over tokens, 0 being the published one. "
        "Colder, a token attends to itself and its noise stays; warmer, attention averages everything and the token's "
        "own part is lost.",
    )
    section.table(
        ["setting", *(_short(step) for step in STEPS)],
        [
            [
                _changed(config, place),
                *(f"{results.of(Steps, **place).values(f'steps.{step}.cosine'):.2f}" for step in STEPS),
            ]
            for place in points(config)
        ],
        caption="Cosine of each step with the score where one or two settings differ from those of the table above. "
        "Temperature of the softmax over tokens: in units of the published one. Eps, the precision of R^c: in units of "
        "sigma sqrt(d). Errors and shares removed are in report.json.",
    )
    section.text(
        "What the formulas lead one to expect, to be held against the tables. Where the identification should hold: a "
        "softmax over heads is the score step itself up to shrinkage, in size and in sharpness. The gradient of R^c of "
        "one token by itself shrinks each head's projection w by 1 / (1 + p ||w||^2 / eps^2), most the heads that "
        "explain the token least, so it removes noise too, as long as the subspaces fill "
        "the space: directions outside all of them it leaves alone. MSSA(Z) - Z with a free output scale follows the "
        "score if tokens are unlimited: each head is then a sigmoid gate on ||U_k^T z||^2, a relative of the "
        "posterior.\n\n"
        "Where it should not: R^c of all tokens weighs directions by what all tokens have there, and with several "
        "equally filled subspaces that is the same in all of them. Its gradient then shrinks a token as a whole, "
        "signal and noise alike; its cosine with the score is only the noise's share of the token's norm, and rises "
        "with sigma. With a finite number of tokens the softmax of MSSA finds at most itself and a few neighbours: "
        "the number needed grows exponentially with ||w||^2 / tau: at the published temperature a token keeps much of "
        "its noise. A warmer softmax needs fewer tokens but averages the token's own part away, so there is a best "
        "temperature in between. Also, sharpness and gain hang on the same temperature: the one whose gate is as sharp "
        "as the posterior, sigma sqrt(s^2 + sigma^2), enlarges what passes by sqrt(s^2 + sigma^2) / sigma, which a "
        "learned output may undo (rows with a). MSSA(Z), added to the tokens as published, is a denoised token rather "
        "than a step towards it, so that only the normalisation that follows can turn it into denoising; its cosine "
        f"with the score is {cosine(results, config, 'MSSA(Z)'):.2f} in the first table."
    )


def _sweep(
    config: DenoisingConfig,
    results: Results[Any],
    step: str,
    axis: str,
    values: Sequence[float],
    color: int,
    **fixed: float,
) -> Series:
    """The mean cosine of a step where it was computed along an axis, whose scale is logarithmic."""
    from unrolled.report import Series

    means = {v: at(results, config, **fixed, **{axis: v}).values(f"steps.{step}.cosine").mean for v in values}
    return Series(label=_short(step), x=[log2(value) for value in means], y=list(means.values()), color=color)


def _stacks(report: Report, config: DenoisingConfig, results: Results[Any]) -> None:
    from unrolled.report import LineChart, Series

    depth = range(config.layers + 1)
    section = report.section(
        "Layer by layer",
        f"Tokens with sigma {config.layer_noise:g} go through {config.layers} equal layers with the true subspaces: "
        "`published` is Z + kappa MSSA(LN Z), `derived` (1 - kappa) Z + kappa MSSA(Z), `R^c` steps along its exact "
        "negative gradient, `score` Z + kappa sigma^2 score(Z). Tokens may be rescaled by one common factor before "
        "they are compared with the clean ones, so that growth by itself is no error.",
    )
    panels, table = [], []
    for rate in config.rates:
        if not (rows := stacks(results, config, rate)):
            continue
        before, best = rows.values("stacks.published.error.0"), rows.values("best")
        lines = [
            rows.curve(_short(kind), f"stacks.{kind}.error", x=depth, color=color, dashed="random" in kind)
            for color, kind in enumerate(STACKS)
        ]
        lines = [replace(line, error=None) for line in lines]  # six lines with bars would hide each other
        lines.append(Series(label="best", x=depth, y=[best.mean] * len(depth), color=5, dashed=True))
        panels.append(LineChart(title=f"squared error, kappa {rate:g}", x_label="layer", series=lines))
        for kind in STACKS:
            table.append(
                [
                    *(f"{rate:g}", kind, f"{before:.3f}"),
                    f"{rows.values(_lowest(kind)):.3f}",
                    f"{rows.values(_lowest(kind, place=True)):.0f}",
                    f"{rows.values(f'stacks.{kind}.error.-1'):.3f}",
                    " to ".join(_share(rows.values(f"stacks.{kind}.outside.{place}")) for place in (0, -1)),
                ]
            )
        outside = _share(rows.values("best_outside"))
        table.append([f"{rate:g}", "best denoiser", f"{before:.3f}", f"{best:.3f}", "1 step", f"{best:.3f}", outside])
    if not panels:
        section.text(f"{NOT_RUN}.")
        return
    section.figure(
        panels,
        name="stacks",
        caption=f"Squared distance to the clean tokens per signal energy, mean over {_draws(config)} of "
        f"{config.sets} x {config.tokens} tokens. Dotted: random subspaces instead of the true ones, and the best "
        "denoiser there is.",
    )
    section.table(
        ["kappa", "layers", "error at 0", "lowest error", "at layer", "last error", "energy outside own subspace"],
        table,
        caption="Squared distance to the clean tokens per signal energy. Kappa: size of the steps. Error at 0: before "
        "the first layer. At layer: after how many layers the error is lowest. Last error: after all of them. Energy "
        "outside own subspace: share of the tokens' energy, before the first and after the last layer.",
    )


def _lowest(kind: str, *, place: bool = False) -> Callable[[Mapping[str, Any]], float]:
    """The lowest error of a stack, or the layer after which it is."""

    def read(result: Mapping[str, Any]) -> float:
        errors = result["stacks"][kind]["error"]
        return float(errors.index(min(errors)) if place else min(errors))

    return read


def _share(values: Values) -> str:
    return f"{round(values.mean, 2) + 0.0:.2f}"  # no -0.00


def _reversal(report: Report, config: DenoisingConfig, results: Results[Any]) -> None:
    from unrolled.report import LineChart

    depth = range(config.layers + 1)
    section = report.section(
        "The way back",
        "The code after all published layers goes through the decoder's steps, Y - kappa MSSA(LN Y), with the "
        "encoder's subspaces in reverse order. MSSA is then evaluated where the encoder's step ended rather than where "
        "it began; iterating Y' = Z - kappa MSSA(LN Y') converges to the exact inverse where it converges at all, and "
        "the decoder's step is its first iteration.",
    )
    panels, table = [], []
    for rate in config.rates:
        if not (rows := stacks(results, config, rate)):
            continue
        ways = {"none": "none", "rescaled": "rescaled", "random": "random", "decoder": "decoder"}
        ways |= {f"{count} times": f"iterations.{count}" for count in rows.first("reverse.iterations")}
        drawn = list(ways.items())[1:-1]
        lines = [
            rows.curve(label, f"reverse.{path}", x=depth, dashed=label in ("rescaled", "random"))
            for label, path in drawn
        ]
        panels.append(
            LineChart(
                title=f"relative error, kappa {rate:g}",
                x_label="encoder layer to be restored",
                log_y=True,
                y_range=(1e-4, 20.0),
                series=[replace(line, error=None) for line in lines],
            )
        )
        for label, path in ways.items():
            errors = (rows.values(f"reverse.{path}.{layer}") for layer in _marks(config))
            table.append([f"{rate:g}", label, *map(_error, errors)])
    if not panels:
        section.text(f"{NOT_RUN}.")
        return
    section.figure(
        panels,
        name="reversal",
        caption="||Y - Z_l|| / ||Z_l|| where the decoder has undone layers L to l + 1. Read from right to left; "
        "less than 1e-4 is drawn at the bottom. "
        f"Mean over {_draws(config)}.",
    )
    section.table(
        ["kappa", "way back", *(f"to layer {k}" for k in _marks(config))],
        table,
        caption="Relative errors ||Y - Z_l|| / ||Z_l|| where layers above l are undone. Kappa: size of the steps. Way "
        "back: what undoes them. None: the code as it is; rescaled: its best multiple; random: a decoder with random "
        "subspaces; times: iterations towards the exact inverse. Where steps are as large as tokens (large kappa, "
        "first layers) the iteration need not converge, and errors of one layer are passed on to those before it.",
    )


def _trained(report: Report, config: DenoisingConfig, results: Results[Any]) -> None:
    states = {
        name: of_kind(results, MaskedLayers, "mae", config.data, trained=name == "trained")
        for name in ("trained", "untrained")
    }
    section = report.section("Trained CRATE-MAE")
    if not all(states.values()):
        section.text(f"{NOT_RUN}{'' if config.trained else ': asked for without trained models'}.")
        return
    section.text(
        f"CRATE-MAE of the roster on {config.measured} held-out images of {config.data}, three quarters of the patches "
        "removed. A step that denoises moves tokens towards their nearest subspace and lowers R^c; a step that is the "
        "reverse does the opposite. Nothing here knows a true score: trained tokens have no known distribution."
    )
    table = []
    for stack in ("encoder", "decoder"):
        for layer in range(len(states["trained"].first(stack))):
            for name, rows in states.items():
                numbers = {key: rows.values(f"{stack}.{layer}.{key}") for key in rows.first(f"{stack}.{layer}")}
                table.append(
                    [
                        *(stack, layer + 1, name),
                        *(f"{numbers[key]:.3f}" for key in ("nearest_before", "nearest_after")),
                        *(f"{numbers[key]:.1f}" for key in ("rate_before", "rate_after")),
                        f"{numbers['cosine']:.2f}",
                    ]
                )
    section.table(
        ["stack", "layer", "weights", "nearest before", "after", "R^c before", "after", "cosine with -grad R^c"],
        table,
        caption="Around each layer's attention step. Nearest: share of a token's energy in the one subspace, of the "
        f"layer's own, that holds most. R^c in nats, tokens of unit norm, eps {EPS}. Mean and standard deviation "
        f"over {states['trained'].values('mirror.all').count}.",
    )
    patches = ("all", "visible")
    section.figure(
        [_resemblance(rows, name, which) for name, rows in states.items() for which in patches],
        name="mirror",
        caption="Linear CKA of tokens after each encoder and decoder layer (0: what enters the first), the mean of "
        "each position removed. A decoder that mirrors the encoder is bright from bottom left to top right.",
    )
    section.table(
        ["weights", "mirror score, all patches", "visible patches"],
        [[name, *(f"{rows.values(f'mirror.{which}'):.3f}" for which in patches)] for name, rows in states.items()],
        caption="Mean CKA of mirrored pairs minus the mean over all pairs; 0 if mirrored layers are no more alike than "
        "others. Removed patches enter the encoder as one and the same mask token, so its first layers know nothing of "
        "them that the decoder could return to; at visible patches nothing is asked of the decoder.",
    )


def _resemblance(rows: Results[MaskedLayers], state: str, patches: str) -> HeatMap:
    import numpy as np

    from unrolled.report import HeatMap

    grid = np.mean([row.result["mirror"][f"cka_{patches}"] for row in rows], axis=0)
    names = [str(layer) for layer in range(len(grid))]
    return HeatMap(
        title=f"CKA, {state}, {patches} patches",
        values=grid,
        rows=names,
        columns=names,
        row_label="encoder layer",
        column_label="decoder layer",
    )


def _limits(report: Report) -> None:
    report.section(
        "What this does not show",
        "The published W is learned, subspaces differ from layer to layer, and ISTA follows; here W is the subspaces' "
        "transpose, all layers are the same and there is no ISTA. So a failure of the synthetic part is one of the "
        "derivation at these settings, not of a trained network, which may learn an output that makes up for it. The "
        "mixture has equal, mutually orthogonal subspaces with isotropic signal unless a row says otherwise. The "
        "claims' ranges were fixed at a cosine of 0.9, errors of 0.7 and 0.5; the papers give none.",
    )


def _error(values: Values) -> str:
    return "< 0.0001" if max(values) < 1e-4 else f"{values:.4f}"


def _changed(config: DenoisingConfig, place: Columns) -> str:
    """How a setting differs from that of the first table, in words."""
    usual = base(config)
    words = []
    if place["noise"] != usual["noise"]:
        words.append(f"sigma {place['noise']:g}")
    if place["temperature"] != usual["temperature"]:
        words.append(f"temperature {place['temperature']:g}")
    if place["eps"] != usual["eps"]:
        words.append(f"eps {place['eps']:g}")
    if (place["heads"], place["orthogonal"]) != (usual["heads"], usual["orthogonal"]):
        kind = "" if place["orthogonal"] else "overlapping "
        words.append(f"{place['heads']} {kind}subspace{'s' if place['heads'] > 1 else ''}")
    if place["tokens"] != usual["tokens"]:
        words.append(f"{place['tokens']} tokens")
    return ", ".join(words) or "as above"


def _draws(config: DenoisingConfig) -> str:
    return f"{len(config.seeds)} draw{'s' if len(config.seeds) > 1 else ''}"


def _marks(config: DenoisingConfig) -> list[int]:
    return sorted({config.layers - 1, config.layers // 2, 0}, reverse=True)


def _short(kind: str) -> str:
    return _SHORT.get(kind, kind)
