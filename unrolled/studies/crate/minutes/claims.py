"""What `crate-minutes` is asked; nothing is judged, since no paper has these numbers."""

from __future__ import annotations

from typing import Any

from unrolled.studies.claim import CONTROL, NOBODY, Claim
from unrolled.studies.crate.minutes.cells import MinutesConfig, Scored, Trial, epochs, trial_minutes
from unrolled.studies.results import Results, Values

ELSEWHERE = "published of a million larger images and more, trained by epochs"


def accuracy(results: Results[Any], family: str, minutes: float) -> Values:
    """On the test images, per cent, by seed."""
    return 100 * results.of(Scored, family=family, minutes=minutes).values("accuracy")


def passes(config: MinutesConfig, family: str) -> int:
    """Of a trial over the images that are not held out."""
    return epochs(family, config.data, config.trial)


def held_out(results: Results[Any], family: str) -> Values:
    """Of the best trial, per cent of the images held out."""
    rates = {row.cell.rate for row in results.of(Trial, family=family)}
    tried = [100 * results.of(Trial, family=family, rate=rate).values("accuracy") for rate in rates]
    return max(filter(len, tried), key=lambda values: values.mean, default=Values())


def _less(one: str, other: str, statement: str, *, source: str, published: str, unjudged: str) -> Claim:
    """The difference after the training that most seeds have, the longest of these; then after the others."""

    def by_minutes(results: Results[Any], config: MinutesConfig) -> dict[float, Values]:
        """The difference at every length that both have, that of most seeds first."""
        lengths = sorted(config.minutes, reverse=True)
        of = {minutes: accuracy(results, one, minutes) - accuracy(results, other, minutes) for minutes in lengths}
        measured = [minutes for minutes in lengths if of[minutes]]
        return {minutes: of[minutes] for minutes in sorted(measured, key=lambda minutes: -len(of[minutes]))}

    def value(results: Results[Any], config: MinutesConfig) -> Values:
        return next(iter(by_minutes(results, config).values()), Values())

    def detail(results: Results[Any], config: MinutesConfig) -> str:
        (first, _), *others = by_minutes(results, config).items()
        tried = held_out(results, one) - held_out(results, other)
        took = (f"{trial_minutes(name, config.data, passes(config, name)):.1f}" for name in (one, other))
        trials = [f"{tried:+.1f} on held-out images in the trials, of {' and '.join(took)} (1 seed)"] if tried else []
        return "; ".join(
            [
                f" points after {first:g} core-minutes",
                *(f"{values:+.1f} after {minutes:g} ({values.count})" for minutes, values in others),
                *trials,
            ]
        )

    return Claim(
        statement=statement,
        source=source,
        published=published,
        unjudged=unjudged,
        value=value,
        detail=detail,
        spec="+.1f",
        asked=lambda config: {one, other} <= set(config.families),
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
        "cct",
        "crate",
        "The same of that ViT when it pools over the sequence, as CCT does (less CRATE)",
        source="the pooling: arXiv 2104.05704; the comparison: " + CONTROL,
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
        "alpha",
        "crate",
        "CRATE-alpha of width 64, trained as long (less CRATE)",
        source="arXiv 2405.20299",
        published="+8.0 on ImageNet-1k at B/32 after ImageNet-21k, with more parameters (76.5 for 68.5)",
        unjudged=ELSEWHERE,
    ),
    _less(
        "tost",
        "crate",
        "ToST, whose second half is an MLP, trained as long (less CRATE)",
        source="arXiv 2412.17810; with ISTA instead of the MLP: arXiv 2509.16875",
        published="+0.6 and +8.7 on ImageNet-1k by two recipes (67.3 for 66.7, 77.9 for 69.2); with ISTA -3.5 and -3.6",
        unjudged=ELSEWHERE,
    ),
    _less(
        "cbt",
        "crate",
        "CBT, trained as long (less CRATE)",
        source="arXiv 2509.16875",
        published="-1.5 and -0.7 on ImageNet-1k, attention alone changed (63.2 for 64.7, 71.4 for 72.1)",
        unjudged=ELSEWHERE,
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
