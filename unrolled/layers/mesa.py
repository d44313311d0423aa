"""Mesa layers: each token reads the exact solution of the ridge regression its context defines."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unrolled.layers.convolution import ShortConvolution
from unrolled.layers.linear_attention import AttentionLayer, unit, wide
from unrolled.layers.norm import RMSNorm
from unrolled.ops.mesa_solve import METHODS, MesaState, mesa
from unrolled.ops.mesa_solve.inputs import check_lengths
from unrolled.ops.recording import is_recording, knows_sizes

# decay below which MesaNet keeps a pair written at full strength from counting as one of an endless run of repeats
_DECAY_CAP = 0.9975


class _Mesa(AttentionLayer):
    """What the mesa layers share: checks of their tokens, and errors that speak of tokens instead of q and decay."""

    def check(self, z: Tensor, lengths: Tensor | None) -> Tensor | None:
        """`lengths` as a tensor, after a `ValueError` if it or the tokens do not fit this layer."""
        if not knows_sizes(z):
            return lengths
        if z.ndim != 3 or z.shape[-1] != self.dim:
            raise ValueError(f"z must be tokens [batch, n, {self.dim}], not {list(z.shape)}")
        if z.numel() == 0:
            raise ValueError(
                f"z must hold at least one sequence and one token, not {list(z.shape)}: skip empty batches"
            )
        if not z.is_floating_point():
            raise ValueError(f"z must be a floating-point tensor, not {z.dtype}: embed the tokens first")
        return None if lengths is None else check_lengths(lengths, z.shape[0], z.shape[1], z.device)

    def solve(self, z: Tensor, q: Tensor, k: Tensor, v: Tensor, ridge: Tensor, *rest: Any, **options: Any) -> Any:
        """`mesa`, tracing what is not finite to the tokens, a parameter, or the range of the dtype."""
        if is_recording(z):
            return mesa(q, k, v, ridge, *rest, **options, steps=self.dim_head)
        try:
            return mesa(q, k, v, ridge, *rest, **options)
        except ValueError as error:
            lengths = options.get("lengths")
            if lengths is not None:
                valid = torch.arange(z.shape[1], device=z.device) < lengths[:, None]
                z, q, k, v = z[valid], *(x.transpose(1, 2)[valid] for x in (q, k, v))
            if not bool(z.isfinite().all()):
                raise ValueError("z holds tokens that are not finite") from error
            for name, parameter in self.named_parameters():
                if not bool(parameter.isfinite().all()):
                    raise ValueError(f"the parameter {name} is not finite: training diverged") from error
            if not all(bool(x.isfinite().all()) for x in (q, k, v)):
                raise ValueError(
                    f"the projections of z overflow {q.dtype}: scale z down, by a norm before the layer, or use "
                    "bfloat16 or float32"
                ) from error
            raise

    def merge(self, per_head: Tensor) -> Tensor:
        """[b, heads, n, dim_value] -> [b, n, dim] through `output`.

        Raises:
            ValueError: the update is beyond the range of float16. A clipped update would be wrong without a sign of it.
        """
        update = super().merge(per_head)
        # only float16 is looked at: bfloat16 has the range of the solve itself, and a look makes a GPU wait
        if not is_recording(update) and update.dtype == torch.float16 and not bool(update.isfinite().all()):
            raise ValueError(
                "the update overflows float16: scale z down, by a norm before the layer, or use bfloat16 or float32"
            )
        return update


class MesaLayer(_Mesa):
    r"""The mesa layer (arXiv 2309.05858, equations 4 to 8).

    $$ \Delta e_t = \sum_h P_h \hat\Phi_{h,t}\, q_{h,t}, \quad
       \hat\Phi_{h,t} = \arg\min_\Phi \tfrac12 \sum_{s \le t} |v_{h,s} - \Phi k_{h,s}|^2
       + \tfrac{1}{2\lambda_h} |\Phi|^2 $$

    | symbol | attribute | shape |
    | --- | --- | --- |
    | W_q, W_k, W_v, P | `query`, `key`, `value`, `output` | as in `LinearSelfAttention` |
    | 1 / lambda | `ridge` = exp(`log_ridge`) | [heads] |
    | gamma | sigmoid(`forget(z)`), with `forgetful` | [b, heads, n] |

    The objective is `unrolled.theory.in_context.least_squares`, minimised exactly. As lambda goes to 0 the layer,
    divided by lambda, is `LinearSelfAttention`. It returns the update; the residual is the caller's.

    Departures: lambda is learned through the logarithm of its inverse, which keeps it positive. The solve is chunkwise
    instead of a scan over tokens, with the same result. `forgetful` is the variant of the paper's appendix B, in which
    the ridge decays with the statistics.

    In float16 the norms, the ridge and the solve are computed in float32 and a solve beyond 65504 is clipped there. An
    update that overflows float16 is a `ValueError`, never inf or NaN.

    Args:
        dim: token width.
        heads: number of heads.
        dim_head: width of queries and keys; `dim / heads` if None.
        dim_value: width of values; `dim_head` if None.
        ridge: initial 1 / lambda.
        forgetful: learn a decay per head and token.
        normalize: l2-normalise queries and keys.
        init_std: of all projections; PyTorch's default if None.
        method: of `unrolled.ops.mesa`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        dim_head: int | None = None,
        dim_value: int | None = None,
        ridge: float = 1.0,
        forgetful: bool = False,
        normalize: bool = False,
        init_std: float | None = None,
        method: str = "auto",
    ) -> None:
        super().__init__(dim, heads, dim_head=dim_head, dim_value=dim_value, init_std=init_std)
        if not 0 < ridge < math.inf:
            raise ValueError(f"ridge must be positive and finite, not {ridge}")
        _check_method(method, recurrent=True)
        self.log_ridge = nn.Parameter(torch.empty(heads))
        self.forget = nn.Linear(dim, heads) if forgetful else None
        self.normalize, self.method = normalize, method
        self._start = ridge
        self._reset_gates()

    def reset_parameters(self) -> None:
        """The ridge goes back to where it started, and the layer begins by remembering."""
        super().reset_parameters()
        self._reset_gates()

    def _reset_gates(self) -> None:
        nn.init.constant_(self.log_ridge, math.log(self._start))
        if self.forget is not None:
            nn.init.zeros_(self.forget.weight)
            nn.init.constant_(self.forget.bias, 5.0)  # sigmoid(5) = 0.993

    @property
    def ridge(self) -> Tensor:
        """1 / lambda of every head, [heads], in float32 at least."""
        return wide(self.log_ridge).exp()

    def forward(
        self,
        z: Tensor,
        *,
        lengths: Tensor | None = None,
        state: MesaState | None = None,
        return_state: bool = False,
    ) -> Any:
        """Update of every token.

        Args:
            z: tokens [b, n, dim].
            lengths: [b] valid tokens of right-padded sequences.
            state: of earlier tokens.
            return_state: also return the state after the last token.

        Returns:
            [b, n, dim], or that and the state.

        Raises:
            ValueError: tokens, lengths or a state that do not fit, tokens that are not finite, or an overflow.
        """
        lengths = self.check(z, lengths)
        q, k, v = self.heads_of(self.query(z)), self.heads_of(self.key(z)), self.heads_of(self.value(z))
        if self.normalize:
            q, k = unit(q), unit(k)
        decay = None if self.forget is None else _open_sigmoid(self.forget(z)).transpose(1, 2)
        out = self.solve(
            z,
            q,
            k,
            v,
            self.ridge,
            decay,
            method=self.method,
            ridge_decays=decay is not None,
            lengths=lengths,
            state=state,
            return_state=return_state,
        )
        if return_state:
            out, after = out
            return self.merge(out), after
        return self.merge(out)


class MesaNetState(NamedTuple):
    """What a `MesaNetLayer` carries: the solve's state and the last inputs of its convolution."""

    mesa: MesaState
    window: Tensor  # [b, channels, width - 1]


class MesaNetLayer(_Mesa):
    r"""The sequence-mixing layer of MesaNet (arXiv 2506.05233).

    $$ G_t = \gamma_t G_{t-1} + \beta_t v_t k_t^\top, \quad H_t = \gamma_t H_{t-1} + \beta_t k_t k_t^\top, \quad
       \Delta e_t = \sum_h P_h\, \mathrm{norm}\big(G_t (H_t + \Lambda)^{-1} q_t\big) $$

    | symbol | attribute | shape |
    | --- | --- | --- |
    | q, k, v | l2norm(silu(conv(`query`))), same of `key`; `value` | [b, heads, n, dim_head] |
    | Lambda | `ridge` = 0.25 + softplus(`raw_ridge`), 1 at the start | [heads, dim_head] |
    | beta, gamma | sigmoids of `gates(z)`, with biases | [b, heads, n] |
    | norm | `head_norm`, an RMSNorm over each head | [dim_value] |

    G_t (H_t + Lambda)^-1 minimises, exactly, `unrolled.theory.in_context.least_squares` of the pairs so far, with ridge
    Lambda and the weights that beta and gamma give them (`context_weights`). It returns the update; the residual is the
    caller's.

    The decay is capped by the gate, gamma (1 - (1 - 0.9975) beta^2), so that runs of one token do not pile up.

    Departures: the paper leaves open whether values pass the convolution; here queries and keys do (`conv_values` adds
    values, with SiLU). The systems are solved to rounding, where the paper stops after 30 steps of conjugate gradients.
    Overflow in float16 is treated as in `MesaLayer`.

    Args:
        dim: token width.
        heads: number of heads.
        dim_head: width of queries and keys; `dim / heads` if None.
        dim_value: width of values; `dim_head` if None.
        width: taps of the causal convolution.
        conv_values: convolve the values too.
        method: of `unrolled.ops.mesa`, but for "recurrent", which cannot hold a ridge fixed under decay.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        dim_head: int | None = None,
        dim_value: int | None = None,
        width: int = 4,
        conv_values: bool = False,
        method: str = "auto",
    ) -> None:
        super().__init__(dim, heads, dim_head=dim_head, dim_value=dim_value)
        _check_method(method, recurrent=False)
        self.width, self.conv_values, self.method = width, conv_values, method
        self.conv = ShortConvolution(heads * (2 * self.dim_head + (self.dim_value if conv_values else 0)), width)
        self.gates = nn.Linear(dim, 2 * heads)
        self.raw_ridge = nn.Parameter(torch.empty(heads, self.dim_head))
        self.head_norm = RMSNorm(self.dim_value)
        self._reset_ridge()

    def reset_parameters(self) -> None:
        """The ridge starts at 1."""
        super().reset_parameters()
        self._reset_ridge()

    def _reset_ridge(self) -> None:
        nn.init.constant_(self.raw_ridge, math.log(math.expm1(0.75)))

    @property
    def ridge(self) -> Tensor:
        """Lambda, [heads, dim_head], in float32 at least."""
        return 0.25 + F.softplus(wide(self.raw_ridge))

    def forward(
        self,
        z: Tensor,
        *,
        lengths: Tensor | None = None,
        state: MesaNetState | None = None,
        return_state: bool = False,
    ) -> Any:
        """Update of every token; arguments and result as in `MesaLayer.forward`."""
        lengths = self.check(z, lengths)
        mixed = [self.query(z), self.key(z), *([self.value(z)] if self.conv_values else [])]
        joined = torch.cat(mixed, dim=-1)
        convolved, window = self.conv(joined, window=self._window(state, joined), lengths=lengths)
        pieces = F.silu(convolved).split([x.shape[-1] for x in mixed], dim=-1)
        q, k = unit(self.heads_of(pieces[0])), unit(self.heads_of(pieces[1]))
        v = self.heads_of(pieces[2] if self.conv_values else self.value(z))
        gate, decay = _open_sigmoid(self.gates(z)).transpose(1, 2).chunk(2, dim=1)
        decay = decay * (1 - (1 - _DECAY_CAP) * gate.square())
        out = self.solve(
            z,
            q,
            k,
            v,
            self.ridge,
            decay,
            gate,
            method=self.method,
            lengths=lengths,
            state=None if state is None else state.mesa,
            return_state=return_state,
        )
        after: MesaState | None = None
        if return_state:
            out, after = out
        update = self.merge(self.head_norm(out.to(self.head_norm.weight.dtype)))
        return update if after is None else (update, MesaNetState(after, window))

    def _window(self, state: MesaNetState | None, joined: Tensor) -> Tensor | None:
        """The last inputs of the convolution that `state` carries."""
        if state is None:
            return None
        if not isinstance(state, MesaNetState):
            raise ValueError(
                "state must be a MesaNetState, as return_state=True gives after the earlier tokens, not "
                f"{type(state).__name__}"
            )
        shape = (joined.shape[0], joined.shape[-1], self.width - 1)
        if not isinstance(state.window, Tensor) or state.window.shape != shape:
            actual = list(state.window.shape) if isinstance(state.window, Tensor) else type(state.window).__name__
            raise ValueError(
                f"state.window must be {list(shape)} for this layer and z, not {actual}: use their own state"
            )
        return state.window


class MesaNetBlock(nn.Module):
    """One block of MesaNet: z + mixer(norm(z)), then z + SwiGLU(norm(z)), with RMSNorm before each.

    Args:
        dim, heads, dim_head, dim_value, width, conv_values, method: of `MesaNetLayer`.
        mlp_ratio: hidden width of the SwiGLU over `dim`, 3 in the paper.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        dim_head: int | None = None,
        dim_value: int | None = None,
        width: int = 4,
        conv_values: bool = False,
        mlp_ratio: float = 3.0,
        method: str = "auto",
    ) -> None:
        super().__init__()
        self.norm1 = RMSNorm(dim)
        self.mixer = MesaNetLayer(
            dim,
            heads,
            dim_head=dim_head,
            dim_value=dim_value,
            width=width,
            conv_values=conv_values,
            method=method,
        )
        hidden = int(mlp_ratio * dim)
        if hidden < 1:
            raise ValueError(f"mlp_ratio must leave the SwiGLU a hidden width of at least 1, not {mlp_ratio} * {dim}")
        self.norm2 = RMSNorm(dim)
        self.expand = nn.Linear(dim, 2 * hidden, bias=False)
        self.contract = nn.Linear(hidden, dim, bias=False)

    def forward(
        self,
        z: Tensor,
        *,
        lengths: Tensor | None = None,
        state: MesaNetState | None = None,
        return_state: bool = False,
    ) -> Any:
        """[b, n, dim] -> [b, n, dim]; arguments as in `MesaLayer.forward`."""
        self.mixer.check(z, lengths)
        update = self.mixer(self.norm1(z), lengths=lengths, state=state, return_state=return_state)
        update, after = update if return_state else (update, None)
        z = z + update
        gate, value = self.expand(self.norm2(z)).chunk(2, dim=-1)
        z = z + self.contract(F.silu(gate) * value)
        return (z, after) if return_state else z


def _open_sigmoid(x: Tensor) -> Tensor:
    """Sigmoid in float32 at least, kept off exact zero, which would forget everything and leave no gradient."""
    return wide(x).sigmoid().clamp_min(1e-6)


def _check_method(method: str, *, recurrent: bool) -> None:
    served = [name for name in METHODS if recurrent or name != "recurrent"]
    if method not in served:
        raise ValueError(f"method must be one of {', '.join(served)}, not {method!r}")
