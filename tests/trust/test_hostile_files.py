"""Files that somebody made to harm readers: no code runs, nothing waits, none passes, errors are one line."""

from __future__ import annotations

import gzip
import json
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hostile import (
    COMPARE,
    EVAL,
    FOLDER,
    GALLERY,
    HUB,
    IMAGES,
    MODEL,
    PACKED,
    SEEN,
    SEGMENT,
    SHARDS,
    SHORT,
    TEXT,
    Make,
    Touch,
    both,
    classes,
    described,
    ends_within,
    linked,
    member,
    pickled,
    png,
    refused,
    report,
    svg,
    tensors,
    write,
)

from tests.files import tar
from unrolled import cli


def _npz(path: Path, **arrays: object) -> None:
    np.savez(path, allow_pickle=True, **{name: np.asarray(value) for name, value in arrays.items()})


def _npy_header(shape: str, descr: str = "'<f4'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(64)


def _coco(name: str) -> str:
    return json.dumps({
        "images": [{"id": 1, "file_name": name, "width": 8, "height": 8}], "categories": [{"id": 1, "name": "c"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 4, "bbox": [0, 0, 2, 2],
                         "segmentation": [[0, 0, 2, 0, 2, 2]]}],
    })  # fmt: skip


def card(place: str) -> str:
    """A card that says where the data are."""
    return f"---\nconfigs:\n- config_name: default\n  data_files: {{train: '{place}'}}\n---\n"


ENTITY = '<!DOCTYPE svg [<!ENTITY a SYSTEM "file:///etc/passwd">]><svg>&a;</svg>'

FILES: dict[str, tuple[Make, list[str]]] = {
    # models
    "config.json is a list": (write("config.json", "[]"), EVAL),
    "config.json nests 100,000 levels": (write("config.json", "[" * 100_000), EVAL),
    "config.json has a number of 10,000 digits": (
        write("config.json", '{"architecture": ' + "1" * 10_000 + "}"),
        EVAL,
    ),
    "the architecture is an object": (lambda f: described(f, architecture={"x": 1}), EVAL),
    "the architecture is fetched": (lambda f: described(f, architecture="hf-hub:nobody/nothing"), EVAL),
    "the arguments are text": (lambda f: described(f, model_args="depth=1"), EVAL),
    "an argument loads another file": (lambda f: described(f, model_args={"checkpoint_path": "x.pth"}), EVAL),
    "an argument is a function's name": (lambda f: described(f, model_args={"block_fn": "os.system"}), EVAL),
    "weights are a pipe": (both(described, lambda f: os.mkfifo(f / "model.safetensors")), EVAL),
    "weights are a folder": (both(described, lambda f: (f / "model.safetensors").mkdir()), EVAL),
    "weights point outside of the file": (
        both(
            described,
            write("model.safetensors", tensors({"x": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}})),
        ),
        EVAL,
    ),
    "weights overlap": (
        both(
            described,
            write(
                "model.safetensors",
                tensors({k: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for k in "ab"}, bytes(4)),
            ),
        ),
        EVAL,
    ),
    "a header of exabytes": (both(described, write("model.safetensors", tensors(b"{}", size=2**62))), EVAL),
    "a zip that is a pickle": (
        lambda f: zipfile.ZipFile(f / "w.pth", "w").writestr("w/data.pkl", pickled()),
        ["convert", "w.pth", "out"],
    ),
    "a checkpoint of cells": (write("w.pth", pickled()), ["trace", MODEL, "--weights", "w.pth", *SHORT]),
    "a tokenizer that nests": (
        both(write("train.txt", "a b c " * 400), write("tokenizer.json", '{"model": ' + "[" * 50_000)),
        [*TEXT, "--tokenizer", "tokenizer.json"],
    ),
    "a tokenizer that is a pipe": (
        both(write("train.txt", "a b c " * 400), lambda f: os.mkfifo(f / "tokenizer.json")),
        [*TEXT, "--tokenizer", "tokenizer.json"],
    ),
    # features
    "features of objects": (
        lambda f: np.save(f / "bad.npy", np.array([Touch()], dtype=object), allow_pickle=True),
        COMPARE,
    ),
    "an array of a negative length": (write("bad.npy", _npy_header("(-1, 4)")), COMPARE),
    "an array of exabytes": (write("bad.npy", _npy_header("(1000000000000, 1000000)")), COMPARE),
    "an array whose header is code": (
        write("bad.npy", _npy_header(f"__import__('os').system('touch {SEEN}')")),
        COMPARE,
    ),
    "an array of Python objects by type": (write("bad.npy", _npy_header("(4, 4)", "'|O'")), COMPARE),
    "features whose record is a list": (write("bad/features.json", "[]"), ["align", "bad", "good.npy", *SHORT]),
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
        lambda f: classes(f, ("a/9.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) (w) file\n")),
        FOLDER,
    ),
    "a picture of a billion pixels": (
        write("bad.png", png()[:16] + struct.pack(">II", 60_000, 60_000) + png()[24:]),
        SEGMENT,
    ),
    "a picture that is a device": (lambda f: (f / "bad.png").symlink_to("/dev/zero"), SEGMENT),
    "a class that is a link to itself": (
        lambda f: (classes(f), (f / "c").symlink_to("c"))[0],
        FOLDER,
    ),
    "a shard of links": (
        lambda f: tar(f / "x.tar", [(member("0.cls"), b"0"), (member("0.png", tarfile.SYMTYPE, "/etc/passwd"), b"")]),
        SHARDS,
    ),
    "a shard whose label is code": (
        lambda f: tar(f / "x.tar", [(member("0.png"), png(8)), (member("0.cls"), b"__import__('os')")]),
        SHARDS,
    ),
    "a shard of pickles": (
        lambda f: tar(f / "x.tar", [(member("0.png"), pickled()), (member("0.cls"), b"0")]),
        SHARDS,
    ),
    "a shard whose label nests": (
        lambda f: tar(f / "x.tar", [(member("0.png"), png(8)), (member("0.json"), b"[" * 50_000)]),
        SHARDS,
    ),
    "a shard that is a pipe": (lambda f: os.mkfifo(f / "x.tar"), SHARDS),
    "an index of shards that is none": (
        both(
            lambda f: tar(f / "x.tar", [(member("0.png"), png(8)), (member("0.cls"), b"0")]),
            write("index.json", '{"labels": {"x.tar": "0"}}'),
        ),
        SHARDS,
    ),
    "numbers of shards without end": (lambda f: None, ["eval", MODEL, "--data", "wds:x-{0..99999999999}.tar", *IMAGES]),
    "names of pictures outside of the folder": (
        both(
            write("annotations/instances_val2017.json", _coco("../../../../etc/passwd")),
            write("val2017/1.jpg", png()),
        ),
        ["segment-eval", "coco", "--model", MODEL, *IMAGES],
    ),
    "an absolute name of a picture": (
        both(write("annotations/instances_val2017.json", _coco("/dev/zero")), write("val2017/1.jpg", png())),
        ["segment-eval", "coco", "--model", MODEL, *IMAGES],
    ),
    "labels that nest": (
        lambda f: (classes(f), write("real.json", "[" * 50_000)(f))[0],
        ["eval", MODEL, "--data", "folder", "--labels", "real.json", *IMAGES],
    ),
    # data sets of Hugging Face and torchvision
    "a data set with a script": (write("set/set.py", f"import os; os.system('touch {SEEN}')"), HUB),
    "a data set fetched by its card": (write("set/README.md", card("http://localhost:1/a.csv")), HUB),
    "a data set that lies elsewhere by its card": (write("set/README.md", card("../../a.csv")), HUB),
    "a data set of links elsewhere by its settings": (
        write("set/.huggingface.yaml", card("/etc/passwd").strip("-")),
        HUB,
    ),
    "a data set whose columns are code": (
        both(
            write("set/state.json", json.dumps({"_data_files": [{"filename": "../../x.arrow"}], "_split": "train"})),
            write("set/dataset_info.json", json.dumps({"features": {"label": {"_type": "os.system"}}})),
        ),
        HUB,
    ),
    "a processed MNIST": (
        both(
            write("MNIST/processed/training.pt", pickled()),
            write("MNIST/processed/test.pt", pickled()),
        ),
        ["eval", MODEL, "--data", "mnist", *IMAGES],
    ),
    # texts
    "a text that unpacks to nothing that was packed": (write("train.txt.gz", gzip.compress(b"x" * 10**6)[:500]), TEXT),
    "a text that is a pipe": (lambda f: os.mkfifo(f / "train.txt"), TEXT),
    "a text of zero bytes": (write("train.txt", b"\x00\xff" * 500), TEXT),
    # the gallery
    "a figure that is a link": (
        both(
            write("studies/mesa-x/report.json", report()),
            lambda f: linked(f / "studies/mesa-x/figures/x.svg", "/etc/passwd"),
        ),
        GALLERY,
    ),
    "a report that is a link": (lambda f: linked(f / "studies/mesa-x/report.json", "/etc/hosts"), GALLERY),
    "a study that is a link": (
        both(write("elsewhere/report.json", report()), lambda f: linked(f / "studies/mesa-x", "../elsewhere")),
        GALLERY,
    ),
    "a figure with a name elsewhere": (
        write("studies/mesa-x/report.json", report().replace('"name": "x"', '"name": "../../../x"')),
        GALLERY,
    ),
    "a figure with a script": (svg("<script>alert(1)</script>"), GALLERY),
    "a figure with an event": (svg('<rect onclick="alert(1)"/>'), GALLERY),
    "a figure with a page in it": (svg("<foreignObject><iframe/></foreignObject>"), GALLERY),
    "a figure with an address": (svg('<image href="http://localhost/x.png"/>'), GALLERY),
    "a figure with entities": (
        both(write("studies/mesa-x/report.json", report()), write("studies/mesa-x/figures/x.svg", ENTITY)),
        GALLERY,
    ),
    "a report without claims": (write("studies/mesa-x/report.json", report(claims=None)), GALLERY),
    "a report with verdicts that are lists": (
        write("studies/mesa-x/report.json", report(claims=[{"reproduced": []}])),
        GALLERY,
    ),
    "a report that nests": (write("studies/mesa-x/report.json", "[" * 50_000), GALLERY),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_hostile_file_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(*FILES[kind], tmp_path, monkeypatch, capsys)


def test_a_picture_that_is_a_pipe_is_passed_over_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes(tmp_path)
    os.mkfifo(tmp_path / "a" / "9.png")
    out = ["--out", str(tmp_path / "out")]
    with ends_within(30):
        assert cli.run(["eval", MODEL, "--data", "folder", "--data-dir", str(tmp_path), "--split", "all", *out]) == 0
    assert "passed over: 1 pipes, sockets or devices (9.png)" in capsys.readouterr().err
