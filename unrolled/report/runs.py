"""The report of one training run, made from what its folder holds; also of a run that was stopped half-way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unrolled.errors import CorruptFile, MissingData
from unrolled.figures.training import learning_curves
from unrolled.reading import read_settings
from unrolled.report.document import Report
from unrolled.report.layers import TraceResult, trace_section
from unrolled.report.parts import Fact
from unrolled.report.provenance import Provenance

Record = Mapping[str, Any]


def report_for_run(
    run_dir: str | Path,
    *,
    trace: TraceResult | None = None,
    parameters: int | None = None,
    speed: float | None = None,
    duration: float | None = None,
    notes: Mapping[str, str] | None = None,
) -> Report:
    """Describe the training run in `run_dir` from its `config.yaml`, `env.json`, `metrics.jsonl` and `status.json`.

    Args:
        run_dir: a run folder; the run may also have stopped or still be going on.
        trace: what `instruments.trace_report` says of the trained model, for the layer curves.
        parameters: of the model; default: counted in `model/model.safetensors` where that exists.
        speed: images a second in training, 0 where it is not known; default: the median of those in `metrics.jsonl`.
        duration: seconds the run took.
        notes: further sections, heading -> text.

    Returns:
        The report; `report.write(run_dir)` puts it beside the run.

    Raises:
        MissingData: no such folder, or no `config.yaml` or `metrics.jsonl` in it.
        CorruptFile: one of them cannot be read.
    """
    run_dir = Path(run_dir)
    config, environment, status = (
        _read(run_dir / name, needed=name == "config.yaml") for name in ("config.yaml", "env.json", "status.json")
    )
    metrics = _metrics(run_dir)
    parameters = parameters if parameters is not None else _parameters(run_dir)
    started = "fine-tuned" if config.get("weights") else "trained"
    report = Report(
        f"{config.get('model', 'A model')} {started} on {config.get('data', 'images')}",
        question="How well does it classify images it never saw?",
    )
    report.headline(*_headline(metrics, status, parameters, _speed(metrics) if speed is None else speed))
    panels = learning_curves({"": [metrics]})
    if panels:
        held_out = any(record.get("split") == "val" for record in metrics)
        report.section("Learning curves").figure(
            panels,
            name="curves",
            caption="One run. The training loss is what was minimised, with any label smoothing or mixing, averaged "
            "since the point before, and so is the accuracy on training images, as they were cut and changed."
            + (" Dotted: validation images, never trained on." if held_out else ""),
        )
    if trace is not None:
        trace_section(report, {"trained": trace}, images="images")
    for title, text in (notes or {}).items():
        report.section(title, text)
    skipped = sorted({name for record in metrics for name in record.get("skipped_names", ())})
    if skipped:
        report.section("Images that could not be read", ", ".join(f"`{name}`" for name in skipped[:50]))
    report.results = {
        "status": status,
        "parameters": parameters,
        "steps": max((record["step"] for record in metrics if "step" in record), default=0),
        "test": next((dict(record) for record in reversed(metrics) if record.get("split") == "test"), None),
        "metrics": [dict(record) for record in metrics],
        "trace": trace,
    }
    seeds = [config["seed"]] if isinstance(config.get("seed"), int) else []
    report.provenance = Provenance.of_environment(environment, config=config, seeds=seeds, duration=duration)
    return report


def _metrics(run_dir: Path) -> list[dict[str, Any]]:
    from unrolled.train.log import read_metrics  # brings torch with it

    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        raise MissingData(f"{run_dir} holds no metrics.jsonl: is it a run folder of `unrolled train`?")
    try:
        return read_metrics(path)
    except ValueError as error:
        raise CorruptFile(f"{path} cannot be read: {error}") from error


def _read(path: Path, *, needed: bool) -> dict[str, Any]:
    if not path.is_file():
        if needed:
            raise MissingData(f"{path.parent} holds no {path.name}: is it a run folder of `unrolled train`?")
        return {}
    return read_settings(path)  # JSON is YAML too


def _parameters(run_dir: Path) -> int | None:
    path = run_dir / "model" / "model.safetensors"
    if not path.is_file():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except SafetensorError as error:
        raise CorruptFile(f"{path} cannot be read: {error}") from error


def _speed(metrics: Sequence[Record]) -> float:
    speeds = [r["images_per_second"] for r in metrics if r.get("split") == "train" and r.get("images_per_second")]
    return float(sorted(speeds)[len(speeds) // 2]) if speeds else 0.0


def _headline(
    metrics: Sequence[Record], status: Record, parameters: int | None, speed: float
) -> tuple[str, list[Fact]]:
    last = {
        split: next((r for r in reversed(metrics) if r.get("split") == split), None)
        for split in ("test", "val", "train")
    }
    facts: list[Fact] = []
    summary = "There is no test split, so the model was not tested."
    # validation images chose the weights that were tested: their accuracy is that of those weights
    looks = [r for r in metrics if r.get("split") == "val"]
    chosen = next((r for r in looks if r["step"] == status.get("chosen_step")), None)
    if chosen is not None:
        last["val"] = chosen
    for split, words in (("val", "validation"), ("test", "test")):
        record = last[split]
        if record is not None:
            accuracy = f"{100 * record['accuracy']:.2f} %"
            images = f"{record['images']:,} {words} images"
            detail = images
            if split == "val" and chosen is not None and len(looks) > 1:
                detail += f"; best of {len(looks)} looks, whose weights (epoch {chosen['epoch']:g}) were kept"
            facts.insert(0, Fact(label=f"{words.capitalize()} accuracy", value=accuracy, detail=detail))
            summary = f"{accuracy} of {images} are classified correctly."
    state = status.get("state", "finished")
    if state != "finished":
        summary = (
            f"The run has not finished ({state} at step {status.get('step')} of {status.get('total_steps')}). {summary}"
        )
    if parameters is not None:
        facts.append(Fact(label="Parameters", value=f"{parameters:,}"))
    if speed:
        detail = f"{last['train']['step']:,} steps" if last["train"] else ""
        facts.append(Fact(label="Training speed", value=f"{speed:,.0f} images/s", detail=detail))
    return summary, facts
