"""Bits per byte: exact for known distributions, the same for any stride or tokenizer that says as much, for any LM."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_context import stories_llama
from torch import Tensor, nn

from unrolled.data.tokens import ByteTokenizer, CharacterTokenizer, train_bpe
from unrolled.instruments.sequences.bits_per_byte import bits_per_byte
from unrolled.models.sequence import LanguageConfig, LanguageModel

TEXT = "the naïve cat sat on the mat, and the ☃ sat on the cat. " * 6


class Uniform(nn.Module):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    def forward(self, ids: Tensor) -> Tensor:
        return torch.zeros(*ids.shape, self.vocabulary)


@given(length=st.integers(1, 500), batch=st.integers(1, 5), data=st.data())
@settings(max_examples=30, deadline=None)
def test_every_byte_is_counted_once_whatever_the_windows(length: int, batch: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(max(1, length // 8), length))
    found = bits_per_byte(Uniform(256), TEXT, ByteTokenizer(), length=length, stride=stride, batch_size=batch)
    assert found["bytes"] == found["tokens"] == len(TEXT.encode()) - 1
    assert found["bits_per_byte"] == pytest.approx(8)
    started = bits_per_byte(Uniform(256), TEXT, ByteTokenizer(), length=length, stride=stride, start=0)
    assert started["bytes"] == started["tokens"] == len(TEXT.encode())


def test_bytes_are_exact_for_characters_subwords_and_hugging_face() -> None:
    transformers = pytest.importorskip("transformers")
    bpe = train_bpe(TEXT, 300)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe.tokenizer)
    first = len(bpe.tokenizer.id_to_token(int(bpe.encode(TEXT)[0])))
    count = len(bpe.encode(TEXT))
    for tokenizer in (bpe, bpe.tokenizer, fast):
        found = bits_per_byte(Uniform(bpe.vocab_size), TEXT, tokenizer, length=16)
        assert found["bytes"] == len(TEXT.encode()) - first
        assert found["bits"] == pytest.approx((count - 1) * math.log2(bpe.vocab_size))
    snow = CharacterTokenizer.of(TEXT)
    assert bits_per_byte(Uniform(snow.vocab_size), "☃" + TEXT, snow, length=16)["bytes"] == len(TEXT.encode())


def test_an_untrained_hugging_face_model_spends_about_the_logarithm_of_its_vocabulary() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=256, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    found = bits_per_byte(model, TEXT, ByteTokenizer(), length=32, stride=8)
    assert found["bits_per_byte"] == pytest.approx(8, abs=0.3)
    assert model.training, "the training mode is restored"


def test_more_context_per_prediction_changes_only_the_context() -> None:
    torch.manual_seed(0)
    config = LanguageConfig(vocab_size=256, dim=16, heads=2, layers=("softmax",), max_length=64)
    model = LanguageModel(config).eval()
    ids = ByteTokenizer().encode(TEXT[:39])
    found = bits_per_byte(model, TEXT[:39], ByteTokenizer(), length=64, stride=1)
    logits = model(ids[None, :-1]).detach()
    want = float(torch.nn.functional.cross_entropy(logits[0], ids[1:], reduction="sum")) / math.log(2)
    assert found["bits"] == pytest.approx(want, rel=1e-5)


def test_what_cannot_be_measured_is_named() -> None:
    with pytest.raises(ValueError, match="empty"):
        bits_per_byte(Uniform(256), "", ByteTokenizer(), length=4)
    with pytest.raises(ValueError, match="too few"):
        bits_per_byte(Uniform(256), "a", ByteTokenizer(), length=4)
    with pytest.raises(ValueError, match="stride"):
        bits_per_byte(Uniform(256), TEXT, ByteTokenizer(), length=4, stride=5)
    with pytest.raises(ValueError, match="own tokenizer"):
        bits_per_byte(Uniform(64), TEXT, ByteTokenizer(), length=4)
    with pytest.raises(ValueError, match="start="):
        bits_per_byte(Uniform(256), TEXT, lambda text: list(text.encode()), length=4)


def test_a_trained_llama_compresses_stories_and_not_shuffled_words(shared: Path) -> None:
    transformers = pytest.importorskip("transformers")
    meta = json.loads((shared / "data/weights/stories260k_llama.json").read_text())
    model: Any = stories_llama(transformers, shared)

    def encode(text: str) -> list[int]:
        return merge(text, meta)

    story = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she "
    story += "saw a big red ball. She wanted to play with it, but it was too high."
    found = bits_per_byte(model, story, encode, length=256, start=1)
    words = story.split()
    shuffled = " ".join(words[i] for i in torch.randperm(len(words)).tolist())
    assert found["bytes"] == len(story)
    assert found["bits_per_byte"] < 0.9
    assert bits_per_byte(model, shuffled, encode, length=256, start=1)["bits_per_byte"] > 1.5


def merge(text: str, meta: dict[str, Any]) -> list[int]:
    """Ids by merging the pair of the highest score, from single characters, with a space in front."""
    pieces = [token.encode("latin1") for token in meta["tokens_latin1"]]
    ids = {piece: i for i, piece in reversed(list(enumerate(pieces)))}
    scores = next(value for key, value in meta.items() if "score" in key)
    now = [ids[character.encode()] for character in " " + text]
    while True:
        joined = [pieces[a] + pieces[b] for a, b in itertools.pairwise(now)]
        pairs = [(scores[ids[piece]], i) for i, piece in enumerate(joined) if piece in ids]
        if not pairs:
            return now
        best = max(pairs, key=lambda pair: (pair[0], -pair[1]))[1]
        now[best : best + 2] = [ids[pieces[now[best]] + pieces[now[best + 1]]]]


@pytest.mark.parametrize("prefixed", [False, True])
@pytest.mark.parametrize("trimmed", [False, True])
@pytest.mark.parametrize("text", ["hello world", " hello world", "été world", "hello  world"])
def test_the_bytes_of_the_first_token_are_its_own_and_no_space_behind(text: str, trimmed: bool, prefixed: bool) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=prefixed)
    backend.post_processor = tokenizers.processors.ByteLevel(trim_offsets=trimmed)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, show_progress=False, initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    )
    backend.train_from_iterator(["été", "hello world", " été", " hello world"] * 9, trainer=trainer)
    result = bits_per_byte(Uniform(backend.get_vocab_size()), text, backend, length=8)
    word = len(text.split()[0].encode()) + text.startswith(" ")
    assert len(text.encode()) - result["bytes"] == word
