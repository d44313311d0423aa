"""What the `crate-text` study trains and measures: models of equal size, their losses by position, their costs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unrolled.data.tokens import ByteTokenizer, mask_tokens, token_batches
from unrolled.studies.crate_text import MASKED_MODELS, MODELS
from unrolled.studies.crate_text_models import build, model_config, operations, parameters
from unrolled.studies.remembered import checkpoint, is_kept, remembered
from unrolled.studies.training import train_kept, warmup_cosine

if TYPE_CHECKING:
    from unrolled.studies.crate_text import Config

ORDERS = (1, 2, 3, 5)
_MASK = 256
_PROMPT = 32


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training: a trial of a learning rate and an initial scale, a full one, or one on shuffled bytes."""

    model: str
    rate: float
    table_std: float = 0.02
    seed: int = 0
    part: Literal["trial", "full", "shuffled"] = "trial"

    @property
    def masked(self) -> bool:
        """Whether masked bytes are predicted, rather than the next one."""
        return self.model in MASKED_MODELS

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.model.replace(' ', '-')}-{self.part}-{self.rate:g}-{self.table_std:g}-seed{self.seed}"

    def steps(self, config: Config) -> int:
        """Training steps."""
        if self.part == "full":
            return config.masked_steps if self.masked else config.steps
        return config.masked_trial_steps if self.masked else config.trial_steps


@cache
def opened(corpus: str, data_dir: Path) -> dict[str, Tensor]:
    """Bytes of the three parts of a corpus, [n] each.

    Raises:
        MissingData: the corpus is not there.
    """
    from unrolled.data.text import open_text

    tokenizer = ByteTokenizer()
    parts = ("train", "val", "test")
    return {part: tokenizer.encode(open_text(corpus, part, data_dir=data_dir).text) for part in parts}  # type: ignore[arg-type]


def record(config: Config, job: Job) -> dict[str, Any]:
    """What is known of a training, which is done if it is not kept."""
    return remembered(config.out / "cells", job.name, _settings(config, job), lambda: _train(config, job))


def kept(config: Config, job: Job) -> bool:
    """Whether `record` has nothing to train."""
    return is_kept(config.out / "cells", job.name, _settings(config, job))


def chosen(config: Config, trials: list[Job]) -> Job:
    """The trial that ended with the lowest loss on the validation part."""
    return min(trials, key=lambda job: record(config, job)["validation"][-1]["loss"])


def in_words(found: dict[str, Any]) -> str:
    """A line about a record."""
    last = found["validation"][-1]["loss"]
    return (
        f"{found['model']}, {found['part']}, rate {found['rate']:g}, table std {found['table_std']:g}, "
        f"seed {found['seed']}: validation loss {last:.3f} nats per byte, {found['seconds']:.0f} s"
    )


def _settings(config: Config, job: Job) -> dict[str, Any]:
    names = ("corpus", "depth", "dim", "heads", "length", "batch_size", "points", "test_bytes", "val_bytes", "device")
    windows = {} if job.masked else {name: getattr(config, name) for name in ("early", "late", "window")}
    text = [len(part) for part in opened(config.corpus, config.data_dir).values()]
    plain = {name: getattr(config, name) for name in names}
    return {**plain, **windows, **asdict(job), "steps": job.steps(config), "text": text}


def _train(config: Config, job: Job) -> dict[str, Any]:
    began = time.perf_counter()
    network, steps = build(config, job.model, seed=job.seed, table_std=job.table_std), job.steps(config)
    parts = opened(config.corpus, config.data_dir)
    if job.part == "shuffled":
        generator = torch.Generator().manual_seed(job.seed)
        parts = {name: part[torch.randperm(len(part), generator=generator)] for name, part in parts.items()}
    measure = _masked_measure if job.masked else _measure
    untrained = measure(config, network, parts["test"]) if job.part == "full" else None

    def loss_at(step: int) -> Tensor:
        batch = token_batches(
            parts["train"], batch_size=config.batch_size, length=config.length, seed=job.seed, step=step
        )
        if job.masked:
            inputs, targets = mask_tokens(batch[:, 1:], vocab_size=_MASK + 1, mask_id=_MASK, seed=job.seed, step=step)
        else:
            inputs, targets = batch[:, :-1], batch[:, 1:]
        logits = network(inputs.to(config.device))
        return F.cross_entropy(logits.flatten(0, 1), targets.to(config.device).flatten(), ignore_index=-100)

    def look(step: int) -> dict[str, Any]:
        return {"loss": measure(config, network, parts["val"][: config.val_bytes])["loss"]}

    points = config.points if job.part == "full" else 1
    weights = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": weights, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=job.rate,
        betas=(0.9, 0.95),
    )
    curve = train_kept(
        network,
        optimizer,
        loss_at,
        steps=steps,
        keep=checkpoint(
            config.out / "models" / f"{job.name}.pt" if job.part == "full" else None, _settings(config, job)
        ),
        rate=warmup_cosine(job.rate, warmup=max(1, steps // 10), steps=steps, floor=0.1 * job.rate),
        clip_norm=1.0,
        look=look,
        look_at=[round(steps * point / points) for point in range(1, points + 1)],
        every=100,
    )
    found: dict[str, Any] = {
        **asdict(job),
        "steps": steps,
        "bytes": steps * config.batch_size * config.length,
        "width": model_config(config, job.model).dim,
        "parameters": parameters(network),
        "validation": curve,
    }
    if job.part != "trial":
        found |= {"test": measure(config, network, parts["test"]), "untrained": untrained}
    if job.part == "full" and not job.masked:
        found["order_destroyed"] = _measure(config, network, parts["test"], shuffle=True)["loss"]
        found["sample"] = _sample(config, network, parts["test"])
    return {**found, "seconds": time.perf_counter() - began}


def held_out(config: Config, tokens: Tensor, most: int | None = None) -> Tensor:
    """Excerpts that follow each other, [b, length + 1], of at most `most` bytes (`config.test_bytes`).

    Raises:
        ValueError: fewer than two of them.
    """
    count = min(len(tokens), most or config.test_bytes) // (config.length + 1)
    if count < 2:
        raise ValueError(f"length={config.length}: a held-out part has fewer than two excerpts; lower it")
    return tokens[: count * (config.length + 1)].view(count, config.length + 1)


def _measure(config: Config, network: nn.Module, tokens: Tensor, *, shuffle: bool = False) -> dict[str, Any]:
    """Mean loss in nats per byte, and how it depends on the place in the context; on shuffled excerpts if asked."""
    from unrolled.instruments.sequences.context import token_losses

    rows = held_out(config, tokens)
    if shuffle:
        generator = torch.Generator().manual_seed(0)
        rows = torch.stack([row[torch.randperm(len(row), generator=generator)] for row in rows])
    rows = rows.to(config.device)
    losses = token_losses(network, rows[:, :-1], rows[:, 1:], batch_size=32)
    return by_position(config, losses.double().cpu())


def by_position(config: Config, losses: Tensor) -> dict[str, Any]:
    """Losses [b, length] in numbers: their mean, the mean at each position, and late less early with its error."""
    early, late = (losses[:, p : p + config.window].mean(1) for p in (config.early, config.late))
    change = late - early
    return {
        "loss": float(losses.mean()),
        "change": float(change.mean()),
        "change_error": float(change.std() / len(change) ** 0.5),
        "curve": losses.mean(0).tolist(),
    }


def _masked(config: Config, tokens: Tensor) -> tuple[Tensor, Tensor]:
    return mask_tokens(held_out(config, tokens)[:, 1:], vocab_size=_MASK + 1, mask_id=_MASK, seed=0, step=0)


def _masked_measure(config: Config, network: nn.Module, tokens: Tensor) -> dict[str, Any]:
    """Mean loss in nats and accuracy over masked bytes, the same ones every time."""
    inputs, targets = _masked(config, tokens)
    was_training, total, hits, count = network.training, 0.0, 0, 0
    network.eval()
    with torch.no_grad():
        for some, truth in zip(inputs.split(32), targets.split(32), strict=True):
            known = truth != -100
            logits = network(some.to(config.device)).cpu()[known].float()
            total += float(F.cross_entropy(logits, truth[known], reduction="sum"))
            hits, count = hits + int((logits.argmax(-1) == truth[known]).sum()), count + int(known.sum())
    network.train(was_training)
    return {"loss": total / count, "accuracy": hits / count, "masked": count}


def _sample(config: Config, network: Any, tokens: Tensor) -> dict[str, str]:
    """What a model writes after the first bytes of the test part."""
    prompt = tokens[: min(_PROMPT, config.length // 2)].to(config.device)
    written = network.generate(prompt[None], config.length - len(prompt), temperature=0.8, seed=0)[0].cpu()
    decode = ByteTokenizer().decode
    return {"prompt": decode(prompt.cpu()), "text": decode(written[len(prompt) :])}


def baselines(config: Config) -> dict[str, Any]:
    """N-gram models on the test part, and the unigram on what is masked for the masked models."""
    from unrolled.studies.crate_text_ngrams import NGrams

    parts = opened(config.corpus, config.data_dir)

    def compute() -> dict[str, Any]:
        counted, rows = NGrams(parts["train"]), held_out(config, parts["test"])
        found = {str(order): by_position(config, counted.losses(rows, order)) for order in ORDERS}
        known = _masked(config, parts["test"])[1] != -100
        unigram = counted.losses(rows, 1)[known]
        frequent = torch.bincount(parts["train"], minlength=256).argmax()
        hits = (rows[:, 1:][known] == frequent).double().mean()
        masked = {"loss": float(unigram.mean()), "accuracy": float(hits)}
        return {"ngrams": found, "masked": masked, "sizes": {name: len(part) for name, part in parts.items()}}

    return remembered(config.out / "cells", "baselines", _settings(config, Job(model="GPT-2", rate=0)), compute)


def costs(config: Config) -> dict[str, Any]:
    """Bytes per second in training, milliseconds per byte in decoding, and what decoding remembers, of every model."""
    return remembered(
        config.out / "cells",
        "costs",
        {**_settings(config, Job(model="GPT-2", rate=0)), "models": list(MODELS)},
        lambda: _costs(config),
    )


def _costs(config: Config) -> dict[str, Any]:
    rows = held_out(config, opened(config.corpus, config.data_dir)["val"]).repeat(config.batch_size, 1)
    batch = rows[: config.batch_size].to(config.device)
    networks: dict[str, Any] = {model: build(config, model) for model in MODELS}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in training, and steadier
    steps: dict[str, list[float]] = {model: [] for model in networks}
    decodes: dict[tuple[str, bool], list[float]] = {(m, cache): [] for m in networks for cache in (True, False)}
    try:
        for _ in range(7):  # interleaved, so that what else the machine does meets all of them
            for model, network in networks.items():
                steps[model].append(_seconds(config, lambda net=network: _step(net, batch)))  # type: ignore[misc]
        for _ in range(3):
            for (model, cache_), taken in decodes.items():
                write = networks[model].generate
                prompt, count = batch[:1, :1], config.length - 1
                taken.append(_seconds(config, lambda w=write, p=prompt, n=count, c=cache_: w(p, n, cache=c)) / count)  # type: ignore[misc]
    finally:
        torch.set_num_threads(threads)
    return {
        model: {
            "operations": operations(network, config.length) / config.length,
            "bytes_per_second": batch[:, 1:].numel() / min(steps[model]),
            "cached_ms": 1e3 * min(decodes[model, True]),
            "recomputed_ms": 1e3 * min(decodes[model, False]),
            "state": _numbers(network(batch[:1, :-1], return_state=True)[1].layers),
        }
        for model, network in networks.items()
    }


def _step(network: nn.Module, batch: Tensor) -> None:
    network.zero_grad()
    F.cross_entropy(network(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]


def _seconds(config: Config, function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    if config.device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _numbers(state: Any) -> int:
    """Numbers in all tensors of a nested tuple."""
    if isinstance(state, Tensor):
        return state.numel()
    return sum(_numbers(part) for part in state) if isinstance(state, tuple | list) else 0


def bits(nats: float) -> float:
    """Nats as bits."""
    return nats / math.log(2)
