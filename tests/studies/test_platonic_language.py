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
from unrolled.studies.platonic import photos
from unrolled.studies.platonic.fetched import folder_of
from unrolled.studies.platonic.language import STUDY, cells, claims, prompts, tasks, view
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
    counted = bits_per_byte(opened.model, text, opened.encode, length=60, start=opened.starts["line break"])
    start = opened.starts["line break"]
    both = nats(opened, [text, "a longer text in the same batch"], start)
    assert float(both[0]) == pytest.approx(counted["bits"] * math.log(2), rel=1e-5)
    rest = nats(opened, [text], start, ["to be or"])
    assert float(rest[0]) == pytest.approx(float(both[0] - nats(opened, ["to be or"], start)[0]), rel=1e-5)


def test_bytes_beyond_what_a_model_was_built_for_are_left_out(corpus: Path) -> None:
    opened = TINY.open(Context(data_dir=corpus, store=corpus / "kept"))
    assert opened.collate(["x" * 500])["input_ids"].shape[1] == 63
    assert torch.isfinite(nats(opened, ["x" * 500], ord("\n"))).all()


def test_a_model_that_is_not_in_the_folder_is_named_with_its_flag(tmp_path: Path) -> None:
    context = cells.LanguageConfig(models_dir=tmp_path / "none", kept=tmp_path).context
    with pytest.raises(MissingData, match=r"models_dir.*smollm2-135m.*models_dir="):
        Named(text="smollm2-135m").require(context)


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        *((name, "image") for name in ("open-nsfw", "nudenet", "given:efficientnet_lite1")),
        *((name, "text") for name in ("given:wordllama", "paraphrase-minilm-l3")),
    ],
)
def test_models_of_make_models_are_looked_for_in_their_own_folder(spec: str, kind: Any, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    context = cells.LanguageConfig(data_dir=tmp_path, models_dir=tmp_path / "models", kept=tmp_path).context
    assert folder_of(spec, context) == tmp_path / "models"
    assert folder_of("given:glove", context) == tmp_path
    with pytest.raises(MissingData, match="models"):
        photos.opened(spec, kind, context)


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
            coco = replace(cell, seen=replace(cell.seen, collection="coco"), read=replace(cell.read, collection="coco"))
            rows += [Row(each, result, 1.0) for each in (cell, replace(cell, exchanged=True), coco)]
    for drawn in (None, 0):
        for seed in (0, 1, 2):
            prompt: Any = prompts.Prompt(
                reader=Named(text=CONFIG.untrained, text_drawn=drawn), vectors=8, steps=4, rate=0.3, seed=seed
            )
            score = -1.0 - 0.1 * seed if drawn is None else 0.1 * (seed - 1)
            states = {"none": 0.0, "random": 0.0, "tuned": score}
            judged = {
                state: {"early": 5.0, "late": 5.0 + value, "score": value, "error": 0.1, "descent": -value}
                for state, value in states.items()
            }
            rows.append(Row(prompt, judged, 1.0))
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
    assert verdict("The same on photos of COCO", rising) == "reproduced"
    assert verdict("A tuned prompt", rising) == "reproduced"
    seen = view.View(rising, CONFIG)
    assert seen.against_twin().mean > 0.1
    assert isinstance(view.partial_trend(seen.trained, "general", -1.0), Estimate)


def test_every_trend_that_is_looked_at_is_corrected_for_their_number() -> None:
    rising = rows_made_up(lambda reader: 0.1 + 0.02 * CONFIG.readers.index(reader))
    second = "The same with bits per byte on captions"  # of an axis that is judged: not judged itself
    judged = [claim.judge(rising, CONFIG) for claim in claims.CLAIMS if claim.outside or claim.statement == second]
    trends = [claim for claim in judged if "rank correlation" in claim.statement or "The same" in claim.statement]
    assert len(trends) == claims.TRENDS
    run = [claim for claim in trends if claim.verdict != "not run"]
    assert len(run) == 3
    assert all(claim.over.endswith(f"corrected for {claims.TRENDS} that are looked at") for claim in run)
    assert all(f"one of {claims.TRENDS} trends" in claim.measured for claim in run)


def test_pairs_beyond_chance_are_counted_by_text_model() -> None:
    weak = CONFIG.causal[: len(CONFIG.bytes)]
    rows = rows_made_up(lambda reader: 0.0 if reader in weak[:2] else 0.2)
    claim = claims.CLAIMS[0].judge(rows, CONFIG)
    assert claim.verdict == "undecided"
    assert claim.over == f"over {len(CONFIG.readers) - 1} text models"
    assert claim.measured.endswith("; 4 are not, all of the models of bytes trained here")
    others = rows_made_up(lambda reader: 0.2 if reader in weak else 0.0)
    assert claims.CLAIMS[0].judge(others, CONFIG).measured.endswith("0 of them of the models of bytes trained here")


def test_the_page_says_what_was_not_run() -> None:
    from unrolled.report import Report

    config = replace(CONFIG, images=(*CONFIG.images, "given:resnet20"))
    report = Report(STUDY.title, question=STUDY.question)
    STUDY.report(report, config, rows_made_up(lambda reader: 0.1))
    page = report.to_html()
    assert "ResNet-20" in page
    assert "not run" in page
    assert "Qwen2.5-Coder 0.5B" in report.summary or "SmolLM2" in page


def test_photos_of_another_collection_are_another_column_and_no_pair_of_the_first() -> None:
    rows = rows_made_up(lambda reader: 0.1)
    seen = view.View(rows, CONFIG)
    assert len(seen.pairs) == len(seen.coco) == len(CONFIG.readers) * len(CONFIG.images)
    assert all(model.coco == pytest.approx(model.beside_coco) for model in seen.trained)


def test_the_mark_that_texts_are_read_after_is_the_one_with_the_fewest_bits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spent = {1: 9.0, 0: 2.0, 2: 5.0}
    marks = {"<turn>": 1, "<end>": 0, "<stop>": 2}
    reader = Named(text="smollm2-135m")
    monkeypatch.setattr(Named, "open", lambda self, context: Stub(marks))
    monkeypatch.setattr(tasks, "sentences", lambda context, part, count: ["four", "eight by"][: 1 + (part == "train")])
    monkeypatch.setattr(tasks, "nats", lambda model, texts, start, prefixes=None: torch.tensor([spent[start]] * 2))
    result = tasks.Start(reader=reader).compute(Context(store=tmp_path))
    assert result["mark"] == "<end>"
    assert list(result["bits"]) == list(marks)
    assert result["bits"]["<end>"] == pytest.approx(2 * 2.0 / math.log(2) / 12)
    spent[1] = 2.01
    assert tasks.Start(reader=reader).compute(Context(store=tmp_path))["mark"] == "<turn>"
    bits = tasks.Bits(reader=reader, domain="general", pieces=2, pairs=9)
    assert tasks.Start(reader=reader) in bits.needs


class Stub:
    """What `Opened` is asked for where nothing is computed."""

    def __init__(self, marks: dict[str, int]) -> None:
        self.starts = marks


def tiny_llama() -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    return transformers.LlamaForCausalLM(config).eval().requires_grad_(False)


def test_what_follows_a_prompt_is_what_follows_its_vectors_in_the_same_sequence() -> None:
    model = tiny_llama()
    prompt, ids = torch.randn(3, 16), torch.arange(20).view(2, 10)
    whole = torch.cat([prompt.expand(2, -1, -1), model.get_input_embeddings()(ids)], 1)
    wanted = model(inputs_embeds=whole).logits[:, 3:]
    with prompts.after(model.base_model, prompt):
        torch.testing.assert_close(model(ids, use_cache=False).logits, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model(ids).logits, wanted)


def test_a_key_has_one_value_in_a_sequence_and_its_return_is_marked() -> None:
    words = torch.arange(12)
    ids, repeated = prompts.sequences(words, 5, 0)
    assert ids.shape == (5, 32)
    for row, again in zip(ids, repeated, strict=True):
        values: dict[int, int] = {}
        for key, value, known in zip(row[::2].tolist(), row[1::2].tolist(), again.tolist(), strict=True):
            assert known == (key in values)
            assert values.setdefault(key, value) == value
        assert len(set(values)) <= 4
        assert not set(values) & set(values.values())
