"""`unrolled trace`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unrolled.commands.options import check_counts, verb
from unrolled.harness import OutputFlags, Run
from unrolled.subjects.images import batches, images_of
from unrolled.subjects.models import choose_device, open_model
from unrolled.subjects.options import SubjectFlags
from unrolled.subjects.runs import completed
from unrolled.terminal import progress, table

if TYPE_CHECKING:
    from torch import Tensor

    from unrolled.report import Report

# key of a row -> heading of its column
_SHOWN = {"rate": "R", "subspace_rate": "R^c", "nonzero": "nonzero", "l1": "l1", "effective_rank": "rank"}
_MEANING = {
    "rate": "R, coding rate of all tokens (nats)",
    "subspace_rate": "R^c, coding rate in the layer's own subspaces (nats)",
    "nonzero": "Share of entries that are not zero",
    "l1": "Mean absolute entry",
    "effective_rank": "Effective rank of the tokens",
}


@dataclass(frozen=True, kw_only=True)
class TraceOptions(SubjectFlags, OutputFlags):
    """Flags of `unrolled trace`."""

    model: str = field(kw_only=False)
    split: Literal["train", "test"] = "test"
    """Which part of the data, divided as in the run the weights are from."""
    images: int = 256
    """How many images, drawn evenly from the whole split."""
    eps: float = 0.1
    """Distortion of the coding rates."""
    protocol: Literal["paper", "published"] = "paper"
    """`paper`: tokens divided by their norm, at Z+half; `published`: what the published code's hook computes."""
    batch_size: int = 32
    """Images in one forward pass."""
    seed: int = 0
    """Of weights that are not loaded, and of the untrained control's, which are others."""
    out: Path | None = None
    """Where config.yaml, report.html and report.json go; default: runs/trace-MODEL-DATA."""

    def __post_init__(self) -> None:
        check_counts(images=self.images)


@verb
def trace(options: TraceOptions) -> None:
    """Show what every layer does to the coding rates and the sparsity of its tokens.

    The same architecture with fresh weights is measured on the same images (the columns marked 0): an untrained CRATE
    already compresses and sparsifies, so only what goes beyond it was learned.

        unrolled trace runs/digits --images 1000
        unrolled trace crate_nano_patch2_8 --weights runs/digits --data digits
        unrolled trace timm:vit_tiny_patch16_224 --data cifar10 --data-dir data
    """
    from unrolled.data.sources import Subset
    from unrolled.instruments import trace_report
    from unrolled.models.masked import whole_images

    options, own = completed(options)
    where = choose_device(options.device)
    everything = images_of(own, options.split, quiet=options.quiet)
    source = Subset.evenly(everything, options.images)
    network = whole_images(open_model(options, classes=len(everything.classes)))
    loader = batches(network, source, image_size=options.image_size, batch_size=options.batch_size)

    def pixels() -> Iterator[Tensor]:
        total = -(-len(source) // options.batch_size)
        for batch in progress(loader, total=total, what="trace", quiet=options.quiet):
            yield batch.images

    run = Run(options, "trace", options.model, own.data)
    # under the same seed, the control of a model with random weights could be that model itself
    layers = trace_report(network, pixels(), options.eps, options.protocol, device=where, seed=options.seed + 1)
    result = {"model": options.model, "data": own.data, "split": options.split, **layers, "seed": options.seed}
    run.finish(_report(result), result, _table(result), seeds=[options.seed])


def _table(result: dict[str, Any]) -> str:
    columns = ["layer", *(name for heading in _SHOWN.values() for name in (heading, f"{heading} 0"))]
    rows = []
    for row, control in zip(result["layers"], result["control"], strict=True):
        cells = [f"{r[key]:.4g}" for key in _SHOWN for r in (row, control)]
        rows.append([f"{int(row['layer'])}", *cells])
    return table(columns, rows)


def _report(result: dict[str, Any]) -> Report:
    from unrolled.report import Report, trace_section

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
    return report
