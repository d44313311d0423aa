from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import unrolled.alignment as al


def pair(n: int = 1200) -> tuple[torch.Tensor, torch.Tensor]:
    shared = torch.randn(n, 6)
    return tuple(shared @ torch.randn(6, 12) + torch.randn(n, 12) for _ in range(2))  # type: ignore[return-value]


def test_all_queries_give_the_exact_score_without_error() -> None:
    x, y = (side.double() for side in pair(300))
    found = al.mutual_knn_sampled(x, y, queries=300, tile=64)
    assert found.score == pytest.approx(al.mutual_knn(x, y))
    assert found.standard_error == 0
    assert found.chance == pytest.approx(10 / 299)


def test_sampled_scores_scatter_around_the_exact_one_as_they_say() -> None:
    x, y = pair()
    exact = al.mutual_knn(x, y)
    found = [al.mutual_knn_sampled(x, y, queries=100, seed=seed) for seed in range(60)]
    z = np.array([(estimate.score - exact) / estimate.standard_error for estimate in found])
    assert abs(z.mean()) < 0.5
    assert 0.75 < z.std() < 1.3


def test_memory_maps_are_read(tmp_path: Path) -> None:
    x, y = pair(200)
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert al.mutual_knn_sampled(mapped, y, queries=50) == al.mutual_knn_sampled(x, y, queries=50)
    assert al.mutual_knn_curve(mapped, y, [100], queries=50) == al.mutual_knn_curve(x, y, [100], queries=50)


def test_fixed_k_falls_with_the_gallery_and_proportional_k_does_not() -> None:
    x, y = pair()
    sizes = [150, 400, 1200]
    fixed = al.mutual_knn_curve(x, y, sizes, k=10, queries=150)
    growing = al.mutual_knn_curve(x, y, sizes, k=None, share=0.05, queries=150)
    assert [point.n for point in fixed] == sizes
    assert fixed[0].score > fixed[1].score > fixed[2].score
    assert [point.k for point in growing] == [8, 20, 60]
    assert abs(growing[0].score - growing[2].score) < 0.3 * growing[0].score
    assert fixed[2].score == pytest.approx(al.mutual_knn(x, y), abs=4 * fixed[2].standard_error)


def test_bad_requests_are_named() -> None:
    x, y = pair(50)
    with pytest.raises(ValueError, match="same n"):
        al.mutual_knn_sampled(x, y[:40])
    with pytest.raises(ValueError, match="queries"):
        al.mutual_knn_sampled(x, y, queries=1)
    with pytest.raises(ValueError, match="either k or share"):
        al.mutual_knn_curve(x, y, [20], k=5, share=0.1)
    with pytest.raises(ValueError, match="sizes"):
        al.mutual_knn_curve(x, y, [60])
    with pytest.raises(ValueError, match="k must be between"):
        al.mutual_knn_sampled(x, y, k=50)
