"""`unrolled explain`."""

from __future__ import annotations

import contextlib
import json as json_module
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unrolled.commands.common import (
    Device,
    batches,
    check_counts,
    choose_device,
    class_names,
    data_settings,
    default_folder,
    images_of,
    open_model,
    progress,
    run_settings,
    say_where,
    table,
)
from unrolled.commands.settings import AsJson, ConfigFiles, ModelArgs, Pretrained, Quiet, did_you_mean
from unrolled.locks import hold

if TYPE_CHECKING:
    from torch import Tensor, nn

    from unrolled.instruments.explain import Explanation

DRAWS = 16
_REMOVED = 0.1


def explain(
    image: Path,
    *,
    model: str = "crate_nano_patch4_32.cifar10",
    target: str | None = None,
    against: str | None = None,
    data: str | None = None,
    data_dir: Path | None = None,
    images: int = 50,
    weights: Path | None = None,
    pretrained: Pretrained = False,
    model_args: ModelArgs = None,
    image_size: int | None = None,
    seed: int = 0,
    device: Device = "auto",
    out: Path | None = None,
    config: ConfigFiles = (),
    json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Decompose one decision: which layers, heads and patches its logit is made of.

    The terms sum to the logit exactly. Evidence for the class (orange) and against it (blue) is painted on the picture,
    of all layers together and of each; what happens to the logit when those patches are removed stands beside it. One
    picture proves little, so the same is measured on many images, against random patches: those of --data, or of the
    run's own data where they are at hand.

        unrolled explain cat.jpg
        unrolled explain cat.jpg --model runs/crate --images 200
        unrolled explain cat.jpg --data cifar10 --data-dir data
        unrolled explain cat.jpg --model timm:vit_tiny_patch16_224 --pretrained --target 281 --against 207
        unrolled explain cat.jpg --model crate_base_patch16_224 --weights models/crate-b16 --json

    Parameters
    ----------
    image
        A picture.
    model
        A run folder, or any classifier by one string (`unrolled list`, timm:NAME, hf:ORG/NAME, local:DIR, ...). The
        default is small and comes trained, on CIFAR-10.
    target
        Class to explain, by number or name; default: the predicted one.
    against
        Explain the logit of the target minus that of this class.
    data
        Data set on whose test images removal is measured too, each for its predicted class; default: that of the run
        folder, if it is at hand.
    data_dir
        Where the data are; default: that of the run folder.
    images
        How many of them, drawn evenly; 0: none.
    weights
        Load these: a folder of `unrolled convert`, a run folder or a published checkpoint.
    image_size
        What the shorter side becomes, in pixels; default: the model's own.
    seed
        Of weights that are not loaded, and of the patches removed for comparison.
    device
        What to run on.
    out
        Where pictures, config.yaml, report.html and report.json go; default: runs/explain-MODEL-PICTURE,
        with a number behind it where that holds the result of another model or picture of the same name.
    """
    check_counts(0, images=images, seed=seed)
    import numpy as np

    from unrolled.commands.explain_report import layer_table, paint, said_of_many, write_pictures, write_report
    from unrolled.commands.pictures import canvas, origin, prepare
    from unrolled.data.pictures import read_picture
    from unrolled.instruments.explain import explain_logit
    from unrolled.models import MaskedAutoencoder

    picture = read_picture(image)
    where = choose_device(device)
    network = open_model(model, weights=weights, pretrained=pretrained, model_args=model_args, seed=seed).to(where)
    if isinstance(network, MaskedAutoencoder):
        raise ValueError(f"model: {model} is a masked autoencoder without a class head; finetune it first")
    names = list(next(iter(class_names(network, model, weights=weights, pretrained=pretrained)), ()))
    prepared = prepare(network, image_size=image_size)
    pixels = prepared.tensor(picture)
    grid = (pixels.shape[2] // prepared.patch[0], pixels.shape[3] // prepared.patch[1])
    chosen = [None if text is None else _number(flag, text, names) for flag, text in _flags(target, against)]
    began = time.perf_counter()
    found = explain_logit(network, pixels, target=chosen[0], against=chosen[1], prefix=prepared.prefix, grid=grid)
    removals = _removals(network, pixels, found, seed)
    many = _many(
        network, prepared.prefix, images, seed, model=model, weights=weights, data=data, data_dir=data_dir,
        image_size=image_size, quiet=quiet,
    )  # fmt: skip
    seconds = time.perf_counter() - began

    original = np.asarray(canvas(picture))
    views = paint(found, original)
    settings: dict[str, Any] = {
        "image": image,
        "model": model,
        "target": target,
        "against": against,
        "data": data,
        "data_dir": data_dir,
        "images": images,
        "weights": weights,
        "pretrained": pretrained,
        "model_args": model_args or {},
        "image_size": image_size,
        "seed": seed,
        "device": device,
    }
    folder = out or default_folder("explain", model, image.stem, settings)
    hold(folder)
    write_pictures(folder, views)
    source = origin(model, weights=weights, pretrained=pretrained)
    result = {"model": model, "weights": source, "image": str(image)} | _record(found, names) | {"removals": removals}
    result["faithfulness"] = many
    page = write_report(folder, settings, result, found, views, seconds)
    say_where(page, quiet=quiet)
    if json:
        print(json_module.dumps({**result, "report": str(page)}, indent=2))
        return
    name, random = result["target"]["name"], removals["random"]
    less = "" if result["against"] is None else f" less that of class {result['against']['name']}"
    print(f"Terms of the logit of class {name}{less}, by layer and head; they sum to it:\n")
    print(table(*layer_table(found, text=True)))
    print(
        f"\nwithout the {removals['patches']} patches most for it: {removals['most for']:+.3f}; "
        f"without as many random ones: {random['mean']:+.3f} ± {random['std']:.3f}"
    )
    print(said_of_many(many))


def _flags(target: str | None, against: str | None) -> list[tuple[str, str | None]]:
    return [("target", target), ("against", against)]


def _number(flag: str, text: str, names: list[str]) -> int:
    with contextlib.suppress(ValueError):
        return int(text)
    if text in names:
        return names.index(text)
    known = did_you_mean(text, names) if names else " The names of this model's classes are not known; give a number."
    raise ValueError(f"--{flag} {text}: is neither a number nor the name of a class.{known}")


def _name(number: int, names: list[str]) -> str:
    return f"{number} ({names[number]})" if names and names[number] != str(number) else str(number)


def _removals(network: nn.Module, pixels: Tensor, found: Explanation, seed: int) -> dict[str, Any]:
    """The logit when a tenth of the patches become the mean colour: those with most evidence, and random ones."""
    import torch

    from unrolled.instruments.readouts.faithfulness import logits_without

    order = found.evidence().flatten().argsort(descending=True)
    count = max(1, round(_REMOVED * len(order)))
    generator = torch.Generator().manual_seed(seed)
    chosen = [order[:count], order[-count:]]
    chosen += [torch.randperm(len(order), generator=generator)[:count] for _ in range(DRAWS)]
    removed = torch.zeros(len(chosen), len(order), dtype=torch.bool).scatter_(1, torch.stack(chosen), True)
    change = logits_without(network, pixels, removed, found) - found.logit
    random = change[2:]
    return {
        "patches": count,
        "most for": float(change[0]),
        "most against": float(change[1]),
        "random": {"mean": float(random.mean()), "std": float(random.std()), "draws": DRAWS},
    }


def _many(
    network: nn.Module,
    prefix: int | None,
    images: int,
    seed: int,
    *,
    model: str,
    weights: Path | None,
    data: str | None,
    data_dir: Path | None,
    image_size: int | None,
    quiet: bool,
) -> dict[str, Any] | None:
    """`faithfulness` on test images of the data that was asked for, or of the run's; None where there are none."""
    from unrolled.errors import MissingData, MissingExtra
    from unrolled.instruments.readouts.faithfulness import faithfulness
    from unrolled.train.run import drawn_evenly

    run = (run_settings(str(weights)) if weights is not None else {}) or run_settings(model)
    if not images or not (data or run.get("data")):
        return None
    own = data_settings(model, weights, data=data, data_dir=data_dir, image_size=image_size)
    try:
        source = images_of(own, "test", quiet=quiet)
    except (MissingData, MissingExtra, OSError, ValueError):
        if data is not None:
            raise
        return None  # the picture is explained without the data
    source = drawn_evenly(source, min(images, len(source)), "--images")
    loader = batches(network, source, image_size=own["image_size"], batch_size=1, on_error="skip")
    bar = progress(loader, total=len(source), what="many images", quiet=quiet)
    rows = faithfulness(network, (batch.images for batch in bar if len(batch)), prefix=prefix, seed=seed)
    return {"data": own["data"], "images": rows[0]["images"], "rows": rows}


def _record(found: Explanation, names: list[str]) -> dict[str, Any]:
    probabilities = found.logits.softmax(-1)
    order = found.logits.argsort(descending=True).tolist()
    best = [{"class": i, "name": _name(i, names), "logit": float(found.logits[i])} for i in order[:5]]

    def said(number: int) -> dict[str, Any]:
        return {
            "class": number,
            "name": _name(number, names),
            "probability": float(probabilities[number]),
            "rank": order.index(number) + 1,
        }

    evidence = found.evidence()
    return {
        "target": said(found.target),
        "against": None if found.against is None else said(found.against),
        "logit": found.logit,
        "best": best,
        "read": found.read,
        "grid": list(found.grid),
        "constant": found.constant,
        "embed": float(found.embed.sum()),
        "halves": [
            {
                "layer": half.layer,
                "kind": half.kind,
                "replaces": half.replaces,
                "total": half.total,
                "heads": None if half.heads is None else half.heads.tolist(),
                "bias": half.bias,
            }
            for half in found.halves
        ],
        "evidence": evidence.tolist(),
        "elsewhere": found.logit - float(evidence.sum()),
        "error": found.error,
    }
