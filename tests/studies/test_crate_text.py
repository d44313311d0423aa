"""Language models of the family at one size: the study runs, goes on where it stopped, and its controls hold."""

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
from unrolled.studies import crate_text_cells
from unrolled.studies.crate_text import MASKED_MODELS, MODELS, WIDER, Config, plan, run
from unrolled.studies.crate_text_cells import Job, chosen, held_out, kept, record
from unrolled.studies.crate_text_models import build, model_config, operations, parameters
from unrolled.studies.crate_text_ngrams import LONGEST, NGrams
from unrolled.studies.crate_text_report import _by_trials, _falling

TINY: dict[str, Any] = {
    "seeds": (0, 1),
    "seeds_slow": 1,
    "seeds_masked": 1,
    "depth": 2,
    "dim": 16,
    "heads": 2,
    "length": 24,
    "batch_size": 2,
    "steps": 3,
    "trial_steps": 1,
    "masked_steps": 2,
    "masked_trial_steps": 1,
    "points": 1,
    "early": 2,
    "late": 18,
    "window": 4,
    "rates": (3e-3, 1e-2),
    "test_bytes": 400,
    "val_bytes": 200,
    "workers": 1,
}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    lines = [f"to be or not to be, said number {i}, that is the question of {i % 7}" for i in range(300)]
    (tmp_path / "tinyshakespeare.txt").write_text("\n".join(lines))
    return tmp_path


def test_the_study_reports_every_model_beside_its_controls_and_does_not_train_twice(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(**TINY, data_dir=corpus, out=tmp_path / "out")
    lines: list[str] = []
    report = run(config, on_progress=lines.append)
    trained = 5 * 2 + 1 + 2  # five models with two seeds, MesaNet with one, two masked ones
    assert len(lines) == 8 * 4 + trained + 6
    results = json.loads((tmp_path / "out" / "report.json").read_text())["results"]
    assert len(results["cells"]) == trained
    for cell in results["cells"]:
        chosen_settings = results["chosen"][cell["model"]]
        assert cell["rate"] == chosen_settings["rate"]
        losses = [t["validation"][-1]["loss"] for t in results["trials"] if t["model"] == cell["model"]]
        assert len(losses) == 4
        if cell["model"] in MODELS:
            assert len(cell["test"]["curve"]) == 24
            assert cell["sample"]["text"]
    assert {cell["model"] for cell in results["shuffled"]} == set(MODELS)
    ngrams = results["baselines"]["ngrams"]
    assert ngrams["5"]["loss"] < ngrams["2"]["loss"] < ngrams["1"]["loss"] < math.log(256)
    assert results["baselines"]["masked"]["loss"] < math.log(256)
    page = (tmp_path / "out" / "report.html").read_text()
    for words in (*MODELS, *MASKED_MODELS, "unigram counts", "trained on shuffled", "numbers remembered"):
        assert words in page
    assert len(report.claims) == 7
    monkeypatch.setattr(crate_text_cells, "_train", None)
    assert run(config).results == report.results


@pytest.mark.parametrize("dim", [64, 96])
def test_models_of_one_kind_have_equal_parameters_without_embeddings(dim: int) -> None:
    config = Config(dim=dim)
    for models in (MODELS, MASKED_MODELS):
        counts = [parameters(build(config, model))["without_embeddings"] for model in models if model != WIDER]
        assert max(counts) < 1.03 * min(counts)
    assert model_config(config, "GPT-2").dim == dim
    assert model_config(config, "CRATE-GPT").dim == 2 * dim


@pytest.mark.parametrize("dim", [64, 96])
def test_the_wider_gpt2_has_the_operations_of_crate_and_not_its_parameters(dim: int) -> None:
    config = Config(dim=dim)
    wide, crate, narrow = (build(config, model) for model in (WIDER, "CRATE-GPT", "GPT-2"))
    assert operations(wide, config.length) == pytest.approx(operations(crate, config.length), rel=0.05)
    assert parameters(wide)["all"] > parameters(narrow)["all"]
    assert operations(crate, config.length) > operations(narrow, config.length)


@pytest.mark.parametrize("model", [WIDER, "CRATE-GPT"])
def test_a_seed_gives_the_same_weights_whether_or_not_the_width_is_known(model: str) -> None:
    first = build(Config(dim=40), model, seed=1).state_dict()
    again = build(Config(dim=40), model, seed=1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_counted_parameters_leave_out_the_tables_alone() -> None:
    config = Config(dim=64)
    counts = parameters(build(config, "GPT-2"))
    assert counts["all"] - counts["without_embeddings"] == 64 * (256 + config.length)
    counts = parameters(build(config, "BERT"))
    assert counts["all"] - counts["without_embeddings"] == 64 * (257 + config.length + 1)


def test_the_scale_of_the_tables_is_what_was_asked_for_and_the_rest_is_not_touched() -> None:
    one: Any = build(Config(), "CRATE-GPT", table_std=0.02)
    other: Any = build(Config(), "CRATE-GPT", table_std=0.2)
    assert other.embed.weight.std().item() == pytest.approx(0.2, rel=0.05)
    assert other.positions.weight.std().item() == pytest.approx(0.2, rel=0.05)
    torch.testing.assert_close(one.embed.weight * 10, other.embed.weight)
    assert torch.equal(one.blocks[0].ista.dictionary, other.blocks[0].ista.dictionary)


def test_the_trial_with_the_lowest_validation_loss_is_chosen_and_kept(corpus: Path, tmp_path: Path) -> None:
    config = Config(**{**TINY, "trial_steps": 12}, data_dir=corpus, out=tmp_path / "out")
    trials = [Job(model="GPT-2", rate=rate) for rate in (1e-6, 1e-2)]
    assert not any(kept(config, job) for job in trials)
    assert chosen(config, trials) == trials[1]
    assert all(kept(config, job) for job in trials)
    assert not kept(Config(**{**TINY, "trial_steps": 13}, data_dir=corpus, out=tmp_path / "out"), trials[0])


def test_no_model_sees_the_byte_it_predicts(corpus: Path, tmp_path: Path) -> None:
    config = Config(**{**TINY, "trial_steps": 80, "batch_size": 8}, data_dir=corpus, out=tmp_path / "out")
    rows = held_out(config, torch.arange(400) % 256)
    assert rows.shape == (16, 25)
    for model in MODELS:
        network = build(config, model).eval()
        changed = rows[:1, :-1].clone()
        changed[0, 12] = 255
        with torch.no_grad():
            difference = (network(rows[:1, :-1]) - network(changed)).abs().amax(-1)[0]
        assert float(difference[:12].max()) < 1e-5
        assert float(difference[12:].max()) > 1e-5
    found = record(config, Job(model="GPT-2", rate=1e-2, part="shuffled"))
    text = ByteTokenizer().encode((corpus / "tinyshakespeare.txt").read_text())
    share = torch.bincount(text, minlength=256).double() / len(text)
    entropy = float(-(share[share > 0] * share[share > 0].log()).sum())
    assert found["test"]["loss"] > entropy - 0.1


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


def test_how_many_curves_still_fall_is_counted_and_not_said_of_one_look() -> None:
    def cells(*losses: float) -> dict[str, list[dict[str, Any]]]:
        return {model: [{"validation": [{"loss": loss} for loss in losses]}] for model in MODELS}

    assert _falling(cells(3.0, 2.0)).endswith(f"of {len(MODELS)} of {len(MODELS)} models was still falling")
    assert "of 1 of" in _falling({**cells(2.0, 3.0), "ToST": cells(2.0, 1.0)["ToST"]})
    assert _falling(cells(3.0)) == ""


def test_a_wider_model_that_is_behind_is_put_down_to_its_settings() -> None:
    def cells(wide: float, narrow: float) -> dict[str, list[dict[str, Any]]]:
        return {
            name: [{"test": {"loss": loss}, "rate": rate}]
            for name, loss, rate in ((WIDER, wide, 0.003), ("GPT-2", narrow, 0.01))
        }

    assert "0.003 and 0.01" in _by_trials(cells(2.0, 1.0))
    assert _by_trials(cells(1.0, 2.0)) == ""


def test_the_slow_model_gets_fewer_seeds() -> None:
    counts = {model: sum(name == model for name, _ in plan(Config())) for model in (*MODELS, *MASKED_MODELS)}
    assert counts == {**dict.fromkeys(MODELS, 3), "MesaNet": 2, "BERT": 2, "CRATE-BERT": 2}


def test_bad_settings_and_missing_corpora_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="late"):
        Config(late=120, length=128)
    with pytest.raises(ValueError, match="rates"):
        Config(rates=())
    with pytest.raises(ValueError, match="steps"):
        Config(steps=0)
    with pytest.raises(MissingData, match="data_dir"):
        run(Config(**TINY, data_dir=tmp_path, out=tmp_path / "out"))
    assert studies.load("crate-text").config.of_budget("quick").workers == 1
