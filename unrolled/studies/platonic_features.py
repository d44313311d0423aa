"""Features of captioned photos for the platonic studies: trained, untrained and damaged models, kept in one folder."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from unrolled.data.pairs import PairSource
    from unrolled.models.encoders import Encoder

NETS = ("efficientnet_lite0", "mobilenet_v1_075", "tiny_darknet", "squeezenet1_1")
"""The given ImageNet networks, from the most accurate on the sample of ImageNet photos to the least."""
TOP1 = {"efficientnet_lite0": 85.6, "mobilenet_v1_075": 83.0, "tiny_darknet": 64.3, "squeezenet1_1": 59.1}
"""Their top-1 accuracy on that sample, percent, as the notes of the weights give it."""
LABELS = {
    "given:efficientnet_lite0": "EfficientNet-Lite0", "given:mobilenet_v1_075": "MobileNet v1 0.75",
    "given:tiny_darknet": "Tiny Darknet", "given:squeezenet1_1": "SqueezeNet 1.1", "given:minilm": "MiniLM-L6",
    "given:glove": "GloVe 50d", "given:stories260k": "TinyStories LLaMA",
}  # fmt: skip
_CALIBRATION = 64  # photos from which an untrained network's batch norms take their statistics


def label(spec: str) -> str:
    """What a report calls a model."""
    return LABELS.get(spec, spec)


class PairFeatures:
    """Features of the same captioned photos in any model; what was computed once is read from `keep`.

    Args:
        data_dir: holds the photos and `weights/`.
        count: photos, drawn evenly.
        keep: folder of feature sets.
        device: where the models run.
        say: given a line of text before each model runs.
    """

    def __init__(
        self, *, data_dir: Path, count: int, keep: Path, device: str = "cpu", say: Callable[[str], None] | None = None
    ) -> None:
        import numpy as np

        from unrolled.data.pairs import open_pairs

        everything = open_pairs("flickr8k", data_dir=data_dir)
        rows = np.linspace(0, len(everything) - 1, min(count, len(everything))).round().astype(np.int64)
        self.pairs: PairSource = everything.take(rows)
        self.data_dir, self.keep, self.device = data_dir, keep, device
        self._say = say or (lambda line: None)
        self._name = hashlib.sha256(json.dumps(self.pairs.ids).encode()).hexdigest()[:16]
        self._opened: dict[tuple[str, str], Encoder] = {}

    def __len__(self) -> int:
        return len(self.pairs)

    def images(self, spec: str, *, untrained: int | None = None) -> dict[str, Tensor]:
        """layer -> [n, d]: the mean over places of every layer, photos as they are (224 x 224 pixels, not cropped).

        Args:
            spec: as in `open_encoder`.
            untrained: draw the weights anew from this seed; batch norms take their statistics from 64 photos.
        """
        from unrolled.data import eval_loader, eval_transform, model_input
        from unrolled.instruments.features.extraction import extract

        encoder = self._open(spec, "image")
        source = self.pairs.images()
        expects = model_input(encoder.module, native_size=source.native_size)
        said = {key: expects[key] for key in ("input_size", "mean", "std", "interpolation")} | {"crop_pct": 1.0}
        transform = eval_transform(**said)
        module = encoder.module
        if untrained is not None:
            first = next(iter(eval_loader(source, transform, batch_size=min(_CALIBRATION, len(source))))).images
            module = drawn_anew(module, untrained, first.to(self.device))
        self._say(f"{len(self)} photos through {label(spec)}{'' if untrained is None else ', untrained'}")
        found = extract(
            module, eval_loader(source, transform, batch_size=32), layers=list(encoder.layers), pooling="mean",
            name=spec, data=f"flickr8k photos {self._name}", inputs=json.dumps(said, sort_keys=True, default=str),
            cache=self.keep,
        )  # fmt: skip
        return dict(found)

    def captions(self, spec: str, *, untrained: int | None = None, damage: float = 0.0) -> dict[str, Tensor]:
        """layer -> [n, captions, d]: every caption alone, the mean over its tokens, of unit length.

        Args:
            spec: as in `open_encoder`.
            untrained: draw the weights anew from this seed.
            damage: add Gaussian noise of so many standard deviations of it to every matrix.
        """
        each = self.pairs.fewest
        texts = [text for row in self.pairs.captions for text in row[:each]]
        found = self.texts(spec, texts, untrained=untrained, damage=damage)
        return {layer: nn.functional.normalize(value, dim=1).unflatten(0, (-1, each)) for layer, value in found.items()}

    def texts(
        self, spec: str, texts: Sequence[str], *, untrained: int | None = None, damage: float = 0.0
    ) -> dict[str, Tensor]:
        """layer -> [n, d] of any texts, the mean over tokens; arguments as in `captions`."""
        from unrolled.instruments.features.text import extract_texts

        encoder = self._open(spec, "text")
        assert encoder.collate is not None
        state = "" if untrained is None else ", untrained"
        self._say(f"{len(texts)} texts through {label(spec)}{state}{f', damaged by {damage:g}' if damage else ''}")
        found = extract_texts(
            self.variant(spec, untrained=untrained, damage=damage), texts, encoder.collate, layers=list(encoder.layers),
            name=spec, data="flickr8k captions", cache=self.keep,
        )  # fmt: skip
        return dict(found)

    def variant(self, spec: str, *, untrained: int | None = None, damage: float = 0.0) -> nn.Module:
        """The text model itself, with weights drawn anew or damaged."""
        module = self._open(spec, "text").module
        if untrained is not None:
            return drawn_anew(module, untrained)
        return damaged(module, damage) if damage else module

    def tokenizer(self, spec: str) -> Any:
        """From texts to the model's keyword arguments."""
        return self._open(spec, "text").collate

    def _open(self, spec: str, kind: Any) -> Encoder:
        from unrolled.models.encoders import open_encoder

        if (spec, kind) not in self._opened:
            encoder = open_encoder(spec, kind, data_dir=self.data_dir)
            encoder.module.to(self.device)
            self._opened = {key: value for key, value in self._opened.items() if key[1] != kind}  # one at a time
            self._opened[spec, kind] = encoder
        return self._opened[spec, kind]


def drawn_anew(module: nn.Module, seed: int, images: Tensor | None = None) -> nn.Module:
    """A copy with initial weights: He's for convolutions, else PyTorch's own; norms without one are 1.

    With `images`, batch norms take their means and variances from them, since with those of no data a deep network
    would be almost linear.
    """
    fresh = copy.deepcopy(module)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for part in fresh.modules():
            if isinstance(part, nn.Conv2d):  # PyTorch's own would leave a deep network without norms all but dead
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
                if part.bias is not None:
                    part.bias.zero_()
            elif hasattr(part, "reset_parameters"):
                part.reset_parameters()  # type: ignore[operator]
            else:
                for parameter in part.parameters(recurse=False):
                    parameter.fill_(1.0)
        if images is not None:
            norms = [part for part in fresh.modules() if isinstance(part, nn.BatchNorm2d)]
            for norm in norms:
                norm.momentum = None
                norm.train()
            fresh(images)
            fresh.eval()
    return fresh


def damaged(module: nn.Module, amount: float, seed: int = 0) -> nn.Module:
    """A copy whose matrices have Gaussian noise of `amount` times their own standard deviation added."""
    worse = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in worse.parameters():
            if parameter.dim() > 1:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.add_(amount * parameter.std() * noise)
    return worse
