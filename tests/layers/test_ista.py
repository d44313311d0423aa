"""ISTA is exactly one proximal step, however it is evaluated, and its folded matrix is never stale."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unrolled import theory
from unrolled.layers import ISTA

SHAPES = [(1, 1, 5), (2, 3, 7), (3, 17, 16), (2, 65, 33)]


def published_form(layer: ISTA, x: torch.Tensor) -> torch.Tensor:
    """The slow twin: the three products of the published formula."""
    d = layer.dictionary
    reconstruction = F.linear(F.linear(x, d), d.mT)
    step = layer.step_size * (F.linear(x, d.mT) - reconstruction) - layer.step_size * layer.sparsity
    return torch.relu(x + step)


def folded_form(layer: ISTA, x: torch.Tensor) -> torch.Tensor:
    return torch.relu(F.linear(x, *layer._fold()))


def test_one_layer_is_one_proximal_gradient_step_derived_by_autograd():
    layer = ISTA(12, step_size=0.07, sparsity=0.3, dtype=torch.float64)
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    z = x.clone().requires_grad_()
    smooth = theory.lasso(z, x, layer.dictionary.detach(), sparsity=0.0).sum()
    (gradient,) = torch.autograd.grad(smooth, z)
    # the proximal operator of eta * lambda * |z|_1 on z >= 0 is a shifted ReLU
    derived = torch.relu(x - 0.07 * gradient - 0.07 * 0.3)
    torch.testing.assert_close(layer(x), derived, rtol=0, atol=1e-10)
    oracle = theory.proximal_step(x, x, layer.dictionary, 0.07, 0.3)
    torch.testing.assert_close(layer(x), oracle, rtol=0, atol=1e-10)


def test_the_step_descends_the_lasso_when_the_step_size_is_small_enough():
    layer = ISTA(16, step_size=0.05, sparsity=0.1, dtype=torch.float64).eval()
    x = torch.rand(4, 10, 16, dtype=torch.float64)
    after = theory.lasso(layer(x), x, layer.dictionary, 0.1)
    assert (after < theory.lasso(x, x, layer.dictionary, 0.1)).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5), (torch.bfloat16, 0.05)]
)
@pytest.mark.parametrize("form", ["two products", "folded", "chosen", "cached"])
def test_every_evaluation_agrees_with_the_published_three_products(shape, dtype, tolerance, form):
    layer = ISTA(shape[-1], learn_step_size=True, learn_sparsity=True, dtype=dtype)
    x = torch.randn(shape, dtype=dtype)
    exact = copy.deepcopy(layer).double()
    reference_in = x.double().clone().requires_grad_()
    reference = published_form(exact, reference_in)
    if form == "cached":
        with torch.no_grad():
            torch.testing.assert_close(layer.eval()(x).double(), reference.detach(), rtol=tolerance, atol=tolerance)
        return
    fast = {"two products": layer._two_products, "folded": lambda t: folded_form(layer, t), "chosen": layer}[form]
    fast_in = x.clone().requires_grad_()
    out = fast(fast_in)
    torch.testing.assert_close(out.double(), reference, rtol=tolerance, atol=tolerance)
    if dtype == torch.bfloat16:
        # near the threshold rounding flips single ReLUs; direction is what must survive
        weights = torch.ones_like(reference)
        out.backward(weights.to(dtype))
        reference.backward(weights)
        cosine = F.cosine_similarity(layer.dictionary.grad.double().flatten(), exact.dictionary.grad.flatten(), dim=0)
        assert cosine > 0.99
        return
    weights = torch.randn_like(reference)
    out.backward(weights.to(dtype))
    reference.backward(weights)
    torch.testing.assert_close(fast_in.grad.double(), reference_in.grad, rtol=tolerance, atol=tolerance)
    scale = float(exact.dictionary.grad.abs().max()) + 1
    for name, parameter in layer.named_parameters():
        expected = exact.get_parameter(name).grad
        torch.testing.assert_close(parameter.grad.double(), expected, rtol=tolerance, atol=tolerance * scale)


@pytest.fixture
def warm() -> tuple[ISTA, torch.Tensor]:
    layer = ISTA(8, learn_step_size=True).eval()
    x = torch.randn(3, 5, 8)
    with torch.no_grad():
        layer(x)
    assert layer._folded is not None
    return layer, x


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.dictionary.mul_(1.5),
        lambda m: m.step_size.mul_(2),
        lambda m: setattr(m, "sparsity", 0.9),
        lambda m: setattr(m, "dictionary", nn.Parameter(torch.randn(8, 8))),
        lambda m: m.load_state_dict({**m.state_dict(), "dictionary": torch.randn(8, 8)}),
        lambda m: m.load_state_dict({**m.state_dict(), "dictionary": torch.randn(8, 8)}, assign=True),
        lambda m: m.reset_parameters(),
        lambda m: m.half().float(),
        lambda m: setattr(m.dictionary, "data", torch.randn(8, 8)),
        lambda m: (m.dictionary.data.mul_(3), m.refold()),
        lambda m: (m.train(), m.dictionary.data.mul_(3), m.eval()),
    ],
)
def test_the_folded_matrix_follows_every_change(warm, change):
    layer, x = warm
    with torch.no_grad():
        before = layer(x)
        change(layer)
        after = layer(x)
        torch.testing.assert_close(after, published_form(layer, x), rtol=1e-4, atol=1e-5)
    assert not torch.equal(before, after) or change.__code__.co_names[:1] == ("half",)


def test_an_optimiser_step_between_two_evaluations_is_seen(warm):
    layer, x = warm
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.5)
    layer(x).sum().backward()
    optimiser.step()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), published_form(layer, x), rtol=1e-4, atol=1e-5)


def test_the_folded_matrix_is_reused_and_never_travels(warm):
    layer, x = warm
    kept = layer._folded
    with torch.no_grad():
        layer(x)
    assert layer._folded is kept
    assert copy.deepcopy(layer)._folded is None
    assert all("fold" not in key for key in layer.state_dict())


def test_dtype_changes_and_autocast_get_their_own_matrix(warm):
    layer, x = warm
    with torch.no_grad():
        expected = published_form(copy.deepcopy(layer).double(), x.double())
        assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
        torch.testing.assert_close(layer.double()(x.double()), expected, rtol=0.02, atol=0.02)
        layer.float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        assert layer(x).dtype == torch.float32


def test_gradients_flow_in_eval_mode(warm):
    layer, x = warm
    layer(x).sum().backward()
    assert layer.dictionary.grad is not None
    layer.requires_grad_(False)
    leaf = x.clone().requires_grad_()
    layer(leaf).sum().backward()
    assert leaf.grad.abs().sum() > 0


def test_a_model_made_in_inference_mode_works():
    with torch.inference_mode():
        layer = ISTA(4).eval()
        assert torch.isfinite(layer(torch.randn(2, 4))).all()


@pytest.mark.parametrize(("arguments", "name"), [({"step_size": 0}, "step_size"), ({"sparsity": -1}, "sparsity")])
def test_bad_arguments_are_named(arguments, name):
    with pytest.raises(ValueError, match=name):
        ISTA(4, **arguments)


def test_large_tokens_in_float16_do_not_overflow_on_the_way():
    layer = ISTA(32)
    x = 3e4 * torch.randn(5, 32).clamp(-1, 1)
    with torch.no_grad():
        expected = layer(x)
        found = layer.half()(x.half()).float()  # in training: fewer tokens than features
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=100)
