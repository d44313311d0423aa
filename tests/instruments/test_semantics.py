from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from unrolled.instruments import copy_segmentation, head_semantics, nearest_patches, pool_labels


def world(roles: bool, *, moving: bool = True, images: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Attention of three heads [images, 3, 36] and parts 0..2 [images, 36], one strip for each part."""
    rng = np.random.default_rng(seed)
    parts = np.zeros((images, 36), np.int64)
    attention = rng.random((images, 3, 36)) * 0.2
    for i in range(images):
        order = rng.permutation(3) if moving else np.arange(3)
        parts[i] = np.repeat(order, 12)
        for head, part in enumerate(np.arange(3) if roles else rng.permutation(3)):
            attention[i, head, parts[i] == part] += 1
    return torch.from_numpy(attention), torch.from_numpy(parts)


def test_heads_with_roles_are_told_from_heads_without() -> None:
    found = head_semantics(*world(roles=True), draws=200)
    assert found.consistency > 0.9
    assert found.p_value == pytest.approx(1 / 201)
    assert found.lift.argmax(1).tolist() == [0, 1, 2]
    assert (np.diag(found.p) < 0.05).all()
    assert (np.diag(found.z) > 2).all()
    assert found.images.tolist() == [12, 12, 12]
    none = head_semantics(*world(roles=False), draws=200)
    assert none.p_value > 0.05
    assert none.consistency < 0.4
    assert none.consistency == pytest.approx(none.chance, abs=0.15)


def test_chance_is_calibrated() -> None:
    values = [head_semantics(*world(roles=False, seed=s), draws=60).p_value for s in range(40)]
    assert 0.3 < np.mean(values) < 0.7
    assert np.mean(np.array(values) <= 0.1) < 0.25


def test_shuffled_images_expose_heads_that_look_at_a_place() -> None:
    still = world(roles=True, moving=False)
    assert head_semantics(*still, draws=100).p_value < 0.05
    assert head_semantics(*still, draws=100, null="images").p_value > 0.5
    assert head_semantics(*world(roles=True), draws=100, null="images").p_value < 0.05


def test_parts_may_be_absent_and_grids_may_differ() -> None:
    attention, parts = world(roles=True)
    maps = list(attention)
    labels = [torch.where(p == 2, -1, p) if i % 2 else p for i, p in enumerate(parts)]
    maps[0], labels[0] = maps[0][:, :30], labels[0][:30]
    found = head_semantics(maps, labels, draws=100, names=4)
    assert found.images.tolist() == [sum(bool((label == p).any()) for label in labels) for p in range(4)]
    assert found.images[3] == 0
    assert np.isnan(found.lift[:, 3]).all()
    assert found.p_value < 0.05
    assert (found.p[:, 3] == 1).all()


def test_uniform_attention_has_no_roles() -> None:
    _, parts = world(roles=True)
    found = head_semantics(torch.ones(12, 3, 36), parts, draws=50)
    assert found.consistency == 0
    assert found.p_value == 1
    assert found.lift == pytest.approx(np.ones((3, 3)))


def test_nearest_patches_find_a_permutation() -> None:
    a = torch.randn(20, 8)
    order = torch.randperm(20)
    got = nearest_patches(a, a[order] * 3)
    assert torch.equal(order[got.index], torch.arange(20))
    torch.testing.assert_close(got.similarity, torch.ones(20))
    assert got.mutual.all()
    assert int(nearest_patches(a, a[:1]).mutual.sum()) == 1


def test_copied_labels_follow_appearance() -> None:
    centres = torch.eye(3, 16)
    labels = torch.randint(3, (60,))
    source = centres[labels] + 0.02 * torch.randn(60, 16)
    truth = torch.randint(3, (40,))
    target = centres[truth] + 0.02 * torch.randn(40, 16)
    got, share = copy_segmentation(source, labels, target)
    assert torch.equal(got, truth)
    assert bool((share > 0.99).all())
    partial = torch.where(labels == 1, -1, labels)
    assert 1 not in copy_segmentation(source, partial, target)[0]


def test_pixels_to_patches() -> None:
    labels = torch.tensor([[0, 0, 1, 1, 2], [0, 0, 1, 2, 2], [0, 3, 2, 2, 2], [3, 0, 2, 2, 2]])
    assert pool_labels(labels, (2, 2)).tolist() == [0, 2, -1, 2]
    whole = torch.arange(6).reshape(2, 3)
    assert torch.equal(pool_labels(whole.repeat_interleave(4, 0).repeat_interleave(4, 1), (2, 3)), torch.arange(6))
    half = torch.tensor([[0, 1], [1, 0]])
    assert pool_labels(half, (1, 1)).tolist() == [-1]
    assert pool_labels(half, (1, 1), purity=0.4).tolist() == [0]


def test_bad_input_is_named() -> None:
    attention, parts = world(roles=True)
    f = torch.randn(4, 3)
    for argument, call in {
        "two or more": lambda: head_semantics(attention[:1], parts[:1]),
        "null": lambda: head_semantics(attention, parts, null="pixels"),  # type: ignore[arg-type]
        r"parts\[0\]": lambda: head_semantics(attention, parts[:, :5]),
        r"attention\[0\]": lambda: head_semantics(-attention, parts),
        "no part": lambda: head_semantics(attention, torch.full_like(parts, -1), names=2),
        "widths": lambda: nearest_patches(f, torch.randn(4, 5)),
        "labels": lambda: copy_segmentation(f, torch.zeros(3, dtype=torch.int64), f),
        "labelled": lambda: copy_segmentation(f, torch.full((4,), -1), f),
        "neighbours": lambda: copy_segmentation(f, torch.zeros(4, dtype=torch.int64), f, neighbours=0),
        "fewer": lambda: pool_labels(torch.zeros(2, 2, dtype=torch.int64), (3, 1)),
    }.items():
        with pytest.raises(ValueError, match=argument):
            call()
