"""Take over the numbers of a committed study: `python -m tests.study_store NAME --kept runs/kept`.

A study that gets one more question, seed or family need not compute again what its report already holds: every row of
docs/studies/NAME/report.json goes into a store of results, under the names that today's code gives its cells. What
today's code computes otherwise must not be taken over: whoever runs this judges that, and says so in LOG.md. Trained
weights are not in a report; a cell that looks at them trains them again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from unrolled import studies
from unrolled.reading import Json, read_json
from unrolled.report.provenance import plain
from unrolled.studies.cells import Cell, Context
from unrolled.studies.study import Config

STUDIES = Path(__file__).resolve().parents[1] / "docs/studies"


def take_over(report: Mapping[str, Any], name: str, store: Path) -> tuple[int, list[str]]:
    """Put the rows of a report into a store.

    Args:
        report: as `report.json` has it.
        name: of the study.
        store: the folder.

    Returns:
        how many rows were taken over, and the class of each that no cell of the study's settings has the columns of.

    Raises:
        ValueError: the report has no rows.
    """
    if "rows" not in report["results"]:
        raise ValueError(f"{name}: its report is of a time when reports held no rows; compute it anew")
    study = studies.load(name)
    config = configuration(study.config, report["provenance"]["config"])
    rows = list(report["results"]["rows"])
    for cell in dict.fromkeys(study.cells(config)):
        columns = plain(cell.columns)
        row = next((row for row in rows if row["cell"] == type(cell).__name__ and columns.items() <= row.items()), None)
        if row is not None:
            rows.remove(row)
            result = {key.removeprefix("result."): row[key] for key in row if key not in {*columns, "cell", "seconds"}}
            _keep(cell, Context(store=store), result, row["seconds"])
    return len(report["results"]["rows"]) - len(rows), [row["cell"] for row in rows]


def configuration(kind: type[Config], recorded: Mapping[str, Any]) -> Config:
    """The settings of a report; folders, on which no cell's name depends, are the defaults."""
    folders = {name for name, hint in get_type_hints(kind).items() if "Path" in str(hint)}
    known = {field.name for field in dataclasses.fields(kind)} - folders
    return kind(**{name: _tuples(value) for name, value in recorded.items() if name in known})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _keep(cell: Cell, context: Context, result: Json, seconds: float) -> None:
    path = cell.file(context, ".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"key": cell.key, "seconds": seconds, "result": result}), encoding="utf-8")


def main() -> None:
    """Take over, and say what was left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--kept", type=Path, required=True)
    arguments = parser.parse_args()
    taken, left = take_over(read_json(STUDIES / arguments.name / "report.json"), arguments.name, arguments.kept)
    print(f"{taken} rows of {arguments.name} in {arguments.kept}", *sorted({f"not {kind}" for kind in left}), sep=", ")


if __name__ == "__main__":
    main()
