"""Any ONNX graph as a module whose intermediate tensors a trace reads: features out of onnxruntime."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unrolled.checksums import check_file, file_digest
from unrolled.errors import CorruptFile, MissingData, UnsafeFile, require
from unrolled.models.building import first_line

_EXTRA = "onnx"
_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Of operators that onnxruntime brings along."""
_ACTIVATIONS = frozenset({"Clip", "Gelu", "HardSwish", "LeakyRelu", "PRelu", "Relu", "Sigmoid"})
_DTYPES = {1: np.float32, 6: np.int32, 7: np.int64, 10: np.float16, 11: np.float64}
_FLOATS = (1, 10, 11)
_SIDE = 224  # pixels, where the graph leaves it open
_LIMIT = 512  # tokens
_EMPTY = nn.ModuleDict()  # whose attributes no part of it may be called


class OnnxModel(nn.Module):
    """An ONNX graph of images [b, 3, h, w], or of `input_ids` [b, n] -> its first output of floats.

    | name                 | tensor                                                                                   |
    | -------------------- | ---------------------------------------------------------------------------------------- |
    | `block00`, ...       | sums of two computed tensors (residual sums), or without two of these the activations    |
    | `output`, or more    | the graph's own outputs of floats; with several, `output0`, `output1`, ...               |
    | `tensors.NAME`       | every tensor of floats in the graph, by its own name with `_` for all but letters, digits |

    What a hook listens to becomes an output of the graph; what none does is never copied. There are no parameters, no
    gradient passes through, and weights cannot be drawn anew.

    Attributes:
        pretrained_cfg: what images it expects; None for texts.
        tokenizer: from texts to its inputs; None for images.
    """

    digest: Tensor

    def __init__(
        self,
        graph: Any,
        *,
        digest: str,
        order: str = "rgb",
        config: dict[str, Any] | None = None,
        tokenizer: Any = None,
    ) -> None:
        """Wrap a model that `read_graph` read.

        Args:
            graph: ModelProto.
            digest: SHA-256 of its files, which features kept on disk are told apart by.
            order: "rgb", or "bgr" for a graph that takes the channels the other way round.
            config: becomes `pretrained_cfg`.
            tokenizer: for texts.
        """
        super().__init__()
        self.pretrained_cfg, self.tokenizer, self.order = config, tokenizer, order
        self.main_input_name = "pixel_values" if config else "input_ids"
        self.register_buffer("digest", torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8))
        self._graph = graph
        self._sessions: dict[tuple[str, ...], Any] = {}
        self._inputs = {each.name: each.type.tensor_type for each in inputs_of(graph)}
        names = _places(graph)
        self._tensor_of = {path: tensor for path, tensor in names.items() if "." not in path}
        self._ends = [path for path in self._tensor_of if path.startswith("output")]
        for path in self._tensor_of:
            self.add_module(path, nn.Identity())
        inner = {path.partition(".")[2]: tensor for path, tensor in names.items() if "." in path}
        self.tensors = nn.ModuleDict({path: nn.Identity() for path in inner})
        self._tensor_of |= {f"tensors.{path}": tensor for path, tensor in inner.items()}

    def forward(self, images: Tensor | None = None, **inputs: Tensor) -> Tensor:
        """The first output of floats.

        Args:
            images: [b, 3, h, w], normalised as `pretrained_cfg` says.
            **inputs: of a graph of texts: `input_ids`, `attention_mask`, int64 [b, n].

        Raises:
            ValueError: an input that the graph does not take, or a shape or value it cannot be computed with.
        """
        if images is not None:
            inputs = {next(iter(self._inputs)): self._laid_out(images)}
        listened = [path for path, module in self._identities() if path in self._ends[:1] or _is_heard(module)]
        shown = next(iter(inputs.values()))
        parts = [self._run({key: value[rows] for key, value in inputs.items()}, listened) for rows in self._rows(shown)]
        first: Tensor | None = None
        for path in listened:
            value = torch.from_numpy(np.concatenate([part[path] for part in parts])).to(shown.device)
            value = self.get_submodule(path)(value)
            first = value if path == self._ends[0] else first
        assert first is not None
        return first

    def extra_repr(self) -> str:
        """Which graph it is, for keys of features."""
        return f"sha256={bytes(self.digest.tolist()).hex()}, order={self.order}"

    def _identities(self) -> Iterator[tuple[str, nn.Module]]:
        return ((path, self.get_submodule(path)) for path in self._tensor_of)

    def _laid_out(self, images: Tensor) -> Tensor:
        """Images as the graph has their axes and channels."""
        if self.order == "bgr":
            images = images.flip(1)
        return images if _channels_first(next(iter(self._inputs.values()))) else images.permute(0, 2, 3, 1)

    def _rows(self, value: Tensor) -> list[slice]:
        """All samples, or so many at a time as the graph is fixed to."""
        first = next(iter(self._inputs.values())).shape.dim[0]
        size = int(first.dim_value) or len(value)
        if len(value) % size:
            raise ValueError(f"batch_size: this graph takes {size} samples at a time, and here are {len(value)}")
        return [slice(start, start + size) for start in range(0, len(value), size)]

    def _run(self, inputs: dict[str, Tensor], paths: Sequence[str]) -> dict[str, np.ndarray]:
        session = self._session(tuple(paths))
        feed = {}
        for name, kind in self._inputs.items():
            if name in inputs:
                value = inputs[name].detach().cpu().numpy()
            elif "mask" in name:
                value = np.ones(next(iter(inputs.values())).shape)
            elif "type" in name or "segment" in name:
                value = np.zeros(next(iter(inputs.values())).shape)
            else:
                raise ValueError(f"model: this graph also asks for the input {name!r}, which is not known here")
            feed[name] = np.ascontiguousarray(value, _DTYPES.get(kind.elem_type, np.float32))
        try:
            values = session.run([self._tensor_of[path] for path in paths], feed)
        except Exception as error:  # onnxruntime's errors share no class
            raise ValueError(f"model: onnxruntime cannot compute this graph: {first_line(error)}") from error
        return {path: np.asarray(value, np.float32) for path, value in zip(paths, values, strict=True)}

    def _session(self, paths: tuple[str, ...]) -> Any:
        """A session that also gives these tensors; the last one is kept."""
        if paths not in self._sessions:
            self._sessions.clear()
            self._sessions[paths] = session_of(self._graph, [self._tensor_of[path] for path in paths])
        return self._sessions[paths]


def open_onnx(path: str | Path, **kwargs: Any) -> OnnxModel:
    """An ONNX file as a module of images or of texts; nothing that comes with it is run but its graph.

    Args:
        path: the file. One that reads `input_ids` is of texts, and needs a `tokenizer.json`, or a `vocab.txt` of BERT's
            uncased word pieces, in its folder.
        **kwargs: of images, how they are prepared: `mean` and `std`, three numbers each for values of 0 to 1, RGB
            (default: ImageNet's); `order`, "rgb" or "bgr"; `img_size`, where the graph leaves it open (224).

    Raises:
        MissingData: there is no such file, or no tokenizer.
        MissingExtra: onnx or onnxruntime is not installed.
        CorruptFile: the file is no whole graph.
        UnsafeFile: it asks for a file outside its folder.
        ValueError: it uses operators that onnxruntime does not bring along, takes neither images nor `input_ids`, or
            is given arguments that it does not take.
    """
    path = Path(path).expanduser()
    graph, files = read_graph(path)
    inputs = inputs_of(graph)
    digest = sha256("".join(map(file_digest, files)).encode()).hexdigest()
    if "input_ids" in {each.name for each in inputs}:
        if kwargs:
            raise ValueError(f"model_args: {path.name} reads texts and takes none; leave {', '.join(kwargs)} out")
        return OnnxModel(graph, digest=digest, tokenizer=_tokenizer(path.parent)).eval()
    dims = [int(each.dim_value) for each in inputs[0].type.tensor_type.shape.dim] if len(inputs) == 1 else []
    if len(dims) != 4 or 3 not in (dims[1], dims[3]):
        shapes = ", ".join(f"{each.name} {_shape(each)}" for each in inputs)
        raise ValueError(
            f"model: {path.name} takes {shapes}; known are images [b, 3, h, w] or [b, h, w, 3], and input_ids"
        )
    height, width = dims[2:] if dims[1] == 3 else dims[1:3]
    if unknown := set(kwargs) - {"mean", "std", "order", "img_size"}:
        raise ValueError(f"model_args: {path.name} does not take {', '.join(sorted(unknown))}; leave it out")
    order, side = kwargs.get("order", "rgb"), kwargs.get("img_size", _SIDE)
    if order not in ("rgb", "bgr"):
        raise ValueError(f"model_args: order must be rgb or bgr, not {order!r}")
    config = {
        "input_size": (3, height or side, width or side), "mean": _three(kwargs, "mean", (0.485, 0.456, 0.406)),
        "std": _three(kwargs, "std", (0.229, 0.224, 0.225)), "interpolation": "bicubic", "crop_pct": 0.875,
    }  # fmt: skip
    return OnnxModel(graph, digest=digest, order=order, config=config).eval()


def read_graph(path: Path) -> tuple[Any, list[Path]]:
    """A ModelProto with all its weights, and the files that these are in; see `open_onnx` for what is refused."""
    onnx = require("onnx", extra=_EXTRA, feature=f"model {path.name}")
    require("onnxruntime", extra=_EXTRA, feature=f"model {path.name}")
    if not path.is_file():
        raise MissingData(f"model: there is no file {path}")
    check_file(path)
    try:
        graph = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # of the protocol buffers' decoder, whose class depends on how it was built
        raise CorruptFile(f"model: {path} is cut off, damaged, or no ONNX: {first_line(error)}") from error
    if not graph.graph.node or not graph.graph.output:
        raise CorruptFile(f"model: {path} has no graph; it is cut off, or no ONNX")
    folder, files = path.parent.resolve(), {path}
    for tensor in _tensors(graph):
        for entry in tensor.external_data:
            place = (folder / entry.value).resolve() if entry.key == "location" else folder
            if not place.is_relative_to(folder):
                raise UnsafeFile(f"model: {path.name} asks for {entry.value}, outside its folder; it was not read")
            if entry.key == "location" and not place.is_file():
                raise MissingData(f"model: {path.name} keeps weights in {entry.value}, which is not beside it")
            if entry.key == "location":
                files.add(place)
    defined = {function.domain for function in graph.functions}
    used = {node.domain for node in _nodes(graph)} - defined - _DOMAINS
    if used:
        raise ValueError(
            f"model: {path.name} uses operators of {', '.join(sorted(used))}, which are code that is not here"
        )
    onnx.load_external_data_for_model(graph, str(folder))
    if left := [tensor.name for tensor in _tensors(graph) if tensor.data_location == tensor.EXTERNAL]:
        # onnxruntime would look for them in the working directory
        raise ValueError(f"model: {path.name} keeps the sparse weights {left[0]!r} in another file; store them inside")
    return graph, sorted(files)


def session_of(graph: Any, tensors: Sequence[str]) -> Any:
    """An onnxruntime session of a graph whose outputs are these tensors.

    Raises:
        CorruptFile: onnxruntime does not take the graph.
    """
    import onnx
    import onnxruntime

    asked = onnx.ModelProto()
    asked.CopyFrom(graph)
    known = {each.name: each for each in graph.graph.output}
    del asked.graph.output[:]
    asked.graph.output.extend(known.get(name, onnx.ValueInfoProto(name=name)) for name in dict.fromkeys(tensors))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(asked.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no class
        raise CorruptFile(f"model: onnxruntime does not take this graph: {first_line(error)}") from error


def inputs_of(graph: Any) -> list[Any]:
    """What a graph is to be given: its inputs but for those that are weights."""
    weights = {each.name for each in graph.graph.initializer}
    return [each for each in graph.graph.input if each.name not in weights]


def _places(graph: Any) -> dict[str, str]:
    """Names of a trace -> tensors of the graph, in its order."""
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(graph).graph
    except Exception as error:  # of its C++ code
        raise CorruptFile(f"model: the shapes of this graph contradict each other: {first_line(error)}") from error
    kinds = {each.name: each.type.tensor_type for each in (*inferred.value_info, *inferred.output)}
    computed = {each.name for each in inputs_of(graph)}
    before_softmax = {name for node in graph.graph.node if node.op_type == "Softmax" for name in node.input}
    sums, activations = [], []
    all_names: dict[str, str] = {}
    for node in graph.graph.node:
        if not computed.intersection(node.input):
            continue
        computed.update(node.output)
        for tensor in node.output:
            if not tensor or not _is_feature(kinds.get(tensor)):
                continue
            all_names[f"tensors.{_word(tensor, all_names)}"] = tensor
            if node.op_type == "Add" and computed.issuperset(node.input) and tensor not in before_softmax:
                sums.append(tensor)
            elif node.op_type in _ACTIVATIONS:
                activations.append(tensor)
    blocks = sums if len(sums) >= 2 else activations
    ends = [each.name for each in graph.graph.output if each.type.tensor_type.elem_type in _FLOATS]
    if not ends:
        raise ValueError("model: this graph has no output of floats")
    width = max(2, len(str(len(blocks) - 1)))
    places = {f"block{number:0{width}}": tensor for number, tensor in enumerate(blocks)}
    places |= {"output" if len(ends) == 1 else f"output{number}": tensor for number, tensor in enumerate(ends)}
    return places | all_names


def _is_feature(kind: Any) -> bool:
    """Whether a tensor is of floats and may have a row a sample; what inference cannot tell may."""
    if kind is None or kind.elem_type not in (0, *_FLOATS):
        return False
    return not kind.HasField("shape") or 2 <= len(kind.shape.dim) <= 4


def _word(name: str, taken: dict[str, str]) -> str:
    word = re.sub(r"\W", "_", name)
    while f"tensors.{word}" in taken or hasattr(_EMPTY, word):
        word += "_"
    return word


def _is_heard(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _channels_first(kind: Any) -> bool:
    return int(kind.shape.dim[1].dim_value) == 3


def _shape(value: Any) -> list[int | str]:
    return [each.dim_value or each.dim_param or "?" for each in value.type.tensor_type.shape.dim]


def _three(kwargs: dict[str, Any], name: str, default: tuple[float, ...]) -> tuple[float, ...]:
    values = kwargs.get(name, default)
    if not isinstance(values, list | tuple) or len(values) != 3 or not all(isinstance(v, int | float) for v in values):
        raise ValueError(f"model_args: {name} must be three numbers, one a channel, not {values!r}")
    if name == "std" and min(values) <= 0:
        raise ValueError(f"model_args: std must be above 0, not {values!r}")
    return tuple(float(value) for value in values)


def _nodes(graph: Any) -> Iterator[Any]:
    """Of a model, its functions and all graphs inside."""
    pending = [*graph.graph.node, *(node for function in graph.functions for node in function.node)]
    while pending:
        node = pending.pop()
        yield node
        pending += [each for part in _subgraphs(node) for each in part.node]


def _subgraphs(node: Any) -> list[Any]:
    """Graphs that a node runs: bodies of loops, branches."""
    held = [part for attribute in node.attribute for part in attribute.graphs]
    return held + [attribute.g for attribute in node.attribute if attribute.HasField("g")]


def _tensors(graph: Any) -> Iterator[Any]:
    """All tensors that a file holds or refers to."""
    graphs, sparse = [graph.graph], []
    for node in _nodes(graph):
        graphs += _subgraphs(node)
        for attribute in node.attribute:
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t
            sparse += [*attribute.sparse_tensors, attribute.sparse_tensor]
    for each in graphs:
        yield from each.initializer
        sparse += each.sparse_initializer
    yield from (part for each in sparse for part in (each.values, each.indices))


def _tokenizer(folder: Path) -> Any:
    """From texts to `input_ids` and `attention_mask`, by the files beside a graph."""
    from unrolled.models.given.text import padded, wordpiece

    if (folder / "vocab.txt").is_file():
        return wordpiece(folder / "vocab.txt", limit=_LIMIT)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise MissingData(
            f"model: {folder} has no tokenizer.json, nor a vocab.txt of word pieces, which a graph of texts needs"
        )
    tokenizers: Any = require("tokenizers", extra="hf", feature="a tokenizer.json")
    inner = tokenizers.Tokenizer.from_file(str(path))
    inner.no_padding()
    if inner.truncation is None:
        inner.enable_truncation(_LIMIT)
    return lambda texts: padded([each.ids for each in inner.encode_batch(list(texts))], 0)
