"""One logit as a sum over layers, heads and patches, exact for the forward pass it explains.

The classifier reads the tokens through norms. With the scale of each norm frozen at its value, the logit is an affine
function of the last tokens, and what every half of a layer added to them is a term of its own. ISTA adds nothing: it
replaces the tokens, so the way back goes through it with its norm's scale and its active set frozen.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from unrolled.instruments.anatomy import Parts, Stack, final_sites, find_parts, unwrap
from unrolled.instruments.features.layout import Layout
from unrolled.instruments.regions.patches import grid_of, main_stack, prefix_of
from unrolled.instruments.trace import trace
from unrolled.tables import Brief, Tabular

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OUTPUTS = ("output", "proj", "out_proj")
_CLOSE = 1e-5  # of tensors in float64: relative to the largest entry


@dataclass(frozen=True, kw_only=True, repr=False)
class HalfEvidence(Brief):
    """What one half of one layer gives to the logit. Tensors are float64 on the CPU."""

    layer: int
    kind: Literal["attn", "mlp", "ista"]
    replaces: bool
    """The half replaces the tokens (ISTA without a skip): the terms are the constants of its threshold and norm."""
    total: float
    tokens: Tensor
    """`[n]`, by the token it was added to; sums to `total`."""
    heads: Tensor | None = None
    """`[h]`; with `bias` it sums to `total`. None where an attention layer's output projection is not known."""
    sources: Tensor | None = None
    """`[h, n]`, by the token that was attended to: attention weight times value; sums to `heads` over tokens."""
    bias: float = 0.0
    """Of the attention's output projection."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Explanation(Tabular):
    """The terms of one logit (or of the difference of two): `constant`, `embed` and `halves` sum to `logit`."""

    target: int
    against: int | None
    logit: float
    """What is explained."""
    logits: Tensor
    """`[classes]` of the forward pass."""
    constant: float
    """Bias of the classifier and of the final norms."""
    embed: Tensor
    """`[n]`, of each token as it enters layer 0, positions included."""
    halves: tuple[HalfEvidence, ...]
    prefix: int
    """Tokens before the patches."""
    grid: tuple[int, int]
    """(H, W) in patches."""
    read: str
    """Which tokens the classifier reads: `"class token"`, `"patches"`, `"all tokens"` or `"tokens, though not all"`."""

    @property
    def error(self) -> float:
        """Logit minus the sum of its terms: rounding only."""
        return self.logit - (self.constant + float(self.embed.sum()) + sum(half.total for half in self.halves))

    def evidence(self, layer: int | None = None) -> Tensor:
        """Evidence that lies on patches, `[H, W]`: of all terms, or of the halves of one layer.

        An attention half lies where it was attended to if that is known, every other term on the token it belongs to.
        What lies on the class token or registers, and biases, are left out.
        """
        out = torch.zeros_like(self.embed) if layer is not None else self.embed.clone()
        for half in self.halves:
            if layer in (None, half.layer):
                out += half.tokens if half.sources is None else half.sources.sum(0)
        return out[self.prefix :].reshape(self.grid)

    def records(self) -> list[dict[str, Any]]:
        """A row for each term; together they are the logit. Those of heads stand beside their half."""
        terms: list[tuple[int | None, str, float, list[float]]] = [
            (None, "constant", self.constant, []),
            (None, "embed", float(self.embed.sum()), []),
            *((each.layer, each.kind, each.total, _listed(each.heads)) for each in self.halves),
        ]
        return [dict(zip(("layer", "kind", "term", "heads"), term, strict=True)) for term in terms]

    def __repr__(self) -> str:
        less = "" if self.against is None else f" less that of class {self.against}"
        terms = f"{len(self.halves)} halves of layers, {self.grid[0]} x {self.grid[1]} patches"
        return f"Explanation(logit of class {self.target}{less} = {self.logit:.4g}; {terms})"

    def plot(self, ax: Axes | None = None, *, layer: int | None = None) -> Axes:
        """Draw `evidence`, of all terms or of one layer, as a map of patches; see `figures.Panel.plot`."""
        from unrolled.figures import HeatMap

        rows, columns = ([str(number) for number in range(size)] for size in self.grid)
        title = f"evidence for class {self.target}" + ("" if layer is None else f", layer {layer}")
        values = self.evidence(layer).numpy()
        return HeatMap(title=title, values=values, rows=rows, columns=columns, signed=True).plot(ax)


def _listed(heads: Tensor | None) -> list[float]:
    return [] if heads is None else heads.tolist()


@torch.no_grad()
def explain_logit(
    model: nn.Module,
    image: Tensor,
    *,
    target: int | None = None,
    against: int | None = None,
    prefix: int | None = None,
    grid: tuple[int, int] | None = None,
) -> Explanation:
    """Decompose one logit of `model` on one image.

    Nothing about the model is assumed that is not checked on this forward pass: that halves add to the tokens or
    replace them, that the classifier is affine once the norms' scales are frozen, that attention weight times value
    gives what a head added. Where heads or sources cannot be told apart the half is kept whole.

    Exact means that the terms sum to the logit. It does not mean that removing a patch changes the logit by its term:
    attention weights, norm scales and ISTA's active sets would change too, and a token of a deeper layer holds what
    earlier layers mixed into it.

    Args:
        model: a transformer classifier. It is copied and run in eval mode in float64, once and then twice over.
        image: preprocessed, `[1, c, h, w]`.
        target: class to explain; default the predicted one.
        against: explain the logit of `target` minus that of this class.
        prefix: tokens before the patches (class token, registers); default what the model says.
        grid: (H, W) of the patches; default from their number and the shape of the image.

    Raises:
        ValueError: not one image; no transformer blocks; no class head; a class out of range; blocks or a head that are
            not understood.
    """
    if image.dim() != 4 or image.shape[0] != 1 or not image.is_floating_point():
        raise ValueError(f"image: needs one preprocessed image [1, c, h, w], got {image.dtype} {tuple(image.shape)}")
    if not bool(image.isfinite().all()):
        raise ValueError("image: holds NaN or infinite pixels")
    inner = unwrap(model)
    stack = main_stack(inner)
    if not any(name.rsplit("/", 1)[-1] == "head" for name, _ in final_sites(inner, [stack])):
        raise ValueError(f"model: {type(inner).__name__} has no class head; give one that was trained to classify")
    prefix, has_class = prefix_of(inner, prefix)
    precise = copy.deepcopy(inner).eval().requires_grad_(False)
    where = next(precise.parameters()).device
    precise = precise.to(torch.device("cpu") if where.type == "mps" else where, torch.float64)  # mps has no float64
    run = _Run(precise, image.to(next(precise.parameters())))
    classes = run.logits.shape[-1]
    for name, chosen in (("target", target), ("against", against)):
        if chosen is not None and not 0 <= chosen < classes:
            raise ValueError(f"{name}={chosen}: the model has {classes} classes, 0 to {classes - 1}")
    target = int(run.logits.argmax()) if target is None else target
    if target == against:
        raise ValueError(f"against={against}: is the explained class itself; choose another one")
    logit, constant, g = run.tail(target, against)
    halves: list[HalfEvidence] = []
    for index in reversed(range(len(run.stack.blocks))):
        terms, g = run.block(index, g)
        halves[:0] = terms
    tokens = g.shape[-2]
    return Explanation(
        target=target,
        against=against,
        logit=logit,
        logits=run.logits.cpu(),
        constant=constant,
        embed=(g * run.values["embed"][0]).sum(-1).cpu(),
        halves=tuple(halves),
        prefix=prefix,
        grid=grid_of(tokens - prefix, image.shape[-2:], grid, run.grid),
        read=run.reads(prefix, has_class),
    )


class _Run:
    """One forward pass in float64 with all that the way back needs."""

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        self.model, self.image = model, image
        self.stack: Stack = main_stack(model)
        self.parts = [find_parts(block) for _, block in self.stack.blocks]
        self.norms = [module for name, module in final_sites(model, [self.stack]) if name.endswith("norm")]
        self.passed: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        """Input and output of attention layers, their output projections and the final norms."""
        listened = list(self.norms)
        for parts in self.parts:
            listened += [m for m in (parts.attention, _projection(parts.attention)) if m is not None]
        handles = [module.register_forward_hook(self._keep, with_kwargs=True) for module in listened]
        try:
            with trace(model) as values, Layout(model, None) as layout:
                logits = _logits(model(image))
        finally:
            for handle in handles:
                handle.remove()
        if logits.dim() != 2 or logits.shape[1] < 1:
            raise ValueError(f"model: {type(model).__name__} does not return logits [b, classes]; it has no class head")
        self.values, self.logits, self.grid = values, logits[0], layout.grid(self.stack.prefix)
        self.norms = [norm for norm in self.norms if norm in self.passed]

    def _keep(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        read = args[0] if args else kwargs.get("hidden_states")
        given = out if isinstance(out, Tensor) else out[0]
        if isinstance(read, Tensor):
            self.passed[module] = (read.clone(), given.clone())

    def tail(self, target: int, against: int | None) -> tuple[float, float, Tensor]:
        """The logit, what of it does not depend on the last tokens, and its derivative `[n, d]` by them."""
        last = self.stack.name(len(self.stack.blocks) - 1)
        tokens = self.values[last]
        both = torch.cat([tokens, torch.zeros_like(tokens)]).requires_grad_()
        handles = [
            self.stack.blocks[-1][1].register_forward_hook(
                lambda _, args, out: both if isinstance(out, Tensor) else (both, *out[1:])
            )
        ]
        for norm in self.norms:
            frozen = _frozen(norm, self.passed[norm][0])
            handles.append(norm.register_forward_hook(lambda _, args, out, frozen=frozen: frozen(args[0])))
        try:
            with torch.enable_grad():
                logits = _logits(self.model(self.image.expand(2, -1, -1, -1)))
                chosen = logits[:, target] - (logits[:, against] if against is not None else 0)
                (g,) = torch.autograd.grad(chosen[0], both, allow_unused=True)
        finally:
            for handle in handles:
                handle.remove()
        logit, constant = float(chosen[0]), float(chosen[1])
        expected = self.logits[target] - (self.logits[against] if against is not None else 0)
        ends = 0.0 if g is None else float((g[0] * tokens[0]).sum())
        if g is None or abs(logit - constant - ends) > _CLOSE * max(1.0, abs(ends)) or abs(logit - expected) > 1e-6:
            raise ValueError(
                f"model: between {last} and the logits {type(self.model).__name__} does more than norm, pooling and a "
                "linear head, so there is no exact sum; explained are models like timm's VisionTransformer and CRATE"
            )
        self.last = g[0]
        return logit, constant, g[0]

    def reads(self, prefix: int, has_class: bool) -> str:
        """The tokens whose derivative is not zero, in words."""
        used = self.last.abs().amax(-1) > 0
        if prefix and bool(used[0]) and not bool(used[1:].any()):
            return "class token" if has_class else "first token"
        if prefix and not bool(used[:prefix].any()):
            return "patches"
        return "all tokens" if bool(used.all()) else "tokens, though not all"

    def block(self, index: int, g: Tensor) -> tuple[list[HalfEvidence], Tensor]:
        """The terms of one block, and the derivative by the tokens that enter it."""
        name, parts, block = self.stack.name(index), self.parts[index], self.stack.blocks[index][1]
        entered = self.values["embed" if index == 0 else self.stack.name(index - 1)][0]
        out, added = self.values[name][0], self._value(f"{name}/attn")
        second = self._value(f"{name}/{parts.second_name}")
        if added is None:
            raise ValueError(f"model: what attention adds in {name} ({type(block).__name__}) cannot be found")
        kind: Literal["ista", "mlp"] = "ista" if parts.second_name == "ista" else "mlp"
        terms = []
        half = entered + added
        if second is None and not _same(out, half):
            raise _unknown(name, block)
        if second is not None and _same(out, half + second):
            terms.append(_term(index, kind, (g * second).sum(-1)))
        elif second is not None:
            if kind != "ista" or not _same(out, second):
                raise _unknown(name, block)
            before = self._through(parts, half, out, g, name)
            # per token, since ISTA acts on each one alone
            terms.append(_term(index, kind, (g * out).sum(-1) - (before * half).sum(-1), replaces=True))
            g = before
        terms.insert(0, self._attention(index, g, added))
        return terms, g

    def _value(self, name: str) -> Tensor | None:
        return self.values[name][0] if name in self.values else None

    def _through(self, parts: Parts, half: Tensor, out: Tensor, g: Tensor, name: str) -> Tensor:
        """The derivative by Z+half, through ISTA with its active set and the scale of its norm frozen."""
        assert parts.second is not None
        leaf = half[None].clone().requires_grad_()
        with torch.enable_grad():
            norm = parts.halves[0] if parts.halves and parts.halves[0] is not parts.second else nn.Identity()
            again = parts.second(_frozen(norm, half[None])(leaf))
            if not _same(again[0].detach(), out):
                raise ValueError(f"model: {name} does more than a norm and ISTA after its attention")
            (before,) = torch.autograd.grad((again[0] * g).sum(), leaf)
        return before[0]

    def _attention(self, index: int, g: Tensor, added: Tensor) -> HalfEvidence:
        whole = (g * added).sum(-1)
        term = partial(_term, index, "attn", whole)
        layer = self.parts[index].attention
        if layer is None or layer not in self.passed:
            return term()
        read, gave = (value[0] for value in self.passed[layer])
        scale = getattr(self.stack.blocks[index][1], "ls1", None) or nn.Identity()
        if read.shape != gave.shape or not _same(scale(gave.clone()), added):
            return term()
        g = scale(g.clone())  # layer scale is diagonal
        for split in (_by_source, _by_head):
            result = split(layer, read, g, self.passed)
            if result is not None:
                heads, sources, bias = result
                if abs(float(heads.sum()) + bias - float(whole.sum())) <= _CLOSE * max(1.0, float(whole.abs().sum())):
                    return term(heads=heads.cpu(), sources=None if sources is None else sources.cpu(), bias=bias)
        return term()


_Split = tuple[Tensor, Tensor | None, float]


def _by_source(layer: Any, read: Tensor, g: Tensor, passed: dict[nn.Module, Any]) -> _Split | None:
    """By head and attended token, for softmax attention whose weights, values and output are known.

    With a the weights, v the values and W_k the output of head k: token s gives sum_t a_kts <W_k^T g_t, v_ks>. Where a
    layer subtracts a token's own coordinates from what it attended to (`compression="derived"` of MSSA), v_ks - v_kt
    takes the place of v_ks: the weights of a token sum to one, so the own ones are shared among what it attends to.
    """
    used = g.abs().amax(-1) > 0
    one = bool(used[0]) and not bool(used[1:].any())
    rows = slice(0, 1) if one else slice(None)
    sign, itself = 1.0, 0.0
    if callable(getattr(layer, "project", None)) and _is_softmax(layer):
        v = layer.project(read[None])[0]
        weights = layer.attention(read[None], query=rows)[0]
        tied = layer.output is None
        matrix = layer.scale * layer.subspaces.weight.mT if tied else getattr(layer.output, "weight", None)
        matrix = torch.eye(v.shape[-1], dtype=v.dtype, device=v.device) if matrix is None else matrix
        offset = getattr(layer.output, "bias", None)
        if callable(signed := getattr(layer, "signed", None)):  # a v + b v_t, with a and b of the form of compression
            unit = v.new_ones(())
            sign, itself = float(signed(unit, 0 * unit)), float(signed(0 * unit, unit))
    elif (type(layer).__module__, type(layer).__name__) == ("timm.layers.attention", "Attention"):
        if layer.gate is not None or not isinstance(layer.norm, nn.Identity):
            return None
        q, k, v = layer.qkv(read).unflatten(-1, (3, layer.num_heads, -1)).permute(1, 2, 0, 3).unbind(0)
        weights = (layer.q_norm(q)[:, rows] * layer.scale @ layer.k_norm(k).mT).softmax(-1)
        matrix, offset = layer.proj.weight, layer.proj.bias
    else:
        return None
    back = (g[rows] @ matrix).unflatten(-1, (v.shape[0], -1)).transpose(0, 1)
    sources = sign * (weights.mT @ back * v).sum(-1)
    if itself:
        sources = sources + itself * (weights.mT @ (back * v[:, rows]).sum(-1, keepdim=True))[..., 0]
    return sources.sum(-1), sources, 0.0 if offset is None else float(g.sum(0) @ offset)


def _is_softmax(layer: Any) -> bool:
    method = getattr(layer, "attention", None)
    return callable(method) and "query" in getattr(getattr(method, "__code__", None), "co_varnames", ())


def _by_head(layer: Any, read: Tensor, g: Tensor, passed: dict[nn.Module, Any]) -> _Split | None:
    """By head, from what the output projection reads: heads side by side."""
    projection = _projection(layer)
    heads = getattr(layer, "heads", None) or getattr(layer, "num_heads", None)
    if projection is None or projection not in passed or not isinstance(heads, int):
        return None
    y = passed[projection][0][0]
    if y.shape[-1] % heads or y.shape[0] != g.shape[0]:
        return None
    parts = (g @ projection.weight * y).unflatten(-1, (heads, -1)).sum((0, 2))
    return parts, None, 0.0 if projection.bias is None else float(g.sum(0) @ projection.bias)


def _projection(layer: nn.Module | None) -> nn.Linear | None:
    candidates = (getattr(layer, name, None) for name in _OUTPUTS)
    return next((module for module in candidates if isinstance(module, nn.Linear)), None)


def _term(
    layer: int,
    kind: Literal["attn", "mlp", "ista"],
    tokens: Tensor,
    *,
    replaces: bool = False,
    heads: Tensor | None = None,
    sources: Tensor | None = None,
    bias: float = 0.0,
) -> HalfEvidence:
    return HalfEvidence(
        layer=layer,
        kind=kind,
        replaces=replaces,
        total=float(tokens.sum()),
        tokens=tokens.cpu(),
        heads=heads,
        sources=sources,
        bias=bias,
    )


def _frozen(norm: nn.Module, at: Tensor) -> Callable[[Tensor], Tensor]:
    """A LayerNorm as the affine map it is once its scale is frozen at that of the tokens `at`."""
    if isinstance(norm, nn.Identity):
        return norm
    if not isinstance(norm, nn.LayerNorm):
        raise ValueError(f"model: {type(norm).__name__} is not understood; explained are models with LayerNorm")
    scale = (at.var(-1, unbiased=False, keepdim=True) + norm.eps).rsqrt()

    def apply(z: Tensor) -> Tensor:
        out = (z - z.mean(-1, keepdim=True)) * scale
        out = out if norm.weight is None else out * norm.weight
        return out if norm.bias is None else out + norm.bias

    return apply


def _logits(out: Any) -> Tensor:
    logits = out if isinstance(out, Tensor) else getattr(out, "logits", None)
    if not isinstance(logits, Tensor):
        raise ValueError(f"model: returns a {type(out).__name__} without logits; it has no class head")
    return logits


def _same(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape:
        return False
    return float((first - second).abs().max()) <= _CLOSE * max(1.0, float(second.abs().max()))


def _unknown(name: str, block: nn.Module) -> ValueError:
    return ValueError(
        f"model: the halves of {name} ({type(block).__name__}) neither add to the tokens nor replace them as ISTA "
        "does, so there is no exact sum"
    )
