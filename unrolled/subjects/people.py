"""What brains and people were shown, for a model to be shown too, and what they found alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from unrolled.errors import MissingData

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from unrolled.models.encoders import Encoder
    from unrolled.subjects.samples import ImageSamples, TextSamples
    from unrolled.subjects.subject import Subject

Kind = Literal["image", "text"]
THINGS = 1854
_PATCH = 64  # pixels of a side of a patch of colour
_STAGES = (("layer?",), ("stages.?", "stages.??"), ("features.?", "features.??"), ("blocks.?", "blocks.??"))


@dataclass(frozen=True, kw_only=True)
class Target:
    """People, or cells, and what they were shown.

    Attributes:
        key: of the answer, and of the file of places.
        what: who they are, in words.
        stimuli: what was shown, in words, in the plural.
        people: [s, n, n] dissimilarities.
        pictures: [n, h, w, 3] uint8, or None where they are names.
        names: of the stimuli, or None where they are pictures.
        reads: what the model sees of them, in words.
    """

    key: str
    what: str
    stimuli: str
    people: NDArray[Any]
    pictures: NDArray[np.uint8] | None = None
    names: list[str] | None = None
    reads: str = ""

    def samples(self) -> ImageSamples | TextSamples:
        """What a model is shown."""
        from unrolled.data.sources import ArraySource
        from unrolled.subjects.samples import ImageSamples, TextSamples

        rows, n = np.arange(len(self.people[0])), len(self.people[0])
        if self.names is not None:
            return TextSamples(self.names, rows, self.reads)
        assert self.pictures is not None
        source = ArraySource(self.pictures, np.zeros(n, np.int64), classes=["stimulus"], title=self.stimuli)
        return replace(ImageSamples.drawn(source, n, self.reads), classes=0)

    def without(self, unknown: NDArray[np.bool_]) -> Target:
        """The same but for some of the stimuli."""
        keep = np.flatnonzero(~unknown)
        names = None if self.names is None else [self.names[i] for i in keep]
        pictures = None if self.pictures is None else self.pictures[keep]
        return replace(self, people=self.people[:, keep][:, :, keep], names=names, pictures=pictures)


def targets(
    kind: Kind | None, data_dir: Path, concepts: int, seed: int, *, rows: int | None = None
) -> tuple[list[Target], list[str]]:
    """Whom a model of a kind stands beside, and why not beside others.

    Args:
        kind: what the model takes; None of features in a file, whose number of rows says what they are of.
        data_dir: holds `brain-92images` and `human-similarity`.
        concepts: things, drawn from 1,854 in the way of the study; all of features in a file.
        seed: of the draw.
        rows: of features in a file.

    Raises:
        MissingData: nothing of what it could stand beside is there.
        ValueError: features of another number of rows, or more concepts than there are.
    """
    from unrolled.data.human import brains, colour_patches, colours, things

    def it() -> list[Target]:
        records = brains(data_dir)
        shown: dict[str, Any] = {"stimuli": "photographs", "pictures": records.stimuli, "reads": "brain-92images"}
        return [
            Target(key="human_it", what="human IT", people=records.human, **shown),
            Target(key="monkey_it", what="monkey IT", people=records.monkey[None], **shown),
        ]

    def of_things() -> list[Target]:
        if concepts > THINGS:
            raise ValueError(f"concepts={concepts}: there are {THINGS:,} things")
        count = THINGS if kind is None else concepts
        names, people = things(data_dir, count, seed)
        return [Target(key="things", what="people's judgement of things", stimuli="things", people=people, names=names,
                       reads="names of things")]  # fmt: skip

    def of_colours() -> list[Target]:
        rated = colours(data_dir)
        shown: dict[str, Any] = {"what": "people's judgement of colours", "stimuli": "colours", "people": rated.groups}
        if kind == "text":
            return [Target(key="colours_by_name", names=rated.names, reads="names of colours", **shown)]
        patches = colour_patches(data_dir, _PATCH)
        return [Target(key="colours", pictures=patches, reads="patches of colour", **shown)]

    makers = {"image": [it, of_colours], "text": [of_things, of_colours], None: [it, of_colours, of_things]}[kind]
    available: list[Target] = []
    missing: list[MissingData] = []
    for make in makers:
        try:
            available += make()
        except MissingData as error:
            missing.append(error)
    if not available:
        raise missing[0]
    if rows is None:
        return available, [str(error).removeprefix("data_dir: ") for error in missing]
    fitting = [target for target in available if len(target.people[0]) == rows]
    if not fitting:
        known = dict.fromkeys(f"{len(target.people[0]):,} {target.stimuli}" for target in available)
        raise ValueError(
            f"model: these features have {rows:,} rows; the records are of {', '.join(known)}: give a row a stimulus, "
            "in their order"
        )
    return fitting, []


def default_layers(encoder: Encoder) -> tuple[str, ...]:
    """The layers worth comparing: those the model is known for, its blocks, or else its stages.

    Raises:
        ValueError: it has none of these.
    """
    from unrolled.instruments.features.extraction import layer_names

    refused: ValueError | None = None
    for patterns in (encoder.layers, *_STAGES):
        known = []
        for pattern in patterns:
            try:
                layer_names(encoder.module, pattern)
                known.append(pattern)
            except ValueError as error:
                refused = refused or error
        if known:
            return tuple(known)
    assert refused is not None
    raise refused


def untrained_twin(subject: Subject, seed: int, images: Tensor | None) -> Subject:
    """The same architecture with fresh weights, shown the same.

    A convolutional network is drawn so that it is not dead: He's weights, and the statistics of its norms from
    `images`, preprocessed.

    Raises:
        ValueError: not all of its weights can be drawn anew.
    """
    from unrolled.instruments.control import drawn_anew

    if images is None or not is_convolutional(subject.model):
        return subject.untrained(seed)
    module = drawn_anew(subject.model, seed, images)
    return replace(subject, encoder=replace(subject.encoder, module=module))


def stimuli_of(subject: Subject) -> Tensor | None:
    """All the images that it is shown, preprocessed, on its device; None of texts."""
    import torch

    from unrolled.subjects.images import batches
    from unrolled.subjects.samples import ImageSamples

    if not isinstance(subject.samples, ImageSamples):
        return None
    source, reading = subject.samples.source, subject.reading
    loader = batches(subject.model, source, image_size=reading.image_size, batch_size=reading.batch_size)
    where = next(iter(subject.model.parameters()), torch.zeros(())).device
    return torch.cat([batch.images for batch in loader]).to(where)


def is_convolutional(module: nn.Module) -> bool:
    """Whether it is more than a transformer with a stem: of convolutions, without attention."""
    from torch.nn import Conv2d

    kinds = [type(part) for part in module.modules()]
    attends = any("attention" in base.__name__.lower() for kind in kinds for base in kind.__mro__)
    return not attends and sum(issubclass(kind, Conv2d) for kind in kinds) > 3


def unknown_names(features: Mapping[str, Tensor]) -> NDArray[np.bool_]:
    """[n] which texts have a vector of zeros in every layer, as words without a vector have."""
    import torch

    zero = torch.stack([(value == 0).all(1) for value in features.values()]).all(0)
    array: NDArray[np.bool_] = zero.numpy()
    return array
