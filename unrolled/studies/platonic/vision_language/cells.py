"""What `platonic-vision-language` computes: pairs of models compared layer by layer, and bits per byte."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from unrolled.errors import MissingData
from unrolled.studies.cells import Cell, Context, Result, data_missing
from unrolled.studies.platonic.photos import NETS, OfCaptions, OfPhotos, TextModel, opened
from unrolled.studies.study import AtLeast, Budgets, Config, Count, Distinct, Rate

if TYPE_CHECKING:
    from torch import Tensor

Models = Annotated[tuple[str, ...], Distinct()]


@dataclass(kw_only=True)
class VisionLanguageConfig(Config):
    """Budgets change the number of photos, models and relabellings."""

    budgets: ClassVar[Budgets] = {
        "quick": {
            "pairs": 128, "images": ("given:mobilenet_v1_075", "given:squeezenet1_1"), "draws": 50, "resamples": 20,
            "untrained_images": ("given:squeezenet1_1",), "damages": (0.2,), "corpus_bytes": 4000,
        },
        "cpu": {},
        "gpu": {
            "device": "cuda", "draws": 1000, "resamples": 400,
            "untrained_images": tuple(f"given:{name}" for name in NETS),
            "more_images": ("hf:facebook/dinov2-base", "hf:openai/clip-vit-base-patch32"),
            "more_texts": ("hf:bigscience/bloom-560m", "hf:bigscience/bloom-1b1", "hf:bigscience/bloom-1b7"),
        },
    }  # fmt: skip

    data_dir: Path = Path("data")
    """Holds `flickr8k-2000`, `weights` and `text`."""
    pairs: Count = 2000
    """Photos with their five captions, drawn evenly from the 2,000."""
    images: Models = tuple(f"given:{name}" for name in NETS)
    """Image networks."""
    texts: Models = ("given:minilm", "given:glove", "given:stories260k")
    """Text models; the reference figures are against the first."""
    more_images: tuple[str, ...] = ()
    """Further image networks, e.g. hf:ORG/NAME; those that cannot be had are `not run`."""
    more_texts: tuple[str, ...] = ()
    """Further language models, likewise."""
    untrained_images: tuple[str, ...] = ("given:efficientnet_lite0", "given:squeezenet1_1")
    """Image networks that are also run with weights drawn anew."""
    language_model: str = "given:stories260k"
    """Whose weights are damaged and drawn anew, for models of the same kind and different quality."""
    damages: tuple[Rate, ...] = (0.1, 0.2, 0.3)
    """Noise added to its matrices, in standard deviations of each."""
    corpus_bytes: Count = 40_000
    """Characters of WikiText-2 (test) on which bits per byte are measured."""
    k: Count = 10
    """Neighbours; the paper's 10."""
    draws: Count = 200
    """Relabellings for p-values."""
    resamples: Annotated[int, AtLeast(2)] = 100
    """Subsamples for intervals."""
    seed: int = 0
    """Of relabellings, subsamples, untrained weights and noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pairs < 4 * self.k:
            raise ValueError(f"pairs={self.pairs} are too few for k={self.k}: give at least {4 * self.k}")

    @property
    def states(self) -> list[TextModel]:
        """The language model as trained, damaged, and drawn anew."""
        model = partial(TextModel, text=self.language_model)
        return [model(), *(model(damage=damage) for damage in self.damages), model(text_drawn=self.seed)]


@dataclass(frozen=True, kw_only=True)
class Compared(Cell):
    """An image network with a text model: the best layers, and the last ones in several metrics."""

    photos: OfPhotos
    captions: OfCaptions
    k: int
    draws: int
    resamples: int
    seed: int

    @property
    def labels(self) -> tuple[str, str]:
        """What tables call the two models."""
        return self.photos.label, self.captions.model.label

    @property
    def name(self) -> str:
        """What progress calls it."""
        return " with ".join(self.labels)

    def compute(self, context: Context) -> Result:
        """What `compare_layers` says; of captions the mean is taken, which for neighbours by cosine is as good as their
        sum.
        """
        texts = {layer: value.mean(1) for layer, value in self.captions.by_photo(context).items()}
        return compare_layers(
            self.photos.load(context), texts, k=self.k, draws=self.draws, resamples=self.resamples, seed=self.seed
        )


def compare_layers(
    images: Mapping[str, Tensor], texts: Mapping[str, Tensor], *, k: int, draws: int, resamples: int, seed: int
) -> Result:
    """Two models: the best layers with everything `compare` says, and the last layers in several metrics.

    Args:
        images: layer -> [n, d] of the image network, in order.
        texts: layer -> [n, d] of the text model, in order.
        k: neighbours.
        draws, resamples, seed: as in `compare`.
    """
    from unrolled.alignment import compare, get_metric, prepare_features

    knn = get_metric("mutual_knn", k=k)
    best = compare(images, texts, knn, draws=draws, resamples=resamples, select_held_out=True, seed=seed).to_dict()
    x, y = list(images.values())[-1], list(texts.values())[-1]
    last: Result = {}
    metrics = {"mutual_knn": knn, "unbiased_cka": get_metric("unbiased_cka"), "cknna": get_metric("cknna", k=k)}
    for name, metric in metrics.items():
        one = compare({"x": x}, {"y": y}, metric, draws=draws, resamples=0, seed=seed)
        last[name] = {"score": one.score, "chance": one.chance, "p_value": one.p_value, "z": one.z}
    last["prepared"] = knn(prepare_features(x), prepare_features(y))
    last["first"] = [knn(value, y) for value in images.values()]
    return {"best": best, "last": last, "layers_image": list(images), "layers_text": list(texts)}


@dataclass(frozen=True, kw_only=True)
class Quality(Cell):
    """Bits per byte of a language model on the first `characters` of WikiText-2 (test)."""

    model: TextModel
    characters: int

    def require(self, context: Context) -> None:
        """The corpus and the model."""
        _corpus(context)
        opened(self.model.text, "text", context)

    def compute(self, context: Context) -> dict[str, float]:
        """`bits_per_byte`."""
        from unrolled.instruments.sequences.bits_per_byte import bits_per_byte

        tokenizer: Any = opened(self.model.text, "text", context).collate
        text = _corpus(context).read_text(encoding="utf-8")[: self.characters]
        measured = bits_per_byte(
            self.model.module(context),
            text,
            lambda piece: tokenizer.encode(piece, bos=False),
            length=256,
            start=tokenizer.bos_id,
        )
        return {"bits_per_byte": measured["bits_per_byte"]}


def _corpus(context: Context) -> Path:
    path = context.data_dir.expanduser() / "text" / "wikitext2_test.txt"
    if not path.is_file():
        raise data_missing("text/wikitext2_test.txt", MissingData(f"there is no {path}"))
    return path


def cells(config: VisionLanguageConfig) -> Iterator[Cell]:
    """Trained models with each other, then controls with the first of the other side, then the language model's states.

    Untrained and damaged models are controls.
    """
    photos = partial(OfPhotos, pairs=config.pairs)
    compared = partial(Compared, k=config.k, draws=config.draws, resamples=config.resamples, seed=config.seed)

    def captions(**model: Any) -> OfCaptions:
        return OfCaptions(pairs=config.pairs, model=TextModel(**model))

    for image in (*config.images, *config.more_images):
        for text in (*config.texts, *config.more_texts):
            yield compared(photos=photos(image=image), captions=captions(text=text))
    for image in config.untrained_images:
        drawn = photos(image=image, image_drawn=config.seed)
        yield compared(photos=drawn, captions=captions(text=config.texts[0]))
    first = photos(image=config.images[0])
    for text in config.texts:
        yield compared(photos=first, captions=captions(text=text, text_drawn=config.seed))
    for damage in config.damages:
        yield compared(photos=first, captions=captions(text=config.language_model, damage=damage))
    for state in config.states:
        yield Quality(model=state, characters=config.corpus_bytes)
