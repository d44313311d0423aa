"""`unrolled probe`."""

from __future__ import annotations

import json as json_module
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from unrolled.commands.common import (
    Device,
    check_counts,
    choose_device,
    data_settings,
    default_folder,
    named,
    open_model,
    say_data,
    say_where,
    table,
    takes_images,
)
from unrolled.commands.extract import Precision, Samples, features_in
from unrolled.commands.probe_report import write_report
from unrolled.commands.settings import SEVERAL, AsJson, ConfigFiles, ModelArgs, Pretrained, Quiet
from unrolled.locks import hold

if TYPE_CHECKING:
    from torch import Tensor, nn

    from unrolled.data import ImageSource
    from unrolled.instruments import FeatureSet
    from unrolled.instruments.readouts.frozen import Classifier

Method = Literal["linear", "knn", "ridge"]
Pool = Literal["cls", "mean"]
HELD_OUT = 0.2


def probe(
    model: str,
    *,
    data: str | None = None,
    data_dir: Path | None = None,
    method: Annotated[tuple[Method, ...], SEVERAL] = ("linear",),
    layers: Annotated[tuple[str, ...], SEVERAL] = ("block*",),
    pool: Annotated[tuple[Pool, ...] | None, SEVERAL] = None,
    unknown_classes: Literal["raise", "skip"] = "raise",
    samples: int | None = None,
    test_samples: int | None = None,
    k: int = 20,
    control: bool = True,
    weights: Path | None = None,
    pretrained: Pretrained = False,
    model_args: ModelArgs = None,
    image_size: int | None = None,
    batch_size: int = 128,
    workers: int = 0,
    on_error: Literal["raise", "skip"] = "raise",
    precision: Precision = "fp32",
    seed: int = 0,
    device: Device = "auto",
    out: Path | None = None,
    config: ConfigFiles = (),
    json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """How well a simple classifier reads the classes off every layer of a frozen model.

    Features of the training and the test split are computed once and kept in the run folder. The classifiers are fitted
    on the training split; a fifth of it, held out, chooses their settings, and the layer and pooling that the summary
    names. The test split is looked at once. The same architecture with fresh weights is measured beside it, since
    random features alone tell much. Of a masked autoencoder, the encoder is probed on whole images.

        unrolled probe runs/cifar10 --data fashion_mnist --data-dir data
        unrolled probe timm:vit_tiny_patch16_224 --pretrained --data cifar10 --data-dir data --method linear knn ridge
        unrolled probe runs/mae --data cifar10 --data-dir data --samples 5000 --layers block03 norm

    Parameters
    ----------
    model
        A run folder, or any model by one string (`unrolled list`, timm:NAME, hf:ORG/NAME, local:DIR, ...).
    data
        Data set with a training and a test split; default: the one of the run folder, else digits.
    data_dir
        Where the data are; default: that of the run folder.
    method
        `linear`: logistic regression; `knn`: nearest neighbours by cosine, with DINO's weights (T = 0.07) and with one
        vote each; `ridge`: least squares to one-hot labels. Several may be named.
    layers
        Patterns of layer names; `*` stays within one part of a name.
    pool
        Class token, mean of the patches, or both; default: what the model has.
    unknown_classes
        What to do with test images whose class the training split lacks.
    samples
        Use so many training images, drawn evenly; default: all.
    test_samples
        Likewise of the test split.
    k
        Neighbours of `knn`.
    control
        Measure the same architecture with fresh weights too.
    weights
        Load these, without their head: a folder of `unrolled convert`, a run folder or a published checkpoint.
    image_size
        Side in pixels; default: the model's own input size.
    batch_size
        Images in one forward pass.
    workers
        Loader processes; 0 loads in this process.
    on_error
        An undecodable image stops the extraction, or is named and left out.
    precision
        Of the forward pass; features are stored as float32.
    seed
        Of the held-out part, of the control's weights and of weights that are not loaded.
    device
        What to run on.
    out
        Where config.yaml, report.html, report.json and the features go; default: runs/probe-MODEL-DATA.
    """
    check_counts(samples=samples, test_samples=test_samples, k=k, batch_size=batch_size, image_size=image_size)
    check_counts(0, workers=workers, seed=seed)

    from unrolled.data import open_images
    from unrolled.data.classes import one_class_note
    from unrolled.instruments import untrained_control

    own = data_settings(model, weights, data=data, data_dir=data_dir, image_size=image_size)
    data, data_dir, image_size = str(own["data"]), own["data_dir"], own["image_size"]
    where = choose_device(device)
    options: dict[str, Any] = {
        "data_dir": data_dir, "seed": own["split_seed"], "unknown_classes": unknown_classes,
    }  # fmt: skip
    train = open_images(data, "train", val_fraction=own["val_fraction"], **options)
    splits = {
        "train": Samples.choose(train, samples or len(train), f"{data} (train)"),
        "test": Samples.choose(
            rest := open_images(data, "test", **options), test_samples or len(rest), f"{data} (test)"
        ),
    }
    say_data(quiet=quiet, train=train, test=rest)
    for part in splits.values():
        if (alone := one_class_note(part.source)) is not None:
            print(f"note: {alone}", file=sys.stderr)
    _check_enough(splits["train"].source, k if "knn" in method else None, seed)
    body = open_body(model, weights=weights, pretrained=pretrained, model_args=model_args, seed=seed)
    network = encoder_of(body)
    pools = pool or default_pools(network)
    folder = out or default_folder("probe", model, data)
    hold(folder)
    began = time.perf_counter()
    networks = {"model": network}
    if control:
        # of the whole autoencoder: its encoder's fresh weights are drawn as it draws them; and under another seed, so
        # that a model with random weights is not its own control
        networks["untrained"] = encoder_of(untrained_control(body, seed + 1))
    found: dict[str, dict[str, FeatureSet]] = {}
    reused = True
    for who, net in networks.items():
        found[who] = {}
        for split, part in splits.items():
            found[who][split], there = features_in(
                folder / "features" / f"{who}-{split}", net.to(where), part, name=f"{model}, {who}", layers=layers,
                pool="+".join(pools), image_size=image_size, batch_size=batch_size, workers=workers, on_error=on_error,
                precision=precision, quiet=quiet,
            )  # fmt: skip
            reused &= there
    labels = {}
    for split, features in found["model"].items():
        assert features.labels is not None  # images of classes have some
        labels[split] = features.labels
    widths = widths_of(network, splits["train"].source, layers, image_size) if len(pools) > 1 else None
    records = []
    for who in networks:
        for name, used, x, queries in _parts(found[who]["train"], found[who]["test"], pools, widths):
            for record in classify(x, labels["train"], queries, labels["test"], methods=method, k=k, seed=seed):
                records.append({"who": who, "layer": name, "pooling": used, **record})
    result = {
        "model": model, "data": data, "train": found["model"]["train"].samples, "test": len(labels["test"]),
        "classes": len(train.classes), "held_out": HELD_OUT, "seed": seed, **chance(labels["train"], labels["test"]),
        "skipped": [name for part in found["model"].values() for name in part.skipped], "probes": records,
        "best": best_of([r for r in records if r["who"] == "model"]), "reused_features": reused,
    }  # fmt: skip
    settings: dict[str, Any] = {
        "model": model, "data": data, "data_dir": data_dir, "method": method, "layers": layers, "pool": pool,
        "unknown_classes": unknown_classes, "samples": samples, "test_samples": test_samples, "k": k,
        "control": control, "weights": weights,
        "pretrained": pretrained, "model_args": model_args or {}, "image_size": image_size, "batch_size": batch_size,
        "workers": workers, "on_error": on_error, "precision": precision, "seed": seed, "device": device,
    }  # fmt: skip
    page = write_report(folder, settings, result, time.perf_counter() - began)
    say_where(page, quiet=quiet)
    print(json_module.dumps({**result, "report": str(page)}, indent=2) if json else _table(result))


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


def open_body(
    spec: str, *, weights: Path | None, pretrained: bool, model_args: dict[str, Any] | None, seed: int
) -> nn.Module:
    """As `open_model`, but `weights` may be of any number of classes: their head is left out, nothing here reads it."""
    if weights is None:
        return open_model(spec, pretrained=pretrained, model_args=model_args, seed=seed)
    import torch

    from unrolled.models import load_weights
    from unrolled.models.resolve import resolve_model

    torch.manual_seed(seed)
    model = resolve_model(named(spec), **(model_args or {}))
    takes_images(spec, model)
    print(f"weights: {load_weights(model, weights, head=False)}", file=sys.stderr)
    return model.eval()


def encoder_of(network: nn.Module) -> nn.Module:
    """The encoder of a masked autoencoder of this package, as a network of whole images; any other as it is."""
    from unrolled.models import MaskedAutoencoder

    if not isinstance(network, MaskedAutoencoder):
        return network
    encoder: Any = network.classifier(1)
    for key in ("pretrained_cfg", "default_cfg"):  # they say how images are normalised
        if hasattr(network, key):
            setattr(encoder, key, getattr(network, key))
    return encoder.eval()


def default_pools(network: nn.Module) -> tuple[Pool, ...]:
    """Class token and mean, or only the mean where there is no class token."""
    from unrolled.instruments.anatomy import unwrap
    from unrolled.instruments.features.pooling import prefix_tokens

    return ("cls", "mean") if prefix_tokens(unwrap(network), None)[1] else ("mean",)


def widths_of(network: nn.Module, source: ImageSource, layers: Sequence[str], image_size: int | None) -> dict[str, int]:
    """Width of every layer by itself: what is one vector already was not pooled twice."""
    import numpy as np

    from unrolled.commands.common import batches
    from unrolled.data.sources import Subset
    from unrolled.instruments import extract

    loader = batches(network, Subset(source, np.arange(min(8, len(source)))), image_size=image_size, batch_size=8,
                     on_error="skip")  # fmt: skip
    return {name: value.shape[1] for name, value in extract(network, loader, layers=layers).items()}


def classify(
    x: Tensor, labels: Tensor, queries: Tensor, truth: Tensor, *, methods: Sequence[Method], k: int = 20, seed: int = 0
) -> list[dict[str, Any]]:
    """One record for each classifier: accuracy on the queries with its bootstrap interval, and what was chosen."""
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
    records = []
    for method in dict.fromkeys(methods):
        for name, classifier in known[method].items():
            found = classifier(x, labels, torch.from_numpy(held), queries)
            right = int((found.predicted == truth).sum())
            low, high = accuracy_interval(right, len(truth))
            records.append({
                "method": name, "accuracy": right / len(truth), "low": low, "high": high, "held_out": found.held_out,
                "setting": found.setting, "tried": found.tried, "converged": found.converged,
            })  # fmt: skip
    return records


def chance(labels: Tensor, truth: Tensor) -> dict[str, float]:
    """Accuracy on the test split of always naming the training split's commonest class."""
    return {"chance": float((truth == labels.bincount().argmax()).double().mean())}


def best_of(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each method the layer and pooling of the highest held-out accuracy."""
    methods = dict.fromkeys(record["method"] for record in records)
    return {m: max((r for r in records if r["method"] == m), key=lambda r: r["held_out"]) for m in methods}


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


def _table(result: dict[str, Any]) -> str:
    fresh = {(r["layer"], r["pooling"], r["method"]): r for r in result["probes"] if r["who"] == "untrained"}
    rows = []
    for record in result["probes"]:
        if record["who"] == "model":
            beside = fresh.get((record["layer"], record["pooling"], record["method"]))
            rows.append([
                record["layer"], record["pooling"], record["method"], f"{100 * record['accuracy']:.2f}",
                f"{100 * record['low']:.2f} to {100 * record['high']:.2f}",
                "not run" if beside is None else f"{100 * beside['accuracy']:.2f}",
            ])  # fmt: skip
    text = table(["layer", "pooling", "method", "accuracy %", "95 % interval", "untrained %"], rows, left=3)
    chosen = "; ".join(f"{m}: {r['layer']}, {r['pooling']}" for m, r in result["best"].items())
    return f"{text}\nchance {100 * result['chance']:.2f} %; best on held-out training images: {chosen}"
