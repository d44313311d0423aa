"""`unrolled generate`: what it writes is what the model would say step by step, as it comes, and harmless."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from unrolled import cli
from unrolled.data.tokens import ByteTokenizer, CharacterTokenizer, load_tokenizer
from unrolled.models.encoder import MaskedLanguageModel, load_language_model
from unrolled.models.generation import pieces
from unrolled.models.hub_language import HubLanguageModel
from unrolled.models.sequence import LanguageModel
from unrolled.models.sequence_config import EncoderConfig, LanguageConfig
from unrolled.reading import printable
from unrolled.subjects.writers import open_writer

ROOT = Path(__file__).resolve().parents[2]
TINY: dict[str, Any] = {"dim": 8, "heads": 2, "max_length": 16, "init_std": 0.5}


def saved(folder: Path, tokenizer: Any = None, **changes: Any) -> Path:
    """A model with random weights, as a run leaves it."""
    tokenizer = tokenizer or ByteTokenizer()
    torch.manual_seed(0)
    config = {"layers": ("mssa", "mesa"), **TINY, "vocab_size": tokenizer.vocab_size, **changes}
    LanguageModel(LanguageConfig(**config)).save_pretrained(folder / "model")
    tokenizer.save(folder / "model" / "tokenizer.json")
    return folder


@contextmanager
def writing_without_end(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A real process that writes a hundred million letters, or until it is stopped."""
    saved(folder, CharacterTokenizer.of("abcdefgh"), layers=("mesa",), positions="none")
    command = [sys.executable, "-m", "unrolled", "generate", str(folder), "--prompt", "ab", "--tokens", "100000000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    default = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a suite in the background ignores it
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=environment, preexec_fn=default
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def said(capsys: pytest.CaptureFixture[str], *arguments: Any) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.run(["generate", *map(str, arguments), "--device", "cpu", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def step_by_step(folder: Path, prompt: str, count: int) -> str:
    """Greedily, without a cache, from the last tokens that the model can be given."""
    model, tokenizer = load_language_model(folder), load_tokenizer(folder)
    start = tokenizer.encode(prompt)
    ids = start
    for _ in range(count):
        logits = model((ids if model.longest is None else ids[-model.longest :])[None])
        ids = torch.cat([ids, logits[0, -1].argmax()[None]])
    return tokenizer.decode(ids[len(start) :])


@pytest.mark.parametrize("layers", [("mssa", "mesa"), ("mesanet",), ("tssa",), ("softmax", "delta")])
@pytest.mark.parametrize("positions", ["learned", "none"])
def test_greedy_is_what_the_model_says_step_by_step(
    layers: tuple[str, ...], positions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    letters = CharacterTokenizer.of("abcdefgh")
    saved(tmp_path, letters, layers=layers, positions=positions)
    for prompt in ("ab", "abcdefgh" * 3):  # the second is longer than the context
        found = said(capsys, tmp_path, "--prompt", prompt, "--tokens", 40, "--temperature", 0)
        assert found["text"] == step_by_step(tmp_path, prompt, 40)
        assert (found["tokens"], found["prompt"]) == (40, prompt)


def test_a_seed_gives_one_text_and_another_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path, CharacterTokenizer.of("abcdefgh"))
    flags = (tmp_path, "--prompt", "ab", "--tokens", 40)
    first = said(capsys, *flags, "--top-k", 5, "--seed", 4)["text"]
    torch.manual_seed(7)
    assert said(capsys, *flags, "--top-k", 5, "--seed", 4)["text"] == first
    assert said(capsys, *flags, "--top-k", 5, "--seed", 5)["text"] != first
    assert said(capsys, *flags, "--temperature", 0)["text"] == said(capsys, *flags, "--top-k", 1)["text"]


@pytest.mark.slow
def test_words_come_as_they_are_made(tmp_path: Path) -> None:
    """In a real process, which is stopped long before it would be done."""
    with writing_without_end(tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        start = process.stdout.read(30)
        process.stdout.close()  # as `| head` does
        error = process.stderr.read()
        assert process.wait(60) == 0
    assert start.startswith(b"ab")
    assert len(start) == 30
    assert set(start) <= set(b"abcdefgh")
    assert error == b""


def test_letters_are_whole_and_nothing_reaches_the_terminal_but_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "\x1b]0;owned\x07\u202e\x9b2J\r\b\n\té€"
    saved(tmp_path, CharacterTokenizer.of(hostile))
    capsys.readouterr()
    command = ["generate", str(tmp_path), "--prompt", hostile, "--tokens", "60", "--temperature", "2"]
    assert cli.run([*command, "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert printable(shown, keep="\n\t") == shown
    assert "\\x1b" in shown
    assert "\\u202e" in shown
    text = said(capsys, *command[1:])["text"]
    assert shown == printable(hostile + text, keep="\n\t") + "\n"


def test_the_pieces_of_a_text_are_the_text() -> None:
    text = "a€b\u0301😀é" + "x"
    tokenizer = ByteTokenizer()
    torch.manual_seed(0)
    for ids in (list(text.encode()), torch.randint(256, (400,)).tolist(), list("€".encode())[:2]):

        def decode(some: list[int]) -> str:
            return tokenizer.decode(torch.tensor(some, dtype=torch.int64))

        parts = list(pieces(ids, decode, after=list("é".encode())))
        assert "".join(parts) == decode(ids)
        assert all(parts)
    assert list(pieces(text.encode(), decode)) == list(text)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tokens", "0"], "--tokens 0: give at least 1"),
        (["--top-k", "0"], "--top-k 0: give at least 1"),
        (["--temperature", "-1"], "--temperature -1: give 0"),
        (["--prompt", ""], "--prompt '': is no token"),
        (["--prompt", "Zebra"], "--prompt: 2 characters are unknown"),
        (["--prompt", "a\udcff"], "--prompt: holds bytes that are no UTF-8 text"),
        (["--tokens", "1.5"], "value for --tokens: 1.5 is no whole number"),
        (["--seed", "9" * 30], f"{'9' * 30} is beyond 64 bits"),
        (["--device", "mps"], "--device mps"),
    ],
)
def test_bad_flags(flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path, CharacterTokenizer.of("abcdefgh"))
    if flags[0] == "--device" and torch.backends.mps.is_available():
        pytest.skip("there is one")
    prompt = [] if flags[0] == "--prompt" else ["--prompt", "ab"]
    assert cli.run(["generate", str(tmp_path), *prompt, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_ctrl_c_ends_it_in_a_line(tmp_path: Path) -> None:
    with writing_without_end(tmp_path) as process:
        assert process.stdout is not None
        process.stdout.read(30)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in error
    assert error.count(b"\n") <= 1


def test_models_that_cannot_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    MaskedLanguageModel(EncoderConfig(layers=("softmax",), vocab_size=257, **TINY)).save_pretrained(tmp_path / "masked")
    ByteTokenizer(mask=True).save(tmp_path / "masked" / "tokenizer.json")
    saved(tmp_path / "other", CharacterTokenizer.of("abc"))
    ByteTokenizer().save(tmp_path / "other" / "model" / "tokenizer.json")
    saved(tmp_path / "without")
    (tmp_path / "without" / "model" / "tokenizer.json").unlink()
    for name in ("other", "without"):
        (tmp_path / name / "model" / "SHA256SUMS").unlink()
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "config.json").write_text(json.dumps({"architecture": "crate_nano_patch2_8"}))
    for spec, code, message in (
        ("crate_gpt_nano", 2, "unrolled train --task lm --model crate_gpt_nano"),
        ("gpt2", 2, "did you mean hf:gpt2?"),
        (str(tmp_path / "masked"), 2, "cannot continue a text"),
        ("crate_nano_patch4_32", 2, "writes no text"),
        ("crate_nano_patch4_32.cifar10", 2, "writes no text"),
        ("timm:vit_tiny_patch16_224", 2, "writes no text"),
        (str(tmp_path / "image"), 2, "holds no language model"),
        (str(tmp_path / "other"), 2, "not of one run"),
        (str(tmp_path / "without"), 3, "tokenizer.json does not exist"),
        (str(tmp_path / "gone"), 3, "there is no folder"),
    ):
        assert cli.run(["generate", spec]) == code, spec
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


# --- models of transformers


def hugging_face(folder: Path, kind: str) -> Path:
    """A tiny one with random weights and byte-level BPE."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], show_progress=False,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    backend.train_from_iterator(["to be or not to be, that is the question"], trainer=trainer)
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>").save_pretrained(folder)
    sizes = {"vocab_size": backend.get_vocab_size(), "hidden_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 16, "initializer_range": 0.5}
    torch.manual_seed(0)
    if kind == "mamba":
        config = transformers.MambaConfig(**sizes, state_size=4, initializer_range=0.5)
        transformers.MambaForCausalLM(config).save_pretrained(folder)
    elif kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=sizes["vocab_size"], n_embd=16, n_layer=2, n_head=2, n_positions=16, initializer_range=0.5
        )
        transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    elif kind == "llama":
        config = transformers.LlamaConfig(**sizes, **heads, num_key_value_heads=1)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    else:
        transformers.BertForMaskedLM(transformers.BertConfig(**sizes, **heads)).save_pretrained(folder)
    return folder


def test_a_kind_without_a_head_for_the_next_token_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 30, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes)).save_pretrained(tmp_path)
    assert cli.run(["generate", f"hf:{tmp_path}"]) == 2
    assert "is of the kind T5, of which there is no AutoModelForCausalLM\n" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mamba"])
def test_models_of_transformers(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hugging_face(tmp_path, kind)
    writer = open_writer(f"hf:{tmp_path}")
    assert isinstance(writer.model, HubLanguageModel)
    assert writer.longest == (None if kind == "mamba" else 16)
    start = writer.encode("to be")
    ids = list(start)
    with torch.no_grad():
        for _ in range(24):
            window = ids if writer.longest is None else ids[-writer.longest :]
            ids.append(int(writer.model.network(input_ids=torch.tensor([window])).logits[0, -1].argmax()))
            if ids[-1] == writer.eos:
                break
    for spec in (f"hf:{tmp_path}", tmp_path):
        found = said(capsys, spec, "--prompt", "to be", "--tokens", 24, "--temperature", 0)
        assert found["tokens"] == len(ids) - len(start)
        assert found["text"] == writer.decode(ids)[len("to be") :]


def test_an_encoder_of_transformers_cannot_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hugging_face(tmp_path, "bert")
    assert cli.run(["generate", f"hf:{tmp_path}"]) == 2
    assert "fills in masked tokens and cannot continue" in capsys.readouterr().err
