from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from unrolled.instruments import cluster_tokens, maskcut, normalized_cut
from unrolled.instruments.regions import spectral


def scene(height: int = 18, width: int = 24, noise: float = 0.3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two discs on a background: features [n, 32] and the labels [height, width]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    labels = np.zeros((height, width), np.int64)
    labels[(y - 6) ** 2 + (x - 6) ** 2 < 16] = 1
    labels[(y - 11) ** 2 + (x - 17) ** 2 < 20] = 2
    centres = np.linalg.qr(rng.normal(size=(32, 3)))[0].T * 3
    features = centres[labels.ravel()] + noise * rng.normal(size=(height * width, 32))
    return torch.tensor(features, dtype=torch.float32), torch.from_numpy(labels)


@pytest.mark.parametrize("solver", ["auto", "dense", "lanczos"])
def test_published_masks(shared: Path, solver: str) -> None:
    path = shared / "golden" / "maskcut.safetensors"
    if not path.is_file():
        pytest.skip("no golden files")
    golden = load_file(path)
    masks = maskcut(golden["features"].mT, (20, 20), solver=solver)  # type: ignore[arg-type]
    assert torch.equal(masks, golden["masks"].bool())


@pytest.mark.parametrize("solver", ["dense", "lanczos"])
def test_finds_two_objects_and_no_third(solver: str) -> None:
    features, labels = scene()
    masks = maskcut(features, (18, 24), solver=solver)  # type: ignore[arg-type]
    assert masks.dtype == torch.bool
    assert masks.shape == (3, 18, 24)
    assert {tuple(masks[k].flatten().tolist()) for k in range(2)} == {
        tuple((labels == k).flatten().tolist()) for k in (1, 2)
    }
    assert not masks[2].any()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.05, 0.2, 0.4]), st.floats(0.3, 1.5))
def test_lanczos_is_the_dense_generalised_solve(seed: int, tau: float, noise: float) -> None:
    features, _ = scene(12, 15, noise, seed)
    unit = F.normalize(features, dim=-1)
    w = np.where((unit @ unit.mT > tau).numpy(), 1.0, 1e-5)
    d = np.diag(w.sum(1))
    want, vectors = scipy.linalg.eigh(d - w, d, subset_by_index=[1, 2])
    value, vector = normalized_cut(features, tau, solver="lanczos")
    assert value.item() == pytest.approx(want[0], abs=1e-9)
    if want[1] - want[0] > 1e-3:
        found = vectors[:, 0] / np.linalg.norm(vectors[:, 0])
        assert abs(found @ vector[:, 0].numpy()) == pytest.approx(1, abs=1e-9)
        dense, lanczos = (maskcut(features, (12, 15), tau, solver=s) for s in ("dense", "lanczos"))  # type: ignore
        assert torch.equal(dense[0], lanczos[0])


def test_several_cuts_and_blocks_agree_with_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    features, _ = scene(noise=0.8)
    dense = normalized_cut(features, count=3, solver="dense")
    torch.testing.assert_close(normalized_cut(features, count=3, solver="lanczos"), dense, atol=1e-7, rtol=0)
    monkeypatch.setattr(spectral, "HELD_BELOW", 10)
    monkeypatch.setattr(spectral, "BLOCK", 100)
    torch.testing.assert_close(normalized_cut(features, count=3, solver="lanczos"), dense, atol=1e-7, rtol=0)


def test_unsettled_lanczos_falls_back_to_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    features, _ = scene(noise=0.8)
    want = maskcut(features, (18, 24), solver="dense")
    monkeypatch.setattr(spectral, "STEPS", 4)
    assert torch.equal(maskcut(features, (18, 24), solver="lanczos"), want)


@pytest.mark.parametrize("features", [torch.ones(36, 5), torch.zeros(36, 5), torch.eye(36), torch.ones(1, 3)])
def test_nothing_is_invented_where_there_is_no_structure(features: Tensor) -> None:
    side = int(len(features) ** 0.5)
    masks = maskcut(features, (side, side))
    assert masks.shape == (3, side, side)
    assert not masks.any()


def test_three_equal_parts_are_found_whole() -> None:
    labels = torch.arange(3).repeat_interleave(60)
    features = torch.eye(3)[labels]
    for solver in ("dense", "lanczos"):
        first = maskcut(features, (9, 20), solver=solver)[0].flatten()  # type: ignore[arg-type]
        assert first.any()
        assert all(first[labels == k].all() or not first[labels == k].any() for k in range(3))


def test_masks_do_not_overlap_and_do_not_depend_on_scale_or_type() -> None:
    features, _ = scene(noise=1.2)
    masks = maskcut(features, (18, 24), masks=4)
    assert int(masks.sum(0).max()) <= 1
    assert torch.equal(masks, maskcut(features * 7, (18, 24), masks=4))
    assert torch.equal(maskcut(features.bfloat16(), (18, 24)), maskcut(features.bfloat16().float(), (18, 24)))


@pytest.mark.parametrize("method", ["kmeans", "spectral"])
def test_clusters_are_the_parts(method: str) -> None:
    features, labels = scene(noise=0.15)
    got = cluster_tokens(features, 3, method=method)  # type: ignore[arg-type]
    assert got.dtype == torch.int64
    assert torch.equal(got, labels.flatten())  # numbered as they appear
    assert torch.equal(got, cluster_tokens(features, 3, method=method, seed=5))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["kmeans", "spectral"])
def test_equal_tokens_are_one_cluster(method: str) -> None:
    assert not cluster_tokens(torch.ones(30, 4), 4, method=method).any()  # type: ignore[arg-type]


def test_bad_input_is_named() -> None:
    f = torch.randn(12, 4)
    for argument, call in {
        "grid": lambda: maskcut(f, (3, 5)),
        "features": lambda: maskcut(f[None], (3, 4)),
        "NaN": lambda: maskcut(f * float("nan"), (3, 4)),
        "tau": lambda: maskcut(f, (3, 4), tau=1.5),
        "eps": lambda: maskcut(f, (3, 4), eps=0),
        "masks": lambda: maskcut(f, (3, 4), masks=0),
        "solver": lambda: maskcut(f, (3, 4), solver="qr"),  # type: ignore[arg-type]
        "clusters": lambda: cluster_tokens(f, 13),
        "method": lambda: cluster_tokens(f, 2, method="dbscan"),  # type: ignore[arg-type]
        "count": lambda: normalized_cut(f, count=12),
    }.items():
        with pytest.raises(ValueError, match=argument):
            call()


def test_colours_are_grouped_by_distance() -> None:
    grey = torch.tensor([[0.1, 0.1], [0.12, 0.12], [0.9, 0.9], [0.92, 0.92]])
    assert cluster_tokens(grey, 2, method="kmeans-euclidean").tolist() == [0, 0, 1, 1]
    assert cluster_tokens(grey, 2).unique().numel() == 1, "one direction is one group by cosine similarity"
