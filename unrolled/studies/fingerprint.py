"""Which code the result of a class depends on, read from the sources, as one digest.

Of the class's own module only what the class uses counts, by definition; of the modules below, all of each: those that
it imports, those that these import, and the packages they stand in. Docstrings, comments, layout, imports for type
checkers and modules that compute no numbers (`NO_NUMBERS`) do not count, nor do the packages that studies stand in,
which only list them and hold their records. A caption beside a computation may change, and a claim; the arithmetic
three imports below it may not, also where a package resolves the name lazily.

A name that `from PACKAGE import NAME` takes from a lazy package is looked up in the table `_EXPORTS` of that package
(name -> module, or None where the name is a module); a lazy package that is taken whole counts with all it exports.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path

NO_NUMBERS = (
    *("unrolled.figures", "unrolled.report", "unrolled.commands", "unrolled.explorer", "unrolled.cli"),
    *("unrolled.provenance", "unrolled.errors", "unrolled.locks", "unrolled.reading", "unrolled.trust"),
    *("unrolled.harness", "unrolled.terminal"),
    # names and counts of models for lists and messages, and results as tables for readers
    *("unrolled.catalogue", "unrolled.tables"),
    *(f"unrolled.studies.{name}" for name in ("cells", "claim", "fingerprint", "results", "runner", "study")),
)
"""Modules that show, describe or keep results."""

_known: dict[type, str] = {}


def fingerprint(cls: type) -> str:
    """Digest of all code that instances of `cls` compute with; it changes with the version of Python's syntax trees."""
    if cls not in _known:
        used, modules = _reached(cls)
        parts = [ast.dump(node) for node in used] + [f"{name} {_digest(name)}" for name in sorted(modules)]
        _known[cls] = sha256("\n".join(parts).encode()).hexdigest()
    return _known[cls]


def vouch(codes: Mapping[type, str]) -> None:
    """Take digests from the process that asked this one to compute, instead of reading the sources again."""
    _known.update(codes)


@cache
def modules_below(cls: type) -> frozenset[str]:
    """The modules that `fingerprint` reads whole."""
    return _reached(cls)[1]


def _reached(cls: type) -> tuple[list[ast.stmt], frozenset[str]]:
    """The statements of the class's own module that it depends on, and the modules below."""
    home = cls.__module__
    _packages.add(home.split(".")[0])
    tree = _tree(home)
    defined: dict[str, list[ast.stmt]] = {}
    used = [node for node in tree.body if not _binds(node)]  # statements that bind nothing act on what is there
    for node in tree.body:
        for name in _binds(node):
            defined.setdefault(name, []).append(node)
    queue = [cls.__qualname__.split(".")[0], *(name for node in used for name in _names(node))]
    seen: set[str] = set()
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        for node in defined.get(name, ()):
            if node not in used:
                used.append(node)
                queue += _names(node)
    used.sort(key=lambda node: node.lineno)
    taken = {
        other
        for node in used
        for binding, other in _imports(node, home)
        if binding is None or binding in seen or not isinstance(node, ast.Import | ast.ImportFrom)
    }
    plain = [node for node in used if not isinstance(node, ast.Import | ast.ImportFrom)]
    return plain, _closure(taken, home)


def _closure(modules: Iterable[str], home: str) -> frozenset[str]:
    """`modules`, the packages they stand in, and all that these import, at any depth."""
    seen: set[str] = set()
    queue = [*modules, *_parents(home)]
    while queue:
        name = queue.pop()
        if name in seen or name == home or not _counts(name):
            continue
        seen.add(name)
        queue += _parents(name)
        queue += _imported(name)
    return frozenset(seen)


@cache
def _imported(module: str) -> tuple[str, ...]:
    """Modules that a module imports anywhere in it, other than for type checkers."""
    return tuple(sorted({other for node in _tree(module).body for _, other in _imports(node, module)}))


def _imports(node: ast.AST, home: str) -> Iterator[tuple[str | None, str]]:
    """Modules of this package that a statement imports at any depth, each with the name it is bound to."""
    package = home if _is_package(home) else home.rpartition(".")[0]
    for each in _statements(node):
        if isinstance(each, ast.Import):
            for alias in each.names:
                for module in _modules_of(alias.name):
                    yield (alias.asname or alias.name.split(".")[0]), module
        elif isinstance(each, ast.ImportFrom):
            base = each.module or ""
            if each.level:
                parent = package.rsplit(".", each.level - 1)[0] if each.level > 1 else package
                base = f"{parent}.{base}".rstrip(".")
            for alias in each.names:
                for module in _modules_of(base, alias.name):
                    yield (alias.asname or alias.name), module


def _modules_of(base: str, name: str | None = None) -> list[str]:
    """The modules that `import base`, or `from base import name`, reads code from."""
    if _file(base) is None:
        return []
    if name is None:
        return [base, *_all_exports(base)]
    submodule = f"{base}.{name}"
    if _is_package(base) and _file(submodule) is not None:
        return [base, submodule, *_all_exports(submodule)]
    exports = _exports(base)
    if name in exports:
        return [base, exports[name]]
    return [base]


def _all_exports(module: str) -> list[str]:
    return sorted(set(_exports(module).values()))


@cache
def _exports(module: str) -> dict[str, str]:
    """The table of a lazy package, name -> module; empty for any other."""
    for node in _tree(module).body if _is_package(module) else ():
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        value = getattr(node, "value", None)
        if value is not None and any(isinstance(target, ast.Name) and target.id == "_EXPORTS" for target in targets):
            table = ast.literal_eval(value)
            return {name: _resolved(module, name, home) for name, home in table.items()}
    return {}


def _resolved(package: str, name: str, home: str | None) -> str:
    for candidate in (f"{package}.{home or name}", home):
        if candidate is not None and _file(candidate) is not None:
            return candidate
    raise ValueError(f"{package}: _EXPORTS gives {name!r} the module {home!r}, which there is not")


def _names(node: ast.AST) -> list[str]:
    """Names that a statement reads."""
    names = [each.id for each in ast.walk(node) if isinstance(each, ast.Name)]
    for each in ast.walk(node):
        annotation = getattr(each, "annotation", None)
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            names += [
                part.id for part in ast.walk(ast.parse(annotation.value, mode="eval")) if isinstance(part, ast.Name)
            ]
    return names


def _binds(node: ast.stmt) -> list[str]:
    """Names that a statement at the top of a module gives a value."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name.split(".")[0] for alias in node.names]
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        # of `TABLE[key] = value` the table is what changes
        return [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]
    if type(node).__name__ == "TypeAlias":
        return [node.name.id]  # type: ignore[attr-defined]
    return []


def _counts(module: str) -> bool:
    if f"{module}.".startswith("unrolled.studies.") and _is_package(module):
        return False  # it lists studies, or holds the record of one: neither computes
    return not any(module == name or module.startswith(f"{name}.") for name in NO_NUMBERS)


def _parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


@cache
def _file(module: str) -> Path | None:
    """The source of a module of this package, or of one that a cell is from; None of anything else."""
    if module.split(".")[0] not in _packages:
        return None
    try:
        spec = importlib.util.find_spec(module)
    except (ModuleNotFoundError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin and spec.origin.endswith(".py") else None


@cache
def _is_package(module: str) -> bool:
    path = _file(module)
    return path is not None and path.name == "__init__.py"


_packages = {"unrolled"}


@cache
def _digest(module: str) -> str:
    return sha256(ast.dump(_tree(module)).encode()).hexdigest()


@cache
def _tree(module: str) -> ast.Module:
    """The syntax tree of a module without texts that stand alone (docstrings) and imports for type checkers."""
    path = _file(module)
    if path is None:
        raise ValueError(
            f"the source of {module} cannot be read; define cells in a file of a package that can be imported"
        )
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in _statements(tree):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list):
                left = [each for each in block if not (_is_text(each) or _is_for_types(each))]
                setattr(node, name, left if left or not block or name != "body" else [ast.Pass()])
    return tree


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """`node` and the statements within, handlers and cases too: expressions, of which there are most, hold none."""
    yield node
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        block = getattr(node, name, None)
        for each in block if isinstance(block, list) else ():
            yield from _statements(each)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and not node.orelse
