"""One picture in one model: what is read in a single pass, and what is worked out of it when the page asks."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unrolled.explorer.models import Opened, prepared
from unrolled.explorer.samples import encode
from unrolled.explorer.switches import switches

if TYPE_CHECKING:
    from torch import Tensor

    from unrolled.instruments import Patches

DETAILS = (1, 2, 3)
"""How many times finer than the model was made for."""
MOST_PATCHES = 1600
TOP = 5
TAU = 0.2
OBJECTS = 3


@dataclass(frozen=True)
class Look:
    """A pass that was made."""

    opened: Opened
    pixels: Tensor
    patches: Patches
    facet: str
    answer: dict[str, Any]


def look_at(opened: Opened, picture: Image.Image, detail: int = 1) -> Look:
    """Run the model once over the whole picture, its shape kept.

    Args:
        opened: the model; its catalogue's lock must be held.
        picture: RGB.
        detail: one of `DETAILS`.

    Raises:
        ValueError: a model without transformer blocks, a detail it cannot take, or more than `MOST_PATCHES` patches.
    """
    import torch

    from unrolled.subjects.pictures import canvas

    if detail not in DETAILS:
        raise ValueError(f"detail={detail}: give {', '.join(map(str, DETAILS))}")
    how = prepared(opened, detail)
    pixels = how.tensor(picture)
    grid = (pixels.shape[2] // how.patch[0], pixels.shape[3] // how.patch[1])
    if grid[0] * grid[1] > MOST_PATCHES:
        raise ValueError(
            f"detail: {opened.choice.label} would cut this picture into {grid[0]} x {grid[1]} patches, more than the "
            f"{MOST_PATCHES:,} that are quick to compare; choose a lower detail"
        )
    device = next(opened.network.parameters()).device
    logits: list[Any] = []
    # the outputs of the pass that reads the patches are its prediction, too: no second pass
    handle = opened.network.register_forward_hook(lambda _, args, out: logits.append(getattr(out, "logits", out)))
    try:
        patches, facet, why = _read(opened, pixels.to(device), how.prefix, grid)
    finally:
        handle.remove()
    blank = bool(patches.blank[0])
    depth, heads = len(patches.layers), 0 if patches.attention is None else patches.attention.shape[2]
    answer: dict[str, Any] = {
        "model": opened.choice.shown(),
        "picture": "data:image/jpeg;base64," + base64.b64encode(encode(canvas(picture), format="JPEG")).decode(),
        "size": [picture.width, picture.height],
        "input": [pixels.shape[3], pixels.shape[2]],
        "grid": list(patches.grid),
        "patch": list(how.patch),
        "layers": depth,
        "heads": heads,
        "query": patches.query,
        "features": {"key": "keys", "token": "tokens"}[facet],
        "blank": blank,
        "prediction": None,
        "switches": [],
        "attention": None,
        "attention_note": why,
        "colours": None,
    }
    if opened.head and logits and isinstance(logits[-1], torch.Tensor) and logits[-1].dim() == 2:
        answer["prediction"] = _prediction(opened, logits[-1][0])
        answer["switches"] = switches(opened)
    if not blank:
        if patches.attention is not None:
            answer["attention"] = _attention(patches.attention[:, 0].cpu())
        answer["colours"] = _colours(patches.features[facet][:, 0].float().cpu())
    return Look(opened, pixels, patches, facet, answer)


def objects(look: Look, layer: int, tau: float = TAU) -> dict[str, Any]:
    """MaskCut at one layer: for every patch the number of its object, counted from 1, or 0.

    Raises:
        ValueError: a layer or a threshold out of range.
    """
    from unrolled.instruments import maskcut

    if not 0 < tau < 1:
        raise ValueError(f"tau={tau:g}: give a similarity between 0 and 1")
    features = _features(look, layer)
    count = len(features)
    if bool(look.patches.blank[0]) or count < 2:
        return {"labels": [0] * count, "areas": []}
    masks = maskcut(features, look.patches.grid, tau, OBJECTS).flatten(1).numpy()
    labels = np.zeros(count, np.int64)
    objects = [mask for mask in masks if mask.any()]
    for number, mask in enumerate(objects, 1):
        labels[mask] = number
    return {"labels": labels.tolist(), "areas": [round(float(mask.mean()), 4) for mask in objects]}


def similar(look: Look, layer: int, patch: int) -> dict[str, Any]:
    """Cosine similarity of every patch's features to those of one patch.

    Raises:
        ValueError: a layer or a patch out of range.
    """
    from unrolled.ops.rows import unit_rows

    features = unit_rows(_features(look, layer).double())
    if not 0 <= patch < len(features):
        raise ValueError(f"patch={patch}: there are patches 0 to {len(features) - 1}")
    return {"values": [round(float(value), 9) for value in features @ features[patch]]}


def curves(look: Look) -> dict[str, Any]:
    """Rates and sparsity of every layer on this picture, and of the same architecture untrained.

    The catalogue's lock must be held. A model whose layers the rates are not defined for is said to be one.
    """
    from unrolled.instruments import trace_report

    names = ("rate", "subspace_rate", "nonzero")
    try:
        report = trace_report(look.opened.network, look.pixels, control=look.opened.choice.trained)
    except ValueError as error:
        return {"note": f"Not known for this model: {error}", "model": None, "untrained": None}

    def columns(rows: list[dict[str, float]] | None) -> dict[str, list[float]] | None:
        return None if rows is None else {name: [_plain(row[name]) for row in rows] for name in names}

    return {"note": None, "model": columns(report["layers"]), "untrained": columns(report["control"])}


def pack(values: NDArray[Any]) -> str:
    """The bytes of an array as text."""
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _read(opened: Opened, pixels: Tensor, prefix: int | None, grid: tuple[int, int]) -> tuple[Patches, str, str | None]:
    """The patches with the most that this model gives: attention and keys, or keys, or tokens; and what is missing."""
    from unrolled.instruments import read_patches

    missing = None
    for attention, facet in ((True, "key"), (False, "key"), (False, "token")):
        try:
            patches = read_patches(
                opened.network, pixels, facets=[facet], attention=attention, prefix=prefix, grid=grid  # type: ignore[list-item]
            )  # fmt: skip
        except ValueError as error:
            if "attention weights are not known" not in str(error):
                raise
            missing = f"{opened.choice.label} has no attention map to show: its layers mix tokens in another way."
            continue
        return patches, facet, missing
    raise AssertionError("tokens are always read")


def _features(look: Look, layer: int) -> Tensor:
    if not 0 <= layer < len(look.patches.layers):
        raise ValueError(f"layer={layer}: there are layers 0 to {len(look.patches.layers) - 1}")
    return look.patches.features[look.facet][layer, 0].float().cpu()


def _prediction(opened: Opened, logits: Tensor) -> dict[str, Any]:
    shares = logits.double().softmax(-1)
    order = shares.argsort(descending=True)[:TOP].tolist()
    return {
        "classes": len(shares),
        "top": [{"name": opened.name_of(i), "probability": round(float(shares[i]), 5)} for i in order],
    }


def _attention(maps: Tensor) -> dict[str, Any]:
    """`[layers, heads, n]` -> 16-bit words `[layers, 1 + heads, n]`, the mean of the heads first.

    65535 stands for `peak`: how often the strongest patch of that map gets an even share, 1 / n; 0 stands for nothing.
    So every map can be put on one scale.
    """
    import torch

    maps = torch.cat([maps.mean(1, keepdim=True), maps], 1) * maps.shape[-1]
    peak = maps.amax(-1, keepdim=True)
    scaled = (maps / peak.clamp(min=1e-12) * 65535).round().numpy().astype("<u2")
    return {
        "maps": pack(scaled),
        "peak": [[_plain(value) for value in row] for row in peak[..., 0].tolist()],
    }


def _colours(features: Tensor) -> dict[str, Any]:
    """`[layers, n, d]` -> bytes `[layers, n, 3]`: three principal components as red, green and blue."""
    import torch

    from unrolled.instruments import token_pca

    out, explained = [], []
    for layer in features:
        count = min(3, *layer.shape)
        if len(layer) < 2:
            out.append(np.full((len(layer), 3), 128, np.uint8))
            explained.append(0.0)
            continue
        record = token_pca(layer, count)
        low, high = (record.scores.quantile(q, 0) for q in (0.02, 0.98))
        scaled = torch.where(high > low, (record.scores - low) / (high - low).clamp(min=1e-12), 0.5).clamp(0, 1)
        planes = np.full((len(layer), 3), 128, np.uint8)
        planes[:, :count] = (scaled * 255).round().byte().numpy()
        out.append(planes)
        explained.append(_plain(float(record.explained[:count].sum())))
    return {"maps": pack(np.stack(out)), "explained": explained}


def _plain(value: float) -> float:
    """Six digits: a page shows no more."""
    return float(f"{value:.6g}")
