"""TSSA is the gradient of the variational rate; its causal form sees no future and can be run token by token."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from unrolled import theory
from unrolled.layers import TSSA, CausalTSSA


def slow(layer, z):
    """The formula read aloud, heads one by one."""
    heads = [z @ basis for basis in layer.bases()]
    logits = [(F.normalize(w, dim=-2) ** 2).sum(-1) * t for w, t in zip(heads, layer.temperature, strict=True)]
    pi = torch.stack(logits, 1).softmax(1)
    out = []
    for k, w in enumerate(heads):
        moment = (pi[:, k, :, None] * w**2).sum(1, keepdim=True) / pi[:, k].sum(1)[:, None, None]
        out.append(-pi[:, k, :, None] * w / (1 + moment))
    return layer.merge(torch.cat(out, -1))


@pytest.mark.parametrize(("n", "dim_head", "output"), [(1, None, "learned"), (17, 5, "learned"), (40, None, "tied")])
def test_output_and_gradients_equal_the_formula(n, dim_head, output):
    layer = TSSA(24, 3, dim_head=dim_head, output=output).double()
    torch.nn.init.uniform_(layer.temperature, 0.5, 2)
    z = torch.randn(2, n, 24, dtype=torch.float64, requires_grad=True)
    inputs = [z, *layer.parameters()]
    fast, expected = layer(z), slow(layer, z)
    torch.testing.assert_close(fast, expected, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(layer(z), expected, rtol=1e-10, atol=1e-12)
    direction = torch.randn_like(fast)
    for a, b in zip(
        torch.autograd.grad(fast, inputs, direction), torch.autograd.grad(expected, inputs, direction), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize(("n", "heads", "dim_head"), [(1, 1, 7), (19, 3, 5), (33, 9, 3)])
def test_single_and_half_precision_equal_the_formula(dtype, tolerance, n, heads, dim_head):
    exact = TSSA(14, heads, dim_head=dim_head).to(dtype).double()
    z = torch.randn(2, n, 14).to(dtype).double().requires_grad_()
    expected = slow(exact, z)
    direction = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, [z, *exact.parameters()], direction)
    layer, z = copy.deepcopy(exact).to(dtype), z.detach().to(dtype).requires_grad_()
    out = layer(z)
    found = torch.autograd.grad(out, [z, *layer.parameters()], direction.to(dtype))
    with torch.no_grad():
        results = [(out, expected), (layer(z), expected), *zip(found, gradients, strict=True)]
    scale = max(float(g.norm()) for g in gradients)
    for a, b in results:
        assert a.dtype == dtype
        assert float((a.double() - b).norm()) <= tolerance * max(float(b.norm()), 0.1 * scale)


def test_tied_step_is_exactly_the_gradient_with_memberships_held_fixed():
    d, n = 24, 50
    layer = TSSA(d, 3, output="tied").double()
    z = torch.randn(2, n, d, dtype=torch.float64, requires_grad=True)
    pi = layer.membership(z)
    torch.testing.assert_close(pi.sum(1), torch.ones(2, n, dtype=torch.float64))
    rate = theory.variational_coding_rate(z, layer.bases(), pi.detach(), d**0.5)
    (gradient,) = torch.autograd.grad(rate.sum(), z)
    torch.testing.assert_close(layer(z), -n * gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("norm", [1.0, 48**0.5])
def test_memberships_that_move_change_the_gradient_by_two_percent_and_the_bound_falls(norm):
    d, n = 48, 197
    layer = TSSA(d, 4, output="tied").double()
    layer.subspaces.weight.data = torch.linalg.qr(torch.randn(d, d).double())[0]
    z = F.normalize(torch.randn(1, n, d).double(), dim=-1).mul(norm).requires_grad_()
    rate = theory.variational_coding_rate(z, layer.bases(), layer.membership(z), d**0.5)
    (gradient,) = torch.autograd.grad(rate.sum(), z)
    step = layer(z)
    assert float((step + n * gradient).norm() / step.norm()) < 0.03
    moved = z + step
    assert theory.variational_coding_rate(moved, layer.bases(), layer.membership(moved), d**0.5) < rate


def test_half_precision_and_autocast_stay_close():
    layer = TSSA(32, 4)
    z = torch.randn(2, 50, 32)
    expected = layer(z)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(z)
    torch.testing.assert_close(mixed.float(), expected, rtol=0.05, atol=0.02)
    half = layer.bfloat16()(z.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.02)


def test_golden_vision_and_causal(shared):
    golden = load_file(shared / "golden/tssa_attention.safetensors")
    vision = TSSA(48, 4)
    vision.load_state_dict(
        {
            "subspaces.weight": golden["vision.qkv.weight"],
            "temperature": golden["vision.temp"].squeeze(-1),
            "output.weight": golden["vision.to_out.0.weight"],
            "output.bias": golden["vision.to_out.0.bias"],
        }
    )
    torch.testing.assert_close(vision(golden["input"]), golden["vision.output"], rtol=0, atol=1e-5)
    causal = CausalTSSA(48, 4, max_length=17, bias=False)
    causal.load_state_dict(
        {
            "subspaces.weight": golden["causal.c_attn.weight"],
            "temperature": golden["causal.temp"].squeeze(-1),
            "membership_bias": golden["causal.denom_bias"].squeeze(-1),
            "output.weight": golden["causal.c_proj.weight"],
        }
    )
    torch.testing.assert_close(causal(golden["input"]), golden["causal.output"], rtol=0, atol=1e-5)


def causal_layer():
    layer = CausalTSSA(24, 3, max_length=20).double()
    torch.nn.init.normal_(layer.membership_bias, std=0.1)
    return layer


def test_causal_output_depends_on_no_later_token():
    layer, z = causal_layer(), torch.randn(2, 12, 24).double()
    expected = layer(z)[:, :7]
    z[:, 7:] = torch.randn(2, 5, 24).double()
    torch.testing.assert_close(layer(z)[:, :7], expected, rtol=0, atol=0)


def test_token_by_token_equals_all_at_once_with_a_state_of_constant_size():
    layer, z = causal_layer(), torch.randn(2, 20, 24).double()
    state, outputs, shapes = None, [], set()
    for token in z.split([1, 3, 1, 15], dim=1):
        out, state = layer(token, state=state, return_state=True)
        outputs.append(out)
        shapes.add(tuple(t.shape for t in state[:3]))
    torch.testing.assert_close(torch.cat(outputs, 1), layer(z), rtol=1e-10, atol=1e-12)
    assert state.length == 20
    assert len(shapes) == 1


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="max_length=20"):
        causal_layer()(torch.randn(1, 21, 24).double())
    with pytest.raises(ValueError, match="CausalTSSA"):
        TSSA(24, 3)(torch.randn(1, 4, 24), is_causal=True)
    with pytest.raises(ValueError, match="heads=5"):
        TSSA(24, 5)
