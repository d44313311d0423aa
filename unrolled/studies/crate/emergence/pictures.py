"""Pictures for the study of emergence, from photos that may be shown: scikit-learn's two samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from unrolled.studies.crate.emergence.cells import Shown
from unrolled.studies.crate.emergence.claims import STATES, View, head_name
from unrolled.studies.crate.emergence.photos import as_square, samples
from unrolled.studies.kinds import KINDS

if TYPE_CHECKING:
    from unrolled.report import ImageRow

_SHOWN = 144  # pixels of a side in the report


def rows_of(view: View) -> list[ImageRow]:
    """The photos, then each kind: map and cut photo, trained if it was run; none where nothing was."""
    from unrolled.report import ImageRow

    photos = list(as_square(list(samples()), _SHOWN).movedim(1, -1).round().clamp(0, 255).to(torch.uint8).numpy())
    shown = {row.cell.segmentation.network: row.result for row in view.results.of(Shown)}
    rows = []
    for kind in view.config.kinds:
        for state in STATES:
            network = view.config.networks(kind, state)[0]
            if network in shown:
                result = shown[network]
                head = head_name(result["head"], result["heads"])
                where = f"layer {result['layer']}, " + ("mean over heads" if head == "mean" else f"head {head}")
                rows.append(ImageRow(images=_pairs(result, photos), label=f"{KINDS[kind].words}, {state}, {where}"))
                break
    if not rows:
        return []
    return [ImageRow(images=[each for photo in photos for each in (photo, photo)], label="photos"), *rows]


def _pairs(result: Mapping[str, Any], photos: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    from unrolled.instruments.regions.segmentation import upsample
    from unrolled.report import heat

    images: list[NDArray[np.uint8]] = []
    for values, mask, photo in zip(result["maps"], result["kept"], photos, strict=True):
        grid = (len(values), len(values[0]))
        whole, cut = (upsample(torch.tensor(each).flatten(), grid, photo.shape[:2]).numpy() for each in (values, mask))
        images += [heat(whole), np.where(cut[..., None], photo, photo // 5).astype(np.uint8)]
    return images
