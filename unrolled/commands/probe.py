"""`unrolled probe`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from unrolled.commands.options import check_counts, verb
from unrolled.commands.probe_report import Probe, Probed, Score, probe_report
from unrolled.harness import OutputFlags, Run
from unrolled.subjects.images import batches, say_data
from unrolled.subjects.models import choose_device, encoder_of, open_body
from unrolled.subjects.options import LayerFlags, LoaderFlags, Reading, SubjectFlags
from unrolled.subjects.runs import DataOf, completed
from unrolled.terminal import progress, say, table

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from unrolled.data import ImageSource
    from unrolled.instruments import FeatureSet
    from unrolled.instruments.readouts.frozen import Classifier
    from unrolled.subjects.samples import ImageSamples

Method = Literal["linear", "knn", "ridge"]
Pool = Literal["cls", "mean"]
HELD_OUT = 0.2


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(SubjectFlags, LayerFlags, LoaderFlags, OutputFlags):
    """Flags of `unrolled probe`."""

    model: str = field(kw_only=False)
    data: str | None = None
    """Data set with a training and a test split; default: the one of the run folder, else digits."""
    method: tuple[Method, ...] = ("linear",)
    """`linear`: logistic regression; `knn`: nearest neighbours by cosine, with DINO's weights (T = 0.07) and with one
    vote each; `ridge`: least squares to one-hot labels. Several may be named."""
    pool: tuple[Pool, ...] | None = None
    """Class token, mean of the patches, or both; default: what the model has."""
    unknown_classes: Literal["raise", "skip"] | None = None
    """What to do with test images whose class the training split lacks; default: as the run did, else raise."""
    samples: int | None = None
    """Use so many training images, drawn evenly; default: all."""
    test_samples: int | None = None
    """Likewise of the test split."""
    k: int = 20
    """Neighbours of `knn`."""
    control: bool = True
    """Measure the same architecture with fresh weights too."""
    weights: Path | None = None
    """Load these, without their head: a folder of `unrolled convert`, a run folder or a published checkpoint."""
    batch_size: int = 128
    """Images in one forward pass."""
    seed: int = 0
    """Of the held-out part, of the control's weights and of weights that are not loaded."""
    out: Path | None = None
    """Where config.yaml, report.html, report.json and the features go; default: runs/probe-MODEL-DATA."""

    def __post_init__(self) -> None:
        check_counts(samples=self.samples, test_samples=self.test_samples, k=self.k, batch_size=self.batch_size,
                     image_size=self.image_size)  # fmt: skip
        check_counts(0, workers=self.workers, seed=self.seed)


@verb
def probe(options: ProbeOptions) -> None:
    """How well a simple classifier reads the classes off every layer of a frozen model.

    Features of the training and the test split are computed once and kept in the run folder. The classifiers are fitted
    on the training split; a fifth of it, held out, chooses their settings, and the layer and pooling that the summary
    names. The test split is looked at once. The same architecture with fresh weights is measured beside it, since
    random features alone tell much. Of a masked autoencoder, the encoder is probed on whole images.

        unrolled probe runs/cifar10 --data fashion_mnist --data-dir data
        unrolled probe timm:vit_tiny_patch16_224 --pretrained --data cifar10 --data-dir data --method linear knn ridge
        unrolled probe runs/mae --data cifar10 --data-dir data --samples 5000 --layers block03 norm
    """
    from unrolled.instruments import untrained_control

    options, data = completed(options)
    where = choose_device(options.device)
    splits = _splits(options, data)
    _check_enough(splits["train"].source, options.k if "knn" in options.method else None, options.seed)
    body = open_body(options)
    network = encoder_of(body)
    pools = options.pool or default_pools(network)
    run = Run(options, "probe", options.model, data.data, keeps_features=True)
    networks = {"model": network}
    if options.control:
        # of the whole autoencoder: its encoder's fresh weights are drawn as it draws them; and under another seed, so
        # that a model with random weights is not its own control
        networks["untrained"] = encoder_of(untrained_control(body, options.seed + 1))
    features, reused = _features(options, networks, splits, "+".join(pools), run.folder / "features", where)
    train, test = (_labels(features["model", split]) for split in ("train", "test"))
    widths = widths_of(network, splits["train"].source, options.layers, options.image_size) if len(pools) > 1 else None

    def parts(who: str) -> Iterator[tuple[str, str, Tensor, Tensor]]:
        layers = _parts(features[who, "train"], features[who, "test"], pools, widths)
        return progress(layers, total=len(layers), what=f"probe, {who}", quiet=options.quiet, unit="layer")

    probes = [
        Probe(who=who, layer=name, pooling=used, score=score)
        for who in networks
        for name, used, x, queries in parts(who)
        for score in classify(x, train, queries, test, methods=options.method, k=options.k, seed=options.seed)
    ]
    result = Probed(
        model=options.model, data=data.data, train=len(train), test=len(test), classes=splits["train"].classes,
        held_out=HELD_OUT, seed=options.seed, chance=chance(train, test),
        skipped=[name for split in splits for name in features["model", split].skipped], probes=probes, reused=reused,
        partial=options.samples is not None or options.test_samples is not None,
    )  # fmt: skip
    run.finish(probe_report(result), result.record(), _table(result), seeds=[options.seed], options=options)


def _splits(options: ProbeOptions, data: DataOf) -> dict[str, ImageSamples]:
    """The training and the test images, divided as in the model's run, and at most as many as were asked for."""
    from unrolled.data import open_images
    from unrolled.data.classes import one_class_note
    from unrolled.subjects.samples import ImageSamples

    opened = partial(
        open_images, data.data, data_dir=data.data_dir, seed=data.split_seed,
        unknown_classes=options.unknown_classes or data.unknown_classes,
    )  # fmt: skip
    parts = {"train": opened("train", val_fraction=data.val_fraction), "test": opened("test")}
    say_data(quiet=options.quiet, **parts)
    most = {"train": options.samples, "test": options.test_samples}
    splits = {
        split: ImageSamples.drawn(source, most[split] or len(source), f"{data.data} ({split})")
        for split, source in parts.items()
    }
    for samples in splits.values():
        if (note := one_class_note(samples.source)) is not None:
            say(f"note: {note}")
    return splits


def _features(
    options: ProbeOptions,
    networks: dict[str, nn.Module],
    splits: dict[str, ImageSamples],
    pool: str,
    folder: Path,
    where: torch.device,
) -> tuple[dict[tuple[str, str], FeatureSet], bool]:
    """Of every network on every split; and whether all were there already."""
    from unrolled.models.encoders import Encoder
    from unrolled.subjects.subject import Subject

    features: dict[tuple[str, str], FeatureSet] = {}
    all_reused = True
    for who, network in networks.items():
        reading = Reading.of(options, model=f"{options.model}, {who}", pool=pool)
        encoder = Encoder(name=reading.model, module=network.to(where), kind="image")
        for split, samples in splits.items():
            subject = Subject(encoder, samples, reading)
            features[who, split], reused = subject.features(folder / f"{who}-{split}", quiet=options.quiet)
            all_reused &= reused
    return features, all_reused


def _labels(features: FeatureSet) -> Tensor:
    assert features.labels is not None  # images of classes have some
    return features.labels


def _check_enough(source: ImageSource, k: int | None, seed: int) -> None:
    """Refuse fewer training images than can be held out from, or than there are neighbours, before features are made.

    Raises:
        ValueError: naming the flag.
    """
    from unrolled.data.sources import stratified_split

    try:
        fitted, _ = stratified_split(source.labels, len(source), HELD_OUT, seed)
    except ValueError as error:
        raise ValueError(f"--samples: of {len(source)} training images none can be held out; give more") from error
    if k is not None and k > len(fitted):
        raise ValueError(
            f"--k {k}: more neighbours than the {len(fitted):,} training images that are not held out; lower it, or "
            "give more --samples"
        )


def default_pools(network: nn.Module) -> tuple[Pool, ...]:
    """Class token and mean, or only the mean where not every layer has a class token."""
    from unrolled.instruments.anatomy import unwrap
    from unrolled.instruments.features.pooling import class_token_joins_late, prefix_tokens

    inner = unwrap(network)
    return ("cls", "mean") if prefix_tokens(inner, None)[1] and not class_token_joins_late(inner) else ("mean",)


def widths_of(network: nn.Module, source: ImageSource, layers: Sequence[str], image_size: int | None) -> dict[str, int]:
    """Width of every layer by itself: what is one vector already was not pooled twice."""
    import numpy as np

    from unrolled.data.sources import Subset
    from unrolled.instruments import extract

    loader = batches(network, Subset(source, np.arange(min(8, len(source)))), image_size=image_size, batch_size=8,
                     on_error="skip")  # fmt: skip
    return {name: value.shape[1] for name, value in extract(network, loader, layers=layers).items()}


def classify(
    x: Tensor, labels: Tensor, queries: Tensor, truth: Tensor, *, methods: Sequence[Method], k: int = 20, seed: int = 0
) -> list[Score]:
    """Of each classifier: accuracy on the queries with its bootstrap interval, and what was chosen."""
    import torch

    from unrolled.data.sources import stratified_split
    from unrolled.instruments.readouts.frozen import accuracy_interval, logistic, neighbours, ridge

    _, held = stratified_split(labels.numpy(), len(labels), HELD_OUT, seed)
    known: dict[str, dict[str, Classifier]] = {
        "linear": {"linear": logistic},
        "ridge": {"ridge": ridge},
        "knn": {
            f"knn {k}, weighted": partial(neighbours, k=k),
            f"knn {k}, plain": partial(neighbours, k=k, temperature=None),
        },
    }
    scores = []
    for method in dict.fromkeys(methods):
        for name, classifier in known[method].items():
            result = classifier(x, labels, torch.from_numpy(held), queries)
            right = int((result.predicted == truth).sum())
            low, high = accuracy_interval(right, len(truth))
            scores.append(
                Score(
                    method=name, accuracy=right / len(truth), low=low, high=high, held_out=result.held_out,
                    setting=result.setting, tried=result.tried, converged=result.converged,
                )
            )  # fmt: skip
    return scores


def chance(labels: Tensor, truth: Tensor) -> float:
    """Accuracy on the test split of always naming the training split's commonest class."""
    return float((truth == labels.bincount().argmax()).double().mean())


def _parts(
    train: FeatureSet, test: FeatureSet, pools: Sequence[str], widths: dict[str, int] | None
) -> list[tuple[str, str, Tensor, Tensor]]:
    """Layer, pooling, training and test features of everything that was extracted together."""
    parts = []
    for name, x in train.items():
        width = x.shape[1] if widths is None else widths[name]
        if width == x.shape[1]:
            parts.append((name, pools[0] if widths is None else "as it is", x, test[name]))
        else:
            for i, used in enumerate(pools):
                columns = slice(i * width, (i + 1) * width)
                parts.append((name, used, x[:, columns], test[name][:, columns]))
    return parts


def _table(result: Probed) -> str:
    rows = []
    for probe in result.of_model:
        score, beside = probe.score, result.untrained(probe)
        rows.append([
            probe.layer, probe.pooling, score.method, f"{100 * score.accuracy:.2f}",
            f"{100 * score.low:.2f} to {100 * score.high:.2f}",
            "not run" if beside is None else f"{100 * beside.accuracy:.2f}",
        ])  # fmt: skip
    text = table(["layer", "pooling", "method", "accuracy %", "95 % interval", "untrained %"], rows, left=3)
    chosen = "; ".join(f"{method}: {best.layer}, {best.pooling}" for method, best in result.best.items())
    return f"{text}\nchance {100 * result.chance:.2f} %; best on held-out training images: {chosen}"
