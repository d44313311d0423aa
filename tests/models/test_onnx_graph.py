"""ONNX graphs as models: the same numbers as the torch twin, inside too; nothing outside their folder is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unrolled import cli, create_model
from unrolled.data.transforms import model_input
from unrolled.errors import CorruptFile, MissingData, UnsafeFile
from unrolled.instruments.features.extraction import extract
from unrolled.instruments.features.text import extract_texts
from unrolled.models.encoders import open_encoder
from unrolled.models.onnx_graph import open_onnx
from unrolled.subjects.language import source_of

onnx: Any = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
helper: Any = onnx.helper
FLOAT, LONG = 1, 7


def weights() -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(0)
    shapes = {"stem": (4, 3, 3, 3), "one": (4, 4, 3, 3), "two": (4, 4, 3, 3), "head": (4, 5)}
    return {name: numbers.normal(size=shape).astype(np.float32) / 3 for name, shape in shapes.items()}


def saved(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], arrays: dict[str, np.ndarray]) -> Path:
    held = [onnx.numpy_helper.from_array(value, name) for name, value in arrays.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


def of_images(path: Path, *, last: bool = False, batch: Any = "b", side: Any = 8) -> Path:
    """A stem, two residual halves, a head; with `last`, of images whose channels come last."""
    nodes = [helper.make_node("Transpose", ["x"], ["nchw"], perm=[0, 3, 1, 2])] if last else []
    nodes += [
        helper.make_node("Conv", ["nchw" if last else "x", "stem"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "one"], ["b1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["b1"], ["b/2.relu"]),
        helper.make_node("Add", ["a", "b/2.relu"], ["c"]),
        helper.make_node("Conv", ["c", "two"], ["d"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "d"], ["e"]),
        helper.make_node("GlobalAveragePool", ["e"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "head"], ["logits"]),
    ]
    shape = [batch, side, side, 3] if last else [batch, 3, side, side]
    ends = [helper.make_tensor_value_info("logits", FLOAT, [batch, 5])]
    return saved(path, nodes, [helper.make_tensor_value_info("x", FLOAT, shape)], ends, weights())


def twin(images: torch.Tensor) -> dict[str, torch.Tensor]:
    w = {name: torch.from_numpy(value) for name, value in weights().items()}
    a = F.conv2d(images, w["stem"], padding=1)
    relu = F.conv2d(a, w["one"], padding=1).relu()
    c = a + relu
    e = c + F.conv2d(c, w["two"], padding=1)
    return {"block00": c, "block01": e, "output": e.mean((2, 3)) @ w["head"], "tensors.b_2_relu": relu}


IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("batch", ["b", 1, 3])
def test_outputs_and_what_lies_between_are_those_of_torch(tmp_path: Path, last: bool, batch: Any) -> None:
    model = create_model(f"local:{of_images(tmp_path / 'm.onnx', last=last, batch=batch)}")
    expected = twin(IMAGES)
    torch.testing.assert_close(model(IMAGES), expected["output"], rtol=1e-4, atol=1e-5)
    found = extract(model, IMAGES, layers=["block*", "output", "tensors.b_2_relu"], batch_size=3)
    assert set(found) == set(expected)
    for name, value in expected.items():
        pooled = value.mean((2, 3)) if value.dim() == 4 else value
        torch.testing.assert_close(found[name], pooled, rtol=1e-4, atol=1e-5)


def test_images_are_prepared_by_flags_or_by_what_the_graph_says(tmp_path: Path) -> None:
    path = of_images(tmp_path / "m.onnx", side="h")
    config = model_input(open_onnx(path))
    assert (config["input_size"], config["mean"]) == ((3, 224, 224), (0.485, 0.456, 0.406))
    options: dict[str, Any] = {"mean": [0.5, 0.5, 0.5], "std": [1, 1, 1], "order": "bgr", "img_size": 8}
    model = create_model(str(path), **options)
    config = model_input(model)
    assert (config["input_size"], config["mean"], config["std"]) == ((3, 8, 8), (0.5,) * 3, (1.0,) * 3)
    torch.testing.assert_close(model(IMAGES), twin(IMAGES.flip(1))["output"], rtol=1e-4, atol=1e-5)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"mean": [1]}, "three numbers"), ({"std": [0, 1, 1]}, "above 0"), ({"order": "gbr"}, "rgb or bgr"),
        ({"depth": 2}, "does not take depth"),
    ]  # fmt: skip
    for given, reason in wrong:
        with pytest.raises(ValueError, match=reason):
            open_onnx(path, **given)


def of_texts(folder: Path) -> Path:
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: number for number, word in enumerate(["[PAD]", "a", "dog", "cat", "and"])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[PAD]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.save(str(folder / "tokenizer.json"))
    table = np.random.default_rng(1).normal(size=(5, 6)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("Gather", ["kinds", "token_type_ids"], ["types"]),
        helper.make_node("Add", ["words", "types"], ["first"]),
        helper.make_node("Tanh", ["first"], ["t"]),
        helper.make_node("Add", ["first", "t"], ["second"]),
        helper.make_node("Unsqueeze", ["attention_mask", "axis"], ["m"]),
        helper.make_node("Cast", ["m"], ["mask"], to=FLOAT),
        helper.make_node("Mul", ["second", "mask"], ["states"]),
    ]
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = [helper.make_tensor_value_info(name, LONG, ["b", "n"]) for name in names]
    ends = [helper.make_tensor_value_info("states", FLOAT, ["b", "n", 6])]
    arrays = {"table": table, "kinds": table[:2] * 2, "axis": np.array([2])}
    return saved(folder / "t.onnx", nodes, inputs, ends, arrays)


def test_texts_are_read_with_the_tokenizer_beside_the_file(tmp_path: Path) -> None:
    encoder = open_encoder(str(of_texts(tmp_path)), "text")
    assert encoder.collate is not None
    texts = ["a dog", "cat", "a dog and a cat"]
    together = extract_texts(encoder.module, texts, encoder.collate, layers=["block*", "output"])
    alone = extract_texts(encoder.module, texts, encoder.collate, layers=["block*", "output"], batch_size=1)
    table = np.random.default_rng(1).normal(size=(5, 6)).astype(np.float32)
    first = torch.from_numpy(table[[1, 2]] + 2 * table[0])
    torch.testing.assert_close(together["block00"][0], first.mean(0))
    torch.testing.assert_close(together["block01"][0], (first + first.tanh()).mean(0))
    for layer in ("block00", "block01", "output"):
        torch.testing.assert_close(together[layer], alone[layer])
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(MissingData, match=r"tokenizer\.json"):
        open_onnx(tmp_path / "t.onnx")


def test_only_what_is_listened_to_is_computed_to_the_outside(tmp_path: Path) -> None:
    model = open_onnx(of_images(tmp_path / "m.onnx"))
    model(IMAGES)
    assert [len(paths) for paths in model._sessions] == [1]
    extract(model, IMAGES, layers="block01")
    assert [sorted(paths) for paths in model._sessions] == [["block01", "output"]]


@pytest.mark.parametrize("verb", ["extract", "probe", "align"])
def test_verbs_of_features_take_it(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = str(of_images(tmp_path / "m.onnx"))
    assert source_of(path) == ("none", ""), "no language model"
    flags = {
        "extract": [path, "--data", "digits", "--images", "20"],
        "probe": [path, "--data", "digits", "--samples", "60", "--test-samples", "40"],
        "align": [path, path, "--data", "digits", "--images", "30", "--k", "3", "--draws", "20", "--resamples", "0"],
    }
    assert cli.run([verb, *flags[verb], "--device", "cpu", "--json"]) == 0, capsys.readouterr().err
    assert json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "place"), [("values", "values_"), ("training", "training_"), ("_modules", "_modules_"), ("a/b", "a_b")]
)
def test_a_tensor_may_be_called_anything(name: str, place: str, tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], [name]), helper.make_node("Relu", [name], ["y"])]
    inputs, ends = ([helper.make_tensor_value_info(each, FLOAT, ["b", 3, 8, 8])] for each in "xy")
    model = open_onnx(saved(tmp_path / "m.onnx", nodes, inputs, ends, {}))
    assert list(model.tensors) == [place, "y"]
    assert model(torch.ones(1, 3, 8, 8)).shape == (1, 3, 8, 8)


def test_sparse_weights_in_another_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Onnx leaves them where they are, and onnxruntime would look in the working directory."""
    path = of_images(tmp_path / "m.onnx")
    (tmp_path / "w.bin").write_bytes(np.ones(4, np.float32).tobytes())
    model = onnx.load(str(path))
    values = onnx.TensorProto(name="sparse", data_type=FLOAT, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    values.external_data.add(key="location", value="w.bin")
    places = onnx.numpy_helper.from_array(np.arange(4), "places")
    model.graph.sparse_initializer.add(values=values, indices=places, dims=[4])
    path.write_bytes(model.SerializeToString())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="sparse weights 'sparse' in another file; store them inside"):
        open_onnx(path)


@pytest.mark.parametrize("place", ["../secret.bin", "/etc/hostname", "link/secret.bin"])
def test_weights_outside_the_folder_are_refused(tmp_path: Path, place: str) -> None:
    folder, outside = tmp_path / "model", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (outside / "secret.bin").write_bytes(bytes(1000))
    (folder / "link").symlink_to(outside)
    path = of_images(folder / "m.onnx")
    model = onnx.load(str(path))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UnsafeFile, match="outside its folder"):
        open_onnx(path)


def test_weights_beside_the_file_are_read(tmp_path: Path) -> None:
    path = of_images(tmp_path / "m.onnx")
    onnx.save(onnx.load(str(path)), str(path), save_as_external_data=True, location="m.bin", size_threshold=0)
    assert (tmp_path / "m.bin").is_file()
    torch.testing.assert_close(open_onnx(path)(IMAGES), twin(IMAGES)["output"], rtol=1e-4, atol=1e-5)
    before = open_onnx(path).digest
    weights_beside = bytearray((tmp_path / "m.bin").read_bytes())
    weights_beside[0] ^= 1
    (tmp_path / "m.bin").write_bytes(weights_beside)
    assert not torch.equal(open_onnx(path).digest, before)  # so that kept features are not taken for these
    (tmp_path / "m.bin").unlink()
    with pytest.raises(MissingData, match=r"m\.bin, which is not beside it"):
        open_onnx(path)


def test_operators_that_are_code_of_others_are_refused(tmp_path: Path) -> None:
    path = of_images(tmp_path / "m.onnx")
    model = onnx.load(str(path))
    model.graph.node[1].domain = "evil.ops"
    model.opset_import.append(helper.make_opsetid("evil.ops", 1))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=r"operators of evil\.ops"):
        open_onnx(path)


@pytest.mark.parametrize("length", [0, 10, 300, -30])
def test_a_damaged_file_is_said_to_be(tmp_path: Path, length: int) -> None:
    path = of_images(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises((CorruptFile, ValueError), match=r"m\.onnx|graph"):
        open_onnx(path)(IMAGES)


def test_what_it_cannot_take_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MissingData, match=r"no file .*none\.onnx"):
        create_model(str(tmp_path / "none.onnx"))
    ends = [helper.make_tensor_value_info(name, FLOAT, ["b", 7]) for name in "xy"]
    path = saved(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], ends[:1], ends[1:], {})
    with pytest.raises(ValueError, match=r"takes x \['b', 7\]; known are images"):
        create_model(str(path))
    three = open_onnx(of_images(tmp_path / "three.onnx", batch=3))
    with pytest.raises(ValueError, match="takes 3 samples at a time, and here are 4"):
        three(IMAGES[:4])
    assert not list(three.parameters())
    assert isinstance(three, nn.Module)
