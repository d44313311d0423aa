"""White against black box: a difference at equal accuracy is found, accuracy alone makes none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unrolled import studies
from unrolled.data import human
from unrolled.studies import networks as small_networks
from unrolled.studies.cells import Context, Row
from unrolled.studies.networks import Network
from unrolled.studies.pictures import Pictures
from unrolled.studies.platonic import whitebox, words, zoo
from unrolled.studies.platonic.whitebox import NearBrains, View, WhiteboxConfig
from unrolled.studies.platonic.words import NearWords, class_means
from unrolled.studies.results import Results


def test_a_difference_at_equal_accuracy_is_found_and_accuracy_alone_is_none() -> None:
    generator = np.random.default_rng(0)
    config = WhiteboxConfig(within=0.03)
    zoo = config.compared
    crate = np.array([network.kind.startswith("crate") for network in zoo])
    assert (crate.sum(), len(zoo)) == (6, 14)
    accuracy = np.concatenate([np.linspace(0.4, 0.5, 6), np.linspace(0.45, 0.6, 8)])
    noise = 0.01 * generator.normal(size=14)
    closeness = {"human IT": accuracy + 0.2 * crate + noise, "monkey IT": accuracy + noise}
    scores = np.full((14, 14), 0.5)
    scores[np.ix_(crate, ~crate)] = scores[np.ix_(~crate, crate)] = 0.3
    rows: list[Row[Any]] = [Row(network, {"accuracy": a}, 0.0) for network, a in zip(zoo, accuracy, strict=True)]
    for place, network in enumerate(zoo):
        near = {target: values[place] for target, values in closeness.items()}
        rows.append(Row(NearBrains(network=network), near, 0.0))
    pairs = {"score": scores.tolist(), "chance": np.zeros((14, 14)).tolist(), "p_value": scores.tolist()}
    rows.append(Row(config.between["mutual k-NN"], pairs, 0.0))
    view = View(Results(rows), config)
    nearer, as_accurate = view.difference("human IT"), view.difference("monkey IT")
    assert nearer is not None
    assert as_accurate is not None
    for which in ("matched", "adjusted"):
        assert getattr(nearer, which).value == pytest.approx(0.2, abs=0.02)
        assert getattr(nearer, which).low > 0.15
        assert getattr(as_accurate, which).low - 0.01 < 0 < getattr(as_accurate, which).high + 0.01
    # the means differ, because ViTs are more accurate: that is what matching takes out
    assert as_accurate.vit > as_accurate.crate + 0.05
    assert view.difference("GloVe") is None
    groups = view.groups("mutual k-NN")
    assert groups is not None
    assert (groups["gap"].value, groups["CRATE-CRATE"].value) == pytest.approx((0.2, 0.5))
    assert view.groups("unbiased CKA, last layers") is None
    # without one of the networks nothing is compared
    assert View(Results(rows[1:]), config).difference("human IT") is None


def test_white_and_black_box_are_reported_without_a_verdict(tmp_path: Path) -> None:
    study = studies.load("platonic-whitebox")
    settings: dict[str, Any] = {"data": "digits", "members": "few", "images": 512, "samples": 60, "workers": 1}
    report = study.run(study.config(**settings, kept=tmp_path / "kept", out=tmp_path))
    assert {claim.verdict for claim in report.claims} == {"not judged", "not run"}
    assert len([row for row in report.results["rows"] if row["cell"] == "Network"]) == 4
    table = {row[0]: row[1:] for row in report.sections[1].blocks[1].rows}
    assert table["human IT"] == ("not run",) * 5
    # two networks of a kind are too few for an interval, and the page says so
    assert "(no interval)" in table["CNNs"][3]


def test_class_means_are_means_of_classes() -> None:
    rows, labels = torch.randn(12, 3), torch.arange(12) % 4
    torch.testing.assert_close(class_means(rows, labels, 4)[2], rows[2::4].mean(0))


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Network:
    """A network, and images of 40 classes that it and its probes are shown."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (80, 3, 32, 32), dtype=torch.uint8, generator=generator)
    shown = Pictures(images=images, labels=torch.arange(80) % 40, classes=tuple(f"{i}, x" for i in range(40)))
    monkeypatch.setattr(small_networks, "pictures", lambda *_: shown)
    monkeypatch.setattr(words, "unseen_pictures", lambda _: shown)
    monkeypatch.setattr(zoo, "unseen_pictures", lambda _: shown)
    monkeypatch.setattr(words, "open_model", lambda *_: None)
    return Network(kind="crate-small", data="cifar10", seed=0, images=0)


def test_words_that_lie_as_class_means_do_are_near(
    made_up: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = Context(store=tmp_path, data_dir=tmp_path)
    shown = words.unseen_pictures(tmp_path)
    means = class_means(zoo.last_layer(made_up.load(context), shown.images), shown.labels, 40)
    unknown = torch.cat([torch.zeros(3, means.shape[1]), means[3:]])  # three names without a vector
    monkeypatch.setattr(words, "word_vectors", lambda name, texts, folder: unknown)
    near = NearWords(network=made_up, words="glove", k=5).compute(context)
    assert near == {"gain": pytest.approx(1.0), "classes": 37}
    assert NearWords(network=made_up, words="glove", k=20).compute(context)["gain"] is None
    assert NearWords(network=made_up, words="glove", k=5, share=0.5).compute(context)["gain"] < 1


def test_a_brain_that_sees_as_a_block_does_is_near(
    made_up: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unrolled.alignment import rdm
    from unrolled.instruments.features import extract
    from unrolled.studies.pictures import as_input

    stimuli = np.random.default_rng(0).integers(0, 256, (20, 40, 40, 3), dtype=np.uint8)
    context = Context(store=tmp_path, data_dir=tmp_path)
    images = as_input(whitebox.small(torch.from_numpy(stimuli).movedim(-1, 1), 32))
    seen = [rdm(rows).double().numpy() for rows in extract(made_up.load(context), images, layers="block*").values()]
    noise = np.random.default_rng(1).normal(size=(20, 20))
    records = human.Brains(stimuli, np.stack([seen[1]] * 3), noise + noise.T, {})
    monkeypatch.setattr(whitebox, "brains", lambda _: records)
    near = NearBrains(network=made_up).compute(context)
    assert near["human IT"] == pytest.approx(1.0)
    assert near["monkey IT"] < 0.5
