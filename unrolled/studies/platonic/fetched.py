"""Models in files of ONNX that `make models` brings along: which file each is, and how it is fed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from unrolled.errors import MissingData
from unrolled.models.encoders import Encoder, open_encoder
from unrolled.models.given import is_fetched
from unrolled.studies.cells import Context


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A graph.

    Attributes:
        label: what a report calls it.
        file: its name in the folder.
        layers: patterns of its tensors that are worth comparing, in order.
        parameters: how many numbers its weights are.
        images: how it is given images, see `open_onnx`.
        fixed: it takes images of one size.
    """

    label: str
    file: str
    layers: tuple[str, ...]
    parameters: int
    images: Mapping[str, Any] = field(default_factory=dict)
    fixed: bool = False


GRAPHS = {
    "open-nsfw": Graph(
        label="open_nsfw", file="open_nsfw.onnx", layers=("block??",), parameters=5_929_282,
        images={"mean": (123 / 255, 117 / 255, 104 / 255), "std": (1 / 255,) * 3, "order": "bgr"}, fixed=True,
    ),
    "nudenet": Graph(  # what follows is arithmetic of boxes
        label="NudeNet 320n", file="320n.onnx", layers=("block0[0-5]",), parameters=3_009_188,
        images={"mean": (0.0,) * 3, "std": (1.0,) * 3, "img_size": 320},
    ),
    "paraphrase-minilm-l3": Graph(
        label="paraphrase-MiniLM-L3", file="paraphrase-MiniLM-L3-v2.onnx", layers=("block??", "output0"),
        parameters=17_241_984,
    ),
}  # fmt: skip
"""By the name of the folder that holds the file."""


def folder_of(spec: str, context: Context) -> Path:
    """Where a model is looked for: those that `make models` brings along have a folder, others are with the data."""
    fetched = spec in GRAPHS or is_fetched(spec.removeprefix("given:"))
    return (context.folder("models") if fetched else context.data_dir).expanduser()


def open_in(spec: str, kind: Literal["image", "text"], folder: Path) -> Encoder:
    """A key of `GRAPHS`, or what `open_encoder` takes.

    Raises:
        ValueError: there is no such model.
        MissingData: it is not in the folder.
        MissingExtra: a package that it needs is not installed.
    """
    if spec not in GRAPHS:
        return open_encoder(spec, kind, data_dir=folder)
    from unrolled.models.onnx_graph import open_onnx

    graph = GRAPHS[spec]
    path = folder / spec / graph.file
    if not path.is_file():
        raise MissingData(f"models_dir: {spec} was not found (there is no {path}); give models_dir=")
    module = open_onnx(path, **graph.images)
    return Encoder(name=spec, module=module, kind=kind, collate=module.tokenizer, layers=graph.layers)
