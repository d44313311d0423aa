"""What `crate-pretrain` computes: completions, layers of encoder and decoder, features, and a network that can ship."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.crate.hour.networks import Given, given, studied
from unrolled.studies.crate.masked import fixed_noise, measure_layer, tokens
from unrolled.studies.crate.pretrain.completion import Completed, Inpainted
from unrolled.studies.crate.pretrain.learning import Learnt, Network, Tuned
from unrolled.studies.crate.pretrain.networks import Data, Fresh, images
from unrolled.studies.crate.pretrain.objectives import Objective
from unrolled.studies.crate.transfer.cells import chance, frozen_features
from unrolled.studies.pictures import as_input
from unrolled.studies.study import Budgets, Config, Count, Distinct, Rate, Seeds

Question = Literal["completion", "decoder", "features", "ship"]
QUESTIONS: tuple[Question, ...] = ("completion", "decoder", "features", "ship")
PAIR = ("crate", "vit")
DECODERS = ("published", "tied", "derived", "derived-tied")
EARLIER = "crate_mae_nano_patch4_32.cifar10"
"""Ships with the package: the published step and output, visible patches alone, 490,000 images by AdamW."""
OBJECTIVES: tuple[Objective, ...] = ("mae", "sigreg", "coding-rate")
SHIPPED = ("mae-pixels", "crate")
_GROUPS = 8


@dataclass(kw_only=True)
class PretrainConfig(Config):
    """Lengths are operations of training, in 10^12.

    `--questions completion` is a page in a quarter of the time; with more questions only what is new is computed.
    """

    budgets: ClassVar[Budgets] = {
        "quick": {
            **{"data": "digits", "seeds": (0,), "rates": (1e-2,), "tuning_rates": (1e-2,), "longer": ("published",)},
            **{"trial": 0.002, "length": 0.004, "long": 0.004, "ship": 0.004},
            **{"tuning_trial": 0.002, "tuning_few": 0.002, "tuning_all": 0.004},
            **{"tested": 64, "lessons": 100, "measured": 64, "fitted": 400, "shown": 3},
        },
        "cpu": {},
        "gpu": {"device": "cuda", "longer": DECODERS, "long": 2000.0, "length": 2000.0, "ship": 4000.0},
    }

    data_dir: Path = Path("data")
    """Folder with `cifar10`."""
    data: Data = "cifar10"
    """The images; `digits` only shows that the study runs."""
    questions: Annotated[tuple[Question, ...], Distinct()] = QUESTIONS
    """What is asked, of `completion` (CRATE-MAE beside ViT-MAE and inpainting), `decoder` (R^c by layer), `features`
    (probe and fine-tuning of every objective) and `ship` (a longer CRATE-MAE that predicts pixels)."""
    seeds: Seeds = (0, 1, 2)
    """Of networks that are compared; rates are tried with seed 0, those of fine-tuning with the first of these."""
    rates: Annotated[tuple[Rate, ...], Distinct()] = (3e-3, 1e-2, 2e-2)
    """Peak rates of Muon in pretraining, each tried once for every form and objective."""
    trial: Rate = 5.0
    """Operations of a trial; of the decoder's question also the short training."""
    length: Rate = 25.0
    """Operations of pretraining."""
    longer: tuple[str, ...] = ("published", "derived-tied")
    """Forms whose decoder is also measured after a long training, with the first seed."""
    long: Rate = 50.0
    """Operations of that."""
    ship: Rate = 80.0
    """Operations of the network that predicts pixels."""
    tuning_rates: Annotated[tuple[Rate, ...], Distinct()] = (3e-3, 1e-2)
    """Peak rates of fine-tuning, each tried once for every start and share of labels."""
    tuning_trial: Rate = 2.0
    """Operations of such a trial; of training from scratch as long as pretraining and fine-tuning, those of both."""
    few: Rate = 0.1
    """Share of the training images whose labels are few."""
    tuning_few: Rate = 3.0
    """Operations of fine-tuning with few labels."""
    tuning_all: Rate = 10.0
    """Operations of fine-tuning with all."""
    tested: Count = 1000
    """Test images that are completed; for accuracies all are looked at."""
    lessons: Count = 500
    """Training images that factors of completions are fitted on."""
    measured: Count = 256
    """Test images whose layers are measured."""
    fitted: Count = 20_000
    """Training images of a linear probe."""
    shown: Count = 6
    """Completions in the report."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for form in self.longer:
            if form not in DECODERS:
                raise ValueError(f"longer: {form!r} is none of {', '.join(DECODERS)}")

    def learnt(self, objective: Objective, form: str, seed: int, length: float) -> Learnt:
        """A network at the best of the rates that were tried."""
        return Learnt(
            objective=objective,
            form=form,
            data=self.data,
            seed=seed,
            operations=length,
            rates=self.rates,
            trial=self.trial,
        )

    def fresh(self, seed: int, form: str = "crate") -> Fresh:
        """The same before it learns."""
        return Fresh(form=form, data=self.data, seed=seed)


@dataclass(frozen=True, kw_only=True)
class Measured(Cell):
    """What is measured of a network on test images."""

    network: Network | Given

    def require(self, context: Context) -> None:
        """The images."""
        images(self.data_of, "test", context.data_dir)

    @property
    def data_of(self) -> Data:
        """What the network was taught."""
        return "cifar10" if isinstance(self.network, Given) else self.network.data


@dataclass(frozen=True, kw_only=True)
class Layers(Measured):
    """Encoder and decoder of a masked autoencoder, layer by layer, on the first `measured` test images."""

    measured: int

    def compute(self, context: Context) -> Result:
        """`encoder` and `decoder` as `measure_layer` says, and by group of images what the decoder changes: `rise`
        (R^c of its last layer over its first, less 1), `step` (of the reversed step alone, over what it was before,
        less 1, mean of the layers), `plain` (the same with orthonormal subspaces) and `linear` (of the maps alone)."""
        network = self.network
        model: Any = studied(network, context) if isinstance(network, Given) else network.load(context)
        pixels = images(self.data_of, "test", context.data_dir).images[: self.measured]
        noise = fixed_noise(len(pixels), model.patch_embed.num_patches)
        groups = [
            by_layer(model, as_input(part).to(context.device), drawn.to(context.device))
            for part, drawn in zip(pixels.chunk(_GROUPS), noise.chunk(_GROUPS), strict=True)
        ]
        result: Result = {
            stack: [
                {name: fmean(group[stack][layer][name] for group in groups) for name in row}
                for layer, row in enumerate(groups[0][stack])
            ]
            for stack in ("encoder", "decoder")
        }
        changes = [changed(group["decoder"]) for group in groups]
        return {**result, **{name: [change[name] for change in changes] for name in changes[0]}}


@dataclass(frozen=True, kw_only=True)
class Probed(Measured):
    """A linear probe: a ridge classifier of frozen features, its layer, pooling and ridge chosen on held-out images."""

    fitted: int

    def compute(self, context: Context) -> Result:
        """`accuracy` on the test images, `held_out`, the `site` that was chosen, and `chance`."""
        from unrolled.instruments.readouts.frozen import ridge

        fit, held, test = (images(self.data_of, part, context.data_dir) for part in ("train", "held out", "test"))
        fit = fit.first(self.fitted)
        labels = torch.cat([fit.labels, held.labels])
        features = partial(frozen_features, self.network.load(context), device=context.device)
        x, queries = features(torch.cat([fit.images, held.images])), features(test.images)
        rows = torch.arange(len(fit.labels), len(labels))
        tried = {site: ridge(x[site], labels, rows, queries[site]) for site in x}
        site = max(tried, key=lambda name: tried[name].held_out)
        return {
            "accuracy": float((tried[site].predicted == test.labels).double().mean()),
            "held_out": tried[site].held_out,
            "site": site,
            "chance": chance(fit.labels, test.labels),
        }


@torch.no_grad()
def by_layer(model: Any, pixels: Tensor, noise: Tensor) -> dict[str, list[dict[str, float]]]:
    """`measure_layer` of every layer of `encoder` and `decoder` on images `[b, c, h, w]`, masked by noise `[b, n]`."""
    states = tokens(model, pixels, noise)
    stacks = {"encoder": model.blocks, "decoder": model.decoder_blocks}
    return {
        name: [
            measure_layer(block, before, after)
            for block, before, after in zip(blocks, states[name], states[name][1:], strict=False)
        ]
        for name, blocks in stacks.items()
    }


def changed(decoder: list[dict[str, float]]) -> dict[str, float]:
    """What a decoder's layers, as `measure_layer` has them, change of R^c, relative; see `Layers`."""

    def mean(after: str, before: str) -> float:
        return fmean(layer[after] / layer[before] - 1 for layer in decoder)

    return {
        "rise": decoder[-1]["rate_after"] / decoder[0]["rate_after"] - 1,
        "step": mean("rate_after", "rate_before"),
        "plain": mean("plain_after", "plain_before"),
        "linear": mean("rate_before", "rate_z"),
    }


def cells(config: PretrainConfig) -> Iterator[Cell]:
    """Of every question that is asked the cells, in the order of `QUESTIONS`; of each the most telling first."""
    asked: dict[Question, Any] = {
        "completion": _completion,
        "decoder": _decoder,
        "features": _features,
        "ship": _ship,
    }
    for question in QUESTIONS:
        if question in config.questions:
            yield from asked[question](config)


def _completion(config: PretrainConfig) -> Iterator[Cell]:
    seen = {"tested": config.tested, "lessons": config.lessons}
    yield Inpainted(data=config.data, **seen, shown=config.shown)
    for seed in config.seeds:
        for form in PAIR:
            network = config.learnt("mae", form, seed, config.length)
            shown = config.shown if seed == config.seeds[0] else 0
            yield from (*network.needs, network, Completed(network=network, **seen, shown=shown))


def _decoder(config: PretrainConfig) -> Iterator[Cell]:
    layers = partial(Layers, measured=config.measured)
    for seed in config.seeds:
        for form in DECODERS:
            yield layers(network=config.fresh(seed, form))
            network = config.learnt("mae", form, seed, config.trial)
            yield from (*network.needs, network, layers(network=network))
    if config.data == "cifar10":
        yield layers(network=given(EARLIER))
    for form in config.longer:
        network = config.learnt("mae", form, config.seeds[0], config.long)
        yield from (network, layers(network=network))


def _features(config: PretrainConfig) -> Iterator[Cell]:
    probe = partial(Probed, fitted=config.fitted)
    for seed in config.seeds:
        yield probe(network=config.fresh(seed))
        for objective in OBJECTIVES:
            network = config.learnt(objective, "crate", seed, config.length)
            yield from (*network.needs, network, probe(network=network))
    tuned = partial(Tuned, first=config.seeds[0], tuning_rates=config.tuning_rates, tuning_trial=config.tuning_trial)
    for share, length in ((config.few, config.tuning_few), (1.0, config.tuning_all)):
        for seed in config.seeds:
            fresh = config.fresh(seed)
            starts: list[Network] = [config.learnt(each, "crate", seed, config.length) for each in OBJECTIVES]
            some = [tuned(network=network, share=share, tuning=length) for network in (*starts, fresh)]
            # from scratch also with the operations of pretraining and fine-tuning together, at a rate tried as long:
            # what a short trial chooses is too high for it
            whole = config.length + length
            for cell in (*some, tuned(network=fresh, share=share, tuning=whole, tuning_trial=whole)):
                yield from (*cell.needs, cell)


def _ship(config: PretrainConfig) -> Iterator[Cell]:
    objective, form = SHIPPED
    network = config.learnt(objective, form, config.seeds[0], config.ship)  # type: ignore[arg-type]
    seen = {"tested": config.tested, "lessons": config.lessons, "shown": config.shown}
    yield Inpainted(data=config.data, **seen)
    yield from (
        *network.needs,
        network,
        Completed(network=network, **seen),
        Layers(network=network, measured=config.measured),
    )
