"""What the papers say of the family: differences of accuracy between kinds, and how cost grows with tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from unrolled.studies.claim import CONTROL, Claim
from unrolled.studies.crate.compared import difference_claim
from unrolled.studies.crate.costs import exponent
from unrolled.studies.crate.family.cells import FamilyConfig, Growth
from unrolled.studies.kinds import KINDS
from unrolled.studies.results import NOT_RUN, Results

_ALPHA = "arXiv 2405.20299, build-up at B/32 (ImageNet-21K, then 1K), points"
_POINTS = "ImageNet-1K, accuracy in points"
_NO_GAIN = "a kind that is as accurate or less: 0 and below"


def _growth(statement: str, kinds: tuple[str, ...], pick: Callable[..., float], **claim: Any) -> Claim:
    """About the exponent of operations between the two largest sizes, which must reach 4,096 tokens."""

    def exponents(results: Results[Any]) -> dict[str, float]:
        sizes = results.of(Growth)[0].result
        return {kind: exponent(sizes["tokens"], sizes["flops"][kind]) for kind in kinds}

    def words(results: Results[Any], config: FamilyConfig) -> str:
        return " (" + ", ".join(f"{KINDS[kind].words} {value:.2f}" for kind, value in exponents(results).items()) + ")"

    return Claim(
        statement=statement,
        value=lambda results, config: pick(exponents(results).values()) if results.of(Growth) else math.nan,
        point=True,  # counted, not drawn
        spec=".2f",
        detail=words,
        # smaller sizes are another claim
        unless=lambda config: "" if config.sides[-1] >= 256 else NOT_RUN,
        **claim,
    )


# ranges were fixed before the networks they judge were trained. CBT was first held against the CRATE without
# convolutions, and missed its range: CRATE with its stem came in, the range stayed
CLAIMS = (
    difference_claim(
        "An overcomplete dictionary raises CRATE's accuracy",
        "overcomplete",
        "crate",
        source=_ALPHA,
        outside=_NO_GAIN,
        published="+5.3",
        low=0.0,
    ),
    difference_claim(
        "Decoupling the dictionary that decodes raises accuracy further",
        "decoupled",
        "overcomplete",
        source=_ALPHA,
        outside=_NO_GAIN,
        published="+2.0",
        low=0.0,
    ),
    difference_claim(
        "The residual connection raises accuracy further",
        "alpha",
        "decoupled",
        source=_ALPHA,
        outside=_NO_GAIN,
        published="+0.7",
        low=0.0,
    ),
    difference_claim(
        "A ViT of CRATE's width is more accurate (ViT less CRATE)",
        "vit",
        "crate",
        source=f"arXiv 2306.01129, table 1, ViT small and CRATE tiny, both 384 wide; {_POINTS}",
        published="72.4 - 66.7 = +5.7, with 3.6 times the parameters",
        low=0.0,
        outside=_NO_GAIN,
    ),
    difference_claim(
        "A ViT of as many parameters as CRATE is more accurate (ViT less CRATE)",
        "vit-48",
        "crate",
        source=f"arXiv 2306.01129, table 1, tiny; {_POINTS}",
        published="71.5 - 66.7 = +4.8",
        low=0.0,
        outside=_NO_GAIN,
    ),
    difference_claim(
        "A ViT of as many operations as CRATE is more accurate (ViT less CRATE)",
        "vit-52",
        "crate",
        source=CONTROL,
        published="none",
        low=0.0,
        unjudged=CONTROL,
    ),
    difference_claim(
        "CBT comes within 3 points of CRATE (CBT less CRATE with the same convolutional stem)",
        "cbt",
        "crate-conv",
        source=f"arXiv 2509.16875, tiny and small; {_POINTS}, same stem",
        published="-1.5 and -0.7",
        low=-3.0,
        high=3.0,
        outside="kinds as different as ToST and a ViT, by 9 points",
    ),
    difference_claim(
        "ToST comes within 4 points of a ViT of its width (ToST less ViT)",
        "tost",
        "vit",
        source=f"the deep-representation-learning book, small; {_POINTS}",
        published="77.9 - 79.8 = -1.9",
        low=-4.0,
        high=4.0,
        unjudged="ToST begins with convolutions here, which bring CRATE 9 points, and the ViT does not",
    ),
    difference_claim(
        "Attention alone comes within 5 points of CRATE (attention only less CRATE)",
        "attention-only",
        "crate",
        source="arXiv 2506.03790",
        published="close to the standard transformer, on text; no number for images",
        low=-5.0,
        unjudged="published for text alone",
    ),
    _growth(
        "ToST and CBT cost linearly in tokens (larger exponent of operations, 1,024 to 4,096 tokens)",
        ("tost", "cbt"),
        max,
        source="arXiv 2412.17810; arXiv 2509.16875",
        published="1",
        high=1.1,
        outside="softmax attention, which tends to 2",
    ),
    _growth(
        "CRATE and the ViT tend to quadratic cost (smaller exponent, 1,024 to 4,096 tokens)",
        ("crate", "vit"),
        min,
        source="softmax attention compares all tokens",
        published="towards 2",
        low=1.5,
        unjudged="known of softmax attention; a control of the claim before",
    ),
)
