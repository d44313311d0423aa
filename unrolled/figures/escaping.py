"""Text of others in a page: escaped, and with the characters that show nothing but rearrange what stands around them
written out."""

from __future__ import annotations

import html
import os
import re
from urllib.parse import quote

from unrolled.reading import printable


def typeset(text: str) -> str:
    """As pages and figures print words: `R^c` and `R^2`, as sources and terminals spell them, with a raised sign."""
    return re.sub(r"\bR\^([c2])\b", lambda match: {"c": "Rᶜ", "2": "R²"}[match[1]], text)


def in_print(text: str) -> str:
    """Words as a figure prints them, in which no character does anything but stand there."""
    return printable(typeset(text))


def escape(text: str) -> str:
    """`text` for an element or a quoted attribute of HTML or SVG."""
    return html.escape(printable(text, keep="\n\t"))


def address(path: str) -> str:
    """The relative address of a file, which a name such as `javascript:x` does not turn into another kind."""
    return quote(os.fsencode(path))
