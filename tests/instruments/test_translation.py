"""Translation without pairs: turned clusters are found, independent ones are not and it says so."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unrolled.alignment.translation import Recipe, Translation, thirds, translate, translate_paired
from unrolled.alignment.translation.anchors import matched, rearranged, similarities, tree_contrasts, two_opt
from unrolled.alignment.translation.fitting import criterion, expected_best, procrustes, ridge
from unrolled.alignment.translation.frame import Frame, unit_rows
from unrolled.errors import CorruptFile, MissingData

FEW = Recipe(clusters=8, rounds=10, anchor_sets=2, starts=4)
BRIEF: dict[str, Any] = {"recipe": FEW, "restarts": 3, "controls": 0}


def clusters(seed: int, n: int = 360, width: int = 10, count: int = 8) -> np.ndarray:
    """Clumps that lie unevenly to each other, as classes do."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(count, width)) * np.geomspace(3, 0.5, width)
    return centres[generator.integers(count, size=n)] + 0.2 * generator.normal(size=(n, width))


def turn(seed: int, rows: int, columns: int) -> np.ndarray:
    """[rows, columns] with orthonormal rows or columns."""
    square = np.linalg.qr(np.random.default_rng(seed).normal(size=(max(rows, columns),) * 2))[0]
    return square[:rows, :columns]


@pytest.fixture(scope="module")
def spaces() -> tuple[np.ndarray, np.ndarray]:
    """The same samples in two spaces, the second turned, moved and stretched."""
    x = clusters(0)
    return x, 3 * x @ turn(1, 10, 10) + 5 + 0.02 * np.random.default_rng(2).normal(size=x.shape)


@pytest.fixture(scope="module")
def turned(spaces: tuple[np.ndarray, np.ndarray]) -> Translation:
    x, y = spaces
    return translate(x[:120], y[120:240], recipe=FEW, restarts=4, controls=19)


def test_turned_clusters_are_translated_without_a_pair(
    spaces: tuple[np.ndarray, np.ndarray], turned: Translation
) -> None:
    x, y = (side[240:] for side in spaces)
    scores = turned.scores(x, y)
    assert scores.mean_rank < 0.1 * scores.chance_rank
    assert scores.top1 > 10 * scores.chance
    assert scores.cosine > 0.9
    assert abs(scores.shuffled_cosine) < 0.2
    assert turned.worked
    assert turned.p_value == 1 / 20
    assert len(turned.controls) == 19
    assert max(turned.controls) < turned.level
    assert "match beyond" in turned.verdict()
    assert len(turned.restarts) == 4
    best = max(turned.restarts, key=lambda each: each["criterion"])
    assert turned.restarts[turned.chosen] is best
    bound = translate_paired(*(side[:240] for side in spaces)).scores(x, y)
    assert scores.top1 <= bound.top1 == 1.0


def test_independent_clusters_are_not_and_it_says_so() -> None:
    failed = translate(clusters(0, 120), clusters(9, 120), recipe=FEW, restarts=4, controls=19)
    assert failed.worked is False
    assert failed.controls[-1] >= failed.level, "the test ends where a control matches as closely"
    assert failed.p_value == 1 / len(failed.controls)
    assert failed.verdict().startswith("No translation was found")
    assert "Do not use" in repr(failed)


def test_a_test_that_knows_no_pair_does_not_condemn_a_map_that_was_given_some() -> None:
    frame, restarts = Frame(np.zeros(3), np.eye(3), 1.0), ({"restart": 0, "anchors": None, "criterion": 0.5},)
    given = Translation(
        frame, frame, np.eye(3), "orthogonal", pairs=20, restarts=restarts, level=0.5, controls=(0.6,)
    )  # fmt: skip
    assert given.worked is False
    assert "No translation" not in given.verdict()
    assert "Do not use" not in given.verdict()
    assert "the 20 pairs given; how held-out pairs fare says what the map is worth" in given.verdict()


@pytest.mark.parametrize(("place", "worked"), [(1, False), (19, False), (20, True), (25, True), (None, True)])
def test_the_place_of_the_first_control_that_matches_decides(place: int | None, worked: bool) -> None:
    frame = Frame(np.zeros(3), np.eye(3), 1.0)
    restarts: Any = ({"restart": 0, "anchors": 1.0, "criterion": 0.5},)
    controls = (0.4,) * 30 if place is None else (*(0.4,) * (place - 1), 0.6)
    record = Translation(frame, frame, np.eye(3), "orthogonal", restarts=restarts, level=0.5, controls=controls)
    assert record.p_value == 1 / (31 if place is None else place)
    assert record.worked is worked


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), stretch=st.floats(0.01, 100))
def test_how_rows_lie_to_each_other_does_not_depend_on_turn_place_and_scale(seed: int, stretch: float) -> None:
    """All that is matched are products of codes, so that a map turns with its sides."""
    x = clusters(3, 30)
    moved = stretch * x @ turn(seed, 10, 14) + seed % 7
    one, other = (Frame.of(side, 6).codes(side) for side in (x, moved))
    np.testing.assert_allclose(one @ one.T, other @ other.T, atol=1e-9)
    frame = Frame.of(moved, 14)
    assert frame.axes.shape == (14, 10), "no more directions than rows have"
    lengths = np.linalg.norm(moved - frame.mean, axis=1)
    assert frame.length == pytest.approx(lengths.mean())
    back = frame.features(frame.codes(moved)) - frame.mean
    np.testing.assert_allclose(back / frame.length, (moved - frame.mean) / lengths[:, None], atol=1e-9)


def test_a_side_that_is_turned_is_translated_as_well(spaces: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = spaces[0], 0.1 * spaces[1] @ turn(7, 10, 10) - 3
    again = translate(x[:120], y[120:240], recipe=FEW, restarts=4, controls=0)
    assert again.scores(x[240:], y[240:]).cosine > 0.9


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(3, 9))
def test_exchanges_find_no_better_pair_and_the_value_is_the_sum(seed: int, k: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = (side + side.T for side in generator.normal(size=(2, k, k)))
    start = generator.permutation(k)
    order, value = two_opt(a, b, start)

    def total(of: np.ndarray) -> float:
        return float((a * b[np.ix_(of, of)]).sum())

    assert value == pytest.approx(total(order))
    assert value >= total(start) - 1e-9
    for i in range(k):
        for j in range(i):
            other = order.copy()
            other[[i, j]] = other[[j, i]]
            assert total(other) <= value + 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_the_same_centroids_in_another_order_are_matched(seed: int) -> None:
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(6, 4))
    order = generator.permutation(6)
    back, value = matched(similarities(centres), similarities(centres[order]), starts=20, generator=generator)
    assert value == pytest.approx(1)
    assert (order[back] == np.arange(6)).all()


@pytest.mark.parametrize("count", [3, 4, 5, 8])
def test_rearranged_clusters_keep_their_shape_and_centroids_their_second_moments(count: int) -> None:
    y = clusters(0)
    moved = rearranged(y, count, np.random.default_rng(0))
    steps, labels = np.unique(np.round(moved - y, 9), axis=0, return_inverse=True)
    assert len(steps) == count, "clusters move whole, each by its own step"
    before, after = (
        np.stack([side[labels.ravel() == i].mean(0) for i in range(count)]) for side in (y, moved)
    )  # fmt: skip
    np.testing.assert_allclose(after.mean(0), before.mean(0), atol=1e-7)
    np.testing.assert_allclose(np.cov(after.T), np.cov(before.T), atol=1e-7)
    assert np.abs(after - before).max() > 0.5


def test_joins_of_a_tree_are_orthonormal_contrasts() -> None:
    from scipy.cluster.hierarchy import ward

    rows = tree_contrasts(ward(np.random.default_rng(0).normal(size=(7, 4))))
    np.testing.assert_allclose(rows @ rows.T, np.eye(6), atol=1e-12)
    np.testing.assert_allclose(rows.sum(1), 0, atol=1e-12)


def test_units_of_the_features_change_no_verdict() -> None:
    x, y = clusters(0, 60), clusters(9, 60)
    one, other = (translate(x, size * y + 3 * size, recipe=FEW, restarts=3, controls=3) for size in (1.0, 2.0**80))
    assert one.controls == pytest.approx(other.controls)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), d=st.integers(1, 6))
def test_ridge_and_unit_vectors_are_those_of_the_package(seed: int, d: int) -> None:
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(9, d)), generator.normal(size=(9, 3))
    x[0] = 0
    system = x.T @ x + 0.1 * np.trace(x.T @ x) / d * np.eye(d)
    np.testing.assert_allclose(ridge(x, y, 0.1), np.linalg.solve(system, x.T @ y), rtol=1e-9, atol=1e-12)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(unit_rows(x), x / np.where(norm > 0, norm, 1), rtol=1e-14)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), widths=st.tuples(st.integers(2, 9), st.integers(2, 9)))
def test_procrustes_has_orthonormal_rows_or_columns_and_is_the_best(seed: int, widths: tuple[int, int]) -> None:
    generator = np.random.default_rng(seed)
    x, y = (generator.normal(size=(30, width)) for width in widths)
    best = procrustes(x, y)
    small = best @ best.T if widths[0] <= widths[1] else best.T @ best
    np.testing.assert_allclose(small, np.eye(min(widths)), atol=1e-9)
    other = turn(seed + 1, *widths)
    assert (x @ best * y).sum() >= (x @ other * y).sum() - 1e-9


def test_widths_may_differ(spaces: tuple[np.ndarray, np.ndarray]) -> None:
    x, _ = spaces
    y = x @ turn(5, 10, 17)
    wide = translate(x[:120], y[120:240], **BRIEF)
    assert wide.apply(x[:3]).shape == (3, 17)
    assert wide.matrix.shape == (10, 17)
    np.testing.assert_allclose(np.linalg.svd(wide.matrix)[1], 1, atol=1e-9)
    assert translate(y[:120], x[120:240], **BRIEF).apply(y[:3]).shape == (3, 10)


def test_a_few_pairs_are_enough_and_more_than_none(spaces: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = spaces
    few = translate(x[:120], y[120:240], pairs=(x[:12], y[:12]), **BRIEF)
    assert few.pairs == 12
    assert few.restarts[0]["anchors"] is None
    assert few.scores(x[240:], y[240:]).cosine > 0.97
    assert few.verdict().startswith("Not tested")


def test_linear_maps_are_fitted_to_the_partners_of_the_orthogonal_one(spaces: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = spaces
    stretched = y * np.geomspace(1, 2, 10)
    linear = translate(x[:120], stretched[120:240], pairs=(x[:20], stretched[:20]), kind="linear", **BRIEF)
    assert np.ptp(np.linalg.svd(linear.matrix)[1]) > 0.1
    assert linear.scores(x[240:], stretched[240:]).cosine > 0.9
    paired = translate_paired(x[:240], stretched[:240], kind="linear")
    assert paired.scores(x[240:], stretched[240:]).cosine > 0.95


def test_a_stopped_run_goes_on_and_ends_the_same(tmp_path: Path, spaces: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = spaces[0][:60], spaces[1][60:120]
    options: dict[str, Any] = {"recipe": FEW, "restarts": 3, "controls": 2}
    whole = translate(x, y, **options)

    def stopping(places: Any) -> Any:
        for place in places:
            if place == 3:
                raise KeyboardInterrupt
            yield place

    with pytest.raises(KeyboardInterrupt):
        translate(x, y, folder=tmp_path, progress=stopping, **options)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [f"restart-{i:03d}.safetensors" for i in range(3)]
    (tmp_path / files[1]).write_bytes((tmp_path / files[1]).read_bytes()[:50])  # damaged: computed anew
    times = {name: (tmp_path / name).stat().st_mtime_ns for name in files}
    again = translate(x, y, folder=tmp_path, **options)
    assert (again.map == whole.map).all()
    assert (again.restarts, again.controls, again.agreement) == (whole.restarts, whole.controls, whole.agreement)
    assert {name for name in files if (tmp_path / name).stat().st_mtime_ns != times[name]} == {files[1]}
    other = translate(x, y + 1e-3 * y**2, folder=tmp_path, **options)  # other data: nothing is taken over
    assert other.restarts != whole.restarts


def test_a_seed_is_a_map(spaces: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = spaces[0][:60], torch.from_numpy(spaces[1][60:120])
    one, same, other = (translate(x, y, seed=seed, **BRIEF) for seed in (1, 1, 2))
    assert (one.map == same.map).all()
    assert one.restarts != other.restarts


def test_records_are_kept_and_damage_is_named(tmp_path: Path, turned: Translation) -> None:
    path = tmp_path / "a.safetensors"
    turned.save(path)
    back = Translation.load(path)
    x = clusters(0, 5)
    assert (back.apply(x) == turned.apply(x)).all()
    assert back.records() == turned.records()
    assert back.verdict() == turned.verdict()
    assert (back.of_restart(1).map == turned.of_restart(1).map).all()
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorruptFile, match=r"a\.safetensors"):
        Translation.load(path)
    with pytest.raises(MissingData):
        Translation.load(tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"^path: .*\.safetensors"):
        turned.save(tmp_path / "a.pkl")


def test_ranks_are_of_the_partner_and_ties_count_half() -> None:
    x = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    same = Frame(np.zeros(2), np.eye(2), 1.0)
    scores = Translation(same, same, np.eye(2), "orthogonal").scores(x, x[[0, 1, 3, 2]])
    assert scores.ranks.tolist() == [1, 1, 2.5, 2.5]
    assert (scores.top1, scores.chance, scores.chance_rank) == (0.5, 0.25, 2.5)
    assert scores.shuffled_cosine == pytest.approx(0)
    shares = scores.panel().series[0].y
    assert list(shares) == [0.5, 0.5, 1.0, 1.0]


def test_the_best_of_some_is_the_mean_over_all_choices_of_them() -> None:
    assert expected_best([3.0, 1.0, 2.0], 1) == pytest.approx(2)
    assert expected_best([3.0, 1.0, 2.0], 2) == pytest.approx((2 + 3 + 3) / 3)
    assert expected_best([3.0, 1.0, 2.0], 5) == 3


def test_the_criterion_is_of_both_directions() -> None:
    x, y = np.eye(3)[:2], np.eye(3)
    assert criterion(x, y, np.eye(3)) == pytest.approx(0.5 * (1 + 2 / 3))


def test_thirds_share_no_row_and_keep_samples_whole() -> None:
    parts = thirds(10, 0, of=3)
    assert sorted(np.concatenate(parts).tolist()) == list(range(30))
    assert [len(part) for part in parts] == [9, 9, 12]
    assert all((part.reshape(-1, 3) // 3 == part.reshape(-1, 3)[:, :1] // 3).all() for part in parts)


X = clusters(0, 40)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: translate(X[:5], X), r"^x has 5 rows: at least 8"),
        (lambda: translate(X, X[0]), r"^y must be \[n, d\]"),
        (lambda: translate(X, np.full_like(X, math.nan)), "^y has NaN"),
        (lambda: translate(np.ones((20, 3)), X), "^x has zero variance"),
        (lambda: translate(X, X, kind="affine"), "^kind='affine': choose one of orthogonal, linear"),  # type: ignore[arg-type]
        (lambda: translate(X, X, restarts=0), "^restarts=0: "),
        (lambda: translate(X, X, controls=-1), "^controls=-1: "),
        (lambda: translate(X, X, seed=1.5), r"^seed=1\.5: "),  # type: ignore[arg-type]
        (lambda: translate(X, X, pairs=(X[:1], X[:1])), r"^pairs\[0\] has 1 rows: at least 2"),
        (lambda: translate(X, X, pairs=(X[:2], X[:3])), "^pairs: 2 rows and 3 partners"),
        (lambda: translate(X, X, pairs=(X[:2], X[:2, :4])), r"^pairs\[1\] has 4 columns, not 10"),
        (lambda: translate(X, X, pairs=X), "^pairs: give two arrays"),  # type: ignore[arg-type]
        (lambda: Recipe(rounds=-1), "^rounds=-1: "),
        (lambda: Recipe(ridge=0), "^ridge=0: "),
        (lambda: Recipe(neighbours=0), "^neighbours=0: "),
        (lambda: translate_paired(X, X[:9]), "^x has 40 rows and y 9: give pairs"),
        (lambda: translate_paired(X, X).apply(X[:, :3]), "^x has 3 columns, not 10"),
        (lambda: translate_paired(X, X).scores(X, X[:9]), "^x has 40 rows and y 9: give pairs"),
        (lambda: translate_paired(X, X).of_restart(0), "^number=0: there are 0 restarts"),
    ],
)
def test_what_is_wrong_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
