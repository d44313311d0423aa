"""Do sums of random signs grow as the square root of their number?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from unrolled.report import Report
from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.claim import Claim
from unrolled.studies.results import Results
from unrolled.studies.study import Budgets, Config, Count, Seeds, Study


@dataclass(frozen=True, kw_only=True)
class Walk(Cell):
    """The mean distance of walks from where they began, over the square root of their steps."""

    steps: int
    seed: int

    def compute(self, context: Context) -> Result:
        signs = np.random.default_rng(self.seed).choice([-1, 1], (2000, self.steps))
        return {"distance": float(np.abs(signs.sum(1)).mean() / self.steps**0.5)}


@dataclass(kw_only=True)
class SumsConfig(Config):
    """Settings of the study."""

    budgets: ClassVar[Budgets] = {"quick": {"steps": 20}}

    steps: Count = 400
    """Steps of a walk."""
    seeds: Seeds = (0, 1, 2)
    """Seeds of the walks."""


def cells(config: SumsConfig) -> Sequence[Cell]:
    return [Walk(steps=config.steps, seed=seed) for seed in config.seeds]


def report(report: Report, config: SumsConfig, results: Results[Any]) -> None:
    report.headline(f"A walk of {config.steps} steps ends {results.of(Walk).values('distance'):.3f} roots away.")


STUDY = Study(
    name="example-sums",
    title="How far random walks get",
    question="Do sums of random signs grow as the square root of their number?",
    citation="textbooks",
    config=SumsConfig,
    cells=cells,
    claims=(
        Claim(
            statement="Mean distance over the square root of the steps",
            source="sqrt(2 / pi)",
            published="0.798",
            low=0.75,
            high=0.85,
            outside="walks that always go the same way: 20, the root of 400 steps",
            value=lambda results, config: results.of(Walk).values("distance"),
        ),
    ),
    report=report,
)
