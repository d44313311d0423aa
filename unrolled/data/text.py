"""Text: corpora by name, in train, validation and test parts that never overlap."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from unrolled.data.listing import PARTS, PassedOver, files_below, printable
from unrolled.data.sources import existing_folder
from unrolled.errors import CorruptFile, MissingData, require
from unrolled.reading import open_file

Split = Literal["train", "val", "test"]
_HELD = 0.05
_BLOCKS = 20


@dataclass(frozen=True, kw_only=True)
class Text:
    """One part of a corpus."""

    name: str
    split: Split
    text: str
    description: str
    passed_over: str = ""
    """What was found beside the files and left out, in words."""

    @property
    def bytes(self) -> int:
        """Its length in UTF-8, which bits per byte are counted over."""
        return len(self.text.encode("utf-8"))

    def fingerprint(self) -> str:
        """A short hash of the text."""
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class _Corpus:
    """Where a named corpus is, and how it is divided: `parts` are published ones, "tail" and "blocks" are ours."""

    files: dict[str, tuple[str, ...]]
    division: Literal["parts", "tail", "blocks"]


_CORPORA: dict[str, _Corpus] = {
    "tinyshakespeare": _Corpus(files={"all": ("tinyshakespeare.txt",)}, division="tail"),
    "wikitext2": _Corpus(
        files={
            "train": ("wikitext2_train.txt", "wiki.train.tokens"),
            "val": ("wikitext2_valid.txt", "wiki.valid.tokens"),
            "test": ("wikitext2_test.txt", "wiki.test.tokens"),
        },
        division="parts",
    ),
    "wikitext2-small": _Corpus(
        files={
            "train": ("wikitext2_valid.txt", "wiki.valid.tokens"),
            "test": ("wikitext2_test.txt", "wiki.test.tokens"),
        },
        division="parts",
    ),
    "brown": _Corpus(files={"all": ("brown_sentences.txt",)}, division="blocks"),
    "bronte": _Corpus(files={"all": ("bronte.txt",)}, division="blocks"),
    "darwin": _Corpus(files={"all": ("darwin.txt",)}, division="blocks"),
}


def text_names() -> list[str]:
    """Names that `open_text` knows, besides `folder` and `hf:ORG/NAME`."""
    return sorted(_CORPORA)


def is_text(name: str | None, data_dir: Path | None) -> bool:
    """Whether data are texts: a corpus by its name, or a `folder` in which there are .txt files and no pictures."""
    if name != "folder" or data_dir is None or not (folder := data_dir.expanduser()).is_dir():
        return name in _CORPORA
    from unrolled.data.files import IMAGES

    has_text = False
    for _, _, names in os.walk(folder):  # the first picture ends it: folders of these are large
        if any(os.path.splitext(each)[1].lower() in IMAGES for each in names):
            return False
        has_text = has_text or any(_is_text_file(each) for each in names)
    return has_text


def share_text(name: str, split: Split, other: str, part: Split) -> bool:
    """Whether a part of one corpus has text in common with a part of another, or the same one; by their files."""
    if name == other:
        return split == part
    if name not in _CORPORA or other not in _CORPORA:
        return False
    first, second = (_CORPORA[each].files for each in (name, other))

    def files(of: dict[str, tuple[str, ...]], which: Split) -> set[str]:
        return set(of.get(which) or of.get("all") or of["train"])  # what is not published is cut from the training part

    return bool(files(first, split) & files(second, part))


def open_text(
    name: str, split: Split = "train", *, data_dir: Path | str | None = None, held_out: float | None = None
) -> Text:
    """One part of a corpus; the three parts of a corpus have no character in common, and are always the same.

    | name | files in `data_dir`, each also as .gz | parts |
    | --- | --- | --- |
    | `tinyshakespeare` | `tinyshakespeare.txt` | first 90 %, next 5 %, last 5 %, cut at line ends |
    | `wikitext2` | `wikitext2_{train,valid,test}.txt` or `wiki.*.tokens` | the published ones |
    | `wikitext2-small` | the last two of these | train and val are cut from the published validation part |
    | `brown`, `bronte`, `darwin` | `brown_sentences.txt`, `bronte.txt`, `darwin.txt` | blocks, see below |
    | `folder` | any `.txt` | sub-folders or files called train, val (valid, validation), test; else blocks |
    | `hf:ORG/NAME`, `hf:ORG/NAME@CONFIG`, `hf:FOLDER` | cache of downloads | published; else cut from train |

    Behind a comma, `hf:` takes the column and the splits (`hf:ORG/NAME,text=body,val=dev`). A mark of the byte order at
    the start of a file is no part of the text, and Windows' line ends become single ones.

    Blocks: the text is cut at line ends into pieces of 1/400, and of every 20 in a row one is for validation and one
    for the test, so that the held-out parts are spread over genres and books. `held_out` changes the shares: 0.1 makes
    it one of 10 each, and of tinyshakespeare the first 80 %, the next and the last 10 %.

    Args:
        name: see the table. Numbers on `wikitext2-small` are not comparable with published WikiText-2 ones.
        split: "train", "val" or "test".
        data_dir: the folder with the files, or with a folder `text` that has them.
        held_out: share of the validation part, and of the test part, where they are cut from one text; default 0.05.

    Raises:
        ValueError: no such name or split, an empty text, or a `held_out` where both parts are there already.
        CorruptFile: a file is damaged, or not UTF-8.
        MissingData: the files are not there.
    """
    if split not in get_args(Split):
        raise ValueError(f"split={split!r}: choose one of {', '.join(get_args(Split))}")
    folder = None if data_dir is None else Path(data_dir)
    if folder is not None and name in _CORPORA and (folder / "text").is_dir():
        folder = folder / "text"
    passed = ""
    if name.startswith("hf:"):
        parts = _hub(name.removeprefix("hf:"), folder)
    elif name == "folder":
        parts, passed = _folder(existing_folder(folder, what=name))
    elif name in _CORPORA:
        parts = _packed(name, existing_folder(folder, what=name))
    else:
        path = Path(name)
        place = (path if path.is_dir() else path.parent) if path.exists() else "FOLDER"
        raise ValueError(
            f"data={name!r}: is no text; choose one of {', '.join(text_names())}, hf:ORG/NAME, or for .txt files of "
            f"your own data='folder' and data_dir={str(place)!r}"
        )
    divided = _divided(name, parts, held_out)
    text, whole = divided[split], sum(map(len, divided.values()))
    if not text.strip():
        raise ValueError(f"data={name!r}: the {split} part is empty; give longer files, or files for every part")
    return Text(
        name=name,
        split=split,
        text=text,
        description=f"{name} ({split}), {len(text):,} of {whole:,} characters"
        + (f" (passed over: {passed})" if passed else ""),
        passed_over=passed,
    )


def divide(text: str, *, fraction: float = _HELD) -> dict[Split, str]:
    """Train, validation and test parts of a text, in blocks (see `open_text`).

    Args:
        text: the whole.
        fraction: share of the validation part, and of the test part.

    Raises:
        ValueError: no share of the whole, or a text of too few lines.
    """
    if not 0 < fraction < 0.5:
        raise ValueError(f"fraction={fraction}: must lie between 0 and 0.5")
    every = max(3, round(1 / fraction))
    blocks = _cut(text, every * _BLOCKS)
    if len(blocks) < every:
        raise ValueError(
            f"text: {len(text):,} characters in {len(blocks)} lines are too few to hold out a part; give a longer "
            "text, one with line ends, or separate train, val and test files"
        )
    places: dict[Split, list[str]] = {"train": [], "val": [], "test": []}
    for index, block in enumerate(blocks):
        place: Split = {every - 2: "val", every - 1: "test"}.get(index % every, "train")  # type: ignore[assignment]
        places[place].append(block)
    return {place: "".join(texts) for place, texts in places.items()}


def _cut(text: str, count: int) -> list[str]:
    """About `count` pieces of equal length, each ending with its line."""
    size, pieces, start = max(1, len(text) // count), [], 0
    while start < len(text):
        end = text.find("\n", min(len(text), start + size - 1))
        end = len(text) if end < 0 else end + 1
        pieces.append(text[start:end])
        start = end
    return pieces


def _divided(name: str, parts: dict[str, str], held_out: float | None) -> dict[Split, str]:
    """The three parts of what was found: the whole text as `all`, or parts of it; training gives what is missing."""
    if held_out is not None and {"val", "test"} <= parts.keys():
        raise ValueError(f"held_out={held_out}: {name} has a validation and a test part of its own; leave it out")
    share = _HELD if held_out is None else held_out
    if "all" in parts:
        tail = name in _CORPORA and _CORPORA[name].division == "tail"
        return _tail(parts["all"], share) if tail else divide(parts["all"], fraction=share)
    return _complete(parts, share)  # type: ignore[arg-type]


def _tail(text: str, held_out: float) -> dict[Split, str]:
    cuts = [0]
    for share in (1 - 2 * held_out, 1 - held_out):
        end = text.find("\n", int(share * len(text)))
        cuts.append(len(text) if end < 0 else end + 1)
    first, second = cuts[1:]
    return {"train": text[:first], "val": text[first:second], "test": text[second:]}


def _complete(parts: dict[Split, str], held_out: float) -> dict[Split, str]:
    """Parts that are missing are cut from the training part, which loses them."""
    if missing := [part for part in ("val", "test") if part not in parts]:
        cut = divide(parts["train"], fraction=held_out)
        parted: Any = {"train": cut["train"], **{part: cut[part] for part in missing}}  # type: ignore[index]
        if len(missing) == 1:  # only one is needed: the other stays in training
            other: Any = "test" if missing == ["val"] else "val"
            parted["train"] += cut[other]  # type: ignore[index]
        parts = {**parts, **parted}
    return parts


def _packed(name: str, folder: Path) -> dict[str, str]:
    corpus = _CORPORA[name]
    parts = {}
    for part, names in corpus.files.items():
        present = [path for stem in names for path in (folder / stem, folder / f"{stem}.gz") if path.is_file()]
        if not present:
            hint = "; `wikitext2-small` needs only valid and test" if name == "wikitext2" else ""
            raise MissingData(f"data_dir: {folder} has no {' or '.join(names)} (or .gz), for {name}{hint}")
        parts[part] = read_text(present[0])
    return parts


def _is_text_file(name: str) -> bool:
    return name.lower().endswith((".txt", ".txt.gz"))


def _folder(folder: Path) -> tuple[dict[str, str], str]:
    if not folder.is_dir():
        raise ValueError(f"data_dir: {printable(folder)} is a file; give the folder it is in")
    passed = PassedOver()
    files = files_below(folder, _is_text_file, passed)
    unpacked = set(files)
    for path in list(files):
        if path.suffix.lower() == ".gz" and path.with_suffix("") in unpacked:
            files.remove(path)
            passed.add("compressed copies of files beside them", printable(path.name))
    if not files:
        raise MissingData(f"data_dir: {printable(folder)} has no .txt or .txt.gz files")
    parts: dict[Split, list[str]] = {}
    rest = []
    for path in files:
        names = [*path.relative_to(folder).parts[:-1], re.sub(r"(?i)(\.txt)?(\.gz)?$", "", path.name)]
        known: list[Split] = [PARTS[name.lower()] for name in names if name.lower() in PARTS]  # type: ignore[misc]
        if known:
            parts.setdefault(known[0], []).append(read_text(path))
        else:
            rest.append(read_text(path))
    if parts and (rest or "train" not in parts):
        raise ValueError(
            f"data_dir: some files of {printable(folder)} are named as parts (train, val, test) and some are not, or "
            "train is missing; name all of them, or none"
        )
    if not parts:
        return {"all": "\n".join(rest)}, passed.summary()
    return {part: "\n".join(texts) for part, texts in parts.items()}, passed.summary()


def _hub(name: str, folder: Path | None) -> dict[str, str]:
    from unrolled.data.hub import column_called, columns_of, hub_spec, load_dataset, split_names

    datasets = require("datasets", extra="hf", feature=f"data `hf:{name}`")
    place, options = hub_spec(name)
    table = load_dataset(datasets, place, folder)
    parts: dict[str, str] = {}
    for part, published in split_names(table, options, f"hf:{place}").items():
        rows = table[published]
        texts = [key for key, f in rows.features.items() if getattr(f, "dtype", "") in ("string", "large_string")]
        if "text" in options and column_called(rows, f"hf:{place}", "text", options["text"]) in texts:
            texts = [options["text"]]
        elif "text" in options or not texts:
            raise ValueError(f"hf:{place} has no such text column; its columns are {columns_of(rows)}")
        if len(texts) > 1 and "text" not in texts:
            raise ValueError(
                f"hf:{place} has several columns of text ({', '.join(texts)}); say which it is, as in "
                f"data='hf:{place},text={texts[0]}'"
            )
        column = "text" if "text" in texts else texts[0]
        lines = (row if row.endswith("\n") else row + "\n" for row in rows[column][:] if row)
        parts[part] = "".join(lines)
    return parts


def read_text(path: Path) -> str:
    """A UTF-8 file, or one packed as .gz: without a mark of the byte order, and with single characters as line ends.

    Raises:
        CorruptFile: it cannot be decompressed, or is not UTF-8.
    """
    with open_file(path) as file:
        data = file.read()
    try:
        data = gzip.decompress(data) if path.suffix.lower() == ".gz" else data
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CorruptFile(f"{printable(path)}: cannot be decompressed: {error}") from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise CorruptFile(f"{printable(path)}: is UTF-16; save it as UTF-8")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise CorruptFile(f"{printable(path)}: is not UTF-8 text (byte {error.start}); convert it first") from error


def read_lines(path: Path) -> list[str]:
    """The lines of such a file; only line ends part them, as `wc -l` counts, not form feeds or U+2028 in a text."""
    lines = read_text(path).split("\n")
    return lines if lines[-1] else lines[:-1]
