"""What of a forward pass comes before a place that is changed, and need not be computed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from unrolled.instruments.anatomy import find_stacks, unwrap
from unrolled.instruments.editing import Change
from unrolled.instruments.sites import first_tensor


@dataclass
class _Run:
    """A module in a pass: how often it was called, when it began and ended, and what it returned."""

    calls: int = 0
    began: int = 0
    ended: int = 0
    output: Any = None
    version: int = 0

    @property
    def unchanged(self) -> bool:
        """Whether nothing wrote into what it returned: views share the count."""
        tensor = first_tensor(self.output)
        return tensor is not None and _version(tensor) == self.version


def _version(tensor: Tensor) -> int:
    """How often something was written into a tensor or a view of it; inference tensors do not count."""
    return 0 if tensor.is_inference() else tensor._version


class _Watch:
    """What modules do in a pass."""

    def __init__(self, modules: list[nn.Module], until: Callable[[], bool] = lambda: False) -> None:
        self.runs: dict[nn.Module, _Run] = {}
        self._clock = 0
        self._until = until
        self._handles = [module.register_forward_pre_hook(self._begin) for module in modules]
        self._handles += [module.register_forward_hook(self._end) for module in modules]

    def stop(self) -> None:
        """Remove the hooks."""
        while self._handles:
            self._handles.pop().remove()

    def _begin(self, module: nn.Module, args: Any) -> None:
        self._clock += 1
        run = self.runs.setdefault(module, _Run())
        run.calls, run.began = run.calls + 1, self._clock

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self._clock += 1
        tensor = first_tensor(output)
        if tensor is not None and module in self.runs and not self._until():
            run = self.runs[module]
            run.ended, run.output, run.version = self._clock, output, _version(tensor)


class Prefix:
    """Modules that ended before a place return what they returned when they last ran, to the bit.

    Kept of the unchanged pass: what blocks returned, and what did that comes before them, such as the embedding. Kept
    of the pass that first changed a place in a block: what ran in that block before it, such as queries, keys and
    values, for the next changes there. A module that was called twice, or whose output was written into, runs again.

    Args:
        model: whose passes these are.
        reuse: False keeps nothing.
    """

    def __init__(self, model: nn.Module, reuse: bool) -> None:
        # replicas have a part of the batch each
        reuse = reuse and not isinstance(model, nn.DataParallel) and not getattr(model, "reads_inside", False)
        inner = unwrap(model)
        stacks = find_stacks(inner) if reuse else []
        self._blocks = {stack.name(i): block for stack in stacks for i, (_, block) in enumerate(stack.blocks)}
        owners = {id(module) for block in self._blocks.values() for module in block.modules()}
        around = [m for m in inner.modules() if any(id(each) in owners for each in m.modules())]
        inside = {id(m) for m in around} | owners
        units = [m for m in inner.modules() if id(m) not in inside]
        nested = {id(part) for m in units for part in m.modules() if part is not m}
        self._units = [m for m in units if id(m) not in nested] + list(self._blocks.values()) if stacks else []
        self._watch = _Watch([])
        self._of: Any = None
        self._within: dict[nn.Module, _Run] = {}

    def __enter__(self) -> Prefix:
        self._watch = _Watch(self._units)
        return self

    def __exit__(self, *error: object) -> None:
        self._watch.stop()
        self._watch.runs.clear()
        self._of, self._within = None, {}

    def keep(self) -> None:
        """What ran so far is the unchanged pass."""
        self._watch.stop()
        runs = self._watch.runs
        last = max((runs[block].began for block in self._blocks.values() if block in runs), default=0)
        for module, run in list(runs.items()):
            if run.calls != 1:
                run.output = None
            elif run.ended > last and module not in self._blocks.values():  # logits, and nothing comes after them
                del runs[module]

    @contextmanager
    def before(self, place: str, target: object, change: Change) -> Iterator[Change]:
        """Within the block, what comes before `place` is not computed; yields the change to make there.

        Args:
            place: name of `unrolled.edit`.
            target: the tensor of the model that the place is of: places of one follow the same modules.
            change: what is to be made.
        """
        name = next((name for name in self._blocks if place == name or place.startswith(f"{name}/")), None)
        block = None if name is None else self._blocks[name]
        run = None if block is None else self._watch.runs.get(block)
        if block is None or run is None or run.calls != 1:
            yield change
            return
        with ExitStack() as restored:
            for module, other in self._watch.runs.items():
                before = other.ended < run.began or (module is block and place == name)  # what it returns is changed
                if before and other.output is not None and other.unchanged:
                    _stand_in(module, other.output, restored)
            if self._of is target:
                for module, other in self._within.items():
                    if other.unchanged:
                        _stand_in(module, other.output, restored)
                yield change
                return
            reached: list[bool] = []

            def reaching(x: Tensor) -> Tensor:
                reached.append(True)
                return change(x)

            watch = _Watch([m for m in block.modules() if m is not block], until=lambda: bool(reached))
            restored.callback(watch.stop)
            yield reaching
        self._of, self._within = target, _outermost(watch.runs)


def _outermost(runs: dict[nn.Module, _Run]) -> dict[nn.Module, _Run]:
    """Those that ended before the place and were called once, without what is inside another one of them."""
    ended = {module: run for module, run in runs.items() if run.calls == 1 and run.ended}
    inside = {id(part) for module in ended for part in module.modules() if part is not module}
    return {module: run for module, run in ended.items() if id(module) not in inside}


def _stand_in(module: nn.Module, output: Any, restored: ExitStack) -> None:
    if "forward" not in vars(module):  # what somebody put there stays
        module.forward = partial(_given, output)  # type: ignore[method-assign]
        restored.callback(delattr, module, "forward")


def _given(output: Any, *args: Any, **kwargs: Any) -> Any:
    return output
