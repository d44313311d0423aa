"""Arrows point down: who may import whom, read off the sources."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "unrolled"
# each storey may import those before it, and itself
STOREYS = [
    {"arrays", "checksums", "errors", "locks", "memory", "precision", "provenance", "reading", "trust"},
    {"figures"},
    {"theory", "ops"},
    {"layers"},
    {"models", "tasks", "data", "instruments"},
    {"alignment", "train"},
    {"report"},
    {"studies"},
    {"commands", "explorer"},
    {"cli", "__main__", "__init__", "timm_names"},
]
LEVEL = {name: level for level, names in enumerate(STOREYS) for name in names}
# instruments are strangers to models
STRANGERS = {"instruments": {"models", "data"}, "data": {"models", "instruments"}, "models": {"data", "instruments"}}


def imported(tree: ast.Module) -> set[str]:
    """The parts of the package that a module imports, anywhere in it, except for type checkers."""
    found: set[str] = set()
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse
            continue
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [
                f"{node.module}.{alias.name}" if node.module == "unrolled" else node.module or ""
                for alias in node.names
            ]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("unrolled.")}
        pending += ast.iter_child_nodes(node)
    return found - {"__version__"}


def test_nothing_imports_a_storey_above_it() -> None:
    broken = []
    for path in sorted(PACKAGE.rglob("*.py")):
        own = path.relative_to(PACKAGE).with_suffix("").parts[0]
        assert own in LEVEL, f"{own}: say in STOREYS where it belongs"
        for other in imported(ast.parse(path.read_text(encoding="utf-8"))):
            if LEVEL[other] > LEVEL[own] or other in STRANGERS.get(own, ()):
                broken.append(f"{path.relative_to(PACKAGE)} imports {other}")
    assert broken == []


def test_the_check_sees_imports_inside_functions() -> None:
    tree = ast.parse("def f():\n    from unrolled.cli import run\nif TYPE_CHECKING:\n    import unrolled.models\n")
    assert imported(tree) == {"cli"}
