"""Drawings that somebody else may have made: SVG that does nothing but show, as `unrolled.report` writes it."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from unrolled.errors import CorruptFile, UnsafeFile
from unrolled.reading import read_text

_SHOWS = frozenset(
    {"circle", "desc", "g", "image", "line", "path", "polygon", "polyline", "rect", "style", "svg", "text", "title",
     "tspan"}
)  # fmt: skip
_SVG = "{http://www.w3.org/2000/svg}"


def check_drawing(path: Path) -> None:
    """Refuse an SVG file that could run a script or fetch something when a page of the gallery opens it.

    Raises:
        UnsafeFile: it has an element, an attribute or a style that does more than show.
        CorruptFile: it is no SVG.
    """
    text = read_text(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UnsafeFile(f"{path}: declares entities, which a drawing does not need; draw it again")
    try:
        drawing = ElementTree.fromstring(text)
    except (ElementTree.ParseError, RecursionError) as error:
        raise CorruptFile(f"{path}: is not SVG: {error}") from error
    for element in drawing.iter():
        name = str(element.tag).removeprefix(_SVG)
        if name not in _SHOWS:
            raise UnsafeFile(f"{path}: has an element <{name:.40}>, which does more than show; draw it again")
        for key, value in element.attrib.items():
            link = key.rpartition("}")[2] == "href" and not value.startswith("data:image/png;base64,")
            if link or key.lower().startswith("on") or _fetches(value):
                raise UnsafeFile(f"{path}: has an attribute {key:.40}={value:.40!r}, which does more than show")
        if name == "style" and _fetches(element.text or ""):
            raise UnsafeFile(f"{path}: its style fetches something; draw it again")


def size_of_drawing(path: Path) -> tuple[float, float]:
    """Width and height that an SVG file says it has; those of a chart where it does not."""
    match = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', read_text(path)[:2000])
    return (float(match[1]), float(match[2])) if match else (400.0, 262.0)


def _fetches(style: str) -> bool:
    return re.search(r"(?i)url\s*\(\s*['\"]?\s*(?!#)|@import|\\", style) is not None
