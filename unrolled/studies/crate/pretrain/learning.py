"""Trainings of `crate-pretrain`: without labels at rates that are tried, at the best of them, and fine-tuning.

A length is a number of operations, in units of 10^12: of the forward pass as torch counts it in training, and twice as
many for the backward one. An objective that works more on an image sees fewer images. Every training saves itself ten
times, and goes on from there.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.crate.pretrain.networks import Data, Fresh, autoencoder, classifier, images
from unrolled.studies.crate.pretrain.objectives import Learner, Objective, learner, passes
from unrolled.studies.crate.transfer.cells import few_rows, frozen_features
from unrolled.studies.networks import BATCH, accuracy, reconstruction
from unrolled.studies.pictures import Pictures, as_input, augmented
from unrolled.studies.training import Checkpoint, Log, MeanLoss, train_resumable, warmup_cosine

UNIT = 1e12
WEIGHT_DECAY = 0.05
_WARM_UP = 16  # a sixteenth of the steps
_SMOOTHING = 0.1
_FITTED, _HELD = 4000, 4000  # images that a pretraining is scored with


def train(
    model: nn.Module, loss_at: Callable[[int], Tensor], *, rate: float, steps: int, keep: Checkpoint | None
) -> Log:
    """Train `model` in place by Muon, as `crate-minutes` does; the mean loss since the look before, at ten looks."""
    from unrolled.train import TrainConfig
    from unrolled.train.optim import build_optimizer

    often, mean = max(1, steps // 10), MeanLoss(loss_at)
    settings = TrainConfig(optimizer="muon", lr=rate, weight_decay=WEIGHT_DECAY)
    return train_resumable(
        model.train(),
        build_optimizer(model, settings),
        mean.at,
        steps=steps,
        keep=keep,
        rate=warmup_cosine(rate, warmup=max(1, steps // _WARM_UP), steps=steps),
        clip_norm=1.0,
        look=mean.look,
        look_at=range(often, steps + 1, often),
        every=often,
    )


def drawn(count: int, seed: int, step: int) -> Tensor:
    """Which of `count` images make the batch of a step."""
    generator = torch.Generator().manual_seed(2_000_003 * (seed + 1) + step)
    return torch.randint(count, (BATCH,), generator=generator)


@dataclass(frozen=True, kw_only=True)
class Learning(Cell, ABC):
    """A network that learns without labels.

    Attributes:
        objective: what it is taught.
        form: of `FORMS`; the objectives without masks teach its encoder.
        seed: what its weights and batches start from.
        operations: of the training, in 10^12.
    """

    objective: Objective
    form: str
    data: Data
    seed: int
    operations: float

    def require(self, context: Context) -> None:
        """The images."""
        images(self.data, "test", context.data_dir)

    @property
    def masked(self) -> bool:
        """Whether it is an autoencoder, with a decoder."""
        return self.objective in ("mae", "mae-pixels")

    def fresh(self, context: Context) -> Learner:
        """The untrained network and what it is taught."""
        network: Any = autoencoder(self.form, self.data, self.seed, normalised=self.objective != "mae-pixels")
        if not self.masked:
            network = classifier(network, self.seed, 0)
        return learner(self.objective, network, self.seed).to(context.device)

    def taught(self, context: Context, rate: float) -> tuple[Learner, Log, int]:
        """The learner after its training, from the store if it was trained before; the curve, and the images seen."""
        model = self.fresh(context)
        steps = max(1, round(self.operations * UNIT / (BATCH * model.operations)))

        def loss_at(step: int) -> Tensor:
            shown = images(self.data, "train", context.data_dir)
            rows = drawn(len(shown.labels), self.seed, step)
            return model.loss(shown.images[rows], rows, self.seed, step)

        curve = train(model, loss_at, rate=rate, steps=steps, keep=self.checkpoint(context))
        return model.eval(), curve, steps * BATCH  # type: ignore[return-value]

    def scores(self, network: nn.Module, context: Context) -> Result:
        """On held-out images: `loss` of an autoencoder, None of others, and `probe`, accuracy of a ridge classifier."""
        held = images(self.data, "held out", context.data_dir)
        loss = reconstruction(network, held) if self.masked else None
        return {"loss": loss, "probe": probed(network, images(self.data, "train", context.data_dir), held)}


@dataclass(frozen=True, kw_only=True)
class Trial(Learning):
    """At one rate."""

    rate: float

    def compute(self, context: Context) -> Result:
        """As `scores` on held-out images, and `images` seen; scores of a training that diverged are None."""
        model, curve, seen = self.taught(context, self.rate)
        sound = math.isfinite(curve[-1]["loss"]) and all(p.isfinite().all() for p in model.parameters())
        scores = self.scores(model.network, context) if sound else {"loss": None, "probe": None}
        return {**scores, "images": seen}

    def load(self, context: Context) -> nn.Module:
        """The network, in eval mode."""
        return self.taught(context, self.rate)[0].network  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class Learnt(Learning):
    """At the best of the rates that were tried: of an autoencoder by its loss, of other objectives by the probe.

    Attributes:
        rates, trial: rates of its trials and their operations; all are of seed 0.
    """

    rates: tuple[float, ...]
    trial: float

    @property
    def needs(self) -> Sequence[Trial]:
        """The trials."""
        of = {name: getattr(self, name) for name in ("objective", "form", "data")}
        return [Trial(**of, seed=0, operations=self.trial, rate=rate) for rate in self.rates]

    def rate(self, context: Context) -> float:
        """The best rate.

        Raises:
            ValueError: all trials diverged.
        """
        name, sign = ("loss", -1) if self.masked else ("probe", 1)
        scores = {trial.rate: context.result(trial)[name] for trial in self.needs}
        sound = {rate: sign * score for rate, score in scores.items() if score is not None}
        if not sound:
            raise ValueError(f"rates={self.rates}: {self.objective} of {self.form} diverged at each; give lower ones")
        return max(sound, key=sound.__getitem__)

    def load(self, context: Context) -> nn.Module:
        """The network, in eval mode; of as many operations as the trials that of the best one, with seed 0."""
        return self._taught(context)[0].network  # type: ignore[no-any-return]

    def _taught(self, context: Context) -> tuple[Learner, Log, int]:
        rate = self.rate(context)
        if self.seed == 0 and self.operations == self.trial:
            return next(trial for trial in self.needs if trial.rate == rate).taught(context, rate)
        return self.taught(context, rate)

    def compute(self, context: Context) -> Result:
        """`rate`, `images` seen, `parameters` that train, `flops` of a training image, the training `curve`, and
        as `scores`."""
        model, curve, seen = self._taught(context)
        return {
            "rate": self.rate(context),
            "images": seen,
            "parameters": sum(p.numel() for p in model.network.parameters() if p.requires_grad),
            "flops": model.operations,
            "curve": curve,
            **self.scores(model.network, context),
        }


Network = Learnt | Fresh


@dataclass(frozen=True, kw_only=True)
class Tuning(Cell, ABC):
    """A whole network trained with labels, under a new classifier; of an autoencoder the encoder.

    Attributes:
        network: what it starts from.
        share: of the training images that have labels.
        tuning: operations, in 10^12.
    """

    network: Network
    share: float
    tuning: float

    def require(self, context: Context) -> None:
        """The images."""
        images(self.network.data, "test", context.data_dir)

    @property
    @abstractmethod
    def seed(self) -> int:
        """Of the classifier and the batches."""

    def tuned(self, context: Context, rate: float) -> tuple[nn.Module, int, int]:
        """The classifier, the images it saw, and how many different ones."""
        shown = images(self.network.data, "train", context.data_dir)
        classes = len(shown.classes)
        allowed = few_rows(shown.labels, max(1, round(self.share * len(shown.labels) / classes)))
        model = classifier(self.network.load(context), self.seed, classes).to(context.device)
        steps = max(1, round(self.tuning * UNIT / (BATCH * passes(model))))

        def loss_at(step: int) -> Tensor:
            rows = allowed[drawn(len(allowed), self.seed, step)]
            pixels = shown.images[rows]
            if self.network.data != "digits":
                pixels = augmented(pixels, torch.Generator().manual_seed(3_000_017 * (self.seed + 1) + step))
            logits = model(as_input(pixels).to(context.device))
            wanted = shown.labels[rows].to(context.device)
            return nn.functional.cross_entropy(logits, wanted, label_smoothing=_SMOOTHING)

        train(model, loss_at, rate=rate, steps=steps, keep=self.checkpoint(context))
        return model.eval(), steps * BATCH, len(allowed)


@dataclass(frozen=True, kw_only=True)
class TuningTrial(Tuning):
    """At one rate, with the seed of the network."""

    rate: float

    @property
    def seed(self) -> int:
        """The network's."""
        return self.network.seed

    def compute(self, context: Context) -> Result:
        """`accuracy` on held-out images; None of a training that diverged."""
        model = self.tuned(context, self.rate)[0]
        if not all(p.isfinite().all() for p in model.parameters()):
            return {"accuracy": None}
        return {"accuracy": accuracy(model, images(self.network.data, "held out", context.data_dir))}


@dataclass(frozen=True, kw_only=True)
class Tuned(Tuning):
    """At the best of the rates that were tried from the network of the first seed.

    Attributes:
        first: seed of the network that was tried.
        tuning_rates, tuning_trial: rates of the trials and their operations.
    """

    first: int
    tuning_rates: tuple[float, ...]
    tuning_trial: float

    @property
    def seed(self) -> int:
        """The network's."""
        return self.network.seed

    @property
    def needs(self) -> Sequence[Cell]:
        """The network and the trials."""
        tried = replace(self.network, seed=self.first)
        trial = partial(TuningTrial, network=tried, share=self.share, tuning=self.tuning_trial)
        trials = [trial(rate=rate) for rate in self.tuning_rates]
        return [*([self.network] if isinstance(self.network, Cell) else []), *trials]

    def compute(self, context: Context) -> Result:
        """`accuracy` on the test images, `rate`, `tuned_images` seen, and `labels` used."""
        trials = [need for need in self.needs if isinstance(need, TuningTrial)]
        best = max(trials, key=lambda trial: context.result(trial)["accuracy"] or 0.0)
        same = (self.seed, self.tuning) == (self.first, self.tuning_trial)  # the trial is this training
        model, seen, labels = (best if same else self).tuned(context, best.rate)
        test = images(self.network.data, "test", context.data_dir)
        return {"accuracy": accuracy(model, test), "rate": best.rate, "tuned_images": seen, "labels": labels}


def probed(network: nn.Module, fit: Pictures, held: Pictures) -> float:
    """Accuracy on held-out images of a ridge classifier fitted on others: the best of layers, poolings and ridges."""
    from unrolled.instruments.readouts.frozen import ridge

    taught, asked = fit.first(_FITTED), held.first(_HELD)
    both = torch.cat([taught.images, asked.images])
    labels = torch.cat([taught.labels, asked.labels])
    rows = torch.arange(len(taught.labels), len(labels))
    features = frozen_features(network, both, next(network.parameters()).device.type)
    return max(ridge(x, labels, rows, x[:1]).held_out for x in features.values())
