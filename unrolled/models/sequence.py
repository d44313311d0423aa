"""Sequence models: stacks of attention layers into regressors and language models.

A variant is its layers and its config: the twin of a softmax model differs in `layers` alone. Configs, and the sizes
that have names, are in `unrolled.models.sequence_config`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from torch import Tensor, nn

from unrolled.checksums import check_model, write_sums
from unrolled.errors import MissingData
from unrolled.layers.ista import ISTA
from unrolled.layers.subspace import SubspaceAttention
from unrolled.models.building import building, check_finite_weights, reading_weights
from unrolled.models.generation import extend, sampler
from unrolled.models.sequence_blocks import MAKE_NORM, SequenceBlock, check_state, sinusoids
from unrolled.models.sequence_config import (
    LANGUAGE_MODELS,
    LanguageConfig,
    RegressorConfig,
    SequenceConfig,
    language_config,
)
from unrolled.ops.recording import is_recording, knows_sizes
from unrolled.reading import read_object

__all__ = [
    "LANGUAGE_MODELS",
    "LanguageConfig",
    "LanguageModel",
    "RegressorConfig",
    "SequenceRegressor",
    "SequenceState",
    "language_config",
]


class SequenceState(NamedTuple):
    """What a model remembers of earlier tokens: their number, and each layer's own state."""

    length: int
    layers: tuple[Any, ...]


class _SequenceModel(nn.Module, PyTorchModelHubMixin, library_name="unrolled"):  # type: ignore[call-arg]
    """Blocks, positions, final norm, saving and loading; subclasses add what goes in and what comes out."""

    config_class: ClassVar[type[SequenceConfig]]

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        if not isinstance(config, self.config_class):
            raise ValueError(f"config must be a {self.config_class.__name__}, not {type(config).__name__}")
        self.config: Any = config
        self.positions = nn.Embedding(config.max_length, config.dim) if config.positions == "learned" else None
        self.embed_norm: nn.Module = nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(SequenceBlock(config, index) for index in range(len(config.layers)))
        self.norm = MAKE_NORM[config.norm](config.dim)

    def _run(self, z: Tensor, state: SequenceState | None, return_state: bool) -> tuple[Tensor, SequenceState | None]:
        """Embedded tokens [b, n, d] through all blocks and the final norm."""
        start = 0 if state is None else state.length
        beside = None
        if self.config.positions == "first_layer":
            beside = sinusoids(start, z.shape[1], self.config.dim, z.device)
        elif self.positions is not None:
            z = z + self.positions.weight[start : start + z.shape[1]]
        elif self.config.positions == "sinusoidal":
            z = z + sinusoids(start, z.shape[1], self.config.dim, z.device).to(z.dtype)
        z = self.dropout(self.embed_norm(z))
        carried = state is not None or return_state
        states = []
        for index, block in enumerate(self.blocks):
            given = None if state is None else state.layers[index]
            place = beside if index == 0 else None
            out = block(z, positions=place, state=given, return_state=carried)
            z, after = out if carried else (out, None)
            z = z if self.config.clip is None else z.clamp(-self.config.clip, self.config.clip)
            states.append(after)
        after = SequenceState(start + z.shape[1], tuple(states)) if return_state else None
        return self.norm(z), after

    def _check(self, inputs: Tensor, state: SequenceState | None) -> None:
        """Sequence length and state; subclasses check what the tokens are."""
        if not knows_sizes(inputs):
            return
        if inputs.shape[0] == 0 or inputs.shape[1] == 0:
            raise ValueError(f"inputs: empty sequence, shape {tuple(inputs.shape)}; give at least one token")
        start = 0
        if state is not None:
            if not isinstance(state, SequenceState) or len(state.layers) != len(self.blocks):
                raise ValueError(f"state: must be a SequenceState of {len(self.blocks)} layers, as this model returns")
            for block, given in zip(self.blocks, state.layers, strict=True):
                check_state(block.get_submodule("attn"), given, inputs.shape[0])
            start = state.length
        self._check_length(start + inputs.shape[1])

    @property
    def longest(self) -> int | None:
        """The most tokens the model can be given, where it learns something by position; None for no limit."""
        by_position = self.positions is not None or "tssa" in self.config.layers
        return self.config.max_length if by_position else None

    def _check_length(self, length: int) -> None:
        if self.positions is not None and length > self.config.max_length:
            raise ValueError(
                f"inputs: {length} tokens, but the learned position table has max_length={self.config.max_length}. "
                "Rows beyond it were never learned, and stretching the table would move every token the model knows: "
                "shorten the sequence, train with a larger max_length, or use positions='sinusoidal' or 'none'"
            )

    def reset_parameters(self) -> None:
        """Initialise every parameter; the only place that does.

        | parameter                          | here                                                          |
        |------------------------------------|---------------------------------------------------------------|
        | weights of linear maps, embeddings | N(0, init_std^2); with init_std None PyTorch's defaults       |
        | of these, last maps of the halves  | divided by sqrt(2 * depth) in language models, as in GPT-2    |
        | MSSA, TSSA, both ISTAs             | the layers' own, as in `CRATE`                                |
        | norms, gates, convolutions, ridges | the layers' own                                               |
        """
        std = self.config.init_std
        if std is None:
            return
        shrink = (2 * len(self.blocks)) ** -0.5 if isinstance(self, LanguageModel) else 1.0
        initialised = {
            inner for m in self.modules() if isinstance(m, SubspaceAttention | ISTA) for inner in m.modules()
        }
        for path, module in self.named_modules():
            if module in initialised or path.endswith(".gates") or path.endswith(".forget"):
                continue
            if isinstance(module, nn.Linear | nn.Embedding):
                last = path.endswith((".attn.output", ".mlp.contract"))
                nn.init.normal_(module.weight, std=std * shrink if last else std)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The `README.md` that `save_pretrained` and `push_to_hub` write where there is none yet."""
        kind = type(self).__name__
        return ModelCard(
            "---\nlibrary_name: unrolled\ntags:\n- unrolled\n---\n\n"
            f"# {kind}\n\nA `{kind}` of the Python package `unrolled`; `config.json` has its settings, "
            "`model.safetensors` its weights.\n\nTo load it, with FOLDER for where these files are:\n\n"
            f"```python\nfrom {type(self).__module__} import {kind}\n\n"
            f'model = {kind}.from_pretrained("FOLDER").eval()\n```\n'
        )

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> Any:
        """Write `config.json`, `model.safetensors`, `SHA256SUMS` and, where there is none, a card."""
        pushed = super().save_pretrained(save_directory, **kwargs)
        write_sums(Path(save_directory))
        return pushed

    @classmethod
    def from_pretrained(cls, folder_or_id: str | Path, **kwargs: Any) -> Self:
        """Load a folder written by `save_pretrained`, or a hub repository `ORG/NAME`.

        Raises:
            ValueError: it describes another kind of model.
            CorruptFile: a file is damaged, or the weights are NaN.
        """
        if (folder := Path(folder_or_id)).is_dir():
            check_model(folder)
            read_object(folder / "config.json")
        model: Self = super().from_pretrained(folder_or_id, **kwargs)
        return model

    @classmethod
    def _from_pretrained(cls, *, model_id: str, config: Any = None, **kwargs: Any) -> Any:
        """The mixin's hook: read the config as a dataclass, load strictly, and say what does not fit."""
        if isinstance(config, dict) or config is None:
            fields, given = dataclasses.fields(cls.config_class), set(config or ())
            # fields with a default may be absent: a config written before they existed
            needed = {f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING}
            if not needed <= given <= {f.name for f in fields}:
                raise ValueError(f"{model_id}: config.json does not describe a {cls.__name__}")
            with building(model_id, {}):
                config = cls.config_class(**(config or {}))
        strict, device = kwargs.pop("strict", True), kwargs.pop("map_location", "cpu")
        folder = Path(model_id)
        weights = folder / "model.safetensors"
        if folder.is_dir() and not weights.is_file():
            raise MissingData(f"model: {folder} holds no model.safetensors")
        with building(model_id, {}), reading_weights(model_id, {}, True):
            if folder.is_dir():
                model = cls._load_as_safetensor(cls(config), str(weights), device, strict)
            else:
                options = {"config": config, "strict": strict, "map_location": device, **kwargs}
                model = super()._from_pretrained(model_id=model_id, **options)
        check_finite_weights(model, model_id)
        return model


class SequenceRegressor(_SequenceModel):
    """Continuous tokens in, a prediction at every position out: the models of the in-context experiments.

    `embed` (linear or none), `blocks`, `norm`, `head` (linear, or the first channels).
    """

    config_class: ClassVar[type[SequenceConfig]] = RegressorConfig

    def __init__(self, config: RegressorConfig) -> None:
        """Build the model; see `RegressorConfig`."""
        super().__init__(config)
        self.output_dim = config.output_dim or config.input_dim
        linear = config.embedding == "linear"
        self.embed = nn.Linear(config.input_dim, config.dim, bias=False) if linear else nn.Identity()
        self.head = nn.Linear(config.dim, self.output_dim, bias=False) if linear else FirstChannels(self.output_dim)
        self.reset_parameters()

    def forward(self, inputs: Tensor, *, state: SequenceState | None = None, return_state: bool = False) -> Any:
        """Predict.

        Args:
            inputs: observations or constructed tokens, [b, n, input_dim].
            state: of earlier tokens.
            return_state: also return the state after the last token.

        Returns:
            predictions [b, n, output_dim], or those and the state.

        Raises:
            ValueError: an empty sequence, one past the position table, other widths, or a state of another model.
        """
        if knows_sizes(inputs) and (inputs.ndim != 3 or inputs.shape[-1] != self.config.input_dim):
            raise ValueError(f"inputs: shape {tuple(inputs.shape)}, but must be [b, n, {self.config.input_dim}]")
        self._check(inputs, state)
        z, after = self._run(self.embed(inputs), state, return_state)
        out = self.head(z)
        return (out, after) if return_state else out

    def generate(self, prompt: Tensor, steps: int, *, cache: bool = True) -> Tensor:
        """Roll out: every prediction becomes the next observation.

        Args:
            prompt: [b, n, input_dim].
            steps: number of observations to add.
            cache: carry the state; False recomputes everything at every step, with the same result.

        Returns:
            [b, n + steps, input_dim].
        """
        if self.output_dim != self.config.input_dim:
            raise ValueError("generate: predictions of width output_dim cannot be observations of width input_dim")
        if prompt.ndim > 1:
            self._check_length(prompt.shape[1] + steps)
        return torch.cat([prompt, *extend(self, prompt, steps, lambda out: out[:, -1:], cache=cache)], dim=1)


class FirstChannels(nn.Module):
    """Reads the prediction off the first channels of constructed tokens."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, z: Tensor) -> Tensor:
        """[..., d] -> [..., count]."""
        return z[..., : self.count]


class LanguageModel(_SequenceModel):
    """Token ids in, logits of the next token out.

    `embed` (a table, tied to `head` by default), `positions`, `blocks`, `norm`, `head`.
    """

    config_class: ClassVar[type[SequenceConfig]] = LanguageConfig

    def __init__(self, config: LanguageConfig) -> None:
        """Build the model; see `LanguageConfig`."""
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.dim)
        if not config.final_norm:
            self.norm = nn.Identity()
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.tied:
            self.head.weight = self.embed.weight
        self.reset_parameters()

    def forward(self, tokens: Tensor, *, state: SequenceState | None = None, return_state: bool = False) -> Any:
        """Predict the next token at every position.

        Args:
            tokens: integer ids [b, n].
            state: of earlier tokens.
            return_state: also return the state after the last token.

        Returns:
            logits [b, n, vocab_size], or those and the state.

        Raises:
            ValueError: an empty sequence, one past the position table, an unknown token, or a state of another model.
        """
        self._check(tokens, state)
        z, after = self._run(self.embed(tokens), state, return_state)
        logits = self.head(z)
        if (cap := self.config.logit_cap) is not None:
            logits = cap * torch.tanh(logits / cap)
        return (logits, after) if return_state else logits

    def _check(self, inputs: Tensor, state: SequenceState | None) -> None:
        if knows_sizes(inputs) and (
            inputs.ndim != 2 or inputs.is_floating_point() or inputs.is_complex() or inputs.dtype == torch.bool
        ):
            raise ValueError(f"tokens: must be integers [b, n], not {inputs.dtype} {tuple(inputs.shape)}")
        super()._check(inputs, state)
        check_ids(inputs, self.config.vocab_size)

    def generate(
        self,
        prompt: Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        eos: int | None = None,
        seed: int | None = None,
        cache: bool = True,
    ) -> Tensor:
        """Continue prompts of equal length.

        Args:
            prompt: ids [b, n], e.g. `tokenizer(text, return_tensors="pt").input_ids`.
            max_new_tokens: number of tokens to add.
            temperature: 0 takes the likeliest token.
            top_k: sample among the k likeliest only.
            eos: id after which a sequence is over and repeats it; when all are over, generation stops.
            seed: of the samples; None takes PyTorch's global generator.
            cache: carry the state; False recomputes everything at every step, with the same result.

        Returns:
            ids [b, n + at most max_new_tokens]. A model with a table of positions is given the last `longest` of them;
            beyond these every token costs a pass over so many.

        Raises:
            ValueError: as in `forward`, but for the length.
        """
        new = self.stream(prompt, max_new_tokens, temperature=temperature, top_k=top_k, eos=eos, seed=seed, cache=cache)
        return torch.cat([prompt, *new], dim=1)

    def stream(
        self,
        prompt: Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        eos: int | None = None,
        seed: int | None = None,
        cache: bool = True,
    ) -> Iterator[Tensor]:
        """As `generate`, but the new ids as they come, [b, 1] each."""
        longest = self.longest
        self._check(prompt if longest is None or prompt.ndim != 2 else prompt[:, -longest:], None)
        pick = sampler(prompt, temperature=temperature, top_k=top_k, eos=eos, seed=seed)
        return extend(self, prompt, max_new_tokens, pick, cache=cache, longest=longest)


def check_ids(tokens: Tensor, vocab_size: int) -> None:
    """Raise `ValueError` for ids outside the vocabulary (not while compiling or recording)."""
    if torch.compiler.is_compiling() or is_recording(tokens):
        return
    low, high = (int(x) for x in torch.aminmax(tokens))
    if low < 0 or high >= vocab_size:
        unknown, last = low if low < 0 else high, vocab_size - 1
        raise ValueError(f"tokens: unknown token {unknown}; ids run from 0 to {last}. Is this the model's tokenizer?")
