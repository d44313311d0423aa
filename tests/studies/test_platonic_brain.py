"""Dissimilarities of people and networks: ceilings, chance, and a study that says what it could not run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unrolled import studies
from unrolled.errors import CorruptFile, MissingData
from unrolled.studies.platonic.human import (
    agreement,
    brains,
    correlation_rdms,
    named_colours,
    noise_ceiling,
    unit_ranks,
    upper,
)
from unrolled.studies.platonic_brain import Config, kept_members, run

N = 14


def _rdm(generator: np.random.Generator, noise: float = 0.0, base: Any = None) -> Any:
    x = generator.normal(size=(N, 6)) if base is None else base + noise * generator.normal(size=(N, 6))
    return np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    """A data folder with records of the same layout, few pictures and no weights."""
    generator = np.random.default_rng(0)
    base = generator.normal(size=(N, 6))
    people = ["A", "A", "B", "B", "C", "C"]
    folder = tmp_path / "data" / "brain-92images"
    folder.mkdir(parents=True)
    np.savez(
        folder / "brain_92images.npz",
        stimuli=generator.integers(0, 256, (N, 20, 20, 3), dtype=np.uint8),
        human_it=np.stack([_rdm(generator, 0.5, base) for _ in people]),
        human_it_names=np.array([f"hIT | {who} | Session: {i % 2}" for i, who in enumerate(people)]),
        monkey_it=_rdm(generator, 0.3, base),
        models=np.stack([_rdm(generator) for _ in range(5)]),
        model_names=np.array(["monkeyIT", "animacy", "HMAX", "V1", "Silhouette"]),
    )
    return tmp_path / "data"


@given(seed=st.integers(0, 999))
@settings(max_examples=15, deadline=None)
def test_unit_ranks_multiply_to_spearman(seed: int) -> None:
    from scipy.stats import spearmanr

    a, b = np.random.default_rng(seed).integers(0, 9, (2, 30)).astype(float)
    assert unit_ranks(a) @ unit_ranks(b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-9)


def test_people_who_agree_have_a_ceiling_of_one_and_a_perfect_model_reaches_it() -> None:
    generator = np.random.default_rng(0)
    same = _rdm(generator)
    people = np.stack([same] * 3)
    assert noise_ceiling(people) == pytest.approx((1.0, 1.0))
    other = _rdm(generator)
    found = agreement(np.stack([other, 2 * same + 1]), people, draws=60)
    assert found.best == 1
    assert found.score == pytest.approx(1)
    assert found.tau == pytest.approx(1)
    assert found.p == pytest.approx(1 / 61)
    assert found.interval == pytest.approx((1.0, 1.0))
    assert found.null < 0.4
    assert noise_ceiling(np.stack([_rdm(generator) for _ in range(3)]))[0] < 0.5


def test_the_p_value_allows_for_the_choice_of_the_best_layer() -> None:
    generator = np.random.default_rng(1)
    rejected = 0
    for seed in range(40):
        layers = np.stack([_rdm(generator) for _ in range(12)])
        rejected += agreement(layers, np.stack([_rdm(generator) for _ in range(2)]), draws=40, seed=seed).p <= 0.05
    assert rejected <= 6  # 2 expected; the uncorrected test would reject about 18


def test_a_layer_without_variance_is_distance_zero_everywhere() -> None:
    found = correlation_rdms([torch.ones(5, 3), torch.randn(5, 8)])
    assert np.isfinite(found).all()
    assert np.allclose(np.diagonal(found, axis1=1, axis2=2), 0)


def test_a_study_without_weights_and_zoo_says_what_is_not_run(made_up: Path, tmp_path: Path) -> None:
    config = Config(data_dir=made_up, zoo=tmp_path / "zoo", out=tmp_path / "out", draws=10)
    report = run(config)
    record = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert record["results"]["missing"] == list(config.networks)
    assert record["results"]["words"] == []
    assert {cell["name"] for cell in record["results"]["networks"]} >= {"pixels", "random numbers", "monkeyIT"}
    # nothing that was not measured counts as reproduced
    assert report.claims[3].measured == report.claims[4].measured == "not run"
    assert report.claims[3].reproduced is False
    assert "not run" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_missing_and_damaged_records_are_named(made_up: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="data_dir"):
        run(Config(data_dir=tmp_path / "nowhere", out=tmp_path))
    path = made_up / "brain-92images" / "brain_92images.npz"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CorruptFile, match="brain_92images"):
        brains(made_up)
    table = tmp_path / "colours.tsv"
    table.write_text("name\tL\nred\tx\n", encoding="utf-8")
    with pytest.raises(CorruptFile, match="colours"):
        named_colours(table)
    assert kept_members(tmp_path / "nowhere") == []


def test_the_records_give_the_published_numbers(shared: Path) -> None:
    records = brains(shared / "data")
    assert noise_ceiling(records.human) == pytest.approx((0.377, 0.672), abs=0.01)
    monkey = unit_ranks(upper(records.monkey)) @ unit_ranks(upper(records.human.mean(0)))
    assert monkey == pytest.approx(0.439, abs=0.0005)
    means = unit_ranks(upper(records.human)) @ unit_ranks(upper(records.models["animacy"]))
    assert means.mean() == pytest.approx(0.386, abs=0.001)


def test_bad_settings_are_refused_by_name() -> None:
    for given_, match in (({"networks": ("resnet",)}, "networks"), ({"draws": 1}, "draws"), ({"concepts": 1}, "conc")):
        with pytest.raises(ValueError, match=match):
            Config(**given_)  # type: ignore[arg-type]
    assert studies.load("platonic-brain").config is Config
