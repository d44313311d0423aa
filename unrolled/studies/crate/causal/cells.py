"""What `crate-causal` computes: subspaces, heads and atoms removed one at a time, each beside a random removal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from unrolled.reading import Json
from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.crate.causal.locality import (
    class_means,
    class_numbers,
    classes_left,
    effective_number,
    jackknife,
    marked_classes,
)
from unrolled.studies.crate.compared import NetworksConfig
from unrolled.studies.kinds import BLOCKS, MASKED
from unrolled.studies.networks import Data, Network
from unrolled.studies.pictures import as_input, pictures
from unrolled.studies.statistics import spearman
from unrolled.studies.study import AtLeast, Budgets, Count, Distinct

if TYPE_CHECKING:
    from unrolled.instruments.editing import Edit

KINDS = ("crate", "vit", "vit-48")  # the ViT of CRATE's width, about as accurate, and the one of its parameters
SHIPPED = "crate_nano_patch4_32.cifar10"
What = Literal["subspace", "head", "atom"]
WHATS: tuple[What, ...] = ("subspace", "head", "atom")
PREDICTORS = ("subspace_rate", "rate", "energy")
EPS = 0.1
SORTS = ("places", "random")
_BATCH = 250


@dataclass(kw_only=True)
class CausalConfig(NetworksConfig):
    """Networks are the roster's, trained once for all studies."""

    budgets: ClassVar[Budgets] = {
        "quick": {"data": "digits", "seeds": (0,), "images": 1280, "workers": 1, "tested": 100, "atoms": 1},
        "cpu": {},
        "gpu": {"device": "cuda", "images": 1_280_000, "workers": 1, "tested": 10_000, "atoms": 16},
    }

    data: Data = "cifar10"
    """What networks are trained on; of CIFAR-10 `crate_nano_patch4_32.cifar10` is looked at too."""
    kinds: Annotated[tuple[str, ...], Distinct()] = KINDS
    """Names of the roster, `crate` among them; claims are about it, the ViT of its width and that of its parameters."""
    tested: Annotated[int, AtLeast(40)] = 600
    """Test images on which places are removed."""
    atoms: Count = 3
    """Atoms removed in each layer, spread evenly over the dictionary."""

    def __post_init__(self) -> None:
        super().__post_init__()
        known = [kind for kind in BLOCKS if kind not in MASKED]
        if "crate" not in self.kinds or not set(self.kinds) <= set(known):
            raise ValueError(f"kinds={self.kinds}: choose from {', '.join(known)}, and 'crate' among them")


@dataclass(frozen=True, kw_only=True)
class Shipped(Cell):
    """The CRATE of 6 layers that comes with the package, and its accuracy on all test images."""

    kind: str = SHIPPED
    data: Data = "cifar10"
    seed: int = 0
    images: int = 1_250_000

    def require(self, context: Context) -> None:
        """The test images."""
        pictures(self.data, "test", context.data_dir)

    def load(self, context: Context) -> nn.Module:
        """The network, in eval mode."""
        import unrolled

        return unrolled.create_model(self.kind, pretrained=True).eval().to(context.device)

    def compute(self, context: Context) -> Result:
        """`parameters` and `accuracy`."""
        test = pictures(self.data, "test", context.data_dir)
        model = self.load(context)
        right = 0
        with torch.no_grad():
            for images, labels in zip(test.images.split(500), test.labels.split(500), strict=True):
                right += int((model(inputs(self, model, images).to(context.device)).argmax(1).cpu() == labels).sum())
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return {"parameters": parameters, "accuracy": right / len(test.labels)}


def inputs(network: Network | Shipped, model: Any, images: Tensor) -> Tensor:
    """uint8 pixels as the network was given them in training."""
    if isinstance(network, Network):
        return as_input(images)
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(-1, 1, 1) for key in ("mean", "std"))
    return (images.float() / 255 - mean) / std


class Place(NamedTuple):
    """One removal, and a random one that takes as much away."""

    layer: int
    unit: int
    name: str
    """Of `unrolled.edit`."""
    change: Callable[[Tensor], Tensor]
    random: Callable[[Tensor], Tensor]


class Pass(NamedTuple):
    """One pass over the test images: log-probability of the right class [n], correct [n], final tokens [n, t, d]."""

    scores: Tensor
    right: Tensor
    tokens: Tensor


class Outcome(NamedTuple):
    """What the removals of one sort do, by place and image, [places, n]: the rise of the loss, and the fall of the
    probability of the right class; and by place the change of accuracy and the share of patches that move."""

    losses: Tensor
    effects: Tensor
    accuracy: list[float]
    patches: list[float | None]


@dataclass(frozen=True, kw_only=True)
class Removal(Cell):
    """Places of one sort removed one at a time, each beside a random removal of the same size.

    A `subspace` U_k is projected out of the tokens that enter its layer, beside a random subspace of as many
    dimensions; of a ViT U_k are its heads' value projections. A `head` is set to zero, beside a step in a random
    direction as long at every token. An `atom` is set to zero in what leaves the layer, where the code of CRATE's atom
    j is entry j of the tokens, beside a step as long at every token along one random direction; of a ViT entry j of the
    tokens is removed, which is no atom.
    """

    network: Network | Shipped
    what: What
    tested: int
    atoms: int

    def require(self, context: Context) -> None:
        """The images."""
        self.network.require(context)

    def compute(self, context: Context) -> Result:
        """`places` and `random`, one record a place, and what is said of all places, with jackknife errors over images.

        These are `classes`, `classes_random` and their difference `classes_more` (see `locality.classes_left`); of
        subspaces `predicts`, rank correlations over places of what a removal does to rates with what it does to the
        loss; of heads `marked`, see `locality.marked_classes`.
        """
        from unrolled.instruments.editing import Edit, places_of

        test = pictures(self.network.data, "test", context.data_dir).first(self.tested)
        model = self.network.load(context)
        count = len(test.classes)
        images = inputs(self.network, model, test.images).to(context.device)
        plain = _pass(model, images, test.labels)
        known = places_of(model)
        places = list(_places(model, self.what, self.atoms))
        changes = {"places": [each.change for each in places], "random": [each.random for each in places]}
        outcomes: dict[str, Outcome] = {}
        for sort, each in changes.items():
            passes = (
                _pass(model, images, test.labels, Edit(model, {place.name: change}, places=known))
                for place, change in zip(places, each, strict=True)
            )
            outcomes[sort] = _outcome(passes, plain)
        result: Result = _locality({sort: outcome.effects for sort, outcome in outcomes.items()}, test.labels)
        predictors: dict[str, dict[str, Tensor]] = {sort: {} for sort in outcomes}
        if self.what == "subspace":
            predictors = _predictors(model, images, places)
            losses = {sort: outcome.losses for sort, outcome in outcomes.items()}
            result["predicts"] = _predicts(predictors, losses, places)
        if self.what == "head":
            result["marked"] = _marked(model, images, outcomes["places"].effects, test.labels, count)
        return {
            **{sort: _records(places, outcomes[sort], predictors[sort], test.labels, count) for sort in outcomes},
            **result,
            "accuracy": float(plain.right.mean()),
            "loss": float(-plain.scores.mean()),
        }


def _outcome(passes: Iterable[Pass], plain: Pass) -> Outcome:
    losses, effects, accuracy, patches = [], [], [], []
    for after in passes:
        moved = (after.tokens - plain.tokens).square().sum(-1)[:, 1:]
        losses.append(plain.scores - after.scores)
        effects.append(after.scores.exp() - plain.scores.exp())
        accuracy.append(float((after.right - plain.right).mean()))
        patches.append(_finite(effective_number(moved).nanmean() / moved.shape[1]))
    return Outcome(torch.stack(losses), torch.stack(effects), accuracy, patches)


def _records(
    places: Sequence[Place], outcome: Outcome, predictors: Mapping[str, Tensor], labels: Tensor, classes: int
) -> list[Json]:
    """One for each place: means over images, and how many classes are hit."""
    real, shuffled = class_numbers(outcome.effects, labels)
    means = {name: table.mean(1).tolist() for name, table in predictors.items()}
    return [
        {
            **{"layer": place.layer, "unit": place.unit},
            "loss": float(outcome.losses[number].mean()),
            "accuracy": outcome.accuracy[number],
            "probability": float(outcome.effects[number].mean()),
            "patches": outcome.patches[number],
            "by_class": class_means(outcome.effects[number], labels, classes).tolist(),
            "classes": _finite(real[number]),
            "classes_shuffled": _finite(shuffled[number]),
            **{name: values[number] for name, values in means.items()},
        }
        for number, place in enumerate(places)
    ]


def _locality(effects: Mapping[str, Tensor], labels: Tensor) -> Result:
    """How many classes are hit, over all places."""

    def left(sort: str, rows: Tensor) -> float:
        return classes_left(effects[sort][:, rows], labels[rows])

    return {
        "classes": _judged(lambda rows: left("places", rows), len(labels)),
        "classes_random": _judged(lambda rows: left("random", rows), len(labels)),
        "classes_more": _judged(lambda rows: left("places", rows) - left("random", rows), len(labels)),
    }


def _pass(model: nn.Module, images: Tensor, labels: Tensor, edit: Edit | None = None) -> Pass:
    from unrolled.instruments.anatomy import find_stacks
    from unrolled.instruments.trace import trace

    stack = find_stacks(model)[0]
    last = stack.name(len(stack.blocks) - 1)
    parts: list[Pass] = []
    for part, right in zip(images.split(_BATCH), labels.split(_BATCH), strict=True):
        with torch.no_grad(), edit or nullcontext(), trace(model, patterns=last) as tokens:
            logits = model(part).cpu()
        scores = logits.double().log_softmax(-1).gather(1, right[:, None])[:, 0]
        parts.append(Pass(scores, (logits.argmax(1) == right).double(), tokens[last].cpu()))
    return Pass(*(torch.cat(each) for each in zip(*parts, strict=True)))


def _places(model: nn.Module, what: What, atoms: int) -> Iterator[Place]:
    """Of every layer its subspaces, its heads, or some of its atoms."""
    from unrolled.instruments import edits
    from unrolled.instruments.anatomy import find_stacks, head_subspaces

    stack = find_stacks(model)[0]
    generator = torch.Generator().manual_seed(0)
    for layer, (_, block) in enumerate(stack.blocks):
        bases = head_subspaces(block)
        heads, dim, width = bases.shape
        units = np.linspace(0, dim - 1, atoms).round().astype(int).tolist() if what == "atom" else range(heads)
        for unit in units:
            if what == "subspace":
                random = torch.randn(dim, width, generator=generator)
                name = stack.name(layer - 1) if layer else "embed"
                yield Place(layer, unit, name, edits.project_out(bases[unit]), edits.project_out(random))
            elif what == "head":
                yield Place(
                    layer, unit, f"{stack.name(layer)}/attn/head{unit}", edits.zero, _away(layer * heads + unit)
                )
            else:
                direction = torch.nn.functional.normalize(torch.randn(dim, generator=generator), dim=0)
                yield Place(layer, unit, stack.name(layer), _without(unit), _along(unit, direction))


def _without(unit: int) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor) -> Tensor:
        out = x.clone()
        out[..., unit] = 0
        return out

    return change


def _along(unit: int, direction: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: x + x[..., unit, None] * direction.to(x)


def _away(seed: int) -> Callable[[Tensor], Tensor]:
    """A step as long as the token itself, in a random direction."""

    def change(x: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)
        return x + torch.nn.functional.normalize(noise, dim=-1) * x.norm(dim=-1, keepdim=True)

    return change


def _predictors(model: nn.Module, images: Tensor, places: Sequence[Place]) -> dict[str, dict[str, Tensor]]:
    """[places, images] by sort of removal and name: the fall of R^c, of R, and the share of energy taken."""
    from unrolled.instruments.anatomy import find_stacks, head_subspaces
    from unrolled.instruments.trace import trace
    from unrolled.theory import coding_rate, normalize_tokens, subspace_coding_rate

    blocks = [block for _, block in find_stacks(model)[0].blocks]
    parts: dict[str, dict[str, list[Tensor]]] = {sort: {name: [] for name in PREDICTORS} for sort in SORTS}
    for part in images.split(_BATCH):
        with torch.no_grad(), trace(model, patterns=["embed", "block??"]) as tokens:
            model(part)
        for sort in SORTS:
            values: dict[str, list[Tensor]] = {name: [] for name in PREDICTORS}
            for place in places:
                z = tokens[place.name]
                left = (place.change if sort == "places" else place.random)(z)
                before, after = normalize_tokens(z), normalize_tokens(left)
                subspaces = head_subspaces(blocks[place.layer])
                rates = [subspace_coding_rate(each, subspaces, EPS) for each in (before, after)]
                values["subspace_rate"].append(rates[0] - rates[1])
                values["rate"].append(coding_rate(before, EPS) - coding_rate(after, EPS))
                values["energy"].append(1 - left.square().sum((1, 2)) / z.square().sum((1, 2)))
            for name, each in values.items():
                parts[sort][name].append(torch.stack(each).double().cpu())
    return {sort: {name: torch.cat(tables, 1) for name, tables in by_name.items()} for sort, by_name in parts.items()}


def _predicts(
    predictors: Mapping[str, Mapping[str, Tensor]], losses: Mapping[str, Tensor], places: Sequence[Place]
) -> Result:
    """Rank correlations over places of predictors with the rise of the loss."""
    layers = torch.tensor([place.layer for place in places])
    result: Result = {}
    for sort, tables in predictors.items():
        for name, table in tables.items():
            result[f"{sort}_{name}"] = _judged(_ranks(table, losses[sort]), table.shape[1])
            result[f"{sort}_{name}_within"] = _judged(_ranks(table, losses[sort], layers), table.shape[1])
    return result


def _ranks(table: Tensor, loss: Tensor, layers: Tensor | None = None) -> Callable[[Tensor], float]:
    """Spearman's correlation over places of means over images; with `layers` the mean of that within each layer."""

    def within(rows: Tensor) -> float:
        x, y = table[:, rows].mean(1), loss[:, rows].mean(1)
        if layers is None:
            return spearman(x, y)
        return float(np.nanmean([spearman(x[layers == each], y[layers == each]) for each in layers.unique()]))

    return within


def _marked(model: nn.Module, images: Tensor, effects: Tensor, labels: Tensor, count: int) -> Result:
    """`marked_classes`: marks on one half of the images, falls on the other.

    The mark is the share of the class token's attention that goes to patches, in log.
    """
    from unrolled.instruments.trace import trace

    seen: list[Tensor] = []
    for part in images.split(_BATCH):
        with torch.no_grad(), trace(model, patterns="block*/attention", attention=True) as maps:
            model(part)
        seen.append(torch.cat([1 - maps[name][:, :, 0, 0] for name in maps], 1).double().cpu())  # [b, layers * heads]
    looks = torch.cat(seen).T
    half = torch.arange(looks.shape[1]) % 2 == 0
    marks = class_means(looks[:, half], labels[half], count).clamp_min(1e-9).log().numpy()
    falls = -class_means(effects[:, ~half], labels[~half], count).numpy()
    present = np.isfinite(marks).all(0) & np.isfinite(falls).all(0)
    return marked_classes(marks[:, present], falls[:, present])


def _judged(statistic: Callable[[Tensor], float], samples: int) -> dict[str, float | None]:
    value, error = jackknife(statistic, samples)
    return {"value": _finite(value), "error": _finite(error)}


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if np.isfinite(number) else None


def cells(config: CausalConfig) -> Iterator[Cell]:
    """Removals of all networks, of subspaces of untrained CRATEs, and of the shipped one."""
    removal = partial(Removal, tested=config.tested, atoms=config.atoms)
    for seed in config.seeds:
        for kind in config.kinds:
            network = config.network(kind, config.data, seed)
            yield network
            for what in WHATS:
                yield removal(network=network, what=what)
        yield removal(network=config.network("crate", config.data, seed, trained=False), what="subspace")
    if config.data == "cifar10":
        yield Shipped()
        for what in WHATS:
            yield removal(network=Shipped(), what=what)
