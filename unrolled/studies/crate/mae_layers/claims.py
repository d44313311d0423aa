"""What the paper says of CRATE-MAE, and how it is read off the results of `crate-mae-layers`."""

from __future__ import annotations

import math
from typing import Any

from unrolled.studies.claim import CONTROL, NOBODY, Claim
from unrolled.studies.crate.compared import of_kind
from unrolled.studies.crate.mae_layers.cells import BASE, VIT_BASE, Baselines, Completed, MaeLayersConfig, Size
from unrolled.studies.crate.masked import MaskedLayers
from unrolled.studies.results import Results, Values

_SOURCE = "arXiv 2404.02446"
RATE = "rate_after"


def layers(results: Results[Any], config: MaeLayersConfig, *, trained: bool = True) -> Results[MaskedLayers]:
    """Layers of CRATE-MAE."""
    return of_kind(results, MaskedLayers, "mae", config.data, trained=trained)


def falls(results: Results[Any], config: MaeLayersConfig, *, trained: bool = True) -> Values:
    """R^c of the encoder's last layer over that of its first, less 1."""
    return _change(layers(results, config, trained=trained), "encoder")


def rises(results: Results[Any], config: MaeLayersConfig, *, trained: bool = True) -> Values:
    """The same of the decoder."""
    return _change(layers(results, config, trained=trained), "decoder")


def thins(results: Results[Any], config: MaeLayersConfig, *, trained: bool = True) -> Values:
    """Share of non-zeros after the encoder's last layer less that after its first."""
    rows = layers(results, config, trained=trained)
    return rows.values("encoder.-1.nonzero") - rows.values("encoder.0.nonzero")


def _change(rows: Results[MaskedLayers], stack: str) -> Values:
    return rows.values(f"{stack}.-1.{RATE}") / rows.values(f"{stack}.0.{RATE}") - 1


def loss(results: Results[Any], config: MaeLayersConfig, kind: str) -> Values:
    """Held-out loss of a trained masked autoencoder."""
    return of_kind(results, Completed, kind, config.data).values("loss")


def plain(results: Results[Any]) -> float:
    """Loss of harmonic inpainting, which is the same for all seeds."""
    return float(results.of(Baselines).first("scores.harmonic inpainting.loss", math.nan))


def share(results: Results[Any], count: str = "published") -> float:
    """Parameters of CRATE-MAE-B over those of ViT-MAE-B."""
    base, vit = (results.of(Size, model=name).first(count, math.nan) for name in (BASE, VIT_BASE))
    return float(base / vit)


def _learned(results: Results[Any], config: MaeLayersConfig) -> Values:
    return loss(results, config, "mae") / plain(results) if results.of(Baselines) else Values()


def _sizes(results: Results[Any], config: MaeLayersConfig) -> str:
    base, vit = (results.of(Size, model=name).first("published") for name in (BASE, VIT_BASE))
    return f" ({base:,} / {vit:,}; without unused parameters {share(results, 'total'):.1%})"


CLAIMS = (
    Claim(
        statement="R^c falls through the encoder of a trained CRATE-MAE (last layer over first, less 1)",
        source=f"{_SOURCE}, layer-wise figures",
        published="falls, shown as a figure",
        value=falls,
        high=0.0,
        outside="layers that expand, as those of the decoder should",
        control=lambda results, config: falls(results, config, trained=False),
        detail=lambda results, config: f"; untrained {falls(results, config, trained=False):.3f}",
    ),
    Claim(
        statement="R^c rises through its decoder (last layer over first, less 1)",
        source=f"{_SOURCE}, layer-wise figures",
        published="rises: the decoder is the encoder reversed",
        value=rises,
        low=0.0,
        outside="layers that compress, as those of the encoder",
        control=lambda results, config: rises(results, config, trained=False),
        detail=lambda results, config: f"; untrained {rises(results, config, trained=False):.3f}",
    ),
    Claim(
        statement="The share of non-zeros falls through its encoder (last layer minus first)",
        source=f"{_SOURCE}, layer-wise figures",
        published="falls, shown as a figure",
        value=thins,
        high=0.0,
        outside="layers that fill up: more than 0",
        control=lambda results, config: thins(results, config, trained=False),
        detail=lambda results, config: f"; untrained {thins(results, config, trained=False):.3f}",
    ),
    Claim(
        statement="CRATE-MAE-B has about 30 % of the parameters of ViT-MAE-B",
        source=f"{_SOURCE}, abstract; sizes in the authors' book",
        published="44.6 M / 143.8 M = 31 %",
        value=lambda results, config: share(results),
        low=0.29,
        high=0.33,
        outside="a model as large as the ViT, 1, or blocks with an overcomplete dictionary",
        point=True,
        spec=".1%",
        detail=_sizes,
    ),
    Claim(
        statement="At equal parameters CRATE-MAE reconstructs about as well as ViT-MAE (ratio of held-out losses)",
        source=f"{_SOURCE}: comparable, at 30 % of the parameters",
        published="no number",
        value=lambda results, config: loss(results, config, "mae") / loss(results, config, "vit-mae"),
        high=1.1,
        outside="the mean colour of the visible patches: 1.2",
        control=lambda results, config: (
            plain(results) / loss(results, config, "vit-mae").mean if results.of(Baselines) else Values()
        ),
    ),
    Claim(
        statement="CRATE-MAE reconstructs better than harmonic inpainting, which learns nothing (ratio of held-out "
        "losses)",
        source=CONTROL,
        published="-",
        unjudged=CONTROL,
        value=_learned,
        high=1.0,
    ),
    Claim(
        statement="A CRATE-MAE whose encoder sees the visible patches only (ratio of its loss to the published form's)",
        source=NOBODY,
        published="-",
        unjudged=NOBODY,
        value=lambda results, config: loss(results, config, "mae-visible") / loss(results, config, "mae"),
    ),
)
