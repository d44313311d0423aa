"""Sequence models: what they compute, decode, save and refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unrolled.layers import CRATEBlock, LinearSelfAttention, MesaNetBlock
from unrolled.models.sequence import LanguageModel, SequenceRegressor, SequenceState
from unrolled.models.sequence_blocks import MAKE_LAYER, MAKE_NORM, MAKE_SECOND, SequenceBlock
from unrolled.models.sequence_config import LAYERS, NORMS, SECOND, LanguageConfig, RegressorConfig, language_config
from unrolled.tasks import LinearDynamics, constructed_tokens
from unrolled.theory.in_context import gradient_descent_predictions

STACKS: dict[str, dict[str, Any]] = {
    **{name: {"layers": (name, name)} for name in LAYERS},
    "alpha": {"layers": ("mssa", "tssa"), "second": "overcomplete"},
    "hybrid": {"layers": ("softmax", "mesa", "linear")},
    "crate": {"layers": ("mssa", "mssa"), "second": "ista"},
    "tied crate": {"layers": ("mssa",), "second": "ista", "layer_args": {"mssa": {"output": "tied"}}},
    "swiglu, rms": {"layers": ("mesanet", "softmax"), "second": "swiglu", "norm": "rmsnorm", "positions": "none"},
    "llama": {
        **{"layers": ("softmax", "softmax"), "second": "swiglu", "norm": "rmsnorm", "positions": "none"},
        "layer_args": {"softmax": {"rotary": 100.0}},
    },
    "convolved": {"layers": ("softmax",), "layer_args": {"softmax": {"width": 3, "rotary": 10.0}}},
    "first layer": {"layers": ("softmax", "linear"), "positions": "first_layer", "second": "relu"},
    "first mesa": {"layers": ("mesa",), "positions": "first_layer", "layer_args": {"mesa": {"normalize": True}}},
    "bare": {"layers": ("linear",), "positions": "sinusoidal", "norm": "none", "second": "none", "logit_cap": 5.0},
}


def language_model(name: str = "crate", **overrides: Any) -> LanguageModel:
    config = {"vocab_size": 31, "dim": 12, "heads": 2, "max_length": 24, "init_std": 0.3}
    model: LanguageModel = LanguageModel(LanguageConfig(**{**config, **STACKS[name], **overrides})).double().eval()
    return model


def ids(b: int = 2, n: int = 9) -> Tensor:
    return torch.randint(31, (b, n))


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("cut", [1, 4])
def test_decoding_with_the_cache_is_one_pass(name: str, cut: int) -> None:
    model, tokens = language_model(name), ids()
    whole = model(tokens)
    out, state = model(tokens[:, :cut], return_state=True)
    pieces = [out]
    for piece in (tokens[:, cut : cut + 1], tokens[:, cut + 1 :]):  # one token, then several at once
        out, state = model(piece, state=state, return_state=True)
        pieces.append(out)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-8, atol=1e-10)
    assert state.length == 9


@pytest.mark.parametrize("name", STACKS)
def test_generate_with_the_cache_equals_recomputation(name: str) -> None:
    model, prompt = language_model(name), ids(n=3)
    for sampling in ({}, {"temperature": 1.0, "top_k": 7, "seed": 3}):
        cached = model.generate(prompt, 12, **sampling)
        assert cached.shape == (2, 15)
        assert torch.equal(cached[:, :3], prompt)
        assert torch.equal(cached, model.generate(prompt, 12, cache=False, **sampling))


@pytest.mark.parametrize("name", [name for name in STACKS if language_model(name).longest])
@pytest.mark.parametrize(("length", "count"), [(20, 8), (40, 4)])  # the second prompt is beyond the context itself
def test_generation_goes_on_past_the_context_with_the_last_tokens(name: str, length: int, count: int) -> None:
    model, prompt = language_model(name), ids(n=length)
    expected, longest = prompt, model.longest
    assert longest == 24
    for _ in range(count):
        logits = model(expected[:, -longest:])
        expected = torch.cat([expected, logits[:, -1].argmax(-1, keepdim=True)], 1)
    for cache in (True, False):
        assert torch.equal(model.generate(prompt, count, cache=cache), expected)
    sampling = {"temperature": 1.0, "top_k": 5, "seed": 2}
    sampled = model.generate(prompt, count, **sampling)
    assert torch.equal(sampled, model.generate(prompt, count, cache=False, **sampling))
    assert torch.equal(sampled, torch.cat([prompt, *model.stream(prompt, count, **sampling)], 1))


def test_almost_no_temperature_is_none() -> None:
    model, prompt = language_model(), ids(n=3)
    assert torch.equal(model.generate(prompt, 9, temperature=1e-300), model.generate(prompt, 9))


@pytest.mark.parametrize("name", STACKS)
def test_the_future_is_not_seen_and_every_parameter_learns(name: str) -> None:
    model, tokens = language_model(name).train(), ids()
    other = tokens.clone()
    other[:, 6:] = (other[:, 6:] + 1) % 31
    logits = model(tokens)
    torch.testing.assert_close(logits[:, :6], model(other)[:, :6], rtol=1e-9, atol=1e-11)
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids().flatten()).backward()
    for parameter, value in model.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.abs().max() > 0, parameter


@pytest.mark.parametrize("name", ["crate", "hybrid", "swiglu, rms"])
def test_saving_and_loading(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = language_model(name).float()
    model.save_pretrained(tmp_path)
    loaded = LanguageModel.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert loaded.head.weight is loaded.embed.weight
    tokens = ids()
    assert torch.equal(loaded(tokens), model(tokens))
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="does not describe a SequenceRegressor"):
        SequenceRegressor.from_pretrained(tmp_path)


def test_a_regressor_saves_too(tmp_path: Path) -> None:
    model = SequenceRegressor(RegressorConfig(layers=("mesa",), dim=8, heads=2, input_dim=3, clip=4.0))
    model.save_pretrained(tmp_path)
    states = torch.randn(2, 5, 3)
    assert torch.equal(SequenceRegressor.from_pretrained(tmp_path)(states), model(states))


def test_published_sizes() -> None:
    millions = {
        "crate_gpt_base": 60.7,
        "gpt2_base": 124.4,
        "crate_alpha_gpt_base": 110.2,
        "mesanet_140m": 146.2,
        "mesanet_440m": 433.9,
    }
    for name, expected in millions.items():
        with torch.device("meta"):
            model = LanguageModel(language_config(name))
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(expected, abs=0.06)


def test_constructed_linear_model_is_one_gradient_step() -> None:
    states = LinearDynamics(dim=4, steps=10).sample(3, seed=0, dtype=torch.float64).inputs
    config = RegressorConfig(
        layers=("linear",), dim=16, heads=1, dim_head=4, input_dim=16, output_dim=4, embedding="none"
    )
    model = SequenceRegressor(config).double()
    model.blocks[0].attn = LinearSelfAttention.gradient_descent(state_dim=4, step_size=0.1, dtype=torch.float64)
    torch.testing.assert_close(model(constructed_tokens(states)), gradient_descent_predictions(states, 0.1))


def test_clipping_bounds_the_tokens() -> None:
    config = RegressorConfig(layers=("linear",), dim=4, heads=1, input_dim=4, embedding="none", clip=0.5)
    assert SequenceRegressor(config)(100 * torch.randn(2, 3, 4)).abs().max() == 0.5


def test_the_crate_block_is_the_causal_one_of_the_image_model() -> None:
    config = language_model().config
    block, image = SequenceBlock(config, 0).double(), CRATEBlock(12, 2).double()
    image.load_state_dict(block.state_dict())
    z = torch.randn(2, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(block(z), image(z, is_causal=True))


def test_the_mesanet_block_is_the_layers_own() -> None:
    config = language_model("swiglu, rms", mlp_ratio=3.0).config
    block, own = SequenceBlock(config, 0).double(), MesaNetBlock(12, 2, dim_head=6).double()
    names = {"attn.": "mixer.", "mlp.": ""}
    renamed = {}
    for key, value in block.state_dict().items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        renamed[key] = value
    own.load_state_dict(renamed)
    z = torch.randn(2, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(block(z), own(z))


def test_the_cache_of_crate_is_half_of_a_softmax_models() -> None:
    def size(name: str) -> int:
        _, state = language_model(name)(ids(n=20), return_state=True)
        tensors = [x for layer in state.layers for x in (layer if isinstance(layer, tuple) else (layer,))]
        return sum(x.numel() for x in tensors)

    assert 2 * size("mssa") == size("softmax")


def test_first_layer_positions_reach_queries_and_keys_only() -> None:
    model = language_model("first layer")
    attention = model.blocks[0].attn
    assert attention.query.in_features == attention.key.in_features == 24
    assert attention.value.in_features == attention.output.out_features == 12
    with torch.no_grad():
        attention.query.weight[:, 12:] = 0
        attention.key.weight[:, 12:] = 0
    tokens = ids(n=5)
    swapped = tokens[:, [1, 0, 2, 3, 4]]
    torch.testing.assert_close(attention(_beside(model, tokens))[:, -1], attention(_beside(model, swapped))[:, -1])


def _beside(model: LanguageModel, tokens: Tensor) -> Tensor:
    return torch.cat([model.embed(tokens), torch.randn(1, 5, 12, dtype=torch.float64).expand(2, -1, -1)], -1)


def test_rolling_out_a_regressor() -> None:
    config = RegressorConfig(layers=("softmax", "mesa"), dim=8, heads=2, input_dim=3, positions="learned", max_length=9)
    model = SequenceRegressor(config).double()
    prompt = torch.randn(2, 4, 3, dtype=torch.float64)
    out = model.generate(prompt, 5)
    torch.testing.assert_close(out, model.generate(prompt, 5, cache=False), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(out[:, 4], model(prompt)[:, -1])
    with pytest.raises(ValueError, match="max_length=9"):
        model.generate(prompt, 6)


def test_end_of_sequence_is_repeated() -> None:
    model, prompt = language_model(), ids(n=3)
    free = model.generate(prompt, 8)
    eos = int(free[0, 5])
    out = model.generate(prompt, 8, eos=eos)
    first = out[0, 3:].tolist().index(eos)
    assert set(out[0, 3 + first :].tolist()) == {eos}
    assert model.generate(prompt[:1], 8, eos=eos).shape[1] == 4 + first  # stops when all are over


def test_generating_leaves_the_mode_alone() -> None:
    model = language_model(dropout=0.5).train()
    model.blocks[0].eval()
    once, twice = model.generate(ids(n=3), 5), None
    twice = model.generate(once[:, :3], 5)
    assert torch.equal(once, twice)
    assert model.training
    assert not model.blocks[0].ista.training
    assert model.blocks[1].ista.training


def test_a_hugging_face_tokenizer_fits() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=40, special_tokens=["<unk>"], show_progress=False)
    backend.train_from_iterator(["to be or not to be that is the question"], trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    model = language_model(vocab_size=len(tokenizer))
    out = model.generate(tokenizer("to be", return_tensors="pt").input_ids, 6)
    assert tokenizer.decode(out[0]).startswith("to")
    with pytest.raises(ValueError, match="empty sequence"):
        model.generate(tokenizer("", return_tensors="pt").input_ids.long(), 6)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(2, 0, dtype=torch.long), "empty sequence"),
        (torch.zeros(0, 2, dtype=torch.long), "empty sequence"),
        (torch.zeros(1, 25, dtype=torch.long), "max_length=24"),
        (torch.tensor([[3, 31]]), "unknown token 31"),
        (torch.tensor([[3, -1]]), "unknown token -1"),
        (torch.zeros(1, 3), "integers"),
        (torch.zeros(3, dtype=torch.long), "integers"),
    ],
)
def test_bad_tokens(tokens: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        language_model()(tokens)


@pytest.mark.parametrize("name", LAYERS)
def test_a_state_of_other_width_is_refused(name: str) -> None:
    model, tokens = language_model(name), ids()
    _, other = language_model(name, dim=16)(tokens, return_state=True)
    with pytest.raises(ValueError, match=r"state: .* must be 2x2x"):
        model(tokens[:, :1], state=other)
    _, batch = model(ids(b=3), return_state=True)
    with pytest.raises(ValueError, match="state"):
        model(tokens[:, :1], state=batch)
    with pytest.raises(ValueError, match="2 layers"):
        model(tokens[:, :1], state=SequenceState(1, (None,)))
    _, full = model(ids(n=24), return_state=True)
    with pytest.raises(ValueError, match="max_length=24"):
        model(tokens[:, :1], state=full)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": ()}, "layers"),
        ({"layers": ("sofmax",)}, "sofmax"),
        ({"layers": "softmax"}, "one name a block"),
        ({"second": "gelu"}, "second"),
        ({"heads": 5}, "heads=5"),
        ({"dropout": 1.0}, "dropout"),
        ({"clip": 0.0}, "clip"),
        ({"layer_args": {"mesa": {}}}, "layer_args"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"layers": ("mssa",), "positions": "first_layer"}, "first_layer"),
    ],
)
def test_bad_configs(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        language_model("softmax", **change)


def test_other_bad_input() -> None:
    with pytest.raises(ValueError, match="embedding='none'"):
        RegressorConfig(layers=("linear",), dim=8, heads=1, input_dim=4, embedding="none")
    with pytest.raises(ValueError, match=r"\[b, n, 3\]"):
        SequenceRegressor(RegressorConfig(layers=("linear",), dim=8, heads=1, input_dim=3))(torch.randn(2, 4, 5))
    with pytest.raises(ValueError, match="did you mean 'crate_gpt"):
        language_config("crate_gpt")
    with pytest.raises(ValueError, match="LanguageConfig"):
        LanguageModel(RegressorConfig(layers=("linear",), dim=8, heads=1, input_dim=3))


def test_a_depth_repeats_the_layers_of_a_named_model() -> None:
    assert language_config("crate_gpt_nano", depth=2).layers == ("mssa",) * 2
    assert language_config("crate_bert_nano", depth=6) == language_config("crate_bert_nano", layers=("mssa",) * 6)
    hybrid = language_config("gpt2_nano", layers=["mesanet", "softmax"], depth=5)
    assert hybrid.layers == ("mesanet", "softmax", "mesanet", "softmax", "mesanet")
    assert language_config("gpt2_nano", layers="delta", depth=3).layers == ("delta",) * 3
    for depth in (0, -1, 2.5, True, "4", 10**12):
        with pytest.raises(ValueError, match=r"depth=.*: give a number of blocks, 1 to 10,000"):
            language_config("gpt2_nano", depth=depth)


@pytest.mark.parametrize(
    "name", ["softmax", "linear", "delta", "mesa", "mesanet", "mssa", "tssa", "ista", "overcomplete"]
)
def test_an_argument_that_a_layer_does_not_take_is_named(name: str) -> None:
    second = name if name in ("ista", "overcomplete") else "none"
    layers = ("mssa",) if name == second else (name,)
    for argument in ("nonsense", "dim", "self"):
        config = RegressorConfig(
            layers=layers, dim=8, heads=2, input_dim=4, second=second, layer_args={name: {argument: 1}}
        )
        refused = rf"layer_args\['{name}'\]: no argument '{argument}'; (known are|did you mean) "
        with pytest.raises(ValueError, match=refused):
            SequenceRegressor(config)


@pytest.mark.parametrize("name", ["softmax", "linear", "delta", "mesa", "mesanet"])
def test_every_attention_layer_takes_a_width_of_values(name: str) -> None:
    config = RegressorConfig(layers=(name,), dim=8, heads=2, input_dim=4, layer_args={name: {"dim_value": 3}})
    model: Any = SequenceRegressor(config)
    assert model.blocks[0].attn.value.weight.shape == (6, 8)
    assert model(torch.randn(1, 5, 4)).shape == (1, 5, 4)


def test_a_misspelt_argument_of_a_layer_is_named() -> None:
    config = RegressorConfig(
        layers=("mesa",), dim=8, heads=2, input_dim=4, output_dim=4, layer_args={"mesa": {"ridg": 1}}
    )
    with pytest.raises(ValueError, match=r"layer_args\['mesa'\].*did you mean 'ridge'"):
        SequenceRegressor(config)


def test_the_card_of_a_saved_model_claims_no_hub(tmp_path: Path) -> None:
    model = LanguageModel(language_config("gpt2_nano", vocab_size=7, dim=8, heads=2, layers=("softmax",)))
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "pushed" not in card
    assert 'LanguageModel.from_pretrained("FOLDER")' in card


def test_configs_name_what_blocks_are_made_of() -> None:
    assert (tuple(MAKE_LAYER), tuple(MAKE_NORM), tuple(MAKE_SECOND)) == (LAYERS, NORMS, SECOND)
