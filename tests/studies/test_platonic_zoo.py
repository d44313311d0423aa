"""The zoo: members are what they say, are trained once, and their pairs are scored beside chance."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unrolled import studies
from unrolled.alignment.chance import compare
from unrolled.alignment.registry import mutual_knn
from unrolled.errors import MissingData
from unrolled.studies import platonic_vision, platonic_zoo
from unrolled.studies.platonic_members import KINDS, Member, build, roster
from unrolled.studies.platonic_zoo import ZooConfig, augmented, features, pictures, stages, trained, zoo
from unrolled.studies.platonic_zoo_stats import (
    classical_mds,
    mean_interval,
    over_models,
    pair_places,
    pair_scores,
    spearman,
)

TINY: dict[str, Any] = {
    "data": "digits", "members": "few", "steps": 2, "batch_size": 8, "samples": 60, "workers": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZooConfig]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config = ZooConfig(zoo=tmp_path_factory.mktemp("zoo"), **TINY)
    zoo(config)
    yield config
    torch.set_num_threads(threads)


def test_the_full_zoo_has_every_sort_of_member() -> None:
    members = roster("full")
    assert len(members) >= 24
    assert len({member.name for member in members}) == len(members)
    for kind in KINDS:
        own = [member for member in members if member.kind == kind]
        assert {member.size for member in own} == {"small", "large"}
        assert len({member.seed for member in own if member.sound and member.share == 1}) == 3
        assert {"true labels", "half of the classes", "untrained", "labels half shuffled", "labels all shuffled"} == {
            member.group for member in own
        }


def test_shuffled_labels_say_nothing_about_the_class() -> None:
    labels = torch.arange(10).repeat(1000)
    taught = {
        name: Member(kind="cnn", size="small", seed=0, taught=name).taught_labels(labels, 10)  # type: ignore[arg-type]
        for name in ("labels", "half shuffled", "all shuffled")
    }
    assert torch.equal(taught["labels"], labels)
    # a label drawn anew is right one time in ten
    for name, right in (("half shuffled", 0.55), ("all shuffled", 0.1)):
        assert float((taught[name] == labels).double().mean()) == pytest.approx(right, abs=0.02)
        assert np.bincount(taught[name]).std() < 100
    half = Member(kind="cnn", size="small", seed=0, classes=(0, 1)).taught_labels(labels, 10)
    assert set(half.tolist()) == {-1, 0, 1}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("side", "channels"), [(8, 1), (32, 3)])
def test_the_stages_of_a_member_compose_to_it_and_its_weights_follow_from_the_seed(
    kind: Any, side: int, channels: int
) -> None:
    member = Member(kind=kind, size="small", seed=1)
    before = torch.random.get_rng_state()
    one, two = (build(member, side=side, channels=channels, classes=10).eval() for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    images = torch.randn(2, channels, side, side)
    tokens = images
    for stage in stages(one):
        tokens = stage(tokens)
    assert torch.allclose(tokens, one(images), atol=1e-6)
    assert torch.equal(one(images), two(images))


def test_augmentation_moves_and_mirrors_but_keeps_pixels() -> None:
    image = torch.arange(32 * 32).reshape(1, 1, 32, 32).repeat(64, 2, 1, 1)
    out = augmented(image, torch.Generator().manual_seed(0))
    assert out.shape == image.shape
    again = augmented(image, torch.Generator().manual_seed(0))
    assert torch.equal(out, again)
    inner = out[:, 0, 8:24, 8:24]
    steps = (inner[:, :, 1:] - inner[:, :, :-1]).flatten(1)
    assert set(steps.unique().tolist()) == {-1, 1}  # columns run one way or, mirrored, the other
    assert ((inner[:, 1:] - inner[:, :-1]) == 32).all()


def test_a_kept_member_is_not_trained_again(tiny: ZooConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("looked for training images")

    model = trained(tiny, roster("few")[0])
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    real = pictures
    monkeypatch.setattr(
        platonic_zoo, "pictures", lambda data, split, where: refuse() if split == "train" else real(data, split, where)
    )
    again = trained(tiny, roster("few")[0])
    assert all(torch.equal(value, weights[name]) for name, value in again.state_dict().items())
    said: list[str] = []
    records = zoo(tiny, on_progress=said.append)
    assert not said
    assert len(records) == len(roster("few"))
    assert all(record["transfer"] is None for record in records.values())  # digits have no other data


def test_features_are_of_held_out_images_of_every_layer(tiny: ZooConfig) -> None:
    for member in roster("few")[::2]:
        found = features(tiny, member)
        assert len(found) == 3
        assert found.samples == 60
    test = {image.numpy().tobytes() for image in pictures("digits", "test", tiny.data_dir).images}
    train = [image.numpy().tobytes() for image in pictures("digits", "train", tiny.data_dir).images]
    assert sum(image in test for image in train) <= 1  # the digits hold a duplicate or none


@pytest.mark.slow
def test_two_processes_give_the_same_members(tiny: ZooConfig, tmp_path: Path) -> None:
    both = ZooConfig(**{**TINY, "workers": 2}, zoo=tmp_path)
    names = [member.name for member in roster("few")]
    for name in names[2:]:  # only two are missing
        (tmp_path / "cells").mkdir(exist_ok=True)
        (tmp_path / "cells" / f"{name}.json").write_bytes((tiny.zoo / "cells" / f"{name}.json").read_bytes())
    records, alone = zoo(both), zoo(tiny)
    for name in names[:2]:
        assert records[name]["accuracy"] == alone[name]["accuracy"]
        assert records[name]["probe"] == pytest.approx(alone[name]["probe"], abs=1e-9)


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
        found = pair_scores(models, "unbiased_cka", draws=99, seed=repeat).p_value
        reached += int((found[pairs] <= 0.05).sum())
    assert reached <= 29  # of 336; 5 % are 17, and more than 29 come with probability 0.002


def test_intervals_over_models_count_no_model_beside_itself() -> None:
    chosen = np.array([0, 0, 1, 2])
    i, j = pair_places(chosen, np.ones((3, 3), dtype=bool))
    assert len(i) == 5
    assert (i != j).all()
    values = np.linspace(0, 1, 30)
    low, high = over_models(lambda drawn: float(values[drawn].mean()), 30)
    assert low < 0.5 < high
    assert all(np.isnan(over_models(lambda drawn: float("nan"), 5)))
    mean, low, high = mean_interval(values)
    assert low < mean < high
    assert spearman([1, 2, 3, float("nan")], [2, 4, 9, 1]) == 1
    assert np.isnan(spearman([1, 1, 1], [1, 2, 3]))


def test_scaling_finds_points_of_a_plane_again() -> None:
    points = np.random.default_rng(0).normal(size=(12, 2))
    distance = np.linalg.norm(points[:, None] - points[None, :], axis=-1)
    found, share = classical_mds(distance)
    assert np.linalg.norm(found[:, None] - found[None, :], axis=-1) == pytest.approx(distance, abs=1e-9)
    assert share == pytest.approx(1.0)


def test_alignment_against_competence_is_reported_with_its_controls(tiny: ZooConfig, tmp_path: Path) -> None:
    config = platonic_vision.Config(**TINY, zoo=tiny.zoo, out=tmp_path, draws=9, k=5)
    report = platonic_vision.run(config)
    found = report.results
    assert found["pairs"] == 55
    assert len(found["bins"]) == 4
    assert {entry["pairs"] for entry in found["trends"]} == {
        "all pairs", "different kinds", "different kinds, true labels only",
    }  # fmt: skip
    assert len(report.claims) == 3
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "not run" in page
    assert "this is not transfer" in page
    said: list[str] = []
    platonic_vision.run(config, on_progress=said.append)
    assert not [line for line in said if line.startswith("zoo")]


def test_bad_settings_and_missing_images_are_named(tmp_path: Path) -> None:
    for settings, match in (({"steps": 0}, "steps"), ({"samples": 5}, "samples"), ({"k": 2000}, "k")):
        with pytest.raises(ValueError, match=match):
            platonic_vision.Config(**settings)
    with pytest.raises(MissingData, match="data_dir"):
        zoo(ZooConfig(data_dir=tmp_path / "nowhere", zoo=tmp_path))
    assert studies.load("platonic-vision").config is platonic_vision.Config
