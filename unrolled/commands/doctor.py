"""`unrolled doctor`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path

from unrolled import __version__, precision
from unrolled.commands.options import AsJson
from unrolled.harness import print_answer

# importable name -> (extra, what it is for)
OPTIONAL = {
    "transformers": ("hf", "models named hf:ORG/NAME"),
    "datasets": ("hf", "data named hf:ORG/NAME"),
    "gguf": ("gguf", "language models in .gguf files"),
    "accelerate": ("gguf", "language models in .gguf files"),
    "onnxruntime": ("onnx", "models in .onnx files"),
    "webdataset": ("webdataset", "data named wds:PATTERN"),
    "tensorboard": ("track", "--loggers tensorboard"),
    "wandb": ("track", "--loggers wandb"),
    "trackio": ("trackio", "--loggers trackio"),
    "starlette": ("explore", "the page of `unrolled explore`"),
    "uvicorn": ("explore", "the page of `unrolled explore`"),
}
REQUIRED = (
    "torch",
    "torchvision",
    "timm",
    "lightning-fabric",
    "numpy",
    "scikit-learn",
    "safetensors",
    "huggingface_hub",
    "cyclopts",
)


def doctor(*, json: AsJson = False) -> None:
    """Say what of this machine will be used, which extras are missing, and where caches are.

    Nothing is downloaded and nothing is written. The text can be pasted into a bug report as it is.

        unrolled doctor
        unrolled doctor --json
    """
    facts = examine()
    lines = []
    for heading, rows in facts.items():
        width = max(map(len, rows), default=0)
        lines += [heading, *(f"  {name:<{width}}  {value}" for name, value in rows.items())]
    print_answer("doctor", facts, "\n".join(lines), json=json)


def examine() -> dict[str, dict[str, str]]:
    """The facts `unrolled doctor` shows, by heading."""
    return {"software": _software(), "machine": _machine(), "extras": _extras(), "caches": _caches()}


def _software() -> dict[str, str]:
    versions = {"unrolled": __version__, "python": f"{platform.python_version()} ({sys.executable})"}
    for package in REQUIRED:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = f"MISSING: pip install {package}"
    return versions


def _machine() -> dict[str, str]:
    if importlib.util.find_spec("torch") is None:
        return {"platform": platform.platform(), "device used": "none: torch is not installed"}
    import torch

    facts = {"platform": platform.platform(), "device used": _device()}
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            facts[f"cuda:{index}"] = f"{card.name}, {card.total_memory / 2**30:.0f} GiB"
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    facts["cpu cores"] = f"{available} usable of {os.cpu_count()}"
    facts["torch threads"] = f"{torch.get_num_threads()}" + (
        f" (OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']})" if "OMP_NUM_THREADS" in os.environ else ""
    )
    facts["cpu capability"] = torch.backends.cpu.get_cpu_capability()
    facts["bf16 on cpu"] = precision.describe("bf16")
    facts["memory"] = _memory()
    return facts


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda (--accelerator cpu to avoid it)"
    if torch.backends.mps.is_available():
        return "mps (--accelerator cpu to avoid it)"
    return "cpu"


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError, AttributeError):
        return "not known on this system"
    free = _proc("/proc/meminfo", "MemAvailable").split()
    available = f", {int(free[0]) / 2**20:.1f} GiB available" if free else ""
    return f"{total:.1f} GiB{available}"


def _proc(file: str, *keys: str) -> str:
    """The first value under one of `keys` in a Linux `key: value` file, or an empty string."""
    if not Path(file).is_file():
        return ""
    for line in Path(file).read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return ""


def _extras() -> dict[str, str]:
    rows = {}
    for module, (extra, purpose) in OPTIONAL.items():
        if importlib.util.find_spec(module) is not None:
            rows[module] = f"{importlib.metadata.version(module)} ({purpose})"
        else:
            rows[module] = f"missing ({purpose}): pip install 'unrolled[{extra}]'"
    return rows


def _caches() -> dict[str, str]:
    home = Path.home()
    cache = Path(os.environ.get("XDG_CACHE_HOME", home / ".cache"))
    hub = Path(os.environ.get("HF_HUB_CACHE", Path(os.environ.get("HF_HOME", cache / "huggingface")) / "hub"))
    torch_home = Path(os.environ.get("TORCH_HOME", cache / "torch"))
    rows = {"Hugging Face hub": _describe(hub), "torch hub": _describe(torch_home)}
    rows["offline"] = (
        "yes (HF_HUB_OFFLINE)" if os.environ.get("HF_HUB_OFFLINE", "") in {"1", "ON", "YES", "TRUE"} else "no"
    )
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    rows["free disk here"] = f"{free:.1f} GiB"
    return rows


def _describe(path: Path) -> str:
    return f"{path}" if path.is_dir() else f"{path} (not there yet)"
