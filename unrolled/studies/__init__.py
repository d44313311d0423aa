"""Studies: each published claim as a function with an expectation; `quick` always exists.

A study is a module with a `Config` dataclass, a `STUDY` record and `run(config) -> Report`. They are found by name:
`unrolled.studies.load("demo")`.
"""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unrolled.studies.base import Study

# name -> module of this package; a new study is one line here
STUDIES: dict[str, str] = {
    "demo": "demo",
    "mesa-controls": "mesa_controls",
    "mesa-floors": "mesa_floors",
    "mesa-one-step": "mesa_one_step",
    "mesa-stability": "mesa_stability",
    "platonic-brain": "platonic_brain",
    "platonic-causes": "platonic_causes",
    "platonic-colour": "platonic_colour",
    "platonic-implications": "platonic_implications",
    "platonic-pmi": "platonic_pmi",
}


def load(name: str) -> Study:
    """The study called `name`.

    Raises:
        ValueError: there is no such study; the nearest name is suggested.
    """
    if name not in STUDIES:
        near = difflib.get_close_matches(name, STUDIES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(STUDIES)}"
        raise ValueError(f"study: unknown study {name!r}; {hint}")
    study: Study = importlib.import_module(f"unrolled.studies.{STUDIES[name]}").STUDY
    return study
