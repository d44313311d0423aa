"""The files that paired data come in: packed arrays, captioned folders, tables of texts, Hugging Face data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unrolled.arrays import read_npz
from unrolled.data.files import IMAGES
from unrolled.data.hub import column_called, columns_of, hub_spec, load_dataset
from unrolled.data.listing import files_below, files_in, printable
from unrolled.data.pairs.base import PairSource, refuse, repeated
from unrolled.data.sources import BadImage, Picture, decode, existing_folder
from unrolled.data.text import read_lines
from unrolled.errors import CorruptFile, MissingData, require
from unrolled.reading import id_text, read_json

_TEXTS = ("text", "texts", "caption", "captions", "sentence", "sentences", "raw", "alt_text", "description")


class _Packed:
    """Encoded images end to end in one array."""

    def __init__(self, arrays: Mapping[str, np.ndarray], path: Path) -> None:
        self._payload, offsets = arrays["payload"], arrays["offsets"].astype(np.int64)
        if self._payload.dtype != np.uint8 or offsets.ndim != 1 or len(offsets) < 2:
            raise CorruptFile(f"{path}: payload must be uint8 [bytes] and offsets at least two integers")
        if offsets[0] < 0 or (np.diff(offsets) < 0).any() or offsets[-1] > len(self._payload):
            raise CorruptFile(f"{path}: offsets must not decrease and must stay within the payload")
        self._offsets = offsets
        self._header = arrays["header"].tobytes() if "header" in arrays else b""

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __call__(self, index: int) -> Picture:
        start, stop = self._offsets[index : index + 2]
        if start == stop:
            raise BadImage("is empty")
        return decode(self._header + self._payload[start:stop].tobytes())


def open_flickr8k(data_dir: Path | None, split: str) -> PairSource:
    """See `open_pairs`."""
    folder = _place(data_dir, "flickr8k", "flickr8k-2000")
    arrays = _arrays(folder / "flickr8k_2000.npz", "payload", "offsets", "filenames", "is_test")
    texts = _json(folder / "flickr8k_2000_captions.json")
    load, ids = _Packed(arrays, folder / "flickr8k_2000.npz"), [str(name) for name in arrays["filenames"]]
    captions = _matched(ids, texts, "flickr8k")
    everything = PairSource(
        ids=ids, captions=captions, description="Flickr8k, 2,000 photos, 5 captions each", load=load
    )
    if split == "all":
        return everything
    return everything.take(np.flatnonzero(arrays["is_test"].astype(bool) == (split == "test")))


def open_coco(data_dir: Path | None) -> PairSource:
    """See `open_pairs`."""
    folder = _place(data_dir, "coco", "coco-panoptic-200")
    ids: list[str] = []
    captions: list[list[str]] = []
    places: list[tuple[_Packed, int]] = []
    for stem in ("coco_panoptic_200", "coco_extra_captioned"):
        path = folder / f"{stem}.npz"
        if not path.is_file():
            continue
        arrays = _arrays(path, "payload", "offsets", "image_ids")
        texts = _json(folder / f"{stem}_captions.json")
        images, names = _Packed(arrays, path), [str(number) for number in arrays["image_ids"]]
        refuse("captions of photos that are not there", sorted(set(texts) - set(names)), f"coco, {stem}")
        for index, name in enumerate(names):
            if name in texts and name not in ids:
                ids.append(name)
                captions.append(_listed(texts[name]))
                places.append((images, index))
    if not ids:
        raise MissingData(f"data_dir: {folder} holds no packed COCO photos with captions")
    return PairSource(
        ids=ids, captions=captions, description=f"COCO, {len(ids)} photos with captions",
        load=lambda index: places[index][0](places[index][1]),
    )  # fmt: skip


def open_folder_pairs(data_dir: Path | None) -> PairSource:
    """See `open_pairs`."""
    root = existing_folder(data_dir, what="folder")
    files = files_below(root, IMAGES)
    if not files:
        raise MissingData(f"data_dir: {root} holds no images")
    names = [printable(path.relative_to(root).as_posix()) for path in files]
    texts = _captions_in(root, files, names)
    captions = _matched(names, texts, str(root))
    return PairSource(
        ids=names, captions=captions, description=f"{root.name}, {len(names):,} captioned images",
        load=lambda index: decode(files[index]),
    )  # fmt: skip


def _captions_in(root: Path, files: Sequence[Path], names: Sequence[str]) -> dict[str, Any]:
    if (root / "captions.json").is_file():
        return _by_file(_json(root / "captions.json"), root / "captions.json")
    for name in ("captions.tsv", "captions.txt"):
        if (root / name).is_file():
            captions: dict[str, Any] = {}
            for number, (key, text) in enumerate(_rows(root / name)):
                if number or Path(key).suffix.lower() in IMAGES:  # else a line of headings
                    captions.setdefault(key, []).append(text)
            return captions
    beside = {name: path.with_suffix(".txt") for name, path in zip(names, files, strict=True)}
    if not any(path.is_file() for path in beside.values()):
        raise MissingData(
            f"data_dir: {root} has images but no captions.json, no captions.tsv and no .txt file beside an image"
        )
    return {
        name: [line for line in read_lines(path) if line.strip()] or [""]
        for name, path in beside.items()
        if path.is_file()
    }


def _by_file(data: Any, path: Path) -> dict[str, Any]:
    """File -> texts, from the three ways that caption files are written."""
    if isinstance(data, dict) and isinstance(data.get("images"), list) and isinstance(data.get("annotations"), list):
        data = _by_image_id(data["images"], data["annotations"], path)
    if isinstance(data, dict):
        return data
    captions: dict[str, Any] = {}
    for number, record in enumerate(data if isinstance(data, list) else []):
        record = record if isinstance(record, dict) else {}
        key = next((record[k] for k in ("image", "file_name", "file", "filename") if k in record), None)
        text = next((record[k] for k in _TEXTS if k in record), None)
        if key is None or text is None:
            raise ValueError(f"{path}: record {number} has no `image` or no `caption`")
        captions.setdefault(str(key), []).extend(_listed(text))
    if not captions:
        raise ValueError(f"{path}: needs file -> captions, a list of records, or COCO's annotations")
    return captions


def _by_image_id(images: list[Any], notes: list[Any], path: Path) -> list[dict[str, Any]]:
    """COCO's captions as records that name their file."""
    for what, entries, needed in (("images", images, ("id", "file_name")), ("annotations", notes, ("image_id",))):
        for number, entry in enumerate(entries):
            lost = [key for key in needed if not isinstance(entry, dict) or entry.get(key) is None]
            if lost:
                raise CorruptFile(f"{path}: entry {number} of {what} lacks {lost[0]}")
    names = {id_text(image["id"]): str(image["file_name"]) for image in images}
    return [{"image": names.get(id_text(note["image_id"]), str(note["image_id"])), **note} for note in notes]


def open_packed_pairs(data_dir: Path | None) -> PairSource:
    """See `open_pairs`."""
    path = existing_folder(data_dir, what="packed")
    if path.is_dir():
        fits = files_in(path, {".npz"})
        if len(fits) != 1:
            raise ValueError(f"data_dir: {path} has {len(fits)} .npz files; name the file of the pairs")
        path = fits[0]
    arrays = _arrays(path, "texts")
    texts = arrays["texts"]
    if texts.dtype.kind != "U" or texts.ndim not in (1, 2):
        raise ValueError(f"{path}: texts must be strings [n] or [n, captions], not {texts.dtype} {texts.shape}")
    captions = [[str(text)] for text in texts] if texts.ndim == 1 else [[str(t) for t in row] for row in texts]
    ids = [str(i) for i in arrays.get("ids", np.arange(len(captions)))]
    if "images" in arrays:
        pixels = arrays["images"]
        if pixels.ndim != 4:
            raise ValueError(f"{path}: images must be [n, h, w, c], not {pixels.shape}")
        count = len(pixels)

        def load(index: int) -> Picture:
            picture: np.ndarray = pixels[index]
            return picture

    elif "payload" in arrays and "offsets" in arrays:
        packed = _Packed(arrays, path)
        count, load = len(packed), packed.__call__
    else:
        raise CorruptFile(f"{path} holds neither `images` nor `payload` and `offsets`")
    if count != len(captions) or len(ids) != count:
        raise ValueError(
            f"{path}: {count} images, {len(captions)} rows of texts and {len(ids)} ids: they are not paired"
        )
    return PairSource(ids=ids, captions=captions, description=f"{path.name}, {count:,} pairs", load=load)


def open_text_pairs(data_dir: Path | None) -> PairSource:
    """See `open_pairs`."""
    path = existing_folder(data_dir, what="text")
    if path.is_dir():
        fits = files_in(path, {".tsv"})
        if len(fits) != 1:
            raise ValueError(f"data_dir: {path} has {len(fits)} .tsv files; name the file of the pairs")
        path = fits[0]
    rows = list(_rows(path))
    return PairSource(
        ids=[str(i) for i in range(1, len(rows) + 1)], captions=[[second] for _, second in rows],
        others=[first for first, _ in rows], description=f"{path.name}, {len(rows):,} pairs of texts",
    )  # fmt: skip


def open_hub_pairs(name: str, data_dir: Path | None, split: str) -> PairSource:
    """See `open_pairs`."""
    datasets = require("datasets", extra="hf", feature=f"data `hf:{name}`")
    place, options = hub_spec(name)
    table = load_dataset(datasets, place, data_dir, revision=True)
    if split == "all" and len(table) == 1:
        split = next(iter(table))
    split = options.get(split, split)
    if split not in table:
        raise ValueError(f"split={split!r}: hf:{place} has {', '.join(table)}; name one of train and test")
    return _hub_pairs(datasets, table[split], f"hf:{place}", options)


def _hub_pairs(datasets: Any, table: Any, title: str, options: dict[str, str]) -> PairSource:
    features = table.features
    images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    texts = [key for key, feature in features.items() if _is_text(datasets, feature)]
    preferred = [key for key in _TEXTS if key in texts]
    keys = [key for key in ("id", "image_id", "img_id", "key") if key in features]
    numbers = [str(i) for i in range(len(table))]
    named = [[str(value) for value in table[key]] for key in keys]
    ids = next((names for names in named[:1] if not repeated(names)), numbers)
    groups = next(
        (names for names in named if repeated(names)), []
    )  # one row a caption: rows of one id are of one photo

    def columns(name: str) -> list[str] | None:
        plain = isinstance(features.get(name), datasets.Value | datasets.ClassLabel)
        return [str(value) for value in table[name]] if plain else None

    description = f"{title}, {len(table):,} pairs"
    if not images:
        if len(texts) < 2:
            raise ValueError(
                f"{title}: needs a column of images and one of texts, or two of texts; has {', '.join(features)}"
            )
        first, second = texts[:2]
        return PairSource(
            ids=ids, captions=[[_joined(text)] for text in table[second]], description=description,
            others=[_joined(text) for text in table[first]], groups=groups, columns=columns,
        )  # fmt: skip
    if "text" in options:
        preferred = [column_called(table, title, "text", options["text"])]
    if not (preferred or texts):
        raise ValueError(f"{title}: has no column of texts; its columns are {columns_of(table)}")
    if not preferred and len(texts) > 1:
        raise ValueError(
            f"{title}: has several columns of texts ({', '.join(texts)}); say which it is (data='{title},text=COLUMN')"
        )
    image = "image" if "image" in images else images[0]
    if "image" in options and (image := column_called(table, title, "image", options["image"])) not in images:
        raise ValueError(f"{title}: column {image} holds no images; its columns are {columns_of(table)}")
    captions = [_listed(text) for text in table[(preferred or texts)[0]]]
    encoded = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))

    def load(index: int) -> Picture:
        record = encoded[index][image]
        if not record or (record.get("bytes") is None and record.get("path") is None):
            raise BadImage("has no image in its row")
        return decode(record["bytes"] if record["bytes"] is not None else Path(record["path"]))

    return PairSource(
        ids=ids, captions=captions, description=description, load=load, groups=groups, columns=columns
    )  # fmt: skip


def _is_text(datasets: Any, feature: Any) -> bool:
    if isinstance(feature, list):
        feature = feature[0]
    inner = getattr(feature, "feature", feature)  # of a list of texts
    return isinstance(inner, datasets.Value) and inner.dtype in ("string", "large_string")


def _matched(ids: Sequence[str], texts: Mapping[str, Any], where: str) -> list[list[str]]:
    """The texts of every id, or a ValueError that names those without a partner on either side."""
    refuse("images without a caption", [i for i in ids if i not in texts], where)
    refuse("captions of images that are not there", sorted(set(texts) - set(ids)), where)
    return [_listed(texts[i]) for i in ids]


def _listed(texts: Any) -> list[str]:
    if texts is None:
        return []
    if isinstance(texts, list | tuple | np.ndarray):
        return [str(text) if text is not None else "" for text in texts]
    return [str(texts)]


def _joined(texts: Any) -> str:
    return " ".join(_listed(texts))


def _place(data_dir: Path | None, name: str, inside: str) -> Path:
    root = existing_folder(data_dir, what=name)
    return root / inside if (root / inside).is_dir() else root


def _rows(path: Path) -> list[tuple[str, str]]:
    """The two columns of a table of texts."""
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        cells = line.split("\t")
        if len(cells) != 2:
            raise ValueError(f"{path}, line {number}: has {len(cells)} columns instead of 2, parted by a tab")
        rows.append((cells[0].strip(), cells[1].strip()))
    return rows


def _json(path: Path) -> Any:
    if not path.is_file():
        raise MissingData(f"{path} does not exist")
    return read_json(path)


def _arrays(path: Path, *needed: str) -> dict[str, np.ndarray]:
    arrays = read_npz(path, dict.fromkeys((*needed, "payload", "offsets", "header", "ids", "images")))
    lacking = [key for key in needed if key not in arrays]
    if lacking:
        raise CorruptFile(f"{path} lacks {', '.join(lacking)}")
    return arrays
