"""Acting on what a trace names: `with edit(model, {"block03/attn": fn}): model(x)`."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from unrolled.instruments.addition import CHECKED, Addition, changing, fault
from unrolled.instruments.anatomy import (
    attention_layer,
    check_values,
    child,
    find_parts,
    find_stacks,
    head_count,
    input_width,
    output_projection,
    unwrap,
)
from unrolled.instruments.sites import Listener, Site, branch_site, paths_of, read_input, read_output, sites_of, unknown

Change = Callable[[Tensor], Tensor]

# names that edits in force are changing, by model
_active: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()


def edit(model: nn.Module, edits: Mapping[str, Change]) -> Edit:
    """Change what flows through `model` during the forward calls of a `with` block.

    Names are those of `unrolled.trace`, with wildcards where many are meant (`"block*/attn"`), and of parts of them:

    | name                  | what `fn` is given and returns                                                    |
    |-----------------------|-----------------------------------------------------------------------------------|
    | `embed`, `block03`    | tokens between the blocks, `[b, n, d]`                                            |
    | `block03/attn`, `/mlp`, `/ista` | what the half adds to the tokens, or, for ISTA, what replaces them      |
    | `block03/cross`       | what attention to an encoder's tokens adds in a decoder                           |
    | `block03/half`        | tokens between the halves, where attention adds to the tokens                     |
    | `block03/attn/head2`  | what head 2 computed, before the heads are put together, `[b, n, p]`              |
    | `block03/ista/atom17` | the code of atom 17 of every token, `[b, n]`, also of an overcomplete dictionary  |
    | `norm`, `head`        | outputs of the final norm and of the classifier                                   |
    | any module path       | the (first) tensor that the module returns                                        |

    `fn(tensor)` returns a tensor of the same shape, dtype and device, or its argument, and then nothing is changed, to
    the bit; it must not write into it. `unrolled.instruments.edits` has the usual ones: `zero`, `mean`, `resample`,
    `patch`, `steer`, `project_out`, `at`. A trace of the same call, begun before or after, sees what the edit leaves.
    Gradients flow through what `fn` does; hooks are removed at the end, after an exception too.

    Args:
        model: any module that a trace reads, also in data-parallel wrappers. It is not changed.
        edits: from names to functions.

    Raises:
        ValueError: a name matches nothing (the nearest are given) or cannot be changed, the model or a block of it is
            compiled, or on the meta device. While running: a result of another shape, dtype or device. At the end: an
            edit whose place was never reached, or is not what its name says (see `trace`), or a name that two edits in
            force would change.
    """
    return Edit(model, edits)


@dataclass(frozen=True)
class _Act:
    """A change of a tensor, or of a part of its last dimension."""

    name: str
    change: Change
    part: int | slice | None

    def __call__(self, value: Tensor) -> Tensor:
        piece = value if self.part is None else value[..., self.part]
        before = None if value.is_inference() else value._version
        changed = self.change(piece)
        if before is not None and value._version != before:
            raise ValueError(f"edits: the function of {self.name} wrote into its tensor; return a new one")
        if changed is piece:
            return value
        _check_like(changed, piece, self.name)
        if self.part is None:
            return changed
        value = value.clone()
        value[..., self.part] = changed
        return value


@dataclass(eq=False)
class _Target:
    """A tensor of the model: where a hook finds it, or the method of a layer that takes or returns it."""

    site: Site | None = None
    method: tuple[nn.Module, str] | None = None
    takes: bool = False
    """The method takes the tensor; otherwise it returns it."""
    half: bool = False
    """The tokens between the halves, of which the site has what attention adds."""
    acts: list[_Act] = field(default_factory=list)


Places = dict[str, tuple[_Target, int | slice | None]]


class Edit:
    """Changes in force during a `with` block; made by `edit`, which documents it."""

    def __init__(self, model: nn.Module, edits: Mapping[str, Change], *, places: Places | None = None) -> None:
        self._model = unwrap(model)
        if not isinstance(edits, Mapping) or not all(isinstance(name, str) for name in edits):
            raise ValueError("edits: must map names to functions, such as {'block00/attn': zero}")
        if not edits:
            raise ValueError("edits: is empty; name at least one place, such as {'block00/attn': zero}")
        places = places_of(self._model) if places is None else places
        self._names: set[str] = set()
        targets: dict[int, _Target] = {}
        for pattern, change in edits.items():
            if not callable(change):
                raise ValueError(f"edits: {pattern!r} must be a function of a tensor, not {type(change).__name__}")
            for name in _matching(pattern, places, self._model):
                known, part = places[name]
                if name in self._names:
                    raise ValueError(f"edits: two of the patterns match {name}; name it once")
                self._names.add(name)
                bind = getattr(change, "bind", None)
                target = targets.setdefault(id(known), replace(known, acts=[]))
                target.acts.append(_Act(name, change if bind is None else bind(name), part))
        self._targets = list(targets.values())
        self._by_site = {target.site.name: target for target in self._targets if target.site is not None}
        sites = [target.site for target in self._targets if target.site is not None]
        sites += [site for target in self._targets if target.half for site in _entries(self._model, target)]
        self._listener = Listener(sites)
        edited = self._by_site.values()
        self._changing = [s.module for t in edited if (s := t.site) and s.block is None and s.when == "after"]
        self._checked = {s.name: s.block for t in edited if (s := t.site) and s.block is not None and s.part in CHECKED}
        self._addition = Addition(self._checked.values())
        self._expected: dict[str, Tensor] = {}
        self._reached: set[str] = set()

    @property
    def names(self) -> list[str]:
        """The places that are changed."""
        return sorted(self._names)

    def __repr__(self) -> str:
        more = f" and {len(self.names) - 8} more" if len(self.names) > 8 else ""
        return f"Edit({', '.join(self.names[:8])}{more})"

    def __enter__(self) -> Edit:
        taken = _active.setdefault(self._model, set())
        if both := taken & self._names:
            raise ValueError(f"edits: {', '.join(sorted(both))} is being changed already; end that edit, or join them")
        self._refuse()
        self._reached.clear()
        self._listener.start(self._act, first=True)
        self._addition.start()
        changing(self._changing, 1)
        for target in self._targets:
            if target.method is not None:
                layer, method = target.method
                setattr(layer, method, partial(self._through, target, getattr(layer, method)))
        taken |= self._names
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._listener.stop()
        self._addition.stop()
        changing(self._changing, -1)
        for target in self._targets:
            if target.method is not None:
                delattr(*target.method)
        self._expected.clear()
        _active[self._model] -= self._names
        if error is None:
            self._refuse()
        missed = self._names - self._reached
        if error is None and missed:
            why = "that part of the model did not run" if self._reached else "the model did not run, or not by itself"
            raise ValueError(f"edits: {', '.join(sorted(missed))} was never reached: {why}")

    def _refuse(self) -> None:
        for name, block in self._checked.items():
            if reason := fault(name, block):
                raise ValueError(f"edits: {reason}")

    def _changed(self, target: _Target, value: Tensor) -> Tensor:
        for act in target.acts:
            value = act(value)
            self._reached.add(act.name)
        return value

    def _through(self, target: _Target, method: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if target.takes:
            return method(self._changed(target, x), *args, **kwargs)
        return self._changed(target, method(x, *args, **kwargs))

    def _act(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        call = self._listener.call(site, args, kwargs)
        value = None if call is None else site.read(args, kwargs, output)
        if call is None or value is None:
            return None
        if site.name not in self._by_site:
            self._check_half(site, value)
            return None
        target = self._by_site[site.name]
        shape = value.shape
        flat = site.block is not None and value.dim() == 2 and call.shape[-1:] == shape[-1:]
        before = value.reshape(call.shape) if flat else value  # OPT flattens batch and tokens in its second half
        entered = call.entered() if target.half and call.entered is not None else None
        before = before if entered is None else entered + before
        after = self._changed(target, before)
        if after is before:
            return None
        if entered is not None:
            self._expected[site.name] = after
            after = after - entered
        after = after.reshape(shape)
        if site.factor is not None:
            after = _divided(after, value, site, read_output(args, kwargs, output))
        if site.when == "after":
            return _replaced(output, after)
        if args:
            return _replaced(args, after), kwargs
        if "hidden_states" in kwargs:
            return args, {**kwargs, "hidden_states": after}
        return args, _replaced(kwargs, after)

    def _check_half(self, site: Site, actual: Tensor) -> None:
        name = site.name.removesuffix(" read")
        expected = self._expected.pop(name, None)
        if expected is not None and actual.numel() == expected.numel():
            actual = actual.reshape(expected.shape)  # OPT flattens batch and tokens, Swin rows and columns
        if expected is not None and not _are_close(actual, expected):
            raise ValueError(
                f"edits: {name} cannot be changed: this block does not simply add to its tokens what attention "
                "computes; change what attention adds, or the tokens between the blocks"
            )


def places_of(model: nn.Module) -> Places:
    """Every name that `edit` takes, but for module paths of transformers; for many edits of one model.

    Raises:
        ValueError: the model is compiled, or on the meta device.
    """
    model = unwrap(model)
    check_values(model)
    return {name: (target, part) for name, target, part in _places(model)}


def _places(model: nn.Module) -> Iterator[tuple[str, _Target, int | slice | None]]:
    """Every name, the tensor that it is of, and the part of it."""
    stacks = find_stacks(model)
    if not stacks:
        for site in paths_of(model):
            yield site.name, _Target(site), None
        return
    halves = set()
    for site in sites_of(model, stacks, attention=False):
        if not site.name.endswith("/half"):
            yield site.name, _Target(site), None
    for stack in stacks:
        for index, (_, block) in enumerate(stack.blocks):
            name, parts = stack.name(index), find_parts(block)
            if parts.halves and parts.branch is not None and name not in halves:
                halves.add(name)
                if (adding := branch_site(f"{name}/half", block, parts)) is not None:
                    yield adding.name, _Target(adding, half=True), None
            yield from _heads(model, name, block)
            yield from _atoms(name, block)


def _heads(model: nn.Module, name: str, block: nn.Module) -> Iterator[tuple[str, _Target, slice]]:
    """What each head computed: what the output projection is given, heads side by side."""
    attention = attention_layer(block)
    heads = None if attention is None else head_count(attention, model)
    if attention is None or heads is None:
        return
    projection = output_projection(attention)
    if projection is not None:
        target = _Target(Site(f"{name}/attn/heads", projection, "before", read_input))
        width = input_width(projection)
    elif callable(getattr(attention, "merge", None)) and isinstance(dim_head := getattr(attention, "dim_head", 0), int):
        target, width = _Target(method=(attention, "merge"), takes=True), heads * dim_head
    else:
        return
    for head in range(heads):
        yield f"{name}/attn/head{head}", target, slice(head * width // heads, (head + 1) * width // heads)


def _atoms(name: str, block: nn.Module) -> Iterator[tuple[str, _Target, int]]:
    """The codes of each atom of a dictionary."""
    layer = child(block, ("ista",))
    dictionary = getattr(layer, "dictionary", None)
    if layer is None or not isinstance(dictionary, Tensor):
        return
    overcomplete = callable(getattr(layer, "codes", None))
    site = Site(f"{name}/ista/atoms", layer, "after", read_output)
    target = _Target(method=(layer, "codes")) if overcomplete else _Target(site)
    for atom in range(dictionary.shape[-1]):
        yield f"{name}/ista/atom{atom}", target, atom


def _entries(model: nn.Module, target: _Target) -> Iterator[Site]:
    """Where the second half reads the tokens that a change of `half` should have made."""
    assert target.site is not None
    for site in sites_of(model, find_stacks(model), attention=False):
        if site.name == target.site.name:
            yield Site(f"{site.name} read", site.module, site.when, site.read, site.block, site.attention)


def _matching(pattern: str, places: Places, model: nn.Module) -> list[str]:
    """Names that match, or else module paths, which join the places."""
    if pattern in places:
        return [pattern]
    if matches := [name for name in places if fnmatchcase(name, pattern)]:
        return matches
    if pattern.endswith("/attention"):
        raise ValueError(f"edits: {pattern!r}: attention weights can be traced but not changed; change a head instead")
    paths = [site for site in paths_of(model) if fnmatchcase(site.name, pattern)]
    if not paths:
        raise ValueError("edits: " + unknown(pattern, list(places)))
    places.update({site.name: (_Target(site), None) for site in paths})
    return [site.name for site in paths]


def _check_like(changed: Any, value: Tensor, name: str) -> None:
    if not isinstance(changed, Tensor):
        raise ValueError(f"edits: the function of {name} returned a {type(changed).__name__}; return a tensor")
    for what in ("shape", "dtype", "device"):
        old, new = getattr(value, what), getattr(changed, what)
        if old != new:
            old, new = (list(old), list(new)) if what == "shape" else (old, new)
            raise ValueError(f"edits: the function of {name} changed the {what} from {old} to {new}; keep it")


def _divided(after: Tensor, before: Tensor, site: Site, raw: Tensor | None) -> Tensor:
    """What a module must return for its block to add `after`; what is unchanged stays, to the bit."""
    assert raw is not None
    if not bool(torch.as_tensor(site.factor != 0).all()):
        raise ValueError(f"edits: {site.name} cannot be changed: its block multiplies it by weights that are 0")
    divided = (after / site.factor).to(raw.dtype)
    return divided if after.requires_grad else torch.where(after == before, raw, divided)


def _are_close(actual: Tensor, expected: Tensor) -> bool:
    same = actual.shape == expected.shape
    return same and torch.allclose(actual.float(), expected.float(), rtol=1e-2, atol=1e-3)


def _replaced(structure: Any, new: Tensor) -> Any:
    """`structure` with its first tensor replaced; see `sites.first_tensor`."""
    if isinstance(structure, Tensor):
        return new
    if isinstance(structure, Mapping):
        key = next(key for key, value in structure.items() if _has_tensor(value))
        copy: Any = structure.copy() if hasattr(structure, "copy") else dict(structure)  # type: ignore[attr-defined]
        copy[key] = _replaced(structure[key], new)
        return copy
    items = list(structure)
    place = next(place for place, value in enumerate(items) if _has_tensor(value))
    items[place] = _replaced(items[place], new)
    if isinstance(structure, tuple):
        return type(structure)(*items) if hasattr(structure, "_fields") else tuple(items)
    return items


def _has_tensor(value: Any) -> bool:
    if isinstance(value, Tensor):
        return True
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return any(_has_tensor(item) for item in items)
