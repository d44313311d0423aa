"""A sweep whose process is killed goes on where it was, and comes out the same to the bit; no other one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from unrolled import cli
from unrolled.instruments import causal
from unrolled.instruments.causal.store import FILE

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["crate_nano_patch2_8", "--data", "digits", "--images", "48", "--batch-size", "8", "--quiet", "--device", "cpu"]
PLACES = ["--places", "block??", "block*/attn", "block*/attn/head*", "block*/subspace*"]


def answer(verb: str, out: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.run([verb, *FLAGS, *PLACES, *more, "--json", "--out", str(out)]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return {key: value for key, value in found.items() if key != "report"}


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["ablate", "patch"])
def test_a_killed_sweep_goes_on(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "unrolled", verb, *FLAGS, *PLACES, "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, env=environment, cwd=ROOT)
    until = time.monotonic() + 240
    while not (out / FILE).is_file() or (out / FILE).read_bytes().count(b"\n") < 60:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "report.json").exists()
    kept = (out / FILE).read_bytes()
    assert cli.run([verb, *FLAGS, *PLACES, "--seed", "1", "--out", str(out)]) == 2
    assert "seed: " in capsys.readouterr().err
    (out / FILE).write_bytes(kept + b'[0, "block')  # as a line that was cut
    assert answer(verb, out, capsys) == answer(verb, tmp_path / "whole", capsys)
    assert not (out / FILE).exists()


def sweep(path: Path, model: nn.Module, x: torch.Tensor, **settings: Any) -> causal.Effects:
    return causal.ablate(
        model, [(x[:3], None), (x[3:], None)], lambda out, _: out[:, 0, 0], ["block0?", "block*/mlp"],
        store=causal.ScoreStore(path, settings),
    )  # fmt: skip


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        z = z + self.attn(z)
        out: torch.Tensor = z + self.mlp(z)
        return out


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Sequential(Block(), Block()))


def test_whatever_line_it_stopped_at(model: nn.Module, tmp_path: Path) -> None:
    x = torch.randn(5, 3, 4)
    whole = sweep(tmp_path / "whole", model, x, seed=0)
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    needed = []
    for count in (1, 2, 3, 7, len(lines) // 2, len(lines)):
        part = tmp_path / f"part{count}"
        part.write_bytes(b"".join(lines[:count]))
        calls.clear()
        again = sweep(part, model, x, seed=0)
        needed.append(len(calls))
        assert again.score == whole.score
        for one, other in zip(again, whole, strict=True):
            assert np.array_equal(one.samples, other.samples)
            assert one.control == other.control
    assert needed[-1] == 0
    assert needed == sorted(needed, reverse=True)
    assert needed[0] == 2 * (1 + 2 * 4)


def test_paths_go_on_too(model: nn.Module, tmp_path: Path) -> None:
    x = torch.randn(5, 3, 4)

    def paths(path: Path) -> causal.Effects:
        pairs = [(x[:3], x.flip(0)[:3], None), (x[3:], x.flip(0)[3:], None)]
        return causal.path_patching(
            model, pairs, lambda out, _: out[:, 0, 0], "block00/attn", store=causal.ScoreStore(path)
        )

    whole = paths(tmp_path / "whole")
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    for count, needed in ((len(lines), 0), (len(lines) - 1, 4), (2, 2 * (2 + 2 * len(whole)))):
        (tmp_path / "part").write_bytes(b"".join(lines[:count]))
        calls.clear()
        again = paths(tmp_path / "part")
        assert len(calls) == needed
        assert all(np.array_equal(a.samples, b.samples) for a, b in zip(again, whole, strict=True))


def test_another_sweep_is_refused_by_name(model: nn.Module, tmp_path: Path) -> None:
    x = torch.randn(5, 3, 4)
    path = tmp_path / FILE
    sweep(path, model, x, seed=0, data="digits")
    with pytest.raises(ValueError, match=r'^data: .*has scores of an unfinished sweep with "digits", not "cifar10"'):
        sweep(path, model, x, seed=0, data="cifar10")
    with pytest.raises(ValueError, match=r'^score: .*unfinished sweep with null, not "loss"'):
        sweep(path, model, x, seed=0, data="digits", score="loss")
    with pytest.raises(ValueError, match="of another model or of other data"):
        sweep(path, model, x + 1, seed=0, data="digits")
    model.get_submodule("1.0.mlp").bias.data += 1  # type: ignore[union-attr, operator]
    with pytest.raises(ValueError, match="of another model or of other data"):
        sweep(path, model, x, seed=0, data="digits")


@pytest.mark.parametrize("content", [b"", b"null\n", b"[[\n", b"\xff\n", b'{"format": 1}\n'])
def test_what_is_no_file_of_scores_is_said(content: bytes, model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{FILE}: is (damaged|not the scores)"):
        sweep(path, model, torch.randn(5, 3, 4))
    sweep(tmp_path / "b", model, torch.randn(5, 3, 4))
    lines = (tmp_path / "b").read_bytes().splitlines(keepends=True)
    (tmp_path / "b").write_bytes(lines[0] + b'[0, "block00", false, "x"]\n')
    with pytest.raises(ValueError, match="is damaged"):
        sweep(tmp_path / "b", model, torch.randn(5, 3, 4))


def test_what_fails_before_its_first_score_is_in_no_one_s_way(model: nn.Module, tmp_path: Path) -> None:
    x, path = torch.randn(5, 3, 4), tmp_path / FILE

    def wrong(out: torch.Tensor, targets: Any) -> torch.Tensor:
        raise ValueError("targets: there are none")

    for places, score, said in (("blck00", first, "matches no name"), ("block00", wrong, "there are none")):
        with pytest.raises(ValueError, match=said):
            causal.ablate(model, [(x, None)], score, places, store=causal.ScoreStore(path, {"places": places}))
        assert not path.exists()
    store = causal.ScoreStore(path, {"places": "block01"})
    assert len(causal.ablate(model, [(x, None)], first, "block01", store=store)) == 1


def first(out: torch.Tensor, targets: Any) -> torch.Tensor:
    return out[:, 0, 0]
