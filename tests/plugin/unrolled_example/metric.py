"""How often the nearest neighbour is the same on both sides."""

from typing import Any

import torch
from torch import Tensor

from unrolled.alignment import Features, Metric, Representation


class SameNearest(Metric):
    """Share of samples whose nearest other sample is the same one."""

    name = "same_nearest"

    def prepare(self, x: Features | Representation) -> Tensor:
        rows = torch.nn.functional.normalize(Representation.of(x).x.double(), dim=1)
        return (rows @ rows.T).fill_diagonal_(-torch.inf).argmax(1)

    def compare(self, a: Any, b: Any) -> float:
        return float((a == b).double().mean())

    def relabel(self, prepared: Any, order: Tensor) -> Tensor:
        place: Tensor = order.argsort()[prepared[order]]
        return place
