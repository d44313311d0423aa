"""The digest of the code behind a cell: what changes a result changes it, what only shows or explains does not."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from unrolled.studies import fingerprint as module
from unrolled.studies.fingerprint import fingerprint, modules_below

FILES = {
    "__init__.py": "",
    "study.py": '''
"""A study."""
from typing import TYPE_CHECKING

from lab.middle import doubled
from lab.lazy import tripled

if TYPE_CHECKING:
    from lab.report import page

CAPTION = "what was seen"
FACTOR = 2
TABLE = {}
TABLE["a"] = 1


class Base:
    def factor(self):
        return FACTOR


class Thing(Base):
    """Computes."""

    def compute(self):
        from lab import late
        return doubled(self.factor()) + tripled(1) + late.add(1, TABLE["a"])


class Other:
    def compute(self):
        from lab.unrelated import x
        return x


def show():
    return CAPTION
''',
    "middle.py": "from lab.below import base\n\ndef doubled(x):\n    return base(x) * 2\n",
    "below.py": "def base(x):\n    return x + 1  # plus one\n",
    "late.py": "def add(a, b):\n    return a + b\n",
    "unrelated.py": "x = 1\n",
    "report.py": "def page():\n    return 1\n",
    "lazy/__init__.py": (
        "import importlib\n_EXPORTS = {'tripled': 'arithmetic', 'other': 'another'}\n\n"
        "def __getattr__(name):\n    return getattr(importlib.import_module(f'lab.lazy.{_EXPORTS[name]}'), name)\n"
    ),
    "lazy/arithmetic.py": "from lab.lazy.deep import three\n\ndef tripled(x):\n    return x * three()\n",
    "lazy/deep.py": "def three():\n    return 3\n",
    "lazy/another.py": "other = 1\n\ndef tripled(x):\n    return x + x + x\n",
}


def forget() -> None:
    """Read all sources anew."""
    for value in vars(module).values():
        if hasattr(value, "cache_clear"):
            value.cache_clear()
    module._known.clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "lab"]:
        del sys.modules[name]
    importlib.invalidate_caches()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Writes the package with one text replaced by another in one file, and gives the digest of `lab.study:Thing`."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def digest(file: str = "study.py", before: str = "", after: str = "") -> str:
        for name, text in FILES.items():
            path = tmp_path / "lab" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name == file and before:
                assert before in text
                text = text.replace(before, after)
            path.write_text(text, encoding="utf-8")
        forget()
        return fingerprint(importlib.import_module("lab.study").Thing)

    yield digest
    forget()


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("study.py", "what was seen", "what was seen, said better"),  # a caption beside the computation
        ("study.py", '"""Computes."""', '"""Computes a number."""'),
        ("study.py", "return CAPTION", "return CAPTION.title()"),
        ("study.py", "FACTOR = 2", "FACTOR = 2  # of the paper"),
        ("study.py", "import x\n        return x", "import x\n        return x + 1"),  # another cell
        ("below.py", "# plus one", "# plus 1"),
        ("below.py", "def base(x):\n", "def base(x):\n\n"),
        ("unrelated.py", "1", "2"),
        ("report.py", "1", "2"),
        ("lazy/another.py", "1", "2"),
    ],
)
def test_what_shows_or_explains_does_not_count(lab: Callable[..., str], file: str, before: str, after: str) -> None:
    assert lab() == lab(file, before, after)


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("study.py", "FACTOR = 2", "FACTOR = 3"),
        ("study.py", "tripled(1)", "tripled(2)"),
        ("study.py", 'TABLE["a"] = 1', 'TABLE["a"] = 2'),  # a statement that changes what the class reads
        ("study.py", "return FACTOR", "return FACTOR + 1"),  # a class that it inherits from
        ("below.py", "x + 1", "x + 2"),  # imports below
        ("late.py", "a + b", "a - b"),  # imported inside the function
        ("lazy/arithmetic.py", "x * three()", "x * three() + 1"),  # behind a lazy attribute
        ("lazy/deep.py", "3", "4"),  # and three imports below it
        ("lazy/__init__.py", "'tripled': 'arithmetic'", "'tripled': 'another'"),
    ],
)
def test_what_computes_counts(lab: Callable[..., str], file: str, before: str, after: str) -> None:
    assert lab() != lab(file, before, after)


def test_modules_that_are_not_read_do_not_count(lab: Callable[..., str]) -> None:
    lab()
    below = modules_below(sys.modules["lab.study"].Thing)
    assert {name for name in below if name.startswith("lab")} == {
        *("lab", "lab.middle", "lab.below", "lab.late", "lab.lazy", "lab.lazy.arithmetic", "lab.lazy.deep")
    }


def test_claims_pages_and_the_list_of_studies_do_not_count() -> None:
    from unrolled.studies.crate.attribution.cells import Terms  # by way of `compared`, which also makes claims
    from unrolled.studies.crate.family.cells import Readout

    for cell in (Readout, Terms):
        below = modules_below(cell)
        assert "unrolled.studies.networks" in below
        assert not below & {"unrolled.studies", "unrolled.studies.crate.family"}
        assert not any(name.endswith((".claim", ".claims", ".report")) for name in below)


def test_lists_of_models_and_tables_of_results_do_not_count() -> None:
    """A model more in the catalogue, or a column less in a notebook, throws away no trained network."""
    from unrolled.studies.crate.causal.cells import Removal
    from unrolled.studies.crate.family.cells import Readout

    for cell in (Readout, Removal):
        below = modules_below(cell)
        assert "unrolled.models.registry" in below  # which reads the catalogue
        assert not below & {"unrolled.catalogue", "unrolled.tables"}


def test_modules_that_do_not_count_are_there() -> None:
    assert [name for name in module.NO_NUMBERS if module._file(name) is None] == []


def test_packages_of_studies_compute_nothing() -> None:
    import unrolled

    for path in (Path(unrolled.__file__).parent / "studies").rglob("__init__.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        defined = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        assert set(defined) <= {"study_names", "load"}, f"{path}: the digest of cells does not see what it computes"


def test_a_class_without_a_source_is_refused() -> None:
    thing = type("Thing", (), {"__module__": "nowhere"})
    with pytest.raises(ValueError, match="define cells in a file"):
        fingerprint(thing)


def test_every_lazy_package_has_a_table_that_can_be_read() -> None:
    """A name that `__getattr__` resolves in any other way would be invisible to the digest."""
    import unrolled

    for path in Path(unrolled.__file__).parent.rglob("__init__.py"):
        name = ".".join(["unrolled", *path.parent.relative_to(Path(unrolled.__file__).parent).parts])
        if "def __getattr__" in path.read_text(encoding="utf-8") and not name.startswith(module.NO_NUMBERS):
            assert module._exports(name), name
