"""What a package shows lazily is said to type checkers too, and a metric is registered with all that goes with it."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import warnings
from pathlib import Path

import pytest
import torch

from unrolled import alignment
from unrolled.alignment import METRICS, Metric
from unrolled.alignment.function import FunctionMetric


@pytest.mark.parametrize(
    "package", ["unrolled", *(f"unrolled.{name}" for name in ("data", "instruments", "layers", "train"))]
)
def test_type_checkers_are_told_every_name_that_is_lazy(package: str) -> None:
    module = importlib.import_module(package)
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    imported = {name.asname or name.name for node in imports for name in node.names}
    assert {name for name, home in module._EXPORTS.items() if home is not None} == imported


def test_every_metric_is_registered_and_exported() -> None:
    for found in pkgutil.iter_modules(alignment.__path__, "unrolled.alignment."):
        for name, kind in vars(importlib.import_module(found.name)).items():
            here = inspect.isclass(kind) and issubclass(kind, Metric) and kind.__module__ == found.name
            if here and not inspect.isabstract(kind) and not name.startswith("_"):
                if kind is FunctionMetric:  # has no name before it is given its function
                    continue
                assert METRICS.get(kind.name) is kind, f"{found.name}: {name} is missing in METRICS"
                assert name in alignment.__all__, f"{name}: is missing in __all__ of alignment/registry.py"


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_has_its_plain_function(name: str) -> None:
    kind = METRICS[name]
    assert name in alignment.__all__, f"{name}: a plain function is missing in alignment/registry.py, or in its __all__"
    plain = getattr(alignment, name)
    assert f"See `{kind.__name__}`." in (inspect.getdoc(plain) or "")
    options = list(inspect.signature(plain).parameters.values())[2:]
    assert [(each.name, each.default) for each in options] == [
        (each.name, each.default) for each in inspect.signature(kind).parameters.values()
    ]
    x, y = torch.randn(2, 40, 30, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert plain(x, y) == kind()(x, y)
