"""One side of paired data for `unrolled extract` and `unrolled align`: which samples, and their features."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unrolled.commands.common import batches, open_model, progress, shown_everything

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from unrolled.data.pairs import PairSource
    from unrolled.instruments import FeatureSet
    from unrolled.instruments.features.parts import Processes
    from unrolled.models.encoders import Encoder

Side = Literal["image", "text", "text2"]
_PAIRED = ("coco", "flickr8k", "text", "wit")
_ALONE = ("given:", "tv:", "st:")


@dataclass(frozen=True)
class Paired:
    """Pairs to compute features of, and what is said of them, which is the same for both sides."""

    pairs: PairSource
    data: str
    rows: NDArray[np.int64]
    """Which pairs of the data they are."""

    @classmethod
    def choose(cls, data: str | None, split: str, data_dir: Path | None, texts: Path | None, count: int) -> Paired:
        """`count` pairs, drawn evenly from data of a name or from a file of texts; all if there are fewer."""
        import hashlib

        import numpy as np

        from unrolled.data.pairs import open_pairs

        if texts is not None:
            everything = read_texts(texts)
        else:
            part: Any = split if data == "flickr8k" or str(data).startswith("hf:") else "all"
            everything = open_pairs(str(data), part, data_dir=data_dir)
        count = min(count, len(everything))
        rows = np.linspace(0, len(everything) - 1, count).round().astype(np.int64)
        pairs = everything.take(rows)
        digest = hashlib.sha256(json_module.dumps([pairs.ids, pairs.captions, pairs.others]).encode()).hexdigest()
        said = f"{everything.description}: {count:,} of {len(everything):,} pairs (sha256 {digest[:16]})"
        return cls(pairs, said, rows)


def is_paired(data: str | None, side: Side | None, texts: Path | None) -> bool:
    """Whether the flags speak of paired data: their names, a side, or a file of texts."""
    return side is not None or texts is not None or data in _PAIRED


def check_alone(spec: str, paired: bool) -> None:
    """Raise ValueError where a kind of model that only paired data knows is given other data."""
    if not paired and spec.startswith(_ALONE):
        raise ValueError(
            f"model: {spec} needs to know what it is fed with: add --side image or --side text with paired data "
            "(--data flickr8k), or --texts FILE"
        )


def read_texts(path: Path) -> PairSource:
    """A text file, one text a line, or a .tsv of two columns.

    Raises:
        MissingData: no such file.
        ValueError: an empty line; the first are named by number.
    """
    from unrolled.data.pairs import PairSource, open_pairs
    from unrolled.data.text import read_lines
    from unrolled.errors import CorruptFile, MissingData

    path = path.expanduser()
    if not path.is_file():
        raise MissingData(f"--texts: there is no file {path}")
    if path.suffix == ".tsv":
        return open_pairs("text", data_dir=path)
    try:
        lines = read_lines(path)
    except CorruptFile as error:
        raise CorruptFile(f"--texts: {error}") from error
    numbers = [f"line {number}" for number in range(1, len(lines) + 1)]
    return PairSource(
        ids=numbers, captions=[[line] for line in lines], description=f"{path.name}, {len(lines):,} texts"
    )


def side_features(
    folder: Path,
    spec: str,
    samples: Paired,
    side: Side,
    *,
    where: torch.device,
    data_dir: Path | None,
    layers: Sequence[str],
    pool: str,
    captions: int | None = None,
    weights: Path | None = None,
    pretrained: bool = False,
    model_args: dict[str, Any] | None = None,
    image_size: int | None = None,
    batch_size: int = 64,
    workers: int = 0,
    on_error: Literal["raise", "skip"] = "raise",
    precision: str = "fp32",
    processes: Processes | None = None,
    seed: int,
    quiet: bool,
) -> tuple[FeatureSet, bool]:
    """Features of one side, read if `folder` holds the same, else computed and written there; and which it was."""
    import numpy as np
    import torch

    from unrolled.data.sources import Subset
    from unrolled.instruments import extract as compute
    from unrolled.instruments.features.extraction import feature_key
    from unrolled.instruments.features.parts import extract_in_parts
    from unrolled.instruments.features.text import extract_texts, text_feature_key

    encoder = _encoder(spec, side, data_dir, weights, pretrained, model_args, seed)
    module = encoder.module.to(where)
    rows = torch.from_numpy(samples.rows)
    chosen = encoder.layers if tuple(layers) == ("block*",) else layers
    options: dict[str, Any] = {
        "layers": chosen,
        "pooling": pool,
        "autocast": {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision],
    }
    if side != "image":
        assert encoder.collate is not None
        texts = samples.pairs.column(side, use=None if samples.pairs.others else captions)
        options |= {"data": samples.data, "batch_size": batch_size}
        key = text_feature_key(module, texts, encoder.collate, **options)
        kept = _kept(folder, key)
        if kept is not None:
            return kept, True

        def bar(items: Iterable[Any], total: int) -> Iterable[Any]:
            return progress(items, total=total, what=spec, quiet=quiet)

        def text_part(start: int, stop: int) -> FeatureSet:
            assert encoder.collate is not None
            made = extract_texts(module, texts[start:stop], encoder.collate, name=spec, progress=bar, **options)
            return replace(made, indices=torch.arange(stop - start))

        found = extract_in_parts(
            folder, text_part, key=key, total=len(texts), batch_size=batch_size, rows=rows, processes=processes
        )
        return found, False
    from unrolled.data import model_input

    source = samples.pairs.images()
    expects = model_input(module, native_size=source.native_size, image_size=image_size)
    options["data"] = samples.data
    options["inputs"] = json_module.dumps({"on_error": on_error, **expects}, sort_keys=True, default=str)
    key = feature_key(module, **options)
    kept = _kept(folder, key)
    if kept is not None:
        return kept, True

    def image_part(start: int, stop: int) -> FeatureSet:
        images = Subset(source, np.arange(start, stop))
        loader = batches(
            module, images, image_size=image_size, batch_size=batch_size, workers=workers, on_error=on_error
        )
        shown = progress(loader, total=-(-len(images) // batch_size), what=f"{spec}, from {start:,}", quiet=quiet)
        return replace(compute(module, shown, name=spec, **options), labels=None)  # pairs have no classes

    found = extract_in_parts(
        folder, image_part, key=key, total=len(source), batch_size=batch_size, rows=rows, processes=processes
    )
    return found, False


def sound_features(
    folder: Path,
    spec: str,
    sounds: Path,
    count: int,
    *,
    where: torch.device,
    layers: Sequence[str],
    pool: str,
    pretrained: bool,
    batch_size: int,
    precision: str,
    seed: int,
) -> tuple[FeatureSet, bool]:
    """Features of at most `count` sounds of a folder; read or computed as in `side_features`."""
    import hashlib

    import numpy as np
    import torch

    from unrolled.data.sounds import open_sounds
    from unrolled.instruments.features.extraction import feature_key
    from unrolled.instruments.features.text import extract_waveforms
    from unrolled.models.encoders import open_encoder, waveform

    source = open_sounds(sounds)
    torch.manual_seed(seed)
    encoder = open_encoder(spec, "audio", pretrained=pretrained or spec.startswith("hf:"))
    assert encoder.collate is not None
    module = encoder.module.to(where)
    rows = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)
    waves = [waveform(*source.load(int(row)), encoder.rate) for row in rows]
    digest = hashlib.sha256(b"".join(wave.tobytes() for wave in waves)).hexdigest()[:16]
    options: dict[str, Any] = {
        "layers": encoder.layers if tuple(layers) == ("block*",) else layers,
        "pooling": pool,
        "data": f"sounds of {sounds.name}: {len(waves):,} of {len(source):,} (sha256 {digest})",
        "autocast": {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision],
    }
    key = feature_key(module, **options)
    kept = _kept(folder, key)
    if kept is not None:
        return kept, True
    found = extract_waveforms(module, waves, encoder.collate, batch_size=batch_size, name=spec, **options)
    found = replace(found, key=key, indices=torch.from_numpy(rows))
    found.save(folder)
    return found, False


def _kept(folder: Path, key: str) -> FeatureSet | None:
    from unrolled.errors import CorruptFile, MissingData
    from unrolled.instruments import FeatureSet
    from unrolled.instruments.features.extraction import read_descriptors

    try:
        return FeatureSet.load(folder) if read_descriptors(folder)["key"] == key else None
    except (CorruptFile, MissingData):
        return None  # nothing usable there: computed anew, and what is damaged is written over


def _encoder(
    spec: str,
    side: Side,
    data_dir: Path | None,
    weights: Path | None,
    pretrained: bool,
    model_args: dict[str, Any] | None,
    seed: int,
) -> Encoder:
    import torch

    from unrolled.models.encoders import Encoder, open_encoder

    scheme = spec.partition(":")[0]
    if side != "image" or scheme in ("given", "tv", "st", "hf"):
        own = scheme in ("hf", "given", "st") or pretrained
        torch.manual_seed(seed)
        return open_encoder(spec, "image" if side == "image" else "text", data_dir=data_dir, pretrained=own)
    module = open_model(spec, weights=weights, pretrained=pretrained, model_args=model_args, seed=seed)
    return Encoder(name=spec, module=shown_everything(module), kind="image")
