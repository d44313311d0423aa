"""Training on text: kill and resume to the same bits, bits per byte, the run folder, and what generates from it."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from train_helpers import assert_resumes_after_a_crash, assert_resumes_after_a_kill, assert_same_run

from unrolled.data.tokens import load_tokenizer
from unrolled.errors import MissingData
from unrolled.models import LanguageModel
from unrolled.models.encoder import MaskedLanguageModel, load_language_model
from unrolled.models.resolve import resolve_model
from unrolled.train import TextConfig, TrainConfig, fit, save_config
from unrolled.train.checkpoint import checkpoints
from unrolled.train.schedule import learning_rate
from unrolled.train.text import evaluate_text, open_corpus

ROOT = Path(__file__).resolve().parents[2]
Make = Callable[..., TextConfig]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    lines = [f"line {i} says that {i} and {i % 7} are numbers" for i in range(250)]
    (folder / "tinyshakespeare.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture
def make(text: Path, tmp_path: Path) -> Make:
    """Makes the configuration of a run of about 12 steps in two epochs, with everything that has state."""

    def build(**changes: Any) -> TextConfig:
        settings: dict[str, Any] = {
            "task": "lm",
            "model": "crate_gpt_nano",
            "model_args": {"layers": ["mssa", "mssa"], "dim": 16, "heads": 2, "dropout": 0.1},
            "data_dir": text,
            "length": 32,
            "batch_size": 32,
            "accumulate": 2,
            "epochs": 2,
            "warmup_epochs": 1,
            "ema": 0.9,
            "log_every": 2,
            "checkpoint_every": 5,
            "accelerator": "cpu",
            "quiet": True,
            "out": tmp_path / "run",
        }
        return TextConfig(**{**settings, **changes})

    return build


@pytest.mark.parametrize(
    "changes",
    [{}, {"task": "mlm", "model": "crate_bert_nano"}, {"tokenizer": "bpe:280", "model": "gpt2_nano", "batch_size": 16}],
)
def test_a_crashed_run_resumes_to_the_same_bits(make: Make, tmp_path: Path, changes: dict[str, Any]) -> None:
    if changes.get("model") == "gpt2_nano":
        changes = {**changes, "model_args": {"layers": ["softmax", "delta"], "dim": 16, "heads": 2}}

    straight, broken = (make(**changes, out=tmp_path / name, resume="auto") for name in ("straight", "broken"))
    assert_resumes_after_a_crash(straight, broken, 6)


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_bits(make: Make, tmp_path: Path) -> None:
    long = {"epochs": 4, "eval_every": 20, "log_every": 1, "checkpoint_every": 5, "ema": None}
    straight, killed = (make(**long, out=tmp_path / name, resume="auto") for name in ("straight", "killed"))
    assert_resumes_after_a_kill(straight, killed, tmp_path)


def test_a_run_learns_reports_bits_per_byte_and_generates_from_its_folder(make: Make) -> None:
    result = fit(make(epochs=10, eval_every=50, lr=2e-2, ema=None))
    assert result.test["bits_per_byte"] < 0.7 * 8
    assert result.test["bits_per_byte"] == pytest.approx(result.test["loss"] / math.log(2), rel=1e-9), "bytes"
    val = [record for record in result.metrics if record["split"] == "val"]
    assert result.chosen_step == min(val, key=lambda record: record["loss"])["step"]
    assert all("bits_per_byte" in record for record in result.metrics)
    assert json.loads((result.run_dir / "status.json").read_text())["state"] == "finished"

    model, tokenizer = load_language_model(result.run_dir), load_tokenizer(result.run_dir)
    prompt = tokenizer.encode("line 7 ")[None]
    continued = model.generate(prompt, 12)
    assert torch.equal(continued, model.generate(prompt, 12, cache=False))
    assert tokenizer.decode(continued[0]).startswith("line 7 ")
    again = resolve_model(f"local:{result.run_dir}", pretrained=True)
    torch.testing.assert_close(again(prompt), result.model(prompt))
    corpus = open_corpus(result.config, tokenizer)
    assert evaluate_text(model, corpus, "test", result.config) == {
        key: pytest.approx(value) for key, value in result.test.items()
    }


@pytest.mark.parametrize("task", ["lm", "mlm"])
def test_the_card_of_a_saved_model_is_true(make: Make, task: str) -> None:
    model = {"lm": "crate_gpt_nano", "mlm": "crate_bert_nano"}[task]
    result = fit(make(task=task, model=model, max_steps=1))
    card = (result.run_dir / "model" / "README.md").read_text()
    assert "pushed" not in card
    assert f"# {model}" in card
    assert f"`--task {task}`" in card
    parameters = sum(parameter.numel() for parameter in result.model.parameters())
    assert f"{parameters:,} parameters" in card
    names: dict[str, Any] = {}
    code = card.split("```python\n")[1].split("```")[0].replace('"FOLDER"', repr(str(result.run_dir / "model")))
    exec(compile(code, "card", "exec"), names)
    assert names["logits"].shape == (1, len("a text"), names["tokenizer"].vocab_size)


def test_subword_tokens_are_measured_in_bytes(make: Make) -> None:
    result = fit(make(tokenizer="bpe:300", max_steps=2))
    corpus = open_corpus(result.config)
    nats = result.test["loss"] * result.test["tokens"]
    first = corpus.tokenizer.decode(corpus.tokens["test"][:1])
    held_out = corpus.tokenizer.decode(corpus.tokens["test"])
    assert result.test["bytes"] == len(held_out.encode()) - len(first.encode())
    assert result.test["bits_per_byte"] == pytest.approx(nats / math.log(2) / result.test["bytes"])
    assert result.test["tokens"] == len(corpus.tokens["test"]) - 1


def test_masked_training_starts_at_chance_and_learns(make: Make) -> None:
    result = fit(make(task="mlm", model="crate_bert_nano", epochs=8, eval_every=40, lr=2e-2, ema=None))
    assert isinstance(load_language_model(result.run_dir), MaskedLanguageModel)
    first = next(record for record in result.metrics if record["split"] == "train")
    assert first["loss"] == pytest.approx(math.log(257), abs=0.7)
    assert result.test["loss"] < 0.8 * math.log(257)
    assert "bits_per_byte" not in result.test
    assert result.data.tokenizer.mask_id == 256


def test_an_interrupted_run_saves_and_says_how_to_go_on(make: Make) -> None:
    from unrolled.train import Interrupted

    def interrupt(record: dict[str, Any], model: Any) -> None:
        if record["step"] == 4:
            signal.raise_signal(signal.SIGINT)

    config = make(resume="auto")
    with pytest.raises(Interrupted, match="resume='auto'"):
        fit(config, callbacks=[interrupt])
    assert checkpoints(config.out / "checkpoints")
    assert fit(config).steps > 5


def test_a_model_of_the_callers_own_is_trained_and_kept(make: Make) -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(256, 8), torch.nn.Linear(8, 256))
    result = fit(make(max_steps=2), model=model)
    assert (result.run_dir / "model" / "model.safetensors").is_file()
    assert load_tokenizer(result.run_dir).vocab_size == 256


def test_settings_that_cannot_work_are_named(make: Make, text: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'crate_gpt_nano'"):
        fit(make(model="crate_gpt_nan"))
    with pytest.raises(ValueError, match="crate_bert_nano"):
        fit(make(task="mlm"))
    with pytest.raises(ValueError, match="has a configuration of its own, TextConfig"):
        fit(TrainConfig(task="lm"))
    with pytest.raises(ValueError, match="mask_share"):
        fit(make(mask_share=1.5))
    with pytest.raises(ValueError, match="lower length"):
        fit(make(length=100_000))
    with pytest.raises(MissingData, match="data_dir"):
        fit(make(data="brown"))
    fit(make(max_steps=1))
    with pytest.raises(ValueError, match=r"mask_share: 0\.15 -> 0\.2"):
        fit(make(max_steps=2, resume="auto", mask_share=0.2))
    (text / "tinyshakespeare.txt").write_text("another text\n" * 500)
    with pytest.raises(ValueError, match="other training text"):
        fit(make(max_steps=2, resume="auto"))


@pytest.mark.parametrize(("task", "model"), [("lm", "crate_gpt_nano"), ("mlm", "crate_bert_nano")])
def test_the_model_of_a_text_run_is_that_of_its_task_unless_one_is_named(make: Make, task: Any, model: str) -> None:
    size = {"layers": ["mssa"], "dim": 8, "heads": 1}
    result = fit(make(task=task, model="auto", model_args=size, max_steps=1, eval_samples=1))
    assert result.config.model == model
    assert f"model: {model}\n" in (result.run_dir / "config.yaml").read_text()


def test_the_command_trains_and_evaluates_text(
    make: Make, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from unrolled.cli import run

    save_config(make(max_steps=2), tmp_path / "run.yaml")
    assert run(["train", "--config", str(tmp_path / "run.yaml"), "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "bits per byte" in page
    assert "A sample" in page
    assert run(["eval", str(tmp_path / "run"), "--out", str(tmp_path / "eval"), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert {key: measured[key] for key in trained["test"]} == trained["test"], "to the last bit"
    assert "blocks of 32 tokens that do not overlap" in (tmp_path / "eval" / "report.html").read_text()
    assert run(["eval", str(tmp_path / "run"), "--out", str(tmp_path / "eval"), "--stride", "8", "--json"]) == 0
    strided = json.loads(capsys.readouterr().out)
    assert (strided["tokens"], strided["bytes"], strided["stride"]) == (measured["tokens"], measured["bytes"], 8)
    assert strided["loss"] != measured["loss"]
    assert "from at least 25 tokens" in (tmp_path / "eval" / "report.html").read_text()
    for flags, said in {("33",): "--stride 33: give 1 to 32", ("8", "--samples", "2"): "leave --samples out"}.items():
        assert run(["eval", str(tmp_path / "run"), "--out", str(tmp_path / "eval"), "--stride", *flags]) == 2
        assert said in capsys.readouterr().err


def test_a_masked_model_is_measured_alike_in_training_and_after_it_whatever_the_batch(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from unrolled.cli import run

    result = fit(make(task="mlm", model="crate_bert_nano", max_steps=2, batch_size=16))
    flags = ["eval", str(result.run_dir), "--out", str(tmp_path / "eval"), "--json", "--quiet"]
    assert run(flags) == 0
    measured = json.loads(capsys.readouterr().out)
    assert {key: measured[key] for key in result.test} == result.test, "to the last bit"
    for size in ("1", "7", "128"):
        assert run([*flags, "--batch-size", size]) == 0
        other = json.loads(capsys.readouterr().out)
        assert other["tokens"] == measured["tokens"], "the same tokens are masked"
        assert other["loss"] == pytest.approx(measured["loss"], rel=1e-6)
        assert other["accuracy"] == pytest.approx(measured["accuracy"], abs=1e-3)
    assert run([*flags, "--stride", "8"]) == 2
    assert "--stride 8: is for language models" in capsys.readouterr().err
    corpus = open_corpus(result.config, result.data.tokenizer)
    scores = [
        evaluate_text(result.model, corpus, "test", make(task="mlm", batch_size=size), samples=9) for size in (2, 9)
    ]
    assert scores[0] == {key: pytest.approx(value) for key, value in scores[1].items()}


def test_losses_are_those_of_one_token_after_the_other(make: Make) -> None:
    result = fit(make(max_steps=1))
    model, corpus = result.model, open_corpus(result.config)
    corpus.tokens["test"] = tokens = corpus.tokens["test"][:75]
    corpus.bytes["test"] = 75

    def nats(start: int, target: int) -> float:
        with torch.no_grad():
            return -float(model(tokens[None, start:target])[0, -1].double().log_softmax(-1)[tokens[target]])

    blocks = [nats((target - 1) // 32 * 32 if target <= 64 else 42, target) for target in range(1, 75)]
    scores = evaluate_text(model, corpus, "test", result.config)
    assert scores["loss"] == pytest.approx(sum(blocks) / 74, rel=1e-5)
    assert scores["tokens"] == scores["bytes"] == 74
    sliding = [nats(max(0, target - 32), target) for target in range(1, 75)]
    scores = evaluate_text(model, corpus, "test", result.config, stride=1)
    assert scores["loss"] == pytest.approx(sum(sliding) / 74, rel=1e-5)
    assert scores["bits_per_byte"] == pytest.approx(sum(sliding) / 74 / math.log(2), rel=1e-5)
    with pytest.raises(ValueError, match="stride=40"):
        evaluate_text(model, corpus, "test", result.config, stride=40)


def test_the_share_held_out_is_a_flag(
    make: Make, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from unrolled.cli import run

    save_config(make(max_steps=1, eval_samples=1), tmp_path / "run.yaml")
    flags = ["--config", str(tmp_path / "run.yaml"), "--json"]
    tested = []
    for more in ([], ["--held-out", "0.2", "--force"]):
        assert run(["train", *flags, *more]) == 0
        tested.append(json.loads(capsys.readouterr().out)["test"]["tokens"])
    assert tested[1] == pytest.approx(4 * tested[0], rel=0.1)
    assert run(["eval", str(tmp_path / "run"), "--out", str(tmp_path / "eval"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == tested[1], "divided as the run was"
    (text / "brown_sentences.txt").write_text("a line\n" * 9000)
    assert run(["eval", str(tmp_path / "run"), "--data", "brown", "--out", str(tmp_path / "other"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == pytest.approx(9000 * 7 / 20, rel=0.1)


def test_a_run_is_as_long_as_its_steps_say_and_validates_every_so_many(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from unrolled.cli import run

    save_config(make(model_args={"dim": 16, "heads": 2}, ema=None), tmp_path / "run.yaml")
    flags = ["--model-args.depth", "1", "--steps", "9", "--warmup-steps", "2", "--eval-every", "4", "--log-every", "1"]
    command = ["train", "--config", str(tmp_path / "run.yaml"), *flags]
    assert run([*command, "--no-quiet", "--out", str(tmp_path / "a")]) == 0
    said = capsys.readouterr().err
    assert "step 4 (epoch 0." in said
    assert "bits per byte" in said
    assert "warm-up" not in said
    records = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if record["split"] == "val"] == [4, 8, 9]
    rates = [record["lr"] for record in records if record["split"] == "train"]
    expected = [learning_rate(step, peak=2e-3, warmup=2, total=9) for step in range(9)]
    assert rates == pytest.approx(expected), "the schedule spans the steps"
    model = load_language_model(tmp_path / "a")
    assert isinstance(model, LanguageModel)
    assert len(model.blocks) == 1
    for more in (["--max-steps", "5"], ["--resume", "auto"]):
        assert run([*command, "--quiet", "--out", str(tmp_path / "b"), *more]) == 0
    assert_same_run(tmp_path / "a", tmp_path / "b")
    capsys.readouterr()
    assert run([*command, "--quiet", "--out", str(tmp_path / "b"), "--resume", "auto"]) == 0
    assert "tokens/s" not in capsys.readouterr().out, "a run that was finished before has no speed"
    assert "tokens/s" not in (tmp_path / "b" / "report.html").read_text()


def test_a_smoothed_loss_is_no_bits_per_byte(make: Make) -> None:
    result = fit(make(label_smoothing=0.1, max_steps=2, log_every=1))
    trained = [record for record in result.metrics if record["split"] == "train"]
    assert trained
    assert all("bits_per_byte" not in record for record in trained)
    assert result.test["bits_per_byte"] > 0
