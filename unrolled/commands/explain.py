"""`unrolled explain`."""

from __future__ import annotations

import contextlib
import json as json_module
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unrolled.commands.common import (
    Device,
    choose_device,
    data_settings,
    default_folder,
    open_model,
    run_settings,
    say_where,
    table,
    write_run,
)
from unrolled.commands.settings import AsJson, ConfigFiles, ModelArgs, Pretrained, Quiet, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor, nn

    from unrolled.commands.pictures import Pixels, Preparation
    from unrolled.instruments.explain import Explanation
    from unrolled.report import Report

_DRAWS = 16
_REMOVED = 0.1
_FOR, _AGAINST = (230, 159, 0), (0, 114, 178)  # Okabe and Ito's orange and blue
_KINDS = {"attn": "attention", "mlp": "MLP", "ista": "ISTA"}


def explain(
    image: Path,
    *,
    model: str = "crate_tiny_patch16_224",
    target: str | None = None,
    against: str | None = None,
    weights: Path | None = None,
    pretrained: Pretrained = False,
    model_args: ModelArgs = None,
    image_size: int | None = None,
    seed: int = 0,
    device: Device = "auto",
    out: Path | None = None,
    config: ConfigFiles = (),
    json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Decompose one decision: which layers, heads and patches its logit is made of.

    The terms sum to the logit exactly. Evidence for the class (orange) and against it (blue) is painted on the picture,
    of all layers together and of each; what happens to the logit when those patches are removed stands beside it.

        unrolled explain cat.jpg --model runs/crate
        unrolled explain cat.jpg --model timm:vit_tiny_patch16_224 --pretrained --target 281 --against 207
        unrolled explain cat.jpg --model crate_base_patch16_224 --weights models/crate-b16 --json

    Parameters
    ----------
    image
        A picture.
    model
        A run folder, or any classifier by one string (`unrolled list`, timm:NAME, hf:ORG/NAME, local:DIR, ...).
    target
        Class to explain, by number or name; default: the predicted one.
    against
        Explain the logit of the target minus that of this class.
    weights
        Load these: a folder of `unrolled convert`, a run folder or a published checkpoint.
    image_size
        What the shorter side becomes, in pixels; default: the model's own.
    seed
        Of random weights, and of the patches removed for comparison.
    device
        What to run on.
    out
        Where pictures, config.yaml, report.html and report.json go; default: runs/explain-MODEL-PICTURE.
    """
    import torch
    from PIL import Image

    from unrolled.commands.pictures import canvas, origin, prepare, sheet
    from unrolled.data.pictures import read_picture
    from unrolled.instruments.explain import explain_logit
    from unrolled.models import MaskedAutoencoder

    picture = read_picture(image)
    where = choose_device(device)
    torch.manual_seed(seed)
    network = open_model(model, weights=weights, pretrained=pretrained, model_args=model_args).to(where)
    if isinstance(network, MaskedAutoencoder):
        raise ValueError(f"model: {model} is a masked autoencoder without a class head; finetune it first")
    names = _class_names(model, weights, pretrained, int(getattr(network, "num_classes", 0) or 0))
    prepared = prepare(network, image_size=image_size)
    pixels = prepared.tensor(picture)
    grid = (pixels.shape[2] // prepared.patch[0], pixels.shape[3] // prepared.patch[1])
    chosen = [None if text is None else _number(flag, text, names) for flag, text in _flags(target, against)]
    began = time.perf_counter()
    found = explain_logit(network, pixels, target=chosen[0], against=chosen[1], prefix=prepared.prefix, grid=grid)
    removals = _removals(network, prepared, pixels, found, seed)
    seconds = time.perf_counter() - began

    folder = out or default_folder("explain", model, image.stem)
    original = np.asarray(canvas(picture))
    views = _paint(found, original)
    folder.mkdir(parents=True, exist_ok=True)
    for view in views[1:]:
        Image.fromarray(view.pixels).save(folder / f"{view.name.replace(' ', '-')}.png")
    rows = [("", [view.pixels for view in views[:2]])]
    rows += [("", [view.pixels for view in views[i : i + 4]]) for i in range(2, len(views), 4)]
    captions = [", ".join(view.name for view in views[:2])]
    captions += [", ".join(view.name for view in views[i : i + 4]) for i in range(2, len(views), 4)]
    sheet([(caption, pictures) for caption, (_, pictures) in zip(captions, rows, strict=True)], [""]).save(
        folder / "contact-sheet.png"
    )
    settings: dict[str, Any] = {
        "image": image,
        "model": model,
        "target": target,
        "against": against,
        "weights": weights,
        "pretrained": pretrained,
        "model_args": model_args or {},
        "image_size": image_size,
        "seed": seed,
        "device": device,
    }
    source = origin(model, weights=weights, pretrained=pretrained)
    result = {"model": model, "weights": source, "image": str(image)} | _record(found, names) | {"removals": removals}
    page = _report(folder, settings, result, found, views, seconds)
    say_where(page, quiet=quiet)
    print(json_module.dumps({**result, "report": str(page)}, indent=2) if json else table(*_layers(found, text=True)))


@dataclass(frozen=True)
class _View:
    name: str
    pixels: Pixels


def _flags(target: str | None, against: str | None) -> list[tuple[str, str | None]]:
    return [("target", target), ("against", against)]


def _class_names(model: str, weights: Path | None, pretrained: bool, classes: int) -> list[str]:
    """Names of the classes where they are known: of the data a run was trained on, or ImageNet's for timm's weights."""
    from unrolled.data import open_images
    from unrolled.errors import MissingData, MissingExtra

    names: list[str] = []
    run = (run_settings(str(weights)) if weights is not None else {}) or run_settings(model)
    if run.get("data"):
        own = data_settings(model, weights, data=None, data_dir=None, image_size=None)
        # the picture is explained without the data; only the names are then missing
        with contextlib.suppress(MissingData, MissingExtra, OSError, ValueError):
            names = list(open_images(own["data"], "train", data_dir=own["data_dir"]).classes)
    elif pretrained and classes == 1000:
        from timm.data import ImageNetInfo

        info = ImageNetInfo()
        names = [info.index_to_description(i).split(",")[0] for i in range(classes)]
    return names if len(names) == classes else []


def _number(flag: str, text: str, names: list[str]) -> int:
    with contextlib.suppress(ValueError):
        return int(text)
    if text in names:
        return names.index(text)
    known = did_you_mean(text, names) if names else " The names of this model's classes are not known; give a number."
    raise ValueError(f"--{flag} {text}: is neither a number nor the name of a class.{known}")


def _name(number: int, names: list[str]) -> str:
    return f"{number} ({names[number]})" if names and names[number] != str(number) else str(number)


def _what(result: dict[str, Any]) -> str:
    target, against = result["target"]["name"], result["against"]
    return f"class {target}" if against is None else f"class {target} against class {against['name']}"


def _removals(
    network: nn.Module, prepared: Preparation, pixels: Tensor, found: Explanation, seed: int
) -> dict[str, Any]:
    """The logit when a tenth of the patches become the mean colour: those with most evidence, and random ones."""
    import torch

    order = found.evidence().flatten().argsort(descending=True)
    count = max(1, round(_REMOVED * len(order)))
    generator = torch.Generator().manual_seed(seed)
    chosen = [order[:count], order[-count:]]
    chosen += [torch.randperm(len(order), generator=generator)[:count] for _ in range(_DRAWS)]
    logits = []
    weight = next(network.parameters())
    with torch.no_grad():
        for patches in chosen:
            mask = torch.zeros(len(order), dtype=torch.bool).index_fill_(0, patches, True).reshape(found.grid)
            for axis, side in enumerate(prepared.patch):
                mask = mask.repeat_interleave(side, axis)
            given = network(pixels.masked_fill(mask, 0.0).to(weight))  # 0 is the mean colour of the normalisation
            row = (given if isinstance(given, torch.Tensor) else given.logits)[0].double()
            logits.append(float(row[found.target] - (row[found.against] if found.against is not None else 0)))
    random = torch.tensor(logits[2:])
    return {
        "patches": count,
        "most for": logits[0] - found.logit,
        "most against": logits[1] - found.logit,
        "random": {"mean": float(random.mean()) - found.logit, "std": float(random.std()), "draws": _DRAWS},
    }


def _record(found: Explanation, names: list[str]) -> dict[str, Any]:
    probabilities = found.logits.softmax(-1)
    order = found.logits.argsort(descending=True).tolist()
    best = [{"class": i, "name": _name(i, names), "logit": float(found.logits[i])} for i in order[:5]]

    def said(number: int) -> dict[str, Any]:
        return {
            "class": number,
            "name": _name(number, names),
            "probability": float(probabilities[number]),
            "rank": order.index(number) + 1,
        }

    evidence = found.evidence()
    return {
        "target": said(found.target),
        "against": None if found.against is None else said(found.against),
        "logit": found.logit,
        "best": best,
        "read": found.read,
        "grid": list(found.grid),
        "constant": found.constant,
        "embed": float(found.embed.sum()),
        "halves": [
            {
                "layer": half.layer,
                "kind": half.kind,
                "replaces": half.replaces,
                "total": half.total,
                "heads": None if half.heads is None else half.heads.tolist(),
                "bias": half.bias,
            }
            for half in found.halves
        ],
        "evidence": evidence.tolist(),
        "elsewhere": found.logit - float(evidence.sum()),
        "error": found.error,
    }


def _paint(found: Explanation, original: Pixels) -> list[_View]:
    """The picture, the evidence of all terms on it, and that of every layer on one scale."""
    layers = sorted({half.layer for half in found.halves})
    each = [found.evidence(layer) for layer in layers]
    scale = max(float(values.abs().max()) for values in each)
    whole = found.evidence()
    return [
        _View("picture", original),
        _View("all layers", _evidence(whole, original, float(whole.abs().max()))),
        *(_View(f"layer {n}", _evidence(values, original, scale)) for n, values in zip(layers, each, strict=True)),
    ]


def _evidence(values: Tensor, original: Pixels, scale: float) -> Pixels:
    from unrolled.commands.overlays import blend, faded
    from unrolled.instruments import upsample

    size = (original.shape[0], original.shape[1])
    # patch by patch: what is between them was not measured
    large = upsample(values.flatten().float(), tuple(values.shape), size, smooth=False).numpy()
    colours = np.where(large[..., None] > 0, np.array(_FOR, np.float64), np.array(_AGAINST, np.float64))
    return blend(faded(original, 0.7), colours, 0.85 * np.abs(large) / (scale or 1.0))


def _layers(found: Explanation, *, text: bool = False) -> tuple[list[str], list[list[Any]]]:
    """A row for each layer: its heads, the rest of its attention, its second half."""
    by_layer: dict[int, dict[str, Any]] = {}
    for half in found.halves:
        by_layer.setdefault(half.layer, {})["attn" if half.kind == "attn" else "second"] = half
    heads = max((len(half.heads) for half in found.halves if half.heads is not None), default=0)
    second = next((_KINDS[half.kind] for half in found.halves if half.kind != "attn"), "")
    columns = ["layer", *(f"head {k}" for k in range(heads)), "bias", "attention", *([second] if second else []), "sum"]
    rows: list[list[Any]] = [["embedding", *[None] * (len(columns) - 2), float(found.embed.sum())]]
    for layer, halves in by_layer.items():
        attention, other = halves.get("attn"), halves.get("second")
        known = attention is not None and attention.heads is not None
        row: list[Any] = [str(layer), *(attention.heads.tolist() if known else [None] * heads)]
        row += [attention.bias if known else None, None if attention is None else attention.total]
        if second:
            row.append(None if other is None else other.total)
        total = sum(half.total for half in halves.values())
        rows.append([*row, total])
    rows.append(["constant", *[None] * (len(columns) - 2), found.constant])
    rows.append(["logit", *[None] * (len(columns) - 2), found.logit])
    if text:
        rows = [[cell if isinstance(cell, str) else "" if cell is None else f"{cell:+.3f}" for cell in r] for r in rows]
    return columns, rows


def _report(
    folder: Path,
    settings: dict[str, Any],
    result: dict[str, Any],
    found: Explanation,
    views: list[_View],
    seconds: float,
) -> Path:
    from unrolled.commands.pictures import grid_section
    from unrolled.report import Fact, HeatMap, LineChart, Provenance, Report, Series

    report: Report = Report(
        f"Why {result['model']} says what it says",
        question=f"Which layers, heads and patches is the logit of {_what(result)} made of?",
    )
    removals, target = result["removals"], result["target"]
    summary = (
        f"Class {target['name']} has the {_ordinal(target['rank'])} logit of {len(found.logits)} and a probability of "
        f"{target['probability']:.1%}. "
    )
    if result["weights"] == "random":
        summary += "The weights are random: nothing here was learned."
    else:
        summary += f"Weights: {result['weights']}."
    attention = sum(half.total for half in found.halves if half.kind == "attn")
    second = sum(half.total for half in found.halves if half.kind != "attn")
    random = removals["random"]
    facts = [
        Fact(label="Logit explained", value=f"{found.logit:.3f}", detail=f"the terms sum to it within {_bound(found)}"),
        Fact(label="From attention", value=f"{attention:+.3f}", detail="all layers and heads, through the final norm"),
        Fact(
            label="Without the patches most for it",
            value=f"{removals['most for']:+.3f}",
            detail=f"{removals['patches']} patches; as many random ones: {random['mean']:+.3f} ± {random['std']:.3f}",
        ),
    ]
    report.headline(summary, facts)
    names = [view.name for view in views]
    grid_section(
        report,
        "Evidence on the picture",
        [
            (
                "All layers",
                "The picture and the evidence of all layers on it.",
                [v.pixels for v in views[:2]],
                names[:2],
            ),
            ("By layer", "The evidence of each layer on the picture.", [v.pixels for v in views[2:]], names[2:]),
        ],
        f"Orange: for {_what(result)}; blue: against it; strength is the share of the largest patch, of all layers "
        "together on the left, of any layer on the right. Attention counts where it looked, other terms on their own "
        f"token. On the patches lie {found.logit - result['elsewhere']:+.3f} of the logit; {result['elsewhere']:+.3f} "
        "lie on no patch: class token, registers and biases.",
    )
    columns, rows = _layers(found)
    section = report.section("By layer and head").table(columns, rows, caption="Terms of the logit; they sum to it.")
    by_head = [half for half in found.halves if half.heads is not None]
    panels: list[Any] = []
    if by_head:
        panels.append(
            HeatMap(
                title="Attention, by layer and head",
                values=np.array([half.heads.tolist() for half in by_head if half.heads is not None]),
                rows=[str(half.layer) for half in by_head],
                columns=[str(k) for k in range(len(by_head[0].heads if by_head[0].heads is not None else []))],
                row_label="layer",
                column_label="head",
            )
        )
    series = []
    for kind in dict.fromkeys(half.kind for half in found.halves):
        own = [half for half in found.halves if half.kind == kind]
        series.append(Series(label=_KINDS[kind], x=[half.layer for half in own], y=[half.total for half in own]))
    panels.append(LineChart(title="Term of each half", x_label="layer", series=series))
    section.figure(panels, caption="Contributions to the logit; above zero they speak for the class.")
    report.section("When patches are removed").table(
        ["patches made the mean colour", "change of the logit", "± (draws)"],
        [
            ["most for", removals["most for"], None],
            ["most against", removals["most against"], None],
            ["random", random["mean"], random["std"]],
        ],
        caption=f"{removals['patches']} of {found.grid[0] * found.grid[1]} patches at a time; random: {_DRAWS} draws.",
    )
    report.section("What is exact and what is not", _words(found, second))
    report.results = result
    report.provenance = Provenance.collect(config=settings, seeds=[settings["seed"]], duration=seconds)
    return write_run(folder, settings, report)


def _bound(found: Explanation) -> str:
    return f"{max(abs(found.error), 1e-12):.0e}"


def _ordinal(rank: int) -> str:
    return "highest" if rank == 1 else f"number {rank}"


def _words(found: Explanation, second: float) -> str:
    said = [
        f"The classifier reads the {found.read}. It is linear once the scale of every norm on the way is frozen at its "
        "value in this forward pass, so what each half of a layer added to the tokens is a term of the logit, and the "
        "terms sum to it. All is computed in float64."
    ]
    if any(half.replaces for half in found.halves):
        said.append(
            "ISTA has no skip around it: it replaces the tokens by a piecewise linear function of them. Earlier terms "
            "are followed through every later ISTA with the entries it left non-zero and the scale of its norm frozen. "
            f"ISTA then adds only the constants of its threshold and of its norm ({second:+.3f} over all layers); what "
            "it does to the class is in how it weighs and erases what passes, not in a term of its own."
        )
    else:
        said.append(
            "Terms are direct: what a half wrote, read by the classifier. What later layers made of it is in their terms."
        )
    known = [half for half in found.halves if half.kind == "attn"]
    if all(half.sources is not None for half in known):
        said.append(
            "Attention is split further into attention weight times value (bias of the value included), which is exact "
            "for softmax attention with the weights as they were."
        )
    else:
        said.append(
            "Attention of this kind is no sum over attended tokens here: its terms lie on the token that received them"
            + ("." if all(half.heads is not None for half in known) else ", and its heads are not told apart.")
        )
    said.append(
        "Not linear, and therefore held fixed: norm scales, attention weights, ISTA's zeros"
        + (", what is inside an MLP" if any(half.kind == "mlp" for half in found.halves) else "")
        + ". Remove a patch and all of these change, so the logit does not change by that patch's term; the table above "
        "says by how much it does. A patch of a deeper layer is a place in the grid: its token holds what earlier "
        "layers mixed into it. The same number added to every logit changes no decision, so a single logit has an "
        "arbitrary zero; `--against` explains a difference, which has none."
    )
    return "\n\n".join(said)
