"""The table of models that comes with the package says what the models are."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.catalogue import counted, rows
from unrolled import catalogue
from unrolled.models.encoder import list_language_models
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
    assert [row.name for row in catalogue.matching("mesanet_nano.bytes")] == ["mesanet_nano"]
    assert {row.name for row in catalogue.matching("*.cifar10_hour")} == {"crate_nano_patch4_32"}
    assert catalogue.matching("crate_nano_patch4_32.nothing") == []
