"""Kept training: what was done is not done again, and an interruption changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unrolled.studies.training import Checkpoint, train_resumable, warmup_cosine


class Toy:
    """A linear map fitted to another; the batch depends on the step alone."""

    def __init__(self, *, fails_at: int | None = None, lr: float = 0.1) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(3, 2)
        self.fails_at = fails_at
        self.lr = lr
        self.steps: list[int] = []

    def loss_at(self, step: int) -> Tensor:
        if step == self.fails_at:
            raise KeyboardInterrupt
        self.steps.append(step)
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        return (self.model(x) - x[:, :2]).square().mean()

    def train(self, keep: Path | None, steps: int = 10) -> list[dict[str, Any]]:
        return train_resumable(
            self.model,
            torch.optim.AdamW(self.model.parameters(), lr=self.lr),
            self.loss_at,
            steps=steps,
            keep=None if keep is None else Checkpoint(keep, f"lr {self.lr}"),
            rate=warmup_cosine(self.lr, warmup=3, steps=10),
            clip_norm=1.0,
            look=lambda step: {"weight": float(self.model.weight.detach().sum())},
            look_at=(0, 4, 10),
            every=3,
        )


def test_an_interrupted_training_ends_with_the_same_weights_and_log(tmp_path: Path) -> None:
    whole = Toy()
    log = whole.train(None)
    stopped = Toy(fails_at=8)
    with pytest.raises(KeyboardInterrupt):
        stopped.train(tmp_path / "toy.pt")
    again = Toy()
    assert again.train(tmp_path / "toy.pt") == log
    assert again.steps == list(range(6, 10))
    assert torch.equal(again.model.weight, whole.model.weight)
    assert [entry["step"] for entry in log] == [0, 4, 10]


def test_a_finished_training_is_loaded_and_another_setting_trains_anew(tmp_path: Path) -> None:
    first, second, other = Toy(), Toy(), Toy(lr=0.2)
    first.train(tmp_path / "toy.pt")
    second.train(tmp_path / "toy.pt")
    assert second.steps == []
    assert torch.equal(first.model.weight, second.model.weight)
    other.train(tmp_path / "toy.pt")
    assert len(other.steps) == 10


def test_a_file_that_was_cut_short_is_not_used(tmp_path: Path) -> None:
    keep = tmp_path / "toy.pt"
    Toy().train(keep)
    keep.write_bytes(keep.read_bytes()[:100])
    again = Toy()
    again.train(keep)
    assert len(again.steps) == 10


def test_the_rate_rises_and_falls() -> None:
    rate = warmup_cosine(1.0, warmup=10, steps=110, floor=0.1)
    assert rate(0) == pytest.approx(0.1)
    assert rate(9) == 1.0
    assert rate(60) == pytest.approx(0.55)
    assert rate(110) == pytest.approx(0.1)
