"""The study of emergence: its scores are the instruments', heads are chosen on other photos, nothing is invented."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unrolled.instruments.regions.emergence import EmergenceScorer, Photo
from unrolled.studies.cells import Context
from unrolled.studies.crate.emergence import STUDY, cells, maps
from unrolled.studies.crate.emergence.cells import EmergenceConfig, loaded, map_of
from unrolled.studies.crate.emergence.claims import CLAIMS, View, difference
from unrolled.studies.crate.emergence.photos import as_square, coco, commonest, generated, ignored, parts, things
from unrolled.studies.crate.emergence.tables import differences
from unrolled.studies.networks import Network
from unrolled.studies.results import Results
from unrolled.studies.runner import compute_all

TINY: dict[str, Any] = {
    **{"source": "generated", "photos": 4, "border_photos": 2, "seeds": (0,), "kinds": ("crate", "mae")},
    **{"changes": (), "side": 32, "other_sides": (), "parts": 2, "workers": 1},
}


def untrained(kind: str) -> torch.nn.Module:
    return loaded(Network(kind=kind, data="tiny-imagenet-32", seed=0, images=0), Context())


def test_scores_are_those_of_the_instrument() -> None:
    photos, model = generated(3), untrained("crate")
    found = maps.segmentation(model, photos, 32)
    scorer = EmergenceScorer(range(found["layers"]))
    for batch, patches in maps.read(model, photos.report, 32):
        assert patches.attention is not None
        for i, (scene, pixels) in enumerate(zip(batch, as_square(batch, 32), strict=True)):
            photo = Photo(pixels, {"things": things(scene)}, ignored(scene))
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
    photos = generated(6)
    found = maps.segmentation(untrained("crate"), photos, 32)
    ceiling = np.mean(maps.segmentation_baselines(photos.report, 32, 4)["best patches"])
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
    assert (up.verdict, up.count) == ("up", "2 seeds")
    assert up.seeds == pytest.approx([10, 20])
    assert (up.estimate.value, up.estimate.basis) == (pytest.approx(15), "bootstrap over 40 photos")
    apart = difference({0: base + 0.3, 1: base - 0.1}, base)
    assert apart is not None
    assert apart.estimate.low > 0  # on these photos, but one seed says otherwise
    assert apart.verdict == "unclear"
    assert difference({0: base}, {1: base}) is None
    assert difference({0: base}, None) is None


def test_generated_photos_have_things_parts_and_two_halves() -> None:
    photos = generated(5)
    assert [len(half) for half in photos] == [5, 5]
    for scene in (*photos.choose, *photos.report):
        masks, crowds = scene.instances()
        assert torch.equal(torch.from_numpy(masks).any(0), things(scene))
        assert len(crowds) == len(masks) == 2
        assert 0 < float(things(scene).double().mean()) < 1
        assert set(parts(scene, ("blob",)).unique().tolist()) == {-1, 0}
        assert not ignored(scene).any()
    assert commonest(photos.report, 1) == ("blob",)


def test_masked_autoencoders_are_not_read_by_their_class_token_and_see_everything() -> None:
    assert (map_of("mae"), map_of("crate")) == ("seed patch", "class token")
    model = untrained("mae")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(model(images), model(images))  # no patch is removed by chance


def tiny(folder: Path, **changes: Any) -> EmergenceConfig:
    where = {"data_dir": folder / "nowhere", "kept": folder / "kept", "out": folder / "out"}
    return EmergenceConfig(**{**TINY, **where, **changes})


def test_without_the_images_of_training_the_untrained_are_measured_and_the_others_named(tmp_path: Path) -> None:
    report = STUDY.run(tiny(tmp_path))
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(written["claims"]) == len(CLAIMS)
    assert {claim["measured"] for claim in written["claims"]} == {"not run"}
    assert "Not run: CRATE, CRATE-MAE" in written["summary"]
    assert "data_dir=" in written["sections"][-1]["blocks"][0]["text"]
    assert {row.get("images") for row in report.results["rows"]} == {None, 0}
    assert "What it looks like" in [section.title for section in report.sections]


def test_trained_networks_are_scored_against_their_untrained_twins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pretended(network: Network, context: Context) -> torch.nn.Module:
        return loaded(replace(network, seed=7 * bool(network.images), images=0), context)

    def trained(network: Network, context: Context) -> dict[str, Any]:
        return {}

    monkeypatch.setattr(cells, "loaded", pretended)
    monkeypatch.setattr(Network, "compute", trained)
    monkeypatch.setattr(Network, "require", lambda network, context: None)
    config = tiny(tmp_path, kinds=("crate", "vit"), changes=("regularised",), seeds=(0, 1))
    first = [cell for cell in cells.cells(config) if "seed" not in cell.columns or cell.columns["seed"] == 0]
    view = View(Results(compute_all(first, config.context).rows), config)
    judged = [claim.judge(view.results, config) for claim in CLAIMS]
    assert [claim.verdict for claim in judged].count("not run") == 1  # CRATE-MAE was not asked for
    assert {judged[5].verdict, judged[6].verdict} == {"undecided"}  # of seeds, of which there is one
    crate = {
        state: view.rows(cells.Segmentation, "crate", state).first(f"maps.class token.{maps.RULE}")
        for state in ("trained", "untrained")
    }
    means = {state: one["report"][one["picked"][0]][one["picked"][1]] for state, one in crate.items()}
    learned = view.learned("crate")
    assert learned is not None
    assert learned.estimate.value == pytest.approx(100 * (means["trained"] - means["untrained"]), abs=1e-2)
    assert learned.count == "1 seed"  # the other was not run
    twin = view.rows(cells.Segmentation, "regularised", "untrained").first("maps")
    assert twin == view.rows(cells.Segmentation, "crate", "untrained").first("maps")  # they differ in the loss alone
    changes = {(change, kind): apart for change, kind, apart in differences(view)}
    assert changes["layer chosen, against the last layer's best head", "crate"] is not None


def test_a_report_of_nothing_says_so(tmp_path: Path) -> None:
    from unrolled.report import Report

    config, page = tiny(tmp_path), Report("x")
    STUDY.report(page, config, Results([]))
    page.write(tmp_path)
    assert "nothing is said of what training does" in page.summary


def test_missing_photos_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="data_dir="):
        coco(tmp_path, 3)
