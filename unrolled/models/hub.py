"""Saving and loading in the format timm and the Hugging Face hub share: `model.safetensors` + `config.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from timm.models import push_to_hf_hub, save_for_hf

from unrolled.checksums import write_sums
from unrolled.models.building import create_with_timm


class HubMixin:
    """`save_pretrained`, `from_pretrained` and `push_to_hub` for classifiers registered with timm.

    What is written is also what `timm.create_model("local-dir:FOLDER", pretrained=True)` and
    `timm.create_model("hf-hub:ORG/NAME", pretrained=True)` read, once `unrolled.models` is imported.
    """

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> Path:
        """Write `model.safetensors`, `config.json`, `SHA256SUMS`; further arguments go to `timm.models.save_for_hf`."""
        save_for_hf(self, str(folder), safe_serialization=True, **kwargs)  # type: ignore[arg-type]
        write_sums(Path(folder))
        return Path(folder)

    @classmethod
    def from_pretrained(cls, folder_or_id: str | Path, **kwargs: Any) -> Self:
        """Load a folder written by `save_pretrained`, or a hub repository `ORG/NAME`.

        Further arguments override the saved ones as in `timm.create_model`: `num_classes=5` gives a new head,
        `img_size=448` resamples the positions.

        Raises:
            ValueError: the folder holds another kind of model.
            CorruptFile: a file is damaged, or the weights are NaN.
        """
        source = "local-dir" if Path(folder_or_id).is_dir() else "hf-hub"
        model = create_with_timm(f"{source}:{folder_or_id}", True, **kwargs)
        if not isinstance(model, cls):
            raise ValueError(f"{folder_or_id} holds a {type(model).__name__}, not a {cls.__name__}")
        return model

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """Upload to the hub; further arguments go to `timm.models.push_to_hf_hub` (token, private, model_card, ...)."""
        return push_to_hf_hub(self, repo_id, safe_serialization=True, **kwargs)  # type: ignore[arg-type]
