"""Write the table of models that the package comes with, from the models: `python -m tests.catalogue`."""

from __future__ import annotations

import json

import timm
import torch

from unrolled.catalogue import TABLE, ModelInfo
from unrolled.models.encoder import build_language_model, list_language_models, parameters
from unrolled.models.registry import list_models
from unrolled.models.sequence_config import language_config


def counted(info: ModelInfo, text: bool) -> ModelInfo:
    """With the parameters that the model has."""
    with torch.device("meta"):
        model = build_language_model(language_config(info.name)) if text else timm.create_model(info.name)
    counts = parameters(model)
    return info._replace(parameters=counts["all"], without_embeddings=counts["without_embeddings"] if text else None)


def rows() -> list[ModelInfo]:
    """All models, built on the meta device."""
    images = [counted(info, False) for info in list_models()]
    return images + [counted(info, True) for info in list_language_models()]


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(row._asdict()) for row in rows())
    TABLE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
