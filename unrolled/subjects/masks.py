"""Photos on which people marked things, as the verbs open them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from unrolled.errors import MissingData

if TYPE_CHECKING:
    from unrolled.data import MaskSource


def open_marked(data: str, folder: Path | None, *, missing: Literal["error", "skip"] = "error") -> MaskSource:
    """The validation split of a set of annotated photos; all of a packed sample, since nothing here is trained on it.

    Raises:
        ValueError: no such set.
        MissingData: no folder was given, or it lacks what is needed.
    """
    from unrolled.data import open_masks

    if folder is None:
        raise MissingData("data_dir: is needed, the folder with the annotated photos")
    root = folder.expanduser()
    packed = data == "coco" and (root.is_file() or any(root.glob("coco_panoptic*.npz")))
    try:
        return open_masks(data, data_dir=root, split="all" if packed else "val", missing=missing)
    except MissingData as error:  # in the words of the verbs
        raise MissingData(str(error).replace("missing='skip' passes", "on_error='skip' passes")) from error
