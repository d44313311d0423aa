"""Arrows point down, and never round: who may import whom, read off the sources."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "unrolled"
# each storey may import those before it, and itself
STOREYS = """\
arrays catalogue checksums errors locks memory modes network plugins precision provenance reading seeds \
tensors terminal trust
figures tables
theory ops
layers
models tasks data instruments
alignment train
report subjects
harness
studies
commands explorer
cli __main__ __init__ timm_names
"""
LEVEL = {name: level for level, names in enumerate(STOREYS.split("\n")) for name in names.split()}
# instruments are strangers to models
STRANGERS = {"instruments": {"models", "data"}, "data": {"models", "instruments"}, "models": {"data", "instruments"}}


@cache
def imports(text: str) -> list[tuple[ast.Import | ast.ImportFrom, bool]]:
    """The imports of a module, anywhere in it, each with whether it is for type checkers alone."""
    found: list[tuple[ast.Import | ast.ImportFrom, bool]] = []
    pending: list[tuple[ast.AST, bool]] = [(ast.parse(text), False)]
    while pending:
        node, typed = pending.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.append((node, typed))
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            pending += [(each, True) for each in node.body] + [(each, typed) for each in node.orelse]
        elif not isinstance(node, ast.expr):
            pending += [(each, typed) for each in ast.iter_child_nodes(node)]
    return found


def parts(of: list[tuple[ast.Import | ast.ImportFrom, bool]]) -> set[str]:
    """The parts of the package among imports, except for type checkers."""
    found: set[str] = set()
    for node, typed in of:
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
        if typed:
            continue
        names = [
            f"unrolled.{alias.name}" if isinstance(node, ast.ImportFrom) and node.module == "unrolled"
            else getattr(node, "module", None) or alias.name
            for alias in node.names
        ]  # fmt: skip
        found |= {name.split(".")[1] for name in names if name.startswith("unrolled.")}
    return found - {"__version__"}


def test_nothing_imports_a_storey_above_it() -> None:
    broken = []
    for path in sorted(PACKAGE.rglob("*.py")):
        own = path.relative_to(PACKAGE).with_suffix("").parts[0]
        assert own in LEVEL, f"{own}: say in STOREYS where it belongs"
        for other in parts(imports(path.read_text(encoding="utf-8"))):
            if LEVEL[other] > LEVEL[own] or other in STRANGERS.get(own, ()):
                broken.append(f"{path.relative_to(PACKAGE)} imports {other}")
    assert broken == []


def test_the_check_sees_imports_inside_functions() -> None:
    text = "def f():\n    from unrolled.cli import run\nif TYPE_CHECKING:\n    import unrolled.models\n"
    assert parts(imports(text)) == {"cli"}


def modules(package: Path) -> dict[str, Path]:
    """Every module of a package by its name."""
    found = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def exports(path: Path) -> dict[str, str | None]:
    """What a lazy package resolves: name -> module, or None for a module of that name."""
    text = path.read_text(encoding="utf-8")
    for node in ast.parse(text).body if "_EXPORTS" in text else ():
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "_EXPORTS" for target in targets):
            table: dict[str, str | None] = ast.literal_eval(node.value)  # type: ignore[attr-defined]
            return table
    return {}


def arrows(package: Path) -> dict[str, set[str]]:
    """Which module imports which, anywhere in it, for type checkers and in functions too.

    A lazy package hands on and does not import; what is taken from it is imported from where it stands.
    """
    known = modules(package)
    lazy = cache(lambda name: exports(known[name]))

    def home(module: str, name: str) -> str:
        if f"{module}.{name}" in known:
            return f"{module}.{name}"
        if module in known and name in lazy(module):
            where = lazy(module)[name] or name
            return where if where in known else f"{module}.{where}"
        return module

    graph: dict[str, set[str]] = {}
    for module, path in known.items():
        found: set[str] = set()
        for node, _ in imports(path.read_text(encoding="utf-8")) if not lazy(module) else ():
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {home(node.module, alias.name) for alias in node.names}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        graph[module] = (found & known.keys()) - {module}
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other round, or none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_each_other() -> None:
    assert circle(arrows(PACKAGE)) == []


def test_the_check_sees_circles_through_lazy_packages_and_type_only_imports(tmp_path: Path) -> None:
    package = tmp_path / "toy"
    package.mkdir()
    (package / "__init__.py").write_text("_EXPORTS = {'f': 'one'}\n")
    (package / "one.py").write_text("def f():\n    import toy.two\n")
    (package / "two.py").write_text("if TYPE_CHECKING:\n    from toy import f\n")
    assert set(circle(arrows(package))) == {"toy.one", "toy.two"}
    (package / "two.py").write_text("from toy import other\n")
    assert circle(arrows(package)) == []
