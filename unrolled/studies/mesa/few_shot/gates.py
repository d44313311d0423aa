"""Gates and masks that leave pairs out of the sums of trained models, their weights as they are.

A gate decides how much the pair bound at a token weighs in the sums of a mesa layer, which is `input_gate` of
`unrolled.ops.mesa`; 0 leaves the pair out. A mask does the same, by hand, to the keys of softmax layers.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unrolled.layers import MesaLayer, SoftmaxSelfAttention
from unrolled.models import SequenceRegressor
from unrolled.ops import mesa
from unrolled.tasks import FewShotRegression
from unrolled.tasks.regression import Y


class ContentGate(nn.Module):
    """sigmoid(W z + b) of every head: the gate of MesaNet, open at the start. With `squares` it reads z^2 too.

    A linear gate cannot tell the zero vector from its surroundings; squares can.
    """

    def __init__(self, dim: int, heads: int, *, squares: bool = False) -> None:
        super().__init__()
        self.squares = squares
        self.linear = nn.Linear(2 * dim if squares else dim, heads)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, 2.0)

    def forward(self, z: Tensor) -> Tensor:
        """[b, t, dim] -> [b, heads, t]."""
        z = torch.cat([z, z.square()], dim=-1) if self.squares else z
        gate: Tensor = self.linear(z).sigmoid().transpose(1, 2)
        return gate


class PositionGate(nn.Module):
    """One weight in (0, 1) for every position, whatever stands there; 0.88 everywhere at the start.

    With `heads`, the ridge of each is tuned beside it, as a factor exp(`log_factor`).
    """

    def __init__(self, positions: int, heads: int | None = None) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.full((positions,), 2.0))
        self.log_factor = None if heads is None else nn.Parameter(torch.zeros(heads))

    def forward(self, z: Tensor) -> Tensor:
        """[b, t, dim] -> [b, 1, t]."""
        return self.logits[: z.shape[1]].sigmoid().expand(len(z), 1, -1)


class FixedGate(nn.Module):
    """A given weight for every position."""

    weights: Tensor

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights)

    def forward(self, z: Tensor) -> Tensor:
        """[b, t, dim] -> [b, 1, t]."""
        return self.weights[: z.shape[1]].expand(len(z), 1, -1)


class GatedMesa(nn.Module):
    """A mesa layer, as it is, with a gate on the pairs that enter its sums.

    Args:
        layer: without forgetting.
        gate: from tokens [b, t, dim] to weights [b, heads or 1, t].
    """

    def __init__(self, layer: MesaLayer, gate: nn.Module) -> None:
        super().__init__()
        if layer.forget is not None:
            raise ValueError("layer: must not forget; a gate beside a decay is what MesaNetLayer has")
        self.layer, self.gate = layer, gate

    def forward(self, z: Tensor) -> Tensor:
        """[b, t, dim] -> the update, [b, t, dim]."""
        layer = self.layer
        q, k, v = (layer.heads_of(project(z)) for project in (layer.query, layer.key, layer.value))
        if layer.normalize:
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        gate = self.gate(z).expand(-1, layer.heads, -1)
        factor = getattr(self.gate, "log_factor", None)
        ridge = layer.ridge if factor is None else layer.ridge * factor.exp()
        return layer.merge(mesa(q, k, v, ridge, input_gate=gate, method=layer.method))


class MaskedSoftmax(nn.Module):
    """A softmax layer that sees only some of the earlier tokens, and always itself.

    Args:
        layer: as it is.
        seen: [t] bool, which positions later ones may see.
    """

    seen: Tensor

    def __init__(self, layer: SoftmaxSelfAttention, seen: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("seen", seen)

    def forward(self, z: Tensor) -> Tensor:
        """[b, t, dim] -> the update, [b, t, dim]."""
        layer, count = self.layer, z.shape[1]
        q, k, v = (layer.heads_of(project(z)) for project in (layer.query, layer.key, layer.value))
        eye = torch.eye(count, dtype=torch.bool, device=z.device)
        mask = eye | self.seen[:count].expand(count, -1).tril()
        return layer.merge(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


def gated(model: SequenceRegressor, gate: nn.Module) -> SequenceRegressor:
    """A copy of the model with `gate` in each of its mesa layers; without one, `MaskedSoftmax` after the first layer.

    Softmax layers take a `FixedGate` only, and see the positions where it is not zero.
    """
    model = copy.deepcopy(model)
    for index, block in enumerate(model.blocks):
        layer: Any = block.attn
        if isinstance(layer, MesaLayer):
            block.attn = GatedMesa(layer, gate)
        elif index > 0:
            if not isinstance(gate, FixedGate):
                raise ValueError("gate: softmax layers have no sums to weigh; only a FixedGate can mask them")
            block.attn = MaskedSoftmax(layer, gate.weights > 0)
    return model


def parity_gate(world: FewShotRegression) -> FixedGate:
    """1 where an answer stands, and so the pair (x_i, y_i) is bound; 0 elsewhere."""
    return FixedGate((world.sample(1, seed=0).kinds == Y).float())
