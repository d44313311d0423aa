"""`unrolled trace`."""

from __future__ import annotations

import json as json_module
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unrolled.commands.common import (
    Device,
    batches,
    choose_device,
    data_settings,
    default_folder,
    images_of,
    open_model,
    progress,
    say_where,
    shown_everything,
    table,
    write_run,
)
from unrolled.commands.settings import AsJson, ConfigFiles, ModelArgs, Pretrained, Quiet

if TYPE_CHECKING:
    from torch import Tensor

# key of a row -> heading of its column
_SHOWN = {"rate": "R", "subspace_rate": "R^c", "nonzero": "nonzero", "l1": "l1", "effective_rank": "rank"}
_MEANING = {
    "rate": "R, coding rate of all tokens (nats)",
    "subspace_rate": "R^c, coding rate in the layer's own subspaces (nats)",
    "nonzero": "Share of entries that are not zero",
    "l1": "Mean absolute entry",
    "effective_rank": "Effective rank of the tokens",
}


def trace(
    model: str,
    *,
    data: str | None = None,
    data_dir: Path | None = None,
    split: Literal["train", "test"] = "test",
    images: int = 256,
    eps: float = 0.1,
    protocol: Literal["paper", "published"] = "paper",
    weights: Path | None = None,
    pretrained: Pretrained = False,
    model_args: ModelArgs = None,
    image_size: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    device: Device = "auto",
    out: Path | None = None,
    config: ConfigFiles = (),
    json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show what every layer does to the coding rates and the sparsity of its tokens.

    The same architecture with fresh weights is measured on the same images (the columns marked 0): an untrained CRATE
    already compresses and sparsifies, so only what goes beyond it was learned.

        unrolled trace runs/digits --images 1000
        unrolled trace crate_nano_patch2_8 --weights runs/digits --data digits
        unrolled trace timm:vit_tiny_patch16_224 --data cifar10 --data-dir data

    Parameters
    ----------
    model
        A run folder, or any model by one string (`unrolled list`, timm:NAME, hf:ORG/NAME, local:DIR, ...).
    data
        Data set; default: the one of the run folder, else digits.
    data_dir
        Where the data are; default: that of the run folder.
    split
        Which part of the data, divided as in the run the weights are from.
    images
        How many images, drawn evenly from the whole split.
    eps
        Distortion of the coding rates.
    protocol
        `paper`: tokens divided by their norm, at Z+half; `published`: what the published code's hook computes.
    weights
        Load these: a folder of `unrolled convert`, a run folder or a published checkpoint.
    image_size
        Side in pixels; default: the model's own input size.
    batch_size
        Images in one forward pass.
    seed
        Of weights that are not loaded, and of the untrained control's, which are others.
    device
        What to run on.
    out
        Where config.yaml, report.html and report.json go; default: runs/trace-MODEL-DATA.
    """
    if images < 1:
        raise ValueError(f"--images {images}: give at least 1")
    import numpy as np

    from unrolled.data.sources import Subset
    from unrolled.instruments import trace_report

    own = data_settings(model, weights, data=data, data_dir=data_dir, image_size=image_size)
    data, data_dir, image_size = own["data"], own["data_dir"], own["image_size"]
    where = choose_device(device)
    everything = images_of(own, split, quiet=quiet)
    count = min(images, len(everything))
    source = Subset(everything, np.linspace(0, len(everything) - 1, count).round().astype(np.int64))
    network = shown_everything(
        open_model(
            model,
            weights=weights,
            pretrained=pretrained,
            model_args=model_args,
            classes=len(everything.classes),
            seed=seed,
        )
    )
    loader = batches(network, source, image_size=image_size, batch_size=batch_size)

    def pixels() -> Iterator[Tensor]:
        for batch in progress(loader, total=-(-count // batch_size), what="trace", quiet=quiet):
            yield batch.images

    began = time.perf_counter()
    # under the same seed, the control of a model with random weights could be that model itself
    result = trace_report(network, pixels(), eps, protocol, device=where, seed=seed + 1)
    seconds = time.perf_counter() - began
    settings: dict[str, Any] = {
        "model": model,
        "data": data,
        "data_dir": data_dir,
        "split": split,
        "images": images,
        "eps": eps,
        "protocol": protocol,
        "weights": weights,
        "pretrained": pretrained,
        "model_args": model_args or {},
        "image_size": image_size,
        "batch_size": batch_size,
        "seed": seed,
        "device": device,
    }
    result = {"model": model, "data": data, "split": split, **result, "seed": seed}
    page = _report(out or default_folder("trace", model, data, settings), settings, result, seconds)
    say_where(page, quiet=quiet)
    print(json_module.dumps({**result, "report": str(page)}, indent=2) if json else _table(result))


def _table(result: dict[str, Any]) -> str:
    columns = ["layer", *(name for heading in _SHOWN.values() for name in (heading, f"{heading} 0"))]
    rows = []
    for row, control in zip(result["layers"], result["control"], strict=True):
        cells = [f"{r[key]:.4g}" for key in _SHOWN for r in (row, control)]
        rows.append([f"{int(row['layer'])}", *cells])
    return table(columns, rows)


def _report(folder: Path, settings: dict[str, Any], result: dict[str, Any], seconds: float) -> Path:
    from unrolled.report import Provenance, Report, trace_section

    layers, control = result["layers"], result["control"]
    report = Report(f"{result['model']}, layer by layer", question="What does every layer do to its objective?")
    report.headline(
        f"Measured on {result['images']:,} images of {result['data']} ({result['split']} split), {result['protocol']} "
        "protocol, beside the same architecture with fresh weights."
    )
    trace_section(report, {"model": result}, images=f"images of the {result['split']} split")
    numbers = report.section(
        "Numbers", "Mean over images ± standard error, before the layer, between its halves, after."
    )
    columns = ["layer", *(f"{point}{who}" for who in ("", ", untrained") for point in ("Z", "Z½", "Z+1"))]
    for key in _SHOWN:
        rows: list[list[int | str]] = [
            [
                int(a["layer"]),
                *(
                    f"{r[f'{key}_{at}']:.4g} ± {r[f'{key}_{at}_se']:.1g}"
                    for r in (a, b)
                    for at in ("z", "half", "next")
                ),
            ]
            for a, b in zip(layers, control, strict=True)
        ]
        numbers.table(columns, rows, caption=_MEANING[key])
    numbers.table(
        ["layer", "trained", "untrained"],
        [[int(a["layer"]), a["incoherence"], b["incoherence"]] for a, b in zip(layers, control, strict=True)],
        caption="Incoherence of the heads' subspaces: 1 when mutually orthogonal, 0 when they coincide",
    )
    report.results = result
    report.provenance = Provenance.collect(config=settings, seeds=[result["seed"]], duration=seconds)
    return write_run(folder, settings, report)
