"""`unrolled study` and `unrolled demo`."""

from __future__ import annotations

import json as json_module
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from unrolled.commands.common import say_where, table, write_settings
from unrolled.commands.settings import AsJson, ConfigFiles, Quiet, as_config, flags_of
from unrolled.locks import hold
from unrolled.studies.base import QUICK_NOTICE, Budget
from unrolled.studies.base import Study as PlainStudy
from unrolled.studies.demo import Config as DemoConfig

if TYPE_CHECKING:
    from unrolled.report import Report
    from unrolled.studies import AnyStudy
    from unrolled.studies.base import StudyConfig

    DemoFlags = DemoConfig
else:
    DemoFlags = flags_of(DemoConfig)

Settings = Annotated[
    tuple[str, ...],
    Parameter(
        name="--set",
        negative="",
        consume_multiple=False,
        show_default=False,
        help="NAME=VALUE: one of the study's own settings, e.g. `--set fashion-dir=DIR --set seeds=0,1`; may be "
        "repeated. A name the study does not have is refused with a list of those it has.",
    ),
]

_DEMO = DemoFlags()


def demo(
    *,
    settings: Annotated[DemoFlags, Parameter(name="*")] = _DEMO,
    config: ConfigFiles = (),
    json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a small CRATE and a ViT of the same width on real images, and show what every layer does.

    The images are the 1,797 handwritten digits that come with scikit-learn: nothing is downloaded. It takes about two
    minutes on two processor cores.

        unrolled demo
        unrolled demo --seeds 0 --epochs 10 --out runs/quick
    """
    from unrolled.studies import load

    run_study(load("demo"), as_config(DemoConfig, settings), json=json, quiet=quiet)


def study(
    name: str | None = None,
    *,
    budget: Budget = "cpu",
    data_dir: Path | None = None,
    settings: Settings = (),
    out: Path | None = None,
    json: AsJson = False,
    quiet: Quiet = False,
) -> int | None:
    """Run a study: a published claim, measured here and set beside what the source says.

    Without a name it lists the studies. The exit code is 4 if something came out outside its declared tolerance;
    the quick budget is too small to judge, and never is.

        unrolled study
        unrolled study demo --budget quick
        unrolled study crate-transfer --data-dir data --set fashion-dir=data/fashion

    Parameters
    ----------
    name
        Which study.
    budget
        quick: up to two minutes, to see that it runs; cpu: a laptop; gpu: one GPU.
    data_dir
        Where the data are, for studies of real data.
    out
        Where the report goes; default: the study's own, below runs/.
    """
    from unrolled.studies import STUDIES, load

    if name is None:
        studies = [load(each) for each in STUDIES]
        if json:
            print(
                json_module.dumps(
                    [{"name": s.name, "title": s.title, "citation": s.citation} for s in studies], indent=2
                )
            )
        else:
            print(table(["name", "claim"], [[s.name, s.title] for s in studies], left=2))
        return None
    chosen = load(name)
    overrides: dict[str, Any] = {} if out is None else {"out": out}
    if data_dir is not None:
        if "data_dir" not in {field.name for field in fields(chosen.config)}:
            raise ValueError(f"--data-dir: the study {name} makes its own data; leave it out")
        overrides["data_dir"] = data_dir
    given = chosen.config.parse(settings)
    for setting in given.keys() & overrides.keys():
        raise ValueError(
            f"--set {setting.replace('_', '-')}: also given as --{setting.replace('_', '-')}; leave one out"
        )
    overrides |= given
    judged = budget != "quick"
    report = run_study(chosen, chosen.config.of_budget(budget, **overrides), json=json, quiet=quiet, judged=judged)
    return 4 if report.reproduced is False and judged else 0


def run_study(study: AnyStudy, config: StudyConfig, *, json: bool, quiet: bool, judged: bool = True) -> Report:
    """Run a study with progress on stderr, and print its answer; what is not `judged` says that it is only a trial."""

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    folder = study.folder(config)
    hold(folder)
    report = study.run(config, on_progress=None if quiet else say)
    if isinstance(study, PlainStudy):
        _complete(report, folder, judged)
    write_settings(folder, vars(config))
    say_where(folder / "report.html", quiet=quiet)
    if json:
        print(json_module.dumps({**report.to_dict(), "report": str(folder / "report.html")}, indent=2))
        return report
    if report.notice:
        print(report.notice)
    print(report.summary)
    for fact in report.facts:
        print(f"{fact.label}: {fact.value}" + (f" ({fact.detail})" if fact.detail else ""))
    for claim in report.claims:
        verdict = claim.verdict.replace("not reproduced", "NOT reproduced") if judged else "not judged at this budget"
        print(f"\n{claim.statement}")
        for name, text in (
            ("here", claim.measured), ("published", f"{claim.published} ({claim.source})"), ("verdict", verdict)
        ):  # fmt: skip
            print(f"  {name + ':':<11}{text}")
    return report


def _complete(report: Report, folder: Path, judged: bool) -> None:
    """What studies that compute by cells do themselves: the time that all took, and the notice of the quick budget."""
    from unrolled.studies.remembered import seconds_spent

    spent = seconds_spent(folder / "cells")
    before = spent > (report.provenance.duration or 0)  # cells were there already
    if before:
        report.provenance = replace(report.provenance, duration=spent)
    if not judged:
        report.notice = QUICK_NOTICE
        report.claims = [replace(claim, reproduced=None, verdict="not judged") for claim in report.claims]
    if before or not judged:
        report.write(folder)
