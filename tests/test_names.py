"""Names say what they hold: a few words that could stand for anything are no identifiers of the package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "unrolled"
# call it what it is: results, rows, a label, a mask, a store
EMPTY = {"found", "own", "said", "kept", "told", "there"}
# (file, name) -> why the word is the right one
ALLOWED = {("studies/study.py", "kept"): "`Config.kept` is the flag --kept: where results are kept, by any study"}


def identifiers(tree: ast.Module) -> Iterator[str]:
    """Variables, attributes, arguments, functions, classes, and what is imported by another name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname


def empty_names(tree: ast.Module) -> set[str]:
    return {name for name in identifiers(tree) if name.strip("_").lower() in EMPTY}


def test_no_identifier_is_an_empty_word() -> None:
    named = {
        (path.relative_to(PACKAGE).as_posix(), name)
        for path in PACKAGE.rglob("*.py")
        for name in empty_names(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert named == set(ALLOWED), "say what it is, or allow it here with the reason"


def test_the_check_sees_every_kind_of_name() -> None:
    code = (
        "import a as told\nclass Kept:\n    def _said(self, own):\n        self.there = found_all = _found = 'kept'\n"
    )
    assert empty_names(ast.parse(code)) == {"told", "Kept", "_said", "own", "there", "_found"}


def test_no_private_name_crosses_a_module() -> None:
    crossing = {
        (path.relative_to(PACKAGE).as_posix(), alias.name)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("unrolled")
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    }
    assert crossing == set(), "what another module needs has a public name"
