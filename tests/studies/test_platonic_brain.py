"""Dissimilarities of people and networks: ceilings, chance, and a study that says what it could not run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as running
from hypothesis import strategies as st

from tests.records import N, brain_records, rdm
from unrolled import studies
from unrolled.alignment.people import agreement, correlation_rdms, noise_ceiling, unit_ranks, upper
from unrolled.data.human import brains, named_colours
from unrolled.errors import CorruptFile, MissingData
from unrolled.studies.cells import Row
from unrolled.studies.platonic.brain.cells import BrainConfig, Given
from unrolled.studies.platonic.brain.report import smallest_gain
from unrolled.studies.results import Estimate, Results


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    """A data folder with records of the same layout, few pictures and no weights."""
    brain_records(tmp_path / "data")
    return tmp_path / "data"


@given(seed=st.integers(0, 999))
@running(max_examples=15, deadline=None)
def test_unit_ranks_multiply_to_spearman(seed: int) -> None:
    from scipy.stats import spearmanr

    a, b = np.random.default_rng(seed).integers(0, 9, (2, 30)).astype(float)
    assert unit_ranks(a) @ unit_ranks(b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-9)


def test_people_who_agree_have_a_ceiling_of_one_and_a_perfect_model_reaches_it() -> None:
    generator = np.random.default_rng(0)
    same = rdm(generator)
    people = np.stack([same] * 3)
    assert noise_ceiling(people) == pytest.approx((1.0, 1.0))
    other = rdm(generator)
    found = agreement(np.stack([other, 2 * same + 1]), people, draws=60)
    assert found.best == 1
    assert found.score == pytest.approx(1)
    assert found.tau == pytest.approx(1)
    assert found.p == pytest.approx(1 / 61)
    assert found.interval == pytest.approx((1.0, 1.0))
    assert found.null < 0.4
    assert noise_ceiling(np.stack([rdm(generator) for _ in range(3)]))[0] < 0.5


def test_the_p_value_allows_for_the_choice_of_the_best_layer() -> None:
    generator = np.random.default_rng(1)
    rejected = 0
    for seed in range(40):
        layers = np.stack([rdm(generator) for _ in range(12)])
        rejected += agreement(layers, np.stack([rdm(generator) for _ in range(2)]), draws=40, seed=seed).p <= 0.05
    assert rejected <= 6  # 2 expected; the uncorrected test would reject about 18


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_rounding_leaves_of_rows_without_variance_is_no_structure(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    level = torch.randn(5, 1, generator=generator, dtype=dtype).expand(5, 77)
    rounded = level * (1 + torch.finfo(dtype).eps * torch.randn(5, 77, generator=generator, dtype=dtype))
    found = correlation_rdms([torch.ones(5, 3), level, rounded, torch.randn(5, 8, generator=generator)])
    assert (found[:3] == 1 - np.eye(5)).all()
    assert np.ptp(upper(found[3])) > 0.1
    assert (np.diagonal(found, axis1=1, axis2=2) == 0).all()
    pixels = torch.randint(256, (5, 9), generator=generator, dtype=torch.uint8)
    assert (correlation_rdms([pixels]) == correlation_rdms([pixels.to(dtype)])).all()


def run(data_dir: Path, tmp_path: Path, **settings: Any) -> Any:
    """The report, few draws unless said otherwise."""
    config = BrainConfig(data_dir=data_dir, out=tmp_path / "out", kept=tmp_path / "kept", **{"draws": 10, **settings})
    return studies.load("platonic-brain").run(config)


def test_a_study_without_weights_and_zoo_says_what_is_not_run(made_up: Path, tmp_path: Path) -> None:
    report = run(made_up, tmp_path)
    rows = report.results["rows"]
    assert {row["what"] for row in rows if "what" in row} >= {"pixels", "random numbers", "monkeyIT"}
    assert {row["cell"] for row in rows} == {"Ceiling", "Recorded", "Control"}
    table = {section.title: section.blocks[-1].rows for section in report.sections[1:3]}
    not_run = [row[0] for row in table["Every network"] if row[2] == "not run"]
    assert not_run == [name for name in BrainConfig().networks for _ in range(2)] + ["members of the zoo"]
    assert [row[2] for row in table["Names beside human judgement"]] == ["not run"] * 7
    # nothing that was not measured counts as reproduced
    assert [claim.verdict for claim in report.claims[3:]] == ["not run", "not run"]
    assert report.sections[-1].title == "Not run"


def test_names_are_judged_without_records_of_brains(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "human-similarity"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    groups = np.stack([rdm(generator)] * 2)
    np.savez(folder / "colour93_human.npz", lab=generator.normal(size=(N, 3)), group_dissimilarity=groups,
             missing=np.zeros_like(groups, bool))  # fmt: skip
    (folder / "xkcd_colours.tsv").write_text("name\tL\ta\tb_lab\nred\t1\t0\t0\n", encoding="utf-8")
    report = run(tmp_path / "data", tmp_path, members=0)
    assert [row["vectors"] for row in report.results["rows"]] == ["CIELAB"]
    assert report.summary == "The records of brains were not compared with anything."


def test_members_of_the_zoo_are_trained_where_there_are_none(
    made_up: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unrolled.studies import networks
    from unrolled.studies.pictures import Pictures

    few = Pictures(
        images=torch.randint(256, (20, 3, 32, 32), dtype=torch.uint8), labels=torch.arange(20) % 10,
        classes=tuple("abcdefghij"),
    )  # fmt: skip
    monkeypatch.setattr(networks, "pictures", lambda *_: few)
    report = run(made_up, tmp_path, members=1, images=512, networks=())
    (row,) = [row for row in report.results["rows"] if row["cell"] == "OfMember"]
    assert (row["what"], len(row["by_layer"])) == ("crate-small-seed0", 3)
    assert list((tmp_path / "kept" / "Network").glob("*.pt"))


def test_a_gain_by_training_is_judged_on_equal_resamplings() -> None:
    def row(what: str, trained: bool, score: float, resampled: list[float]) -> Row[Given]:
        return Row(Given(what=what, trained=trained, draws=3, drawn=0), {"score": score, "resampled": resampled}, 0.0)

    rows = [
        row("tiny_darknet", True, 0.3, [0.1, 0.3, 0.5]),
        row("tiny_darknet", False, 0.2, [0.0, 0.2, 0.4]),
        row("squeezenet1_1", True, 0.9, [0.9] * 3),
        row("squeezenet1_1", False, 0.2, [0.2] * 3),
        row("resnet20", True, 0.0, [0.0] * 3),
        row("resnet20", False, 0.1, [0.1] * 3),  # not of ImageNet
    ]
    gain = smallest_gain(Results(rows), BrainConfig())
    assert isinstance(gain, Estimate)
    # scores of resamplings vary together: their difference is certain
    assert (gain.value, gain.low, gain.high) == pytest.approx((0.1, 0.1, 0.1))
    assert not smallest_gain(Results(rows[:1]), BrainConfig())


def test_missing_and_damaged_records_are_named(made_up: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"brain-92images was not found .*; give data_dir="):
        run(tmp_path / "nowhere", tmp_path)
    path = made_up / "brain-92images" / "brain_92images.npz"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CorruptFile, match="brain_92images"):
        brains(made_up)
    table = tmp_path / "colours.tsv"
    table.write_text("name\tL\nred\tx\n", encoding="utf-8")
    with pytest.raises(CorruptFile, match="colours"):
        named_colours(table)


def test_the_records_give_the_published_numbers(shared: Path) -> None:
    records = brains(shared / "data")
    assert noise_ceiling(records.human) == pytest.approx((0.377, 0.672), abs=0.01)
    monkey = unit_ranks(upper(records.monkey)) @ unit_ranks(upper(records.human.mean(0)))
    assert monkey == pytest.approx(0.439, abs=0.0005)
    means = unit_ranks(upper(records.human)) @ unit_ranks(upper(records.models["animacy"]))
    assert means.mean() == pytest.approx(0.386, abs=0.001)
