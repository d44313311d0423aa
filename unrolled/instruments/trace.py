"""Activations by stable names: `with trace(model) as t: model(x)`."""

from __future__ import annotations

import difflib
import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from unrolled.instruments.anatomy import Parts, Stack, final_sites, find_parts, find_stacks, unwrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Reduce = Callable[[str, Tensor], Any]
_Read = Callable[[tuple[Any, ...], dict[str, Any], Any], Tensor | None]


def trace(
    model: nn.Module,
    *,
    patterns: str | Sequence[str] | None = None,
    reduce: Reduce | None = None,
    grad: bool = False,
    attention: bool = False,
) -> Trace:
    """Record what flows through `model` during the forward calls of a `with` block.

    Names mean the same on white-box models, timm and Hugging Face transformers:

    | name                 | tensor                                                                                    |
    |----------------------|-------------------------------------------------------------------------------------------|
    | `embed`              | tokens entering block 0: Z of layer 0                                                     |
    | `block03/attn`       | what attention adds to the residual stream                                                |
    | `block03/half`       | Z+half: tokens after the attention residual (post-norm models: and its norm)              |
    | `block03/ista`       | output of ISTA; on other models `block03/mlp`, what the MLP adds                          |
    | `block03`            | tokens leaving block 3: Z+1 of layer 3, Z of layer 4                                      |
    | `block03/attention`  | attention weights `[b, h, n, n]`, with `attention=True`                                   |
    | `norm`, `fc_norm`, `head` | outputs of the final norms and of the classifier                                     |

    A second stack of blocks has a prefix, as in `decoder/block03`; blocks whose halves run in parallel have no `half`.
    A model without transformer blocks is recorded by module path (`layer1.0.conv1`), and any module path may also be
    asked for by a pattern.

    Args:
        model: any module. It is not changed; hooks live only inside the `with` block and go even after an exception.
        patterns: shell-style patterns of names to record (`"block*/half"`, `["embed", "block??"]`; `*` also matches
            `/`); default all.
        reduce: called as `reduce(name, tensor)` the moment a tensor exists, with the live tensor; only what it returns
            is kept (`None`: nothing), so memory is bounded by it. The trace then holds a list per name, one entry per
            call.
        grad: keep the tensors themselves, on the autograd graph; default: detached copies.
        attention: also record attention weights, recomputed from what the layer reads, without touching how it
            computes. For MSSA and timm's ViT attention; Hugging Face models must run with
            `attn_implementation="eager"`.

    Returns:
        A mapping from names to tensors in the order of the model, still readable after the block. Several forward calls
        are concatenated along the first dimension when read.

    Raises:
        ValueError: a pattern matches nothing (the nearest names are given), attention weights cannot be had, or `model`
            is compiled.
    """
    return Trace(model, patterns=patterns, reduce=reduce, grad=grad, attention=attention)


@dataclass(frozen=True)
class _Site:
    """A place to listen: `read` takes (args, kwargs, output) of a call of `module` and returns the tensor `name`."""

    name: str
    module: nn.Module
    when: Literal["before", "after"]
    read: _Read
    block: nn.Module | None = None
    """Record only once in a call of this block ..."""
    attention: nn.Module | None = None
    """... and only after this module has run in it."""


@dataclass
class _Call:
    """What has happened in the current call of a block."""

    entered: weakref.ref[Tensor] | None = None
    shape: torch.Size = torch.Size()  # noqa: RUF009
    attended: bool = False
    recorded: set[str] = field(default_factory=set)


class Trace(Mapping[str, Any]):
    """An ordered mapping from names to tensors; made by `trace`, which documents it."""

    def __init__(
        self,
        model: nn.Module,
        *,
        patterns: str | Sequence[str] | None = None,
        reduce: Reduce | None = None,
        grad: bool = False,
        attention: bool = False,
    ) -> None:
        inner = unwrap(model)
        self.stacks: list[Stack] = find_stacks(inner)
        sites = list(_sites(inner, self.stacks, attention)) if self.stacks else list(_paths(inner))
        if attention and not any(site.name.endswith("/attention") for site in sites):
            raise ValueError(
                "attention=True: this model has no attention layer whose weights can be had; known are MSSA, timm's "
                'Attention, and Hugging Face models after model.set_attn_implementation("eager")'
            )
        self._sites = sites if patterns is None else _select(sites, inner, patterns)
        self._reduce, self._grad = reduce, grad
        self._values: dict[str, list[Any]] = {}
        self._handles: list[RemovableHandle] = []
        self._calls: dict[nn.Module, _Call] = {}
        self._paused = False

    @property
    def names(self) -> list[str]:
        """The names that a forward call will record, in order."""
        return list(dict.fromkeys(site.name for site in self._sites))

    def clear(self) -> None:
        """Forget what was recorded; recording goes on."""
        self._values.clear()

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            raise KeyError(
                _unknown(name, self.names) if name not in self.names else f"{name}: no forward call recorded it"
            )
        values = self._values[name]
        if self._reduce is not None:
            return values
        if len(values) == 1:
            return values[0]
        if len({tuple(value.shape[1:]) for value in values}) > 1:
            shapes = [tuple(value.shape) for value in values]
            raise ValueError(
                f"{name}: calls of different shapes {shapes} do not concatenate; trace them apart or use reduce="
            )
        return torch.cat(values) if values[0].dim() else torch.stack(values)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.names if name in self._values)

    def __len__(self) -> int:
        return len(self._values)

    def plot(self, ax: Axes | None = None, *, measure: Callable[[Tensor], float] | None = None) -> Axes:
        """Draw one number of every recorded tensor against the layers, a line for each place in them.

        Args:
            ax: see `unrolled.figures.Panel.plot`.
            measure: number of a tensor, such as the share of its entries that are not zero; by default the root mean
                square of its entries. Of what `reduce=` made it gets the list.

        Raises:
            ValueError: nothing was recorded, or no names have a number.
        """
        from unrolled.figures import LineChart, Series

        lines: dict[str, list[tuple[int, float]]] = {}
        for name in self:
            if found := re.fullmatch(r"(.*?)(\d+)(?:/(.*))?", name):
                value = self[name]
                number = _root_mean_square(value) if measure is None else float(measure(value))
                stack = found[1].rstrip("./").removesuffix("block").rstrip("/")
                place = " ".join(word for word in (stack, found[3] or "output") if word)
                lines.setdefault(place, []).append((int(found[2]), number))
        if not lines:
            raise ValueError("the trace has no recorded layers to draw: run the model within it")
        series = [Series(label=k, x=[x for x, _ in v], y=[y for _, y in v]) for k, v in lines.items()]
        title = "root mean square of the activations" if measure is None else getattr(measure, "__name__", "")
        return LineChart(title=title.replace("<lambda>", "measure"), x_label="layer", series=series).plot(ax)

    def __repr__(self) -> str:
        return f"Trace({len(self)} of {len(self.names)} names recorded)"

    def __enter__(self) -> Trace:
        if self._handles:
            raise RuntimeError("this trace is already recording")
        try:
            for block in {site.block for site in self._sites if site.block is not None}:
                self._handles.append(block.register_forward_pre_hook(self._enter_block, with_kwargs=True))
            # after the blocks' hooks, so that a site that reads a block's own input finds its call begun
            for block, attention in {(s.block, s.attention) for s in self._sites if s.block and s.attention}:
                self._handles.append(attention.register_forward_hook(partial(self._attended, block)))
            for site in self._sites:
                self._handles.append(self._listen(site))
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop()

    def _stop(self) -> None:
        while self._handles:
            self._handles.pop().remove()
        self._calls.clear()

    def _enter_block(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        z = _input(args, kwargs, None)
        self._calls[block] = _Call() if z is None else _Call(weakref.ref(z), z.shape)

    def _attended(self, block: nn.Module, attention: nn.Module, args: Any, output: Any) -> None:
        self._calls.setdefault(block, _Call()).attended = True

    def _listen(self, site: _Site) -> RemovableHandle:
        if site.when == "before":
            return site.module.register_forward_pre_hook(
                lambda _, args, kwargs: self._record(site, args, kwargs, None), with_kwargs=True
            )
        return site.module.register_forward_hook(
            lambda _, args, kwargs, output: self._record(site, args, kwargs, output), with_kwargs=True
        )

    def _record(self, site: _Site, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # reading attention runs parts of the model again, and so does checkpointing in the backward pass: not counted
        if self._paused or torch._C._current_graph_task_id() != -1:
            return
        call = _Call()
        if site.block is not None:
            call = self._calls.setdefault(site.block, _Call())
            if site.name in call.recorded or (site.attention is not None and not call.attended):
                return
            call.recorded.add(site.name)
            # attention without a norm before it reads Z too, and so it should
            half = site.when == "before" and site.attention is not None
            if half and call.entered is not None and call.entered() is _input(args, kwargs, None):
                return  # halves in parallel: what the second reads is Z, not Z+half
        self._paused = True
        try:
            with torch.set_grad_enabled(self._grad and torch.is_grad_enabled()):
                value = site.read(args, kwargs, output)
                if value is None:
                    return
                if site.block is not None and value.dim() == 2 and call.shape[-1:] == value.shape[-1:]:
                    value = value.reshape(call.shape)  # OPT flattens batch and tokens in its second half
                if not self._grad:
                    value = value.detach()
                if self._reduce is not None:
                    value = self._reduce(site.name, value)
                elif not self._grad:
                    value = value.clone()  # a later in-place operation of the model must not reach what was recorded
        finally:
            self._paused = False
        if value is not None:
            self._values.setdefault(site.name, []).append(value)


def _root_mean_square(value: Any) -> float:
    values = [
        torch.as_tensor(each).double().square().mean() for each in (value if isinstance(value, list) else [value])
    ]
    return float(torch.stack(values).mean().sqrt())


def _sites(model: nn.Module, stacks: list[Stack], attention: bool) -> Iterator[_Site]:
    for stack in stacks:
        yield _Site(f"{stack.prefix}embed", stack.blocks[0][1], "before", _input)
        for index, (_, block) in enumerate(stack.blocks):
            name, parts = stack.name(index), find_parts(block)
            read = _attention_reader(model, parts) if attention else None
            if read is not None and parts.attention is not None:
                yield _Site(f"{name}/attention", parts.attention, read[0], read[1], block)
            if parts.branch is not None and parts.attention is not None:
                # stochastic depth may be shared by the halves: the call after attention is attention's
                inside = any(module is parts.branch for module in parts.attention.modules())
                after = None if inside else parts.attention
                yield _Site(f"{name}/attn", parts.branch, "after", _output, block, after)
            for module in parts.halves:
                yield _Site(f"{name}/half", module, "before", _input, block, parts.attention)
            if parts.second is not None:
                yield _Site(f"{name}/{parts.second_name}", parts.second, "after", _output, block)
            yield _Site(name, block, "after", _output)
    for name, module in final_sites(model, stacks):
        yield _Site(name, module, "after", _output)


def _paths(model: nn.Module) -> Iterator[_Site]:
    return (_Site(path, module, "after", _output) for path, module in model.named_modules() if path)


def _select(sites: list[_Site], model: nn.Module, patterns: str | Sequence[str]) -> list[_Site]:
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    if not patterns:
        raise ValueError("patterns: is empty; leave it out to record everything")
    chosen = [site for site in sites if any(fnmatchcase(site.name, pattern) for pattern in patterns)]
    by_path: dict[str, _Site] = {}
    for pattern in patterns:
        if any(fnmatchcase(site.name, pattern) for site in sites):
            continue
        paths = [site for site in _paths(model) if fnmatchcase(site.name, pattern)]
        if not paths:
            raise ValueError("patterns: " + _unknown(pattern, [site.name for site in sites]))
        by_path |= {site.name: site for site in paths}
    return chosen + list(by_path.values())


def _unknown(pattern: str, names: list[str]) -> str:
    names = list(dict.fromkeys(names))
    nearest = difflib.get_close_matches(pattern, names, n=4, cutoff=0.3) or names[:4]
    hint = "; attention weights need attention=True" if "attention" in pattern else ""
    return f"{pattern!r} matches no name; the nearest are {', '.join(nearest)}{hint}"


def _input(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
    return _tensor(args) if args else _tensor(kwargs.get("hidden_states", kwargs))


def _output(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
    return _tensor(output)


def _tensor(value: Any) -> Tensor | None:
    """The tensor itself, or the first one in a tuple or a mapping: Hugging Face layers return more than tokens."""
    if isinstance(value, Tensor):
        return value
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return next((found for item in items if (found := _tensor(item)) is not None), None)


def _attention_reader(model: nn.Module, parts: Parts) -> tuple[Literal["before", "after"], _Read] | None:
    """How to get the weights of an attention layer, or None."""
    layer = parts.attention
    method = getattr(layer, "attention", None)
    if callable(method) and not isinstance(method, nn.Module):

        def read_white_box(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor:
            mask, causal = _mask(args, kwargs)
            if mask is not None:
                raise ValueError("attention=True: weights under an attention mask are not available for this layer")
            weights: Tensor = method(_input(args, kwargs, output), **({"is_causal": True} if causal else {}))
            return weights

        return "before", read_white_box
    kind = type(layer)
    if (kind.__module__, kind.__name__) == (
        "timm.layers.attention",
        "Attention",
    ):  # a subclass may compute something else
        return "before", lambda args, kwargs, _: _timm_attention(layer, args, kwargs)
    config = getattr(model, "config", None)
    if getattr(config, "_attn_implementation", None) == "eager":
        return "after", _returned_weights
    return None


def _mask(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor | None, bool]:
    given = dict(zip(("attn_mask", "is_causal"), args[1:3], strict=False)) | kwargs
    return given.get("attn_mask"), bool(given.get("is_causal", False))


def _timm_attention(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    z = _input(args, kwargs, None)
    if z is None:
        return None
    mask, causal = _mask(args, kwargs)
    q, k, _ = layer.qkv(z).unflatten(-1, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    logits = layer.q_norm(q) * layer.scale @ layer.k_norm(k).mT
    if causal:
        n = z.shape[-2]
        mask = torch.ones(n, n, dtype=torch.bool, device=z.device).tril()
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
    return logits.softmax(-1)


def _returned_weights(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
    items = output if isinstance(output, tuple) else ()
    return next((item for item in items[1:] if isinstance(item, Tensor) and item.dim() == 4), None)
