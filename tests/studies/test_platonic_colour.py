"""Layouts of colour: the pieces against known cases, and a study that runs without data as far as it can."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unrolled.studies.platonic.colour import STUDY
from unrolled.studies.platonic.colour.cells import ColourConfig
from unrolled.studies.platonic.colour.layouts import (
    count_colours,
    dissimilarities,
    embed,
    lab_of_rgb,
    laid_over,
    pixel_pairs,
)


def test_cielab_of_known_colours() -> None:
    found = lab_of_rgb(np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    wanted = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]]
    assert found == pytest.approx(np.array(wanted), abs=0.02)


@given(seed=st.integers(0, 999), scale=st.floats(0.1, 10), mirror=st.booleans())
@settings(max_examples=20, deadline=None)
def test_a_turned_mirrored_scaled_and_moved_copy_is_laid_over_exactly(seed: int, scale: float, mirror: bool) -> None:
    generator = np.random.default_rng(seed)
    target = generator.normal(size=(12, 3))
    turn = np.linalg.qr(generator.normal(size=(3, 3)))[0]
    turn[:, 0] *= np.sign(np.linalg.det(turn)) * (-1 if mirror else 1)
    placed, r2 = laid_over(scale * target @ turn + 5, target)
    assert r2 == pytest.approx(1)
    assert placed == pytest.approx(target, abs=1e-6)
    assert 0 <= laid_over(generator.normal(size=(12, 3)), target)[1] <= 1


@given(seed=st.integers(0, 999))
@settings(max_examples=10, deadline=None)
def test_distances_of_points_in_space_are_embedded(seed: int) -> None:
    points = np.random.default_rng(seed).normal(size=(15, 3))
    distances = np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1))
    assert laid_over(embed(distances, fits=2, seed=0), points)[1] > 0.999


@pytest.mark.parametrize("seed", range(5))  # where a point has lost its nearest distances, no filling finds its place
def test_gaps_between_points_in_space_are_filled(seed: int) -> None:
    generator = np.random.default_rng(seed)
    points = generator.normal(size=(15, 3))
    distances = np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1))
    observed = generator.random((15, 15)) > 0.1
    observed &= observed.T
    broken = np.where(observed, distances, 50.0)
    np.fill_diagonal(broken, 0)
    assert laid_over(embed(broken, observed, fits=10, seed=0), points)[1] > 0.9


def test_pairs_lie_within_the_radius_and_in_one_image() -> None:
    images = np.zeros((5, 9, 11, 3), dtype=np.uint8)
    images[..., 0], images[..., 1], images[..., 2] = (
        np.arange(9)[None, :, None], np.arange(11)[None, None, :], np.arange(5)[:, None, None]
    )  # fmt: skip
    first, second = (part.astype(int) for part in pixel_pairs(images, 3000, 2.0, np.random.default_rng(0)))
    assert len(first) == len(second) == 3000
    squared = ((first - second)[:, :2] ** 2).sum(1)
    assert squared.min() >= 1
    assert squared.max() == 4
    assert (first[:, 2] == second[:, 2]).all()


def test_counts_are_symmetric_and_rare_colours_are_left_out() -> None:
    first = np.array([[0, 0, 0]] * 6 + [[255, 255, 255]], dtype=np.uint8)
    second = np.array([[255, 0, 0]] * 6 + [[255, 255, 255]], dtype=np.uint8)
    counts, middles = count_colours(first, second, 2, 3)
    assert counts.tolist() == [[0, 6], [6, 0]]
    assert middles.tolist() == [[0.25, 0.25, 0.25], [0.75, 0.25, 0.25]]
    for zeros in ("add half", "floor", "leave out"):
        distances, observed = dissimilarities(counts, zeros)  # type: ignore[arg-type]
        assert np.isfinite(distances).all()
        assert (np.diag(distances) == 0).all()
        assert observed.all() == (zeros != "leave out")


def test_without_data_the_made_up_images_run_and_the_rest_says_not_run(tmp_path: Path) -> None:
    config = ColourConfig(
        data_dir=tmp_path / "nowhere", out=tmp_path, kept=tmp_path / "kept", images=60, pairs=8000, bins=3,
        min_count=50, fits=1, permutations=20, seeds=(0,),
    )  # fmt: skip
    report = STUDY.run(config)
    (row,) = report.results["rows"]
    assert (row["cell"], row["source"]) == ("ByPixels", "made-up")
    # where neighbours are alike in colour the layout must be found
    assert row["r2"] > row["null"] + 3 * row["spread"]
    assert [claim.measured for claim in report.claims] == ["not run"] * 3
    assert [claim.verdict for claim in report.claims] == ["not run"] * 3
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "not run" in page
    # what lacks its data is named once, with the flag
    reasons = report.sections[-1].blocks[0].text.split("\n\n")
    assert {reason.split(" was not found")[0] for reason in reasons} == {
        "data_dir: cifar10", "data_dir: human-similarity",
    }  # fmt: skip
    assert all("; give data_dir= (" in reason for reason in reasons)


def test_ratings_that_come_later_are_compared_then(tmp_path: Path) -> None:
    # 27 colours on a cube, rated by their distance in CIELAB: what stands in the files decides, not what stood there
    rgb = np.stack(np.meshgrid(*[[40, 128, 215]] * 3, indexing="ij"), -1).reshape(-1, 3)
    lab = lab_of_rgb(rgb / 255)
    apart = np.sqrt(((lab[:, None] - lab[None]) ** 2).sum(-1))
    config = ColourConfig(
        data_dir=tmp_path, out=tmp_path / "out", kept=tmp_path / "kept", images=60, pairs=8000, bins=3, min_count=50,
        fits=1, permutations=20, seeds=(0,),
    )  # fmt: skip
    assert len(STUDY.run(config).results["rows"]) == 1
    folder = tmp_path / "human-similarity"
    folder.mkdir()
    groups = np.broadcast_to(apart, (5, 27, 27))
    missing = np.zeros_like(groups, dtype=bool)
    arrays = {"lab": lab, "rgb": rgb, "group_dissimilarity": groups, "missing": missing}
    np.savez(folder / "colour93_human.npz", **arrays)
    lines = [f"colour {i}\t{x}\t{y}\t{z}" for i, (x, y, z) in enumerate(lab)]
    (folder / "xkcd_colours.tsv").write_text("\n".join(["name\tL\ta\tb_lab", *lines]), encoding="utf-8")
    report = STUDY.run(config)
    layout, beside, people = report.results["rows"]
    assert beside["compared"] == layout["n"] * (layout["n"] - 1) / 2
    assert beside["lab"] == pytest.approx(1)
    assert 0.3 < beside["pmi"] < 1
    assert people["r2"] > 0.99
    assert report.claims[2].why.endswith("undecided")  # 20 permutations cannot say less than 1 in 21
    assert STUDY.run(replace(config, permutations=200)).claims[2].why.endswith("; as expected")


@pytest.mark.slow
def test_the_quick_budget_lays_out_the_colours_of_photographs(shared: Path, tmp_path: Path) -> None:
    config = ColourConfig.of_budget("quick", data_dir=shared / "data", out=tmp_path, kept=tmp_path / "kept")
    report = STUDY.run(replace(config, budget="cpu"))
    assert [claim.verdict for claim in report.claims] == ["controls do the same", "undecided", "not judged"]
