"""What `platonic-implications` judges, and how it is read off the results."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any

from unrolled.studies.claim import CONTROL, CORRELATION, SHARE, Claim
from unrolled.studies.platonic.implications.cells import ImplicationsConfig, Joined, Networks, Private, Translated
from unrolled.studies.results import Results, Values


def at_the_end(results: Results[Any]) -> Results[Translated]:
    """Modalities after unlimited training."""
    return results.of(Translated, steps=None)


def untrained(results: Results[Any]) -> Results[Translated]:
    """The control: modalities that were not trained, and are matched by chance."""
    return results.of(Translated, steps=0)


def saved(rows: Results[Translated], by: str = "bits") -> Values:
    """Bits of prediction that the other modality saves, across the match or, by `shuffled`, across one at random.

    A match of an event's two symbols with two symbols of another event still knows that an event goes with itself,
    since it keeps the diagonal of the kernel: wrong matches save bits too.
    """
    return rows.values("unconditional") - rows.values(by)


def gain(results: Results[Any], config: ImplicationsConfig) -> Values:
    """CKA with the events' kernel of both modalities together less that of the better one, mean over `symbols`."""
    each = [
        results.of(Joined, symbols=symbols).values(lambda cka: cka["together"] - max(cka["one"], cka["other"]))
        for symbols in config.symbols
    ]
    return reduce(add, each) / len(each)


def apart(results: Results[Any], config: ImplicationsConfig) -> Values:
    """How much further specialists are from generalists than they from each other."""
    networks = results.of(Networks)
    among, between = (networks.values(f"alignment.generalist and {other}") for other in ("generalist", "specialist"))
    return among - between


def _stated(statement: str, section: str, **judged: Any) -> Claim:
    source, published = f"arXiv 2405.07987, section {section}", "stated, no number"
    return Claim(**{"statement": statement, "source": source, "published": published, "spec": ".2f", **judged})


CLAIMS = (
    _stated(
        "Two modalities are matched without pairs by the structure of their kernels (share of events, trained to the "
        "end)",
        "5, translation",
        value=lambda results, config: at_the_end(results).values("matched"),
        low=0.9,
        within=SHARE,
        outside="modalities that are matched by chance, 0.06, or after too short a training",
        detail=lambda results, config: f"; chance {1 / config.events:.2f}",
    ),
    _stated(
        "Two lossy modalities together come closer to the events' kernel than the better one (difference of CKA)",
        "5, training data can be shared",
        value=gain,
        low=0.0,
        outside="modalities that lose the same: 0",
    ),
    _stated(
        "Knowing the other modality, matched without pairs, saves bits of prediction (bits against unconditional)",
        "5, conditional against unconditional",
        value=lambda results, config: saved(at_the_end(results)),
        low=0.0,
        outside="a match across which nothing is known of an event: 0",
        control=lambda results, config: saved(untrained(results)),
        detail=lambda results, config: (
            f" bits; a match at random {saved(at_the_end(results), 'shuffled'):.2f}, untrained modalities "
            f"{saved(untrained(results)):.2f}"
        ),
    ),
    Claim(
        statement="It saves more than a match at random, which still knows that an event goes with itself (bits of the "
        "one against the other)",
        source=CONTROL,
        published="not measured",
        value=lambda results, config: at_the_end(results).values("shuffled") - at_the_end(results).values("bits"),
        low=0.0,
        unjudged=CONTROL,
        spec=".2f",
        detail=lambda results, config: " bits",
    ),
    _stated(
        "A network taught one task is further from generalists than they from each other (difference of mutual 10-NN)",
        "6, special-purpose intelligence",
        value=apart,
        low=0.0,
        outside="one task that teaches as much as ten: 0",
        spec=".3f",
    ),
    _stated(
        "What only one modality sees lowers alignment (rank correlation of CKA with private bits)",
        "6, different modalities contain different information",
        value=lambda results, config: results.of(Private).correlation("bits", "cka"),
        high=-0.9,
        within=CORRELATION,
        outside="alignment that private bits leave as it is: 0",
    ),
)
