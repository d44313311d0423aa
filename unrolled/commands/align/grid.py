"""`unrolled align-grid`: every model of a file against every other."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unrolled.commands.align.dependence import dependence, noted
from unrolled.commands.align.entries import Entry, read_entries
from unrolled.commands.align.grid_report import COLUMNS, grid_report, p_value_note, pair_records, pair_rows
from unrolled.commands.align.options import CompareFlags, metrics_of
from unrolled.commands.options import check_counts, verb
from unrolled.harness import Run, default_folder
from unrolled.subjects.models import choose_device
from unrolled.subjects.options import Reading
from unrolled.terminal import say, table
from unrolled.trust import require_typed

if TYPE_CHECKING:
    import torch

    from unrolled.data.pairs import PairSource


@dataclass(frozen=True, kw_only=True)
class AlignGridOptions(CompareFlags):
    """Flags of `unrolled align-grid`."""

    grid: Path = field(kw_only=False)
    """A YAML file of models."""
    null: Literal["permutation", "moments"] = "moments"
    """`permutation` relabels samples; `moments` takes the tail of three exact moments where that is safe and relabels
    until p is resolved elsewhere; the result says which."""
    workers: int = 1
    """Processes that compare the pairs of models; needs Dask: pip install 'unrolled[many]'."""
    scheduler: str | None = None
    """Address of a running Dask scheduler, such as tcp://host:8786, to compare on its workers instead."""
    out: Path | None = None
    """Where config.yaml, report.html, report.json and features go; default: runs/align-grid-GRID."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(workers=self.workers)


@verb
def align_grid(options: AlignGridOptions) -> None:
    """How far many models agree, every one with every other, and which pairs of them more than chance.

    The file names them: `models:` followed by lines `NAME: MODEL`, or `NAME: {model: MODEL, group: vision, competence:
    0.76, layers: ["block*"], pool: cls}`; the competence is any number to set the alignment against. Of paired data
    (--data flickr8k) `side: text` feeds a model the captions; the default is the image. A MODEL may be a folder of
    `unrolled extract` or an array file.

        unrolled align-grid models.yaml --metric mutual_knn --metric cka
        unrolled align-grid models.yaml --data cifar10 --data-dir data --workers 4
    """
    from unrolled.alignment.models import model_grid
    from unrolled.instruments.features.files import Rows, read_features
    from unrolled.train.log import duration

    models = read_entries(options.grid)
    options, _ = metrics_of(options)  # before the models run: a wrong name must not cost their features
    where = choose_device(options.device)
    run = Run(options, "align-grid", options.grid.stem, "", keeps_features=True)
    paths, random, pairs = _features(run.folder, models, options, where)
    rows = Rows.of(read_features(next(iter(paths.values()))))
    units = dependence(options.groups, options.blocks, rows, pairs, quiet=options.quiet)
    notes: list[str] = []

    first: list[tuple[int, float]] = []  # tiles done when it was first said, some kept from before, and the time

    def progress(done: int, tiles: int) -> None:
        first.append((done, run.seconds))
        before, since = first[0]
        each = (run.seconds - since) / max(1, done - before)
        left = f", {duration(each * (tiles - done))} left" if before < done < tiles else ""
        say(f"compared: {done} of {tiles} tiles{left}", quiet=options.quiet)

    def prepared(done: int, of: int) -> None:
        say(f"neighbours found: {done} of {of} models", quiet=options.quiet)

    with _client(options.workers, options.scheduler) as client, noted(notes, quiet=options.quiet):
        result = model_grid(
            paths, options.metric, options={"k": options.k}, null=options.null, draws=options.draws,
            groups=units.groups, blocks=units.blocks, seed=options.seed, folder=run.folder / "tiles", client=client,
            device=str(where), on_progress=progress, on_prepared=prepared,
        )  # fmt: skip
    record = {
        "models": {name: {**entry.record(), "random": name in random} for name, entry in models.items()},
        "pairs": pair_records(result), "notes": notes,
    }  # fmt: skip
    text = f"{table(COLUMNS, pair_rows(result, random))}\np: {p_value_note(result, options.null)}"
    report = grid_report(models, result, options.null, random=random)
    run.finish(report, record, text, seeds=[options.seed])


def _features(
    folder: Path, models: Mapping[str, Entry], options: AlignGridOptions, where: torch.device
) -> tuple[dict[str, Path], list[str], PairSource | None]:
    """Where each model's features lie, computed where they are not given; which have random weights; and the pairs."""
    from unrolled.instruments.features.files import is_feature_file
    from unrolled.subjects.pairs import Paired
    from unrolled.subjects.subject import Subject, material_for

    paths = {name: Path(entry.model).expanduser() for name, entry in models.items()}
    run = {name: entry for name, entry in models.items() if not is_feature_file(entry.model)}
    if not run:
        return paths, [], None
    for name, entry in run.items():  # here and not when its turn comes, after hours of others
        _check_fed(entry, f"{options.grid}, {name}")
    side = next((entry.side for entry in run.values() if entry.side), None)
    material, _ = material_for([entry.model for entry in run.values()], options, side=side, quiet=options.quiet)
    random = []
    for i, (name, entry) in enumerate(run.items()):
        reading = Reading.of(
            options, model=entry.model, layers=tuple(options.layers if entry.layers is None else entry.layers),
            pool=entry.pool or options.pool,
            pretrained=options.pretrained if entry.pretrained is None else entry.pretrained,
            seed=options.seed + i, workers=0,
        )  # fmt: skip
        paths[name] = folder / "features" / default_folder("", name, "").name.strip("-")
        try:
            subject = Subject.of(reading, material, where, side=entry.side or "image")
        except ValueError as error:  # what a model is fed with is no flag of this verb, but a line of the file
            words = re.sub(r"\bside='(\w+)'", r"`side: \1`", f"{options.grid}, {name}: {error}")
            ours = type(error).__module__.startswith("unrolled.")
            raise (type(error)(words) if ours else ValueError(words)) from error
        subject.features(paths[name], quiet=options.quiet)
        random += [name] * subject.random
    return paths, random, material.pairs if isinstance(material, Paired) else None


def _check_fed(entry: Entry, where: str) -> None:
    """Refuse a model whose string says that it takes something else than its entry feeds it with.

    Raises:
        ValueError: naming `where` and the line that mends it.
    """
    from unrolled.subjects.language import is_language_model, kind_of
    from unrolled.subjects.subject import OF_ENCODERS

    by_string = entry.model.startswith(OF_ENCODERS) or is_language_model(entry.model)
    fed, takes = entry.side or "image", kind_of(entry.model) if by_string else None
    if takes == "text" and fed == "image":
        raise ValueError(
            f"{where}: {entry.model} takes texts; give it `side: text`, and data='flickr8k' or other pairs"
        )
    if takes == "image" and fed != "image":
        raise ValueError(f"{where}: {entry.model} takes images; give it `side: image`, not `side: {fed}`")


@contextlib.contextmanager
def _client(workers: int, scheduler: str | None) -> Iterator[Any]:
    """A Dask client of `workers` processes here, or of a running cluster; None if this process is enough."""
    if workers == 1 and scheduler is None:
        yield None
        return
    require_typed("scheduler", scheduler)
    try:
        from dask.distributed import Client, LocalCluster
    except ImportError as error:
        from unrolled.errors import MissingExtra

        raise MissingExtra("--workers and --scheduler need Dask: pip install 'unrolled[many]'") from error
    if scheduler is not None:
        with Client(scheduler, timeout="20s") as client:
            yield client
        return
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None, silence_logs=40) as cluster,
        Client(cluster) as client,
    ):
        yield client
