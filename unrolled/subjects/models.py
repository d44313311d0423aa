"""Models by one string, as a person gives them: opened, named, and what is known of their weights and classes."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unrolled.subjects.options import Device, OneModelFlags
from unrolled.subjects.runs import data_of, named, run_of, shipped
from unrolled.terminal import as_typed, say

if TYPE_CHECKING:
    import torch
    from torch import nn

    from unrolled.data import ImageSource
    from unrolled.instruments.features.parts import Processes


def choose_device(choice: Device) -> torch.device:
    """The device a `--device` flag means.

    Raises:
        ValueError: it is not there.
    """
    import torch

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if choice == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if available[name]))
    if not available[choice]:
        raise ValueError(f"device={choice!r}: torch sees none on this machine; use device='cpu' (`unrolled doctor`)")
    return torch.device(choice)


@contextlib.contextmanager
def sharing(choice: Device) -> Iterator[tuple[torch.device, Processes]]:
    """This process's device, and the processes torchrun started with it (only itself without torchrun)."""
    from unrolled.instruments.features.parts import Processes

    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield choose_device(choice), Processes()
        return
    import torch
    from lightning_fabric import Fabric

    from unrolled.train.engine import pick_accelerator

    local = int(os.environ["LOCAL_WORLD_SIZE"])
    accelerator = pick_accelerator(choice, local)
    nodes = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    fabric = Fabric(accelerator=accelerator, devices=local, num_nodes=nodes, strategy="ddp")
    fabric.launch()
    try:
        yield fabric.device, Processes(fabric.global_rank, fabric.world_size, fabric.barrier)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def open_model(choice: OneModelFlags, classes: int | None = None, *, head: bool = False) -> nn.Module:
    """The model that the flags of a verb mean, in eval mode.

    Args:
        choice: its `model` is a string of `resolve_model`, or simply a folder: the path of a run or of a saved model is
            `local:` of it. Folders, `hf:` models and names of weights that ship with this package always come with
            their weights. The global random state is set by its seed.
        classes: outputs of the head of a model that is built from its name and filled with `weights`, where those do
            not say it.
        head: of a model of transformers also the head that it was saved with to classify images.

    Raises:
        ValueError: unknown model, a language model, or `weights` have another head.
    """
    import torch

    from unrolled.models import load_weights
    from unrolled.models.resolve import resolve_model
    from unrolled.models.transfer import weights_classes

    spec, weights = named(choice.model), choice.weights
    arguments = dict(choice.model_args)
    if weights is not None and classes is not None and not spec.startswith(("local:", "hf:")):
        own_classes = weights_classes(weights)
        arguments.setdefault("num_classes", classes if own_classes is None else len(own_classes))
    pretrained = weights is None and (
        choice.pretrained or spec.startswith(("local:", "hf:")) or shipped(spec) is not None
    )
    torch.manual_seed(choice.seed)
    model = resolve_model(spec, pretrained=pretrained, head=head, **arguments)
    takes_images(spec, model)
    if weights is not None:
        report = load_weights(model, weights)
        refused = {key: how for key, how in report.reshaped.items() if how.startswith("not loaded")}
        if refused:
            detail = "; ".join(f"{key} {how.removeprefix('not loaded: ')}" for key, how in refused.items())
            raise ValueError(f"weights: the head does not fit ({detail}); give model_args={{'num_classes': ...}}")
        say(f"weights: {report}")
    elif not pretrained and (":" not in spec or spec.startswith("timm:")):
        advice = "pretrained=True, or a folder in place of the name, gives it trained ones"
        say(as_typed(f"note: {spec} has random weights; {advice}"))
    return model.eval()


def open_trained(choice: OneModelFlags, source: ImageSource, *, head: bool = False) -> tuple[nn.Module, dict[str, int]]:
    """As `open_model`, for `source`; of a classifier's run that was interrupted its newest checkpoint, whose `step`
    is the second part, which is empty otherwise.
    """
    unfinished = None if choice.weights is not None else _unfinished(choice.model)
    if unfinished is None:
        return open_model(choice, classes=len(source.classes), head=head), {}
    from unrolled.train.unfinished import newest_model

    network, step = newest_model(unfinished, source)
    say(
        f"note: {unfinished} was interrupted; measured is its newest checkpoint, of step {step:,}; "
        f"`unrolled train --config {shlex.quote(str(unfinished / 'config.yaml'))} --resume auto` goes on"
    )
    return network, {"step": step}


def _unfinished(model: str) -> Path | None:
    """The folder of an interrupted run, if that is what a model's string is."""
    spec = named(model)
    if not spec.startswith("local:"):
        return None
    from unrolled.train.unfinished import is_unfinished

    folder = Path(spec.removeprefix("local:")).expanduser()
    return folder if is_unfinished(folder) else None


def open_body(choice: OneModelFlags) -> nn.Module:
    """As `open_model`, but `weights` may be of any number of classes: their head is left out, nothing here reads it."""
    if choice.weights is None:
        return open_model(choice)
    import torch

    from unrolled.models import load_weights
    from unrolled.models.resolve import resolve_model

    torch.manual_seed(choice.seed)
    model = resolve_model(named(choice.model), **choice.model_args)
    takes_images(choice.model, model)
    say(f"weights: {load_weights(model, choice.weights, head=False)}")
    return model.eval()


def takes_images(spec: str, model: nn.Module) -> None:
    """Refuse a language model where images are to be shown.

    Raises:
        ValueError: it is one.
    """
    from torch.nn import Conv2d

    from unrolled.models import LanguageModel

    of_text = getattr(model, "main_input_name", "") == "input_ids"  # Hugging Face's
    if isinstance(model, LanguageModel) or (of_text and not any(isinstance(part, Conv2d) for part in model.modules())):
        raise ValueError(
            f"model: {spec.removeprefix('local:')} is a language model and these are images; `unrolled eval MODEL "
            '--data tinyshakespeare` measures it on text, `unrolled trace MODEL --text "..."` shows its layers'
        )


def encoder_of(network: nn.Module, classes: int = 1) -> nn.Module:
    """The encoder of a masked autoencoder of this package, as a network of whole images; any other as it is.

    Args:
        network: in eval mode.
        classes: outputs of a fresh head of the encoder.
    """
    from unrolled.models import MaskedAutoencoder

    if not isinstance(network, MaskedAutoencoder):
        return network
    encoder: Any = network.classifier(classes)
    for key in ("pretrained_cfg", "default_cfg"):  # they say how images are normalised
        if hasattr(network, key):
            setattr(encoder, key, getattr(network, key))
    return encoder.eval()


def origin(choice: OneModelFlags) -> str:
    """Where the weights are from, in words; `"random"` if nowhere."""
    model = choice.model
    if choice.weights is not None:
        return str(choice.weights)
    if named(model).startswith(("local:", "hf:")):
        return model
    if choice.pretrained or shipped(model) is not None:
        return "pretrained"
    return "random" if ":" not in model or model.startswith(("timm:", "tv:")) else f"whatever {model} gives"


def class_names(network: nn.Module, choice: OneModelFlags) -> list[tuple[str, ...]]:
    """As `known_names`; of a run folder that does not name its classes those of its data, if they are there."""
    if namings := known_names(network, choice):
        return namings
    names = tuple(map(str, _classes_of_run(choice.model, choice.weights)))
    return [names] if names and len(names) == _outputs(network) else []


def known_names(network: nn.Module, choice: OneModelFlags) -> list[tuple[str, ...]]:
    """What the outputs of a classifier stand for, in their order, by every naming that it brings; empty if by none.

    Args:
        network: the classifier.
        choice: what it was opened from.
    """
    from unrolled.models.transfer import weights_classes

    count = _outputs(network)
    spec = named(choice.model)
    trained = choice.pretrained or spec.startswith(("local:", "hf:")) or shipped(spec) is not None
    candidates: list[Any] = []
    if choice.weights is not None:
        candidates.append(weights_classes(choice.weights))
    elif trained:
        candidates.append((getattr(network, "pretrained_cfg", None) or {}).get("label_names"))
        labels = getattr(getattr(network, "config", None), "id2label", None) or {}
        candidates.append([labels[number] for number in sorted(labels)])
        if choice.pretrained and count == 1000 and spec.removeprefix("timm:").find(":") < 0:
            from timm.data import ImageNetInfo

            info = ImageNetInfo()
            described = [info.index_to_description(number) for number in range(count)]
            candidates += [[name.split(",")[0] for name in described], info.label_names(), described]
    return [names for names in (tuple(map(str, each or ())) for each in candidates) if names and len(names) == count]


def _outputs(network: nn.Module) -> int:
    return int(getattr(network, "num_classes", 0) or getattr(network, "num_labels", 0) or 0)


def _classes_of_run(model: str, weights: Path | None) -> list[str]:
    from unrolled.data import open_images
    from unrolled.errors import MissingData, MissingExtra

    if run_of(model, weights).get("data"):
        data = data_of(model, weights)
        with contextlib.suppress(MissingData, MissingExtra, OSError, ValueError):  # only the names are then missing
            return list(open_images(data.data, "train", data_dir=data.data_dir, seed=data.split_seed).classes)
    return []


def by_class_names(
    source: ImageSource, namings: list[tuple[str, ...]], *, what: str, by: Literal["name", "number"] = "name"
) -> tuple[ImageSource, str]:
    """`source` with the labels that a model has for its classes, and a note if that changed something.

    Args:
        source: images and labels.
        namings: as from `class_names`; the one that knows most of the classes counts.
        what: the model, for messages.
        by: "number" leaves the labels as they are, and so it is for classes that have numbers and no names.

    Raises:
        ValueError: none of the images is of a class that the model knows.
    """
    from unrolled.data.classes import by_name, numbers_of

    numbered = list(source.classes) == [str(number) for number in range(len(source.classes))]
    if by == "number" or not namings:
        return source, ""
    known = max(namings, key=lambda names: int((numbers_of(source.classes, names) >= 0).sum()))
    if numbered and numbers_of(source.classes, known).max(initial=-1) < 0 and len(source.classes) <= len(known):
        return source, ""
    return by_name(source, known, what=what)
