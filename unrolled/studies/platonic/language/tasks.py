"""What `platonic-language` computes of one model: bits per byte, stand-ins for benchmarks, colours, context, a probe.

Hellaswag and GSM8K cannot be had offline. In their place: which of four endings a caption has (Hellaswag's contexts are
captions too, of videos), and which of four numbers is the sum of two; both by likelihood, nothing is generated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unrolled.data.human import named_colours
from unrolled.data.sources import evenly
from unrolled.errors import MissingData
from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.language import opened as corpus
from unrolled.studies.networks import probe_accuracy
from unrolled.studies.pictures import pictures
from unrolled.studies.platonic.colour.cells import COLOUR_WORDS, TEMPLATES, Layout
from unrolled.studies.platonic.fetched import GRAPHS
from unrolled.studies.platonic.language.readers import Reader, nats
from unrolled.studies.platonic.photos import label, open_photos, opened

Domain = Literal["captions", "general"]
BROWN = "brown"
_SHORTEST, _LONGEST = 40, 200  # bytes of a sentence
_TUNING = 24  # sentences by which the mark is chosen that texts are read after
_MARGIN = 0.01  # bits per byte
_CHOICES = 4
_SIDE, _SMALL = 96, 64  # pixels that CIFAR-10 is enlarged to, for networks that expect more than the second
_LENGTH, _EARLY, _LATE, _WINDOW = 96, 4, 80, 15  # tokens of an excerpt, and where late is compared with early
_AT, _PAIRS, _WIDTH = 40, 4, 16  # mesa_descent: position, pairs, width of the states
_EVERY_PHOTO = 2000


@dataclass(frozen=True, kw_only=True)
class OfReader(Cell):
    """What follows from a language model."""

    reader: Reader

    @property
    def name(self) -> str:
        """The task and the model."""
        domain = f", {self.columns['domain']}" if "domain" in self.columns else ""
        return f"{type(self).__name__}{domain} of {self.reader.label}"

    def require(self, context: Context) -> None:
        """The model."""
        self.reader.require(context)


@dataclass(frozen=True, kw_only=True)
class Start(OfReader):
    """Which mark a text is read after: of those that the tokenizer names the one with the fewest bits on other text.

    Not every tokenizer's beginning of a text is one: SmolLM2's begins a turn of a chat. Another than the customary mark
    must be better by 0.01 bits per byte. The text is of the training part of the Brown corpus, which is scored nowhere;
    models of bytes, which were trained on it, have one mark.

    Attributes:
        sentences: how many are read.
    """

    sentences: int = _TUNING

    def require(self, context: Context) -> None:
        """The text and the model."""
        super().require(context)
        corpus(BROWN, context.data_dir)

    def compute(self, context: Context) -> Result:
        """`bits` per byte after each mark, the customary one first, and the best `mark`."""
        reader, texts = self.reader.open(context), sentences(context, "train", self.sentences)
        size = sum(len(text.encode()) for text in texts)
        bits = {
            mark: float(nats(reader, texts, start).sum()) / math.log(2) / size for mark, start in reader.starts.items()
        }
        best = min(bits, key=bits.__getitem__)
        customary = next(iter(bits))
        return {"bits": bits, "mark": customary if bits[customary] - bits[best] < _MARGIN else best}


@dataclass(frozen=True, kw_only=True)
class Predicted(OfReader):
    """What follows from how likely texts are to a language model, each read alone after the mark that `Start` chose."""

    @property
    def needs(self) -> Sequence[Cell]:
        """The mark too."""
        return (*super().needs, Start(reader=self.reader))

    def nats(self, context: Context, texts: Sequence[str], prefixes: Sequence[str] | None = None) -> Tensor:
        """As `readers.nats`."""
        reader = self.reader.open(context)
        return nats(reader, texts, reader.starts[context.result(Start(reader=self.reader))["mark"]], prefixes)


@dataclass(frozen=True, kw_only=True)
class Bits(Predicted):
    """Bits per byte of short texts, each read alone: captions of photos that are not compared, or sentences.

    Attributes:
        domain: "captions", or "general", sentences of the Brown corpus' test part.
        pieces: how many texts.
        pairs: photos that are compared, whose captions are left out.
    """

    domain: Domain
    pieces: int
    pairs: int

    def require(self, context: Context) -> None:
        """The texts and the model."""
        super().require(context)
        self._texts(context)

    def compute(self, context: Context) -> dict[str, float]:
        """`bits_per_byte`, its `error` (one standard error over the texts), the `bytes`, the model's `parameters`."""
        texts = self._texts(context)
        bits = self.nats(context, texts) / math.log(2)
        sizes = torch.tensor([len(text.encode()) for text in texts], dtype=torch.float64)
        ratio = float(bits.sum() / sizes.sum())
        error = float((bits - ratio * sizes).std() * len(texts) ** 0.5 / sizes.sum())
        size = self.reader.open(context).parameters
        return {"bits_per_byte": ratio, "error": error, "bytes": int(sizes.sum()), "parameters": size}

    def _texts(self, context: Context) -> list[str]:
        if self.domain == "captions":
            return other_captions(context, self.pairs, self.pieces, caption=0)
        return sentences(context, "test", self.pieces)


def sentences(context: Context, part: str, count: int) -> list[str]:
    """Sentences of 40 to 200 bytes of a part of the Brown corpus, drawn evenly."""
    lines = bytes(corpus(BROWN, context.data_dir)[part].tolist()).decode("utf-8", "ignore").split("\n")
    fit = [text for text in lines if _SHORTEST <= len(text.encode()) <= _LONGEST]
    return [fit[i] for i in evenly(count, len(fit))]


def other_captions(context: Context, pairs: int, count: int, *, caption: int) -> list[str]:
    """One caption each of up to `count` photos that are not among the `pairs` that are compared."""
    every = open_photos(context.data_dir, _EVERY_PHOTO)
    compared = set(open_photos(context.data_dir, pairs).ids)
    texts = [texts[caption] for name, texts in zip(every.ids, every.captions, strict=True) if name not in compared]
    if not texts:
        raise MissingData(f"photos: all {len(every)} are compared, which leaves no captions to measure language on")
    return [texts[i] for i in evenly(min(count, len(texts)), len(texts))]


@dataclass(frozen=True, kw_only=True)
class Choice(Predicted):
    """Items with one right ending of four, chosen by likelihood."""

    items: int
    seed: int

    def score(self, context: Context, starts: Sequence[str], endings: Sequence[Sequence[str]]) -> dict[str, float]:
        """`accuracy`, the share of items whose first ending has the fewest nats a byte, and its standard `error`."""
        texts = [start + end for start, ends in zip(starts, endings, strict=True) for end in ends]
        prefixes = [start for start, ends in zip(starts, endings, strict=True) for _ in ends]
        sizes = torch.tensor([len(end.encode()) for ends in endings for end in ends], dtype=torch.float64)
        best = (self.nats(context, texts, prefixes) / sizes).view(len(starts), -1).argmin(1)
        accuracy = float((best == 0).double().mean())
        return {"accuracy": accuracy, "error": (accuracy * (1 - accuracy) / len(starts)) ** 0.5}


@dataclass(frozen=True, kw_only=True)
class Continuation(Choice):
    """Which ending a caption has, of its own and three of other captions: in place of Hellaswag."""

    pairs: int

    def require(self, context: Context) -> None:
        """The captions and the model."""
        super().require(context)
        other_captions(context, self.pairs, self.items, caption=1)

    def compute(self, context: Context) -> Result:
        """As `Choice.score`."""
        captions = other_captions(context, self.pairs, self.items, caption=1)
        return self.score(context, *endings(captions, self.seed))


def endings(captions: Sequence[str], seed: int) -> tuple[list[str], list[list[str]]]:
    """First halves of captions, by words; and four second halves for each, the right one first."""
    words = [caption.split() for caption in captions if len(caption.split()) >= 4]
    starts = [" ".join(each[: len(each) // 2]) for each in words]
    ends = [" " + " ".join(each[len(each) // 2 :]) for each in words]
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for place, right in enumerate(ends):
        wrong = [ends[i] for i in torch.randperm(len(ends), generator=generator).tolist() if i != place]
        rows.append([right, *[end for end in wrong if end != right][: _CHOICES - 1]])
    return starts, rows


@dataclass(frozen=True, kw_only=True)
class Sums(Choice):
    """Which of four numbers is the sum of two numbers of two digits: in place of GSM8K."""

    def compute(self, context: Context) -> Result:
        """As `Choice.score`."""
        return self.score(context, *sums(self.items, self.seed))


def sums(count: int, seed: int) -> tuple[list[str], list[list[str]]]:
    """`12 + 31 =` and four endings, the right one first, the others off by one or by ten; all have two digits."""
    generator = torch.Generator().manual_seed(seed)
    starts, rows = [], []
    for _ in range(count):
        a, b = torch.randint(12, 44, (2,), generator=generator).tolist()
        wrong = [(-10, -1, 1, 10)[i] for i in torch.randperm(4, generator=generator).tolist()][: _CHOICES - 1]
        starts.append(f"{a} + {b} =")
        rows.append([f" {a + b + off}" for off in (0, *wrong)])
    return starts, rows


@dataclass(frozen=True, kw_only=True)
class Colours(Layout):
    """Colour words in three short sentences, laid out by a model's layer at half its depth, beside CIELAB.

    Features are prepared as elsewhere here: the few elements by which many models mark a first token are clamped, which
    would else say how many tokens a word is made of and little more.
    """

    reader: Reader

    @property
    def name(self) -> str:
        """The task and the model."""
        return f"Colours of {self.reader.label}"

    def require(self, context: Context) -> None:
        """The words' colours and the model."""
        named_colours(context.data_dir / "human-similarity" / "xkcd_colours.tsv")
        self.reader.require(context)

    def compute(self, context: Context) -> Result:
        """As `Layout.score`, but for the points; the `layer`."""
        import numpy as np

        from unrolled.alignment import prepare_features
        from unrolled.instruments.features.text import extract_texts

        table = dict(named_colours(context.data_dir / "human-similarity" / "xkcd_colours.tsv"))
        words = [word for word in COLOUR_WORDS if word in table]
        model = self.reader.open(context)
        texts = [template.format(word) for template in TEMPLATES for word in words]
        layers = dict(extract_texts(model.body, texts, model.collate, layers=list(model.layers)))
        layer = list(layers)[len(layers) // 2]
        vectors = prepare_features(layers[layer]).double().unflatten(0, (len(TEMPLATES), -1)).mean(0)
        distances = torch.cdist(vectors, vectors).fill_diagonal_(0).numpy()
        result = self.score(distances, np.array([table[word] for word in words]))
        return {**{key: value for key, value in result.items() if key not in ("placed", "lab")}, "layer": layer}


@dataclass(frozen=True, kw_only=True)
class InContext(OfReader):
    """What a model learns from its context, of excerpts of 96 tokens of the Brown corpus: two probes of mesa models."""

    windows: int
    seed: int

    def require(self, context: Context) -> None:
        """The text and the model."""
        super().require(context)
        corpus(BROWN, context.data_dir)

    def compute(self, context: Context) -> Result:
        """`score` and `error` of `in_context_score`, the same of tokens in disorder, and `descent`, by layer.

        States of `mesa_descent` are the tokens' embeddings on the 16 first principal axes of those that occur.
        """
        from unrolled.instruments import in_context_score, mesa_descent

        model = self.reader.open(context)
        assert model.model is not None
        text = bytes(corpus(BROWN, context.data_dir)["test"].tolist()).decode("utf-8").replace("\n", " ")
        ids = torch.tensor(model.encode(text[: 8 * _LENGTH * self.windows]))
        ids = ids[: self.windows * _LENGTH].view(-1, _LENGTH)
        generator = torch.Generator().manual_seed(self.seed)
        disorder = torch.stack([row[torch.randperm(_LENGTH, generator=generator)] for row in ids])
        both = [
            in_context_score(model.model, rows, early=_EARLY, late=_LATE, window=_WINDOW, batch_size=8)
            for rows in (ids, disorder)
        ]
        descent = mesa_descent(
            model.body, ids, states=axes(_table(model.body), ids), position=_AT, pairs=_PAIRS, batch_size=32
        )
        keep = ("layer", "context", "foreign", "in_context", "next", "optimum")
        return {
            "score": both[0]["score"], "error": both[0]["standard_error"], "curve": both[0]["curve"],
            "disordered": both[1]["score"], "disordered_error": both[1]["standard_error"],
            "descent": [{key: record[key] for key in keep} for record in descent],
        }  # fmt: skip


def _table(body: nn.Module) -> nn.Embedding:
    inner: Any = getattr(body, "model", body)  # of a model of bytes what is inside the one that takes a mask
    table: nn.Embedding = inner.get_input_embeddings() if hasattr(inner, "get_input_embeddings") else inner.embed
    return table


def axes(table: nn.Embedding, ids: Tensor) -> Tensor:
    """[b, n, 16] float64: embeddings of the ids on their first principal axes, of unit variance together."""
    rows = table.weight.detach().double()[ids].flatten(0, 1)
    rows = rows - rows.mean(0)
    first = torch.linalg.eigh(rows.mT @ rows).eigenvectors[:, -_WIDTH:]
    states = rows @ first
    return (states / states.std()).unflatten(0, ids.shape)


@dataclass(frozen=True, kw_only=True)
class Probe(Cell):
    """A ridge classifier of CIFAR-10 on the last layer of an image network, on images of the test part.

    Two thirds of them fit it, the rest are scored. Networks that expect larger images see them at 96 pixels, or at
    their own size where they take no other.
    """

    image: str
    samples: int

    @property
    def name(self) -> str:
        """What progress calls it."""
        return f"probe of {label(self.image)}"

    def require(self, context: Context) -> None:
        """The images and the network."""
        pictures("cifar10", "test", context.data_dir)
        opened(self.image, "image", context)

    def compute(self, context: Context) -> dict[str, float]:
        """`accuracy`, its standard `error`, and the network's `parameters`."""
        from unrolled.data import model_input
        from unrolled.instruments.features import extract

        encoder = opened(self.image, "image", context)
        images = pictures("cifar10", "test", context.data_dir).first(self.samples)
        expects = model_input(encoder.module, native_size=(3, 32, 32))
        mean, std = (torch.tensor(expects[key]).view(3, 1, 1) for key in ("mean", "std"))
        graph = GRAPHS.get(self.image)
        full = expects["input_size"][-1]
        side = full if full <= _SMALL or (graph and graph.fixed) else _SIDE
        pixels = images.images.float() / 255
        if side != pixels.shape[-1]:
            pixels = nn.functional.interpolate(pixels, (side, side), mode="bicubic", antialias=True)
        features = extract(encoder.module, (pixels - mean) / std, layers=list(encoder.layers), pooling="mean")
        rows, split = list(features.values())[-1], 2 * self.samples // 3
        labels = images.labels
        accuracy = probe_accuracy((rows[:split], labels[:split]), (rows[split:], labels[split:]), 10)
        size = graph.parameters if graph else sum(value.numel() for value in encoder.module.parameters())
        error = (accuracy * (1 - accuracy) / (self.samples - split)) ** 0.5
        return {"accuracy": accuracy, "error": error, "parameters": size}
