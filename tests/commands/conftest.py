from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def drawings(undrawn: None) -> None:
    """Of this folder only `test_json_answers` and `test_same_results`, which run every verb, draw."""
