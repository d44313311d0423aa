"""Pages of the gallery that are written by hand: the Markdown of `docs/`."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from unrolled.figures.escaping import address
from unrolled.reading import printable, read_text, really_below

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

SHOTS = {
    "demo": "What `unrolled demo` shows.",
    "explorer": "The local page of `unrolled explore`.",
}
"""First word of a screenshot's name -> caption."""


@dataclass(frozen=True)
class Note:
    """One page `NAME.md` with its files in the folder `NAME` beside it, and pictures of other pages."""

    name: str
    title: str
    lead: str
    """The first paragraph, Markdown."""
    text: str
    """What follows the title."""
    folder: Path

    def page(self, out: Path) -> str:
        """The page as HTML, for `OUT/NAME/index.html`; its pictures are copied beside it."""
        out.mkdir(parents=True, exist_ok=True)
        return to_html(self.text, self._copied(out))

    def picture(self) -> tuple[str, str] | None:
        """File and description of the first picture that is there."""
        for alt, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", self.text):
            if (self.folder.parent / target).is_file() and target.startswith(f"{self.name}/"):
                return Path(target).name, alt
        return None

    def _copied(self, out: Path) -> dict[str, str]:
        """Targets of links that lie in the folder, and pictures beside it -> where they are from the page."""
        addresses = {}
        for target in re.findall(r"\]\(([^)]+)\)", self.text):
            path = self.folder.parent / target
            inside = self.folder if target.startswith(f"{self.name}/") else self.folder.parent
            if inside != self.folder and path.suffix not in (".svg", ".png"):
                continue
            if path.is_file() and path.resolve().is_relative_to(inside.resolve()):
                name = path.name if inside == self.folder else target.replace("/", "-")
                shutil.copyfile(path, out / name)
                addresses[target] = name
        return addresses


def read_notes(docs: Path, *, without: Path) -> list[Note]:
    """Every `NAME.md` in `docs` with a folder `NAME` beside it, but for the folder `without`."""
    notes = []
    for path in sorted(docs.glob("*.md")):
        folder = path.with_suffix("")
        if not folder.is_dir() or folder.resolve() == without.resolve():
            continue
        head, _, text = read_text(really_below(docs, path)).strip().partition("\n")
        lead = text.strip().split("\n\n")[0]
        notes.append(Note(folder.name, head.removeprefix("# "), lead.replace("\n", " "), text.strip(), folder))
    return notes


def screenshots(docs: Path) -> list[tuple[Path, str]]:
    """Pictures of programs in `docs`, with captions: `demo*.png` and `explorer*.png`.

    What a page in `docs` says of a picture, in `![words](NAME.png)`, is its caption; else the rest of its name.
    """
    pages = "\n".join(read_text(really_below(docs, path)) for path in sorted(docs.glob("*.md")))
    words = {target: alt for alt, target in re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", pages)}
    pictures = [(path, re.split(r"[-.]", path.name)[0]) for path in sorted(docs.glob("*.png"))]
    return [
        (really_below(docs, path), _caption(path, SHOTS[word], words.get(path.name)))
        for path, word in pictures
        if word in SHOTS
    ]


def _caption(path: Path, caption: str, words: str | None) -> str:
    rest = words or path.stem.partition("-")[2].replace("-", " ")
    if rest.split(" ")[0][1:].islower():  # a word of the language, not a name
        rest = rest[0].lower() + rest[1:]
    return caption.removesuffix(".") + f": {rest}." if rest else caption


def to_html(text: str, links: Mapping[str, str]) -> str:
    """Markdown as HTML, without raw HTML.

    Args:
        text: CommonMark, with tables.
        links: targets that exist -> addresses; links and pictures elsewhere become their words.
    """
    markdown = _markdown()
    tokens = markdown.parse(printable(text, keep="\n\t"))
    for token in tokens:
        if token.type.startswith("heading_"):
            token.tag = max(token.tag, "h2")
        elif token.type == "th_open":
            token.attrSet("scope", "col")
        if token.children is not None:
            token.children = _linked(token.children, links)
    return str(markdown.renderer.render(tokens, markdown.options, {}))


def inline(text: str) -> str:
    """One line of Markdown as HTML; links become their words."""
    markdown = _markdown()
    (token,) = markdown.parseInline(printable(text, keep="\n\t"))
    token.children = _linked(token.children or [], {})
    return str(markdown.renderer.render([token], markdown.options, {}))


@cache
def _markdown() -> MarkdownIt:
    from markdown_it import MarkdownIt

    markdown = MarkdownIt("commonmark", {"html": False, "xhtmlOut": False}).enable("table")
    frame = '<div class="scroll" tabindex="0" role="region" aria-label="Table"><table>\n'
    markdown.add_render_rule("table_open", lambda *_: frame)
    markdown.add_render_rule("table_close", lambda *_: "</table></div>\n")
    return markdown


def _linked(tokens: Sequence[Token], links: Mapping[str, str]) -> list[Token]:
    """The same with links and pictures to where they lie; those that lead nowhere become their words."""
    out: list[Token] = []
    leads: list[bool] = []  # of the links that are open
    for token in tokens:
        if token.type == "link_open":
            target = links.get(unquote(str(token.attrGet("href"))))
            leads.append(target is not None)
            if target is None:
                continue
            token.attrs = {"href": address(target)}
        elif token.type == "link_close" and not leads.pop():
            continue
        elif token.type == "image":
            target = links.get(unquote(str(token.attrGet("src"))))
            if target is None:
                out += _linked(token.children or [], links)
                continue
            token.attrs = {"src": address(target), "alt": "", "loading": "lazy"}
        out.append(token)
    return out
