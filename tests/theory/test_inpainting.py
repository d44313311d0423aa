"""Inpainting against the equation it solves."""

from __future__ import annotations

import torch

from unrolled.theory.inpainting import harmonic


def test_harmonic_completion_solves_laplace() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 2, 8, 8, generator=generator, dtype=torch.float64)
    removed = torch.rand(3, 1, 8, 8, generator=generator) < 0.7
    removed[:, :, 0, 0] = False
    filled = harmonic(images, removed, tolerance=1e-10)
    gone = removed.expand_as(images)
    assert torch.equal(filled[~gone], images[~gone])
    padded = torch.nn.functional.pad(filled, (1, 1, 1, 1), mode="replicate")
    neighbours = padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1] + padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:]
    assert float((4 * filled - neighbours)[gone].abs().max()) < 1e-8
    other = torch.where(removed, 7.0, images)  # what is removed is not looked at
    torch.testing.assert_close(harmonic(other, removed, tolerance=1e-10), filled)
