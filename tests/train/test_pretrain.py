"""Self-supervised pretraining: kill and resume to the same bits, what is learned, and what becomes of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from train_helpers import assert_resumes_after_a_crash, assert_resumes_after_a_kill

from unrolled.data import synthetic_images
from unrolled.models import CRATE, MaskedAutoencoder
from unrolled.models.resolve import resolve_model
from unrolled.train import DistillConfig, FinetuneConfig, MaskedConfig, TrainConfig, fit, load_config, save_config
from unrolled.train.config import PretrainConfig
from unrolled.train.fitting import measure_run
from unrolled.train.run import Splits
from unrolled.train.tasks.masked import evaluate_masked, mask_noise
from unrolled.train.unfinished import newest_model

ROOT = Path(__file__).resolve().parents[2]
TINY = {"img_size": 8, "patch_size": 2, "depth": 1, "embed_dim": 16, "num_heads": 2}
Make = Callable[..., PretrainConfig]


@pytest.fixture
def splits() -> Splits:
    """Small colour images."""
    train, val, test = (synthetic_images(n, size=8, classes=4, seed=s) for s, n in enumerate((48, 16, 24)))
    return Splits(train=train, val=val, test=test)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes the configuration of a run of 12 steps in 3 epochs, with everything that has state."""

    def build(task: str = "mae", **changes: Any) -> PretrainConfig:
        values: dict[str, Any] = {
            "epochs": 3,
            "batch_size": 12,
            "accumulate": 2,
            "warmup_epochs": 1,
            "eval_every": 1,
            "log_every": 2,
            "checkpoint_every": 5,
            "accelerator": "cpu",
            "quiet": True,
            "out": tmp_path / "run",
        }
        if task == "mae":
            masked = {"model_args": {**TINY, "encoder": "visible", "drop_path_rate": 0.1}, "ema": 0.9}
            return MaskedConfig(**{**values, **masked, **changes})
        distilled = {"model_args": {**TINY, "drop_path_rate": 0.1}, "local_crops": 2}
        return DistillConfig(**{**values, **distilled, **changes})

    return build


@pytest.mark.parametrize(
    ("task", "model", "step"),
    [
        ("mae", "crate_mae_nano_patch4_32", 6),
        ("mae", "vit_mae_nano_patch4_32", 8),
        ("simdino", "crate_nano_patch4_32", 6),
        ("simdino", "vit_nano_patch4_32", 8),
    ],
)
def test_a_crashed_run_resumes_to_the_same_bits(
    make: Make, splits: Splits, tmp_path: Path, task: str, model: str, step: int
) -> None:
    straight, broken = (make(task, model=model, out=tmp_path / out, resume="auto") for out in ("straight", "broken"))
    assert_resumes_after_a_crash(straight, broken, step, splits)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "changes"), [("mae", {"accumulate": 1, "augment": False}), ("simdino", {})])
def test_a_killed_run_resumes_to_the_same_bits(make: Make, tmp_path: Path, task: str, changes: dict[str, Any]) -> None:
    long = {"data": "digits", "epochs": 0.4, "batch_size": 16, "log_every": 1, "checkpoint_every": 10, **changes}
    straight, killed = (make(task, **long, out=tmp_path / out, resume="auto") for out in ("straight", "killed"))
    assert_resumes_after_a_kill(straight, killed, tmp_path)


# --- masked autoencoding


@given(st.integers(0, 10), st.integers(0, 1000), st.lists(st.integers(0, 10**6), min_size=1, max_size=5, unique=True))
@settings(max_examples=20, deadline=None)
def test_masks_follow_from_seed_step_and_image_alone(seed: int, step: int, images: list[int]) -> None:
    whole = mask_noise(seed, step, torch.tensor(images), 16)
    alone = torch.cat([mask_noise(seed, step, torch.tensor([image]), 16) for image in images])
    assert torch.equal(whole, alone)
    assert not torch.equal(whole, mask_noise(seed, step + 1, torch.tensor(images), 16))
    assert len({tuple(row.tolist()) for row in whole}) == len(images)


def test_a_masked_run_learns_more_than_colours_and_says_so(make: Make, splits: Splits) -> None:
    result = fit(make(epochs=30, lr=1e-2, ema=None, accumulate=1, eval_every=10, augment=False), data=splits)
    assert result.test is not None
    assert result.test["loss"] < 0.9 * result.test["visible_mean_loss"]
    val = [record for record in result.metrics if record["split"] == "val"]
    assert result.chosen_step == min(val, key=lambda record: record["loss"])["step"]
    assert val[0]["one_colour_loss"] == val[-1]["one_colour_loss"], "masks of held-out images are fixed"
    assert isinstance(result.model, MaskedAutoencoder)
    assert result.model.norm_pix_loss


@pytest.mark.parametrize("normalised", [False, True])
def test_the_trivial_guesses_are_what_they_say(splits: Splits, normalised: bool) -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(image_size=8, patch_size=2, dim=16, depth=1, heads=2, norm_pix_loss=normalised)
    images = torch.randn(10, 3, 8, 8) + torch.randn(10, 3, 1, 1)
    batches = [Some(images[:7], torch.arange(7)), Some(images[7:], torch.arange(7, 10))]
    scores = evaluate_masked(model, model, batches, mask_ratio=0.75)
    noise = mask_noise(2**32, 0, torch.arange(10), 16)
    loss, _, mask = model(images, 0.75, noise)
    assert scores["loss"] == pytest.approx(loss.item(), rel=1e-5)
    target = model.target(images).unflatten(-1, (4, 3))
    hidden, visible = mask.bool(), ~mask.bool()
    errors = [(t[h] - t[v].mean((0, 1))).square().mean() for t, h, v in zip(target, hidden, visible, strict=True)]
    assert scores["visible_mean_loss"] == pytest.approx(float(torch.stack(errors).mean()), rel=1e-5)
    gone = target[hidden]
    assert scores["one_colour_loss"] == pytest.approx(float((gone - gone.mean((0, 1))).square().mean()), rel=1e-4)
    if not normalised:
        guess = target[..., :1, :] * 0 + gone.mean((0, 1))
        assert scores["one_colour_loss"] == pytest.approx(
            float(model.loss(images, guess.expand_as(target).flatten(2), mask)), rel=1e-4
        )


class Some:
    def __init__(self, images: torch.Tensor, indices: torch.Tensor) -> None:
        self.images, self.indices, self.skipped = images, indices, list[str]()


def test_a_masked_run_opens_again_and_is_fine_tuned(make: Make, splits: Splits, tmp_path: Path) -> None:
    result = fit(make(), data=splits)
    again = resolve_model(f"local:{result.run_dir}", pretrained=True)
    assert isinstance(again, MaskedAutoencoder)
    assert (again.encoder, again.norm_pix_loss) == ("visible", True)
    images = torch.randn(2, 3, 8, 8)
    noise = torch.rand(2, 16)
    torch.testing.assert_close(again(images, 0.75, noise).loss, result.model(images, 0.75, noise).loss)

    def tune(name: str, **changes: Any) -> FinetuneConfig:
        common: dict[str, Any] = {"batch_size": 12, "accelerator": "cpu", "quiet": True, "epochs": 2, "log_every": 1}
        return FinetuneConfig(**{**common, "weights": result.run_dir, "out": tmp_path / name, **changes})

    tuned = fit(tune("tuned", max_steps=1, lr=1e-9, resume="auto"), data=splits)
    assert isinstance(tuned.model, CRATE)
    assert not isinstance(tuned.model, MaskedAutoencoder)
    torch.testing.assert_close(tuned.model.blocks.state_dict(), result.model.blocks.state_dict(), atol=1e-6, rtol=0)  # type: ignore[union-attr]
    assert tuned.test is not None
    assert 0 <= tuned.test["accuracy"] <= 1
    reopened = resolve_model(f"local:{tuned.run_dir}", pretrained=True).eval()
    torch.testing.assert_close(reopened(images), tuned.model(images))
    straight = fit(tune("straight"), data=splits)
    fit(tune("pieces", max_steps=3), data=splits)
    pieces = fit(tune("pieces", resume="auto"), data=splits)
    torch.testing.assert_close(pieces.model.state_dict(), straight.model.state_dict(), atol=0, rtol=0)
    newest, step = newest_model(pieces.run_dir, splits.train)
    assert step == pieces.steps
    assert newest.state_dict().keys() == pieces.model.state_dict().keys()


# --- self-distillation


def distil(make: Make, **changes: Any) -> PretrainConfig:
    return make("simdino", **changes)


@pytest.mark.slow
def test_the_coding_rate_keeps_features_from_collapsing(make: Make, splits: Splits, tmp_path: Path) -> None:
    """Without the term student and teacher agree on one feature; with it the rate stays far above that."""
    last = {}
    for weight in (0.0, 1.0):
        config = distil(
            make,
            out=tmp_path / str(weight),
            model="vit_nano_patch4_32",
            model_args=TINY,
            rate_weight=weight,
            teacher_momentum=0.9,
            accumulate=1,
            batch_size=48,
            epochs=60,
            eval_every=60,
            lr=3e-3,
            weight_decay=0.0,
        )
        result = fit(config, data=splits)
        assert result.test is not None
        first = next(record for record in result.metrics if record["split"] == "train")
        last[weight] = (first["rate"], result.test)
    (start, collapsed), (_, kept) = last[0.0], last[1.0]
    floor = collapsed["collapsed_rate"]
    assert collapsed["rate"] - floor < 0.5 * (start - floor), "the rate falls"
    assert kept["rate"] > floor + 10 * (start - floor), "the rate rises"
    assert kept["rate"] < kept["largest_rate"]
    assert kept["distance"] > collapsed["distance"]


def test_what_is_distilled_opens_again_and_is_fine_tuned(make: Make, splits: Splits, tmp_path: Path) -> None:
    result = fit(distil(make, model="crate_nano_patch4_32"), data=splits)
    assert result.chosen_step == result.steps, "the last weights, not those of the lowest loss"
    again = resolve_model(f"local:{result.run_dir}", pretrained=True).eval()
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(again(images), result.model(images))
    settings = {"batch_size": 12, "accelerator": "cpu", "quiet": True, "max_steps": 1, "lr": 1e-9}
    tuned = fit(FinetuneConfig(weights=result.run_dir, out=tmp_path / "tuned", **settings), data=splits)
    torch.testing.assert_close(
        tuned.model.forward_features(images),  # type: ignore[operator]
        result.model.forward_features(images),  # type: ignore[operator]
        atol=1e-5,
        rtol=0,
    )


# --- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_ratio": 0.0}, r"mask_ratio=0.0 must lie between 0 and 1"),
        ({"mask_ratio": 1.0}, r"mask_ratio=1.0 must lie between 0 and 1"),
        ({"mask_ratio": math.nan}, r"mask_ratio=nan"),
        ({"mask_ratio": 0.99}, r"keeps 0 of the 4 x 4 patches"),
        ({"model": "crate_nano_patch4_32", "model_args": TINY}, r"no masked objective.*crate_mae_nano_patch4_32"),
        ({"strategy": "fsdp"}, r"fsdp"),
        ({"task": "simdino", "ema": 0.9}, r"ema"),
        ({"task": "simdino", "strategy": "fsdp"}, r"fsdp"),
        ({"task": "simdino", "model": "vit_mae_nano_patch4_32"}, r"masked autoencoder.*crate_nano"),
        ({"task": "simdino", "model_args": TINY, "local_size": 3}, r"local_size"),
        ({"task": "simdino", "rate_eps": 0.0}, r"rate_eps"),
        ({"task": "simdino", "rate_weight": -1.0}, r"rate_weight"),
        ({"task": "simdino", "teacher_momentum": 1.0}, r"teacher_momentum"),
        ({"task": "simdino", "local_crops": -1}, r"local_crops"),
        ({"task": "simdino", "local_scale": (0.5, 0.2)}, r"local_scale"),
    ],
)
def test_settings_that_cannot_work_are_named(make: Make, splits: Splits, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(make(**changes), data=splits)


def test_a_masked_autoencoder_is_not_trained_as_a_classifier(splits: Splits, tmp_path: Path) -> None:
    config = TrainConfig(model="crate_mae_nano_patch4_32", out=tmp_path / "run", batch_size=12, accelerator="cpu")
    with pytest.raises(ValueError, match=r"masked autoencoder.*unrolled pretrain.*finetune"):
        fit(config, data=splits)


def test_a_configuration_survives_saving(make: Make, tmp_path: Path) -> None:
    for config in (make(mask_ratio=0.5), distil(make, rate_weight=0.5, local_size=4)):
        save_config(config, tmp_path / "c.yaml")
        assert load_config(tmp_path / "c.yaml") == load_config(tmp_path / "c.yaml", type(config)) == config


# --- the command line


def test_the_verb_pretrains_and_the_others_take_its_run(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    from unrolled.cli import run

    monkeypatch.chdir(tmp_path)
    folder = str(tmp_path / "run")
    save_config(make(data="digits", max_steps=2, val_fraction=0.05), tmp_path / "run.yaml")
    assert run(["pretrain", "--config", str(tmp_path / "run.yaml"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "What was left" in page
    assert "mean colour of the visible patches" in page.lower()
    assert run(["eval", folder, "--json", "--out", "eval"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["loss"] == pytest.approx(facts["test"]["loss"], rel=1e-4)
    assert run(["trace", folder, "--images", "8", "--out", "trace", "--json"]) == 0
    traced = json.loads(capsys.readouterr().out)
    assert run(["trace", folder, "--images", "8", "--out", "trace", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == traced["layers"], "no patch is removed by chance"
    assert len(traced["layers"]) == 1
    assert run(["extract", folder, "--images", "8", "--out", "features", "--json"]) == 0
    capsys.readouterr()
    Image.new("RGB", (20, 20), "red").save("red.png")
    assert run(["complete", "red.png", "--model", folder, "--out", "complete", "--json"]) == 0
    assert run(["segment", "red.png", "--model", folder, "--layers", "0", "--method", "pca", "--out", "segment"]) == 0
    capsys.readouterr()
    flags = ["--max-steps", "1", "--batch-size", "32", "--accelerator", "cpu", "--quiet", "--json", "--out", "tuned"]
    assert run(["finetune", "--weights", folder, "--data", "digits", *flags]) == 0
    assert "accuracy" in json.loads(capsys.readouterr().out)["test"]
    assert run(["eval", "tuned", "--data", "digits", "--json", "--out", "eval-tuned"]) == 0


def test_the_verb_distils_and_the_others_take_its_run(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from unrolled.cli import run

    monkeypatch.chdir(tmp_path)
    config = distil(make, data="digits", max_steps=2, val_fraction=0.05, checkpoint_every=100, batch_size=32)
    save_config(config, tmp_path / "run.yaml")
    assert run(["pretrain", "--config", "run.yaml", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Coding rate of the features (nats)" in page
    assert run(["eval", "run", "--batch-size", "32", "--json", "--out", "eval"]) == 0
    scores = json.loads(capsys.readouterr().out)
    for key in ("distance", "rate"):
        assert scores[key] == pytest.approx(facts["test"][key], rel=1e-4)
    assert run(["trace", "run", "--images", "8", "--out", "trace", "--json"]) == 0
    capsys.readouterr()
    assert run(["complete", "red.png", "--model", "run"]) != 0
    assert run(["pretrain", "--mask-ratio", "1"]) == 2
    assert "--mask-ratio 1.0 must lie between 0 and 1" in capsys.readouterr().err
    assert run(["train", "--task", "mae"]) == 2


@pytest.mark.parametrize("task", ["mae", "simdino"])
def test_the_scores_of_a_run_are_those_of_its_test_in_batches_of_any_size(
    make: Make, splits: Splits, task: str
) -> None:
    config = make(task, max_steps=2)
    result = fit(config, data=splits)
    assert splits.test is not None
    config = load_config(config.out / "config.yaml", type(config))
    for size in (1, 5, 100):  # the loss of self-distillation weighs by the batch size of the run
        scores = measure_run(config, result.model, splits.test, torch.device("cpu"), batch_size=size)
        assert scores == {key: pytest.approx(value, rel=1e-5, abs=1e-6) for key, value in result.test.items()}
