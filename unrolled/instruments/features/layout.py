"""Where the patches of images are among a model's tokens: seen while it runs, not guessed from how many there are."""

from __future__ import annotations

import inspect
from math import log, prod
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from unrolled.instruments.anatomy import find_stacks, unwrap
from unrolled.instruments.features.pooling import CLASS_TOKENS, Tokens, as_tokens, prefix_tokens
from unrolled.instruments.sites import read_input

_STEM = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
_ALIKE = log(1.15)  # two aspect ratios that rounding may have set apart
_UNLIKE = log(1.5)  # two that it has not


class Layout:
    """Listens to a model, `with Layout(model, prefix) as layout: model(images)`, and tells its tokens apart.

    The last convolution before a stack of blocks makes its patches, so that their rows and columns are known, and how
    many other tokens there are.

    Args:
        model: any that `trace` understands.
        prefix: tokens before the patches; None: what the model says, checked against how many there are.
    """

    def __init__(self, model: nn.Module, prefix: int | None) -> None:
        self._model = unwrap(model)
        self._prefix, self._given = prefix_tokens(self._model, prefix), prefix is not None
        self._stacks = find_stacks(self._model)
        self._scattered = bool(scattered(self._model))
        self._size: tuple[int, int] | None = None
        self._made: dict[int, tuple[int, int, int]] = {}
        """Rows, columns and width of what a convolution made last, by how many samples it had."""
        self._patches: dict[str, tuple[int, int, int] | None] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        inside = {id(part) for stack in self._stacks for _, block in stack.blocks for part in block.modules()}
        self._handles.append(self._model.register_forward_pre_hook(self._begin, with_kwargs=True, prepend=True))
        for module in self._model.modules() if self._stacks else ():
            if isinstance(module, _STEM) and id(module) not in inside:
                self._handles.append(module.register_forward_hook(self._make))
        for stack in self._stacks:
            first = stack.blocks[0][1]

            def enter(_: nn.Module, args: Any, kwargs: Any, name: str = stack.prefix) -> None:
                self._enter(name, read_input(args, kwargs, None))

            self._handles.append(first.register_forward_pre_hook(enter, with_kwargs=True, prepend=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()

    def grid(self, stack: str = "") -> tuple[int, int] | None:
        """(H, W) of the patches that entered a stack, by its prefix; None: no convolution made them."""
        made = self._patches.get(stack)
        return None if made is None else made[:2]

    def reads_images(self, name: str) -> bool:
        """Whether a layer's stack was given patches."""
        return self._patches.get(self._stack(name)) is not None

    def tokens(self, name: str, value: Tensor, mask: Tensor | None) -> Tokens:
        """Activations of the layer `name` in the last run, [b, n, d] or a map, as tokens.

        Raises:
            ValueError: their shape is neither; or there are more tokens than patches and those before them.
        """
        if value.dim() != 3:
            return as_tokens(name, value, *self._prefix, mask, channels_last=self._channels_last(name, value))
        made = self._patches.get(self._stack(name), self._made.get(len(value)))
        prefix, has_class = self._prefix if self._given or self._owns_class_token(name) else (0, False)
        count = value.shape[1]
        if made is not None and not self._given and prefix:
            patches = made[0] * made[1]
            if count == patches:  # the class token joins later, as CaiT's does
                prefix, has_class = 0, False
            elif count > patches + prefix:
                raise ValueError(
                    f"layers: {name} of {type(self._model).__name__} has {count} tokens: {patches} patches, {prefix} "
                    f"before them, and {count - patches - prefix} that are neither; say how many come first by prefix= "
                    "and all others are taken for patches, or pool by a function of your own"
                )
        return as_tokens(name, value, prefix, has_class, mask, grid=self._arranged(value, prefix, made))

    def _arranged(self, value: Tensor, prefix: int, made: tuple[int, int, int] | None) -> tuple[int, int] | None:
        count = value.shape[1] - prefix
        if self._scattered or count < 1:
            return None
        if made is None:
            return None if self._size is None else in_rows(count, self._size)
        rows, columns, width = made
        if rows * columns == count:
            return rows, columns
        if value.shape[-1] == width:  # patches were left out or joined by others; which ones is not known
            return None
        halved = [(-(-rows // 2**k), -(-columns // 2**k)) for k in range(1, 6)]  # later stages are wider and coarser
        return next((grid for grid in halved if prod(grid) == count), None)

    def _channels_last(self, name: str, value: Tensor) -> bool:
        """Whether a map is [b, h, w, c]: by the shape of the image, and where both fit by what the model says."""
        a, b, c = value.shape[1:] if value.dim() == 4 else (1, 1, 1)
        if self._size is None or 0 in value.shape:
            return a == b != c
        aspect = log(self._size[0] / self._size[1])
        first, last = abs(log(b / c) - aspect), abs(log(a / b) - aspect)
        if self._stacks and min(first, last) > _UNLIKE and b > 2 and (a if last < first else c) > 2:
            raise ValueError(
                f"layers: {name} has shape {tuple(value.shape)}, which is no map of {self._size[0]} x {self._size[1]} "
                "images; leave it out"
            )
        declared = getattr(self._model, "output_fmt", "")
        says_last = str(getattr(declared, "value", declared)).upper() == "NHWC"
        return says_last if max(first, last) < _ALIKE else last < first

    def _owns_class_token(self, name: str) -> bool:
        """Whether the class token that was found among the parameters is of the tower that a layer is in."""
        stack = next((stack for stack in self._stacks if stack.prefix == self._stack(name)), None)
        owners = class_token_owners(self._model)
        if stack is None or not owners or getattr(self._model, "num_prefix_tokens", None) is not None:
            return True
        firsts = [f"{each.blocks[0][0]}." for each in self._stacks]
        for owner in owners:
            scope = owner
            while scope and not any(first.startswith(f"{scope}.") for first in firsts):
                scope = scope.rpartition(".")[0]
            if not scope or f"{stack.blocks[0][0]}.".startswith(f"{scope}."):
                return True
        return False

    def _stack(self, name: str) -> str:
        fitting = [stack.prefix for stack in self._stacks if name.startswith(stack.prefix)]
        return max(fitting, key=len, default="")

    def _begin(self, _: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        images = (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.dim() == 4)
        first = next(images, None)
        self._size = None if first is None or 0 in first.shape else (first.shape[2], first.shape[3])
        self._made.clear()
        self._patches.clear()

    def _make(self, module: nn.Module, args: Any, out: Any) -> None:
        if isinstance(out, Tensor) and out.dim() == 4:
            self._made[len(out)] = (out.shape[2], out.shape[3], out.shape[1])

    def _enter(self, stack: str, tokens: Tensor | None) -> None:
        if stack in self._patches:
            return  # a block that runs again
        self._patches[stack] = None if tokens is None else self._made.get(len(tokens))
        self._made.clear()


def class_token_owners(model: nn.Module) -> list[str]:
    """Paths of the modules that have a class token's parameter."""
    parted = (path.rpartition(".") for path, _ in model.named_parameters())
    return [owner for owner, _, name in parted if name in CLASS_TOKENS]


def scattered(model: nn.Module) -> str:
    """Why a model's patches are not row after row; empty if they are."""
    if hides_patches(model):
        return "draws the order of its patches"
    if any(hasattr(part, "unroll") or hasattr(part, "unroll_schedule") for part in model.modules()):
        return "keeps its patches window by window"
    return ""


def hides_patches(model: nn.Module) -> bool:
    """Whether a model leaves out random patches, or shuffles them, whenever it runs: a masked autoencoder."""
    asks = "mask_ratio" in inspect.signature(model.forward).parameters
    return asks or any(
        callable(getattr(part, "random_masking", None)) and getattr(part, "is_mae", True) for part in model.modules()
    )


def check_visible(model: nn.Module) -> None:
    """That a model sees the whole image.

    Raises:
        ValueError: it is a masked autoencoder, whose tokens are others each time it runs.
    """
    if hides_patches(model):
        raise ValueError(
            f"model: {type(model).__name__} draws the patches that it sees, and their order, whenever it runs; load "
            "its weights as a network that sees them all: ViTModel of transformers, MaskedAutoencoder.classifier()"
        )


def check_in_rows(model: nn.Module) -> None:
    """That the patches of an image stand row after row among the tokens.

    Raises:
        ValueError: they do not.
    """
    check_visible(model)
    if why := scattered(model):
        raise ValueError(
            f"model: {type(model).__name__} {why}, so there are no rows and columns; `extract` takes its means"
        )


def in_rows(count: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """(H, W) of `count` square patches of an image [h, w]; None where they form no grid."""
    rows = max(round((count * size[0] / size[1]) ** 0.5), 1)
    return (rows, count // rows) if count % rows == 0 else None
