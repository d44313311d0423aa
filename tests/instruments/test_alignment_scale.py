from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import unrolled.alignment as al
from unrolled.alignment.scale import compare_large


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


def test_a_large_comparison_estimates_what_the_exact_one_says(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(600, 4, generator=generator)
    layers = [
        {f"layer{i}": shared @ torch.randn(4, 8, generator=generator) + i * torch.randn(600, 8, generator=generator)
         for i in (1, 3)}
        for _ in range(2)
    ]  # fmt: skip
    exact = al.compare(*layers, "mutual_knn", draws=5, resamples=0)
    every = compare_large(*layers, "mutual_knn", queries=600)
    assert torch.allclose(every.scores, exact.scores)
    some = compare_large(*layers, "mutual_knn", queries=200)
    error = (some.interval[1] - some.score) / 1.96
    assert abs(some.score - exact.score) < 4 * error < 0.1
    noise = torch.Generator().manual_seed(5)
    moved = {name: x + 0.01 * torch.randn(x.shape, generator=noise) for name, x in layers[0].items()}
    near = compare_large(layers[0], moved, "mutual_knn", queries=50, draws=5)
    assert near.score < near.interval[1] == 1.0  # more than all neighbours cannot agree
    assert some.best == ("layer1", "layer1")
    assert some.p_value == 201**-2
    np.save(tmp_path / "x.npy", layers[0]["layer1"].numpy())
    mapped = {"layer1": np.load(tmp_path / "x.npy", mmap_mode="r")}
    cka = compare_large(mapped, {"layer1": layers[1]["layer1"]}, "unbiased_cka")
    assert cka.score == pytest.approx(al.cka(layers[0]["layer1"], layers[1]["layer1"], unbiased=True), abs=1e-6)
    assert cka.p_value is None
    with pytest.raises(ValueError, match="take mutual_knn or unbiased_cka"):
        compare_large(*layers, "svcca")


def test_chance_is_no_agreement_in_a_large_comparison() -> None:
    x, y = torch.randn(2, 500, 8, generator=torch.Generator().manual_seed(1))
    assert compare_large({"a": x}, {"b": y}, queries=300).p_value > 0.01


def test_many_queries_do_not_make_chance_significant() -> None:
    generator = torch.Generator().manual_seed(2)
    found = []
    for _ in range(60):
        x, y = torch.randn(2, 150, 8, generator=generator)
        found.append(compare_large({"a": x}, {"b": y}, queries=149).p_value)
    assert sum(p <= 0.05 for p in found) <= 8  # a level of 5 % gives more with probability 0.003


def test_constant_layers_agree_with_nothing_in_a_large_comparison() -> None:
    x, y = torch.randn(2, 300, 8, generator=torch.Generator().manual_seed(1))
    same = torch.ones(300, 4)
    for metric in ("mutual_knn", "unbiased_cka"):
        found = compare_large({"start": same, "end": x}, {"start": same.numpy(), "end": y}, metric, queries=100)
        assert found.best == ("end", "end")
        assert found.constant == (["start"], ["start"])
        assert int(found.scores.isnan().sum()) == 3
    with pytest.raises(ValueError, match="all layers have zero variance"):
        compare_large({"start": same}, {"end": y})


def test_a_tail_far_beyond_the_relabellings_is_a_bound() -> None:
    x, _ = pair(300)
    found = compare_large({"x": x}, {"x": x}, k=5, queries=100, draws=99)
    assert found.p_value == 1e-4
    assert "p < 0.0001 (Pareto tail of 99 relabellings, none of which reached the score: a bound" in found.summary()


def test_why_there_is_no_p_is_said() -> None:
    x, y = pair(100)
    found = compare_large({"x": x}, {"y": y}, "unbiased_cka")
    assert found.p_value is None
    assert "p: none, as every relabelling would be a pass over all samples" in found.summary()
    assert found.to_dict()["p_method"].endswith("50,000 samples or fewer")


def test_every_layer_of_a_large_comparison_has_the_same_samples() -> None:
    x = np.random.default_rng(0).normal(size=(8192 + 500, 3)).astype(np.float32)
    for metric in ("unbiased_cka", "mutual_knn"):
        with pytest.raises(ValueError, match="same n"):
            compare_large({"a": x[:8192]}, {"b": x}, metric, queries=20)
        with pytest.raises(ValueError, match="same n"):
            compare_large({"a": x[:8192]}, {"b": x[:8192], "c": x}, metric, queries=20)


def test_a_large_cka_knows_no_offset() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2000, 16)), rng.normal(size=(2000, 16))
    expected = al.cka(x, y, unbiased=True)
    far = compare_large({"a": (x + 1000 * rng.normal(size=16))}, {"b": y - 2000}, "unbiased_cka")
    assert far.score == pytest.approx(expected, abs=1e-8)
