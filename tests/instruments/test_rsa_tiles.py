"""RSA of many samples: a tile at a time it is what it is at once, in bounded memory; what has no value is refused."""

from __future__ import annotations

import weakref
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import unrolled.alignment as al
from unrolled.alignment import kernels, tiles

METHODS, DISSIMILARITIES = ("spearman", "pearson", "whitened"), ("correlation", "cosine", "euclidean", "sqeuclidean")


class Allocated(TorchDispatchMode):
    """Counts the bytes of the storages that tensors made within it hold, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, torch.Tensor) and (key := each.untyped_storage()._cdata) not in self.live:
                storage = each.untyped_storage()
                self.live[key] = storage.nbytes()
                self.peak = max(self.peak, sum(self.live.values()))
                weakref.finalize(storage, self.live.pop, key, None)
        return out


def sides(n: int, d: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, d, generator=generator)
    return x, x @ torch.randn(d, d + 2, generator=generator) + torch.randn(n, d + 2, generator=generator)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many samples are more than 50, tiles a few rows, classes a few thousand."""
    monkeypatch.setattr(kernels, "RSA_DENSE", 50)
    monkeypatch.setattr(tiles, "SCRATCH", 2**17)
    monkeypatch.setattr(tiles, "_COARSE", 2**9)
    monkeypatch.setattr(tiles, "_CLASSES", 2**16)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dissimilarity", DISSIMILARITIES)
@pytest.mark.parametrize("tied", [False, True])
def test_tiles_give_what_one_matrix_gives(
    method: str, dissimilarity: str, tied: bool, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = (side.mul(2).round() if tied else side for side in sides(90))
    x[3] = x[4]
    metric = al.RSA(method=method, dissimilarity=dissimilarity)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(0))

    def values() -> list[float]:
        a, b = metric.prepare(x), metric.prepare(y)
        moments = metric.null_moments([a, None], [b])
        assert moments is not None
        assert bool(moments[0][1].isnan().all())
        return [metric(x, y), metric.compare(a, metric.relabel(b, order)), *(float(each[0, 0]) for each in moments)]

    tiled = values()
    assert isinstance(metric.prepare(x), tiles.TiledRDM)
    monkeypatch.setattr(kernels, "RSA_DENSE", 90)
    # ranks are of classes: 4,005 pairs in 65,536 of them
    assert tiled == pytest.approx(values(), abs=2e-5 if method == "spearman" else 1e-12)


def bound(method: str) -> int:
    """Bytes of a tile, and of the tables of ranks of both sides while one of them is made."""
    return tiles.SCRATCH + (6 * 8 * (tiles._CLASSES + tiles._COARSE) if method == "spearman" else 0)


def test_the_bound_of_tiles_is_below_the_stated_bytes() -> None:
    assert max(bound(method) for method in METHODS) <= kernels.RSA_BYTES


@pytest.mark.parametrize("method", METHODS)
def test_memory_of_tiles_does_not_grow_with_the_pairs(
    method: str, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "_CLASSES", 2**14)
    peaks = []
    for n in (120, 240):
        x, y = sides(n)
        with Allocated() as allocated:
            al.RSA(method=method)(x, y)
        peaks.append(allocated.peak - 4 * 8 * (x.numel() + y.numel()))  # copies of the features, and row sums
    assert max(peaks) <= bound(method)
    assert peaks[1] - peaks[0] < 8 * (240**2 - 120**2) / 10


@pytest.mark.parametrize("n", [8193, 20_000, 100_000])
def test_a_tile_fits_its_bytes_whatever_the_number_of_samples(n: int) -> None:
    steps = list(tiles.TiledRDM(torch.empty(n, 0), "cosine")._tiles())
    assert steps[0][0] == 0
    assert steps[-1][1] == n - 1
    assert all(a[1] == b[0] for a, b in pairwise(steps))
    assert max(stop - start for start, stop in steps) * 8 * tiles._ARRAYS * n <= tiles.SCRATCH


def test_one_matrix_fits_the_stated_bytes() -> None:
    x, y = sides(256)
    for method in METHODS:
        with Allocated() as allocated:
            al.RSA(method=method)(x, y)
        assert allocated.peak / 256**2 * kernels.RSA_DENSE**2 <= kernels.RSA_BYTES, method


@pytest.mark.slow
def test_twenty_thousand_samples_stay_within_the_stated_bytes() -> None:
    x, y = sides(20_000, d=2)
    with Allocated() as allocated:
        value = al.RSA(method="pearson", dissimilarity="euclidean")(x, y)
    assert 0 < value < 1
    assert allocated.peak <= tiles.SCRATCH + 2**26 < kernels.RSA_BYTES


def test_what_cannot_be_compared_is_said(small: None) -> None:
    x, y = sides(60)
    with pytest.raises(ValueError, match=r"method='tau-a' holds all pairs, of at most 50; give fewer samples"):
        al.RSA(method="tau-a")(x, y)
    with pytest.raises(ValueError, match="all pairwise dissimilarities are equal"):
        al.RSA()(torch.eye(60), y)
    for few in (1, 2, 3):
        with pytest.raises(ValueError, match=rf"x has {few} samples: at least 4"):
            al.rsa(x[:few], y[:few])
    with pytest.raises(ValueError, match="all pairwise dissimilarities are equal"):
        al.rsa(torch.eye(6), y[:6])
    with pytest.raises(ValueError, match="zero variance"):
        al.rsa(torch.ones(6, 3), y[:6])


@pytest.mark.parametrize("n", [4, 5, 6])
@pytest.mark.parametrize("method", [*METHODS, "tau-a"])
def test_few_samples_give_a_number(n: int, method: str) -> None:
    x, y = sides(n)
    for dissimilarity in DISSIMILARITIES:
        assert -1 <= al.rsa(x, y, method=method, dissimilarity=dissimilarity) <= 1
