from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unrolled.ops import prefilter
from unrolled.ops.neighbours import Neighbours, load_rows, nearest_neighbours
from unrolled.ops.prefilter import prefiltered_neighbours


@pytest.fixture(autouse=True)
def _at_any_size() -> Iterator[None]:
    """Small searches are full ones otherwise; short lists leave some rows to these."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unrolled.ops.prefilter._WORTH", 0)
        patch.setattr("unrolled.ops.prefilter._SPARE", 3)
        yield


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many queries each full search was for."""
    counts: list[int] = []

    def spy(x: torch.Tensor, *args: int, queries: torch.Tensor | None, **kwargs: object) -> Neighbours:
        counts.append(len(x) if queries is None else len(queries))
        return nearest_neighbours(x, *args, queries=queries, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("unrolled.ops.prefilter.nearest_neighbours", spy)
    return counts


def assert_nearest(x: torch.Tensor, found: Neighbours, *, normalize: bool, queries: torch.Tensor | None = None) -> None:
    """By scores in float64: none that was left out is nearer, by more than float32 may lose in one product."""
    wide = load_rows(x, slice(None), normalize, torch.device("cpu")).double()
    exact = (wide @ wide.T).fill_diagonal_(-torch.inf)
    lost = wide.norm(dim=1)[:, None] * wide.norm(dim=1).max() * 1e-6 + 1e-44
    exact, lost = (each if queries is None else each[queries] for each in (exact, lost))
    k = found.indices.shape[1]
    assert all(len(set(row)) == k for row in found.indices.tolist())
    chosen = exact.gather(1, found.indices)
    assert bool((chosen >= exact.topk(k).values[:, -1:] - lost).all())
    assert bool(((chosen - found.scores).abs() <= lost).all())
    assert bool((found.scores[:, 1:] <= found.scores[:, :-1]).all())


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(9, 90), d=st.integers(1, 9), tile=st.none() | st.integers(1, 95), spread=st.integers(1, 1000),
    held=st.booleans(), seed=st.integers(0, 999), data=st.data(),
)  # fmt: skip
def test_whole_numbers_give_the_full_search_to_the_bit(
    n: int, d: int, tile: int | None, spread: int, held: bool, seed: int, data: st.DataObject
) -> None:
    k = data.draw(st.sampled_from([1, 2, n // 3, n - 1]))
    # bfloat16 holds these numbers up to 256; float32 holds their sums of products, so that ties are exact too
    x = torch.randint(-spread, spread + 1, (n, d), generator=torch.Generator().manual_seed(seed)).float()
    queries = torch.arange(1, n, 3) if data.draw(st.booleans(), label="queries") else None
    options = {"queries": queries, "normalize": False, "tile": tile}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unrolled.ops.prefilter._HELD", 2**20 if held else 0)
        patch.setattr("unrolled.ops.prefilter._SIDE", 7)
        patch.setattr("unrolled.ops.prefilter._TOGETHER", {"cpu": 40})
        found = prefiltered_neighbours(x, k, **options)  # type: ignore[arg-type]
    expected = nearest_neighbours(x, k, **options)  # type: ignore[arg-type]
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.scores, expected.scores)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.float16, "memory map"])
@pytest.mark.parametrize("normalize", [True, False])
def test_every_kind_of_rows_has_the_neighbours_of_float64(kind: object, normalize: bool, tmp_path: Path) -> None:
    x = torch.randn(301, 24, generator=torch.Generator().manual_seed(1))
    given_: torch.Tensor | np.ndarray = x
    if kind == "memory map":
        np.save(tmp_path / "x.npy", x.numpy())
        given_ = np.load(tmp_path / "x.npy", mmap_mode="r")
    elif isinstance(kind, torch.dtype):
        given_ = x = x.to(kind)
    for queries in (None, torch.tensor([300, 0, 7, 7])):
        found = prefiltered_neighbours(given_, 5, queries=queries, normalize=normalize, tile=64)
        assert found.scores.dtype == (torch.float64 if kind == torch.float64 else torch.float32)
        assert_nearest(x, found, normalize=normalize, queries=queries)


def test_ordinary_rows_are_not_searched_in_full(monkeypatch: pytest.MonkeyPatch, searched: list[int]) -> None:
    monkeypatch.setattr("unrolled.ops.prefilter._SPARE", 8)
    x = torch.randn(400, 48, generator=torch.Generator().manual_seed(2))
    found = prefiltered_neighbours(x, 5)
    assert sum(searched) < 40
    unit = torch.nn.functional.normalize(x).double()
    expected = (unit @ unit.T).fill_diagonal_(-torch.inf).topk(5)
    assert float((found.indices == expected.indices).double().mean()) > 0.999
    torch.testing.assert_close(found.scores.double(), expected.values, atol=3e-7, rtol=0)


def adversaries() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(120, 12, generator=generator)
    huge, lengths, holes = x.clone(), x * torch.logspace(-15, 15, 120)[:, None], x.clone()
    huge[17] *= 1e6
    holes[::3] = 0
    return {
        "nearly equal": torch.ones(120, 12) + 1e-5 * x,
        "all equal": torch.ones(120, 12),
        "copies": x[:9].repeat(14, 1)[:120],
        "one huge": huge,
        "all lengths": lengths[torch.randperm(120, generator=generator)],
        "zeros": holes,
        "nothing": torch.zeros(120, 12),
        "low rank": x[:, :1] @ x[:1],
        "subnormal": x * 1e-40,
        "small": x * 1e-22,
        "small entries": torch.cat([x, x * 1e-39], 1),
        "near overflow": x * 1e18,
    }


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", adversaries())
def test_adversaries_have_the_right_neighbours(name: str, normalize: bool, searched: list[int]) -> None:
    x = adversaries()[name]
    for k in (1, 6, 119):
        assert_nearest(x, prefiltered_neighbours(x, k, normalize=normalize), normalize=normalize)
    if name in ("nearly equal", "all equal", "nothing"):
        assert searched == [120] * 2  # for all rows at once; a list of all other rows lacks none


def test_what_overflows_is_as_in_a_full_search() -> None:
    x = torch.randn(120, 12, generator=torch.Generator().manual_seed(4))
    x[::2] *= 1e30
    found, expected = (search(x, 5, normalize=False) for search in (prefiltered_neighbours, nearest_neighbours))
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.scores[::2], expected.scores[::2])  # all of them infinite
    torch.testing.assert_close(found.scores, expected.scores)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(2, 40), d=st.integers(1, 40), shift=st.sampled_from([0.0, 1.0, 30.0]), seed=st.integers(0, 999),
    size=st.sampled_from([1e-40, 1e-30, 1e-19, 1e-3, 1.0, 1e10, 1e18]), spread=st.sampled_from([0, 4, 40]),
    wide=st.booleans(),
)  # fmt: skip
def test_no_product_is_off_by_more_than_its_bound(
    n: int, d: int, shift: float, seed: int, size: float, spread: int, wide: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    factors = 10.0 ** (-spread * torch.rand(n, d, generator=generator, dtype=torch.float64))
    x = (torch.randn(n, d, generator=generator, dtype=torch.float64) + shift) * factors * size
    x = x if wide else x.float()
    load = partial(load_rows, x, normalize=False, device=torch.device("cpu"))
    scale = prefilter._scale(load, n, n)
    near = prefilter._rounded(x / scale)
    radius = prefilter._radius(load, lambda rows: near[rows], n, n, scale)
    exact = (x.double() / scale) @ (x.double() / scale).T
    with prefilter._fast_products():
        products = torch.mm(near, near.T)
    off = (products.double() - exact).abs()
    assert bool((off <= radius[:, None]).all())
    if not spread and size == 1.0:  # and it is no bound that says nothing
        assert float((radius / x.double().norm(dim=1)).max()) < 0.02 * float(x.double().norm(dim=1).max()) / scale**2


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"k": 50}, "k must be between 1 and n - 1 = 49"),
        ({"k": 1, "tile": 0}, "tile"),
        ({"k": 1, "queries": torch.tensor([50])}, "queries"),
        ({"k": 1, "queries": torch.tensor([[1]])}, "queries"),
        ({"k": 1, "device": "mps"}, "float64"),
    ],
)
def test_bad_requests_name_the_argument(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prefiltered_neighbours(torch.randn(50, 3), **kwargs)
    with pytest.raises(ValueError, match="x has NaN"):
        prefiltered_neighbours(torch.full((50, 3), torch.nan), 2)


def test_precision_setting_is_restored() -> None:
    before = torch.get_float32_matmul_precision()
    prefiltered_neighbours(torch.randn(60, 3), 2)
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.gpu
def test_gpu_gives_whole_numbers_to_the_bit() -> None:
    x = torch.randint(-1000, 1001, (3000, 9), generator=torch.Generator().manual_seed(5)).float()
    cpu, gpu = nearest_neighbours(x, 10, normalize=False), prefiltered_neighbours(x.cuda(), 10, normalize=False)
    assert torch.equal(gpu.indices.cpu(), cpu.indices)
    assert torch.equal(gpu.scores.cpu(), cpu.scores)
