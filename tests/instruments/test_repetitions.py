"""Distances of repeated measurements: against plain NumPy, unbiased where they promise it, refused where undefined."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import unrolled.alignment as al


def measured(seed: int = 0, shape: tuple[int, int, int] = (4, 6, 5), signal: float = 1.0) -> Any:
    """[r, n, d]: a pattern for each stimulus, and noise that is correlated between channels."""
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(shape[2], shape[2]))
    return signal * generator.normal(size=(1, *shape[1:])) + generator.normal(size=shape) @ mixing


def by_folds(x: Any, covariance: Any) -> Any:
    """Leave-one-repetition-out crossnobis as Walther et al. 2016 write it, one pair and one fold at a time."""
    precision, repetitions, n = np.linalg.inv(covariance), len(x), x.shape[1]
    out = np.zeros((n, n))
    for fold in range(repetitions):
        rest = np.delete(x, fold, 0).mean(0)
        for i in range(n):
            for j in range(n):
                out[i, j] += (rest[i] - rest[j]) @ precision @ (x[fold, i] - x[fold, j]) / repetitions / x.shape[2]
    return out


def test_crossnobis_is_that_of_the_folds() -> None:
    x = measured()
    covariance = al.noise_covariance(x)
    crossed_rdm = al.crossnobis_rdm(x, covariance)
    assert np.allclose(crossed_rdm, by_folds(x, covariance.numpy()), atol=1e-10)
    assert torch.equal(crossed_rdm, crossed_rdm.T)
    assert not crossed_rdm.diagonal().any()
    assert np.allclose(al.crossnobis_rdm(x), by_folds(x, np.eye(5)), atol=1e-10)


def test_mahalanobis_is_that_of_the_means() -> None:
    x = measured()
    covariance = al.noise_covariance(x, shrinkage=0.2).numpy()
    mean, precision = x.mean(0), np.linalg.inv(covariance)
    expected = [[(a - b) @ precision @ (a - b) / 5 for b in mean] for a in mean]
    assert np.allclose(al.mahalanobis_rdm(x, torch.from_numpy(covariance)), expected, atol=1e-10)
    assert torch.allclose(al.mahalanobis_rdm(mean), al.rdm(torch.from_numpy(mean), "sqeuclidean") / 5, atol=1e-10)


def test_shrinkage_is_schaefer_and_strimmers() -> None:
    x = measured(shape=(3, 4, 7))
    residuals = (x - x.mean(0)).reshape(-1, 7)
    free, count = 2 * 4, 12
    full = residuals.T @ residuals / free
    assert np.allclose(al.noise_covariance(x, shrinkage=0), full)
    assert np.allclose(al.noise_covariance(x, shrinkage=1), np.diag(np.diag(full)))
    unit = residuals / np.sqrt(np.diag(full))
    outer = np.stack([np.outer(row, row) for row in unit])
    mean, squares = outer.sum(0) / (count - 1), (outer**2).sum(0) / (count - 1)
    off = ~np.eye(7, dtype=bool)
    share = np.clip((count / free**2 * (squares - mean**2))[off].sum() / (mean[off] ** 2).sum(), 0, 1)
    assert 0 < share < 1
    assert np.allclose(al.noise_covariance(x), np.where(off, (1 - share) * full, full))


def test_crossnobis_of_stimuli_that_do_not_differ_is_zero_on_average() -> None:
    """Mahalanobis distances are not: they are the noise's."""
    draws = 400
    covariance = al.noise_covariance(measured(99, (30, 6, 5), 0.0))
    crossed = torch.stack([al.crossnobis_rdm(measured(seed, signal=0.0)) for seed in range(draws)])
    plain = torch.stack([al.mahalanobis_rdm(measured(seed, signal=0.0), covariance) for seed in range(draws)])
    pairs = torch.triu_indices(6, 6, 1)
    values = crossed[:, pairs[0], pairs[1]]
    assert bool((values < 0).any())
    deviation = values.mean(1).std() / draws**0.5
    assert abs(float(values.mean())) < 3.5 * float(deviation)
    assert float(plain[:, pairs[0], pairs[1]].mean()) > 0.1


def test_crossnobis_finds_the_distance_without_noise() -> None:
    generator = np.random.default_rng(1)
    truth = generator.normal(size=(5, 4))
    exact = al.mahalanobis_rdm(truth)
    crossed_rdm = torch.stack(
        [al.crossnobis_rdm(truth + 0.7 * generator.normal(size=(3, 5, 4))) for _ in range(600)]
    ).mean(0)
    assert torch.allclose(crossed_rdm, exact, atol=0.08)


def test_a_noisy_channel_counts_less_than_a_quiet_one() -> None:
    generator = np.random.default_rng(2)
    x = np.zeros((40, 3, 2)) + generator.normal(size=(40, 3, 2)) * [0.1, 3.0]
    x[:, 1, 0] += 1  # the quiet channel tells the second stimulus apart
    rdm = al.crossnobis_rdm(x, al.noise_covariance(x))
    assert rdm[0, 1] > 20 * abs(float(rdm[0, 2]))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((3, 4)), r"x must be \[repetitions, stimuli, channels\], got shape \(3, 4\)"),
        (measured()[:1], "x has one repetition: noise is what repetitions differ by; give at least 2"),
        (measured()[:, :1], "x has one stimulus"),
        (np.full((2, 3, 4), np.nan), "x has NaN or infinite values"),
    ],
)
def test_what_has_no_repetitions_is_said(x: Any, message: str) -> None:
    for function in (al.crossnobis_rdm, al.noise_covariance):
        with pytest.raises(ValueError, match=message):
            function(x)


def test_a_covariance_that_has_no_inverse_is_refused() -> None:
    x = measured(shape=(2, 3, 8))
    with pytest.raises(ValueError, match=r"not positive definite.*noise_covariance\(x\) does"):
        al.crossnobis_rdm(x, al.noise_covariance(x, shrinkage=0))
    assert bool(al.crossnobis_rdm(x, al.noise_covariance(x)).isfinite().all())
    with pytest.raises(ValueError, match=r"covariance must be finite and \[8, 8\]"):
        al.mahalanobis_rdm(x, torch.eye(3))
    with pytest.raises(ValueError, match="channels 1 do not vary between repetitions"):
        al.noise_covariance(np.stack([np.arange(6.0).reshape(3, 2) * [i, 1] for i in (1, 2)]))
    with pytest.raises(ValueError, match=r"shrinkage must be in 0\.\.1"):
        al.noise_covariance(x, shrinkage=2.0)


def test_they_are_rsatoolboxs() -> None:
    toolbox = pytest.importorskip("rsatoolbox")
    x = measured()
    names = {"stimulus": np.tile(np.arange(6), 4), "run": np.repeat(np.arange(4), 6)}
    data = toolbox.data.Dataset(x.reshape(-1, 5), obs_descriptors=names)
    covariance = toolbox.data.noise.cov_from_residuals((x - x.mean(0)).reshape(-1, 5), dof=18)
    assert np.allclose(al.noise_covariance(x), covariance)
    precision = np.linalg.inv(covariance)
    for kind, function in (("crossnobis", al.crossnobis_rdm), ("mahalanobis", al.mahalanobis_rdm)):
        runs = {"cv_descriptor": "run"} if kind == "crossnobis" else {}
        theirs = toolbox.rdm.calc_rdm(data, method=kind, descriptor="stimulus", noise=precision, **runs)
        assert np.allclose(function(x, torch.from_numpy(covariance)), theirs.get_matrices()[0])


def test_distances_know_no_offset() -> None:
    x = measured()
    noise = al.noise_covariance(x)
    for far in (1e6, 1e8):
        for rdm in (al.crossnobis_rdm, al.mahalanobis_rdm):
            np.testing.assert_allclose(rdm(x + far, noise), rdm(x, noise), rtol=0, atol=1e-6)


def test_a_channel_that_rounding_alone_varies_has_no_noise() -> None:
    x = measured()
    x[:, :, 2] = 0.1
    with pytest.raises(ValueError, match="channels 2 do not vary between repetitions"):
        al.noise_covariance(x)
