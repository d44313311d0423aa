"""Which tokens of a layer are padding, by the masks that a model was given."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn


class Padding:
    """Of one model.

    Args:
        model: whose layers are asked about.
    """

    def __init__(self, model: nn.Module) -> None:
        # Longformer, LED and BigBird fill texts up to whole windows, on the right, whatever they were given
        self._fills = any(any(name.startswith("_pad_to_") for name in dir(type(part))) for part in model.modules())
        # of wav2vec 2.0 and its kin, from samples to frames
        self._of_frames: Callable[[int, Tensor], Tensor] | None = getattr(
            model, "_get_feature_vector_attention_mask", None
        )

    def mask(self, layer: str, count: int, arguments: Mapping[str, Tensor]) -> Tensor | None:
        """Bool [b, n], False for padding, of a layer's tokens; None: all count.

        Args:
            layer: its name in a trace.
            count: of its tokens.
            arguments: of the model, by name.

        Returns:
            Of another number of tokens where there is padding and which tokens it became is not known.
        """
        of_decoder = re.search(r"\bdecoder\b", layer) is not None and "decoder_input_ids" in arguments
        side = "decoder_" if of_decoder else ""
        ids = arguments.get(f"{side}input_ids")
        mask = arguments.get(f"{side}attention_mask")
        if mask is None and self._fills and ids is not None and ids.dim() == 2:
            mask = ids.new_ones(ids.shape)
        if mask is None:
            return None
        mask = mask.bool()
        if mask.dim() != 2 or mask.shape[1] == count:
            return mask if mask.dim() == 2 else None
        if self._fills and mask.shape[1] < count:
            return F.pad(mask, (0, count - mask.shape[1]), value=False)
        if self._of_frames is not None and not bool(mask.all()):
            return self._of_frames(count, mask.long()).bool()
        return None if bool(mask.all()) else mask
