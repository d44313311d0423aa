"""The command line: one table from verb to a lazily imported function, and one place where errors become exit codes.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a missing extra or missing data, 4 a reproduction outside its
tolerance, 130 interrupted. Data go to stdout; progress and errors to stderr.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import sys
import traceback
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from unrolled import __version__
from unrolled.commands.verbs import VERBS
from unrolled.locks import release_held

if TYPE_CHECKING:
    from cyclopts import App


# (verb, flag) that is a verb of its own now
MOVED = {("align", "--grid"): "align-grid MODELS.yaml", ("segment", "--eval"): "segment-eval DATA --data-dir DIR"}

_TRAINING = ("train", "pretrain", "finetune")
_NO_MEMORY = ("can't allocate memory", "out of memory")  # as PyTorch says it
_UNWRITABLE = (errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS)

# what of a message may name an argument: `name=`, a name with an underscore, or one that the sentence begins with
_NAMES_SOMETHING = re.compile(r"[=_]|^\w[\w, ]*(?:: | must be )")

_EPILOGUE = (
    "Settings come from flags, then UNROLLED_NAME environment variables, then --config files. "
    "Every verb takes --debug (show tracebacks) and --trust: what you type may name code to import "
    "(package.module:factory); what a file says, such as the config.yaml of a run, may only with --trust. "
    "NO_COLOR turns colours off."
)


def build(tokens: Sequence[str] = ()) -> App:
    """The cyclopts application made from `VERBS`; no verb is imported."""
    from cyclopts import App, Parameter

    for (name, flag), now in MOVED.items():
        if name in tokens[:1] and any(token.partition("=")[0] == flag for token in tokens):
            raise ValueError(f"{flag}: is a verb of its own now: unrolled {now}")

    from unrolled.commands.options import finite, shown_default
    from unrolled.commands.settings import asked_for, layered

    app = App(
        name="unrolled",
        help="White-box transformers: build, train and look inside them. `unrolled VERB --help` has examples.",
        version=__version__,
        help_epilogue=_EPILOGUE,
        config=[layered],
        default_parameter=Parameter(show_default=shown_default, negative_iterable=(), validator=finite),
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for order, (name, verb) in enumerate(VERBS.items()):
        if name == "study" and name in tokens[:1]:
            from unrolled.commands import study

            app.command(study.app(tokens[1:]))
        else:
            task = asked_for("task", tokens[1:]) if verb.tasks and name in tokens[:1] else None
            function = verb.tasks.get(task or "", verb.function)
            app.command(function, name=name, help=None if name in tokens[:1] else verb.help, sort_key=order)
    return app


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: what the verb says, if it says one.

    Args:
        arguments: what follows `unrolled`; default: those of this process.
    """
    from unrolled.reading import printable
    from unrolled.terminal import typed_as
    from unrolled.trust import command_line

    tokens, debug = _take(list(sys.argv[1:] if arguments is None else arguments), "--debug")
    tokens, trusted = _take(tokens, "--trust")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    app = None
    try:
        with command_line(tokens, trusted=trusted), typed_as(lambda note: in_flags(note, app, tokens, headed=False)):
            app = build(tokens)
            result = app(tokens, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # the reader of our output (`head`, a pager) has left; keep Python from complaining again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as stop:
        with contextlib.suppress(OSError):  # the terminal may be what is gone
            print(f"interrupted{': ' + in_flags(str(stop), app, tokens) if str(stop) else ''}", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        code, message = out_refused(error, tokens) or explain(error)
        print(f"error: {printable(in_flags(message, app, tokens))}", file=sys.stderr)
        return code
    finally:
        release_held()
    return result or 0


def in_flags(message: str, app: App | None, tokens: Sequence[str], *, headed: bool = True) -> str:
    """The message of an error, or (not `headed`) a note, with its arguments spelled as flags of the verb that runs."""
    if app is None or not _NAMES_SOMETHING.search(message):
        return message
    from unrolled.commands.spelling import arguments_of, as_flags

    with contextlib.suppress(Exception):  # no such verb, or one whose module needs an extra: there are no flags
        return as_flags(message, arguments_of(app, tokens), tokens, headed=headed)
    return message


def out_refused(error: Exception, tokens: Sequence[str]) -> tuple[int, str] | None:
    """As `explain`, if the error is that nothing can be written where `--out` points."""
    given = [value for flag, value in pairwise(tokens) if flag == "--out"]
    given += [token.removeprefix("--out=") for token in tokens if token.startswith("--out=")]
    if not given or not isinstance(error, OSError) or error.errno not in _UNWRITABLE or not error.filename:
        return None
    out, where = Path(given[-1]).expanduser().absolute(), Path(os.fsdecode(error.filename)).absolute()
    missing_in_it = error.errno == errno.ENOENT and out.is_dir()  # then it was to be read
    if missing_in_it or (where != out and out not in where.parents and where not in out.parents):
        return None
    return 2, f"--out {given[-1]}: cannot be written ({error.strerror}: {where}); give another folder"


def explain(error: Exception) -> tuple[int, str]:
    """The exit code of an error and its one line for the user."""
    from cyclopts import CycloptsError, UnknownCommandError, UnknownOptionError, UnusedCliTokensError

    from unrolled.commands.settings import did_you_mean
    from unrolled.errors import CorruptFile, MissingData, MissingExtra, TrainingStopped, UnsafeFile
    from unrolled.train.config_files import tasks_with

    if isinstance(error, UnknownCommandError):  # its own message would import every verb
        verb = (error.unused_tokens or ["?"])[0]
        return 2, f"there is no verb {verb!r}.{did_you_mean(verb, list(VERBS)) or ' See unrolled --help.'}"
    message = " ".join(str(error).split())
    if isinstance(error, UnusedCliTokensError):
        left = " ".join(error.unused_tokens or ())
        named = "; name it: --model, --data" if (error.command_chain or ("",))[0] in _TRAINING else ""
        return 2, f"unexpected argument: {left}{named}"
    if isinstance(error, UnknownOptionError) and (error.command_chain or ("",))[0] in _TRAINING:
        flag = (error.token.keyword or error.token.value).partition("=")[0]
        if tasks := tasks_with(flag.lstrip("-").replace("-", "_")):
            return 2, f"{flag}: is a flag of other runs; add --task {' or '.join(tasks)}, or leave it out"
    if isinstance(error, CycloptsError):
        return 2, message
    if isinstance(error, MissingExtra | MissingData):
        return 3, message
    if isinstance(error, CorruptFile | UnsafeFile | TrainingStopped):
        return 1, message
    if isinstance(error, ValueError):
        return 2, message
    if isinstance(error, OSError) and error.strerror:
        return 1, f"{error.strerror}{': ' + str(error.filename) if error.filename else ''}"
    if isinstance(error, MemoryError) or any(part in message for part in _NO_MEMORY):
        return 1, "memory ran out; give a smaller --batch-size, --image-size or model, or fewer images"
    return 1, f"{type(error).__name__}: {message} (--debug shows where)"


def _take(tokens: list[str], flag: str) -> tuple[list[str], bool]:
    end = tokens.index("--") if "--" in tokens else len(tokens)
    others = [token for token in tokens[:end] if token != flag]
    return others + tokens[end:], len(others) < end
