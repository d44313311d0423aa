from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import functional

from unrolled.data.images import BadImage, eval_transform, train_transform
from unrolled.data.transforms import crop_and_flip, model_input
from unrolled.models import create_model
from unrolled.train.config import TrainConfig

RGB = (0.4, 0.5, 0.6)


def picture(size: int = 32, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).convert(mode)


def test_evaluation_keeps_small_images_whole_and_normalises() -> None:
    image = picture(8)
    result = eval_transform((3, 8, 8), RGB, (0.2, 0.2, 0.2))(image)
    expected = (torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - torch.tensor(RGB).view(3, 1, 1)) / 0.2
    torch.testing.assert_close(result, expected)


def test_evaluation_of_large_images_crops_the_centre() -> None:
    image = Image.new("RGB", (512, 256))
    image.paste((255, 255, 255), (128, 0, 384, 256))
    result = eval_transform((3, 224, 224), (0.5,) * 3, (0.5,) * 3)(image)
    assert result.shape == (3, 224, 224)
    assert result.min() > 0.99


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour_are_converted(mode: str, channels: int) -> None:
    image = Image.fromarray(np.full((8, 8), 0x80FF, np.uint16)) if mode == "I;16" else picture(8, mode)
    result = eval_transform((channels, 8, 8), (0.5,), (0.5,))(image)
    assert result.shape == (channels, 8, 8)
    if mode == "I;16":
        assert result.unique().item() == pytest.approx(0x80 / 255 * 2 - 1, abs=1e-6)  # float32 after a subtraction


def test_wrong_channels_and_pixels_are_named() -> None:
    with pytest.raises(ValueError, match="in_chans 1 or 3"):
        eval_transform((4, 8, 8), (0.5,), (0.5,))
    with pytest.raises(ValueError, match="mean has 2 values for 3 channels"):
        eval_transform((3, 8, 8), (0.5, 0.5), (0.5,))
    transform = eval_transform((3, 8, 8), (0.5,), (0.5,))
    with pytest.raises(BadImage, match="channels"):
        transform(np.zeros((8, 8, 5), np.uint8))
    with pytest.raises(BadImage, match="NaN"):
        transform(Image.fromarray(np.full((8, 8), np.nan, np.float32)))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pad_crop": 4},
        {"auto_augment": "rand-m9-n2-mstd0.5", "random_erasing": 0.5},
        {"pad_crop": 2, "auto_augment": "rand-m14-n2", "color_jitter": 0.4},
        {"color_jitter": 0.4, "hflip": 0.0},
    ],
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_every_augmentation_serves_grey_and_colour(channels: int, mode: str, settings: dict[str, object]) -> None:
    config = TrainConfig(**settings)  # type: ignore[arg-type]
    transform = train_transform(config, (channels, 32, 32), RGB, (0.2, 0.2, 0.2))
    for size in (32, 45):
        results = torch.stack([transform(picture(size, mode)) for _ in range(4)])
        assert results.shape == (4, channels, 32, 32)
        assert results.isfinite().all()
        assert len({float(result.sum()) for result in results}) > 1


def test_augment_off_is_evaluation() -> None:
    config = TrainConfig(augment=False, auto_augment="rand-m9-n2")
    transform = train_transform(config, (3, 32, 32), RGB, RGB)
    assert transform.spec == eval_transform((3, 32, 32), RGB, RGB).spec


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"auto_augment": "nonsense"}, "auto_augment"),
        ({"pad_crop": -1}, "pad_crop"),
        ({"crop_scale": (0.5, 0.2)}, "crop_scale"),
        ({"hflip": 2.0}, "hflip"),
        ({"random_erasing": -0.1}, "random_erasing"),
        ({"color_jitter": -1.0}, "color_jitter"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_transform(TrainConfig(**settings), (3, 32, 32), RGB, RGB)  # type: ignore[arg-type]


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.sampled_from([1, 3]),
    pad=st.integers(0, 4),
    data=st.data(),
)
def test_batched_crops_equal_torchvisions(
    height: int, width: int, channels: int, pad: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, height, width, channels), dtype=np.uint8)
    draw = st.lists(st.integers(0, 2 * pad), min_size=3, max_size=3)
    rows, columns = np.array(data.draw(draw)), np.array(data.draw(draw))
    flips = np.array(data.draw(st.lists(st.booleans(), min_size=3, max_size=3)))
    result = crop_and_flip(pixels, pad, rows, columns, flips)
    for index in range(3):
        image = torch.from_numpy(pixels[index]).permute(2, 0, 1)
        image = functional.crop(functional.pad(image, [pad]), int(rows[index]), int(columns[index]), height, width)
        image = functional.hflip(image) if flips[index] else image
        assert np.array_equal(result[index], image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(("native", "channels"), [(1, 1), (3, 3), (1, 3)])
def test_batched_normalisation_is_the_same_arithmetic(native: int, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, native), dtype=np.uint8)
    # 8 / 0.9 rounds down to 8, so that nothing is resized either
    transform = eval_transform((channels, 8, 8), RGB, (0.2, 0.3, 0.4), crop_pct=0.9)
    assert transform.spec.batchable((native, 8, 8))
    assert not eval_transform((channels, 8, 8), RGB, (0.2, 0.3, 0.4), crop_pct=0.8).spec.batchable((native, 8, 8))
    assert torch.equal(transform.batch(pixels, None), torch.stack([transform(image) for image in pixels]))


@pytest.mark.parametrize(
    ("name", "changes", "size"),
    [
        ("crate_nano_patch4_32", {}, (3, 32, 32)),
        ("crate_nano_patch4_32", {"img_size": 64}, (3, 64, 64)),
        ("crate_nano_patch4_32", {"in_chans": 1}, (1, 32, 32)),
        ("vit_tiny_patch16_224", {"img_size": (96, 160)}, (3, 96, 160)),
        ("resnet18", {"in_chans": 1}, (1, 224, 224)),
    ],
)
def test_a_model_gets_images_of_the_size_and_channels_it_was_built_for(
    name: str, changes: dict[str, object], size: tuple[int, int, int]
) -> None:
    model = create_model(name, **changes).eval()
    found = model_input(model, native_size=(3, 8, 8))
    assert found["input_size"] == size
    assert model(torch.zeros(1, *size)).shape == (1, model.num_classes)
    assert model_input(model, image_size=48)["input_size"] == (size[0], 48, 48)


def test_a_model_that_says_nothing_gets_images_as_they_are() -> None:
    plain = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 2), torch.nn.Flatten())
    found = model_input(plain, native_size=(1, 8, 8))
    assert found["input_size"] == (1, 8, 8)
    assert found["crop_pct"] == 1.0
    assert model_input(plain)["input_size"] == (1, 224, 224)
