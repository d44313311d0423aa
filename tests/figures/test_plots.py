"""Every result that people put into papers draws itself: on new axes, and on theirs."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from subprocess import run
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest
import torch

import unrolled
from tests.figures.drawing import faults_of_figure
from unrolled.alignment import compare, get_metric, layer_grid, prepare_layers
from unrolled.alignment.models import ModelGrid, PairScore
from unrolled.figures import plot_metrics
from unrolled.figures.escaping import escape, typeset
from unrolled.figures.style import WIDTH
from unrolled.instruments import layerwise, trace_report
from unrolled.studies.cells import Cell, Row
from unrolled.studies.results import Results

matplotlib.use("agg")
from matplotlib import pyplot
from matplotlib.figure import Figure


def images() -> torch.Tensor:
    return torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def traced() -> unrolled.Trace:
    model = unrolled.create_model("crate_nano_patch2_8").eval()
    with unrolled.trace(model) as trace, torch.no_grad():
        model(images())
    return trace


def features(seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {f"block{i}": torch.randn(20, 4, generator=draw) for i in range(3)}


def grid() -> Any:
    metric = get_metric("cka")
    return layer_grid(prepare_layers(features(0), [metric]), prepare_layers(features(1), [metric]), metric)


def models() -> ModelGrid:
    pairs = [
        PairScore(
            a=a, b=b, metric="cka", n=9, score=0.5, chance=0.1, p_value=0.2, z=None, calibrated=0.3,
            layers=("x", "y"), p_method="exact",
        )
        for a, b in (("one", "two"), ("one", LONG), ("two", LONG))
    ]  # fmt: skip
    return ModelGrid(["one", "two", LONG], ["cka"], pairs)


@dataclass(frozen=True, kw_only=True)
class Trained(Cell):
    kind: str
    width: int
    seed: int

    def compute(self, context: Any) -> dict[str, Any]:
        raise NotImplementedError


def results() -> Results[Any]:
    rows = [
        Row(Trained(kind=kind, width=width, seed=seed), {"accuracy": width / 10 + seed}, 1.0)
        for kind in ("crate", "vit")
        for width in (4, 8, 16)
        for seed in (0, 1)
    ]
    return Results(rows)


LONG = "a_model_with_a_very_long_name_that_goes_on_and_on_patch4_32"
METRICS = [
    {"step": 1, "epoch": 0.5, "split": "train", "loss": 2.0},
    {"step": 2, "epoch": 1.0, "split": "train", "loss": 1.0},
    {"step": 2, "epoch": 1.0, "split": "val", "loss": 1.5, "accuracy": 0.5},
]
# what draws, its title, the names of its lines or None for a map
CASES: dict[str, tuple[Callable[[], Callable[..., Any]], str, list[str] | None]] = {
    "trace": (lambda: traced().plot, "root mean square of the activations", ["output", "half", "attn", "ista"]),
    "layers": (
        lambda: layerwise(unrolled.create_model("crate_nano_patch2_8"), images()).plot,
        "Rᶜ, coding rate in the subspaces (nats)",
        ["model"],
    ),
    "comparison": (lambda: compare(features(0), features(1), "cka", draws=9, resamples=0).plot, "CKA", None),
    "grid": (lambda: grid().plot, "score", None),
    "models": (lambda: models().plot, "cka", None),
    "results": (
        lambda: lambda ax=None: results().plot("accuracy", x="width", by="kind", ax=ax),
        "accuracy",
        ["crate", "vit"],
    ),
    "metrics": (lambda: lambda ax=None: plot_metrics(METRICS, ax), "loss", ["training", "validation"]),
}


@pytest.mark.parametrize("case", CASES)
def test_it_draws_on_new_axes_and_on_given_ones(case: str) -> None:
    make, title, names = CASES[case]
    plot = make()
    own = plot()
    try:
        assert title in "".join(text.get_text() for text in own.texts) or title in own.get_title()
        assert faults_of_figure(own.get_figure()) == []
    finally:
        pyplot.close(own.get_figure())
    figure = Figure(layout="constrained")
    left, right = figure.subplots(1, 2)
    assert plot(left) is left
    assert title.split(",")[0] in left.get_title().replace("\n", " ")
    assert not right.lines
    right.set_axis_off()
    assert faults_of_figure(figure) == []
    if names is not None:
        assert {text.get_text() for text in left.texts} == set(names)
    file = io.BytesIO()
    figure.savefig(file, format="pdf")
    assert file.getvalue().startswith(b"%PDF")


@pytest.mark.parametrize("case", ["trace", "layers", "comparison", "grid", "models"])
def test_what_it_draws_can_be_had_as_a_panel_that_a_notebook_shows(case: str) -> None:
    make, title, names = CASES[case]
    panel = make().__self__.panel()  # type: ignore[attr-defined]
    assert title in typeset(panel.title)
    assert names is None or {series.label for series in panel.series} == set(names)
    drawing = panel._repr_svg_()
    root = ElementTree.fromstring(drawing)
    assert root.tag.endswith("svg")
    assert float(root.attrib["width"]) > WIDTH, "else it would be as wide as the notebook"
    assert "prefers-color-scheme:dark" in drawing
    assert escape(typeset(panel.description())) in drawing


def test_layers_and_their_control_are_one_figure() -> None:
    model = unrolled.create_model("crate_nano_patch2_8")
    report = trace_report(model, images())
    panel = report["layers"].panel(quantity="nonzero", label="trained", control=report["control"])
    assert [(line.label, line.dashed) for line in panel.series] == [("trained", False), ("untrained", True)]
    for line, rows in zip(panel.series, (report["layers"], report["control"]), strict=True):
        assert line.y == [row["nonzero"] for row in rows]
        assert line.error == [row["nonzero_se"] for row in rows]


def test_what_cannot_be_drawn_is_named() -> None:
    with pytest.raises(ValueError, match=r"nonsense.*choose one of"):
        layerwise(unrolled.create_model("crate_nano_patch2_8"), images()).plot(quantity="nonsense")
    with pytest.raises(ValueError, match=r"nonsense.*accuracy, epoch, loss"):
        plot_metrics(METRICS, quantity="nonsense")
    with pytest.raises(ValueError, match="no recorded layers"):
        unrolled.trace(unrolled.create_model("crate_nano_patch2_8")).plot()


def test_importing_what_draws_does_not_import_the_drawing() -> None:
    code = "import sys, unrolled.report.page, unrolled.report.gallery; assert 'matplotlib' not in sys.modules"
    run([sys.executable, "-c", code], check=True)
