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
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from unrolled import studies
from unrolled.reading import Json, read_json
from unrolled.report.provenance import plain
from unrolled.studies.cells import Cell, Context
from unrolled.studies.study import Config

STUDIES = Path(__file__).resolve().parents[1] / "docs/studies"


def take_over(report: Mapping[str, Any], name: str, store: Path) -> tuple[int, Counter[str]]:
    """Put the rows of a report into a store.

    Args:
        report: as `report.json` has it.
        name: of the study.
        store: the folder.

    Returns:
        how many rows were taken over, and how many of each class were left, since no cell of the study's settings has
        their columns. Of a report of before 30 November 2026, in which a result could hide a column of its name,
        classes of which a row is left are left whole.

    Raises:
        ValueError: the report has no rows.
    """
    if "rows" not in report["results"]:
        raise ValueError(f"{name}: its report is of a time when reports held no rows; compute it anew")
    study = studies.load(name)
    config = configuration(study.config, report["provenance"]["config"])
    rows, found = list(report["results"]["rows"]), []
    # those with most columns first: the columns of an untrained network are among those of the same one trained
    for cell in sorted(dict.fromkeys(study.cells(config)), key=lambda cell: -len(cell.columns)):
        columns = plain(cell.columns)
        row = next((row for row in rows if row["cell"] == type(cell).__name__ and columns.items() <= row.items()), None)
        if row is not None:
            rows.remove(row)
            found.append((cell, {key: row[key] for key in row if key not in {*columns, "cell"}}))
    hidden = set() if "missing" in report["results"] else {row["cell"] for row in rows}
    taken = [(cell, result) for cell, result in found if type(cell).__name__ not in hidden]
    for cell, result in taken:
        seconds = result.pop("seconds")
        named = {key.removeprefix("result."): value for key, value in result.items()}
        _keep(cell, Context(store=store), named, seconds)
    left = Counter(row["cell"] for row in rows)
    left.update(type(cell).__name__ for cell, _ in found if type(cell).__name__ in hidden)
    return len(taken), left


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
    try:
        report = read_json(STUDIES / arguments.name / "report.json")
        taken, left = take_over(report, arguments.name, arguments.kept)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    counts = [f"{count} of {kind} left" for kind, count in left.items()]
    print(", ".join([f"{taken} rows of {arguments.name} in {arguments.kept}", *counts]))


if __name__ == "__main__":
    main()
