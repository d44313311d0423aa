"""What `crate-pretrain` is asked, and how it is read off the results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean, stdev
from typing import Any, TypeVar

from unrolled.studies.claim import CONTROL, NOBODY, Claim
from unrolled.studies.crate.pretrain.cells import OBJECTIVES, Layers, PretrainConfig, Probed, Question
from unrolled.studies.crate.pretrain.completion import HARMONIC, Completed, Inpainted
from unrolled.studies.crate.pretrain.learning import Learnt, Tuned
from unrolled.studies.crate.pretrain.networks import Fresh
from unrolled.studies.crate.pretrain.objectives import WORDS, Objective
from unrolled.studies.results import Estimate, Results, Values

_MAE = "arXiv 2404.02446"
_OURS = "a question of this package"
CellT = TypeVar("CellT", Completed, Layers, Probed, Tuned)


def learnt(
    results: Results[Any], kind: type[CellT], length: float, *, objective: Objective = "mae", form: str = "crate"
) -> Results[CellT]:
    """Rows of one kind of cell about networks that learnt so long."""
    wanted = (objective, form, length)
    return Results(
        row
        for row in results.of(kind)
        if isinstance(net := row.cell.network, Learnt) and (net.objective, net.form, net.operations) == wanted
    )


def fresh(results: Results[Any], kind: type[CellT], *, form: str = "crate") -> Results[CellT]:
    """Rows of one kind of cell about untrained networks."""
    return Results(
        row for row in results.of(kind) if isinstance(row.cell.network, Fresh) and row.cell.network.form == form
    )


def change(rows: Results[Layers], name: str = "rise") -> Values:
    """What decoders change of R^c, see `Layers`: by seed the mean over groups of images."""
    return rows.values(lambda result: fmean(result[name]))


def ratio(one: Sequence[float], other: Sequence[float]) -> Estimate:
    """Mean of the one over that of the other, of the same images, with a 95 % interval over images (delta method)."""
    value = fmean(one) / fmean(other)
    spread = stdev(a - value * b for a, b in zip(one, other, strict=True)) / fmean(other)
    half = 1.96 * spread / len(one) ** 0.5
    return Estimate(value, value - half, value + half, f"over {len(one)} images, one network")


def decoder(results: Results[Any], config: PretrainConfig, form: str, name: str = "rise") -> Values:
    """`change` of a form after its longest training, by seed."""
    return change(learnt(results, Layers, config.long, form=form), name) or _short(results, config, form, name)


def longer(results: Results[Any], config: PretrainConfig) -> Values:
    """The published decoder's rise after the long training less that after the short one, by seed."""
    return change(learnt(results, Layers, config.long, form="published")) - _short(results, config, "published")


def _short(results: Results[Any], config: PretrainConfig, form: str, name: str = "rise") -> Values:
    return change(learnt(results, Layers, config.trial, form=form), name)


def formed(results: Results[Any], config: PretrainConfig, form: str) -> Values:
    """The rise of a form less that of the published one, after the short training."""
    return _short(results, config, form) - _short(results, config, "published")


def loss(results: Results[Any], config: PretrainConfig, form: str) -> Values:
    """On removed patches of test images, normalised, by seed."""
    return learnt(results, Completed, config.length, form=form).values("loss")


def inpainted(results: Results[Any], unit: str = "normalised") -> list[float]:
    """Errors of harmonic inpainting, image by image; none if it was not computed."""
    return list(results.of(Inpainted).first(unit, []))


def beside_inpainting(results: Results[Any], config: PretrainConfig) -> Values:
    """Loss of CRATE-MAE over that of harmonic inpainting, by seed."""
    plain = inpainted(results)
    return loss(results, config, "crate") / fmean(plain) if plain else Values()


def shipped_beside_inpainting(results: Results[Any], config: PretrainConfig) -> Values | Estimate:
    """Error of the CRATE-MAE of pixels over that of harmonic inpainting."""
    rows, plain = learnt(results, Completed, config.ship, objective="mae-pixels"), inpainted(results, "pixels")
    return ratio(rows.first("errors"), plain) if rows and plain else Values()


def _of_images(results: Results[Any], config: PretrainConfig) -> str:
    rows, plain = learnt(results, Completed, config.length), inpainted(results)
    if not rows or not plain:
        return ""
    psnr = results.of(Inpainted).first("scores", {})[HARMONIC]["psnr"]
    return (
        f"; of the first network {ratio(rows.first('errors'), plain):.3f} over images; in pixels, where nobody is told "
        f"a patch's brightness, {rows.values('psnr'):.2f} dB for {psnr:.2f}"
    )


def probe(results: Results[Any], config: PretrainConfig, objective: Objective | None) -> Values:
    """Accuracy of the linear probe on test images, per cent, by seed; without an objective of untrained networks."""
    rows = fresh(results, Probed) if objective is None else learnt(results, Probed, config.length, objective=objective)
    return 100 * rows.values("accuracy")


def tuned(
    results: Results[Any], config: PretrainConfig, objective: Objective | None, *, few: bool, whole: bool = False
) -> Values:
    """Accuracy of fine-tuning on test images, per cent, by seed.

    Args:
        results: of the study.
        config: its settings.
        objective: of the pretraining; None: from scratch.
        few: with few labels.
        whole: from scratch, with the operations of pretraining too.
    """
    share, length = (config.few, config.tuning_few) if few else (1.0, config.tuning_all)
    rows = fresh(results, Tuned) if objective is None else learnt(results, Tuned, config.length, objective=objective)
    length += config.length if whole else 0.0
    return 100 * Results(row for row in rows if (row.cell.share, row.cell.tuning) == (share, length)).values("accuracy")


def _colour(results: Results[Any], config: PretrainConfig) -> Values:
    vit = loss(results, config, "vit")
    plain = results.of(Inpainted).first("scores", {}).get("mean colour of visible patches")
    return vit.map(lambda value: plain["loss"] / value) if plain else Values()


def _asks(question: Question) -> Callable[[PretrainConfig], bool]:
    return lambda config: question in config.questions


def _beside(results: Results[Any], config: PretrainConfig, form: str) -> str:
    """The same after the short training, where a longer one is judged, before training, and what the step does."""
    value, short = decoder(results, config, form), _short(results, config, form)
    words = [f" ({value.count})", f"untrained {change(fresh(results, Layers, form=form)):.3f}"]
    if value.by != short.by:
        words.append(
            f"after {config.trial:g} x 10^12 operations instead of {config.long:g} {short:.3f} ({short.count})"
        )
    words.append(f"a layer's own step {100 * decoder(results, config, form, 'step'):+.0f} %")
    return "; ".join(words)


def _decoder(form: str, statement: str, **kwargs: Any) -> Claim:
    return Claim(
        statement=statement,
        value=lambda results, config: decoder(results, config, form),
        low=0.0,
        control=lambda results, config: change(fresh(results, Layers, form=form)),
        detail=lambda results, config: _beside(results, config, form),
        asked=_asks("decoder"),
        **kwargs,
    )


def _formed(form: str, statement: str) -> Claim:
    return Claim(
        statement=statement,
        source=_OURS,
        published="none",
        unjudged=NOBODY,
        value=lambda results, config: formed(results, config, form),
        low=0.0,
        spec="+.3f",
        asked=_asks("decoder"),
    )


def _gains(objective: Objective) -> tuple[Claim, ...]:
    """What an objective adds to the probe, and to fine-tuning with few labels and with all."""

    def claim(statement: str, value: Any, detail: Any = None) -> Claim:
        more = {} if detail is None else {"detail": detail}
        return Claim(
            statement=statement,
            source="a comparison of this package",
            published="none",
            unjudged=NOBODY,
            value=value,
            low=0.0,
            spec="+.1f",
            asked=_asks("features"),
            **more,
        )

    def against(few: bool, whole: bool, results: Results[Any], config: PretrainConfig) -> Values:
        start = partial(tuned, results, config, few=few)
        return start(objective) - start(None, whole=whole)

    def fine_tuned(few: bool, words: str) -> Claim:
        return claim(
            f"What pretraining by {WORDS[objective]} adds to fine-tuning with {words} (accuracy, points, less that of "
            "training from scratch with the operations of both)",
            partial(against, few, True),
            lambda results, config: (
                f" points; less scratch as long as the fine-tuning {against(few, False, results, config):+.1f}"
            ),
        )

    return (
        claim(
            f"What pretraining by {WORDS[objective]} adds to the linear probe (accuracy, points, less untrained)",
            lambda results, config: probe(results, config, objective) - probe(results, config, None),
            lambda results, config: f" points; {probe(results, config, objective):.1f} %",
        ),
        fine_tuned(True, "a tenth of the labels"),
        fine_tuned(False, "all labels"),
    )


CLAIMS = (
    Claim(
        statement="At equal parameters and operations of training CRATE-MAE completes images about as well as ViT-MAE "
        "(ratio of losses on test images)",
        source=f"{_MAE}: comparable, at 30 % of the parameters",
        published="no number",
        value=lambda results, config: loss(results, config, "crate") / loss(results, config, "vit"),
        high=1.1,
        unjudged="the network here has the derived step and encodes visible patches, the paper's has neither",
        control=_colour,
        asked=_asks("completion"),
    ),
    Claim(
        statement=f"CRATE-MAE completes images better than {HARMONIC}, which learns nothing (ratio of losses on test "
        "images, patches normalised)",
        source=CONTROL,
        published="none",
        unjudged=CONTROL,
        value=beside_inpainting,
        high=1.0,
        detail=_of_images,
        asked=_asks("completion"),
    ),
    Claim(
        statement=f"A CRATE-MAE of pixels, trained longer, completes images better than {HARMONIC} (ratio of squared "
        "errors on test images)",
        source=CONTROL,
        published="none",
        unjudged=CONTROL,
        value=shipped_beside_inpainting,
        high=1.0,
        asked=_asks("ship"),
    ),
    _decoder(
        "published",
        "R^c rises through the decoder of a CRATE-MAE as published (last layer over first, less 1)",
        source=f"{_MAE}, layer-wise figures",
        published="rises: the decoder is the encoder reversed",
        outside="layers that compress, as those of the encoder",
    ),
    _decoder(
        "derived-tied",
        "R^c rises through a decoder that reverses the derived step, output tied (last layer over first, less 1)",
        source=_OURS,
        published="none",
        unjudged=NOBODY,
    ),
    Claim(
        statement="A longer training makes R^c rise more through the published decoder (long less short)",
        source=_OURS,
        published="none",
        unjudged=NOBODY,
        value=longer,
        low=0.0,
        spec="+.3f",
        asked=_asks("decoder"),
    ),
    _formed("tied", "Tied outputs alone make R^c rise more through the decoder (less published)"),
    _formed("derived", "The derived step alone makes R^c rise more through the decoder (less published)"),
    _formed("derived-tied", "The derived step with tied outputs makes R^c rise more (less published)"),
    *(claim for objective in OBJECTIVES for claim in _gains(objective)),
)
