"""What `python -m tests.ship` writes: an entry for the registry, and a card with what was measured."""

from __future__ import annotations

import pytest
import torch

from tests.ship import ENTRY, MODEL, NAME, TAG, UNITS, card
from unrolled.models import registry
from unrolled.studies.crate.pretrain.cells import SHIPPED, PretrainConfig
from unrolled.studies.crate.pretrain.networks import FORMS
from unrolled.studies.pictures import as_input


def test_the_entry_has_what_the_network_is_made_of() -> None:
    assert {"arch": FORMS[SHIPPED[1]].arguments, **UNITS} == ENTRY
    assert registry._SHIPPED[MODEL].get(TAG, ENTRY) == ENTRY


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
