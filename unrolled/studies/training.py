"""Training that saves itself as it goes, so that a study that was stopped goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unrolled.reading import Json
from unrolled.train.schedule import learning_rate

Log = list[Json]
"""What was seen in a training, look by look: its "step", and what the look returned."""
Look = Callable[[int], Json | None]


class Checkpoint(NamedTuple):
    """A file that a training is saved to, and what its weights depend on; a file with another key is not used."""

    path: Path
    key: str


def train_resumable(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_at: Callable[[int], Tensor],
    *,
    steps: int,
    keep: Checkpoint | None = None,
    rate: Callable[[int], float] | None = None,
    clip_value: float | None = None,
    clip_norm: float | None = None,
    look: Look | None = None,
    look_at: Iterable[int] = (),
    every: int = 250,
) -> Log:
    """Train `model` in place for `steps` steps, saving to `keep` so that a second call goes on from there.

    A finished file is simply loaded, which is how studies share trained models. On one device and with as many threads
    an interrupted training ends with the same weights as an uninterrupted one, if `loss_at` depends on the step alone.

    Args:
        model: initialised by the caller from a seed that `settings` names.
        optimizer: over the parameters of `model`.
        loss_at: from the number of steps done to the loss of the next batch.
        steps: in all.
        keep: where to save, and all that the weights depend on besides `steps`; nothing is saved if None.
        rate: from the number of steps done to the learning rate; constant if None.
        clip_value: gradients are clipped element by element.
        clip_norm: gradients are clipped by their norm.
        look: called with the number of steps done, at each of `look_at`; what it returns is logged.
        look_at: numbers of steps in 0 to `steps`.
        every: steps between two saves.

    Returns:
        What `look` returned, each with its "step".
    """
    key = "" if keep is None else json.dumps([keep.key, steps])
    looks = set(look_at)
    log: Log = []
    begin = 0
    device = next(model.parameters()).device
    checkpoint = None if keep is None else _load(keep.path, key, device)
    if checkpoint is not None:
        model.load_state_dict(checkpoint["model"])
        log, begin = json.loads(checkpoint["log"]), checkpoint["step"]
        if begin < steps:
            optimizer.load_state_dict(checkpoint["optimizer"])

    def save(done: int) -> None:
        if keep is None:
            return
        state = {"key": key, "step": done, "model": model.state_dict(), "log": json.dumps(log)}
        if done < steps:
            state["optimizer"] = optimizer.state_dict()
        keep.path.parent.mkdir(parents=True, exist_ok=True)
        part = keep.path.with_suffix(f".{os.getpid()}.part")
        torch.save(state, part)
        part.replace(keep.path)

    for step in range(begin, steps + 1):
        if look is not None and step in looks and all(entry["step"] != step for entry in log):
            was_training = model.training
            log.append({"step": step, **(look(step) or {})})
            model.train(was_training)
        if step == steps:
            break
        if step > begin and step % every == 0:
            save(step)
        if rate is not None:
            for group in optimizer.param_groups:
                group["lr"] = rate(step)
        optimizer.zero_grad()
        loss_at(step).backward()  # type: ignore[no-untyped-call]
        if clip_value is not None:
            nn.utils.clip_grad_value_(model.parameters(), clip_value)
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
    if checkpoint is None or begin < steps:
        save(steps)
    return log


class MeanLoss:
    """`loss_at` of a training, and as `look` the mean of it since the look before.

    What a look has not reported yet is not saved: let every save be at a look.

    Args:
        loss_at: as in `train_resumable`.
    """

    def __init__(self, loss_at: Callable[[int], Tensor]) -> None:
        self._loss_at = loss_at
        self._losses: list[float] = []

    def at(self, step: int) -> Tensor:
        """The loss of a step."""
        loss = self._loss_at(step)
        self._losses.append(float(loss.detach()))
        return loss

    def look(self, step: int) -> dict[str, float]:
        """`loss`, and begin anew."""
        total, count = sum(self._losses), len(self._losses)
        self._losses.clear()
        return {"loss": total / max(1, count)}


def warmup_cosine(peak: float, *, warmup: int, steps: int, floor: float = 0.0) -> Callable[[int], float]:
    """`learning_rate` by step: it rises linearly for `warmup` steps, then falls as a cosine to `floor` at `steps`."""
    return partial(learning_rate, peak=peak, warmup=warmup, total=steps, minimum=floor)


def _load(path: Path, key: str, device: torch.device) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError):  # cut short while it was written
        return None
    return checkpoint if checkpoint.get("key") == key else None
