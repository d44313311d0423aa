"""Bits per byte of any causal language model on any text: comparable whatever the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unrolled.instruments.sequences.losses import IGNORED, token_nats
from unrolled.modes import evaluating

_SPACE = "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"  # how byte-level BPE spells a space


def bits_per_byte(
    model: nn.Module,
    text: str,
    tokenizer: Any,
    *,
    length: int,
    stride: int | None = None,
    start: int | None = None,
    batch_size: int = 8,
) -> dict[str, Any]:
    """How many bits a model spends on each UTF-8 byte of a text.

    Every token is predicted exactly once. Windows of `length` tokens begin every `stride` tokens; in each, only the
    tokens that the window before did not reach are counted, so a prediction has at least `length - stride` tokens of
    context (fewer at the beginning of the text).

    Args:
        model: a causal language model of Hugging Face, or of this package: ids [b, n] to logits [b, n, v], or to an
            object with `logits`.
        text: the corpus.
        tokenizer: one of transformers or `tokenizers`, one of `unrolled.data.tokens`, or a function from text to ids.
            Special tokens are never added.
        length: tokens in a window, at most what the model was built for.
        stride: tokens between two windows; `length` if None, which is the cheapest and gives the least context.
        start: id put before the text (a model's beginning-of-sequence token). Its prediction is not asked for, and with
            it the first token of the text is predicted too; without it that token is left out, and its bytes with it.
        batch_size: windows at a time.

    Returns:
        `bits_per_byte`; `bits`, `bytes` and `tokens` it is the ratio of and was counted over; `nats_per_token`;
        `bytes_per_token`.

    Raises:
        ValueError: a text of fewer than two tokens (one with `start`), sizes that do not fit, ids the model's logits
            lack, or, without `start`, a tokenizer that does not tell the bytes of the first token.
    """
    stride = length if stride is None else stride
    if length < 1 or not 1 <= stride <= length or batch_size < 1:
        raise ValueError(f"length={length}, stride={stride}: must be 1 <= stride <= length, and batch_size at least 1")
    if not text:
        raise ValueError("text: is empty; give a corpus")
    ids = _encode(tokenizer, text)
    total = len(text.encode("utf-8"))
    if start is None:
        total -= _first_bytes(tokenizer, text, ids)
    else:
        ids = torch.cat([torch.tensor([start]), ids])
    if len(ids) < 2:
        raise ValueError(f"text: is {len(ids)} tokens, too few to predict one from another; give a longer text")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    nats, count = 0.0, 0
    with evaluating(model), torch.no_grad():
        for inputs, targets in _windows(ids, min(length, len(ids) - 1), stride, batch_size):
            out = model(inputs.to(device))
            logits = getattr(out, "logits", out)
            known = targets != IGNORED
            if int(targets.max()) >= logits.shape[-1]:
                raise ValueError(
                    f"tokenizer: has id {int(targets.max())}, but the model predicts {logits.shape[-1]} tokens; "
                    "give the model's own tokenizer"
                )
            nats += float(token_nats(logits, targets.to(device)).double().sum())
            count += int(known.sum())
    bits = nats / math.log(2)
    return {
        "bits_per_byte": bits / total,
        "bits": bits,
        "bytes": total,
        "tokens": count,
        "nats_per_token": nats / count,
        "bytes_per_token": total / count,
    }


def _windows(ids: Tensor, length: int, stride: int, batch_size: int) -> Any:
    """Inputs and targets [b, length]; a target is -100 where an earlier window predicted it."""
    stride = min(stride, length)
    last = len(ids) - 1 - length
    starts, reached = [*range(0, last, stride), last], 0
    rows: list[tuple[Tensor, Tensor]] = []
    for begin in starts:
        targets = ids[begin + 1 : begin + length + 1].clone()
        targets[: reached - begin] = IGNORED
        reached = begin + length
        rows.append((ids[begin : begin + length], targets))
    for first in range(0, len(rows), batch_size):
        inputs, targets_ = zip(*rows[first : first + batch_size], strict=True)
        yield torch.stack(inputs), torch.stack(targets_)


def _encode(tokenizer: Any, text: str) -> Tensor:
    encode: Callable[..., Any] = getattr(tokenizer, "encode", tokenizer)
    try:
        tokens = encode(text, add_special_tokens=False)  # transformers and tokenizers
    except TypeError:
        tokens = encode(text)
    tokens = getattr(tokens, "ids", tokens)
    return torch.as_tensor(tokens if isinstance(tokens, Tensor) else list(tokens), dtype=torch.int64).flatten()


def _first_bytes(tokenizer: Any, text: str, ids: Tensor) -> int:
    """UTF-8 bytes of the first token, exactly."""
    if len(ids) == 0:
        return 0
    first = int(ids[0])
    if hasattr(tokenizer, "bytes_of"):
        return int(tokenizer.bytes_of(first))
    if (spelt := _byte_level(tokenizer, first)) is not None:  # whose places in the text may leave out spaces
        return len(spelt) - (spelt[0] == _SPACE and text[0] != " ")  # it may have put a space before the text
    spans = _offsets(tokenizer, text)
    if spans is not None:
        end, after = spans[0][1], spans[1][0] if len(spans) > 1 else len(text)
        if after >= end:  # two tokens within one character share its place
            return len(text[:after].encode("utf-8"))
    raise ValueError(
        "tokenizer: does not tell how many bytes its first token is; pass start=, the id of the model's "
        "beginning-of-sequence token"
    )


def _byte_level(tokenizer: Any, token: int) -> str | None:
    """A token of byte-level BPE as it is spelt, a character a byte; None of other tokens."""
    inner = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if type(getattr(inner, "decoder", None)).__name__ != "ByteLevel" or token in inner.get_added_tokens_decoder():
        return None
    return inner.id_to_token(token) or None


def _offsets(tokenizer: Any, text: str) -> Sequence[tuple[int, int]] | None:
    """Places in the text of its first tokens, by a fast tokenizer."""
    head = text[:1000]
    inner = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(inner, "encode") or not hasattr(inner, "get_vocab_size"):
        return None
    spans: Sequence[tuple[int, int]] = inner.encode(head, add_special_tokens=False).offsets
    # of a character of several tokens each has the whole place: the first cannot be told apart
    return spans if spans and not (len(spans) > 1 and spans[1][0] < spans[0][1]) else None
