"""Evaluation mode for a while."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unrolled.modes import evaluating


def test_every_module_gets_its_own_mode_back_also_after_an_error() -> None:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)).train()
    model[1].eval()  # frozen statistics
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    with pytest.raises(ZeroDivisionError), evaluating(model):
        1 / 0  # noqa: B018
    assert [module.training for module in model.modules()] == [True, True, False]


def test_a_validation_in_training_leaves_frozen_parts_frozen() -> None:
    from unrolled.data import Batch
    from unrolled.train import evaluate

    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4)).train()
    model[1].eval()
    batch = Batch(torch.randn(3, 1, 2, 2), torch.tensor([0, 1, 2]), torch.arange(3), [])
    evaluate(model, [batch])
    assert model.training
    assert not model[1].training
