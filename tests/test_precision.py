"""One answer about 16-bit arithmetic, and one warning wherever a precision is chosen."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from unrolled import precision
from unrolled.commands.doctor import examine
from unrolled.instruments.features.extraction import extract
from unrolled.train import TrainConfig
from unrolled.train.engine import launch

CPUS = {
    "EPYC 7003": "fpu sse2 avx2 fma",
    "Ice Lake": "fpu sse2 avx2 fma avx512f avx512_vnni",
    "EPYC 9004": "fpu avx2 avx512f avx512_bf16",
    "Sapphire Rapids": "fpu avx2 avx512f avx512_bf16 avx512_fp16 amx_bf16 amx_tile",
    "Graviton 2": "fp asimd asimdhp",
    "Graviton 3": "fp asimd asimdhp bf16 svebf16",
}
HAS = {"EPYC 9004", "Sapphire Rapids", "Graviton 3"}


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    precision.in_hardware.cache_clear()
    yield
    precision.in_hardware.cache_clear()


def use(monkeypatch: pytest.MonkeyPatch, flags: str) -> None:
    monkeypatch.setattr(precision, "cpu_flags", lambda: set(flags.split()))


@pytest.mark.parametrize("name", CPUS)
def test_flags_tell(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    use(monkeypatch, CPUS[name])
    assert precision.in_hardware("bf16") is (name in HAS)
    assert precision.in_hardware("fp16") is (name in {"Sapphire Rapids", "Graviton 2", "Graviton 3"})
    assert ("use fp32" in examine()["machine"]["bf16 on cpu"]) is (name not in HAS)
    assert precision.describe("bf16").startswith("fast (AMX)") is (name == "Sapphire Rapids")


def test_the_flags_of_both_kinds_of_linux_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for key in ("flags\t\t", "Features\t"):
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{key}: fpu avx2 bf16\n\nprocessor\t: 1\n{key}: other\n")
        monkeypatch.setattr(precision, "_CPUINFO", tmp_path / "cpuinfo")
        assert precision.cpu_flags() == {"fpu", "avx2", "bf16"}
    monkeypatch.setattr(precision, "_CPUINFO", tmp_path / "none")
    assert precision.cpu_flags() == set()


@pytest.mark.parametrize(("slower", "answer"), [(0.4, True), (1.1, True), (3.0, None), (30.0, False), (None, None)])
def test_elsewhere_a_product_is_timed(monkeypatch: pytest.MonkeyPatch, slower: float | None, answer: bool) -> None:
    use(monkeypatch, "")
    real = precision._probe("bf16")
    assert real is None or real > 0
    monkeypatch.setattr(precision, "_probe", lambda kind: slower)
    assert precision.in_hardware("bf16") is answer
    assert examine()["machine"]["bf16 on cpu"] == precision.describe("bf16")


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize("cpu", ["EPYC 7003", "Sapphire Rapids"])
def test_whoever_chooses_bf16_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, cpu: str, tmp_path: Any
) -> None:
    use(monkeypatch, CPUS[cpu])
    wanted = int(cpu not in HAS)

    launch(TrainConfig(precision="bf16", accelerator="cpu", out=tmp_path))
    assert len(warnings_of(caplog)) == wanted
    caplog.clear()
    extract(
        nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.randn(4, 1, 2, 2), layers=["1"], autocast=torch.bfloat16
    )
    said = warnings_of(caplog)
    assert len(said) == wanted
    assert all("bf16 is emulated on this CPU" in line and "fp32 is the fast choice" in line for line in said)
    caplog.clear()

    launch(TrainConfig(accelerator="cpu", out=tmp_path))
    extract(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.randn(4, 1, 2, 2), layers=["1"])
    precision.note_if_slow("bf16", "cuda")
    assert not warnings_of(caplog)


def test_refusing_fp16_recommends_what_is_fast(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    config = TrainConfig(precision="fp16", accelerator="cpu", out=tmp_path)
    use(monkeypatch, CPUS["EPYC 7003"])
    with pytest.raises(ValueError, match=r"'fp16' needs a GPU.*use precision='fp32' \(this CPU only emulates bf16\)"):
        launch(config)
    precision.in_hardware.cache_clear()
    use(monkeypatch, CPUS["EPYC 9004"])
    with pytest.raises(ValueError, match=r"'fp16' needs a GPU.*use precision='fp32' or precision='bf16'"):
        launch(config)
