"""Codes of `crate-codes` against their definitions, what a splice does, and how the answer follows from the claims."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from unrolled.studies.cells import Context, Row
from unrolled.studies.crate.codes import STUDY, claims
from unrolled.studies.crate.codes.cells import Agreement, Coder, Codes, CodesConfig, codes_of, pairs, tokens_of
from unrolled.studies.kinds import build
from unrolled.studies.pictures import pictures
from unrolled.studies.results import Results


def tiny(folder: Path, **changes: Any) -> CodesConfig:
    given: dict[str, Any] = {"data": "digits", "seeds": (0, 1), "images": 128, "workers": 1, "fitted": 50, "tested": 50}
    given |= {"steps": 3, "ks": (4, 16), "wide": 96}
    return CodesConfig(**{**given, "kept": folder / "kept", "out": folder / "out", **changes})


def test_a_coder_keeps_the_largest_entries_and_reads_them_out_as_least_squares_does() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(200, 6, generator=generator).double() @ torch.randn(6, 6, generator=generator).double() + 2
    for turn in (None, 5):
        coder = Coder(6, 2, turn=turn).double().fit(tokens)
        codes = coder.encode(tokens)
        turned = tokens @ coder.rotation
        assert (codes != 0).sum(1).tolist() == [2] * 200
        assert torch.equal(codes.abs().amax(1), turned.abs().amax(1))
        torch.testing.assert_close(coder.rotation @ coder.rotation.mT, torch.eye(6).double(), rtol=0, atol=1e-6)
        design = torch.cat([codes, torch.ones(200, 1).double()], 1)
        best = design @ torch.linalg.lstsq(design, tokens).solution
        torch.testing.assert_close(coder.decode(codes), best, rtol=1e-3, atol=1e-3)
    whole = Coder(6, 6).double().fit(tokens)
    torch.testing.assert_close(whole.decode(whole.encode(tokens)), tokens, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[CodesConfig, dict[str, Any]]:
    """A run of the study."""
    config = tiny(tmp_path_factory.mktemp("codes"))
    STUDY.run(config)
    return config, json.loads((config.out / "report.json").read_text(encoding="utf-8"))  # type: ignore[operator]


def test_the_study_fits_splices_and_matches(study: tuple[CodesConfig, dict[str, Any]]) -> None:
    config, record = study
    rows = record["results"]["rows"]
    codes = [row for row in rows if row["cell"] == "Codes"]
    assert {(row["kind"], bool(row["images"]), row["sort"]) for row in codes} == {
        *((kind, True, sort) for kind in ("crate", "vit") for sort in ("own", "random", "autoencoder")),
        *(("crate", False, sort) for sort in ("own", "autoencoder")),
    }
    for row in codes:
        assert row["variance"] <= 1
        assert 0 < row["used"] <= 1
        assert 0 <= row["shuffled"] < 0.5
    # ISTA sets entries to 0, and more codes rebuild more
    own = {row["k"]: row for row in codes if row["kind"] == "crate" and row["sort"] == "own" and row["images"]}
    assert 0 < own[4]["nonzero"] < 96
    assert own[4]["variance"] < own[16]["variance"]
    assert sum(row["cell"] == "Agreement" for row in rows) == len(list(pairs(config))) == 4 + 4 + 4
    assert all(claim["verdict"] == "not judged" for claim in record["claims"])
    assert STUDY.question not in record["summary"]  # which stands beside it


def test_a_splice_of_the_true_tokens_loses_nothing(study: tuple[CodesConfig, dict[str, Any]]) -> None:
    config, _ = study
    cell = codes_of(config, config.network("crate", "digits", 0), "own", 96)
    context = config.context
    model = cell.network.load(context)
    test = cell.tests(context)
    tokens = tokens_of(model, test, config.layer, context)
    assert cell._loss(model, test, context, tokens) == cell._loss(model, test, context, None)
    result = cell.compute(context)
    # all codes are the token itself, but for the rounding of the regression
    assert result["variance"] == pytest.approx(1, abs=1e-3)
    assert result["plain"] == 1
    loaded = cell.load(context)
    assert torch.equal(loaded.encode(tokens), tokens)


def test_tokens_are_those_that_leave_the_layer() -> None:
    model = build(SimpleNamespace(kind="crate", seed=0), classes=10, channels=1, side=8).eval()
    shown = pictures("digits", "test", Path("nowhere")).first(3)
    tokens = tokens_of(model, shown, 1, Context())
    assert tokens.shape == (3, 17, 96)
    assert float(tokens.min()) == 0


def test_the_answer_follows_from_the_claims(tmp_path: Path) -> None:
    config = tiny(tmp_path, budget="cpu", seeds=(0, 1, 2))

    def said(own: tuple[float, float, float], agree: float) -> str:
        rows: list[Row[Any]] = []
        for seed in config.seeds:
            for sort, level in (("own", own), ("autoencoder", (0.5, 0.5, 0.5))):
                cell = codes_of(config, config.network("crate", "digits", seed), sort, config.k)  # type: ignore[arg-type]
                values = dict(zip(("variance", "recovered", "selectivity"), level, strict=True))
                rows.append(
                    Row(cell, {name: value + 0.001 * seed * (sort == "own") for name, value in values.items()}, 1.0)
                )
        for number, cell in enumerate(pairs(config)):
            level = agree if cell.pair[0].sort == "own" else 0.3
            rows.append(Row(cell, {"correlation": level + 0.001 * number, "chance": 0.1}, 1.0))
        return claims.answer(Results(rows), config)

    assert "Yes" in said((0.9, 0.9, 0.9), 0.9)
    assert "No: they are behind in rebuilding tokens, though" in said((0.1, 0.9, 0.9), 0.9)
    assert "No: they are behind in agreement between seeds" in said((0.9, 0.9, 0.9), 0.1)
    assert "Undecided: the intervals of selectivity" in said((0.9, 0.9, 0.4995), 0.9)
    assert claims.answer(Results([]), config) == "That was not run."  # without the question, which the page has


def test_pairs_differ_in_what_they_say(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    cells = list(pairs(config))
    sorts = [cell.sort for cell in cells]
    assert (sorts.count("draw"), sorts.count("seed"), sorts.count("kind")) == (4, 4, 4)
    assert all(isinstance(each, Codes) and each.k == config.k for cell in cells for each in cell.pair)
    assert all(cell.pair[0] != cell.pair[1] for cell in cells)
    assert isinstance(cells[0], Agreement)


@pytest.mark.parametrize("changes", [{"ks": (8,)}, {"ks": (8, 4)}, {"ks": (4, 97)}, {"layer": 3}])
def test_bad_settings_are_refused_by_name(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        tiny(tmp_path, **changes)
