"""Language models in one GGUF file, which transformers reads: which file a name means, and what reading it needs."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unrolled.errors import CorruptFile, MissingData, require
from unrolled.models.building import first_line, without_bars

_OF_HUB = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)/([\w./-]+)")
_EXTRA = "gguf"


@dataclass(frozen=True)
class Gguf:
    """A GGUF file: metadata, a tokenizer and weights, which are often quantised.

    Attributes:
        folder: where it is, or a repository `ORG/NAME` of the Hugging Face hub.
        file: its name there.
    """

    folder: str
    file: str

    def require(self, name: str) -> Any:
        """transformers, with what it reads such files with.

        Raises:
            MissingExtra: one of them is not installed.
        """
        for module in ("gguf", "accelerate"):
            require(module, extra=_EXTRA, feature=f"model {name}")
        return require("transformers", extra=_EXTRA, feature=f"model {name}")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Within the block transformers reads the file; what it stumbles on in a damaged one is said.

        Raises:
            CorruptFile: the file is damaged.
        """
        try:
            yield
        except (IndexError, RuntimeError, UnicodeDecodeError, struct.error) as error:
            raise CorruptFile(f"model: {self.file} is cut off or damaged: {first_line(error)}") from error

    def load(self, loader: Any, config: Any) -> Any:
        """The model in float32, its weights no longer quantised.

        Args:
            loader: a class of transformers with `from_pretrained`.
            config: as read from the file.

        Raises:
            CorruptFile: weights are missing: transformers would draw them at random.
        """
        import torch
        import transformers

        options = {}
        if (settings := getattr(transformers, "GgufConfig", None)) is not None:
            options["quantization_config"] = settings(dequantize=True)  # else compiled kernels are fetched where it can
        with without_bars():
            model, report = loader.from_pretrained(
                self.folder, config=config, gguf_file=self.file, dtype=torch.float32, output_loading_info=True,
                trust_remote_code=False, **options,
            )  # fmt: skip
        if missing := sorted(report["missing_keys"]):
            raise CorruptFile(
                f"model: {self.file} lacks {len(missing)} of the weights ({missing[0]}, ...): it is one part of "
                "several, or cut off; give a whole file"
            )
        return model


def gguf_of(name: str, *, hub: bool = True) -> Gguf | None:
    """The GGUF file that a model's name means, without `hf:` or `local:`.

    Args:
        name: the path of such a file, `ORG/NAME/FILE.gguf` of the hub, or a folder that has one and no `config.json`.
        hub: whether a name that is no path may be one of the hub.

    Returns:
        the file; None where the name means another kind of model.

    Raises:
        MissingData: there is no such file.
        ValueError: the folder has several.
    """
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf" and not path.is_dir():
        if path.is_file():
            return Gguf(str(path.parent), path.name)
        of_hub = _OF_HUB.fullmatch(name) if hub and not path.parent.is_dir() else None
        if of_hub:
            return Gguf(of_hub[1], of_hub[2])
        raise MissingData(f"model: there is no file {path}")
    if not path.is_dir() or any((each / "config.json").is_file() for each in (path, path / "model")):
        return None
    files = sorted(each.name for each in path.iterdir() if each.suffix.lower() == ".gguf" and each.is_file())
    if len(files) > 1:
        raise ValueError(f"model: {path} has {len(files)} GGUF files ({', '.join(files[:4])}); name the file")
    return Gguf(str(path), files[0]) if files else None
