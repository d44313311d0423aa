"""Encoders by name: the right tower is opened, fed and pooled. All models are tiny, random and made here."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from unrolled.data.transforms import model_input
from unrolled.errors import MissingData, MissingExtra
from unrolled.instruments.features.extraction import extract
from unrolled.instruments.features.text import extract_texts, extract_waveforms, text_feature_key
from unrolled.models.encoders import open_encoder, torchvision_model, waveform

transformers = pytest.importorskip("transformers")
TEXTS = ["a dog", "a cat and a dog", "cat", "the dog and the cat and a dog"]
SMALL: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}


def save_tokenizer(folder: Path, *, pad: bool = True) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", "</s>", "a", "dog", "cat", "and", "the"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "[UNK]", "eos_token": "</s>", **({"pad_token": "[PAD]"} if pad else {})}
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("hub")
    bert = transformers.BertConfig(vocab_size=8, max_position_embeddings=12, **SMALL)
    transformers.BertModel(bert).save_pretrained(root / "bert")
    tokens = {"bos_token_id": 2, "eos_token_id": 2}
    llama = transformers.LlamaConfig(vocab_size=8, num_key_value_heads=2, **tokens, **SMALL)
    transformers.LlamaForCausalLM(llama).save_pretrained(root / "llama")
    tower = SMALL | {"image_size": 8, "patch_size": 4}
    words = SMALL | {"vocab_size": 8, "max_position_embeddings": 12, "pad_token_id": 0, **tokens}
    clip = transformers.CLIPConfig(text_config=words, vision_config=tower, projection_dim=8)
    transformers.CLIPModel(clip).save_pretrained(root / "clip")
    t5 = transformers.T5Config(vocab_size=8, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    transformers.T5Model(t5).save_pretrained(root / "t5")
    wave = transformers.Wav2Vec2Config(
        conv_dim=(8, 8), conv_stride=(5, 2), conv_kernel=(10, 3), num_feat_extract_layers=2,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, **SMALL,
    )  # fmt: skip
    transformers.Wav2Vec2Model(wave).save_pretrained(root / "wave")
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(root / "wave")
    for name in ("bert", "clip", "t5"):
        save_tokenizer(root / name)
    save_tokenizer(root / "llama", pad=False)
    return root


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("bert", ["embed", "block00", "block01"]),
        ("llama", ["embed", "block00", "block01", "norm"]),
        ("clip", ["embed", "block00", "block01", "norm"]),
        ("t5", ["embed", "block00", "block01", "norm"]),
    ],
)
@pytest.mark.parametrize("pooling", ["mean", "last", "max"])
def test_padding_changes_no_feature(name: str, layers: list[str], pooling: str, folders: Path) -> None:
    encoder = open_encoder(f"hf:{folders / name}", "text")
    assert encoder.collate is not None
    options: dict[str, Any] = {"layers": encoder.layers, "pooling": pooling}
    together = extract_texts(encoder.module, TEXTS, encoder.collate, **options)
    alone = extract_texts(encoder.module, TEXTS, encoder.collate, batch_size=1, **options)
    assert list(together) == layers
    for layer in layers:
        assert together[layer].shape == (4, 16)
        torch.testing.assert_close(together[layer], alone[layer], rtol=1e-4, atol=1e-5)


def test_mean_and_last_are_of_the_hidden_states(folders: Path) -> None:
    encoder = open_encoder(f"hf:{folders / 'llama'}", "text")
    assert encoder.collate is not None
    with torch.no_grad():
        states = encoder.module(**encoder.collate(TEXTS[:1]), output_hidden_states=True).hidden_states
    for pooling, expected in (("mean", states[1].mean(1)), ("last", states[1][:, -1])):
        found = extract_texts(encoder.module, TEXTS, encoder.collate, layers="block00", pooling=pooling)
        torch.testing.assert_close(found["block00"][:1], expected, rtol=1e-4, atol=1e-5)


def test_the_vision_tower_of_clip_takes_images(folders: Path) -> None:
    encoder = open_encoder(f"hf:{folders / 'clip'}", "image")
    assert model_input(encoder.module)["input_size"] == (3, 8, 8)
    found = extract(encoder.module, torch.randn(3, 3, 8, 8), layers=encoder.layers, pooling="cls")
    assert {name: tuple(value.shape) for name, value in found.items()} == {"block00": (3, 16), "block01": (3, 16)}


def test_sounds_of_different_lengths_keep_their_rows(folders: Path) -> None:
    encoder = open_encoder(f"hf:{folders / 'wave'}", "audio")
    assert encoder.collate is not None
    assert encoder.rate == 8000
    waves = [np.random.default_rng(i).normal(size=size).astype(np.float32) for i, size in enumerate((500, 300, 500))]
    together = extract_waveforms(encoder.module, waves, encoder.collate)
    for i, wave in enumerate(waves):
        alone = extract_waveforms(encoder.module, [wave], encoder.collate)
        torch.testing.assert_close(together["block01"][i], alone["block01"][0], rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="1 is empty"):
        extract_waveforms(encoder.module, [waves[0], waves[0][:0]], encoder.collate)


def test_a_model_that_does_not_take_the_side_is_refused(folders: Path) -> None:
    with pytest.raises(ValueError, match="does not take images"):
        open_encoder(f"hf:{folders / 'bert'}", "image")
    with pytest.raises(ValueError, match="takes images, not"):
        open_encoder("tv:resnet18", "text", pretrained=False)
    with pytest.raises(ValueError, match="is a model of images, and these are texts"):
        open_encoder("crate_nano_patch2_8", "text", pretrained=False)
    with pytest.raises(MissingData, match="feature extractor"):
        open_encoder(f"hf:{folders / 'bert'}", "audio")
    with pytest.raises(ValueError, match="names no model"):
        open_encoder("hf:", "text")


def test_a_given_model_needs_its_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="data_dir"):
        open_encoder("given:minilm", "text")
    with pytest.raises(MissingData, match="minilm_l6_v2_int8"):
        open_encoder("given:minilm", "text", data_dir=tmp_path)


def test_texts_are_kept_and_told_apart(folders: Path, tmp_path: Path) -> None:
    encoder = open_encoder(f"hf:{folders / 'bert'}", "text")
    assert encoder.collate is not None
    first = extract_texts(encoder.module, TEXTS, encoder.collate, cache=tmp_path)
    calls = []
    handle = encoder.module.register_forward_hook(lambda *_: calls.append(1))
    again = extract_texts(encoder.module, TEXTS, encoder.collate, cache=tmp_path)
    assert (calls, again.checksum) == ([], first.checksum)
    other = extract_texts(encoder.module, TEXTS[::-1], encoder.collate, cache=tmp_path)
    handle.remove()
    assert calls
    assert torch.equal(other["block01"], first["block01"].flip(0))


def test_equal_texts_have_equal_features(folders: Path) -> None:
    encoder = open_encoder(f"hf:{folders / 'bert'}", "text")
    assert encoder.collate is not None
    found = extract_texts(encoder.module, ["a dog", "cat", "a dog"], encoder.collate)
    assert torch.equal(found["block01"][0], found["block01"][2])


def test_mixed_precision_is_close(folders: Path) -> None:
    encoder = open_encoder(f"hf:{folders / 'bert'}", "text")
    assert encoder.collate is not None
    exact = extract_texts(encoder.module, TEXTS, encoder.collate)
    mixed = extract_texts(encoder.module, TEXTS, encoder.collate, autocast=torch.bfloat16)
    torch.testing.assert_close(mixed["block01"], exact["block01"], rtol=0.1, atol=0.1)


def test_empty_texts_are_named(folders: Path) -> None:
    encoder = open_encoder(f"hf:{folders / 'bert'}", "text")
    assert encoder.collate is not None
    with pytest.raises(ValueError, match="rows 1 are empty"):
        extract_texts(encoder.module, ["a", " "], encoder.collate)
    with pytest.raises(ValueError, match="not one"):
        extract_texts(encoder.module, [], encoder.collate)


def test_sentence_transformers_is_an_extra() -> None:
    try:
        import sentence_transformers  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtra, match="sentence_transformers"):
            open_encoder("st:all-MiniLM-L6-v2", "text")
    else:
        pytest.skip("sentence_transformers is installed")


def test_a_sentence_transformer_says_how_it_pools(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the package itself is not needed: what is used of it is its list of modules and its `tokenize`
    inner = open_encoder(f"hf:{folders / 'bert'}", "text")

    class SentenceTransformer(list):  # type: ignore[type-arg]
        def __init__(self, name: str, device: str) -> None:
            super().__init__([SimpleNamespace(auto_model=inner.module), SimpleNamespace(pooling_mode_cls_token=True)])

        tokenize = staticmethod(lambda texts: {**inner.collate(texts), "extra": 1})  # type: ignore[misc]

    package = ModuleType("sentence_transformers")
    package.SentenceTransformer = SentenceTransformer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", package)
    encoder = open_encoder("st:any", "text")
    assert (encoder.pooling, encoder.kind) == ("cls", "text")
    assert encoder.collate is not None
    assert set(encoder.collate(["a dog"])) == {"input_ids", "attention_mask"}


def test_torchvision_models_say_what_they_expect() -> None:
    model = torchvision_model("squeezenet1_1", pretrained=False)
    expects = model_input(model)
    assert (expects["input_size"], expects["crop_pct"]) == ((3, 224, 224), 0.875)
    assert isinstance(model, nn.Module)
    with pytest.raises(ValueError, match="resnet18"):
        torchvision_model("resnet_18", pretrained=False)


def test_sound_becomes_one_channel_at_the_wanted_rate() -> None:
    time = np.arange(16000) / 16000
    tone = (np.sin(2 * np.pi * 440 * time) * 16384).astype(np.int16)
    found = waveform(np.stack([tone, tone], 1), 16000, 8000)
    assert found.shape == (8000,)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)
    np.testing.assert_allclose(found[200:-200], expected[200:-200], atol=2e-3)
    with pytest.raises(ValueError, match="NaN"):
        waveform(np.array([np.nan]), 8000, 8000)
    with pytest.raises(ValueError, match="needs"):
        waveform(np.zeros(0), 8000, 8000)


def test_cls_is_the_first_token_of_a_text(folders: Path) -> None:
    encoder = open_encoder(f"hf:{folders / 'bert'}", "text")
    assert encoder.collate is not None
    with torch.no_grad():
        states = encoder.module(**encoder.collate(TEXTS), output_hidden_states=True).hidden_states
    features = extract_texts(encoder.module, TEXTS, encoder.collate, layers="block00", pooling="cls")
    torch.testing.assert_close(features["block00"], states[1][:, 0], rtol=1e-4, atol=1e-5)
    assert features.key == text_feature_key(encoder.module, TEXTS, encoder.collate, layers="block00", pooling="cls")
    both = extract_texts(encoder.module, TEXTS, encoder.collate, layers="block00", pooling="cls+mean")["block00"]
    mask = encoder.collate(TEXTS)["attention_mask"][:, 1:, None].float()
    rest = (states[1][:, 1:] * mask).sum(1) / mask.sum(1).clamp_min(1)  # 0 of a text of one token
    torch.testing.assert_close(both, torch.cat([states[1][:, 0], rest], 1), rtol=1e-4, atol=1e-5)
