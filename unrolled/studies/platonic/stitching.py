"""Stitching and Rosetta neurons: can one network go on where another stopped, and do they share units?

Claims gathered by arXiv 2405.07987: networks of different seeds and kinds can be stitched by an affine map, early
layers best (Lenc and Vedaldi 2015, Bansal et al. 2021), and share neurons (Dravid et al. 2023).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.claim import AT_LEAST_0, CONTROL, Claim
from unrolled.studies.kinds import stages
from unrolled.studies.networks import BATCH, Network, accuracy
from unrolled.studies.pictures import as_input, pictures
from unrolled.studies.platonic.zoo import FAMILIES, GPU, QUICK, ZooConfig, family, full_name
from unrolled.studies.results import NOT_RUN, Results, Values
from unrolled.studies.study import AtLeast, Budgets, Count, Distinct, Study
from unrolled.studies.training import train_resumable

if TYPE_CHECKING:
    from unrolled.report import Report, Series

SORTS = ("itself", "another seed", "another kind", "untrained")
Cut = Literal[1, 2, 3]


@dataclass(kw_only=True)
class StitchingConfig(ZooConfig):
    """Budgets change the zoo and the steps of the stitching maps."""

    budgets: ClassVar[Budgets] = {
        "quick": {**QUICK, "stitch_steps": 8, "cuts": (1, 2), "units": 80, "draws": 19},
        "cpu": {},
        "gpu": {**GPU, "stitch_steps": 2000},
    }

    stitch_steps: Count = 80
    """Training steps of a stitching map, which starts from the ridge regression between the two layers."""
    cuts: Annotated[tuple[Cut, ...], Distinct()] = (1, 2, 3)
    """Blocks or stages of the front; the back begins after as many of its own."""
    matched: Count = 512
    """Training images of the regression."""
    tested: Count = 2000
    """Held-out images of the stitched networks."""
    units: Annotated[int, AtLeast(20)] = 400
    """Held-out images over which units are correlated."""
    draws: Count = 50
    """Relabellings of these images."""


@dataclass(frozen=True, kw_only=True)
class OfTwo(Cell):
    """What is measured of two networks; the first is the front, the second the back."""

    networks: tuple[Network, Network]

    @property
    def sort(self) -> str:
        """Of `SORTS`: how the front differs from the back."""
        front, back = self.networks
        if not front.images:
            return "untrained"
        return "itself" if front == back else "another seed" if front.kind == back.kind else "another kind"

    @property
    def names(self) -> tuple[str, str]:
        """Of the two."""
        front, back = map(full_name, self.networks)
        return front, back


@dataclass(frozen=True, kw_only=True)
class Stitch(OfTwo):
    """The front's first `cut` blocks and the back's others, joined by a regressed, then trained map."""

    cut: int
    steps: int
    matched: int
    tested: int

    def compute(self, context: Context) -> Result:
        """Accuracy on held-out images, `regressed` and of the trained map.

        Beside `accuracy`: that of the back's own network, `reference`, and how many `weights` the map has.
        """
        from unrolled.alignment.network_stitching import Layout, Stitched, layer_values

        held_out = pictures(self.networks[0].data, "test", context.data_dir).first(self.tested)
        train = pictures(self.networks[0].data, "train", context.data_dir)
        models = [network.load(context).requires_grad_(False) for network in self.networks]
        chains: list[list[Any]] = [list(stages(model)) for model in models]
        chosen = as_input(train.images[: self.matched]).to(context.device)
        source, target = (
            Layout.of(layer_values(chain, chosen[:2], self.cut + 1), prefix=prefix(model))
            for chain, model in zip(chains, models, strict=True)
        )
        front, back = chains[0][: self.cut + 1], chains[1][self.cut + 1 :]
        joint = Stitched(front=front, back=back, source=source, target=target).to(context.device)
        joint.match(chosen, layer_values(chains[1], chosen, self.cut + 1))
        regressed = accuracy(joint, held_out)

        def loss_at(step: int) -> Tensor:
            generator = torch.Generator().manual_seed(step)
            rows = torch.randint(len(train.labels), (BATCH,), generator=generator)
            logits = joint(as_input(train.images[rows]).to(context.device))
            return torch.nn.functional.cross_entropy(logits, train.labels[rows].to(context.device))

        optimizer = torch.optim.AdamW(joint.parameters(), lr=1e-3, weight_decay=0.0)
        train_resumable(joint, optimizer, loss_at, steps=self.steps, keep=self.checkpoint(context), clip_norm=1.0)
        return {
            "regressed": regressed,
            "accuracy": accuracy(joint, held_out),
            "reference": accuracy(models[1], held_out),
            "weights": sum(parameter.numel() for parameter in joint.parameters()),
        }


@dataclass(frozen=True, kw_only=True)
class Units(OfTwo):
    """Mutual best correlated units of all blocks of both, over held-out images and a 4 x 4 grid of places."""

    images: int
    draws: int

    def compute(self, context: Context) -> Result:
        """How many `mutual` pairs there are and how many are `found` above the `threshold`; `layers` of these."""
        from unrolled.alignment.network_stitching import Layout, layer_values, on_grid, rosetta

        test = pictures(self.networks[0].data, "test", context.data_dir)
        images = as_input(test.images[: self.images]).to(context.device)
        sides, layers = [], []
        for network in self.networks:
            model = network.load(context)
            chain: list[Any] = list(stages(model))
            values, owner = [], []
            for depth in range(2, len(chain)):
                value = layer_values(chain, images, depth)
                values.append(on_grid(value, Layout.of(value, prefix=prefix(model)), (4, 4)))
                owner += [depth - 1] * values[-1].shape[2]
            sides.append(torch.cat(values, 2))
            layers.append(owner)
        pairs = rosetta(sides[0], sides[1], draws=self.draws)
        return {
            "found": pairs.significant,
            "mutual": len(pairs.pairs),
            "units": pairs.units,
            "threshold": pairs.threshold,
            "median": float(pairs.correlation.median()),
            "best": pairs.correlation[:20].tolist(),
            "null_pairs": float(pairs.null_pairs.double().mean()),
            "layers": [[layers[0][i], layers[1][j]] for i, j in pairs.pairs[: pairs.significant].tolist()],
        }


def prefix(model: torch.nn.Module) -> int:
    """Tokens before the patches."""
    from unrolled.instruments.features.pooling import prefix_tokens

    return prefix_tokens(model, None)[0]


def routes(config: StitchingConfig) -> Iterator[tuple[Network, Network]]:
    """Fronts and backs: of one network, of two seeds, of two kinds, and untrained fronts."""
    size = "large" if config.members == "full" else "small"
    zero, one, untrained = (
        {kind: config.member(kind, size, seed, share=share) for kind in FAMILIES}
        for seed, share in ((0, 1), (1, 1), (7, 0))
    )
    for kind in FAMILIES:
        yield zero[kind], zero[kind]
    for kind in FAMILIES:
        yield zero[kind], one[kind]
        yield one[kind], zero[kind]
    for front, back in (("crate", "vit"), ("vit", "crate"), ("cnn", "vit"), ("vit", "cnn")):
        yield zero[front], zero[back]
    for kind in FAMILIES:
        yield untrained[kind], zero[kind]


def cells(config: StitchingConfig) -> Iterator[OfTwo]:
    """Every route at every cut, and the units of every pair of networks."""
    for pair in routes(config):
        for cut in config.cuts:
            yield Stitch(
                networks=pair, cut=cut, steps=config.stitch_steps, matched=config.matched, tested=config.tested
            )
    done: set[frozenset[Network]] = set()
    for pair in routes(config):
        if pair[0] != pair[1] and frozenset(pair) not in done:  # pairs are symmetric
            done.add(frozenset(pair))
            yield Units(networks=pair, images=config.units, draws=config.draws)


def share(result: Any) -> float:
    """Accuracy of a stitched network as a share of the back's own on the same images."""
    return float(result["accuracy"] / result["reference"]) if result["reference"] else 0.0


def kept_accuracy(results: Results[Any], *sorts: str, cut: int | None = None, unit: str = "pair") -> Values:
    """Accuracy kept at a cut, or the mean over cuts; by pair of networks, or by the kind of the back.

    Pairs of a kind share networks, so where they are of one kind, kinds are what is independent.
    """
    shares: dict[Any, list[float]] = {}
    for cell, result, _ in results.of(Stitch):
        if cell.sort in sorts and cut in (None, cell.cut):
            shares.setdefault(cell.names if unit == "pair" else family(cell.networks[1]), []).append(share(result))
    return Values({key: fmean(values) for key, values in shares.items()}, unit)


def by_kind(results: Results[Any], sort: str) -> Values:
    """`kept_accuracy` of a sort, by kind."""
    return kept_accuracy(results, sort, unit="kind")


def early(results: Results[Any], config: StitchingConfig) -> Values:
    """Accuracy kept at the first cut less that at the last, of trained pairs, by the kind of the back."""
    ends = min(config.cuts), max(config.cuts)
    first, last = (kept_accuracy(results, *SORTS[1:3], cut=cut, unit="kind") for cut in ends)
    return first - last


def fewest(results: Results[Any]) -> Any:
    """The result of the pair of different kinds that shares the fewest units; None where none was run."""
    rows = (row.result for row in results.of(Units) if row.cell.sort == "another kind")
    return min(rows, key=lambda result: result["found"], default=None)


def shared(results: Results[Any], sort: str) -> Values:
    """Units that pairs of a sort share, by pair of networks."""
    rows = (row for row in results.of(Units) if row.cell.sort == sort)
    return Values({row.cell.names: float(row.result["found"]) for row in rows}, "pair")


CLAIMS = (
    Claim(
        statement="Networks that differ by seed are stitched with little loss (accuracy kept, mean over kinds, "
        "directions and depths)",
        source="Y. Bansal, P. Nakkiran, B. Barak, Revisiting model stitching, NeurIPS 2021, on ResNets trained to the "
        "end",
        published="a few points lost; no number at hand",
        value=lambda results, config: by_kind(results, "another seed"),
        low=0.9,
        within=AT_LEAST_0,
        outside="an untrained front: 0.65",
        control=lambda results, config: by_kind(results, "untrained"),
        spec=".2f",
    ),
    Claim(
        statement="A trained front is worth more than an untrained one (accuracy kept, another seed less untrained, "
        "mean)",
        source=CONTROL,
        published="not measured",
        unjudged=CONTROL,
        value=lambda results, config: by_kind(results, "another seed") - by_kind(results, "untrained"),
        low=0.0,
        spec=".2f",
        detail=lambda results, config: (
            f" ({by_kind(results, 'another seed').mean:.2f} - {by_kind(results, 'untrained').mean:.2f})"
        ),
    ),
    Claim(
        statement="Early layers are stitched best (accuracy kept at the first cut less that at the last, trained "
        "pairs)",
        source="Lenc and Vedaldi 2015, as cited by arXiv 2405.07987",
        published="stated, no number",
        value=early,
        low=0.0,
        outside="layers that are stitched alike, 0, or late ones better",
        spec="+.2f",
        unless=lambda config: "" if len(config.cuts) > 1 else f"{NOT_RUN}: one cut is the first and the last",
    ),
    Claim(
        statement="Networks of different kinds share units (mutual pairs above the 5 % threshold of relabelling)",
        source="A. Dravid et al., Rosetta neurons, ICCV 2023",
        published="found in classifiers and generators; no number for such networks",
        value=lambda results, config: shared(results, "another kind"),
        low=1.0,
        outside="networks that share none: 0 in 19 of 20 relabellings",
        within=AT_LEAST_0,
        control=lambda results, config: shared(results, "untrained"),
        spec=".0f",
        detail=lambda results, config: (
            f"; the fewest {fewest(results)['found']} of {min(fewest(results)['units'])} possible"
        ),
    ),
)


def report(report: Report, config: StitchingConfig, results: Results[Any]) -> None:
    """The answer, what is kept by depth, and the units in common."""
    from unrolled.report import Fact

    means = {sort: kept_accuracy(results, sort).mean for sort in SORTS if kept_accuracy(results, sort)}
    words = {sort: f"{100 * means[sort]:.0f} %" if sort in means else NOT_RUN for sort in SORTS}
    report.headline(
        f"Behind the front of a network of another seed, a back keeps {words['another seed']} of its accuracy, of "
        f"another kind {words['another kind']}, and behind an untrained front {words['untrained']}.",
        [Fact(label=f"Kept behind {sort}", value=words[sort]) for sort in means],
    )
    _stitching(report, config, results)
    _rosetta(report, config, results.of(Units))


def _stitching(report: Report, config: StitchingConfig, results: Results[Any]) -> None:
    from unrolled.report import LineChart

    section = report.section(
        "Stitching by depth",
        "Both networks are frozen; one affine map, the same at every place, carries the front's layer into the back's. "
        f"It starts from the ridge regression between the two layers on {config.matched} training images and is then "
        f"trained for {config.stitch_steps} steps on the labels. What is kept is the accuracy of the whole as a share "
        "of the back's own, on the same held-out images; above 1 means better than the back's own network. The two "
        "controls: a network stitched to itself, and an untrained front, whose later blocks cannot have learned "
        "anything. An untrained front that keeps much says that the back and the map do the work, not that networks "
        "agree.",
    )
    lines = [_line(results, config, place) for place, sort in enumerate(SORTS) if kept_accuracy(results, sort)]
    if lines:
        section.figure(
            LineChart(title="accuracy kept", x_label="blocks or stages of the front", series=lines),
            name="kept",
            caption="Means over pairs; bars are one standard deviation over pairs. Untrained: the front alone is "
            "untrained.",
        )
    section.table(
        ["sort", "front", "back", "cut", "regression %", "trained %", "the back's own %", "kept"],
        [
            [
                *(cell.sort, *cell.names, cell.cut),
                *(f"{100 * result[name]:.1f}" for name in ("regressed", "accuracy", "reference")),
                f"{share(result):.2f}",
            ]
            for cell, result, _ in results.of(Stitch)
        ],
        caption=f"Accuracy on {config.tested} held-out images at most. Between a CNN and a transformer, places are "
        "averaged to the other grid, and class tokens are learned constants. A cut counts blocks: depths of different "
        "kinds correspond only roughly.",
    )


def _line(results: Results[Any], config: StitchingConfig, place: int) -> Series:
    from unrolled.report import Series

    sort = SORTS[place]
    cuts = [cut for cut in sorted(config.cuts) if kept_accuracy(results, sort, cut=cut)]
    values = [kept_accuracy(results, sort, cut=cut) for cut in cuts]
    return Series(
        label=sort,
        x=cuts,
        y=[shares.mean for shares in values],
        error=[shares.deviation if len(shares) > 1 else 0.0 for shares in values],
        color=place,
        dashed=sort in ("itself", "untrained"),
    )


def _rosetta(report: Report, config: StitchingConfig, results: Results[Units]) -> None:
    report.section(
        "Rosetta neurons",
        "Units of all blocks of two networks, correlated over images and a 4 x 4 grid of places. A pair counts if each "
        "is the other's best and their correlation exceeds what the best of all pairs reaches in 95 % of relabellings "
        "of the images, which keep where a unit likes to fire. Units of an untrained network follow colours and edges, "
        "and so have partners too: what they share with trained ones is the measure for the rest.",
    ).table(
        ["sort", "networks", "units", "mutual pairs", "above threshold", "share", "best", "median", "threshold"],
        [
            [
                *(cell.sort, ", ".join(cell.names), f"{pair['units'][0]}, {pair['units'][1]}"),
                *(pair["mutual"], pair["found"], f"{pair['found'] / min(pair['units']):.2f}"),
                *(f"{value:.2f}" for value in (pair["best"][0], pair["median"], pair["threshold"])),
            ]
            for cell, pair, _ in results
        ],
        caption=f"{config.units} held-out images, {config.draws} relabellings. Share: of the smaller network's units.",
    )


STUDY = Study(
    name="platonic-stitching",
    title="Stitching networks, and units they share",
    question="Can one network go on from another's layer through one affine map, and do they have units in common?",
    citation="M. Huh et al., arXiv 2405.07987, sections on stitching and Rosetta neurons",
    config=StitchingConfig,
    cells=cells,
    claims=CLAIMS,
    report=report,
)
