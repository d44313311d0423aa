"""Whether a block does what its places are named for: Z plus `attn` is `half`, and `half` plus `mlp` leaves it.

Parts are found by their names, and a block may do more with them: multiply, normalise, add inside. So every block is
looked at once while it runs, and what does not add up is refused instead of given under a wrong name.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from unrolled.instruments.anatomy import Parts, find_parts
from unrolled.instruments.sites import Listener, Site, half_sites, read_input, read_output

CHECKED = ("attn", "half", "mlp")
PART = 1e-2  # of what is added: a block that multiplies it by anything but 1 is further off
ROUNDING = 4  # units of the last place of the sum

_WHY = {
    "attn": "what its attention returns is not what the block adds to its tokens",
    "half": "between its halves the block does more than add what attention returns, or does it in another place",
    "mlp": "what its second half returns is not what the block adds to its tokens",
}
# by block and by whether it is in train mode: the parts that are not what their names say
_known: weakref.WeakKeyDictionary[nn.Module, dict[bool, frozenset[str]]] = weakref.WeakKeyDictionary()
# modules whose output an edit changes, which then is not what they computed
_changed: Counter[nn.Module] = Counter()


def fault(name: str, block: nn.Module) -> str:
    """Why there is no number of a place of a block that has run, or nothing: the place is what its name says."""
    part = name.rsplit("/", 1)[-1]
    if part not in _known.get(block, {}).get(block.training, ()):
        return ""
    mode = ", or call model.eval() if it is dropout that stands between" if block.training else ""
    return (
        f"{name} of {type(block).__name__} is not what the name says: {_WHY[part]}; take the tokens between the blocks "
        f"('embed', 'block??') or modules by their paths{mode}"
    )


def changing(modules: Iterable[nn.Module], by: int) -> None:
    """Count (1) or no longer count (-1) an edit of what these modules return."""
    for module in modules:
        _changed[module] += by
        if not _changed[module]:
            del _changed[module]


@dataclass
class _Seen:
    """What was seen in one call of a block, as it was then."""

    z: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    norms: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Input and output of the norms that saw as many numbers as there are in the tokens."""
    entry: Tensor | None = None
    """What the second half was given."""


class Addition:
    """Looks at blocks that have not been looked at, while they run between `start` and `stop`.

    Args:
        blocks: those of which `fault` will be asked.
    """

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        self._blocks = list(dict.fromkeys(blocks))
        self._handles: list[RemovableHandle] = []
        self._listener = Listener([])
        self._seen: dict[nn.Module, _Seen] = {}

    def start(self) -> None:
        """Hook the blocks of which nothing is known yet."""
        new = {block: find_parts(block) for block in self._blocks if block.training not in _known.get(block, {})}
        new = {block: parts for block, parts in new.items() if parts.attention is not None}
        if not new:
            return
        for block, parts in new.items():
            # before an edit of what the block returns, which the sum must not see
            end = partial(self._ended, block, parts)
            self._handles.append(block.register_forward_hook(end, prepend=True))
            self._handles.append(block.register_forward_pre_hook(partial(self._entered, block), with_kwargs=True))
            for module in block.modules():
                if "norm" in type(module).__name__.lower():
                    self._handles.append(module.register_forward_hook(partial(self._normed, block), with_kwargs=True))
            if parts.entry is not None:
                hook = partial(self._read, block)
                self._handles.append(parts.entry.register_forward_pre_hook(hook, with_kwargs=True))
        self._listener = Listener([site for block, parts in new.items() for site in half_sites("", block, parts)])
        self._listener.start(self._part)

    def stop(self) -> None:
        """Remove every hook."""
        self._listener.stop()
        while self._handles:
            self._handles.pop().remove()
        self._seen.clear()

    def _entered(self, block: nn.Module, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._seen.pop(block, None)
        z = read_input(args, kwargs, None)
        # a replica of data parallelism is another module, and tokens of the meta device have no values; the backward
        # pass of a checkpoint runs a block again
        if module is block and z is not None and not z.is_meta and torch._C._current_graph_task_id() == -1:
            self._seen[block] = _Seen(_copy(z))

    def _part(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        seen = None if site.block is None else self._seen.get(site.block)
        if seen is None or self._listener.call(site, args, kwargs) is None:
            return
        with torch.no_grad():
            if (value := site.read(args, kwargs, output)) is not None:
                seen.parts[site.part] = _copy(value)

    def _normed(
        self, block: nn.Module, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        seen, given, returned = self._seen.get(block), read_input(args, kwargs, None), read_output(args, kwargs, output)
        if seen is None or given is None or returned is None:
            return
        if given.numel() == seen.z.numel() == returned.numel():
            seen.norms.append((_copy(given), _copy(returned)))

    def _read(self, block: nn.Module, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen, given = self._seen.get(block), read_input(args, kwargs, None)
        if seen is not None and given is not None and seen.entry is None:
            seen.entry = _copy(given)

    def _ended(self, block: nn.Module, parts: Parts, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen, out = self._seen.pop(block, None), read_output(args, {}, output)
        if seen is None or out is None or "attn" not in seen.parts:
            return  # it, or a part of it, did not run by itself
        if _changed and any(each in _changed for each in block.modules()):
            return
        finite = all(bool(value.isfinite().all()) for value in (seen.z, out, *seen.parts.values()))
        # of zeros, such as an edit leaves, every multiple is the same
        if finite and all(bool(value.any()) for value in seen.parts.values()):
            faults = frozenset(_faults(seen, parts, out.detach()))
            _known.setdefault(block, {})[block.training] = faults


def _faults(seen: _Seen, parts: Parts, out: Tensor) -> Iterator[str]:
    """The parts that are not what their names say."""
    attn = seen.parts["attn"]
    z, out = _channels_last(seen.z, attn), _channels_last(out, attn)
    half, second, cross = (seen.parts.get(each) for each in ("half", "mlp", "cross"))
    if half is None:
        if second is None:
            return
        if not _adds(z, [attn, second] if cross is None else [attn, cross, second], out, seen.norms):
            yield from ("attn", "mlp")
        if seen.entry is not None and not _reads(seen.entry, z, seen.norms):
            yield "half"
        return
    plain = _adds(z, [attn], half, [])
    first = plain or _adds(z, [attn], half, seen.norms)
    bases = [half] if cross is None or not _alike(cross, half) else [half + cross.reshape(half.shape)]
    if cross is not None and seen.entry is not None:
        bases.append(seen.entry)  # a norm follows what was read of the encoder, in decoders that normalise after adding
    last = second is None or any(_adds(base, [second], out, seen.norms) for base in bases)
    if not first and (second is None or last):
        yield from ("attn",) if second is not None else ("attn", "half")
    elif first and not last:
        yield "mlp"
        if not plain:
            yield "half"  # a norm of it may be what the second half reads, not what it adds to
    elif not first:
        yield from CHECKED


def _adds(base: Tensor, added: list[Tensor], total: Tensor, norms: list[tuple[Tensor, Tensor]]) -> bool:
    """Whether base and what is added make the total, or a norm makes it of them."""
    totals = [total, *(given for given, returned in norms if _same(returned, total))]
    return any(_is_sum(base, added, each) for each in totals)


def _is_sum(base: Tensor, added: list[Tensor], total: Tensor) -> bool:
    if not all(_alike(each, base) for each in (*added, total)):
        return False
    wide = total.double() if total.device.type != "mps" else total.float()
    parts = [each.reshape(total.shape).to(wide.dtype) for each in added]
    rest = wide - base.reshape(total.shape).to(wide.dtype) - sum(parts)
    coarsest = max(torch.finfo(each.dtype).eps for each in (base, total, *added))
    allowed = PART * sum(part.norm() for part in parts) + ROUNDING * coarsest * (wide.norm() + base.norm())
    return bool(rest.norm() <= allowed)


def _reads(entry: Tensor, z: Tensor, norms: list[tuple[Tensor, Tensor]]) -> bool:
    """Whether what the second half was given is Z or a norm of it."""
    return _same(entry, z) or any(_same(returned, entry) and _same(given, z) for given, returned in norms)


def _same(a: Tensor, b: Tensor) -> bool:
    return _alike(a, b) and bool(torch.allclose(a.reshape(b.shape).to(b.dtype), b))


def _alike(a: Tensor, b: Tensor) -> bool:
    """Whether they are the same numbers of tokens, whose rows and columns may be flattened."""
    return a.numel() == b.numel() and a.shape[-1] == b.shape[-1]


def _channels_last(value: Tensor, like: Tensor) -> Tensor:
    """A map `[b, c, h, w]` of tokens as the parts of a block have it, `[b, h, w, c]`."""
    apart = value.dim() == 4 and value.shape[-1] != like.shape[-1] == value.shape[1]
    return value.movedim(1, -1) if apart else value


def _copy(value: Tensor) -> Tensor:
    """A copy: what the model does in place must not reach it."""
    return value.detach().clone()
