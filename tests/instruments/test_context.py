"""Context instruments against models whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.instruments.test_probes import hugging_face
from unrolled.instruments import in_context_score, mesa_descent, token_binding
from unrolled.instruments.sequences.context import token_losses
from unrolled.layers import LinearSelfAttention, MesaLayer
from unrolled.models import LanguageConfig, LanguageModel, RegressorConfig, SequenceRegressor
from unrolled.tasks import LinearDynamics, constructed_tokens

DIM = 4


def states(teacher: Any = "orthogonal", count: int = 80, steps: int = 17) -> Tensor:
    return LinearDynamics(dim=DIM, steps=steps, teacher=teacher).sample(count, seed=0, dtype=torch.float64).inputs


def constructed(attention: nn.Module) -> SequenceRegressor:
    config = RegressorConfig(
        layers=("linear",), dim=4 * DIM, heads=1, dim_head=DIM, input_dim=4 * DIM, output_dim=DIM, embedding="none"
    )
    model = SequenceRegressor(config).double()
    model.blocks[0].attn = attention
    return model


def one_gradient_step() -> SequenceRegressor:
    return constructed(LinearSelfAttention.gradient_descent(state_dim=DIM, step_size=0.1, dtype=torch.float64))


def exact_minimiser() -> SequenceRegressor:
    layer = MesaLayer(4 * DIM, 1, dim_head=DIM, ridge=1e-4)
    projections = LinearSelfAttention.gradient_descent(state_dim=DIM, step_size=1.0)
    layer.load_state_dict(projections.state_dict(), strict=False)
    return constructed(layer.double())


def test_a_gradient_step_lowers_the_objective_of_its_own_context_only() -> None:
    s = states()
    embed, block, minimiser = mesa_descent(one_gradient_step(), constructed_tokens(s), states=s)
    assert [embed["layer"], block["layer"], minimiser["layer"]] == ["embed", "block00", "minimiser"]
    assert embed["context"] > 0.9
    assert abs(embed["in_context"]) < 0.15
    assert 0.1 < block["context"] < 0.75
    assert block["in_context"] > 0.3
    assert block["optimum"] < 0.75 < embed["optimum"]
    assert minimiser["context"] < 0.01
    assert minimiser["optimum"] == 0


def test_a_mesa_layer_arrives_at_the_minimiser() -> None:
    s = states()
    _, block, minimiser = mesa_descent(exact_minimiser(), constructed_tokens(s), states=s)
    assert block["context"] < 0.02
    assert block["next"] < 0.05
    assert block["optimum"] < 0.02
    assert block["in_context"] > 0.9
    assert minimiser["next"] < 0.05


def test_what_is_known_from_training_is_not_called_descent() -> None:
    s = states("fixed")
    embed, *_ = mesa_descent(one_gradient_step(), constructed_tokens(s), states=s)
    assert embed["context"] < 0.01  # one teacher for all sequences: a readout of the current state predicts the next
    assert embed["foreign"] < 0.01
    assert abs(embed["in_context"]) < 0.01


def test_the_papers_protocol_scores_what_it_fitted() -> None:
    s = states(count=12)
    held_out, paper = (
        mesa_descent(one_gradient_step(), constructed_tokens(s), states=s, protocol=p)[0]["next"]
        for p in ("held-out", "paper")
    )
    assert paper < held_out


class CopyBack(nn.Module):
    """Adds the token `lag` steps back, rotated, to each token."""

    def __init__(self, lag: int) -> None:
        super().__init__()
        self.lag = lag
        self.map = nn.Linear(DIM, 2 * DIM, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        back = torch.roll(z, self.lag, 1).clone()
        back[:, : self.lag] = 0
        out: Tensor = self.map(back[..., :DIM])
        return out


def test_binding_finds_the_token_that_was_copied() -> None:
    config = RegressorConfig(layers=("linear",), dim=2 * DIM, heads=1, input_dim=DIM)
    model = SequenceRegressor(config).double()
    model.blocks[0].attn = CopyBack(2).double()
    s = torch.randn(160, 8, DIM, dtype=torch.float64)
    records = token_binding(model, s, lags=4)
    gains = [r["gain"] for r in records]
    assert [r["lag"] for r in records] == [0, 1, 2, 3, 4]
    assert records[2]["score"] > 0.95
    assert gains[2] > 0.9
    assert max(gains[i] for i in (0, 1, 3, 4)) < 0.2
    assert records[0]["before"] > 0.99
    assert [r["sensitivity"] > 0 for r in records] == [True, False, True, False, False]
    assert all(p.grad is None for p in model.parameters())
    other = token_binding(model, s, lags=2, position=5, batch_size=50, directions=0)
    assert other[2]["gain"] > 0.9
    assert "sensitivity" not in other[0]


@pytest.mark.parametrize("norm", ["none", "layernorm"])
def test_binding_reports_the_weights_of_a_softmax_layer_without_norms_too(norm: str) -> None:
    torch.manual_seed(0)
    model = SequenceRegressor(RegressorConfig(layers=("softmax", "softmax"), dim=8, heads=2, input_dim=3, norm=norm))
    s = torch.randn(12, 9, 3)
    for layer, index in (("block00", 0), ("block01", 1)):
        records = token_binding(model, s, lags=2, layer=layer, attention=True, directions=0)
        with torch.no_grad():
            z = model.embed(s)
            for block in model.blocks[:index]:
                z = block(z)
            weights = model.blocks[index].attn.attention(model.blocks[index].norm1(z)).mean((0, 1))[-1]  # type: ignore
        found = torch.tensor([r["attention"] for r in records])
        torch.testing.assert_close(found, weights.flip(0)[:3])


@pytest.mark.parametrize("family", ["neox", "opt", "bloom", "qwen2"])
def test_other_hugging_face_families_are_read_too(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    shared = {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    if family == "neox":
        model = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**shared, intermediate_size=32))
    elif family == "opt":
        config = transformers.OPTConfig(**shared, ffn_dim=32, max_position_embeddings=64, word_embed_proj_dim=16)
        model = transformers.OPTForCausalLM(config)
    elif family == "bloom":
        model = transformers.BloomForCausalLM(
            transformers.BloomConfig(vocab_size=31, hidden_size=16, n_layer=2, n_head=2)
        )
    else:
        config = transformers.Qwen2Config(**shared, intermediate_size=32, num_key_value_heads=1)
        model = transformers.Qwen2ForCausalLM(config)
    ids = torch.randint(31, (16, 10))
    layers = [r["layer"] for r in mesa_descent(model, ids, pairs=2)]
    assert layers == ["embed", "block00", "block01", "minimiser"]
    binding = token_binding(model, ids, lags=1, directions=1)
    assert all(r["sensitivity"] > 0 for r in binding)
    assert len(in_context_score(model, ids, early=1, late=6)["curve"]) == 9
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_sensitivity_is_the_norm_of_the_jacobian() -> None:
    config = RegressorConfig(layers=("softmax", "mesa"), dim=6, heads=2, input_dim=3, norm="layernorm")
    model = SequenceRegressor(config).double()
    s = torch.randn(6, 5, 3, dtype=torch.float64)
    records = token_binding(model, s, lags=4, layer="block01", directions=400)
    embedded = model.embed(s)
    run = lambda z: model.blocks[1](model.blocks[0](z))[:, -1].sum(0)  # noqa: E731
    jacobian = torch.autograd.functional.jacobian(run, embedded)  # [d, b, n, d]
    expected = jacobian.square().sum((0, 3)).mean(0).sqrt()
    found = torch.tensor([r["sensitivity"] for r in records], dtype=torch.float64).flip(0)
    torch.testing.assert_close(found, expected, rtol=0.15, atol=0.0)


@pytest.mark.parametrize("family", ["ours", "gpt2", "llama"])
def test_language_models_of_any_make(family: str) -> None:
    if family == "ours":
        config = LanguageConfig(vocab_size=13, dim=24, heads=2, layers=("mssa", "softmax"), max_length=40)
        model: Any = LanguageModel(config)
    else:
        model = hugging_face(pytest.importorskip("transformers"), family)
    ids = torch.randint(13, (24, 12))
    binding = token_binding(model, ids, lags=2, attention=True, batch_size=10)
    assert len(binding) == 3
    assert all(0 < r["attention"] < 1 and r["sensitivity"] > 0 for r in binding)
    assert len(binding[0]["attention_heads"]) == (4 if family == "llama" else 2)
    layers = [r["layer"] for r in mesa_descent(model, ids, pairs=3, batch_size=10)]
    assert layers == ["embed", "block00", "block01", "minimiser"]
    score = in_context_score(model, ids, early=2, late=8, window=2, batch_size=10)
    assert abs(score["score"]) < 1  # an untrained model gains nothing from context
    assert len(score["curve"]) == 11
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_in_context_score_of_a_model_that_learns_in_context() -> None:
    s = states(steps=30)
    tokens = constructed_tokens(s)[:, :-1]
    score = in_context_score(exact_minimiser(), tokens, s[:, 1:], early=1, late=25)
    assert score["late"] < 0.05 < score["early"]
    assert score["score"] == pytest.approx(score["late"] - score["early"])
    assert score["score"] < -5 * score["standard_error"]


def test_losses_are_those_of_the_next_token() -> None:
    model = LanguageModel(LanguageConfig(vocab_size=7, dim=8, heads=2, layers=("linear",), max_length=9)).eval()
    ids = torch.randint(7, (3, 9))
    expected = -model(ids).log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(token_losses(model, ids, batch_size=2), expected)
    torch.testing.assert_close(token_losses(model, ids[:, :-1], ids[:, 1:]), expected)


def test_a_trained_llama(shared: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = stories_llama(transformers, shared)
    start = torch.ones(240, 1, dtype=torch.long)
    story = model.generate(start[:1], max_new_tokens=12, do_sample=False)[0]
    meta = json.loads((shared / "data/weights/stories260k_llama.json").read_text())
    text = "".join(meta["tokens_latin1"][i] for i in story[1:].tolist())
    assert text.strip().startswith("Once upon a time")
    ids = model.generate(start, max_new_tokens=44, do_sample=True, top_k=0, pad_token_id=0)
    score = in_context_score(model, ids, early=4, late=30, window=10)
    shuffled = ids[:, 1:][:, torch.randperm(ids.shape[1] - 1)]
    assert score["late"] + 1 < float(token_losses(model, shuffled).mean())
    assert len(score["curve"]) == ids.shape[1] - 1
    binding = token_binding(model, ids, lags=2, attention=True)
    assert binding[0]["score"] > 0.5
    assert all(0 <= r["attention"] <= 1 for r in binding)
    descent = mesa_descent(model, ids, pairs=2)
    assert [r["layer"] for r in descent] == ["embed", *(f"block{i:02d}" for i in range(5)), "minimiser"]
    assert all(
        torch.isfinite(torch.tensor([r["context"], r["foreign"], r["next"], r["optimum"]])).all() for r in descent
    )


def stories_llama(transformers: Any, shared: Path) -> Any:
    """The published weights in Hugging Face's names; its rotary layout pairs halves instead of neighbours."""
    weights = torch.load(shared / "data/weights/stories260k_llama.pt", weights_only=True)
    config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=None,
    )
    config._attn_implementation = "eager"
    model = transformers.LlamaForCausalLM(config).eval()
    names = {
        "attention.wq": "self_attn.q_proj",
        "attention.wk": "self_attn.k_proj",
        "attention.wv": "self_attn.v_proj",
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    renamed = {}
    for key, value in weights.items():
        if key.endswith(("attention.wq.weight", "attention.wk.weight")):
            value = value.unflatten(0, (-1, 4, 2)).transpose(1, 2).flatten(0, 2)
        for ours, theirs in names.items():
            key = key.replace(f".{ours}.", f".{theirs}.")
        key = {"tok_embeddings.weight": "embed_tokens.weight", "output.weight": ""}.get(key, key)
        if key:
            renamed[f"model.{key}"] = value
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    return model


def test_bad_input() -> None:
    model, s = one_gradient_step(), states(count=10)
    tokens = constructed_tokens(s)
    with pytest.raises(ValueError, match="late=500"):
        in_context_score(model, tokens, s)
    with pytest.raises(ValueError, match="early"):
        in_context_score(model, tokens, s, early=5, late=5)
    with pytest.raises(ValueError, match="position"):
        token_binding(model, tokens, position=2)
    with pytest.raises(ValueError, match="states"):
        token_binding(model, tokens, states=s[:5])
    with pytest.raises(ValueError, match="position"):
        mesa_descent(model, tokens, states=s, position=16)
    with pytest.raises(ValueError, match="8"):
        mesa_descent(model, tokens[:5], states=s[:5])
    with pytest.raises(ValueError, match="protocol"):
        mesa_descent(model, tokens, states=s, protocol="train")  # type: ignore[arg-type]
    for fraction in (-0.1, 0.0, 0.9, 1.0):
        with pytest.raises(ValueError, match="test_fraction"):
            mesa_descent(model, tokens, states=s, test_fraction=fraction)
    with pytest.raises(ValueError, match="finite"):
        mesa_descent(model, tokens, states=torch.full_like(s, torch.nan))
    with pytest.raises(ValueError, match="nothing to predict"):
        mesa_descent(model, tokens, states=torch.ones_like(s))
    with pytest.raises(ValueError, match="directions"):
        token_binding(model, tokens, states=s, directions=-1)
    with pytest.raises(ValueError, match="no sequence"):
        in_context_score(model, tokens[:0], s[:0], early=1, late=2)
    with pytest.raises(ValueError, match="at least one token"):
        in_context_score(model, tokens[:, :0], s[:, :0], early=1, late=2)
    with pytest.raises(ValueError, match="batch_size"):
        in_context_score(model, tokens, s, early=1, late=2, batch_size=-3)


def test_predictions_of_another_shape_than_their_targets_are_refused() -> None:
    model = nn.Linear(3, 1)
    with pytest.raises(ValueError, match=r"targets: are \[b, n, e\] = \[4, 4\], but the model predicts \[4, 4, 1\]"):
        token_losses(model, torch.randn(4, 4, 3), torch.randn(4, 4))
