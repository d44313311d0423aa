"""`unrolled study` and `unrolled demo`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from unrolled.commands.options import AsJson, ConfigFiles, Quiet, given, open_flags_of
from unrolled.harness import answer, print_answer, write_settings
from unrolled.locks import hold
from unrolled.studies.demo import DemoConfig
from unrolled.studies.study import Budget
from unrolled.terminal import say, table

if TYPE_CHECKING:
    from cyclopts import App

    from unrolled.report import Report
    from unrolled.studies.study import Config, Study

OUTSIDE_TOLERANCE = 4
"""Exit code of a study of which a claim came out outside its tolerance."""


def app(names: Sequence[str]) -> App:
    """`unrolled study` with the flags of the study that is named, if one is: each has its own.

    Args:
        names: what follows `study` on the command line.

    Raises:
        ValueError: no study is called so.
    """
    from cyclopts import App

    from unrolled.studies import load

    if "--set" in names:
        raise ValueError("--set NAME=VALUE: every setting of a study is a flag of its own now, --name VALUE")
    made = App(name="study")
    made.default(list_studies)
    if names and not names[0].startswith("-"):
        study = load(names[0])
        help_ = _HELP.format(title=study.title, citation=study.citation, name=study.name)
        made.command(_verb(study.name, study.config, help_), name=names[0])
    return made


def list_studies(*, json: AsJson = False) -> None:
    """Run a study: a published claim, measured here and set beside what the source says.

    Without a name it lists the studies; `unrolled study NAME --help` shows the settings of one.

        unrolled study
        unrolled study mesa-one-step --budget quick
        unrolled study crate-transfer --data-dir data --fashion-dir data/fashion --seeds 0 1
    """
    from unrolled.studies import load, study_names

    studies = [load(name) for name in study_names()]
    rows = [{"name": study.name, "title": study.title, "citation": study.citation} for study in studies]
    text = table(["name", "claim"], [[study.name, study.title] for study in studies], left=2)
    print_answer("study", {"studies": rows}, text, json=json)


def _verb(name: str, config: type[Config], help_: str, *, judges: bool = True) -> Callable[..., int]:
    """The function that runs a study from its flags.

    Args:
        name: of the study.
        config: its settings.
        help_: the docstring of the verb.
        judges: exit with 4 if something came out outside its tolerance.
    """
    flags = open_flags_of(config, without=("budget",))

    def run(
        *,
        budget: Budget = "cpu",
        settings: Any = flags(),  # noqa: B008
        config_: ConfigFiles = (),
        json: AsJson = False,
        quiet: Quiet = False,
    ) -> int:
        from unrolled.studies import load

        chosen = config.of_budget(budget, **given(settings))
        report = run_study(load(name), chosen, verb="study" if judges else name, json=json, quiet=quiet)
        return OUTSIDE_TOLERANCE if judges and report.reproduced is False else 0

    run.__annotations__["settings"] = Annotated[flags, Parameter(name="*")]
    run.__doc__ = help_
    return run


def run_study(study: Study, config: Config, *, verb: str, json: bool, quiet: bool) -> Report:
    """Run a study with progress on stderr, and print its answer as that of `verb`."""
    folder = study.folder(config)
    hold(folder)
    report = study.run(config, on_progress=None if quiet else say)
    write_settings(folder, vars(config))
    facts = {"study": study.name, **report.to_dict()}
    answer(verb, folder / "report.html", facts, _text(report), json=json, quiet=quiet)
    return report


def _text(report: Report) -> str:
    """The answer of a study for a person: summary, facts, and each claim beside what was published."""
    lines = [report.notice] if report.notice else []
    lines.append(report.summary)
    lines += [f"{fact.label}: {fact.value}" + (f" ({fact.detail})" if fact.detail else "") for fact in report.facts]
    for claim in report.claims:
        verdict = claim.verdict.replace("not reproduced", "NOT reproduced")
        if report.notice and verdict == "not judged":
            verdict += " at this budget"
        verdict += f": {claim.why}" * bool(claim.why)
        parts = {"here": claim.measured, "published": f"{claim.published} ({claim.source})", "verdict": verdict}
        lines += [f"\n{claim.statement}", *(f"  {name + ':':<11}{text}" for name, text in parts.items())]
    return "\n".join(lines)


_HELP = """{title}.

    {citation}. The exit code is 4 if something came out outside its declared tolerance; the quick budget is too
    small to judge, and never is. Settings that are not given are those of the budget.

        unrolled study {name} --budget quick

    Parameters
    ----------
    budget
        quick: up to two minutes, to see that it runs; cpu: a laptop; gpu: one GPU.
    """
demo = _verb(
    "demo",
    DemoConfig,
    """Train a small CRATE and a ViT of the same width on real images, and show what every layer does.

    The images are the 1,797 handwritten digits that come with scikit-learn: nothing is downloaded. It takes about two
    minutes on two processor cores.

        unrolled demo
        unrolled demo --seeds 0 --epochs 10 --out runs/short

    Parameters
    ----------
    budget
        cpu; or quick, one seed and two epochs, to see that it runs.
    """,
    judges=False,
)
