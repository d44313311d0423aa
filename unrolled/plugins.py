"""What other installed packages add: models, metrics, data sets and studies, by entry points.

| group             | name                      | value                                                          |
|-------------------|---------------------------|----------------------------------------------------------------|
| unrolled.models   | of a model                | a module that calls `unrolled.models.registry.register`       |
| unrolled.metrics  | for `compare`, `align`    | a subclass of `unrolled.alignment.Metric`                      |
| unrolled.datasets | for `open_images`, --data | a function (data_dir) -> {"train": source, "test": source}     |
| unrolled.studies  | for `unrolled study`      | an `unrolled.studies.study.Study`                              |

A package is imported when one of its names is asked for, never before. The names of this package go first.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

Kind = Literal["models", "metrics", "datasets", "studies"]


@cache
def plugins(kind: Kind) -> dict[str, EntryPoint]:
    """Entry points by name; of two packages with one name, the first that is found."""
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=f"unrolled.{kind}"):
        points.setdefault(point.name, point)
    return points


def load_plugin(kind: Kind, name: str) -> Any:
    """What an installed package adds under `name`; None where none does.

    Raises:
        ValueError: the package cannot be imported, or lacks what it promises.
    """
    point = plugins(kind).get(name)
    if point is None:
        return None
    try:
        return point.load()
    except Exception as error:  # of code that is not ours
        package = point.dist.name if point.dist else point.module
        raise ValueError(
            f"{name}: the package {package} promises it as {point.value}, which fails with {type(error).__name__}: "
            f"{error}; update that package, or uninstall it"
        ) from error
