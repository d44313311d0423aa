"""One model measured while it runs: the coding rates and the sparsity of its tokens, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unrolled.instruments.addition import Addition, fault
from unrolled.instruments.anatomy import Stack, check_values, find_stacks, head_subspaces, unwrap, value_reader
from unrolled.instruments.feeding import Shown, Spread
from unrolled.instruments.readouts.probes import widen
from unrolled.instruments.sites import read_input
from unrolled.instruments.trace import Trace
from unrolled.theory import coding_rate, normalize_tokens

PUBLISHED_EPS = 0.1  # the published hook's constant 0.01 stands where the definition has eps^2

Protocol = Literal["paper", "published"]


class Meter:
    """Measures one model while it runs: only the current layer's tokens are ever held."""

    def __init__(
        self, model: nn.Module, eps: float, protocol: Protocol, stack: str | None, positions: Sequence[int]
    ) -> None:
        if protocol not in ("paper", "published"):
            raise ValueError(f"protocol={protocol!r}: choose 'paper' or 'published'")
        if not eps > 0:
            raise ValueError(f"eps={eps}: must be positive")
        if any(position < 1 for position in positions):
            raise ValueError(f"positions={tuple(positions)}: are numbers of tokens from the start, at least 1")
        self.model, self.eps, self.positions = model, eps, sorted(set(positions))
        self.stack = chosen_stack(model, stack)
        check_values(model)
        self.names = [self.stack.name(index) for index in range(len(self.stack.blocks))]
        self.blocks = [block for _, block in self.stack.blocks]
        known = set(Trace(model).names)
        # name of an activation -> what to do with it: (layer, point) pairs
        self.points: dict[str, list[tuple[int, str]]] = {f"{self.stack.prefix}embed": [(0, "z")]}
        self.projections: dict[str, int] = {}
        for index in range(len(self.blocks)):
            self.points[f"{self.names[index]}/half"] = [(index, "half")]
            self.points[self.names[index]] = [(index, "next"), (index + 1, "z")]
            if protocol == "published":
                self.projections[f"{self.names[index]}/reads"] = index
        self.points[self.names[-1]].pop()
        self.parallel: set[int] = set()
        """Layers whose halves both read Z: what the second reads, `half`, is Z."""
        for index, name in enumerate(self.names):
            if f"{name}/half" not in known:
                del self.points[f"{name}/half"]
                self._reads_z(index)
        codes = {f"{name}/ista": index for index, name in enumerate(self.names)}
        self.codes = {name: index for name, index in codes.items() if name in known}
        self.trace = Trace(model, patterns=[*self.points, *self.codes], reduce=self._reduce)
        self.addition = Addition(self.blocks)
        self.reached: set[str] = set()
        """What was measured in the current pass."""
        self.subspaces: list[Tensor] = []
        self.values: dict[tuple[int, str], Tensor] = {}
        self.mask: Tensor | None = None
        self.shown = self.tokens = self.counted = 0
        self.spread = Spread()

    def run(self, shown: Shown) -> None:
        """One forward pass; every sample adds one observation of every quantity of every layer."""
        if not self.subspaces:
            self.subspaces = [full(head_subspaces(block)) for block in self.blocks]
            for layer in range(1, len(self.blocks)):
                if (
                    self.subspaces[layer].shape[1] != self.subspaces[layer - 1].shape[1]
                ):  # merged in between, as in Swin
                    self.points[self.names[layer - 1]].remove((layer, "z"))
                    self.points[f"{self.names[layer]}/z"] = [(layer, "z")]
        self._pass(shown)
        for name, block in zip(self.names, self.blocks, strict=True):
            if reason := fault(f"{name}/half", block):
                raise ValueError(f"model: {reason}")
        if apart := [layer for layer in range(len(self.blocks)) if self._has_no_half(layer)]:
            for layer in apart:
                self._reads_z(layer)
            self._pass(shown)
        missing = next(iter(self.values.values())).new_full((self.shown,), float("nan"))
        for layer, position in product(range(len(self.blocks)), self.positions):
            for key in ("rate", "subspace_rate", "effective_rank", "nonzero", "l1"):
                self.values.setdefault((layer, f"{key}@{position}"), missing)
        keys = sorted(self.values)
        self.tokens += self.counted
        self.spread.add(keys, torch.stack([self.values[key] for key in keys]).double().cpu().numpy())
        self.values = {}

    def _has_no_half(self, layer: int) -> bool:
        return (layer, "rate_half") not in self.values and (layer, "rate_z") in self.values

    def _reads_z(self, layer: int) -> None:
        """Measure at Z of a layer what is measured at Z+half of others."""
        self.parallel.add(layer)
        for wanted in self.points.values():
            if (layer, "z") in wanted:
                wanted.append((layer, "half"))

    def _pass(self, shown: Shown) -> None:
        """Fill `values` by one forward pass."""
        self.values, self.mask, self.shown = {}, shown.mask(self.stack.prefix), len(shown)
        self.counted, self.reached = 0, set()
        entries = [
            module.register_forward_pre_hook(partial(self._given, name), with_kwargs=True)
            for name, module in self._readers()
        ]
        self.addition.start()
        try:
            with torch.no_grad(), self.trace:
                shown.run(self.model)
        finally:
            self.addition.stop()
            for entry in entries:
                entry.remove()
        if not self.values:
            raise ValueError(f"model: its stack of blocks {self.stack.prefix[:-1]!r} did not run")

    def _readers(self) -> Iterator[tuple[str, nn.Module]]:
        """Modules whose inputs are measured and in no trace: blocks behind a merging, and what attention reads."""
        for name, block in zip(self.names, self.blocks, strict=True):
            if f"{name}/z" in self.points:
                yield f"{name}/z", block
            if f"{name}/reads" in self.projections:
                yield f"{name}/reads", value_reader(block)

    def _given(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if (z := read_input(args, kwargs, None)) is not None:
            self._reduce(name, z)

    def _reduce(self, name: str, tensor: Tensor) -> None:
        if name in self.reached:
            raise ValueError(
                f"model: {name} was reached more than once in one pass: a block that runs again, as in ALBERT, is many "
                "layers of one name, and layers are measured each by itself"
            )
        self.reached.add(name)
        z = full(tensor)
        if z.dim() == 4:  # a grid of tokens
            z = z.flatten(1, 2)
        if name in self.projections and z.dim() == 3 and len(z) != self.shown and len(z) % max(self.shown, 1) == 0:
            z = z.reshape(self.shown, -1, z.shape[-1])  # windows, those of an image after one another
        if z.dim() != 3:
            raise ValueError(f"model: {name} has shape {tuple(tensor.shape)}, needs tokens [b, n, d]")
        for rows, tokens in self._counted(z, name):
            if not bool(torch.isfinite(tokens).all()):  # checked here: an eigenvalue solver does not survive it
                raise ValueError(f"model: the tokens at {name} are not finite")
            self._measured(name, rows, tokens)

    def _counted(self, z: Tensor, name: str) -> Iterator[tuple[Tensor | slice, Tensor]]:
        """Samples by how many tokens they have without padding, and those tokens, [b, n, d]."""
        mask = self.mask
        if name == self.names[-1]:
            self.counted += z.shape[0] * z.shape[1] if mask is None else int(mask.sum())
        if mask is None or bool(mask.all()):
            yield slice(None), z
            return
        if mask.shape != z.shape[:2]:
            raise ValueError(
                f"attention_mask: has shape {tuple(mask.shape)}, but the tokens at {name} are {tuple(z.shape[:2])}"
            )
        mask = mask.to(z.device)
        lengths = mask.sum(1)
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero()[:, 0]
            yield rows, z[rows][mask[rows]].view(len(rows), length, z.shape[-1])

    def _measured(self, name: str, rows: Tensor | slice, z: Tensor) -> None:
        if name in self.codes:
            self._keep(self.codes[name], "nonzero", rows, _nonzero(z))
        if name in self.projections:
            layer = self.projections[name]
            w = normalize_tokens(_project(z, self.subspaces[layer]))
            self._keep(layer, "subspace_rate", rows, coding_rate(w, PUBLISHED_EPS).sum(-1))
        if name not in self.points:
            return
        u = normalize_tokens(z)
        shared = {**spectral(u, self.eps), "nonzero": _nonzero(z), "l1": z.abs().mean((1, 2))}
        for layer, point in self.points[name]:
            for key, value in {**shared, "subspace_rate": self._subspace_rate(u, layer)}.items():
                self._keep(layer, f"{key}_{point}", rows, value)
            before = 0
            for position in (each for each in self.positions if each <= z.shape[1]):
                if point == "half":
                    values = {**spectral(u[:, :position], self.eps)}
                    values["subspace_rate"] = self._subspace_rate(u[:, :position], layer)
                elif point == "next":
                    part = z[:, before:position]
                    values = {"nonzero": _nonzero(part), "l1": part.abs().mean((1, 2))}
                else:
                    break
                for key, value in values.items():
                    self._keep(layer, f"{key}@{position}", rows, value)
                before = position

    def _subspace_rate(self, u: Tensor, layer: int) -> Tensor:
        # R of the projections of one head is that head's term of R^c
        return coding_rate(_project(u, self.subspaces[layer]), self.eps).sum(-1)

    def _keep(self, layer: int, key: str, rows: Tensor | slice, value: Tensor) -> None:
        if (layer, key) not in self.values:
            self.values[layer, key] = value.new_full((self.shown,), float("nan"))
        self.values[layer, key][rows] = value


def chosen_stack(model: nn.Module, stack: str | None = None) -> Stack:
    """The stack of blocks that is measured.

    Args:
        model: any model that `trace` understands.
        stack: its name in a trace, such as `"decoder"`; default: the main one, or else the first.

    Raises:
        ValueError: no such stack, or the model has none.
    """
    stacks = find_stacks(unwrap(model))
    if not stacks:
        raise ValueError(f"model: {type(model).__name__} has no transformer blocks to measure")
    if stack is None:
        return next((each for each in stacks if not each.prefix), stacks[0])
    for each in stacks:
        if each.prefix.rstrip("/") == stack.rstrip("/"):
            return each
    known = ", ".join(repr(each.prefix.rstrip("/")) for each in stacks)
    raise ValueError(f"stack={stack!r}: this model has the stacks {known}")


def spectral(u: Tensor, eps: float) -> dict[str, Tensor]:
    """`rate` and `effective_rank` of tokens `u` [b, n, d], both from one spectrum of the smaller Gram matrix.

    The Gram matrix squares the singular values, so that in float32 those below some thousandths of the largest drown in
    its rounding; in float64 what is lost is below what rounding the tokens themselves has added. Zero tokens: both 0.
    """
    n, d = u.shape[-2:]
    wide = widen(u)
    spectrum = torch.linalg.eigvalsh(wide @ wide.mT if n <= d else wide.mT @ wide).clamp_min(0)
    rate = 0.5 * (d / (n * eps**2) * spectrum).log1p().sum(-1)
    # roots of what rounding left, of the products and of the tokens, would add up to a rank that is not there
    products = spectrum.amax(-1, keepdim=True) * max(n, d) * torch.finfo(wide.dtype).eps
    tokens = spectrum.sum(-1, keepdim=True) * torch.finfo(u.dtype).eps ** 2
    singular = torch.where(spectrum > products + tokens, spectrum, 0).sqrt()
    total = singular.sum(-1, keepdim=True)
    entropy = torch.special.entr(singular / torch.where(total > 0, total, 1)).sum(-1)
    rank = torch.where(total[..., 0] > 0, entropy.exp(), 0)
    return {"rate": rate.to(u.device, u.dtype), "effective_rank": rank.to(u.device, u.dtype)}


def _project(z: Tensor, subspaces: Tensor) -> Tensor:
    """U_k^T z for every head: `[b, n, d]`, `[h, d, p]` -> `[b, h, n, p]`, contiguous for the products that follow."""
    h, d, p = subspaces.shape
    w = z.flatten(0, 1) @ subspaces.transpose(0, 1).reshape(d, h * p)
    return w.view(*z.shape[:2], h, p).transpose(1, 2).contiguous()


def _nonzero(z: Tensor) -> Tensor:
    return (z != 0).flatten(1).sum(1, dtype=torch.int32) / (z.shape[1] * z.shape[2])


def full(tensor: Tensor) -> Tensor:
    """In float32 at least: half precision has too few digits for determinants."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
