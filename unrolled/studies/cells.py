"""What lets a study stop and go on: results kept by cell, and training that saves itself as it goes."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unrolled.reading import read_json

Look = Callable[[int], Mapping[str, Any] | None]


def remembered(
    folder: Path, name: str, settings: Mapping[str, Any], compute: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The result of one cell of a study, kept in `folder` so that an interrupted study goes on where it stopped.

    A kept result counts only for equal settings and unchanged code of what computes results. Whoever knows that a
    change of the code does not matter to it sets the environment variable `UNROLLED_KEPT=any-code`.

    Args:
        folder: made if need be.
        name: of the cell; its file is `name`.json.
        settings: all that the result depends on, plain values.
        compute: the result, plain values.
    """
    key = _key(settings)
    path = folder / f"{name}.json"
    if path.is_file():
        try:
            kept = read_json(path)
        except ValueError:  # cut short while it was written
            kept = {}
        if _counts(kept.get("key"), key):
            result: dict[str, Any] = kept["result"]
            return result
    began = time.perf_counter()
    result = compute()
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    seconds = time.perf_counter() - began
    part.write_text(json.dumps({"key": key, "seconds": seconds, "result": result}), encoding="utf-8")
    part.replace(path)
    return result


class _NotKept(Exception):
    pass


def is_kept(folder: Path, name: str, settings: Mapping[str, Any]) -> bool:
    """Whether `remembered`, asked for the same cell, would compute nothing."""

    def refuse() -> dict[str, Any]:
        raise _NotKept

    try:
        remembered(folder, name, settings, refuse)
    except _NotKept:
        return False
    return True


def seconds_spent(folder: Path) -> float:
    """How long the kept cells of `folder` took to compute, in all."""
    total = 0.0
    for path in folder.glob("*.json"):
        try:
            kept = read_json(path)
            total += kept.get("seconds", 0.0)
        except (ValueError, AttributeError):  # cut short while it was written, or not a cell
            continue
    return total


def train_kept(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_at: Callable[[int], Tensor],
    *,
    steps: int,
    settings: Mapping[str, Any],
    keep: Path | None = None,
    rate: Callable[[int], float] | None = None,
    clip_value: float | None = None,
    clip_norm: float | None = None,
    look: Look | None = None,
    look_at: Iterable[int] = (),
    every: int = 250,
) -> list[dict[str, Any]]:
    """Train `model` in place for `steps` steps, saving to `keep` so that a second call goes on from there.

    A finished file is simply loaded, which is how studies share trained models. On one device and with as many threads
    an interrupted training ends with the same weights as an uninterrupted one, if `loss_at` depends on the step alone.

    Args:
        model: initialised by the caller from a seed that `settings` names.
        optimizer: over the parameters of `model`.
        loss_at: from the number of steps done to the loss of the next batch.
        steps: in all.
        settings: all that the weights depend on, plain values; a file made with others is not used.
        keep: the file; nothing is saved if None.
        rate: from the number of steps done to the learning rate; constant if None.
        clip_value: gradients are clipped element by element.
        clip_norm: gradients are clipped by their norm.
        look: called with the number of steps done, at each of `look_at`; what it returns is logged.
        look_at: numbers of steps in 0 to `steps`.
        every: steps between two saves.

    Returns:
        What `look` returned, each with its "step".
    """
    key = _key({**settings, "steps": steps})
    looks = set(look_at)
    log: list[dict[str, Any]] = []
    begin = 0
    device = next(model.parameters()).device
    kept = _load(keep, key, device)
    if kept is not None:
        model.load_state_dict(kept["model"])
        log, begin = json.loads(kept["log"]), kept["step"]
        if begin < steps:
            optimizer.load_state_dict(kept["optimizer"])

    def save(done: int) -> None:
        if keep is None:
            return
        state = {"key": key, "step": done, "model": model.state_dict(), "log": json.dumps(log)}
        if done < steps:
            state["optimizer"] = optimizer.state_dict()
        keep.parent.mkdir(parents=True, exist_ok=True)
        part = keep.with_suffix(f".{os.getpid()}.part")
        torch.save(state, part)
        part.replace(keep)

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
    if kept is None or begin < steps:
        save(steps)
    return log


def warmup_cosine(peak: float, *, warmup: int, steps: int, floor: float = 0.0) -> Callable[[int], float]:
    """A learning rate that rises linearly for `warmup` steps and then falls as a cosine to `floor` at `steps`."""

    def rate(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / warmup
        progress = torch.tensor(min(1.0, (step - warmup) / max(1, steps - warmup)))
        return floor + (peak - floor) * float(0.5 * (1 + torch.cos(torch.pi * progress)))

    return rate


def _load(keep: Path | None, key: str, device: torch.device) -> dict[str, Any] | None:
    if keep is None or not keep.is_file():
        return None
    try:
        kept: dict[str, Any] = torch.load(keep, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, OSError):  # cut short while it was written
        return None
    return kept if _counts(kept.get("key"), key) else None


def _counts(kept: str | None, key: str) -> bool:
    """Whether what was kept under one key may stand for what has another."""
    if kept is None or kept == key:
        return kept == key
    if os.environ.get("UNROLLED_KEPT") != "any-code":
        return False
    one, two = json.loads(kept), json.loads(key)
    return bool({**one, "sources": ""} == {**two, "sources": ""})


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps({**settings, "sources": _sources()}, default=str, sort_keys=True)


@cache
def _sources() -> str:
    """A fingerprint of the package's code, without what only shows results."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        if path.relative_to(root).parts[0] not in ("commands", "report", "cli.py"):
            digest.update(path.read_bytes())
    return digest.hexdigest()
