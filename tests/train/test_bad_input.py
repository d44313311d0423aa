from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unrolled.data import Batch
from unrolled.errors import TrainingStopped
from unrolled.train import FinetuneConfig, checkpoint, evaluate, fit
from unrolled.train.checkpoint import checkpoints, load_checkpoint


class Poisoned:
    """A loader that spoils image 7 of a source."""

    def __init__(self, loader: Any, value: float) -> None:
        self.loader, self.value = loader, value

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        for batch in self.loader(*arguments, **options):
            batch.images[batch.indices == 7] = self.value
            yield batch


def test_nan_pixels_stop_the_run_with_step_image_and_last_good_checkpoint(config, splits, monkeypatch):
    import unrolled.data as data

    monkeypatch.setattr(data, "train_loader", Poisoned(data.train_loader, float("nan")))
    step = next(
        number
        for number, batch in enumerate(
            data.train_loader(splits.train, lambda picture: torch.zeros(1, 8, 8), batch_size=12, seed=0)
        )
        if 7 in batch.indices.tolist()
    )
    with pytest.raises(TrainingStopped) as caught:
        fit(config(checkpoint_every=1, mixup=0.5), data=splits)
    message = str(caught.value)
    assert f"non-finite loss (nan) at step {step}, images " in message
    assert "1 of them have non-finite pixels" in message
    assert splits.train.name(7) in message
    good = checkpoints(config().out / "checkpoints")
    assert (f"the last good checkpoint is {good[0]}" if step else "no checkpoint had been written yet") in message
    status = json.loads((config().out / "status.json").read_text())
    assert status["state"] == "stopped"
    assert status["message"] == message
    for path in good:
        assert all(tensor.isfinite().all() for tensor in load_checkpoint(path)[0].values())


def test_a_diverging_run_is_not_blamed_on_the_pixels(config, splits):
    with pytest.raises(TrainingStopped, match=r"pixels are all finite, so lower lr"):
        fit(config(lr=1e30, warmup_epochs=0, clip_grad=None), data=splits)


def test_labels_outside_the_classes_are_named(config, splits):
    splits.train.classes = splits.train.classes[:3]
    with pytest.raises(ValueError, match=r"label 3 .* outside the .*3 classes"):
        fit(config(), data=splits)


def test_labels_outside_the_model_are_named():
    batch = Batch(torch.zeros(2, 3), torch.tensor([1, 5]), torch.tensor([10, 11]))
    with pytest.raises(ValueError, match="label 5 of image 11 is outside the model's 3 classes"):
        evaluate(torch.nn.Identity(), [batch])


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate(torch.nn.Identity(), [])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(config, splits):
    with pytest.raises(ValueError, match="accelerator='cuda' was asked for, but torch finds none"):
        fit(config(accelerator="cuda"), data=splits)


def test_half_precision_on_a_cpu_is_refused(config, splits):
    with pytest.raises(ValueError, match=r"'fp16' needs a GPU.*precision='fp32'"):
        fit(config(precision="fp16"), data=splits)


def test_bf16_trains_on_a_cpu(config, splits):
    result = fit(config(precision="bf16", max_steps=3), data=splits)
    assert all(parameter.dtype == torch.float32 for parameter in result.model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 49}, "batch_size: 49 is more than the 48 images"),
        ({"seed": 1.5}, "seed=1.5 must be a whole number"),
        ({"max_steps": "9"}, "max_steps='9' must be a whole number"),
        ({"batch_size": True}, "batch_size=True must be a whole number"),
        ({"lr": None}, "lr=None must be a number"),
        ({"optimizer": "adamm"}, "optimizer='adamm' is not one of timm's; did you mean adam"),
        ({"optimizer": "sgd", "betas": (0.9, 0.99)}, "optimizer='sgd' has no betas"),
        ({"lr": 0.0}, "lr=0.0 must be positive"),
        ({"epochs": float("nan")}, "epochs=nan must be a finite number"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"ema": 1.0}, "ema=1.0 must lie between 0 and 1"),
        ({"accumulate": 13}, "batch_size=12 must be"),
        ({"model": "crate_nano_patch2_9"}, "did you mean crate_nano_patch2_8"),
        ({"model_args": {"no_such": 1}}, "model_args: .* does not take"),
    ],
)
def test_settings_no_run_can_use_are_refused_by_name(config, splits, change, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        fit(config(**change), data=splits)


def test_a_full_disk_stops_the_run_and_loses_no_checkpoint(config, splits, monkeypatch):
    real = checkpoint.write_bytes

    def full(path: Path, data: bytes) -> None:
        if "step-00000009" in str(path):
            path.write_bytes(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path, data)

    monkeypatch.setattr(checkpoint, "write_bytes", full)
    with pytest.raises(TrainingStopped, match=r"step 9.*no space left on the disk.*last good.*step-00000008"):
        fit(config(checkpoint_every=3), data=splits)
    folder = config().out / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000006", "step-00000008"]
    for path in checkpoints(folder):
        load_checkpoint(path)
    monkeypatch.undo()
    assert fit(config(checkpoint_every=3, resume="auto"), data=splits).steps == 12


def test_a_disk_that_is_really_full(config, splits, tmp_path):
    """On a file system of 1 MiB, where this machine lets us make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode
    ):
        pytest.skip("cannot mount a small file system here")
    try:
        with pytest.raises(TrainingStopped, match=r"no space left on the disk.*the last good checkpoint is"):
            fit(config(out=disk / "run", checkpoint_every=1, keep=100), data=splits)
        good = checkpoints(disk / "run" / "checkpoints")
        assert good
        for path in good:
            load_checkpoint(path)
        for path in good[1:]:
            shutil.rmtree(path)
        assert fit(config(out=disk / "run", resume="auto", keep=2), data=splits).steps == 12
    finally:
        subprocess.run(["umount", disk], check=True)


def test_an_unreadable_image_is_named_and_skipped_by_choice(config, splits, monkeypatch):
    from unrolled.data.sources import BadImage

    load = splits.train.load
    monkeypatch.setattr(splits.train, "in_memory", lambda: False)

    def broken(index: int) -> Any:
        if index == 5:
            raise BadImage("cannot be decoded")
        return load(index)

    monkeypatch.setattr(splits.train, "load", broken)
    with pytest.raises(TrainingStopped, match=r"5.*cannot be decoded.*checkpoint"):
        fit(config(), data=splits)
    result = fit(config(on_error="skip", force=True, mixup=0.3), data=splits)
    assert len(result.skipped) == 1
    assert splits.train.name(5) in result.skipped[0]
    assert sum(record.get("skipped", 0) for record in result.metrics if record["split"] == "train") == 3


def test_fine_tuning_needs_weights_and_something_to_choose_by(tmp_path):
    with pytest.raises(ValueError, match="weights"):
        fit(FinetuneConfig(out=tmp_path))
    with pytest.raises(ValueError, match="val_fraction=0"):
        fit(FinetuneConfig(out=tmp_path, weights=tmp_path, val_fraction=0.0))


def test_a_flipped_bit_in_either_file_is_noticed(tmp_path):
    from unrolled.errors import CorruptFile

    for name in ("state.safetensors", "state.json"):
        path = checkpoint.save_checkpoint(tmp_path, 1, {"a": torch.arange(9.0)}, {"value": 0.1}, keep=1)
        data = bytearray((path / name).read_bytes())
        position = data.index(b"0.1") if name.endswith("json") else len(data) - 3
        data[position] ^= 2
        (path / name).write_bytes(bytes(data))
        with pytest.raises(CorruptFile, match=name.replace(".", r"\.")):
            load_checkpoint(path)


def test_optimizer_state_that_json_cannot_hold_is_refused():
    from unrolled.train.checkpoint import pack_optimizer

    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.state[model.weight]["history"] = {np.float64}
    with pytest.raises(ValueError, match="cannot be saved"):
        pack_optimizer(optimizer, dict(model.named_parameters()))
