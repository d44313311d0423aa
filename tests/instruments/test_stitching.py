"""Stitching: what an affine map can undo loses nothing; Rosetta neurons: planted partners are found."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from unrolled.alignment.network_stitching import Layout, Stitched, layer_values, on_grid, rosetta


def conv_network(seed: int) -> list[nn.Module]:
    torch.manual_seed(seed)
    return [nn.Conv2d(3, 6, 3, 2, 1), nn.Sequential(nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1)), Mean()]


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Tokens(nn.Module):
    """[b, 3, 8, 8] to a class token and 16 tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 2, 2)
        self.first = nn.Parameter(torch.randn(1, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.first.expand(len(x), -1, -1), self.patch(x).flatten(2).mT], 1)


def test_a_network_that_differs_by_an_affine_map_is_stitched_without_loss() -> None:
    stages = conv_network(0)
    images = torch.randn(32, 3, 16, 16)
    own = layer_values(list(stages), images, 1)
    turn = torch.randn(6, 6)
    front = [stages[0], lambda x: torch.einsum("bchw,dc->bdhw", x, turn) + 2]
    joint = Stitched(front=front, back=list(stages[1:]), source=Layout.of(own), target=Layout.of(own))
    joint.match(images, own, ridge=1e-9)
    want = layer_values(list(stages), images, 3)
    assert torch.allclose(joint(images), want, atol=1e-3)
    assert {name for name, _ in joint.named_parameters()} == {"affine.weight", "affine.bias", "prefix"}


@pytest.mark.parametrize(("front_is_map", "back_is_map"), [(True, False), (False, True), (False, False), (True, True)])
def test_maps_and_tokens_of_other_grids_are_stitched_and_only_the_map_learns(
    front_is_map: bool, back_is_map: bool
) -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 3, 8, 8)
    makers = {True: nn.Conv2d(3, 5, 3, 1, 1), False: Tokens(7)}
    front, own = makers[front_is_map], makers[back_is_map]
    wanted = own(images)
    head = nn.Linear(wanted.shape[1] if back_is_map else wanted.shape[2], 3)

    def back(x: Tensor) -> Tensor:
        return head(x.mean((2, 3)) if back_is_map else x[:, 0])  # type: ignore[no-any-return]

    source = Layout.of(front(images), prefix=0 if front_is_map else 1)
    target = Layout.of(wanted, prefix=0 if back_is_map else 1)
    joint = Stitched(front=[front], back=[back], source=source, target=target)
    joint.match(images, wanted)
    joint(images).sum().backward()
    assert joint(images).shape == (4, 3)
    assert front(images).requires_grad
    assert all(parameter.grad is None for parameter in front.parameters())
    if front_is_map and not back_is_map:  # the class token comes from nowhere: a constant
        assert torch.allclose(joint.prefix[0], wanted[:, 0].mean(0), atol=1e-6)
        assert joint.prefix.grad is not None


def test_grids_are_averaged() -> None:
    value = torch.arange(16.0).reshape(1, 1, 4, 4)
    out = on_grid(value, Layout.of(value), (2, 2))
    assert out.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    tokens = torch.cat([torch.full((1, 1, 1), 99.0), value.flatten(2).mT], 1)
    assert torch.equal(on_grid(tokens, Layout.of(tokens, prefix=1), (2, 2)), out)
    with pytest.raises(ValueError, match="square"):
        Layout.of(torch.zeros(1, 7, 3))


@given(seed=st.integers(0, 1000), planted=st.integers(1, 6))
@settings(max_examples=15, deadline=None)
def test_planted_partners_are_found_and_no_others(seed: int, planted: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(60, 4, 8, generator=generator)
    b = torch.randn(60, 4, 9, generator=generator)
    b[..., :planted] = 3 * a[..., :planted] + 0.3 * torch.randn(60, 4, planted, generator=generator)
    found = rosetta(a, b, draws=40, seed=seed)
    assert found.significant >= planted
    assert {tuple(pair) for pair in found.pairs[:planted].tolist()} == {(i, i) for i in range(planted)}
    assert found.correlation[:planted].min() > 0.9


def test_independent_units_rarely_pass_the_threshold() -> None:
    passed = 0
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        # places favour the same images' corners in both: only the relabelling knows that this says nothing
        corner = torch.linspace(0, 3, 4)[None, :, None]
        a, b = (torch.randn(30, 4, 5, generator=generator) + corner for _ in range(2))
        passed += rosetta(a, b, draws=39, seed=seed).significant > 0
    assert passed <= 7  # 5 % of 40, with room for chance


def test_matching_does_not_depend_on_scale_and_dead_units_match_nothing() -> None:
    a, b = torch.randn(20, 3, 4), torch.randn(20, 3, 5)
    a[..., 0] = 1.0
    one, two = rosetta(a, b, draws=5), rosetta(7 * a - 3, 0.1 * b + 1, draws=5)
    assert torch.equal(one.pairs, two.pairs)
    assert 0 not in one.pairs[:, 0].tolist()
    for left, right in ((a, b[:10]), (a[:2], b[:2]), (a[0], b[0])):
        with pytest.raises(ValueError, match="images"):
            rosetta(left, right)
    a[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        rosetta(a, b)
