"""A study is data: a question, a budgeted configuration, its cells, its claims, and how to show what came out."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

from unrolled.studies.cells import Cell, Context
from unrolled.studies.claim import Claim
from unrolled.studies.results import Results

if TYPE_CHECKING:
    from unrolled.report import Report

Budget = Literal["quick", "cpu", "gpu"]
"""`quick` (to see that it runs), `cpu` (a laptop) or `gpu`."""
QUICK_NOTICE = "Quick budget: checks that the study runs; too small to support any conclusion."
"""What every report of the `quick` budget opens with."""
Overrides = dict[str, Any]
"""Settings by name that are not the defaults."""
Budgets = dict[Budget, Overrides]


@dataclass(frozen=True)
class AtLeast:
    """Bound of a setting, or of each number in a list: the smallest it may be."""

    low: float


@dataclass(frozen=True)
class Above:
    """Bound of a setting, or of each number in a list, that it must exceed."""

    low: float


@dataclass(frozen=True)
class Distinct:
    """A list with at least one value, and none twice."""


Count = Annotated[int, AtLeast(1)]
Rate = Annotated[float, Above(0)]
Seeds = Annotated[tuple[int, ...], AtLeast(0), Distinct()]


@dataclass(kw_only=True)
class Config:
    """Base of every study's configuration; `budgets` says what each budget changes of the defaults.

    What can be said of one field is said in its type (`Count`, `Rate`, `Seeds`, `Literal`) and checked here.
    """

    budgets: ClassVar[Budgets] = {}

    budget: Budget = "cpu"
    """The budget that the settings come from; `quick` judges nothing."""
    out: Path | None = None
    """Where the report goes; default: `runs/` and the study's name."""
    kept: Path = Path("runs/kept")
    """Where results and trained networks are kept, for all studies."""
    device: str = "cpu"
    """Where to compute."""
    workers: Count = 1
    """Cells computed at a time, each in a process of one thread; 1 stays in this process."""
    cluster: str | None = None
    """Address of a Dask scheduler whose workers compute instead; they must see the same folders."""
    only_kept: bool = False
    """Report from what is kept, and compute nothing."""

    @classmethod
    def of_budget(cls, budget: Budget, **overrides: Any) -> Self:
        """The configuration of a budget, some settings replaced.

        Raises:
            ValueError: no such budget, or a setting out of its bounds.
        """
        return cls(**{"budget": budget, **cls.budgets.get(budget, {}), **overrides})

    @property
    def context(self) -> Context:
        """What cells are given."""
        return Context(store=self.kept, data_dir=getattr(self, "data_dir", Path("data")), device=self.device)

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            if get_origin(hint) is not ClassVar:
                _check(name, getattr(self, name), hint)


def _check(name: str, value: Any, hint: Any) -> None:
    """Raise `ValueError` where a setting is out of the bounds that its type says, or none of its choices."""
    if NoneType in get_args(hint) and value is not None:
        hint = get_args(hint)[0]  # of X | None
    if get_origin(hint) is Annotated:
        hint, *bounds = get_args(hint)
        for bound in bounds:
            _check_bound(name, value, bound)
    if get_origin(hint) is tuple and isinstance(value, tuple) and get_args(hint)[-1] is ...:
        for part in value:
            _check(name, part, get_args(hint)[0])
    if get_origin(hint) is Literal and value not in get_args(hint):
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(map(str, get_args(hint)))}")


def _check_bound(name: str, value: Any, bound: Any) -> None:
    if isinstance(bound, Distinct):
        if not value or len(set(value)) < len(value):
            raise ValueError(f"{name}={value}: name at least one, and none twice")
    elif isinstance(value, tuple):
        for part in value:
            _check_bound(name, part, bound)
    elif isinstance(bound, AtLeast) and not value >= bound.low:
        raise ValueError(f"{name}={value}: must be at least {bound.low:g}")
    elif isinstance(bound, Above) and not (value > bound.low and math.isfinite(value)):
        raise ValueError(f"{name}={value}: must be more than {bound.low:g}, and finite")


_FEW = 12  # kinds of cells that a page names of each cause
_SEED = re.compile(r" seed (\S+?),(?= )|,? seed (\S+?)(?=[,) ]|$)")


def not_run(missing: Mapping[Cell, str]) -> str:
    """Why cells were not computed: every cause once, how many cells it has, and their names, those that differ in the
    seed alone together."""
    lines = []
    for cause, cells in causes(missing).items():
        alike: dict[str, list[str]] = {}
        for name in cells:
            seeds = ["".join(either) for either in _SEED.findall(name)]
            one = len(seeds) == 1
            alike.setdefault(_SEED.sub("", name) if one else name, []).extend(seeds if one else [])
        words = [
            f"{name}, seed{'s' * (len(seeds) > 1)} {', '.join(dict.fromkeys(seeds))}" if seeds else name
            for name, seeds in alike.items()
        ]
        left = len(words) - _FEW
        more = f"; and {left} more kind{'s' * (left > 1)}" * (left > 0)
        lines.append(f"{cause} ({len(cells)} cell{'s' * (len(cells) > 1)}: {'; '.join(words[:_FEW])}{more})")
    return "\n\n".join(lines)


def causes(missing: Mapping[Cell, str]) -> dict[str, list[str]]:
    """The names of cells that were not computed, by cause: the reason without the cell's own name."""
    by_cause: dict[str, list[str]] = {}
    for cell, reason in missing.items():
        by_cause.setdefault(reason.removeprefix(f"{cell.name}: "), []).append(cell.name)
    return by_cause


@dataclass(frozen=True, kw_only=True)
class Study:
    """A published claim that can be run.

    Attributes:
        name: on the command line.
        title: in words.
        question: one sentence; `{steps}` stands for a setting of that name.
        citation: what is reproduced.
        config: the class of its settings.
        cells: what a configuration computes; the same cell may come twice.
        claims: what is judged, in the order of the page; those that a configuration does not ask are left out.
        report: lays out what came out: headline, sections, figures.
    """

    name: str
    title: str
    question: str
    citation: str
    config: type[Config]
    cells: Callable[[Any], Iterable[Cell]]
    claims: Sequence[Claim]
    report: Callable[[Report, Any, Results[Any]], None]

    def run(self, config: Any, *, on_progress: Callable[[str], None] | None = None) -> Report:
        """Compute what is not kept, judge, lay out; the report is also written, to `config.out`.

        Args:
            config: what to run.
            on_progress: given a line of text when a cell is done.

        Raises:
            MissingData: nothing could be computed, since data are missing.
        """
        from unrolled.errors import MissingData
        from unrolled.report import Provenance, Report
        from unrolled.studies.runner import compute_all

        outcome = compute_all(
            self.cells(config),
            config.context,
            workers=config.workers,
            cluster=config.cluster,
            only_kept=config.only_kept,
            on_progress=on_progress,
        )
        if outcome.missing and not outcome.rows:
            raise MissingData(next(iter(outcome.missing.values())))
        results = Results(outcome.rows, outcome.missing)
        report = Report(self.title, question=self.question.format(**vars(config)))
        report.notice = QUICK_NOTICE if config.budget == "quick" else ""
        report.claims = [claim.judge(results, config) for claim in self.claims if claim.asked(config)]
        self.report(report, config, results)
        if outcome.missing:
            report.section("Not run", not_run(outcome.missing))
        report.results = {"rows": results.records(), "missing": causes(outcome.missing)}
        seeds = getattr(config, "seeds", [config.seed] if hasattr(config, "seed") else [])
        report.provenance = Provenance.collect(config=config, seeds=seeds, duration=outcome.seconds)
        report.write(self.folder(config))
        return report

    def folder(self, config: Any) -> Path:
        """Where the report goes."""
        return Path("runs") / self.name if config.out is None else Path(config.out)
