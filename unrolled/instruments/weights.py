"""Attention weights, recomputed from what a layer reads: fused kernels never have them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unrolled.instruments.anatomy import Parts

Read = Callable[[tuple[Any, ...], dict[str, Any], Any], Tensor | None]


def attention_reader(model: nn.Module, parts: Parts) -> tuple[Literal["before", "after"], Read] | None:
    """How to get the weights `[b, h, n, n]` of an attention layer, and when in its call; None if they cannot be had."""
    layer = parts.attention
    method = getattr(layer, "attention", None)
    if callable(method) and not isinstance(method, nn.Module):

        def read_white_box(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor:
            mask, causal = _mask(args[1:], kwargs)
            if mask is not None:
                raise ValueError("attention=True: weights under an attention mask are not available for this layer")
            weights: Tensor = method(_tokens(args, kwargs), **({"is_causal": True} if causal else {}))
            return weights

        return "before", read_white_box
    kind = (type(layer).__module__, type(layer).__name__)  # a subclass may compute something else
    if kind == ("timm.layers.attention", "Attention"):
        return "before", lambda args, kwargs, _: _timm_attention(layer, args, kwargs)
    if kind == ("timm.models.eva", "EvaAttention"):
        return "before", lambda args, kwargs, _: _eva_attention(layer, args, kwargs)
    config = getattr(model, "config", None)
    if getattr(config, "_attn_implementation", None) == "eager":
        return "after", partial(_returned_weights, layer)
    return None


def eva_heads(layer: Any, z: Tensor) -> list[Tensor]:
    """Queries, keys and values `[b, h, n, p]` of timm's EVA attention (EVA, DINOv3), before positions."""
    if layer.qkv is None:
        parts = [getattr(layer, f"{part}_proj")(z) for part in "qkv"]
    else:
        parts = list(layer.qkv(z).chunk(3, -1))
        if layer.q_bias is not None:
            parts = [p + bias for p, bias in zip(parts, (layer.q_bias, layer.k_bias, layer.v_bias), strict=True)]
    q, k, v = (part.unflatten(-1, (layer.num_heads, -1)).transpose(-3, -2) for part in parts)
    return [layer.q_norm(q), layer.k_norm(k), v]


def turned(layer: Any, z: Tensor, rope: Tensor) -> Tensor:
    """Queries or keys of timm's EVA attention with their rotary positions."""
    from timm.layers.pos_embed_sincos import apply_rot_embed_cat

    count, half = layer.num_prefix_tokens, getattr(layer, "rotate_half", False)
    return torch.cat([z[:, :, :count], apply_rot_embed_cat(z[:, :, count:], rope, half=half)], 2).type_as(z)


def _tokens(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    z: Tensor = args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values())))
    return z


def _mask(rest: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor | None, bool]:
    given = dict(zip(("attn_mask", "is_causal"), rest[:2], strict=False)) | kwargs
    return given.get("attn_mask"), bool(given.get("is_causal", False))


def _timm_attention(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    z = _tokens(args, kwargs)
    q, k, _ = layer.qkv(z).unflatten(-1, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return _softmax(layer.q_norm(q) * layer.scale @ layer.k_norm(k).mT, *_mask(args[1:], kwargs))


def _eva_attention(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    q, k, _ = eva_heads(layer, _tokens(args, kwargs))
    rope = kwargs.get("rope", args[1] if len(args) > 1 else None)
    if rope is not None:
        q, k = turned(layer, q, rope), turned(layer, k, rope)
    return _softmax(q * layer.scale @ k.mT, *_mask(args[2:], kwargs))


def _softmax(logits: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    if causal:
        mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
    return logits.softmax(-1)


def _returned_weights(layer: nn.Module | None, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """The last of what is returned with the tokens that has the shape of weights: T5 puts its position bias first."""
    items = output if isinstance(output, tuple) else ()
    maps = [item for item in items[1:] if isinstance(item, Tensor) and item.dim() == 4]
    if not maps:
        raise ValueError(
            f"attention=True: {type(layer).__name__} returns no attention weights; call the model with "
            "output_attentions=True if it takes that, or leave attention=True out"
        )
    weights, z = maps[-1], _tokens(args, kwargs)
    # rows sum to 1, to less where a sink takes part of them and to more where dropout has scaled those it left
    sums = weights.detach().float().sum(-1)
    share = layer is None or layer.training or (bool((weights >= 0).all()) and bool((sums <= 1.02).all()))
    if len(weights) != len(z) or z.dim() != 3 or weights.shape[2] != z.shape[1] or not share:
        raise ValueError(
            f"attention=True: {type(layer).__name__} returns no attention weights [b, h, n, n] of its tokens "
            f"{list(z.shape)} but {list(weights.shape)}; leave attention=True out"
        )
    return weights
