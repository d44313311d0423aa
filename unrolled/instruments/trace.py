"""Activations by stable names: `with trace(model) as t: model(x)`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unrolled.instruments.addition import CHECKED, Addition, fault
from unrolled.instruments.anatomy import Stack, find_stacks, unwrap
from unrolled.instruments.sites import Listener, Site, paths_of, select, sites_of, unknown
from unrolled.tables import Tabular

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from unrolled.figures import LineChart

Reduce = Callable[[str, Tensor], Any]
_SCREEN = 22  # lines of names that one screen shows


def trace(
    model: nn.Module,
    *,
    patterns: str | Sequence[str] | None = None,
    reduce: Reduce | None = None,
    grad: bool = False,
    attention: bool = False,
    heads: bool = False,
) -> Trace:
    """Record what flows through `model` during the forward calls of a `with` block.

        >>> import torch, unrolled
        >>> model = unrolled.create_model("crate_nano_patch4_32").eval()
        >>> with unrolled.trace(model) as t:
        ...     logits = model(torch.zeros(1, 3, 32, 32))
        >>> t["block03/half"].shape  # a class token and 64 patches of width 96
        torch.Size([1, 65, 96])

    Names mean the same on white-box models, timm and Hugging Face transformers:

    | name                 | tensor                                                                                    |
    |----------------------|-------------------------------------------------------------------------------------------|
    | `embed`              | tokens entering block 0: Z of layer 0                                                     |
    | `block03/attn`       | what attention adds to the residual stream                                                |
    | `block03/half`       | Z+half: tokens after the attention residual (post-norm models: and its norm)              |
    | `block03/cross`      | in a decoder, what attention to the encoder's tokens adds after `half`                    |
    | `block03/ista`       | output of ISTA; on other models `block03/mlp`, what the MLP adds                          |
    | `block03`            | tokens leaving block 3: Z+1 of layer 3, Z of layer 4                                      |
    | `block03/attn/heads` | what each head computed, `[b, n, h, p]`, with `heads=True`                                |
    | `block03/attention`  | attention weights `[b, h, n, n]`, with `attention=True`                                   |
    | `norm`, `fc_norm`, `head` | outputs of the final norms and of the classifier                                     |

    Where there are several stacks of blocks they have prefixes, as in `decoder/block03` or `vision_model/block03`;
    blocks whose halves run in parallel have no `half`. A model without transformer blocks is recorded by module path
    (`layer1.0.conv1`), and any module path may also be asked for by a pattern.

    Parts are found by their names, so what a block does with them is checked once while it runs: that Z plus `attn` is
    `half`, or what a norm makes of it, and `half` plus `mlp` what leaves the block. Places where that fails are left
    out of the trace, and asking for one says why.

    Args:
        model: any module. It is not changed; hooks live only inside the `with` block and go even after an exception.
        patterns: shell-style patterns of names to record (`"block*/half"`, `["embed", "block??"]`; `*` also matches
            `/`); default all.
        reduce: called as `reduce(name, tensor)` the moment a tensor exists, with the live tensor; only what it returns
            is kept (`None`: nothing), so memory is bounded by it. The trace then holds a list per name, one entry per
            call.
        grad: keep the tensors themselves, on the autograd graph; default: detached copies.
        attention: also record attention weights, recomputed from what the layer reads, without touching how it
            computes: fused kernels stay in use. For MSSA and timm's ViT and EVA attention (DINOv2, DINOv3); Hugging
            Face models must run with `attn_implementation="eager"`.
        heads: also record what each head computed, before the heads are put together, `block03/attn/heads`
            `[b, n, h, p]`, where an output projection is known.

    Returns:
        A mapping from names to tensors in the order of the model, still readable after the block. Several forward calls
        are concatenated along the first dimension when read.

    Raises:
        ValueError: a pattern matches nothing (the nearest names are given), attention weights cannot be had (of some
            layers that is known only when they run), or `model` or a part of it is compiled or scripted. On reading: a
            place that is not what its name says.
    """
    return Trace(model, patterns=patterns, reduce=reduce, grad=grad, attention=attention, heads=heads)


class Trace(Tabular, Mapping[str, Any]):
    """An ordered mapping from names to tensors; made by `trace`, which documents it."""

    def __init__(
        self,
        model: nn.Module,
        *,
        patterns: str | Sequence[str] | None = None,
        reduce: Reduce | None = None,
        grad: bool = False,
        attention: bool = False,
        heads: bool = False,
    ) -> None:
        inner = unwrap(model)
        if not (patterns is None or isinstance(patterns, str) or all(isinstance(each, str) for each in patterns)):
            raise ValueError("patterns: must be names or patterns of them, such as 'block*/attn'")
        self.stacks: list[Stack] = find_stacks(inner)
        sites = list(sites_of(inner, self.stacks, attention, heads)) if self.stacks else list(paths_of(inner))
        if attention and not any(site.name.endswith("/attention") for site in sites):
            raise ValueError(
                "attention=True: this model has no attention layer whose weights can be had; known are MSSA, timm's "
                'Attention and EvaAttention, and Hugging Face models after model.set_attn_implementation("eager")'
            )
        self._sites = sites if patterns is None else select(sites, inner, patterns)
        self._listener = Listener(self._sites)
        self._checked = {s.name: s.block for s in self._sites if s.block is not None and s.part in CHECKED}
        self._addition = Addition(self._checked.values())
        self._reduce, self._grad = reduce, grad
        self._values: dict[str, list[Any]] = {}
        self._paused = False

    @property
    def names(self) -> list[str]:
        """The names that a forward call will record, in order."""
        return list(dict.fromkeys(site.name for site in self._sites))

    def clear(self) -> None:
        """Forget what was recorded; recording goes on."""
        self._values.clear()

    def __getitem__(self, name: str) -> Any:
        if reason := self.refused(name):
            raise ValueError(f"model: {reason}")
        if name not in self._values:
            raise KeyError(
                unknown(name, self.names) if name not in self.names else f"{name}: no forward call recorded it"
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

    def refused(self, name: str) -> str:
        """Why a name has no tensor though its place was reached; empty if nothing speaks against it."""
        block = self._checked.get(name)
        return "" if block is None else fault(name, block)

    def __contains__(self, name: object) -> bool:
        return name in self._values and not self.refused(str(name))

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.names if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def records(self) -> list[dict[str, Any]]:
        """Name, shape, dtype and number of calls of all that was recorded; of what `reduce=` made no shape."""
        rows = []
        for name in self:
            values = self._values[name]
            tensors = [value for value in values if isinstance(value, Tensor)]
            shapes = [str(list(shape)) for shape in dict.fromkeys(value.shape for value in tensors)]
            dtypes = dict.fromkeys(str(value.dtype).removeprefix("torch.") for value in tensors)
            row = {"name": name, "shape": ", ".join(shapes), "dtype": ", ".join(dtypes), "calls": len(values)}
            rows.append(row)
        return rows

    def panel(self, *, measure: Callable[[Tensor], float] | None = None) -> LineChart:
        """One number of every recorded tensor against the layers, a line for each place in them.

        Args:
            measure: number of a tensor, such as the share of its entries that are not zero; by default the root mean
                square of its entries. Of what `reduce=` made it gets the list.

        Raises:
            ValueError: nothing was recorded, or no names have a number.
        """
        from unrolled.figures import LineChart, Series

        lines: dict[str, list[tuple[int, float]]] = {}
        for name in self:
            if match := re.fullmatch(r"(.*?)(\d+)(?:/(.*))?", name):
                value = self[name]
                number = _root_mean_square(value) if measure is None else float(measure(value))
                stack = match[1].rstrip("./").removesuffix("block").rstrip("/")
                place = " ".join(word for word in (stack, match[3] or "output") if word)
                lines.setdefault(place, []).append((int(match[2]), number))
        if not lines:
            raise ValueError("the trace has no recorded layers to draw: run the model within it")
        series = [Series(label=k, x=[x for x, _ in v], y=[y for _, y in v]) for k, v in lines.items()]
        title = "root mean square of the activations" if measure is None else getattr(measure, "__name__", "")
        return LineChart(title=title.replace("<lambda>", "measure"), x_label="layer", series=series)

    def plot(self, ax: Axes | None = None, *, measure: Callable[[Tensor], float] | None = None) -> Axes:
        """Draw `panel`; see `unrolled.figures.Panel.plot`."""
        return self.panel(measure=measure).plot(ax)

    def __repr__(self) -> str:
        lines = [f"  {r['name']}  {r['shape'] or 'reduced'} {r['dtype']}".rstrip() for r in self.records()]
        if len(lines) > _SCREEN:
            lines = [*lines[: _SCREEN - 4], f"  ... {len(lines) - _SCREEN + 1} more", *lines[-3:]]
        return "\n".join([f"Trace({len(self)} of {len(self.names)} names recorded)", *lines])

    def __enter__(self) -> Trace:
        if self._listener.listening:
            raise RuntimeError("this trace is already recording")
        self._listener.start(self._record)
        self._addition.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._listener.stop()
        self._addition.stop()

    def _record(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # reading attention runs parts of the model again, and so does checkpointing in the backward pass: not counted
        if self._paused or torch._C._current_graph_task_id() != -1:
            return
        call = self._listener.call(site, args, kwargs)
        if call is None:
            return
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
