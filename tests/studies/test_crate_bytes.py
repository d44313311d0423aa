"""Models of bytes beside counting: sizes are equal, counts are probabilities, mixtures and repetitions as they say."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unrolled.data.tokens import ByteTokenizer
from unrolled.studies.crate.bytes import STUDY
from unrolled.studies.crate.bytes.cells import FAMILIES, BytesConfig, best_share, frame_of, mixed, repeats
from unrolled.studies.crate.bytes.counts import KneserNey, packed
from unrolled.studies.language import alternating, inner_parameters

TEXT = ByteTokenizer().encode("the cat sat on the mat and the dog sat on the log; " * 40)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_have_equal_parameters(family: str) -> None:
    frame, other = frame_of(family, 4, 64, 4, 128), frame_of("GPT-2", 4, 64, 4, 128)
    assert inner_parameters(frame) == pytest.approx(inner_parameters(other), rel=0.02)


@pytest.mark.parametrize("order", [1, 2, 5])
def test_counts_are_probabilities_of_the_next_byte(order: int) -> None:
    counts = KneserNey(TEXT, order)
    context = TEXT[7:12]
    rows = torch.cat([context.expand(256, -1), torch.arange(256)[:, None]], dim=1)
    assert float(torch.exp(-counts.losses(rows)[:, -1]).sum()) == pytest.approx(1)


def test_longer_contexts_help_on_text_and_not_without_order() -> None:
    rows = TEXT[: 51 * 39].view(39, 51)
    losses = [float(KneserNey(TEXT, order).losses(rows).mean()) for order in (1, 2, 5)]
    assert losses == sorted(losses, reverse=True)
    torch.manual_seed(0)
    noise = torch.randint(256, (4000,))
    held = torch.randint(256, (20, 30))
    assert float(KneserNey(noise, 5).losses(held).mean()) > 5.4  # ln 256 = 5.545 is the best there is


def test_counts_at_the_order_of_the_definition() -> None:
    # "abab" and "ac": b follows a twice, c once; a continuation of a lower order counts contexts, not times
    text = ByteTokenizer().encode("ababac")
    counts = KneserNey(text, 2)  # discounts of so short a text are a half, one, one and a half
    row = ByteTokenizer().encode("ac")[None]
    uniform = 1 / 256
    # order 1: distinct bigrams ab, ba, ac: b, a and c end one each
    lower = (1 - 0.5) / 3 + (3 * 0.5 / 3) * uniform
    expected = (1 - 0.5) / 3 + ((0.5 + 1.0) / 3) * lower
    assert float(torch.exp(-counts.losses(row))) == pytest.approx(expected)


@pytest.mark.parametrize("order", [1, 3, 4])
def test_counts_of_a_longer_text_at_every_order(order: int) -> None:
    # long enough that discounts are estimated; the second row has bytes and contexts that the text has not
    draws = torch.rand(400, generator=torch.Generator().manual_seed(0))
    text = (4 * draws.square()).long()
    row = torch.stack([text[5:25], torch.randint(6, (20,), generator=torch.Generator().manual_seed(1))])
    counts = {
        length: Counter(tuple(text[i : i + length].tolist()) for i in range(len(text) - length + 1))
        for length in range(1, order + 1)
    }
    contexts = {length: Counter(gram[1:] for gram in counts[length + 1]) for length in range(1, order)}

    def discounts(grams: Counter[tuple[int, ...]]) -> list[float]:
        of = [sum(1 for count in grams.values() if count == wanted) for wanted in range(5)]
        if not all(of[1:]):
            return [0.0, 0.5, 1.0, 1.5]
        share = of[1] / (of[1] + 2 * of[2])
        raw = [(i, i - (i + 1) * share * of[i + 1] / of[i]) for i in (1, 2, 3)]
        return [0.0, *(min(max(value, 0.05), i - 0.05) for i, value in raw)]

    def probability(context: tuple[int, ...], byte: int, *, highest: bool = True) -> float:
        lower = probability(context[1:], byte, highest=False) if context else 1 / 256
        grams = (counts if highest else contexts)[len(context) + 1]
        after = {gram[-1]: count for gram, count in grams.items() if gram[:-1] == context}
        if not after:
            return lower
        less, total, count = discounts(grams), sum(after.values()), after.get(byte, 0)
        given = sum(less[min(each, 3)] for each in after.values()) / total
        return max(count - less[min(count, 3)], 0) / total + given * lower

    losses = KneserNey(text, order).losses(row)
    for values, each in zip(row.tolist(), losses.tolist(), strict=True):
        expected = [-math.log(probability(tuple(values[max(0, t - order + 1) : t]), values[t])) for t in range(1, 20)]
        assert each == pytest.approx(expected)


def test_the_start_of_an_excerpt_is_counted_by_the_order_that_it_has() -> None:
    rows = torch.stack([TEXT[5:15], TEXT[30:40]])
    losses = KneserNey(TEXT, 5).losses(rows)
    for order in (2, 3, 4):
        torch.testing.assert_close(losses[:, order - 2], KneserNey(TEXT, order).losses(rows)[:, order - 2])


def test_a_packer_saves_what_it_has_seen() -> None:
    torch.manual_seed(0)
    noise = torch.randint(256, (4096,))
    assert packed(noise[:2048], after=noise) < 1
    assert packed(torch.randint(256, (2048,)), after=noise) > 5


def test_a_mixture_is_as_good_as_its_better_half_at_least() -> None:
    good, bad = torch.rand(50, dtype=torch.float64), 3 + torch.rand(50, dtype=torch.float64)
    torch.testing.assert_close(mixed(good, bad, 1.0), good)
    share = best_share(good, bad, torch.arange(1, 20) / 20)
    assert share == pytest.approx(0.95)
    assert best_share(bad, good, torch.arange(1, 20) / 20) == pytest.approx(0.05)


def test_repetition_is_told_from_another_beginning() -> None:
    def copies(rows: Tensor) -> Tensor:  # a reader that knows the byte half a context ago
        half = rows.shape[1] // 2
        losses = torch.ones(rows.shape[0], rows.shape[1] - 1)
        losses[:, half - 1 :] = (rows[:, half:] != rows[:, :half]).float()
        return losses

    rows = torch.arange(6 * 21).view(6, 21)
    assert repeats(copies, rows) == {"repeated": 0.0, "unrepeated": 1.0}


def test_held_out_parts_of_a_mixture_take_turns() -> None:
    one, other = torch.arange(10), torch.arange(100, 107)
    assert alternating([one, other], block=3).tolist() == [0, 1, 2, 100, 101, 102, 3, 4, 5, 103, 104, 105]


def test_an_unknown_family_is_named() -> None:
    with pytest.raises(ValueError, match=r"twice: 'GPT' is none of GPT-2"):
        BytesConfig(twice=("GPT",))


def test_every_asked_model_is_on_the_page(corpus: Path) -> None:
    sizes: dict[str, Any] = {
        **{"corpora": ("tinyshakespeare",), "families": ("LLaMA", "ToST"), "twice": ("LLaMA",), "longer": ("ToST",)},
        **{"depth": 1, "dim": 16, "heads": 2, "length": 24, "batch_size": 2, "steps": 3, "long_steps": 4, "points": 2},
        **{"trial_steps": 1, "rates": (1e-3, 3e-3), "early": 2, "late": 18, "window": 4, "test_bytes": 400},
        **{"val_bytes": 200, "workers": 1, "data_dir": corpus, "kept": corpus / "kept", "out": corpus / "out"},
    }
    report = STUDY.run(BytesConfig(**sizes))
    page = (corpus / "out" / "report.html").read_text()
    for words in ("LLaMA", "ToST", "5-gram counts, Kneser-Ney", "xz", "tinyshakespeare"):
        assert words in page
    assert [claim.statement.split()[0] for claim in report.claims] == ["LLaMA"]  # others are of families not asked
