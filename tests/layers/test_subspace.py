"""Frames of orthonormal rows, whatever the free matrix under them."""

from __future__ import annotations

import pytest
import torch

from unrolled.layers.subspace import _Orthonormalize


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_are_not_independent_still_make_an_orthonormal_frame(dtype: torch.dtype) -> None:
    weight = torch.randn(4, 9, dtype=dtype)
    weight[2] = 0
    weight[3] = weight[1]
    frame = _Orthonormalize()(weight)
    torch.testing.assert_close(frame @ frame.mT, torch.eye(4, dtype=dtype), atol=1e-5, rtol=0)


def test_rows_that_are_orthonormal_stay_what_they_are() -> None:
    frame = torch.linalg.qr(torch.randn(9, 4, dtype=torch.float64))[0].mT
    torch.testing.assert_close(_Orthonormalize()(frame), frame)
