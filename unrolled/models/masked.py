"""CRATE-MAE: masked completion by structured denoising and diffusion."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from unrolled.layers.blocks import CRATEBlock, CRATEDecoderBlock
from unrolled.models.crate import CRATE, add_registers
from unrolled.ops.recording import is_recording, knows_sizes, sizes

# what a model's description says of its images and its layers' names, whatever it was trained for
_OF_IMAGES = ("crop_pct", "interpolation", "mean", "std", "fixed_input_size", "first_conv", "classifier")


class Completion(NamedTuple):
    """What a masked autoencoder returns.

    Attributes:
        loss: mean squared error on the removed patches, a scalar, float32 at least.
        prediction: `[b, n, p * p * c]`, every patch as (row, column, channel); in units of the target.
        mask: `[b, n]`, 1 where a patch was removed.
    """

    loss: Tensor
    prediction: Tensor
    mask: Tensor


class MaskedAutoencoder(CRATE):
    """CRATE-MAE (arXiv 2404.02446): a CRATE that encodes masked images, and a decoder that runs its steps backwards.

    The encoder is this model's own `blocks`, so that everything a `CRATE` offers without a classifier works on unmasked
    images: `forward_features`, `forward_intermediates`, `trace`. `classifier()` makes a classifier of it.

    Departures from the published model: its dead parameters are absent (an unused table of positions, an unused linear
        map between encoder and decoder); images need not be square nor of the size it was built for (positions are
        resampled), and the number of patches removed is the nearest to the share asked for (`removed_patches`).
        `encoder="visible"` is not published.
    """

    _FOREIGN: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        decoder_depth: int | None = None,
        decoder_heads: int | None = None,
        encoder: Literal["full", "visible"] = "full",
        norm_pix_loss: bool = False,
        num_classes: int = 0,
        **kwargs: Any,
    ) -> None:
        """Build the model.

        Args:
            image_size: side, or (height, width), in pixels.
            patch_size: side of a patch in pixels.
            dim: d, width of encoder and decoder.
            depth: layers of the encoder.
            heads: subspaces of its layers.
            decoder_depth: layers of the decoder; default `depth`.
            decoder_heads: subspaces of its layers; default `heads`.
            encoder: `"full"` as published: mask tokens enter before the encoder, which sees all positions.
                `"visible"`: it sees the visible patches only, a quarter of the work at a mask ratio of 0.75; mask
                tokens and positions enter before the decoder.
            norm_pix_loss: predict patches normalised to mean 0 and variance 1, each by itself.
            num_classes: must be 0; see `classifier`.
            **kwargs: further arguments of `CRATE`: `channels`, `attention`, `sparsifier`, `sparsity`, ... With
                `sparsifier="mlp"` the decoder is made of the same blocks as the encoder: a ViT-MAE.

        Raises:
            ValueError: sizes do not fit, or an option is unknown.
        """
        if encoder not in ("full", "visible"):
            raise ValueError(f"encoder={encoder!r}: choose 'full' or 'visible'")
        if num_classes:
            raise ValueError(
                f"num_classes={num_classes}: a masked autoencoder has none; use model.classifier(num_classes)"
            )
        if kwargs.get("reg_tokens"):
            raise ValueError("reg_tokens: a masked autoencoder has none; give them to model.classifier(...)")
        if kwargs.get("patch_drop_rate"):
            raise ValueError("patch_drop_rate: a masked autoencoder leaves out what it masks; set it to 0")
        if kwargs.get("sparsifier", "ista") in ("ista", "overcomplete"):
            kwargs.setdefault("sparsity", 0.5)
        kwargs = {"stem": "linear", "head_norm_eps": 1e-6, **kwargs}
        super().__init__(
            image_size=image_size, patch_size=patch_size, num_classes=0, dim=dim, depth=depth, heads=heads, **kwargs
        )
        self.encoder, self.norm_pix_loss = encoder, norm_pix_loss
        decoder_depth, decoder_heads = decoder_depth or depth, decoder_heads or heads
        norm_layer = partial(nn.LayerNorm, eps=kwargs.get("norm_eps", 1e-5))
        names: tuple[str, ...] = ("dim_head", "output", "bias", "orthogonal", "compression", "eps")
        layer: Callable[..., nn.Module] = CRATEDecoderBlock
        if kwargs.get("sparsifier") == "mlp":
            names, layer = ("attention", "sparsifier", "expansion", "residual"), CRATEBlock
        choice = {"norm_layer": norm_layer, **{name: kwargs[name] for name in names if name in kwargs}}
        blocks = [layer(dim, decoder_heads, **choice) for _ in range(decoder_depth)]
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        self.decoder_blocks = nn.Sequential(*blocks)
        self.decoder_norm = nn.LayerNorm(dim, eps=kwargs["head_norm_eps"])
        self.decoder_pred = nn.Linear(dim, self.patch_embed.proj.weight[0].numel())
        self.pos_embed.requires_grad_(False)
        self._model_args = {
            **self._model_args,
            "decoder_depth": decoder_depth,
            "decoder_heads": decoder_heads,
            "encoder": encoder,
            "norm_pix_loss": norm_pix_loss,
            **kwargs,
        }
        self._model_args["in_chans"] = self._model_args.pop("channels", 3)
        self.pretrained_cfg = {**self.pretrained_cfg, "architecture": "crate_mae"}  # type: ignore[dict-item]
        self.init_weights(needs_reset=False)

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialise every parameter as published.

        Positions are fixed sines and cosines; class and mask token N(0, 0.02^2); linear maps and the patch projection
        uniform (Xavier), their biases 0; dictionaries and the decoder's square maps He-uniform.
        """
        if not hasattr(self, "decoder_pred"):  # called by timm's constructor, before the decoder exists
            return
        super().init_weights(mode, needs_reset)
        rows, columns = self.patch_embed.grid_size
        self.pos_embed.data.copy_(sincos_positions(rows, columns, self.embed_dim))
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.flatten(1))
        for token in (self.cls_token, self.mask_token):
            nn.init.normal_(token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in self.decoder_blocks:
            if isinstance(block, CRATEDecoderBlock):
                nn.init.kaiming_uniform_(block.linear.weight)

    def forward(  # type: ignore[override]
        self, images: Tensor, mask_ratio: float = 0.75, noise: Tensor | None = None
    ) -> Completion:
        """Remove patches and complete the image.

        Args:
            images: `[b, c, h, w]`, normalised; any size the patch divides.
            mask_ratio: share of the patches to remove, in (0, 1); see `removed_patches`.
            noise: `[b, n]`; the patches with the lowest values are kept. Default: uniform.

        Returns:
            `(loss, prediction, mask)`.

        Raises:
            ValueError: nothing would be kept or nothing removed, or `noise` has another shape.
        """
        x = self.patch_embed(images)
        rows, columns = sizes(x, 1, 2)
        x, positions = x.flatten(1, 2), self._positions(rows, columns)
        order, restore, visible = draw_order(x, rows * columns, mask_ratio, noise)
        mask = (restore >= visible).to(x.dtype)
        latent = self._encode(x, positions, order[:, :visible], restore)
        prediction = self.decode(latent)
        return Completion(self.loss(images, prediction, mask), prediction, mask)

    def _encode(self, x: Tensor, positions: Tensor, visible: Tensor, restore: Tensor) -> Tensor:
        """Patches `[b, n, d]` to what the decoder takes, `[b, 1 + n, d]`."""
        b, n, d = x.shape
        index = visible.unsqueeze(-1).expand(-1, -1, d)
        hidden = self.mask_token.to(x.dtype).expand(b, n - visible.shape[1], d)

        def fill(tokens: Tensor) -> Tensor:
            return torch.cat([tokens, hidden], 1).gather(1, restore.unsqueeze(-1).expand(-1, -1, d))

        cls = self.cls_token.expand(b, -1, -1)
        if self.encoder == "full":
            z = torch.cat([cls, fill(x.gather(1, index))], 1) + positions
            return self.norm(self.blocks(z))
        z = torch.cat([cls, x.gather(1, index)], 1)
        z = z + torch.cat([positions[:, :1].expand(b, -1, -1), positions[:, 1:].expand(b, -1, -1).gather(1, index)], 1)
        z = self.norm(self.blocks(z))
        return torch.cat([z[:, :1], fill(z[:, 1:])], 1) + positions

    def decode(self, latent: Tensor) -> Tensor:
        """Tokens `[b, 1 + n, d]` of the encoder to patches `[b, n, p * p * c]`."""
        return self.decoder_pred(self.decoder_norm(self.decoder_blocks(latent)))[:, 1:]

    def loss(self, images: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error on the removed patches, in float32 at least."""
        target = self.target(images)
        error = (prediction.to(target.dtype) - target).square().mean(-1)
        return (error * mask).sum() / mask.sum()

    def target(self, images: Tensor) -> Tensor:
        """What the patches `[b, n, p * p * c]` of images are to be predicted as, in float32 at least."""
        target = at_least_float32(self.patchify(images))
        if self.norm_pix_loss:
            variance, mean = torch.var_mean(target, -1, keepdim=True)
            target = (target - mean) / (variance + 1e-6).sqrt()
        return target

    def patchify(self, images: Tensor) -> Tensor:
        """Images `[b, c, h, w]` as patches `[b, n, p * p * c]`, each in the order (row, column, channel)."""
        p, q = self.patch_embed.patch_size
        x = images.unflatten(3, (-1, q)).unflatten(2, (-1, p))
        return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    def unpatchify(self, patches: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Patches `[b, n, p * p * c]` as images `[b, c, h, w]`; `size` is (h, w), default the model's input size."""
        p, q = self.patch_embed.patch_size
        h, w = size or self.patch_embed.img_size
        if (h // p) * (w // q) != patches.shape[1]:
            raise ValueError(f"size={h, w}: {patches.shape[1]} patches of {p} x {q} do not tile it")
        x = patches.unflatten(1, (h // p, w // q)).unflatten(-1, (p, q, -1))
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def complete(self, images: Tensor, mask_ratio: float = 0.75, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images with their removed patches filled in, and the mask, both `[b, c, h, w]` and `[b, 1, h, w]`.

        With `norm_pix_loss`, predicted patches are scaled back with the true mean and variance, which the model does
        not know: such pictures flatter it.
        """
        _, prediction, mask = self(images, mask_ratio, noise)
        target = self.patchify(images)
        if self.norm_pix_loss:
            variance, mean = torch.var_mean(target, -1, keepdim=True)
            prediction = prediction * (variance + 1e-6).sqrt() + mean
        size = (images.shape[2], images.shape[3])
        filled = torch.where(mask.unsqueeze(-1) > 0, prediction.to(target.dtype), target)
        p, q = self.patch_embed.patch_size
        return self.unpatchify(filled, size), self.unpatchify(mask.unsqueeze(-1).expand(-1, -1, p * q), size)

    def normalise_targets(self, normalise: bool) -> None:
        """Predict patches normalised to mean 0 and variance 1, as of `norm_pix_loss`, or pixels; saved with the model.

        Args:
            normalise: what `norm_pix_loss` becomes.
        """
        self.norm_pix_loss = self._model_args["norm_pix_loss"] = normalise

    def classifier(self, num_classes: int, *, pool: str = "cls", **kwargs: Any) -> CRATE:
        """A `CRATE` with this encoder's weights, positions that train, and a new classifier.

        Args:
            num_classes: outputs.
            pool: as in `CRATE`.
            **kwargs: further arguments of `CRATE`, e.g. `drop_path_rate` or `reg_tokens`.
        """
        settings = dict(self._model_args)
        for key in (*CRATE._FOREIGN, "num_classes", "pool", "global_pool", "fc_norm"):
            settings.pop(key, None)
        renamed = {"img_size": "image_size", "in_chans": "channels", "embed_dim": "dim", "num_heads": "heads"}
        arguments = {renamed.get(key, key): value for key, value in settings.items()}
        model = CRATE(**{**arguments, "num_classes": num_classes, "pool": pool, **kwargs})
        state = add_registers(self.state_dict(), model)
        state = {key: value for key, value in state.items() if key in model.state_dict()}
        if isinstance(model.norm, nn.Identity):
            state |= {f"fc_norm.{kind}": self.state_dict()[f"norm.{kind}"] for kind in ("weight", "bias")}
        model.load_state_dict(state, strict=False)
        described: dict[str, Any] = {key: self.pretrained_cfg[key] for key in _OF_IMAGES if key in self.pretrained_cfg}
        model.pretrained_cfg = {**described, **model.pretrained_cfg, "num_classes": num_classes}  # type: ignore[dict-item]
        return model.train(self.training)


@torch.fx.wrap
def draw_order(x: Tensor, n: int, mask_ratio: float, noise: Tensor | None) -> tuple[Tensor, Tensor, int]:
    """The `n` patches in order of their noise, the rank of each, both `[b, n]`, and how many of them are kept."""
    b = x.shape[0]
    visible = n - removed_patches(n, mask_ratio) if 0 < mask_ratio < 1 else 0
    if not 0 < visible < n:
        raise ValueError(f"mask_ratio={mask_ratio}: must keep and remove at least one of the {n} patches")
    if noise is None:
        noise = torch.rand(b, n, device=x.device)
    elif knows_sizes(noise) and noise.shape != (b, n):
        raise ValueError(f"noise: needs one value for each patch, [{b}, {n}], got {list(noise.shape)}")
    if is_recording(noise):  # ONNX has no stable order: ranks by comparison, in which there are no ties
        before = noise.unsqueeze(1) < noise.unsqueeze(2)
        tied = noise.unsqueeze(1) == noise.unsqueeze(2)
        position = torch.arange(n, device=x.device)
        rank = (before | (tied & (position < position.unsqueeze(1)))).sum(2)
        return rank.topk(n, dim=1, largest=False).indices, rank, visible
    order = noise.argsort(dim=1, stable=True)
    return order, order.argsort(1), visible


@torch.fx.wrap
def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32 if it is in half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def removed_patches(count: int, mask_ratio: float) -> int:
    """How many of `count` patches a share of them is: the nearest whole number, of two equally near ones the even one.

    The published code keeps `int(count * (1 - mask_ratio))`: the same wherever the share is a whole number of patches,
    as 0.75 of 196 is, but for errors of floating point, by which it removes 81 of 100 at 0.8; elsewhere it may remove
    one more.
    """
    return round(count * mask_ratio)


class WholeImages(MaskedAutoencoder):
    """A masked autoencoder that is shown every patch; for instruments, which call a model with images alone."""

    def __init__(self, model: MaskedAutoencoder) -> None:
        """Share the modules and weights of `model`, and all else that it holds."""
        self.__dict__.update(model.__dict__)

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        """Images `[b, c, h, w]` to the encoder's tokens `[b, 1 + n, d]`; the decoder does not run."""
        return self.forward_features(images)


def whole_images(model: nn.Module) -> nn.Module:
    """A masked autoencoder as a network of whole images, with the same weights; any other model as it is."""
    return WholeImages(model) if isinstance(model, MaskedAutoencoder) else model


def sincos_positions(rows: int, columns: int, dim: int) -> Tensor:
    """Fixed positions `[1, 1 + rows * columns, dim]`: sines and cosines of column, then of row; zeros first.

    Raises:
        ValueError: `dim` is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"dim={dim}: positions of sines and cosines need a multiple of 4")
    frequencies = 10000 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (x, y)]
    table = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], 1)
    return torch.cat([torch.zeros(1, dim), table.float()])[None]
