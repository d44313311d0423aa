"""All public layers are built alike, and blocks are layers too."""

import importlib
import inspect
from pathlib import Path

import pytest
import torch
from torch import nn

from unrolled import layers

# what a layer cannot be without beside its width and heads
NEEDED = {"CausalTSSA": {"max_length": 8}}
PUBLIC = [name for name in layers.__all__ if issubclass(getattr(layers, name), nn.Module)]
WITH_HEADS = [name for name in PUBLIC if "heads" in inspect.signature(getattr(layers, name)).parameters]
# what layers share, and what blocks and instruments take from them
PARTS = {"AttentionLayer", "MesaNetState", "RMSNorm", "SubspaceAttention", "ShortConvolution"}
# what only places layers, or is the plain transformer's, and descends nothing of its own
PLAIN = {"CRATEBlock", "MesaNetBlock", "SoftmaxSelfAttention", "ToSTBlock"}


def build(name: str) -> nn.Module:
    return getattr(layers, name)(12, *([3] if name in WITH_HEADS else []), **NEEDED.get(name, {}))


def test_the_blocks_are_there() -> None:
    assert {"CRATEBlock", "CRATEDecoderBlock", "ToSTBlock", "MesaNetBlock"} <= set(PUBLIC)
    assert dir(layers) == sorted(layers.__all__)


def test_every_layer_is_exported_and_tested() -> None:
    folder = Path(layers.__file__).parent
    for module in sorted(path.stem for path in folder.glob("[!_]*.py")):
        held = vars(importlib.import_module(f"unrolled.layers.{module}")).items()
        here = {name: value for name, value in held if getattr(value, "__module__", "") == f"unrolled.layers.{module}"}
        found = {name for name, value in here.items() if inspect.isclass(value) and not name.startswith("_")} - PARTS
        assert found <= set(layers.__all__), f"{module}.py: a line in _EXPORTS and one below TYPE_CHECKING is missing"
        tests = Path(__file__).parent / f"test_{module}.py"
        assert tests.is_file() or not found or module == "blocks", f"{tests.name}: is missing"


@pytest.mark.parametrize("name", sorted(set(PUBLIC) - PLAIN))
def test_its_docstring_has_equation_table_objective_and_departures(name: str) -> None:
    words = inspect.getdoc(getattr(layers, name)) or ""
    assert "$$" in words, "no equation"
    assert "| symbol" in words, "no table from symbols to attributes"
    assert "theory." in words or "Objective: as `" in words or name == "CRATEDecoderBlock", "no objective"
    assert "exact" in words or "approximate" in words, "exact, or approximate and by how much?"
    assert "Departures" in words, "departures from the paper, or none"


@pytest.mark.parametrize("name", PUBLIC)
def test_width_and_heads_come_by_position_and_the_rest_by_keyword(name: str) -> None:
    kinds = {each.name: each.kind for each in inspect.signature(getattr(layers, name)).parameters.values()}
    positional = [key for key, kind in kinds.items() if kind == inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert positional == (["dim", "heads"] if name in WITH_HEADS else ["dim"])


@pytest.mark.parametrize("name", PUBLIC)
def test_tokens_go_in_and_come_out(name: str) -> None:
    torch.manual_seed(0)
    assert build(name).eval()(torch.randn(2, 5, 12)).shape == (2, 5, 12)


@pytest.mark.parametrize("name", WITH_HEADS)
@pytest.mark.parametrize(("dim", "heads"), [(12, 5), (12, 0), (0, 1)])
def test_heads_that_have_no_equal_share_are_refused(name: str, dim: int, heads: int) -> None:
    with pytest.raises(ValueError, match=f"heads={heads}"):
        getattr(layers, name)(dim, heads, **NEEDED.get(name, {}))


@pytest.mark.parametrize("name", [name for name in WITH_HEADS if "ToST" not in name])
def test_a_head_without_width_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="dim_head=0"):
        getattr(layers, name)(12, 3, dim_head=0, **NEEDED.get(name, {}))


@pytest.mark.slow
def test_what_is_built_first_may_be_a_block() -> None:
    """Layers do not wait for timm, and importing timm, which imports our models, meets blocks that are there."""
    import subprocess
    import sys

    code = (
        "import sys; from unrolled.layers import CRATEBlock, MSSA, ToSTBlock; CRATEBlock(12, 3); "
        "assert 'timm' not in sys.modules; ToSTBlock(12, 3); import timm; assert timm.is_model('crate_nano_patch4_32')"
    )
    subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], check=True)
