"""Random generators from seeds of any size."""

from __future__ import annotations

import torch


def seeded(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose stream follows from all bits of `seed`.

    PyTorch's own on a CPU reads the lowest 32 alone, so that 2**41, 2**42 and 0 are one stream there. A seed that these
    hold gives PyTorch's stream; a larger one is hashed to 32 bits first, on every kind of device.

    Args:
        seed: not negative.
        device: where the numbers are drawn.

    Raises:
        ValueError: a negative seed.
    """
    if seed < 0:
        raise ValueError(f"seed={seed}: must not be negative")
    if seed >= 2**32:
        import numpy as np

        seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return torch.Generator(device).manual_seed(seed)
