"""Whether this machine's processor multiplies 16-bit numbers, or only pretends to: one answer for all who choose."""

from __future__ import annotations

import functools
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

Half = Literal["bf16", "fp16"]
# flags of x86 and Arm processors that multiply the type in hardware; the first of each does so in tiles, far faster
FLAGS: dict[Half, tuple[str, ...]] = {
    "bf16": ("amx_bf16", "avx512_bf16", "bf16", "svebf16"),
    "fp16": ("amx_fp16", "avx512_fp16", "asimdhp"),
}
_CPUINFO = Path("/proc/cpuinfo")


@functools.cache
def in_hardware(kind: Half) -> bool | None:
    """Whether the CPU multiplies matrices of this type in hardware; None where neither its flags nor a product timed
    beside one in float32 (elsewhere than on Linux) can tell. Where not, products take about 30 times as long as in
    float32 and training steps 6 to 8 times."""
    if flags := cpu_flags():
        return bool(flags & set(FLAGS[kind]))
    slower = _probe(kind)
    return None if slower is None or 2 < slower < 6 else slower <= 2


def cpu_flags() -> set[str]:
    """What Linux says that the processor can do; empty elsewhere."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    named = (line.partition(":") for line in lines)
    return next((set(value.split()) for key, _, value in named if key.strip() in ("flags", "Features")), set())


def describe(kind: Half) -> str:
    """The answer in words."""
    supported = in_hardware(kind)
    if supported is None:
        return "not known on this system: time both"
    if not supported:
        return "emulated, 6 to 8 times slower in training: use fp32"
    if FLAGS[kind][0] in cpu_flags():
        return f"fast (AMX): --precision {kind} pays"
    return "in hardware, without AMX: time both"


def note_if_slow(precision: str | torch.dtype | None, device: str) -> None:
    """Log one warning if computing on `device` in this precision is emulated; called wherever one is chosen."""
    name = str(precision).removeprefix("torch.")
    kind = {"bf16": "bf16", "bfloat16": "bf16", "fp16": "fp16", "float16": "fp16"}.get(name)
    if kind is None or device != "cpu" or in_hardware(kind) is not False:  # type: ignore[arg-type]
        return
    logger.warning(
        "note: precision %s is emulated on this CPU, which makes matrix products about 30 times and training 6 to 8 "
        "times slower; fp32 is the fast choice here (`unrolled doctor` says what the machine can do)",
        kind,
    )


def _probe(kind: Half) -> float | None:
    """How many times longer a product in this type takes than in float32 (under 0.1 s in all)."""
    import torch

    def seconds(matrix: torch.Tensor) -> float:
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            matrix @ matrix
            best = min(best, time.perf_counter() - start)
        return best

    matrix = torch.ones(256, 256)
    try:
        half = seconds(matrix.to(torch.bfloat16 if kind == "bf16" else torch.float16))
    except RuntimeError:  # some builds of torch do not multiply halves at all
        return None
    return half / seconds(matrix)
