"""What the run folder that a model is from says: its settings, its data, and how these were divided."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from unrolled.catalogue import catalogue, shipped_text
from unrolled.errors import MissingData
from unrolled.subjects.options import DataFlags, SubjectFlags
from unrolled.trust import KINDS_OF_MODELS, MODEL_FILES, check

Flags = TypeVar("Flags", bound=SubjectFlags)


def named(spec: str) -> str:
    """`spec`, with `local:` in front if it is a path, the name of a folder, or of a file that is a model; of a language
    model that ships with this package its folder."""
    if (folder := shipped_text(spec)) is not None:
        return f"local:{folder}"
    path = ":" not in spec and ("/" in spec or os.sep in spec or spec.endswith(MODEL_FILES))
    path = path or (spec != "" and spec.partition(":")[0] not in KINDS_OF_MODELS and Path(spec).expanduser().is_dir())
    return f"local:{spec}" if path else spec


def run_settings(spec: str) -> dict[str, Any]:
    """The `config.yaml` of the run folder a MODEL argument means; empty for any other model.

    Raises:
        CorruptFile: there is one that cannot be read, or that does not say what the run was.
    """
    from unrolled.reading import read_settings
    from unrolled.train.config_files import run_values

    spec = named(spec)
    path = Path(spec.removeprefix("local:")).expanduser() / "config.yaml"
    if not spec.startswith("local:") or not os.path.lexists(path):
        return {}
    return run_values(read_settings(path), path)


def _check_there(model: str, weights: Path | None) -> None:
    """Refuse a folder or file that is not there, before data are read for it."""
    spec = named(model)
    if spec.startswith("local:") and not os.path.lexists(Path(spec.removeprefix("local:")).expanduser()):
        from unrolled.models.resolve import model_folder  # with torch, for its message

        model_folder(spec.removeprefix("local:"))
    if weights is not None and not os.path.lexists(weights.expanduser()) and shipped(str(weights)) is None:
        raise MissingData(f"weights: there is no folder or file {weights}, nor do weights of that name ship")


def check_spelling(model: str) -> None:
    """Refuse a name that no model has, before data are read for it and others are computed.

    Raises:
        ValueError: with the nearest names.
    """
    spec = named(model).removeprefix("timm:")
    if ":" not in spec and spec not in catalogue():
        from unrolled.models.registry import check_known  # with timm, for what only that knows

        check_known(model)
    elif spec.startswith("given:"):
        from unrolled.models.given import check_given

        check_given(spec.removeprefix("given:"))


def run_of(model: str, weights: Path | None = None) -> dict[str, Any]:
    """The `config.yaml` of the run that the weights are from: `weights`, or those of the model; empty if of none."""
    return (run_settings(str(weights)) if weights is not None else {}) or run_settings(model)


def shipped(spec: str) -> str | None:
    """What weights that ship with this package were trained on, if `spec` names them: their tag, up to a `_`."""
    name = spec.removeprefix("timm:")
    is_there = "/" not in name and (Path(__file__).resolve().parents[1] / "weights" / f"{name}.safetensors").is_file()
    return name.split(".", 1)[1].partition("_")[0] if is_there else None


@dataclass(frozen=True)
class DataOf:
    """Data for a model, and how they are divided into splits."""

    data: str
    data_dir: Path | None
    image_size: int | None
    split_seed: int = 0
    val_fraction: float = 0.0
    unknown_classes: Literal["raise", "skip"] = "raise"


def data_of(
    model: str,
    weights: Path | None = None,
    *,
    data: str | None = None,
    data_dir: Path | None = None,
    image_size: int | None = None,
) -> DataOf:
    """What was asked for; the rest as in the run the weights are from.

    Above all the division is the run's: under another seed, images it was trained on would be among those it is tested
    on.

    Raises:
        MissingData: the model or the weights are a folder or file that is not there.
        UnsafeFile: the run's data are an address, which no file may open.
    """
    _check_there(model, weights)
    run = run_of(model, weights)
    if not run and (known := shipped(model if weights is None else str(weights))) is not None:
        run = {"data": known}
    if data is None:
        check("data", run.get("data"), f"the config.yaml of {model if weights is None else weights}")
    chosen = data or run.get("data") or "digits"
    same = chosen == run.get("data")
    if data_dir is None and same and run.get("data_dir"):
        data_dir = Path(run["data_dir"])
    return DataOf(
        chosen,
        data_dir,
        image_size or run.get("image_size"),
        run.get("split_seed", 0) if same else 0,
        run.get("val_fraction", 0.0) if same else 0.0,
        run.get("unknown_classes", "raise") if same else "raise",
    )


def data_for(options: SubjectFlags) -> DataOf:
    """As `data_of`, of the flags of a verb; a mistyped name of a model is refused before data are looked for."""
    check_spelling(options.model)
    return data_of(
        options.model, options.weights, data=options.data, data_dir=options.data_dir, image_size=options.image_size
    )


def completed(options: Flags) -> tuple[Flags, DataOf]:
    """The flags with what they leave open about the data taken from the run the weights are from, and all of it."""
    data = data_for(options)
    return replace(options, data=data.data, data_dir=data.data_dir, image_size=data.image_size), data


def shared_data_of(models: Sequence[str], weights: Path | None, options: DataFlags) -> DataOf:
    """Data for several models: as asked for, else those of the first that is a run folder, divided as there."""
    all_data = [data_of(model, weights, data=options.data, data_dir=options.data_dir) for model in models]
    same = (
        data for model, data in zip(models, all_data, strict=True) if run_of(model, weights).get("data") == data.data
    )
    return next(same, all_data[0])
