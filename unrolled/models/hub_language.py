"""Language models of transformers, called as this package's are."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn


class HubLanguageModel(nn.Module):
    """A causal language model of transformers with the signature of `LanguageModel`.

    The state is its cache; of a model with a cache of another kind, such as Mamba's, all tokens so far.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.config: Any = network.config
        self.caches = "past_key_values" in inspect.signature(network.forward).parameters

    def forward(self, tokens: Tensor, *, state: Any = None, return_state: bool = False) -> Any:
        """Logits [b, n, vocab_size] of ids [b, n], or those and the state; see `LanguageModel.forward`."""
        if self.caches:
            out = self.network(input_ids=tokens, past_key_values=state, use_cache=return_state)
            return (out.logits, out.past_key_values) if return_state else out.logits
        seen = tokens if state is None else torch.cat([state, tokens], dim=1)
        logits = self.network(input_ids=seen).logits[:, -tokens.shape[1] :]
        return (logits, seen) if return_state else logits

    @property
    def longest(self) -> int | None:
        """The most tokens that it was made for; None if its configuration does not say."""
        longest = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        return int(longest) if longest else None

    @property
    def causal(self) -> bool:
        """Whether every token sees itself and those before it: encoders have a head of this kind too."""
        from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

        encoders = self.config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        return not encoders or bool(getattr(self.config, "is_decoder", False))

    @property
    def kind(self) -> str:
        """The class in transformers."""
        return type(self.network).__name__
