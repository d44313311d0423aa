"""A zoo of small CRATEs, ViTs and CNNs, good and bad ones, that several studies of alignment share.

Networks of the shared roster that differ in family, size, seed, length of training, and in what they were taught: all
classes, half of the classes, shuffled labels, nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.kinds import stages
from unrolled.studies.networks import BATCH, Network, OfNetwork, Taught, probe_accuracy
from unrolled.studies.pictures import as_input, pictures, unseen_pictures
from unrolled.studies.results import Results
from unrolled.studies.study import AtLeast, Config, Count, Overrides

if TYPE_CHECKING:
    from unrolled.instruments.features import FeatureSet

FAMILIES = {"crate": "CRATE", "vit": "ViT", "cnn": "CNN"}
Images = Literal["held-out", "unseen"]
IMAGES: tuple[Images, ...] = get_args(Images)
Array = np.ndarray[Any, np.dtype[np.float64]]
QUICK: Overrides = {"data": "digits", "members": "few", "images": 60 * BATCH, "workers": 1}
GPU: Overrides = {"images": 20_000 * BATCH, "device": "cuda", "workers": 1}
_PROBED, _FITTED = 6000, 4000  # held-out images of a probe


@dataclass(kw_only=True)
class ZooConfig(Config):
    """What the studies over the zoo have in common; the same settings mean the same networks, trained once."""

    data: Literal["cifar10", "digits"] = "cifar10"
    """Images the members learn; `digits` (8x8, with scikit-learn) need no files."""
    data_dir: Path = Path("data")
    """Folder with `cifar10` and, for transfer, `tiny-imagenet-32`."""
    members: Literal["full", "few"] = "full"
    """Which members: 36, or 11 for a quick look."""
    images: Annotated[int, AtLeast(BATCH)] = 1400 * BATCH
    """Images a member sees in training, 128 a step; "brief" ones see a quarter."""
    workers: Count = 2

    @property
    def zoo(self) -> tuple[Network, ...]:
        """The members."""
        return roster(self)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the members."""
        return tuple(sorted({network.seed for network in self.zoo}))

    def member(self, family: str, size: str, seed: int, *, share: float = 1.0, **taught: Any) -> Network:
        """A member of a family and size, trained for a share of the steps."""
        images = BATCH * max(share > 0, round(share * (self.images // BATCH)))
        return Network(kind=f"{family}-{size}", data=self.data, seed=seed, images=images, **taught)


@dataclass(kw_only=True)
class AlignedConfig(ZooConfig):
    """Of studies that compare the members' features."""

    samples: Annotated[int, AtLeast(40)] = 1000
    """Held-out images whose features are compared; Huh et al. take 1,000."""
    k: Count = 10
    """Neighbours; the paper's 10."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k >= self.samples:
            raise ValueError(f"k={self.k}: must be less than samples={self.samples}")


def roster(config: ZooConfig) -> tuple[Network, ...]:
    """All members: 36, or 11 small ones."""
    half = tuple(range(5))
    if config.members == "few":
        few = [config.member(family, "small", seed) for family in FAMILIES for seed in (0, 1)]
        few.append(config.member("cnn", "small", 0, taught="all shuffled"))
        few.append(config.member("cnn", "small", 0, classes=half))
        return (*few, *(config.member(family, "small", 7, share=0) for family in FAMILIES))
    members = []
    shuffled: tuple[Taught, ...] = get_args(Taught)[1:]
    for family in FAMILIES:
        members += [config.member(family, size, seed) for size in ("small", "large") for seed in (0, 1, 2)]
        members += [config.member(family, "small", 3, taught=taught) for taught in shuffled]
        members += [config.member(family, "small", 4, classes=half)]
        members += [config.member(family, "large", seed, share=0) for seed in (7, 8)]
    # ViTs and CNNs stopped early are as accurate as a CRATE at the end, for comparisons at equal accuracy
    members += [config.member("vit", "large", seed, share=0.25) for seed in (5, 6)]
    return (*members, config.member("cnn", "small", 5, share=0.25))


def family(network: Network) -> str:
    """Of `FAMILIES`."""
    return network.kind.partition("-")[0]


def size(network: Network) -> str:
    """`small` or `large`."""
    return network.kind.partition("-")[2]


def full_name(network: Network) -> str:
    """Such as `cnn-small-half-shuffled-seed3`; that a training was brief is not said."""
    spoiled = network.taught.replace(" ", "-") if network.taught != "labels" else "" if network.images else "random"
    classes = f"classes{network.classes[0]}to{network.classes[-1]}" if network.classes else ""
    return "-".join(filter(None, (network.kind, spoiled, classes, f"seed{network.seed}")))


def short_name(network: Network) -> str:
    """A name for figures: `ViT l0`, `CNN s3 50 %` (large or small, seed, what was spoiled)."""
    mark = {"half shuffled": " 50 %", "all shuffled": " 100 %"}.get(network.taught, "")
    mark = mark if network.images else " untrained"
    return f"{FAMILIES[family(network)]} {size(network)[0]}{network.seed}{mark}{' 5 cl.' * bool(network.classes)}"


def group(network: Network) -> str:
    """What it was taught, in words."""
    if not network.images:
        return "untrained"
    if network.taught != "labels":
        return f"labels {network.taught}"
    return "half of the classes" if network.classes else "true labels"


def colour_of(network: Network) -> str:
    """The group of points it belongs to in figures: its family, spoiled ones apart."""
    return FAMILIES[family(network)] + ("" if network.sound else ", spoiled")


@dataclass(frozen=True, kw_only=True)
class LastLayer(OfNetwork):
    """Features of the last layer, averaged over places, that several cells look at."""

    def images(self, context: Context) -> Tensor:
        """What they are of, uint8 [n, c, h, w]."""
        raise NotImplementedError

    def compute(self, context: Context) -> Result:
        """How many `images` they are of."""
        return {"images": len(self.load(context))}

    def load(self, context: Context) -> Tensor:
        """[n, d]; from the store if they were extracted before."""
        from safetensors.torch import load_file, save_file

        path = self.file(context, ".safetensors")
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}.part")
            save_file({"features": last_layer(self.network.load(context), self.images(context))}, part)
            part.replace(path)
        return load_file(path)["features"]


@dataclass(frozen=True, kw_only=True)
class Unseen(LastLayer):
    """Of images that no member saw."""

    def require(self, context: Context) -> None:
        """The images."""
        super().require(context)
        unseen_pictures(context.data_dir)

    def images(self, context: Context) -> Tensor:
        """As `unseen_pictures` says."""
        return unseen_pictures(context.data_dir).images


@dataclass(frozen=True, kw_only=True)
class Probe(OfNetwork):
    """Accuracy of a ridge classifier on the last layer.

    Attributes:
        on: held-out images of the training data, or Tiny-ImageNet's, which no member saw: transfer.
    """

    on: Images

    @property
    def needs(self) -> Sequence[Cell]:
        """The training, and the features of unseen images."""
        return (Unseen(network=self.network),) if self.on == "unseen" else super().needs

    def compute(self, context: Context) -> Result:
        """`accuracy`, and how many images it was `fitted` and `scored` on."""
        if self.on == "unseen":
            images, rows = unseen_pictures(context.data_dir), Unseen(network=self.network).load(context)
        else:
            images = pictures(self.network.data, "test", context.data_dir).first(_PROBED)
            rows = last_layer(self.network.load(context), images.images)
        count = len(images.labels)
        fit = _FITTED if self.on == "held-out" and count == _PROBED else round(0.75 * count)
        labels = images.labels
        score = probe_accuracy((rows[:fit], labels[:fit]), (rows[fit:], labels[fit:]), len(images.classes))
        return {"accuracy": score, "fitted": fit, "scored": count - fit}


@dataclass(frozen=True, kw_only=True)
class Features(OfNetwork):
    """Features of all layers, averaged over places, of the first held-out images."""

    samples: int

    def compute(self, context: Context) -> Result:
        """The names of the `layers`."""
        return {"layers": list(self.load(context))}

    def load(self, context: Context) -> FeatureSet:
        """The features; from the store if they were extracted before."""
        from unrolled.instruments.features import extract

        images = pictures(self.network.data, "test", context.data_dir).first(self.samples).images
        return extract(
            self.network.load(context),
            as_input(images).to(context.device),
            layers="layer*" if family(self.network) == "cnn" else "block*",
            batch_size=500,
            name=full_name(self.network),
            data=f"{self.network.data}, first {len(images)} held-out",
            cache=context.store / "features",
        )


def zoo_cells(config: ZooConfig) -> Iterator[Cell]:
    """All members, and what they can do; long trainings first, so that processes end together."""
    zoo = sorted(config.zoo, key=lambda network: network.kind.endswith("small") or not network.images)
    yield from zoo
    for on in IMAGES if config.data == "cifar10" else IMAGES[:1]:
        yield from (Probe(network=network, on=on) for network in zoo)


def competence(results: Results[Any], networks: Sequence[Network]) -> tuple[Images, Array]:
    """What counts as competence, and the competence of each [m]: NaN where one was not run.

    It is transfer accuracy, or their probe's on their own data where there are no others.
    """
    for on in reversed(IMAGES):
        values = by_network(results.of(Probe, on=on), "accuracy", networks)
        if values is not None:
            return on, values
    return "held-out", np.full(len(networks), np.nan)


def by_network(results: Results[Any], name: str, networks: Sequence[Network]) -> Array | None:
    """A result of each network [m]; None where one was not run, or has none."""
    known = {row.cell.network: row.result[name] for row in results}
    values = [known.get(network) for network in networks]
    return None if None in values or not values else np.array(values)


def last_layer(model: nn.Module, images: Tensor) -> Tensor:
    """[n, d] features of the last block or stage, averaged over places; `images` uint8 [n, c, h, w]."""
    from unrolled.instruments.features.pooling import prefix_tokens

    device = next(model.parameters()).device
    skip, _ = prefix_tokens(model, None)  # the class token is not read out
    rows = []
    with torch.no_grad():
        for part in images.split(500):
            tokens = as_input(part).to(device)
            for stage in stages(model)[:-1]:
                tokens = stage(tokens)
            rows.append((tokens.mean((2, 3)) if tokens.ndim == 4 else tokens[:, skip:].mean(1)).cpu())
    return torch.cat(rows)
