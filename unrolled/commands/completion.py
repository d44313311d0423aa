"""`unrolled completion`.

The script is cyclopts' own, made of the parser when it is installed: a Tab is answered by the shell alone, without
Python. (shtab and argcomplete read parsers of argparse, which this is not; argcomplete and cyclopts' `completer` would
start Python at every Tab.)
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from cyclopts import Parameter

from unrolled.commands.options import verb
from unrolled.harness import JsonFlags, print_answer
from unrolled.terminal import say

if TYPE_CHECKING:
    from cyclopts import App

    from unrolled.commands.verbs import Verb

Shell = Literal["bash", "zsh", "fish", "powershell"]


@dataclass(frozen=True, kw_only=True)
class CompletionOptions(JsonFlags):
    """Flags of `unrolled completion`."""

    shell: Shell | None = field(default=None, kw_only=False)
    """The shell; default: the one this was typed in."""
    out: Path | None = None
    """Write the script to this file and change nothing else; default: where the shell looks for it."""


@verb
def completion(options: CompletionOptions) -> None:
    """Let Tab complete verbs, flags, their values, and the names of models, metrics, data sets and studies.

    A script is written where the shell looks for it, and bash and zsh are told so in ~/.bashrc or ~/.zshrc. Tab is then
    answered without starting Python. After an update of this package, install it again.

        unrolled completion
        unrolled completion zsh
        unrolled completion fish --out unrolled.fish
    """
    from cyclopts.completion.detect import ShellDetectionError, detect_shell
    from cyclopts.completion.install import add_to_rc_file, get_default_completion_path

    try:
        shell: Shell = options.shell or detect_shell()
    except ShellDetectionError as error:
        raise ValueError("shell: cannot be told from here; give bash, zsh, fish or powershell") from error
    path = options.out or get_default_completion_path(shell, "unrolled")
    path = path.expanduser().absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script(shell), encoding="utf-8")
    added = options.out is None and shell != "fish" and add_to_rc_file(path, "unrolled", shell)
    say("open a new shell for it to count" + ("; its startup file has a line for it now" if added else ""))
    print_answer("completion", {"shell": shell, "script": str(path), "startup": added}, str(path), json=options.json)


def script(shell: Shell) -> str:
    """The completion script of a shell; where no word fits, it falls back to files."""
    names = _names()
    text = _app(names).generate_completion(prog_name="unrolled", shell=shell)
    if shell == "bash":
        return text.replace("complete -F ", "complete -o bashdefault -o default -F ")
    if shell == "zsh":
        head, body = text.split("_cyclopts_unrolled() {\n", 1)
        files = '_cyclopts_unrolled() {\n  _cyclopts_unrolled_words "$@" || _files\n}\n\n_cyclopts_unrolled "$@"\n'
        return f"{head}_cyclopts_unrolled_words() {{\n{body.rstrip()}\n\n{files}"
    if shell == "fish":
        for name in names:
            text = text.replace(f" -l {name} -x -a ", f" -l {name} -r -F -a ")
    return text


def _names() -> dict[str, tuple[str, ...]]:
    """Flag, or argument by its place -> names that it takes, among others."""
    from unrolled.alignment import METRICS
    from unrolled.catalogue import catalogue
    from unrolled.data.images import dataset_names
    from unrolled.data.pairs import pair_names
    from unrolled.plugins import plugins
    from unrolled.studies import study_names
    from unrolled.train.config_files import recipes

    shipped = sorted(path.stem for path in (Path(__file__).parents[1] / "weights").glob("*.safetensors"))
    models = (*shipped, *catalogue(), *plugins("models"))
    data = dict.fromkeys(name for name in [*dataset_names(), *pair_names()] if ":" not in name)
    by_flag = {
        **dict.fromkeys(("model", "a", "b", "pattern", "compare"), models), "data": data,
        "metric": (*METRICS, "unbiased_cka", *plugins("metrics")), "recipe": recipes(), "name": study_names(),
    }  # fmt: skip
    return {flag: tuple(names) for flag, names in by_flag.items()}


def _app(names: dict[str, tuple[str, ...]]) -> App:
    """The command line as the script is to know it: every verb with the flags of all its tasks."""
    from cyclopts import App

    from unrolled.commands.verbs import VERBS

    app = App(name="unrolled")
    for name, each in VERBS.items():
        app.command(_all_flags(each, names, study=name == "study"), name=name, help=each.help)
    return app


def _all_flags(which: Verb, names: dict[str, tuple[str, ...]], *, study: bool) -> Callable[..., None]:
    """A function with the flags of a verb's functions, those of all tasks together."""
    specs: dict[str, Any] = {"name": (str, field(default="", kw_only=False))} if study else {}
    tasks = tuple(which.tasks)
    for target in (which.function, *which.tasks.values()):
        module, _, attribute = target.partition(":")
        function = getattr(importlib.import_module(module), attribute)
        for parameter in inspect.signature(function, eval_str=True).parameters.values():
            first = get_args(parameter.annotation)[0] if get_origin(parameter.annotation) is Annotated else None
            if first is not None and dataclasses.is_dataclass(first):
                for item in dataclasses.fields(first):
                    empty = field(default=None, kw_only=item.kw_only)
                    specs.setdefault(item.name, (item.type, empty))
            else:
                specs.setdefault(parameter.name, (parameter.annotation, field(default=None, kw_only=True)))
    if tasks and "task" in specs:
        hint, empty = specs["task"]
        specs["task"] = (Annotated[Literal[(*_choices(hint), *tasks)], Parameter(help="What is trained.")], empty)  # type: ignore[valid-type]
    suggested = [(name, _with(hint, names.get(name, ())), empty) for name, (hint, empty) in specs.items()]
    flags = dataclasses.make_dataclass("Flags", suggested)
    flags.__module__ = __name__

    def run(options: Any = None) -> None: ...

    run.__annotations__ = {"options": Annotated[flags, Parameter(name="*")]}
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter("options", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None,
                           annotation=run.__annotations__["options"])]
    )  # fmt: skip
    return run


def _choices(hint: Any) -> Iterable[str]:
    """What a hint of one of several words allows."""
    base = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return get_args(base) if get_origin(base) is Literal else ()


def _with(hint: Any, names: tuple[str, ...]) -> Any:
    """A hint of text that also says which words it may well be."""
    if not names:
        return hint
    if hint is str:
        return Literal[names] | str
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return Annotated[(_with(parts[0], names), *parts[1:])]  # type: ignore[valid-type]
    if origin in (Union, UnionType):
        return Union[tuple(part if part is NoneType else _with(part, names) for part in parts)]  # noqa: UP007
    if origin is tuple:
        return tuple[tuple(part if part is ... else _with(part, names) for part in parts)]  # type: ignore[misc]
    return hint
