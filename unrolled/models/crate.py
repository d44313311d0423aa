"""CRATE: the white-box transformer for images, on timm's VisionTransformer."""

from __future__ import annotations

from typing import Any, Literal

import torch
from timm.layers import DropPath, LayerNorm
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from unrolled.layers import ISTA, MSSA
from unrolled.models.hub import HubMixin
from unrolled.models.stem import LayerNormStem, LinearStem

STEMS = {"layernorm": LayerNormStem, "linear": LinearStem}
POOLS = {"cls": "token", "mean": "avg", "token": "token", "avg": "avg", "max": "max", "avgmax": "avgmax", "": ""}


class CRATEBlock(nn.Module):
    r"""One layer: a compression step, then a sparsification step (arXiv 2306.01129, section 2.4).

    $$Z^{\ell+1/2} = Z^\ell + \mathrm{MSSA}(\mathrm{LN}(Z^\ell)), \qquad
      Z^{\ell+1} = \mathrm{ISTA}(\mathrm{LN}(Z^{\ell+1/2}))$$

    | symbol  | attribute |
    |---------|-----------|
    | MSSA    | `attn`    |
    | ISTA    | `ista`    |
    | LN, LN  | `norm1`, `norm2` |

    The second half *replaces* the tokens: its identity is inside ISTA. Stochastic depth therefore acts on the first
    half only.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        dim_head: int | None = None,
        step_size: float = 0.1,
        sparsity: float = 0.1,
        learn_step_size: bool = False,
        learn_sparsity: bool = False,
        output: Literal["learned", "tied"] = "learned",
        dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_layer: Any = nn.LayerNorm,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the layer; arguments as in `MSSA` and `ISTA`, `drop_path` is the probability of skipping MSSA."""
        super().__init__()
        placed: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm1 = norm_layer(dim, **placed)
        self.attn = MSSA(dim, heads, dim_head=dim_head, output=output, dropout=dropout, **placed)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = norm_layer(dim, **placed)
        self.ista = ISTA(
            dim,
            step_size=step_size,
            sparsity=sparsity,
            learn_step_size=learn_step_size,
            learn_sparsity=learn_sparsity,
            **placed,
        )

    def forward(self, z: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """One layer on tokens `[b, n, d]`."""
        z = z + self.drop_path(self.attn(self.norm1(z), attn_mask=attn_mask, is_causal=is_causal))
        return self.ista(self.norm2(z))


class CRATE(HubMixin, VisionTransformer):
    """Coding RATE reduction transformer (arXiv 2306.01129), with the published constructor's arguments.

    Everything timm's `VisionTransformer` offers works: `forward_intermediates`, `features_only`, `reset_classifier`,
    `set_input_size`, gradient checkpointing. Images of any size that the patch divides are accepted; positions are
    interpolated.

    Departures from the published model, none of which changes its outputs at its own input size: position rows are
    resampled in two dimensions at other sizes (published: an error, or the wrong rows); attention is PyTorch's fused
    kernel; `ISTA` is folded. The published `dropout` reached MSSA's output only, and does so here.
    """

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
        stem: Literal["layernorm", "linear"] = "layernorm",
        step_size: float = 0.1,
        sparsity: float = 0.1,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        fc_norm: bool | None = None,
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
            stem: `"layernorm"` (published: normalised patches, projected, normalised) or `"linear"`, which small
                patches need.
            step_size: eta of ISTA.
            sparsity: lambda of ISTA.
            dropout: on MSSA's output.
            emb_dropout: on the embedded tokens.
            drop_path_rate: stochastic depth of the last layer's MSSA, growing linearly from 0.
            drop_rate: dropout before the classifier.
            fc_norm: normalise after pooling instead of before; default: when tokens are averaged.
            **block_args: further arguments of `CRATEBlock`: `output`, `learn_step_size`, `learn_sparsity`.

        Raises:
            ValueError: sizes do not fit, or an option is unknown; the message names the argument.
        """
        check_image_size(image_size, patch_size)
        if stem not in STEMS:
            raise ValueError(f"stem={stem!r}: choose one of {sorted(STEMS)}")
        if pool not in POOLS:
            raise ValueError(f"pool={pool!r}: choose 'cls' or 'mean', or one of timm's {sorted(set(POOLS.values()))}")
        if depth < 1:
            raise ValueError(f"depth={depth}: must be at least 1")

        def block(dim: int, num_heads: int, drop_path: float, norm_layer: Any, **placed: Any) -> CRATEBlock:
            return CRATEBlock(
                dim,
                num_heads,
                dim_head=dim_head,
                step_size=step_size,
                sparsity=sparsity,
                dropout=dropout,
                drop_path=drop_path,
                norm_layer=norm_layer,
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
            dynamic_img_size=True,
            drop_rate=drop_rate,
            pos_drop_rate=emb_dropout,
            drop_path_rate=drop_path_rate,
            embed_layer=STEMS[stem],
            norm_layer=nn.LayerNorm,
            block_fn=block,  # type: ignore[arg-type]
        )
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
            "stem": stem,
            "step_size": step_size,
            "sparsity": sparsity,
            **block_args,
        }
        self.pretrained_cfg = {"architecture": "crate", "input_size": (channels, *self.patch_embed.img_size)}

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier, and the pooling if given (timm's names, or `"cls"` and `"mean"`)."""
        if global_pool is not None:
            if global_pool not in POOLS:
                raise ValueError(f"global_pool={global_pool!r}: choose one of {sorted(POOLS)}")
            self.pool_include_prefix = global_pool == "mean"
            self._model_args["pool"] = global_pool
            global_pool = POOLS[global_pool]
        super().reset_classifier(num_classes, global_pool)

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialise every parameter; the only place that does.

        | parameter                            | here                        | published     | timm's ViT         |
        |--------------------------------------|-----------------------------|---------------|--------------------|
        | positions, class token               | N(0, 1)                     | N(0, 1)       | std 0.02, std 1e-6 |
        | subspaces, output, patch projection  | PyTorch's linear, std (3 d)^-1/2 | the same | std 0.02           |
        | biases of these                      | uniform, PyTorch's linear   | the same      | 0                  |
        | dictionary                           | He-uniform, std (2 / d)^1/2 | the same      | -                  |
        | LayerNorm                            | 1, 0                        | the same      | the same           |
        | step size, sparsity, if learned      | their starting values       | -             | -                  |

        Unit-variance positions matter: ISTA has no outer skip, so positions that start small are rectified away.

        Args:
            mode: must be empty; timm's schemes do not apply.
            needs_reset: initialise modules that have already done so themselves.
        """
        if mode not in ("", "reset"):
            raise ValueError(f"weight_init={mode!r}: CRATE has one initialisation; leave it out")
        for parameter in (self.pos_embed, self.cls_token):
            if parameter is not None:
                nn.init.normal_(parameter)
        if needs_reset:
            for module in self.modules():
                if isinstance(module, nn.Linear | nn.Conv2d | LayerNorm | nn.LayerNorm | ISTA):
                    module.reset_parameters()


def check_image_size(image_size: int | tuple[int, int], patch_size: int) -> None:
    """Raise `ValueError` unless patches of `patch_size` tile the image."""
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if patch_size < 1 or any(side < patch_size or side % patch_size for side in sides):
        size = " x ".join(map(str, sides))
        raise ValueError(f"image_size={size} is not divisible by patch_size={patch_size}: resize, or change the patch")
