"""Files that somebody made to harm readers: no code runs, nothing waits, none passes, errors are one line."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hostile import SEEN, Touch, ends_within, linked, pickled, png, said_plainly

from unrolled import cli

Make = Callable[[Path], None]
MODEL = "crate_nano_patch2_8"
SHORT = ["--quiet", "--out", "out"]
IMAGES = ["--data-dir", ".", "--batch-size", "4", *SHORT]


def _tensors(header: object, payload: bytes = b"", *, size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + payload


def _described(folder: Path, **config: object) -> None:
    (folder / "config.json").write_text(json.dumps({"architecture": MODEL, "num_classes": 10, **config}))


def _npz(path: Path, **arrays: object) -> None:
    np.savez(path, allow_pickle=True, **{name: np.asarray(value) for name, value in arrays.items()})


def _npy_header(shape: str, descr: str = "'<f4'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(64)


def _tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for member, data in members:
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def _member(name: str, kind: bytes = tarfile.REGTYPE, to: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    return member


def _classes(folder: Path, *pictures: tuple[str, bytes]) -> None:
    for label in ("a", "b"):
        (folder / label).mkdir()
        for number in range(6):
            (folder / label / f"{number}.png").write_bytes(png(8))
    for name, data in pictures:
        (folder / name).write_bytes(data)


def _write(name: str, data: bytes | str) -> Make:
    def make(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)

    return make


def _both(*parts: Make) -> Make:
    def make(folder: Path) -> None:
        for part in parts:
            part(folder)

    return make


def _report(**changes: object) -> str:
    block = {
        "kind": "figure",
        "name": "x",
        "caption": "",
        "panels": [{"title": "t", "description": "d", "columns": [], "rows": []}],
    }
    report = {
        "format": "unrolled.report/1",
        "title": "t",
        "question": "",
        "summary": "",
        "facts": [],
        "claims": [],
        "sections": [{"title": "s", "blocks": [block]}],
        "provenance": {},
    }
    return json.dumps({**report, **changes})


def _svg(body: str) -> Make:
    return _both(
        _write("studies/mesa-x/report.json", _report()),
        _write("studies/mesa-x/figures/x.svg", f'<svg xmlns="http://www.w3.org/2000/svg">{body}</svg>'),
    )


def _coco(name: str) -> str:
    return json.dumps({
        "images": [{"id": 1, "file_name": name, "width": 8, "height": 8}], "categories": [{"id": 1, "name": "c"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 4, "bbox": [0, 0, 2, 2],
                         "segmentation": [[0, 0, 2, 0, 2, 2]]}],
    })  # fmt: skip


EVAL = ["eval", ".", "--data", "digits", *SHORT]
GALLERY = ["gallery", "--studies", "studies", "--out", "site"]
COMPARE = ["align", "bad.npy", "good.npy", *SHORT]
FOLDER = ["eval", MODEL, "--data", "folder", "--split", "all", *IMAGES]
SHARDS = ["eval", MODEL, "--data", "wds:*.tar;*.tar", *IMAGES]
PACKED = ["eval", MODEL, "--data", "packed", *IMAGES]
SEGMENT = ["segment", "bad.png", "--model", MODEL, *SHORT]
TEXT = ["train", "--task", "lm", "--data", "folder", "--data-dir", ".", "--max-steps", "1", *SHORT]


def hub() -> list[str]:
    """The command that reads `set`, a folder."""
    return ["eval", MODEL, "--data", "hf:set", *SHORT]


def card(place: str) -> str:
    """A card that says where the data are."""
    return f"---\nconfigs:\n- config_name: default\n  data_files: {{train: '{place}'}}\n---\n"


ENTITY = '<!DOCTYPE svg [<!ENTITY a SYSTEM "file:///etc/passwd">]><svg>&a;</svg>'

FILES: dict[str, tuple[Make, list[str]]] = {
    # models
    "config.json is a list": (_write("config.json", "[]"), EVAL),
    "config.json nests 100,000 levels": (_write("config.json", "[" * 100_000), EVAL),
    "config.json has a number of 10,000 digits": (
        _write("config.json", '{"architecture": ' + "1" * 10_000 + "}"),
        EVAL,
    ),
    "the architecture is an object": (lambda f: _described(f, architecture={"x": 1}), EVAL),
    "the architecture is fetched": (lambda f: _described(f, architecture="hf-hub:nobody/nothing"), EVAL),
    "the arguments are text": (lambda f: _described(f, model_args="depth=1"), EVAL),
    "an argument loads another file": (lambda f: _described(f, model_args={"checkpoint_path": "x.pth"}), EVAL),
    "an argument is a function's name": (lambda f: _described(f, model_args={"block_fn": "os.system"}), EVAL),
    "weights are a pipe": (_both(_described, lambda f: os.mkfifo(f / "model.safetensors")), EVAL),
    "weights are a folder": (_both(_described, lambda f: (f / "model.safetensors").mkdir()), EVAL),
    "weights point outside of the file": (
        _both(
            _described,
            _write("model.safetensors", _tensors({"x": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}})),
        ),
        EVAL,
    ),
    "weights overlap": (
        _both(
            _described,
            _write(
                "model.safetensors",
                _tensors({k: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for k in "ab"}, bytes(4)),
            ),
        ),
        EVAL,
    ),
    "a header of exabytes": (_both(_described, _write("model.safetensors", _tensors(b"{}", size=2**62))), EVAL),
    "a zip that is a pickle": (
        lambda f: zipfile.ZipFile(f / "w.pth", "w").writestr("w/data.pkl", pickled()),
        ["convert", "w.pth", "out"],
    ),
    "a checkpoint of cells": (_write("w.pth", pickled()), ["trace", MODEL, "--weights", "w.pth", *SHORT]),
    "a tokenizer that nests": (
        _both(_write("train.txt", "a b c " * 400), _write("tokenizer.json", '{"model": ' + "[" * 50_000)),
        [*TEXT, "--tokenizer", "tokenizer.json"],
    ),
    "a tokenizer that is a pipe": (
        _both(_write("train.txt", "a b c " * 400), lambda f: os.mkfifo(f / "tokenizer.json")),
        [*TEXT, "--tokenizer", "tokenizer.json"],
    ),
    # features
    "features of objects": (
        lambda f: np.save(f / "bad.npy", np.array([Touch()], dtype=object), allow_pickle=True),
        COMPARE,
    ),
    "an array of a negative length": (_write("bad.npy", _npy_header("(-1, 4)")), COMPARE),
    "an array of exabytes": (_write("bad.npy", _npy_header("(1000000000000, 1000000)")), COMPARE),
    "an array whose header is code": (
        _write("bad.npy", _npy_header(f"__import__('os').system('touch {SEEN}')")),
        COMPARE,
    ),
    "an array of Python objects by type": (_write("bad.npy", _npy_header("(4, 4)", "'|O'")), COMPARE),
    "features whose record is a list": (_write("bad/features.json", "[]"), ["align", "bad", "good.npy", *SHORT]),
    "features that lie elsewhere": (
        lambda f: linked(f / "bad" / "features.json", "/dev/zero"),
        ["align", "bad", "good.npy", *SHORT],
    ),
    # images
    "packed objects": (lambda f: _npz(f / "x_test.npz", images=np.array([Touch()], dtype=object), labels=[0]), PACKED),
    "a packed archive with a member elsewhere": (
        lambda f: zipfile.ZipFile(f / "x_test.npz", "w").writestr("../../x.npy", b"x"),
        PACKED,
    ),
    "a packed file that is a link to a device": (lambda f: (f / "x_test.npz").symlink_to("/dev/zero"), PACKED),
    "a picture that starts a program": (
        lambda f: _classes(f, ("a/9.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) (w) file\n")),
        FOLDER,
    ),
    "a picture of a billion pixels": (
        _write("bad.png", png()[:16] + struct.pack(">II", 60_000, 60_000) + png()[24:]),
        SEGMENT,
    ),
    "a picture that is a device": (lambda f: (f / "bad.png").symlink_to("/dev/zero"), SEGMENT),
    "a class that is a link to itself": (
        lambda f: (_classes(f), (f / "c").symlink_to("c"))[0],
        FOLDER,
    ),
    "a shard of links": (
        lambda f: _tar(
            f / "x.tar", [(_member("0.cls"), b"0"), (_member("0.png", tarfile.SYMTYPE, "/etc/passwd"), b"")]
        ),
        SHARDS,
    ),
    "a shard whose label is code": (
        lambda f: _tar(f / "x.tar", [(_member("0.png"), png(8)), (_member("0.cls"), b"__import__('os')")]),
        SHARDS,
    ),
    "a shard of pickles": (
        lambda f: _tar(f / "x.tar", [(_member("0.png"), pickled()), (_member("0.cls"), b"0")]),
        SHARDS,
    ),
    "a shard whose label nests": (
        lambda f: _tar(f / "x.tar", [(_member("0.png"), png(8)), (_member("0.json"), b"[" * 50_000)]),
        SHARDS,
    ),
    "a shard that is a pipe": (lambda f: os.mkfifo(f / "x.tar"), SHARDS),
    "an index of shards that is none": (
        _both(
            lambda f: _tar(f / "x.tar", [(_member("0.png"), png(8)), (_member("0.cls"), b"0")]),
            _write("index.json", '{"labels": {"x.tar": "0"}}'),
        ),
        SHARDS,
    ),
    "numbers of shards without end": (lambda f: None, ["eval", MODEL, "--data", "wds:x-{0..99999999999}.tar", *IMAGES]),
    "names of pictures outside of the folder": (
        _both(
            _write("annotations/instances_val2017.json", _coco("../../../../etc/passwd")),
            _write("val2017/1.jpg", png()),
        ),
        ["segment-eval", "coco", "--model", MODEL, *IMAGES],
    ),
    "an absolute name of a picture": (
        _both(_write("annotations/instances_val2017.json", _coco("/dev/zero")), _write("val2017/1.jpg", png())),
        ["segment-eval", "coco", "--model", MODEL, *IMAGES],
    ),
    "labels that nest": (
        lambda f: (_classes(f), _write("real.json", "[" * 50_000)(f))[0],
        ["eval", MODEL, "--data", "folder", "--labels", "real.json", *IMAGES],
    ),
    # data sets of Hugging Face and torchvision
    "a data set with a script": (_write("set/set.py", f"import os; os.system('touch {SEEN}')"), hub()),
    "a data set fetched by its card": (_write("set/README.md", card("http://localhost:1/a.csv")), hub()),
    "a data set that lies elsewhere by its card": (_write("set/README.md", card("../../a.csv")), hub()),
    "a data set of links elsewhere by its settings": (
        _write("set/.huggingface.yaml", card("/etc/passwd").strip("-")),
        hub(),
    ),
    "a data set whose columns are code": (
        _both(
            _write("set/state.json", json.dumps({"_data_files": [{"filename": "../../x.arrow"}], "_split": "train"})),
            _write("set/dataset_info.json", json.dumps({"features": {"label": {"_type": "os.system"}}})),
        ),
        hub(),
    ),
    "a processed MNIST": (
        _both(
            _write("MNIST/processed/training.pt", pickled()),
            _write("MNIST/processed/test.pt", pickled()),
        ),
        ["eval", MODEL, "--data", "mnist", *IMAGES],
    ),
    # texts
    "a text that unpacks to nothing that was packed": (_write("train.txt.gz", gzip.compress(b"x" * 10**6)[:500]), TEXT),
    "a text that is a pipe": (lambda f: os.mkfifo(f / "train.txt"), TEXT),
    "a text of zero bytes": (_write("train.txt", b"\x00\xff" * 500), TEXT),
    # the gallery
    "a figure that is a link": (
        _both(
            _write("studies/mesa-x/report.json", _report()),
            lambda f: linked(f / "studies/mesa-x/figures/x.svg", "/etc/passwd"),
        ),
        GALLERY,
    ),
    "a report that is a link": (lambda f: linked(f / "studies/mesa-x/report.json", "/etc/hosts"), GALLERY),
    "a study that is a link": (
        _both(_write("elsewhere/report.json", _report()), lambda f: linked(f / "studies/mesa-x", "../elsewhere")),
        GALLERY,
    ),
    "a figure with a name elsewhere": (
        _write("studies/mesa-x/report.json", _report().replace('"name": "x"', '"name": "../../../x"')),
        GALLERY,
    ),
    "a figure with a script": (_svg("<script>alert(1)</script>"), GALLERY),
    "a figure with an event": (_svg('<rect onclick="alert(1)"/>'), GALLERY),
    "a figure with a page in it": (_svg("<foreignObject><iframe/></foreignObject>"), GALLERY),
    "a figure with an address": (_svg('<image href="http://localhost/x.png"/>'), GALLERY),
    "a figure with entities": (
        _both(_write("studies/mesa-x/report.json", _report()), _write("studies/mesa-x/figures/x.svg", ENTITY)),
        GALLERY,
    ),
    "a report without claims": (_write("studies/mesa-x/report.json", _report(claims=None)), GALLERY),
    "a report with verdicts that are lists": (
        _write("studies/mesa-x/report.json", _report(claims=[{"reproduced": []}])),
        GALLERY,
    ),
    "a report that nests": (_write("studies/mesa-x/report.json", "[" * 50_000), GALLERY),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_hostile_file_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make, command = FILES[kind]
    for word, package in (("wds:", "webdataset"), ("hf:", "datasets")):
        if any(word in part for part in command):
            pytest.importorskip(package)
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", list(sys.path))
    np.save(place / "good.npy", np.eye(4, dtype=np.float32))
    make(place)
    with ends_within(30):
        code = cli.run(command)
    captured = capsys.readouterr()
    assert not (place / SEEN).exists()
    assert code in (1, 2, 3), captured
    assert len(said_plainly(captured.err)) < 600
    assert "root:" not in captured.err, "the content of a file is nobody's"
    assert not list(place.glob("site/**/*.svg"))


def test_a_picture_that_is_a_pipe_is_passed_over_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _classes(tmp_path)
    os.mkfifo(tmp_path / "a" / "9.png")
    out = ["--out", str(tmp_path / "out")]
    with ends_within(30):
        assert cli.run(["eval", MODEL, "--data", "folder", "--data-dir", str(tmp_path), "--split", "all", *out]) == 0
    assert "passed over: 1 pipes, sockets or devices (9.png)" in capsys.readouterr().err


def test_thirty_kinds() -> None:
    assert len(FILES) >= 30
