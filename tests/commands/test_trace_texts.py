"""`unrolled trace` of language models: texts, files and corpora, in words that say what was seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from unrolled import cli
from unrolled.data.tokens import CharacterTokenizer
from unrolled.models.encoder import build_language_model
from unrolled.models.encoders import Encoder
from unrolled.models.sequence_config import language_config

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "line", "and", "are", "numbers", "cat", *"0123456789"]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus; GPT-2, T5 and CLIP of Hugging Face with their tokenizer; a language model of ours."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    root = tmp_path_factory.mktemp("texts")
    text = "\n".join(f"line {i} and {i % 7} are numbers" for i in range(600))
    (root / "tinyshakespeare.txt").write_text(text)
    (root / "lines.txt").write_text("line 1 and 2\n\nare numbers\n")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    before = tokenizers.pre_tokenizers
    words.pre_tokenizer = before.Sequence([before.Whitespace(), before.Digits(individual_digits=True)])
    marks = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>", "bos_token": "<s>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, **marks)
    size = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    gpt2 = {"n_embd": 16, "n_head": 4, "n_layer": 2, "n_positions": 32}
    t5 = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
    wide = {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 24}
    towers = {"text_config": {**wide, **size, "max_position_embeddings": 32}}
    towers["vision_config"] = {**wide, "image_size": 8, "patch_size": 2, "num_channels": 3}
    torch.manual_seed(0)
    for name, cls, settings in (
        ("gpt2", "GPT2LMHeadModel", {**gpt2, **size}),
        ("t5", "T5ForConditionalGeneration", {**t5, **size}),
        ("clip", "CLIPModel", {**towers, "projection_dim": 8}),
    ):
        built = getattr(transformers, cls)
        built(built.config_class(**settings)).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    config = language_config("crate_gpt_nano", vocab_size=len(set(text)), max_length=32, dim=16, heads=2, depth=2)
    save: Any = build_language_model(config).save_pretrained
    save(root / "ours")
    CharacterTokenizer.of(text).save(root / "ours" / "tokenizer.json")
    save(root / "mixed-up")
    (root / "mixed-up" / "SHA256SUMS").unlink(missing_ok=True)
    CharacterTokenizer.of(text + "ÄÖÜ").save(root / "mixed-up" / "tokenizer.json")
    return root


def answer(folder: Path, capsys: Capture, model: str, *flags: str) -> tuple[dict[str, Any], str, str]:
    """The JSON, what was said beside it, and the page."""
    capsys.readouterr()
    out = folder / "out"
    assert cli.run(["trace", model, *flags, "--out", str(out), "--json", "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    return json.loads(printed.out), printed.err, (out / "report.html").read_text(encoding="utf-8")


def test_texts_of_any_lengths(folder: Path, capsys: Capture) -> None:
    result, said, page = answer(folder, capsys, f"hf:{folder}/gpt2", "--text", "line 1 and 2", "cat")
    assert (result["sequences"], result["tokens"], len(result["layers"])) == (2, 5, 2)
    assert [row["sequences"] for row in result["positions"][:3]] == [2, 1, 1]
    assert "a corpus (--data)" in result["context_note"]
    assert "R: coding rate of all tokens of a sample, at Z+half (nats); higher" in said
    assert "0: the same architecture with untrained weights" in said
    assert "random weights" not in page
    assert "Mean over samples ± standard error" in page
    assert page.index("What the columns mean") < page.index(">Numbers<")  # words before numbers
    assert "From what enters the first layer to what leaves the last Rᶜ changes by" in page


def test_a_corpus_shows_what_the_context_does(folder: Path, capsys: Capture) -> None:
    corpus = ["--data", "tinyshakespeare", "--data-dir", str(folder), "--images", "9", "--length", "24"]
    for model in (f"hf:{folder}/gpt2", str(folder / "ours")):
        result, said, page = answer(folder, capsys, model, *corpus)
        assert "data: 9 windows of 24 tokens of tinyshakespeare (test split), drawn evenly" in said
        assert (result["sequences"], result["tokens"]) == (9, 9 * 24)
        assert [row["position"] for row in result["positions"][:8]] == [3 * part for part in range(1, 9)]
        assert len(result["positions"]) == len(result["positions_control"]) == 16
        assert len(result["context"]["curve"]) == 23
        assert [row["layer"] for row in result["descent"]] == ["embed", "block00", "block01", "minimiser"]
        assert "in-context score" in page


def test_a_folder_of_texts_is_a_corpus_for_whoever_reads_text(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    data = tmp_path / "books"
    (data / "old").mkdir(parents=True)
    (data / "old" / "one.TXT").write_text("\n".join(f"line {i} and {i % 7} are numbers" for i in range(600)))
    corpus = ["--data", "folder", "--data-dir", str(data)]
    _, said, _ = answer(folder, capsys, f"hf:{folder}/gpt2", *corpus, "--images", "9", "--length", "24")
    assert "data: 9 windows of 24 tokens of folder (test split), drawn evenly" in said
    out = ["--out", str(tmp_path / "out")]
    assert cli.run(["eval", f"hf:{folder}/gpt2", *corpus, *out]) == 0
    assert "gpt2 on folder (test): " in capsys.readouterr().out
    for verb in (["eval", "given:resnet20"], ["probe", "vit_nano_patch4_32"]):
        assert cli.run([*verb, *corpus, *out]) == 2
        assert "books has texts and no pictures" in capsys.readouterr().err
    assert cli.run(["extract", "vit_nano_patch4_32", *corpus, *out]) == 2
    assert "one long text, and features are of images or of texts by themselves" in capsys.readouterr().err
    # with a picture in it, it is a folder of pictures
    (data / "old" / "one.png").write_bytes(b"")
    assert cli.run(["eval", f"hf:{folder}/gpt2", *corpus, *out]) == 2
    assert "images" in capsys.readouterr().err


def test_a_decoder_is_named_and_measured(folder: Path, capsys: Capture) -> None:
    result, _, page = answer(folder, capsys, f"hf:{folder}/t5", "--text", "line 1 and 2", "--stack", "decoder")
    assert result["stack"] == "decoder"
    assert "The layers of its stack decoder" in page
    assert "Of a single sample, so without error bars" in page
    assert "±" not in page, "the error of one text is unknown, not 0"
    encoder, said, page = answer(folder, capsys, f"hf:{folder}/t5", "--text", "line 1 and 2")
    assert encoder["part"] == "encoder"
    assert "its encoder is traced" in said
    assert "The layers of its encoder" in page
    assert encoder["layers"][0]["rate"] != result["layers"][0]["rate"]


def test_a_tower_is_taken_by_what_it_is_shown(folder: Path, capsys: Capture) -> None:
    read, *_ = answer(folder, capsys, f"hf:{folder}/clip", "--text", "line 1 and 2")
    assert (read["part"], read["sequences"], len(read["layers"])) == ("text_model", 1, 2)
    seen, *_ = answer(folder, capsys, f"hf:{folder}/clip", "--data", "digits", "--images", "4")
    assert (seen["part"], seen["images"], len(seen["layers"])) == ("vision_model", 4, 2)


def test_halves_in_parallel_are_said(folder: Path, capsys: Capture) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 24}
    config = transformers.GPTNeoXConfig(**sizes, vocab_size=len(WORDS))
    transformers.GPTNeoXForCausalLM(config).save_pretrained(folder / "neox")
    transformers.AutoTokenizer.from_pretrained(folder / "gpt2").save_pretrained(folder / "neox")
    found, _, page = answer(folder, capsys, f"hf:{folder / 'neox'}", "--text", "line 1 and 2")
    assert found["parallel"] == 2
    assert "both read Z" in page


def test_models_with_tokenizers_of_whole_texts(folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """As sentence-transformers and given models have: texts one by one, but no corpus."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 24}
    model = transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=99), add_pooling_layer=False).eval()
    collate: Any = lambda texts: {"input_ids": torch.tensor([[ord(letter) % 99 for letter in texts[0]]])}  # noqa: E731
    encoder = Encoder(name="st:small", module=model, kind="text", collate=collate)
    monkeypatch.setattr("unrolled.models.encoders.open_encoder", lambda spec, kind, data_dir: encoder)
    found, _, _ = answer(folder, capsys, "st:small", "--text", "to be", "or not")
    assert (found["sequences"], found["tokens"], len(found["layers"])) == (2, 11, 2)
    assert cli.run(["trace", "st:small", "--data", "tinyshakespeare", "--data-dir", str(folder)]) == 2
    assert "--data: st:small reads texts by themselves; give --text or --texts" in capsys.readouterr().err


def test_random_weights_are_called_so_at_the_top(folder: Path, capsys: Capture) -> None:
    for model, flags in (("crate_gpt_nano", ["--text", "hello"]), ("crate_nano_patch2_8", ["--images", "4"])):
        result, said, page = answer(folder, capsys, model, *flags)
        assert result["weights"] == "random"
        assert f"{model} has random weights" in said
        assert "This model has random weights: nothing here was learned." in page


@pytest.mark.parametrize(
    ("arguments", "code", "fragment"),
    [
        (["crate_gpt_nano"], 2, "crate_gpt_nano reads text: add --text, --texts (a file"),
        (["hf:ROOT/gpt2"], 2, "is a language model and these are images; `unrolled eval MODEL --data"),
        (["hf:ROOT/gpt2", "--text", "cat " * 40], 2, "--length cuts it: it has 40 tokens; this model takes 1 to 32"),
        (["hf:ROOT/gpt2", "--text", "cat", " "], 2, "--text: text 2 is empty"),
        (["hf:ROOT/gpt2", "--texts", "ROOT/lines.txt"], 2, "--texts: text 2 is empty"),
        (["hf:ROOT/gpt2", "--texts", "ROOT/none.txt"], 3, "--texts: there is no file"),
        (["hf:ROOT/gpt2", "--text", "cat", "--data", "bronte"], 2, "give one of them"),
        (["hf:ROOT/gpt2", "--text", "cat", "--stack", "decoder"], 2, "--stack"),
        (["hf:ROOT/gpt2", "--text", "cat", "--length", "0"], 2, "--length"),
        (["crate_nano_patch2_8", "--text", "cat"], 2, "does not read text"),
        (["ROOT/mixed-up", "--text", "line 1"], 2, "not of one run"),
        (["hf:ROOT/mixed-up", "--text", "line 1"], 2, "not of one run"),
        (["gpt2"], 2, "did you mean hf:gpt2?"),
        (["distilbert-base-uncased"], 2, "did you mean hf:distilbert-base-uncased?"),
        (["meta-llama/Llama-3.2-1B"], 3, "is given as hf:meta-llama/Llama-3.2-1B"),
    ],
)  # fmt: skip
def test_what_cannot_be_traced_is_said(
    folder: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], code: int, fragment: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    given = [each.replace("ROOT", str(folder)) for each in arguments]
    assert cli.run(["trace", *given, "--out", str(tmp_path / "out"), "--device", "cpu"]) == code
    assert fragment in capsys.readouterr().err
