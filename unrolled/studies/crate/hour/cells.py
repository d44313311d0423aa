"""What `crate-hour` computes of networks that learnt for an hour, and of fresh ones beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch

from unrolled.errors import MissingData
from unrolled.studies.cells import Cell, Columns, Context, Result, data_missing
from unrolled.studies.crate.emergence.cells import Baselines, Source
from unrolled.studies.crate.hour import removal
from unrolled.studies.crate.hour.among import Rates, students
from unrolled.studies.crate.hour.networks import CRATE, OLDER, OTHERS, VIT, Given, Looked, given, load, shown, studied
from unrolled.studies.crate.hour.photos import CutRegions, Cuts, Edges, Heads, Roles, Things
from unrolled.studies.crate.hour.pictures import Pictured
from unrolled.studies.crate.minutes.cells import Trial, epochs
from unrolled.studies.crate.transfer.cells import HELD_OUT, chance, frozen_features, pixels, target_pictures
from unrolled.studies.pictures import Pictures, pictures
from unrolled.studies.study import AtLeast, Budgets, Config, Count, Rate, Seeds

EPS = 0.1
PENULTIMATE = 4
"""Layer of six whose heads are asked whether they keep to their parts, as in `crate-emergence`; chosen by no score."""
_ECE_DRAWS = 300
_TRIAL_MINUTES = 4.0  # of `crate-minutes`, whose trials these are
Target = Literal["tiny-imagenet-32", "fashion_mnist"]


@dataclass(kw_only=True)
class HourConfig(Config):
    """Inference only: budgets change how many images are looked at, and which networks."""

    budgets: ClassVar[Budgets] = {
        "quick": {
            **{"others": (), "older": (), "rates": (), "seeds": (0,), "images": 20, "tested": 200, "trial_tested": 100},
            **{
                "targets": (),
                "explained": 2,
                "explained_fresh": 2,
                "source": "generated",
                "photos": 4,
            },
            **{"side": 32, "other_sides": (), "cut": 4, "parts": 2, "corrupted": 20, "students": 0, "pictured": 2},
        },
        "cpu": {},
        "gpu": {
            **{"device": "cuda", "images": 1000, "trial_tested": 10_000, "probe_images": 20_000},
            **{"test_images": 10_000, "explained": 1000},
        },
    }

    data_dir: Path = Path("data")
    """Folder with `cifar10`, `tiny-imagenet-32`, `fashion_mnist`, `coco-panoptic-200` and `bsds500-val`."""
    fashion_dir: Path | None = None
    """Folder with Fashion-MNIST's four files, or with a folder `fashion_mnist` of them; default `data_dir`."""
    crate: str = CRATE
    """Weights of the CRATE; claims are about it."""
    vit: str = VIT
    """Weights of the ViT that it is compared with."""
    others: tuple[str, ...] = OTHERS
    """Further weights that stand beside: of fresh ones layers and maps alone; borders and corruptions of none."""
    older: tuple[str, ...] = OLDER
    """Still further ones, of which layers, accuracy and transfer alone are measured."""
    rates: tuple[Rate, ...] = (3e-3, 5e-3, 1e-2, 2e-2)
    """Trials of `crate-minutes` whose layers are compared with their accuracy; trained where they are not kept."""
    seeds: Seeds = (0, 1, 2)
    """Of fresh weights."""
    images: Annotated[int, AtLeast(10)] = 300
    """Test images that layers are measured on."""
    tested: Annotated[int, AtLeast(50)] = 10_000
    """Test images for accuracy and calibration, of which the last fifth fits the temperature."""
    trial_tested: Annotated[int, AtLeast(50)] = 1000
    """Test images for the accuracy of a trial."""
    corrupted: Annotated[int, AtLeast(2)] = 400
    """Test images that are made worse in nine ways and five severities."""
    explained: Annotated[int, AtLeast(2)] = 200
    """Test images whose patches are removed."""
    explained_fresh: Annotated[int, AtLeast(2)] = 40
    """Of these, those that networks with fresh weights are asked about."""
    targets: tuple[Target, ...] = ("tiny-imagenet-32", "fashion_mnist")
    """What features are transferred to."""
    probe_images: Count = 3000
    """Training images of a target, of which a fifth is held out to choose layer and penalty."""
    test_images: Count = 2000
    """Its test images."""
    source: Source = "coco"
    """Annotated photos: COCO from `data_dir`, or made-up ones, which need no files."""
    photos: Annotated[int, AtLeast(2)] = 100
    """Photos of either half, to choose layer and head by and to report on."""
    side: Annotated[int, AtLeast(8)] = 64
    """Pixels of a side at which photos are shown; networks were trained at 32."""
    other_sides: tuple[Annotated[int, AtLeast(8)], ...] = (32, 96)
    """Further sizes for maps, with fresh weights of the first seed; for objects those below `side`."""
    cut: Annotated[int, AtLeast(2)] = 50
    """Photos of either half that people cut into regions."""
    parts: Annotated[int, AtLeast(2)] = 8
    """Commonest categories, things and stuff, that heads may keep to."""
    pictured: Annotated[int, AtLeast(1)] = 5
    """Best photos that are shown, and as many of the worst."""
    students: Annotated[int, AtLeast(0)] = 100
    """Test images on which R^c of the networks of `crate-aligned` is measured; 0: not of them. They are trained where
    they are not kept, in about two core-hours."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("crate", "vit", "others", "older"):
            value = getattr(self, name)
            for weights in value if isinstance(value, tuple) else (value,):
                try:
                    given(weights)
                except ValueError as error:
                    raise ValueError(f"{name}={error}") from error
        if self.side % 4:
            raise ValueError(f"side={self.side}: must be a multiple of 4, the patch")
        if any(side % 4 for side in self.other_sides) or self.side in self.other_sides:
            raise ValueError(f"other_sides={self.other_sides}: must be multiples of 4, the patch, other than side")

    @property
    def context(self) -> Context:
        """What cells are given; Fashion-MNIST may have a folder of its own."""
        elsewhere = {} if self.fashion_dir is None else {"fashion_mnist": self.fashion_dir}
        return replace(super().context, elsewhere=elsewhere)

    @property
    def twins(self) -> tuple[str, str]:
        """Names of the weights that everything is asked of, beside fresh ones."""
        return (self.crate, self.vit)

    def states(self, name: str | None) -> tuple[bool, ...]:
        """Which weights of a name are shown of what is not asked of all fresh ones: trained, and of the twins fresh."""
        return (True, False) if name in self.twins else (True,)

    @property
    def looked_at(self) -> tuple[str, ...]:
        """Names of weights whose maps are looked at, CRATE and ViT first."""
        return (*self.twins, *self.others)

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of all weights, those first."""
        return (*self.looked_at, *self.older)


@dataclass(frozen=True, kw_only=True)
class OnTest(Cell):
    """What is measured of a network on the first test images of CIFAR-10."""

    network: Looked

    def require(self, context: Context) -> None:
        """The test images."""
        pictures("cifar10", "test", context.data_dir)

    def first(self, context: Context, count: int) -> Pictures:
        """The first of them."""
        return pictures("cifar10", "test", context.data_dir).first(count)


@dataclass(frozen=True, kw_only=True)
class Layers(OnTest):
    """What every layer makes of the images."""

    looked_at: int

    def compute(self, context: Context) -> Result:
        """By layer the mean and standard error over images of `subspace_rate`, `rate`, `nonzero`, `effective_rank`;
        `orthonormal`, R^c with orthonormal bases, the mean of each tenth of the images, [10, layers]."""
        from unrolled.instruments.rates import layerwise
        from unrolled.studies.crate.ablations.cells import orthonormal_rates

        model = load(self.network, context)
        images = shown(model, self.first(context, self.looked_at).images).to(context.device)
        rows = layerwise(model, images, eps=EPS)
        out: Result = {
            key: {"mean": [row[key] for row in rows], "error": [row[f"{key}_se"] for row in rows]}
            for key in ("subspace_rate", "rate", "nonzero", "effective_rank")
        }
        return {**out, "orthonormal": [orthonormal_rates(model, part, EPS) for part in images.tensor_split(10)]}


@dataclass(frozen=True, kw_only=True)
class Scores(OnTest):
    """Accuracy and calibration."""

    tested: int

    def compute(self, context: Context) -> Result:
        """`accuracy` of all images; of all but the last fifth, `plain` and `cooled` (by the `temperature` that the last
        fifth fits), each `ece` of 15 bins, its `draws` by a bootstrap over images, and `nll`."""
        from unrolled.instruments.readouts.reliability import fit_temperature, reliability

        model = load(self.network, context)
        test = self.first(context, self.tested)
        with torch.no_grad():
            logits = torch.cat([
                model(shown(model, part).to(context.device)).cpu() for part in test.images.split(500)
            ])  # fmt: skip
        scored = len(logits) - len(logits) // 5
        temperature = fit_temperature(logits[scored:], test.labels[scored:])
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randint(scored, (scored,), generator=generator) for _ in range(_ECE_DRAWS)]
        out: Result = {"accuracy": float((logits.argmax(1) == test.labels).double().mean()), "temperature": temperature}
        for name, heat in (("plain", 1.0), ("cooled", temperature)):
            whole = reliability(logits[:scored], test.labels[:scored], temperature=heat)
            draws = [reliability(logits[rows], test.labels[rows], temperature=heat).ece for rows in drawn]
            out[name] = {"ece": whole.ece, "nll": whole.nll, "draws": [round(draw, 5) for draw in draws]}
        return out


@dataclass(frozen=True, kw_only=True)
class Corrupted(OnTest):
    """Errors on images made worse."""

    corrupted: int

    def compute(self, context: Context) -> Result:
        """`clean`, a digit of each image, 1 where it is named wrongly; by corruption in `wrong`, a digit of each image,
        at how many of the five severities it is."""
        from unrolled.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt

        model = load(self.network, context)
        test = self.first(context, self.corrupted)
        pixels = test.images.movedim(1, -1).contiguous().numpy()

        def wrong(images: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                parts = [model(shown(model, part).to(context.device)).argmax(1).cpu() for part in images.split(500)]
            return (torch.cat(parts) != test.labels).int()

        counts = {}
        for name in CORRUPTIONS:
            every = []
            for severity in SEVERITIES:
                changed = [corrupt(image, name, severity, index=place) for place, image in enumerate(pixels)]
                every.append(wrong(torch.stack([torch.from_numpy(each.copy()) for each in changed]).movedim(-1, 1)))
            counts[name] = torch.stack(every).sum(0)
        digits = {name: "".join(map(str, count.tolist())) for name, count in counts.items()}
        return {"clean": "".join(map(str, wrong(test.images).tolist())), "wrong": digits}


@dataclass(frozen=True, kw_only=True)
class Removed(OnTest):
    """Deletion and insertion curves."""

    explained: int

    def compute(self, context: Context) -> Result:
        """As `removal.curves` says."""
        model = load(self.network, context)
        images = shown(model, self.first(context, self.explained).images)
        return removal.curves(model, images.to(context.device))


@dataclass(frozen=True, kw_only=True)
class Probe(Cell):
    """A ridge classifier on frozen features of a target's images, or on their pixels where there is no network."""

    network: Given | None
    target: Target
    probe_images: int
    test_images: int

    def require(self, context: Context) -> None:
        """The target's images."""
        try:
            target_pictures(self.target, "test", context.folder(self.target))
        except MissingData as error:
            argument = "fashion_dir" if self.target == "fashion_mnist" else "data_dir"
            raise data_missing(self.target, error, argument=argument) from error

    def compute(self, context: Context) -> Result:
        """`accuracy`, the `site` chosen (layer and pooling), accuracy at all `sites`, `chance`, and `right`, a digit of
        each test image."""
        from unrolled.data.sources import stratified_split
        from unrolled.instruments.readouts.frozen import ridge

        folder = context.folder(self.target)
        train = target_pictures(self.target, "train", folder).first(self.probe_images)
        test = target_pictures(self.target, "test", folder).first(self.test_images)
        features = pixels
        if self.network is not None:
            features = partial(frozen_features, studied(self.network, context), device=context.device)
        x, queries = features(train.images), features(test.images)
        held = torch.from_numpy(stratified_split(train.labels.numpy(), len(train.labels), HELD_OUT, 0)[1])
        tried = {site: ridge(x[site], train.labels, held, queries[site]) for site in x}
        right = {site: fit.predicted == test.labels for site, fit in tried.items()}
        site = max(tried, key=lambda name: tried[name].held_out)
        return {
            "accuracy": float(right[site].double().mean()),
            "site": site,
            "sites": {name: float(each.double().mean()) for name, each in right.items()},
            "chance": chance(train.labels, test.labels),
            "right": "".join(str(int(each)) for each in right[site]),
        }


def cells(config: HourConfig) -> Iterator[Cell]:
    """Part by part, all networks of one together."""
    names = config.twins
    fresh = {name: [given(name, seed) for seed in config.seeds] for name in config.trained}
    trained = {name: given(name) for name in config.trained}
    twins = [each for name in names for each in (trained[name], *fresh[name])]
    trials = [
        Trial(
            family="crate", data="cifar10", seed=0, epochs=epochs("crate", "cifar10", _TRIAL_MINUTES), rate=rate
        )
        for rate in config.rates
    ]  # fmt: skip
    every: list[Looked] = [each for name in config.trained for each in (trained[name], *fresh[name])]
    for network in (*every, *trials):
        yield Layers(network=network, looked_at=config.images)
    for network in trained.values():
        yield Scores(network=network, tested=config.tested)
    for trial in trials:
        yield Scores(network=trial, tested=config.trial_tested)
    beside = [trained[name] for name in config.others]
    for network in (*twins, *beside):
        yield Removed(network=network, explained=config.explained if network.drawn is None else config.explained_fresh)
    photos: Columns = {"source": config.source, "photos": config.photos, "side": config.side}
    yield Baselines(**photos)
    for network in (*twins, *beside, *(each for name in config.others for each in fresh[name])):
        yield Things(network=network, **photos)
    for cut in (None, *twins, *beside):
        yield Cuts(network=cut, **photos)
    few = [each for name in names for each in (trained[name], *fresh[name][:1])]
    for side in config.other_sides:
        here = {**photos, "side": side}
        yield Baselines(**here)
        for network in (*few, *beside):
            yield Things(network=network, **here)
        if side < config.side:
            for cut in (None, *few, *beside):
                yield Cuts(network=cut, **here)
    for name in config.looked_at:
        yield Pictured(things=Things(network=trained[name], **photos), each=config.pictured)
    for network in (*few, *beside):
        yield Roles(network=network, **photos, layer=PENULTIMATE, parts=config.parts)
    drawn: Columns = {**photos, "photos": config.cut}
    for network in (*twins, *beside):
        yield Heads(network=network, **drawn)
    for cut in (None, *twins, *beside):
        yield CutRegions(network=cut, **drawn)
    for cut in (None, *few):
        yield Edges(network=cut, **drawn)
    for name in names:
        yield Corrupted(network=trained[name], corrupted=config.corrupted)
    sizes: Columns = {"probe_images": config.probe_images, "test_images": config.test_images}
    for target in config.targets:
        for probed in (None, *twins, *beside, *(trained[name] for name in config.older)):
            yield Probe(network=probed, target=target, **sizes)
    if config.students:
        for student in students():
            yield Rates(network=student, looked_at=config.students, eps=EPS)
