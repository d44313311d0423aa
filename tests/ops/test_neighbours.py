from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unrolled.errors import MissingExtra
from unrolled.ops.neighbour_folder import neighbours_to_folder
from unrolled.ops.neighbours import nearest_neighbours, tile_size
from unrolled.ops.ties import membership, membership_of_scores
from unrolled.ops.top_k import top_k


def slow_neighbours(x: torch.Tensor, k: int) -> torch.Tensor:
    """Sort every row of the full score matrix; ties by index."""
    unit = torch.nn.functional.normalize(x, dim=1)
    scores = (unit @ unit.T).fill_diagonal_(-torch.inf)
    return torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :k]


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 60), d=st.integers(1, 9), tile=st.integers(1, 70), seed=st.integers(0, 999), data=st.data())
def test_tiles_find_the_neighbours_of_a_full_sort(n: int, d: int, tile: int, seed: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n - 1))
    # small integers are exact in every order of summation, so ties are exact too
    x = torch.randint(-2, 3, (n, d), generator=torch.Generator().manual_seed(seed)).double()
    scores = (x @ x.T).fill_diagonal_(-torch.inf)
    expected = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :k]
    assert torch.equal(nearest_neighbours(x, k, tile=tile, normalize=False).indices, expected)
    queries = torch.arange(0, n, 2)
    found = nearest_neighbours(x, k, tile=tile, normalize=False, queries=queries)
    assert torch.equal(found.indices, expected[queries])
    torch.testing.assert_close(found.scores, scores.gather(1, expected)[queries])


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(2, 70), tile=st.integers(1, 80), strip=st.integers(1, 40), group=st.integers(2, 6),
    spread=st.integers(1, 400), seed=st.integers(0, 999), data=st.data(),
)  # fmt: skip
def test_strips_and_groups_find_the_neighbours_of_a_full_sort(
    n: int, tile: int, strip: int, group: int, spread: int, seed: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, min(n - 1, 20)))
    # whole numbers: sums are exact in any order. Few different ones make ties and copies, many hardly any
    x = torch.randint(-spread, spread + 1, (n, 3), generator=torch.Generator().manual_seed(seed)).float()
    if data.draw(st.booleans(), label="nearer and nearer"):
        x = x[x[:, 0].argsort()]
    scores = (x @ x.T).fill_diagonal_(-torch.inf)
    expected = torch.sort(scores, dim=1, descending=True, stable=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unrolled.ops.top_k._STRIP", strip)
        patch.setattr("unrolled.ops.top_k._GROUP", group)
        every = nearest_neighbours(x, k, tile=tile, normalize=False)
        some = nearest_neighbours(x, k, tile=tile, normalize=False, queries=torch.arange(1, n, 3))
    assert torch.equal(every.indices, expected.indices[:, :k])
    assert torch.equal(every.scores, expected.values[:, :k])
    assert torch.equal(some.indices, expected.indices[1::3, :k])


def test_copies_are_found_in_order_whatever_lies_in_between() -> None:
    x = torch.nn.functional.one_hot(torch.arange(2600) % 65).float()  # 40 copies of each row, strips and tiles apart
    found = nearest_neighbours(x, 12, tile=1300)
    own = torch.arange(2600)[:, None] % 65 + 65 * torch.arange(13)
    mine = own == torch.arange(2600)[:, None]
    own = torch.where(mine.any(1, keepdim=True), own.masked_fill(mine, 2600).sort(1).values, own)[:, :12]
    assert torch.equal(found.indices, own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_cosine_neighbours_in_each_dtype(dtype: torch.dtype) -> None:
    x = torch.randn(300, 16).to(dtype)
    wide = x.float() if dtype == torch.bfloat16 else x
    assert torch.equal(nearest_neighbours(x, 10, tile=64).indices, slow_neighbours(wide, 10))


def test_default_tile_is_bounded_in_bytes() -> None:
    assert tile_size(1_000_000) ** 2 * 4 <= 64 * 2**20
    assert tile_size(10) == 10
    assert tile_size(10, 3) == 3


def test_top_k_orders_ties_by_index_at_every_place() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0, 3.0, 2.0], [5.0, 5.0, 5.0, 5.0, 5.0]])
    assert top_k(scores, 2)[1].tolist() == [[1, 2], [0, 1]]
    assert top_k(scores, 4)[1].tolist() == [[1, 2, 3, 4], [0, 1, 2, 3]]
    assert top_k(scores, 9)[1].shape == (2, 5)


def test_membership_without_ties_is_the_list() -> None:
    x = torch.randn(100, 8)
    found = membership(x, 7)
    assert found.tied == 0
    assert bool((found.weights == 1).all())
    assert torch.equal(found.columns, nearest_neighbours(x, 7).indices)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(4, 40), distinct=st.integers(1, 8), seed=st.integers(0, 999), data=st.data())
def test_membership_shares_ties_and_moves_with_the_samples(
    n: int, distinct: int, seed: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, n - 1))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(distinct, 5, generator=generator)[torch.randint(distinct, (n,), generator=generator)]

    def dense(x: torch.Tensor) -> torch.Tensor:
        found = membership(x, k, tile=7)
        return torch.zeros(n, n).scatter_add_(1, found.columns, found.weights)

    weights = dense(x)
    torch.testing.assert_close(weights.sum(1), torch.full((n,), float(k)))
    assert float(weights.diagonal().abs().max()) == 0
    assert float(weights.max()) <= 1 + 1e-6
    order = torch.randperm(n, generator=generator)
    torch.testing.assert_close(dense(x[order]), weights[order][:, order])
    unit = torch.nn.functional.normalize(x, dim=1)
    given_scores = membership_of_scores(unit @ unit.T, k)
    torch.testing.assert_close(torch.zeros(n, n).scatter_add_(1, given_scores.columns, given_scores.weights), weights)


def test_huge_numbers_of_ties_are_refused_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unrolled.ops.ties._MAX_SHARED", 1000)
    with pytest.raises(ValueError, match="remove duplicate rows"):
        membership(torch.ones(100, 3), 5)


@pytest.mark.parametrize(
    ("x", "kwargs", "message"),
    [
        (torch.randn(5), {"k": 1}, r"must be \[n, d\]"),
        (torch.randn(5, 2), {"k": 5}, "k must be between 1 and n - 1 = 4"),
        (torch.randn(5, 2), {"k": 0}, "k must be"),
        (torch.randn(5, 2), {"k": 1, "tile": 0}, "tile"),
        (torch.randn(5, 2), {"k": 1, "queries": torch.tensor([9])}, "queries"),
        (torch.randn(5, 2), {"k": 1, "backend": "annoy"}, "backend"),
    ],
)
def test_bad_requests_name_the_argument(x: torch.Tensor, kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nearest_neighbours(x, **kwargs)


def test_faiss_is_optional_and_agrees() -> None:
    x = torch.cat([torch.randn(200, 8), torch.randn(5, 8).repeat(3, 1)])
    try:
        found = nearest_neighbours(x, 5, backend="faiss")
    except MissingExtra as error:
        assert "faiss" in str(error)  # noqa: PT017
        return
    torch.testing.assert_close(found.scores, nearest_neighbours(x, 5).scores, atol=1e-5, rtol=0)
    assert not bool((found.indices == torch.arange(len(x))[:, None]).any())


def test_folder_result_equals_memory_and_reads_memory_maps(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((200, 6), dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    stored = neighbours_to_folder(mapped, 4, tmp_path / "out", tile=32)
    assert np.array_equal(stored, nearest_neighbours(torch.from_numpy(x), 4).indices.numpy())
    again = neighbours_to_folder(mapped, 4, tmp_path / "out", tile=32)
    assert np.array_equal(stored, again)
    with pytest.raises(ValueError, match="another request"):
        neighbours_to_folder(mapped, 5, tmp_path / "out", tile=32)
    with pytest.raises(ValueError, match="another request"):
        neighbours_to_folder(x + 1, 4, tmp_path / "out", tile=32)


@pytest.mark.slow
def test_killed_search_resumes_to_the_same_result(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(1).standard_normal((3000, 16), dtype=np.float32))
    script = (
        "import sys, numpy as np, torch; torch.set_num_threads(1)\n"
        "from unrolled.ops.neighbour_folder import neighbours_to_folder\n"
        "x = np.load(sys.argv[1], mmap_mode='r')\n"
        "neighbours_to_folder(x, 5, sys.argv[2], tile=30)\n"
    )
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "x.npy"), str(out)])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        progress = out / "progress.json"
        if progress.exists() and json.loads(progress.read_text())["done"] >= 90:
            break
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert json.loads((out / "progress.json").read_text())["done"] >= 90
    x = np.load(tmp_path / "x.npy")
    resumed = neighbours_to_folder(x, 5, out, tile=30)
    assert np.array_equal(resumed, nearest_neighbours(torch.from_numpy(x), 5).indices.numpy())


def test_precision_setting_is_restored() -> None:
    torch.set_float32_matmul_precision("medium")
    try:
        nearest_neighbours(torch.randn(10, 3), 2)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.gpu
def test_gpu_finds_the_same_neighbours_except_near_ties() -> None:
    x = torch.randn(5000, 64)
    cpu, gpu = nearest_neighbours(x, 10), nearest_neighbours(x.cuda(), 10)
    differs = cpu.indices != gpu.indices.cpu()
    gap = (cpu.scores - gpu.scores.cpu()).abs()
    assert float(gap[differs].max() if differs.any() else 0.0) < 1e-6


@pytest.mark.slow
def test_exact_at_100k() -> None:
    x = torch.randn(100_000, 16, generator=torch.Generator().manual_seed(0))
    found = nearest_neighbours(x, 10)
    some = torch.arange(0, 100_000, 997)
    unit = torch.nn.functional.normalize(x, dim=1).double()
    scores = unit[some] @ unit.T
    scores[torch.arange(len(some)), some] = -torch.inf
    expected = scores.topk(10)
    differs = found.indices[some] != expected.indices
    gap = (found.scores[some].double() - expected.values).abs()
    assert float(gap.max()) < 1e-6
    assert float(differs.double().mean()) < 1e-3
