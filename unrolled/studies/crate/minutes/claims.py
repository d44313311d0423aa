"""What `crate-minutes` is asked; nothing is judged, since no paper has these numbers."""

from __future__ import annotations

from typing import Any

from unrolled.studies.claim import CONTROL, NOBODY, Claim
from unrolled.studies.crate.minutes.cells import MinutesConfig, Scored
from unrolled.studies.results import Results, Values


def accuracy(results: Results[Any], family: str, minutes: float) -> Values:
    """On the test images, per cent, by seed."""
    return 100 * results.of(Scored, family=family, minutes=minutes).values("accuracy")


def _less(one: str, other: str, statement: str, *, source: str, published: str, unjudged: str) -> Claim:
    """The difference after the longest training, and after the shorter ones."""

    def value(results: Results[Any], config: MinutesConfig) -> Values:
        longest = max(config.minutes)
        return accuracy(results, one, longest) - accuracy(results, other, longest)

    def detail(results: Results[Any], config: MinutesConfig) -> str:
        *shorter, longest = sorted(config.minutes)
        words = [f" points after {longest:g} core-minutes"]
        for minutes in shorter:
            values = accuracy(results, one, minutes) - accuracy(results, other, minutes)
            words.append(f"{values:+.1f} after {minutes:g}")
        return "; ".join(words)

    return Claim(
        statement=statement,
        source=source,
        published=published,
        unjudged=unjudged,
        value=value,
        detail=detail,
        spec="+.1f",
    )


CLAIMS = (
    _less(
        "vit",
        "crate",
        "A ViT of CRATE's operations, trained as long (ViT less CRATE)",
        source=CONTROL,
        published="none",
        unjudged=CONTROL,
    ),
    _less(
        "crate",
        "attention-only",
        "What ISTA adds to compression alone, trained as long (CRATE less attention only)",
        source="arXiv 2506.03790 drops the second half of the layer",
        published="close to the standard transformer, on text; no number for images",
        unjudged="published for text alone",
    ),
    _less(
        "crate",
        "published-step",
        "What the derived compression adds to the published one (CRATE less CRATE as published)",
        source="a question of this package",
        published="none",
        unjudged=NOBODY,
    ),
)
