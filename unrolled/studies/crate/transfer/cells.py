"""What `crate-transfer` computes: networks fine-tuned on a target, or probed on it frozen; and which of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from unrolled.errors import MissingData
from unrolled.reading import Json
from unrolled.studies.cells import Cell, Columns, Context, Result, data_missing
from unrolled.studies.kinds import BLOCKS, MASKED, stages
from unrolled.studies.networks import BATCH, Data, Network, accuracy, images_seen
from unrolled.studies.pictures import Pictures, as_input, augmented, pictures
from unrolled.studies.study import AtLeast, Budgets, Config, Count, Distinct, Rate, Seeds
from unrolled.studies.training import MeanLoss, train_resumable, warmup_cosine

HELD_OUT = 0.2  # of the probe images, to choose the layer and the penalty
_WEIGHT_DECAY = 0.05
Target = Literal["cifar10", "fashion_mnist", "digits-turned"]
Labels = Literal["all", "few"]


@dataclass(kw_only=True)
class TransferConfig(Config):
    """Networks come from the shared roster; budgets change sizes, never the recipe."""

    budgets: ClassVar[Budgets] = {
        "quick": {
            **{"source": "digits", "targets": ("digits-turned",), "kinds": ("crate", "vit-48", "mae", "vit-mae")},
            **{"images": 2560, "seeds": (0,), "steps": 20, "longer": 40, "few": 10, "rates": (5e-4,)},
            **{"test_images": 400, "probe_images": 800, "workers": 1},
        },
        "cpu": {},
        "gpu": {
            **{"seeds_others": 3, "steps": 1000, "longer": 5000, "images": 1_280_000, "workers": 1, "device": "cuda"},
        },
    }

    data_dir: Path = Path("data")
    """Folder with `cifar10`, `fashion_mnist` and `tiny-imagenet-32`."""
    fashion_dir: Path | None = None
    """Folder with Fashion-MNIST's four files, or with a folder `fashion_mnist` of them; default `data_dir`."""
    images: Annotated[int, AtLeast(BATCH)] = 64_000
    """Images a network sees in pretraining; of Tiny-ImageNet, which has 200 classes, half as many again."""
    source: Data = "tiny-imagenet-32"
    """What networks are pretrained on."""
    targets: Annotated[tuple[Target, ...], Distinct()] = ("cifar10", "fashion_mnist")
    """What they are transferred to; `digits-turned` are the digits by a quarter turn."""
    kinds: Annotated[tuple[str, ...], Distinct()] = ("crate", "vit-48", "vit", "alpha", "mae", "mae-visible", "vit-mae")
    """Networks, of the roster's kinds."""
    seeds: Seeds = (0, 1, 2)
    """Of the pretrained network, its classifier and its fine-tuning batches."""
    seeds_others: Count = 1
    """How many of them the targets after the first get."""
    steps: Count = 80
    """Fine-tuning steps of 128 images, the same from pretrained weights and from scratch."""
    rate: Rate = 1e-3
    """Peak learning rate of fine-tuning, the same for all."""
    rates: tuple[Rate, ...] = (5e-4, 2e-3)
    """Further peaks, for CRATE and CRATE-MAE on the first target, to see whether conclusions hang on the rate."""
    longer: Count = 500
    """Steps, at the usual rate and with all labels, to see whether conclusions hang on so short a fine-tuning."""
    longer_kinds: tuple[str, ...] = ("crate", "vit-48", "mae", "vit-mae")
    """Of `kinds`, those that are fine-tuned so long, and their untrained networks."""
    few: Count = 100
    """Labels of a class where labels are few."""
    test_images: Count = 3000
    """Held-out images for every accuracy."""
    probe_images: Count = 5000
    """Training images for the probes, of which a fifth is held out to choose the layer and the penalty."""
    workers: Count = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("kinds", "longer_kinds"):
            if unknown := [kind for kind in getattr(self, name) if kind not in BLOCKS]:
                raise ValueError(f"{name}: {unknown[0]!r} is unknown; choose of {', '.join(BLOCKS)}")
        if (self.source == "digits") != (self.targets == ("digits-turned",)):
            raise ValueError("targets: digits-turned goes with source='digits', and nothing else does")
        if self.longer <= self.steps:
            raise ValueError(f"longer={self.longer}: must be more than steps={self.steps}")

    @property
    def context(self) -> Context:
        """What cells are given; Fashion-MNIST may have a folder of its own."""
        elsewhere = {} if self.fashion_dir is None else {"fashion_mnist": self.fashion_dir}
        return replace(super().context, elsewhere=elsewhere)


@dataclass(frozen=True, kw_only=True)
class Transferred(Cell):
    """A network of the roster on a target.

    Attributes:
        network: pretrained or not; None probes the pixels.
        seed: of the classifier, the batches and the split; equal to the network's.
        few: labels of a class that may be used where labels are few.
        test_images: for accuracies.
    """

    network: Network | None
    seed: int
    target: Target
    few: int
    test_images: int

    def require(self, context: Context) -> None:
        """The target's images."""
        try:
            target_pictures(self.target, "test", context.folder(self.target))
        except MissingData as error:
            argument = "fashion_dir" if self.target == "fashion_mnist" else "data_dir"
            raise data_missing(self.target, error, argument=argument) from error

    def split(self, context: Context, split: Literal["train", "test"]) -> Pictures:
        """Images of the target; of the test split those that score."""
        images = target_pictures(self.target, split, context.folder(self.target))
        return images.first(self.test_images) if split == "test" else images


@dataclass(frozen=True, kw_only=True)
class FineTuned(Transferred):
    """The whole network trained on the target; `rate` is the peak, reached by a warm-up."""

    labels: Labels
    rate: float
    steps: int

    def compute(self, context: Context) -> Result:
        """Accuracy on the target's test images after the last step.

        Beside `accuracy`: `chance` (always naming the commonest training class), `parameters`, `images_seen`,
        `labels_used`, and `curve` (training loss, mean since the point before).
        """
        train, test = self.split(context, "train"), self.split(context, "test")
        allowed = few_rows(train.labels, self.few) if self.labels == "few" else torch.arange(len(train.labels))
        model = self.classifier(context, len(train.classes)).train()

        def loss_at(step: int) -> Tensor:
            generator = torch.Generator().manual_seed(2_000_003 * (self.seed + 1) + step)
            rows = allowed[torch.randint(len(allowed), (BATCH,), generator=generator)]
            images = train.images[rows]
            if self.target != "digits-turned":
                images = augmented(images, generator)
            scores = model(as_input(images).to(context.device))
            return nn.functional.cross_entropy(scores, train.labels[rows].to(context.device))

        tenth, mean = max(1, self.steps // 10), MeanLoss(loss_at)
        curve = train_resumable(
            model,
            torch.optim.AdamW(model.parameters(), lr=self.rate, weight_decay=_WEIGHT_DECAY),
            mean.at,
            steps=self.steps,
            keep=self.checkpoint(context),
            rate=warmup_cosine(self.rate, warmup=tenth, steps=self.steps),
            clip_norm=1.0,
            look=mean.look,
            look_at=range(tenth, self.steps + 1, tenth),
            every=tenth * -(-40 // tenth),
        )
        return {
            "accuracy": accuracy(model.eval(), test),
            "chance": chance(train.labels, test.labels),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "images_seen": self.steps * BATCH,
            "labels_used": len(allowed),
            "curve": curve,
        }

    def classifier(self, context: Context, classes: int) -> nn.Module:
        """The network with a new classifier, which follows from the seed alone.

        It reads the class token, as in pretraining; of masked autoencoders, whose class token was asked nothing, the
        mean of all tokens.
        """
        if self.network is None:
            raise ValueError("network: pixels can be probed, not fine-tuned")
        model: Any = self.network.load(context)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7919 + self.seed)
            if self.network.kind in MASKED:
                model = model.classifier(classes, pool="mean")
            else:
                model.reset_classifier(classes)
        return model.to(context.device)  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class Probed(Transferred):
    """Ridge and 20-nearest-neighbour classifiers on frozen features, or on the pixels where there is no network.

    Layer, pooling and penalty are chosen on a fifth of the training images, class by class; test images only score.
    """

    probe_images: int

    def compute(self, context: Context) -> Result:
        """Accuracies with all labels of the probe images and with few.

        `ridge` and `knn` are each `{"all": ..., "few": ...}` of `accuracy`, `held_out`, the `site` (layer and pooling)
        chosen and `sites` (test accuracy at each); beside them `chance` and `labels_used`.
        """
        from unrolled.data.sources import stratified_split
        from unrolled.instruments.readouts.frozen import neighbours, ridge

        train, test = self.split(context, "train").first(self.probe_images), self.split(context, "test")
        features = pixels
        if self.network is not None:
            features = partial(frozen_features, self.network.load(context), device=context.device)
        x, queries = features(train.images), features(test.images)
        used: dict[str, int] = {}
        probes: dict[str, Json] = {"ridge": {}, "knn": {}}
        for amount in ("all", "few"):
            rows = few_rows(train.labels, self.few) if amount == "few" else torch.arange(len(train.labels))
            labels = train.labels[rows]
            held = torch.from_numpy(stratified_split(labels.numpy(), len(labels), HELD_OUT, self.seed)[1])
            used[amount] = len(labels)
            for method, classifier in (("ridge", ridge), ("knn", neighbours)):
                tried = {site: classifier(x[site][rows], labels, held, queries[site]) for site in x}
                scores = {s: float((fit.predicted == test.labels).double().mean()) for s, fit in tried.items()}
                site = max(tried, key=lambda s: tried[s].held_out)
                probes[method][amount] = {
                    "accuracy": scores[site],
                    "held_out": tried[site].held_out,
                    "site": site,
                    "sites": scores,
                }
        return {"chance": chance(train.labels, test.labels), "labels_used": used, **probes}


def cells(config: TransferConfig) -> Iterator[Transferred]:
    """Pretrained networks, the untrained ones beside them, the pixels, and the checks of rate and length."""
    first_seed = config.seeds[0]
    for target in config.targets:
        shared: Columns = {"target": target, "few": config.few, "test_images": config.test_images}
        probe = partial(Probed, **shared, probe_images=config.probe_images)
        tune = partial(FineTuned, **{**shared, "labels": "all", "rate": config.rate, "steps": config.steps})
        for seed in config.seeds if target == config.targets[0] else config.seeds[: config.seeds_others]:
            yield probe(network=None, seed=seed)
            for network in networks(config, config.kinds, seed):
                yield probe(network=network, seed=seed)
                for labels in ("all", "few"):
                    yield tune(network=network, seed=seed, labels=labels)
        for network in networks(config, config.longer_kinds, first_seed):
            yield tune(network=network, seed=first_seed, steps=config.longer)
        if target == config.targets[0]:
            for network in networks(config, ("crate", "mae"), first_seed):
                for rate in config.rates:
                    yield tune(network=network, seed=first_seed, rate=rate)


def networks(config: TransferConfig, kinds: Iterable[str], seed: int) -> Iterator[Network]:
    """Of `kinds`, those of the configuration, each pretrained and from scratch."""
    for kind in kinds:
        if kind in config.kinds:
            yield Network(**network_columns(config, kind, True), seed=seed)
            yield Network(**network_columns(config, kind, False), seed=seed)


def network_columns(config: TransferConfig, kind: str, trained: bool) -> Columns:
    """The fields, but for the seed, of a pretrained network, or of the untrained one beside it.

    What an encoder is shown in pretraining changes no weight of the untrained one.
    """
    if not trained:
        return {"kind": "mae" if kind == "mae-visible" else kind, "data": config.source, "images": 0}
    return {"kind": kind, "data": config.source, "images": images_seen(config.images, config.source)}


@cache
def target_pictures(target: str, split: Literal["train", "test"], folder: Path) -> Pictures:
    """A split of a target as networks take it: grey images in three channels, 28 pixels framed to 32."""
    source = pictures("digits" if target == "digits-turned" else target, split, folder)
    images = source.images
    if target == "digits-turned":
        images = torch.rot90(images, 1, (2, 3))
    elif images.shape[1] == 1:
        edge = (32 - images.shape[2]) // 2
        images = nn.functional.pad(images, (edge,) * 4).expand(-1, 3, -1, -1)
    return Pictures(images=images, labels=source.labels, classes=source.classes)


def few_rows(labels: Tensor, count: int) -> Tensor:
    """Indices of the first `count` samples of every class, ascending."""
    return torch.cat([(labels == label).nonzero()[:count, 0] for label in labels.unique()]).sort().values


def chance(labels: Tensor, truth: Tensor) -> float:
    """Accuracy of always naming the commonest class of `labels`."""
    return float((truth == labels.bincount().argmax()).double().mean())


def frozen_features(model: nn.Module, images: Tensor, device: str = "cpu") -> dict[str, Tensor]:
    """Frozen features `[n, d]` of every block's output, by name: `1 class` the class token, `1 mean` the patches' mean.

    Masked autoencoders see the whole image.
    """
    from unrolled.instruments.features.pooling import prefix_tokens

    rows: dict[str, list[Tensor]] = {}
    skip, _ = prefix_tokens(model, None)
    embed, *blocks = stages(model.eval())[:-1]
    with torch.no_grad():
        for part in images.split(500):
            tokens = embed(as_input(part).to(device))
            for depth, block in enumerate(blocks, 1):
                tokens = block(tokens)
                rows.setdefault(f"{depth} class", []).append(tokens[:, 0].cpu())
                rows.setdefault(f"{depth} mean", []).append(tokens[:, skip:].mean(1).cpu())
    return {name: torch.cat(parts) for name, parts in rows.items()}


def pixels(images: Tensor) -> dict[str, Tensor]:
    """Images at half their side, as features."""
    return {"pixels": nn.functional.avg_pool2d(as_input(images), 2).flatten(1)}
