"""Root-mean-square normalisation that leaves Python by every exporter."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.jit._trace import is_tracing


class RMSNorm(nn.RMSNorm):
    """`torch.nn.RMSNorm`; traced by its formula, since ONNX's operators of `dynamo=False` do not have it."""

    def forward(self, x: Tensor) -> Tensor:
        """x / sqrt(mean(x^2) + eps) * weight over the last dimension."""
        if not is_tracing():
            return super().forward(x)
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * self.weight
