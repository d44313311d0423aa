"""Places in a transformer by stable names, where a trace reads and an edit acts, and whose turn it is among them."""

from __future__ import annotations

import difflib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from unrolled.instruments.anatomy import Parts, Stack, final_sites, find_parts, head_count, output_projection
from unrolled.instruments.weights import Read, attention_reader


@dataclass(frozen=True)
class Site:
    """A place to listen: `read` takes (args, kwargs, output) of a call of `module` and returns the tensor `name`."""

    name: str
    module: nn.Module
    when: Literal["before", "after"]
    read: Read
    block: nn.Module | None = None
    """Record only once in a call of this block ..."""
    attention: nn.Module | None = None
    """... and only after this module has run in it."""
    factor: Any = None
    """What the block multiplies the module's output by, which `read` has done; None: nothing."""

    @property
    def part(self) -> str:
        """Of a place in a block, its name there: `attn`, `half`, `mlp`."""
        return self.name.rsplit("/", 1)[-1]


@dataclass
class Call:
    """What has happened in the current call of a block."""

    entered: weakref.ref[Tensor] | None = None
    shape: torch.Size = torch.Size()  # noqa: RUF009
    attended: bool = False
    recorded: set[str] = field(default_factory=set)


class Listener:
    """Hooks on sites, each taken once in a call of its block, where the block's halves have come to it."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self._sites = list(sites)
        self._handles: list[RemovableHandle] = []
        self._calls: dict[nn.Module, Call] = {}

    def start(self, act: Callable[[Site, tuple[Any, ...], dict[str, Any], Any], Any], *, first: bool = False) -> None:
        """Call `act(site, args, kwargs, output)` at every site from now on; what it returns, hooks return.

        Args:
            act: gets None as output at sites before a module.
            first: before all hooks that are there already.
        """
        blocks = {site.block for site in self._sites if site.block is not None}
        pairs = {
            (site.block, site.attention)
            for site in self._sites
            if site.block is not None and site.attention is not None
        }
        # after the blocks' hooks, so that a site that reads a block's own input finds its call begun
        hooks = [partial(block.register_forward_pre_hook, self._enter, with_kwargs=True) for block in blocks]
        hooks += [partial(layer.register_forward_hook, partial(self._attended, block)) for block, layer in pairs]
        hooks += [partial(_hook, site, act) for site in self._sites]
        try:
            for hook in reversed(hooks) if first else hooks:
                self._handles.append(hook(prepend=first))
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Remove every hook."""
        while self._handles:
            self._handles.pop().remove()
        self._calls.clear()

    @property
    def listening(self) -> bool:
        """Whether hooks are there."""
        return bool(self._handles)

    def call(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        """The call of its block that the site stands in; None where it is not the site's turn."""
        if site.block is None:
            return Call()
        call = self._calls.setdefault(site.block, Call())
        if site.name in call.recorded or (site.attention is not None and not call.attended):
            return None
        call.recorded.add(site.name)
        # attention without a norm before it reads Z too, and so it should
        half = site.when == "before" and site.attention is not None
        if half and call.entered is not None and call.entered() is read_input(args, kwargs, None):
            return None  # halves in parallel: what the second reads is Z, not Z+half
        return call

    def _enter(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        z = read_input(args, kwargs, None)
        self._calls[block] = Call() if z is None else Call(weakref.ref(z), z.shape)

    def _attended(self, block: nn.Module, attention: nn.Module, args: Any, output: Any) -> None:
        self._calls.setdefault(block, Call()).attended = True


def _hook(site: Site, act: Callable[..., Any], *, prepend: bool) -> RemovableHandle:
    if site.when == "before":
        return site.module.register_forward_pre_hook(
            lambda _, args, kwargs: act(site, args, kwargs, None), with_kwargs=True, prepend=prepend
        )
    return site.module.register_forward_hook(
        lambda _, args, kwargs, output: act(site, args, kwargs, output), with_kwargs=True, prepend=prepend
    )


def sites_of(model: nn.Module, stacks: list[Stack], attention: bool = False, heads: bool = False) -> Iterator[Site]:
    """The places of a transformer, in order; those of attention weights too where they can be had."""
    for stack in stacks:
        yield Site(f"{stack.prefix}embed", stack.blocks[0][1], "before", read_input)
        for index, (_, block) in enumerate(stack.blocks):
            name, parts = stack.name(index), find_parts(block)
            read = attention_reader(model, parts) if attention else None
            if read is not None and parts.attention is not None:
                yield Site(f"{name}/attention", parts.attention, read[0], read[1], block)
            if heads and parts.attention is not None:
                yield from _heads_site(model, name, parts.attention)
            yield from half_sites(name, block, parts)
            yield Site(name, block, "after", read_output)
    for name, module in final_sites(model, stacks):
        yield Site(name, module, "after", read_output)


def half_sites(name: str, block: nn.Module, parts: Parts) -> Iterator[Site]:
    """The places of a block's halves: `attn`, `half`, `cross` and `mlp` or `ista`."""
    if (site := branch_site(f"{name}/attn", block, parts)) is not None:
        yield site
    for module in parts.halves:
        yield Site(f"{name}/half", module, "before", read_input, block, parts.attention)
    if parts.cross is not None:
        yield Site(f"{name}/cross", parts.cross, "after", read_output, block)
    if parts.second is not None:
        factor = parts.factors[1]
        read = partial(_read_multiplied, factor)
        yield Site(f"{name}/{parts.second_name}", parts.second, "after", read, block, factor=factor)


def branch_site(name: str, block: nn.Module, parts: Parts) -> Site | None:
    """Where a block has what attention adds, under any name."""
    if parts.branch is None or parts.attention is None:
        return None
    # stochastic depth may be shared by the halves: the call after attention is attention's
    inside = any(module is parts.branch for module in parts.attention.modules())
    after = None if inside else parts.attention
    factor = parts.factors[0]
    return Site(name, parts.branch, "after", partial(_read_multiplied, factor), block, after, factor)


def _heads_site(model: nn.Module, name: str, attention: nn.Module) -> Iterator[Site]:
    projection, heads = output_projection(attention), head_count(attention, model)
    if projection is None or heads is None:
        return

    def read(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
        value = read_input(args, kwargs, output)
        return None if value is None else value.unflatten(-1, (heads, -1))

    yield Site(f"{name}/attn/heads", projection, "before", read)


def paths_of(model: nn.Module) -> Iterator[Site]:
    """The outputs of all modules by their paths."""
    return (Site(path, module, "after", read_output) for path, module in model.named_modules() if path)


def select(sites: list[Site], model: nn.Module, patterns: str | Sequence[str]) -> list[Site]:
    """Sites whose names match, or else modules whose paths do.

    Raises:
        ValueError: a pattern matches nothing; the nearest names are given.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    if not patterns:
        raise ValueError("patterns: is empty; leave it out to record everything")
    chosen = [site for site in sites if any(fnmatchcase(site.name, pattern) for pattern in patterns)]
    by_path: dict[str, Site] = {}
    for pattern in patterns:
        if any(fnmatchcase(site.name, pattern) for site in sites):
            continue
        paths = [site for site in paths_of(model) if fnmatchcase(site.name, pattern)]
        if not paths:
            raise ValueError("patterns: " + unknown(pattern, [site.name for site in sites]))
        by_path |= {site.name: site for site in paths}
    return chosen + list(by_path.values())


def unknown(pattern: str, names: list[str]) -> str:
    """What to say of a name that there is not."""
    names = list(dict.fromkeys(names))
    nearest = difflib.get_close_matches(pattern, names, n=4, cutoff=0.3) or names[:4]
    hint = "; attention weights need attention=True" if "attention" in pattern else ""
    return f"{pattern!r} matches no name; the nearest are {', '.join(nearest)}{hint}"


def read_input(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
    """The tokens that a module is given."""
    return first_tensor(args) if args else first_tensor(kwargs.get("hidden_states", kwargs))


def read_output(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
    """The tokens that a module returns."""
    return first_tensor(output)


def _read_multiplied(factor: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
    """What a module returns times what its block multiplies it by."""
    value = first_tensor(output)
    return value if value is None or factor is None else value * factor


def first_tensor(value: Any) -> Tensor | None:
    """The tensor itself, or the first one in a tuple or a mapping: Hugging Face layers return more than tokens."""
    if isinstance(value, Tensor):
        return value
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return next((tensor for item in items if (tensor := first_tensor(item)) is not None), None)
