from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unrolled.instruments import (
    EmergenceScorer,
    Photo,
    bootstrap_interval,
    bootstrap_intervals,
    emergence_baselines,
    emergence_scores,
    jaccard,
    threshold_attention,
    upsample,
)
from unrolled.instruments.regions.emergence import by_shape, in_order
from unrolled.models import create_model

GRID = (4, 6)


def photo(seed: int = 0, *, ignore: bool = False, name: int = 0) -> Photo:
    """A bright square, the thing, on noise; 16 x 24 pixels, marked at twice that size in two classes."""
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.rand(3, 16, 24, generator=rng) * 0.1
    pixels[:, 4:12, 8:16] += 1
    upper, lower = torch.zeros(2, 32, 48, dtype=torch.bool)
    upper[8:16, 16:32], lower[16:24, 16:32] = True, True
    void = torch.zeros(32, 48, dtype=torch.bool)
    void[:, :5] = True
    return Photo(pixels, {"upper": upper, "lower": lower}, void if ignore else None, name)


def maps(layers: int = 2, heads: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(layers, heads, GRID[0] * GRID[1], generator=torch.Generator().manual_seed(seed))


def test_scores_are_those_of_enlarged_masks() -> None:
    own = photo(ignore=True)
    attention = maps()
    scorer = EmergenceScorer([3, 5])
    scorer.add(attention, GRID, own)
    record = scorer.result()
    assert record.things.shape == (1, 2, 2, 4)
    for r, rule in enumerate(record.rules):
        every = torch.cat([attention, attention.mean(1, keepdim=True)], 1)
        masks = upsample(threshold_attention(every, 0.6, by=rule), GRID, (32, 48))  # type: ignore[arg-type]
        things = own.things()[None]
        np.testing.assert_allclose(record.things[0, r], jaccard(masks, things, ignore=own.ignore)[..., 0], atol=1e-6)
        outside = jaccard(~masks, ~things, ignore=own.ignore)[..., 0]
        np.testing.assert_allclose(record.background[0, r], outside, atol=1e-6)
    assert {row["layer"] for row in record.classes} == {3, 5}
    assert {row["class"] for row in record.classes} == {"upper", "lower"}


def test_a_head_that_sees_the_thing_stands_out_of_chance() -> None:
    scorer = EmergenceScorer([0, 1])
    for seed in range(12):
        attention = maps(seed=seed)
        square = torch.zeros(GRID)
        square[1:3, 2:4] = 1
        attention[1, 2] = square.flatten()
        scorer.add(attention, GRID, photo(seed, name=seed))
    record = scorer.result()
    margin = record.grid("mass", "margin")
    assert margin.argmax() == 1 * 4 + 2
    assert record.grid("mass")[1, 2] == 0.75, "three of the square's four patches hold 60 %"
    best = max(record.rows(), key=lambda row: row["margin"])
    assert (best["layer"], best["head"], best["by"]) == (1, 2, "mass")
    assert best["margin_low"] > 0.5
    other = next(row for row in record.rows() if (row["layer"], row["head"], row["by"]) == (0, 0, "mass"))
    assert other["margin_low"] < 0.1
    top = next(row for row in record.sweep() if (row["layer"], row["by"]) == (1, "mass"))
    assert top["fixed"] == 0.75, "the same head is best on either half"
    assert top["chance"] < 0.6 < top["best"]


def test_the_best_of_connected_maps_that_know_nothing_is_no_better_than_its_chance() -> None:
    rng = torch.Generator().manual_seed(0)
    scorer = EmergenceScorer([0], by=["mass"])
    for seed in range(150):
        attention = torch.zeros(1, 6, *GRID)
        attention[..., :2, :3] = 1  # a connected map in every head, each put anywhere
        for head in range(6):
            shift = [int(torch.randint(side, (1,), generator=rng)) for side in GRID]
            attention[0, head] = attention[0, head].roll(shift, (0, 1))
        scorer.add(attention.flatten(-2), GRID, photo(seed, name=seed))
    top = scorer.result().sweep()[0]
    assert top["best"] == pytest.approx(top["chance"], abs=0.03)
    assert scorer.result().grid("mass", "margin")[0, :6].mean() == pytest.approx(0, abs=0.02)


def test_the_loop_gives_what_single_photos_give_and_takes_a_generator() -> None:
    torch.manual_seed(0)
    model = create_model("crate_nano_patch4_32").eval()
    photos = [photo(seed, name=seed) for seed in range(3)]
    empty = Photo(photos[0].pixels, {})
    turned = Photo(photos[0].pixels.mT, {k: mask.mT for k, mask in photos[0].classes.items()}, name=9)

    def stream() -> Iterator[Photo]:
        yield from (photos[0], empty, turned, *photos[1:])

    record = emergence_scores(model, stream(), batch_size=2)
    assert record.layers == tuple(range(6))
    assert record.things.shape == (4, 2, 6, 5)
    assert record.names == (0, 9, 1, 2), "in their own order, however batches filled up"
    alone = np.concatenate([emergence_scores(model, [each]).things for each in (photos[0], turned, *photos[1:])])
    np.testing.assert_allclose(record.things, alone, atol=1e-6)
    one = emergence_scores(model, stream(), batch_size=1)
    assert one.names == record.names
    np.testing.assert_allclose(one.chance, record.chance, atol=1e-6)
    assert one.sweep() == [pytest.approx(row) for row in record.sweep()]
    chosen = emergence_scores(model, photos, layers=[-2], by=["mass"], patch=(4, 4))
    assert (chosen.layers, chosen.rules) == ((4,), ("mass",))


def test_batches_of_one_shape_hold_few_photos_and_are_put_in_order() -> None:
    shapes = [0, *[1] * 11, 0, 2]
    drawn = []

    def stream() -> Iterator[int]:
        for place in range(len(shapes)):
            drawn.append(place)
            yield place

    batches = []
    for batch in by_shape(stream(), 2, lambda place: shapes[place]):
        assert len(drawn) - sum(map(len, batches)) <= 4 * 2
        batches.append(batch)
    assert all(len({shapes[place] for place, _ in batch}) == 1 and len(batch) <= 2 for batch in batches)
    assert [item for batch in batches for _, item in batch] != list(range(len(shapes)))
    assert list(in_order(pair for batch in batches for pair in batch)) == list(range(len(shapes)))


def test_a_model_without_contrast_finds_nothing() -> None:
    scorer = EmergenceScorer([0])
    scorer.add(torch.full((1, 2, 24), 1 / 24), GRID, photo())
    record = scorer.result()
    assert (record.things == 0).all()
    assert (record.chance == 0).all()
    everything = sum(int(mask.sum()) for mask in photo().classes.values())
    np.testing.assert_allclose(record.background, 1 - everything / (32 * 48))


def test_baselines() -> None:
    rows = {(row["by"], row["class"]): row for row in emergence_baselines(photo(), GRID)}
    assert rows["colour", None]["averaged"] == 1, "the cluster that keeps off the border is the square"
    assert rows["colour", "upper"]["best"] == pytest.approx(0.5)
    assert rows["whole photo", None]["averaged"] == pytest.approx(16 * 16 / (32 * 48))
    assert rows["centre prior", None]["averaged"] > rows["whole photo", None]["averaged"]


def test_intervals_of_many_scores_are_those_of_each() -> None:
    values = np.random.default_rng(0).random((7, 2, 3))
    low, high = bootstrap_intervals(values)
    for place in np.ndindex(2, 3):
        assert (low[place], high[place]) == pytest.approx(bootstrap_interval(values[:, *place]))
    with pytest.raises(ValueError, match="finite"):
        bootstrap_intervals(np.array([np.nan, 1]))


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="photos: none"):
        emergence_scores(nn.Identity(), [Photo(torch.zeros(3, 8, 8), {})])
    with pytest.raises(ValueError, match="photos: none"):
        EmergenceScorer([0]).result()
    with pytest.raises(ValueError, match="batch_size=0"):
        emergence_scores(nn.Identity(), [photo()], batch_size=0)
    scorer = EmergenceScorer([0])
    with pytest.raises(ValueError, match="attention"):
        scorer.add(maps(), GRID, photo())
    scorer.add(maps(1), GRID, photo())
    with pytest.raises(ValueError, match="choose from mass"):
        scorer.result().grid("magic")
    with pytest.raises(ValueError, match="miou"):
        scorer.result().grid("mass", "magic")
