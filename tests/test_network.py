"""Without a network what the hub has is said to be out of reach at once, and what is in its cache is used."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import pytest

from unrolled import cli, network
from unrolled.errors import MissingData
from unrolled.models import create_model, from_pretrained
from unrolled.models.resolve import resolve_model


@pytest.fixture
def knocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Where connections were tried, of which none succeeds; the hub is on, its cache is empty."""
    from huggingface_hub import constants

    tried: list[Any] = []

    def refuse(address: Any, *_: Any, **__: Any) -> Any:
        tried.append(address)
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(network, "getproxies", dict)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.co")
    return tried


@pytest.mark.parametrize(
    "ask",
    [
        lambda: from_pretrained("org/nowhere"),
        lambda: create_model("hf_hub:timm/resnet18.a1_in1k"),
        lambda: create_model("hf-hub:timm/resnet18.a1_in1k", pretrained=True),
        lambda: create_model("resnet18.a1_in1k", pretrained=True),
        lambda: resolve_model("hf:org/nowhere"),
    ],
)
def test_the_hub_is_out_of_reach(ask: Any, knocks: list[Any]) -> None:
    pytest.importorskip("transformers")
    began = time.monotonic()
    with pytest.raises(MissingData, match=r"https://huggingface\.co cannot be reached from here"):
        ask()
    assert time.monotonic() - began < 3, "no retries"
    assert knocks == [("huggingface.co", 443)], "one try"


def test_data_of_the_hub_too(knocks: list[Any]) -> None:
    pytest.importorskip("datasets")
    from unrolled.data import open_images

    with pytest.raises(MissingData, match=r"https://huggingface\.co cannot be reached from here"):
        open_images("hf:nobody/nothing", split="train")
    assert knocks == [("huggingface.co", 443)]


def test_on_the_command_line_it_is_one_line(knocks: list[Any], capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["eval", "timm:resnet18.a1_in1k", "--pretrained", "--data", "digits"]) == 3
    said = capfd.readouterr().err
    assert "cannot be reached from here" in said
    assert "etry" not in said


def test_what_ships_or_lies_here_asks_nobody(knocks: list[Any], tmp_path: Path) -> None:
    model = create_model("crate_nano_patch4_32.cifar10", pretrained=True)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    from_pretrained(tmp_path)
    assert not knocks


def test_a_proxy_is_what_must_answer(knocks: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "getproxies", lambda: {"https": "http://proxy.example:3128"})
    monkeypatch.setattr(network, "proxy_bypass", lambda host: False)
    assert not network.reachable("https://huggingface.co")
    assert knocks == [("proxy.example", 3128)]
