"""Language models of the family at one size: every model is reported, its settings are chosen, its controls hold."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unrolled import studies
from unrolled.data.tokens import ByteTokenizer
from unrolled.errors import MissingData
from unrolled.models.encoder import parameters
from unrolled.report import Report
from unrolled.studies.cells import Cell, Row, computed
from unrolled.studies.crate.text import STUDY
from unrolled.studies.crate.text.cells import Cost, Counted, CrateTextConfig, Filled, Sized, Written, cells
from unrolled.studies.crate.text.claims import View
from unrolled.studies.crate.text.frames import MASKED_MODELS, MODELS, WIDER, frame_of, operations
from unrolled.studies.crate.text.ngrams import LONGEST, NGrams
from unrolled.studies.crate.text.report import put_down_to_settings, still_falling
from unrolled.studies.language import Predicted, excerpts, new_model
from unrolled.studies.results import Results

TINY: dict[str, Any] = {
    **{"seeds": (0, 1), "seeds_slow": 1, "seeds_masked": 1, "depth": 2, "dim": 16, "heads": 2, "length": 24},
    **{"batch_size": 2, "steps": 3, "trial_steps": 1, "masked_steps": 2, "masked_trial_steps": 1, "points": 1},
    **{"early": 2, "late": 18, "window": 4, "rates": (3e-3, 1e-2), "test_bytes": 400, "val_bytes": 200, "workers": 1},
}


def tiny(folder: Path, **changes: Any) -> CrateTextConfig:
    return CrateTextConfig(**{**TINY, "data_dir": folder, "kept": folder / "kept", "out": folder / "out", **changes})


def model_of(name: str, *, seed: int = 0, table_std: float = 0.02, dim: int = 64) -> Any:
    return new_model(frame_of(name, 4, dim, 4, 128), seed=seed, table_std=table_std)


@pytest.mark.slow
def test_the_study_reports_every_model_beside_its_controls(corpus: Path) -> None:
    assert studies.load("crate-text") is STUDY
    report = STUDY.run(tiny(corpus, table_stds=(0.02,)))
    rows = json.loads((corpus / "out" / "report.json").read_text())["results"]["rows"]
    of: dict[str, list[Any]] = {}
    for row in rows:
        of.setdefault(row["cell"], []).append(row)
    full = [row for row in of["Sized"] if row["trial_steps"]]
    assert len(full) == 5 * 2 + 1 + 2  # five models with two seeds, MesaNet with one, two masked ones
    assert len(of["Sized"]) == len(full) + 8 * 2
    for row in full:
        trials = [t for t in of["Sized"] if t["model"] == row["model"] and not t["trial_steps"]]
        best = min(trials, key=lambda trial: trial["validation"][-1]["loss"])
        assert [[row["rate"]], [row["table_std"]]] == [best["rates"], best["table_stds"]]
    assert len(of["Filled"]) == 2 * 2
    assert len(of["Predicted"]) == 11 * 3 + 6  # untrained, read shuffled; trained on shuffled
    assert all(len(row["curve"]) == 24 for row in of["Predicted"])
    assert {row["model"] for row in of["Predicted"] if row["shuffled"]} == set(MODELS)
    assert all(row["text"] for row in of["Written"])
    (counted,) = of["Counted"]
    ngrams = counted["ngrams"]
    assert ngrams["5"]["loss"] < ngrams["2"]["loss"] < ngrams["1"]["loss"] < math.log(256)
    assert counted["masked"]["loss"] < math.log(256)
    page = (corpus / "out" / "report.html").read_text()
    for words in (*MODELS, *MASKED_MODELS, "unigram counts", "trained on shuffled", "numbers remembered"):
        assert words in page
    assert len(report.claims) == 7
    assert "not run" not in {claim.measured for claim in report.claims}


def test_what_is_not_kept_is_not_run(corpus: Path) -> None:
    config = tiny(corpus, only_kept=True)
    computed(Counted(corpus=config.corpus, length=24, test_bytes=400, windows=config.windows), config.context)
    report = STUDY.run(config)
    assert {claim.measured for claim in report.claims} == {"not run"}
    sections = {section["title"]: section["blocks"] for section in report.to_dict()["sections"]}
    assert sections["Every model"][1]["rows"][0] == ["GPT-2", *["not run"] * 9]
    assert sections["Every model"][1]["rows"][-1][0] == "5-gram counts"
    assert len(sections["By position and by step"][1]["panels"]) == 1


@pytest.mark.parametrize("dim", [64, 96])
def test_models_of_one_kind_have_equal_parameters_without_embeddings(dim: int) -> None:
    for models in (MODELS, MASKED_MODELS):
        counts = [parameters(model_of(name, dim=dim))["without_embeddings"] for name in models if name != WIDER]
        assert max(counts) < 1.03 * min(counts)
    assert frame_of("GPT-2", 4, dim, 4, 128).dim == dim
    assert frame_of("CRATE-GPT", 4, dim, 4, 128).dim == 2 * dim


@pytest.mark.parametrize("dim", [64, 96])
def test_the_wider_gpt2_has_the_operations_of_crate_and_not_its_parameters(dim: int) -> None:
    wide, crate, narrow = (model_of(name, dim=dim) for name in (WIDER, "CRATE-GPT", "GPT-2"))
    assert operations(wide, 128) == pytest.approx(operations(crate, 128), rel=0.05)
    assert parameters(wide)["all"] > parameters(narrow)["all"]
    assert operations(crate, 128) > operations(narrow, 128)


@pytest.mark.parametrize("name", [WIDER, "CRATE-GPT"])
def test_a_seed_gives_the_same_weights_whether_or_not_the_width_is_known(name: str) -> None:
    first, again = (model_of(name, dim=40, seed=1).state_dict() for _ in range(2))
    assert all(torch.equal(first[part], again[part]) for part in first)


def test_counted_parameters_leave_out_the_tables_alone() -> None:
    counts = parameters(model_of("GPT-2"))
    assert counts["all"] - counts["without_embeddings"] == 64 * (256 + 128)
    counts = parameters(model_of("BERT"))
    assert counts["all"] - counts["without_embeddings"] == 64 * (257 + 128 + 1)


def test_the_scale_of_the_tables_is_what_was_asked_for_and_the_rest_is_not_touched() -> None:
    one, other = (model_of("CRATE-GPT", table_std=std) for std in (0.02, 0.2))
    assert other.embed.weight.std().item() == pytest.approx(0.2, rel=0.05)
    assert other.positions.weight.std().item() == pytest.approx(0.2, rel=0.05)
    torch.testing.assert_close(one.embed.weight * 10, other.embed.weight)
    assert torch.equal(one.blocks[0].ista.dictionary, other.blocks[0].ista.dictionary)


def test_the_trial_with_the_lowest_validation_loss_is_chosen(corpus: Path) -> None:
    config = tiny(corpus, trial_steps=12, rates=(1e-6, 1e-2), table_stds=(0.02,))
    network = Sized(**config.columns("GPT-2"), seed=1)
    assert [(trial.seed, trial.steps, trial.rates) for trial in network.trials] == [(0, 12, (1e-6,)), (0, 12, (1e-2,))]
    for trial in network.trials:
        computed(trial, config.context)
    result = computed(network, config.context).result
    assert (result["rate"], result["table_std"]) == (1e-2, 0.02)


def test_no_model_sees_the_byte_it_predicts(corpus: Path) -> None:
    config = tiny(corpus, trial_steps=80, batch_size=8)
    rows = excerpts(torch.arange(400) % 256, 24, 400)
    assert rows.shape == (16, 25)
    for name in MODELS:
        network = new_model(frame_of(name, 2, 16, 2, 24), table_std=0.02).eval()
        changed = rows[:1, :-1].clone()
        changed[0, 12] = 255
        with torch.no_grad():
            difference = (network(rows[:1, :-1]) - network(changed)).abs().amax(-1)[0]
        assert float(difference[:12].max()) < 1e-5
        assert float(difference[12:].max()) > 1e-5
    columns = {**config.columns("GPT-2", "shuffled"), "rates": (1e-2,), "table_stds": (0.02,), "trial_steps": 0}
    network = Sized(**columns, seed=0)
    computed(network, config.context)
    result = computed(Predicted(network=network, test_bytes=400, windows=config.windows), config.context).result
    text = ByteTokenizer().encode((corpus / "tinyshakespeare.txt").read_text())
    share = torch.bincount(text, minlength=256).double() / len(text)
    entropy = float(-(share[share > 0] * share[share > 0].log()).sum())
    assert result["loss"] > entropy - 0.1


@settings(max_examples=20, deadline=None)
@given(
    text=st.lists(st.integers(0, 4), min_size=LONGEST + 1, max_size=60),
    row=st.lists(st.integers(0, 5), min_size=3, max_size=9),
    order=st.integers(1, LONGEST),
)
def test_n_gram_probabilities_sum_to_one(text: list[int], row: list[int], order: int) -> None:
    counted = NGrams(torch.tensor(text))
    rows = torch.tensor(row).repeat(256, 1)
    rows[:, -1] = torch.arange(256)
    assert float(counted.losses(rows, order)[:, -1].neg().exp().sum()) == pytest.approx(1)


def test_n_grams_are_witten_bells() -> None:
    counted = NGrams(torch.tensor([0, 1, 0, 1, 0, 2, 0]))
    unigram = [(n + 3 / 256) / 10 for n in (4, 2, 1)]
    losses = counted.losses(torch.tensor([[0, 1], [1, 0], [0, 0]]), 2)[:, 0]
    # after 0 came 1, 1, 2; after 1 came 0, 0
    wanted = [(2 + 2 * unigram[1]) / 5, (2 + 1 * unigram[0]) / 3, 2 * unigram[0] / 5]
    torch.testing.assert_close(losses.neg().exp(), torch.tensor(wanted).double())
    with pytest.raises(ValueError, match="order"):
        counted.losses(torch.tensor([[0, 1]]), LONGEST + 1)


def made_up(cell: Cell, losses: dict[str, float]) -> Row[Any]:
    """A model's loss in bits, a little worse for every seed, which falls at the last look."""
    columns = cell.columns
    loss = losses.get(str(columns.get("model")), 3.0) + 0.01 * columns.get("seed", 0)
    found: dict[str, Any] = {"loss": loss * math.log(2), "score": -0.1, "accuracy": 0.1, "curve": [loss] * 128}
    if isinstance(cell, Sized):
        looks = [{"step": step, "loss": loss + 1 / step} for step in range(1, 3)]
        found = {"rate": columns["rates"][0], "table_std": 0.02, "width": 8, "validation": looks}
        found["parameters"] = {"all": 9, "without_embeddings": 5}
    elif isinstance(cell, Written):
        found = {"prompt": "to be", "text": "or\nnot"}
    return Row(cell, found, 1.0)


def test_claims_compare_models_of_one_seed_and_the_worst_decides_over_all(tmp_path: Path) -> None:
    config = CrateTextConfig(data_dir=tmp_path)
    losses = {"GPT-2": 3.0, "CRATE-GPT": 3.5, "CRATE-alpha": 3.4, "ToST": 3.6, "MesaNet": 2.5, WIDER: 3.3}
    rows = [made_up(cell, losses) for cell in dict.fromkeys(cells(config)) if not isinstance(cell, Counted | Cost)]
    results = Results(rows)
    claims = [claim.judge(results, config) for claim in STUDY.claims]
    same = "controls do the same"  # a GPT-2 is behind a narrower one too
    verdicts = [same, "not judged", same, same, "not reproduced", "not judged", "not judged"]
    assert [claim.verdict for claim in claims] == verdicts  # a lead of half a bit is not level
    assert claims[0].measured == "0.500 ± 0.000 (3 seeds)"
    assert claims[4].measured == "-0.500 ± 0.000 (2 seeds)"
    assert claims[5].measured.startswith("-0.144 ± 0.000 (GPT-2, 3 seeds); -0.144 ± 0.000 (CRATE-GPT, 3 seeds)")
    view = View(results, config)
    assert still_falling(view).endswith("of 6 of 6 models was still falling")
    assert "0.001 and 0.001" in put_down_to_settings(view)
    ahead = Results(made_up(row.cell, losses | {WIDER: 2.0}) for row in rows)
    assert put_down_to_settings(View(ahead, config)) == ""
    assert [STUDY.claims[place].judge(ahead, config).verdict for place in (0, 2, 3)] == ["reproduced"] * 3
    report = Report("t")
    STUDY.report(report, config, results)
    sections = {section["title"]: section["blocks"] for section in report.to_dict()["sections"]}
    assert sections["What they cost"][1]["rows"] == [["not run"] * 6]
    assert sections["What they write"][1]["rows"][0] == ["GPT-2", "or / not"]


def test_nothing_is_said_of_curves_with_one_look(tmp_path: Path) -> None:
    config = CrateTextConfig(data_dir=tmp_path)
    rows = [made_up(cell, {}) for cell in dict.fromkeys(cells(config)) if isinstance(cell, Sized | Predicted)]
    for row in rows:
        if isinstance(row.cell, Sized):
            del row.result["validation"][1:]  # type: ignore[attr-defined]
    assert still_falling(View(Results(rows), config)) == ""


def test_masked_bytes_are_the_same_for_all_and_only_they_count(corpus: Path) -> None:
    config = tiny(corpus)
    for name in MASKED_MODELS:
        network = Sized(**{**config.columns(name, "untrained"), "rates": (1e-2,), "table_stds": (0.02,)}, seed=0)
        for trial in network.trials:
            computed(trial, config.context)
        result = computed(Filled(network=network, test_bytes=400), config.context).result
        assert result["loss"] == pytest.approx(math.log(257), abs=0.3)
        assert 0 <= result["accuracy"] <= 1


def test_the_slow_model_gets_fewer_seeds_and_begins() -> None:
    plan = CrateTextConfig().plan
    counts = {model: sum(name == model for name, _ in plan) for model in (*MODELS, *MASKED_MODELS)}
    assert counts == {**dict.fromkeys(MODELS, 3), "MesaNet": 2, "BERT": 2, "CRATE-BERT": 2}
    assert plan[0] == ("MesaNet", 0)


def test_missing_corpora_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"tinyshakespeare was not found .*; give data_dir="):
        STUDY.run(tiny(tmp_path))
    assert CrateTextConfig.of_budget("quick").workers == 1
