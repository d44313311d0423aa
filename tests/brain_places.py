"""The table of `unrolled brain`: what docs/studies/platonic-brain/report.json measured, by target."""

from __future__ import annotations

import json
from typing import Any

TARGETS = {"things": "things", "colours": "colours_by_name"}
"""Of names, as the report calls them -> key of `unrolled.subjects.people.Target`."""
REFERENCES = {"CIELAB"}  # no model


def places(report: dict[str, Any]) -> str:
    """The text of `unrolled/commands/brain/places.json`, from the tables of the study's report."""
    tables = {
        section["title"]: [
            dict(zip(block["columns"], row, strict=True)) for row in block["rows"] if row[-1] != "not run"
        ]
        for section in report["sections"]
        for block in section["blocks"]
        if block["kind"] == "table"
    }
    networks = tables["Every network"]
    targets = {
        key: [{"name": row["what"], "group": _group(row), "score": float(row[column])} for row in networks]
        for key, column in (("human_it", "Spearman"), ("monkey_it", "monkey IT"))
    }
    targets["monkey_it"] = [row for row in targets["monkey_it"] if row["name"] != "monkeyIT"]
    for row in tables["Names beside human judgement"]:
        group = "control" if row["vectors"] in REFERENCES else "text model"
        entry = {"name": row["vectors"], "group": group, "score": float(row["Spearman"])}
        targets.setdefault(TARGETS[row["what"]], []).append(entry)
    record = {"study": "platonic-brain", "created": report["provenance"]["created"], "targets": targets}
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"


def _group(row: dict[str, str]) -> str:
    """Of a network: that of the study, but for those of the zoo that were not trained, which its table has beside
    those that were."""
    return "untrained" if row["group"].startswith("zoo") and "-random-" in row["what"] else row["group"]
