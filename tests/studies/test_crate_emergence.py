"""The study of emergence: its scores are the instruments', heads are chosen on other photos, nothing is invented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unrolled import studies
from unrolled.instruments.emergence import EmergenceScorer, Photo
from unrolled.studies import crate_emergence, crate_emergence_pictures
from unrolled.studies import crate_emergence_maps as maps
from unrolled.studies.crate_emergence import Config, difference, map_of, network, run
from unrolled.studies.crate_emergence_photos import Shot, as_square, coco, commonest, generated
from unrolled.studies.crate_emergence_tables import STATES
from unrolled.studies.crate_members import Member

TINY: dict[str, Any] = {
    **{"source": "generated", "photos": 4, "border_photos": 2, "seeds": (0,), "kinds": ("crate", "mae")},
    **{"changes": (), "side": 32, "other_sides": (), "parts": 2, "workers": 1},
}


def untrained(kind: str) -> torch.nn.Module:
    return network(Config(), Member(kind=kind, data="tiny-imagenet-32", trained=False))


def test_scores_are_those_of_the_instrument() -> None:
    shots, model = generated(3), untrained("crate")
    found = maps.segmentation(model, shots, 32)
    scorer = EmergenceScorer(range(found["layers"]))
    for batch, patches in maps.read(model, [s for s in shots if s.half == "report"], 32):
        assert patches.attention is not None
        for i, (shot, pixels) in enumerate(zip(batch, as_square(batch, 32), strict=True)):
            photo = Photo(pixels, {"things": shot.things()}, shot.ignore())
            scorer.add(patches.attention[:, i], patches.grid, photo)
    truth = scorer.result()
    for rule in maps.RULES:
        own = found["maps"]["class token"][rule]
        np.testing.assert_allclose(own["report"], truth.grid(rule), atol=1e-4)
        layer, head = own["picked"]
        assert own["choose"][layer][head] == max(max(row) for row in own["choose"])
        assert np.mean(own["picked_photos"]) == pytest.approx(own["report"][layer][head], abs=1e-4)
        assert own["best"][layer] >= max(own["report"][layer][:-1]) - 1e-4


def test_a_map_that_knows_the_answer_scores_1_and_the_ceiling_is_never_passed() -> None:
    things, area = torch.tensor([[4.0, 4.0, 0.0, 0.0]]), torch.full((1, 4), 4.0)
    right = torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(2, 1, 3, 4)
    assert maps.jaccard_of(right, "mass", things, area).flatten().tolist() == [1.0] * 8
    flat = torch.ones(2, 1, 3, 4)  # says nothing, so marks nothing
    assert not maps.jaccard_of(flat, "fraction", things, area).any()
    shots = generated(6)
    found = maps.segmentation(untrained("crate"), shots, 32)
    ceiling = np.mean(maps.segmentation_baselines(shots, 32, 4)["best patches"])
    assert ceiling <= 1
    assert max(max(row) for row in found["maps"]["class token"]["fraction"]["report"]) < ceiling


def test_the_seed_patch_finds_what_differs_from_the_rest() -> None:
    keys = torch.zeros(1, 1, 9, 3)
    keys[..., 0] = 1.0
    keys[0, 0, 4] = torch.tensor([-1.0, 1.0, 0.0])
    keys[0, 0, 5] = torch.tensor([-1.0, 0.9, 0.1])
    found = maps._from_seed(keys)[0, 0]
    assert found.nonzero().flatten().tolist() == [4, 5]


def test_a_difference_needs_photos_and_seeds_to_agree() -> None:
    base = np.linspace(0, 1, 40)
    up = difference({0: base + 0.1, 1: base + 0.2}, {0: base, 1: base, 2: base})
    assert up is not None
    assert up["verdict"] == "up"
    assert up["seeds"] == pytest.approx([0.1, 0.2])
    apart = difference({0: base + 0.3, 1: base - 0.1}, base)
    assert apart is not None
    assert apart["low"] > 0  # on these photos, but one seed says otherwise
    assert apart["verdict"] == "unclear"
    assert difference({0: base}, {1: base}) is None


def test_generated_photos_have_things_parts_and_two_halves() -> None:
    shots = generated(5)
    assert [shot.half for shot in shots] == ["choose"] * 5 + ["report"] * 5
    for shot in shots:
        masks, crowds = shot.instances()
        assert torch.equal(masks.any(0), shot.things())
        assert len(crowds) == len(masks) == 2
        assert 0 < float(shot.things().double().mean()) < 1
        assert set(shot.parts(("blob",)).unique().tolist()) == {-1, 0}
    assert commonest(shots, 1) == ("blob",)
    assert isinstance(shots[0], Shot)


def test_masked_autoencoders_are_not_read_by_their_class_token_and_see_everything() -> None:
    assert (map_of("mae"), map_of("crate")) == ("seed patch", "class token")
    model = untrained("mae")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(model(images), model(images))  # no patch is removed by chance


def test_a_tiny_study_reports_what_was_not_run_and_is_not_run_twice(tmp_path: Path) -> None:
    config = Config(**TINY, out=tmp_path, members=tmp_path / "members")
    report = run(config)
    written = json.loads((tmp_path / "report.json").read_text())
    assert len(written["claims"]) == len(studies.load("crate-emergence").expectations)
    assert all(claim["reproduced"] is None and claim["measured"] == "not run" for claim in written["claims"])
    assert "Not run: CRATE, CRATE-MAE" in written["summary"]
    assert written["results"]["segmentation"]["32"]["crate"]["trained"] == [None]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    assert run(config).results == report.results
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}


def test_members_that_are_kept_are_scored_against_their_untrained_twins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pretended(config: Config, member: Member) -> torch.nn.Module:
        return network(config, Member(kind=member.kind, data=member.data, seed=7 * member.trained, trained=False))

    monkeypatch.setattr(crate_emergence, "kept", lambda config, member: member.seed == 0)
    monkeypatch.setattr(crate_emergence, "network", pretended)
    monkeypatch.setattr(crate_emergence_pictures, "network", pretended)
    own: dict[str, Any] = {**TINY, "kinds": ("crate", "vit"), "changes": ("regularised",), "seeds": (0, 1)}
    report = run(Config(**own, out=tmp_path))
    judged = {claim.statement: claim.reproduced for claim in report.claims}
    assert list(judged.values()).count(None) == 2  # one has no range, for the other CRATE-MAE was not run
    found = {(d["change"], d["kind"]): d["result"] for d in report.results["differences"]}
    crate = report.results["segmentation"]["32"]["crate"]
    assert [run is None for run in crate["trained"]] == [False, True]
    read = [crate[state][0]["maps"]["class token"][maps.RULE] for state in STATES]
    means = [one["report"][one["picked"][0]][one["picked"][1]] for one in read]
    assert found["training, against none", "crate"]["mean"] == pytest.approx(means[0] - means[1], abs=1e-4)
    assert len(found["training, against none", "crate"]["seeds"]) == 1  # the other seed was not run
    plain = report.results["segmentation"]["32"]["regularised"]["untrained"]
    assert plain == crate["untrained"]  # they differ in the loss alone
    layers = found["layer chosen, against the last layer's best head", "crate"]
    assert layers is not None


def test_bad_settings_are_refused() -> None:
    for wrong in (
        {"seeds": (1, 1)},
        {"kinds": ("vit",)},
        {"side": 30},
        {"photos": 1},
        {"source": "coc"},
        {"data": "digits"},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Config(**{**TINY, **wrong})


def test_missing_photos_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--data-dir"):
        coco(tmp_path, 3)
