"""Stitching: a network goes on from itself, what is kept is judged beside its controls, and pairs are reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from unrolled.studies.cells import Context, Row, computed
from unrolled.studies.networks import Network
from unrolled.studies.platonic.stitching import STUDY, Stitch, StitchingConfig, Units, cells, kept_accuracy
from unrolled.studies.results import Results


def test_a_network_stitched_to_itself_loses_little_before_any_training(tmp_path: Path) -> None:
    context = Context(store=tmp_path)
    network = Network(kind="cnn-small", data="digits", seed=0, images=5120)
    cell = Stitch(networks=(network, network), cut=1, steps=1, matched=256, tested=200)
    computed(network, context)
    result = computed(cell, context).result
    assert result["reference"] > 0.4
    assert result["regressed"] == pytest.approx(result["reference"], abs=0.05)
    assert cell.sort == "itself"


def test_every_pair_has_its_sort_and_units_are_matched_once() -> None:
    asked = list(cells(StitchingConfig(members="few")))
    stitches = [cell for cell in asked if isinstance(cell, Stitch)]
    sorts = [cell.sort for cell in stitches]
    assert {sort: sorts.count(sort) // 3 for sort in sorts} == {
        "itself": 3, "another seed": 6, "another kind": 4, "untrained": 3
    }  # fmt: skip
    assert {cell.cut for cell in stitches} == {1, 2, 3}
    pairs = [frozenset(cell.names) for cell in asked if isinstance(cell, Units)]
    assert len(pairs) == len(set(pairs)) == 8
    assert len({cell.name for cell in asked}) == len(asked)  # progress tells them apart


def planted(config: StitchingConfig, shares: dict[str, float], *, slope: float = 0.0) -> Results[Any]:
    """Rows that keep so much by sort, and less by `slope` from cut to cut."""
    rows: list[Row[Any]] = []
    for place, cell in enumerate(cells(config)):
        if isinstance(cell, Stitch):
            share = shares[cell.sort] - slope * cell.cut + 0.001 * place
            rows.append(Row(cell, {"regressed": 0.1, "accuracy": 0.8 * share, "reference": 0.8}, 0.0))
        elif isinstance(cell, Units):
            rest = {"mutual": 30, "units": [100, 80], "best": [0.9], "median": 0.5, "threshold": 0.4}
            found = 0 if cell.sort == "untrained" and shares["untrained"] < 0.5 else 20 + place % 3
            rows.append(Row(cell, {"found": found, **rest}, 0.0))
    return Results(rows)


def test_what_is_kept_is_judged_beside_its_controls() -> None:
    config = StitchingConfig(members="few")
    good = {"itself": 1.0, "another seed": 0.97, "another kind": 0.9, "untrained": 0.3}
    claims = [claim.judge(planted(config, good, slope=0.01), config) for claim in STUDY.claims]
    assert [claim.verdict for claim in claims] == ["reproduced", "not judged", "reproduced", "reproduced"]
    bad = {"itself": 1.0, "another seed": 0.4, "another kind": 0.4, "untrained": 0.6}
    claims = [claim.judge(planted(config, bad, slope=-0.01), config) for claim in STUDY.claims]
    assert [claim.verdict for claim in claims] == [
        *("not reproduced", "not judged", "not reproduced", "controls do the same")
    ]
    assert claims[1].why.endswith("not as expected")
    assert kept_accuracy(planted(config, good), "another seed", unit="kind").count == "3 kinds"
    rows = [
        Row(row.cell, {**row.result, "found": 30 * place}, 0.0) if isinstance(row.cell, Units) else row
        for place, row in enumerate(planted(config, good))
    ]
    units = STUDY.claims[3].judge(Results(rows), config)
    assert units.interval is not None
    assert units.interval[0] >= 0, "a count is not negative"
    one = StitchingConfig(members="few", cuts=(2,))
    early = STUDY.claims[2].judge(planted(one, good), one)
    assert (early.verdict, early.measured[:7]) == ("not run", "not run")


def test_stitching_is_reported_by_depth_with_both_controls(tmp_path: Path) -> None:
    config = StitchingConfig.of_budget(
        "quick", images=128, cuts=(1, 2), stitch_steps=1, matched=64, tested=100, units=40, draws=5,
        kept=tmp_path / "kept", out=tmp_path / "out",
    )  # fmt: skip
    report = STUDY.run(config)
    stitched, matched = (section.blocks[-1] for section in report.sections[:2])
    assert {row[0] for row in stitched.rows} == {"itself", "another seed", "another kind", "untrained"}  # type: ignore[union-attr]
    assert len(matched.rows) == 8  # type: ignore[union-attr]
    assert len(report.claims) == 4
