"""Language models that continue a text, with their tokenizers: of this package and of transformers, in one way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Writer:
    """A language model and its tokenizer.

    Attributes:
        model: called as a `LanguageModel` is: `model(ids, state=None, return_state=False)`.
        longest: the most tokens it can be given; None for no limit.
        encode: from a text to ids.
        decode: back.
        eos: the id that ends a text, if there is one.
    """

    model: Any
    longest: int | None
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    eos: int | None = None

    def write(
        self, prompt: list[int], tokens: int, *, temperature: float, top_k: int | None, seed: int, device: torch.device
    ) -> Iterator[int]:
        """The ids that follow those of a prompt, at most `tokens`, as they come; the one that ends a text is the last.

        Other arguments as of `LanguageModel.generate`.
        """
        import torch

        from unrolled.models.generation import extend, sampler

        start = torch.tensor([prompt], device=device)
        pick = sampler(start, temperature=temperature, top_k=top_k, eos=self.eos, seed=seed)
        for token in extend(self.model.to(device), start, tokens, pick, longest=self.longest):
            yield int(token)


def open_writer(spec: str) -> Writer:
    """The language model that a MODEL argument means: a run folder, a saved model, or `hf:` one.

    Raises:
        MissingData: it is not there, or has no tokenizer.
        MissingExtra: transformers is needed and not installed.
        ValueError: it is none, or one that cannot continue a text.
    """
    from unrolled.catalogue import catalogue, shipped_tags
    from unrolled.models.sequence_config import ENCODERS, LANGUAGE_MODELS
    from unrolled.subjects.language import source_of

    source, name = source_of(spec)
    if source == "ours":
        return _of_this_package(spec, name)
    if source == "transformers":
        return _of_transformers(spec, name)
    if name:
        raise ValueError(f"model: {name} holds no language model")
    if spec in (*LANGUAGE_MODELS, *ENCODERS):
        trained = " or ".join(f"{spec}.{tag}" for tag in shipped_tags(spec))
        raise ValueError(
            f"model: {spec} is a size, with random weights and no tokenizer; "
            f"{f'give {trained}, which ships, or ' if trained else ''}train one (`unrolled train --task lm "
            f"--model {spec}`) and give its folder"
        )
    if tags := shipped_tags(spec.partition(".")[0]):
        known = " or ".join(f"{spec.partition('.')[0]}.{tag}" for tag in tags)
        raise ValueError(f"model: {spec}: there are no such weights; did you mean {known}?")
    if spec.startswith(("timm:", "st:")) or spec.partition(".")[0] in catalogue():
        raise ValueError(f"model: {spec} writes no text; give a run on text, or hf:NAME of the Hugging Face hub")
    from unrolled.models.registry import hub_hint  # with timm

    others = "; give that of a run on text, or hf:NAME of the Hugging Face hub"
    raise ValueError(f"model: {spec} is no folder{hub_hint(spec) or others}")


def _of_this_package(spec: str, folder: str) -> Writer:
    import torch

    from unrolled.models.encoder import MaskedLanguageModel
    from unrolled.subjects.language import open_ours

    model, tokenizer = open_ours(spec, folder)
    if isinstance(model, MaskedLanguageModel):
        raise ValueError(
            f"model: {spec} fills in masked tokens and cannot continue a text; give one of `unrolled train --task lm`"
        )
    return Writer(
        model,
        model.longest,
        lambda text: tokenizer.encode(text).tolist(),
        lambda ids: tokenizer.decode(torch.tensor(ids, dtype=torch.int64)),
    )


def _of_transformers(spec: str, name: str) -> Writer:
    from unrolled.models.encoders import hub_tokenizer
    from unrolled.models.hub_language import HubLanguageModel
    from unrolled.models.resolve import build_transformers

    model = HubLanguageModel(build_transformers(name, True, {}, auto="AutoModelForCausalLM"))
    if not model.causal:
        raise ValueError(f"model: {spec} ({model.kind}) fills in masked tokens and cannot continue a text")
    tokenizer = hub_tokenizer(spec, name)
    return Writer(
        model,
        model.longest,
        lambda text: list(tokenizer(text)["input_ids"]),
        lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)),
        tokenizer.eos_token_id,
    )
