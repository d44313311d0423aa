"""Every method of the mesa solve where it is hard: condition numbers, 16-bit inputs, long contexts, any gates.

Errors are measured against dense solves in float64 at a few positions of every sequence, formed from the inputs alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from unrolled.studies.base import Budget, Expectation, Study, StudyConfig

if TYPE_CHECKING:
    from torch import Tensor

    from unrolled.report import Report

FINITE = Expectation(
    statement="Outputs and gradients that are not finite, over all methods and cases",
    source="target of this package; 16-bit states gave others NaN",
    published="0",
    high=0,
)
EXACT = Expectation(
    statement="Largest error of the chunkwise solve in float32 where the condition number is at most 1000",
    source="target of this package",
    published="≤ 1e-4",
    high=1e-4,
)
HALF = Expectation(
    statement="Largest error of the chunkwise solve on bfloat16 inputs, in roundings of its bfloat16 output",
    source="target of this package",
    published="≤ 1",
    high=1.0,
)
# MesaNet (arXiv 2506.05233) runs 30 steps and never looks at the residual
METHODS: dict[str, dict[str, Any]] = {
    "recurrent": {"method": "recurrent"},
    "chunk": {"method": "chunk"},
    "cg": {"method": "cg"},
    "CG-30": {"method": "cg", "steps": 30, "tolerance": 0.0},
}
NAMES = (*METHODS, "reference")


@dataclass(kw_only=True)
class Config(StudyConfig):
    """Budgets change lengths and seeds."""

    budgets: ClassVar[dict[Budget, dict[str, Any]]] = {
        "quick": {"seeds": (0,), "steps": 256, "contexts": (512, 2048)},
        "cpu": {},
        "gpu": {"contexts": (2048, 16384, 65536, 262144), "device": "cuda"},
    }

    seeds: tuple[int, ...] = (0, 1, 2)
    """One draw of every case for each; errors are the largest over all of them."""
    width: int = 32
    """Of keys and values."""
    steps: int = 512
    """Of a sequence, in all cases but the long ones."""
    contexts: tuple[int, ...] = (2048, 16384, 65536)
    """Lengths of the long ones."""
    device: str = "cpu"
    """Where to solve; the dense solves are on the processor."""
    out: Path = Path("runs/mesa-stability")
    """Where the report goes, and the finished cases, which a second run takes from there."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must name at least one, and none twice")
        if self.width < 2 or self.steps < 2 or not self.contexts or min(self.contexts) < 2:
            raise ValueError("width, steps and contexts must be at least 2")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of input.

    Attributes:
        family: the table it belongs to.
        name: its row.
        steps: t.
        ridge: added to the diagonal.
        spread: ratio of the largest to the smallest standard deviation of the keys' coordinates.
        decay: lowest and highest of decays drawn uniformly; None for none.
        gate: input gates are drawn uniformly from [0, 1], a fifth of them zero.
        ridge_decays: the ridge decays with the statistics.
        repeated: every key is the same.
        scale: of all keys.
        dtype: of q, k and v.
        gradients: also run backwards.
    """

    family: str
    name: str
    steps: int
    ridge: float = 1.0
    spread: float = 1.0
    decay: tuple[float, float] | None = None
    gate: bool = False
    ridge_decays: bool = False
    repeated: bool = False
    scale: float = 1.0
    dtype: str = "float32"
    gradients: bool = True


def cases(config: Config) -> list[Case]:
    """All cases of a configuration."""
    t = config.steps
    conditions = ((1.0, 1.0), (0.25, 1.0), (1e-2, 1.0), (1e-2, 10.0), (1e-4, 10.0), (1e-6, 100.0))
    found = [
        Case(
            family="condition number",
            name=f"ridge {ridge:g}, keys spread {spread:g}",
            steps=t,
            ridge=ridge,
            spread=spread,
        )
        for ridge, spread in conditions
    ]
    found += [
        Case(family="precision", name=f"{dtype}, ridge {ridge:g}", steps=t, ridge=ridge, dtype=dtype)
        for dtype in ("bfloat16", "float16", "float64")
        for ridge in (1.0, 0.25, 1e-2)
    ]
    found += [
        Case(family="context", name=f"{length} steps", steps=length, gradients=False) for length in config.contexts
    ]
    gates: list[dict[str, Any]] = [
        {"name": "decay in [0.99, 1]", "decay": (0.99, 1.0)},
        {"name": "decay in [0.9, 1]", "decay": (0.9, 1.0)},
        {"name": "decay in [0.5, 1]", "decay": (0.5, 1.0)},
        {"name": "decay in [1e-6, 1]", "decay": (1e-6, 1.0)},
        {"name": "decay in [0.9, 1], ridge too", "decay": (0.9, 1.0), "ridge_decays": True},
        {"name": "decay in [0.99, 1], ridge too, gates", "decay": (0.99, 1.0), "ridge_decays": True, "gate": True},
        {"name": "gates", "gate": True},
        {"name": "decay in [0.9, 1], gates", "decay": (0.9, 1.0), "gate": True},
        {"name": "one key repeated", "repeated": True},
        {"name": "one key repeated, decay in [0.9, 1]", "repeated": True, "decay": (0.9, 1.0)},
        {"name": "keys 1000 times larger", "scale": 1e3},
        {"name": "keys 1000 times smaller", "scale": 1e-3},
    ]
    return found + [Case(family="gates and extremes", steps=t, **gate) for gate in gates]


def run(config: Config, *, on_progress: Callable[[str], None] | None = None) -> Report:
    """Run every method on every case; the report is also written to `config.out`.

    Args:
        config: what to run.
        on_progress: given a line of text per case.
    """
    from unrolled.studies.remembered import remembered

    began = time.perf_counter()
    found: list[tuple[Case, dict[str, Any]]] = []
    everything = cases(config)
    for place, case in enumerate(everything):
        # a default argument, because the name is bound anew in every round
        def compute(case: Case = case) -> dict[str, Any]:
            return measure(case, config)

        settings = {**vars(case), "seeds": config.seeds, "width": config.width, "device": config.device}
        found.append((case, remembered(config.out / "cells", f"case{place:02d}", settings, compute)))
        if on_progress is not None:
            on_progress(f"{place + 1} of {len(everything)}: {case.family}, {case.name}")
    report = _report(config, found, began)
    report.write(config.out)
    return report


def draw(case: Case, width: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Queries, keys, values [1, 2, t, width] in the dtype of the case, decay and gate [1, 2, t] in float64 or None.

    Keys have unit norm on average, as in MesaNet, before `scale`.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(1, 2, case.steps, width, generator=generator, dtype=torch.float64)

    q, k, v = normal(), normal() * torch.logspace(0, -math.log10(case.spread), width, dtype=torch.float64), normal()
    q, k = q / width**0.5, k / k.square().sum(-1, keepdim=True).mean().sqrt()
    if case.repeated:
        k = k[:, :, :1].expand_as(k)
    decay = gate = None
    if case.decay is not None:
        low, high = case.decay
        decay = low + (high - low) * torch.rand(1, 2, case.steps, generator=generator, dtype=torch.float64)
    if case.gate:
        gate = torch.rand(1, 2, case.steps, generator=generator, dtype=torch.float64)
        gate = gate * (torch.rand(gate.shape, generator=generator, dtype=torch.float64) > 0.2)
    dtype = getattr(torch, case.dtype)
    return q.to(dtype), (case.scale * k).to(dtype), v.to(dtype), decay, gate


def truth(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    case: Case,
    decay: Tensor | None,
    gate: Tensor | None,
    positions: list[int],
) -> tuple[Tensor, float]:
    """Dense float64 solves at `positions`, [1, 2, p, width], and the largest condition number met."""
    import torch

    from unrolled.theory.in_context import ridge_regression

    q, k, v = q.double(), k.double(), v.double()
    total = torch.zeros(q.shape[:3], dtype=torch.float64) if decay is None else decay.log().cumsum(-1)
    outputs, condition = [], 1.0
    for t in positions:
        weights = (total[..., t, None] - total[..., : t + 1]).exp()
        if gate is not None:
            weights = weights * gate[..., : t + 1]
        shrunk = case.ridge * (total[..., t].exp() if case.ridge_decays else torch.ones_like(total[..., t]))
        ridge = shrunk[..., None].expand(*shrunk.shape, k.shape[-1])
        keys = k[..., : t + 1, :]
        eigenvalues = torch.linalg.eigvalsh((keys * weights[..., None]).mT @ keys + torch.diag_embed(ridge))
        low = eigenvalues[..., 0].clamp_min(1e-300)
        condition = max(condition, float((eigenvalues[..., -1] / low).max()))
        weights_of = ridge_regression(keys, v[..., : t + 1, :], ridge, weights)
        outputs.append((weights_of @ q[..., t, :, None])[..., 0])
    return torch.stack(outputs, dim=-2), condition


def measure(case: Case, config: Config) -> dict[str, Any]:
    """Errors of all methods in one case, the largest over seeds, and how many of their numbers are not finite.

    An error is the distance to the truth relative to the truth's root mean square over positions. None stands for a
    method that does not serve the case: rank-one updates cannot hold a ridge fixed under decay.
    """
    import torch

    from unrolled.ops.mesa_solve import mesa

    result: dict[str, Any] = {"condition": 1.0, "errors": dict.fromkeys(NAMES), "broken": dict.fromkeys(NAMES, 0)}
    positions = sorted({round(x) for x in torch.logspace(0, math.log10(case.steps), 24).tolist()})
    positions = [p - 1 for p in positions if p <= case.steps]
    for seed in config.seeds:
        inputs = draw(case, config.width, seed)
        exact, condition = truth(*inputs[:3], case, *inputs[3:], positions)
        result["condition"] = max(result["condition"], condition)
        scale = exact.square().mean().sqrt()
        for name in NAMES:
            if name == "recurrent" and case.decay is not None and not case.ridge_decays:
                continue
            # the dense solves of every position take too much memory for long contexts
            if name == "reference" and case.steps > 4096:
                continue
            leaves = [x.to(config.device, copy=True).requires_grad_(case.gradients) for x in inputs[:3]]
            decay, gate = (x if x is None else _arithmetic(x, case).to(config.device) for x in inputs[3:])
            options: dict[str, Any] = METHODS.get(name, {"method": "reference"})
            q, k, v = leaves
            out = mesa(q, k, v, case.ridge, decay, gate, ridge_decays=case.ridge_decays, **options)
            numbers = [out.detach()]
            if case.gradients:
                numbers += torch.autograd.grad(out.float().sum(), leaves)
            result["broken"][name] += sum(int((~x.isfinite()).sum()) for x in numbers)
            error = float((out.detach()[..., positions, :].double().cpu() - exact).abs().max() / scale)
            # a NaN would lose every comparison
            error = error if math.isfinite(error) else math.inf
            result["errors"][name] = max(result["errors"][name] or 0.0, error)
    if case.dtype in ("bfloat16", "float16"):
        # what rounding the truth itself to the outputs' dtype would cost
        rounded = exact.to(getattr(torch, case.dtype)).double()
        result["rounding"] = float((rounded - exact).abs().max() / scale)
    return result


def _arithmetic(x: Tensor, case: Case) -> Tensor:
    """Decays and gates in the dtype of the statistics."""
    return x if case.dtype == "float64" else x.float()


def _report(config: Config, found: list[tuple[Case, dict[str, Any]]], began: float) -> Report:
    from unrolled.report import Fact, LineChart, Provenance, Report, Series

    broken = sum(sum(cell["broken"].values()) for _, cell in found)
    mild = [c["errors"]["chunk"] for case, c in found if c["condition"] <= 1000 and case.dtype == "float32"]
    half = [c["errors"]["chunk"] / c["rounding"] for case, c in found if case.dtype == "bfloat16"]
    fixed = [c["errors"]["CG-30"] for case, c in found if c["condition"] <= 1000 and case.dtype == "float32"]
    report = Report(
        "Numerical stability of the mesa solve",
        question="How far is every method from the exact solution where the problem is hard, and is anything NaN?",
    )
    report.claims = [
        FINITE.judge(broken, str(broken)),
        EXACT.judge(max(mild), f"{max(mild):.1e} over {len(mild)} cases"),
        HALF.judge(max(half), f"{max(half):.2f}"),
    ]
    report.headline(
        f"{'Nothing' if broken == 0 else f'{broken} numbers'} among all outputs and gradients "
        f"{'is' if broken == 0 else 'are'} not finite. At condition numbers up to 1000 the chunkwise solve errs by at "
        f"most {max(mild):.1e} in float32, 30 unchecked steps of conjugate gradients by {max(fixed):.1e}.",
        [
            Fact(label="Numbers that are not finite", value=str(broken), detail=f"{len(found)} cases"),
            Fact(label="Chunkwise, float32", value=f"{max(mild):.1e}", detail="condition up to 1000"),
            Fact(label="CG-30, float32", value=f"{max(fixed):.1e}", detail="condition up to 1000"),
        ],
    )
    seeds = f"{len(config.seeds)} seeds" if len(config.seeds) > 1 else "one seed"
    for family in dict.fromkeys(case.family for case, _ in found):
        rows = [
            [case.name, f"{cell['condition']:.1e}", *(_shown(case, cell, name) for name in NAMES)]
            for case, cell in found
            if case.family == family
        ]
        report.section(family.capitalize()).table(
            ["case", "condition", *NAMES],
            rows,
            caption=f"Largest error over {seeds}, two heads and 24 positions, relative to the root mean square of the "
            f"exact outputs; width {config.width}. The condition number is the largest at these positions.",
        )
    points = sorted((cell["condition"], cell["errors"]) for case, cell in found if case.family == "condition number")
    report.section("Error and condition number").figure(
        LineChart(
            title="largest relative error, float32",
            x_label="log10 of the condition number",
            series=[
                Series(
                    label=name,
                    x=[math.log10(condition) for condition, _ in points],
                    y=[max(errors[name], 1e-9) for _, errors in points],
                    color=place,
                    dashed=name == "reference",
                )
                for place, name in enumerate(NAMES)
            ],
            log_y=True,
        ),
        name="condition",
        caption=f"The first table as curves, {seeds}. CG-30 is conjugate gradients stopped after 30 steps; the others "
        "stop at a residual or solve exactly, and err by what float32 cannot hold.",
    )
    report.results = {"cases": [{**vars(case), **cell} for case, cell in found]}
    report.provenance = Provenance.collect(config=config, seeds=config.seeds, duration=time.perf_counter() - began)
    return report


def _shown(case: Case, cell: dict[str, Any], name: str) -> str:
    if cell["broken"][name]:
        return "not finite"
    error = cell["errors"][name]
    if error is not None:
        return f"{error:.1e}"
    return "not run" if name == "reference" else "does not apply"


STUDY = Study(
    name="mesa-stability",
    title="Every method of the mesa solve is finite and as exact as its precision",
    citation="methods of arXiv 2309.05858 (recurrent) and arXiv 2506.05233 (conjugate gradients)",
    config=Config,
    run=run,
    expectations=(FINITE, EXACT, HALF),
)
