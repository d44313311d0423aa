"""Headers that claim gigabytes, widths and depths of another world: refused in one sentence, before memory runs out."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import unrolled
from unrolled import cli, memory
from unrolled.arrays import read_npy, read_npz
from unrolled.errors import CorruptFile, MissingData, UnsafeFile
from unrolled.instruments.features.files import read_features
from unrolled.models import LanguageModel, create_model, language_config
from unrolled.models.encoder import build_language_model
from unrolled.tensors import read_tensors


def header(shape: str, kind: str = "<f4") -> bytes:
    """The beginning of an `.npy` file."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return buffer.getvalue()


HUGE = {
    "of gigabytes": header("(4000000000, 8)"),
    "of more than there are addresses": header("(99999999999, 99999999999)"),
    "of no size": header("(-1, 4)"),
    "of a size that is no number": header("('a', 4)"),
    "of no type": header("(4, 4)", "banana"),
    "of structures": header("(4, 4)", "V9999999"),
    "without an end": b"\x93NUMPY\x01\x00\xff\xff{'descr'",
    "of another version": b"\x93NUMPY\x07\x00" + b"x" * 120,
}


@pytest.mark.parametrize("name", HUGE)
def test_an_array_that_claims_what_its_file_does_not_hold(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(HUGE[name] + b"\0" * 64)
    with pytest.raises(CorruptFile, match=r"a\.npy"):
        read_features(tmp_path / "a.npy")
    (tmp_path / "a.npz").write_bytes(archive(x=HUGE[name] + b"\0" * 64))
    for read in (read_npz, read_tensors):
        with pytest.raises(CorruptFile, match=r"a\.npz"):
            read(tmp_path / "a.npz")


def test_an_archive_that_unpacks_into_more_than_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.npz").write_bytes(archive(x=header("(1000, 1000)") + b"\0" * 4_000_000))
    assert (tmp_path / "a.npz").stat().st_size < 10_000
    assert read_npz(tmp_path / "a.npz")["x"].shape == (1000, 1000)
    monkeypatch.setattr(memory, "available_bytes", lambda: 1_000_000)
    with pytest.raises(ValueError, match=r"a\.npz: reading it needs 0\.0 GiB of memory"):
        read_npz(tmp_path / "a.npz")
    np.save(tmp_path / "a.npy", np.zeros((1000, 1000), np.float32))
    with pytest.raises(ValueError, match=r"a\.npy: reading it needs"):
        read_npy(tmp_path / "a.npy")
    assert isinstance(read_npy(tmp_path / "a.npy", mapped_from=1000), np.memmap)


def test_whole_arrays_are_read_as_they_are(tmp_path: Path) -> None:
    given = {"x": np.arange(6.0).reshape(2, 3), "names": np.array(["a", "bc"]), "none": np.zeros((0, 3))}
    given["columns"] = np.asfortranarray(given["x"])
    np.savez_compressed(tmp_path / "a.npz", **given)
    for name, value in read_npz(tmp_path / "a.npz").items():
        assert np.array_equal(value, given[name])
    assert list(read_npz(tmp_path / "a.npz", ("x", "other"))) == ["x"]
    for name, value in given.items():
        np.save(tmp_path / "a.npy", value)
        assert np.array_equal(read_npy(tmp_path / "a.npy"), given[name])


def test_pickles_and_what_is_not_there(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{}], object))
    np.save(tmp_path / "a.npy", np.array([{}], object), allow_pickle=True)
    for read, name in ((read_npz, "a.npz"), (read_npy, "a.npy")):
        with pytest.raises(UnsafeFile, match="pickled"):
            read(tmp_path / name)
        with pytest.raises(MissingData):
            read(tmp_path / f"no-{name}")


ABSURD: list[dict[str, Any]] = [
    {"embed_dim": 10**12},
    {"embed_dim": 10**18},
    {"depth": 10**9},
    {"img_size": 10**7},
    {"num_classes": 10**11},
    {"patch_size": 10**9},
    {"embed_dim": -5},
    {"embed_dim": "wide"},
    {"depth": "deep"},
    {"num_heads": 0},
    {"img_size": 0},
    {"img_size": [1]},
    {"in_chans": -1},
]


@pytest.mark.parametrize("arguments", ABSURD, ids=str)
@pytest.mark.parametrize("name", ["crate_nano_patch4_32", "crate_mae_nano_patch4_32", "tost_nano_patch4_32"])
def test_models_that_cannot_be(name: str, arguments: dict[str, Any]) -> None:
    if name.startswith("tost") and arguments == {"img_size": 10**7}:
        return  # its positions are computed, of whatever size the images are
    with pytest.raises(ValueError, match=r"\w+"):
        create_model(name, **arguments)


def test_many_small_parts_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    from unrolled.models import building

    monkeypatch.setattr(building, "available_bytes", lambda: 10_000_000)
    with pytest.raises(ValueError, match=r"with depth=500 needs more memory than the 0\.0 GiB that are free"):
        create_model("crate_nano_patch4_32", depth=500)
    assert create_model("crate_nano_patch4_32", depth=5) is not None
    config = language_config("crate_gpt_nano", vocab_size=10**6)
    with pytest.raises(ValueError, match="needs more memory"):
        build_language_model(config)


def test_a_folder_that_describes_an_absurd_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    create_model("crate_nano_patch4_32", depth=1).save_pretrained(tmp_path / "images")
    config = language_config("crate_gpt_nano", vocab_size=30, dim=8, heads=2, layers=("mssa",), max_length=16)
    LanguageModel(config).save_pretrained(tmp_path / "text")
    for kind, changes in (("images", {"model_args": {"embed_dim": 10**12}}), ("text", {"dim": 10**12, "heads": 1})):
        folder = tmp_path / kind
        (folder / "SHA256SUMS").unlink()
        described = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**described, **changes}))
        with pytest.raises(ValueError, match="needs more memory"):
            unrolled.from_pretrained(folder)
    code = cli.run(["eval", str(tmp_path / "images"), "--data", "digits", "--out", str(tmp_path / "out")])
    assert code == 2
    assert "needs more memory" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "line", ["--image-size 10000000", "--model-args.img-size 10000000", "--model-args.depth 99999999"]
)
def test_absurd_flags(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tost_nano_patch4_32", *line.split(), "--data", "digits", "--quiet", "--out", str(tmp_path / "out")]
    for verb in ("eval", "extract", "trace"):
        assert cli.run([verb, *words]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("error: ")
        assert "--debug" not in said


def test_memory_that_runs_out_while_a_verb_runs_is_one_line() -> None:
    cpu = RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory")
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB"), cpu):
        code, message = cli.explain(error)
        assert code == 1
        assert "memory ran out" in message
        assert "--batch-size" in message
