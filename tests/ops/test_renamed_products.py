"""Products of sparse matrices whose samples take new names: against dense matrices, whatever the table of marks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unrolled.ops import renamed_products as module
from unrolled.ops.renamed_products import Entries, renamed_products


def matrices(n: int, widths: list[int], generator: torch.Generator) -> list[Entries]:
    def columns(width: int) -> torch.Tensor:
        return torch.stack([torch.randperm(n, generator=generator)[:width] for _ in range(n)])

    return [(columns(width), torch.randn(n, width, generator=generator)) for width in widths]


def dense(entries: Entries) -> torch.Tensor:
    columns, values = entries
    return torch.zeros(len(columns), len(columns), dtype=torch.float64).scatter_add_(1, columns, values.double())


@given(
    n=st.integers(2, 23),
    widths=st.tuples(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.lists(st.integers(1, 5), min_size=1)),
    table=st.sampled_from([1, 64, 2**20]),
    block=st.sampled_from([1, 30, 2**16]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_products_are_those_of_dense_matrices(
    n: int, widths: tuple[list[int], list[int]], table: int, block: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    sides = [matrices(n, [min(n, width) for width in some], generator) for some in widths]
    orders = [torch.randperm(n, generator=generator) for _ in range(3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_TABLE", table * n)  # from one column, where every entry passes
        patch.setattr(module, "_BLOCK", block)
        results = list(renamed_products(*sides, orders))
    for order, result in zip(orders, results, strict=True):
        moved = [dense(entries)[order][:, order] for entries in sides[1]]
        slow = [[float((dense(a) * b).sum()) for b in moved] for a in sides[0]]
        np.testing.assert_allclose(result, slow, rtol=1e-12, atol=1e-12)


def test_padding_and_repeated_places_count_as_they_add_up() -> None:
    one = torch.tensor([[1, 1], [0, 0], [0, 0]]), torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 0.0]])
    (result,) = renamed_products([one], [one], [torch.arange(3)])
    assert result.tolist() == [[3.0 * 3.0 + 3.0 * 3.0]]
