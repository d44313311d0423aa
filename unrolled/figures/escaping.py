"""Text of others in a page: escaped, and with the characters that show nothing but rearrange what stands around them
written out."""

from __future__ import annotations

import html
import os
from urllib.parse import quote

from unrolled.reading import printable


def escape(text: str) -> str:
    """`text` for an element or a quoted attribute of HTML or SVG."""
    return html.escape(printable(text, keep="\n\t"))


def address(path: str) -> str:
    """The relative address of a file, which a name such as `javascript:x` does not turn into another kind."""
    return quote(os.fsencode(path))
