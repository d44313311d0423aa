"""What must hold of the built site: every link leads somewhere, and nothing is asked of another host."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LOADS = {("script", "src"), ("link", "href"), ("img", "src"), ("iframe", "src"), ("source", "src")}


class Page(HTMLParser):
    """The links of a page, what it loads by itself, and its ids."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value for key, value in attrs if value}
        self.ids |= {values[key] for key in ("id", "name") if key in values}
        for key in ("href", "src"):
            if key not in values:
                continue
            loads = (tag, key) in _LOADS and values.get("rel") not in ("canonical", "prev", "next")
            (self.loads if loads else self.links).append(values[key])


def broken(site: Path) -> list[str]:
    """Links of pages that lead to no file or to no place in one, as "page: link"."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links are from the root of wherever the site is put
            continue
        for link in (*page.links, *page.loads):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            there = target.is_file() and site.resolve() in target.parents
            lost = parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids
            if not there or (lost and not parts.fragment.startswith("__")):
                found.append(f"{path.relative_to(site.resolve())}: {link}")
    return found


def asked_of_others(site: Path) -> list[str]:
    """What pages or styles would load from another host, as "file: address"."""
    found = []
    for path in sorted(site.rglob("*.html")):
        found += [f"{path.name}: {each}" for each in Page(path).loads if urlsplit(each).netloc]
        found += [f"{path.name}: {each}" for each in re.findall(r"https?://unpkg\.com[^\"']*", path.read_text())]
    for path in sorted(site.rglob("*.css")):
        found += [f"{path.name}: {each}" for each in re.findall(r"url\([\"']?(https?://[^)\"']+)", path.read_text())]
    return found


def untranslated(site: Path) -> list[str]:
    """Commands of TeX that were left in formulas, as "page: command"."""
    return [
        f"{path.relative_to(site)}: {command}"
        for path in sorted(site.rglob("*.html"))
        for command in re.findall(r"<m\w+>(\\\w+)</m", path.read_text(encoding="utf-8"))
    ]
