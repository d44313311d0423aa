"""`unrolled brain`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unrolled.commands.options import check_counts, verb
from unrolled.harness import OutputFlags, Run
from unrolled.subjects.models import choose_device, origin
from unrolled.subjects.options import LayerFlags, OneModelFlags, Pool, Reading
from unrolled.terminal import say

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from unrolled.alignment import BesidePeople
    from unrolled.subjects.people import Kind, Target
    from unrolled.subjects.subject import Subject

    Features = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class BrainOptions(OneModelFlags, LayerFlags, OutputFlags):
    """Flags of `unrolled brain`."""

    model: str = field(kw_only=False)
    """A run folder, or any model of images or texts by one string; or features in a file, a row a stimulus in the order
    of the records: of the 92 photographs, the 93 colours or the 1,854 things."""
    data_dir: Path = Path("data")
    """Folder with `brain-92images` and `human-similarity`, which cannot ship: docs/howto/brain.md says where they are
    to be had. Given models are here too."""
    side: Literal["image", "text"] | None = None
    """What a model of both is shown; default: what it takes, images first."""
    layers: tuple[str, ...] | None = None  # type: ignore[assignment]
    """Patterns of layer names; `*` stays within one part of a name. Default: the model's blocks, or stages."""
    pool: Pool | None = None
    """How the tokens of a layer become one vector; default: of images means over a 4 x 4 grid of places, `grid`, as the
    models in the table were measured; of texts what is customary for the model."""
    untrained: int = 3
    """Twins with fresh weights that are measured beside the model."""
    draws: int = 200
    """Resamplings of stimuli and people for intervals, and shufflings for chance."""
    concepts: int = 400
    """Things, drawn from 1,854, on whose names a text model is compared, or of which features in a file are used."""
    batch_size: int = 32
    """Stimuli in one forward pass."""
    seed: int = 0
    """Of resamplings, shufflings, twins, the choice of things, and of weights that are not loaded."""
    out: Path | None = None
    """Where config.yaml, report.html, report.json and features go; default: runs/brain-MODEL."""

    def __post_init__(self) -> None:
        check_counts(10, draws=self.draws)
        check_counts(20, concepts=self.concepts)
        check_counts(0, untrained=self.untrained, seed=self.seed)
        check_counts(batch_size=self.batch_size, image_size=self.image_size)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Features of some stimuli: of the model, of its untrained twins; which of them it does not know, and notes."""

    features: Features
    twins: Sequence[Features] = ()
    unknown: NDArray[np.bool_] | None = None
    notes: Sequence[str] = ()


@verb
def brain(options: BrainOptions) -> None:
    """Your model beside brains and human judgement, layer by layer.

    A model of images is shown the 92 photographs of which human and monkey inferior temporal cortex (IT) was recorded,
    and patches of 93 colours; a model of texts reads the names of things and of these colours. Every layer's
    dissimilarities are compared with theirs (Spearman's correlation over all pairs, mean over people), beside the noise
    ceiling, shuffled stimuli, and the same architecture with fresh weights; the answer says where the model stands
    among those measured here. Offline: about a minute of one core for a small network.

        unrolled brain crate_nano_patch4_32.cifar10 --data-dir data
        unrolled brain runs/cifar10 --data-dir data
        unrolled brain timm:resnet18 --pretrained --data-dir data
        unrolled brain given:minilm --data-dir data --concepts 1000
        unrolled brain features_of_92_photographs.npz --data-dir data
    """
    from unrolled.alignment import beside_people
    from unrolled.commands.brain.places import place
    from unrolled.commands.brain.report import brain_report, in_words, table_of
    from unrolled.data.human import check_records
    from unrolled.instruments.features.files import is_feature_file
    from unrolled.subjects.people import targets

    run = Run(options, "brain", options.model, "", keeps_features=True)
    check_records(options.data_dir)
    shown: dict[str, Shown] = {}
    if is_feature_file(options.model):
        weights, notes = "features in a file", ["features in a file have no untrained twin"]
        everything, shown = _of_file(options)
        missing: list[str] = []
    else:
        kind, opened = _opened(options, choose_device(options.device))
        weights, notes = origin(opened.reading), []
        everything, missing = targets(kind, options.data_dir, options.concepts, options.seed)
        for target in everything:  # several may have been shown the same
            if target.reads not in shown:
                shown[target.reads] = _shown(options, opened, target, run.folder / "features")
    notes += [f"not measured: {each}" for each in missing]
    notes += dict.fromkeys(note for each in shown.values() for note in each.notes)
    for note in notes:
        say(f"note: {note}", quiet=options.quiet)
    results: dict[str, BesidePeople] = {}
    for target in everything:
        say(f"compare: {target.what}", quiet=options.quiet)
        seen = shown[target.reads]
        judged = target if seen.unknown is None else target.without(seen.unknown)
        results[target.key] = beside_people(
            seen.features, judged.people, what=target.what, stimuli=target.stimuli, untrained=seen.twins,
            draws=options.draws, seed=options.seed,
        )  # fmt: skip
    places = {key: place(key, result.score, options.model) for key, result in results.items()}
    record = {
        "model": options.model, "weights": weights, "draws": options.draws, "seed": options.seed, "notes": notes,
        "targets": [{"key": key, **result.to_dict(), "place": asdict(places[key])} for key, result in results.items()],
    }  # fmt: skip
    report = brain_report(options.model, weights, results, places, notes, draws=options.draws)
    words = in_words(options.model, weights, results, places)
    run.finish(report, record, f"{words}\n\n{table_of(results, places)}", seeds=[options.seed])


def _of_file(options: BrainOptions) -> tuple[list[Target], dict[str, Shown]]:
    """Features of all stimuli of a record; of more things than are compared some are drawn."""
    import numpy as np

    from unrolled.instruments.features.files import Rows, read_features
    from unrolled.subjects.people import targets

    features = read_features(options.model)
    rows = Rows.of(features).samples
    everything, _ = targets(None, options.data_dir, options.concepts, options.seed, rows=rows)
    if everything[0].key != "things" or rows <= options.concepts:
        return everything, {target.reads: Shown(features=features) for target in everything}
    left_out = np.ones(rows, bool)
    left_out[np.random.default_rng(options.seed).choice(rows, options.concepts, replace=False)] = False
    some = {layer: np.asarray(value)[~left_out] for layer, value in features.items()}
    return everything, {everything[0].reads: Shown(features=some, unknown=left_out)}


def _opened(options: BrainOptions, where: torch.device) -> tuple[Kind, Subject]:
    """The model, and what it takes; as yet it is shown nothing.

    Raises:
        ValueError: it takes neither images nor texts.
    """
    from unrolled.errors import CorruptFile, UnsafeFile
    from unrolled.subjects.language import kind_of
    from unrolled.subjects.samples import NOTHING
    from unrolled.subjects.subject import Subject

    known = options.side or kind_of(options.model)
    kinds: list[Kind] = ["image", "text"] if known is None else [known]
    refused: ValueError | None = None
    for kind in kinds:
        reading = Reading.of(options, layers=("block*",), pool="grid" if kind == "image" else "mean")
        try:
            return kind, Subject.shown(reading, NOTHING, kind, where)
        except (CorruptFile, UnsafeFile):
            raise
        except ValueError as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _shown(options: BrainOptions, opened: Subject, target: Target, folder: Path) -> Shown:
    """Features of the model and of its twins; what it has no vector for is left out."""
    from unrolled.subjects.people import default_layers, stimuli_of, unknown_names, untrained_twin

    encoder = opened.encoder
    pool = options.pool or ("grid" if encoder.kind == "image" else encoder.pooling)
    reading = replace(opened.reading, layers=options.layers or default_layers(encoder), pool=pool)
    subject = replace(opened, samples=target.samples(), reading=reading)
    name, notes = target.reads.replace(" ", "-"), []
    features, _ = subject.features(folder / name, quiet=options.quiet)
    twins: list[Features] = []
    for number in range(options.untrained if origin(reading) != "random" else 0):
        try:
            twin = untrained_twin(subject, options.seed + 1 + number, stimuli_of(subject))
        except ValueError as error:
            notes.append(f"no untrained twin: {error}")
            break
        twins.append(twin.features(folder / f"{name}-untrained{number + 1}", quiet=options.quiet)[0])
    unknown = unknown_names(features) if target.names is not None else None
    if unknown is None or not unknown.any():
        return Shown(features=features, twins=twins, notes=notes)
    notes.append(f"{unknown.sum()} of {len(unknown)} {target.reads} have no vector and were left out")
    parts = [{layer: value[~unknown] for layer, value in each.items()} for each in (features, *twins)]
    return Shown(features=parts[0], twins=parts[1:], unknown=unknown, notes=notes)
