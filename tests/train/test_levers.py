"""What makes short trainings shorter: alternating mirrors, a whitened stem, dropped patches, small images first."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from train_helpers import EVERYTHING, assert_resumes_after_a_crash

from unrolled.data import synthetic_images, train_loader, train_transform
from unrolled.data.sources import ArraySource
from unrolled.models import create_model
from unrolled.train import TrainConfig, fit
from unrolled.train.run import Splits
from unrolled.train.whitening import whiten_stem, whitening_filters

HALF = (0.5, 0.5, 0.5)
NANO = {"depth": 1, "dim": 16, "heads": 2}


@pytest.mark.parametrize(
    "settings",
    [{"pad_crop": 0}, {"pad_crop": 0, "color_jitter": 1e-9}, {"augment": False}],
    ids=["whole batches", "one by one", "kept tensors"],
)
@pytest.mark.parametrize("start", [0, 5])
def test_alternating_mirrors_show_both_sides_in_two_passes(settings: dict[str, object], start: int) -> None:
    source = synthetic_images(24, size=8, classes=3, seed=1)
    transform = train_transform(TrainConfig(hflip=0.0, **settings), (3, 8, 8), HALF, HALF)  # type: ignore[arg-type]
    loader = train_loader(source, transform, batch_size=4, seed=3, start_step=start, alternate_flip=True)
    first, second = ({}, {})
    for shown in (first, second):
        for batch in islice(loader, 6):
            shown |= dict(zip(batch.indices.tolist(), batch.images, strict=True))
    if start == 0:
        assert first.keys() == second.keys() == set(range(24))
    both = first.keys() & second.keys()
    assert len(both) > 12
    plain = {i: transform(source.load(i)[0]) for i in both}
    mirrored = [torch.allclose(first[i], plain[i].flip(-1), atol=1e-4) for i in both]
    assert any(mirrored)
    assert not all(mirrored)
    if start == 0:
        assert all(torch.allclose(first[i], second[i].flip(-1), atol=1e-4) for i in both)


def test_a_run_with_every_lever_resumes_to_the_same_bits(config, splits, tmp_path) -> None:
    levers = {"alternate_flip": True, "whiten_stem": True, "small_size": 4, "pad_crop": 1}
    levers |= {"model": "crate_nano_patch2_8", "model_args": {**NANO, "stem": "conv", "patch_drop_rate": 0.25}}
    straight = config(**{**EVERYTHING, **levers}, out=tmp_path / "straight")
    broken = config(**{**EVERYTHING, **levers}, out=tmp_path / "broken", resume="auto")
    assert_resumes_after_a_crash(straight, broken, 8, splits)


def test_whitening_filters_whiten() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(5, 5, generator=generator).double()
    covariance = mixing @ mixing.T
    rows = whitening_filters(covariance, 5)
    torch.testing.assert_close(rows @ covariance @ rows.T, torch.eye(5).double(), rtol=1e-8, atol=1e-8)
    largest = torch.linalg.eigh(covariance).eigenvectors[:, -1]
    assert abs(F.cosine_similarity(rows[0], largest, 0)) > 1 - 1e-10
    assert torch.equal(whitening_filters(covariance, 8), torch.cat([rows, -rows[:3]]))
    assert len(whitening_filters(covariance, 99)) == 10


@pytest.mark.parametrize("stem", ["conv", "linear"])
def test_a_whitened_stem_has_uncorrelated_filters_of_the_variance_it_had(stem: str) -> None:
    torch.manual_seed(0)
    model = create_model("crate_nano_patch4_32", stem=stem, **NANO)
    images = torch.randn(50, 3, 32, 32).cumsum(-1).cumsum(-2) / 20 + 3
    convolution = next(module for module in model.patch_embed.modules() if isinstance(module, torch.nn.Conv2d))
    before = convolution.weight.detach().clone()
    whiten_stem(model, images.split(7))
    patches = F.unfold(images, convolution.kernel_size, stride=convolution.stride).movedim(1, 2).flatten(0, 1).double()

    def outputs(weight: torch.Tensor) -> torch.Tensor:
        return (patches - patches.mean(0)) @ weight.flatten(1).double().T

    whitened, random = outputs(convolution.weight.detach()), outputs(before)
    torch.testing.assert_close(whitened.var(0).mean(), random.var(0).mean(), rtol=1e-4, atol=0)
    independent = min(whitened.shape[1], patches.shape[1], 6)  # the first directions are far from the floor
    correlation = torch.corrcoef(whitened[:, :independent].T)
    torch.testing.assert_close(correlation, torch.eye(independent).double(), rtol=0, atol=1e-3)


def test_dropped_patches_are_left_out_in_training_alone() -> None:
    torch.manual_seed(0)
    model = create_model("crate_nano_patch4_32", patch_drop_rate=0.5, **NANO)
    whole = create_model("crate_nano_patch4_32", **NANO)
    whole.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(images), whole.eval()(images))
    seen: list[int] = []
    model.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[1]))
    model.train()(images)
    model.eval()(images)
    assert seen == [1 + 32, 1 + 64]


def test_a_stem_is_whitened_by_images_of_all_classes(config, tmp_path, monkeypatch) -> None:
    import unrolled.train.tasks.classify as task

    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    source = ArraySource(pixels, np.arange(40) // 10, classes=list("abcd"), title="four")
    seen: list[int] = []
    monkeypatch.setattr(task, "IMAGES", 8)
    monkeypatch.setattr(task, "whiten_stem", lambda model, batches: seen.extend(len(batch) for batch in batches))
    chosen = []
    drawn = task.drawn_evenly
    monkeypatch.setattr(task, "drawn_evenly", lambda *given: chosen.append(drawn(*given)) or chosen[-1])
    crate = {"model": "crate_nano_patch2_8", "model_args": {**NANO, "stem": "conv"}, "max_steps": 1}
    fit(config(**crate, whiten_stem=True, pad_crop=1, val_fraction=0.0), data=Splits(train=source, val=None, test=None))
    assert sum(seen) == 8
    assert {int(chosen[0].labels[i]) for i in range(8)} == {0, 1, 2, 3}


def test_small_images_come_first(config, splits, monkeypatch) -> None:
    sides: list[int] = []
    model = create_model("crate_nano_patch2_8", **NANO, num_classes=4)
    model.register_forward_pre_hook(
        lambda module, inputs: sides.append(inputs[0].shape[-1]) if module.training else None
    )
    result = fit(config(model_args=NANO, small_size=4, small_share=0.25, pad_crop=1), data=splits, model=model)
    assert sides == [4] * 3 + [8] * 9
    assert result.test is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alternate_flip": True, "augment": False}, "alternate_flip: nothing is mirrored with augment off"),
        ({"small_share": 1.5}, "small_share=1.5 must lie between 0 and 1"),
        ({"small_size": 0}, "small_size=0: must be a number of pixels"),
        ({"whiten_stem": True, "weights": "crate_nano_patch4_32.cifar10"}, "whiten_stem: weights bring a stem"),
    ],
)
def test_settings_that_do_not_go_together_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings).check()  # type: ignore[arg-type]


def test_models_that_cannot_are_named(config, splits) -> None:
    with pytest.raises(ValueError, match="small_size=8: is no smaller than the images, 8 x 8"):
        fit(config(small_size=8), data=splits)
    with pytest.raises(ValueError, match="small_size=3: the model does not take such images"):
        fit(config(small_size=3), data=splits)
    with pytest.raises(ValueError, match="whiten_stem: this stem normalises every patch first"):
        fit(
            config(whiten_stem=True, model="crate_nano_patch2_8", model_args={**NANO, "stem": "layernorm"}), data=splits
        )
    with pytest.raises(ValueError, match="patch_drop_rate=1: must be at least 0 and below 1"):
        create_model("crate_nano_patch4_32", patch_drop_rate=1)
    with pytest.raises(ValueError, match=r"patch_drop_rate: attention=.cbsa. pools over the whole grid"):
        create_model("crate_nano_patch4_32", attention="cbsa", patch_drop_rate=0.5)
    with pytest.raises(ValueError, match="patch_drop_rate: a masked autoencoder"):
        create_model("crate_mae_nano_patch4_32", patch_drop_rate=0.5)


def test_large_images_are_whitened_a_few_at_a_time_and_flat_ones_refused() -> None:
    images = torch.randn(6, 3, 64, 64)
    filters = []
    for step in (1, 6):
        torch.manual_seed(0)
        model = create_model("crate_nano_patch4_32", stem="linear", image_size=64, **NANO)
        whiten_stem(model, images.split(step))
        filters.append(next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d)).weight.detach())
    torch.testing.assert_close(*filters, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="whiten_stem: the training images are all of one colour"):
        whiten_stem(create_model("crate_nano_patch4_32", stem="conv", **NANO), [torch.full((4, 3, 32, 32), 0.7)])


def test_small_images_keep_their_shape(config) -> None:
    rng = np.random.default_rng(0)
    train, test = (
        ArraySource(rng.integers(0, 256, (24, 8, 16, 1), np.uint8), np.arange(24) % 4, classes=list("abcd"), title=name)
        for name in ("train", "test")
    )
    model = create_model("crate_nano_patch2_8", **NANO, num_classes=4, channels=1, image_size=(8, 16))
    sides: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(
        lambda module, inputs: sides.append(tuple(inputs[0].shape[-2:])) if module.training else None
    )
    settings = {"small_size": 4, "small_share": 0.5, "pad_crop": 1, "max_steps": 4, "val_fraction": 0.0, "epochs": 2}
    fit(config(**settings), data=Splits(train=train, val=None, test=test), model=model)
    assert sides == [(4, 8)] * 2 + [(8, 16)] * 2


def test_the_share_of_small_images_is_a_whole_number_of_steps(config, splits) -> None:
    sides: list[int] = []
    model = create_model("crate_nano_patch2_8", **NANO, num_classes=4)
    model.register_forward_pre_hook(
        lambda module, inputs: sides.append(inputs[0].shape[-1]) if module.training else None
    )
    settings = {"small_size": 4, "small_share": 0.55, "pad_crop": 1, "epochs": 100, "batch_size": len(splits.train)}
    fit(config(model_args=NANO, **settings), data=splits, model=model)
    assert len(sides) == 100
    assert sides.count(4) == 55
