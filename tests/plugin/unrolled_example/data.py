"""Two classes of made-up pictures."""

from pathlib import Path

from unrolled.data import ImageSource, synthetic_images


def stripes(data_dir: Path | None) -> dict[str, ImageSource]:
    """Splits by name; there is nothing to read in `data_dir`."""
    return {"train": synthetic_images(64, classes=2), "test": synthetic_images(16, classes=2, seed=1)}
