"""Transfer: fine-tuning starts where it says, sees no more labels than it says, resumes exactly, and is reported."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unrolled import studies
from unrolled.errors import MissingData
from unrolled.report import Report
from unrolled.studies.cells import Cell, Context, Row
from unrolled.studies.crate.transfer import STUDY
from unrolled.studies.crate.transfer import cells as module
from unrolled.studies.crate.transfer.cells import (
    FineTuned,
    Probed,
    TransferConfig,
    cells,
    few_rows,
    frozen_features,
    target_pictures,
)
from unrolled.studies.kinds import build
from unrolled.studies.networks import Network
from unrolled.studies.results import Results

UNTRAINED = {"data": "digits", "seed": 0, "images": 0}


def tiny(folder: Path, **changes: Any) -> TransferConfig:
    small = {
        **{"images": 128, "kept": folder / "kept", "out": folder / "out", "kinds": ("crate", "mae"), "steps": 4},
        **{"longer": 6, "test_images": 60, "probe_images": 200},
    }
    return TransferConfig.of_budget("quick", **{**small, **changes})


def fine_tuned(network: Network, **changes: Any) -> FineTuned:
    given = {"labels": "few", "rate": 1e-3, "steps": 4, "few": 10, "test_images": 60, "target": "digits-turned"}
    return FineTuned(**{"network": network, "seed": network.seed, **given, **changes})


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """Where a tiny run has kept its cells, and its report."""
    folder = tmp_path_factory.mktemp("transfer")
    return folder, STUDY.run(tiny(folder))


def test_a_tiny_run_reports_every_cell(ran: tuple[Path, Report]) -> None:
    assert studies.load("crate-transfer") is STUDY
    folder, report = ran
    rows = report.results["rows"]
    # pixels; two networks, pretrained and not, each probed once and fine-tuned twice, and longer; four for the rate
    assert len(rows) == 1 + 2 * 2 * 3 + 2 * 2 + 4
    tuned = [row for row in rows if row["cell"] == "FineTuned"]
    assert all(0 <= row["accuracy"] <= 1 for row in tuned)
    assert {row["labels_used"] for row in tuned if row["labels"] == "few"} == {100}
    saved = json.loads((folder / "out" / "report.json").read_text())
    assert all(claim["verdict"] == "not run" for claim in saved["claims"])  # digits judge nothing
    again = STUDY.run(tiny(folder, only_kept=True))
    assert again.results["rows"] == rows
    assert again.provenance.duration == report.provenance.duration > sum(row["seconds"] for row in rows)


def test_networks_that_are_not_kept_are_not_run(ran: tuple[Path, Report], tmp_path: Path) -> None:
    report = STUDY.run(tiny(ran[0], kinds=("crate", "vit-mae"), out=tmp_path, only_kept=True))
    sections = {section["title"]: section["blocks"] for section in report.to_dict()["sections"]}
    rows = {row[1]: row[5:] for row in sections["Fine-tuned"][0]["rows"]}
    assert rows["ViT-MAE of width 48"] == ["not run"] * 6
    assert "not run" not in rows["CRATE"]
    assert "only_kept" in sections["Not run"][0]["text"]


def made_up(cell: Cell) -> Row[Any]:
    columns = cell.columns
    pretrained = bool(columns.get("images"))
    score = 0.3 + 0.1 * pretrained + 0.05 * (pretrained and columns.get("labels") == "few")
    score -= 0.02 * (columns.get("kind") == "mae")
    score += 0.001 * columns["seed"]
    if isinstance(cell, FineTuned):
        found = {"accuracy": score, "parameters": 1, "curve": [{"step": 8, "loss": 2.0}, {"step": 16, "loss": 1.9}]}
    else:
        sites = {"pixels": 0.3} if columns.get("kind") is None else {"1 mean": score, "2 mean": score}
        chosen = {"accuracy": score, "held_out": score, "site": next(iter(sites)), "sites": sites}
        both = {method: {"all": chosen, "few": chosen} for method in ("ridge", "knn")}
        found = {"labels_used": {"all": 50, "few": 10}, **both}
    return Row(cell, {"chance": 0.1, **found}, 1.0)


def test_claims_are_differences_of_what_was_measured_and_the_rest_is_not_run(tmp_path: Path) -> None:
    config = TransferConfig(kinds=("crate", "vit-48", "vit", "mae", "mae-visible", "vit-mae"))
    rows = [made_up(cell) for cell in dict.fromkeys(cells(config)) if cell.target == "cifar10"]
    results = Results(row for row in rows if row.cell.columns.get("kind") != "vit-48")
    supervised, vit, masked, few, probed, untrained = (claim.judge(results, config) for claim in STUDY.claims)
    assert {claim.why[-13:] for claim in (supervised, masked, few, untrained)} == {"; as expected"}
    assert probed.verdict == "reproduced"  # untrained features are 12 points behind
    assert supervised.measured == "+10.0 ± 0.0 (40.1 ± 0.1 % less 30.1 ± 0.1 %); 3 seeds"
    assert few.measured.startswith("+5.0")
    assert probed.measured.startswith("-2.0")
    assert (vit.verdict, vit.measured) == ("not run", "not run")
    report = Report("t")
    STUDY.report(report, config, results)
    sections = {section["title"]: section["blocks"] for section in report.to_dict()["sections"]}
    table = sections["Fine-tuned"][0]["rows"]
    assert [row[5] for row in table if row[0] == "Fashion-MNIST"] == ["not run"] * 6
    shown = [row[5].split(" ±")[0] for row in table if row[0] == "CIFAR-10"]
    assert shown == ["40.1", "not run", "40.1", "38.1", "40.1", "40.1"]


def test_missing_images_are_named(tmp_path: Path) -> None:
    few = {"kinds": ("crate",), "seeds": (0,)}
    config = TransferConfig(data_dir=tmp_path, kept=tmp_path / "kept", out=tmp_path / "out", **few)
    with pytest.raises(MissingData, match="data_dir"):
        STUDY.run(config)
    fashion = fine_tuned(Network(kind="crate", **UNTRAINED), target="fashion_mnist")
    with pytest.raises(MissingData, match="give fashion_dir="):
        fashion.require(TransferConfig(fashion_dir=tmp_path).context)


@pytest.mark.parametrize("kind", ["crate", "mae"])
@pytest.mark.parametrize("images", [0, 128])
def test_fine_tuning_starts_from_the_network(tmp_path: Path, kind: str, images: int) -> None:
    context = Context(store=tmp_path)
    cell = fine_tuned(Network(**{**UNTRAINED, "kind": kind, "images": images}))
    assert cell.network is not None
    start, again = (cell.classifier(context, 10).state_dict() for _ in range(2))
    network = cell.network.load(context).state_dict()
    assert all(torch.equal(start[name], again[name]) for name in start)
    shared = [name for name in network if name.startswith(("blocks.", "patch_embed."))]
    assert len(shared) > 20
    assert all(torch.equal(start[name], network[name]) for name in shared)


def test_what_an_encoder_is_shown_changes_no_untrained_weight() -> None:
    both = [Network(kind=kind, **UNTRAINED) for kind in ("mae", "mae-visible")]
    one, other = (build(network, classes=10).state_dict() for network in both)
    assert all(torch.equal(one[name], other[name]) for name in one)
    config = TransferConfig(kinds=("mae", "mae-visible"), seeds=(0,), targets=("cifar10",), longer_kinds=(), rates=())
    scratch = [c for c in set(cells(config)) if isinstance(c, FineTuned) and c.network and not c.network.images]
    assert len(scratch) == 2  # shared by both kinds: with all labels, and with few


def test_the_first_target_gets_every_seed_and_the_others_so_many_as_are_set() -> None:
    config = TransferConfig(kinds=("crate",), seeds=(0, 1, 2), seeds_others=2)
    seeds = {target: {c.seed for c in cells(config) if c.target == target} for target in config.targets}
    assert seeds == {"cifar10": {0, 1, 2}, "fashion_mnist": {0, 1}}


def test_few_labels_are_few_and_the_same_for_every_class() -> None:
    labels = torch.randint(0, 5, (300,), generator=torch.Generator().manual_seed(0))
    rows = few_rows(labels, 7)
    assert labels[rows].bincount().tolist() == [7] * 5
    assert torch.equal(rows, rows.sort().values)
    assert all(torch.equal((labels == c).nonzero()[:7, 0], rows[labels[rows] == c]) for c in range(5))


def test_features_are_what_the_blocks_put_out(tmp_path: Path) -> None:
    from unrolled.instruments.trace import trace

    test = target_pictures("digits-turned", "test", tmp_path)
    for kind in ("crate", "mae", "vit-48"):
        model = build(Network(kind=kind, **UNTRAINED), classes=10, channels=1, side=8).eval()
        found = frozen_features(model, test.images[:9])
        assert list(found) == [f"{depth} {pool}" for depth in (1, 2, 3, 4) for pool in ("class", "mean")]
        if kind != "mae":
            with torch.no_grad(), trace(model, patterns="block*") as layers:
                model(test.images[:9].float().sub(127.5).div(64))
            torch.testing.assert_close(found["3 class"], layers["block02"][:, 0])
            torch.testing.assert_close(found["4 mean"], layers["block03"][:, 1:].mean(1))


def test_test_labels_decide_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context(store=tmp_path)
    cell = Probed(
        network=Network(kind="crate", **UNTRAINED),
        **{"seed": 0, "target": "digits-turned", "few": 10, "test_images": 60, "probe_images": 200},
    )
    found = cell.compute(context)
    real = target_pictures

    def wrong(target: str, split: Any, folder: Path) -> Any:
        pictures = real(target, split, folder)
        if split == "test":
            return type(pictures)(images=pictures.images, labels=(pictures.labels + 1) % 10, classes=pictures.classes)
        return pictures

    monkeypatch.setattr(module, "target_pictures", wrong)
    other = cell.compute(context)
    for method in ("ridge", "knn"):
        for amount in ("all", "few"):
            one, two = found[method][amount], other[method][amount]
            assert (one["site"], one["held_out"]) == (two["site"], two["held_out"])
    assert found["ridge"]["all"]["accuracy"] > 0.4 > other["ridge"]["all"]["accuracy"]


def test_an_interrupted_fine_tuning_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = fine_tuned(Network(kind="crate", **UNTRAINED), steps=6)
    train_resumable = module.train_resumable
    monkeypatch.setattr(module, "train_resumable", lambda *a, **k: train_resumable(*a, **{**k, "every": 2}))
    whole = cell.compute(Context(store=tmp_path / "whole"))
    context, real = Context(store=tmp_path / "parts"), torch.save

    def stop(state: dict[str, Any], path: Path) -> None:
        real(state, path)
        path.replace(cell.file(context, ".pt"))
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        cell.compute(context)
    monkeypatch.setattr(torch, "save", real)
    assert cell.compute(context) == whole


def test_fashion_mnist_becomes_three_channels_of_32_pixels(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        for kind, values in (("images-idx3", images), ("labels-idx1", np.arange(6, dtype=np.uint8))):
            head = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
            with gzip.open(tmp_path / f"{part}-{kind}-ubyte.gz", "wb") as stream:
                stream.write(head + values.tobytes())
    found = target_pictures("fashion_mnist", "train", tmp_path)
    assert found.images.shape == (6, 3, 32, 32)
    assert len(found.classes) == 10
    for image, label in zip(found.images, found.labels, strict=True):
        assert torch.equal(image[1, 2:-2, 2:-2], torch.from_numpy(images[int(label)]))
        assert int(image[:, 0].sum()) == 0
