"""Pages of the gallery that are written by hand: the Markdown of `docs/`, as much of it as those pages use."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from unrolled.figures.escaping import address, escape
from unrolled.reading import read_text, really_below

SHOTS = {
    "demo": "What `unrolled demo` shows.",
    "explorer": "The local page of `unrolled explore`.",
}
"""First word of a screenshot's name -> caption."""


@dataclass(frozen=True)
class Note:
    """One page `NAME.md` with its pictures in the folder `NAME` beside it."""

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
        """Targets of links that lie in the folder -> where they are from the page."""
        found = {}
        for target in re.findall(r"\]\(([^)]+)\)", self.text):
            path = self.folder.parent / target
            if (
                target.startswith(f"{self.name}/")
                and path.is_file()
                and path.resolve().is_relative_to(self.folder.resolve())
            ):
                shutil.copyfile(path, out / path.name)
                found[target] = path.name
        return found


def read_notes(docs: Path, *, without: Path) -> list[Note]:
    """Every `NAME.md` in `docs` with a folder `NAME` beside it, but for the folder `without`."""
    found = []
    for path in sorted(docs.glob("*.md")):
        folder = path.with_suffix("")
        if not folder.is_dir() or folder.resolve() == without.resolve():
            continue
        head, _, text = read_text(really_below(docs, path)).strip().partition("\n")
        lead = text.strip().split("\n\n")[0]
        found.append(Note(folder.name, head.removeprefix("# "), lead.replace("\n", " "), text.strip(), folder))
    return found


def screenshots(docs: Path) -> list[tuple[Path, str]]:
    """Pictures of programs in `docs`, with captions: `demo*.png` and `explorer*.png`.

    What a page in `docs` says of a picture, in `![words](NAME.png)`, is its caption; else the rest of its name.
    """
    pages = "\n".join(read_text(really_below(docs, path)) for path in sorted(docs.glob("*.md")))
    words = {target: alt for alt, target in re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", pages)}
    found = [(path, re.split(r"[-.]", path.name)[0]) for path in sorted(docs.glob("*.png"))]
    return [
        (really_below(docs, path), _said(path, SHOTS[word], words.get(path.name)))
        for path, word in found
        if word in SHOTS
    ]


def _said(path: Path, caption: str, words: str | None) -> str:
    rest = words or path.stem.partition("-")[2].replace("-", " ")
    if rest.split(" ")[0][1:].islower():  # a word of the language, not a name
        rest = rest[0].lower() + rest[1:]
    return caption.removesuffix(".") + f": {rest}." if rest else caption


def to_html(text: str, links: dict[str, str]) -> str:
    """Headings, paragraphs, lists, tables, code and pictures as HTML.

    Args:
        text: Markdown.
        links: targets that exist -> addresses; links and pictures elsewhere become their words.
    """
    out: list[str] = []
    for number, part in enumerate(re.split(r"^```\w*\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)):
        if number % 2:
            out.append(f"<pre><code>{escape(part.rstrip())}</code></pre>")
            continue
        out += [_block(block.strip(), links) for block in re.split(r"\n\s*\n", part) if block.strip()]
    return "\n".join(out)


def _block(block: str, links: dict[str, str]) -> str:
    lines = block.splitlines()
    if heading := re.match(r"(#{1,4}) (.*)", block):
        level = max(2, len(heading[1]))
        rest = block[heading.end() :].strip()
        return f"<h{level}>{inline(heading[2], links)}</h{level}>" + (_block(rest, links) if rest else "")
    if lines[0].startswith("|") and len(lines) > 1 and set(lines[1]) <= set("|-: "):
        cells = [[inline(cell.strip(), links) for cell in line.strip().strip("|").split("|")] for line in lines]
        head = "".join(f'<th scope="col">{cell}</th>' for cell in cells[0])
        body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in cells[2:])
        rows = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
        return f'<div class="scroll" tabindex="0" role="region" aria-label="Table"><table>{rows}</table></div>'
    if lines[0].startswith("- "):
        items = re.split(r"^- ", block, flags=re.MULTILINE)[1:]
        return "<ul>" + "".join(f"<li>{inline(' '.join(item.split()), links)}</li>" for item in items) + "</ul>"
    return f"<p>{inline(' '.join(lines), links)}</p>"


def inline(text: str, links: dict[str, str]) -> str:
    """Code, pictures, links, bold and italics of one line."""
    out = []
    for number, part in enumerate(re.split(r"(?<!\[)`([^`]+)`(?!\])", text)):
        out.append(f"<code>{escape(part)}</code>" if number % 2 else _words(part, links))
    return "".join(out)


def _words(text: str, links: dict[str, str]) -> str:
    def link(found: re.Match[str]) -> str:
        bang, words, target = found.groups()
        there = links.get(target)
        if bang and there:
            return f'<img src="{address(there)}" alt="{words}" loading="lazy">'
        words = re.sub(r"`([^`]+)`", r"<code>\1</code>", words)
        return f'<a href="{address(there)}">{words}</a>' if there else words

    out = re.sub(r"(!?)\[([^\]]+)\]\(([^)]+)\)", link, escape(text))
    out = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", out)
    return re.sub(r"(?<![\w*])\*([^*\s][^*]*)\*(?![\w*])", r"<em>\1</em>", out)
