"""What a run is made of: its images, its model, and the folder the model ends in."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from unrolled.checksums import write_sums
from unrolled.errors import MissingData
from unrolled.reading import read_object
from unrolled.train.config import Augmentation, ImageConfig, RunConfig
from unrolled.trust import check, check_model_args

if TYPE_CHECKING:
    from unrolled.data import Batch, ImageSource


@dataclass(kw_only=True)
class Splits:
    """The images of a run. Without `val` the last weights are kept; without `test` nothing is tested."""

    train: ImageSource
    val: ImageSource | None = None
    test: ImageSource | None = None

    @property
    def classes(self) -> int:
        """How many classes the training images have."""
        return len(self.train.classes)

    def fingerprint(self) -> str:
        """A short hash of what the training and test images are: their number, labels, classes and some of the
        pixels."""
        digest = hashlib.sha256()
        for source in (self.train, self.test):
            if source is not None:
                _digest(source, digest)
        return digest.hexdigest()[:16]


def _digest(source: ImageSource, digest: Any) -> None:
    digest.update(json.dumps([len(source), list(source.classes)]).encode())
    if source.labels is not None:
        digest.update(np.ascontiguousarray(source.labels, dtype=np.int64).tobytes())
    for index in np.linspace(0, len(source) - 1, 4).astype(int):
        digest.update(os.fsencode(source.name(int(index))))
        try:
            picture, label = source.load(int(index))
        except ValueError:  # an undecodable image: the loader reports it when its turn comes
            continue
        digest.update(np.ascontiguousarray(np.asarray(picture)).tobytes() + str(int(label)).encode())


def open_splits(config: ImageConfig) -> Splits:
    """The splits `config.data` names; a data set without a test split is trained on without a final test."""
    from unrolled.data import open_images

    options: dict[str, Any] = {
        "data_dir": config.data_dir,
        "val_fraction": config.val_fraction,
        "seed": config.split_seed,
        "unknown_classes": config.unknown_classes,
    }
    train = open_images(config.data, "train", **options)
    val = open_images(config.data, "val", **options) if config.val_fraction > 0 else None
    try:
        test: ImageSource | None = open_images(config.data, "test", **options)
    except MissingData:
        test = None
    return Splits(train=train, val=val, test=test)


def drawn_evenly(source: ImageSource, count: int | None, setting: str) -> ImageSource:
    """`count` of the images, drawn evenly from all of them, as sets are often sorted by class; None: all.

    Args:
        source: the images.
        count: how many.
        setting: what to call it in a message.

    Raises:
        ValueError: fewer than 1, or more than there are.
    """
    from unrolled.data.sources import Subset, evenly

    if count is None:
        return source
    if not 1 <= count <= len(source):
        raise ValueError(f"{setting}: give 1 to {len(source)}; there are {len(source):,} images in this split")
    return Subset(source, evenly(count, len(source)))


def build_model(config: ImageConfig, source: ImageSource, classes: int | None = None) -> nn.Module:
    """The model `config` names, randomly initialised, with `classes` outputs; default: as many as the images have.

    A registered model that starts from scratch gets one channel for grey images; any other keeps its own number, and
    the images are converted.
    """
    from unrolled.models.resolve import resolve_model

    count = len(source.classes) if classes is None else classes
    arguments: dict[str, Any] = {"num_classes": 0 if is_masked(config.model) else count, **config.model_args}
    registered = config.model.removeprefix("timm:").find(":") < 0
    if registered and config.weights is None and source.native_size is not None and source.native_size[0] == 1:
        arguments.setdefault("in_chans", 1)
    if config.image_size is not None and "img_size" not in arguments:
        try:
            return _own_labels(resolve_model(config.model, **arguments, img_size=config.image_size), source)
        except ValueError as error:
            if "img_size" not in str(error):
                raise  # a model that does not ask for the size takes any: the images are resized all the same
    return _own_labels(resolve_model(config.model, **arguments), source)


def _own_labels(model: nn.Module, source: ImageSource) -> nn.Module:
    """The model without the class names of other data, which timm gives it with the name of its weights."""
    described = getattr(model, "pretrained_cfg", None)
    if isinstance(described, dict) and list(described.get("label_names") or ()) != list(source.classes):
        described.pop("label_names", None)  # the model's own copy
    return model


def is_masked(spec: str) -> bool:
    """Whether a model's string names a masked autoencoder, which has no classes of its own."""
    from unrolled.models.registry import MASKED
    from unrolled.models.resolve import model_folder

    scheme, _, rest = spec.partition(":")
    if scheme == "local":
        described = read_object(model_folder(rest) / "config.json")
        return described.get("architecture") in MASKED
    return (rest if scheme == "timm" else spec).split(".")[0] in MASKED


def model_of(config: ImageConfig) -> dict[str, Any]:
    """The `model` and `model_args` that `config.weights` describes, a folder or the name of weights that ship, below
    those of `config` itself.

    Raises:
        MissingData: there are no such weights.
        ValueError: the weights are no folder that says, or of a language model.
        UnsafeFile: the folder names code.
    """
    from unrolled.models.encoder import is_language_config
    from unrolled.models.registry import shipped_weights

    weights = config.weights or Path()
    decided = {"num_classes", *(["img_size"] if config.image_size is not None else [])}
    if (shipped := shipped_weights(weights)) is not None:
        return {"model": shipped[1], "model_args": {**shipped[2], **config.model_args}}
    if not weights.exists():
        raise MissingData(f"weights: there is no folder or file {weights}, nor do weights of that name ship")
    for described in (weights / "model" / "config.json", weights / "config.json"):
        if described.is_file():
            description = read_object(described)
            if is_language_config(description):
                raise ValueError(f"weights: {weights} is a language model; only classifiers of images are fine-tuned")
            if "architecture" not in description:
                continue
            check("architecture", description["architecture"], described)
            given = check_model_args(description.get("model_args") or {}, f"{described}: model_args")
            arguments = {k: v for k, v in given.items() if k not in decided and v is not None}
            return {"model": description["architecture"], "model_args": {**arguments, **config.model_args}}
    raise ValueError(f"model: {weights} does not say what it is the weights of; give model=")


@dataclass(kw_only=True)
class Loaders:
    """The loaders of one process."""

    train_at: partial[Iterator[Batch]]
    evaluate: partial[Iterator[Batch]]
    once: partial[Iterator[Batch]]
    """Every image of a source once, in order and as training sees it, all of them in every process."""
    steps_per_epoch: int
    size: tuple[int, int]
    """(height, width) at which the model sees images."""


def build_loaders(config: ImageConfig, splits: Splits, model: nn.Module, *, rank: int, world_size: int) -> Loaders:
    """Loaders with the preprocessing the model asks for (`data.model_input`)."""
    from unrolled.data import eval_loader, eval_transform, model_input, steps_per_epoch, train_loader, train_transform

    cfg = model_input(model, native_size=splits.train.native_size, image_size=config.image_size)
    size, mean, std, interpolation = cfg["input_size"], cfg["mean"], cfg["std"], cfg["interpolation"]
    evaluation = eval_transform(size, mean, std, interpolation=interpolation, crop_pct=cfg["crop_pct"])
    training = evaluation
    if isinstance(config, Augmentation):  # else the task makes views of its own
        training = train_transform(config, size, mean, std, interpolation=interpolation)
    mirrored = isinstance(config, Augmentation) and config.alternate_flip
    common: dict[str, Any] = {
        "batch_size": config.batch_size,
        "rank": rank,
        "world_size": world_size,
        "workers": config.workers,
        "on_error": config.on_error,
    }
    return Loaders(
        train_at=partial(train_loader, splits.train, training, seed=config.seed, alternate_flip=mirrored, **common),
        evaluate=partial(eval_loader, transform=evaluation, **common),
        once=partial(eval_loader, transform=training, **{**common, "rank": 0, "world_size": 1}),
        steps_per_epoch=steps_per_epoch(splits.train, config.batch_size),
        size=(size[1], size[2]),
    )


def save_model(model: nn.Module, folder: Path, config: RunConfig, *, classes: Sequence[str] | None = None) -> None:
    """`model.safetensors` and `config.json` in `folder`, as timm reads them: `timm.create_model("local-dir:FOLDER")`.

    A model that timm did not build is written as weights with its name and arguments. `classes` are what the outputs
    stand for, in their order, kept as timm's `label_names`.
    """
    from safetensors.torch import save_model as save_untied
    from timm.models import save_for_hf

    from unrolled.data import model_input

    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    if (getattr(model, "pretrained_cfg", None) or {}).get("architecture"):
        expects = model_input(model, image_size=getattr(config, "image_size", None))
        named = {} if classes is None else {"label_names": list(classes)}
        save_for_hf(model, str(unfinished), safe_serialization=True, model_config=named, data_config=expects)
    else:
        save_untied(model, str(unfinished / "model.safetensors"))
        described: dict[str, Any] = {"architecture": config.model, "model_args": config.model_args}
        if classes is not None:
            described["label_names"] = list(classes)
        (unfinished / "config.json").write_text(json.dumps(described, indent=2))
    write_sums(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(unfinished, folder)
