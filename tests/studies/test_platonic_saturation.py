"""The law of diminishing returns: what it recovers, what overlaps are, and what the claims make of rows made up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from unrolled.alignment import get_metric
from unrolled.studies.cells import Row
from unrolled.studies.platonic import saturation
from unrolled.studies.platonic.photos import OfCaptions, TextModel
from unrolled.studies.platonic.returns import fit_law, neighbours, overlaps
from unrolled.studies.results import Results


def law(crops: int, captions: int, *, end: float, a: float, alpha: float, b: float, beta: float) -> Any:
    f, c = np.meshgrid(np.arange(1, crops + 1), np.arange(1, captions + 1), indexing="ij")
    return end - a * f**-alpha - b * c**-beta


def test_the_law_of_scores_that_follow_it_is_recovered() -> None:
    scores = law(4, 5, end=0.3, a=0.05, alpha=1.0, b=0.12, beta=0.7)
    fitted = fit_law(np.stack([scores, 2 * scores]))
    assert (fitted["r2"] > 0.9999).all()
    assert fitted["S"][0] == pytest.approx(0.3, rel=0.03)
    assert fitted["beta"][0] == pytest.approx(0.7, rel=0.15)
    assert fitted["many"][0] == pytest.approx((0.25 - 0.12 * 10**-0.7) / 0.13, rel=0.02)
    assert fitted["S"][1] == pytest.approx(2 * fitted["S"][0], rel=1e-6)


def test_scores_that_do_not_follow_a_law_have_a_low_r2() -> None:
    noise = np.random.default_rng(0).normal(size=(20, 4, 5))
    assert np.median(fit_law(noise)["r2"]) < 0.7


def test_overlaps_are_the_metric_photo_by_photo() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(60, 2, 8, generator=generator), dim=2)
    texts = torch.nn.functional.normalize(images + 0.5 * torch.randn(60, 2, 8, generator=generator), dim=2)
    shares = overlaps(images, texts, k=5)
    knn = get_metric("mutual_knn", k=5)
    assert shares.shape == (2, 2, 60)
    assert shares[1, 1].mean() == pytest.approx(knn(images.mean(1), texts.mean(1)), abs=1e-6)
    each = [knn(images[:, i], texts[:, j]) for i in (0, 1) for j in (0, 1)]
    assert shares[0, 0].mean() == pytest.approx(sum(each) / 4, abs=1e-6)


def test_neighbours_are_those_of_all_cosines() -> None:
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    cosines = torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=2).fill_diagonal_(-2)
    expected = torch.zeros(40, 40).scatter_(1, cosines.topk(4).indices, 1.0)
    assert (neighbours(x, 4) == expected.numpy()).all()


IMAGES, TEXTS = ("given:squeezenet1_1", "given:efficientnet_lite0"), ("given:minilm", "given:glove")


def made_up(r2: float, gain: float, text: str, *, shuffled: bool, image: str = IMAGES[0]) -> Row[Any]:
    entry = {"value": r2, "low": r2, "high": r2}
    numbers = dict.fromkeys(("S", "a", "alpha", "b", "beta", "many"), entry) | {"r2": entry}
    cell = saturation.Law(
        seen=saturation.OfCrops(image=image, pairs=64, crops=4, seed=0),
        read=OfCaptions(model=TextModel(text=text), pairs=64), k=10, resamples=2, shuffled=shuffled,
    )  # fmt: skip
    scores = [[0.1] * 5, [0.1] * 5, [0.1] * 5, [0.1 * gain] * 5]
    return Row(cell, {"scores": scores, "law": numbers, "foreign": 0.3, "n": 64}, 1.0)


def test_claims_are_judged_beside_shuffled_captions() -> None:
    config = saturation.SaturationConfig()
    rows = [made_up(0.99, 1.2, text, image=image, shuffled=False) for text in TEXTS for image in IMAGES]
    rows += [made_up(0.4, 1.0, text, image=image, shuffled=True) for text in TEXTS for image in IMAGES]
    verdicts = [claim.judge(Results(rows), config).verdict for claim in saturation.CLAIMS]
    assert verdicts == ["reproduced", "reproduced", "not judged"]
    rows = [
        made_up(0.99, 1.2, text, image=image, shuffled=shuffled)
        for text in TEXTS
        for image in IMAGES
        for shuffled in (False, True)
    ]
    assert saturation.CLAIMS[0].judge(Results(rows), config).verdict == "controls do the same"


def test_pairs_that_share_a_model_do_not_decide() -> None:
    gains = {TEXTS[0]: 1.2, TEXTS[1]: 1.02}
    rows = [
        made_up(0.99, gains[text] + 0.001 * place, text, image=image, shuffled=False)
        for text in TEXTS
        for place, image in enumerate((*IMAGES, "given:mobilenet_v1_075", "given:tiny_darknet"))
    ]
    judged = saturation.CLAIMS[1].judge(Results(rows), saturation.SaturationConfig())
    assert judged.verdict == "undecided"
    assert judged.over == "over 2 text models"
    assert "8 pairs of models" in judged.measured
    one = saturation.CLAIMS[1].judge(Results(rows[:1]), saturation.SaturationConfig())
    assert (one.verdict, one.interval) == ("undecided", None)


def test_crops_are_parts_of_the_photo() -> None:
    pixels = torch.full((3, 40, 50), 0.25)
    parts = saturation.crops_of(pixels, 3, torch.Generator().manual_seed(0))
    assert parts.shape == (3, 3, 160, 160)
    torch.testing.assert_close(parts, torch.full_like(parts, 0.25))
