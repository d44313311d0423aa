"""The roster that studies share: built as named, taught what it is said to be, trained from a seed, resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from unrolled.instruments.features.pooling import prefix_tokens
from unrolled.studies import networks
from unrolled.studies.cells import Context
from unrolled.studies.kinds import BLOCKS, KINDS, build, stages
from unrolled.studies.networks import Network, Taught, images_seen, taught_labels
from unrolled.studies.pictures import augmented, pictures


def network(kind: str, *, seed: int = 0, images: int = 384) -> Network:
    return Network(kind=kind, data="digits", seed=seed, images=images)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_built_from_its_seed(kind: str) -> None:
    one, same, other = (build(network(kind, seed=seed), classes=10).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_alpha_grows_by_one_change_at_a_time() -> None:
    sizes = [
        sum(parameter.numel() for parameter in build(network(kind), classes=10).parameters())
        for kind in ("crate", "overcomplete", "decoupled", "alpha")
    ]
    assert sizes[0] < sizes[1] < sizes[2] == sizes[3]


def test_a_network_is_trained_once_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, cell = Context(store=tmp_path), network("crate")
    result = cell.compute(context)
    assert 0 <= result["accuracy"] <= 1
    weights = cell.load(context).state_dict()
    before = build(cell, classes=10, channels=1, side=8).state_dict()
    assert any(not torch.equal(weights[name], before[name]) for name in weights)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: pytest.fail("trained again"))
    again = cell.load(context).state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)


@pytest.mark.parametrize("kind", ["crate-small", "vit-large", "cnn-small"])
@pytest.mark.parametrize(("side", "channels"), [(8, 1), (32, 3)])
def test_the_stages_of_a_network_compose_to_it(kind: str, side: int, channels: int) -> None:
    before = torch.random.get_rng_state()
    model = build(network(kind, seed=1), side=side, channels=channels, classes=10).eval()
    assert torch.equal(before, torch.random.get_rng_state())
    images = torch.randn(2, channels, side, side)
    tokens = images
    for stage in stages(model):
        tokens = stage(tokens)
    assert torch.allclose(tokens, model(images), atol=1e-6)


@pytest.mark.parametrize("kind", BLOCKS)
def test_every_reading_of_prefix_tokens_is_what_the_network_says(kind: str) -> None:
    model: Any = build(network(kind), classes=10)
    assert prefix_tokens(model, None)[0] == model.num_prefix_tokens


def test_shuffled_labels_say_nothing_about_the_class() -> None:
    labels = torch.arange(10).repeat(1000)
    taught = {name: taught_labels(name, labels, 10, seed=0) for name in get_args(Taught)}
    assert torch.equal(taught["labels"], labels)
    # a label drawn anew is right one time in ten
    for name, right in (("half shuffled", 0.55), ("all shuffled", 0.1)):
        assert float((taught[name] == labels).double().mean()) == pytest.approx(right, abs=0.02)
        assert np.bincount(taught[name]).std() < 100


def test_a_network_of_some_classes_sees_and_is_scored_on_no_others(tmp_path: Path) -> None:
    cell = Network(kind="cnn-small", data="digits", seed=0, images=128, classes=(0, 1))
    assert set(cell.lessons(Context()).labels.tolist()) == {0, 1}
    test = pictures("digits", "test", Path()).of_classes((0, 1))
    model = cell.load(Context(store=tmp_path))
    assert cell.compute(Context(store=tmp_path))["accuracy"] == networks.accuracy(model, test)


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


@pytest.mark.parametrize("kind", ["mae-visible", "regularised"])
def test_an_interrupted_training_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    cell = network(kind)
    whole = cell.load(Context(store=tmp_path / "whole")).state_dict()

    saves = []
    real = torch.save

    def stop(state: dict[str, object], path: Path) -> None:
        real(state, path)
        saves.append(state["step"])
        if state["step"] != 3:
            raise KeyboardInterrupt

    context = Context(store=tmp_path / "parts")
    train_resumable = networks.train_resumable
    monkeypatch.setattr(networks, "train_resumable", lambda *a, **k: train_resumable(*a, **{**k, "every": 2}))
    monkeypatch.setattr(torch, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        cell.load(context)
    assert saves == [2]
    weights = cell.checkpoint(context).path
    for left in weights.parent.glob("*.part"):
        left.replace(weights)
    monkeypatch.setattr(torch, "save", real)
    parts = cell.load(context).state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_save_coincides_with_a_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was lost between a look and a kill would be missing from the loss at the next look."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(networks, "train_resumable", lambda *_, **options: asked.update(options))
    for images in (384, 96_000):
        network("crate", images=images).load(Context(store=tmp_path))
        saves = set(range(asked["every"], asked["steps"], asked["every"]))
        assert saves
        assert saves <= set(asked["look_at"])


def test_more_classes_are_shown_more_images() -> None:
    assert (images_seen(1000, "cifar10"), images_seen(1000, "tiny-imagenet-32")) == (1000, 1500)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="images"):
        network("crate", images=10)
    with pytest.raises(ValueError, match="kind='crete'"):
        network("crete")
