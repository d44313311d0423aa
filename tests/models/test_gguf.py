"""GGUF files: the logits of the model they were written from, through every verb that takes a language model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unrolled import cli, create_model, from_pretrained
from unrolled.errors import CorruptFile, MissingData, MissingExtra
from unrolled.models.encoders import hub_tokenizer, open_encoder
from unrolled.models.gguf import Gguf, gguf_of
from unrolled.models.resolve import hugging_face_text
from unrolled.subjects.texts import TextReader, open_reader
from unrolled.subjects.writers import open_writer
from unrolled.trust import check

transformers: Any = pytest.importorskip("transformers")
gguf: Any = pytest.importorskip("gguf")
pytest.importorskip("accelerate")

HEADS, KEYS = 4, 2
NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
TEXT = "A café in the town, a dog at the door."


def vocabulary() -> tuple[list[str], list[str]]:
    """Every byte, a few merges, and marks; and the merges."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    merges = ["t h", "th e", "Ġ a", "Ġ the", "o w", "d o", "do g"]
    return [*bytes_to_unicode().values(), *(merge.replace(" ", "") for merge in merges), "<|end|>"], merges


def written(path: Path, model: Any, quantised: str, *, without: str = "") -> Path:
    """A file of llama.cpp's layout, of a LLaMA of transformers whose matrices are set to what the file holds."""
    tokens, merges = vocabulary()
    config, kind = model.config, gguf.GGMLQuantizationType[quantised]
    out = gguf.GGUFWriter(path, "llama")
    out.add_name("tiny")
    out.add_context_length(64)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(HEADS)
    out.add_head_count_kv(KEYS)
    out.add_rope_dimension_count(config.hidden_size // HEADS)
    out.add_rope_freq_base(10000.0)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_vocab_size(len(tokens))
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("default")
    out.add_token_list(tokens)
    out.add_token_types([3 if token == "<|end|>" else 1 for token in tokens])
    out.add_token_merges(merges)
    out.add_bos_token_id(len(tokens) - 1)
    out.add_eos_token_id(len(tokens) - 1)
    for key, value in model.state_dict().items():
        if key == "lm_head.weight" or (without and without in key):
            continue
        matrix = value.numpy()
        if value.ndim == 2:
            heads = HEADS if "q_proj" in key else KEYS if "k_proj" in key else 0
            if heads:  # llama.cpp turns neighbouring pairs of features
                matrix = matrix.reshape(heads, 2, -1, matrix.shape[1]).swapaxes(1, 2).reshape(matrix.shape)
            stored = gguf.quantize(np.ascontiguousarray(matrix), kind)
            plain = np.asarray(gguf.dequantize(stored, kind)).reshape(matrix.shape)
            if heads:
                plain = plain.reshape(heads, -1, 2, matrix.shape[1]).swapaxes(1, 2).reshape(matrix.shape)
            value.copy_(torch.from_numpy(plain.copy()))
        else:
            stored = matrix
        out.add_tensor(_name(key), stored, raw_dtype=kind if value.ndim == 2 and quantised != "F32" else None)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def _name(key: str) -> str:
    fixed = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if key in fixed:
        return fixed[key]
    _, _, block, part = key.removesuffix(".weight").split(".", 3)
    return f"blk.{block}.{NAMES[part]}.weight"


def tiny() -> Any:
    torch.manual_seed(0)
    size = len(vocabulary()[0])
    config = transformers.LlamaConfig(
        vocab_size=size, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=KEYS, max_position_embeddings=64, tie_word_embeddings=True, initializer_range=0.2,
        bos_token_id=size - 1, eos_token_id=size - 1, rms_norm_eps=1e-5,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gguf")
    (root / "tinyshakespeare.txt").write_text("the dog and the town,\na door of the town.\n" * 1200)
    (root / "lines.txt").write_text("the dog\na town and a door\nthe door of the dog\na café\nthe town\na dog\n")
    for quantised in ("F32", "Q8_0"):
        (root / quantised).mkdir()
        model = tiny()
        written(root / quantised / "tiny.gguf", model, quantised)
        torch.save(model.state_dict(), root / f"{quantised}.pt")
    return root


def source(folder: Path, quantised: str) -> Any:
    model = tiny()
    model.load_state_dict(torch.load(folder / f"{quantised}.pt", weights_only=True))
    return model


@pytest.mark.parametrize("quantised", ["F32", "Q8_0"])
@pytest.mark.parametrize("name", ["hf:{}", "local:{}", "{}"])
def test_logits_are_those_of_the_model_it_was_written_from(folder: Path, quantised: str, name: str) -> None:
    reader = open_reader(_flags(name.format(folder / quantised / "tiny.gguf")))
    ids = torch.tensor([reader.encode(TEXT)])
    with torch.no_grad():
        torch.testing.assert_close(reader.module(ids).logits, source(folder, quantised)(ids).logits)
    assert next(reader.module.parameters()).dtype == torch.float32
    assert (reader.causal, reader.random, reader.limit) == (True, False, 64)


@pytest.mark.parametrize("suffix", ["tiny.gguf", ""])
def test_reading_weights_draws_no_bars_of_others(
    folder: Path, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    where = str(folder / "F32" / suffix) if suffix else str(tmp_path)
    if not suffix:
        source(folder, "F32").save_pretrained(tmp_path)
    before = logging.is_progress_bar_enabled()
    capsys.readouterr()
    hugging_face_text(where)
    assert "%|" not in capsys.readouterr().err
    assert logging.is_progress_bar_enabled() == before
    assert any(logging.tqdm(range(2), desc="shown"))
    assert "shown" in capsys.readouterr().err


def _flags(model: str) -> Any:
    from unrolled.commands.trace import TraceOptions

    return TraceOptions(model=model, text=(TEXT,))


def test_its_tokenizer_reads_and_writes_text_and_tells_bytes(folder: Path) -> None:
    reader: TextReader = open_reader(_flags(f"hf:{folder / 'F32'}"))
    ids = reader.pieces(TEXT)
    assert reader.decode is not None
    assert reader.bytes_of is not None
    assert reader.decode(ids) == TEXT
    assert sum(map(reader.bytes_of, ids)) == len(TEXT.encode())
    assert len(ids) < len(TEXT)  # some are merged
    assert open_writer(f"{folder / 'F32' / 'tiny.gguf'}").eos == len(vocabulary()[0]) - 1


def test_a_folder_with_one_file_is_that_file(folder: Path, tmp_path: Path) -> None:
    assert gguf_of(str(folder / "F32")) == gguf_of(str(folder / "F32" / "tiny.gguf"))
    assert gguf_of("org/name/models/a.gguf") == Gguf("org/name", "models/a.gguf")
    for name in ("a", "b"):
        (tmp_path / f"{name}.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"2 GGUF files \(a\.gguf, b\.gguf\)"):
        gguf_of(str(tmp_path))
    with pytest.raises(MissingData, match=r"no file .*c\.gguf"):
        create_model(str(tmp_path / "c.gguf"))


def test_in_python_it_is_one_string(folder: Path) -> None:
    ids = torch.tensor([[1, 2, 3]])
    expected = source(folder, "F32").model(ids).last_hidden_state
    for model in (create_model(f"local:{folder / 'F32'}"), from_pretrained(folder / "F32" / "tiny.gguf")):
        torch.testing.assert_close(model(ids).last_hidden_state, expected)
    fresh = create_model(f"{folder / 'F32' / 'tiny.gguf'}", pretrained=False)
    assert not torch.allclose(fresh(ids).last_hidden_state, expected)
    encoder = open_encoder(f"local:{folder / 'F32'}", "text")
    assert encoder.collate is not None
    assert encoder.collate(["the dog", "a"])["attention_mask"].sum(1).tolist() == [2 + 1, 1]
    check("model", f"local:{folder}/a.gguf", "models.json")  # a file may name one: it is no code


@pytest.mark.parametrize(
    "verb",
    [
        ["trace", "--text", TEXT],
        ["generate", "--prompt", "the dog", "--tokens", "4", "--temperature", "0"],
        ["ablate", "--text", TEXT, "--places", "block??"],
        ["patch", "--text", "the dog", "--other", "a town", "--length", "3", "--places", "block??"],
        ["extract", "--texts", "{root}/lines.txt"],
        ["eval", "--data", "tinyshakespeare", "--data-dir", "{root}", "--split", "test", "--samples", "2"],
    ],
)
def test_every_verb_of_language_models_takes_it(
    folder: Path, verb: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name, *flags = [part.format(root=folder) for part in verb]
    assert cli.run([name, str(folder / "Q8_0" / "tiny.gguf"), *flags, "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


def test_two_files_are_aligned(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--texts", str(folder / "lines.txt"), "--k", "2", "--draws", "20", "--resamples", "0", "--device", "cpu"]
    models = [str(folder / "F32" / "tiny.gguf"), f"hf:{folder / 'Q8_0'}"]
    assert cli.run(["align", *models, *flags, "--out", str(tmp_path / "out"), "--quiet", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["comparisons"][0]["score"] > 0.9  # the same model but for eight bits


@pytest.mark.parametrize("kept_bytes", [0, 3, 200, 6000, -40])
def test_a_file_cut_off_is_said_to_be(folder: Path, tmp_path: Path, kept_bytes: int) -> None:
    whole = (folder / "F32" / "tiny.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[:kept_bytes])
    with pytest.raises(ValueError, match="cut"):
        hugging_face_text(str(cut))
    if 0 <= kept_bytes < 1000:
        with pytest.raises((ValueError, MissingData), match=r"cut\.gguf|tokenizer"):
            hub_tokenizer(f"hf:{cut}", str(cut))


def test_weights_that_are_missing_are_not_drawn(tmp_path: Path) -> None:
    part = written(tmp_path / "part.gguf", tiny(), "F32", without="layers.1.mlp")
    with pytest.raises(CorruptFile, match=r"lacks 3 of the weights \(layers\.1\.mlp\.down_proj"):
        create_model(str(part))


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_missing_package_is_named_with_its_extra(
    folder: Path, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"needs `{package}`.*unrolled\[gguf\]"):
        create_model(str(folder / "F32"))
    assert cli.run(["generate", str(folder / "F32"), "--prompt", "a"]) == 3
    assert "unrolled[gguf]" in capsys.readouterr().err
