"""Alignment against n: scores at fixed k fall, at a fixed share stay, and the twin has the features' moments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from unrolled.studies.cells import Row
from unrolled.studies.platonic.samples import STUDY, Curves, SamplesConfig, cells, curves, gaussian_twin, left
from unrolled.studies.results import Results


def test_the_twin_has_the_features_moments() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4000, 3, generator=generator)
    x, y = z @ torch.randn(3, 4, generator=generator) + 2, z @ torch.randn(3, 5, generator=generator)
    a, b = gaussian_twin(x, y, 40_000)
    assert a.shape == (40_000, 4)
    one, two = torch.cat([x, y], 1), torch.cat([a, b], 1)
    assert torch.allclose(two.mean(0), one.mean(0), atol=0.05)
    assert torch.allclose(two.T.cov(), one.T.cov(), atol=0.15)
    # features that are Gaussian already score as their twin does
    curve = curves(x, y, sizes=(500, 4000), simulated=(4000,), queries=400)
    for words in ("k = 10", "k = n / 100"):
        real, twin = (curve[name][-1]["score"] for name in (words, f"{words}, simulated"))
        assert twin == pytest.approx(real, abs=0.05)


def test_scores_at_fixed_k_fall_and_at_a_fixed_share_stay() -> None:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(6000, 12, generator=generator)
    x, y = (z + 0.5 * torch.randn(6000, 12, generator=generator) for _ in range(2))
    points = curves(x, y, sizes=(600, 6000), simulated=(), queries=500)
    ten, share = ([point["score"] for point in points[words]] for words in ("k = 10", "k = n / 100"))
    assert ten[1] < 0.7 * ten[0]
    assert share[1] > 0.75 * share[0]
    assert [point["n"] for point in points["unbiased CKA"]] == [600, 6000]
    # sizes beyond what is there end at what is there
    assert [point["n"] for point in curves(x[:700], y[:700], (600, 6000), (), 50)["k = 1"]] == [600, 700]


def test_samples_are_reported_against_n_with_chance(tmp_path: Path) -> None:
    config = SamplesConfig.of_budget(
        "quick", images=128, queries=50, simulated=(400,), kept=tmp_path / "kept", out=tmp_path / "out"
    )
    report = STUDY.run(config)
    rows = {row["cell"]: row for row in report.results["rows"]}
    assert list(rows) == [Curves.__name__]
    assert [point["n"] for point in rows["Curves"]["k = 10"]] == [100, 200, 359]
    assert rows["Curves"]["k = 10"][0]["chance"] == pytest.approx(10 / 99)
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    for words in ("untrained CNN and ViT", "Simulated beyond", "What this does not show"):
        assert words in page


def fallen(config: SamplesConfig, *ratios: float, untrained: float = 7.0) -> Results[Any]:
    """Rows whose scores at k = 10 fall to these shares, and at k = n / 100 stay; the untrained pair's may rise."""
    rows = []
    for cell, ratio in zip(cells(config), (*ratios, untrained), strict=True):
        points = {words: [{"n": 100, "score": 0.5}, {"n": 1000, "score": 0.5 * end}]
                  for words, end in (("k = 10", ratio), ("k = n / 100", 1 if ratio < 7 else ratio))}  # fmt: skip
        rows.append(Row(cell, points, 0.0))
    return Results(rows)


def test_the_ratio_is_judged_over_trained_pairs() -> None:
    config = SamplesConfig(data="digits")
    results = fallen(config, 0.1, 0.2, 0.15)
    assert left(results, "k = 10").mean == pytest.approx(0.15)
    claims = [claim.judge(results, config) for claim in STUDY.claims]
    assert [claim.verdict for claim in claims] == ["reproduced", "reproduced"]
    assert claims[0].measured == "0.15 ± 0.05 (0.10, 0.20, 0.15; n from 100 to 1,000)"
    # what an untrained pair does as well is not the trained ones'
    as_well = STUDY.claims[0].judge(fallen(config, 0.1, 0.2, 0.15, untrained=0.15), config)
    assert (as_well.verdict, as_well.why) == ("controls do the same", "0.15")
    stays = STUDY.claims[1].judge(fallen(config, 0.1, 0.2, 0.15, untrained=0.15), config)
    assert (stays.verdict, stays.why) == ("controls do the same", "1.00")
    # pairs that disagree about it decide nothing
    assert STUDY.claims[0].judge(fallen(config, 0.1, 0.9, 0.3), config).verdict == "undecided"
