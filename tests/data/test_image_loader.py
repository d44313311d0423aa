from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from unrolled.data.images import (
    Batch,
    ImageSource,
    eval_loader,
    eval_transform,
    open_images,
    steps_per_epoch,
    synthetic_images,
    train_loader,
    train_transform,
)
from unrolled.data.loader import _gatherer
from unrolled.data.sources import ArraySource, Subset
from unrolled.data.transforms import ImageTransform
from unrolled.errors import TrainingStopped
from unrolled.train.config import TrainConfig

HALF = (0.5, 0.5, 0.5)


def augmented(**settings: object) -> ImageTransform:
    return train_transform(TrainConfig(**settings), (3, 12, 12), HALF, HALF)  # type: ignore[arg-type]


def evaluation(size: int = 12) -> ImageTransform:
    return eval_transform((3, size, size), HALF, HALF)


# one transform for each of the loader's three ways
WAYS = {
    "_Pixels": augmented(pad_crop=2),
    "_Cached": evaluation(16),
    "_OneByOne": augmented(auto_augment="rand-m9-n2-mstd0.5", random_erasing=0.5),
}


@pytest.fixture
def source() -> ArraySource:
    return synthetic_images(22, size=12, classes=3, seed=1)


def same(one: Batch, other: Batch) -> bool:
    keys = ("images", "labels", "indices")
    return all(torch.equal(getattr(one, key), getattr(other, key)) for key in keys) and one.skipped == other.skipped


@pytest.mark.parametrize("way", WAYS)
def test_resuming_anywhere_gives_the_batches_of_an_uninterrupted_run(source: ArraySource, way: str) -> None:
    transform = WAYS[way]
    assert type(_gatherer(source, transform, 0)).__name__ == way
    whole = list(train_loader(source, transform, batch_size=4, seed=7, steps=13))
    assert [len(batch) for batch in whole] == [4] * 13
    for start in (0, 1, 5, 6, 12):
        resumed = list(train_loader(source, transform, batch_size=4, seed=7, start_step=start, steps=13 - start))
        assert all(same(a, b) for a, b in zip(whole[start:], resumed, strict=True))
    other = next(train_loader(source, transform, batch_size=4, seed=8))
    assert not torch.equal(whole[0].indices, other.indices)


def test_workers_change_nothing(source: ArraySource) -> None:
    transform = WAYS["_OneByOne"]
    alone = list(train_loader(source, transform, batch_size=4, seed=7, start_step=3, steps=7))
    helped = list(train_loader(source, transform, batch_size=4, seed=7, start_step=3, steps=7, workers=2))
    endless = train_loader(source, transform, batch_size=4, seed=7, start_step=3, workers=1)
    assert all(same(a, b) for a, b in zip(alone, helped, strict=True))
    assert all(same(a, b) for a, b in zip(alone[:3], islice(endless, 3), strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_processes_share_one_global_batch(source: ArraySource, way: str) -> None:
    transform = WAYS[way]
    for step, batch in enumerate(train_loader(source, transform, batch_size=4, seed=7, steps=7)):
        for world_size in (2, 4):
            parts = [
                next(
                    train_loader(
                        source,
                        transform,
                        batch_size=4,
                        seed=7,
                        start_step=step,
                        rank=rank,
                        world_size=world_size,
                    )
                )
                for rank in range(world_size)
            ]
            for rank, part in enumerate(parts):
                assert torch.equal(part.indices, batch.indices[rank::world_size])
                assert torch.equal(part.images, batch.images[rank::world_size])
                assert torch.equal(part.labels, batch.labels[rank::world_size])


def test_an_epoch_shows_no_image_twice_and_the_next_has_another_order(source: ArraySource) -> None:
    assert steps_per_epoch(source, 4) == 5
    batches = list(train_loader(source, evaluation(), batch_size=4, seed=0, steps=10))
    epochs = [torch.cat([batch.indices for batch in batches[at : at + 5]]).tolist() for at in (0, 5)]
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    assert epochs[0] != epochs[1]
    for batch in batches:
        assert source.labels is not None
        assert batch.labels.tolist() == source.labels[batch.indices.numpy()].tolist()


@pytest.mark.parametrize("way", WAYS)
def test_augmentation_differs_between_epochs_but_not_between_batch_sizes(source: ArraySource, way: str) -> None:
    transform = WAYS[way]

    def by_index(batch_size: int, epoch: int) -> dict[int, torch.Tensor]:
        per_epoch = len(source) // batch_size
        loader = train_loader(
            source, transform, batch_size=batch_size, seed=7, start_step=epoch * per_epoch, steps=per_epoch
        )
        return {int(i): image for batch in loader for i, image in zip(batch.indices, batch.images, strict=True)}

    small, large, later = by_index(2, 0), by_index(11, 0), by_index(2, 1)
    assert all(torch.equal(small[index], large[index]) for index in small)
    changed = [not torch.equal(small[index], later[index]) for index in small]
    assert any(changed) == transform.spec.augment


@pytest.mark.parametrize("transform", [augmented(pad_crop=8), augmented()])
def test_images_of_a_batch_are_augmented_independently(source: ArraySource, transform: ImageTransform) -> None:
    alike = ArraySource(source.take(np.zeros(20, int))[0], np.zeros(20, int), classes=["x"], title="one picture")
    batch = next(train_loader(alike, transform, batch_size=20, seed=0))
    assert len(batch.images.flatten(1).unique(dim=0)) > 10


def test_the_callers_generators_are_left_alone(source: ArraySource) -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    def seed() -> None:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)

    seed()
    expected = draws()
    for workers in (0, 1):
        for transform in WAYS.values():
            seed()
            list(train_loader(source, transform, batch_size=4, seed=7, steps=3, workers=workers))
            assert draws() == expected


def test_the_callers_generators_change_nothing(source: ArraySource) -> None:
    batches = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        batches.append(next(train_loader(source, WAYS["_OneByOne"], batch_size=8, seed=7)))
    assert same(*batches)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [12, 16, 20])
def test_evaluation_sees_every_image_once_in_order(source: ArraySource, workers: int, size: int) -> None:
    loader = eval_loader(source, evaluation(size), batch_size=5, workers=workers)
    batches = list(loader)
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 2]
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(22))
    transform = evaluation(size)
    images = torch.cat([batch.images for batch in batches])
    assert torch.equal(images, torch.stack([transform(source.load(index)[0]) for index in range(22)]))


def test_evaluation_by_several_processes_covers_everything_once(source: ArraySource) -> None:
    shares = [list(eval_loader(source, evaluation(), batch_size=7, rank=rank, world_size=3)) for rank in range(3)]
    assert {len(share) for share in shares} == {4}
    seen = [int(index) for share in shares for batch in share for index in batch.indices]
    assert sorted(seen) == list(range(22))
    assert shares[2][-1].images.shape == (0, 3, 12, 12)


def test_training_on_digits_costs_almost_nothing() -> None:
    import time

    train = open_images("digits", "train")
    transform = eval_transform((1, 8, 8), (0.5,), (0.5,))
    started = time.perf_counter()
    count = sum(len(batch) for batch in train_loader(train, transform, batch_size=128, seed=0, steps=60 * 11))
    assert count == 84_480
    assert time.perf_counter() - started < 1.0


class _Counting(ImageSource):
    """Two of its images are bad."""

    classes = ("a", "b")  # type: ignore[assignment]
    bad = (3, 4)
    label = 1

    def __len__(self) -> int:
        return 6

    def load(self, index: int) -> tuple[np.ndarray, int]:
        from unrolled.data.images import BadImage

        if index in self.bad:
            raise BadImage("is a fake")
        return np.full((12, 12, 3), index, np.uint8), self.label

    def name(self, index: int) -> str:
        return f"fake-{index}"


def broken(folder: Path) -> ImageSource:
    """An image folder in which one file is cut in the middle."""
    victim = folder / "train" / "b" / "04.png"
    victim.write_bytes(victim.read_bytes()[:100])
    return open_images("folder", "train", data_dir=folder)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_stops_training_by_name(image_folder: Path, workers: int) -> None:
    batches = train_loader(broken(image_folder), augmented(), batch_size=3, seed=0, steps=3, workers=workers)
    with pytest.raises(TrainingStopped, match=r"batch \d: unusable image .*b/04\.png \(index 4\)") as caught:
        list(batches)
    assert "\n" not in str(caught.value)
    assert "skip" in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_is_skipped_and_named(image_folder: Path, workers: int) -> None:
    source = broken(image_folder)
    batches = list(train_loader(source, augmented(), batch_size=3, seed=0, steps=6, workers=workers, on_error="skip"))
    assert sum(len(batch) for batch in batches) == 16
    named = [name for batch in batches for name in batch.skipped]
    assert len(named) == 2
    assert all("04.png (index 4): " in name for name in named)
    assert all(4 not in batch.indices for batch in batches)
    assert all(len(b.images) == len(b.labels) == len(b.indices) for b in batches)
    evaluated = list(eval_loader(source, evaluation(), batch_size=9, on_error="skip"))
    assert (len(evaluated[0]), len(evaluated[0].skipped)) == (8, 1)


def test_images_without_a_use_are_found_in_memory_too() -> None:
    pixels = np.full((8, 12, 12, 3), 0.25, np.float32)
    pixels[5, 3, 3] = np.nan
    source = ArraySource(pixels, np.zeros(8, int), classes=["x"], title="mine")
    for transform in (evaluation(), evaluation(16), augmented(pad_crop=1), augmented()):
        with pytest.raises(TrainingStopped, match=r"mine\[5\] \(index 5\): has NaN"):
            list(train_loader(source, transform, batch_size=4, seed=0, steps=2))
        for _ in range(2):  # the second time from the cache
            batches = list(eval_loader(source, transform, batch_size=4, on_error="skip"))
            assert [len(batch) for batch in batches] == [4, 3]
            assert batches[1].indices.tolist() == [4, 6, 7]
            assert len(batches[1].skipped) == 1


def test_a_batch_of_bad_images_only_stops_training_and_is_empty_in_evaluation() -> None:
    source = Subset(_Counting(), np.array([3, 4]))
    with pytest.raises(TrainingStopped, match=r"none of its 2 images can be used; the first is fake-\d"):
        next(train_loader(source, augmented(), batch_size=2, seed=0, on_error="skip"))
    batch = next(eval_loader(source, evaluation(), batch_size=2, on_error="skip"))
    assert batch.images.shape == (0, 3, 12, 12)
    assert [name.split()[0] for name in batch.skipped] == ["fake-3", "fake-4"]


@pytest.mark.parametrize("workers", [0, 1])
def test_labels_outside_the_classes_are_named(workers: int) -> None:
    source = _Counting()
    source.label = 2
    with pytest.raises(ValueError, match="label 2 of fake-0 is outside the 2 classes"):
        list(eval_loader(source, evaluation(), batch_size=2, workers=workers))


def test_arguments_out_of_range_are_named_before_anything_is_loaded(source: ArraySource) -> None:
    def start(**changes: int | str) -> Iterator[Batch]:
        return train_loader(source, evaluation(), **{"batch_size": 4, "seed": 0, **changes})  # type: ignore[arg-type]

    with pytest.raises(ValueError, match=r"batch_size: 23 is more than the 22 images.*use at most 22"):
        start(batch_size=23)
    with pytest.raises(ValueError, match="shared evenly"):
        start(batch_size=4, world_size=3)
    with pytest.raises(ValueError, match="rank"):
        start(rank=1)
    with pytest.raises(ValueError, match="start_step"):
        start(start_step=-1)
    with pytest.raises(ValueError, match="seed"):
        start(seed=-1)
    with pytest.raises(ValueError, match="on_error"):
        start(on_error="ignore")
    with pytest.raises(ValueError, match="no images"):
        eval_loader(Subset(source, np.zeros(0)), evaluation(), batch_size=2)


def test_any_callable_is_a_transform(source: ArraySource) -> None:
    batch = next(train_loader(source, lambda picture: torch.rand(2), batch_size=4, seed=0))
    again = next(train_loader(source, lambda picture: torch.rand(2), batch_size=4, seed=0))
    assert batch.images.shape == (4, 2)
    assert same(batch, again)
