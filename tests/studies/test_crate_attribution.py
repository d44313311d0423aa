"""How `crate-attribution` compares terms with what is lost, and what it says of made-up rows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from unrolled.studies.cells import Row
from unrolled.studies.crate.attribution import STUDY, cells, claims
from unrolled.studies.crate.attribution.cells import AttributionConfig, Terms
from unrolled.studies.crate.causal.cells import Shipped
from unrolled.studies.kinds import build
from unrolled.studies.networks import Network
from unrolled.studies.results import Estimate, Results


def test_terms_that_are_the_loss_agree_and_reactions_are_sized() -> None:
    rng = np.random.default_rng(0)
    term = rng.normal(size=(60, 4))
    same = cells.judged({"term": term, "lost": 2 * term, "held": 2 * term, "random": rng.normal(size=(60, 4))})
    assert same["lost"]["value"] == pytest.approx(1)
    assert same["slope"]["value"] == pytest.approx(2)
    assert same["same_sign"]["value"] == 1
    assert same["attention"]["value"] == 0
    assert same["rest"]["value"] == pytest.approx(1)
    assert abs(same["random"]["value"]) < 0.2
    assert same["random"]["low"] < same["random"]["value"] < same["random"]["high"]
    reacts = cells.agreement({"term": term, "lost": -term, "held": term, "random": term})
    assert reacts["lost"] == pytest.approx(-1)
    assert reacts["gain"] == pytest.approx(2)
    assert reacts["attention"] == pytest.approx(2)


@pytest.mark.parametrize("kind", ["crate", "vit"])
def test_with_no_attention_behind_it_nothing_is_held(kind: str) -> None:
    model = build(SimpleNamespace(kind=kind, seed=0), classes=10, channels=1, side=8).eval()
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    terms, target = cells.explained(model, images)
    lost, random = cells.removed(model, images, target)
    held = cells.removed_with_attention_held(model, images, target)
    layers, heads = len(model.blocks), 4  # type: ignore[arg-type]
    assert terms.shape == lost.shape == random.shape == held.shape == (3, layers, heads)
    np.testing.assert_allclose(lost[:, -1], held[:, -1], atol=1e-5)
    assert np.abs(lost[:, 0] - held[:, 0]).max() > 1e-5
    assert (target == model(images).argmax(1)).all()


def row(network: Any, last: float, first: float) -> Row[Any]:
    def record(value: float) -> dict[str, Any]:
        names = ("lost", "held", "random", "gain", "same_sign", "slope", "attention", "rest")
        return {name: {"value": value, "low": value - 0.01, "high": value + 0.01} for name in names}

    layers = [{"layer": 0, **record(first)}, {"layer": 1, **record(last)}]
    return Row(Terms(network=network, tested=20), {"all": record((last + first) / 2), "layers": layers}, 1.0)


def test_claims_read_networks_and_the_shipped_one() -> None:
    config = AttributionConfig()
    rows = []
    for seed in (0, 1, 2):
        for kind, last in (("crate", 0.9 + 0.01 * seed), ("vit", 0.5)):
            rows.append(row(config.network(kind, "cifar10", seed), last, 0.3))
            rows.append(row(config.network(kind, "cifar10", seed, trained=False), 0.2, 0.2))
    rows.append(row(Shipped(), 0.95, 0.4))
    results = Results(rows)
    own = claims.shipped(results, "layers.-1.lost")
    assert isinstance(own, Estimate)
    assert own.value == 0.95
    places = [claim.came_out(results, config) for claim in claims.CLAIMS]
    assert places[:2] == places[5:7] == ["inside", "inside"]
    assert {claim.judge(results, config).verdict for claim in claims.CLAIMS} <= {"not judged", "not run"}
    other = AttributionConfig(data="digits")
    assert claims.CLAIMS[0].judge(Results([]), other).measured.startswith("`crate_nano_patch4_32.cifar10`")


@pytest.mark.slow
def test_the_study_explains_removes_and_reports(tmp_path: Path) -> None:
    config = AttributionConfig(
        data="digits", seeds=(0,), images=128, workers=1, tested=10, kept=tmp_path / "kept", out=tmp_path / "out"
    )
    report = STUDY.run(config)
    assert "in the last layer" in report.summary
    assert isinstance(next(iter(STUDY.cells(config))), Network)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "CRATE, untrained" in page
    assert "what later attention does" in page
