"""Views for self-distillation and how far they are apart."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unrolled.train.tasks.distill import crop, distance, draw_boxes


@given(st.integers(0, 10), st.integers(0, 1000), st.lists(st.integers(0, 10**6), min_size=1, max_size=4, unique=True))
@settings(max_examples=20, deadline=None)
def test_views_lie_in_the_image_and_follow_from_seed_step_and_image(seed: int, step: int, images: list[int]) -> None:
    boxes = draw_boxes(seed, step, torch.tensor(images), 3, (0.2, 1.0), kind=0)
    alone = torch.cat([draw_boxes(seed, step, torch.tensor([image]), 3, (0.2, 1.0), kind=0) for image in images])
    assert torch.equal(boxes, alone)
    x, y, width, height, flip = boxes.unbind(-1)
    assert bool((x - width / 2 >= -1e-6).all())
    assert bool((x + width / 2 <= 1 + 1e-6).all())
    assert bool((y - height / 2 >= -1e-6).all())
    assert bool((y + height / 2 <= 1 + 1e-6).all())
    assert set(flip.flatten().tolist()) <= {0.0, 1.0}


def test_a_crop_of_everything_is_the_image_and_a_flip_its_mirror() -> None:
    images = torch.randn(2, 3, 6, 6)
    whole, mirrored, corner = (
        torch.tensor(box) for box in ([0.5, 0.5, 1, 1, 0], [0.5, 0.5, 1, 1, 1.0], [0.25] * 2 + [0.5] * 2 + [0])
    )
    cut = crop(images, torch.stack([whole, mirrored]).expand(2, 2, 5), (6, 6))
    torch.testing.assert_close(cut[:, 0], images)
    torch.testing.assert_close(cut[:, 1], images.flip(-1))
    torch.testing.assert_close(crop(images, corner.expand(2, 1, 5), (3, 3))[:, 0], images[..., :3, :3])


def test_distance_leaves_out_a_view_with_itself() -> None:
    student = torch.randn(4, 3, 5, dtype=torch.float64)
    teacher = student[:, :2]
    pairs = [(0, 1), (1, 0), (2, 0), (2, 1)]
    expected = sum(0.5 * (student[:, v] - teacher[:, g]).square().sum(-1).mean() for v, g in pairs) / len(pairs)
    torch.testing.assert_close(distance(student, teacher), torch.as_tensor(expected))
