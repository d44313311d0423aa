"""What `crate-attribution` computes: the term of every head on every image, and the logit that is lost without it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.crate.causal.cells import Shipped, inputs
from unrolled.studies.crate.compared import NetworksConfig
from unrolled.studies.networks import Data, Network
from unrolled.studies.pictures import pictures
from unrolled.studies.statistics import rank_correlations
from unrolled.studies.study import AtLeast, Budgets, Distinct

KINDS = ("crate", "vit")
_BATCH, _DRAWS = 50, 400
Table = NDArray[np.float64]


@dataclass(kw_only=True)
class AttributionConfig(NetworksConfig):
    """Networks are the roster's, trained once for all studies."""

    budgets: ClassVar[Budgets] = {
        "quick": {"data": "digits", "seeds": (0,), "images": 1280, "workers": 1, "tested": 20},
        "cpu": {},
        "gpu": {"device": "cuda", "images": 1_280_000, "workers": 1, "tested": 2000},
    }

    data: Data = "cifar10"
    """What networks are trained on; of CIFAR-10 `crate_nano_patch4_32.cifar10` is looked at too."""
    kinds: Annotated[tuple[str, ...], Distinct()] = KINDS
    """Names of the roster, `crate` and `vit` for the claims."""
    tested: Annotated[int, AtLeast(10)] = 200
    """Test images whose predicted class is explained."""


@dataclass(frozen=True, kw_only=True)
class Terms(Cell):
    """Every head of a network on the first test images: its term of the predicted class's logit, and what is lost.

    `lost` is the logit less the logit with the head set to zero, `held` the same with the output of all later attention
    held as it was, `random` what a change in a random direction costs that is as large at every token.
    """

    network: Network | Shipped
    tested: int

    def require(self, context: Context) -> None:
        """The images."""
        self.network.require(context)

    def compute(self, context: Context) -> Result:
        """`all` heads and those of each of the `layers`: see `agreement`, with 95 % bootstrap intervals over images."""
        test = pictures(self.network.data, "test", context.data_dir).first(self.tested)
        model = self.network.load(context)
        shown = inputs(self.network, model, test.images).to(context.device)
        terms, target = explained(model, shown)
        lost, random = removed(model, shown, target)
        held = removed_with_attention_held(model, shown, target)
        tables = {"term": terms, "lost": lost, "held": held, "random": random}
        return {
            "all": judged({name: table.reshape(len(shown), -1) for name, table in tables.items()}),
            "layers": [
                {"layer": layer, **judged({name: table[:, layer] for name, table in tables.items()})}
                for layer in range(terms.shape[1])
            ],
        }


def explained(model: nn.Module, images: Tensor) -> tuple[Table, Tensor]:
    """Terms of the logit of each image's predicted class, [n, layers, heads], and these classes, [n]."""
    from unrolled.instruments.explain import explain_logit

    rows, target = [], []
    for image in images:
        explanation = explain_logit(model, image[None])
        heads = [half.heads for half in explanation.halves if half.kind == "attn"]
        rows.append(torch.stack([each for each in heads if each is not None]).numpy())
        target.append(explanation.target)
    return np.stack(rows), torch.tensor(target, device=images.device)


def _logit(output: Tensor, target: Tensor) -> Tensor:
    return output.double().gather(1, target[:, None])[:, 0]


def removed(model: nn.Module, images: Tensor, target: Tensor) -> tuple[Table, Table]:
    """What is lost without each head, and by a random change as large, [n, layers, heads] each."""
    from unrolled.instruments import causal

    batches = zip(images.split(_BATCH), target.split(_BATCH), strict=True)
    effects = causal.ablate(model, batches, _logit)
    shape = (len(images), len({row.name.split("/")[0] for row in effects}), -1)
    lost = np.stack([-row.samples for row in effects], 1).reshape(shape)
    random = np.stack([-row.control_samples for row in effects if row.control_samples is not None], 1)
    return lost, random.reshape(shape)


@torch.no_grad()
def removed_with_attention_held(model: nn.Module, images: Tensor, target: Tensor) -> Table:
    """What is lost without each head when all later attention adds what it added before, [n, layers, heads]."""
    from unrolled.instruments import edits
    from unrolled.instruments.anatomy import find_stacks, head_count
    from unrolled.instruments.editing import Edit, places_of
    from unrolled.instruments.trace import trace

    (stack,) = find_stacks(model)
    layers = [stack.name(index) for index in range(len(stack.blocks))]
    heads = int(head_count(stack.blocks[0][1], model) or 1)
    known = places_of(model)
    parts = []
    for batch, wanted in zip(images.split(_BATCH), target.split(_BATCH), strict=True):
        with trace(model, patterns="block*/attn") as before:
            plain = _logit(model(batch), wanted)
        rows = []
        for number, layer in enumerate(layers):
            hold: Mapping[str, Any] = {f"{later}/attn": edits.patch(before) for later in layers[number + 1 :]}
            for head in range(heads):
                with Edit(model, {f"{layer}/attn/head{head}": edits.zero, **hold}, places=known):
                    rows.append(plain - _logit(model(batch), wanted))
        parts.append(torch.stack(rows, 1).cpu().numpy())
    return np.concatenate(parts).reshape(len(images), len(layers), heads)


def judged(tables: Mapping[str, Table]) -> Result:
    """`agreement` of tables [n, heads], and the interval of each number, resampling images."""
    count = len(tables["term"])
    drawn = np.random.default_rng(0).integers(count, size=(_DRAWS, count))
    whole = agreement(tables)
    draws: Sequence[dict[str, float]] = [agreement({k: table[rows] for k, table in tables.items()}) for rows in drawn]
    result: Result = {}
    for name, value in whole.items():
        low, high = np.nanquantile([draw[name] for draw in draws], [0.025, 0.975])
        result[name] = {"value": value, "low": float(low), "high": float(high)}
    return result


def agreement(tables: Mapping[str, Table]) -> dict[str, float]:
    """How well terms [n, heads] say what is lost, over all pairs of image and head.

    Returns:
        `lost`, `held`, `random`: Spearman's correlation of the term with what is lost, so or so; `gain`: of `held` less
        `lost`; `same_sign`: share of equal signs of term and loss; `slope`: of the regression of the loss on the term
        through zero; `attention` and `rest`: mean size of lost less held, and of held less term, over that of the
        terms: what later attention does, and norms, ISTA's zeros and MLPs.
    """
    flat = {name: table.reshape(-1) for name, table in tables.items()}
    term, size = flat["term"], float(np.abs(flat["term"]).mean())
    ranks = {name: _rank(term, flat[name]) for name in ("lost", "held", "random")}
    return {
        **ranks,
        "gain": ranks["held"] - ranks["lost"],
        "same_sign": float((np.sign(term) == np.sign(flat["lost"])).mean()),
        "slope": float(term @ flat["lost"] / (term @ term)),
        "attention": float(np.abs(flat["lost"] - flat["held"]).mean()) / size,
        "rest": float(np.abs(flat["held"] - term).mean()) / size,
    }


def _rank(x: Table, y: Table) -> float:
    return float(rank_correlations(x[None], y[None])[0])


def cells(config: AttributionConfig) -> Iterator[Cell]:
    """Trained and untrained networks of every kind and seed, and the shipped CRATE."""
    for seed in config.seeds:
        for kind in config.kinds:
            network = config.network(kind, config.data, seed)
            yield network
            yield Terms(network=network, tested=config.tested)
            untrained = config.network(kind, config.data, seed, trained=False)
            yield Terms(network=untrained, tested=config.tested)
    if config.data == "cifar10":
        yield Shipped()
        yield Terms(network=Shipped(), tested=config.tested)
