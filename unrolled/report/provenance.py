"""What was run, where, and with which versions: enough to run it again, and nothing that names a person or a machine."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "timm", "lightning-fabric", "numpy", "scikit-learn")


@dataclass(kw_only=True)
class Provenance:
    """How a report came to be. Durations are in seconds."""

    command: str = ""
    seeds: tuple[int, ...] = ()
    duration: float | None = None
    created: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def collect(
        cls, *, config: Any = None, seeds: Sequence[int] = (), duration: float | None = None, command: str | None = None
    ) -> Provenance:
        """Describe this process: `config` is a dataclass or a mapping, `command` defaults to how Python was called."""
        return cls(
            command=command if command is not None else command_line(),
            seeds=tuple(int(seed) for seed in seeds),
            duration=duration,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=versions(),
            hardware=hardware(),
            config=plain_config(config),
        )


def versions() -> dict[str, str]:
    """Versions of this package, Python and what the numbers depend on."""
    from unrolled import __version__

    found = {"unrolled": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def hardware() -> dict[str, str]:
    """Processor, cores, memory, and accelerators if torch has been loaded and sees any."""
    found = {"system": f"{platform.system()} {platform.machine()}", "processor": _processor(), "cores": str(os.cpu_count())}
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        found["memory"] = f"{memory / 2**30:.0f} GiB"
    except (ValueError, OSError, AttributeError):  # not every system tells
        pass
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["accelerator"] = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return found


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def command_line() -> str:
    """The command that started this process, without the folder the program lies in."""
    program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    if program == "__main__.py":
        program = "unrolled"
    return shlex.join([program, *sys.argv[1:]])


def plain_config(config: Any) -> dict[str, Any]:
    """A dataclass or mapping as plain values that JSON and YAML can hold."""
    if config is None:
        return {}
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    if not isinstance(config, Mapping):
        raise ValueError(f"config must be a dataclass or a mapping, not {type(config).__name__}")
    return {str(name): plain(value) for name, value in config.items()}


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: paths and unknown objects as text, tuples as lists, non-finite numbers as None."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain_config(value)
    if hasattr(value, "item") and getattr(value, "size", None) in (1, None):
        try:
            return plain(value.item())
        except (ValueError, RuntimeError):
            return str(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)
