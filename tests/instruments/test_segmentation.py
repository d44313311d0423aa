from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unrolled.instruments import pca_colours, refine_mask, threshold_attention, token_pca, upsample

MAPS = st.lists(st.integers(0, 1000), min_size=2, max_size=40).map(lambda v: torch.tensor(v, dtype=torch.float64))


@settings(deadline=None, max_examples=30)
@given(MAPS, st.sampled_from([0.25, 0.5, 0.75]))
def test_mass_keeps_the_fewest_largest_entries_that_hold_the_share(values: Tensor, keep: float) -> None:
    mask = threshold_attention(values, keep, by="mass")
    if values.max() == values.min():
        assert not mask.any()
        return
    kept, dropped = values[mask], values[~mask]
    assert kept.sum() >= keep * values.sum()
    assert kept.sum() - kept.min() < keep * values.sum() or len(kept) == 1
    assert len(dropped) == 0 or dropped.max() <= kept.min()


@settings(deadline=None, max_examples=30)
@given(MAPS, st.sampled_from([0.25, 0.6, 1.0]))
def test_fraction_keeps_that_many_entries(values: Tensor, keep: float) -> None:
    mask = threshold_attention(values, keep, by="fraction")
    if values.max() > values.min():
        assert int(mask.sum()) == max(1, round(keep * len(values)))
        assert mask.all() or values[~mask].max() <= values[mask].min()


def test_the_two_rules_differ_on_a_peaked_map() -> None:
    peaked = torch.tensor([[0.01, 0.9, 0.02, 0.03, 0.04]])
    assert threshold_attention(peaked, by="mass").tolist() == [[False, True, False, False, False]]
    assert threshold_attention(peaked, by="fraction").tolist() == [[False, True, False, True, True]]


def test_a_constant_map_selects_nothing() -> None:
    for by in ("mass", "fraction"):
        assert not threshold_attention(torch.full((2, 9), 1 / 9), by=by).any()  # type: ignore[arg-type]
        assert not threshold_attention(torch.zeros(9), by=by).any()  # type: ignore[arg-type]


def test_upsampling_repeats_patches() -> None:
    mask = torch.tensor([[True, False, False, True]])
    big = upsample(mask, (2, 2), (4, 6))
    assert big.dtype == torch.bool
    assert torch.equal(big[0], mask.reshape(2, 2).repeat_interleave(2, 0).repeat_interleave(3, 1))
    with pytest.raises(ValueError, match="smooth"):
        upsample(mask, (2, 2), (4, 4), smooth=True)
    with pytest.raises(ValueError, match="grid"):
        upsample(mask, (2, 3), (4, 4))


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 1000), st.integers(3, 30), st.integers(3, 12))
def test_pca_is_the_svd_of_centred_tokens(seed: int, n: int, d: int) -> None:
    z = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    got = token_pca(z, 2)
    u, s, _ = torch.linalg.svd(z - z.mean(0), full_matrices=False)
    torch.testing.assert_close(got.explained, (s**2 / (s**2).sum())[:2])
    torch.testing.assert_close(got.scores.abs(), (u * s)[:, :2].abs(), atol=1e-7, rtol=1e-6)
    torch.testing.assert_close((z - z.mean(0)) @ got.directions.mT, got.scores)
    peak = got.scores.gather(0, got.scores.abs().argmax(0, keepdim=True))
    assert bool((peak > 0).all())


def test_joint_pca_shares_directions_and_respects_the_mask() -> None:
    z = torch.randn(3, 8, 5)
    together = token_pca(z, 2)
    assert together.scores.shape == (3, 8, 2)
    torch.testing.assert_close(together.scores.flatten(0, 1), token_pca(z.flatten(0, 1), 2).scores)
    mask = torch.rand(3, 8) > 0.4
    part = token_pca(z, 2, mask=mask)
    torch.testing.assert_close(part.scores[mask], token_pca(z[mask], 2).scores)
    assert not part.scores[~mask].any()


def test_constant_tokens_have_no_components() -> None:
    got = token_pca(torch.ones(9, 4) * 0.1, 2)
    assert not got.scores.any()
    assert not got.explained.any()
    colours = pca_colours(torch.ones(1, 9, 4) * 0.1, (3, 3))
    assert not colours.foreground.any()
    assert not colours.colours.any()


def test_pca_foreground_is_the_object_whichever_sign_it_gets() -> None:
    inside = torch.zeros(2, 8, 8, dtype=torch.bool)
    inside[0, 2:6, 2:5], inside[1, 1:5, 3:7] = True, True
    for sign in (1, -1):
        features = torch.randn(2, 64, 6, generator=torch.Generator().manual_seed(0)) * 0.1
        features[..., 0] += sign * 3 * inside.flatten(1)
        got = pca_colours(features, (8, 8))
        assert torch.equal(got.foreground, inside)
        assert float(got.colours.min()) == 0
        assert float(got.colours.max()) == 1
        assert not got.colours[~inside].any()
    assert not pca_colours(features, (8, 8), threshold=1e6).foreground.any()


def test_refinement_follows_the_edges_of_the_image() -> None:
    true = torch.zeros(1, 48, 48, dtype=torch.bool)
    true[0, 13:35, 11:37] = True
    image = torch.where(true, 0.9, 0.2).expand(3, 48, 48).contiguous()
    coarse = torch.zeros_like(true)
    coarse[0, 8:32, 8:40] = True
    coarse[0, 20:22, 20:22] = False

    def fit(mask: Tensor) -> float:
        return float((mask & true).sum() / (mask | true).sum())

    refined = refine_mask(coarse, image)
    assert fit(coarse) < 0.73
    assert fit(refined) > 0.9
    assert refined[0, 20:22, 20:22].all()
    assert not refine_mask(torch.zeros_like(true), image).any()
    assert not refine_mask(coarse, image, min_overlap=0.99).any()


def test_bad_input_is_named() -> None:
    for argument, call in {
        "keep": lambda: threshold_attention(torch.rand(4), 0, by="mass"),
        "by": lambda: threshold_attention(torch.rand(4), by="median"),  # type: ignore[arg-type]
        "negative": lambda: threshold_attention(torch.tensor([1.0, -1.0]), by="mass"),
        "components": lambda: token_pca(torch.rand(4, 3), 4),
        "two tokens": lambda: token_pca(torch.rand(1, 3), 1),
        "NaN": lambda: token_pca(torch.full((4, 3), float("nan")), 1),
        r"\[b, n, d\]": lambda: pca_colours(torch.rand(4, 3), (2, 2)),
        "image": lambda: refine_mask(torch.ones(1, 4, 4, dtype=torch.bool), torch.rand(3, 4, 5)),
    }.items():
        with pytest.raises(ValueError, match=argument):
            call()
