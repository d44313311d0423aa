"""What `platonic-language` computes of pairs of models: features of the same captioned photos, and how they agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args

from unrolled.data.sources import evenly
from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.platonic.language import tasks
from unrolled.studies.platonic.language.prompts import Prompt
from unrolled.studies.platonic.language.readers import Bytes, Named, Reader
from unrolled.studies.platonic.photos import NETS, Collection, Features, OfPhotos
from unrolled.studies.study import AtLeast, Budgets, Config, Count, Distinct, Rate, Seeds

if TYPE_CHECKING:
    from torch import Tensor

    from unrolled.instruments.features import FeatureSet

Models = Annotated[tuple[str, ...], Distinct()]
CIFAR = (
    *("given:resnet20", "given:resnet56", "given:vit_d128_p4"),
    *("crate_nano_patch4_32.cifar10", "crate_nano_patch4_32.cifar10_conv"),
)
"""Networks that learnt the labels of CIFAR-10, on which the probe is taken."""
_IMAGENET = tuple(f"given:{name}" for name in (*NETS, "efficientnet_lite1", "efficientnet_lite2"))
_CORPUS = "brown"  # whose training part our models of bytes read, and whose test part is the general text


@dataclass(kw_only=True)
class LanguageConfig(Config):
    """Budgets change the number of photos, models, items and relabellings."""

    budgets: ClassVar[Budgets] = {
        "quick": {
            "photos": 64, "images": ("given:squeezenet1_1", "given:resnet20"), "languages": ("given:stories260k",),
            "embeddings": ("given:glove",), "bytes": ("1x32x20",), "untrained": "given:stories260k", "draws": 20,
            "resamples": 10, "probe": 120, "pieces": 12, "items": 8, "windows": 8, "layers": 4, "coco": 64,
            "coco_images": ("given:squeezenet1_1",), "prompted": ("given:stories260k",), "seeds": (0,), "steps": 4,
        },
        "cpu": {},
        "gpu": {"device": "cuda", "photos": 2000, "draws": 1000, "items": 1000, "pieces": 1000, "layers": 40},
    }  # fmt: skip

    data_dir: Path = Path("data")
    """Holds `flickr8k-2000`, `weights`, `text`, `cifar10` and `human-similarity`."""
    models_dir: Path = Path("models")
    """Holds a folder for each language model that a package brings along (`make models`); what is absent is left
    out."""
    photos: Count = 400
    """Photos with their first caption, drawn evenly from the 2,000 of Flickr8k."""
    coco: Count = 363
    """The same of COCO, of the 363 that have captions here."""
    images: Models = (*_IMAGENET, "open-nsfw", "nudenet", *CIFAR, "crate_mae_nano_patch4_32.cifar10")
    """Image networks."""
    coco_images: Models = ("given:efficientnet_lite0", "given:mobilenet_v1_075", "open-nsfw", "given:squeezenet1_1")
    """Of these, those that also see COCO's photos."""
    languages: Models = ("given:stories260k", "smollm2-135m", "gemma3-270m", "qwen2.5-coder-0.5b")
    """Language models that others trained."""
    bytes: Models = ("2x64x100", "2x64x600", "3x128x250")
    """Models of bytes that are trained here on the Brown corpus: LAYERSxWIDTHxSTEPS."""
    embeddings: Models = ("given:minilm", "paraphrase-minilm-l3", "given:glove", "given:wordllama", "given:tokenlearn")
    """Sentence and word embeddings, which have no bits per byte."""
    in_context: tuple[str, ...] = ("given:stories260k", "smollm2-135m")
    """Language models, and their untrained twins, of which it is asked what they learn from their context."""
    prompted: tuple[str, ...] = ("given:stories260k", "smollm2-135m")
    """Language models that a prompt is tuned for, and for their untrained twins."""
    vectors: Count = 8
    """Vectors of a tuned prompt."""
    steps: Count = 40
    """Steps of tuning, of four sequences."""
    rate: Rate = 0.3
    """Learning rate of tuning, as a share of the deviation of the table of tokens."""
    seeds: Seeds = (0, 1, 2)
    """Of tuned prompts and their sequences."""
    untrained: str = "smollm2-135m"
    """The language model whose twin with weights drawn anew is the control."""
    layers: Annotated[int, AtLeast(2)] = 7
    """Layers of each model that are compared, evenly spaced, the last among them."""
    k: Count = 10
    """Neighbours; the paper's 10."""
    draws: Count = 100
    """Relabellings for chance and p-values."""
    resamples: Annotated[int, AtLeast(2)] = 30
    """Subsamples of the photos for intervals."""
    probe: Annotated[int, AtLeast(100)] = 1500
    """Images of CIFAR-10's test part for the linear probe; two thirds to fit, one third to score."""
    pieces: Count = 80
    """Captions of other photos, and sentences of the Brown corpus, on which bits per byte are measured."""
    items: Count = 64
    """Items of each stand-in task."""
    windows: Annotated[int, AtLeast(8)] = 24
    """Excerpts of text for what is learnt in context."""
    seed: int = 0
    """Of relabellings, subsamples, untrained weights, trainings and items."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.photos < 4 * self.k:
            raise ValueError(f"photos={self.photos} are too few for k={self.k}: give at least {4 * self.k}")
        for size in self.bytes:
            if len(size.split("x")) != 3 or not all(part.isdigit() and int(part) for part in size.split("x")):
                raise ValueError(f"bytes={size!r}: give LAYERSxWIDTHxSTEPS, such as 2x64x800")

    @property
    def context(self) -> Context:
        """What cells are given: the folder of models too."""
        return replace(super().context, elsewhere={"models": self.models_dir})

    @property
    def causal(self) -> list[Reader]:
        """Language models as trained, ours first."""
        return [*map(self._of_bytes, self.bytes), *(Named(text=text) for text in self.languages)]

    @property
    def twin(self) -> Named:
        """The untrained control."""
        return Named(text=self.untrained, text_drawn=self.seed)

    @property
    def readers(self) -> list[Reader]:
        """All text models, the control last."""
        return [*self.causal, *(Named(text=text) for text in self.embeddings), self.twin]

    def _of_bytes(self, size: str) -> Bytes:
        depth, dim, steps = map(int, size.split("x"))
        return Bytes(
            model=f"bytes {depth} x {dim}", corpus=_CORPUS, depth=depth, dim=dim, heads=max(1, dim // 32),
            seed=self.seed, length=256, batch_size=8, steps=steps, rates=(2e-3,), points=1, val_bytes=20_000,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Read(Features):
    """The mean over tokens of every layer of a text model, of the first caption of every photo."""

    reader: Reader

    @property
    def name(self) -> str:
        """What progress calls it."""
        return f"captions of {self.collection} read by {self.reader.label}"

    def require(self, context: Context) -> None:
        """The photos and the model."""
        super().require(context)
        self.reader.require(context)

    def extract(self, context: Context) -> FeatureSet:
        """Run the model."""
        from unrolled.instruments.features.text import extract_texts

        opened = self.reader.open(context)
        texts = [captions[0] for captions in self.captioned(context).captions]
        return extract_texts(
            opened.body, texts, opened.collate, layers=list(opened.layers), name=self.reader.label, data=self.collection
        )


@dataclass(frozen=True, kw_only=True)
class Agreement(Cell):
    """An image network and a text model on the same photos, layer by layer.

    Attributes:
        seen, read: the features.
        layers: so many of each model are compared, evenly spaced.
        k: neighbours.
        draws, resamples, seed: as in `alignment.compare`.
        exchanged: the control in which captions are given to other photos.
    """

    seen: OfPhotos
    read: Read
    layers: int
    k: int
    draws: int
    resamples: int
    seed: int
    exchanged: bool = False

    @property
    def labels(self) -> tuple[str, str]:
        """What tables call the two models."""
        return self.seen.label, self.read.reader.label

    @property
    def name(self) -> str:
        """What progress calls it."""
        return " with ".join(self.labels) + f", {self.seen.collection}" + ", shuffled" * self.exchanged

    def compute(self, context: Context) -> Result:
        """See `agreement`."""
        import torch

        images, texts = some(self.seen.load(context), self.layers), some(self.read.load(context), self.layers)
        if self.exchanged:
            order = torch.randperm(self.seen.pairs, generator=torch.Generator().manual_seed(self.seed + 1))
            texts = {layer: value[order] for layer, value in texts.items()}
        return agreement(images, texts, k=self.k, draws=self.draws, resamples=self.resamples, seed=self.seed)


def some(layers: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """At most `count` of a model's layers, evenly spaced, the last among them, as the paper prepares features: elements
    clamped at the 95th percentile of their size, rows of unit length.
    """
    from unrolled.alignment import prepare_features

    names = list(layers)
    chosen = [names[-1 - i] for i in evenly(min(count, len(names)), len(names))][::-1]
    return {name: prepare_features(layers[name].float()) for name in chosen}


def agreement(
    images: Mapping[str, Tensor], texts: Mapping[str, Tensor], *, k: int, draws: int, resamples: int, seed: int
) -> dict[str, Any]:
    """Two models: `knn`, everything `compare` says of mutual k-NN, and `cka`, of unbiased CKA without intervals.

    Args:
        images, texts: layer -> [n, d], in order.
        k: neighbours.
        draws, resamples, seed: as in `compare`.
    """
    from unrolled.alignment import compare, get_metric

    knn, cka = get_metric("mutual_knn", k=k), get_metric("unbiased_cka")
    both = {
        "knn": compare(images, texts, knn, draws=draws, resamples=resamples, select_held_out=True, seed=seed),
        "cka": compare(images, texts, cka, draws=draws, resamples=0, seed=seed),
    }
    result: dict[str, Any] = {}
    for name, comparison in both.items():
        values = comparison.to_dict()
        keep = ("score", "chance", "p_value", "interval", "best", "held_out", "n")
        result[name] = {key: values[key] for key in keep}
        result[name]["scores"] = [[round(value, 5) for value in row] for row in values["scores"]]
        result[name]["gain"] = (comparison.score - comparison.chance) / (1 - comparison.chance)
    return {**result, "layers_image": list(images), "layers_text": list(texts)}


def cells(config: LanguageConfig) -> Iterator[Cell]:
    """Model by model what each can do alone, the smallest first; then all pairs, the controls, and tuned prompts."""
    for reader in config.readers:
        yield Read(reader=reader, pairs=config.photos)
        yield Read(reader=reader, pairs=config.coco, collection="coco")
        yield from _alone(reader, config)
    for image in config.images:
        yield tasks.Probe(image=image, samples=config.probe)
    agree = partial(
        Agreement, layers=config.layers, k=config.k, draws=config.draws, resamples=config.resamples, seed=config.seed
    )

    def pair(image: str, reader: Reader, pairs: int, collection: Collection = "flickr8k", **options: bool) -> Agreement:
        return agree(
            seen=OfPhotos(image=image, pairs=pairs, collection=collection),
            read=Read(reader=reader, pairs=pairs, collection=collection),
            **options,
        )

    for reader in config.readers:
        for image in config.images:
            yield pair(image, reader, config.photos)
    for reader in config.readers:
        yield pair(config.images[0], reader, config.photos, exchanged=True)
    for reader in config.readers:
        for image in config.coco_images:
            yield pair(image, reader, config.coco, "coco")
    for text in config.prompted:
        for drawn in (None, config.seed):
            for seed in config.seeds:
                yield Prompt(
                    reader=Named(text=text, text_drawn=drawn), vectors=config.vectors, steps=config.steps,
                    rate=config.rate, seed=seed,
                )  # fmt: skip


def _alone(reader: Reader, config: LanguageConfig) -> Iterator[Cell]:
    """All tasks of a language model; of an untrained one neither bits nor choices, which it makes by chance."""
    if not reader.causal:
        return
    if reader != config.twin:
        yield tasks.Start(reader=reader)
        for domain in get_args(tasks.Domain):
            yield tasks.Bits(reader=reader, domain=domain, pieces=config.pieces, pairs=config.photos)
        yield tasks.Continuation(reader=reader, items=config.items, seed=config.seed, pairs=config.photos)
        yield tasks.Sums(reader=reader, items=config.items, seed=config.seed)
    yield tasks.Colours(reader=reader, fits=4, permutations=500, seed=config.seed)
    if isinstance(reader, Named) and reader.text in config.in_context:
        yield tasks.InContext(reader=reader, windows=config.windows, seed=config.seed)
