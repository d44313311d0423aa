"""What the networks that ship make of twelve photos that anyone may show: the picture and numbers of docs/photos.md.

    python -m benchmarks.photos      # needs scikit-image beside this package, for ten of the photos

Runs `unrolled segment`, `explain` and `complete` as they come and lays their pictures side by side:
docs/photos.jpg and docs/benchmarks/photos.json. The photos are all that both packages bring with a statement that they
may be shown, those through a microscope or of an eye excepted; none was chosen by what a network makes of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks.timing import machine
from unrolled.commands.sheets import sheet

DOCS = Path(__file__).resolve().parents[1] / "docs"
THINGS = ("astronaut", "camera", "chelsea", "coffee", "coins", "flower", "rocket", "temple")
TEXTURES = ("brick", "grass", "gravel", "hubble_deep_field")
COLUMNS = ("photo", "attention", "MaskCut", "evidence", "a quarter of it", "completed", "inpainted")
_QUALITY = 80  # of the JPEG


def main() -> None:
    """Write the picture and the numbers."""
    with TemporaryDirectory() as scratch:
        work = Path(scratch)
        paths = photos(work / "photos")
        called("segment", work / "photos", work / "segment")
        completed = {Path(row["image"]).stem: row for row in called("complete", work / "photos", work)["images"]}
        explained = {name: called("explain", path, work / name) for name, path in paths.items()}
        rows = [(words(name, explained[name]), pictures(name, work)) for name in paths]
        sheet(rows, COLUMNS).save(DOCS / "photos.jpg", quality=_QUALITY)
    columns = ["photo", "named", "its patches away", "as many others", "completed", "inpainted", "mean colour"]
    record = {
        "machine": machine(),
        "command": "python -m benchmarks.photos",
        "note": "The most probable class of ten; what its logit gains when the tenth of the patches that are most for "
        "it become the mean colour, and when as many others do (16 draws, mean ± standard deviation); PSNR on the 75 % "
        "of patches that were removed, in dB.",
        "tables": [{"columns": columns, "rows": [numbers(n, explained[n], completed[n]) for n in paths]}],
    }
    text = json.dumps(record, indent=1, ensure_ascii=False)
    (DOCS / "benchmarks/photos.json").write_text(text + "\n", encoding="utf-8")


def photos(folder: Path) -> dict[str, Path]:
    """Every photo as a file of `folder`, by name: those of things, then those of textures."""
    try:
        from skimage import data
    except ModuleNotFoundError:
        raise SystemExit("ten of the photos are scikit-image's: pip install scikit-image") from None
    folder.mkdir()
    ours = dict(zip(("temple", "flower"), load_sample_images().images, strict=True))
    paths = {}
    for name in (*THINGS, *TEXTURES):
        pixels = ours[name] if name in ours else getattr(data, name)()
        paths[name] = folder / f"{name}.png"
        Image.fromarray(np.asarray(pixels)).convert("RGB").save(paths[name])
    return paths


def called(verb: str, photo: Path, out: Path) -> dict[str, Any]:
    """The results of a verb as it comes, on one photo or a folder of them."""
    extra = ["--images", "0"] if verb == "explain" else []
    subprocess.run([sys.executable, "-m", "unrolled", verb, photo, "--out", out / verb, *extra], check=True)
    results: dict[str, Any] = json.loads((out / verb / "report.json").read_text(encoding="utf-8"))["results"]
    return results


def pictures(name: str, work: Path) -> list[Any]:
    """The row of one photo, in the order of `COLUMNS`."""
    (attention,) = (work / "segment/segment").glob(f"{name}-layer*-attention.png")
    (cut,) = (work / "segment/segment").glob(f"{name}-layer*-maskcut.png")
    parts = [work / "complete" / f"{name}-{kind}.png" for kind in ("mask", "completion", "inpainting")]
    files = [work / f"photos/{name}.png", attention, cut, work / name / "explain/all-layers.png", *parts]
    return [np.asarray(Image.open(file).convert("RGB")) for file in files]


def words(name: str, explained: dict[str, Any]) -> str:
    """A photo and what it is taken for."""
    return f"{name.replace('_', ' ')}: {named(explained)}"


def named(explained: dict[str, Any]) -> str:
    """The most probable class and its probability."""
    label = explained["target"]["name"].split("(")[-1].rstrip(")")
    return f"{label}, {100 * explained['among']['probability']:.0f} %"


def numbers(name: str, explained: dict[str, Any], completed: dict[str, Any]) -> list[str]:
    """A row of the table."""
    removals = explained["removals"]
    others = removals["random"]
    return [
        name.replace("_", " "),
        named(explained),
        f"{removals['most for']:+.2f}",
        f"{others['mean']:+.2f} ± {others['std']:.2f}",
        *(f"{completed[key]:.1f}" for key in ("psnr", "psnr_inpainting", "psnr_mean_colour")),
    ]


if __name__ == "__main__":
    main()
