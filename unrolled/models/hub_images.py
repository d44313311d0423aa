"""How images were normalised for a model of the Hugging Face hub: its `preprocessor_config.json` says it."""

from __future__ import annotations

from typing import Any

from torch import nn

from unrolled.models.building import first_line

_MOST = 1e6  # pixels lie between 0 and 1; NaN, infinity and whole numbers too large for a float are not below it


def note_normalisation(model: nn.Module, name: str) -> None:
    """Keep the mean and deviation of each channel, of pixels from 0 to 1, as `model.normalisation` for `model_input`.

    A model of texts, or one that comes without the file, is left as it is.

    Args:
        model: of transformers.
        name: of the hub, or a folder; call it where the hub may be asked.

    Raises:
        ValueError: the file says what cannot be.
    """
    from transformers.image_processing_base import ImageProcessingMixin

    if getattr(model, "main_input_name", "") != "pixel_values":
        return
    try:
        settings: dict[str, Any] = ImageProcessingMixin.get_image_processor_dict(name)[0]
    except OSError as error:
        if "valid JSON" in str(error):
            raise ValueError(f"preprocessor_config.json: {first_line(error)}") from error
        return
    mean, std = settings.get("image_mean"), settings.get("image_std")
    if settings.get("do_normalize") is False:
        mean, std = [0.0], [1.0]
    if mean is None or std is None:
        return
    if not (_numbers(mean) and _numbers(std) and len(mean) == len(std) and min(std) > 0):
        raise ValueError(
            f"preprocessor_config.json: image_mean {mean!r} and image_std {std!r} are not of 1 or 3 channels"
        )
    model.normalisation = {"mean": tuple(mean), "std": tuple(std)}  # type: ignore[assignment]


def _numbers(values: Any) -> bool:
    kind = isinstance(values, list) and len(values) in (1, 3)
    return kind and all(type(each) in (int, float) and abs(each) < _MOST for each in values)
