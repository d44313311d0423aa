"""What `crate-transfer` computes: fine-tunings and probes of one network on one target, each kept as a cell."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from unrolled.studies.base import data_missing
from unrolled.studies.cells import remembered, train_kept, warmup_cosine
from unrolled.studies.crate_members import MASKED, Member, accuracy, settings_of, trained
from unrolled.studies.platonic_zoo import Pictures, as_input, augmented, pictures, stages
from unrolled.studies.processes import finished

if TYPE_CHECKING:
    from unrolled.studies.crate_transfer import Config

BATCH = 128
HELD_OUT = 0.2
_WEIGHT_DECAY = 0.05


class Job(NamedTuple):
    """One cell: `what` is done with which member on which target.

    Attributes:
        what: `finetune`, `probe`, or `pixels`, the probe of small images themselves.
        kind, trained, seed: the member; untrained is from scratch.
        target: data set.
        few: whether only `config.few` labels of a class may be used; a probe does both.
        rate: peak learning rate; 0 for probes.
        steps: of fine-tuning; 0 means `config.steps`.
    """

    what: Literal["finetune", "probe", "pixels"]
    kind: str
    trained: bool
    seed: int
    target: str
    few: bool = False
    rate: float = 0.0
    steps: int = 0

    @property
    def name(self) -> str:
        """Of the cell's file."""
        state = "pretrained" if self.trained else "scratch"
        parts = [self.what, self.target, self.kind, state, f"seed{self.seed}"]
        if self.what == "finetune":
            parts += ["few" if self.few else "all", f"rate{self.rate:g}"]
            parts += [f"steps{self.steps}"] if self.steps else []
        return "-".join(parts)


def untrained_kind(kind: str) -> str:
    """The kind whose untrained network stands beside `kind`; what an encoder is shown changes no weight."""
    return "mae" if kind == "mae-visible" else kind


def available(config: Config) -> list[str]:
    """The targets whose images are there.

    Raises:
        MissingData: none is, or the source is not; says which folder and flag.
    """
    from unrolled.errors import MissingData

    pictures(config.source, "test", config.data_dir)
    found, said = [], []
    for target in config.targets:
        try:
            target_pictures(target, "test", folder_of(config, target))
            found.append(target)
        except MissingData as error:
            flag = "--set fashion-dir=DIR" if target == "fashion_mnist" else "--data-dir DIR"
            said.append(str(data_missing(target, error, flag=flag)))
    if not found:
        raise MissingData("; ".join(said))
    return found


def folder_of(config: Config, target: str) -> Path:
    """Where a target's images are."""
    return config.fashion_dir if target == "fashion_mnist" and config.fashion_dir else config.data_dir


@cache
def target_pictures(target: str, split: Literal["train", "test"], folder: Path) -> Pictures:
    """A split of a target as members take it: grey images in three channels, 28 pixels framed to 32."""
    found = pictures("digits" if target == "digits-turned" else target, split, folder)
    images = found.images
    if target == "digits-turned":
        images = torch.rot90(images, 1, (2, 3))
    elif images.shape[1] == 1:
        edge = (32 - images.shape[2]) // 2
        images = nn.functional.pad(images, (edge,) * 4).expand(-1, 3, -1, -1)
    return Pictures(images=images, labels=found.labels, classes=found.classes)


def jobs_of(config: Config, members: Sequence[Member], targets: Sequence[str]) -> list[Job]:
    """Every cell once: pretrained members, the untrained networks beside them, and the checks of rate and length."""
    jobs: dict[Job, None] = {}
    for target in targets:
        seeds = config.seeds if target == config.targets[0] else config.seeds[: config.seeds_others]
        for seed in seeds:
            jobs[Job("pixels", "pixels", False, seed, target)] = None
        for member in (member for member in members if member.seed in seeds):
            for kind, state in ((member.kind, True), (untrained_kind(member.kind), False)):
                jobs[Job("probe", kind, state, member.seed, target)] = None
                for few in (False, True):
                    jobs[Job("finetune", kind, state, member.seed, target, few, config.rate)] = None
    seed = config.seeds[0]
    there = {member.kind for member in members if member.seed == seed}
    for rate in config.rates:
        for kind, state in (("crate", True), ("crate", False), ("mae", True)):
            if kind in there:
                jobs[Job("finetune", kind, state, seed, targets[0], False, rate)] = None
    for target in targets:
        for kind in config.longer_kinds:
            for state in (True, False):
                if kind in there:
                    name = kind if state else untrained_kind(kind)
                    jobs[Job("finetune", name, state, seed, target, False, config.rate, config.longer)] = None
    return list(jobs)


def compute_all(
    config: Config, jobs: Sequence[Job], *, on_progress: Callable[[str], None] | None = None
) -> list[dict[str, Any]]:
    """Every job's result with the job's own fields, in order; `config.workers` at a time."""
    found: dict[Job, dict[str, Any]] = {}
    for (_, job), result in finished(cell, [(config, job) for job in jobs], workers=config.workers):
        found[job] = result
        if on_progress is not None:
            on_progress(f"{len(found)} of {len(jobs)}: {job.name}: {100 * _score(result):.1f} %")
    return [{**job._asdict(), **found[job]} for job in jobs]


def cell(config: Config, job: Job) -> dict[str, Any]:
    """One job's result, computed unless kept."""
    settings: dict[str, Any] = {**job._asdict(), "test_images": config.test_images}
    if job.what != "pixels":
        settings["member"] = settings_of(config, member_of(config, job))
    if job.what == "finetune":
        settings |= {"steps": job.steps or config.steps, "labels": config.few if job.few else 0}
        compute: Callable[[], dict[str, Any]] = lambda: finetune(config, job, settings)  # noqa: E731
    else:
        settings |= {"probe_images": config.probe_images, "labels": config.few}
        compute = lambda: probe(config, job)  # noqa: E731
    return remembered(config.out / "cells", job.name, settings, compute)


def member_of(config: Config, job: Job) -> Member:
    """The member a job starts from."""
    return Member(kind=job.kind, data=config.source, seed=job.seed, trained=job.trained)


def network(config: Config, job: Job, classes: int) -> nn.Module:
    """The job's member with a new classifier, which follows from the seed alone.

    It reads the class token, as in pretraining; of masked autoencoders, whose class token was asked nothing, the mean
    of all tokens.
    """
    model: Any = trained(config, member_of(config, job))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7919 + job.seed)
        if job.kind in MASKED:
            model = model.classifier(classes, pool="mean")
        else:
            model.reset_classifier(classes)
    return model.to(config.device)  # type: ignore[no-any-return]


def few_rows(labels: Tensor, count: int) -> Tensor:
    """Indices of the first `count` samples of every class, ascending."""
    rows = [(labels == label).nonzero()[:count, 0] for label in labels.unique()]
    return torch.cat(rows).sort().values


def finetune(config: Config, job: Job, settings: dict[str, Any]) -> dict[str, Any]:
    """Train the whole network on the target; accuracy on its test images after the last step.

    Returns:
        `accuracy`, `chance` (always naming the commonest training class), `parameters`, `images` seen, `labels` used,
        `curve` (training loss, mean since the point before) and `seconds`.
    """
    began = time.perf_counter()
    folder = folder_of(config, job.target)
    test = first(target_pictures(job.target, "test", folder), config.test_images)
    train = target_pictures(job.target, "train", folder)
    allowed = few_rows(train.labels, config.few) if job.few else torch.arange(len(train.labels))
    model = network(config, job, len(train.classes)).train()
    steps: int = settings["steps"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=job.rate, weight_decay=_WEIGHT_DECAY)
    log = {"loss": 0.0, "steps": 0}

    def loss_at(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(2_000_003 * (job.seed + 1) + step)
        rows = allowed[torch.randint(len(allowed), (BATCH,), generator=generator)]
        images = train.images[rows]
        if job.target != "digits-turned":
            images = augmented(images, generator)
        loss = nn.functional.cross_entropy(
            model(as_input(images).to(config.device)), train.labels[rows].to(config.device)
        )
        log["loss"] += float(loss.detach())
        log["steps"] += 1
        return loss

    def look(step: int) -> dict[str, float]:
        mean = log["loss"] / max(1, log["steps"])
        log.update(loss=0.0, steps=0)
        return {"loss": mean}

    every = max(1, steps // 10)
    curve = train_kept(
        model,
        optimizer,
        loss_at,
        steps=steps,
        settings=settings,
        keep=config.out / "models" / f"{job.name}.pt",
        rate=warmup_cosine(job.rate, warmup=max(1, steps // 10), steps=steps),
        clip_norm=1.0,
        look=look,
        look_at=range(every, steps + 1, every),
        every=every * -(-40 // every),  # the loss since the last look is not kept, so saves coincide with looks
    )
    return {
        "accuracy": accuracy(model.eval(), test),
        "chance": chance(train.labels, test.labels),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "images": steps * BATCH,
        "labels": len(allowed),
        "curve": curve,
        "seconds": time.perf_counter() - began,
    }


def first(found: Pictures, count: int) -> Pictures:
    """The first `count` images."""
    return Pictures(images=found.images[:count], labels=found.labels[:count], classes=found.classes)


def chance(labels: Tensor, truth: Tensor) -> float:
    """Accuracy of always naming the commonest class of `labels`."""
    return float((truth == labels.bincount().argmax()).double().mean())


def features(model: nn.Module, images: Tensor, device: str = "cpu") -> dict[str, Tensor]:
    """Frozen features `[n, d]` of every block's output, by name: `1 class` the class token, `1 mean` the patches' mean.

    Masked autoencoders see the whole image.
    """
    rows: dict[str, list[Tensor]] = {}
    skip = int(getattr(model, "num_prefix_tokens", 1))
    embed, *blocks = stages(model.eval())[:-1]
    with torch.no_grad():
        for part in images.split(500):
            tokens = embed(as_input(part).to(device))
            for depth, block in enumerate(blocks, 1):
                tokens = block(tokens)
                rows.setdefault(f"{depth} class", []).append(tokens[:, 0].cpu())
                rows.setdefault(f"{depth} mean", []).append(tokens[:, skip:].mean(1).cpu())
    return {name: torch.cat(parts) for name, parts in rows.items()}


def pixels(images: Tensor) -> dict[str, Tensor]:
    """Images at half their side, as features."""
    return {"pixels": nn.functional.avg_pool2d(as_input(images), 2).flatten(1)}


def probe(config: Config, job: Job) -> dict[str, Any]:
    """Ridge and 20-nearest-neighbour classifiers on frozen features, with all labels of the probe images and with few.

    Layer, pooling and penalty are chosen on a fifth of the training images, class by class; test images only score.

    Returns:
        `ridge` and `knn`, each `{"all": ..., "few": ...}` of `accuracy`, `held_out`, `site` (layer and pooling chosen)
        and `sites` (test accuracy at each); `chance`, `labels` and `seconds`.
    """
    from unrolled.data.sources import stratified_split
    from unrolled.instruments.frozen import neighbours, ridge

    began = time.perf_counter()
    folder = folder_of(config, job.target)
    train = first(target_pictures(job.target, "train", folder), config.probe_images)
    test = first(target_pictures(job.target, "test", folder), config.test_images)
    if job.what == "pixels":
        x, queries = pixels(train.images), pixels(test.images)
    else:
        model = trained(config, member_of(config, job))
        x, queries = (features(model, part.images, config.device) for part in (train, test))
    found: dict[str, Any] = {"chance": chance(train.labels, test.labels), "labels": {}}
    for amount in ("all", "few"):
        rows = few_rows(train.labels, config.few) if amount == "few" else torch.arange(len(train.labels))
        labels = train.labels[rows]
        held = torch.from_numpy(stratified_split(labels.numpy(), len(labels), HELD_OUT, job.seed)[1])
        found["labels"][amount] = len(labels)
        for method, classifier in (("ridge", ridge), ("knn", neighbours)):
            tried = {site: classifier(x[site][rows], labels, held, queries[site]) for site in x}
            scores = {s: float((said.predicted == test.labels).double().mean()) for s, said in tried.items()}
            site = max(tried, key=lambda s: tried[s].held_out)
            found.setdefault(method, {})[amount] = {
                "accuracy": scores[site],
                "held_out": tried[site].held_out,
                "site": site,
                "sites": scores,
            }
    return {**found, "seconds": time.perf_counter() - began}


def _score(result: dict[str, Any]) -> float:
    score: float = result["accuracy"] if "accuracy" in result else result["ridge"]["all"]["accuracy"]
    return score
