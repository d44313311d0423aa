"""Image data by name: `open_images("cifar10", "train")`.

One interface over the embedded digits, torchvision's data sets, folders, packed files, Hugging Face data sets and
WebDataset shards; `dataset_names` lists the names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from unrolled.data.builtin import digits, synthetic_images
from unrolled.data.files import Splits, Unknown, find_packed, open_folder, open_packed
from unrolled.data.listing import printable
from unrolled.data.loader import Batch, eval_loader, steps_per_epoch, train_loader
from unrolled.data.sources import BadImage, ImageSource, Subset, stratified_split
from unrolled.data.text import is_text, text_names
from unrolled.data.torchvision_sets import TORCHVISION_NAMES, open_torchvision
from unrolled.data.transforms import eval_transform, train_transform
from unrolled.errors import MissingData, nearest, suggestion
from unrolled.plugins import load_plugin, plugins

__all__ = [
    "BadImage",
    "Batch",
    "ImageSource",
    "dataset_names",
    "eval_loader",
    "eval_transform",
    "open_images",
    "steps_per_epoch",
    "synthetic_images",
    "train_loader",
    "train_transform",
]

Split = Literal["train", "val", "test", "all"]

_PACKED = ("cifar10", "cifar100", "tiny-imagenet-32")
_OTHER_SPELLINGS = {"flowers": "flowers102", "pets": "oxford_iiit_pet", "oxford_pets": "oxford_iiit_pet"}
_TEST_SHARE = 0.2


def dataset_names() -> list[str]:
    """Every name `open_images` takes, with the two prefixes last."""
    fixed = sorted({"digits", "folder", "packed", "synthetic", *_PACKED, *TORCHVISION_NAMES})
    return [*fixed, *plugins("datasets"), "hf:ORG/NAME", "wds:PATTERN"]


def open_images(
    name: str,
    split: Split,
    *,
    data_dir: Path | str | None = None,
    val_fraction: float = 0.0,
    seed: int = 0,
    unknown_classes: Unknown = "raise",
) -> ImageSource:
    """Open one split of an image data set.

    Args:
        name: `digits` (embedded), a torchvision name (`cifar10`, `flowers102`, ...; downloaded when absent), `folder`,
            `packed`, `hf:ORG/NAME`, `wds:PATTERN` or `synthetic` (made up, for trying things). `cifar10`, `cifar100`
            and `tiny-imagenet-32` use packed files in `data_dir` or `data_dir/NAME` where they are.
        split: "train", "val" or "test". "val" is the part of the training split that `val_fraction` holds out, or, with
            `val_fraction` 0, the data set's own validation split where it has one beside a test split. "all" is a data
            set that is not divided (digits, one folder of classes, one packed file), whole, as for a model that was
            trained on other data.
        data_dir: where the data are, or are downloaded to.
        val_fraction: share of the training split held out, the same share of every class.
        seed: which images are held out; also divides data sets without a test split (digits, one folder of classes, one
            packed file), 80 % to train on and 20 % to test on, class by class.
        unknown_classes: images of `folder`, `imagenet`, `packed` and `hf:` in the validation or test split whose class
            the training split lacks are refused ("raise") or left out ("skip"), and then named in `passed_over`.

    Raises:
        ValueError: an unknown name (the nearest is suggested), split or fraction, labels outside the classes, or a
            split without images.
        MissingData: the data are not there and cannot be fetched.
        MissingExtra: `hf:` or `wds:` without their package.
    """
    if split not in ("train", "val", "test", "all"):
        raise ValueError(f"split must be 'train', 'val', 'test' or 'all', not {split!r}")
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction must be at least 0 and less than 1, not {val_fraction}")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, not {seed}")
    if unknown_classes not in ("raise", "skip"):
        raise ValueError(f"unknown_classes must be 'raise' or 'skip', not {unknown_classes!r}")
    folder = None if data_dir is None else Path(data_dir)
    source = _choose(_open(name, split, folder, val_fraction, seed, unknown_classes), name, split, val_fraction, seed)
    if len(source) == 0:
        raise ValueError(f"data: the {split} split of {name} has no images ({source.description})")
    return source


def _choose(splits: Splits, name: str, split: Split, val_fraction: float, seed: int) -> ImageSource:
    """The split that was asked for, divided off another one where the data set does not have it."""
    if split == "all":
        if "all" not in splits:
            raise ValueError(f"split: {name} is divided already; choose train, val or test instead of all")
        return splits["all"]
    if f"{split} held" in splits:
        return splits[f"{split} held"]
    if "all" in splits:
        splits = _divide(splits["all"], _TEST_SHARE, seed, ("train", "test"))
    if split == "test" or (split == "val" and "val" in splits and not val_fraction):
        return _existing(splits, split, name)
    train = _existing(splits, "train", name)
    if not val_fraction:
        if split == "train":
            return train
        raise ValueError(
            f"split: {name} has no validation split of its own; give val_fraction a share of the training split"
        )
    return _divide(train, val_fraction, seed, ("train", "val"))[split]


def _open(name: str, split: str, folder: Path | None, val_fraction: float, seed: int, unknown: Unknown) -> Splits:
    if name.startswith("hf:"):
        from unrolled.data.hub import open_hub

        return open_hub(name[3:], folder, split=split, unknown=unknown)
    if name.startswith("wds:"):
        from unrolled.data.shards import open_shards

        return open_shards(name[4:], folder, split=split, val_fraction=val_fraction, seed=seed)
    if name == "folder":
        if folder is not None and is_text(name, folder):
            raise ValueError(f"data_dir: {printable(folder)} has texts and no pictures; give a folder of pictures")
        return open_folder(folder, split=split, unknown=unknown)
    if name == "packed":
        return open_packed(name, folder, split=split, unknown=unknown)
    if name == "digits":
        return {"all": digits()}
    if name == "synthetic":
        return {"train": synthetic_images(512, seed=0), "test": synthetic_images(128, seed=1)}
    plain = name.lower().replace("-", "_")
    plain = _OTHER_SPELLINGS.get(plain, plain)
    if name in _PACKED and folder is not None and folder.expanduser().exists():
        part = "test" if split == "test" else "train"
        if folder.is_file() or find_packed(name, folder.expanduser(), part) is not None:
            return open_packed(name, folder, split=split, unknown=unknown)
    if plain in TORCHVISION_NAMES:
        return open_torchvision(plain, folder, split=split, unknown=unknown)
    if name in _PACKED:
        return open_packed(name, folder, split=split, unknown=unknown)
    opener = load_plugin("datasets", name)
    if opener is not None:
        return dict(opener(folder))
    if Path(name).is_dir():
        raise ValueError(f"data: {name!r} is a folder; give data='folder' and data_dir={name!r}")
    if name in text_names():
        raise ValueError(f"data: {name} is a corpus, one long text; give images, such as data='cifar10'")
    hint = suggestion(name, dataset_names())
    if (corpus := nearest(name, text_names())) and not nearest(name, dataset_names()):
        hint = f"did you mean {corpus[0]!r}, which is text?"
    raise ValueError(f"data: unknown data set {name!r}; {hint}")


def _existing(splits: Splits, split: str, name: str) -> ImageSource:
    if split not in splits:
        say = f"; if a split of another name is that, say so (data='{name},{split}=NAME')" if name[:3] == "hf:" else ""
        raise MissingData(f"data: {name} has no {split} split{say}")
    return splits[split]


def _divide(source: ImageSource, share: float, seed: int, names: tuple[str, str]) -> Splits:
    first, second = stratified_split(source.labels, len(source), share, seed)
    return {
        part: Subset(
            source, indices, description=f"{source.description}: {len(indices):,} images to {verb} (seed {seed})"
        )
        for part, indices, verb in zip(names, (first, second), ("train on", f"{names[1]} on"), strict=True)
    }
