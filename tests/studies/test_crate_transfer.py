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
from unrolled.studies import cells
from unrolled.studies.crate_members import Member, build, record, trained, weights
from unrolled.studies.crate_transfer import Config, run
from unrolled.studies.crate_transfer_cells import (
    Job,
    cell,
    features,
    few_rows,
    jobs_of,
    member_of,
    network,
    probe,
    target_pictures,
)
from unrolled.studies.crate_transfer_report import build_report


def tiny(folder: Path, **changes: Any) -> Config:
    small = {
        "images": 128,
        "members": folder / "members",
        "out": folder / "out",
        "kinds": ("crate", "mae"),
        "steps": 4,
        "longer": 6,
        "test_images": 60,
        "probe_images": 200,
    }
    return Config.of_budget("quick", **{**small, **changes})


def test_the_study_is_found_by_name() -> None:
    assert studies.load("crate-transfer").config is Config


def test_a_tiny_run_reports_every_cell(tmp_path: Path) -> None:
    lines: list[str] = []
    report = run(tiny(tmp_path), on_progress=lines.append)
    found = report.results["cells"]
    # pixels; two members, pretrained and not, each probed once and fine-tuned twice, and longer; three for the rate
    assert len(found) == 1 + 2 * 2 * 3 + 2 * 2 + 3
    assert all(0 <= c["accuracy"] <= 1 for c in found if c["what"] == "finetune")
    assert {c["labels"] for c in found if c["what"] == "finetune" and c["few"]} == {100}
    saved = json.loads((tmp_path / "out" / "report.json").read_text())
    assert saved["results"]["missing_members"] == []
    assert all(claim["reproduced"] is None for claim in saved["claims"])  # digits judge nothing
    again = run(tiny(tmp_path)).results["cells"]
    assert again == found


def test_missing_members_are_not_run(tmp_path: Path) -> None:
    tiny_config = tiny(tmp_path, train_members=False)
    with_none = run(tiny_config)
    assert with_none.results["missing_members"] == ["crate-digits-seed0", "mae-digits-seed0"]
    assert {c["what"] for c in with_none.results["cells"]} == {"pixels"}
    table = next(s for s in with_none.to_dict()["sections"] if s["title"] == "Fine-tuned")["blocks"][0]
    assert all(row[5:] == ["not run"] * 6 for row in table["rows"])


def test_a_member_whose_weights_are_gone_is_not_run(tmp_path: Path) -> None:
    config = tiny(tmp_path, kinds=("crate",))
    member = Member(kind="crate", data="digits")
    record(config, member)
    weights(config, member).unlink()
    found = run(tiny(tmp_path, kinds=("crate",), train_members=False)).results
    assert found["missing_members"] == [member.name]
    assert not weights(config, member).exists()


def test_claims_are_differences_of_what_was_measured_and_the_rest_is_not_run() -> None:
    members = [Member(kind=kind, data="tiny-imagenet-32") for kind in ("crate", "vit", "mae", "mae-visible", "vit-mae")]
    config = Config(kinds=("crate", "vit-48", "vit", "mae", "mae-visible", "vit-mae"), seeds=(0,))

    def made_up(job: Job) -> dict[str, Any]:
        score = 0.3 + 0.1 * job.trained + 0.05 * (job.trained and job.few) - 0.02 * (job.kind == "mae")
        if job.what == "finetune":
            found = {"accuracy": score, "parameters": 1, "curve": [{"step": 8, "loss": 2.0}, {"step": 16, "loss": 1.9}]}
        else:
            sites = {"1 mean": score, "2 mean": score} if job.what == "probe" else {"pixels": 0.3}
            chosen = {"accuracy": score, "held_out": score, "site": next(iter(sites)), "sites": sites}
            found = {"labels": {"all": 50, "few": 10}, **{m: {"all": chosen, "few": chosen} for m in ("ridge", "knn")}}
        return {**job._asdict(), "chance": 0.1, **found}

    results = {
        "targets": ["cifar10"],
        "missing_targets": ["fashion_mnist"],
        "missing_members": ["vit-48-tiny-imagenet-32-seed0"],
        "cells": [made_up(job) for job in jobs_of(config, members, ["cifar10"])],
    }
    report = build_report(config, results, 0.0)
    supervised, vit, masked, few, probed, untrained = report.claims
    assert (supervised.reproduced, masked.reproduced, few.reproduced, probed.reproduced) == (True,) * 4
    assert untrained.reproduced is True
    assert supervised.measured.startswith("+10.0 (40.0 % less 30.0 %)")
    assert few.measured.startswith("+5.0")
    assert probed.measured.startswith("-2.0")
    assert vit.reproduced is None
    assert vit.measured.startswith("not run")
    sections = {section["title"]: section["blocks"] for section in report.to_dict()["sections"]}
    rows = sections["Fine-tuned"][0]["rows"]
    assert [row[5] for row in rows if row[0] == "Fashion-MNIST"] == ["not run"] * 6
    assert [row[5] for row in rows if row[0] == "CIFAR-10"] == ["40.0", "not run", "40.0", "38.0", "40.0", "40.0"]
    assert "not kept" in sections["Budgets"][0]["text"].lower()


def test_missing_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="data_dir"):
        run(Config(data_dir=tmp_path, out=tmp_path / "out"))


def test_fine_tuning_starts_from_the_member(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    for kind in ("crate", "mae"):
        for state in (True, False):
            job = Job("finetune", kind, state, 0, "digits-turned", rate=1e-3)
            start, again = network(config, job, 10).state_dict(), network(config, job, 10).state_dict()
            member = trained(config, member_of(config, job)).state_dict()
            assert all(torch.equal(start[name], again[name]) for name in start)
            shared = [name for name in member if name.startswith(("blocks.", "patch_embed."))]
            assert len(shared) > 20
            assert all(torch.equal(start[name], member[name]) for name in shared)


@pytest.mark.parametrize("name", ["kinds", "longer_kinds"])
def test_unknown_kinds_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: 'vit-49' is unknown"):
        Config(**{name: ("crate", "vit-49")})


def test_what_an_encoder_is_shown_changes_no_untrained_weight() -> None:
    one, other = (build(Member(kind=kind), classes=10).state_dict() for kind in ("mae", "mae-visible"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    config = Config()
    jobs = jobs_of(config, [Member(kind=k, data="tiny-imagenet-32") for k in ("mae", "mae-visible")], ["cifar10"])
    untrained = [job for job in jobs if job.what == "finetune" and not job.trained and not job.steps]
    assert len(untrained) == 2  # shared by both kinds


def test_the_first_target_gets_every_seed_and_the_others_so_many_as_are_set() -> None:
    config = Config(kinds=("crate",), seeds=(0, 1, 2), seeds_others=2)
    members = [Member(kind="crate", data="tiny-imagenet-32", seed=seed) for seed in config.seeds]
    jobs = jobs_of(config, members, ["cifar10", "fashion_mnist"])
    seeds = {target: {job.seed for job in jobs if job.target == target} for target in config.targets}
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
        model = build(Member(kind=kind, data="digits"), classes=10, channels=1, side=8).eval()
        found = features(model, test.images[:9])
        assert list(found) == [f"{depth} {pool}" for depth in (1, 2, 3, 4) for pool in ("class", "mean")]
        if kind != "mae":
            with torch.no_grad(), trace(model, patterns="block*") as layers:
                model(test.images[:9].float().sub(127.5).div(64))
            torch.testing.assert_close(found["3 class"], layers["block02"][:, 0])
            torch.testing.assert_close(found["4 mean"], layers["block03"][:, 1:].mean(1))


def test_test_labels_decide_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, job = tiny(tmp_path), Job("probe", "crate", False, 0, "digits-turned")
    found = probe(config, job)
    real = target_pictures

    def wrong(target: str, split: Any, folder: Path) -> Any:
        pictures = real(target, split, folder)
        if split == "test":
            return type(pictures)(images=pictures.images, labels=(pictures.labels + 1) % 10, classes=pictures.classes)
        return pictures

    monkeypatch.setattr("unrolled.studies.crate_transfer_cells.target_pictures", wrong)
    other = probe(config, job)
    for method in ("ridge", "knn"):
        for amount in ("all", "few"):
            one, two = found[method][amount], other[method][amount]
            assert (one["site"], one["held_out"]) == (two["site"], two["held_out"])
    assert found["ridge"]["all"]["accuracy"] > 0.4 > other["ridge"]["all"]["accuracy"]


def test_an_interrupted_fine_tuning_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("finetune", "crate", False, 0, "digits-turned", True, 1e-3)
    train_kept = cells.train_kept
    monkeypatch.setattr(
        "unrolled.studies.crate_transfer_cells.train_kept", lambda *a, **k: train_kept(*a, **{**k, "every": 2})
    )
    whole = cell(tiny(tmp_path / "whole"), job)

    real = torch.save

    def stop(state: dict[str, Any], path: Path) -> None:
        real(state, path)
        path.replace(tmp_path / "parts" / "out" / "models" / f"{job.name}.pt")
        raise KeyboardInterrupt

    config = tiny(tmp_path / "parts")
    monkeypatch.setattr(torch, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        cell(config, job)
    monkeypatch.setattr(torch, "save", real)
    parts = cell(config, job)
    assert parts["accuracy"] == whole["accuracy"]
    one, two = (
        torch.load(tmp_path / name / "out" / "models" / f"{job.name}.pt", weights_only=True)["model"]
        for name in ("whole", "parts")
    )
    assert all(torch.equal(one[name], two[name]) for name in one)


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


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"seeds": ()}, "seeds"),
        ({"seeds_others": 0}, "seeds_others"),
        ({"kinds": ("crete",)}, "kinds"),
        ({"targets": ("imagenet",)}, "targets"),
        ({"source": "digits"}, "targets"),
        ({"steps": 0}, "steps"),
        ({"rates": (0.0,)}, "rate"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Config(**changes)
