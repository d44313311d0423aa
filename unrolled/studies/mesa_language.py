"""Language models whose layers are softmax, linear, delta-rule or mesa attention, and hybrids that start with softmax.

Claim (arXiv 2309.05858, appendix): behind a first softmax layer, mesa layers predict text better than linear ones and
gain more from a longer context, at every size; beside an all-softmax model they are level with 2 layers and behind with
4.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from unrolled.studies.base import Budget, Expectation, Study, StudyConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from unrolled.report import Report

_SOURCE = "arXiv 2309.05858, figures 26 to 28"
LOSS = Expectation(
    statement="Hybrid-mesa predicts better than hybrid-linear everywhere (largest difference of losses, nats per byte)",
    source=_SOURCE,
    published="lower at every size; figures only, no numbers",
    high=0.0,
)
SCORE = Expectation(
    statement="Hybrid-mesa gains more from context than hybrid-linear everywhere (largest difference of scores)",
    source=_SOURCE,
    published="lower at every size; figures only, positions of the score not stated",
    high=0.0,
)
LEVEL = Expectation(
    statement="With 2 layers hybrid-mesa is level with softmax (difference of losses, nats per byte)",
    source=_SOURCE,
    published="about 0; figures only",
    low=-0.05,
    high=0.05,
)
BEHIND = Expectation(
    statement="With 4 layers hybrid-mesa is behind softmax (difference of losses, nats per byte)",
    source=_SOURCE,
    published="above 0; figures only",
    low=0.0,
)
MODELS = ("softmax", "linear", "delta", "mesa", "hybrid-linear", "hybrid-delta", "hybrid-mesa")
_TOKENIZER = "bytes"


@dataclass(kw_only=True)
class Config(StudyConfig):
    """Budgets change sizes, steps and seeds. The first corpus and depth get every model and seed, the rest a few."""

    budgets: ClassVar[dict[Budget, dict[str, Any]]] = {
        "quick": {
            "corpora": ("tinyshakespeare",),
            "depths": (2,),
            "models": ("softmax", "hybrid-linear", "hybrid-mesa"),
            "seeds": (0,),
            "steps": 100,
            "test_bytes": 20_000,
        },
        "cpu": {},
        "gpu": {
            "corpora": ("brown", "bronte", "tinyshakespeare"),
            "compared": MODELS,
            "seeds": (0, 1, 2),
            "seeds_elsewhere": 3,
            "steps": 4000,
            "dim": 512,
            "heads": 8,
            "length": 1024,
            "mlp_from": 3,
            "batch_size": 32,
            "early": 32,
            "late": 992,
            "window": 16,
            "rate": 1e-3,
            "test_bytes": 10**9,
            "device": "cuda",
        },
    }

    corpora: tuple[str, ...] = ("tinyshakespeare", "wikitext2-small")
    """Names of `unrolled.data.text.open_text`; the paper's is the Pile."""
    depths: tuple[int, ...] = (2, 4)
    """Layers."""
    mlp_from: int = 2
    """Models of so many layers have a ReLU MLP in each. The paper's has 3: its 2 layers are attention alone, which at
    this budget do not even learn which byte follows which."""
    models: tuple[str, ...] = MODELS
    """Of the first corpus and depth."""
    compared: tuple[str, ...] = ("softmax", "hybrid-linear", "hybrid-mesa")
    """Models of the other corpora and depths, which the claims are about."""
    seeds: tuple[int, ...] = (0, 1)
    """One training for each, of the compared models at the first corpus and depth: initial weights and excerpts."""
    seeds_elsewhere: int = 1
    """How many of them everything else gets."""
    dim: int = 128
    """Width; the paper's 756."""
    heads: int = 4
    """Heads; the paper's 12."""
    length: int = 256
    """Bytes of context; the paper's 1024 are GPT-2 tokens."""
    batch_size: int = 4
    """Excerpts in a step."""
    steps: int = 600
    """Training steps."""
    rate: float = 3e-3
    """Peak learning rate of all models."""
    early: int = 8
    """First position of the score's early window, counted from 0."""
    late: int = 240
    """First position of its late window."""
    window: int = 8
    """Positions in each; more than one is for less noise."""
    points: int = 8
    """Looks at the validation part during training."""
    test_bytes: int = 50_000
    """At most so many bytes of the test part are predicted."""
    data_dir: Path = Path("data")
    """Where the corpora are."""
    device: str = "cpu"
    """Where to train."""
    out: Path = Path("runs/mesa-language")
    """Where the report goes, and the trained cells, which a second run takes from there."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must name at least one, and none twice")
        if not self.corpora or not self.depths or min(self.depths) < 2:
            raise ValueError("corpora and depths must name at least one, and depths must be at least 2")
        if unknown := {*self.models, *self.compared} - set(MODELS):
            raise ValueError(f"models: {', '.join(sorted(unknown))} is not one of {', '.join(MODELS)}")
        if not 0 <= self.early < self.late or self.late + self.window > self.length:
            raise ValueError("early, late, window: must be 0 <= early < late, and late + window at most length")
        if min(self.steps, self.batch_size, self.points, self.window, self.seeds_elsewhere) < 1:
            raise ValueError("steps, batch_size, points, window and seeds_elsewhere must be at least 1")


def run(config: Config, *, on_progress: Callable[[str], None] | None = None) -> Report:
    """Train every cell, measure, compare; the report is also written to `config.out`.

    Args:
        config: what to run.
        on_progress: given a line of text when each model is trained.

    Raises:
        MissingData: the corpora are not in `config.data_dir`.
    """
    from unrolled.data.tokens import ByteTokenizer
    from unrolled.studies.mesa_language_report import build_report
    from unrolled.studies.remembered import remembered

    began = time.perf_counter()
    left_out = ("out", "data_dir", "corpora", "depths", "models", "compared", "seeds", "seeds_elsewhere")
    shared = {name: value for name, value in vars(config).items() if name not in left_out}
    tokens: dict[str, dict[str, Tensor]] = {}
    tokenizer = ByteTokenizer()
    controls, cells = [], []
    for corpus in config.corpora:
        tokens[corpus], prints = _open(corpus, config, tokenizer)
        settings = {**shared, "text": prints}

        def control(corpus: str = corpus) -> dict[str, Any]:
            return {"corpus": corpus, **_controls(config, tokens[corpus])}

        controls.append(remembered(config.out / "cells", f"{corpus}-controls", settings, control))
    plan = list(jobs(config))
    for corpus, depth, model, seed in plan:

        def compute(corpus: str = corpus, depth: int = depth, model: str = model, seed: int = seed) -> dict[str, Any]:
            return run_one(config, tokens[corpus], corpus=corpus, depth=depth, model=model, seed=seed)

        name = f"{corpus}-{depth}-{model}-seed{seed}"
        cell = remembered(config.out / "cells", name, {**shared, "text": _open_prints(tokens[corpus])}, compute)
        cells.append(cell)
        if on_progress is not None:
            on_progress(
                f"{len(cells)} of {len(plan)}: {corpus}, {depth} layers, {model}, seed {seed}: loss {cell['loss']:.3f} "
                f"nats per byte, score {cell['score']:+.3f}, {cell['seconds']:.0f} s"
            )
    report = build_report(config, cells, controls, began)
    report.write(config.out)
    return report


def jobs(config: Config) -> Iterator[tuple[str, int, str, int]]:
    """Corpus, depth, model and seed of every training."""
    for corpus in config.corpora:
        for depth in config.depths:
            first = (corpus, depth) == (config.corpora[0], config.depths[0])
            if not first and corpus != config.corpora[0] and depth != config.depths[0] and config.seeds_elsewhere == 1:
                continue  # with one seed elsewhere, one size of each further corpus is enough
            for model in config.models if first else config.compared:
                whole = first and model in config.compared
                for seed in config.seeds if whole else config.seeds[: config.seeds_elsewhere]:
                    yield corpus, depth, model, seed


def build(config: Config, *, model: str, depth: int, seed: int) -> nn.Module:
    """An untrained model: `depth` layers of one kind, the first softmax in a hybrid."""
    import torch

    from unrolled.models.sequence import LanguageConfig, LanguageModel

    kind = model.removeprefix("hybrid-")
    layers = ("softmax" if model.startswith("hybrid-") else kind,) + (kind,) * (depth - 1)
    torch.manual_seed(seed)
    return LanguageModel(
        LanguageConfig(
            vocab_size=256,
            layers=layers,
            dim=config.dim,
            heads=config.heads,
            second="relu" if depth >= config.mlp_from else "none",
            max_length=config.length,
            tied=False,  # attention alone has no other path for which byte follows which
            layer_args={name: {"normalize": True} for name in ("linear", "mesa") if name in layers},
        )
    ).to(config.device)


def run_one(
    config: Config, tokens: dict[str, Tensor], *, corpus: str, depth: int, model: str, seed: int
) -> dict[str, Any]:
    """One model: trained on the training part, followed on the validation part, measured on the test part."""
    import torch
    import torch.nn.functional as F

    from unrolled.data.tokens import token_batches
    from unrolled.instruments.sequences.context import token_losses
    from unrolled.studies.remembered import checkpoint
    from unrolled.studies.training import train_kept, warmup_cosine

    began = time.perf_counter()
    network = build(config, model=model, depth=depth, seed=seed)
    test, val = _rows(tokens["test"], config, config.test_bytes), _rows(tokens["val"], config, 16 * config.length)
    untrained = _measure(network, test[:32], config)

    def loss_at(step: int) -> Tensor:
        batch = token_batches(
            tokens["train"], batch_size=config.batch_size, length=config.length, seed=seed, step=step
        ).to(config.device)
        return F.cross_entropy(network(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    def look(step: int) -> dict[str, Any]:
        return {"loss": float(token_losses(network, val[:, :-1], val[:, 1:], batch_size=16).mean())}

    matrices = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=config.rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    curve = train_kept(
        network,
        optimizer,
        loss_at,
        steps=config.steps,
        keep=checkpoint(
            config.out / "models" / f"{corpus}-{depth}-{model}-seed{seed}.pt",
            {**_plain(config), "corpus": corpus, "depth": depth, "model": model, "seed": seed},
        ),
        rate=warmup_cosine(config.rate, warmup=max(1, config.steps // 10), steps=config.steps, floor=0.1 * config.rate),
        clip_norm=1.0,
        look=look,
        look_at=[round(config.steps * point / config.points) for point in range(config.points + 1)],
    )
    return {
        "corpus": corpus,
        "depth": depth,
        "model": model,
        "seed": seed,
        "parameters": sum(p.numel() for p in network.parameters()),
        "steps": config.steps,
        "tokens": config.steps * config.batch_size * config.length,
        **_measure(network, test, config),
        "untrained_loss": untrained["loss"],
        "untrained_score": untrained["score"],
        "validation": curve,
        "seconds": time.perf_counter() - began,
    }


def _measure(network: nn.Module, rows: Tensor, config: Config) -> dict[str, Any]:
    """Loss, bits per byte and in-context score on held-out excerpts [b, length + 1]."""
    from unrolled.instruments.sequences.context import in_context_score

    found = in_context_score(
        network, rows[:, :-1], rows[:, 1:], early=config.early, late=config.late, window=config.window, batch_size=16
    )
    loss = sum(found["curve"]) / len(found["curve"])
    return {
        "loss": loss,
        "bits_per_byte": loss / math.log(2),
        "score": found["score"],
        "score_error": found["standard_error"],
        "curve": found["curve"],
    }


def _controls(config: Config, tokens: dict[str, Tensor]) -> dict[str, Any]:
    """Loss and score on the test part of what has no context beyond one byte."""
    import torch

    train, rows = tokens["train"].to("cpu"), _rows(tokens["test"], config, config.test_bytes).to("cpu")
    single = torch.bincount(train, minlength=256).double() + 1
    unigram = single / single.sum()
    pairs = torch.bincount(train[:-1] * 256 + train[1:], minlength=256 * 256).double().view(256, 256)
    bigram = (pairs + unigram) / (pairs.sum(1, keepdim=True) + 1)

    class Table(torch.nn.Module):
        """Log-probabilities of the next byte, by the last one."""

        def __init__(self, table: Tensor) -> None:
            super().__init__()
            self.register_buffer("table", table.log().float())

        def forward(self, ids: Tensor) -> Tensor:
            return self.get_buffer("table")[ids]

    tables = {"unigram": unigram.expand(256, 256), "bigram": bigram}
    return {
        "sizes": {part: len(ids) for part, ids in tokens.items()},
        **{name: _measure(Table(table), rows, config) for name, table in tables.items()},
    }


def _rows(tokens: Tensor, config: Config, most: int) -> Tensor:
    """Excerpts that follow each other, [b, length + 1]: each byte but the first of an excerpt is predicted once."""
    count = min(len(tokens), most) // (config.length + 1)
    if count < 2:
        raise ValueError(
            f"length={config.length}: the held-out part has {len(tokens)} bytes, fewer than two excerpts; lower it"
        )
    return tokens[: count * (config.length + 1)].view(count, config.length + 1).to(config.device)


def _open(corpus: str, config: Config, tokenizer: Any) -> tuple[dict[str, Tensor], str]:
    from unrolled.data.text import open_text

    parts: dict[str, Tensor] = {}
    for split in ("train", "val", "test"):
        parts[split] = tokenizer.encode(open_text(corpus, split, data_dir=config.data_dir).text)  # type: ignore[arg-type]
    return parts, _open_prints(parts)


def _open_prints(parts: dict[str, Tensor]) -> str:
    import hashlib

    digest = hashlib.sha256()
    for part in parts.values():
        digest.update(part.numpy().tobytes())
    return digest.hexdigest()[:16]


def _plain(config: Config) -> dict[str, Any]:
    names = ("dim", "heads", "length", "mlp_from", "batch_size", "rate", "points", "device")
    return {name: getattr(config, name) for name in names}


STUDY = Study(
    name="mesa-language",
    title="Mesa, linear, delta-rule and softmax layers as language models",
    citation="J. von Oswald et al., Uncovering mesa-optimization algorithms in Transformers, arXiv 2309.05858",
    config=Config,
    run=run,
    expectations=(LOSS, SCORE, LEVEL, BEHIND),
)
