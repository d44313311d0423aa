"""Trained linear layers replaced by 16 + 16 numbers a head, the means of the diagonals of their weights' blocks.

Claim (arXiv 2309.05858): a model of which only these means are kept predicts as well as the trained one, so the trained
weights hold a few numbers and no more: its "CompressedAlg", at one layer and at six.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from unrolled.studies.base import Budget, Expectation, Study, StudyConfig

if TYPE_CHECKING:
    from torch import Tensor

    from unrolled.models import SequenceRegressor
    from unrolled.report import Report

_SOURCE = "arXiv 2309.05858, figure 4 and text"


def _coincide(depth: str) -> Expectation:
    return Expectation(
        statement=f"{depth} linear layer{'' if depth == '1' else 's'}: loss with 32 numbers a head over the trained",
        source=_SOURCE,
        published="about 1: losses coincide; no number" if depth != "2" else "no number",
        low=0.95,
        high=1.1,
    )


RATIOS = {depth: _coincide(depth) for depth in ("1", "2", "6")}
PERMUTED = Expectation(
    statement="Control: the same numbers in other places, smallest loss over the trained one",
    source="follows from the claim; no published value",
    published="far above 1",
    low=1.3,
)


@dataclass(kw_only=True)
class Config(StudyConfig):
    """The trained models are those of `mesa-depth`; where that study has not run with equal settings they are trained.

    Settings of models that both studies use are equal at every budget.
    """

    budgets: ClassVar[dict[Budget, dict[str, Any]]] = {
        "quick": {
            "seeds": (0,),
            "models": ("1", "2"),
            "steps": (400, 500),
            "batch_size": 32,
            "test_sequences": 512,
            "retraining": 50,
        },
        "cpu": {},
        "gpu": {
            "seeds": (0, 1, 2, 3, 4),
            "steps": (5000, 5000, 15_000),
            "batch_size": 256,
            "published": True,
            "retraining": 1000,
            "device": "cuda",
        },
    }

    seeds: tuple[int, ...] = (0, 1)
    """One model of each depth for each."""
    models: tuple[str, ...] = ("1", "2", "6")
    """Numbers of linear layers."""
    steps: tuple[int, ...] = (1500, 2000, 2500)
    """Training steps of each; the paper's are 5000, 5000 and 15000."""
    batch_size: int = 32
    """Sequences per step; the paper's 256."""
    published: bool = False
    """The models were trained with the paper's constant learning rates."""
    retraining: int = 150
    """Steps of training the numbers alone, starting from the means."""
    test_sequences: int = 4096
    """Held-out sequences."""
    shared: Path = Path("runs/mesa-models")
    """Where trained models are kept for all studies."""
    device: str = "cpu"
    """Where to train."""
    out: Path = Path("runs/mesa-compressed")
    """Where the report goes, and the finished cells, which a second run takes from there."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must name at least one, and none twice")
        if not self.models or not set(self.models) <= set(RATIOS) or len(set(self.models)) < len(self.models):
            raise ValueError(f"models must be of {', '.join(RATIOS)}, none twice")
        if len(self.steps) != len(self.models):
            raise ValueError(f"steps must have one number for each of {len(self.models)} models, not {len(self.steps)}")
        if min(*self.steps, self.batch_size, self.test_sequences, self.retraining) < 1:
            raise ValueError("steps, batch_size, test_sequences and retraining must be at least 1")


@dataclass(frozen=True)
class Numbers:
    """What is left of a model of linear layers: two 4 x 4 matrices of numbers a head.

    Attributes:
        scores: means of the diagonals of the blocks of W_q^T W_k, [layers, heads, 4, 4].
        values: the same of P W_v.
        clip: tokens are kept within [-clip, clip] after every layer.
    """

    scores: Tensor
    values: Tensor
    clip: float

    def predict(self, states: Tensor) -> Tensor:
        """Predictions of s_{t+1} from states [b, t, d], in the dtype of the states; differentiable in the numbers."""
        import torch

        from unrolled.tasks import constructed_tokens

        z = constructed_tokens(states)
        for scores, values in zip(self.scores.to(states), self.values.to(states), strict=True):
            channels = z.unflatten(-1, (4, -1))  # [b, t, 4, d]
            queries = torch.einsum("btid,hij->bhtjd", channels, scores).flatten(-2)
            weighted = torch.einsum("btjd,hij->bhtid", channels, values).flatten(-2)
            z = z + ((queries @ z[:, None].mT).tril() @ weighted).sum(1)
            z = z.clamp(-self.clip, self.clip)
        return z[..., : states.shape[-1]]


def compressed(model: SequenceRegressor, state_dim: int) -> Numbers:
    """The `Numbers` of a model of linear layers on tokens of four channels of width `state_dim`."""
    import torch

    from unrolled.studies.mesa_train import products

    def means(matrices: Tensor) -> Tensor:
        blocks = matrices.unflatten(-1, (4, state_dim)).unflatten(-3, (4, state_dim))  # [h, 4, d, 4, d]
        found: Tensor = blocks.diagonal(dim1=-3, dim2=-1).mean(-1)
        return found

    layers = [products(block.get_submodule("attn")) for block in model.blocks]  # type: ignore[arg-type]
    scores, values = (torch.stack([means(pair[place]) for pair in layers]) for place in (0, 1))
    return Numbers(scores, values, float(model.config.clip))


def permuted(numbers: Numbers, seed: int) -> Numbers:
    """The same numbers, in another order in every head and product: the means after exchanging blocks."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def shuffled(x: Tensor) -> Tensor:
        order = torch.rand(*x.shape[:2], 16, generator=generator).argsort(-1).to(x.device)
        return x.flatten(-2).gather(-1, order).unflatten(-1, (4, 4))

    return Numbers(shuffled(numbers.scores), shuffled(numbers.values), numbers.clip)


def run(config: Config, *, on_progress: Callable[[str], None] | None = None) -> Report:
    """Take or train the models, compress them, test both; the report is also written to `config.out`.

    Args:
        config: what to run.
        on_progress: given a line of text per model.
    """
    from unrolled.studies.remembered import remembered

    began = time.perf_counter()
    cells: dict[str, list[dict[str, Any]]] = {name: [] for name in config.models}
    names = ("batch_size", "published", "retraining", "test_sequences", "device")
    data = {name: getattr(config, name) for name in names}
    for seed in config.seeds:
        for name, steps in zip(config.models, config.steps, strict=True):

            def compute(name: str = name, steps: int = steps, seed: int = seed) -> dict[str, Any]:
                return run_one(config, name, steps, seed)

            cell = remembered(config.out / "cells", f"{name}-seed{seed}", {**data, "steps": steps}, compute)
            cells[name].append(cell)
            if on_progress is not None:
                on_progress(f"{name} layers, seed {seed}: {cell['trained']:.4f}, compressed {cell['compressed']:.4f}")
    report = _report(config, cells, began)
    report.write(config.out)
    return report


def run_one(config: Config, name: str, steps: int, seed: int) -> dict[str, Any]:
    """One model, compressed: as it is, with its numbers retrained and permuted, and with random weights as large."""
    import torch

    from unrolled.studies.mesa_train import (
        TEST_SEED,
        constructed_model,
        constructed_recipe,
        model_predictions,
        position_losses,
    )
    from unrolled.tasks import LinearDynamics

    began = time.perf_counter()
    world = LinearDynamics()
    test = world.sample(config.test_sequences, seed=TEST_SEED)
    inputs, targets = test.inputs.to(config.device), test.targets.to(config.device)

    def loss(predict: Callable[[Tensor], Tensor]) -> float:
        return float(position_losses(predict, inputs, targets).mean())

    recipe = constructed_recipe(name, steps=steps, batch_size=config.batch_size, published=config.published)
    model, _ = constructed_model(world, name, recipe, seed=seed, device=config.device, folder=config.shared)
    numbers = compressed(model, world.dim)
    result = {
        "name": name,
        "seed": seed,
        "trained": loss(model_predictions(model)),
        "compressed": loss(numbers.predict),
        "permuted": loss(permuted(numbers, seed).predict),
        "retrained": loss(retrained(config, world, numbers, seed).predict),
        "zero": loss(lambda x: 0 * x),
        "numbers": numbers.scores.numel() + numbers.values.numel(),
        "weights": sum(p.numel() for p in model.parameters()),
        "kept": kept_share(model, numbers, world.dim),
        "extent": recipe.extent,
        "scores": numbers.scores.tolist(),
        "values": numbers.values.tolist(),
    }
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # the model is not needed any more
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator).to(weight)
            weight.copy_(noise * weight.norm() / noise.norm())
    return {
        **result,
        "random": loss(model_predictions(model)),
        "random_compressed": loss(compressed(model, world.dim).predict),
        "random_kept": kept_share(model, compressed(model, world.dim), world.dim),
        "seconds": time.perf_counter() - began,
    }


def kept_share(model: SequenceRegressor, numbers: Numbers, state_dim: int) -> float:
    """Share of the squared norm of all products of weights that the numbers stand for."""
    from unrolled.studies.mesa_train import products

    whole = 0.0
    for block in model.blocks:
        attn: Any = block.get_submodule("attn")
        whole += float(sum(x.square().sum() for x in products(attn)))
    kept = state_dim * float(numbers.scores.square().sum() + numbers.values.square().sum())
    return kept / max(whole, 1e-300)


def retrained(config: Config, world: Any, numbers: Numbers, seed: int) -> Numbers:
    """The numbers after `config.retraining` steps of AdamW on nothing but them, on sequences that no training saw."""
    import torch

    from unrolled.studies.training import warmup_cosine
    from unrolled.tasks import sequence_loss

    free = [x.to(config.device, torch.float32).clone().requires_grad_() for x in (numbers.scores, numbers.values)]
    current = Numbers(free[0], free[1], numbers.clip)
    optimizer = torch.optim.AdamW(free, lr=3e-3, weight_decay=0.0)
    rate = warmup_cosine(3e-3, warmup=max(1, config.retraining // 10), steps=config.retraining)
    for step in range(config.retraining):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        batch = world.sample(config.batch_size, seed=2**44 + seed * 10_000_000 + step, device=config.device)
        optimizer.zero_grad()
        sequence_loss(current.predict(batch.inputs), batch.targets).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_value_(free, 0.05)
        optimizer.step()
    return Numbers(free[0].detach(), free[1].detach(), numbers.clip)


def _report(config: Config, cells: dict[str, list[dict[str, Any]]], began: float) -> Report:
    from unrolled.report import Claim, Fact, Provenance, Report, mean_std

    def ratios(name: str, key: str = "compressed") -> list[float]:
        return [cell[key] / cell["trained"] for cell in cells[name]]

    def of(name: str, key: str, digits: int = 4) -> str:
        return mean_std([cell[key] for cell in cells[name]], digits=digits)

    report = Report(
        "Trained linear layers as 32 numbers a head",
        question="How much of a trained model is in the means of the diagonals of its weights' blocks?",
    )
    for name, expected in RATIOS.items():
        if name in cells:
            measured = f"{of(name, 'compressed', 3)} / {of(name, 'trained', 3)} = {mean_std(ratios(name), digits=3)}"
            report.claims.append(expected.judge(fmean(ratios(name)), measured))
        else:
            statement, source, published = expected.statement, expected.source, expected.published
            report.claims.append(
                Claim(statement=statement, source=source, published=published, measured="not run", reproduced=None)
            )
    least = min(min(ratios(name, "permuted")) for name in cells)
    report.claims.append(PERMUTED.judge(least, f"{least:.2f}"))
    seeds = f"{len(config.seeds)} seeds" if len(config.seeds) > 1 else "1 seed"
    words = [f"{mean_std(ratios(name), digits=2)} times at {name} layer{'' if name == '1' else 's'}" for name in cells]
    report.headline(
        f"With 32 numbers a head in place of all weights the loss is {', '.join(words)} what it was.",
        [
            Fact(
                label=f"{name} layer{'' if name == '1' else 's'}: compressed / trained",
                value=mean_std(ratios(name), digits=3),
                detail=f"{seeds}, {done[0]['numbers']} numbers for {done[0]['weights']} weights",
            )
            for name, done in cells.items()
        ],
    )
    rows = [
        [
            *(name, done[0]["extent"], f"{done[0]['numbers']} of {done[0]['weights']}"),
            *(of(name, key) for key in ("trained", "compressed", "retrained", "permuted")),
            f"{100 * fmean(cell['kept'] for cell in done):.0f} %",
        ]
        for name, done in cells.items()
    ]
    rows += [
        [name, "not run", "", "not run", "not run", "not run", "not run", ""] for name in RATIOS if name not in cells
    ]
    zero = fmean(cell["zero"] for done in cells.values() for cell in done)
    report.section(
        "Every depth",
        "Losses are half the squared error, summed over the state and averaged over positions and held-out sequences. "
        "Compressed: every d x d block of `W_q^T W_k` and `P W_v` of every head becomes its mean diagonal entry times "
        f"the identity. Retrained: {config.retraining} further steps on these numbers alone. Permuted: the same "
        "numbers of every head in random places.",
    ).table(
        [*("layers", "training", "numbers", "trained", "compressed", "retrained", "permuted"), "of the squared norm"],
        rows,
        caption=f"Mean ± standard deviation over {seeds}; predicting zero costs {zero:.3f}. The last column: how "
        "much of the squared norm of all products the numbers stand for.",
    )
    report.section(
        "Untrained layers",
        "Random weights as large as the trained ones, compressed in the same way. With the small weights that training "
        "starts from, a model and its compression both predict zero, and their equal losses would mean nothing.",
    ).table(
        ["layers", "random weights", "compressed", "of the squared norm"],
        [
            [
                *(name, of(name, "random", 3), of(name, "random_compressed", 3)),
                f"{100 * fmean(cell['random_kept'] for cell in done):.1f} %",
            ]
            for name, done in cells.items()
        ],
        caption=f"{seeds}. Of random weights about 1 / d^2 = 1 % of the squared norm is left.",
    )
    _figure(report, cells)
    report.results = {"models": cells}
    report.provenance = Provenance.collect(config=config, seeds=config.seeds, duration=time.perf_counter() - began)
    return report


def _figure(report: Report, cells: dict[str, list[dict[str, Any]]]) -> None:
    import numpy as np

    from unrolled.report import HeatMap

    name, done = next(iter(cells.items()))
    channels = ["0", "s_t", "s_t again", "s_t-1"]
    panels = [
        HeatMap(
            title=f"{product}, head {head + 1}",
            values=np.array(done[0][key][0][head]),
            rows=channels,
            columns=channels,
            row_label=row,
            column_label=column,
        )
        for head in range(len(done[0]["scores"][0]))
        for key, product, row, column in (
            ("scores", "W_q^T W_k", "query", "key"),
            ("values", "P W_v", "written to", "read from"),
        )
    ]
    layers = "1 linear layer" if name == "1" else f"layer 1 of {name}"
    report.section("The numbers").figure(
        panels,
        name="numbers",
        caption=f"All numbers of {layers}, seed {done[0]['seed']}. One gradient step is: queries from s_t, keys from "
        "s_t-1, and s_t written to the first channel; the two copies of s_t may share the work.",
    )


STUDY = Study(
    name="mesa-compressed",
    title="A trained linear layer is 32 numbers a head",
    citation="J. von Oswald et al., Uncovering mesa-optimization algorithms in Transformers, arXiv 2309.05858",
    config=Config,
    run=run,
    expectations=(*RATIOS.values(), PERMUTED),
)
