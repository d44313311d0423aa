from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unrolled.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt, strength


def picture(side: int = 32, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth shapes with some texture, as photographs have."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    waves = [np.sin(2 * np.pi * (a * x + b * y + c)) for a, b, c in rng.uniform(0, 4, (channels, 3))]
    smooth = 128 + 70 * np.stack(waves, -1) + 15 * rng.standard_normal((side, side, channels))
    return smooth.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severities_grow(name: str, channels: int) -> None:
    for side in (32, 96):
        images = [picture(side, channels, seed) for seed in range(6)]
        distances = []
        for severity in SEVERITIES:
            changed = [corrupt(image, name, severity, index=i) for i, image in enumerate(images)]
            assert all(c.shape == i.shape and c.dtype == np.uint8 for c, i in zip(changed, images, strict=True))
            distances.append(np.mean([np.abs(c.astype(int) - i).mean() for c, i in zip(changed, images, strict=True)]))
        assert distances[0] > 0
        assert all(a < b for a, b in itertools.pairwise(distances)), (side, distances)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_index_and_seed_decide(name: str) -> None:
    image = picture()
    before = image.copy()
    first = corrupt(image, name, 3, index=7, seed=1)
    np.random.seed(5)
    assert (corrupt(image, name, 3, index=7, seed=1) == first).all()
    assert (image == before).all()
    if "noise" in name or name == "motion_blur":
        assert (corrupt(image, name, 3, index=8, seed=1) != first).any()
        assert (corrupt(image, name, 3, index=7, seed=2) != first).any()


@pytest.mark.parametrize("name", ["defocus_blur", "motion_blur", "contrast", "pixelate", "jpeg"])
@given(value=st.integers(0, 255))
@settings(max_examples=20, deadline=None)
def test_a_plain_image_stays_plain(name: str, value: int) -> None:
    image = np.full((16, 16, 1), value, np.uint8)
    changed = corrupt(image, name, 5).astype(int)
    assert np.abs(changed - value).max() <= (3 if name == "jpeg" else 1)


def test_noise_has_the_strength_it_says() -> None:
    image = np.full((200, 200, 3), 128, np.uint8)
    for severity in (1, 3):
        sigma = strength("gaussian_noise", severity, 200)
        changed = corrupt(image, "gaussian_noise", severity) / 255
        assert changed.std() == pytest.approx(sigma, rel=0.03)
        photons = strength("shot_noise", severity, 200)
        changed = corrupt(image, "shot_noise", severity) / 255
        assert changed.std() == pytest.approx((128 / 255 / photons) ** 0.5, rel=0.03)
        hit = (corrupt(image, "impulse_noise", severity) != image).any(-1).mean()
        assert hit == pytest.approx(strength("impulse_noise", severity, 200), rel=0.1)


def test_blur_keeps_the_light_and_spreads_it_as_far_as_it_says() -> None:
    image = np.zeros((101, 101, 1), np.uint8)
    image[45:56, 45:56] = 255
    for name in ("defocus_blur", "motion_blur"):
        changed = corrupt(image, name, 4)
        assert int(changed.sum()) == pytest.approx(int(image.sum()), rel=0.02)
        reach = strength(name, 4, 101) * 101 / (1 if name == "defocus_blur" else 2)
        rows, columns, _ = np.nonzero(changed)
        furthest = max(np.abs(rows - 50).max(), np.abs(columns - 50).max()) - 5
        assert 0.5 * reach <= furthest <= reach + 1


@given(st.sampled_from(CORRUPTIONS), st.sampled_from(SEVERITIES), st.integers(1, 2000))
def test_strength_lies_between_that_of_small_and_large_images(name: str, severity: int, side: int) -> None:
    ends = sorted(strength(name, severity, at) for at in (32, 224))
    assert ends[0] * (1 - 1e-9) <= strength(name, severity, side) <= ends[1] * (1 + 1e-9)


def test_tiny_images_survive() -> None:
    for name in CORRUPTIONS:
        for shape in ((1, 1, 1), (3, 2, 3)):
            assert corrupt(np.full(shape, 9, np.uint8), name, 5).shape == shape


def test_bad_input_is_named() -> None:
    image = picture()
    with pytest.raises(ValueError, match="fog"):
        corrupt(image, "fog", 1)
    with pytest.raises(ValueError, match="severity"):
        corrupt(image, "jpeg", 6)
    with pytest.raises(ValueError, match="uint8"):
        corrupt(image / 255, "jpeg", 1)
    with pytest.raises(ValueError, match="index"):
        corrupt(image, "jpeg", 1, index=-1)
