"""What `platonic-brain` computes: layers beside inferior temporal cortex, and vectors of names beside judgements."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from unrolled.alignment.people import Array, agreement, correlation_rdms, noise_ceiling, unit_ranks, upper
from unrolled.data.human import brains, colours, things
from unrolled.instruments.control import drawn_anew
from unrolled.studies.cells import Cell, Columns, Context, Result
from unrolled.studies.networks import BATCH, Network
from unrolled.studies.pictures import as_input
from unrolled.studies.platonic.given import CIFAR, open_model
from unrolled.studies.platonic.photos import NETS
from unrolled.studies.platonic.words import word_vectors
from unrolled.studies.platonic.zoo import GPU, ZooConfig, family, full_name
from unrolled.studies.study import AtLeast, Budgets, Config

if TYPE_CHECKING:
    from numpy.typing import NDArray

TEXTS = ("minilm", "glove", "stories260k")
CONTROLS = ("pixels", "random numbers")
AGREEMENT = ("score", "tau", "interval", "null", "p")
RECORDED = ("monkeyIT", "animacy", "HMAX", "V1", "Silhouette")


@dataclass(kw_only=True)
class BrainConfig(Config):
    """Budgets change which networks are measured and how often images are resampled."""

    budgets: ClassVar[Budgets] = {
        "quick": {"draws": 50, "networks": NETS[-1:], "members": 0, "concepts": 150},
        "cpu": {},
        "gpu": {"draws": 1000, "concepts": 1000, "images": GPU["images"], "device": "cuda"},
    }

    data_dir: Path = Path("data")
    """Folder with `brain-92images`, `human-similarity`, `weights`, and `cifar10` for the zoo."""
    members: Annotated[int, AtLeast(0)] = 60
    """At most so many members of the zoo of `platonic-vision`; trained where that study has not run."""
    images: Annotated[int, AtLeast(4 * BATCH)] = 1400 * BATCH
    """Images a member sees in training, as there."""
    networks: tuple[str, ...] = NETS + CIFAR
    """Given networks; each is also measured untrained."""
    draws: Annotated[int, AtLeast(10)] = 200
    """Resamplings of images and people, and as many shufflings of the images."""
    concepts: Annotated[int, AtLeast(20)] = 400
    """Things, drawn from 1,854, whose names are compared with human judgement."""
    seed: int = 0
    """Of resamplings, untrained networks and the choice of things."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [name for name in self.networks if name not in NETS + CIFAR]:
            raise ValueError(f"networks: unknown {unknown[0]!r}; known are {', '.join(NETS + CIFAR)}")


@dataclass(frozen=True, kw_only=True)
class Ceiling(Cell):
    """What the records of brains say by themselves."""

    def require(self, context: Context) -> None:
        """The records."""
        brains(context.data_dir)

    def compute(self, context: Context) -> Result:
        """`ceiling`: bounds of what a perfect model can score on human IT; `monkey`: what monkey IT scores."""
        records = brains(context.data_dir)
        human = unit_ranks(upper(records.human.mean(0)))
        return {
            "ceiling": noise_ceiling(records.human),
            "monkey": float(unit_ranks(upper(records.monkey)) @ human),
        }


@dataclass(frozen=True, kw_only=True)
class BesideBrains(Cell):
    """Layers' dissimilarities of the 92 photographs beside those of human and monkey IT.

    Attributes:
        what: its name.
        draws: resamplings, and shufflings.
        drawn: their seed, and that of weights and numbers drawn.
    """

    what: str
    draws: int
    drawn: int
    numbers: ClassVar[tuple[str, ...]] = AGREEMENT

    @property
    def name(self) -> str:
        """What progress calls it."""
        return f"{self.what}, {self.group}"

    @property
    @abstractmethod
    def group(self) -> str:
        """What it is one of."""

    @abstractmethod
    def dissimilarities(self, context: Context) -> Mapping[str, Array]:
        """layer -> [92, 92]."""

    def require(self, context: Context) -> None:
        """The records."""
        brains(context.data_dir)

    def compute(self, context: Context) -> Result:
        """How the `best` layer agrees with human IT, as `Agreement` says it, and every layer; and with `monkey` IT."""
        records = brains(context.data_dir)
        layers = self.dissimilarities(context)
        stacked = np.stack(list(layers.values()))
        beside = agreement(stacked, records.human, draws=self.draws, seed=self.drawn)
        ranks = unit_ranks(upper(stacked))
        return {
            "layers": list(layers),
            "by_layer": beside.by_layer.tolist(),
            "best": list(layers)[beside.best],
            **{name: getattr(beside, name) for name in self.numbers},
            "monkey": float((ranks @ unit_ranks(upper(records.monkey))).max()),
            "human_mean": float((ranks @ unit_ranks(upper(records.human.mean(0))))[beside.best]),
        }


@dataclass(frozen=True, kw_only=True)
class Recorded(BesideBrains):
    """A model that came with the records."""

    group = "recorded"

    def dissimilarities(self, context: Context) -> Mapping[str, Array]:
        """As recorded."""
        return {self.what: brains(context.data_dir).models[self.what]}


@dataclass(frozen=True, kw_only=True)
class Control(BesideBrains):
    """The photographs at 32 pixels, or 500 random numbers each: what needs no network."""

    group = "control"

    def dissimilarities(self, context: Context) -> Mapping[str, Array]:
        """Of what it is."""
        stimuli = brains(context.data_dir).stimuli
        if self.what == "pixels":
            features = small_pictures(stimuli).flatten(1)
        else:
            features = torch.randn(len(stimuli), 500, generator=torch.Generator().manual_seed(self.drawn))
        return {self.what: correlation_rdms([features])[0]}


@dataclass(frozen=True, kw_only=True)
class Given(BesideBrains):
    """A network that others trained, or the same with weights drawn anew; with the scores of all resamplings."""

    trained: bool
    numbers: ClassVar[tuple[str, ...]] = (*AGREEMENT, "resampled")

    @property
    def group(self) -> str:
        """What it learnt."""
        return "untrained" if not self.trained else "ImageNet" if self.what in NETS else "CIFAR-10"

    def require(self, context: Context) -> None:
        """The records and the weights."""
        super().require(context)
        open_model(self.what, context)

    def dissimilarities(self, context: Context) -> Mapping[str, Array]:
        """Of every layer."""
        from PIL import Image

        model = open_model(self.what, context)
        assert model.transform is not None
        images = torch.stack([model.transform(Image.fromarray(one)) for one in brains(context.data_dir).stimuli])
        # batch norms of an untrained network take their statistics from the photographs: without any it would be dead
        module = model.module if self.trained else drawn_anew(model.module, self.drawn, images)
        return rdms(module.to(context.device), images, model.layers)


@dataclass(frozen=True, kw_only=True)
class OfMember(BesideBrains):
    """A member of the zoo."""

    network: Network

    @property
    def group(self) -> str:
        """The zoo and its family."""
        return f"zoo {family(self.network)}"

    def require(self, context: Context) -> None:
        """The records and what it is trained on."""
        super().require(context)
        self.network.require(context)

    def dissimilarities(self, context: Context) -> Mapping[str, Array]:
        """Of every block or stage."""
        images = as_input(small_pictures(brains(context.data_dir).stimuli))
        layers = "layer*" if family(self.network) == "cnn" else "block*"
        return rdms(self.network.load(context), images, (layers,))


def small_pictures(stimuli: NDArray[np.uint8]) -> Tensor:
    """Photographs [n, h, w, 3] as uint8 pixels [n, 3, 32, 32], averaged over the pixels that become one."""
    from PIL import Image

    resized = [np.asarray(Image.fromarray(one).resize((32, 32), Image.Resampling.BOX)) for one in stimuli]
    return torch.as_tensor(np.stack(resized)).permute(0, 3, 1, 2)


def rdms(model: nn.Module, images: Tensor, layers: Sequence[str]) -> dict[str, Array]:
    """Dissimilarities in every layer, features averaged over a 4 x 4 grid of places."""
    from unrolled.instruments.features import extract

    where = next(model.parameters()).device
    features = extract(model, images.to(where), layers=layers, pooling="grid", batch_size=23)
    return dict(zip(features, correlation_rdms(list(features.values())), strict=True))


@dataclass(frozen=True, kw_only=True)
class Judged(Cell):
    """Vectors of names beside human judgement of what they name.

    Attributes:
        vectors: of `TEXTS`; or CIELAB, for colours.
        draws: resamplings, and shufflings.
        drawn: their seed.
    """

    vectors: str
    draws: int
    drawn: int

    @abstractmethod
    def judgements(self, context: Context) -> tuple[list[str], Array]:
        """Names and dissimilarities [groups of people, n, n]."""

    def require(self, context: Context) -> None:
        """The judgements and the vectors."""
        self.judgements(context)
        if self.vectors in TEXTS:
            open_model(self.vectors, context)

    def compute(self, context: Context) -> Result:
        """Agreement of the `n` names that have a vector, and the people's noise `ceiling`."""
        from unrolled.models.given import find_weights

        names, people = self.judgements(context)
        if self.vectors == "CIELAB":
            lab = torch.as_tensor(colours(context.data_dir).lab)
            rdm = torch.cdist(lab, lab).numpy()
        else:
            vectors = word_vectors(self.vectors, names, find_weights(context.data_dir))
            known = (vectors.norm(dim=1) > 0).nonzero()[:, 0].numpy()
            people = people[np.ix_(np.arange(len(people)), known, known)]
            rdm = correlation_rdms([vectors[torch.as_tensor(known)]])[0]
        beside = agreement(rdm[None], people, draws=self.draws, seed=self.drawn)
        return {"n": len(rdm), **{name: getattr(beside, name) for name in AGREEMENT}, "ceiling": noise_ceiling(people)}


@dataclass(frozen=True, kw_only=True)
class Things(Judged):
    """Things drawn from 1,854, in four groups of people."""

    concepts: int

    def judgements(self, context: Context) -> tuple[list[str], Array]:
        """Of so many things."""
        return things(context.data_dir, self.concepts, self.drawn)


@dataclass(frozen=True, kw_only=True)
class Colours(Judged):
    """93 colours, in five groups of people."""

    def judgements(self, context: Context) -> tuple[list[str], Array]:
        """Of the colours."""
        rated = colours(context.data_dir)
        return rated.names, rated.groups


def cells(config: BrainConfig) -> Iterator[Cell]:
    """The records; models that came with them, controls, given networks, members of the zoo; names."""
    shared: Columns = {"draws": config.draws, "drawn": config.seed}
    yield Ceiling()
    yield from (Recorded(what=what, **shared) for what in RECORDED)
    yield from (Control(what=what, **shared) for what in CONTROLS)
    for what in config.networks:
        yield from (Given(what=what, trained=trained, **shared) for trained in (True, False))
    for network in ZooConfig(images=config.images).zoo[: config.members]:
        yield OfMember(what=full_name(network), network=network, **shared)
    yield from (Things(vectors=vectors, concepts=config.concepts, **shared) for vectors in TEXTS)
    yield from (Colours(vectors=vectors, **shared) for vectors in ("CIELAB", *TEXTS))
