"""`unrolled translate`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unrolled.commands.align.sides import TwoSides, features_of, stem
from unrolled.commands.options import check_counts, verb
from unrolled.harness import OutputFlags, Run
from unrolled.subjects.models import choose_device
from unrolled.subjects.options import FeatureFlags, ModelFlags, SampleFlags
from unrolled.terminal import progress

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

    from unrolled.alignment.translation import Scores, Translation

_LEAST = 24  # 8 rows to fit each side and to score


@dataclass(frozen=True, kw_only=True)
class TranslateOptions(ModelFlags, SampleFlags, FeatureFlags, TwoSides, OutputFlags):
    """Flags of `unrolled translate`."""

    pairs: int = 0
    """Samples of which the fit knows both sides; with at least 2 they are its anchors."""
    map: Literal["orthogonal", "linear"] = "orthogonal"
    """`orthogonal` turns; `linear` is a ridge regression to the partners that the orthogonal map finds."""
    restarts: int = 10
    """Attempts from other anchors; the one whose rows match most closely is taken, without looking at pairs."""
    controls: int = 19
    """Rearrangements of B's clusters, three attempts each, which the restarts must exceed; the first that does not ends
    the test. Fewer than 19 cannot reach p = 0.05, and 0 tests nothing."""
    width: int = 64
    """Principal directions of each side that are matched."""
    images: int = 1024
    """How many images or pairs, drawn evenly from the whole split: a third is shown to A alone, a third to B alone, and
    a third only scores. More is better by far: thousands, where there are."""
    seed: int = 0
    """Of the thirds, of all that the fit draws, and of weights that are not loaded."""
    out: Path | None = None
    """Where config.yaml, report.html, report.json, features, attempts and translation.safetensors go; default:
    runs/translate-A-B."""

    def __post_init__(self) -> None:
        check_counts(_LEAST, images=self.images)
        check_counts(restarts=self.restarts)
        check_counts(2, width=self.width)
        check_counts(0, controls=self.controls, pairs=self.pairs, seed=self.seed)
        if self.pairs == 1:
            raise ValueError("--pairs 1: give at least 2, or 0 for none")


@verb
def translate(options: TranslateOptions) -> None:
    """Translate features of A into those of B by a linear map that is fitted without pairs.

    A third of the samples is shown to A alone and a third to B alone; how they are turned into each other follows from
    how each lies to its kin. The last third, whose pairs the fit never sees, scores: how often the translation of a
    sample is nearest to B's features of it, among all of that third. Beside it stand chance and the map fitted to
    pairs. Of several layers the last is taken. Attempts are kept in the folder: a run that was stopped goes on.

        unrolled translate runs/crate-seed0 runs/crate-seed1 --images 6000
        unrolled translate a.npy b.npy --map linear
        unrolled translate given:mobilenet_v1_075 given:minilm --data flickr8k --split all --images 2000 --data-dir data
        unrolled translate runs/crate runs/vit --pairs 50 --layers block03
    """
    a, b = options.a, options.b
    if a is None or b is None:
        raise ValueError("give two models, feature folders or arrays: unrolled translate A B")
    from unrolled.alignment.translation import Recipe, thirds, translate_paired
    from unrolled.alignment.translation import translate as fit_translation
    from unrolled.commands.translate_report import answer_text, translate_report
    from unrolled.data.sources import evenly
    from unrolled.instruments.features.files import Rows, check_same_samples

    where = choose_device(options.device)
    run = Run(options, "translate", stem(a), stem(b), keeps_features=True)
    sides = features_of(options, (a, b), run.folder, where)
    options = sides.options
    rows = Rows.of(sides.features[0])
    check_same_samples(rows, Rows.of(sides.features[1]), a, b)
    if rows.samples < _LEAST:
        raise ValueError(f"{a} has {rows.samples} samples: at least {_LEAST} are needed, a third for each part")
    (layer_a, x), (layer_b, y) = (_last(features) for features in sides.features)
    scored, only_a, only_b = thirds(rows.samples, options.seed)
    if options.pairs > len(only_a):
        raise ValueError(f"--pairs {options.pairs}: there are {len(only_a)} samples to take them from")
    for spec, layer, fitted_to in ((a, layer_a, x[only_a]), (b, layer_b, y[only_b])):
        if (fitted_to == fitted_to[0]).all():
            raise ValueError(f"{spec}: layer {layer} has zero variance: all rows are equal, so nothing can be matched")
    # evenly, since samples often stand in the order of their classes
    known, recipe = only_a[evenly(options.pairs, len(only_a))], Recipe(width=options.width)

    def shown(places: Iterable[int]) -> Iterable[int]:
        total = options.restarts + options.controls
        return progress(places, total=total, what="translate", quiet=options.quiet, unit="attempt")

    fitted = fit_translation(
        x[only_a], y[only_b], pairs=(x[known], y[known]) if options.pairs else None, kind=options.map,
        restarts=options.restarts, controls=options.controls, seed=options.seed, folder=run.folder / "attempts",
        recipe=recipe, progress=shown,
    )  # fmt: skip
    fit_rows = [*only_a, *only_b]
    bound = translate_paired(x[fit_rows], y[fit_rows], kind=options.map, recipe=recipe)
    scores = {"unpaired": fitted.scores(x[scored], y[scored]), "paired": bound.scores(x[scored], y[scored])}
    fitted.save(run.folder / "translation.safetensors")
    truth = [fitted.of_restart(i).scores(x[scored], y[scored]) for i in range(options.restarts)]
    record = {
        "a": a, "b": b, "layers": [layer_a, layer_b], "n": rows.samples,
        "fitted": [len(only_a), len(only_b)], "pairs": options.pairs, "map": options.map,
        "directions": [frame.axes.shape[1] for frame in (fitted.x_frame, fitted.y_frame)],
        "scores": {name: each.to_dict() for name, each in scores.items()}, **_judged(fitted, truth),
        "random": ["AB"[i] for i, subject in sides.subjects.items() if subject.random],
        "folder": str(run.folder),
    }  # fmt: skip
    report = translate_report(record, scores)
    run.finish(report, record, answer_text(record), seeds=[options.seed], options=options)


def _last(features: Mapping[str, Any]) -> tuple[str, NDArray[float64]]:
    import numpy as np
    import torch

    name, rows = list(features.items())[-1]
    return name, np.asarray(rows.numpy(force=True) if isinstance(rows, torch.Tensor) else rows, dtype=np.float64)


def _judged(fitted: Translation, truth: list[Scores]) -> dict[str, Any]:
    """What was chosen without pairs and why, and beside it what pairs say of every restart."""
    restarts = [
        {**each, "top1": scores.top1, "mean_rank": scores.mean_rank}
        for each, scores in zip(fitted.records(), truth, strict=True)
    ]
    return {
        "verdict": fitted.verdict(), "worked": fitted.worked, "p_value": fitted.p_value,
        "level": fitted.level, "controls": list(fitted.controls), "restarts": restarts,
    }  # fmt: skip
