"""Overcomplete ISTA is two proximal steps on the lasso from zero."""

import pytest
import torch

from unrolled import theory
from unrolled.layers import OvercompleteISTA


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("learned", [True, False])
def test_codes_are_exactly_two_proximal_steps(decoupled, learned):
    layer = OvercompleteISTA(
        12, expansion=3, decoupled=decoupled, sparsity=0.4, learn_step_size=learned, learn_sparsity=learned
    ).double()
    x = torch.randn(2, 7, 12, dtype=torch.float64, requires_grad=True)
    d, eta, lam = (
        layer.dictionary,
        *(torch.as_tensor(s, dtype=torch.float64).item() for s in (layer.step_size, layer.sparsity)),
    )
    first = theory.proximal_step(torch.zeros(2, 7, 36).double(), x, d, eta, lam)
    second = theory.proximal_step(first, x, d, eta, lam)
    torch.testing.assert_close(layer.codes(x), second, rtol=1e-10, atol=1e-12)
    expected = second @ (layer.decoder if decoupled else d).mT
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-12)
    inputs = [x, *(p for p in (layer.dictionary, layer.decoder) if p is not None)]
    direction = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(layer(x), inputs, direction), torch.autograd.grad(expected, inputs, direction), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    assert (second == 0).any()


def test_the_objective_falls():
    layer = OvercompleteISTA(24).double()
    x = torch.randn(1, 30, 24).double()
    zero = torch.zeros(1, 30, 96).double()
    values = [
        float(theory.lasso(z, x, layer.dictionary, 0.1))
        for z in (zero, theory.proximal_step(zero, x, layer.dictionary, 0.1, 0.1), layer.codes(x))
    ]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("gradients", [True, False])
def test_autocast_stays_close(gradients):
    layer, x = OvercompleteISTA(32), torch.randn(2, 9, 32)
    with torch.set_grad_enabled(gradients), torch.autocast("cpu", torch.bfloat16):
        mixed = layer(x)
    torch.testing.assert_close(mixed.float(), layer(x), rtol=0.1, atol=0.1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("shape", [(1, 1, 7), (3, 13, 7), (5, 33), (0, 4, 7)])
def test_both_forms_equal_the_formula_in_single_and_half_precision(dtype, tolerance, shape):
    layer = OvercompleteISTA(shape[-1], expansion=3, learn_step_size=True, learn_sparsity=True)
    x, direction = torch.randn(shape), torch.randn(shape)

    def formula(x, d, decoder, eta, lam):
        first = torch.relu(eta * x @ d - eta * lam)
        return torch.relu(first + eta * (x - first @ d.mT) @ d - eta * lam) @ decoder.mT

    leaves = [t.detach().to(dtype).double().requires_grad_() for t in (x, *layer.parameters())]
    expected = formula(*leaves)
    gradients = torch.autograd.grad(expected, leaves, direction.double())
    layer, x = layer.to(dtype), x.to(dtype).requires_grad_()
    out = layer(x)
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    with torch.no_grad():
        torch.testing.assert_close(layer(x).double(), expected, rtol=tolerance, atol=tolerance)
    found = torch.autograd.grad(out, [x, *layer.parameters()], direction.to(dtype))
    for a, b in zip(found, gradients, strict=True):
        assert a.dtype == dtype
        assert float((a.double() - b).norm()) <= 4 * tolerance * max(float(b.norm()), 1e-3)


def test_bad_arguments_are_named():
    for arguments, name in (
        ({"expansion": 0}, "expansion"),
        ({"step_size": 0}, "step_size"),
        ({"sparsity": -1}, "spar"),
    ):
        with pytest.raises(ValueError, match=name):
            OvercompleteISTA(4, **arguments)
