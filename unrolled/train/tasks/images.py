"""What all runs on images share: splits, loaders, weights to start from, and how the model is saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unrolled.data.classes import one_class_note, reading_note
from unrolled.models import load_weights
from unrolled.models.transfer import weights_classes
from unrolled.train import engine
from unrolled.train.checkpoint import whole
from unrolled.train.config import FinetuneConfig, ImageConfig
from unrolled.train.run import Splits, build_loaders, build_model, drawn_evenly, open_splits, save_model
from unrolled.train.state import RunState
from unrolled.train.task import Numbers, Task

HELD_OUT_SEED = 2**32
"""No seed of a run: held-out images are masked and cropped the same way in every run."""


class ImageTask(Task):
    """A loss on batches of images, and how a model is measured by it."""

    unit = "images"
    material = "images"
    classifies: ClassVar[bool] = False
    """Whether the model's outputs stand for the classes of the images."""
    config: ImageConfig
    data: Splits

    def open(self, fabric: Any) -> None:
        """As `Task.open`."""
        self.fabric = fabric
        config = self.config
        self.data = self.data or open_splits(config)
        held_out = self.data.val
        if config.eval_samples is not None:
            if held_out is None:
                raise ValueError(
                    f"eval_samples={config.eval_samples}: nothing is held out; give val_fraction, e.g. 0.1"
                )
            held_out = drawn_evenly(held_out, config.eval_samples, f"eval_samples={config.eval_samples}")
        self.parts = {"val": held_out, "test": self.data.test}
        self.validates, self.tests = held_out is not None, self.data.test is not None
        self.classes = list(self.data.train.classes) if self.classifies else None
        self.step_units, self.workers = config.batch_size, config.workers

    def build(self, *, resumed: bool) -> nn.Module:
        """As `Task.build`."""
        config, splits = self.config, self.data
        model = self.given or self.new_model()
        if config.weights and not resumed:
            same = weights_classes(config.weights) in (None, list(splits.train.classes))
            new_head = not same or isinstance(config, FinetuneConfig)
            self.load_report = load_weights(model, config.weights, head=not new_head)
        model = self.adapt(model)
        self.load(model)
        return model

    def new_model(self) -> nn.Module:
        """The model `config` names, randomly initialised, without a classifier."""
        return build_model(self.config, self.data.train, classes=0)

    def adapt(self, model: nn.Module) -> nn.Module:
        """The model that is trained, given the one the weights have been loaded into."""
        return model

    def load(self, model: nn.Module) -> None:
        """Make the loaders of images as the model sees them."""
        rank, world = self.fabric.global_rank, self.fabric.world_size
        self.loaders = build_loaders(self.config, self.data, model, rank=rank, world_size=world)
        self.steps_per_epoch = self.loaders.steps_per_epoch

    def fingerprint(self) -> str:
        """As `Task.fingerprint`."""
        return self.data.fingerprint()

    def notes(self) -> list[str]:
        """Of what was read, of weights that were loaded, of images seen much smaller than they are, of those that an
        epoch leaves out, of a validation by part of them."""
        splits, config = self.data, self.config
        notes = [f"data: {reading_note(train=splits.train, val=splits.val, test=splits.test)}"]
        for part in (splits.train, splits.test) if self.classifies else ():
            if part is not None and (alone := one_class_note(part)) is not None:
                notes.append(f"note: {alone}")
        if self.load_report is not None:
            notes.append(f"weights from {config.weights}: {self.load_report}")
        if seen := _seen_small(splits.train.native_size, self.loaders.size, config):
            notes.append(seen)
        count, batch_size = len(splits.train), config.batch_size
        if left := count % batch_size:
            notes.append(
                f"{left:,} of {count:,} images do not fill a batch of {batch_size}; each epoch leaves out others"
            )
        if config.eval_samples is not None and splits.val is not None:
            notes.append(f"validating on {config.eval_samples:,} of {len(splits.val):,} images")
        return notes

    def start(self, step: int, steps: int) -> None:
        """Loaders go on where the earlier process stopped."""
        self.batches = self.loaders.train_at(start_step=step, steps=steps)

    def fetch(self, step: int) -> Any:
        """The next of the loader, which counts steps itself."""
        return next(self.batches)

    def loss(self, wrapped: nn.Module, part: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> tuple[Tensor, Numbers]:
        """The mean over the part, weighted by its images."""
        share = len(part[0]) / len(inputs[0])
        loss, numbers = self.mean_loss(wrapped, *part)
        return loss * share, {name: value.float() * share for name, value in numbers.items()}

    def mean_loss(self, wrapped: nn.Module, *part: Tensor) -> tuple[Tensor, Numbers]:
        """The mean loss of (a part of) what `inputs` returned, and further scalars to log."""
        raise NotImplementedError

    def non_finite(self, loss: float, norm: float, fetched: Any, step: int) -> str:
        """Names the images, and those whose pixels are to blame."""
        what, value = ("gradient norm", norm) if math.isfinite(loss) else ("loss", loss)
        bad = ~torch.isfinite(fetched.images).flatten(1).all(1)
        indices = engine.gather_lists(self.fabric, fetched.indices.tolist())
        images = engine.gather_lists(self.fabric, fetched.indices[bad].tolist())
        shown = ", ".join(map(str, indices[:16])) + (", ..." if len(indices) > 16 else "")
        if images:
            named = ", ".join(self.data.train.name(index) for index in images[:4])
            cause = f"{len(images)} of them have non-finite pixels: {named}{', ...' if len(images) > 4 else ''}"
        else:
            cause = "their pixels are all finite, so lower lr, lengthen the warm-up or tighten clip_grad"
        return f"non-finite {what} ({value}) at step {step}, images {shown} ({len(indices)} in all); {cause}"

    def skipped(self, fetched: Any) -> list[str]:
        """Images that were left out (only with `on_error="skip"`)."""
        return fetched.skipped  # type: ignore[no-any-return]

    def entry(self, state: RunState) -> dict[str, Any]:
        """Images that could not be read, of all processes."""
        names = engine.gather_lists(self.fabric, state.window.skipped)
        state.skipped += [name for name in dict.fromkeys(names) if name not in state.skipped]
        return {"skipped": len(names), "skipped_names": sorted(set(names))} if names else {}

    def measure(self, wrapped: nn.Module, split: str, on_batch: Callable[[], None]) -> dict[str, Any]:
        """On all images of a split; validation may look at part of them."""
        source = self.parts[split]
        assert source is not None
        return self.scores(wrapped, self.loaders.evaluate(source), on_batch)

    def scores(self, wrapped: nn.Module, loader: Iterable[Any], on_batch: Callable[[], None]) -> dict[str, Any]:
        """Scores, `loss` among them, on all images of a loader (a collective call)."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.fabric.device  # type: ignore[no-any-return]

    @property
    def collective(self) -> bool:
        """Whether all processes must take part in a forward pass."""
        return self.fabric.world_size > 1  # type: ignore[no-any-return]

    def reduce(self, sums: Tensor) -> Tensor:
        """The sums over all processes."""
        return engine.sum_over_processes(self.fabric, sums)

    def save(self, out: Path) -> None:
        """In timm's format; a sharded model is gathered first."""
        if self.result is not self.model:
            self.result.load_state_dict({name: whole(tensor) for name, tensor in self.model.state_dict().items()})
        engine.on_main(self.fabric, lambda: save_model(self.result, out / "model", self.config, classes=self.classes))


def _seen_small(native: tuple[int, int, int] | None, size: tuple[int, int], config: ImageConfig) -> str | None:
    """A note that images lose most of their pixels, with a model that sees more of them where there is one."""
    if native is None or min(native[1:]) < 2 * min(size):
        return None
    note = f"images of {native[1]} x {native[2]} pixels are seen at {size[0]} x {size[1]}"
    if config.image_size is not None:
        return f"{note}, as image_size={config.image_size} says"
    if "_patch2_8" not in config.model:
        return f"{note}; another model may see more of them"
    sees = "all of them" if max(native[1:]) <= 32 else "32 x 32"
    return f"{note}; model={config.model.replace('_patch2_8', '_patch4_32')!r} sees {sees}"
