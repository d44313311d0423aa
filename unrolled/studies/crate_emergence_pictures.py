"""Pictures for the study of emergence, from photos that may be shown: scikit-learn's two samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from unrolled.studies.crate_emergence import map_of, network
from unrolled.studies.crate_emergence_maps import KEEP, RULE, maps_of, read
from unrolled.studies.crate_emergence_photos import Shot
from unrolled.studies.crate_members import KINDS, Member

if TYPE_CHECKING:
    from unrolled.report import ImageRow
    from unrolled.studies.crate_emergence_tables import Found

_SHOWN = 144  # pixels of a side in the report


def rows_of(found: Found) -> list[ImageRow]:
    """The photos, then each kind: map and cut photo, by the first seed that was run, trained if any."""
    from unrolled.report import ImageRow

    shots = samples()
    photos = [_small(shot) for shot in shots]
    rows = [ImageRow(images=[image for photo in photos for image in (photo, photo)], label="photos")]
    for kind in found.config.kinds:
        for state in ("trained", "untrained"):
            place = next((i for i, r in enumerate(found.runs(kind, state)) if r is not None), None)
            if place is None:
                continue
            run: Any = found.runs(kind, state)[place]
            layer, head = run["maps"][map_of(kind)][RULE]["picked"]
            seed = found.config.seeds[place]
            member = Member(kind=kind, data=found.config.data, seed=seed, trained=state == "trained")
            images = _maps(found, member, shots, photos, layer, head)
            where = f"layer {layer + 1}, " + ("mean over heads" if head == run["heads"] else f"head {head + 1}")
            rows.append(ImageRow(images=images, label=f"{KINDS[kind].words}, {state}, {where}"))
            break
    return rows


def samples() -> list[Shot]:
    """scikit-learn's photos, without annotations."""
    from sklearn.datasets import load_sample_images

    return [
        Shot(
            half="report",
            pixels=torch.from_numpy(np.array(image)).movedim(-1, 0).contiguous(),
            labels=torch.zeros(image.shape[:2], dtype=torch.uint8),
        )
        for image in load_sample_images().images
    ]


def _maps(
    found: Found, member: Member, shots: list[Shot], photos: list[NDArray[np.uint8]], layer: int, head: int
) -> list[NDArray[np.uint8]]:
    from unrolled.instruments.segmentation import threshold_attention, upsample
    from unrolled.report import heat

    out: list[NDArray[np.uint8]] = []
    model = network(found.config, member)
    for _, patches in read(model, shots, found.config.side):
        assert patches.attention is not None
        maps = maps_of(patches, patches.attention.shape[2])[map_of(member.kind)][layer].cpu()
        chosen = torch.cat([maps, maps.mean(1, keepdim=True)], 1)[:, head]
        cut = threshold_attention(chosen, KEEP, by=RULE)
        size = (_SHOWN, _SHOWN)
        for own, mask, photo in zip(chosen, upsample(cut, patches.grid, size), photos, strict=True):
            picture = heat(upsample(own, patches.grid, size).numpy())
            out += [picture, np.where(mask.numpy()[..., None], photo, photo // 5).astype(np.uint8)]
    return out


def _small(shot: Shot) -> NDArray[np.uint8]:
    from unrolled.studies.crate_emergence_photos import as_square

    square = as_square([shot], _SHOWN)[0].movedim(0, -1)
    small: NDArray[np.uint8] = square.round().clamp(0, 255).to(torch.uint8).numpy()
    return small
