"""The statistic of Epps and Pulley beside its closed form, and what it says of samples that are not normal."""

from __future__ import annotations

import math

import pytest
import torch

from unrolled.theory.gaussianity import gaussianity, random_directions


def closed(x: torch.Tensor) -> torch.Tensor:
    """The integral over all of t, of one projection [n]: sums of Gaussians, each of which integrates to another."""
    pairs = (-(x[:, None] - x).square() / 2).exp().mean(0).sum() * math.sqrt(2 * math.pi)
    beside = 2 * math.sqrt(math.pi) * (-x.square() / 4).exp().sum()
    return pairs - beside + len(x) * math.sqrt(2 * math.pi / 3)


@pytest.mark.parametrize("sample", [torch.randn, torch.rand], ids=["normal", "uniform"])
def test_it_is_the_mean_of_the_closed_form_over_directions(sample: object) -> None:
    generator = torch.Generator().manual_seed(0)
    z = 1.7 * sample(60, 5, generator=generator, dtype=torch.float64) + 0.3  # type: ignore[operator]
    directions = random_directions(5, 7, generator).double()
    wanted = torch.stack([closed(z @ direction) for direction in directions.T]).mean()
    # beyond t = 5 the weight is below 4e-6
    assert float(gaussianity(z, directions)) == pytest.approx(float(wanted), abs=len(z) * 1e-5)


def test_directions_have_norm_one_and_normal_samples_have_the_least() -> None:
    generator = torch.Generator().manual_seed(1)
    directions = random_directions(4, 200, generator)
    assert directions.norm(dim=0).sub(1).abs().max() < 1e-5
    z = torch.randn(2000, 4, generator=generator)
    normal = float(gaussianity(z, directions))
    assert normal == pytest.approx(math.sqrt(2 * math.pi) - math.sqrt(2 * math.pi / 3), abs=0.5)
    for other in (0 * z, z + 0.5, 2 * z, z[:, :1].expand(-1, 4), z.sign()):
        assert float(gaussianity(other, directions)) > 5 * normal


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"\[n, d\] and \[d, m\]"):
        gaussianity(torch.zeros(3, 4), torch.zeros(5, 2))
