"""Token binding: the maps are the layer's, and the report sets trained beside untrained layers, in training too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from unrolled import studies
from unrolled.studies.mesa_binding import Config, attention_maps, run
from unrolled.studies.mesa_models import recipe, untrained, world_of

TINY: dict[str, Any] = {"effort": "quick", "steps": 2, "batch_size": 4, "sequences": 64, "workers": 1}


def test_attention_maps_are_causal_and_of_every_head() -> None:
    each = recipe("hybrid", "partial", "quick")
    maps = torch.tensor(attention_maps(untrained(each, 0), world_of(each).sample(300, seed=0).inputs))
    assert maps.shape == (4, 50, 50)
    torch.testing.assert_close(maps.sum(-1), torch.ones(4, 50), atol=5e-3, rtol=0)
    assert float(maps.triu(1).abs().max()) == 0


def test_the_report_sets_trained_beside_untrained_layers(tmp_path: Path) -> None:
    config = Config(seeds=(0,), worlds=("full",), out=tmp_path / "out", models=tmp_path / "models", **TINY)
    report = run(config)
    assert len(report.claims) == 4
    record = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    cell = record["results"]["models"]["full softmax"][0]
    assert [entry["step"] for entry in cell["training"]] == [0, 1, 2]
    # the token itself is in the residual stream, whatever was trained
    assert cell["trained"][0]["score"] > 0.99
    assert cell["trained"][0]["control"] < 0.5
    # two steps bind nothing
    assert report.claims[0].reproduced is False
    assert record["results"]["models"]["full mesa"][0]["attention"] is None
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "untrained" in page
    assert "head 4" in page


def test_bad_settings_are_refused_by_name() -> None:
    for settings_, match in (({"seeds": ()}, "seeds"), ({"kinds": ("linear",)}, "kinds"), ({"worlds": ()}, "worlds")):
        with pytest.raises(ValueError, match=match):
            Config(**settings_)  # type: ignore[arg-type]
    assert studies.load("mesa-binding").config is Config
