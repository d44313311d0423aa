"""The page of `crate-mae-layers`: layers, sizes, reconstruction, pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unrolled.studies.crate.compared import of_kind
from unrolled.studies.crate.credits import PHOTOS
from unrolled.studies.crate.mae_layers.cells import (
    BASE,
    VIT_BASE,
    Baselines,
    Completed,
    MaeLayersConfig,
    Size,
    unpacked,
    vit_mae_parameters,
)
from unrolled.studies.crate.mae_layers.claims import RATE, falls, loss, plain, rises, share, thins
from unrolled.studies.crate.masked import MaskedLayers
from unrolled.studies.kinds import DEPTH, KINDS, MASKED
from unrolled.studies.networks import Data, images_seen
from unrolled.studies.results import NOT_RUN, Results, Values

if TYPE_CHECKING:
    from unrolled.report import Report

_STACKS = ("encoder", "decoder")
_SHORT = {"mae": "CRATE", "mae-visible": "visible", "vit-mae": "ViT"}
_STATES = {"trained": True, "untrained": False}


def report(report: Report, config: MaeLayersConfig, results: Results[Any]) -> None:
    """Headline, layers, sizes, reconstruction, completions, limits."""
    from unrolled.report import Fact

    falling, rising = (
        [100 * change(results, config, trained=state) for state in (True, False)] for change in (falls, rises)
    )
    inpainted = _number(plain(results), ".3f")
    mae, vit = (f"{loss(results, config, kind):.3f}" for kind in ("mae", "vit-mae"))
    report.headline(
        f"R^c changes by {_percent(falling[0])} from the first to the last encoder layer (untrained "
        f"{_percent(falling[1])}) and by {_percent(rising[0])} through the decoder (untrained {_percent(rising[1])}). "
        f"Held-out loss {mae}, a ViT-MAE of as many parameters {vit}, harmonic inpainting {inpainted}.",
        [
            Fact(label="CRATE-MAE", value=mae, detail=f"loss, {_seeds(config)}"),
            Fact(label="ViT-MAE, equal parameters", value=vit, detail="loss"),
            Fact(label="CRATE-MAE-B / ViT-MAE-B", value=_number(share(results), ".1%"), detail="parameters"),
        ],
    )
    _layers(report, config, results)
    _sizes(report, results)
    _reconstruction(report, config, results)
    _completions(report, config, results)
    seen = images_seen(config.images, config.data)
    report.section(
        "What this does not show",
        f"Models are 4 + 4 layers, see small images and were trained on {seen:,} of them each, thousands of times "
        "fewer than the paper's; a longer training may order them differently. Equal "
        "parameters are not equal work: the ViT-MAE is narrower, and its encoder and that of the visible-only "
        "CRATE-MAE process a quarter of the tokens. No recipe was tuned for any of them. The claims' ranges are ours "
        "where the paper gives no number.",
    )


def _number(value: float, spec: str) -> str:
    return NOT_RUN if math.isnan(value) else f"{value:{spec}}"


def _percent(values: Values) -> str:
    return f"{values.mean:+.0f} %" if values else NOT_RUN


def _layers(report: Report, config: MaeLayersConfig, results: Results[Any]) -> None:
    from unrolled.report import LineChart

    section = report.section(
        "Layer by layer",
        f"On {config.measured} held-out images, three quarters of the patches removed. R^c is that of tokens of unit "
        "norm by the layer's own subspaces, after its compression step or, in the decoder, after the reversed step; "
        "of a ViT, by its heads' value projections. The plain R^c takes orthonormal bases of the subspaces: layers "
        "then differ by where the subspaces lie and not by the size of weights, which the paper's R^c includes.",
    )
    if not results.of(MaskedLayers):
        section.text(f"{NOT_RUN}.")
        return
    rows = {
        (kind, state): of_kind(results, MaskedLayers, kind, config.data, trained=trained)
        for kind in MASKED
        for state, trained in _STATES.items()
    }
    panels = []
    for key, title in (
        *((RATE, "R^c, nats"), ("plain_after", "plain R^c, nats")),
        *(("nonzero", "share of non-zeros"), ("density", "density")),
    ):
        stacks = _STACKS[:1] if key == "nonzero" else _STACKS
        lines = [
            each.curve(
                _SHORT[kind] + ("" if state == "trained" else ", untr."),
                _joined(stacks),
                key,
                x=range(1, len(stacks) * DEPTH + 1),
                color=MASKED.index(kind),
                dashed=state == "untrained",
            )
            for (kind, state), each in rows.items()
            if each and (key, kind) != ("nonzero", "vit-mae")  # which has none
        ]
        x_label = "layer of encoder" + (", then of decoder" if len(stacks) > 1 else "")
        panels.append(LineChart(title=title, x_label=x_label, series=lines))
    section.figure(
        panels,
        name="layers",
        caption=f"Layers 1 to {DEPTH} are the encoder's, the others the decoder's. Dotted: untrained. "
        f"{_seeds(config)}; bars are one standard deviation. Non-zeros are the encoder's only: nothing in the decoder "
        "sets entries to zero. Density, see the table, tells dense layers apart.",
    )
    rates = ("rate_z", "rate_before", "rate_after", "plain_before", "plain_after")
    table = []
    for (kind, state), each in rows.items():
        for stack in _STACKS:
            for layer in range(DEPTH):
                numbers = [f"{each.values(f'{stack}.{layer}.{key}'):.1f}" for key in rates]
                numbers += [f"{each.values(f'{stack}.{layer}.{key}'):.3f}" for key in ("nonzero", "density")]
                table.append([KINDS[kind].words, state, f"{stack} {layer + 1}", *numbers])
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
        table,
        caption="R^c in nats. Density: l1 norm of a token over sqrt(d) times its l2 norm, 1 if all entries are equal "
        "in size, lower the sparser; unlike non-zeros it tells dense layers apart.",
    )
    beyond = [
        change(results, config).mean - change(results, config, trained=False).mean for change in (falls, rises, thins)
    ]
    section.text(
        "What training adds to the untrained control, trained minus untrained: "
        f"{beyond[0]:+.3f} in the encoder's relative change of R^c, {beyond[1]:+.3f} in the decoder's, "
        f"{beyond[2]:+.3f} in the change of the share of non-zeros. Only a difference of the claim's sign (negative, "
        "positive, negative) was learned; what the control does too is the architecture's. R^c by each layer's own "
        "subspaces compares rulers that differ from layer to layer, and a decoder layer's free linear map resets the "
        "tokens before its step. The columns before and after show what the step alone does: in the encoder a step "
        f"that compresses lowers R^c, in the decoder a step that reverses one should raise it{_raised(rows)}."
    )


def _raised(rows: Mapping[tuple[str, str], Results[MaskedLayers]]) -> str:
    """Of how many decoder layers of trained CRATE-MAEs the step raises R^c, in words."""
    steps = [
        each.values(f"decoder.{layer}.rate_after").mean > each.values(f"decoder.{layer}.rate_before").mean
        for (kind, state), each in rows.items()
        if each and state == "trained" and kind != "vit-mae"
        for layer in range(DEPTH)
    ]
    return f": {sum(steps) or 'none'} of the {len(steps)} of trained CRATE-MAEs do" if steps else ""


def _joined(stacks: Sequence[str]) -> Callable[[Mapping[str, Any]], list[Any]]:
    return lambda result: [layer for stack in stacks for layer in result[stack]]


def _sizes(report: Report, results: Results[Any]) -> None:
    section = report.section(
        "Sizes",
        "The published 30 % is the ratio of two models with decoders as wide as their encoders. `published` includes "
        "what the published code holds and never uses: a second table of positions and a linear map between encoder "
        "and decoder; this package's models do not have them. Tables of positions are fixed, not trained.",
    )
    sizes = {row.cell.model: row.result for row in results.of(Size)}
    names = ("encoder", "decoder", "positions", "trained", "published")
    section.table(
        ["model", *names],
        [[name.removesuffix("_patch16_224"), *(parts[key] for key in names)] for name, parts in sizes.items()],
        caption="Entries of the registered models, 224-pixel images in patches of 16. `trained` has, besides encoder "
        "and decoder layers, patch embedding, prediction, class and mask tokens and final norms.",
    )
    if not {BASE, VIT_BASE} <= sizes.keys():
        return
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


def _reconstruction(report: Report, config: MaeLayersConfig, results: Results[Any]) -> None:
    rows: list[list[Any]] = []
    for kind in MASKED:
        for state, trained in _STATES.items():
            each = of_kind(results, Completed, kind, config.data, trained=trained)
            rows.append(
                [
                    f"{KINDS[kind].words}, {state}" if state == "untrained" else KINDS[kind].words,
                    each.first("parameters", NOT_RUN),
                    f"{each.values('loss'):.3f}",
                    *(f"{each.values(key):.2f}" for key in ("psnr", "psnr_helped")),
                ]
            )
    for name, entry in results.of(Baselines).first("scores", {}).items():
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


def _completions(report: Report, config: MaeLayersConfig, results: Results[Any]) -> None:
    shown = dict(results.of(Baselines).first("pictures", {}))
    for row in results.of(Completed, seed=config.seeds[0], shown=config.shown):
        shown[row.cell.network.words] = row.result["pictures"]
    draw_completions(
        report, config.data, shown,
        f"No model is told the brightness or contrast of a removed patch. Models of seed {config.seeds[0]}.",
    )  # fmt: skip


def draw_completions(report: Report, data: Data, shown: Mapping[str, Any], words: str) -> None:
    """A section with rows of pictures as `packed` keeps them: images, what is visible of them, and completions.

    Args:
        report: that they stand in.
        data: that the models learnt from.
        shown: records by label, the first two of the images and of what is visible; empty draws nothing.
        words: end of the caption.
    """
    from unrolled.report import ImageGrid, ImageRow

    if not shown:
        return
    rows = [ImageRow(images=unpacked(record), label=label) for label, record in shown.items()]
    what = "The first held-out digits" if data == "digits" else f"Squares of {PHOTOS}, shrunk to the models' input"
    report.section("Completions").figure(
        ImageGrid(
            title="digits, held out" if data == "digits" else "photos of no data set",
            rows=rows,
            alt=f"{len(rows[0].images)} images, what is visible of them, and completions by "
            + ", ".join(row.label for row in rows[2:]),
        ),
        name="completions",
        caption=f"{what}, three quarters of their patches removed (grey). {words}",
    )


def _seeds(config: MaeLayersConfig) -> str:
    return f"{len(config.seeds)} seed{'s' if len(config.seeds) > 1 else ''}"
