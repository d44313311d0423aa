"""From a layer's tokens to one vector a sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")
_DISTILLATION = ("distillation_token", "dist_token")
_REGISTERS = ("reg_token", "register_tokens")
_JOINING = ("blocks_token_only", "cls_attn_blocks", "local_up_to_layer")


@dataclass(frozen=True)
class Tokens:
    """What a pooling is given for one layer and batch.

    Attributes:
        name: of the layer.
        values: [b, n, d]; the places of a feature map are its tokens, in row-major order.
        prefix: tokens before the patches (class token, registers).
        class_token: whether the first of them is a class token.
        grid: (rows, columns) of the tokens after the prefix, where they form one.
        mask: bool [b, n], False for padding; None: all tokens count.
    """

    name: str
    values: Tensor
    prefix: int
    class_token: bool
    grid: tuple[int, int] | None
    mask: Tensor | None


Pooling = Callable[[Tokens], Tensor]


def _cls(tokens: Tokens) -> Tensor:
    if not tokens.class_token:
        raise ValueError(
            f"pooling='cls': {tokens.name} has no class token; use pooling='mean', or say prefix=1 if it has one"
        )
    return tokens.values[:, 0]


def _mean(tokens: Tokens) -> Tensor:
    values, mask = _content(tokens)
    if mask is None:
        return values.mean(1)
    weights = mask.to(values.dtype).unsqueeze(-1)
    return (values * weights).sum(1) / weights.sum(1).clamp_min(1)


def _both(tokens: Tokens) -> Tensor:
    return torch.cat([_cls(tokens), _mean(tokens)], 1)


def _max(tokens: Tokens) -> Tensor:
    values, mask = _content(tokens)
    return (values if mask is None else values.masked_fill(~mask.unsqueeze(-1), float("-inf"))).amax(1)


def _last(tokens: Tokens) -> Tensor:
    values = tokens.values
    if tokens.mask is None:
        return values[:, -1]
    places = torch.arange(values.shape[1], device=values.device)
    return values[torch.arange(len(values), device=values.device), (places * tokens.mask).argmax(1)]


def spatial_grid(cells: int = 4) -> Pooling:
    """A pooling to `cells` x `cells` means of neighbouring patches, side by side: [b, cells^2 d]."""
    if cells < 1:
        raise ValueError(f"cells must be 1 or more, not {cells}")

    def pool(tokens: Tokens) -> Tensor:
        if tokens.grid is None:
            raise ValueError(f"pooling='grid': the tokens of {tokens.name} form no grid; use pooling='mean'")
        image = tokens.values[:, tokens.prefix :].mT.unflatten(2, tokens.grid)
        return nn.functional.adaptive_avg_pool2d(image, cells).flatten(2).mT.flatten(1)

    return pool


POOLINGS: dict[str, Pooling] = {
    "cls": _cls,
    "mean": _mean,
    "cls+mean": _both,
    "max": _max,
    "grid": spatial_grid(4),
    "last": _last,
}
"""Name -> pooling of tokens [b, n, d] to [b, d']. `mean` and `max` leave out prefix and padding tokens, `last` takes
the last token that is not padding, `grid` is `spatial_grid(4)`, `cls+mean` two poolings side by side. A new entry is a
new name for `extract`."""


def _content(tokens: Tokens) -> tuple[Tensor, Tensor | None]:
    mask = None if tokens.mask is None else tokens.mask[:, tokens.prefix :]
    return tokens.values[:, tokens.prefix :], mask


def get_pooling(pooling: str | Pooling) -> Pooling:
    """The function a name in `POOLINGS` stands for; a function is itself.

    Raises:
        ValueError: unknown name; the known ones are listed.
    """
    if callable(pooling):
        return pooling
    if pooling not in POOLINGS:
        raise ValueError(f"pooling: unknown {pooling!r}; choose from {', '.join(POOLINGS)}")
    return POOLINGS[pooling]


def as_tokens(
    name: str,
    value: Tensor,
    prefix: int,
    class_token: bool,
    mask: Tensor | None,
    *,
    grid: tuple[int, int] | None = None,
    channels_last: bool = False,
) -> Tokens:
    """Activations [b, n, d] or a map [b, c, h, w] as tokens.

    Args:
        name, prefix, class_token, mask: as in `Tokens`.
        value: the activations.
        grid: of the tokens after the prefix, where they form one.
        channels_last: a map is [b, h, w, c].

    Raises:
        ValueError: another shape, no tokens after the prefix, or a mask of another number of tokens.
    """
    if value.dim() == 4:
        if channels_last:
            value = value.permute(0, 3, 1, 2)
        return Tokens(name, value.flatten(2).mT, 0, False, (value.shape[2], value.shape[3]), None)
    if value.dim() != 3:
        raise ValueError(f"layers: {name} has shape {tuple(value.shape)}, neither tokens nor a map; leave it out")
    if value.shape[1] - prefix < 1:
        raise ValueError(
            f"layers: {name} has {value.shape[1]} tokens, {prefix} of them before the patches; give prefix="
        )
    if mask is not None and mask.shape[1] != value.shape[1]:
        raise ValueError(
            f"layers: {name} has {value.shape[1]} tokens and attention_mask marks padding among {mask.shape[1]}, so "
            "which tokens are padding is not known; give samples of one length at a time, without padding"
        )
    return Tokens(name, value, prefix, class_token, grid, mask)


def prefix_tokens(model: nn.Module, prefix: int | None) -> tuple[int, bool]:
    """Tokens before the patches, and whether the first of them is a class token.

    As many as `prefix` says, else the model, else its class tokens, distillation token and registers if it has
    parameters of that name, else 0.
    """
    if prefix is not None and prefix < 0:
        raise ValueError(f"prefix={prefix}: must be at least 0")
    config = getattr(model, "config", None)
    registers = int(getattr(model, "num_reg_tokens", 0) or getattr(config, "num_register_tokens", 0) or 0)
    registers = registers or _parameters(model, _REGISTERS)
    count = prefix if prefix is not None else getattr(model, "num_prefix_tokens", None)
    if count is None:
        classes = _parameters(model, CLASS_TOKENS)
        return (classes + _parameters(model, _DISTILLATION) + registers, True) if classes else (0, False)
    return int(count), bool(getattr(model, "has_class_token", count > registers)) and count > 0


def class_token_joins_late(model: nn.Module) -> bool:
    """Whether blocks run before the class token is among the tokens, as in CaiT, XCiT and ConViT."""
    return any(getattr(model, name, None) is not None for name in _JOINING)


def _parameters(model: nn.Module, names: tuple[str, ...]) -> int:
    """How many tokens the first parameter of one of these names holds, [..., n, d]."""
    for path, parameter in model.named_parameters():
        if path.rsplit(".", 1)[-1] in names:
            return parameter.shape[-2] if parameter.dim() > 1 else 1
    return 0
