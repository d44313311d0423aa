"""The page of `crate-denoising`: claims, steps beside the score, stacks, the way back, trained models."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, Any

from unrolled.studies.crate_denoising import (
    LAYERS,
    MIRROR,
    REVERSAL,
    SCORE,
    SCORE_ATTENTION,
    SCORE_TOKEN,
    Config,
    base,
    mean_curve,
    name_of,
    over_runs,
)

if TYPE_CHECKING:
    from unrolled.report import Report

_NOT_RUN = "not run"
_CHARTED = (
    *("softmax over heads", "R^c of a token", "R^c of all tokens"),
    *("MSSA(Z) - Z", "a MSSA(Z) - Z", "a MSSA(Z) - Z, unlimited"),
)


def build(config: Config, found: dict[str, Any], duration: float) -> Report:
    """The report of what `run` found."""
    from unrolled.report import Claim, Fact, Provenance, Report, mean_std

    report = Report(
        "Compression as denoising",
        question="Does CRATE's attention (MSSA) move tokens along the score, the direction in which noisy tokens "
        "become more likely, so that layers denoise, and do the decoder's steps bring tokens back?",
    )
    here = found["steps"][name_of("steps", base(config))]["runs"]

    def cosine(step: str) -> list[float]:
        return over_runs(here, "steps", step, "cosine")

    published = found["stacks"][str(config.rates[-1])]
    ratios = [_last(run, "published") / run["stacks"]["published"]["error"][0] for run in published]
    random = [_last(run, "published, random subspaces") / run["stacks"]["published"]["error"][0] for run in published]
    kept = [run["reverse"]["decoder"][0] / run["reverse"]["rescaled"][0] for run in published]
    where = f"sigma {config.noise:g}, {config.heads} subspaces of {config.dim_head} in {config.dim} dimensions"
    rows = [
        (SCORE, cosine("R^c of all tokens")),
        (SCORE_ATTENTION, cosine("MSSA(Z) - Z")),
        (SCORE_TOKEN, cosine("softmax over heads")),
    ]
    report.claims = [
        expected.judge(fmean(values), f"{mean_std(values, digits=3)} at {where}") for expected, values in rows
    ]
    lowest = min(min(run["stacks"]["published"]["error"]) / run["stacks"]["published"]["error"][0] for run in published)
    report.claims += [
        LAYERS.judge(
            fmean(ratios),
            f"{mean_std(ratios, digits=3)} after {config.layers} layers (at the best layer {lowest:.3f}; the best "
            f"denoiser {_best_ratio(published):.3f}; random subspaces {mean_std(random, digits=3)})",
        ),
        REVERSAL.judge(
            fmean(kept), f"{mean_std(kept, digits=3)} over {config.layers} layers, without a decoder but rescaled"
        ),
    ]
    if found["trained"]:
        mirror = [entry["mirror"]["all"] for entry in found["trained"]["mae"]["trained"]]
        control = [entry["mirror"]["all"] for entry in found["trained"]["mae"]["untrained"]]
        report.claims.append(
            MIRROR.judge(fmean(mirror), f"{mean_std(mirror, digits=3)}; untrained {mean_std(control, digits=3)}")
        )
    else:
        report.claims.append(
            Claim(statement=MIRROR.statement, source=MIRROR.source, published=MIRROR.published, measured=_NOT_RUN)
        )
    report.headline(
        f"At {where}, the cosine with the score (1: the same direction) is "
        f"{fmean(cosine('softmax over heads')):.2f} for a softmax over heads, "
        f"{fmean(cosine('R^c of a token')):.2f} for -grad R^c of one token, {fmean(cosine('R^c of all tokens')):.2f} "
        f"for -grad R^c of all tokens and {fmean(cosine('MSSA(Z) - Z')):.2f} for MSSA(Z) - Z. "
        f"{config.layers} published layers change the squared error by a factor of {fmean(ratios):.2f} "
        "(below 1 they denoise).",
        [
            Fact(
                label="-grad R^c and the score",
                value=mean_std(cosine("R^c of all tokens"), digits=2),
                detail="mean cosine over tokens; 1: the same direction",
            ),
            Fact(
                label="MSSA(Z) - Z and the score",
                value=mean_std(cosine("MSSA(Z) - Z"), digits=2),
                detail="mean cosine over tokens",
            ),
            Fact(
                label="Error with the decoder / without",
                value=mean_std(kept, digits=3),
                detail=f"{config.layers} layers, {_draws(config)}",
            ),
        ],
    )
    _steps(report, config, found["steps"])
    _stacks(report, config, found["stacks"])
    _reversal(report, config, found["stacks"])
    section = report.section("Trained CRATE-MAE")
    if found["trained"]:
        from unrolled.studies.crate_mae_features import mirror_section

        mirror_section(section, config, found["trained"]["mae"])
    else:
        section.text(f"{_NOT_RUN}: asked for without trained models.")
    _limits(report)
    report.results = found
    report.provenance = Provenance.collect(config=config, seeds=config.seeds, duration=duration)
    return report


def _steps(report: Report, config: Config, cells: dict[str, Any]) -> None:
    from unrolled.report import LineChart, Series, mean_std
    from unrolled.studies.crate_denoising_steps import STEPS

    def at(**changes: Any) -> list[dict[str, Any]]:
        runs: list[dict[str, Any]] = cells[name_of("steps", {**base(config), **changes})]["runs"]
        return runs

    section = report.section(
        "Steps beside the score",
        "Tokens Z are drawn from a mixture of subspaces U_k with noise sigma, in units of the signal. Its score, the "
        "gradient of the log density, is known in closed form, and sigma^2 times it, the best denoiser minus the "
        "token, is what a step should be. R^c is the coding rate within the subspaces, which CRATE's attention MSSA "
        "is derived to lower. The subspaces are the true ones, and nothing is trained.",
    )
    here = at()
    base_rows = [
        [step, words]
        + [mean_std(over_runs(here, "steps", step, key), digits=3) for key in ("cosine", "error", "removed")]
        for step, words in STEPS.items()
    ]
    rows: list[list[Any]] = []
    for cell in cells.values():
        cosines = (mean_std(over_runs(cell["runs"], "steps", step, "cosine"), digits=2) for step in STEPS)
        rows.append([_changed(config, cell["settings"]), *cosines])
    section.table(
        ["step", "what it is", "cosine", "error", "of the best removed"],
        base_rows,
        caption=f"Steps at sigma {config.noise:g}, {config.heads} orthogonal subspaces, {config.tokens} tokens, "
        f"published temperature; mean and standard deviation over {_draws(config)}. Cosine: with sigma^2 times the "
        "score, mean over tokens. Error: of the best common multiple of the step, relative to the score step (1 is no "
        "better than no step). Of the best removed: the share of the squared error removed by the best multiple of the "
        "step, over what the best denoiser removes.",
    )

    def curve(label: str, axis: str, values: tuple[float, ...], color: int, **fixed: Any) -> Series:
        y = [fmean(over_runs(at(**{**fixed, axis: value}), "steps", label, "cosine")) for value in values]
        return Series(label=_short(label), x=_places(values), y=y, color=color)

    panels = [
        LineChart(
            title="cosine with the score",
            x_label="log2 of sigma (0: noise as strong as signal)",
            series=[curve(step, "noise", config.noises, i) for i, step in enumerate(_CHARTED)],
            y_range=(-1.0, 1.05),
        )
    ]
    panels += [
        LineChart(
            title=f"cosine with the score, sigma {noise:g}",
            x_label="log2 of temperature / published",
            series=[
                curve(step, "temperature", config.temperatures, color, noise=noise)
                for step, color in (("MSSA(Z) - Z", 3), ("a MSSA(Z) - Z", 4), ("a MSSA(Z) - Z, unlimited", 5))
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
        rows,
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
        f"with the score is {fmean(over_runs(here, 'steps', 'MSSA(Z)', 'cosine')):.2f} in the first table."
    )


def _stacks(report: Report, config: Config, stacks: dict[str, Any]) -> None:
    from unrolled.report import LineChart, Series, mean_std
    from unrolled.studies.crate_denoising_steps import STACKS

    depth = list(range(config.layers + 1))
    section = report.section(
        "Layer by layer",
        f"Tokens with sigma {config.layer_noise:g} go through {config.layers} equal layers with the true subspaces: "
        "`published` is Z + kappa MSSA(LN Z), `derived` (1 - kappa) Z + kappa MSSA(Z), `R^c` steps along its exact "
        "negative gradient, `score` Z + kappa sigma^2 score(Z). Tokens may be rescaled by one common factor before "
        "they are compared with the clean ones, so that growth by itself is no error.",
    )
    panels, rows = [], []
    for rate in config.rates:
        runs = stacks[str(rate)]
        series = [
            Series(
                label=_short(kind),
                x=depth,
                y=mean_curve([run["stacks"][kind]["error"] for run in runs]),
                color=i,
                dashed="random" in kind,
            )
            for i, kind in enumerate(STACKS)
        ]
        best = fmean(run["best"] for run in runs)
        series.append(Series(label="best", x=depth, y=[best] * len(depth), color=5, dashed=True))
        panels.append(LineChart(title=f"squared error, kappa {rate:g}", x_label="layer", series=series))
        for kind in STACKS:
            errors = [run["stacks"][kind]["error"] for run in runs]
            shares = [run["stacks"][kind]["outside"] for run in runs]
            rows.append(
                [
                    f"{rate:g}",
                    kind,
                    mean_std([error[0] for error in errors], digits=3),
                    mean_std([min(error) for error in errors], digits=3),
                    mean_std([float(error.index(min(error))) for error in errors], digits=0),
                    mean_std([error[-1] for error in errors], digits=3),
                    " to ".join(f"{round(fmean(o[k] for o in shares), 2) + 0.0:.2f}" for k in (0, -1)),
                ]
            )
        lowest = mean_std([run["best"] for run in runs], digits=3)
        outside = fmean(run["best_outside"] for run in runs)
        rows.append([f"{rate:g}", "best denoiser", rows[-1][2], lowest, "1 step", lowest, f"{outside:.2f}"])
    section.figure(
        panels,
        name="stacks",
        caption=f"Squared distance to the clean tokens per signal energy, mean over {_draws(config)} of "
        f"{config.sets} x {config.tokens} tokens. Dashed: random subspaces instead of the true ones, and the best "
        "denoiser there is.",
    )
    section.table(
        ["kappa", "layers", "error at 0", "lowest error", "at layer", "last error", "energy outside own subspace"],
        rows,
        caption="Squared distance to the clean tokens per signal energy. Kappa: size of the steps. Error at 0: before "
        "the first layer. At layer: after how many layers the error is lowest. Last error: after all of them. Energy "
        "outside own subspace: share of the tokens' energy, before the first and after the last layer.",
    )


def _reversal(report: Report, config: Config, stacks: dict[str, Any]) -> None:
    from unrolled.report import LineChart, Series

    depth = list(range(config.layers + 1))
    section = report.section(
        "The way back",
        "The code after all published layers goes through the decoder's steps, Y - kappa MSSA(LN Y), with the "
        "encoder's subspaces in reverse order. MSSA is then evaluated where the encoder's step ended rather than where "
        "it began; iterating Y' = Z - kappa MSSA(LN Y') converges to the exact inverse where it converges at all, and "
        "the decoder's step is its first iteration.",
    )
    panels, rows = [], []
    for rate in config.rates:
        runs = [run["reverse"] for run in stacks[str(rate)]]
        names = {"rescaled": "rescaled", "random": "random", "decoder": "decoder"}
        curves = [(label, [run[key] for run in runs], key != "decoder") for key, label in names.items()]
        curves += [(f"{n} times", [run["iterations"][n] for run in runs], False) for n in runs[0]["iterations"]]
        panels.append(
            LineChart(
                title=f"relative error, kappa {rate:g}",
                x_label="encoder layer to be restored",
                log_y=True,
                y_range=(1e-4, 20.0),
                series=[
                    Series(label=label, x=depth, y=mean_curve(values), dashed=dashed)
                    for label, values, dashed in curves[:-1]
                ],
            )
        )
        for label, values, _ in [("none", [run["none"] for run in runs], True), *curves]:
            rows.append([f"{rate:g}", label, *(_error([v[k] for v in values]) for k in _marks(config))])
    section.figure(
        panels,
        name="reversal",
        caption="||Y - Z_l|| / ||Z_l|| where the decoder has undone layers L to l + 1. Read from right to left; "
        "less than 1e-4 is drawn at the bottom. "
        f"Mean over {_draws(config)}.",
    )
    section.table(
        ["kappa", "way back", *(f"to layer {k}" for k in _marks(config))],
        rows,
        caption="Relative errors ||Y - Z_l|| / ||Z_l|| where layers above l are undone. Kappa: size of the steps. Way "
        "back: what undoes them. None: the code as it is; rescaled: its best multiple; random: a decoder with random "
        "subspaces; times: iterations towards the exact inverse. Where steps are as large as tokens (large kappa, "
        "first layers) the iteration need not converge, and errors of one layer are passed on to those before it.",
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


def _error(values: list[float]) -> str:
    from unrolled.report import mean_std

    return "< 0.0001" if max(values) < 1e-4 else mean_std(values, digits=4)


def _changed(config: Config, place: dict[str, Any]) -> str:
    """How a setting differs from that of the first table, in words."""
    usual = base(config)
    said = []
    if place["noise"] != usual["noise"]:
        said.append(f"sigma {place['noise']:g}")
    if place["temperature"] != usual["temperature"]:
        said.append(f"temperature {place['temperature']:g}")
    if place["eps"] != usual["eps"]:
        said.append(f"eps {place['eps']:g}")
    if (place["heads"], place["orthogonal"]) != (usual["heads"], usual["orthogonal"]):
        kind = "" if place["orthogonal"] else "overlapping "
        said.append(f"{place['heads']} {kind}subspace{'s' if place['heads'] > 1 else ''}")
    if place["tokens"] != usual["tokens"]:
        said.append(f"{place['tokens']} tokens")
    return ", ".join(said) or "as above"


def _draws(config: Config) -> str:
    return f"{len(config.seeds)} draw{'s' if len(config.seeds) > 1 else ''}"


def _marks(config: Config) -> list[int]:
    return sorted({config.layers - 1, config.layers // 2, 0}, reverse=True)


def _last(run: dict[str, Any], kind: str) -> float:
    error: float = run["stacks"][kind]["error"][-1]
    return error


def _best_ratio(runs: list[dict[str, Any]]) -> float:
    return fmean(run["best"] / run["stacks"]["published"]["error"][0] for run in runs)


def _short(kind: str) -> str:
    short = {
        "published, random subspaces": "random",
        "softmax over heads": "softmax",
        "R^c of a token": "R^c, token",
        "R^c of all tokens": "R^c, all",
        "MSSA(Z) - Z": "MSSA - Z",
        "a MSSA(Z) - Z": "a MSSA - Z",
        "a MSSA(Z) - Z, unlimited": "unlimited",
    }
    return short.get(kind, kind)


def _places(values: tuple[float, ...]) -> list[float]:
    from math import log2

    return [log2(value) for value in values]
