"""Studies that compare kinds of the roster: their settings, accuracy by seed, and claims about differences of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from unrolled.studies.claim import Claim
from unrolled.studies.networks import BATCH, NAMES, Data, Network, images_seen
from unrolled.studies.results import OtherT, Results, Values
from unrolled.studies.study import AtLeast, Config, Count, Distinct, Seeds


@dataclass(kw_only=True)
class NetworksConfig(Config):
    """Of studies of the roster's networks; equal settings mean the same networks, trained once for all."""

    data_dir: Path = Path("data")
    """Folder with `cifar10` and `tiny-imagenet-32`."""
    images: Annotated[int, AtLeast(BATCH)] = 64_000
    """Images a network sees in training; of Tiny-ImageNet, which has 200 classes, half as many again."""
    seeds: Seeds = (0, 1, 2)
    """Networks of each kind."""
    workers: Count = 2

    def network(self, kind: str, data: Data, seed: int, *, trained: bool = True) -> Network:
        """A network of the roster, or the untrained one beside it."""
        return Network(kind=kind, data=data, seed=seed, images=images_seen(self.images, data) if trained else 0)


@dataclass(kw_only=True)
class ComparedConfig(NetworksConfig):
    """Of studies that compare kinds on several data sets."""

    data: Annotated[tuple[Data, ...], Distinct()] = ("cifar10", "tiny-imagenet-32")
    """What networks are trained on; claims are judged on the first."""


def of_kind(
    results: Results[Any], cell: type[OtherT], kind: str, data: Data, *, trained: bool = True
) -> Results[OtherT]:
    """Rows of the networks of a kind, or of what was measured of them, one a seed."""
    rows = results.of(cell, kind=kind, data=data)
    return Results(row for row in rows if bool(row.cell.columns["images"]) == trained)


def trained(results: Results[Any], kind: str, data: Data) -> Results[Network]:
    """The trained networks of a kind, one a seed."""
    return of_kind(results, Network, kind, data)


def accuracy(results: Results[Any], kind: str, data: Data) -> Values:
    """Of a kind's networks, per cent."""
    return 100 * trained(results, kind, data).values("accuracy")


def difference(results: Results[Any], one: str, other: str, data: Data) -> Values:
    """Accuracy of `one` less that of `other`, points, seed by seed."""
    return accuracy(results, one, data) - accuracy(results, other, data)


def difference_claim(
    statement: str,
    one: str,
    other: str,
    *,
    source: str,
    published: str,
    low: float = -math.inf,
    high: float = math.inf,
    **judged: Any,
) -> Claim:
    """About `difference`, judged on the first data set; the others stand behind it. `judged`: see `Claim`."""

    def detail(results: Results[Any], config: ComparedConfig) -> str:
        first = difference(results, one, other, config.data[0])
        words = [f" ({NAMES[config.data[0]]}, {first.count})"]
        for data in config.data[1:]:
            values = difference(results, one, other, data)
            words.append(f"{values:+.1f} ({NAMES[data]}{f', {values.count}' if values else ''})")
        return "; ".join(words)

    return Claim(
        statement=statement,
        source=source,
        published=published,
        value=lambda results, config: difference(results, one, other, config.data[0]),
        low=low,
        high=high,
        spec="+.1f",
        detail=detail,
        **judged,
    )
