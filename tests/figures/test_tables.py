"""What every result can do: a short line in a terminal, a table in a notebook, a frame, a drawing."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from torch import nn

import unrolled
from tests.figures import test_plots as plots
from unrolled.alignment import BesidePeople, beside_people, compare, prepare_layers
from unrolled.alignment.people import correlation_rdms
from unrolled.alignment.translation import Recipe, Translation, translate
from unrolled.errors import MissingExtra
from unrolled.instruments import Matches, layerwise, read_patches
from unrolled.instruments.causal import Effect, Effects
from unrolled.instruments.explain import Explanation, explain_logit
from unrolled.instruments.readouts.confusion import Confusion
from unrolled.instruments.readouts.reliability import reliability
from unrolled.tables import Tabular
from unrolled.train import TrainConfig, TrainResult

matplotlib.use("agg")
from matplotlib.figure import Figure

HOSTILE = "<script>alert(1)</script>"


def effects() -> Effects:
    rows = [Effect(f"block{i:02d}/attn", -0.1 * i, -0.2, 0.0, 0.01, np.zeros(500)) for i in range(40)]
    return Effects((*rows, Effect(HOSTILE, 0.0, 0.0, 0.0, float("nan"), np.zeros(500))), 0.5)


def trained() -> TrainResult:
    return TrainResult(
        config=TrainConfig(), model=nn.Linear(99, 99), data=None, run_dir=Path("runs/x"), metrics=plots.METRICS,
        test={"accuracy": 0.5}, unit="images", units_per_second=1.0, steps=2, chosen_step=2,
    )  # fmt: skip


def confusion() -> Confusion:
    counts = torch.tensor([[5, 1, 0], [0, 4, 2], [0, 0, 9]])
    return Confusion(["cat", "dog", HOSTILE], counts, [])


def explanation() -> Explanation:
    model = unrolled.create_model("crate_nano_patch2_8", depth=4)
    return explain_logit(model.eval(), plots.images()[:1], target=1)


def comparison(**options: Any) -> Any:
    many = {f"layer{i}": torch.randn(30, 4, generator=torch.Generator().manual_seed(i)) for i in range(8)}
    return compare(many, {**many, HOSTILE: many["layer0"]}, "cka", resamples=0, **options)


def beside() -> BesidePeople:
    layers = {f"layer{i}": torch.randn(12, 4, generator=torch.Generator().manual_seed(i)) for i in range(8)}
    people = correlation_rdms([torch.randn(12, 5, generator=torch.Generator().manual_seed(9 + i)) for i in range(2)])
    return beside_people(layers, people, what="them", stimuli="pictures", untrained=[layers], draws=10, halves=2)


def translation() -> Translation:
    x, y = np.random.default_rng(0).normal(size=(2, 40, 4))
    recipe = Recipe(clusters=4, rounds=2, anchor_sets=1, starts=2, tries=1)
    return translate(x, y, restarts=3, controls=2, recipe=recipe)


# what they are, and how many rows they have, or None where that is their length
RESULTS: dict[str, tuple[Callable[[], Any], int | None]] = {
    "Trace": (plots.traced, None),
    "LayerRows": (lambda: layerwise(unrolled.create_model("crate_nano_patch2_8"), plots.images()), None),
    "Effects": (effects, 41),
    "Comparison": (lambda: comparison(draws=200), 72),
    "Grid": (plots.grid, 9),
    "ModelGrid": (plots.models, 3),
    "BesidePeople": (beside, 8),
    "Translation": (translation, 3),
    "Results": (plots.results, 12),
    "TrainResult": (trained, 3),
    "Confusion": (confusion, 3),
    "Explanation": (explanation, 10),
    "Reliability": (lambda: reliability(torch.eye(4).repeat(5, 1) * 3, torch.arange(20) % 3), 1),
}
DRAWN_BY = {"Results": lambda result, ax: result.plot("accuracy", x="width", by="kind", ax=ax)}


def test_every_kind_of_result_is_tried() -> None:
    for module in pkgutil.walk_packages(unrolled.__path__, "unrolled."):
        source = Path(str(module.module_finder.path)) / f"{module.name.rsplit('.', 1)[-1]}.py"  # type: ignore[union-attr]
        if source.is_file() and "(Tabular" in source.read_text(encoding="utf-8"):
            importlib.import_module(module.name)
    assert {kind.__name__ for kind in Tabular.__subclasses__()} == set(RESULTS)


@pytest.mark.parametrize("name", RESULTS)
def test_it_fits_a_screen(name: str) -> None:
    said = repr(RESULTS[name][0]())
    assert said.startswith(f"{name}(")
    assert len(said.splitlines()) <= 24
    assert len(said) <= 1500
    assert said.count("nan") + said.count("None") <= 2


@pytest.mark.parametrize("name", RESULTS)
def test_it_is_a_frame_and_a_table_of_a_notebook(name: str) -> None:
    make, rows = RESULTS[name]
    result = make()
    count = len(result) if rows is None else rows
    records = result.records()
    assert len(records) == count
    frame = pytest.importorskip("pandas") and result.frame()
    assert len(frame) == count
    page = result._repr_html_()
    assert page.count("<tr>") == min(count, 40) + 1
    assert "<script>" not in page
    assert ("more rows" in page) == (count > 40)
    first = next(iter(records[0]))
    assert f"<th>{first}</th>" in page
    assert first in frame.columns


@pytest.mark.parametrize("name", RESULTS)
def test_it_draws_itself(name: str) -> None:
    figure = Figure()
    ax = figure.subplots()
    result = RESULTS[name][0]()
    assert DRAWN_BY.get(name, lambda result, ax: result.plot(ax))(result, ax) is ax


def test_without_pandas_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(MissingExtra, match=r"frame\(\) needs `pandas`.*pip install"):
        plots.models().frame()


def test_a_long_trace_keeps_its_ends_on_the_screen() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(60)))
    with unrolled.trace(model) as t:
        model(torch.zeros(1, 4))
    lines = repr(t).splitlines()
    assert lines[0] == "Trace(60 of 60 names recorded)"
    assert lines[1] == "  0  [1, 4] float32"
    assert "more" in lines[-4]
    assert lines[-1] == "  59  [1, 4] float32"
    with unrolled.trace(model, patterns="3", reduce=lambda name, x: float(x.sum())) as t:
        model(torch.zeros(1, 4))
    assert repr(t).splitlines()[1] == "  3  reduced"


def test_prepared_layers_do_not_print_their_tensors() -> None:
    assert len(repr(prepare_layers(torch.randn(50, 3, 8), ["cka"]))) < 200


def test_records_of_tensors_print_shapes() -> None:
    model = unrolled.create_model("crate_nano_patch4_32").eval()
    found = read_patches(model, torch.rand(2, 3, 32, 32), facets=("token",))
    said = repr(found)
    assert "attention=float32[6, 2, 4, 64], features={'token': float32[6, 2, 64, 96]}" in said
    assert "layers=[0, 1, 2, 3, 4, 5], grid=[8, 8], query='class token'" in said
    matched = Matches(*(torch.zeros(500) for _ in fields(Matches)))
    assert repr(matched).count("float32[500]") == len(fields(Matches))
    many = unrolled.edit(model, {"block*/ista/atom*": lambda x: x})
    assert len(repr(many)) < 300
    assert repr(many).endswith("and 568 more)")
