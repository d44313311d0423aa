"""What a wheel and a source archive must hold, and must not: `python -m tests.distributions dist`."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LARGEST = {".whl": 12_000_000, ".gz": 19_000_000}  # eleven trained networks are 10.8 MB before packing
"""Bytes; a figure or a data set that slips in is seen here."""
SOURCE = ("tests/conftest.py", "website/__main__.py", "docs/index.md", "docs/demo.png", "README.md", "CHANGELOG.md")
SOURCE += ("CITATION.cff", "LICENSE", "Makefile", "constraints.txt", "pyproject.toml", "benchmarks/timing.py")
SOURCE += ("notebooks/layer.py",)


def package() -> set[str]:
    """Every file of the package."""
    found = (path.relative_to(ROOT) for path in (ROOT / "unrolled").rglob("*") if path.is_file())
    return {path.as_posix() for path in found if "__pycache__" not in path.parts}


def wrong(folder: Path) -> list[str]:
    """What is missing in the archives of a folder, or too much, a line each."""
    wheels, sources = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    if len(wheels) != 1 or len(sources) != 1:
        return [f"{folder}: {len(wheels)} wheels and {len(sources)} source archives; one of each is expected"]
    with zipfile.ZipFile(wheels[0]) as wheel:
        built = set(wheel.namelist())
    with tarfile.open(sources[0]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    found = [f"wheel: {name} is missing" for name in sorted(package() - built)]
    found += [f"wheel: {name} does not belong" for name in sorted(built - package()) if ".dist-info/" not in name]
    found += [f"source: {name} is missing" for name in sorted({*package(), *SOURCE} - held)]
    strange = [name for name in sorted(held) if name.split("/")[0] in ("build", "site", "runs", ".venv", "dist")]
    found += [f"source: {name} does not belong" for name in strange]
    for path in (*wheels, *sources):
        if (size := path.stat().st_size) > LARGEST[path.suffix]:
            found.append(f"{path.name}: {size:,} bytes, more than {LARGEST[path.suffix]:,}")
    return found


if __name__ == "__main__":
    lines = wrong(Path(sys.argv[1]))
    print("\n".join(lines) or "distributions ok")
    sys.exit(bool(lines))
