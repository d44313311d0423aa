"""How a report came to be: enough to run it again, in words a reader understands."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unrolled.provenance import environment


@dataclass(kw_only=True)
class Provenance:
    """What was run, where, and with which versions. Durations are in seconds."""

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
        return cls.of_environment(environment(), config=config, seeds=seeds, duration=duration, command=command)

    @classmethod
    def of_environment(
        cls,
        record: Mapping[str, Any],
        *,
        config: Any = None,
        seeds: Sequence[int] = (),
        duration: float | None = None,
        command: str | None = None,
    ) -> Provenance:
        """Describe the process that wrote `record`: a run's `env.json`, or what `unrolled.provenance` returns.

        Entries that are missing are left out.
        """
        versions = {name: str(record[name]) for name in ("unrolled", "python") if record.get(name)}
        versions |= {str(name): str(version) for name, version in (record.get("packages") or {}).items()}
        git = record.get("git") or {}
        if git.get("commit"):
            versions["revision"] = str(git["commit"])[:12] + (" with changes" if git.get("dirty") else "")
        return cls(
            command=_command(record.get("command")) if command is None else command,
            seeds=tuple(int(seed) for seed in seeds),
            duration=duration,
            created=str(record.get("time", "")),
            versions=versions,
            hardware=_hardware(record),
            config=plain_config(config),
        )


def _hardware(record: Mapping[str, Any]) -> dict[str, str]:
    hardware = {
        "processor": record.get("cpu"),
        "cores": record.get("cpu_count"),
        "threads": record.get("threads"),
        "memory": f"{record['memory_gib']:.0f} GiB" if record.get("memory_gib") else None,
        "accelerator": ", ".join(record.get("gpus") or ()),
        "device": record.get("device"),
        "processes": record.get("processes"),
        "system": record.get("platform"),
    }
    return {name: str(value) for name, value in hardware.items() if value}


def _command(words: Any) -> str:
    words = [str(word) for word in words or ()]
    if words[:1] == ["__main__.py"]:  # python -m unrolled
        words[0] = "unrolled"
    return shlex.join(words)


def plain_config(config: Any) -> dict[str, Any]:
    """A dataclass or mapping as plain values that JSON and YAML can hold.

    Raises:
        ValueError: `config` is neither.
    """
    if config is None:
        return {}
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    if not isinstance(config, Mapping):
        raise ValueError(f"config must be a dataclass or a mapping, not {type(config).__name__}")
    return {str(name): plain(value) for name, value in config.items()}


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: tuples as lists, arrays as numbers, non-finite numbers as None, the rest as text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain_config(value)
    return plain(value.tolist()) if hasattr(value, "tolist") else str(value)
