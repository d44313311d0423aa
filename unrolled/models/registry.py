"""Names: every size of every family, registered with timm, and the table `unrolled list` prints."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from unrolled.catalogue import ModelInfo, catalogue, shipped_tags
from unrolled.checksums import check_file
from unrolled.models.building import create_with_timm
from unrolled.models.crate import CRATE, add_registers
from unrolled.models.masked import MaskedAutoencoder
from unrolled.models.sequence_config import ENCODERS, LANGUAGE_MODELS
from unrolled.models.sequence_pool import vit_with_sequence_pool
from unrolled.models.stem import stem_named
from unrolled.models.tost import ToST
from unrolled.plugins import load_plugin
from unrolled.trust import MODEL_FILES

# width, heads, layers: tiny to large as published (arXiv 2306.01129, table 5); nano is ours, for a laptop
SIZES: dict[str, dict[str, int]] = {
    "nano": {"embed_dim": 96, "num_heads": 4, "depth": 6},
    "tiny": {"embed_dim": 384, "num_heads": 6, "depth": 12},
    "small": {"embed_dim": 576, "num_heads": 12, "depth": 12},
    "base": {"embed_dim": 768, "num_heads": 12, "depth": 12},
    "large": {"embed_dim": 1024, "num_heads": 16, "depth": 24},
}
# patch, image side, and what goes with them: small patches hold too few values to be normalised one by one
INPUTS: dict[str, dict[str, Any]] = {
    "patch16_224": {"patch_size": 16, "img_size": 224, "stem": "layernorm"},
    "patch8_224": {"patch_size": 8, "img_size": 224, "stem": "layernorm"},
    "patch4_32": {"patch_size": 4, "img_size": 32, "stem": "linear"},
    "patch2_8": {"patch_size": 2, "img_size": 8, "in_chans": 1, "stem": "linear"},
}
_PAIRS = [
    *((size, patch) for size in ("tiny", "small", "base", "large") for patch in ("patch16_224", "patch8_224")),
    *((size, "patch4_32") for size in ("nano", "tiny", "small", "base")),
    ("nano", "patch2_8"),
]
# the sizes of the other families, where they are not CRATE's
ALPHA_SIZES: dict[str, dict[str, int]] = {
    **SIZES,
    "tiny": {"embed_dim": 192, "num_heads": 3, "depth": 12},
    "huge": {"embed_dim": 1280, "num_heads": 16, "depth": 32},
}
CBT_SIZES: dict[str, dict[str, int]] = {
    **SIZES,
    "tiny": {"embed_dim": 192, "num_heads": 3, "depth": 12},
    "small": {"embed_dim": 384, "num_heads": 6, "depth": 12},
}
TOST_SIZES: dict[str, dict[str, int]] = {
    "nano": SIZES["nano"],
    "tiny": {"embed_dim": 192, "num_heads": 4, "depth": 12},
    "small": {"embed_dim": 384, "num_heads": 8, "depth": 12},
    "medium": {"embed_dim": 512, "num_heads": 8, "depth": 24},
    "large": {"embed_dim": 768, "num_heads": 16, "depth": 24},
}
_CRATE_NAMES = {"img_size": "image_size", "in_chans": "channels", "embed_dim": "dim", "num_heads": "heads"}
_CRATE_SOURCE = "CRATE, arXiv 2306.01129"
_AOT_SOURCE = "attention-only transformer, arXiv 2506.03790"
_FIRST_CONV = "patch_embed.proj.0.0"
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CONV = {"label_names": CIFAR10, "first_conv": _FIRST_CONV, "arch": {"stem": "conv", "compression": "derived"}}
# weights that ship with the package, by model and tag: entries of timm's `pretrained_cfg`, and under `arch` the
# arguments they were trained with where those differ from the name's (what they were trained on: see their cards)
_SHIPPED_FOLDER = Path(__file__).resolve().parents[1] / "weights"
_SHIPPED: dict[str, dict[str, dict[str, Any]]] = {
    "crate_nano_patch4_32": {
        "cifar10": {"label_names": CIFAR10},
        "cifar10_conv": _CONV,
        "cifar10_hour": _CONV,
        "cifar10_four_hours": _CONV,
    },
    "vit_nano_conv_patch4_32": {
        "cifar10": {"label_names": CIFAR10},
        "cifar10_four_hours": {"label_names": CIFAR10},
    },
    "crate_mae_nano_patch4_32": {
        "cifar10": {"arch": {"encoder": "visible"}},
        "cifar10_long": {
            "arch": {"encoder": "visible", "compression": "derived"},
            "mean": (0.5,) * 3,
            "std": (64 / 255,) * 3,
        },
    },
    "aot_nano_conv_patch4_32": {"cifar10": {"label_names": CIFAR10}},
}
_VIT_SOURCE = "ViT of the same width and depth (timm), the baseline of CRATE"


_INFO: dict[str, str] = {}
MASKED: set[str] = set()  # the masked autoencoders among the names


def _config(arch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    channels, side = arch.get("in_chans", 3), arch.get("img_size", 224)
    digits = channels == 1
    return {
        "url": "",
        "num_classes": 10 if side <= 32 else 1000,
        "input_size": (channels, side, side),
        "fixed_input_size": False,
        "crop_pct": 0.875 if side > 64 else 1.0,
        "interpolation": "bicubic",
        "mean": (0.5,) if digits else IMAGENET_DEFAULT_MEAN,
        "std": (0.5,) if digits else IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        **kwargs,
    }


def _rename(kwargs: dict[str, Any]) -> dict[str, Any]:
    """timm's names to the published constructor's."""
    if isinstance(kwargs.get("img_size"), list):
        kwargs["img_size"] = tuple(kwargs["img_size"])
    return {_CRATE_NAMES.get(key, key): value for key, value in kwargs.items()}


def _pool(kwargs: dict[str, Any]) -> dict[str, Any]:
    """An explicit `pool`, kept by saved models, wins over timm's `global_pool`."""
    pool = kwargs.pop("global_pool", None)
    if pool is not None:
        kwargs.setdefault("pool", pool)
    return kwargs


def _build_crate(**kwargs: Any) -> CRATE:
    return CRATE(**_rename(_pool(kwargs)))


def _build_masked(**kwargs: Any) -> MaskedAutoencoder:
    return MaskedAutoencoder(**_rename(_pool(kwargs)))


def _build_tost(**kwargs: Any) -> ToST:
    return ToST(**_rename(kwargs))


def _build_vit(*, stem: str = "linear", **kwargs: Any) -> VisionTransformer:
    return VisionTransformer(embed_layer=stem_named(stem), **kwargs)


def _filter_checkpoint(state: dict[str, Tensor], model: nn.Module, *, decoder: bool = True) -> dict[str, Tensor]:
    """timm's for vision transformers, which resamples positions; but it drops what it thinks classifiers never have.

    Args:
        state: what the file holds.
        model: what it is for.
        decoder: whether a masked autoencoder's last map is wanted; otherwise it may be of other channels, and stays.

    Raises:
        ValueError: it is wanted, and of other channels.
    """
    token = {"mask_token": state["mask_token"]} if "mask_token" in state else {}
    state = {**checkpoint_filter_fn(add_registers(state, model), model), **token}
    own_state = model.state_dict()
    for other, here in (("norm", "fc_norm"), ("fc_norm", "norm")):  # normalised before pooling, or after it
        if f"{here}.weight" in own_state and f"{other}.weight" not in own_state and f"{other}.weight" in state:
            state |= {f"{here}.{kind}": state.pop(f"{other}.{kind}") for kind in ("weight", "bias")}
    for key, value in own_state.items():
        if key.startswith("decoder_pred.") and key in state and state[key].shape != value.shape:
            if decoder:
                raise ValueError(
                    f"in_chans: the decoder of these weights predicts patches of {len(state[key])} values, not "
                    f"{len(value)}; leave in_chans out, or give num_classes for a classifier without the decoder"
                )
            state[key] = value
    return state


def register(
    name: str, build: Callable[..., nn.Module], arch: dict[str, Any], *, source: str, **config: Any
) -> Callable[..., nn.Module]:
    """Make `timm.create_model(name)` build `build(**arch)`.

    Args:
        name: the architecture's name, as users type it.
        build: constructor taking timm's keyword arguments.
        arch: its arguments for this size; a caller's keyword arguments override them.
        source: paper or origin, shown by `unrolled list`.
        **config: entries of timm's `pretrained_cfg`.
    """

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        head = build is _build_masked and kwargs.pop("num_classes", 0)
        pool = kwargs.pop("pool", None) or kwargs.pop("global_pool", None) if head else None
        out_indices = kwargs.pop("out_indices", 3)
        tag = kwargs.get("pretrained_cfg")  # timm: what stands behind the dot of a name
        if pretrained and isinstance(tag, dict) and tag.get("source") == "local-dir":  # asked by timm itself, perhaps
            for file in ("config.json", "model.safetensors"):
                check_file(Path(tag["file"]) / file)
        shipped = _SHIPPED.get(name, {}).get(tag, {}).get("arch", {}) if isinstance(tag, str) else {}
        model = build_model_with_cfg(
            build,
            name,
            pretrained,
            pretrained_filter_fn=partial(_filter_checkpoint, decoder=not head),
            feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
            **{**arch, **shipped, **kwargs},
        )
        if not head:
            return model
        # as elsewhere in timm: the encoder, under a new head
        classifier = model.classifier(head, pool=pool or "cls")
        classifier.default_cfg = classifier.pretrained_cfg  # timm's older name for it
        return classifier

    if name in _INFO:
        raise ValueError(f"name={name!r}: registered already")
    entrypoint.__name__ = name
    entrypoint.__doc__ = f"{source}: {', '.join(f'{key} {value}' for key, value in arch.items())}."
    entrypoint.__module__ = __name__
    configs = {name: _config(arch, **config)}
    for tag, more in _SHIPPED.get(name, {}).items():
        file = _SHIPPED_FOLDER / f"{name}.{tag}.safetensors"
        more = {key: value for key, value in more.items() if key != "arch"}
        configs[f"{name}.{tag}"] = _config(arch, **{**config, **more, "file": str(file), "license": "apache-2.0"})
    globals()["default_cfgs"] = generate_default_cfgs(configs)
    register_model(entrypoint)
    _INFO[name] = source
    if build is _build_masked:
        MASKED.add(name)
    return entrypoint


__all__: list[str] = []  # timm appends the registered names, because an entry point is also a function of this module
default_cfgs: dict[str, Any] = {}


def _side(patch: int) -> dict[str, int]:
    return {"patch_size": patch, "img_size": 32 if patch < 8 else 224}


def _register_families() -> None:
    for size, image in _PAIRS:
        register(f"crate_{size}_{image}", _build_crate, {**SIZES[size], **INPUTS[image]}, source=_CRATE_SOURCE)
    register("crate", _build_crate, {**SIZES["tiny"], **INPUTS["patch16_224"]}, source=f"{_CRATE_SOURCE}, any size")
    for image in ("patch4_32", "patch2_8"):
        arch = {**SIZES["nano"], **{key: value for key, value in INPUTS[image].items() if key != "stem"}}
        register(f"vit_nano_{image}", _build_vit, {**arch, "dynamic_img_size": True}, source=_VIT_SOURCE)
    arch = {**SIZES["nano"], "embed_dim": 56, "patch_size": 4, "img_size": 32, "stem": "conv", "dynamic_img_size": True}
    source = "ViT of about the operations of a CRATE nano with a convolutional stem (timm)"
    register("vit_nano_conv_patch4_32", _build_vit, arch, source=source, first_conv=_FIRST_CONV)
    source = "the same without a class token, pooling over the sequence as CCT does, arXiv 2104.05704"
    register("vit_nano_conv_seqpool_patch4_32", vit_with_sequence_pool, arch, source=source, first_conv=_FIRST_CONV)

    alpha = {
        "stem": "linear",
        "sparsifier": "overcomplete",
        "decoupled": True,
        "residual": True,
        "bias": False,
        "norm_eps": 1e-6,
    }
    for size, widths in ALPHA_SIZES.items():
        for patch in (4,) if size == "nano" else (8, 14, 16, 32):
            name = f"crate_alpha_{size}_patch{patch}_{_side(patch)['img_size']}"
            register(name, _build_crate, {**widths, **_side(patch), **alpha}, source="CRATE-alpha, arXiv 2405.20299")
    for size, widths in SIZES.items():
        patch = 4 if size == "nano" else 16
        name = f"{size}_patch{patch}_{_side(patch)['img_size']}"
        stem = "linear" if size == "nano" else "layernorm"
        arch = {**widths, **_side(patch), "stem": stem, "sparsifier": "none"}
        register(f"aot_{name}", _build_crate, arch, source=_AOT_SOURCE)
        arch = {**widths, **_side(patch)}
        register(f"crate_mae_{name}", _build_masked, arch, source="CRATE-MAE, arXiv 2404.02446", num_classes=0)
    arch = {**SIZES["nano"], **_side(4), "stem": "conv", "compression": "derived", "sparsifier": "none"}
    source = f"{_AOT_SOURCE}, with a convolutional stem and the derived step"
    register("aot_nano_conv_patch4_32", _build_crate, arch, source=source, first_conv=_FIRST_CONV)
    for size, widths in CBT_SIZES.items():
        patch = 4 if size == "nano" else 16
        name = f"cbt_{size}_patch{patch}_{_side(patch)['img_size']}"
        arch = {**widths, **_side(patch), "stem": "conv", "attention": "cbsa"}
        register(name, _build_crate, arch, source="CBT, arXiv 2509.16875", first_conv=_FIRST_CONV)
    for size, widths in TOST_SIZES.items():
        for patch in (4,) if size == "nano" else (8, 16):
            name = f"tost_{size}_patch{patch}_{_side(patch)['img_size']}"
            # the published sizes as they are registered where they were published, with biases; nano is ours
            arch = {**widths, **_side(patch), **({} if size == "nano" else {"qkv_bias": True})}
            register(name, _build_tost, arch, source="ToST, arXiv 2412.17810", first_conv=_FIRST_CONV)
    # names that saved models of any size go by, and the baseline of masked autoencoding
    arch = {**SIZES["base"], **_side(16)}
    register("crate_mae", _build_masked, arch, source="CRATE-MAE, any size", num_classes=0)
    register("tost", _build_tost, {**TOST_SIZES["small"], **_side(16)}, source="ToST, any size", first_conv=_FIRST_CONV)
    mae = {"attention": "mhsa", "sparsifier": "mlp", "residual": True, "norm_eps": 1e-6}
    source = "MAE of ViT blocks, the baseline of CRATE-MAE"
    arch = {**SIZES["nano"], **_side(4), **mae}
    register("vit_mae_nano_patch4_32", _build_masked, arch, source=source, num_classes=0)
    arch = {**SIZES["base"], **_side(16), **mae, "decoder_depth": 8, "decoder_heads": 16}
    register("vit_mae_base_patch16_224", _build_masked, arch, source=source, num_classes=0)


_register_families()


def create_registered(name: str, *, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """`timm.create_model` with helpful errors: a name of this package or of timm, or one of timm's own sources.

    Raises:
        ValueError, MissingData, CorruptFile: as `unrolled.create_model`.
    """
    check_known(name)
    plain = name.rpartition(":")[2].partition(".")[0]
    if plain in LANGUAGE_MODELS or plain in ENCODERS:
        task = "mlm" if plain in ENCODERS else "lm"
        raise ValueError(
            f"model={name!r} is a language model and takes no images; `unrolled train --task {task} --model {plain}`"
        )
    return create_with_timm(name.removeprefix("timm:"), pretrained, **kwargs)


def check_known(name: str) -> None:
    """Refuse a name that neither this package nor timm has, or whose weights do not ship; `timm:` may stand before it.

    Raises:
        ValueError: with the nearest names.
    """
    plain = name.removeprefix("timm:")
    if ":" not in plain:
        _check_name(plain, name)


def is_registered(name: str) -> bool:
    """Whether timm knows a name, after importing the package that adds it, if one does."""
    if not timm.is_model(name):
        load_plugin("models", name)
    return bool(timm.is_model(name))


# names of well-known models on the Hugging Face hub, most of them without an organisation in front
_OF_THE_HUB = re.compile(
    r"(distil|xlm-|al|de|mo(dern)?)?(gpt2|gpt-?neox?|gpt-j|openai-gpt|bert|roberta|t5|mt5|bart|electra|llama|qwen|gemma|mistral|"
    r"opt|phi|pythia|bloom|falcon|clip-vit|siglip|dinov2|dinov3|smollm|olmo)(?![a-z_])[\w.-]*",
    re.IGNORECASE,
)


def hub_hint(name: str) -> str:
    """`; did you mean hf:NAME?`, if that is a name as the Hugging Face hub has them; else nothing."""
    return f"; did you mean hf:{name}?" if _OF_THE_HUB.match(name) else ""


def _check_name(name: str, spec: str) -> None:
    plain, _, tag = name.partition(".")
    of_text = (*LANGUAGE_MODELS, *ENCODERS)
    if plain not in of_text and not is_registered(plain):
        known = [*timm.list_models(), *of_text]
        family = [full for full in known if full.split("_")[0] == plain.split("_")[0]]
        near = get_close_matches(plain, family, n=3, cutoff=0.5) or get_close_matches(plain, known, n=3)
        near = [f"{full}.{tag}" if tag in _tags(full) else full for full in near]
        hint = f"; did you mean {' or '.join(near)}?" if near else "; `unrolled list` shows what there is"
        raise ValueError(f"model={spec!r} is not known{hub_hint(name) or hint}")
    if (plain in of_text or plain in _INFO) and tag and tag not in (tags := _tags(plain)):
        trained = " or ".join(f"{plain}.{each}" for each in tags)
        hint = f"did you mean {trained}?" if trained else f"none ship for {plain}; train it, or leave out {tag!r}"
        raise ValueError(f"model={spec!r}: there are no such weights; {hint}")


def _tags(name: str) -> list[str]:
    """What the weights of a model that ship go by, behind the dot."""
    return shipped_tags(name) or list(_SHIPPED.get(name, {}))


def names_folder(spec: str) -> bool:
    """Whether a model's string is a path, of a folder or of a file that is a model, without `local:` in front; what
    timm knows is a name."""
    if not spec or ":" in spec or is_registered(spec.split(".")[0]):
        return False
    return "/" in spec or os.sep in spec or spec.endswith(MODEL_FILES) or Path(spec).expanduser().is_dir()


def shipped_weights(name: str | Path) -> tuple[Path, str, dict[str, Any]] | None:
    """The file of weights that ship with the package, the model they are of, and the arguments it was trained with;
    None if `name`, such as `crate_nano_patch4_32.cifar10`, is not one of theirs, or there is a file or folder of that
    name, which goes first.
    """
    model, _, tag = str(name).removeprefix("timm:").partition(".")
    if tag not in _SHIPPED.get(model, {}) or Path(name).exists():
        return None
    return _SHIPPED_FOLDER / f"{model}.{tag}.safetensors", model, dict(_SHIPPED[model][tag].get("arch", {}))


def list_models(pattern: str = "*") -> list[ModelInfo]:
    """This package's models whose name matches `pattern` (wildcards): name, parameters, source, weights.

    `timm.list_models()` lists everything else that `create_model` can build.
    """
    from fnmatch import fnmatch

    names = [name for name in _INFO if fnmatch(name, pattern)]
    return [ModelInfo(name, _count(name), _INFO[name], _weights(name)) for name in names]


@cache
def _count(name: str) -> int:
    if name in catalogue():
        return catalogue()[name].parameters
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in timm.create_model(name).parameters())


def _weights(name: str) -> str:
    tags = [full.split(".", 1)[1] for full in timm.list_pretrained(f"{name}.*")]
    return ", ".join(tags)
