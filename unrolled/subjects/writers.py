"""Language models that continue a text, with their tokenizers: of this package and of transformers, in one way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unrolled.subjects.runs import named

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
    from unrolled.models.encoder import is_language_config, load_language_model
    from unrolled.models.resolve import model_folder
    from unrolled.models.sequence_config import ENCODERS, LANGUAGE_MODELS
    from unrolled.reading import read_object

    scheme, _, rest = named(spec).partition(":")
    if scheme == "hf" and not Path(rest).expanduser().is_dir():
        return _of_transformers(spec, rest)
    if scheme not in ("local", "hf") or not rest:
        if spec in (*LANGUAGE_MODELS, *ENCODERS):
            raise ValueError(
                f"model: {spec} is a size, with random weights and no tokenizer; train one (`unrolled train --task lm "
                f"--model {spec}`) and give its folder"
            )
        raise ValueError(f"model: {spec} is no folder; give that of a run on text, or hf:NAME of the Hugging Face hub")
    folder = model_folder(rest)
    config = read_object(folder / "config.json")
    if not is_language_config(config) and "model_type" in config:
        return _of_transformers(spec, str(folder))
    return _of_this_package(spec, load_language_model(folder), folder)


def _of_this_package(spec: str, model: Any, folder: Path) -> Writer:
    import torch

    from unrolled.data.tokens import load_tokenizer
    from unrolled.models.encoder import MaskedLanguageModel

    if isinstance(model, MaskedLanguageModel):
        raise ValueError(
            f"model: {spec} fills in masked tokens and cannot continue a text; give one of `unrolled train --task lm`"
        )
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"model: {spec} knows {model.config.vocab_size} tokens, its tokenizer.json {tokenizer.vocab_size}: they "
            "are not of one run"
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
