"""What `python -m tests.ship` writes: a name that the registry takes once, and a card with what was measured."""

from __future__ import annotations

import ast

import pytest
import torch

from tests.ship import MODEL, NAME, REGISTRY, TAG, UNITS, card, entered
from unrolled.models import registry
from unrolled.studies.crate.pretrain.cells import SHIPPED, PretrainConfig
from unrolled.studies.crate.pretrain.networks import FORMS
from unrolled.studies.pictures import as_input


def test_the_name_is_entered_once_and_with_what_the_network_is_made_of() -> None:
    if TAG in registry._SHIPPED[MODEL]:
        pytest.skip("it ships")
    text = entered(REGISTRY.read_text(encoding="utf-8"))
    value = next(
        node.value
        for node in ast.parse(text).body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "_SHIPPED"
    )
    assert value is not None
    shipped = eval(ast.unparse(value), vars(registry))
    assert {name: tags for name, tags in shipped.items() if name != MODEL} == {
        name: tags for name, tags in registry._SHIPPED.items() if name != MODEL
    }
    entry = shipped[MODEL].pop(TAG)
    assert shipped[MODEL] == registry._SHIPPED[MODEL]
    assert entry == {"arch": FORMS[SHIPPED[1]].arguments, **UNITS}
    with pytest.raises(ValueError, match="already"):
        entered(text)


def test_the_units_are_those_of_the_training() -> None:
    pixels = torch.tensor([[[[0, 64, 255]]]], dtype=torch.uint8)
    own = (pixels / 255 - UNITS["mean"][0]) / UNITS["std"][0]
    torch.testing.assert_close(own, as_input(pixels))


@pytest.mark.parametrize(("error", "words"), [(0.4, "20 % below"), (0.6, "20 % above")])
def test_the_card_says_what_was_measured(error: float, words: str) -> None:
    errors = {"model": error, "harmonic inpainting": 0.5, "nearest visible patch": 1.0}
    result = {"rate": 1e-2, "images": 655_744, "probe": 0.512}
    text = card(
        result,
        PretrainConfig(),
        {**errors, "mean colour of visible patches": 0.9},
        parameters=353_712,
        megabytes=1.42,
    )
    for part in (NAME, "353,712 parameters, 1.4 MB", "655,744 images", "51.2 %", words, "rate 0.01 "):
        assert part in text
