"""The table of models that comes with the package says what the models are."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.catalogue import counted, rows
from unrolled import catalogue
from unrolled.models import create_model
from unrolled.models.encoder import list_language_models, parameters
from unrolled.models.registry import list_models


def test_the_table_has_every_model() -> None:
    assert list(catalogue.catalogue().values()) == [*list_models(), *list_language_models()]


@pytest.mark.parametrize("name", ["crate_nano_patch4_32", "cbt_nano_patch4_32", "tost_nano_patch4_32"])
def test_its_parameters_are_those_of_the_models(name: str) -> None:
    assert counted(catalogue.catalogue()[name], False) == catalogue.catalogue()[name]


@pytest.mark.slow
def test_every_model_has_the_parameters_that_it_says() -> None:
    assert rows() == list(catalogue.catalogue().values())


def test_listing_imports_neither_torch_nor_timm() -> None:
    code = "import sys; from unrolled.cli import run; run(['list']); print({'torch', 'timm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_a_pattern_finds_weights_that_ship_by_their_name() -> None:
    assert [row.name for row in catalogue.matching("mesanet_nano.bytes")] == ["mesanet_nano.bytes"]
    assert {row.name for row in catalogue.matching("*.cifar10_hour")} == {"crate_nano_patch4_32.cifar10_hour"}
    assert [row.name for row in catalogue.matching("crate_nano_patch4_32*")] == ["crate_nano_patch4_32"]
    assert catalogue.matching("crate_nano_patch4_32.nothing") == []


@pytest.mark.parametrize("name", [name for name in catalogue.known_names() if "." in name])
def test_weights_that_ship_are_listed_with_their_own_parameters(name: str) -> None:
    (row,) = catalogue.matching(name)
    (size,) = catalogue.matching(name.partition(".")[0])
    model = create_model(name)
    assert row.parameters == sum(value.numel() for value in model.parameters())
    if size.without_embeddings is None:
        assert row.without_embeddings is None
    else:
        assert row.without_embeddings == parameters(model)["without_embeddings"]
        assert row.parameters < size.parameters  # of bytes, and not of GPT-2's vocabulary
