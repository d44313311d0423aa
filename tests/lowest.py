"""Print the lowest versions that pyproject.toml allows, as constraints for pip: `make test-lowest` tests with them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def lowest() -> list[str]:
    """`NAME==VERSION` of every dependency with a lower bound, of the package, its extra `hf` and its tests."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    found = [
        re.match(r"([\w.-]+)>=([\w.]+)", each) for each in (*project["dependencies"], *extras["hf"], *extras["test"])
    ]
    return [f"{each[1]}=={each[2]}" for each in found if each]


if __name__ == "__main__":
    print("\n".join(lowest()))
