"""What the papers say of compression steps, and how it is read off the results of `crate-denoising`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unrolled.studies.claim import CORRELATION, Claim
from unrolled.studies.crate.compared import of_kind
from unrolled.studies.crate.denoising.cells import DenoisingConfig, base, stack
from unrolled.studies.crate.denoising.steps import Stack, Steps
from unrolled.studies.crate.masked import MaskedLayers
from unrolled.studies.results import Results, Values

_MAE = "arXiv 2404.02446, section 2: structured denoising and diffusion"


def at(results: Results[Any], config: DenoisingConfig, **changes: Any) -> Results[Steps]:
    """Steps where the claims are judged, or where `changes` says otherwise."""
    return results.of(Steps, **{**base(config), **changes})


def cosine(results: Results[Any], config: DenoisingConfig, step: str) -> Values:
    """Of a step with the score, mean over tokens."""
    return at(results, config).values(f"steps.{step}.cosine")


def stacks(results: Results[Any], config: DenoisingConfig, rate: float | None = None) -> Results[Stack]:
    """The stacks of a rate; of the last, the published one, if none is said."""
    return results.of(Stack, **stack(config, config.rates[-1] if rate is None else rate))


def left(results: Results[Any], config: DenoisingConfig, kind: str = "published") -> Values:
    """Squared error after all layers over that before."""
    rows = stacks(results, config)
    return rows.values(f"stacks.{kind}.error.-1") / rows.values("stacks.published.error.0")


def undone(results: Results[Any], config: DenoisingConfig) -> Values:
    """Error with the decoder over that of the rescaled code, at what entered the first layer."""
    rows = stacks(results, config)
    return rows.values("reverse.decoder.0") / rows.values("reverse.rescaled.0")


def mirror(results: Results[Any], config: DenoisingConfig, *, trained: bool = True) -> Values:
    """How much more alike mirrored layers of a CRATE-MAE are than others."""
    return of_kind(results, MaskedLayers, "mae", config.data, trained=trained).values("mirror.all")


def where(config: DenoisingConfig) -> str:
    """The setting that the claims are judged at, in words."""
    return f"sigma {config.noise:g}, {config.heads} subspaces of {config.dim_head} in {config.dim} dimensions"


def _stacked(results: Results[Any], config: DenoisingConfig) -> str:
    def lowest(result: Mapping[str, Any]) -> float:
        errors = result["stacks"]["published"]["error"]
        return float(min(errors) / errors[0])

    rows = stacks(results, config)
    best = rows.values(lambda result: result["best"] / result["stacks"]["published"]["error"][0])
    return (
        f" after {config.layers} layers (at the best layer {min(rows.values(lowest)):.3f}; the best denoiser "
        f"{best.mean:.3f}; random subspaces {left(results, config, 'published, random subspaces'):.3f})"
    )


def _along(statement: str, step: str, published: str, source: str = _MAE) -> Claim:
    return Claim(
        statement=f"{statement} points along the score (mean cosine)",
        source=source,
        published=published,
        value=lambda results, config: cosine(results, config, step),
        low=0.9,
        within=CORRELATION,
        outside="a step in a direction of its own: 0; the step on R^c and its softmax form have 0.5 to 0.6",
        detail=lambda results, config: f" at {where(config)}",
    )


CLAIMS = (
    _along("A gradient step on R^c of all tokens", "R^c of all tokens", "approximately equal, no number"),
    _along("MSSA(Z) - Z, the softmax form of that step,", "MSSA(Z) - Z", "approximately equal, no number"),
    _along(
        "A softmax over heads of a token's projections, the step's model,",
        "softmax over heads",
        "equal as the noise vanishes",
        "arXiv 2306.01129, section 2.2",
    ),
    Claim(
        statement="Layers Z + MSSA(LN Z) denoise (squared error after all of them over that before)",
        source="arXiv 2404.02446; arXiv 2506.03790 proves that the signal-to-noise ratio grows with every layer",
        published="falls layer by layer",
        value=left,
        high=0.7,
        outside="layers that leave the tokens as they are: 1",
        control=lambda results, config: left(results, config, "published, random subspaces"),
        detail=_stacked,
    ),
    Claim(
        statement="The decoder's steps undo the encoder's (error with the decoder over that of the rescaled code)",
        source="arXiv 2404.02446, section 2",
        published="approximately inverse, no number",
        value=undone,
        high=0.5,
        outside="a decoder that does no more than rescale: 1",
        detail=lambda results, config: f" over {config.layers} layers, without a decoder but rescaled",
    ),
    Claim(
        statement="Decoder layer L - l of a trained CRATE-MAE resembles encoder layer l (CKA above that of other "
        "pairs)",
        source="arXiv 2404.02446: encoder and decoder mirror each other layer by layer",
        published="by design, no number",
        value=mirror,
        low=0.05,
        outside="layers that resemble all others alike: 0",
        control=lambda results, config: mirror(results, config, trained=False),
        detail=lambda results, config: f"; untrained {mirror(results, config, trained=False):.3f}",
    ),
)
