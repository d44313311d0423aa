"""The notebooks: listed, self-contained, public, and true; and how what their cells give becomes a page."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
import yaml

from website import notebooks

jupytext = pytest.importorskip("jupytext")
nbformat = pytest.importorskip("nbformat")

SCRIPTS = notebooks.scripts()
# of the Python of everybody who has installed the package, and of no extra
MODULES = {"dataclasses", "torch", "timm", "sklearn", "numpy", "unrolled"}
FIRST, LAST = "# ", ("## What to conclude", "## What not to conclude")


def every(function: Any) -> Any:
    return pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)(function)


def texts(path: Path) -> list[str]:
    return [cell.source for cell in notebooks.read(path).cells if cell.cell_type == "markdown"]


def test_all_are_listed_and_have_a_test_of_what_they_say() -> None:
    assert len(SCRIPTS) >= 5
    assert {path.stem for path in SCRIPTS} <= globals().keys(), "a function here says what must hold"
    nav = yaml.safe_load((notebooks.ROOT / "website/nav.yml").read_text())
    (tab,) = [entries for each in nav for name, entries in each.items() if name == "Notebooks"]
    assert sorted(tab) == sorted(["notebooks.md", *(f"notebooks/{path.stem}.md" for path in SCRIPTS)])
    page = (notebooks.ROOT / "docs/notebooks.md").read_text()
    for path in SCRIPTS:
        title = texts(path)[0].splitlines()[0].removeprefix(FIRST)
        assert f"[{title}](../notebooks/{path.name})" in page


@every
def test_it_needs_nothing_but_the_package(path: Path) -> None:
    """Python without magic, imports that are installed, and no word that leads out of it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert {name.name.split(".")[0] for name in node.names} <= MODULES
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert str(node.module).split(".")[0] in MODULES
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not re.search(r"\.\./|https?:|^[/~]\w|shared", node.value), node.value
        if isinstance(node, ast.Name):
            assert node.id not in {"open", "exec", "eval", "get_ipython", "display"}


@every
def test_it_uses_the_public_interface_alone(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_"), node.attr
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("unrolled"):
            module = importlib.import_module(str(node.module))
            for name in node.names:
                value = getattr(module, name.name, None)
                assert not name.name.startswith("_")
                if value is not None and name.name not in getattr(module, "__all__", [name.name]):
                    importlib.import_module(f"{node.module}.{name.name}")  # a module of the package


@every
def test_it_ends_in_what_to_conclude_and_what_not_and_types_no_result(path: Path) -> None:
    cells = texts(path)
    assert cells[0].startswith(FIRST)
    places = [index for index, text in enumerate(cells) for last in LAST if last in text]
    assert places == [len(cells) - 1] * 2
    assert any("$$" in text for text in cells)
    for text in cells:
        prose = re.sub(r"\$\$.*?\$\$|`[^`]*`|\]\([^)]*\)", "", text, flags=re.DOTALL)
        assert not re.search(r"\d\.\d|\d ?%|\d{3}", prose), "a number that a cell should print"


def layer(seen: dict[str, Any]) -> None:
    assert seen["difference"] < 1e-10
    assert seen["gap"] < 1e-10
    assert seen["cosines"]["exact"] > 0.999 > seen["cosines"]["derived"] > 0.5
    assert seen["cosines"]["softmax"] < 0
    raw = {name: seen["curve"](states, name).y for name, states in seen["runs"].items()}
    for name in ("exact gradient", "MSSA, derived"):
        assert raw[name] == sorted(raw[name], reverse=True)
    assert raw["MSSA, published"] == sorted(raw["MSSA, published"])
    at_one = {name: seen["curve"](states, name, scaled=True).y for name, states in seen["broken"].items()}
    fell = {name: values[0] - values[-1] for name, values in at_one.items()}
    assert fell["sign turned"] < 0
    scaled = {name: seen["curve"](states, name, scaled=True).y for name, states in seen["runs"].items()}
    early = {name: values[0] - values[3] for name, values in scaled.items()}
    assert early["exact gradient"] > 4 * max(abs(early["MSSA, derived"]), abs(early["MSSA, published"]))
    assert fell["as it should be"] > 2 * fell["random subspaces"]
    assert raw["exact gradient"][0] - raw["exact gradient"][-1] > 2 * fell["as it should be"]
    safe, large = seen["losses"]["lambda 0.1"], seen["losses"]["lambda 0.1, step too large"]
    assert safe == sorted(safe, reverse=True)
    assert large[-1] > 1.1 * min(large), "it rises again"
    assert seen["nonzero"]["lambda 0.4"][-1] < seen["nonzero"]["lambda 0.1"][-1] < 0.5


def vit(seen: dict[str, Any]) -> None:
    assert seen["accuracy"] > 0.7
    trained = seen["layers"][-1]["subspace_rate"]
    assert max(seen["fresh"][1:]) - min(seen["fresh"][1:]) < 0.2 * abs(trained - max(seen["fresh"][1:]))
    assert trained > max(seen["fresh"])
    white, control = seen["white_box"]["layers"], seen["white_box"]["control"]
    assert control[-1]["nonzero"] < control[0]["nonzero"] - 0.1, "sparsity of an untrained CRATE"
    assert white[-1]["subspace_rate"] < control[-1]["subspace_rate"]


def agreement(seen: dict[str, Any]) -> None:
    assert all(each.p_value < 0.01 for each in seen["results"].values()), "a small p is not much"
    assert seen["whole"] > seen["mean"] > seen["result"].chance
    assert seen["results"]["both trained"].score > seen["results"]["both untrained"].score
    low, high = seen["results"]["other untrained"].interval
    assert low < seen["results"]["both trained"].score < high, "training of the other adds nothing to be seen"
    assert seen["results"]["mine untrained"].interval[1] < seen["results"]["both trained"].interval[0]
    for metric, closer in (("cka", 1), ("unbiased_cka", 1), ("procrustes", -1)):
        assert closer * (seen["others"][metric, "both untrained"] - seen["others"][metric, "both trained"]) > 0


def context(seen: dict[str, Any]) -> None:
    assert seen["one_step_gap"] < 1e-4
    assert seen["mesa_gap"] < 1e-2
    assert 0.9 < seen["curve"][-1] / seen["one_step"] < 1.05
    assert seen["positions"]["mesa layer"][-1] < 2 * seen["noise_floor"]
    assert all(loss > seen["positions"]["predicting zero"][-1] for loss in seen["misled"].values())


def edit(seen: dict[str, Any]) -> None:
    assert seen["before"] > 0.9
    assert seen["after"] == seen["before"]
    assert min(each.change for each in seen["heads"]) < min(each.control for each in seen["heads"])
    assert seen["judged"].high < seen["judged"].control
    assert abs(seen["by_hand"] - seen["swept"].change) < 1e-3
    assert seen["swept"].change < seen["heads"]["block03/attn/head2"].change
    assert seen["shares"][-1] > 0.9


@pytest.mark.slow
@every
def test_it_runs_as_a_script_and_what_it_says_holds(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    dtype = torch.get_default_dtype()
    try:
        globals()[path.stem](runpy.run_path(str(path)))
    finally:
        torch.set_default_dtype(dtype)
        plt.close("all")
    assert not list(tmp_path.iterdir()), "it leaves nothing behind"


def made(*outputs: Any) -> Any:
    """A notebook of a title and one cell with these outputs."""
    cell = nbformat.v4.new_code_cell("1 + 1", outputs=list(outputs))
    title = nbformat.v4.new_markdown_cell("# T\n\n[there](x.md) and [away](https://example.org)")
    return nbformat.v4.new_notebook(cells=[title, cell])


def paged(tmp_path: Path, *outputs: Any) -> str:
    return notebooks.page(made(*outputs), SCRIPTS[0].stem, tmp_path, lambda text: text.replace("x.md", "y.md"))


def shown(**data: str) -> Any:
    kinds = {"svg": "image/svg+xml", "png": "image/png", "table": "text/html", "text": "text/plain"}
    return nbformat.v4.new_output("display_data", data={kinds[key]: value for key, value in data.items()})


def test_a_page_has_what_the_cells_gave(tmp_path: Path) -> None:
    from unrolled.figures import LineChart, Series

    drawing = LineChart(title="loss", x_label="step", series=[Series(label="a [b]", x=[0, 1], y=[2, 1])])._repr_svg_()
    name = SCRIPTS[0].stem
    text = paged(
        tmp_path,
        nbformat.v4.new_output("stream", name="stdout", text="score 1\n"),
        nbformat.v4.new_output("stream", name="stdout", text="score 2\n"),
        shown(svg=drawing, text="LineChart(...)"),
        shown(table="<table></table>", text="rows"),
        shown(text="2"),
    )
    assert "[there](y.md)" in text
    assert f"[As a notebook]({name}.ipynb), [as a script]({name}.py)." in text
    assert "```python\n1 + 1\n```" in text
    assert "```text\nscore 1\nscore 2\n```" in text
    assert "```text\n2\n```" in text
    assert '<div class="output"><table></table></div>' in text
    assert f"![Line chart of loss against step. a (b): 2 at 0 to 1 at 1.]({name}-1.svg)" in text
    assert (tmp_path / f"{name}-1.svg").read_text() == drawing
    again = nbformat.read(tmp_path / f"{name}.ipynb", 4)
    nbformat.validate(again)
    assert again.cells[0].source == "# T\n\nthere and [away](https://example.org)"
    assert len(again.cells[1].outputs) == 5
    assert (tmp_path / f"{name}.py").read_text() == SCRIPTS[0].read_text()


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (shown(png="AAAA", text="<Figure>"), "image/png"),
        (shown(text="<torch._C.Generator at 0x7f>"), "text/plain"),
        (nbformat.v4.new_output("stream", name="stderr", text="UserWarning"), "UserWarning"),
    ],
)
def test_what_a_page_cannot_show_is_refused(tmp_path: Path, output: Any, said: str) -> None:
    with pytest.raises(ValueError, match=rf"{SCRIPTS[0].stem}-1: .*{said}"):
        paged(tmp_path, output)


def test_a_kernel_runs_this_checkout_and_an_error_names_the_notebook(tmp_path: Path) -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text("# %%\nimport os, unrolled\nprint(unrolled.__file__, os.listdir())\n")
    bad.write_text("# %%\nraise KeyError('gone')\n")
    notebook = notebooks.run([good])[good]
    assert notebook.cells[0].outputs[0].text == f"{notebooks.ROOT / 'unrolled/__init__.py'} []\n"
    with pytest.raises(ValueError, match=r"(?s)notebooks/bad\.py: .*KeyError"):
        notebooks.run([bad])
