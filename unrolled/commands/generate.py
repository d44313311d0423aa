"""`unrolled generate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from unrolled.commands.options import check_counts, verb
from unrolled.harness import JsonFlags, print_answer
from unrolled.reading import printable
from unrolled.subjects.models import choose_device
from unrolled.subjects.options import MachineFlags
from unrolled.subjects.writers import open_writer
from unrolled.terminal import say

_SHOWN = "\n\t"  # control characters that are part of a text; others could turn the terminal against its reader


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(MachineFlags, JsonFlags):
    """Flags of `unrolled generate`."""

    model: str = field(kw_only=False)
    """The folder of a run on text, crate_gpt_nano.bytes or mesanet_nano.bytes, which come with the package, or hf:NAME,
    a causal language model of the Hugging Face hub."""
    prompt: str = "\n"
    """The text to continue."""
    tokens: int = 200
    """How many tokens to add at most; a model that knows how a text ends may stop before."""
    temperature: float = 0.8
    """0 takes the likeliest token, 1 samples as the model says, more is bolder."""
    top_k: int | None = None
    """Sample among so many likeliest tokens only."""
    seed: int = 0
    """Of the samples: the same one gives the same text."""

    def __post_init__(self) -> None:
        check_counts(tokens=self.tokens, top_k=self.top_k)
        if self.temperature < 0:
            raise ValueError(f"--temperature {self.temperature:g}: give 0 (always the likeliest token) or more")


@verb
def generate(options: GenerateOptions) -> None:
    """Continue a text with a language model, and show the words as they come.

    Where the model has a longest context, it reads the last so many tokens of what stands there, and goes on.

        unrolled generate mesanet_nano.bytes --prompt "The natural selection of "
        unrolled generate runs/lm --prompt "To be" --tokens 500
        unrolled generate runs/lm --prompt "To be" --temperature 0
        unrolled generate hf:gpt2 --prompt "Once upon a time" --top-k 40 --seed 3 --json
    """
    from unrolled.models.generation import pieces

    where = choose_device(options.device)
    writer = open_writer(options.model)
    prompt = _encoded(writer.encode, options.prompt)
    if writer.longest is not None and len(prompt) > writer.longest:
        say(f"note: the prompt has {len(prompt):,} tokens; this model reads the last {writer.longest:,}")
    ids: list[int] = []

    def counted() -> Iterator[int]:
        for token in writer.write(
            prompt, options.tokens, temperature=options.temperature, top_k=options.top_k, seed=options.seed,
            device=where,
        ):  # fmt: skip
            ids.append(token)
            yield token

    if not options.json:
        print(printable(options.prompt, keep=_SHOWN), end="", flush=True)
    text = ""
    for piece in pieces(counted(), writer.decode, after=prompt):
        text += piece
        if not options.json:
            print(printable(piece, keep=_SHOWN), end="", flush=True)
    facts = {
        "model": options.model, "prompt": options.prompt, "text": text, "tokens": len(ids),
        "temperature": options.temperature, "top_k": options.top_k, "seed": options.seed,
    }  # fmt: skip
    print_answer("generate", facts, "", json=options.json)


def _encoded(encode: Callable[[str], list[int]], prompt: str) -> list[int]:
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ValueError("--prompt: holds bytes that are no UTF-8 text") from error
    try:
        ids = encode(prompt)
    except ValueError as error:  # of the tokenizer, which calls it a text; and text that is none
        raise ValueError(f"--prompt: {str(error).removeprefix('text: ')}") from error
    if not ids:
        raise ValueError(f"--prompt {prompt!r}: is no token to this model's tokenizer; give at least one letter")
    return ids
