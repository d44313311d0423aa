"""Where a number came from: versions, hardware and source revision, written beside every result."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "torchvision", "timm", "lightning-fabric", "numpy", "safetensors", "scikit-learn", "pillow")


def environment() -> dict[str, Any]:
    """Versions, hardware and git revision, as JSON-able values.

    Returns:
        `time` (UTC, ISO 8601), `unrolled`, `python`, `platform`, `packages` (name -> version), `cpu`, `cpu_count`,
        `threads` (torch), `memory_gib`, `gpus` (names), `cuda`, `git` (`{"commit", "dirty"}`, or None outside a
        checkout), `command`.
    """
    import torch

    import unrolled

    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "unrolled": unrolled.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "git": _git(Path(unrolled.__file__).resolve().parent),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return None


def _git(folder: Path) -> dict[str, Any] | None:
    def ask(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        # an installed copy inside someone else's repository is not a checkout of ours
        if Path(ask("rev-parse", "--show-toplevel")) != folder.parent:
            return None
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None
