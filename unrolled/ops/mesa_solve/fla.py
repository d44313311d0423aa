"""The MesaNet kernel of flash-linear-attention behind the arguments of `mesa`, to compare with.

`fla.ops.mesa_net.chunk_mesa_net` solves by 30 steps of conjugate gradients from zero, in Triton on GPUs, for bfloat16
or float16 inputs. It takes [batch, steps, heads, width], the logarithm of the decay and the ridge (`lamb`, [heads,
width]), and does not scale queries. Its answer is approximate and comes without solutions, so no residual is certified.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unrolled.errors import MissingExtra
from unrolled.ops.mesa_solve.inputs import Inputs

# widest head its kernels hold, and the steps of its own default
_WIDEST, _STEPS = 128, 30


def fla_mesa(inputs: Inputs, *, dtype: torch.dtype, steps: int | None, asked: dict[str, bool]) -> Tensor:
    """Outputs [b, h, t, dv] in `dtype`, with that package's own gradients.

    Args:
        inputs: checked arguments; padding is blanked already.
        dtype: of the queries, 16 bits wide.
        steps: of conjugate gradients; None is 30.
        asked: arguments of `mesa` it cannot serve, by name, and whether they were given.

    Raises:
        ValueError: an argument it cannot serve, or an output that is not finite.
        MissingExtra: flash-linear-attention is not installed.
    """
    for name, given in asked.items():
        if given:
            raise ValueError(f'method "fla" cannot serve {name}: use method="cg" or "chunk"')
    width, value_width = inputs.q.shape[-1], inputs.v.shape[-1]
    if width != value_width:
        raise ValueError(f'method "fla" needs keys and values of one width, not {width} and {value_width}')
    if width > _WIDEST:
        raise ValueError(f'method "fla" serves widths up to {_WIDEST}, not {width}: use method="chunk"')
    if any(x.dtype != dtype for x in (inputs.q, inputs.k, inputs.v)) or dtype not in (torch.bfloat16, torch.float16):
        raise ValueError('method "fla" needs q, k and v all in bfloat16 or all in float16')
    try:
        from fla.ops.mesa_net import chunk_mesa_net  # type: ignore[import-not-found]
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "fla":
            raise
        raise MissingExtra(
            'method "fla" needs `fla`, which is not installed: pip install flash-linear-attention'
        ) from error
    if not _on_gpu(inputs.q):
        raise ValueError(f'method "fla" runs on GPUs only, and q is on {inputs.q.device}')
    q, k, v = (x.unflatten(0, inputs.shape).transpose(1, 2).contiguous() for x in (inputs.q, inputs.k, inputs.v))
    gate, decay = (
        torch.ones(q.shape[:3], dtype=inputs.dtype, device=q.device)
        if x is None
        else x.unflatten(0, inputs.shape).transpose(1, 2).contiguous()
        for x in (inputs.gate, inputs.decay)
    )
    out: Tensor = chunk_mesa_net(
        q=q,
        k=k,
        v=v,
        g=decay.log(),
        beta=gate,
        lamb=inputs.ridge.unflatten(0, inputs.shape)[0].contiguous(),
        max_CG_iteration=_STEPS if steps is None else steps,
        output_final_state=False,
    )[0]
    out = out.transpose(1, 2).to(dtype)
    if not bool(out.isfinite().all()):
        raise ValueError(
            'method "fla" gave outputs that are not finite, from inputs that are not or from an overflow in its 16-bit '
            'statistics: scale k and v down, or use method="chunk"'
        )
    return out


def _on_gpu(x: Tensor) -> bool:
    return x.device.type not in ("cpu", "mps")
