"""Continuing a sequence one element at a time: sampling, carried states, and what lies beyond a model's context."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from unrolled.modes import evaluating

_COLD = 1e-5  # below it logits over temperature overflow, and the likeliest token is certain


def extend(
    model: Any,
    start: Tensor,
    steps: int,
    pick: Callable[[Any], Tensor | None],
    *,
    cache: bool = True,
    longest: int | None = None,
) -> Iterator[Tensor]:
    """What `pick(output of the model)` returns, `steps` times or until it returns None, each given to the model.

    Args:
        model: called as a `LanguageModel` or a `SequenceRegressor` is; it is in eval mode during each step.
        start: [b, n, ...].
        steps: how many.
        pick: the next element [b, 1, ...] of what the model says of all it was given.
        cache: carry the state; False recomputes everything at every step, with the same result.
        longest: the model is given so many elements, the last ones. When there are more, each stands at another place
            than in the step before, so that no state is of use: every step is one pass over the last `longest`.
    """
    if steps < 0:
        raise ValueError(f"{steps} new tokens: must be 0 or more")
    seen, state, new = start, None, start
    for _ in range(steps):
        window = seen if longest is None else seen[:, -longest:]
        with evaluating(model), torch.no_grad():
            if cache and window.shape[1] == seen.shape[1]:
                out, state = model(new, state=state, return_state=True)
            else:
                out = model(window)
        picked = pick(out)
        if picked is None:
            return
        yield picked
        new = picked
        seen = torch.cat([seen, new], dim=1)


def sampler(
    prompt: Tensor, *, temperature: float = 0.0, top_k: int | None = None, eos: int | None = None,
    seed: int | None = None,
) -> Callable[[Tensor], Tensor | None]:  # fmt: skip
    """What picks the next tokens [b, 1] from logits [b, n, vocab_size]; None when all sequences are over.

    Args:
        prompt: what is continued, [b, n]; its device and type are those of the tokens.
        temperature: 0 takes the likeliest token.
        top_k: sample among the k likeliest only.
        eos: id after which a sequence is over and repeats it.
        seed: of the samples; None takes PyTorch's global generator.

    Raises:
        ValueError: a negative temperature, or `top_k` below 1.
    """
    if not temperature >= 0 or (top_k is not None and top_k < 1):
        raise ValueError(f"temperature={temperature}, top_k={top_k}: must be >= 0 and at least 1")
    generator = None if seed is None else torch.Generator(prompt.device).manual_seed(seed)
    over = torch.zeros(len(prompt), 1, dtype=torch.bool, device=prompt.device)

    def pick(logits: Tensor) -> Tensor | None:
        nonlocal over
        if bool(over.all()):
            return None
        last = logits[:, -1].float()
        if top_k is not None:
            kth = last.topk(min(top_k, last.shape[-1])).values[:, -1:]
            last = last.masked_fill(last < kth, -torch.inf)
        if temperature < _COLD:
            token = last.argmax(-1, keepdim=True)
        else:
            token = torch.multinomial((last / temperature).softmax(-1), 1, generator=generator)
        if eos is not None:
            token = torch.where(over, eos, token)
            over = over | (token == eos)
        return token.to(prompt.dtype)

    return pick


def pieces(tokens: Iterable[int], decode: Callable[[list[int]], str], *, after: Sequence[int] = ()) -> Iterator[str]:
    """The text of tokens as they come, in pieces that put together are the text of all.

    A token may be a part of a letter, and what a token looks like may depend on the one before it: a piece is what the
    text of a few tokens has beyond that of the earlier of them, once it ends in a whole letter.

    Args:
        tokens: ids.
        decode: the text of ids; a part of a letter is U+FFFD.
        after: ids of the text that they continue.
    """
    ids = list(after[-1:])
    known = len(ids)  # of `ids`, those whose text is not to come
    for token in tokens:
        ids.append(token)
        text = decode(ids)
        if text.endswith("\ufffd"):
            continue
        if piece := text[len(decode(ids[:known])) :]:
            yield piece
        ids, known = ids[known:], len(ids) - known
    if rest := decode(ids)[len(decode(ids[:known])) :]:
        yield rest
