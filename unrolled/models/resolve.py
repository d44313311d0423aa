"""Any model by one string: a registered name, `timm:NAME`, `hf:ORG/NAME`, `local:DIR` or `package.module:factory`."""

from __future__ import annotations

import inspect
import math
import os
import re
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import timm
from torch import nn

from unrolled.catalogue import shipped_text
from unrolled.errors import CorruptFile, MissingData, UnsafeFile, nearest, require
from unrolled.models.building import (
    check_finite_weights,
    first_line,
    no_model,
    reading_weights,
    unknown_argument,
    without_bars,
)
from unrolled.models.gguf import gguf_of
from unrolled.models.hub_images import note_normalisation
from unrolled.models.onnx_graph import open_onnx
from unrolled.models.registry import create_registered, is_registered, names_folder
from unrolled.network import hub
from unrolled.reading import read_object
from unrolled.trust import KINDS_OF_MODELS, MODEL_FILES, check, check_model_args, import_factory

_LONGEST = 4096  # characters of a path
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # of the hub, where there is no such folder
_TIMM_SOURCES = ("local-dir", "hf-hub", "hf_hub")  # timm's own schemes
_ADDRESS = re.compile(r"(?i)(timm:|hf:|local:)?([a-z][a-z0-9+.-]*://|(data|file|ftp|https?|pipe):)")
_FORMS = "a name from `unrolled list`, timm:NAME, hf:ORG/NAME, local:DIR or package.module:factory"


def create_model(name: str, pretrained: bool | None = None, **kwargs: Any) -> nn.Module:
    """Build a model by name: `timm.create_model`, with this package's models registered and helpful errors.

        >>> import torch, unrolled
        >>> model = unrolled.create_model("crate_nano_patch4_32", num_classes=3)
        >>> model(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 3])

    Args:
        name: one of `list_models()`, any other timm name, or another string of `resolve_model`: a run or model folder
            or `local:DIR`, `hf:ORG/NAME`, `timm:NAME`, `package.module:factory`.
        pretrained: load weights. By default folders and `hf:` models come with theirs, as on the command line, and
            names without; see `from_pretrained`, which always loads.
        **kwargs: `num_classes`, `in_chans`, `img_size`, `features_only`, ... as in timm; for CRATE also `CRATE`'s own.
            With `num_classes` a masked autoencoder becomes a classifier, its encoder with a new head.

    Raises:
        ValueError: no model of that name (the nearest are given), or one that cannot be built from these arguments,
            within the memory there is.
        MissingData: there are no weights of that name, or they could not be fetched.
        CorruptFile: the weights are damaged or NaN.
    """
    if not isinstance(name, str):
        raise ValueError(f"name: must be text, {_FORMS}; not a {type(name).__name__}")
    source, colon, _ = name.partition(":")
    if shipped_text(name) is not None:
        return resolve_model(name, pretrained=bool(pretrained), **kwargs)
    if (colon and source in _TIMM_SOURCES) or (not colon and not names_folder(name)):
        return create_registered(name, pretrained=bool(pretrained), **kwargs)
    if pretrained is None:
        pretrained = not colon or source in ("local", "hf")
    return resolve_model(name, pretrained=pretrained, **kwargs)


def resolve_model(
    spec: str, *, num_classes: int | None = None, pretrained: bool = False, head: bool = False, **kwargs: Any
) -> nn.Module:
    """Build the model a string names.

    Args:
        spec: one of
            `crate_tiny_patch16_224`: registered by this package or by timm;
            `timm:NAME`: the same, said explicitly;
            `hf:ORG/NAME`: a model of the Hugging Face hub (or a folder in its format), through transformers;
            `local:DIR`: a folder with `config.json` and weights as written by `save_pretrained` or `unrolled convert`,
            or a run folder, whose `model/` is used;
            `hf:FILE.gguf` or `local:FILE.gguf`: a language model in a GGUF file, or in a folder that has one;
            `local:FILE.onnx`: any graph of images or of texts, see `onnx_graph.open_onnx`;
            `package.module:factory`: a function of your own that returns an `nn.Module`. It is imported and called,
            so name only code you trust. No file may name it, see `unrolled.trust`.
        num_classes: outputs of the head; default: what the model comes with. A head of another size is drawn anew.
        pretrained: load the weights that belong to `spec`; otherwise only its architecture is used.
        head: of a model of transformers also the head that it was saved with to classify images.
        **kwargs: the model's own arguments (`img_size`, `in_chans`, `step_size`, ...).

    Raises:
        ValueError: nothing is known under `spec` (the nearest names are given), or the model does not take an argument.
        UnsafeFile: a file names code.
        MissingData: the folder or the weights are not there.
        MissingExtra: transformers is needed and not installed.
    """
    spec = f"local:{shipped_text(spec) or spec}" if shipped_text(spec) or names_folder(spec) else spec
    scheme, colon, rest = spec.partition(":")
    if not spec or (colon and not rest):
        raise ValueError(f"model={spec!r} names no model; give {_FORMS}")
    if _ADDRESS.match(spec):
        raise ValueError(
            f"model={spec!r} is an address, and none is opened; fetch what is there and give its file or folder, or "
            f"{_FORMS}"
        )
    check_model_args(kwargs)
    if num_classes is not None:
        kwargs["num_classes"] = num_classes
    build: Callable[..., nn.Module]
    if not colon or scheme == "timm":
        build, name = _build_registered, spec
    elif scheme == "hf":
        build, name = partial(build_transformers, classifier=head), rest
    elif scheme == "local":
        build, name = partial(_build_local, classifier=head), rest
    elif scheme in KINDS_OF_MODELS:
        raise ValueError(
            f"model={spec!r}: models of {scheme}: are read where features are compared (extract, align, translate, "
            f"brain), not here; give {_FORMS}"
        )
    elif _is_import_path(scheme) and _is_import_path(rest) and scheme not in _TIMM_SOURCES:
        build, name = _build_factory, spec
    else:
        hint = f" (timm's is timm:{spec})" if scheme in _TIMM_SOURCES else ""
        raise ValueError(f"model={spec!r}: {scheme!r} is not a known source{hint}; give {_FORMS}")
    try:
        model = build(name, pretrained, kwargs)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise unknown_argument(spec, error) from error
    check_finite_weights(model, spec)
    return model


def from_pretrained(source: str | Path, **kwargs: Any) -> nn.Module:
    """A model with its trained weights, in eval mode: of images, masked, or of text.

    Args:
        source: a run folder, or one of `save_pretrained` or `unrolled convert`, or the `model.safetensors` in it; the
            file of a published checkpoint, or of GGUF; a
            repository `ORG/NAME` of the Hugging Face hub, of this package, timm or transformers; the name of weights
            that ship with this package or that timm has, such as `crate_nano_patch4_32.cifar10`; or another string of
            `resolve_model`.
        **kwargs: `num_classes`, `img_size`, ... as in `create_model`, or of `load_published`; none for language models.

    Raises:
        MissingData: there is no such folder, repository or name, or it has no weights.
        CorruptFile: the weights are damaged or NaN.
        UnsafeFile: reading them would run code.
        ValueError: the weights do not fit the arguments.
    """
    from unrolled.models.published import load_published

    if not isinstance(source, str | os.PathLike) or len(str(source)) > _LONGEST:
        given = "so long a name" if isinstance(source, str) else repr(source)
        raise ValueError(f"source: {given:.60} names no model; give a folder, a file, ORG/NAME or a name of weights")
    spec, path = str(source), Path(source).expanduser()
    if path.is_file() and path.suffix.lower() in MODEL_FILES:
        return resolve_model(f"local:{path}", pretrained=True, **kwargs)
    if path.is_file() and not (path.name == "model.safetensors" and _describes(path.parent)):
        return load_published(path, **kwargs)
    path = path.parent if path.is_file() else path
    if spec and path.is_dir() and not (isinstance(source, str) and timm.is_model(spec.split(".")[0])):
        spec = f"local:{path}"
    elif _REPOSITORY.fullmatch(spec) and not path.parent.is_dir():  # in a folder that is here: a name mistyped
        return _from_hub(spec, kwargs).eval()
    elif spec and path.exists() and not path.is_dir():
        raise ValueError(f"model: {spec} is a device or a pipe; give a folder, or the file of a checkpoint")
    elif names_folder(spec):
        raise MissingData(f"model: there is no folder or file {spec}")
    return resolve_model(spec, pretrained=True, **kwargs).eval()


def _describes(folder: Path) -> bool:
    """Whether a folder says what its `model.safetensors` is the weights of, as this package and timm write it."""
    from unrolled.models.encoder import is_language_config

    if not (folder / "config.json").is_file():
        return False
    config = read_object(folder / "config.json")
    return "architecture" in config or is_language_config(config)


def _from_hub(name: str, kwargs: dict[str, Any]) -> nn.Module:
    """The model of a repository of the Hugging Face hub, by what its `config.json` says it is."""
    from huggingface_hub import hf_hub_download

    from unrolled.models.encoder import is_language_config, language_model_class

    with hub(name), reading_weights(name, kwargs, True):
        file = Path(hf_hub_download(name, "config.json"))
    config = _checked(file)
    if is_language_config(config):
        _refuse(kwargs, name)
        with hub(name):
            return language_model_class(config).from_pretrained(name)
    if "architecture" not in config:
        return resolve_model(f"hf:{name}", pretrained=True, **kwargs)
    return create_registered(f"hf-hub:{name}", pretrained=True, **kwargs)


def _checked(file: Path) -> dict[str, Any]:
    """A `config.json` that names no code."""
    config = read_object(file)
    if not isinstance(config.get("architecture", ""), str):
        raise CorruptFile(f"{file}: its architecture must be a name, not {config['architecture']!r:.60}")
    check("architecture", config.get("architecture"), file)
    check_model_args(config.get("model_args") or {}, f"{file}: model_args")
    nested = config.get("pretrained_cfg")
    for settings in (config, nested if isinstance(nested, dict) else {}):
        for name, (wanted, holds) in _DESCRIPTIONS.items():
            if settings.get(name) is not None and not holds(settings[name]):
                raise CorruptFile(f"{file}: {name} must be {wanted}, not {settings[name]!r:.60}")
    return config


def _numbers(value: Any, *, whole: bool = False, least: float = -math.inf) -> bool:
    if not isinstance(value, list | tuple) or not 0 < len(value) <= 8 or any(isinstance(each, bool) for each in value):
        return False
    return all(isinstance(each, int if whole else int | float) and least <= each < math.inf for each in value)


def _are_words(value: Any) -> bool:
    words = list(value.values()) if isinstance(value, dict) else value
    return isinstance(words, list) and all(isinstance(each, str | int) for each in words)


# what timm reads of a `config.json` without a check of its own
_DESCRIPTIONS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "num_classes": ("a whole number from 0", lambda value: _numbers([value], whole=True, least=0)),
    "input_size": (
        "channels, height and width",
        lambda value: _numbers(value, whole=True, least=1) and len(value) == 3,
    ),
    "mean": ("a number a channel", _numbers),
    "std": ("a number a channel", _numbers),
    "crop_pct": ("a number", lambda value: _numbers([value], least=0)),
    "interpolation": ("a word", lambda value: isinstance(value, str)),
    "label_names": ("a list of words, or words by class", _are_words),
}


def _refuse(kwargs: dict[str, Any], source: str | Path) -> None:
    if kwargs:
        raise ValueError(f"model_args: {source} is a language model and decides them itself; leave them out")


def model_folder(folder: str | Path) -> Path:
    """The folder with `config.json`: `folder` itself, or the `model/` of a run folder.

    Raises:
        MissingData: there is no such folder, or no model in it.
    """
    path = Path(folder).expanduser()
    for candidate in (path, path / "model"):
        if (candidate / "config.json").is_file():
            return candidate
    if path.suffix.lower() in MODEL_FILES and not path.exists():
        raise MissingData(f"model: there is no file {path}")
    if path.exists() and not path.is_dir():
        raise ValueError(f"model: {path} is no folder; give that of a model, or a run")
    if not path.is_dir():
        of_hub = _REPOSITORY.fullmatch(str(folder)) and not path.parent.is_dir()
        hint = f"; a model of the Hugging Face hub is given as hf:{folder}" if of_hub else ""
        raise MissingData(f"model: there is no folder {path}{hint}")
    raise MissingData(f"model: {no_model(path)}")


def _build_registered(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    return create_registered(name, pretrained=pretrained, **kwargs)


def _build_local(folder: str, pretrained: bool, kwargs: dict[str, Any], *, classifier: bool = False) -> nn.Module:
    from unrolled.models.encoder import build_language_model, is_language_config, load_language_model

    if folder.lower().endswith(".onnx"):
        return open_onnx(folder, **kwargs)
    if gguf_of(folder, hub=False) is not None:
        return build_transformers(folder, pretrained, kwargs, classifier=classifier)
    path = model_folder(folder)
    config = _checked(path / "config.json")
    if ":" in str(config.get("architecture")):
        return _build_named(path, config, pretrained, kwargs)
    if is_language_config(config):
        _refuse(kwargs, path)
        trained = load_language_model(path)
        return trained if pretrained else build_language_model(trained.config)
    if "architecture" in config:
        is_registered(config["architecture"])
        return create_registered(f"local-dir:{path}", pretrained=pretrained, **kwargs)
    if "model_type" in config:
        return build_transformers(str(path), pretrained, kwargs, classifier=classifier)
    raise ValueError(
        f"model: {path / 'config.json'} names neither an `architecture` (timm) nor a `model_type` (transformers)"
    )


def _build_named(path: Path, config: dict[str, Any], pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    """The model of a folder that names code to build it with, which is trusted."""
    from unrolled.models.transfer import load_weights

    model = resolve_model(config["architecture"], **{**(config.get("model_args") or {}), **kwargs})
    if pretrained:
        load_weights(model, path)
    return model


def hugging_face_text(name: str, *, pretrained: bool = True) -> nn.Module:
    """A Hugging Face model of texts, in eval mode: one that predicts the next token with the head that does.

    Args:
        name: of the hub, or a folder.
        pretrained: load the weights, instead of drawing them.

    Raises:
        ValueError, MissingData, MissingExtra, UnsafeFile: as `resolve_model`.
    """
    return build_transformers(name, pretrained, {}, causal=True)


def build_transformers(
    name: str, pretrained: bool, kwargs: dict[str, Any], *, auto: str = "AutoModel", causal: bool = False,
    classifier: bool = False,
) -> nn.Module:  # fmt: skip
    """A model of transformers by its name on the hub or its folder; no code that comes with it is run.

    Args:
        name: `ORG/NAME`, a folder, or a GGUF file.
        pretrained: load its weights.
        kwargs: of its configuration; `num_classes` gives it a head for images.
        auto: the class of transformers that chooses the head.
        causal: the head that predicts the next token, if the model was saved with one; GGUF files have no other.
        classifier: the head that classifies images, likewise.

    Raises:
        MissingExtra: transformers is not installed.
        MissingData: it cannot be read.
        UnsafeFile: it comes with code.
        CorruptFile: a GGUF file is damaged.
        ValueError: it cannot be built, or has no such head.
    """
    gguf = gguf_of(name)
    if gguf is None:
        transformers = require("transformers", extra="hf", feature=f"model hf:{name}")
        place, file = name, {}
    else:
        transformers = gguf.require(name)
        place, file = gguf.folder, {"gguf_file": gguf.file}
    kwargs = dict(kwargs)
    loader = getattr(transformers, auto)
    if "num_classes" in kwargs:
        loader = transformers.AutoModelForImageClassification
        kwargs["num_labels"] = kwargs.pop("num_classes")
    try:
        with hub(place), gguf.reading() if gguf else nullcontext():
            # False, not the default: that asks on a terminal whether to run the code that came with the weights
            config = transformers.AutoConfig.from_pretrained(place, trust_remote_code=False, **file, **kwargs)
            if "/" in str(getattr(config, "_attn_implementation", "")):  # a repository of compiled code
                reason = f"wants the attention of {config._attn_implementation}, which is code"
                raise UnsafeFile(f"model: hf:{name} {reason}")
            saved_as = getattr(config, "architectures", None)
            saved_as = [str(each) for each in saved_as] if isinstance(saved_as, list) else []
            if causal and (gguf or any(each.endswith(("ForCausalLM", "LMHeadModel")) for each in saved_as)):
                loader = transformers.AutoModelForCausalLM
            if classifier and any(each.endswith("ForImageClassification") for each in saved_as):
                loader = transformers.AutoModelForImageClassification
            if not pretrained:
                model = loader.from_config(config, trust_remote_code=False)
            elif gguf is not None:
                model = gguf.load(loader, config)
            else:
                with without_bars():
                    model = loader.from_pretrained(
                        name, config=config, ignore_mismatched_sizes="num_labels" in kwargs, use_safetensors=True,
                        trust_remote_code=False,
                    )  # fmt: skip
                note_normalisation(model, name)
    except (UnsafeFile, CorruptFile):
        raise
    except (ValueError, ImportError, AttributeError, KeyError, TypeError, RecursionError) as error:
        # transformers meets what a config.json should not say wherever it first uses it
        if "trust_remote_code" in str(error):
            raise UnsafeFile(
                f"model: hf:{name} comes with code of its own, which is not run; if you trust it, build it in a "
                "function of yours and give that as package.module:factory"
            ) from error
        if "Unrecognized configuration class" in str(error):
            kind = type(config).__name__.removesuffix("Config")
            raise ValueError(f"model: hf:{name} is of the kind {kind}, of which there is no {auto}") from error
        raise ValueError(f"model: hf:{name} cannot be built: {first_line(error)}") from error
    except OSError as error:
        raise MissingData(
            f"model: hf:{name} could not be read: {first_line(error)} (give a hub name ORG/NAME or a folder; "
            "without a network only what is already in the Hugging Face cache can be used)"
        ) from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: hf:{name} is a {type(model).__name__}, not a torch module")
    return model.eval()


def _build_factory(spec: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    module_name, _, attribute = spec.partition(":")
    try:
        module = import_factory(spec)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        near = nearest(module_name, KINDS_OF_MODELS)
        hint = f"did you mean {near[0]}:{attribute}?" if near else f"give {_FORMS}, with the module importable"
        raise ValueError(f"model={spec!r}: there is no module {module_name!r} here; {hint}") from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise ValueError(f"model={spec!r}: {module_name} has no function {attribute!r}")
    arguments = {**({"pretrained": True} if pretrained else {}), **kwargs}
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        if "unexpected keyword argument 'pretrained'" in str(error):
            raise ValueError(
                f"model={spec!r}: {attribute} has no argument `pretrained`, by which it would load weights; build it "
                "without, or give it weights"
            ) from error
        if "unexpected keyword argument" in str(error):
            raise  # said by whoever asked
        given = ", ".join(kwargs) or "no arguments"
        raise ValueError(f"model={spec!r}: {attribute} cannot be called with {given}: {error}") from error
    except ValueError:  # of compiled code the signature may be unknown
        factory = _compiled(factory, spec)
    model = factory(**arguments)
    if not isinstance(model, nn.Module):
        raise ValueError(f"model={spec!r}: {attribute} returned a {type(model).__name__}, not an nn.Module")
    return model


def _compiled(factory: Callable[..., Any], spec: str) -> Callable[..., Any]:
    """A factory whose signature only a call tells."""

    def call(**arguments: Any) -> Any:
        try:
            return factory(**arguments)
        except TypeError as error:
            given = ", ".join(arguments) or "no arguments"
            raise ValueError(f"model={spec!r}: cannot be called with {given}: {first_line(error)}") from error

    return call


def _is_import_path(text: str) -> bool:
    return bool(text) and all(part.isidentifier() for part in text.split("."))
