"""What a study is: a question, a budgeted configuration, a function, and what counts as reproduced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

if TYPE_CHECKING:
    from unrolled.errors import MissingData
    from unrolled.report import Claim, Report

Budget = Literal["quick", "cpu", "gpu"]

QUICK_NOTICE = "Quick budget: checks that the study runs; too small to support any conclusion."
"""What every report of the `quick` budget opens with."""


@dataclass(kw_only=True)
class StudyConfig:
    """Base of every study's `Config`; a subclass lists in `budgets` what each budget changes of its defaults."""

    budgets: ClassVar[dict[Budget, dict[str, Any]]] = {}

    @classmethod
    def of_budget(cls, budget: Budget, **overrides: Any) -> Self:
        """The configuration of a budget: `quick` (to see that it runs), `cpu` (a laptop) or `gpu`.

        Raises:
            ValueError: no such budget.
        """
        if budget not in get_args(Budget):
            raise ValueError(f"budget={budget!r}: choose one of {', '.join(get_args(Budget))}")
        return cls(**{**cls.budgets.get(budget, {}), **overrides})


def data_missing(data: str, error: MissingData, *, flag: str = "--data-dir DIR") -> MissingData:
    """One sentence that a study's `data` are not there, why, and the flag that says where they are."""
    from unrolled.errors import MissingData

    first = error.__cause__ if isinstance(error.__cause__, MissingData) else error
    return MissingData(f"data_dir: {data} was not found ({str(first).removeprefix('data_dir: ')}); give {flag}")


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """A published statement with the range that counts as reproducing it; without a range nothing is judged."""

    statement: str
    source: str
    """Citation with the figure or table."""
    published: str
    """The source's value, as a reader wants to see it."""
    low: float | None = None
    high: float | None = None

    def judge(self, value: float, measured: str) -> Claim:
        """The claim beside `value`, shown as `measured`; a NaN is never a reproduction."""
        from unrolled.report import Claim

        verdict = None
        if self.low is not None or self.high is not None:
            verdict = (self.low is None or value >= self.low) and (self.high is None or value <= self.high)
        return Claim(
            statement=self.statement,
            source=self.source,
            published=self.published,
            measured=measured,
            reproduced=verdict,
        )


@dataclass(frozen=True, kw_only=True)
class Study:
    """A published claim that can be run."""

    name: str
    title: str
    citation: str
    config: type[StudyConfig]
    run: Callable[..., Report]
    """Called with the configuration, and optionally `on_progress`, which is given lines of text."""
    expectations: tuple[Expectation, ...] = ()

    def folder(self, config: StudyConfig) -> Path:
        """Where the report goes."""
        return Path(getattr(config, "out", Path("runs") / self.name))
