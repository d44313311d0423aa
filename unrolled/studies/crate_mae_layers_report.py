"""The page of `crate-mae-layers`: claims, layers, sizes, reconstruction, pictures."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from unrolled.studies.crate_mae_layers import (
    AS_GOOD,
    BASE,
    FALLS,
    LEARNED,
    PARAMETERS,
    RISES,
    SPARSER,
    VISIBLE,
    VIT_BASE,
    Config,
    vit_mae_parameters,
)
from unrolled.studies.crate_members import KINDS, MASKED, Member, images_seen

if TYPE_CHECKING:
    from unrolled.report import Report

_RATE = "rate_after"


def build(config: Config, found: dict[str, Any], pictures: list[tuple[str, list[Any]]], duration: float) -> Report:
    """The report of what `run` found; `pictures` are rows of the grid of completions."""
    from unrolled.report import Fact, ImageGrid, ImageRow, Provenance, Report, mean_std

    report = Report(
        "CRATE-MAE by layer, by size, and by what it reconstructs",
        question="Does R^c fall through the encoder and rise through the decoder, how large is the model, and how well "
        "does it complete images?",
    )
    layers, scores, sizes = found["layers"]["mae"], found["scores"], found["sizes"]

    def change(state: str, stack: str) -> list[float]:
        return [entry[stack][-1][_RATE] / entry[stack][0][_RATE] - 1 for entry in layers[state]]

    def thinner(state: str) -> list[float]:
        return [entry["encoder"][-1]["nonzero"] - entry["encoder"][0]["nonzero"] for entry in layers[state]]

    def losses(kind: str) -> list[float]:
        return [entry["loss"] for entry in scores[kind]["trained"]]

    falls, rises, sparser = change("trained", "encoder"), change("trained", "decoder"), thinner("trained")
    share = sizes[BASE]["published"] / sizes[VIT_BASE]["published"]
    equal = [a / b for a, b in zip(losses("mae"), losses("vit-mae"), strict=True)]
    plain = found["baselines"]["harmonic inpainting"]["loss"]
    learned = [loss / plain for loss in losses("mae")]
    visible = [a / b for a, b in zip(losses("mae-visible"), losses("mae"), strict=True)]
    untrained = (change("untrained", "encoder"), change("untrained", "decoder"), thinner("untrained"))
    shown = [mean_std(values, digits=3) for values in untrained]
    fall = FALLS.judge(fmean(falls), f"{mean_std(falls, digits=3)}; untrained {shown[0]}")
    report.claims = [
        fall if fmean(untrained[0]) > fmean(falls) else replace(fall, reproduced=None),  # the control does the same
        RISES.judge(fmean(rises), f"{mean_std(rises, digits=3)}; untrained {shown[1]}"),
        SPARSER.judge(fmean(sparser), f"{mean_std(sparser, digits=3)}; untrained {shown[2]}"),
        PARAMETERS.judge(
            share,
            f"{sizes[BASE]['published']:,} / {sizes[VIT_BASE]['published']:,} = {100 * share:.1f} %; without unused "
            f"parameters {100 * sizes[BASE]['total'] / sizes[VIT_BASE]['total']:.1f} %",
        ),
        AS_GOOD.judge(fmean(equal), mean_std(equal, digits=3)),
        LEARNED.judge(fmean(learned), mean_std(learned, digits=3)),
        VISIBLE.judge(fmean(visible), mean_std(visible, digits=3)),
    ]
    report.headline(
        f"R^c changes by {100 * fmean(falls):+.0f} % from the first to the last encoder layer (untrained "
        f"{100 * fmean(untrained[0]):+.0f} %) and by {100 * fmean(rises):+.0f} % through the decoder (untrained "
        f"{100 * fmean(untrained[1]):+.0f} %). Held-out loss {mean_std(losses('mae'), digits=3)}, a ViT-MAE of as many "
        f"parameters {mean_std(losses('vit-mae'), digits=3)}, harmonic inpainting {plain:.3f}.",
        [
            Fact(label="CRATE-MAE", value=mean_std(losses("mae"), digits=3), detail=f"loss, {_seeds(config)}"),
            Fact(label="ViT-MAE, equal parameters", value=mean_std(losses("vit-mae"), digits=3), detail="loss"),
            Fact(label="CRATE-MAE-B / ViT-MAE-B", value=f"{100 * share:.1f} %", detail="parameters"),
        ],
    )
    beyond = tuple(
        fmean(mine) - fmean(control) for mine, control in zip((falls, rises, sparser), untrained, strict=True)
    )
    _layers(report, config, found["layers"], beyond)
    _sizes(report, sizes)
    _reconstruction(report, config, found)
    report.section("Completions").figure(
        ImageGrid(
            title=f"{config.data}, held out",
            rows=[ImageRow(images=images, label=label) for label, images in pictures],
            alt=f"{len(pictures[0][1])} held-out images, what is visible of them, and completions by "
            + ", ".join(label for label, _ in pictures[2:]),
        ),
        name="completions",
        caption="The first held-out images, three quarters of their patches removed (grey). No model is told the "
        f"brightness or contrast of a removed patch. Models of seed {config.seeds[0]}.",
    )
    seen = images_seen(config, Member(kind="mae", data=config.data))
    report.section(
        "What this does not show",
        f"Models are 4 + 4 layers, see small images and were trained on {seen:,} of them each, thousands of times "
        "fewer than the paper's; a longer training may order them differently. Equal "
        "parameters are not equal work: the ViT-MAE is narrower, and its encoder and that of the visible-only "
        "CRATE-MAE process a quarter of the tokens. No recipe was tuned for any of them. The claims' ranges are ours "
        "where the paper gives no number.",
    )
    report.results = found
    report.provenance = Provenance.collect(config=config, seeds=config.seeds, duration=duration)
    return report


def _layers(report: Report, config: Config, layers: dict[str, Any], beyond: tuple[float, ...]) -> None:
    from unrolled.report import LineChart, Series, mean_std

    section = report.section(
        "Layer by layer",
        f"On {config.measured} held-out images, three quarters of the patches removed. R^c is that of tokens of unit "
        "norm by the layer's own subspaces, after its compression step or, in the decoder, after the reversed step; "
        "of a ViT, by its heads' value projections. The plain R^c takes orthonormal bases of the subspaces: layers "
        "then differ by where the subspaces lie and not by the size of weights, which the paper's R^c includes.",
    )
    rows = []
    panels = []
    for key, title in (
        *((_RATE, "R^c, nats"), ("plain_after", "plain R^c, nats")),
        *(("nonzero", "share of non-zeros"), ("density", "density")),
    ):
        stacks = _STACKS[:1] if key == "nonzero" else _STACKS
        series = []
        for i, kind in enumerate(MASKED):
            if key == "nonzero" and kind == "vit-mae":  # has none
                continue
            for state in ("trained", "untrained"):
                curves = [[row[key] for stack in stacks for row in entry[stack]] for entry in layers[kind][state]]
                y = [fmean(values) for values in zip(*curves, strict=True)]
                error = [stdev(values) for values in zip(*curves, strict=True)] if len(curves) > 1 else None
                series.append(
                    Series(
                        label=_SHORT[kind] + ("" if state == "trained" else ", untr."),
                        x=list(range(1, len(y) + 1)),
                        y=y,
                        error=error,
                        color=i,
                        dashed=state == "untrained",
                    )
                )
        panels.append(
            LineChart(
                title=title,
                x_label="layer of encoder" + (", then of decoder" if len(stacks) > 1 else ""),
                series=series,
            )
        )
    depth = len(layers["mae"]["trained"][0]["encoder"])
    section.figure(
        panels,
        name="layers",
        caption=f"Layers 1 to {depth} are the encoder's, the others the decoder's. Dashed: untrained. "
        f"{_seeds(config)}; bars are one standard deviation. Non-zeros are the encoder's only: nothing in the decoder "
        "sets entries to zero. Density, see the table, tells dense layers apart.",
    )
    keys = ("rate_z", "rate_before", "rate_after", "plain_before", "plain_after", "nonzero", "density")
    for kind in MASKED:
        for state in ("trained", "untrained"):
            for stack in _STACKS:
                for layer in range(depth):
                    runs = [entry[stack][layer] for entry in layers[kind][state]]
                    cells = [
                        mean_std([run[key] for run in runs], digits=1 if "e_" in key or "n_" in key else 3)
                        for key in keys
                    ]
                    rows.append([KINDS[kind].words, state, f"{stack} {layer + 1}", *cells])
    section.table(
        [
            "model",
            "weights",
            "layer",
            "R^c in",
            "before step",
            "after",
            "plain before",
            "after",
            "non-zeros",
            "density",
        ],
        rows,
        caption="R^c in nats. Density: l1 norm of a token over sqrt(d) times its l2 norm, 1 if all entries are equal "
        "in size, lower the sparser; unlike non-zeros it tells dense layers apart.",
    )

    section.text(
        "What training adds to the untrained control, trained minus untrained: "
        f"{beyond[0]:+.3f} in the encoder's relative change of R^c, {beyond[1]:+.3f} in the decoder's, "
        f"{beyond[2]:+.3f} in the change of the share of non-zeros. Only a difference of the claim's sign (negative, "
        "positive, negative) was learned; what the control does too is the architecture's. R^c by each layer's own "
        "subspaces compares rulers that differ from layer to layer, and a decoder layer's free linear map resets the "
        "tokens before its step. The columns before and after show what the step alone does: in the encoder a step "
        "that compresses lowers R^c, in the decoder a step that reverses one raises it."
    )


def _sizes(report: Report, sizes: dict[str, dict[str, int]]) -> None:
    section = report.section(
        "Sizes",
        "The published 30 % is the ratio of two models with decoders as wide as their encoders. `published` includes "
        "what the published code holds and never uses: a second table of positions and a linear map between encoder "
        "and decoder; this package's models do not have them. Tables of positions are fixed, not trained.",
    )
    names = ("encoder", "decoder", "positions", "trained", "published")
    section.table(
        ["model", *names],
        [[name.removesuffix("_patch16_224"), *(parts[key] for key in names)] for name, parts in sizes.items()],
        caption="Entries of the registered models, 224-pixel images in patches of 16. `trained` has, besides encoder "
        "and decoder layers, patch embedding, prediction, class and mask tokens and final norms.",
    )
    meta = vit_mae_parameters(dim=768, depth=12, decoder_dim=512, decoder_depth=8)
    base, vit = sizes[BASE], sizes[VIT_BASE]
    layer = (base["encoder"] / 12, base["decoder"] / 12, vit["encoder"] / 12)
    section.text(
        f"A CRATE encoder layer of width 768 has {layer[0]:,.0f} entries, a decoder layer {layer[1]:,.0f}, a ViT layer "
        f"{layer[2]:,.0f}: {100 * layer[0] / layer[2]:.0f} and {100 * layer[1] / layer[2]:.0f} % of it, because one "
        "matrix is query, key and value and one square dictionary replaces an MLP four times as wide. The ratio of the "
        "whole models rests on the choice of the ViT's decoder: here 8 layers of width 768. The MAE of arXiv "
        f"2111.06377 has 8 of width 512 and {meta:,} entries, of which CRATE-MAE-B has "
        f"{100 * base['published'] / meta:.1f} %. For the small models the published sizes, 25.4 and "
        "47.6 million, give 53 %."
    )


def _reconstruction(report: Report, config: Config, found: dict[str, Any]) -> None:
    from unrolled.report import mean_std

    rows: list[list[Any]] = []
    for kind in MASKED:
        for state in ("trained", "untrained"):
            runs = found["scores"][kind][state]

            def cell(key: str, digits: int, runs: list[dict[str, float]] = runs) -> str:
                return mean_std([run[key] for run in runs], digits=digits)

            rows.append(
                [
                    f"{KINDS[kind].words}, {state}" if state == "untrained" else KINDS[kind].words,
                    int(runs[0]["parameters"]),
                    *(cell("loss", 3), cell("psnr", 2), cell("psnr_helped", 2)),
                ]
            )
    for name, entry in found["baselines"].items():
        rows.append([name, 0, f"{entry['loss']:.3f}", f"{entry['psnr']:.2f}", "not applicable"])
    report.section(
        "Reconstruction",
        f"{config.tested:,} held-out images of {config.data}, the same masks for all, errors on removed patches only. "
        "The loss is the models' own: mean squared error of patches normalised to mean 0 and variance 1, so a constant "
        "patch scores about 1. A completion by other means is normalised in the same way and multiplied by one factor "
        "fitted on training images. PSNR is in pixels: a model's patch gets the mean of the harmonic completion there "
        "and the mean spread of the image's visible patches times a factor fitted on training images. The last column "
        "gives the model the true mean and spread of every removed patch, as pictures of such models "
        "usually do; it flatters.",
    ).table(
        ["completion", "trained parameters", "loss", "PSNR, dB", "PSNR told mean and spread, dB"],
        rows,
        caption=f"Mean and standard deviation over {_seeds(config)}.",
    )


_STACKS = ("encoder", "decoder")
_SHORT = {"mae": "CRATE", "mae-visible": "visible", "vit-mae": "ViT"}


def _seeds(config: Config) -> str:
    return f"{len(config.seeds)} seed{'s' if len(config.seeds) > 1 else ''}"
