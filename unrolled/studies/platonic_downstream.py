"""Does alignment go with downstream performance? Over a zoo of vision models, with stand-ins for language benchmarks.

Claim (arXiv 2405.07987, figure 4): language models that align better with vision do better on Hellaswag and GSM8K.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from unrolled.studies.base import Budget, Expectation, Study
from unrolled.studies.platonic_zoo import GPU, QUICK, ZooConfig, settings_of, zoo

if TYPE_CHECKING:
    from unrolled.report import Report

_SOURCE = "arXiv 2405.07987, figure 4: alignment of language models with DINOv2"
LANGUAGE = Expectation(
    statement="Vision models nearer to a language model's space of class names do better downstream (rank correlation "
    "of alignment to MiniLM with 100-way transfer, lower end of its 95 % interval)",
    source=f"{_SOURCE} against Hellaswag; other modality, other task",
    published="linear relation; shown, no number",
    low=0.0,
)
VISION = Expectation(
    statement="Vision models nearer to the best models of other kinds do better downstream (rank correlation with "
    "100-way transfer, lower end)",
    source=f"{_SOURCE}; within vision instead of across modalities",
    published="linear relation; shown, no number",
    low=0.0,
)
TASKS = {
    "ten-way probe": "ridge classifier on held-out images of the training data's classes",
    "hundred-way transfer": "ridge classifier on 100 classes of Tiny-ImageNet, never seen: in place of Hellaswag",
    "five-shot transfer": "nearest of 100 class means of five images each: in place of GSM8K, the hardest here",
}
ALIGNED = {
    "best of other kinds": "mutual k-NN with the three sound members of other kinds that transfer best",
    "ImageNet networks": "mutual k-NN with four networks of ImageNet, trained by others",
    "MiniLM": "mutual k-NN of class means with MiniLM's vectors of the class names",
    "GloVe": "mutual k-NN of class means with GloVe's vectors of the class names",
}


@dataclass(kw_only=True)
class Config(ZooConfig):
    """Budgets change the zoo's training."""

    budgets: ClassVar[dict[Budget, dict[str, Any]]] = {"quick": QUICK, "cpu": {}, "gpu": GPU}

    k: int = 10
    """Neighbours, of images and of classes."""
    shots: int = 5
    """Images a class of the few-shot task."""
    episodes: int = 20
    """Draws of these images."""
    out: Path = Path("runs/platonic-downstream")
    """Where the report and the kept scores go."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.k, self.shots, self.episodes) < 1:
            raise ValueError("k, shots and episodes must be at least 1")


def run(config: Config, *, on_progress: Callable[[str], None] | None = None) -> Report:
    """Train the zoo, measure tasks and alignment; the report is also written to `config.out`.

    Raises:
        MissingData: CIFAR-10 is not in `config.data_dir`.
    """
    from unrolled.studies.remembered import remembered

    began = time.perf_counter()
    records = zoo(config, on_progress=on_progress)
    kept = {
        **settings_of(config), "samples": config.samples, "members": config.members, "k": config.k,
        "shots": config.shots, "episodes": config.episodes,
    }  # fmt: skip
    tasks = remembered(config.out / "cells", "tasks", kept, lambda: measured(config, records))
    if on_progress is not None:
        on_progress(f"downstream tasks of {len(records)} models")
    aligned = remembered(config.out / "cells", "aligned", kept, lambda: alignments(config, records))
    if on_progress is not None:
        on_progress(f"alignment of {len(records)} models")
    report = _report(config, records, {**aligned, **tasks["language"]}, tasks["tasks"], began)
    report.write(config.out)
    return report


def measured(config: Config, records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Accuracies on `TASKS` and alignment of class means with words, one value a member or None.

    Tiny-ImageNet's images are divided: words meet the class means of one half, tasks are done on the other.
    """
    import torch

    from unrolled.alignment.registry import MutualKNN
    from unrolled.studies.platonic_zoo import by_name, last_layer, other_pictures, probe_accuracy, trained
    from unrolled.studies.platonic_zoo_given import word_vectors
    from unrolled.studies.platonic_zoo_stats import pair_scores

    other = other_pictures(config)
    tasks: dict[str, list[float] | None] = {
        "ten-way probe": [record["probe"] for record in records.values()],
        "hundred-way transfer": None,
        "five-shot transfer": None,
    }
    if other is None:
        return {"tasks": tasks, "language": {"MiniLM": None, "GloVe": None}}
    half = len(other.labels) // 2
    classes = len(other.classes)
    fit = half + round(0.75 * (len(other.labels) - half))
    transfer, few, means = [], [], []
    for name in records:
        seen = last_layer(trained(config, by_name(config, name)), other.images, config.device)
        labels = other.labels
        transfer.append(probe_accuracy((seen[half:fit], labels[half:fit]), (seen[fit:], labels[fit:]), classes))
        few.append(few_shot(seen[half:], labels[half:], classes, shots=config.shots, episodes=config.episodes))
        means.append({"class means": class_means(seen[:half], labels[:half], classes)})
    tasks |= {"hundred-way transfer": transfer, "five-shot transfer": few}
    words = word_vectors(config, [name.split(",")[0].lower() for name in other.classes])
    language: dict[str, list[float] | None] = {"MiniLM": None, "GloVe": None}
    for label, name in (("MiniLM", "minilm"), ("GloVe", "glove")):
        # a name that GloVe does not know has no vector, and classes are compared only where both sides are defined
        known = torch.nonzero(words[name].norm(dim=1) > 0)[:, 0] if name in words else torch.zeros(0).long()
        if len(known) > 2 * config.k:
            sides = [{"class means": found["class means"][known]} for found in means]
            against = [{"words": words[name][known]}]
            pairs = pair_scores(sides, MutualKNN(k=config.k), against=against, draws=199)
            language[label] = pairs.gain[:, 0].tolist()
    return {"tasks": tasks, "language": language}


def class_means(seen: Any, labels: Any, classes: int) -> Any:
    """[classes, d] mean features of each class, from features [n, d] and labels [n]."""
    import torch

    sums = torch.zeros(classes, seen.shape[1], dtype=seen.dtype).index_add_(0, labels, seen)
    return sums / torch.bincount(labels, minlength=classes).clamp_min(1)[:, None]


def few_shot(seen: Any, labels: Any, classes: int, *, shots: int, episodes: int) -> float:
    """Accuracy of the nearest class mean of `shots` images a class, on the others; mean over draws of the images."""
    import torch

    centred = seen - seen.mean(0)
    unit = torch.nn.functional.normalize(centred, dim=1)
    total = 0.0
    for episode in range(episodes):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(episode))
        # the rank of each image within its class, in this order
        one_hot = torch.nn.functional.one_hot(labels[order], classes)
        rank = (one_hot.cumsum(0) * one_hot).sum(1)
        support, query = order[rank <= shots], order[rank > shots]
        means = torch.nn.functional.normalize(class_means(unit[support], labels[support], classes), dim=1)
        total += float(((unit[query] @ means.mT).argmax(1) == labels[query]).double().mean())
    return total / episodes


def alignments(config: Config, records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Alignment above chance of each member with vision models; None where these are missing."""
    import numpy as np

    from unrolled.alignment.registry import MutualKNN
    from unrolled.studies.platonic_zoo import by_name, features
    from unrolled.studies.platonic_zoo_given import IMAGENET, given_features
    from unrolled.studies.platonic_zoo_stats import competence_of, pair_scores, sound_of

    rows = list(records.values())
    sets = [dict(features(config, by_name(config, name))) for name in records]
    metric = MutualKNN(k=min(config.k, config.samples // 4))
    gain = pair_scores(sets, metric, draws=9).gain
    competence, sound = competence_of(rows), sound_of(rows)
    kinds = np.array([row["member"]["kind"] for row in rows])
    near = []
    for place in range(len(rows)):
        others = np.flatnonzero(sound & (kinds != kinds[place]))
        best = others[np.argsort(competence[others])[::-1][:3]]
        near.append(float(gain[place, best].mean()))
    given = given_features(config)
    trained_by_others = None
    if given:
        against = [dict(given[name]) for name in IMAGENET]
        trained_by_others = pair_scores(sets, metric, against=against, draws=9).gain.mean(1).tolist()
    return {"best of other kinds": near, "ImageNet networks": trained_by_others}


def _report(
    config: Config, records: dict[str, dict[str, Any]], aligned: dict[str, Any], tasks: dict[str, Any], began: float
) -> Report:
    from unrolled.report import Fact, Provenance, Report
    from unrolled.studies.platonic_zoo_stats import interval

    rows = list(records.values())
    table = _correlations(rows, aligned, tasks)
    main = "hundred-way transfer" if tasks["hundred-way transfer"] is not None else "ten-way probe"
    found = {(e["aligned"], e["task"], e["members"]): e for e in table}
    report = Report(
        "Does alignment go with downstream performance?",
        question="Do vision models that agree more with other models, or with language, solve more tasks?",
    )
    for expectation, words in ((LANGUAGE, "MiniLM"), (VISION, "best of other kinds")):
        entry = found.get((words, "hundred-way transfer", "all"))
        if entry is None:
            report.claims.append(_not_run(expectation))
        else:
            report.claims.append(expectation.judge(entry["low"], interval(entry)))
    near = found["best of other kinds", main, "all"]
    language = found.get(("MiniLM", main, "all"))
    said = "not run" if language is None else interval(language)
    report.headline(
        f"Over {len(rows)} models, the rank correlation of {main} with alignment to the best models of other kinds is "
        f"{interval(near)}, with alignment to MiniLM's class names {said}.",
        [
            Fact(label="Other kinds of vision model", value=interval(near), detail=f"Spearman, {main}"),
            Fact(label="Language (class names)", value=said, detail="MiniLM, Spearman"),
        ],
    )
    _sections(report, config, rows, aligned, tasks, table, main)
    report.results = {"members": records, "aligned": aligned, "tasks": tasks, "correlations": table}
    seeds = sorted({row["member"]["seed"] for row in rows})
    report.provenance = Provenance.collect(config=config, seeds=seeds, duration=time.perf_counter() - began)
    return report


def _not_run(expectation: Expectation) -> Any:
    from unrolled.report import Claim

    return Claim(
        statement=expectation.statement, source=expectation.source, published=expectation.published, measured="not run"
    )


def _correlations(rows: list[dict[str, Any]], aligned: dict[str, Any], tasks: dict[str, Any]) -> list[dict[str, Any]]:
    """Rank correlations of every alignment with every task, over all members, sound ones, and within kinds."""
    import numpy as np

    from unrolled.studies.platonic_members import KINDS
    from unrolled.studies.platonic_zoo_stats import over_models, sound_of, spearman

    sound = sound_of(rows)
    kinds = np.array([row["member"]["kind"] for row in rows])
    selections = {"all": np.ones(len(rows), dtype=bool), "true labels, all classes": sound}
    selections |= {f"{kind} only": kinds == kind for kind in KINDS}
    table = []
    for words, values in aligned.items():
        for task, scores in tasks.items():
            if values is None or scores is None:
                continue
            for members, keep in selections.items():
                x, y = np.asarray(values)[keep], np.asarray(scores)[keep]

                def rho(drawn: Any, x: Any = x, y: Any = y) -> float:
                    return spearman(x[drawn], y[drawn])

                low, high = over_models(rho, len(x))
                entry = {"aligned": words, "task": task, "members": members, "count": len(x)}
                table.append({**entry, "rho": spearman(x, y), "low": low, "high": high})
    return table


def _sections(
    report: Report, config: Config, rows: list[dict[str, Any]], aligned: dict[str, Any], tasks: dict[str, Any],
    table: list[dict[str, Any]], main: str,
) -> None:  # fmt: skip
    from unrolled.report import Scatter
    from unrolled.studies.platonic_members import WORDS, short_name
    from unrolled.studies.platonic_zoo_stats import interval, number, sound_of

    groups = [
        WORDS[row["member"]["kind"]] + ("" if good else ", spoiled")
        for row, good in zip(rows, sound_of(rows), strict=True)
    ]
    names = [short_name(row["member"]) for row in rows]
    panels = [
        Scatter(
            title=f"{main} in %", x_label=f"alignment: {words}", x=values, y=[100 * score for score in tasks[main]],
            names=names, groups=groups,
        )
        for words, values in aligned.items()
        if values is not None
    ]  # fmt: skip
    report.section(
        "Alignment and a task",
        "The paper scores language models on Hellaswag and GSM8K by their alignment with a vision model. There is no "
        "large language model here, so the roles are turned: vision models are scored on visual tasks by their "
        "alignment with other vision models and with words. The tasks are stand-ins, and say nothing about those "
        "benchmarks.",
    ).figure(
        panels,
        name="tasks",
        caption="One point a model. Alignment is above chance, as a share of what is possible. Spoiled members are "
        "untrained, or had shuffled labels or half of the classes.",
    )
    section = report.section("Every correlation").table(
        ["alignment with", "task", "members", "number", "rank correlation"],
        [[e["aligned"], e["task"], e["members"], e["count"], interval(e)] for e in table]
        + [
            [words, task, "all", 0, "not run"]
            for words, values in aligned.items()
            for task, scores in tasks.items()
            if values is None or scores is None
        ],
        caption="Spearman with a 95 % bootstrap interval over models. Members share architectures, so they are fewer "
        "independent cases than their number; within one kind the architecture cannot be the reason.",
    )
    section.table(["alignment with", "which is"], [[name, text] for name, text in ALIGNED.items()])
    section.table(["task", "which is"], [[name, text] for name, text in TASKS.items()])
    report.section("Every model").table(
        ["model", *aligned, *(f"{task} %" for task in tasks)],
        [
            [
                names[i],
                *(number(None if values is None else values[i]) for values in aligned.values()),
                *("not run" if scores is None else f"{100 * scores[i]:.1f}" for scores in tasks.values()),
            ]
            for i in range(len(rows))
        ],
        caption=f"Five-shot: mean of {config.episodes} draws of {config.shots} images a class. By chance 10, 1 and "
        "1 %. Untrained members are the control: what they reach, pixels and architecture explain.",
    )


STUDY = Study(
    name="platonic-downstream",
    title="Alignment against downstream performance",
    citation="M. Huh, B. Cheung, T. Wang, P. Isola, The Platonic Representation Hypothesis, arXiv 2405.07987",
    config=Config,
    run=run,
    expectations=(LANGUAGE, VISION),
)
