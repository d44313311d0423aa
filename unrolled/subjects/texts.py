"""Models that read text, by one string, and texts as their token ids: given ones, lines of a file, or a corpus."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unrolled.catalogue import shipped_tags
from unrolled.data.text import is_text, open_text, read_lines
from unrolled.errors import MissingData
from unrolled.subjects.language import is_language_model
from unrolled.subjects.options import OneModelFlags
from unrolled.subjects.runs import check_spelling, named, run_settings
from unrolled.trust import check

DEFAULT_LENGTH = 256


@dataclass(frozen=True, kw_only=True)
class TextReader:
    """A model of texts and its tokenizer.

    Attributes:
        module: in eval mode.
        encode: the ids of a text, as the model expects one by itself.
        pieces: the ids of a running text, without marks of its begin and end.
        decode: the text of ids; None where its tokenizer is asked for whole texts only.
        bytes_of: how many bytes of a text a token stands for; 0 of a mark. None where its tokenizer does not tell.
        limit: the longest sequence it takes; None: any.
        context: of how many tokens the sequences were that it learnt from, where that is known.
        causal: predicts the next token, as logits.
        argument: the name its ids go by; empty: they are given by position.
        random: no weights were loaded.
        paired: an encoder and a decoder, which both read the text.
        part: of a model with several towers, or an encoder-decoder, the path of the one that is taken; else empty.
    """

    module: nn.Module
    encode: Callable[[str], list[int]]
    pieces: Callable[[str], list[int]]
    limit: int | None
    causal: bool
    decode: Callable[[list[int]], str] | None = None
    bytes_of: Callable[[int], int] | None = None
    argument: str = ""
    random: bool = False
    paired: bool = False
    part: str = ""
    context: int | None = None

    @property
    def window(self) -> int:
        """Tokens of a window of a corpus, where nothing else is said: 256, or as many as it takes and learnt from."""
        return min(DEFAULT_LENGTH, self.limit or DEFAULT_LENGTH, self.context or DEFAULT_LENGTH)

    def given(self, ids: Tensor) -> Tensor | dict[str, Tensor]:
        """Ids [b, n] of one length, as `layerwise` takes them."""
        if not self.argument:
            return ids
        return {self.argument: ids, **({"decoder_input_ids": ids} if self.paired else {})}


def reads_text(options: Any) -> bool:
    """Whether flags speak of text: texts, a file, corpus or folder of them, or a model known to read nothing else."""
    given = options.text or options.texts or is_text(options.data, options.data_dir)
    return bool(given or is_language_model(options.model))


def of_random_weights(model: str) -> str:
    """What is said of a language model whose weights are random: by which name there are trained ones."""
    trained = [f"{model}.{tag} has" for tag in shipped_tags(model)]
    return f"{model} has random weights; {' or '.join([*trained, 'a run folder or hf:NAME gives it'])} trained ones"


def open_reader(choice: OneModelFlags, *, stack: str | None = None) -> TextReader:
    """The model of texts that a string names: a run or folder, a language model's name, `hf:`, `st:` or `given:NAME`.

    Args:
        choice: the model and how it is opened. The name of a size has random weights and reads bytes.
        stack: of an encoder-decoder "decoder" opens both; else the encoder alone. Of two towers that of texts is taken.

    Raises:
        ValueError: it does not read text.
        MissingData: it, or its tokenizer, is not there.
    """
    from unrolled.models.encoder import build_language_model
    from unrolled.models.registry import hub_hint
    from unrolled.models.sequence_config import ENCODERS, LANGUAGE_MODELS, language_config
    from unrolled.subjects.language import open_ours, source_of

    for flag in ("weights", "pretrained"):
        if getattr(choice, flag):
            known = "".join(f"{choice.model}.{tag}, " for tag in shipped_tags(choice.model))
            raise ValueError(f"{flag}: is for models of images; give {known}a folder or hf:NAME as the model")
    spec = named(choice.model)
    torch.manual_seed(choice.seed)
    if spec in (*LANGUAGE_MODELS, *ENCODERS):
        from unrolled.data.tokens import ByteTokenizer

        tokenizer = ByteTokenizer()
        config = language_config(spec, **{**choice.model_args, "vocab_size": tokenizer.vocab_size})
        return _ours(build_language_model(config), tokenizer, random=True)
    if choice.model_args:
        raise ValueError(f"model_args: {choice.model} decides them itself; leave them out")
    source, name = source_of(spec)
    if source == "ours":
        return _ours(*open_ours(choice.model, name))
    if source == "transformers":
        return _hugging_face(choice.model, name, stack)
    if spec.startswith(("given:", "st:")):
        return _encoder(choice.model, getattr(choice, "data_dir", None))
    check_spelling(choice.model)
    others = "; give a run on text, a language model of `unrolled list`, hf:NAME, st:NAME or given:NAME"
    raise ValueError(f"model: {choice.model} does not read text{hub_hint(choice.model) or others}")


def _ours(model: Any, tokenizer: Any, *, random: bool = False) -> TextReader:
    def ids(text: str) -> list[int]:
        tokens: list[int] = tokenizer.encode(text).tolist()
        return tokens

    return TextReader(
        module=model.eval(), encode=ids, pieces=ids, limit=model.longest, causal=bool(model.config.causal),
        random=random, context=None if random else model.config.max_length, bytes_of=tokenizer.bytes_of,
        decode=lambda tokens: str(tokenizer.decode(torch.tensor(tokens))),
    )  # fmt: skip


def _encoder(spec: str, data_dir: Path | None) -> TextReader:
    """A model that comes with a tokenizer of whole texts, as `unrolled.models.encoders` opens it."""
    from unrolled.models.encoders import open_encoder

    encoder = open_encoder(spec, "text", data_dir=data_dir)
    collate: Any = encoder.collate

    def encode(text: str) -> list[int]:
        ids: list[int] = collate([text])["input_ids"][0].tolist()
        return ids

    def pieces(text: str) -> list[int]:
        raise ValueError(f"data: {spec} reads texts by themselves; give text= or texts=")

    return TextReader(
        module=encoder.module, encode=encode, pieces=pieces, limit=None, argument="input_ids",
        causal=type(encoder.module).__name__.endswith("ForCausalLM"),
    )  # fmt: skip


def _hugging_face(spec: str, name: str, stack: str | None) -> TextReader:
    from unrolled.models.encoders import hub_tokenizer, part_name, tower_of
    from unrolled.models.resolve import hugging_face_text

    whole: Any = hugging_face_text(name)
    causal = type(whole).__name__.endswith(("ForCausalLM", "LMHeadModel"))
    paired = bool(getattr(whole.config, "is_encoder_decoder", False)) and stack == "decoder"
    module: Any = whole if paired or causal else tower_of(whole, "text")
    if not any(isinstance(part, nn.Embedding) for part in module.modules()):
        raise ValueError(f"model: {spec} ({type(whole).__name__}) does not read text")
    tokenizer = hub_tokenizer(spec, name)
    limit = getattr(module.config, "max_position_embeddings", None) or getattr(module.config, "n_positions", None)

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text)["input_ids"]
        return ids

    def pieces(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    return TextReader(
        module=module,
        encode=encode,
        pieces=pieces,
        limit=limit,
        causal=causal,
        decode=lambda tokens: str(tokenizer.decode(tokens, clean_up_tokenization_spaces=False)),
        bytes_of=_bytes_of(tokenizer),
        argument="input_ids",
        paired=paired,
        part=part_name(whole, module),
    )


def _bytes_of(tokenizer: Any) -> Callable[[int], int] | None:
    from unrolled.data.tokens import HubTokenizer

    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None:
        return None
    count, marks = HubTokenizer(inner).bytes_of, set(tokenizer.all_special_ids)
    return lambda token: 0 if token in marks else count(token)


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Token ids of texts, and what they are in words.

    Attributes:
        ids: of each text [n].
        name: of the data, for a folder.
        description: in words.
        whole: of the same length, from a corpus.
    """

    ids: list[Tensor]
    name: str
    description: str
    whole: bool = False

    def batches(self, size: int) -> Iterator[Tensor]:
        """Ids [b, n] of texts of one length each, so that there is no padding, the short ones first."""
        order = sorted(range(len(self.ids)), key=lambda row: len(self.ids[row]))
        start = 0
        while start < len(order):
            length = len(self.ids[order[start]])
            same = [row for row in order[start : start + size] if len(self.ids[row]) == length]
            yield torch.stack([self.ids[row] for row in same])
            start += len(same)


def open_texts(reader: TextReader, options: Any) -> Texts:
    """What flags say: `text`, the lines of the file `texts`, or `images` windows of the corpus `data`, drawn evenly.

    Raises:
        ValueError: no text, an empty one, or one that is too short or too long for the model.
        MissingData: no such file or corpus.
    """
    if options.text or options.texts:
        if options.data is not None or (options.text and options.texts):
            raise ValueError("text, texts, data: are three kinds of text; give one of them")
        return _given(reader, options)
    run = run_settings(options.model)
    if options.data is None:
        check("data", run.get("data"), f"the config.yaml of {options.model}")
    data = options.data or run.get("data")
    if data is None:
        raise ValueError(
            f"model: {options.model} reads text: add text=, texts= (a file, one text a line) or data='tinyshakespeare' "
            "and its data_dir="
        )
    folder = options.data_dir or (run.get("data_dir") if data == run.get("data") else None)
    held_out = run.get("held_out") if data == run.get("data") else None
    part = open_text(data, options.split, data_dir=folder, held_out=held_out)
    ids = torch.tensor(reader.pieces(part.text))
    length = options.length or min(run.get("length") or reader.window, reader.limit or DEFAULT_LENGTH)
    _check_length(length, reader, "length")
    if len(ids) < length:
        raise ValueError(f"length={length}: {part.description}, is {len(ids):,} tokens; give a smaller length")
    count = min(options.images, len(ids) // length)
    starts = torch.linspace(0, len(ids) - length, count, dtype=torch.float64).long()
    description = f"{count:,} windows of {length} tokens of {data} ({options.split} split), drawn evenly"
    description += f" (passed over: {part.passed_over})" if part.passed_over else ""
    return Texts(
        ids=[ids[start : start + length] for start in starts.tolist()], name=data, description=description, whole=True
    )


def _given(reader: TextReader, options: Any) -> Texts:
    if options.texts is not None:
        path: Path = options.texts.expanduser()
        if not path.is_file():
            raise MissingData(f"texts: there is no file {path}")
        texts, argument, name = read_lines(path)[: options.images], "texts", path.stem
        description = f"{len(texts):,} texts of {path.name}"
    else:
        texts, argument, name = list(options.text), "text", "text"
        description = "the text that was given" if len(texts) == 1 else f"the {len(texts)} texts that were given"
    if empty := [str(row + 1) for row, text in enumerate(texts) if not text.strip()]:
        raise ValueError(f"{argument}: text {', '.join(empty[:5])} is empty; leave it out")
    ids = []
    for row, text in enumerate(texts):
        tokens = reader.encode(text)
        if options.length is not None:
            tokens = tokens[: options.length]
        _check_length(len(tokens), reader, f"{argument}: text {row + 1} is too long; length= cuts it: it")
        ids.append(torch.tensor(tokens))
    return Texts(ids=ids, name=name, description=description)


def _check_length(length: int, reader: TextReader, what: str) -> None:
    if length < 1 or (reader.limit is not None and length > reader.limit):
        most = f"1 to {reader.limit}" if reader.limit is not None else "1 or more"
        raise ValueError(f"{what} has {length} tokens; this model takes {most}")
