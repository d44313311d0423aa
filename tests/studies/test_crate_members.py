"""The roster the crate studies share: built as named, trained once, kept and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from unrolled import studies
from unrolled.studies.base import Budget
from unrolled.studies.crate import networks
from unrolled.studies.crate_members import KINDS, Member, MembersConfig, build, kept, record, trained


def tiny(folder: Path, **changes: object) -> MembersConfig:
    return MembersConfig(**{"members": folder, "images": 384, "workers": 1, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_built_from_its_seed(kind: str) -> None:
    one, same, other = (build(Member(kind=kind, seed=seed), classes=10).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_alpha_grows_by_one_change_at_a_time() -> None:
    sizes = [
        sum(parameter.numel() for parameter in build(Member(kind=kind), classes=10).parameters())
        for kind in ("crate", "overcomplete", "decoupled", "alpha")
    ]
    assert sizes[0] < sizes[1] < sizes[2] == sizes[3]


def test_a_member_is_trained_once_and_kept(tmp_path: Path) -> None:
    config, member = tiny(tmp_path), Member(kind="crate", data="digits")
    assert not kept(config, member)
    found = record(config, member)
    assert kept(config, member)
    assert found["images"] == 384
    assert 0 <= found["accuracy"] <= 1
    weights = trained(config, member).state_dict()
    before = build(member, classes=10, channels=1, side=8).state_dict()
    assert any(not torch.equal(weights[name], before[name]) for name in weights)
    again = trained(config, member).state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)


@pytest.mark.parametrize("kind", ["mae-visible", "regularised"])
def test_an_interrupted_member_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    member = Member(kind=kind, data="digits")
    whole = trained(tiny(tmp_path / "whole"), member).state_dict()

    saves = []
    real = torch.save

    def stop(state: dict[str, object], path: Path) -> None:
        real(state, path)
        saves.append(state["step"])
        if state["step"] != 3:
            raise KeyboardInterrupt

    config = tiny(tmp_path / "parts")
    train_kept = networks.train_kept
    monkeypatch.setattr(
        "unrolled.studies.crate.networks.train_kept", lambda *a, **k: train_kept(*a, **{**k, "every": 2})
    )
    monkeypatch.setattr(torch, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        trained(config, member)
    assert saves == [2]
    for left in (config.members / "models").glob("*.part"):
        left.replace(config.members / "models" / f"{member.name}.pt")
    monkeypatch.setattr(torch, "save", real)
    parts = trained(config, member).state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_save_coincides_with_a_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was lost between a look and a kill would be missing from the loss at the next look."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr("unrolled.studies.crate.networks.train_kept", lambda *_, **options: asked.update(options))
    for images in (384, 96_000):
        trained(tiny(tmp_path, images=images), Member(kind="crate", data="digits"))
        saves = set(range(asked["every"], asked["steps"], asked["every"]))
        assert saves
        assert saves <= set(asked["look_at"])


@pytest.mark.parametrize("budget", ["quick", "cpu", "gpu"])
def test_studies_that_share_a_folder_share_the_settings_of_its_members(budget: Budget) -> None:
    """Members of other settings under the same names would overwrite each other."""
    found: dict[Path, set[tuple[int, str]]] = {}
    for name in studies.STUDIES:
        kind = studies.load(name).config
        if issubclass(kind, MembersConfig):
            config = kind.of_budget(budget)
            found.setdefault(config.members, set()).add((config.images, config.device))
    assert found
    assert all(len(settings) == 1 for settings in found.values()), found
    others = [MembersConfig.members] if budget != "cpu" else [Path("runs/crate-quick"), Path("runs/crate-members-gpu")]
    assert not set(others) & set(found)


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="images"):
        tiny(tmp_path, images=10)
    with pytest.raises(ValueError, match="kind='crete'"):
        Member(kind="crete")
