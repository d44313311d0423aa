"""The Triton kernels against plain torch, in Triton's interpreter: there may be no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unrolled.ops import mesa, mesa_plan

pytest.importorskip("triton")

# what a process that was told to interpret before it imported Triton checks; each line it prints is one case that held
SCRIPT = """
import itertools, torch
from unrolled.ops import mesa

torch.set_num_threads(1)

def run(kernel, method, decay, ridge_decays, gate, dtype, **more):
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 2, 21, 5, generator=g)
    v, gates = torch.randn(1, 2, 21, 3, generator=g), torch.rand(1, 2, 21, generator=g)
    decays = 0.7 + 0.3 * torch.rand(1, 2, 21, generator=g)
    ridge = 0.3 + torch.rand(2, 5, generator=g)
    leaves = [x.to(dtype) for x in (q, k, v)] + [ridge] + ([decays] if decay else []) + ([gates] if gate else [])
    leaves = [x.requires_grad_() for x in leaves]
    rest = leaves[4:]
    out = mesa(*leaves[:4], rest[0] if decay else None, rest[-1] if gate else None, method=method, kernel=kernel,
               ridge_decays=ridge_decays, chunk_size=8, **more)
    grads = torch.autograd.grad(out.float().sin().sum(), leaves)
    return out, grads

for method, (decay, ridge_decays), gate, dtype in itertools.product(
    ("chunk", "cg"), ((False, False), (True, True), (True, False)), (True, False), (torch.float32, torch.bfloat16)
):
    if dtype == torch.bfloat16 and not gate:
        continue
    case = (method, decay, ridge_decays, gate, dtype)
    plain, fused = run("torch", *case), run("triton", *case)
    assert fused[0].dtype == dtype
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(fused[0], plain[0], rtol=tolerance, atol=tolerance)
    for a, b in zip(fused[1], plain[1]):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * (1 + float(b.abs().max())))
    print("held", *case)

few = [run(kernel, "cg", True, False, True, torch.float32, steps=2)[0] for kernel in ("torch", "triton")]
torch.testing.assert_close(*few, rtol=1e-5, atol=1e-5)
ones = torch.ones(2, 1, 1, 4, 3)
zero = [mesa(torch.zeros(1, 1, 4, 3), *ones, 1.0, method="cg", kernel=name) for name in ("torch", "triton")]
assert (zero[1] == 0).all()
print("held limits")
"""


@pytest.mark.slow
def test_kernels_agree_with_torch_in_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=root, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("held") == 19


def test_what_the_kernel_cannot_serve_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    q, k, v = torch.randn(3, 1, 1, 4, 3)
    with pytest.raises(ValueError, match="needs a GPU"):
        mesa(q, k, v, 1.0, kernel="triton")
    with pytest.raises(ValueError, match="float32"):
        mesa(q.double(), k, v, 1.0, kernel="triton")
    with pytest.raises(ValueError, match="serves the methods"):
        mesa(q, k, v, 1.0, method="recurrent", kernel="triton")
    with pytest.raises(ValueError, match="kernel must be"):
        mesa(q, k, v, 1.0, kernel="cuda")


def test_no_plan_takes_an_unmeasured_kernel_unasked() -> None:
    q, v = torch.randn(2, 1, 1, 64, 8)
    decay = torch.full((1, 1, 64), 0.5)
    for gone in (None, decay, decay.sqrt()):
        assert mesa_plan(q, v, gone).kernel == "torch"
        assert mesa_plan(q, v, gone, kernel="triton").kernel == "triton"
