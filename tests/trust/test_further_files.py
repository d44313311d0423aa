"""More files that somebody made to harm readers, of kinds that `test_hostile_files` lacks; held to the same."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import (
    COMPARE,
    EVAL,
    FOLDER,
    GALLERY,
    HUB,
    IMAGES,
    MODEL,
    PACKED,
    SEGMENT,
    SHARDS,
    SHORT,
    TEXT,
    Make,
    both,
    classes,
    described,
    member,
    png,
    refused,
    svg,
    tensors,
    write,
)

from tests.files import tar

GROUPS = ["align", "good.npy", "good.npy", "--groups", "bad", "--k", "1", *SHORT]
CONVERT = ["convert", "w.pth", "out"]


def _saved(value: object, name: str = "w.pth") -> Make:
    return lambda folder: torch.save(value, folder / name)


def _circle() -> dict[str, object]:
    tree: dict[str, object] = {}
    tree["a"] = tree
    return tree


def _nested(levels: int) -> dict[str, object]:
    tree: dict[str, object] = {}
    for _ in range(levels):
        tree = {"a": tree}
    return tree


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _picture(*chunks: bytes) -> Make:
    good = png(16)
    return write("bad.png", good[:33] + b"".join(chunks) + good[33:])


def _weights(header: object, payload: bytes = b"") -> Make:
    return both(described, write("model.safetensors", tensors(header, payload)))


def _rows(**layers: object) -> Make:
    from safetensors.numpy import save_file

    return lambda folder: save_file({k: np.asarray(v) for k, v in layers.items()}, folder / "bad.safetensors")


BAD_ROWS = ["align", "bad.safetensors", "good.npy", "--k", "1", *SHORT]
FILES: dict[str, tuple[Make, list[str]]] = {
    # models
    "weights of an unknown type": (
        _weights({"x": {"dtype": "F7", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)), EVAL,
    ),
    "weights of a shape beyond counting": (
        _weights({"x": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, bytes(4)), EVAL,
    ),
    "weights of one name twice": (
        _weights(b"{%s,%s}" % ((b'"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}',) * 2), bytes(4)), EVAL,
    ),
    "weights whose header is no text": (_weights(b"\xff\xfe{}"), EVAL),
    "a description in UTF-16": (write("config.json", json.dumps({"architecture": MODEL}).encode("utf-16")), EVAL),
    "a description with a negative depth": (lambda f: described(f, model_args={"depth": -3}), EVAL),
    "a description with a list for a width": (lambda f: described(f, model_args={"embed_dim": [64]}), EVAL),
    "sums that are a pipe": (both(described, lambda f: os.mkfifo(f / "SHA256SUMS")), EVAL),
    "sums that lead elsewhere": (both(described, write("SHA256SUMS", f"{'0' * 64}  ../../x\n")), EVAL),
    "a checkpoint that holds itself": (_saved(_circle()), CONVERT),
    "a checkpoint that nests": (_saved(_nested(300)), CONVERT),
    "a checkpoint whose names are numbers": (_saved({0: torch.zeros(2), 1: torch.ones(2)}), CONVERT),
    "a checkpoint of sparse tensors": (_saved({"cls_token": torch.eye(3).to_sparse()}), CONVERT),
    "a checkpoint of tensors without values": (_saved({"cls_token": torch.empty(3, device="meta")}), CONVERT),
    "a checkpoint that is one number": (_saved(3), CONVERT),
    "a language model of a vocabulary below 0": (
        write("config.json", json.dumps({"model_type": "unrolled", "vocab_size": -5, "dim": 8, "layers": ["mssa"]})),
        ["eval", ".", *SHORT],
    ),
    # features
    "layers of different length": (_rows(a=np.eye(4, dtype=np.float32), b=np.eye(5, 4, dtype=np.float32)), BAD_ROWS),
    "a layer without rows": (_rows(a=np.zeros((0, 4), np.float32)), BAD_ROWS),
    "a layer of NaN": (_rows(a=np.full((4, 4), np.nan, np.float32)), BAD_ROWS),
    "text in an .npy file": (write("bad.npy", "1,2\n3,4\n"), COMPARE),
    "an array of dates": (lambda f: np.save(f / "bad.npy", np.zeros((4, 4), "M8[s]")), COMPARE),
    "an array of records": (lambda f: np.save(f / "bad.npy", np.zeros(4, [("a", "f4"), ("b", "f4")])), COMPARE),
    "an array of long numbers cut short": (write("bad.npy", b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31)), COMPARE),
    "groups that are a pipe": (lambda f: os.mkfifo(f / "bad"), GROUPS),
    "groups that are a device": (lambda f: (f / "bad").symlink_to("/dev/zero"), GROUPS),
    "groups that are no text": (write("bad", b"\xff\xfea\nb\n"), GROUPS),
    # pictures
    "a picture whose words unpack without end": (
        _picture(_chunk(b"zTXt", b"k\x00\x00" + zlib.compress(bytes(80_000_000)))), SEGMENT,
    ),
    "a picture of no width": (
        write("bad.png", png()[:8] + _chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 4, 8, 2, 0, 0, 0))), SEGMENT,
    ),
    "a picture cut short": (write("bad.png", png()[:60]), SEGMENT),
    "a picture of another check sum": (write("bad.png", png()[:29] + b"\x00\x00\x00\x00" + png()[33:]), SEGMENT),
    "a labelled picture that is text": (lambda f: classes(f, ("a/9.png", b"<html>")), FOLDER),
    "a packed file without pictures": (lambda f: np.savez(f / "x_test.npz", labels=[0]), PACKED),
    # shards
    "a shard with a device": (
        lambda f: tar(f / "x.tar", [(member("0.png", b"3"), b""), (member("0.cls"), b"0")]), SHARDS,
    ),
    "a shard of a label beyond counting": (
        lambda f: tar(f / "x.tar", [(member("0.png"), png(8)), (member("0.cls"), b"9" * 5_000)]), SHARDS,
    ),
    "a shard that is text": (write("x.tar", "not a tar at all\n" * 100), SHARDS),
    # data sets and texts
    "a parquet file that is none": (write("set/train-00000-of-00001.parquet", b"PAR1" + bytes(64) + b"PAR1"), HUB),
    "lines that are no JSON": (write("set/train.jsonl", '{"a": 1}\n{"a": \n'), HUB),
    "a text that is a folder": (lambda f: (f / "train.txt").mkdir(), TEXT),
    "a text that leads to itself": (lambda f: (f / "train.txt").symlink_to("train.txt"), TEXT),
    "labels that are numbers": (
        both(lambda f: classes(f), write("real.json", "[1, 2, 3]")),
        ["eval", MODEL, "--data", "folder", "--labels", "real.json", *IMAGES],
    ),
    "a date as a setting": (write("c.yaml", "epochs: 2020-01-01\n"), ["train", "--config", "c.yaml", *SHORT]),
    "an infinite setting": (write("c.yaml", "lr: .inf\n"), ["train", "--config", "c.yaml", *SHORT]),
    "settings with a null byte": (write("c.yaml", b"out: a\x00b\n"), ["train", "--config", "c.yaml"]),
    # the gallery
    "a figure with a stylesheet": (svg("<style>@import url(http://localhost/x.css);</style>"), GALLERY),
    "a figure that uses another": (svg('<use href="http://localhost/x.svg#a"/>'), GALLERY),
    "a figure with a link": (svg('<a href="javascript:alert(1)"><rect/></a>'), GALLERY),
    "a figure with an address in its style": (svg('<rect style="fill:url(http://localhost/x)"/>'), GALLERY),
    "a figure with a page as data": (svg('<image href="data:text/html,x"/>'), GALLERY),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_a_further_hostile_file_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(*FILES[kind], tmp_path, monkeypatch, capsys)
