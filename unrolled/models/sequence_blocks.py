"""What `unrolled.models.sequence` stacks: blocks of any attention layer and any second half, and positions."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unrolled.errors import suggestion
from unrolled.layers.delta import DeltaLayer
from unrolled.layers.ista import ISTA
from unrolled.layers.linear_attention import LinearSelfAttention, SoftmaxSelfAttention
from unrolled.layers.mesa import MesaLayer, MesaNetLayer
from unrolled.layers.mssa import MSSA
from unrolled.layers.norm import RMSNorm
from unrolled.layers.overcomplete import OvercompleteISTA
from unrolled.layers.tssa import CausalTSSA, TokenStatistics
from unrolled.models.sequence_config import REPLACING, SequenceConfig

MAKE_NORM: dict[str, Callable[[int], nn.Module]] = {
    "layernorm": nn.LayerNorm,
    "rmsnorm": RMSNorm,
    "none": lambda dim: nn.Identity(),
}


class CausalMSSA(MSSA):
    r"""`MSSA` in which each token attends to itself and those before it, with a cache of one tensor.

    Query, key and value are the same projection, w = U^T z. Decoding therefore remembers w alone, `[b, h, m, p]`: half
    of what a softmax layer of the same width keeps. Everything else is `MSSA`'s, but for the forms of its step that
    are gradients in all tokens at once.
    """

    def __init__(self, dim: int, heads: int, **kwargs: Any) -> None:
        """Build the layer; arguments as in `MSSA`.

        Raises:
            ValueError: as `MSSA`, and `compression` is `"neumann"` or `"exact"`.
        """
        super().__init__(dim, heads, **kwargs)
        if self.eps is not None:
            raise ValueError(f"compression={self.compression!r}: has no causal form; use 'negated' or 'derived'")

    def forward(self, z: Tensor, *, state: Tensor | None = None, return_state: bool = False) -> Any:  # type: ignore[override]
        """Update of every token.

        Args:
            z: tokens `[b, n, d]`, normalised by the caller.
            state: projections `[b, h, m, p]` of the m earlier tokens.
            return_state: also return the projections of all tokens so far.

        Returns:
            `[b, n, d]`, or that and the state.
        """
        new = self.project(z)
        seen = new if state is None else torch.cat([state, new], dim=-2)
        n, m = new.shape[-2], seen.shape[-2]
        mask = None
        if state is not None and 1 < n < m:
            mask = torch.ones(n, m, dtype=torch.bool, device=z.device).tril(m - n)
        causal = state is None or n == m
        y = self.signed(F.scaled_dot_product_attention(new, seen, seen, attn_mask=mask, is_causal=causal), new)
        update = self.merge(y.transpose(-3, -2).flatten(-2))
        return (update, seen) if return_state else update

    def attention(self, z: Tensor, *, query: int | slice | None = None, is_causal: bool = True) -> Tensor:
        """Attention weights as in `MSSA.attention`, masked as in `forward`."""
        return super().attention(z, query=query, is_causal=is_causal)


class MLP(nn.Module):
    """d -> ratio * d -> d with a GELU or ReLU between, or a SwiGLU; no biases."""

    def __init__(self, dim: int, *, ratio: float = 4.0, kind: str = "mlp") -> None:
        super().__init__()
        hidden = int(ratio * dim)
        self.kind = kind
        self.expand = nn.Linear(dim, 2 * hidden if kind == "swiglu" else hidden, bias=False)
        self.contract = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        hidden = self.expand(x)
        if self.kind == "swiglu":
            gate, hidden = hidden.chunk(2, dim=-1)
            hidden = F.silu(gate) * hidden
        else:
            hidden = F.relu(hidden) if self.kind == "relu" else F.gelu(hidden)
        out: Tensor = self.contract(hidden)
        return out


class SequenceBlock(nn.Module):
    r"""One block: z + attn(norm1(z)), then z + second(norm2(z)), or ISTA(norm2(z)) in its place.

    | part       | attribute        |
    | ---------- | ---------------- |
    | attention  | `attn`           |
    | the second half | `mlp`, or `ista` for ISTA and the overcomplete dictionary; none with `second="none"` |
    | norms      | `norm1`, `norm2` |
    | what multiplies what each half adds | `gamma1`, `gamma2`, `[d]`; None without `layer_scale` |

    ISTA replaces the tokens, as in `CRATEBlock`: its identity is inside the step. The overcomplete dictionary of
    CRATE-alpha is added to them.
    """

    gamma1: nn.Parameter | None
    gamma2: nn.Parameter | None

    def __init__(self, config: SequenceConfig, index: int) -> None:
        super().__init__()
        name = config.layers[index]
        self.norm1 = MAKE_NORM[config.norm](config.dim)
        positioned = config.positions == "first_layer" and index == 0
        self.attn = _positioned(config, name) if positioned else MAKE_LAYER[name](config, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        second = MAKE_SECOND[config.second](config)
        self.replaces = config.second in REPLACING
        # an identity too reads Z+half, which instruments look for between the halves of a layer
        self.norm2 = nn.Identity() if second is None else MAKE_NORM[config.norm](config.dim)
        sparse = isinstance(second, ISTA | OvercompleteISTA)
        self.ista = second if sparse else None
        self.mlp = None if sparse else second
        self.gamma1 = self.gamma2 = None
        self.layer_scale = config.layer_scale
        if config.layer_scale is not None:
            self.gamma1 = nn.Parameter(torch.empty(config.dim))
            self.gamma2 = None if second is None else nn.Parameter(torch.empty(config.dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Layer scales go back to where they started; the layers initialise themselves."""
        for gamma in (self.gamma1, self.gamma2):
            if gamma is not None:
                nn.init.constant_(gamma, self.layer_scale or 0.0)

    def forward(
        self, z: Tensor, *, positions: Tensor | None = None, state: Any = None, return_state: bool = False
    ) -> Any:
        """One block.

        Args:
            z: tokens [b, n, d].
            positions: [n, d], for a first layer that reads them beside the tokens.
            state: the attention layer's, of earlier tokens.
            return_state: also return the state after the last token.

        Returns:
            [b, n, d], or that and the state.
        """
        x, after = self.norm1(z), None
        if positions is not None:
            x = torch.cat([x, positions.to(x.dtype).expand(len(x), -1, -1)], dim=-1)
        if return_state or state is not None:
            update, after = self.attn(x, state=state, return_state=True)
        else:
            update = self.attn(x)
        z = z + self.dropout(update if self.gamma1 is None else self.gamma1 * update)
        x, second = self.norm2(z), self.mlp if self.ista is None else self.ista
        if second is not None:
            update = second(x)
            update = update if self.gamma2 is None else self.gamma2 * update
            z = update if self.replaces else z + self.dropout(update)
        return (z, after) if return_state else z


def sinusoids(start: int, count: int, dim: int, device: torch.device) -> Tensor:
    """Sines and cosines of positions start .. start + count - 1, [count, dim] in float32."""
    rates = torch.exp(-math.log(10000.0) * torch.arange(0, dim, 2, device=device) / dim)
    angles = torch.arange(start, start + count, device=device)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :dim]


def check_state(attention: nn.Module, state: Any, batch: int) -> None:
    """Raise `ValueError` unless the tensors of `state` have the widths of `attention`, for `batch` sequences.

    Layers that are not listed here check theirs themselves.
    """
    expected: dict[str, tuple[int | None, ...]] = {}
    actual: dict[str, Any] = {}
    a: Any = attention
    if isinstance(a, CausalTSSA):
        actual = state._asdict() if isinstance(state, TokenStatistics) else {"energy": None}
        expected = {"energy": (batch, a.heads, a.dim_head)}
    elif isinstance(a, MSSA):
        expected, actual = {"projections": (batch, a.heads, None, a.dim_head)}, {"projections": state}
    elif isinstance(a, SoftmaxSelfAttention):
        expected = {"keys": (batch, a.heads, None, a.dim_head), "values": (batch, a.heads, None, a.dim_value)}
        if a.conv is not None:
            expected["window"] = (batch, a.conv.in_channels, a.conv.width - 1)
        fits = isinstance(state, tuple) and len(state) == len(expected)
        actual = dict(zip(expected, state, strict=True)) if fits else dict.fromkeys(expected)
    elif isinstance(a, LinearSelfAttention | DeltaLayer):
        expected, actual = {"sums": (batch, a.heads, a.dim_value, a.dim_head)}, {"sums": state}
    elif isinstance(a, MesaLayer | MesaNetLayer):
        inner = getattr(state, "mesa", state)
        actual = {name: getattr(inner, name, None) for name in ("gram", "cross")}
        expected = {
            "gram": (batch, a.heads, a.dim_head, a.dim_head),
            "cross": (batch, a.heads, a.dim_value, a.dim_head),
        }
        if isinstance(a, MesaNetLayer):
            actual["window"] = getattr(state, "window", None)
            expected["window"] = (batch, a.conv.in_channels, a.width - 1)
    for name, want in expected.items():
        got = tuple(actual[name].shape) if isinstance(actual[name], Tensor) else None
        if got is None or len(got) != len(want) or any(w not in (None, g) for g, w in zip(got, want, strict=True)):
            shown = "x".join("*" if w is None else str(w) for w in want)
            raise ValueError(
                f"state: {name} of a {type(a).__name__} must be {shown}, not "
                f"{'absent' if got is None else 'x'.join(map(str, got))}; pass the state this model returned"
            )


class _WithoutPositions(nn.Linear):
    """A projection of the tokens alone, where queries and keys read positions beside them."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x[..., : self.in_features], self.weight)


def _positioned(config: SequenceConfig, name: str) -> nn.Module:
    """An attention layer whose queries and keys read [token, position], and whose values and output do not."""
    layer: Any = MAKE_LAYER[name](config, 2 * config.dim)
    if not isinstance(layer, SoftmaxSelfAttention | LinearSelfAttention | MesaLayer) or getattr(layer, "forget", None):
        raise ValueError(
            f"positions='first_layer' needs a first layer softmax, linear or mesa (no gates), not {name!r}"
        )
    inner = layer.heads * layer.dim_value
    layer.value = _WithoutPositions(config.dim, inner, bias=False)
    layer.output = nn.Linear(inner, config.dim, bias=False)
    return layer


def _arguments(config: SequenceConfig, name: str, layer: type[nn.Module]) -> dict[str, Any]:
    """What `config.layer_args` gives to `layer`, after a `ValueError` for what it does not take."""
    given = config.layer_args.get(name, {})
    known = [x for x in _parameters(layer) if x not in ("self", "dim", "heads", "dim_head")]
    for argument in given:
        if argument not in known:
            raise ValueError(f"layer_args[{name!r}]: no argument {argument!r}; {suggestion(argument, known)}")
    return given


def _parameters(layer: type[nn.Module]) -> list[str]:
    """Names of the arguments of a constructor, and of those it passes its `**kwargs` on to."""
    names: list[str] = []
    for base in layer.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        names += [x.name for x in parameters if x.kind is not x.VAR_KEYWORD and x.name not in names]
        if all(x.kind is not x.VAR_KEYWORD for x in parameters):
            break
    return names


def _projections(layer: type[nn.Module], name: str) -> Callable[[SequenceConfig, int], nn.Module]:
    def build(config: SequenceConfig, dim: int) -> nn.Module:
        return layer(dim, config.heads, dim_head=config.width, **_arguments(config, name, layer))

    return build


def _softmax(config: SequenceConfig, dim: int) -> nn.Module:
    args = {"causal": config.causal, **_arguments(config, "softmax", SoftmaxSelfAttention)}
    return SoftmaxSelfAttention(dim, config.heads, dim_head=config.width, **args)


def _mssa(config: SequenceConfig, dim: int) -> nn.Module:
    layer = CausalMSSA if config.causal else MSSA
    return layer(dim, config.heads, dim_head=config.width, **_arguments(config, "mssa", layer))


def _tssa(config: SequenceConfig, dim: int) -> nn.Module:
    args = {"max_length": config.max_length, **_arguments(config, "tssa", CausalTSSA)}
    return CausalTSSA(dim, config.heads, dim_head=config.width, **args)


def _overcomplete(config: SequenceConfig) -> nn.Module:
    args = {"expansion": int(config.mlp_ratio), **_arguments(config, "overcomplete", OvercompleteISTA)}
    return OvercompleteISTA(config.dim, **args)


def _mlp(config: SequenceConfig) -> nn.Module:
    return MLP(config.dim, ratio=config.mlp_ratio, kind=config.second)


# attention layers by name: (config, width of what they read) -> a module called as
# `layer(z, state=None, return_state=False)`, which returns the update
MAKE_LAYER: dict[str, Callable[[SequenceConfig, int], nn.Module]] = {
    "softmax": _softmax,
    "linear": _projections(LinearSelfAttention, "linear"),
    "delta": _projections(DeltaLayer, "delta"),
    "mesa": _projections(MesaLayer, "mesa"),
    "mesanet": _projections(MesaNetLayer, "mesanet"),
    "mssa": _mssa,
    "tssa": _tssa,
}
# second halves by name
MAKE_SECOND: dict[str, Callable[[SequenceConfig], nn.Module | None]] = {
    "mlp": _mlp,
    "relu": _mlp,
    "swiglu": _mlp,
    "ista": lambda config: ISTA(config.dim, **_arguments(config, "ista", ISTA)),
    "overcomplete": _overcomplete,
    "none": lambda config: None,
}
