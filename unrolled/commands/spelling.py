"""What the library says about its arguments, said of the flags that were typed: `on_error='skip'` is `--on-error skip`.

The library names an argument as Python does: `name=value`, `name=` where any value will do, or `name: ` at the start
of the sentence. Names with an underscore are no English words and are translated wherever they stand.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Mapping, Sequence

from cyclopts import App, Argument

FORMER = {"name": "model", "pattern": "layers", "patterns": "layers", "pooling": "pool"}
"""Arguments of library functions, by the flag that fills them where a verb has no flag of the argument's own name."""
_VALUE = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\[[^]]*\]|\([^)]*\)|\{[^}]*\}|[^\s,:;()'"]*[^\s,:;()'".]"""


def arguments_of(app: App, tokens: Sequence[str]) -> dict[str, Argument]:
    """The flags of the verb that `tokens` call, by the name of the argument they fill."""
    command = app.parse_commands(tokens)[1][-1]
    arguments = {each.name.lstrip("-").replace("-", "_"): each for each in command.assemble_argument_collection()}
    return arguments | {
        name: arguments[flag] for name, flag in FORMER.items() if name not in arguments and flag in arguments
    }


def as_flags(message: str, arguments: Mapping[str, Argument], tokens: Sequence[str], *, headed: bool = True) -> str:
    """`message` with the arguments it names spelled as on the command line.

    Args:
        message: one line of the library.
        arguments: as `arguments_of` says.
        tokens: what was typed: an argument that was given by its place is named without dashes.
        headed: it begins with the argument it is about, as errors do; notes begin with what they are about.
    """

    def named(name: str) -> str:
        argument = arguments[name]
        typed = any(token.partition("=")[0] in argument.names for token in tokens)
        return argument.name.lstrip("-") if argument.index is not None and not typed else argument.name

    def assigned(match: re.Match[str]) -> str:
        name, value = match["name"], match["value"] or ""
        if value == "False":
            return next(iter(arguments[name].negatives), f"{named(name)} false")
        if value.startswith("{"):
            entries = ast.literal_eval(value).items()
            return " ".join(f"{named(name)}.{key.replace('_', '-')} {_word(each)}" for key, each in entries)
        return " ".join((named(name), *(() if value in ("", "True") else _words(value))))

    if not arguments:
        return message
    free, any_of = r"(?<![\w./'\"-])", "|".join(sorted(map(re.escape, arguments), key=len, reverse=True))
    message = re.sub(rf"{free}(?P<name>{any_of})=(?P<value>{_VALUE})?(?![='\"])", assigned, message)
    if headed:
        heading = rf"^(?P<name>{any_of})(?=(?:, [\w, ]+)?: | must be )"
        message = re.sub(heading, lambda match: named(match["name"]), message)
    worded = "|".join(re.escape(name) for name in arguments if "_" in name)
    said_of_flags = rf"{free}(?:{worded})(?![\w/='\"-]|\.\w| in \S+\.ya?ml)"
    return re.sub(said_of_flags, lambda match: named(match[0]), message) if worded else message


def _words(value: str) -> list[str]:
    """The words of a shell that stand for a value as Python prints it."""
    try:
        read = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        read = value
    return [_word(part) for part in (read if isinstance(read, list | tuple) else (read,))]


def _word(value: object) -> str:
    if value is ...:  # any value
        return "..."
    return str(value).lower() if isinstance(value, bool) else shlex.quote(str(value))
