"""What codes of tokens are worth: variance explained, what classes say of an atom, which atoms two codes share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unrolled.instruments.readouts.probes import widen
from unrolled.ops.rows import unit_rows, varies
from unrolled.tables import Brief


def explained_variance(x: Tensor, rebuilt: Tensor) -> float:
    """1 - |x - rebuilt|^2 / |x - mean|^2 of tokens `[n, d]`: 1 where all is rebuilt, 0 for the mean token.

    Raises:
        ValueError: shapes differ, or all tokens are the same.
    """
    if x.shape != rebuilt.shape or x.dim() != 2:
        raise ValueError(f"x, rebuilt: need the same shape [n, d], got {tuple(x.shape)} and {tuple(rebuilt.shape)}")
    wide = widen(x)
    total = (wide - wide.mean(0)).square().sum()
    if not float(total) > 0:
        raise ValueError("x: all tokens are the same, so there is no variance")
    return float(1 - (wide - widen(rebuilt)).square().sum() / total)


def class_selectivity(codes: Tensor, labels: Tensor) -> Tensor:
    """Share of the variance of each code over images that the image's class explains (eta squared), in 0..1.

    Labels that mean nothing explain (classes - 1) / (images - 1) on average: shuffle them for the control.

    Args:
        codes: `[images, m]`, such as the mean over an image's tokens.
        labels: int64 `[images]`.

    Returns:
        float64 `[m]`; NaN of a code that is the same for all images.

    Raises:
        ValueError: shapes that do not fit.
    """
    if codes.dim() != 2 or labels.shape != codes.shape[:1]:
        raise ValueError(f"codes, labels: need [n, m] and [n], got {tuple(codes.shape)} and {tuple(labels.shape)}")
    x = widen(codes)
    x = x - x.mean(0)
    members = torch.nn.functional.one_hot(labels).to(x)
    counts = members.sum(0).clamp_min(1)
    between = ((members.mT @ x).square() / counts[:, None]).sum(0)
    share = between / x.square().sum(0)
    return torch.where(varies(widen(codes)), share, torch.nan)


@dataclass(frozen=True, repr=False)
class Matched(Brief):
    """Atoms of two codes, matched one to one so that the sum of correlations is largest.

    Attributes:
        first, second: int64 `[pairs]`, the atoms matched.
        correlation: float64 `[pairs]`, Pearson's, over tokens; 0 where a code never changes.
    """

    first: Tensor
    second: Tensor
    correlation: Tensor


def match_atoms(first: Tensor, second: Tensor) -> Matched:
    """The best one-to-one matching of the columns of two codes of the same tokens (Hungarian method).

    The best of many matches is high by chance alone: beside it belongs the same of codes whose tokens were permuted.

    Args:
        first: `[n, m]`, codes of n tokens.
        second: `[n, l]`, others of the same tokens, in the same order.

    Raises:
        ValueError: the numbers of tokens differ, or there are fewer than two.
    """
    from scipy.optimize import linear_sum_assignment

    if first.dim() != 2 or second.dim() != 2 or len(first) != len(second) or len(first) < 2:
        raise ValueError(
            f"first, second: need [n, m] and [n, l] of the same tokens, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )
    one, other = (_standard(widen(codes)) for codes in (first, second))
    correlation = (one.mT @ other).cpu()
    rows, columns = (torch.from_numpy(each) for each in linear_sum_assignment(-correlation.numpy()))
    return Matched(rows, columns, correlation[rows, columns])


def _standard(codes: Tensor) -> Tensor:
    """Columns [n, m] centred and of norm 1; 0 where a code never changes."""
    return unit_rows((codes - codes.mean(0)).mT).mT * varies(codes)
