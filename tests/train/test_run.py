from __future__ import annotations

import csv
import io
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors.torch import load_file

from unrolled.errors import MissingExtra
from unrolled.provenance import environment
from unrolled.train import FinetuneConfig, TrainConfig, fit
from unrolled.train.log import Progress


def test_a_run_leaves_what_is_needed_to_use_and_repeat_it(config, splits):
    seen = []
    result = fit(
        config(), data=splits, callbacks=[lambda record, model: seen.append((record["split"], record["step"]))]
    )
    out = result.run_dir
    names = {"checkpoints", "config.yaml", "env.json", "metrics.csv", "metrics.jsonl", "model", "status.json"}
    assert {path.name for path in out.iterdir()} == names
    assert [(r["split"], r["step"]) for r in result.metrics] == seen
    assert [step for split, step in seen if split == "train"] == [2, 4, 6, 8, 10, 12]
    assert [step for split, step in seen if split == "val"] == [4, 8, 12]
    assert [step for split, step in seen if split == "test"] == [12]
    assert json.loads((out / "status.json").read_text())["state"] == "finished"
    with (out / "metrics.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(result.metrics)
    assert (result.unit, result.units_per_second > 0) == ("images", True)
    assert result.steps == 12
    assert not result.model.training


def test_the_saved_model_is_the_one_that_was_tested(config, splits):
    result = fit(config(model="crate_nano_patch2_8"), data=splits)
    loaded = timm.create_model(f"local-dir:{result.run_dir / 'model'}", pretrained=True).eval()
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), result.model(images))
    cfg = json.loads((result.run_dir / "model" / "config.json").read_text())
    assert cfg["num_classes"] == 4
    assert cfg["pretrained_cfg"]["input_size"] == [1, 8, 8]


def test_validation_chooses_and_the_test_is_looked_at_once(config, splits):
    result = fit(config(lr=3e-2, epochs=6), data=splits)
    scores = {r["step"]: (r["accuracy"], -r["loss"]) for r in result.metrics if r["split"] == "val"}
    assert result.chosen_step == max(scores, key=lambda step: (scores[step], -step))
    assert len([r for r in result.metrics if r["split"] == "test"]) == 1
    splits.val = None
    last = fit(config(lr=3e-2, epochs=6, force=True), data=splits)
    assert last.chosen_step == 24
    assert not [r for r in last.metrics if r["split"] == "val"]
    splits.test = None
    assert fit(config(force=True), data=splits).test is None


def test_with_an_average_that_is_what_is_saved(config, splits):
    splits.val = None
    result = fit(config(ema=0.5), data=splits)
    state = load_file(result.run_dir / "checkpoints" / "step-00000012" / "state.safetensors")
    saved = load_file(result.run_dir / "model" / "model.safetensors")
    assert all(torch.equal(saved[name], state[f"average/{name}"]) for name in saved)
    assert not torch.equal(saved["head.weight"], state["model/head.weight"])


def test_accumulation_changes_nothing_but_memory(config, splits, tmp_path):
    whole = fit(config(out=tmp_path / "a"), data=splits)
    parts = fit(config(out=tmp_path / "b", accumulate=5), data=splits)
    for a, b in zip(whole.metrics, parts.metrics, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def test_evaluation_reports_plain_cross_entropy(config, splits):
    result = fit(config(label_smoothing=0.9, mixup=1.0), data=splits)
    from unrolled.train.run import build_loaders

    loaders = build_loaders(config(), splits, result.model, rank=0, world_size=1)
    batches = list(loaders.evaluate(splits.test))
    with torch.no_grad():
        logits = torch.cat([result.model(batch.images) for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    assert result.test is not None
    assert result.test["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5)
    assert result.test["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert result.test["top5"] == 1.0


def test_the_same_seed_gives_the_same_run_and_another_another(config, splits, tmp_path):
    losses = []
    for number, seed in enumerate((0, 0, 1)):
        result = fit(config(seed=seed, out=tmp_path / str(number)), data=splits)
        losses.append([r["loss"] for r in result.metrics])
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_tensorboard_gets_the_same_numbers(config, splits):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    fit(config(loggers=("tensorboard",), max_steps=8), data=splits)
    result = fit(config(loggers=("tensorboard",), resume="auto"), data=splits)
    events = reader.EventAccumulator(str(result.run_dir / "tensorboard"))
    events.Reload()
    points = {event.step: event.value for event in events.Scalars("train/loss")}
    expected = {r["step"]: r["loss"] for r in result.metrics if r["split"] == "train"}
    assert points == pytest.approx(expected, rel=1e-6)
    assert not (result.run_dir / "metrics.csv").exists()


def test_a_logger_that_is_not_installed_is_named_before_training(config, splits, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtra, match=r"wandb logger.*unrolled\[track\]"):
        fit(config(loggers=("wandb",)), data=splits)


@pytest.mark.parametrize("service", ["wandb", "trackio"])
def test_a_resumed_run_continues_in_its_tracker_and_another_run_does_not(
    config, splits, tmp_path, monkeypatch, service
):
    begun, logged = [], []
    fake = SimpleNamespace(
        init=lambda **options: begun.append(options),
        log=lambda values, step: logged.append((step, values)),
        finish=lambda: logged.append("finished"),
    )
    monkeypatch.setitem(sys.modules, service, fake)
    first, other = tmp_path / "a" / "train", tmp_path / "b" / "train"
    fit(config(loggers=(service,), out=first, max_steps=2, log_every=1), data=splits)
    assert logged[0][0] == 1
    assert logged[0][1]["train/loss"] > 0
    assert logged[-1] == "finished"
    fit(config(loggers=(service,), out=first, max_steps=3, log_every=1, resume="auto"), data=splits)
    fit(config(loggers=(service,), out=other, max_steps=2), data=splits)
    fit(config(loggers=(service,), out=other, max_steps=2, force=True), data=splits)
    names = [options["name"] for options in begun]
    assert names[0] == names[1]
    assert len(set(names)) == 3
    assert all(name.startswith("train-") for name in names)


class Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def drive(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, show: bool = True) -> str:
    stream = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    progress = Progress(total=20, start=10, batch_size=64, show=show, every=0.0)
    for step in range(11, 21):
        progress.step(step, 1.5)
    progress.note("a note")
    progress.close()
    return stream.getvalue()


def test_progress_in_a_log_file_is_plain_lines(monkeypatch):
    text = drive(monkeypatch, terminal=False)
    assert "\r" not in text
    assert "\x1b" not in text
    line = text.splitlines()[3]
    assert line.startswith("step 14/20  loss 1.5000  ")
    assert "images/s" in line
    assert line.endswith("0:00 left")
    assert text.endswith("a note\n")


def test_progress_on_a_terminal_is_a_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    text = drive(monkeypatch, terminal=True)
    assert "images/s" in text
    assert "\x1b[3" not in text
    assert "step 20/20" in text


@pytest.mark.parametrize("terminal", [False, True])
def test_speed_is_that_of_steps_and_time_left_counts_on_validations(monkeypatch, terminal):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("unrolled.train.log.time.monotonic", lambda: clock.now)
    monkeypatch.setattr(sys, "stderr", Stream(terminal))
    monkeypatch.setenv("TERM", "xterm")
    progress = Progress(total=101, start=0, batch_size=64, show=True, every=0.0)
    clock.now = 60.0  # loaders start, the model compiles
    progress.step(1, 2.0)
    for step in range(2, 12):
        clock.now += 1.0
        progress.step(step, 2.0)
    with progress.beside("validating"):
        clock.now += 10.0
    clock.now += 1.0
    progress.step(12, 2.0)  # 11 steps in 11 s, and 10 s beside them
    progress.close()
    text = sys.stderr.getvalue()
    assert "step 11/101  loss 2.0000  64 images/s  1:30 left" in text
    assert "step 12/101  loss 2.0000  64 images/s  2:50 left" in text
    assert ("64 images/s  1:30 left, validating" in text) == terminal


def test_no_progress_when_quiet(monkeypatch):
    assert drive(monkeypatch, terminal=False, show=False) == ""


def test_the_environment_is_recorded():
    found = environment()
    assert found["packages"]["torch"] == torch.__version__.split("+")[0]
    assert found["cpu_count"] >= 1
    assert found["git"] is None or len(found["git"]["commit"]) == 40
    json.dumps(found)


def test_importing_the_configuration_imports_nothing_heavy():
    import subprocess

    code = "import sys, unrolled.train.config; print([m for m in ('torch', 'timm', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert TrainConfig.__module__.startswith("unrolled.train.config.")


def test_seeds_of_one_recipe_share_their_test_images(config, tmp_path):
    from unrolled.train.run import open_splits

    first, second = (open_splits(config(data="digits", seed=seed, out=tmp_path)).test for seed in (0, 1))
    assert [first.name(i) for i in range(5)] == [second.name(i) for i in range(5)]
    other = open_splits(config(data="digits", split_seed=1, out=tmp_path)).test
    assert [first.name(i) for i in range(5)] != [other.name(i) for i in range(5)]


def test_a_model_with_tied_weights_can_be_saved_and_grey_images_reach_a_model_of_ones_own(
    config, tmp_path, monkeypatch
):
    module = tmp_path / "own_model_for_a_test.py"
    module.write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "        self.a = torch.nn.Linear(3, num_classes, bias=False)\n"
        "        self.b = torch.nn.Linear(3, num_classes, bias=False)\n"
        "        self.b.weight = self.a.weight\n"
        "    def forward(self, x):\n"
        "        return self.a(x.mean((2, 3))) + self.b(x.amax((2, 3)))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    result = fit(
        config(model="own_model_for_a_test:Net", model_args={}, data="digits", max_steps=2, out=tmp_path / "run"),
    )
    assert (result.run_dir / "model" / "model.safetensors").is_file()


def test_fine_tuning_takes_the_model_from_the_folder_of_its_weights(config, tmp_path):
    trained = fit(
        config(model="crate_nano_patch4_32", model_args={"depth": 2}, data="digits", max_steps=1, out=tmp_path / "a")
    )
    settings = FinetuneConfig(
        weights=trained.run_dir,
        data="synthetic",
        max_steps=1,
        batch_size=8,
        accelerator="cpu",
        quiet=True,
        out=tmp_path / "b",
    )
    tuned = fit(settings)
    assert len(tuned.model.blocks) == 2
    assert tuned.model.patch_embed.proj.in_channels == trained.model.patch_embed.proj.in_channels
    with pytest.raises(ValueError, match="give model="):
        fit(replace(settings, weights=tmp_path / "a" / "model" / "model.safetensors", out=tmp_path / "c"))


def test_an_image_size_reaches_models_that_do_not_ask_for_it(config, tmp_path):
    result = fit(config(model="timm:resnet10t", model_args={}, data="digits", image_size=32, max_steps=1, out=tmp_path))
    assert result.test["images"] == 360
