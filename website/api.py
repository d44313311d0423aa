"""The reference of the Python interface: a page for each package, from its docstrings."""

from __future__ import annotations

import ast
from pathlib import Path

import unrolled

# commands are on pages of their own, and nobody imports the explorer or one study
PACKAGES = (
    "theory",
    "ops",
    "layers",
    "models",
    "instruments",
    "alignment",
    "subjects",
    "data",
    "tasks",
    "train",
    "figures",
    "report",
    "studies",
)


def pages(root: Path) -> dict[str, str]:
    """Place -> text, for the generator to fill in."""
    found = {"reference/api/index.md": _front()}
    for package in PACKAGES:
        folder = root / "unrolled" / package
        parts = [f"# unrolled.{package}\n", f"{_doc(folder / '__init__.py')}\n"]
        parts += [f"::: {name}\n" for name in _modules(folder, root)]
        found[f"reference/api/{package}.md"] = "\n".join(parts)
    return found


def homes(root: Path) -> dict[Path, str]:
    """Source files -> where the reference has them."""
    found = {}
    for package in PACKAGES:
        folder = root / "unrolled" / package
        found[folder / "__init__.py"] = found[folder] = f"reference/api/{package}.md"
        for name in _modules(folder, root):
            found[root / f"{name.replace('.', '/')}.py"] = f"reference/api/{package}.md#{name}"
    return found


def _front() -> str:
    """What `import unrolled` gives: its functions, and its packages with a line on each."""
    functions = {name: home for name, home in unrolled._EXPORTS.items() if home and home != f"unrolled.{name}"}
    rows = [
        f"| [`unrolled.{package}`]({package}.md) | {_doc(Path(unrolled.__path__[0]) / package / '__init__.py', 1)} |"
        for package in PACKAGES
    ]
    parts = ["# Python\n", "What `import unrolled` gives. Importing it imports nothing heavy.\n"]
    parts += ["| package | what |", "|---|---|", *rows, ""]
    for name in functions:
        value = getattr(unrolled, name)
        parts += [f"::: {value.__module__}.{value.__qualname__}\n"]
    return "\n".join(parts)


def _modules(folder: Path, root: Path) -> list[str]:
    files = sorted(path for path in folder.rglob("*.py") if not path.name.startswith("_"))
    if folder.name == "studies":
        files = [path for path in files if path.parent == folder]
    return [".".join(path.relative_to(root).with_suffix("").parts) for path in files]


def _doc(path: Path, lines: int | None = None) -> str:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return "\n".join(doc.splitlines()[:lines])
