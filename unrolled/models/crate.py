"""CRATE: the white-box transformer for images, on timm's VisionTransformer."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Literal

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from unrolled.layers.blocks import CRATEBlock
from unrolled.layers.cbsa import CBSA
from unrolled.models.hub import HubMixin
from unrolled.models.stem import stem_named
from unrolled.ops.recording import sizes

POOLS = {"cls": "token", "mean": "avg", "token": "token", "avg": "avg", "max": "max", "avgmax": "avgmax", "": ""}


class CRATE(HubMixin, VisionTransformer):
    """Coding RATE reduction transformer (arXiv 2306.01129), with the published constructor's arguments.

    Everything timm's `VisionTransformer` offers works: `forward_intermediates`, `features_only`, `reset_classifier`,
    `set_input_size`, gradient checkpointing. Images of any size that the patch divides are accepted; positions are
    interpolated.

    Departures from the published model, none of which changes its outputs at its own input size: position rows are
    resampled in two dimensions at other sizes (published: an error, or the wrong rows); attention is PyTorch's fused
    kernel; `ISTA` is folded. The published `dropout` reached MSSA's output only, and does so here.
    """

    # arguments that belong to the masked autoencoder whose encoder a classifier is
    _FOREIGN: ClassVar[tuple[str, ...]] = ("decoder_depth", "decoder_heads", "encoder", "norm_pix_loss")

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        num_classes: int = 1000,
        dim: int = 384,
        depth: int = 12,
        heads: int = 6,
        dim_head: int | None = None,
        pool: str = "cls",
        channels: int = 3,
        stem: Literal["layernorm", "linear", "conv"] = "layernorm",
        norm_eps: float = 1e-5,
        head_norm_eps: float = 1e-5,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        patch_drop_rate: float = 0.0,
        fc_norm: bool | None = None,
        reg_tokens: int = 0,
        **block_args: Any,
    ) -> None:
        """Build the model.

        Args:
            image_size: side, or (height, width), in pixels.
            patch_size: side of a patch in pixels.
            num_classes: outputs; 0 leaves out the classifier.
            dim: d, width.
            depth: number of layers.
            heads: K, subspaces of each layer.
            dim_head: p, dimension of a subspace; default `dim / heads`.
            pool: `"cls"`, or `"mean"` over all tokens, class token included, as published; timm's names work too
                (`"token"`, `"avg"` without the class token, ...).
            channels: colour channels of the input.
            stem: `"layernorm"` (published: normalised patches, projected, normalised), `"linear"`, which small
                patches need, or `"conv"` (of XCiT, ToST and CBT; patch sides are powers of two).
            norm_eps: of the layers' LayerNorms.
            head_norm_eps: of the last LayerNorm.
            dropout: on MSSA's output.
            emb_dropout: on the embedded tokens.
            drop_path_rate: stochastic depth of the last layer, growing linearly from 0.
            drop_rate: dropout before the classifier.
            patch_drop_rate: share of the patches' tokens that training leaves out before the first layer, at random
                for every image (arXiv 2208.07220); not for `attention="cbsa"`, which pools over the grid of patches.
            fc_norm: normalise after pooling instead of before; default: when tokens are averaged.
            reg_tokens: registers (arXiv 2309.16588): further learned tokens between class token and patches, each with
                a position row of its own. Layers use them as room for what belongs to no patch; no pooling reads them,
                and weights trained without them load, the registers being left as they start.
            **block_args: further arguments of `CRATEBlock`: `attention`, `sparsifier`, `expansion`, `decoupled`,
                `residual`, `output`, `bias`, `pooled`, `orthogonal`, `compression`, `eps`; `step_size` (eta),
                `sparsity` (lambda), `learn_step_size`, `learn_sparsity`.

        Raises:
            ValueError: sizes do not fit, or an option is unknown; the message names the argument.
        """
        check_image_size(image_size, patch_size)
        embed_layer = stem_named(stem)
        if pool not in POOLS:
            raise ValueError(f"pool={pool!r}: choose 'cls' or 'mean', or one of timm's {sorted(set(POOLS.values()))}")
        if depth < 1:
            raise ValueError(f"depth={depth}: must be at least 1")
        if not 0 <= patch_drop_rate < 1:
            raise ValueError(f"patch_drop_rate={patch_drop_rate}: must be at least 0 and below 1")
        if patch_drop_rate and block_args.get("attention") == "cbsa":
            raise ValueError('patch_drop_rate: attention="cbsa" pools over the whole grid of patches; leave it at 0')
        if reg_tokens < 0:
            raise ValueError(f"reg_tokens={reg_tokens}: must be at least 0")

        def block(dim: int, num_heads: int, drop_path: float, norm_layer: Any, **placed: Any) -> CRATEBlock:
            return CRATEBlock(
                dim,
                num_heads,
                dim_head=dim_head,
                dropout=dropout,
                drop_path=drop_path,
                norm_layer=partial(nn.LayerNorm, eps=norm_eps),
                device=placed["device"],
                dtype=placed["dtype"],
                **block_args,
            )

        super().__init__(
            img_size=image_size,
            patch_size=patch_size,
            in_chans=channels,
            num_classes=num_classes,
            global_pool=POOLS[pool],  # type: ignore[arg-type]
            embed_dim=dim,
            depth=depth,
            num_heads=heads,
            pool_include_prefix=pool == "mean",
            fc_norm=fc_norm,
            reg_tokens=reg_tokens,
            dynamic_img_size=True,
            drop_rate=drop_rate,
            pos_drop_rate=emb_dropout,
            patch_drop_rate=patch_drop_rate,
            drop_path_rate=drop_path_rate,
            embed_layer=embed_layer,
            norm_layer=partial(nn.LayerNorm, eps=head_norm_eps),
            block_fn=block,  # type: ignore[arg-type]
        )
        for layer in self.blocks:
            if isinstance(layer.attn, CBSA):
                layer.attn.prefix_tokens = self.num_prefix_tokens
        # timm's names for what it takes to build this model again; timm keeps them up to date and saves them
        self._model_args = {
            "img_size": image_size,
            "patch_size": patch_size,
            "in_chans": channels,
            "num_classes": num_classes,
            "embed_dim": dim,
            "depth": depth,
            "num_heads": heads,
            "dim_head": dim_head,
            "pool": pool,
            "fc_norm": fc_norm,
            "reg_tokens": reg_tokens,
            "stem": stem,
            "norm_eps": norm_eps,
            "head_norm_eps": head_norm_eps,
            **block_args,
        }
        self.pretrained_cfg = {"architecture": "crate", "input_size": (channels, *self.patch_embed.img_size)}

    @property
    def _model_args(self) -> dict[str, Any]:
        """timm's: the arguments this model was built with, saved beside its weights."""
        return self._arguments

    @_model_args.setter
    def _model_args(self, arguments: dict[str, Any]) -> None:
        # timm adds what it was called with, which was for the autoencoder where it returns its encoder
        self._arguments = {key: value for key, value in arguments.items() if key not in self._FOREIGN}

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier, and the pooling if given (timm's names, or `"cls"` and `"mean"`)."""
        if global_pool is not None:
            if global_pool not in POOLS:
                raise ValueError(f"global_pool={global_pool!r}: choose one of {sorted(POOLS)}")
            self.pool_include_prefix = global_pool == "mean"
            self._model_args["pool"] = global_pool
            global_pool = POOLS[global_pool]
        super().reset_classifier(num_classes, global_pool)

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        """Tokens `[b, n, d]` to features `[b, d]`; registers are never averaged."""
        if self.num_reg_tokens and self.pool_include_prefix and (pool_type or self.global_pool) != "token":
            x = torch.cat([x[:, :1], x[:, self.num_prefix_tokens :]], 1)
        return super().pool(x, pool_type)

    def _pos_embed(self, x: Tensor) -> Tensor:
        rows, columns = sizes(x, 1, 2)
        for block in self.blocks:
            if isinstance(block.attn, CBSA):
                block.attn.grid = (rows, columns)
        tokens = [t.expand(x.shape[0], -1, -1) for t in (self.cls_token, self.reg_token) if t is not None]
        return self.pos_drop(torch.cat([*tokens, x.flatten(1, 2)], 1) + self._positions(rows, columns))

    def _positions(self, rows: int, columns: int) -> Tensor:
        """The table of positions for a grid of patches, `[1, prefix + rows * columns, d]`."""
        own_rows, own_columns = self.patch_embed.grid_size
        return resample_positions(self.pos_embed, rows, columns, own_rows, own_columns, self.num_prefix_tokens)

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialise every parameter; the only place that does.

        | parameter                            | here                        | published     | timm's ViT         |
        |--------------------------------------|-----------------------------|---------------|--------------------|
        | positions, class token, registers    | N(0, 1)                     | N(0, 1)       | std 0.02, std 1e-6 |
        | subspaces, output, patch projection  | PyTorch's linear, std (3 d)^-1/2 | the same | std 0.02           |
        | biases of these                      | uniform, PyTorch's linear   | the same      | 0                  |
        | subspaces, if kept orthogonal        | a uniform orthonormal frame | -             | -                  |
        | dictionary                           | He-uniform, std (2 / d)^1/2 | the same      | -                  |
        | LayerNorm                            | 1, 0                        | the same      | the same           |
        | step size, sparsity, if learned      | their starting values       | -             | -                  |

        Unit-variance positions matter: ISTA has no outer skip, so positions that start small are rectified away. With
        `residual`, nothing is lost that way, and positions, class token, attention and classifier start as timm's ViT
        does, which is what CRATE-alpha published.

        Args:
            mode: must be empty; timm's schemes do not apply.
            needs_reset: initialise modules that have already done so themselves.
        """
        if mode not in ("", "reset"):
            raise ValueError(f"weight_init={mode!r}: CRATE has one initialisation; leave it out")
        if needs_reset:
            for module in self.modules():
                if module is not self and hasattr(module, "reset_parameters"):
                    module.reset_parameters()
        residual = self.blocks[0].residual
        nn.init.normal_(self.pos_embed, std=0.02 if residual else 1)
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=1e-6 if residual else 1)
        if residual:
            for module in (*self.blocks.modules(), self.head):
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=0.02)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)


def add_registers(state: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """`state` of a model without registers, with those that `model` starts with and their position rows.

    Anything else is returned as it is: a state that has registers, or a model that has none.
    """
    table = state.get("pos_embed")
    if not getattr(model, "num_reg_tokens", 0) or "reg_token" in state or table is None:
        return state
    state = {**state, "reg_token": model.reg_token.detach().clone()}
    if not model.no_embed_class:
        first = model.num_prefix_tokens - model.num_reg_tokens
        registers = model.pos_embed.detach()[:, first : model.num_prefix_tokens].to(table)
        state["pos_embed"] = torch.cat([table[:, :first], registers, table[:, first:]], 1)
    return state


@torch.fx.wrap
def resample_positions(table: Tensor, rows: int, columns: int, own_rows: int, own_columns: int, prefix: int) -> Tensor:
    """A table of positions `[1, prefix + own_rows * own_columns, d]` for a grid of `rows` x `columns`."""
    if isinstance(rows, int) and (rows, columns) == (own_rows, own_columns):
        return table
    return resample_abs_pos_embed(
        table, new_size=[rows, columns], old_size=[own_rows, own_columns], num_prefix_tokens=prefix
    )


def check_image_size(image_size: int | tuple[int, int], patch_size: int) -> None:
    """Raise `ValueError` unless patches of `patch_size` tile the image."""
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if patch_size < 1 or any(side < patch_size or side % patch_size for side in sides):
        size = " x ".join(map(str, sides))
        raise ValueError(f"image_size={size} is not divisible by patch_size={patch_size}: resize, or change the patch")
