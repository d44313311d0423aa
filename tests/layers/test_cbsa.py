"""CBSA contracts a few representatives and broadcasts the change to all tokens."""

import pytest
import torch
from torch.nn import functional as F

from unrolled import theory
from unrolled.layers import CBSA


def slow(layer, z, grid):
    """The formula read aloud: one head, one cell at a time."""
    out = []
    side = [min(layer.representatives, g) for g in grid]
    for k, basis in enumerate(layer.bases()):
        w = z @ basis
        image = w[:, layer.prefix_tokens :].unflatten(1, grid)
        cells = []
        for i in range(side[0]):
            for j in range(side[1]):
                rows = slice(i * grid[0] // side[0], -(-(i + 1) * grid[0] // side[0]))
                columns = slice(j * grid[1] // side[1], -(-(j + 1) * grid[1] // side[1]))
                cells.append(image[:, rows, columns].mean((1, 2)))
        pooled = torch.stack(cells, 1)
        a = (pooled @ w.mT / layer.dim_head**0.5).softmax(-1)
        q = pooled + layer.step_representative[k] * a @ w
        out.append(layer.step_token[k] * a.mT @ ((q @ q.mT / layer.dim_head**0.5).softmax(-1) @ q))
    return layer.merge(torch.cat(out, -1))


@pytest.mark.parametrize(
    ("grid", "representatives", "output"), [((5, 5), 2, "learned"), ((4, 6), 3, "tied"), ((2, 7), 4, "learned")]
)
def test_output_and_gradients_equal_the_formula(grid, representatives, output):
    layer = CBSA(12, 3, representatives=representatives, output=output).double()
    layer.grid = grid
    z = torch.randn(2, grid[0] * grid[1] + 1, 12, dtype=torch.float64, requires_grad=True)
    inputs = [z, *layer.parameters()]
    fast, expected = layer(z), slow(layer, z, grid)
    torch.testing.assert_close(fast, expected, rtol=1e-10, atol=1e-12)
    direction = torch.randn_like(fast)
    for a, b in zip(
        torch.autograd.grad(fast, inputs, direction), torch.autograd.grad(expected, inputs, direction), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    rows = layer.assignment(z).sum(-1)
    torch.testing.assert_close(rows, torch.ones_like(rows))


def test_the_tied_step_descends_the_rate_of_the_representatives_and_of_all_tokens():
    d, n, eps = 48, 197, 1.0
    layer = CBSA(d, 4, output="tied", representatives=4).double()
    layer.subspaces.weight.data = torch.linalg.qr(torch.randn(d, d).double())[0]
    layer.step_representative.data.zero_()
    layer.step_token.data.fill_(-1)
    z = F.normalize(torch.randn(1, n, d).double(), dim=-1).requires_grad_()
    weights = layer.assignment(z).detach()
    rate = theory.representative_coding_rate(z, layer.bases(), weights, eps)
    (gradient,) = torch.autograd.grad(rate.sum(), z)
    step = layer(z).detach()
    assert float(F.cosine_similarity(step.flatten(), -gradient.flatten(), dim=0)) > 0.85
    moved = z.detach() + 0.1 * step / step.norm() * z.detach().norm()
    assert theory.representative_coding_rate(moved, layer.bases(), weights, eps) < rate
    assert theory.subspace_coding_rate(moved, layer.bases(), eps) < theory.subspace_coding_rate(z, layer.bases(), eps)


def test_bad_input_is_named():
    layer = CBSA(12, 3)
    with pytest.raises(ValueError, match="6 patch tokens are no square"):
        layer(torch.randn(1, 7, 12))
    with pytest.raises(ValueError, match="use MSSA"):
        layer(torch.randn(1, 5, 12), is_causal=True)
    with pytest.raises(ValueError, match="representatives=0"):
        CBSA(12, 3, representatives=0)
