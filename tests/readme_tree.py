"""Rewrite the tree in README.md from the first line of every module's docstring: `python -m tests.readme_tree`."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
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
    readme = ROOT / "README.md"
    readme.write_text(TREE.sub(lambda _: f"```text\n{tree()}\n```", readme.read_text()))
