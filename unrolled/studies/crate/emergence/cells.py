"""What `crate-emergence` computes: maps of networks on annotated photos, and how they fit things, borders and parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import nn

from unrolled.data.masks import Scene
from unrolled.models.masked import whole_images
from unrolled.studies.cells import Cell, Columns, Context, Result
from unrolled.studies.crate.compared import NetworksConfig
from unrolled.studies.crate.emergence import maps
from unrolled.studies.crate.emergence.photos import Halves, bsds, coco, generated, samples
from unrolled.studies.kinds import BLOCKS, DEPTH, KINDS, MASKED, build
from unrolled.studies.networks import Data, Network
from unrolled.studies.study import AtLeast, Budgets, Seeds

PENULTIMATE = DEPTH - 2
_CLASSES = 200
Source = Literal["coco", "generated"]


@dataclass(kw_only=True)
class EmergenceConfig(NetworksConfig):
    """Networks are the roster's, trained once for all studies; `quick` needs no photos, and their images if it can."""

    budgets: ClassVar[Budgets] = {
        "quick": {
            **{"source": "generated", "photos": 12, "border_photos": 6, "seeds": (0,), "images": 1280, "workers": 1},
            **{"kinds": ("crate", "vit", "mae"), "changes": ("registers",), "other_sides": (32,)},
        },
        "cpu": {},
        "gpu": {"device": "cuda", "images": 1_280_000, "workers": 1},
    }

    source: Source = "coco"
    """Annotated photos: COCO and BSDS from `data_dir`, or made-up ones, which need no files."""
    data: Data = "tiny-imagenet-32"
    """What networks are trained on."""
    kinds: tuple[str, ...] = ("crate", "alpha", "vit", "mae", "vit-mae")
    """Measured in every way; names of the roster."""
    changes: tuple[str, ...] = ("registers", "orthogonal", "regularised", "tied", "width-48", "patch-8")
    """Changes of CRATE, measured by their attention alone."""
    seeds: Seeds = (0, 1, 2)
    """Of weights and training batches."""
    side: Annotated[int, AtLeast(8)] = 64
    """Pixels of a side at which everything is measured; networks were trained at 32."""
    other_sides: tuple[Annotated[int, AtLeast(8)], ...] = (32, 96)
    """Further sizes, with two seeds of the trained kinds and one untrained."""
    photos: Annotated[int, AtLeast(2)] = 100
    """Photos of either half, to choose layer and head by and to report on."""
    border_photos: Annotated[int, AtLeast(2)] = 50
    """Photos of BSDS."""
    parts: Annotated[int, AtLeast(2)] = 8
    """Commonest categories, things and stuff, that heads may keep to."""

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [kind for kind in (*self.kinds, *self.changes) if kind not in BLOCKS]
        if unknown or "crate" not in self.kinds:
            raise ValueError(f"kinds and changes: choose from {', '.join(BLOCKS)}, and 'crate' among kinds")
        if any(side % 4 for side in (self.side, *self.other_sides)):
            raise ValueError("side and other_sides must be multiples of 4, the patch")
        if self.data == "digits":
            raise ValueError("data='digits': grey images of 8 pixels; choose 'tiny-imagenet-32' or 'cifar10'")

    def networks(self, kind: str, state: str) -> list[Network]:
        """Of a kind, one a seed; one that differs in its loss alone is, untrained, a CRATE."""
        trained = state == "trained"
        kind = "crate" if KINDS[kind].rate and not trained else kind
        return [self.network(kind, self.data, seed, trained=trained) for seed in self.seeds]


@dataclass(frozen=True, kw_only=True)
class OnPhotos(Cell):
    """What is measured on annotated photos of a network, or of the patches' colours where there is none.

    Attributes:
        network: trained or not.
        source: of the photos.
        photos: of either half.
        side: pixels of a side at which the network sees them.
    """

    network: Network | None
    source: Source
    photos: int
    side: int

    def require(self, context: Context) -> None:
        """The photos."""
        self.scenes(context)

    def halves(self, context: Context) -> Halves:
        """Photos with things."""
        return generated(self.photos) if self.source == "generated" else coco(context.data_dir, self.photos)

    def scenes(self, context: Context) -> tuple[Scene, ...]:
        """Those that are reported on."""
        return self.halves(context).report

    def model(self, context: Context) -> nn.Module | None:
        """The network, None where there is none."""
        return None if self.network is None else loaded(self.network, context)


@dataclass(frozen=True, kw_only=True)
class Segmentation(OnPhotos):
    """How maps fit things."""

    network: Network

    def compute(self, context: Context) -> Result:
        """As `maps.segmentation` says."""
        return maps.segmentation(loaded(self.network, context), self.halves(context), self.side)


@dataclass(frozen=True, kw_only=True)
class Baselines(OnPhotos):
    """How well things are found without a model."""

    network: None = None

    def compute(self, context: Context) -> Result:
        """As `maps.segmentation_baselines` says."""
        return dict(maps.segmentation_baselines(self.scenes(context), self.side, 4))


@dataclass(frozen=True, kw_only=True)
class Objects(OnPhotos):
    """Objects in the keys of a layer."""

    layer: int

    def compute(self, context: Context) -> Result:
        """As `maps.objects` says."""
        return maps.objects(self.model(context), self.scenes(context), self.side, self.layer)


@dataclass(frozen=True, kw_only=True)
class Borders(OnPhotos):
    """Borders between clusters of the keys of a layer; `photos` are those that people drew borders on."""

    layer: int
    of: int
    """Photos of either half, of which generated ones with borders are the last."""

    def scenes(self, context: Context) -> tuple[Scene, ...]:
        """Photos with borders."""
        if self.source != "generated":
            return bsds(context.data_dir, self.photos)
        halves = generated(self.of)
        return (*halves.choose, *halves.report)[-self.photos :]

    def compute(self, context: Context) -> Result:
        """As `maps.borders` says."""
        return maps.borders(self.model(context), self.scenes(context), self.side, self.layer)


@dataclass(frozen=True, kw_only=True)
class Parts(OnPhotos):
    """Whether the heads of a layer keep to their parts."""

    network: Network
    layer: int
    parts: int

    def compute(self, context: Context) -> Result:
        """As `maps.consistency` says."""
        name = map_of(self.network.kind)
        model = loaded(self.network, context)
        return maps.consistency(model, self.scenes(context), self.side, self.layer, self.parts, name)


@dataclass(frozen=True, kw_only=True)
class Shown(Cell):
    """The map that was chosen, on photos that may be shown."""

    segmentation: Segmentation

    @property
    def needs(self) -> Sequence[Cell]:
        """The choice, and the training."""
        return (self.segmentation, *self.segmentation.needs)

    def compute(self, context: Context) -> Result:
        """`layer`, `head` of how many `heads`, and by photo the `maps` and what is `kept` of them, both `[h, w]`."""
        cell = self.segmentation
        measured = context.result(cell)
        layer, head = measured["maps"][map_of(cell.network.kind)][maps.RULE]["picked"]
        model = loaded(cell.network, context)
        chosen, masks = maps.chosen(model, samples(), cell.side, map_of(cell.network.kind), layer, head)
        where = {"layer": layer, "head": head, "heads": measured["heads"]}
        return {**where, "maps": chosen.tolist(), "kept": masks.tolist()}


def loaded(network: Network, context: Context) -> nn.Module:
    """A network that is shown whole images; an untrained one needs none of those that it would be trained on."""
    model = network.load(context) if network.images else build(network, classes=_CLASSES).to(context.device)
    return whole_images(model).eval()


def map_of(kind: str) -> str:
    """The kind of map that scores a kind: a masked autoencoder's class token is trained for nothing."""
    return "seed patch" if kind in MASKED else "class token"


def cells(config: EmergenceConfig) -> Iterator[Cell]:
    """Every network on every size, some in every way, beside what needs no model."""
    sides = (config.side, *config.other_sides)
    photos: Columns = {"source": config.source, "photos": config.photos}
    edges: Columns = {"source": config.source, "photos": config.border_photos, "of": config.photos}
    here: Columns = {"side": config.side, "layer": PENULTIMATE}
    for side in sides:
        yield Baselines(**photos, side=side)
    yield Objects(network=None, **photos, side=config.side, layer=0)
    yield Borders(network=None, **edges, side=config.side, layer=0)
    for kind in (*config.kinds, *config.changes):
        for state in ("trained", "untrained"):
            networks = config.networks(kind, state)
            for place, network in enumerate(networks):
                for side in sides:
                    few = 2 if state == "trained" else 1
                    if side == config.side or (kind in config.kinds and place < few):
                        yield Segmentation(network=network, **photos, side=side)
                if kind in config.kinds and (state == "trained" or not place):
                    yield Objects(network=network, **photos, **here)
                    yield Borders(network=network, **edges, **here)
                    yield Parts(network=network, **photos, **here, parts=config.parts)
            if kind in config.kinds:
                yield Shown(segmentation=Segmentation(network=networks[0], **photos, side=config.side))
