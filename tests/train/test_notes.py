"""What a run says before its first step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from train_helpers import TINY

from unrolled.data import synthetic_images
from unrolled.train import TrainConfig, fit
from unrolled.train.run import Splits
from unrolled.train.schedule import learning_rate

Make = Callable[..., TrainConfig]


@pytest.mark.parametrize(
    ("size", "changes", "said"),
    [
        (32, {}, "images of 32 x 32 pixels are seen at 8 x 8; model='vit_nano_patch4_32' sees all of them"),
        (64, {}, "images of 64 x 64 pixels are seen at 8 x 8; model='vit_nano_patch4_32' sees 32 x 32"),
        (
            64,
            {"model": "vit_nano_patch4_32"},
            "images of 64 x 64 pixels are seen at 32 x 32; another model may see more of them",
        ),
        (32, {"image_size": 16}, "images of 32 x 32 pixels are seen at 16 x 16, as image_size=16 says"),
        (15, {}, None),
    ],
)
def test_images_seen_much_smaller_than_they_are_are_noted(
    config: Make, capsys: pytest.CaptureFixture[str], size: int, changes: dict[str, object], said: str | None
) -> None:
    train, val = (synthetic_images(16, size=size, classes=4, channels=1, seed=seed) for seed in (0, 1))
    plain = {"model_args": TINY, "augment": False, "batch_size": 8, "max_steps": 1, "quiet": False}
    fit(config(**{**plain, **changes}), data=Splits(train=train, val=val, test=None))
    printed = capsys.readouterr().err
    assert said in printed if said else "are seen at" not in printed


@pytest.mark.parametrize(("count", "said"), [(19, "3 of 19 images do not fill a batch of 8"), (16, None)])
def test_images_that_an_epoch_leaves_out_are_noted(
    config: Make, capsys: pytest.CaptureFixture[str], count: int, said: str | None
) -> None:
    train = synthetic_images(count, size=8, classes=4, channels=1, seed=0)
    fit(config(batch_size=8, max_steps=1, quiet=False), data=Splits(train=train, val=None, test=None))
    printed = capsys.readouterr().err
    assert said in printed if said else "do not fill" not in printed


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"epochs": 1, "warmup_epochs": 2},
            "of 8 steps is longer than the run of 4: the learning rate only rises, to 50% of its peak; "
            "give a smaller warmup_epochs",
        ),
        (
            {"steps": 3, "warmup_steps": 12},
            "of 12 steps is longer than the run of 3: the learning rate only rises, to 25% of its peak; "
            "give fewer warmup_steps",
        ),
        ({"steps": 3, "warmup_epochs": 2}, "give fewer warmup_steps"),
        ({"steps": 3, "warmup_steps": 3}, "of 3 steps is as long as the run: the learning rate only rises, to 100%"),
        ({"steps": 4, "warmup_steps": 3}, None),
        ({"steps": 12, "warmup_steps": 0}, None),
    ],
)
def test_a_warm_up_that_the_run_never_leaves_is_noted(
    config: Make, splits: Splits, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str | None
) -> None:
    result = fit(config(**changes, log_every=1, quiet=False), data=splits)
    printed = capsys.readouterr().err
    assert said in printed if said else "warm-up" not in printed
    rates = [record["lr"] for record in result.metrics if record["split"] == "train"]
    total, warmup = changes.get("steps", 4), changes.get("warmup_steps", 8)
    assert len(rates) == total
    assert rates == [learning_rate(step, peak=2e-3, warmup=warmup, total=total) for step in range(total)]


def test_a_finished_run_says_that_it_was(config: Make, splits: Splits, capsys: pytest.CaptureFixture[str]) -> None:
    fit(config(steps=2, quiet=True), data=splits)
    result = fit(config(steps=2, quiet=False, resume="auto"), data=splits)
    assert "note: the run was finished at step 2; nothing is left to train" in capsys.readouterr().err
    assert result.units_per_second == 0
