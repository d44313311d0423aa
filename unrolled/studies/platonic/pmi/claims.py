"""What `platonic-pmi` judges, and how it is read off the results."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

from unrolled.studies.claim import CORRELATION, NOBODY, Claim
from unrolled.studies.platonic.pmi.cells import GROUPS, Blurred, Learnt, PmiConfig, Reached
from unrolled.studies.results import Results, Values

_SOURCE = "arXiv 2405.07987, section 4"


def learners(results: Results[Any], group: str, key: str, look: int = -1) -> Values:
    """`errors` or `offsets`, by seed the mean of its two learners."""
    return results.of(Learnt, **GROUPS[group]).values(lambda result: fmean(log[look] for log in result[key]))


def agreement(results: Results[Any], group: str, key: str = "cka", look: int = -1) -> Values:
    """Of the two modalities, by seed."""
    return results.of(Learnt, **GROUPS[group]).values(f"agreement.{look}.{key}")


def constant_off(results: Results[Any], config: PmiConfig) -> Values:
    """Binary NCE's constant less the one that theory gives."""
    from unrolled.theory import nce_offset

    return learners(results, "binary NCE", "offsets") - nce_offset(config.share_of_true_pairs)


def largest_error(results: Results[Any], config: PmiConfig) -> float:
    """Of one encoder by losses whose constant is large enough, where the paper's condition holds; NaN if nowhere.

    Like the ratio below it is of the minimum of an expected loss, which no sample enters, so there is no interval.
    """
    met = [row.result["errors"] for row in results.of(Reached) if row.result["condition"]]
    return max((errors[loss] for errors in met for loss in ("infonce 1", "nce 0.9 1")), default=math.nan)


def smallest_ratio(results: Results[Any], config: PmiConfig) -> float:
    """Error of one encoder over that of two, where no constant makes K_PMI positive semi-definite; NaN if any does."""
    never = [row.result["errors"] for row in results.of(Reached) if row.result["smallest_offset"] == math.inf]
    return min((errors["infonce 1"] / errors["infonce 2"] for errors in never), default=math.nan)


def trend(results: Results[Any], config: PmiConfig) -> Values:
    """Rank correlation of agreement and bits lost over all numbers of symbols."""
    return results.of(Blurred, kind="merge").correlation("bits", "cka")


CLAIMS = (
    Claim(
        statement="InfoNCE's kernel is K_PMI up to a constant (error left over, as a share of its standard deviation)",
        source=_SOURCE,
        published="equal (proved)",
        value=lambda results, config: learners(results, "InfoNCE", "errors"),
        high=0.15,
        outside="a learner of shuffled pairs: 1",
        control=lambda results, config: learners(results, "InfoNCE, pairs shuffled", "errors"),
    ),
    Claim(
        statement="Binary NCE's constant is log(p / (1 - p)) (difference, nats)",
        source=f"{_SOURCE}, appendix",
        published="equal (proved)",
        value=constant_off,
        low=-0.15,
        high=0.15,
        outside="a learner that is not trained, off by log(p / (1 - p)) = 2.2",
    ),
    Claim(
        statement="Two modalities that observe bijectively end at the same kernel (unbiased CKA)",
        source=_SOURCE,
        published="equal (proved)",
        value=lambda results, config: agreement(results, "InfoNCE"),
        low=0.95,
        within=CORRELATION,
        outside="learners of shuffled pairs: 0",
        control=lambda results, config: agreement(results, "InfoNCE, pairs shuffled"),
    ),
    Claim(
        statement="Agreement falls as one modality loses more (rank correlation of CKA with bits lost, merged events)",
        source="arXiv 2405.07987, section 6: the argument needs bijective observation",
        published="stated, no number",
        value=trend,
        high=-0.9,
        within=CORRELATION,
        outside="agreement that does not depend on what is lost: 0",
        spec=".2f",
    ),
    Claim(
        statement="Where the paper's sufficient condition holds, one encoder reaches K_PMI by losses whose constant is "
        "large enough (InfoNCE and binary NCE with p = 0.9, largest error)",
        source=f"{_SOURCE}, appendix",
        published="exact (proved)",
        value=largest_error,
        high=0.01,
        outside="binary NCE with p of 0.5 or less, whose constant is too small there: 0.2 and more",
        point=True,
        spec=".1e",
    ),
    Claim(
        statement="Where no constant makes K_PMI positive semi-definite, one encoder stays off it and two do not "
        "(ratio)",
        source="consequence of f(a)^T f(b) being a Gram matrix; arXiv 2405.07987 assumes the condition",
        published="not measured",
        value=smallest_ratio,
        low=10.0,
        unjudged=NOBODY,
        point=True,
        spec=".0f",
    ),
)
