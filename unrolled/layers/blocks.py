"""Blocks: two layers after one another, a compression step and what follows it.

Parts of plain transformers are timm's, which is imported when a block of them is built: importing timm takes seconds,
and registers our models, which are made of these blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unrolled.layers.cbsa import CBSA
from unrolled.layers.ista import ISTA
from unrolled.layers.mssa import MSSA, Compression
from unrolled.layers.overcomplete import OvercompleteISTA
from unrolled.layers.tssa import TSSA


def _mhsa(dim: int, heads: int, *, dim_head: int | None, output: str, bias: bool, dropout: float, **placed: Any) -> Any:
    if dim_head not in (None, dim // heads) or output != "learned" or not bias:
        raise ValueError("attention='mhsa' is the plain transformer's: leave out dim_head, output and bias")
    from timm.models.vision_transformer import Attention

    return Attention(dim, num_heads=heads, qkv_bias=True, proj_drop=dropout, **placed)


def _drop_path(probability: float) -> nn.Module:
    if not probability > 0:
        return nn.Identity()
    from timm.layers import DropPath

    return DropPath(probability)


# the layers a block can be made of, by the name a saved configuration keeps
ATTENTIONS: dict[str, Callable[..., nn.Module]] = {"mssa": MSSA, "tssa": TSSA, "cbsa": CBSA, "mhsa": _mhsa}
SPARSIFIERS = ("ista", "overcomplete", "mlp", "none")


class CRATEBlock(nn.Module):
    r"""One layer: a compression step, then a sparsification step (arXiv 2306.01129, section 2.4).

    $$Z^{\ell+1/2} = Z^\ell + \mathrm{MSSA}(\mathrm{LN}(Z^\ell)), \qquad
      Z^{\ell+1} = \mathrm{ISTA}(\mathrm{LN}(Z^{\ell+1/2}))$$

    | symbol  | attribute                            |
    |---------|--------------------------------------|
    | MSSA    | `attn`                               |
    | ISTA    | `ista`, or `mlp` if that is what it is |
    | LN, LN  | `norm1`, `norm2`                     |

    The second half *replaces* the tokens: its identity is inside ISTA. Stochastic depth therefore acts on the first
    half only. With `residual` the second half is added instead, and both halves are dropped.

    The family, as configurations:

    | model                           | attention | sparsifier     | decoupled | residual | bias  |
    |---------------------------------|-----------|----------------|-----------|----------|-------|
    | CRATE                           | `mssa`    | `ista`         | no        | no       | yes   |
    | CRATE-alpha, first change       | `mssa`    | `overcomplete` | no        | no       | no    |
    | second change                   | `mssa`    | `overcomplete` | yes       | no       | no    |
    | third change: CRATE-alpha       | `mssa`    | `overcomplete` | yes       | yes      | no    |
    | CBT; ToST on the same frame     | `cbsa`; `tssa` | `ista`    | no        | no       | yes   |
    | attention-only (2506.03790)     | `mssa`    | `none`         |           |          | yes   |
    | ViT, to swap halves with        | `mhsa`    | `mlp`          |           | yes      | yes   |
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        attention: Literal["mssa", "tssa", "cbsa", "mhsa"] = "mssa",
        sparsifier: Literal["ista", "overcomplete", "mlp", "none"] = "ista",
        expansion: int = 4,
        decoupled: bool = False,
        residual: bool = False,
        dim_head: int | None = None,
        output: Literal["learned", "tied"] = "learned",
        bias: bool = True,
        pooled: Literal["patches", "leading"] = "patches",
        dropout: float = 0.0,
        orthogonal: bool = False,
        compression: Compression = "softmax",
        eps: float | None = None,
        drop_path: float = 0.0,
        norm_layer: Any = nn.LayerNorm,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **ista_args: Any,
    ) -> None:
        """Build the layer.

        Args:
            dim: d, width.
            heads: K, subspaces.
            attention: the compression step.
            sparsifier: the second half; `"none"` leaves it out.
            expansion: atoms of the overcomplete dictionary, or hidden units of the MLP, for each dimension.
            decoupled: the overcomplete dictionary reads its codes out with a matrix of its own.
            residual: add the second half to the tokens.
            dim_head: p, dimension of a subspace.
            output: `"learned"` or `"tied"`, see `SubspaceAttention`.
            bias: of the attention's learned output.
            pooled: what CBSA's representatives are means of, see `CBSA`.
            dropout: on the attention's output.
            orthogonal: keep the subspaces orthonormal and mutually orthogonal, see `SubspaceAttention`.
            compression: the form of MSSA's step, see `MSSA`.
            eps: distortion of the coding rate in the forms that have one.
            drop_path: probability of skipping what is added to the tokens.
            norm_layer: LN.
            device: where to put the parameters.
            dtype: their type.
            **ista_args: `step_size`, `sparsity`, `learn_step_size`, `learn_sparsity` of `ISTA` or `OvercompleteISTA`.

        Raises:
            ValueError: an option is unknown or does not go with another.
        """
        super().__init__()
        if attention not in ATTENTIONS:
            raise ValueError(f"attention={attention!r}: choose one of {sorted(ATTENTIONS)}")
        if sparsifier not in SPARSIFIERS:
            raise ValueError(f"sparsifier={sparsifier!r}: choose one of {sorted(SPARSIFIERS)}")
        if decoupled and sparsifier != "overcomplete":
            raise ValueError(
                "decoupled: only the overcomplete dictionary has two matrices; set sparsifier='overcomplete'"
            )
        if ista_args and sparsifier not in ("ista", "overcomplete"):
            raise ValueError(f"{', '.join(ista_args)}: sparsifier={sparsifier!r} has no such thing; leave it out")
        if attention != "mssa" and (compression != "softmax" or eps is not None):
            raise ValueError(f"compression, eps: are MSSA's; leave them out with attention={attention!r}")
        if attention != "cbsa" and pooled != "patches":
            raise ValueError(f"pooled: is CBSA's; leave it out with attention={attention!r}")
        if attention == "mhsa" and orthogonal:
            raise ValueError("orthogonal: attention='mhsa' has no subspaces; leave it out")
        placed: dict[str, Any] = {"device": device, "dtype": dtype}
        form: dict[str, Any] = {"compression": compression, "eps": eps} if attention == "mssa" else {}
        form |= {"pooled": pooled} if attention == "cbsa" else {}
        form |= {"orthogonal": True} if orthogonal else {}
        self.residual = residual
        self.norm1 = norm_layer(dim, **placed)
        self.attn = ATTENTIONS[attention](
            dim, heads, dim_head=dim_head, output=output, bias=bias, dropout=dropout, **form, **placed
        )
        self.drop_path = _drop_path(drop_path)
        if sparsifier == "none":
            self.norm2 = nn.Identity()  # reads Z+half, which instruments look for between the halves of a layer
            return
        self.norm2 = norm_layer(dim, **placed)
        if sparsifier == "mlp":
            from timm.layers import Mlp

            self.mlp = Mlp(dim, expansion * dim, **placed)
        elif sparsifier == "ista":
            self.ista: nn.Module = ISTA(dim, **ista_args, **placed)
        else:
            self.ista = OvercompleteISTA(dim, expansion=expansion, decoupled=decoupled, **ista_args, **placed)

    def forward(self, z: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """One layer on tokens `[b, n, d]`."""
        z = z + self.drop_path(self.attn(self.norm1(z), attn_mask=attn_mask, is_causal=is_causal))
        second = getattr(self, "ista", None) or getattr(self, "mlp", None)
        if second is None:
            return self.norm2(z)
        if self.residual:
            return z + self.drop_path(second(self.norm2(z)))
        return second(self.norm2(z))


class CRATEDecoderBlock(nn.Module):
    r"""The steps of a CRATE layer, reversed: undo the sparse code, then undo the compression (arXiv 2404.02446).

    $$Y^{\ell+1/2} = E\, \mathrm{LN}(Y^\ell), \qquad
      Y^{\ell+1} = Y^{\ell+1/2} - \mathrm{MSSA}(\mathrm{LN}(Y^{\ell+1/2}))$$

    | symbol | attribute              | shape               |
    |--------|------------------------|---------------------|
    | E      | `linear.weight`        | `[d, d]`, no bias   |
    | MSSA   | `attn`                 |                     |
    | LN, LN | `norm1`, `norm2`       |                     |

    Objective: the one of `CRATEBlock`, to be ascended: the encoder's compression step run backwards in time. The
    reversal is *approximate*, because MSSA is evaluated where the encoder's step ended, not where it began. That is
    the derivation. In small decoders, trained for minutes, the step changes R^c by -6 % as published, by
    +5 % with `output="tied"`, by +2 % with `compression="derived"` and by +38 % with both (study `crate-pretrain`).

    Departures: none in what is computed.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        norm_layer: Any = nn.LayerNorm,
        device: Any = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        """Build the layer; further arguments as in `MSSA`."""
        super().__init__()
        placed: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm1 = norm_layer(dim, **placed)
        self.linear = nn.Linear(dim, dim, bias=False, **placed)
        self.norm2 = norm_layer(dim, **placed)
        self.attn = MSSA(dim, heads, **kwargs, **placed)

    def forward(self, z: Tensor) -> Tensor:
        """One layer on tokens `[b, n, d]`."""
        z = self.linear(self.norm1(z))
        return z - self.attn(self.norm2(z))


class ToSTBlock(nn.Module):
    r"""One layer: a compression step, then an MLP (arXiv 2412.17810, section 4.1).

    $$Z^{\ell+1/2} = Z^\ell + \gamma_1 \odot \mathrm{TSSA}(\mathrm{LN}(Z^\ell)), \qquad
      Z^{\ell+1} = Z^{\ell+1/2} + \gamma_2 \odot \mathrm{MLP}(\mathrm{LN}(Z^{\ell+1/2}))$$

    | symbol           | attribute                    | shape |
    |------------------|------------------------------|-------|
    | TSSA             | `attn`                       |       |
    | MLP              | `mlp`                        |       |
    | gamma_1, gamma_2 | `ls1.gamma`, `ls2.gamma`     | `[d]` |
    | LN, LN           | `norm1`, `norm2`             |       |

    Only the first half is derived from an objective (`TSSA`); the MLP is the transformer's.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        output: Literal["learned", "tied"] = "learned",
        qkv_bias: bool = False,
        layer_scale: float = 1.0,
        drop_path: float = 0.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the layer; arguments as in `ToST`, and `drop_path` is the probability of skipping each half."""
        from timm.layers import LayerScale, Mlp

        super().__init__()
        placed: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, **placed)
        self.attn = TSSA(dim, heads, output=output, projection_bias=qkv_bias, **placed)
        self.ls1 = LayerScale(dim, init_values=layer_scale, **placed)
        self.drop_path = _drop_path(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **placed)
        self.mlp = Mlp(dim, int(mlp_ratio * dim), **placed)
        self.ls2 = LayerScale(dim, init_values=layer_scale, **placed)

    def forward(self, z: Tensor, rows: int = 0, columns: int = 0) -> Tensor:
        """One layer on tokens `[b, n, d]`; the shape of their grid, which XCiT passes on, is not needed."""
        z = z + self.drop_path(self.ls1(self.attn(self.norm1(z))))
        return z + self.drop_path(self.ls2(self.mlp(self.norm2(z))))
