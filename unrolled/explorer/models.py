"""The models a page may choose from: shipped weights, run folders, names given at the start, and random weights.

The page sends an identifier from this list, never a name to be resolved: `package.module:factory` would import code.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unrolled.errors import MissingData
from unrolled.reading import printable, read_json

if TYPE_CHECKING:
    from torch import nn

    from unrolled.instruments.editing import Places
    from unrolled.subjects.options import Device
    from unrolled.subjects.pictures import Preparation

GIVEN = "Given at the start"
MOST_MODELS = 6
RUNS = 60
RANDOM = (
    "crate_nano_patch4_32",
    "vit_nano_patch4_32",
    "crate_alpha_nano_patch4_32",
    "crate_tiny_patch16_224",
    "timm:vit_tiny_patch16_224",
)
"""Always offered, with weights that were never trained."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One model of the list."""

    id: str
    label: str
    spec: str
    group: str
    weights: str
    """Where they are from, in words."""
    trained: bool
    data: str = ""
    """Name of the data it was trained on, where that is known."""
    architecture: str = ""
    """Where `label` does not say it."""

    def shown(self) -> dict[str, Any]:
        """What the page is told: no paths."""
        return {
            "id": self.id,
            "label": self.label,
            "group": self.group,
            "weights": self.weights,
            "trained": self.trained,
            "data": self.data,
            "architecture": self.architecture,
        }


@dataclass(frozen=True)
class Opened:
    """A model in memory and how it wants its pictures."""

    choice: Choice
    network: nn.Module
    classes: tuple[str, ...]
    """Names, or empty."""
    head: bool
    """Whether it was made to name classes."""

    @cached_property
    def places(self) -> Places:
        """What `unrolled.edit` may change in it; nothing where its parts are not understood."""
        from unrolled.instruments.editing import places_of

        try:
            return places_of(self.network)
        except ValueError:
            return {}

    def name_of(self, index: int) -> str:
        """What a class is called."""
        return self.classes[index] if self.classes else f"class {index}"


class Catalogue:
    """The list, and the models of it that are open.

    Args:
        specs: models by string, as the other verbs take them, put first.
        runs: folder whose subfolders may be runs; need not exist.
        pretrained: give `specs` their weights where they are on this machine.
        device: where models run, as `--device` takes it; looked for when the first one is opened.
        seed: of random weights.
    """

    def __init__(
        self,
        *,
        specs: Sequence[str] = (),
        runs: Path | None = None,
        pretrained: bool = False,
        device: Device = "cpu",
        seed: int = 0,
    ) -> None:
        given = [_given(spec, pretrained) for spec in specs]
        choices = [*given, *_shipped(), *(_runs(runs) if runs is not None else []), *map(_random, RANDOM)]
        self.choices: dict[str, Choice] = {}
        for choice in choices:
            others = [other for other in self.choices if other.rpartition("~")[0] == choice.id or other == choice.id]
            self.choices[f"{choice.id}~{len(others) + 1}" if others else choice.id] = choice
        self.lock = threading.Lock()
        """Held while a model runs: hooks belong to one pass at a time, and two passes would share the cores anyway."""
        self._device, self._seed = device, seed
        self._opened: OrderedDict[str, Opened] = OrderedDict()

    def check_weights(self) -> None:
        """Whether models given at the start have the weights they are to have.

        Raises:
            MissingData: one would need the network.
        """
        for choice in self.choices.values():
            if choice.group == GIVEN and choice.trained and ":" not in choice.spec.removeprefix("timm:"):
                _check_weights(choice.spec)

    def default(self) -> list[str]:
        """The two models a page begins with: a white-box one that was trained, if there is one, and one to compare.

        Models given at the start come first in any case.
        """

        def family(name: str) -> str:
            choice = self.choices[name]
            return (choice.architecture or choice.label).removeprefix("timm:").split("_")[0].split("-")[0]

        names = list(self.choices)
        given = [name for name in names if name.startswith("given-")]
        trained = sorted(
            (name for name in names if self.choices[name].trained), key=lambda name: name.startswith("shipped-")
        )  # what the user trained comes first
        first = next(iter([*given, *(name for name in trained if family(name) == "crate"), *trained, *names]))
        rest = [*given, *trained, *names]
        return [
            first,
            next(name for name in rest if name != first and (name in given or family(name) != family(first))),
        ]

    def open(self, identifier: str) -> Opened:
        """The model, from memory if it was used lately. To be called with `lock` held.

        Raises:
            ValueError: not on the list, or no model of pictures.
            MissingData: its weights are not on this machine.
        """
        if identifier not in self.choices:
            raise ValueError("model: this one is not on the list; reload the page")
        if identifier not in self._opened:
            self._opened[identifier] = self._load(self.choices[identifier])
            while len(self._opened) > MOST_MODELS:
                self._opened.popitem(last=False)
        self._opened.move_to_end(identifier)
        return self._opened[identifier]

    def _load(self, choice: Choice) -> Opened:
        import torch

        from unrolled.models import MaskedAutoencoder
        from unrolled.models.resolve import resolve_model
        from unrolled.subjects.models import choose_device, known_names
        from unrolled.subjects.options import OneModelFlags

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            network: nn.Module = resolve_model(choice.spec, pretrained=choice.trained)
            masked = isinstance(network, MaskedAutoencoder)
            if isinstance(network, MaskedAutoencoder):
                network = network.classifier(0)
        classes = int(getattr(network, "num_classes", 0) or 0)
        namings = known_names(network, OneModelFlags(model=choice.spec, pretrained=choice.trained))
        names = namings[0] if namings and choice.trained else ()
        return Opened(choice, network.eval().to(choose_device(self._device)), names, classes > 0 and not masked)


def prepared(opened: Opened, detail: int) -> Preparation:
    """How the model takes a picture, its shorter side `detail` times what the model was made for.

    Raises:
        ValueError: the model takes pictures of one size only.
    """
    from unrolled.subjects.pictures import prepare

    plain = prepare(opened.network, image_size=None)
    if detail == 1:
        return plain
    if plain.fixed is not None:
        raise ValueError(f"{opened.choice.label} takes pictures of one size only; set the detail to 1")
    return prepare(opened.network, image_size=plain.side * detail)


def _given(spec: str, pretrained: bool) -> Choice:
    from unrolled.subjects.runs import named, run_settings

    full = named(spec)
    folder = full.startswith("local:")
    label = printable(Path(full.removeprefix("local:")).name if folder else spec)
    trained = folder or pretrained
    data = str(run_settings(spec).get("data") or "")
    weights = (f"trained on {data}" if data else "as saved") if folder else "pretrained" if trained else "random"
    return Choice(
        id=f"given-{label}", label=label, spec=full, group=GIVEN, weights=weights, trained=trained,
        data=data,
    )  # fmt: skip


def _random(name: str) -> Choice:
    label = name.removeprefix("timm:")
    return Choice(
        id=f"random-{label}", label=label, spec=name, group="Random weights, nothing learned", weights="random",
        trained=False,
    )  # fmt: skip


def _shipped() -> list[Choice]:
    """Of the table that comes with the package: neither torch nor timm is imported."""
    from unrolled.catalogue import catalogue
    from unrolled.subjects.options import SHIPPED
    from unrolled.subjects.runs import shipped

    alike = (SHIPPED, "vit_nano_conv_patch4_32.cifar10")  # a CRATE and its ViT, an hour each: what a page begins with
    tags = {row.name: list(filter(None, row.weights.split(", "))) for row in catalogue().values()}
    names = [f"{name}.{tag}" for name, each in tags.items() for tag in each]
    return [
        Choice(id=f"shipped-{name}", label=name, spec=name, group="Trained, shipped with unrolled",
               weights=f"trained on {tag}", trained=True, data=tag)
        for name in sorted(names, key=lambda name: name not in alike) if (tag := shipped(name))
    ]  # fmt: skip


def _weights_here(config: Any) -> bool:
    """Whether timm would find the weights without asking the network."""
    from urllib.parse import urlparse

    import torch
    from huggingface_hub import try_to_load_from_cache

    if config is None:
        return False
    if getattr(config, "state_dict", None) or (getattr(config, "file", None) and Path(config.file).is_file()):
        return True
    if getattr(config, "hf_hub_id", None):
        repository = config.hf_hub_id.removeprefix("hf-hub:")
        name = getattr(config, "hf_hub_filename", None)
        return any(
            isinstance(try_to_load_from_cache(repository, file), str)
            for file in ([name] if name else ["model.safetensors", "pytorch_model.bin"])
        )
    address = urlparse(getattr(config, "url", None) or "")
    if address.scheme in ("", "file"):
        return bool(address.path) and Path(address.path).is_file()
    return (Path(torch.hub.get_dir()) / "checkpoints" / Path(address.path).name).is_file()


def _check_weights(spec: str) -> None:
    import timm

    name = spec.removeprefix("timm:")
    if not timm.is_model(name.split(".")[0]):
        return  # the error of opening it names the nearest ones
    if not _weights_here(timm.models.get_pretrained_cfg(name)):
        raise MissingData(
            f"model={spec!r}: its pretrained weights are not on this machine, and the explorer asks no network; fetch "
            f"them once with `unrolled eval {spec} --pretrained`, or leave pretrained=True out"
        )


def _runs(folder: Path) -> list[Choice]:
    """Run folders and saved image models directly in `folder`, newest first."""
    from unrolled.subjects.runs import run_settings

    if not folder.is_dir():
        return []
    places = [folder, *(path for path in folder.iterdir() if path.is_dir())]
    runs = []
    for place in places:
        try:
            config = next(file for file in (place / "config.json", place / "model" / "config.json") if file.is_file())
            read = read_json(config)
            data = str(run_settings(str(place)).get("data") or "")
        except (StopIteration, OSError, ValueError):
            continue  # most folders of runs are reports, or runs that go on: they are simply not offered
        if isinstance(read, dict) and "architecture" in read and ":" not in str(read["architecture"]):
            runs.append((config.stat().st_mtime, place, str(read["architecture"]), data))
    out = []
    for _, place, architecture, data in sorted(runs, key=lambda entry: -entry[0])[:RUNS]:
        label = printable(place.resolve().name)
        out.append(
            Choice(id=f"run-{label}", label=label, spec=f"local:{place}", group="Your runs", data=data, trained=True,
                   weights=f"trained on {data}" if data else "as saved",
                   architecture="" if architecture in label else architecture)
        )  # fmt: skip
    return out
