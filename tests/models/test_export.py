"""Every family leaves Python: torch.export, FX, torch.jit.trace and ONNX give what the model gives."""

import dataclasses
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import create_feature_extractor
from torch import Tensor, nn
from torch.export import Dim, export

from unrolled.layers.cbsa import _means, pool_cells
from unrolled.models import language_config, list_models
from unrolled.models.encoder import build_language_model, list_language_models
from unrolled.models.registry import MASKED

IMAGES = [info.name for info in list_models("*_nano_patch4_32")]
TEXTS = [info.name for info in list_language_models("*_nano")]
FIRST = "crate_nano_patch4_32", "crate_gpt_nano"  # are exported in every run of the tests
WORDS, PATCH = 31, 4
close = {"rtol": 1e-4, "atol": 1e-5}


class Completes(nn.Module):
    """A masked autoencoder as exporters take it: the noise that chooses the patches is an input."""

    def __init__(self, masked: Any) -> None:
        super().__init__()
        self.masked = masked

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.masked(images, noise=noise))


class Reads(nn.Module):
    """A model of text without the arguments that are no tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens)


def build(name: str) -> nn.Module:
    if name in IMAGES:
        model = timm.create_model(name, depth=1).eval()
        return Completes(model) if name in MASKED else model
    config = language_config(name, vocab_size=WORDS, max_length=40)
    return Reads(build_language_model(dataclasses.replace(config, layers=config.layers[:1])).eval())


def inputs(name: str, count: int = 2, side: int = 32, length: int = 9) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(count)
    if name not in IMAGES:
        return (torch.randint(WORDS, (count, length), generator=g),)
    images = torch.randn(count, 3, side, side, generator=g)
    return (images, torch.rand(count, (side // PATCH) ** 2, generator=g)) if name in MASKED else (images,)


@torch.no_grad()
def check(name: str, model: nn.Module, graph: Callable[..., Any], *others: dict[str, int]) -> None:
    """`graph` gives what `model` gives, for other inputs too; and the model is what it was."""
    for other in ({}, *others):
        x = inputs(name, **other)
        torch.testing.assert_close(graph(*x), model(*x), **close)


@pytest.mark.parametrize(
    "name", [name if name in FIRST else pytest.param(name, marks=pytest.mark.slow) for name in IMAGES + TEXTS]
)
@torch.no_grad()
def test_torch_export_for_any_batch(name):
    model = build(name)
    batch = Dim("batch", min=1, max=256)
    program = export(model, inputs(name), dynamic_shapes=tuple({0: batch} for _ in inputs(name)))
    check(name, model, program.module(), {"count": 1}, {"count": 70})


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES + TEXTS)
@torch.no_grad()
def test_torch_export_for_one_size(name):
    model = build(name)
    check(name, model, export(model, inputs(name)).module())


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES + TEXTS)
@torch.no_grad()
def test_torch_export_for_any_size(name):
    model = build(name)
    batch = Dim("batch", min=1, max=256)
    if name in TEXTS:
        longest = 39 if "tost" in name else 40  # a slice of all its biases by position would be another graph
        shapes: tuple[dict[int, Any], ...] = ({0: batch, 1: Dim("length", min=1, max=longest)},)
        others = {"count": 1, "length": 3}, {"count": 20, "length": longest}
    else:
        rows, columns = Dim("rows", min=2, max=64), Dim("columns", min=2, max=64)
        shapes = ({0: batch, 2: PATCH * rows, 3: PATCH * columns},)
        shapes += ({0: batch, 1: Dim.DYNAMIC},) if name in MASKED else ()
        # CBT's graph has as many representatives for every size, and so needs a grid that large
        others = {"count": 1, "side": 32 if "cbt" in name else 16}, {"count": 5, "side": 56}
    program = export(model, inputs(name, side=40), dynamic_shapes=shapes)
    check(name, model, program.module(), *others)


@pytest.mark.parametrize("name", IMAGES + TEXTS)
@torch.no_grad()
def test_torch_jit_trace(name, tmp_path):
    model = build(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's checks of sizes
        torch.jit.trace(model, inputs(name)).save(tmp_path / "traced.pt")
    traced = torch.jit.load(tmp_path / "traced.pt")
    check(name, model, traced, {"count": 1}, {"count": 20})
    own = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in traced.parameters()) == own  # weights, not constants made of them


@pytest.mark.parametrize("name", IMAGES)
def test_fx_as_timm_does_it(name):
    model = build(name)
    backbone: Any = model.masked if isinstance(model, Completes) else model
    graph = create_feature_extractor(backbone, ["blocks.0"])
    seen = []
    backbone.blocks[0].register_forward_hook(lambda module, args, out: seen.append(out))
    noise = {"noise": inputs(name, 3, 40)[1]} if name in MASKED else {}
    with torch.no_grad():
        images = inputs(name, 3, 40)[0]
        backbone(images, **noise)
        torch.testing.assert_close(graph(images, **noise)["blocks.0"], seen[0], **close)
    if name in MASKED:
        return
    whole = create_feature_extractor(model, ["head"]).train()
    whole(inputs(name)[0])["head"].square().mean().backward()
    assert [key for key, p in whole.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", TEXTS)
@torch.no_grad()
def test_fx_of_models_of_text(name):
    model: Any = build(name).model
    bert = "bert" in name
    fixed = {"segments": None, "features": False} if bert else {"state": None, "return_state": False}
    graph = torch.fx.GraphModule(model, torch.fx.Tracer().trace(model, concrete_args=fixed))
    check(name, model, graph, {"count": 1, "length": 30})


def onnx_session(path: Path) -> Callable[..., Any]:
    session = pytest.importorskip("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(*x: Tensor) -> Any:
        out = session.run(None, {name: value.numpy() for name, value in zip(names, x, strict=True)})
        found = tuple(torch.as_tensor(value) for value in out)
        return found if len(found) > 1 else found[0]

    return run


@pytest.mark.parametrize("name", IMAGES + TEXTS)
@torch.no_grad()
def test_onnx_of_the_exporter_by_tracing_opset_17(name, tmp_path):
    pytest.importorskip("onnx")
    model, path = build(name), tmp_path / "model.onnx"
    names = ["x", "noise"][: len(inputs(name))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it will be replaced; decisions in timm's code
        torch.onnx.export(
            model, inputs(name), path, dynamo=False, opset_version=17, input_names=names,
            dynamic_axes={key: {0: "batch"} for key in names},
        )  # fmt: skip
    check(name, model, onnx_session(path), {"count": 1}, {"count": 20})


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES + TEXTS)
@torch.no_grad()
def test_onnx_of_the_exporter_by_torch_export_opset_18(name, tmp_path):
    pytest.importorskip("onnxscript")
    model, path = build(name), tmp_path / "model.onnx"
    shapes = tuple({0: Dim("batch")} for _ in inputs(name))
    torch.onnx.export(
        model, inputs(name), path, dynamo=True, opset_version=18, dynamic_shapes=shapes, verbose=False
    )  # fmt: skip
    check(name, model, onnx_session(path), {"count": 1}, {"count": 20})


@pytest.mark.slow
def test_the_how_to_does_what_it_says(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    text = (Path(__file__).resolve().parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(block, scope)


@pytest.mark.parametrize("grid", [(14, 14), (9, 13), (5, 8), (3, 2)])
@pytest.mark.parametrize("enlarge", [False, True])
def test_recorded_cells_are_pytorchs(grid, enlarge):
    x = torch.randn(2, grid[0] * grid[1], 6, dtype=torch.float64)
    cells = (8, 8) if enlarge else (min(8, grid[0]), min(8, grid[1]))
    means = torch.kron(*(_means(count, side).double() for count, side in zip(grid, cells, strict=True)))
    torch.testing.assert_close(means @ x, pool_cells(x, *grid, 8, enlarge), rtol=0, atol=1e-6)


@torch.no_grad()
def test_ties_of_the_noise_are_broken_in_graphs_as_in_eager():
    name = "crate_mae_nano_patch4_32"
    model = build(name)
    images, noise = inputs(name)
    noise = (4 * noise).round()
    program = export(model, (images, noise))
    for a, b in zip(program.module()(images, noise), model(images, noise), strict=True):
        torch.testing.assert_close(a, b, **close)


@torch.no_grad()
def test_what_is_recorded_for_any_size_does_not_stay_in_the_model():
    model: Any = build("cbt_nano_patch4_32")
    before = model(*inputs("cbt_nano_patch4_32"))
    sides = {2: PATCH * Dim("rows", min=8, max=64), 3: PATCH * Dim("columns", min=8, max=64)}
    export(model, inputs("cbt_nano_patch4_32", side=40), dynamic_shapes=(sides,))
    assert all(type(side) is int for side in model.blocks[0].attn.grid or ())
    assert torch.equal(model(*inputs("cbt_nano_patch4_32")), before)


def test_masks_are_refused_in_graphs_too():
    model: Any = build("cbt_nano_patch4_32")
    layer = model.blocks[0].attn
    layer.grid = (8, 8)
    graph = torch.fx.GraphModule(layer, torch.fx.Tracer().trace(layer))
    z = torch.randn(1, 65, 96)
    torch.testing.assert_close(graph(z), layer(z), **close)
    with pytest.raises(ValueError, match="attn_mask"):
        graph(z, attn_mask=torch.ones(65, 65, dtype=torch.bool))
