"""Images are normalised for a model of the hub as it was trained, which its `preprocessor_config.json` says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unrolled.data import model_input
from unrolled.models.resolve import resolve_model

transformers = pytest.importorskip("transformers")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def vit(folder: Path, said: Any) -> str:
    """A tiny one with random weights."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=8, patch_size=4)).save_pretrained(folder)
    if said is not None:
        (folder / "preprocessor_config.json").write_text(said if isinstance(said, str) else json.dumps(said))
    return f"hf:{folder}"


@pytest.mark.parametrize(
    ("said", "mean", "std"),
    [
        ({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}, (0.5,) * 3, (0.25,) * 3),
        ({"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "do_normalize": False}, (0.0,), (1.0,)),
        ({"size": 8}, *IMAGENET),
        (None, *IMAGENET),
    ],
)
def test_the_mean_and_deviation_are_those_of_its_training(tmp_path: Path, said: Any, mean: Any, std: Any) -> None:
    expects = model_input(resolve_model(vit(tmp_path, said), pretrained=True))
    assert (set(expects["mean"]), set(expects["std"])) == (set(mean), set(std))


@pytest.mark.parametrize(
    "said",
    [
        {"image_mean": [0.5] * 2, "image_std": [0.5] * 2},
        {"image_mean": 1, "image_std": "x"},
        {"image_mean": [0.5] * 3, "image_std": [0.0] * 3},
        {"image_mean": [10**400], "image_std": [1]},
        '{"image_mean": [NaN], "image_std": [1]}',
        "{",
    ],
)
def test_what_cannot_be_is_said(tmp_path: Path, said: Any) -> None:
    with pytest.raises(ValueError, match=r"preprocessor_config\.json"):
        resolve_model(vit(tmp_path, said), pretrained=True)
