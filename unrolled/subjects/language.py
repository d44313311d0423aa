"""What a model takes by its string, whose language model it names, and those of this package with their tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unrolled.errors import MissingData
from unrolled.subjects.runs import named, run_settings

if TYPE_CHECKING:
    from unrolled.data.tokens import Tokenizer


def source_of(spec: str) -> tuple[Literal["ours", "transformers", "none"], str]:
    """Who opens the language model that a MODEL argument names, and its folder, or name on the hub.

    "none" is of any other model, with its folder, if it is one; else with an empty name.

    Raises:
        MissingData: there is no such folder, or no model in it.
        CorruptFile: its `config.json` cannot be read.
    """
    from unrolled.models.encoder import is_language_config
    from unrolled.models.gguf import gguf_of
    from unrolled.models.resolve import model_folder
    from unrolled.reading import read_object

    scheme, _, rest = named(spec).partition(":")
    if scheme in ("hf", "local") and rest and gguf_of(rest, hub=scheme == "hf") is not None:
        return "transformers", rest
    if rest.lower().endswith(".onnx"):  # features of images or of texts, no language model
        return "none", ""
    if scheme == "hf" and not Path(rest).expanduser().is_dir():
        return "transformers", rest
    if scheme not in ("local", "hf") or not rest:
        return "none", ""
    folder = model_folder(rest)
    config = read_object(folder / "config.json")
    if is_language_config(config):
        return "ours", str(folder)
    return "transformers" if "model_type" in config else "none", str(folder)


def kind_of(spec: str) -> Literal["image", "text"] | None:
    """What a model takes, as far as its string says it; None where only the opened model does."""
    from unrolled.models.given import GIVEN, given_names

    scheme, _, rest = spec.partition(":")
    if scheme == "given" and rest in GIVEN:
        return "text" if rest in given_names("text") else "image"
    if scheme == "st" or is_language_model(spec):
        return "text"
    return None if spec.lower().endswith(".onnx") or source_of(spec)[0] == "transformers" else "image"


def is_language_model(spec: str) -> bool:
    """Whether a MODEL argument names a language model of this package: by its name, with or without weights that ship,
    in a folder, or as a run on text.

    Raises:
        CorruptFile: a `config.json` or `config.yaml` cannot be read.
    """
    from unrolled.models.sequence_config import ENCODERS, LANGUAGE_MODELS

    if spec in (*LANGUAGE_MODELS, *ENCODERS) or run_settings(spec).get("task") in ("lm", "mlm"):
        return True
    try:
        return source_of(spec)[0] == "ours"
    except MissingData:  # no folder, or no model in it as yet: whoever opens it says so
        return False


def open_ours(spec: str, folder: str) -> tuple[Any, Tokenizer]:
    """The model of this package in a folder, in eval mode, and its tokenizer.

    Raises:
        MissingData: there is no tokenizer.
        ValueError: the tokenizer is of another run.
    """
    from unrolled.data.tokens import load_tokenizer
    from unrolled.models.encoder import load_language_model

    model, tokenizer = load_language_model(folder), load_tokenizer(Path(folder))
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"model: {spec} knows {model.config.vocab_size} tokens, its tokenizer.json {tokenizer.vocab_size}: they "
            "are not of one run"
        )
    return model, tokenizer
