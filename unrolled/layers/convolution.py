"""The short causal convolution that sequence layers put before their queries and keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ShortConvolution(nn.Conv1d):
    """Every channel of a token mixed with the same channel of the `width - 1` tokens before it; no bias.

    Args:
        channels: c.
        width: taps, at least 1, which mixes no steps.
    """

    def __init__(self, channels: int, width: int) -> None:
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"width must be a whole number, at least 1, which mixes no steps, not {width!r}")
        super().__init__(channels, channels, width, groups=channels, bias=False)
        self.width = width

    def forward(  # type: ignore[override]
        self, x: Tensor, *, window: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Convolve, as if zeros came before the first token.

        Args:
            x: [b, n, c].
            window: the last inputs of the tokens before these, `[b, c, width - 1]`, in place of the zeros.
            lengths: [b] of sequences padded to n; the window is then that after the last token of each.

        Returns:
            [b, n, c], and the window for the tokens that follow.
        """
        history = self.width - 1
        x = x.transpose(1, 2)
        x = F.pad(x, (history, 0)) if window is None else torch.cat([window.to(x.dtype), x], dim=-1)
        if lengths is None:
            after = x[..., x.shape[-1] - history :]
        else:
            index = lengths[:, None, None] + torch.arange(history, device=x.device)
            after = x.gather(-1, index.expand(-1, x.shape[1], -1))
        return super().forward(x).transpose(1, 2), after
