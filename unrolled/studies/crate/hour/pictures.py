"""What is shown of photos: maps that fit best and worst, and evidence on photos that may be shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unrolled.data.masks import Scene
from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.crate.emergence import maps
from unrolled.studies.crate.emergence.photos import as_square, ignored, samples, things
from unrolled.studies.crate.hour.networks import load, shown, studied
from unrolled.studies.crate.hour.photos import Things

_MAP = "class token"
_SILHOUETTE = 64  # pixels of a side
_TRAINED_AT = 32


@dataclass(frozen=True, kw_only=True)
class Pictured(Cell):
    """Maps of the layer and head that were chosen, where they fit things best and worst, and evidence for a class.

    Of annotated photos, most of which may not be shown, there is the silhouette of their things.

    Attributes:
        things: the choice, and the photos.
        each: how many of the best, and of the worst.
    """

    things: Things
    each: int

    def compute(self, context: Context) -> Result:
        """`annotated`, the best first, each its `place` among the photos, `jaccard`, `silhouette`, `map` and `kept`;
        `samples`, of each of scikit-learn's photos the `map` and what is `kept` of it, the `evidence` for the class
        that the network names at 32 px, its `label` and `probability`."""
        cell = self.things
        measured = context.result(cell)["maps"][_MAP]
        scores = torch.tensor(measured["picked_photos"])
        order = scores.argsort(descending=True, stable=True)
        places = torch.cat([order[: self.each], order[-self.each :]]).tolist()
        scenes = [cell.scenes(context)[place] for place in places]
        shown_too = samples()
        model = studied(cell.network, context)
        values, masks = maps.chosen(model, [*scenes, *shown_too], cell.side, _MAP, *measured["picked"])
        pairs = [{"map": _plain(value), "kept": mask.int().tolist()} for value, mask in zip(values, masks, strict=True)]
        annotated = [
            {"place": place, "jaccard": float(scores[place]), "silhouette": _silhouette(scene), **pair}
            for place, scene, pair in zip(places, scenes, pairs, strict=False)
        ]
        evidence = self._evidence(as_square(shown_too, _TRAINED_AT).round().byte(), context)
        return {
            "annotated": annotated,
            "samples": [{**pair, **each} for pair, each in zip(pairs[len(scenes) :], evidence, strict=True)],
        }

    def _evidence(self, images: Tensor, context: Context) -> list[Result]:
        from unrolled.instruments.explain import explain_logit

        model: Any = load(self.things.network, context)
        out = []
        for image in shown(model, images).to(context.device).split(1):
            explanation = explain_logit(model, image)
            with torch.no_grad():
                probability = float(model(image).softmax(1)[0, explanation.target])
            label = model.pretrained_cfg["label_names"][explanation.target]
            out.append({"evidence": _plain(explanation.evidence()), "label": label, "probability": probability})
        return out


def _silhouette(scene: Scene) -> list[list[int]]:
    """What people marked, squeezed to a square: 1 things, 0 all else, -1 without a label, which does not count."""
    size = (_SILHOUETTE, _SILHOUETTE)
    inside, blank = (
        F.interpolate(m[None, None].float(), size, mode="area")[0, 0] for m in (things(scene), ignored(scene))
    )
    return torch.where(blank > 0.5, -1, (inside > 0.5 * (1 - blank)).int()).tolist()


def _plain(values: Tensor) -> Any:
    return values.double().cpu().mul(1e5).round().div(1e5).tolist()
