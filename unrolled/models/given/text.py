"""Small trained text models: MiniLM, tables of words (GloVe, WordLlama, tokenlearn), a LLaMA; with their tokenizers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from unrolled.errors import CorruptFile, MissingData, require
from unrolled.tensors import read_tensors

Tokenizer = Callable[[Sequence[str]], dict[str, Tensor]]
"""From texts to the keyword arguments of a model: `input_ids` and `attention_mask`, int64 [b, n], padded on the right
to the longest of these texts."""


class WordVectors(nn.Module):
    """A table of word vectors: `input_ids` [b, n] -> [b, n, d], which `embed` computes; the last row is padding."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        table = torch.cat([vectors, vectors.new_zeros(1, vectors.shape[1])])
        self.embed = nn.Embedding.from_pretrained(table, padding_idx=len(vectors))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Vectors of the words, [b, n, d]."""
        return cast(Tensor, self.embed(input_ids))


class StoriesTokenizer:
    """The pieces of a sentencepiece vocabulary, merged greedily by score, as the LLaMA of TinyStories reads text.

    Args:
        pieces: bytes of each token; 3 to 258 stand for single bytes.
        scores: of each token; the pair of neighbours whose union has the highest score is merged first.
        bos_id, eos_id: beginning and end of text. A text begins with `bos_id`; padding is `eos_id`, masked.
        limit: tokens kept of a text.
    """

    def __init__(
        self, *, pieces: Sequence[bytes], scores: Sequence[float], bos_id: int = 1, eos_id: int = 2, limit: int = 512
    ) -> None:
        self.pieces, self.scores, self.bos_id, self.eos_id, self.limit = pieces, scores, bos_id, eos_id, limit
        self._ids: dict[bytes, int] = {}
        for index, piece in enumerate(pieces):
            if index > 258 or index < 3:
                self._ids.setdefault(piece, index)
        # nothing is merged across a space unless some token has one inside
        spaced = any(b" " in piece[1:] for piece in pieces)
        self._words = re.compile(r".+" if spaced else r" ?[^ ]+| ", re.DOTALL)
        self._merged: dict[str, list[int]] = {}

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """Token ids of a text, with `bos_id` in front."""
        ids = [self.bos_id] if bos else []
        for word in self._words.findall(f" {text}" if text else ""):
            if word not in self._merged:
                self._merged[word] = self._merge(word)
            ids += self._merged[word]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without the space that `encode` puts in front."""
        pieces = [
            bytes([index - 3]) if 3 <= index <= 258 else self.pieces[index]
            for index in ids
            if index not in (self.bos_id, self.eos_id)
        ]
        return b"".join(pieces).decode("utf-8", "replace").removeprefix(" ")

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """See `Tokenizer`."""
        return padded([self.encode(text)[: self.limit] for text in texts], self.eos_id)

    def _merge(self, word: str) -> list[int]:
        ids: list[int] = []
        for character in word:
            encoded = character.encode()
            ids += [self._ids[encoded]] if encoded in self._ids else [byte + 3 for byte in encoded]
        while True:
            unions = [self._ids.get(self.pieces[a] + self.pieces[b], -1) for a, b in pairwise(ids)]
            best = max(range(len(unions)), key=lambda i: self.scores[unions[i]] if unions[i] >= 0 else -1e30, default=0)
            if not unions or unions[best] < 0:
                return ids
            ids[best : best + 2] = [unions[best]]


def minilm(folder: Path) -> tuple[nn.Module, Tokenizer]:
    """all-MiniLM-L6-v2 (transformers' BertModel, without pooler) from int8 rows, and its uncased WordPiece.

    Raises:
        MissingExtra: transformers or tokenizers is not installed.
    """
    transformers = require("transformers", extra="hf", feature="given model minilm")
    stored = read_tensors(_file(folder, "minilm_l6_v2_int8.pt"))
    state = {
        key: value.float() * stored[f"{key}::scale"][:, None] if value.dtype == torch.int8 else value.float()
        for key, value in stored.items()
        if not key.endswith("::scale") and not key.startswith("pooler.")
    }
    config = transformers.BertConfig(
        vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536,
        hidden_act="gelu", layer_norm_eps=1e-12,
    )  # fmt: skip
    model = transformers.BertModel(config, add_pooling_layer=False)
    model.load_state_dict(state)
    return model, wordpiece(_file(folder, "minilm_l6_v2_vocab.txt"), limit=config.max_position_embeddings)


def wordpiece(vocab: Path, *, limit: int = 512) -> Tokenizer:
    """BERT's uncased tokenizer for a vocabulary file of one piece a line.

    Raises:
        MissingExtra: tokenizers is not installed.
    """
    tokenizers: Any = require("tokenizers", extra="hf", feature="WordPiece")
    from tokenizers import models, normalizers, pre_tokenizers, processors

    ids = {piece: index for index, piece in enumerate(vocab.read_text(encoding="utf-8").split("\n")) if piece}
    inner = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    marks = [(mark, ids[mark]) for mark in ("[CLS]", "[SEP]")]
    inner.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    inner.enable_truncation(limit)
    return lambda texts: padded([encoding.ids for encoding in inner.encode_batch(list(texts))], ids["[PAD]"])


def glove(folder: Path) -> tuple[nn.Module, Tokenizer]:
    """GloVe 6B 50d, its most frequent words; words that it lacks are passed over.

    Lower-cased words, numbers and punctuation marks are tokens. A text without a known word is one row of padding, and
    its mean is zero.
    """
    arrays = read_tensors(_file(folder, "glove_6b_50d_top40k.npz"))
    words = arrays["words_utf8"].numpy().tobytes().decode("utf-8").split("\n")
    vectors = arrays["vectors"].float()
    if len(words) != len(vectors):
        raise CorruptFile(f"glove_6b_50d_top40k.npz: {len(words)} words for {len(vectors)} vectors")
    ids = {word: index for index, word in enumerate(words)}
    split = re.compile(r"\w+(?:[-']\w+)*|[^\w\s]")

    def tokenize(texts: Sequence[str]) -> dict[str, Tensor]:
        rows = []
        for text in texts:
            row: list[int] = []
            for token in split.findall(text.lower()):
                parts = [token] if token in ids else re.findall(r"\w+", token)
                row += [ids[part] for part in parts if part in ids]
            rows.append(row)
        return padded(rows, len(words))

    return WordVectors(vectors), tokenize


def wordllama(folder: Path) -> tuple[nn.Module, Tokenizer]:
    """WordLlama's table of pieces of words, whose mean is a text's vector, and LLaMA 2's tokenizer, without its marks.

    Raises:
        MissingExtra: tokenizers is not installed.
    """
    vectors = read_tensors(_file(folder, "wordllama/l2_supercat_256.safetensors"))["embedding.weight"].float()
    inner = _tokenizer(_file(folder, "wordllama/tokenizer.json"))

    def tokenize(texts: Sequence[str]) -> dict[str, Tensor]:
        return padded([each.ids for each in inner.encode_batch(list(texts), add_special_tokens=False)], len(vectors))

    return WordVectors(vectors), tokenize


def tokenlearn(folder: Path) -> tuple[nn.Module, Tokenizer]:
    """A static embedding as Model2Vec stores one: words share rows, each with a weight; unknown ones are passed over.

    Raises:
        MissingExtra: tokenizers is not installed.
    """
    path = _file(folder, "tokenlearn-static/tokenizer.json")
    stored = read_tensors(_file(folder, "tokenlearn-static/model.safetensors"))
    vectors = stored["embeddings"].float()[stored["mapping"]] * stored["weights"].float()[:, None]
    inner = _tokenizer(path)
    unknown = {inner.token_to_id("<unk>"), inner.token_to_id("<pad>")}

    def tokenize(texts: Sequence[str]) -> dict[str, Tensor]:
        rows = [each.ids for each in inner.encode_batch(list(texts), add_special_tokens=False)]
        return padded([[token for token in row if token not in unknown] for row in rows], len(vectors))

    return WordVectors(vectors), tokenize


def _tokenizer(path: Path) -> Any:
    tokenizers: Any = require("tokenizers", extra="hf", feature="a tokenizer.json")
    inner = tokenizers.Tokenizer.from_file(str(path))
    inner.no_padding()
    inner.no_truncation()
    return inner


def stories260k(folder: Path) -> tuple[nn.Module, Tokenizer]:
    """The LLaMA of 260 thousand parameters trained on TinyStories, as transformers' LlamaForCausalLM.

    Its rotary embedding turns neighbouring pairs of features; transformers turns the two halves of a head, so the rows
    of the query and key matrices are reordered to match.

    Raises:
        MissingExtra: transformers is not installed.
    """
    transformers = require("transformers", extra="hf", feature="given model stories260k")
    stored = read_tensors(_file(folder, "stories260k_llama.pt"))
    settings = json.loads(_file(folder, "stories260k_llama.json").read_text(encoding="utf-8"))
    shape = settings["config"]
    config = transformers.LlamaConfig(
        vocab_size=shape["vocab_size"], hidden_size=shape["dim"], intermediate_size=shape["hidden_dim"],
        num_hidden_layers=shape["n_layers"], num_attention_heads=shape["n_heads"],
        num_key_value_heads=shape["n_kv_heads"], max_position_embeddings=shape["max_seq_len"],
        rms_norm_eps=settings["norm_eps"], tie_word_embeddings=True, bos_token_id=settings["bos_id"],
        eos_token_id=settings["eos_id"], pad_token_id=settings["eos_id"],
        rope_parameters={"rope_type": "default", "rope_theta": settings["rope_theta"]},
    )  # fmt: skip
    names = {
        "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attention.wq": "self_attn.q_proj",
        "attention.wk": "self_attn.k_proj", "attention.wv": "self_attn.v_proj", "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj", "feed_forward.w3": "mlp.up_proj",
    }  # fmt: skip
    embedding = stored["tok_embeddings.weight"]
    state = {
        "model.embed_tokens.weight": embedding,
        "lm_head.weight": embedding,
        "model.norm.weight": stored["norm.weight"],
    }
    for key, value in stored.items():
        if not key.startswith("layers."):
            continue
        _, index, part = key.removesuffix(".weight").split(".", 2)
        if part in ("attention.wq", "attention.wk"):
            heads = shape["n_heads" if part.endswith("q") else "n_kv_heads"]
            value = value.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
        state[f"model.layers.{index}.{names[part]}.weight"] = value
    model = transformers.LlamaForCausalLM(config)
    model.load_state_dict(state)
    tokenizer = StoriesTokenizer(
        pieces=[piece.encode("latin1") for piece in settings["tokens_latin1"]], scores=settings["scores"],
        bos_id=settings["bos_id"], eos_id=settings["eos_id"], limit=shape["max_seq_len"],
    )  # fmt: skip
    return model, tokenizer


def padded(rows: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, int64 [b, n], of rows of ids; n is at least 1."""
    width = max(1, *(len(row) for row in rows)) if rows else 1
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[i, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def _file(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise MissingData(f"weights_dir: {folder} has no {name}")
    return path
