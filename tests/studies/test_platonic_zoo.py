"""The zoo: members are what they say, and their pairs are scored beside chance, by how much the members can do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from unrolled.alignment import compare, mutual_knn
from unrolled.errors import MissingData
from unrolled.report import Report
from unrolled.studies.cells import Cell, Context, Row
from unrolled.studies.networks import Network
from unrolled.studies.pictures import pictures
from unrolled.studies.platonic.pairs import PairScores, pair_scores
from unrolled.studies.platonic.vision import STUDY, claims
from unrolled.studies.platonic.vision.cells import VisionConfig
from unrolled.studies.platonic.vision.claims import ALL, TRENDS, View
from unrolled.studies.platonic.zoo import FAMILIES, Features, Probe, ZooConfig, family, full_name, group, size
from unrolled.studies.results import Results
from unrolled.studies.statistics import (
    classical_mds,
    correlation,
    of_pairs,
    over_models,
    pair_places,
    pairs_of,
    rank_correlations,
    spearman,
)

TINY: dict[str, Any] = {"data": "digits", "members": "few", "images": 128, "workers": 1}


def test_the_full_zoo_has_every_sort_of_member() -> None:
    members = ZooConfig().zoo
    assert len(members) == 36
    assert len({full_name(member) for member in members}) == len(members)
    for kind in FAMILIES:
        kin = [member for member in members if family(member) == kind]
        assert {size(member) for member in kin} == {"small", "large"}
        assert len({member.seed for member in kin if member.sound and member.images == ZooConfig().images}) == 3
        assert {"true labels", "half of the classes", "untrained", "labels half shuffled", "labels all shuffled"} == {
            group(member) for member in kin
        }
    assert len({member.images for member in members}) == 3  # untrained, brief and whole trainings
    assert min(member.images for member in ZooConfig(images=128).zoo if member.sound) == 128  # none becomes untrained


def test_features_are_of_held_out_images_of_every_layer(tmp_path: Path) -> None:
    context = Context(store=tmp_path)
    for kind in ("vit-small", "cnn-small"):
        network = Network(kind=kind, data="digits", seed=0, images=0)
        layers = Features(network=network, samples=60).load(context)
        assert (len(layers), layers.samples) == (3, 60)
    test = {image.numpy().tobytes() for image in pictures("digits", "test", Path()).images}
    train = [image.numpy().tobytes() for image in pictures("digits", "train", Path()).images]
    assert sum(image in test for image in train) <= 1  # the digits hold a duplicate or none


def test_pairs_are_scored_as_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(80, 4, generator=generator)
    models = [
        {f"layer{i}": shared @ torch.randn(4, 6, generator=generator) + noise * torch.randn(80, 6, generator=generator)
         for i in range(layers)}
        for noise, layers in ((0.1, 2), (0.5, 3), (30.0, 1))
    ]  # fmt: skip
    pairs = pair_scores(models, "mutual_knn", draws=60)
    direct = compare(models[0], models[1], "mutual_knn", draws=60)
    assert pairs.score[0, 1] == pytest.approx(direct.score, abs=1e-6)
    assert pairs.chance[0, 1] == pytest.approx(direct.chance, abs=0.02)
    assert pairs.p_value[0, 1] == pytest.approx(1 / 61)
    assert pairs.p_value[0, 2] > 0.02
    assert pairs.score[2, 2] == pytest.approx(1.0)
    assert np.allclose(pairs.gain, pairs.gain.T)
    assert pair_scores(models, "mutual_knn").score[0, 1] == pytest.approx(
        max(mutual_knn(a, b) for a in models[0].values() for b in models[1].values()), abs=1e-6
    )
    with pytest.raises(ValueError, match="metric"):
        pair_scores(models, "procrustes")
    with pytest.raises(ValueError, match="samples"):
        pair_scores([models[0], {"layer": torch.randn(70, 3)}], "mutual_knn")


def test_unrelated_models_are_significant_as_rarely_as_promised() -> None:
    generator, reached = torch.Generator().manual_seed(0), 0
    pairs = np.triu_indices(8, 1)
    for repeat in range(12):
        models = [{"layer": torch.randn(40, 8, generator=generator)} for _ in range(8)]
        p_value = pair_scores(models, "unbiased_cka", draws=99, seed=repeat).p_value
        reached += int((p_value[pairs] <= 0.05).sum())
    assert reached <= 29  # of 336; 5 % are 17, and more than 29 come with probability 0.002


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([*range(5), np.nan]), st.floats(-3, 3)), min_size=3, max_size=12))
def test_rank_correlations_are_scipys_of_the_finite_pairs(pairs: list[tuple[float, float]]) -> None:
    x, y = np.array(pairs, dtype=np.float64).T
    keep = np.isfinite(x)
    constant = keep.sum() < 3 or np.ptp(x[keep]) == 0 or np.ptp(y[keep]) == 0
    expected = np.nan if constant else spearmanr(x[keep], y[keep]).statistic
    assert rank_correlations(np.stack([x, -x]), np.stack([y, y])) == pytest.approx([expected, -expected], nan_ok=True)


def test_intervals_over_models_count_no_model_beside_itself() -> None:
    everyone = np.ones((3, 3), dtype=bool)
    i, j = pair_places(np.array([0, 0, 1, 2]), everyone)
    assert len(i) == 5
    assert (i != j).all()
    rows, columns, keep = pairs_of(np.array([[0, 0, 1], [0, 1, 2]]), everyone)
    assert keep.sum(1).tolist() == [2, 3]
    assert (rows[keep] != columns[keep]).all()
    values = np.linspace(0, 1, 30)
    mean = over_models(lambda drawn: values[drawn].mean(1), 30)
    assert mean.value == pytest.approx(0.5)
    assert mean.low < mean.value < mean.high
    assert mean.basis == "bootstrap over 30 models"
    one_of_six = over_models(lambda drawn: values[drawn].mean(1), 30, of=6)
    assert one_of_six.value == mean.value
    # a mean's is about normal: 2.64 standard errors for 1.96
    assert (one_of_six.high - one_of_six.low) / (mean.high - mean.low) == pytest.approx(2.64 / 1.96, abs=0.07)
    assert one_of_six.basis == "bootstrap over 30 models, corrected for 6 that are looked at"
    undefined = over_models(lambda drawn: np.full(len(drawn), np.nan), 5)
    assert np.isnan([undefined.low, undefined.high]).all()
    assert 0.97 < correlation(values, values**2).low < 1, "a perfect order of 30 models is not certain"
    one, seven = (correlation(values[:8], values[[0, 2, 1, 3, 4, 5, 7, 6]], of=of) for of in (1, 7))
    assert seven.value == one.value
    assert seven.low < one.low
    assert seven.basis.endswith("over 8 models, corrected for 7 that are looked at")
    assert correlation(values[:3], values[:3]).value == pytest.approx(1)
    assert spearman([1, 2, 3, float("nan")], [2, 4, 9, 1]) == pytest.approx(1)
    assert np.isnan(spearman([1, 1, 1], [1, 2, 3]))


def test_pairs_that_share_models_are_as_many_as_models_of_the_kind_that_differs() -> None:
    scores = {(f"network {i}", f"text {j}"): 1.0 + j + 0.01 * i for i in range(4) for j in range(3)}
    by_text = of_pairs(scores, ("image network", "text model"))
    assert by_text.count == "3 text models"
    assert list(by_text) == pytest.approx([1.015, 2.015, 3.015])
    turned = of_pairs({pair[::-1]: score for pair, score in scores.items()}, ("text model", "image network"))
    assert turned.by == by_text.by
    single = of_pairs({pair: score for pair, score in scores.items() if pair[0] == "network 0"}, ("network", "text"))
    assert single.count == "1 network", "nothing is known of others"
    assert not of_pairs({}, ("network", "text"))


def test_scaling_finds_points_of_a_plane_again() -> None:
    points = np.random.default_rng(0).normal(size=(12, 2))
    distance = np.linalg.norm(points[:, None] - points[None, :], axis=-1)
    found, share = classical_mds(distance)
    assert np.linalg.norm(found[:, None] - found[None, :], axis=-1) == pytest.approx(distance, abs=1e-9)
    assert share == pytest.approx(1.0)


def planted(config: VisionConfig, sign: float) -> Results[Cell]:
    """Rows of a zoo whose pairs are the closer, or the farther, the more their members can do."""
    able = np.linspace(0.1, 0.9, len(config.zoo))
    score = 0.5 + 0.2 * sign * (able[:, None] + able[None, :])
    np.fill_diagonal(score, 1)
    zero, p_value = np.zeros_like(score).tolist(), np.full_like(score, 0.01).tolist()
    result = {"score": score.tolist(), "chance": zero, "p_value": p_value}
    rows: list[Row[Any]] = [Row(config.best, result, 0.0), Row(config.last, result, 0.0)]
    for network, accuracy in zip(config.zoo, able, strict=True):
        rows.append(Row(network, {"parameters": 1, "accuracy": accuracy}, 0.0))
        rows.append(Row(Probe(network=network, on="held-out"), {"accuracy": accuracy}, 0.0))
    return Results(rows)


def test_a_trend_with_competence_is_found_and_its_reverse_refuted() -> None:
    config = VisionConfig(data="digits", members="few")
    for sign, verdict in ((1, "reproduced"), (-1, "not reproduced")):
        results = planted(config, sign)
        view = View(results, config)
        assert view.trend(view.pairs(config.best), ALL).value == pytest.approx(  # type: ignore[arg-type]
            sign, abs=0.01
        )
        assert [claim.judge(results, config).verdict for claim in STUDY.claims] == [verdict, "not judged", "not run"]
        gains = [view.bin(view.calibrated()["mutual k-NN"], places, ALL).gain for places in view.bins()]
        assert gains == sorted(gains, reverse=sign < 0)


def test_a_trend_that_would_do_alone_is_undecided_among_those_that_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = VisionConfig(data="digits", members="few")
    results = planted(config, 1)
    score = np.array(results[0].result["score"])
    noise = np.random.default_rng(0).normal(size=score.shape)
    results[0].result["score"] = (0.5 * score + 0.04 * (noise + noise.T)).tolist()
    (claim, *_) = STUDY.claims
    assert claim.judge(results, config).verdict == "undecided"
    monkeypatch.setattr(claims, "TRENDS", 1)
    assert claim.judge(results, config).verdict == "reproduced"


def test_what_was_not_run_is_said(tmp_path: Path) -> None:
    config = VisionConfig(data="digits", members="few")
    page = Report("A")
    STUDY.report(page, config, Results([row for row in planted(config, 1) if isinstance(row.cell, Network)]))
    assert "not run" in page.summary
    assert "not run" in page.to_html()


def test_alignment_against_competence_is_reported_with_its_controls(tmp_path: Path) -> None:
    config = VisionConfig.of_budget(
        "quick", **TINY, samples=60, draws=9, k=5, kept=tmp_path / "kept", out=tmp_path / "out"
    )
    report = STUDY.run(config)
    bins, trends = tables(report, "Alignment within bins of competence")
    assert (len(bins["rows"]), len(trends["rows"])) == (4, TRENDS)
    assert trends["columns"][-1] == "99.2 % interval"
    assert f"all {TRENDS} hold together" in trends["caption"]
    assert f"one of {TRENDS} trends" in report.claims[0].measured
    assert report.claims[0].over.endswith(f"corrected for {TRENDS} that are looked at")
    assert [len(row) for row in tables(report, "Every model")[0]["rows"]] == [10] * 11
    assert [claim.verdict for claim in report.claims] == ["not judged"] * 3
    rows = report.results["rows"]
    assert sum(row["cell"] == PairScores.__name__ for row in rows) == 9
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "not run" in page  # networks of others, and transfer
    assert "this is not transfer" in page
    lines: list[str] = []
    STUDY.run(config, on_progress=lines.append)
    assert lines == [f"{len(rows)} kept, 0 to compute"] or "0 to compute" in lines[0]


def tables(report: Report, title: str) -> list[dict[str, Any]]:
    (section,) = (section for section in report.to_dict()["sections"] if section["title"] == title)
    return [block for block in section["blocks"] if block["kind"] == "table"]


def test_missing_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="data_dir"):
        STUDY.run(VisionConfig(data_dir=tmp_path / "nowhere", kept=tmp_path))
