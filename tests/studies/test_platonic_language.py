"""Language models beside image networks: likelihoods, items of the stand-ins, and claims on rows made up."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from unrolled.errors import MissingData
from unrolled.instruments.sequences.bits_per_byte import bits_per_byte
from unrolled.studies.cells import Context, Row
from unrolled.studies.platonic.language import STUDY, cells, claims, tasks
from unrolled.studies.platonic.language.readers import Bytes, Named, nats
from unrolled.studies.platonic.photos import OfPhotos
from unrolled.studies.results import Estimate, Results

TINY = Bytes(
    model="bytes", corpus="tinyshakespeare", depth=1, dim=16, heads=1, seed=0, length=64, batch_size=2, steps=2,
    rates=(1e-3,), points=1, val_bytes=1000,
)  # fmt: skip


def test_nats_of_a_text_are_what_bits_per_byte_counts(corpus: Path) -> None:
    opened = TINY.open(Context(data_dir=corpus, store=corpus / "kept"))
    text = "to be or not to be"
    assert opened.model is not None
    counted = bits_per_byte(opened.model, text, opened.encode, length=60, start=opened.start)
    both = nats(opened, [text, "a longer text in the same batch"])
    assert float(both[0]) == pytest.approx(counted["bits"] * math.log(2), rel=1e-5)
    rest = nats(opened, [text], ["to be or"])
    assert float(rest[0]) == pytest.approx(float(both[0] - nats(opened, ["to be or"])[0]), rel=1e-5)


def test_bytes_beyond_what_a_model_was_built_for_are_left_out(corpus: Path) -> None:
    opened = TINY.open(Context(data_dir=corpus, store=corpus / "kept"))
    assert opened.collate(["x" * 500])["input_ids"].shape[1] == 63
    assert torch.isfinite(nats(opened, ["x" * 500])).all()


def test_a_model_that_is_not_in_the_folder_is_named_with_its_flag(tmp_path: Path) -> None:
    context = cells.LanguageConfig(models_dir=tmp_path / "none", kept=tmp_path).context
    with pytest.raises(MissingData, match=r"models_dir.*smollm2-135m.*models_dir="):
        Named(text="smollm2-135m").require(context)


def test_endings_are_of_other_captions_and_sums_are_wrong_by_one_or_ten() -> None:
    captions = [f"a {word} runs over the {word} grass" for word in ("dog", "cat", "boy", "girl", "man", "horse")]
    starts, rows = tasks.endings(captions, 0)
    assert all(start + row[0] == caption for start, row, caption in zip(starts, rows, captions, strict=True))
    assert all(len(set(row)) == 4 for row in rows)
    for start, row in zip(*tasks.sums(50, 0), strict=True):
        a, b = start.removesuffix(" =").split(" + ")
        assert int(row[0]) == int(a) + int(b)
        assert {abs(int(each) - int(row[0])) for each in row[1:]} <= {1, 10}
        assert len({each for each in row if len(each) == 3}) == 4


@pytest.mark.parametrize("size", ["2x64", "2x64x0", "axbxc"])
def test_a_size_of_a_model_of_bytes_is_checked(size: str) -> None:
    with pytest.raises(ValueError, match="LAYERSxWIDTHxSTEPS"):
        cells.LanguageConfig(bytes=(size,))


CONFIG = cells.LanguageConfig(images=("given:squeezenet1_1", "given:mobilenet_v1_075"))


def rows_made_up(gain: Callable[[Any], float]) -> Results[Any]:
    """Rows of every reader: bits per byte fall along the roster, the gain is as given."""
    rows: list[Row[Any]] = []
    for place, reader in enumerate(CONFIG.readers):
        bits = 4.0 - 0.3 * place if reader in CONFIG.causal else 8.0
        if reader.causal:
            for domain in ("captions", "general"):
                cell: Any = tasks.Bits(reader=reader, domain=domain, pieces=9, pairs=400)  # type: ignore[arg-type]
                rows.append(Row(cell, {"bits_per_byte": bits, "error": 0.1, "parameters": 10**place}, 1.0))
        for number, image in enumerate(CONFIG.images):
            cell = cells.Agreement(
                seen=OfPhotos(image=image, pairs=400), read=cells.Read(reader=reader, pairs=400), layers=9, k=10,
                draws=9, resamples=2, seed=0,
            )  # fmt: skip
            value = gain(reader) + 0.01 * number
            knn = {
                "score": value, "chance": 0.0, "gain": value, "p_value": 0.005 if value > 0.05 else 0.5, "n": 400,
                "interval": [value, value], "best": ["a", "b"], "scores": [[value, value]],
                "held_out": {"score": value, "chance": 0.0, "pair": ["a", "b"], "p_value": 0.005, "n": 200},
            }  # fmt: skip
            result = {"knn": knn, "cka": knn, "layers_image": ["a"], "layers_text": ["b", "c"]}
            rows += [Row(cell, result, 1.0), Row(replace(cell, exchanged=True), result, 1.0)]
    return Results(rows)


def verdict(words: str, results: Results[Any]) -> str:
    claim = next(claim for claim in claims.CLAIMS if claim.statement.startswith(words))
    return str(claim.judge(results, CONFIG).verdict)


def test_trends_are_judged_by_an_interval_over_models() -> None:
    place = {reader: number for number, reader in enumerate(CONFIG.readers)}
    rising = rows_made_up(lambda reader: 0.1 + 0.02 * place[reader] if reader != CONFIG.twin else 0.0)
    assert verdict("Share of pairs", rising) == "reproduced"
    assert verdict("Better language models agree more with vision", rising) == "reproduced"
    assert verdict("Training makes", rising) == "not judged"
    falling = rows_made_up(lambda reader: 0.5 - 0.02 * place[reader])
    assert verdict("Better language models agree more with vision", falling) == "not reproduced"
    assert verdict("Share of pairs", falling) == "controls do the same"
    assert verdict("A real language model learns in context", falling) == "not run"
    view = claims.View(rising, CONFIG)
    assert view.against_twin().mean > 0.1
    assert isinstance(claims.partial_trend(view.trained, "general", -1.0), Estimate)


def test_the_page_says_what_was_not_run() -> None:
    from unrolled.report import Report

    config = replace(CONFIG, images=(*CONFIG.images, "given:resnet20"))
    report = Report(STUDY.title, question=STUDY.question)
    STUDY.report(report, config, rows_made_up(lambda reader: 0.1))
    page = report.to_html()
    assert "ResNet-20" in page
    assert "not run" in page
    assert "Qwen2.5-Coder 0.5B" in report.summary or "SmolLM2" in page
