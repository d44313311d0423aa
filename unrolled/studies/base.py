"""What studies say alike: the budgets, and that data are not there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from unrolled.errors import MissingData

Budget = Literal["quick", "cpu", "gpu"]
"""`quick` (to see that it runs), `cpu` (a laptop) or `gpu`."""


def data_missing(data: str, error: MissingData, *, flag: str = "--data-dir DIR") -> MissingData:
    """One sentence that a study's `data` are not there, why, and the flag that says where they are."""
    from unrolled.errors import MissingData

    first = error.__cause__ if isinstance(error.__cause__, MissingData) else error
    return MissingData(f"data_dir: {data} was not found ({str(first).removeprefix('data_dir: ')}); give {flag}")
