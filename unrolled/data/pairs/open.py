"""Paired data by name: `open_pairs("flickr8k", data_dir=...)`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from unrolled.data.pairs.base import PairSource
from unrolled.data.pairs.files import (
    open_coco,
    open_flickr8k,
    open_folder_pairs,
    open_hub_pairs,
    open_packed_pairs,
    open_text_pairs,
)
from unrolled.errors import suggestion

Part = Literal["all", "train", "test"]

_NAMES = ("coco", "flickr8k", "folder", "packed", "text", "wit")


def pair_names() -> list[str]:
    """Every name `open_pairs` takes."""
    return [*_NAMES, "hf:ORG/NAME@REVISION"]


def open_pairs(name: str, split: Part = "all", *, data_dir: str | Path | None = None) -> PairSource:
    """Open paired data.

    Args:
        name: one of
            `flickr8k`: 2,000 packed photos with five captions, in `data_dir` or `data_dir/flickr8k-2000`;
            `coco`: packed photos with their captions, in `data_dir` or `data_dir/coco-panoptic-200`; photos that come
            without captions are left out;
            `folder`: a folder of images with `captions.json` (file -> text or texts, records with `image` and
            `caption`, or COCO's annotations), with `captions.tsv` or `captions.txt` (file, tab, caption; one line a
            caption), or with one .txt file beside each image, a caption a line;
            `hf:ORG/NAME`, `hf:ORG/NAME@REVISION` or `hf:FOLDER`: a Hugging Face data set with a column of images and
            one of texts (`text`, `caption`, `captions`, ...), or with two columns of texts;
            `wit`: the 1,024 pairs of the Platonic Representation Hypothesis, `hf:minhuh/prh@wit_1024`;
            `packed`: one .npz with `payload` and `offsets` (encoded images) or `images` [n, h, w, c], and `texts` [n]
            or [n, captions], optionally `ids` [n];
            `text`: a .tsv file of two columns, the texts of a pair.
        split: "all", or for `flickr8k` "train" and "test" (its own division), for `hf:` a split of the data set.
        data_dir: where the data are; for `hf:` the cache of downloads.

    Raises:
        ValueError: unknown name or split, ids without a partner or given twice, empty texts; the first are named.
        MissingData: the data are not there and cannot be fetched.
        CorruptFile, UnsafeFile: a file is damaged, or holds more than plain arrays.
        MissingExtra: `hf:` without `datasets`.
    """

    if split not in ("all", "train", "test"):
        raise ValueError(f"split must be 'all', 'train' or 'test', not {split!r}")
    folder = None if data_dir is None else Path(data_dir)
    if name == "wit":
        return open_hub_pairs("minhuh/prh@wit_1024", folder, split)
    if name.startswith("hf:"):
        return open_hub_pairs(name[3:], folder, split)
    if name not in _NAMES:
        raise ValueError(f"data: unknown paired data {name!r}; {suggestion(name, pair_names())}")
    if name != "flickr8k" and split != "all":
        raise ValueError(f"split={split!r}: {name} pairs are not divided; use split='all'")
    if name == "flickr8k":
        return open_flickr8k(folder, split)
    readers = {
        "coco": open_coco,
        "folder": open_folder_pairs,
        "packed": open_packed_pairs,
        "text": open_text_pairs,
    }
    return readers[name](folder)
