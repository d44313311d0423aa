"""Token binding: the maps are the layer's, and the report sets trained beside untrained layers, in training too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from unrolled.studies.mesa.binding import STUDY, BindingConfig, attention_maps
from unrolled.studies.mesa.stacks import new_model, recipe, world_of

TINY: dict[str, Any] = {"effort": "quick", "steps": 2, "batch_size": 4, "sequences": 64}


def test_attention_maps_are_causal_and_of_every_head() -> None:
    each = recipe("hybrid", "partial", "quick")
    maps = torch.tensor(attention_maps(new_model(each, 0), world_of(each).sample(300, seed=0).inputs))
    assert maps.shape == (4, 50, 50)
    torch.testing.assert_close(maps.sum(-1), torch.ones(4, 50), atol=5e-3, rtol=0)
    assert float(maps.triu(1).abs().max()) == 0


@pytest.mark.slow
def test_the_report_sets_trained_beside_untrained_layers(tmp_path: Path) -> None:
    config = BindingConfig(seeds=(0, 1), worlds=("full",), out=tmp_path / "out", kept=tmp_path / "kept", **TINY)
    report = STUDY.run(config)
    # two steps bind nothing, and the other world is not run
    assert [claim.verdict for claim in report.claims] == [
        *("not reproduced", "reproduced", "not reproduced", "reproduced"),
        *("not run", "not run"),
    ]
    rows = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["results"]["rows"]
    row = next(row for row in rows if row["kind"] == "softmax")
    assert [entry["step"] for entry in row["training"]] == [0, 1, 2]
    # the token itself is in the residual stream, whatever was trained
    assert row["trained"][0]["score"] > 0.99
    assert row["trained"][0]["control"] < 0.5
    assert next(row for row in rows if row["kind"] == "mesa")["attention"] is None
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "untrained" in page
    assert "head 4" in page
