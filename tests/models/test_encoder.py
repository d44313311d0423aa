"""CRATE-BERT: looks both ways, remembers masked tokens, is saved whole, and reads its published layout."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unrolled.data.tokens import mask_tokens
from unrolled.errors import MissingData
from unrolled.layers.ista import ISTA
from unrolled.layers.mssa import MSSA
from unrolled.models import load_published
from unrolled.models.encoder import MaskedLanguageModel, build_language_model, load_language_model
from unrolled.models.sequence import LanguageConfig, LanguageModel
from unrolled.models.sequence_config import ENCODERS, LANGUAGE_MODELS, EncoderConfig, language_config

TINY: dict[str, Any] = {"vocab_size": 13, "dim": 8, "heads": 2, "layers": ("mssa",) * 2, "max_length": 16}


@pytest.mark.parametrize("name", ["crate_bert_nano", "bert_nano"])
def test_every_token_sees_every_other(name: str) -> None:
    model = build_language_model(language_config(name, vocab_size=13, max_length=16)).eval()
    assert isinstance(model, MaskedLanguageModel)
    tokens = torch.randint(13, (1, 9))
    changed = tokens.clone()
    changed[0, 8] = (changed[0, 8] + 1) % 13
    before, after = model(tokens), model(changed)
    assert before.shape == (1, 9, 13)
    assert all(not torch.equal(before[0, i], after[0, i]) for i in range(9))


def test_the_base_sizes_are_those_of_the_family() -> None:
    with torch.device("meta"):
        crate = build_language_model(language_config("crate_bert_base"))
        bert = build_language_model(language_config("bert_base"))
    count = sum(p.numel() for p in crate.parameters())
    d, v = 768, 50265
    assert count == v * d + (512 + 1) * d + 12 * (3 * d * d + d + 4 * d) + d * d + d + 2 * 2 * d + v
    assert sum(p.numel() for p in bert.parameters()) > 1.8 * count - v * d


def test_it_learns_to_read_masked_tokens_off_the_others() -> None:
    torch.manual_seed(0)
    model = MaskedLanguageModel(EncoderConfig(**{**TINY, "dim": 32, "second": "ista"}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(60):
        tokens = torch.randint(12, (32, 1), generator=torch.Generator().manual_seed(step)).expand(32, 16)
        inputs, targets = mask_tokens(tokens, vocab_size=13, mask_id=12, seed=0, step=step)
        loss = F.cross_entropy(model(inputs).mT, targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(math.log(13), abs=0.5)
    assert sum(losses[-5:]) / 5 < 0.6 * math.log(12)


def test_segments_tell_tokens_apart() -> None:
    model = MaskedLanguageModel(EncoderConfig(**TINY, segments=2)).eval()
    tokens = torch.randint(13, (2, 6))
    assert torch.equal(model(tokens), model(tokens, segments=torch.zeros_like(tokens)))
    assert not torch.equal(model(tokens), model(tokens, segments=torch.ones_like(tokens)))
    assert model(tokens, features=True).shape == (2, 6, 8)
    with pytest.raises(ValueError, match="segments: ids run from 0 to 1"):
        model(tokens, segments=2 + torch.zeros_like(tokens))
    with pytest.raises(ValueError, match="segments=2"):
        MaskedLanguageModel(EncoderConfig(**TINY, segments=0))(tokens, segments=torch.zeros_like(tokens))


def test_what_it_cannot_do_is_named(tmp_path: Path) -> None:
    model = MaskedLanguageModel(EncoderConfig(**TINY))
    with pytest.raises(ValueError, match="continue"):
        model.generate(torch.zeros(1, 2, dtype=torch.long), 3)
    with pytest.raises(ValueError, match="unknown token 13"):
        model(torch.tensor([[13]]))
    with pytest.raises(ValueError, match="max_length=16"):
        model(torch.zeros(1, 17, dtype=torch.long))
    with pytest.raises(ValueError, match="one way only"):
        EncoderConfig(**{**TINY, "layers": ("mesa",)})
    with pytest.raises(ValueError, match="EncoderConfig"):
        LanguageConfig(**TINY, causal=False)
    with pytest.raises(ValueError, match="did you mean"):
        language_config("crate_bert_nan")
    with pytest.raises(MissingData, match=r"holds no config\.json"):
        load_language_model(tmp_path)


@pytest.mark.parametrize("kind", [LanguageModel, MaskedLanguageModel])
def test_a_folder_says_which_model_it_holds(kind: type[LanguageModel], tmp_path: Path) -> None:
    config = (EncoderConfig if kind is MaskedLanguageModel else LanguageConfig)(**TINY, second="ista")
    model: Any = kind(config).eval()
    model.save_pretrained(tmp_path / "model")
    again = load_language_model(tmp_path)
    assert type(again) is kind
    tokens = torch.randint(13, (2, 6))
    assert torch.equal(again(tokens), model(tokens))
    assert again.head.weight is again.embed.weight


def test_every_named_size_can_be_built() -> None:
    with torch.device("meta"):
        for name in (*LANGUAGE_MODELS, *ENCODERS):
            config = language_config(name)
            model = build_language_model(config)
            assert len(model.blocks) == len(config.layers)


def published(*, head: str = "lm_head", base: str = "crate.", rows: int = 18) -> dict[str, Tensor]:
    """A random tree in the layout of CRATE-BERT: width 12, 3 heads, 2 layers, 16 positions after padding's two."""
    g = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g) * 0.3

    tree = {
        f"{base}embeddings.word_embeddings.weight": draw(20, 12),
        f"{base}embeddings.position_embeddings.weight": draw(rows, 12),
        f"{base}embeddings.token_type_embeddings.weight": draw(2, 12),
        f"{base}embeddings.position_ids": torch.arange(rows)[None],
    }

    def norm(name: str) -> None:
        tree[f"{name}.weight"], tree[f"{name}.bias"] = 1 + draw(12), draw(12)

    norm(f"{base}embeddings.LayerNorm")
    for i in range(2):
        layer = f"{base}encoder.layer.{i}"
        norm(f"{layer}.attention.self.prenorm")
        norm(f"{layer}.output.prenorm")
        tree[f"{layer}.attention.self.qkv.weight"] = draw(12, 12)
        tree[f"{layer}.attention.output.dense.weight"] = draw(12, 12)
        tree[f"{layer}.attention.output.dense.bias"] = draw(12)
        tree[f"{layer}.output.weight"] = draw(12, 12)
    dense, last = ("dense", "layer_norm") if head == "lm_head" else ("transform.dense", "transform.LayerNorm")
    tree[f"{head}.{dense}.weight"], tree[f"{head}.{dense}.bias"] = draw(12, 12), draw(12)
    norm(f"{head}.{last}")
    tree[f"{head}.bias"] = draw(20)
    tree[f"{head}.decoder.weight"] = tree[f"{base}embeddings.word_embeddings.weight"].clone()
    tree[f"{head}.decoder.bias"] = tree[f"{head}.bias"]
    return tree


def reference(tree: dict[str, Tensor], tokens: Tensor, segments: Tensor) -> Tensor:
    """The published model, written out once more from its layers."""

    def norm(name: str, z: Tensor) -> Tensor:
        return F.layer_norm(z, (12,), tree[f"{name}.weight"], tree[f"{name}.bias"])

    e = "crate.embeddings"
    z = tree[f"{e}.word_embeddings.weight"][tokens] + tree[f"{e}.token_type_embeddings.weight"][segments]
    z = norm(f"{e}.LayerNorm", z + tree[f"{e}.position_embeddings.weight"][2 : 2 + tokens.shape[1]])
    for i in range(2):
        layer = f"crate.encoder.layer.{i}"
        attention, ista = MSSA(12, 3), ISTA(12)
        attention.subspaces.weight = nn.Parameter(tree[f"{layer}.attention.self.qkv.weight"])
        dense: Any = attention.output
        dense.weight = nn.Parameter(tree[f"{layer}.attention.output.dense.weight"])
        dense.bias = nn.Parameter(tree[f"{layer}.attention.output.dense.bias"])
        ista.dictionary = nn.Parameter(tree[f"{layer}.output.weight"])
        z = z + attention(norm(f"{layer}.attention.self.prenorm", z))
        z = ista(norm(f"{layer}.output.prenorm", z))
    z = norm("lm_head.layer_norm", F.gelu(F.linear(z, tree["lm_head.dense.weight"], tree["lm_head.dense.bias"])))
    return F.linear(z, tree["lm_head.decoder.weight"], tree["lm_head.bias"])


@torch.no_grad()
def test_the_published_layout_is_read(tmp_path: Path) -> None:
    tree = published()
    torch.save(tree, tmp_path / "bert.pt")
    model: Any = load_published(tmp_path / "bert.pt", heads=3)
    tokens, segments = torch.randint(20, (2, 9)), torch.randint(2, (2, 9))
    torch.testing.assert_close(model(tokens, segments=segments), reference(tree, tokens, segments), rtol=0, atol=1e-5)
    assert model.config.max_length == 16
    assert model.head.weight is model.embed.weight
    assert not model.load_report.missing
    assert set(model.load_report.ignored) == {"crate.embeddings.position_ids", "lm_head.decoder.bias"}
    assert "padding" in str(model.load_report)


@torch.no_grad()
def test_its_variants_are_read_and_halves_are_refused(tmp_path: Path) -> None:
    other = {**published(head="cls.predictions", base="", rows=16)}
    other["cls.predictions.decoder.weight"] += 1
    torch.save({"state_dict": other}, tmp_path / "other.pt")
    model: Any = load_published(tmp_path / "other.pt", heads=3)
    assert not model.config.tied
    assert model.config.max_length == 16
    torch.save({k: v for k, v in published().items() if not k.startswith("lm_head")}, tmp_path / "half.pt")
    with pytest.raises(ValueError, match=r"lm_head\.dense\.weight is missing"):
        load_published(tmp_path / "half.pt", heads=3)
    torch.save(published(), tmp_path / "bert.pt")
    with pytest.raises(ValueError, match="heads"):
        load_published(tmp_path / "bert.pt")
    with pytest.raises(ValueError, match="pool"):
        load_published(tmp_path / "bert.pt", heads=3, pool="mean")
