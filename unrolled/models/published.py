"""Reading published checkpoints: layouts are detected from their keys, shapes imply the rest, nothing is unpickled
blindly."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unrolled.models.crate import CRATE
from unrolled.models.weights import read_tensors

StateDict = dict[str, Tensor]

# (width, patch) -> heads of the published models; the 21k demo model has 6
_HEADS = {384: 6, 576: 12, 768: 12, 1024: 16}


@dataclass
class LoadReport:
    """What became of every tensor of a checkpoint.

    Attributes:
        layout: name of the layout that was recognised.
        mapped: published key -> our key, for everything that was loaded.
        missing: parameters of the model that the file does not have (they keep their initial values).
        ignored: keys of the file that the model has no use for.
        reshaped: our key -> what was done to it beyond renaming.
    """

    layout: str
    mapped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    reshaped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"{self.layout}: {len(self.mapped)} tensors loaded"]
        parts += [
            f"{what}: {', '.join(keys)}"
            for what, keys in (("missing", self.missing), ("ignored", self.ignored))
            if keys
        ]
        parts += [f"{key}: {how}" for key, how in self.reshaped.items()]
        return "; ".join(parts)


def load_published(
    path: str | Path,
    *,
    heads: int | None = None,
    decoder_heads: int | None = None,
    dim_head: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    pool: str | None = None,
    step_size: float | None = None,
    sparsity: float | None = None,
    allow: Sequence[str] = (),
) -> nn.Module:
    """Build the model a published checkpoint belongs to, with its weights.

    Args:
        path: `.pth`, `.pth.tar`, `.pt` or `.safetensors`; the state dict may be bare or under `state_dict` or
            `model`, its keys with or
            without `module.`.
        heads: number of subspaces. Shapes do not tell it: needed when the width is not a published one (384, 576,
            768, 1024).
        decoder_heads: the same for the decoder of a masked autoencoder; default `heads`.
        dim_head: dimension of a subspace; default: rows of the projection / heads.
        image_size: input size to use, an int or (height, width); default: the one it was trained at. Positions are
            resampled.
        pool: `"cls"` (default) or `"mean"`, which the file does not tell.
        step_size: eta of ISTA; default 0.1, as published.
        sparsity: lambda of ISTA; default 0.1, as published.
        allow: names from `weights.ALLOWED_GLOBALS` that the file may construct besides tensors.

    Returns:
        The model, in eval mode; `model.load_report` is a `LoadReport`.

    Raises:
        ValueError: unknown layout, or something shapes do not tell is missing.
        UnsafeFile: the file would have to run code to be read.
        CorruptFile: the file is truncated or damaged.
    """
    state = unwrap(read_tensors(path, allow=allow))
    options: dict[str, Any] = {
        "heads": heads,
        "decoder_heads": decoder_heads,
        "dim_head": dim_head,
        "image_size": image_size,
        "pool": pool,
        "step_size": step_size,
        "sparsity": sparsity,
    }
    for layout in LAYOUTS:
        if layout.marker in state:
            return layout.build(state, **options).eval()
    shown = ", ".join(sorted(state)[:4])
    known = ", ".join(layout.name for layout in LAYOUTS)
    raise ValueError(f"{path}: no published layout has these keys ({shown}, ...); known layouts: {known}")


def unwrap(checkpoint: Any) -> StateDict:
    """The state dict inside a checkpoint, whatever it is wrapped in, without `module.` prefixes."""
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
    if not isinstance(checkpoint, dict):
        raise ValueError(f"checkpoint: holds a {type(checkpoint).__name__}, not a dict of tensors")
    state = {str(key): value for key, value in checkpoint.items() if isinstance(value, Tensor)}
    for prefix in ("module.", "_orig_mod."):
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    if not state:
        raise ValueError("checkpoint: holds no tensors")
    return state


def fill(model: nn.Module, tensors: StateDict, report: LoadReport) -> nn.Module:
    """Copy `tensors` (our names) into `model`, complete `report`, and attach it."""
    own = model.state_dict()
    wrong = [
        f"{key} {list(t.shape)} for {list(own[key].shape)}" for key, t in tensors.items() if own[key].shape != t.shape
    ]
    if wrong:
        raise ValueError(f"checkpoint: shapes do not fit the model they imply: {', '.join(wrong)}")
    report.missing = sorted(own.keys() - tensors.keys())
    model.load_state_dict(tensors, strict=False)
    model.load_report = report  # type: ignore[assignment]
    return model


def _build_crate(
    state: StateDict,
    *,
    heads: int | None,
    dim_head: int | None,
    image_size: int | tuple[int, int] | None,
    pool: str | None,
    step_size: float | None,
    sparsity: float | None,
    decoder_heads: int | None,
) -> nn.Module:
    """CRATE as in Ma-Lab-Berkeley/CRATE, and its 21k demo variant with a second linear layer after the head."""
    if decoder_heads is not None:
        raise ValueError("decoder_heads: this checkpoint is a CRATE classifier and has no decoder; leave it out")
    demo = "head.weight" in state
    width, patch_values = state["to_patch_embedding.2.weight"].shape
    depth = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("transformer.layers."))
    inner = state["transformer.layers.0.0.fn.qkv.weight"].shape[0]
    heads = heads or (6 if demo else _HEADS.get(width))
    if heads is None:
        raise ValueError(f"heads: the file does not tell, and width {width} is not a published one; give heads=...")
    if dim_head is None and inner % heads:
        raise ValueError(f"heads={heads} does not divide the {inner} rows of the projection; give another, or dim_head")
    dim_head = dim_head or inner // heads
    if heads * dim_head != inner:
        raise ValueError(f"heads={heads} x dim_head={dim_head} is not the {inner} rows of the projection")
    channels, patch = _patch_geometry(patch_values)
    grid = _grid(state["pos_embedding"].shape[1] - 1, patch, image_size)

    report = LoadReport("CRATE demo (21k head)" if demo else "CRATE")
    tensors: StateDict = {}

    def take(published: str, ours: str, *, optional: bool = False) -> None:
        if published in state:
            tensors[ours] = state[published]
            report.mapped[published] = ours
        elif not optional:
            raise ValueError(f"checkpoint: {published} is missing; the file is not a whole CRATE checkpoint")

    take("cls_token", "cls_token")
    take("pos_embedding", "pos_embed")
    for published, ours in (("1", "patch_norm"), ("2", "proj"), ("3", "norm")):
        take(f"to_patch_embedding.{published}.weight", f"patch_embed.{ours}.weight")
        take(f"to_patch_embedding.{published}.bias", f"patch_embed.{ours}.bias")
    for i in range(depth):
        theirs, ours = f"transformer.layers.{i}", f"blocks.{i}"
        for kind in ("weight", "bias"):
            take(f"{theirs}.0.norm.{kind}", f"{ours}.norm1.{kind}")
            take(f"{theirs}.0.fn.to_out.0.{kind}", f"{ours}.attn.output.{kind}", optional=heads == 1)
            take(f"{theirs}.1.norm.{kind}", f"{ours}.norm2.{kind}")
        take(f"{theirs}.0.fn.qkv.weight", f"{ours}.attn.subspaces.weight")
        take(f"{theirs}.1.fn.weight", f"{ours}.ista.dictionary")
    for kind in ("weight", "bias"):
        take(f"mlp_head.0.{kind}", f"norm.{kind}")
        take(f"mlp_head.1.{kind}", f"head.{kind}")

    _reorder_patches(tensors, report, channels, patch)
    if demo:
        _compose_head(tensors, report, state)
    if pool == "mean":  # timm normalises after pooling there, as the published model does
        tensors |= {f"fc_norm.{kind}": tensors.pop(f"norm.{kind}") for kind in ("weight", "bias")}
    report.ignored = sorted(state.keys() - report.mapped.keys())

    model = CRATE(
        image_size=(grid[0] * patch, grid[1] * patch),
        patch_size=patch,
        num_classes=tensors["head.weight"].shape[0],
        dim=width,
        depth=depth,
        heads=heads,
        dim_head=dim_head,
        pool=pool or "cls",
        channels=channels,
        step_size=0.1 if step_size is None else step_size,
        sparsity=0.1 if sparsity is None else sparsity,
    )
    fill(model, tensors, report)
    if image_size is not None:
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if size != (grid[0] * patch, grid[1] * patch):
            model.set_input_size(img_size=size)
            report.reshaped["pos_embed"] = f"resampled to {size[0]} x {size[1]} pixels"
    return model


def _patch_geometry(values: int) -> tuple[int, int]:
    """(channels, patch side) of a patch with that many values, colour first."""
    for channels in (3, 1):
        side = math.isqrt(values // channels)
        if channels * side**2 == values:
            return channels, side
    raise ValueError(f"checkpoint: a patch of {values} values is neither square RGB nor square grey")


def _grid(tokens: int, patch: int, image_size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns of the position table: square, unless `image_size` says which rectangle."""
    side = math.isqrt(tokens)
    if side**2 == tokens:
        return side, side
    if image_size is not None and not isinstance(image_size, int):
        rows, columns = image_size[0] // patch, image_size[1] // patch
        if rows * columns == tokens:
            return rows, columns
    raise ValueError(f"image_size: the {tokens} positions are no square; give the (height, width) it was trained at")


def _reorder_patches(tensors: StateDict, report: LoadReport, channels: int, patch: int) -> None:
    """Published patches are flattened (row, column, channel); ours (channel, row, column)."""

    def reorder(t: Tensor) -> Tensor:
        return t.unflatten(-1, (patch, patch, channels)).movedim(-1, -3)

    for key in ("patch_embed.patch_norm.weight", "patch_embed.patch_norm.bias"):
        tensors[key] = reorder(tensors[key]).flatten()
        report.reshaped[key] = "reordered to (channel, row, column)"
    tensors["patch_embed.proj.weight"] = reorder(tensors["patch_embed.proj.weight"]).contiguous()
    report.reshaped["patch_embed.proj.weight"] = "reordered to (channel, row, column)"


def _compose_head(tensors: StateDict, report: LoadReport, state: StateDict) -> None:
    """Two linear layers in a row are one; composed in float64."""
    first, bias = tensors["head.weight"].double(), tensors["head.bias"].double()
    second = state["head.weight"].double()
    tensors["head.weight"] = (second @ first).to(tensors["head.weight"].dtype)
    tensors["head.bias"] = (second @ bias + state["head.bias"].double()).to(tensors["head.bias"].dtype)
    report.mapped |= {"head.weight": "head.weight", "head.bias": "head.bias"}
    report.reshaped["head.weight"] = "mlp_head.1 and head composed into one linear layer"


@dataclass(frozen=True)
class Layout:
    """A published state-dict layout: a key that only it has, and what builds the model."""

    name: str
    marker: str
    build: Callable[..., nn.Module]


LAYOUTS = [Layout("CRATE", "to_patch_embedding.2.weight", _build_crate)]
