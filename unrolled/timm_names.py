"""`timm.create_model` knows this package's models once `unrolled` and `timm` are both imported, in either order.

timm has no entry points for other packages, and importing it takes seconds, which `import unrolled` must not. So the
names are registered at once if timm is there, and else by a finder that waits for timm's own import to end.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


class _AfterTimm:
    """A finder that finds nothing but timm, by the other finders, and registers the names when that is loaded."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "timm":
            return None
        others = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((candidate for candidate in others if candidate is not None), None)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_register(module: ModuleType) -> None:
            load(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            _register()

        spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


def register_with_timm() -> None:
    """Register the names now, or as soon as timm is imported."""
    if "timm" in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _AfterTimm())


def _register() -> None:
    if "unrolled.models" in sys.modules:  # it is what imports timm, and registers them itself
        return
    try:
        importlib.import_module("unrolled.models")
    except Exception as error:  # importing timm must not fail for our sake
        warnings.warn(f"unrolled's models are not registered with timm: {error}", stacklevel=2)
