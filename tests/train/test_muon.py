from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from train_helpers import TINY

from unrolled.models import create_model
from unrolled.models.sequence import LanguageModel
from unrolled.models.sequence_config import LanguageConfig
from unrolled.train import TrainConfig
from unrolled.train.muon import COEFFICIENTS, Muon, layer_matrices, orthogonalise
from unrolled.train.optim import build_optimizer

SHAPES = [(5, 3), (3, 5), (4, 4), (7, 1), (4, 4), (9, 2)]


def one_matrix(matrix: torch.Tensor) -> torch.Tensor:
    """The obviously right twin: one matrix, float64, by its singular values."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.norm()
    for a, b, c in COEFFICIENTS:
        s = a * s + b * s**3 + c * s**5
    return u * s @ vh


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_a_stack_of_matrices_is_each_of_them_orthogonalised(dtype, scale):
    torch.manual_seed(0)
    matrices = [(torch.randn(shape, dtype=torch.float64) * scale).to(dtype) for shape in SHAPES]
    factors = orthogonalise(matrices)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2}[dtype]
    for matrix, factor in zip(matrices, factors, strict=True):
        assert factor.dtype == dtype
        assert factor.shape == matrix.shape
        torch.testing.assert_close(factor.double(), one_matrix(matrix.double() / scale), rtol=0, atol=tolerance)


def test_singular_values_become_one_and_zero_stays_zero(monkeypatch):
    torch.manual_seed(0)
    matrices = [torch.randn(12, 40), torch.zeros(12, 40), torch.randn(40, 12)]
    first, zero, last = orthogonalise(matrices)
    for factor in (first, last):
        assert (torch.linalg.svdvals(factor) - 1).abs().max() < 0.033
    assert zero.abs().max() == 0
    monkeypatch.setattr("unrolled.train.muon.STACKED", 1)  # stacks of one
    for apart, together in zip(orthogonalise(matrices), (first, zero, last), strict=True):
        torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-6)


def twin_step(parameters, gradients, memory, *, lr, decay, momentum):
    """Muon as its equations say, a matrix at a time; everything in float64."""
    for index, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        memory[index] = momentum * memory.get(index, 0) + (1 - momentum) * gradient.double()
        update = one_matrix((1 - momentum) * gradient.double() + momentum * memory[index])
        rows, columns = parameter.shape
        parameter.mul_(1 - lr * decay).sub_(lr * 0.2 * max(rows, columns) ** 0.5 * update)


def test_steps_are_those_of_the_twin_and_of_adamw():
    torch.manual_seed(0)
    matrices = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    others = [nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(4))]
    twins, adamw = [m.detach().double() for m in matrices], copy.deepcopy(others)
    settings = {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.9)}
    optimizer = Muon([{"params": matrices, "muon": True}, {"params": others}], momentum=0.9, **settings)
    reference, memory = torch.optim.AdamW(adamw, **settings), {}
    for step in range(4):
        for parameter in (*matrices, *others):
            parameter.grad = torch.randn_like(parameter)
        for parameter, own in zip(adamw, others, strict=True):
            parameter.grad = own.grad.clone()
        for group in (*optimizer.param_groups, *reference.param_groups):  # as the schedule does
            group["lr"] = 0.01 / (1 + step)
        twin_step(twins, [m.grad for m in matrices], memory, lr=0.01 / (1 + step), decay=0.1, momentum=0.9)
        optimizer.step()
        reference.step()
    for matrix, twin in zip(matrices, twins, strict=True):
        torch.testing.assert_close(matrix.detach().double(), twin, rtol=0, atol=1e-5)
    for own, other in zip(others, adamw, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-6)


def test_parameters_without_a_gradient_stay_and_a_closure_is_evaluated():
    still, moving = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.eye(2))
    optimizer = Muon([{"params": [still, moving], "muon": True}], lr=0.1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = moving.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 2
    assert torch.equal(still, torch.ones(2, 2))
    assert not torch.equal(moving, torch.eye(2))


def test_a_vector_is_no_matrix():
    with pytest.raises(ValueError, match=r"groups.*\(3,\)"):
        Muon([{"params": [nn.Parameter(torch.ones(3))], "muon": True}], lr=0.1)


@pytest.mark.parametrize(
    "name",
    [
        "crate_nano_patch2_8",
        "vit_nano_patch4_32",
        "crate_alpha_nano_patch4_32",
        "cbt_nano_patch4_32",
        "tost_nano_patch4_32",
        "crate_mae_nano_patch4_32",
        "vit_mae_nano_patch4_32",
    ],
)
def test_matrices_of_the_layers_go_by_muon_and_nothing_else(name):
    model = create_model(name, depth=1, **({"decoder_depth": 1} if "mae" in name else {}))
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    groups = build_optimizer(model, TrainConfig(optimizer="muon", weight_decay=0.3, betas=(0.7, 0.8))).param_groups
    by_muon = {names[id(p)] for group in groups if group["muon"] for p in group["params"]}
    in_layers = {k for k, p in model.named_parameters() if "blocks." in k and p.ndim == 2}
    assert by_muon == in_layers
    assert by_muon
    assert sorted(names[id(p)] for group in groups for p in group["params"]) == sorted(
        k for k, p in model.named_parameters() if p.requires_grad
    )
    assert all(group["betas"] == (0.7, 0.8) for group in groups)
    kept = {names[id(p)] for group in groups if not group["weight_decay"] for p in group["params"]}
    assert "cls_token" in kept
    assert "blocks.0.norm1.weight" in kept


def test_tables_embeddings_and_heads_of_language_models_go_by_adamw():
    config = LanguageConfig(vocab_size=11, layers=("mesanet", "tssa"), dim=16, heads=2, max_length=8)
    names = layer_matrices(LanguageModel(config))
    assert all(name.startswith("blocks.") for name in names)
    assert not any("ridge" in name or "embed" in name for name in names)


def test_a_model_without_layers_is_refused():
    with pytest.raises(ValueError, match=r"optimizer='muon'.*'adamw'"):
        build_optimizer(nn.Linear(3, 2), TrainConfig(optimizer="muon"))


def test_frozen_matrices_are_left_out():
    model = create_model("vit_nano_patch2_8", **TINY)
    model.blocks[0].requires_grad_(False)
    groups = build_optimizer(model, TrainConfig(optimizer="muon")).param_groups
    assert all(parameter.requires_grad for group in groups for parameter in group["params"])
