"""What `--json` prints, held against docs/howto/json.md: used wherever a test runs a verb for its answer."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from unrolled.harness import ANSWER

PAGE = Path(__file__).parents[1] / "docs" / "howto" / "json.md"


@cache
def documented() -> dict[str, tuple[set[str], set[str]]]:
    """Verb -> keys that are always there, keys that may be."""
    rows = re.findall(r"^\| `([\w-]+)` \|(.*?)\|(.*?)\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {verb: (keys_in(always), keys_in(more)) for verb, always, more in rows}


def keys_in(cell: str) -> set[str]:
    """The names in backquotes."""
    return set(re.findall(r"`(\w+)`", cell))


def answer_of(verb: str, text: str) -> dict[str, Any]:
    """The one JSON object that `verb` printed, whose keys are those of the page."""

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is no JSON")

    found: dict[str, Any] = json.loads(text, parse_constant=refuse)
    assert list(found)[:2] == ["format", "verb"]
    assert found.pop("format") == ANSWER
    assert found.pop("verb") == verb
    always, more = documented()[verb]
    assert always <= found.keys(), f"{verb}: {sorted(always - found.keys())} is on the page and not in the answer"
    unknown = found.keys() - always - more
    assert not unknown, f"{verb}: docs/howto/json.md does not name {sorted(unknown)}"
    return found
