"""ToST: the token-statistics transformer for images, on timm's XCiT frame."""

from __future__ import annotations

from typing import Any, Literal

from timm.models.xcit import Xcit
from torch import Tensor, nn

from unrolled.layers.blocks import ToSTBlock
from unrolled.models.crate import check_image_size
from unrolled.models.hub import HubMixin
from unrolled.models.stem import ConvStem


class _GridStem(ConvStem):
    """A convolutional stem that returns tokens `[b, n, d]` and the shape of their grid, as XCiT expects."""

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:  # type: ignore[override]
        """Embed images."""
        self.check(x)
        x = self.proj(x)
        return x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3])


class ToST(HubMixin, Xcit):
    """Token Statistics Transformer (arXiv 2412.17810): linear in the number of tokens.

    As XCiT: a convolutional stem, Fourier positions (any image size), no class token until the last two layers, in
    which it alone attends. The layers between are `ToSTBlock`s.

    Departures: none in what is computed. In class attention query, key and value are separate maps, as in timm.

    Parameters: tiny and small have the published 5.8M and 22.6M. Medium has 71.5M (width 512, depth 24) where 68.1M is
    published, with the projections' biases (0.015M) or without. No single part accounts for the difference: one
    class-attention layer fewer gives 68.3M, one layer fewer 68.9M, a tied output 65.2M, no classifier 71.0M. In units
    of 2^20 it has 68.2M (68.1M with patches of 8), but the other sizes are published in units of 10^6.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        num_classes: int = 1000,
        dim: int = 384,
        depth: int = 12,
        heads: int = 8,
        channels: int = 3,
        mlp_ratio: float = 4.0,
        output: Literal["learned", "tied"] = "learned",
        qkv_bias: bool = False,
        layer_scale: float = 1.0,
        drop_path_rate: float = 0.0,
        **kwargs: Any,
    ) -> None:
        """Build the model.

        Args:
            image_size: side, or (height, width), in pixels.
            patch_size: side of a patch in pixels, a power of two.
            num_classes: outputs; 0 leaves out the classifier.
            dim: d, width.
            depth: number of layers before class attention.
            heads: K, groups of each layer.
            channels: colour channels of the input.
            mlp_ratio: hidden units of the MLP for each dimension.
            output: of `TSSA`, `"learned"` or `"tied"`.
            qkv_bias: of the projections of `TSSA` and of class attention. The published constructor's default is
                False, all models that its repository registers (`tost_cab_*`) have them.
            layer_scale: what gamma starts at; published 1.
            drop_path_rate: stochastic depth, the same for every layer.
            **kwargs: further arguments of timm's `Xcit`: `global_pool`, `drop_rate`, `cls_attn_layers`, ...

        Raises:
            ValueError: sizes do not fit.
        """
        check_image_size(image_size, patch_size)
        if depth < 1:
            raise ValueError(f"depth={depth}: must be at least 1")
        if heads < 1 or dim % heads:
            raise ValueError(f"heads={heads} does not divide dim={dim}: change one of them")
        super().__init__(
            img_size=16,  # these two are of a stem that is replaced below
            patch_size=16,
            in_chans=channels,
            num_classes=num_classes,
            embed_dim=dim,
            depth=0,
            num_heads=heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            eta=layer_scale,
            tokens_norm=True,
            **kwargs,
        )
        self.patch_embed = _GridStem(
            img_size=image_size, patch_size=patch_size, in_chans=channels, embed_dim=dim, strict_img_size=False
        )
        self.blocks = nn.ModuleList(
            ToSTBlock(
                dim,
                heads,
                mlp_ratio=mlp_ratio,
                output=output,
                qkv_bias=qkv_bias,
                layer_scale=layer_scale,
                drop_path=drop_path_rate,
                device=kwargs.get("device"),
                dtype=kwargs.get("dtype"),
            )
            for _ in range(depth)
        )
        self.blocks.apply(self._init_weights)
        self.feature_info = [{"num_chs": dim, "reduction": patch_size, "module": f"blocks.{i}"} for i in range(depth)]
        self._model_args = {
            "img_size": image_size,
            "patch_size": patch_size,
            "in_chans": channels,
            "num_classes": num_classes,
            "embed_dim": dim,
            "depth": depth,
            "num_heads": heads,
            "mlp_ratio": mlp_ratio,
            "output": output,
            "qkv_bias": qkv_bias,
            "layer_scale": layer_scale,
            **kwargs,
        }
        self.pretrained_cfg = {"architecture": "tost", "input_size": (channels, *self.patch_embed.img_size)}

    def init_weights(self) -> None:
        """Initialise the class token, linear maps and the scales of class attention anew, as the constructor does."""
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.apply(self._init_weights)
        for block in self.cls_attn_blocks:
            for scale in (block.gamma1, block.gamma2):
                nn.init.constant_(scale, self._model_args["layer_scale"])
