"""Every method of the mesa solve where it is hard: condition numbers, 16-bit inputs, long contexts, any gates.

Errors are measured against dense solves in float64 at a few positions of every sequence, formed from the inputs alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.claim import TARGET, Claim
from unrolled.studies.results import NOT_RUN, Estimate, Results
from unrolled.studies.study import AtLeast, Budgets, Config, Distinct, Seeds, Study

if TYPE_CHECKING:
    from torch import Tensor

    from unrolled.report import Report

# CG-30: MesaNet (arXiv 2506.05233) runs 30 steps of cg and never looks at the residual
NAMES = ("recurrent", "chunk", "cg", "CG-30", "reference")
MILD = 1000.0
"""Condition number up to which errors are judged."""
PROCESSORS = 2.0
"""How far errors at the edge of a precision differ between processors: 8.4e-5 and 1.4e-4 have been seen of one case."""


@dataclass(kw_only=True)
class StabilityConfig(Config):
    """Budgets change lengths and seeds."""

    budgets: ClassVar[Budgets] = {
        "quick": {"seeds": (0,), "steps": 256, "contexts": (512, 2048)},
        "cpu": {},
        "gpu": {"contexts": (2048, 16384, 65536, 262144), "device": "cuda"},
    }

    seeds: Seeds = (0, 1, 2)
    """One draw of every case for each; errors are the largest over all of them."""
    width: Annotated[int, AtLeast(2)] = 32
    """Of keys and values."""
    steps: Annotated[int, AtLeast(2)] = 512
    """Of a sequence, in all cases but the long ones."""
    contexts: Annotated[tuple[int, ...], AtLeast(2), Distinct()] = (2048, 16384, 65536)
    """Lengths of the long ones."""


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


def cases(config: StabilityConfig) -> list[Case]:
    """All cases of a configuration."""
    t = config.steps
    conditions = ((1.0, 1.0), (0.25, 1.0), (1e-2, 1.0), (1e-2, 10.0), (1e-4, 10.0), (1e-6, 100.0))
    by_condition = [
        Case(
            family="condition number",
            name=f"ridge {ridge:g}, keys spread {spread:g}",
            steps=t,
            ridge=ridge,
            spread=spread,
        )
        for ridge, spread in conditions
    ]
    by_precision = [
        Case(family="precision", name=f"{dtype}, ridge {ridge:g}", steps=t, ridge=ridge, dtype=dtype)
        for dtype in ("bfloat16", "float16", "float64")
        for ridge in (1.0, 0.25, 1e-2)
    ]
    by_context = [
        Case(family="context", name=f"{length} steps", steps=length, gradients=False) for length in config.contexts
    ]
    case = partial(Case, family="gates and extremes", steps=t)
    by_gate = [
        case(name="decay in [0.99, 1]", decay=(0.99, 1.0)),
        case(name="decay in [0.9, 1]", decay=(0.9, 1.0)),
        case(name="decay in [0.5, 1]", decay=(0.5, 1.0)),
        case(name="decay in [1e-6, 1]", decay=(1e-6, 1.0)),
        case(name="decay in [0.9, 1], ridge too", decay=(0.9, 1.0), ridge_decays=True),
        case(name="decay in [0.99, 1], ridge too, gates", decay=(0.99, 1.0), ridge_decays=True, gate=True),
        case(name="gates", gate=True),
        case(name="decay in [0.9, 1], gates", decay=(0.9, 1.0), gate=True),
        case(name="one key repeated", repeated=True),
        case(name="one key repeated, decay in [0.9, 1]", repeated=True, decay=(0.9, 1.0)),
        case(name="keys 1000 times larger", scale=1e3),
        case(name="keys 1000 times smaller", scale=1e-3),
    ]
    return [*by_condition, *by_precision, *by_context, *by_gate]


@dataclass(frozen=True, kw_only=True)
class Solved(Cell):
    """Every method on one draw of a case."""

    case: Case
    width: int
    seed: int

    def compute(self, context: Context) -> Result:
        """`errors` of all methods, how many of their numbers are not finite (`broken`), and the `condition` number.

        An error is the distance to the truth relative to the truth's root mean square over positions. None stands for
        a method that does not serve the case: rank-one updates cannot hold a ridge fixed under decay. Of 16-bit cases
        `rounding` is what rounding the truth itself to the outputs' dtype costs.
        """
        import torch

        from unrolled.ops.mesa_solve import mesa

        case = self.case
        errors: dict[str, float | None] = dict.fromkeys(NAMES)
        broken = dict.fromkeys(NAMES, 0)
        positions = sorted({round(x) for x in torch.logspace(0, math.log10(case.steps), 24).tolist()})
        positions = [p - 1 for p in positions if p <= case.steps]
        inputs = draw(case, self.width, self.seed)
        exact, condition = truth(*inputs[:3], case, *inputs[3:], positions)
        scale = exact.square().mean().sqrt()
        for name in NAMES:
            if name == "recurrent" and case.decay is not None and not case.ridge_decays:
                continue
            # the dense solves of every position take too much memory for long contexts
            if name == "reference" and case.steps > 4096:
                continue
            leaves = [x.to(context.device, copy=True).requires_grad_(case.gradients) for x in inputs[:3]]
            decay, gate = (x if x is None else _arithmetic(x, case).to(context.device) for x in inputs[3:])
            q, k, v = leaves
            solve: Any = partial(mesa, q, k, v, case.ridge, decay, gate, ridge_decays=case.ridge_decays)
            out = solve(method="cg", steps=30, tolerance=0.0) if name == "CG-30" else solve(method=name)
            numbers = [out.detach()]
            if case.gradients:
                numbers += torch.autograd.grad(out.float().sum(), leaves)
            broken[name] = sum(int((~x.isfinite()).sum()) for x in numbers)
            error = float((out.detach()[..., positions, :].double().cpu() - exact).abs().max() / scale)
            # a NaN would lose every comparison
            errors[name] = error if math.isfinite(error) else math.inf
        result: Result = {"condition": condition, "errors": errors, "broken": broken}
        if case.dtype in ("bfloat16", "float16"):
            rounded = exact.to(getattr(torch, case.dtype)).double()
            result["rounding"] = float((rounded - exact).abs().max() / scale)
        return result


def cells(config: StabilityConfig) -> Iterator[Solved]:
    """Every case for every seed."""
    for case in cases(config):
        for seed in config.seeds:
            yield Solved(case=case, width=config.width, seed=seed)


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


def _arithmetic(x: Tensor, case: Case) -> Tensor:
    """Decays and gates in the dtype of the statistics."""
    return x if case.dtype == "float64" else x.float()


@dataclass(frozen=True)
class Worst:
    """The largest over seeds of what was measured of a case."""

    case: Case
    condition: float
    errors: dict[str, float | None]
    broken: dict[str, int]
    rounding: float


def worst(results: Results[Solved]) -> list[Worst]:
    """Of every case that was run, in the order of the tables."""
    cases = []
    for case in dict.fromkeys(row.cell.case for row in results):
        rows = [row.result for row in results if row.cell.case == case]
        errors = {name: [row["errors"][name] for row in rows if row["errors"][name] is not None] for name in NAMES}
        cases.append(
            Worst(
                case=case,
                condition=max(row["condition"] for row in rows),
                errors={name: max(values, default=None) for name, values in errors.items()},
                broken={name: sum(row["broken"][name] for row in rows) for name in NAMES},
                rounding=max(row.get("rounding", math.nan) for row in rows),
            )
        )
    return cases


def broken(results: Results[Solved], config: StabilityConfig) -> float:
    """Numbers that are not finite; NaN where nothing was run."""
    return sum(sum(each.broken.values()) for each in worst(results)) if results else math.nan


def mild_error(results: Results[Solved], method: str) -> float:
    """Largest error of a method in float32 where the condition number is at most `MILD`; NaN where nothing was run."""
    errors = [each.errors[method] for each in worst(results) if _is_mild(each)]
    return max((error for error in errors if error is not None), default=math.nan)


def _is_mild(each: Worst) -> bool:
    return each.condition <= MILD and each.case.dtype == "float32"


def in_roundings(results: Results[Solved]) -> float:
    """Largest error of the chunkwise solve on bfloat16 inputs, in roundings of its output."""
    cases = [each for each in worst(results) if each.case.dtype == "bfloat16"]
    return max((each.errors["chunk"] or 0.0) / each.rounding for each in cases) if cases else math.nan


def on_any_processor(value: float) -> Estimate | float:
    """A largest error with the range that other processors' rounding may give it; none of it may decide a verdict."""
    if not math.isfinite(value):
        return value
    basis = f"a factor of {PROCESSORS:g} either way, for the rounding of other processors"
    return Estimate(value, value / PROCESSORS, value * PROCESSORS, basis)


CLAIMS = (
    Claim(
        statement="Outputs and gradients that are not finite, over all methods and cases",
        source="target of this package; 16-bit states gave others NaN",
        published="0",
        value=broken,
        high=0,
        unjudged=TARGET,
        point=True,
        spec=".0f",
    ),
    Claim(
        statement="Largest error of the chunkwise solve in float32 where the condition number is at most 1000",
        source="target of this package",
        published="≤ 1e-4",
        value=lambda results, config: on_any_processor(mild_error(results, "chunk")),
        high=1e-4,
        unjudged=TARGET,
        spec=".1e",
        detail=lambda results, config: f" over {sum(map(_is_mild, worst(results)))} cases",
    ),
    Claim(
        statement="Largest error of the chunkwise solve on bfloat16 inputs, in roundings of its bfloat16 output",
        source="target of this package",
        published="≤ 1",
        value=lambda results, config: on_any_processor(in_roundings(results)),
        high=1.0,
        unjudged=TARGET,
        spec=".2f",
    ),
)


def report(report: Report, config: StabilityConfig, results: Results[Solved]) -> None:
    """What is not finite, the largest errors, a table a family of cases, errors against the condition number."""
    from unrolled.report import Fact, LineChart, Series

    cases = worst(results)
    if not cases:
        report.headline(f"No case was solved: {NOT_RUN}.")
        return
    bad, chunk, fixed = int(broken(results, config)), mild_error(results, "chunk"), mild_error(results, "CG-30")
    dense = mild_error(results, "reference")
    report.headline(
        f"{f'{bad} of the outputs and gradients are not' if bad else 'All outputs and gradients are'} finite. At "
        f"condition numbers up to 1000 the chunkwise solve errs by at most {chunk:.1e} in float32, the dense "
        f"reference by {dense:.1e}, 30 unchecked steps of conjugate gradients by {fixed:.1e}.",
        [
            Fact(label="Numbers that are not finite", value=str(bad), detail=f"{len(cases)} cases"),
            Fact(label="Chunkwise, float32", value=f"{chunk:.1e}", detail="condition up to 1000"),
            Fact(label="CG-30, float32", value=f"{fixed:.1e}", detail="condition up to 1000"),
        ],
    )
    seeds = f"{len(config.seeds)} seeds" if len(config.seeds) > 1 else "one seed"
    for family in dict.fromkeys(each.case.family for each in cases):
        report.section(family.capitalize()).table(
            ["case", "condition", *NAMES],
            [
                [each.case.name, f"{each.condition:.1e}", *(_shown(each, name) for name in NAMES)]
                for each in cases
                if each.case.family == family
            ],
            caption=f"Largest error over {seeds}, two heads and 24 positions, relative to the root mean square of the "
            f"exact outputs; width {config.width}. The condition number is the largest at these positions.",
        )
    points = sorted((each.condition, each.errors) for each in cases if each.case.family == "condition number")
    report.section("Error and condition number").figure(
        LineChart(
            title="largest relative error, float32",
            x_label="log10 of the condition number",
            series=[
                Series(
                    label=name,
                    x=[math.log10(condition) for condition, _ in points],
                    y=[max(errors[name] or 0.0, 1e-9) for _, errors in points],
                    color=place,
                    dashed=name == "reference",
                )
                for place, name in enumerate(NAMES)
            ],
            log_y=True,
        ),
        name="condition",
        caption=f"The first table as curves, {seeds}. CG-30 is conjugate gradients stopped after 30 steps; the others "
        "check their answer and solve again in float64 where float32 cannot hold it.",
    )


def _shown(each: Worst, name: str) -> str:
    if each.broken[name]:
        return "not finite"
    error = each.errors[name]
    if error is not None:
        return f"{error:.1e}"
    return NOT_RUN if name == "reference" else "does not apply"


STUDY = Study(
    name="mesa-stability",
    title="Every method of the mesa solve is finite, and close to exact where it checks its answer",
    question="How far is every method from the exact solution where the problem is hard, and is anything NaN?",
    citation="methods of arXiv 2309.05858 (recurrent) and arXiv 2506.05233 (conjugate gradients)",
    config=StabilityConfig,
    cells=cells,
    claims=CLAIMS,
    report=report,
)
