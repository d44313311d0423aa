"""Rewrite the map of modules in docs/inside/architecture.md: `python -m tests.readme_tree`."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/inside/architecture.md"
TREE = re.compile(r"```text\nunrolled/.*?```", flags=re.DOTALL)


def phrase(path: Path) -> str:
    """First line of a module's docstring, without the final stop."""
    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    return doc.split("\n")[0].rstrip(".")


def tree() -> str:
    """The package's folders and modules, each with its phrase."""
    package = ROOT / "unrolled"
    lines = []
    folders = sorted(p.parent for p in package.rglob("*/__init__.py"))
    for folder in [package, *folders]:
        lines.append(f"{folder.relative_to(ROOT)}/  {phrase(folder / '__init__.py')}")
        modules = sorted(p for p in folder.glob("*.py") if p.name != "__init__.py")
        width = max((len(p.name) for p in modules), default=0)
        lines += [f"  {p.name:{width}}  {phrase(p)}" for p in modules]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(TREE.sub(lambda _: f"```text\n{tree()}\n```", PAGE.read_text()))
