"""Validation on a part of the held-out data: how much, what it must not change, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train_helpers import Crash, assert_same_run, crash_at, final_state

from unrolled import cli
from unrolled.data.tokens import load_tokenizer
from unrolled.models.encoder import load_language_model
from unrolled.train import TextConfig, fit, load_config, state
from unrolled.train.checkpoint import checkpoints
from unrolled.train.run import drawn_evenly
from unrolled.train.text import evaluate_text, open_corpus


def trained_weights(run: Path) -> dict[str, torch.Tensor]:
    state = load_file(checkpoints(run / "checkpoints")[0] / "state.safetensors")
    return {name: tensor for name, tensor in state.items() if name.startswith(("model/", "optimizer/"))}


def test_only_the_validation_is_shortened_and_training_stays_the_same(config, splits, tmp_path):
    all_of_it, part = (
        fit(config(eval_samples=samples, out=tmp_path / str(samples)), data=splits) for samples in (None, 6)
    )
    images = [{record["images"] for record in run.metrics if record["split"] == "val"} for run in (all_of_it, part)]
    assert images == [{16}, {6}]
    assert part.test["images"] == 24
    one, other = trained_weights(all_of_it.run_dir), trained_weights(part.run_dir)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_as_many_samples_as_there_are_is_all_of_them(config, splits, tmp_path):
    runs = [fit(config(eval_samples=samples, out=tmp_path / str(samples)), data=splits) for samples in (None, 16)]
    assert final_state(runs[0].run_dir)[2] == final_state(runs[1].run_dir)[2]


def test_a_run_older_than_the_setting_resumes_to_the_same_bits(config, splits, tmp_path, monkeypatch):
    straight = fit(config(out=tmp_path / "straight"), data=splits)
    with monkeypatch.context() as before:
        plain = state.as_plain
        before.setattr(state, "as_plain", lambda c: {k: v for k, v in plain(c).items() if k != "eval_samples"})
        fit(config(out=tmp_path / "old", max_steps=8), data=splits)
    assert "eval_samples" not in checkpoints(tmp_path / "old" / "checkpoints")[0].joinpath("state.json").read_text()
    fit(config(out=tmp_path / "old", resume="auto"), data=splits)
    state_a, state_b = (trained_weights(folder) for folder in (straight.run_dir, tmp_path / "old"))
    assert all(torch.equal(state_a[name], state_b[name]) for name in state_a)


def test_a_run_on_a_part_resumes_to_the_same_bits(config, splits, tmp_path):
    fit(config(eval_samples=5, out=tmp_path / "straight"), data=splits)
    broken = config(eval_samples=5, out=tmp_path / "broken", resume="auto")
    with pytest.raises(Crash):
        fit(broken, data=splits, callbacks=[crash_at(6)])
    with pytest.raises(ValueError, match="eval_samples: 5 -> 6"):  # it may choose other weights
        fit(config(eval_samples=6, out=tmp_path / "broken", resume="auto"), data=splits)
    fit(broken, data=splits)
    assert_same_run(tmp_path / "straight", tmp_path / "broken")


def test_what_cannot_be_drawn_is_refused_with_the_number_there_is(config, splits):
    with pytest.raises(ValueError, match="eval_samples=17: give 1 to 16"):
        fit(config(eval_samples=17), data=splits)
    with pytest.raises(ValueError, match="eval_samples=0 must be at least 1"):
        fit(config(eval_samples=0), data=splits)
    splits.val = None
    with pytest.raises(ValueError, match="give val_fraction"):
        fit(config(eval_samples=4), data=splits)


def test_images_are_drawn_evenly(splits):
    drawn = drawn_evenly(splits.val, 4, "n")
    assert [drawn.name(i) for i in range(4)] == [splits.val.name(i) for i in (0, 5, 10, 15)]
    assert drawn_evenly(splits.val, None, "n") is splits.val


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on text, in which 7 excerpts are validated on."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "tinyshakespeare.txt").write_text("\n".join(f"lïne {i} and {i % 7} are numbers" for i in range(900)))
    flags = ["--task", "lm", "--model", "crate_gpt_nano", "--model-args.dim", "16", "--model-args.heads", "2"]
    flags += ["--data-dir", str(folder), "--length", "16", "--batch-size", "16", "--max-steps", "2", "--quiet"]
    flags += ["--tokenizer", "bpe:280", "--eval-samples", "7", "--out", str(folder / "run")]
    assert cli.run(["train", *flags]) == 0
    return folder / "run"


def test_a_run_on_text_validates_on_excerpts(text_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    records = [json.loads(line) for line in (text_run / "metrics.jsonl").read_text().splitlines()]
    assert {record["tokens"] for record in records if record["split"] == "val"} == {7 * 16}
    assert next(record["tokens"] for record in records if record["split"] == "test") > 7 * 16
    assert "7 excerpts of it, drawn evenly" in (text_run / "report.html").read_text()
    flags = ["eval", str(text_run), "--out", str(tmp_path), "--json", "--samples"]
    assert cli.run([*flags, "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["samples"], found["tokens"]) == (3, 48)
    assert "3 excerpts of 16 tokens drawn evenly from" in (tmp_path / "report.html").read_text()
    for number in (0, found["samples_of"] + 1):
        assert cli.run([*flags, str(number)]) == 2
        said = capsys.readouterr().err
        assert f"--samples {number}: give 1 to {found['samples_of']}" in said


@pytest.mark.parametrize("task", ["lm", "mlm"])
def test_all_excerpts_are_all_of_a_text_that_they_fill(text_run: Path, task: str):
    config = load_config(text_run / "config.yaml", TextConfig)
    corpus = open_corpus(config, load_tokenizer(text_run))
    whole = corpus.excerpts("val", 16)
    corpus.tokens["val"] = corpus.tokens["val"][: 16 * whole + 1]
    corpus.bytes["val"] = sum(corpus.tokenizer.bytes_of(token) for token in corpus.tokens["val"].tolist())
    model = load_language_model(text_run)
    config.task = task  # type: ignore[assignment]
    if task == "mlm":
        corpus.tokenizer.mask_id = 0
    every, drawn = (evaluate_text(model, corpus, "val", config, samples=samples) for samples in (None, whole))
    assert every == pytest.approx(drawn)
