"""What encoder and decoder of the roster's masked autoencoders do to tokens, layer by layer, trained and untrained.

A compression step takes tokens from Z to Z + MSSA(LN Z) in the encoder; the decoder's reversed step from Y+half, its
linear map's output, to Y+half - MSSA(LN Y+half). Each is measured before and after, by its own layer's subspaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unrolled.instruments.anatomy import head_subspaces
from unrolled.layers import CRATEDecoderBlock
from unrolled.models.masked import removed_patches
from unrolled.studies.cells import Context, Result
from unrolled.studies.networks import OfNetwork
from unrolled.studies.pictures import as_input, pictures
from unrolled.theory import normalize_tokens, subspace_coding_rate, subspace_coding_rate_gradient

EPS = 0.1
_CHUNK, _PAIRED = 64, 4000
_MASK_RATIO = 0.75


@dataclass(frozen=True, kw_only=True)
class MaskedLayers(OfNetwork):
    """Every layer of a masked autoencoder on the first `measured` held-out images."""

    measured: int

    def compute(self, context: Context) -> Result:
        """As `measure` says."""
        test = pictures(self.network.data, "test", context.data_dir)
        return measure(self.network.load(context), test.images[: self.measured])


def fixed_noise(count: int, patches: int) -> Tensor:
    """The noise `[count, patches]` that chooses the masks, the same for every model: `reconstruction`'s."""
    return torch.rand(count, patches, generator=torch.Generator().manual_seed(0))


def measure(model: nn.Module, images: Tensor) -> Result:
    """Every layer of a masked autoencoder on `images`, uint8 `[n, c, h, w]`, three quarters of the patches removed.

    Returns:
        `encoder` and `decoder`: for each layer a dictionary of means over images or tokens; `rate_z` (R^c of the tokens
        entering), `rate_before` and `rate_after` the compression step (R^c of l2-normalised tokens by the layer's own
        subspaces, in nats), `plain_before` and `plain_after` (the same with orthonormalised subspaces, so that the size
        of weights plays no part), `nearest_before` and `nearest_after` (share of a token's energy in the one subspace
        that holds most), `cosine` (of the step with -grad R^c), `nonzero` (share of entries of the layer's output),
        `density` (l1 norm over sqrt(d) times l2 norm of its tokens, 1 if all entries are equal), and `rate_next` (of
        its output, by its own subspaces). `mirror`: see `mirrored`; None where the encoder sees fewer tokens.
    """
    weight = next(model.parameters())
    patch: Any = model.patch_embed
    noise = fixed_noise(len(images), patch.grid_size[0] * patch.grid_size[1])
    totals: dict[str, list[dict[str, float]]] = {}
    encoder: list[list[Tensor]] = []
    decoder: list[list[Tensor]] = []
    with torch.no_grad():
        for part, drawn in zip(images.split(_CHUNK), noise.split(_CHUNK), strict=True):
            states = tokens(model, as_input(part).to(weight), drawn.to(weight.device))
            encoder.append(states["encoder"])
            decoder.append(states["decoder"])
            for stack, blocks in (("encoder", model.blocks), ("decoder", model.decoder_blocks)):
                rows = totals.setdefault(stack, [{} for _ in blocks])  # type: ignore[union-attr, arg-type]
                for row, block, z, after in zip(rows, blocks, states[stack], states[stack][1:], strict=False):  # type: ignore[arg-type]
                    for key, value in measure_layer(block, z, after).items():
                        row[key] = row.get(key, 0.0) + value * len(part) / len(images)
    result: Result = {**totals, "mirror": None}
    if encoder[0][0].shape[1] == decoder[0][0].shape[1]:
        n = noise.shape[1]
        visible = noise.argsort(dim=1, stable=True).argsort(1) < n - removed_patches(n, _MASK_RATIO)
        stacks = [[torch.cat(layer) for layer in zip(*half, strict=True)] for half in (encoder, decoder)]
        result["mirror"] = mirrored(stacks[0], stacks[1], visible)
    return result


def tokens(model: nn.Module, images: Tensor, noise: Tensor) -> dict[str, list[Tensor]]:
    """What enters the first layer and what leaves every layer, for `encoder` and `decoder`."""
    from unrolled.instruments.trace import trace

    with trace(model, patterns=["embed", "block??", "decoder/embed", "decoder/block??"]) as recorded:
        model(images, _MASK_RATIO, noise)
    blocks: Any = model.blocks
    return {
        stack: [
            recorded[f"{prefix}embed"],
            *(recorded[f"{prefix}block{i:02d}"] for i in range(len(blocks))),
        ]
        for stack, prefix in (("encoder", ""), ("decoder", "decoder/"))
    }


def measure_layer(block: nn.Module, z: Tensor, after_layer: Tensor) -> dict[str, float]:
    """One layer that took tokens `z` `[b, n, d]` to `after_layer`; see `measure`."""
    parts: Any = block
    if isinstance(block, CRATEDecoderBlock):
        before = parts.linear(parts.norm1(z))
        step = -parts.attn(parts.norm2(before))
    else:
        before = z
        step = parts.attn(parts.norm1(z))
    u = head_subspaces(block)
    q = torch.linalg.qr(u).Q
    values: dict[str, float] = {}
    for name, state in (("before", before), ("after", before + step)):
        unit = normalize_tokens(state)
        values[f"rate_{name}"] = float(subspace_coding_rate(unit, u, EPS).mean())
        values[f"plain_{name}"] = float(subspace_coding_rate(unit, q, EPS).mean())
        inside = torch.einsum("bnd,hdp->bnhp", unit, q).square().sum(-1)
        values[f"nearest_{name}"] = float(inside.amax(-1).mean())
    descent = -subspace_coding_rate_gradient(normalize_tokens(before), u, EPS)
    values["cosine"] = float(F.cosine_similarity(step, descent, dim=-1).mean())
    values["rate_z"] = float(subspace_coding_rate(normalize_tokens(z), u, EPS).mean())
    values["rate_next"] = float(subspace_coding_rate(normalize_tokens(after_layer), u, EPS).mean())
    values["nonzero"] = float((after_layer != 0).float().mean())
    size = after_layer.norm(dim=-1).clamp_min(torch.finfo(z.dtype).tiny)
    values["density"] = float((after_layer.abs().sum(-1) / size).mean() / z.shape[-1] ** 0.5)
    return values


def mirrored(encoder: Sequence[Tensor], decoder: Sequence[Tensor], visible: Tensor) -> Result:
    """How alike encoder and decoder layers are, and whether mirrored ones are more alike than others.

    Tokens `[b, 1 + n, d]` without the class token; the mean over images is subtracted at every position, so that what
    they share because of their positions does not count.

    Args:
        encoder: what enters the first layer and leaves every layer, L + 1 tensors.
        decoder: the same.
        visible: `[b, n]`, true where the encoder saw the patch.

    Returns:
        `cka_all` and `cka_visible`: linear CKA, a list for each encoder state of one value for each decoder state;
        `all` and `visible`: mean CKA of encoder state l with decoder state L - l, l < L, minus the mean over all pairs
        of those states. State L of the encoder and 0 of the decoder are left out: they are the same but for a norm.
    """
    from unrolled.alignment import cka

    result: Result = {}
    flat = visible.flatten().to(encoder[0].device)
    for name, rows in (("all", torch.arange(len(flat), device=flat.device)), ("visible", flat.nonzero()[:, 0])):
        # at random: every so many rows would be the same few patches of every image
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:_PAIRED].to(rows.device)]
        sides = [
            [(z[:, 1:] - z[:, 1:].mean(0)).flatten(0, 1)[rows].double() for z in stack] for stack in (encoder, decoder)
        ]
        grid = [[cka(a, b) for b in sides[1]] for a in sides[0]]
        depth = len(encoder) - 1
        pairs = [grid[i][depth - i] for i in range(depth)]
        result[f"cka_{name}"] = grid
        result[name] = fmean(pairs) - fmean(grid[i][j] for i in range(depth) for j in range(1, depth + 1))
    return result
