"""Probes: what they find, what their controls say, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unrolled.instruments import probe, probe_model
from unrolled.instruments.readouts.probes import fit_readout
from unrolled.models import LanguageConfig, LanguageModel, RegressorConfig, SequenceRegressor


def linear_world(b: int = 80, n: int = 3, d: int = 6) -> tuple[Tensor, Tensor]:
    x = torch.randn(b, n, d)
    return x, x @ torch.randn(d, 2) + 3.0


def test_a_linear_relation_is_found_and_its_control_is_not() -> None:
    x, y = linear_world()
    records = probe(x, y)
    assert [r["position"] for r in records] == [0, 1, 2]
    for record in records:
        assert record["score"] > 0.999
        assert record["control"] < 0.2
        assert record["selectivity"] == pytest.approx(record["score"] - record["control"])
        assert (record["fitted"], record["tested"]) == (60, 20)
        assert record["error"] < 0.01 < record["baseline"]


def test_noise_is_not_found_although_it_could_be_memorised() -> None:
    x, y = torch.randn(40, 1, 60), torch.randn(40, 1, 3)
    [held_out] = probe(x, y)
    [paper] = probe(x, y, protocol="paper")
    assert held_out["score"] < 0.1
    assert paper["score"] > 0.9  # fitted and scored on the same sequences


def test_the_papers_protocol_is_ridge_regression_without_intercept() -> None:
    x, y = linear_world(n=1)
    [record] = probe(x, y, protocol="paper")
    flat, want = x[:, 0].double(), y[:, 0].double()
    weight = torch.linalg.solve(flat.mT @ flat + 1e-3 * torch.eye(6), flat.mT @ want)
    assert record["error"] == pytest.approx(float((flat @ weight - want).square().mean()), rel=1e-9)
    assert record["fitted"] == record["tested"] == 80


def test_the_readout_is_the_ridge_minimiser() -> None:
    x, y = torch.randn(30, 5, dtype=torch.float64), torch.randn(30, 2, dtype=torch.float64)
    readout = fit_readout(x, y, penalties=(0.3,))
    centred, scale = x - x.mean(0), 0.3 * (x - x.mean(0)).square().sum() / 5
    expected = torch.linalg.solve(centred.mT @ centred + scale * torch.eye(5), centred.mT @ (y - y.mean(0)))
    torch.testing.assert_close(readout.weight, expected)
    torch.testing.assert_close(readout(x.mean(0, keepdim=True))[0], y.mean(0))


def test_pooling_and_positions() -> None:
    x, y = linear_world()
    assert [r["position"] for r in probe(x, y, positions=[-1, 0])] == [2, 0]
    [pooled] = probe(x, y, pooled=True)
    assert pooled["position"] is None
    assert pooled["tested"] == 60
    [single] = probe(x[:, 0], y[:, 0])
    assert single["position"] is None
    assert single["score"] == probe(x, y, positions=[0])[0]["score"]


def test_no_sequence_is_both_fitted_and_tested() -> None:
    # tokens of a sequence share its identity, so a division of tokens would find it
    x = torch.randn(40, 1, 50).expand(-1, 8, -1) + 0.01 * torch.randn(40, 8, 50)
    [record] = probe(x, torch.randn(40, 1, 1).expand(-1, 8, -1), pooled=True)
    assert record["score"] < 0.2


def test_classes_are_found() -> None:
    labels = torch.randint(3, (90, 2))
    x = torch.nn.functional.one_hot(labels, 3) + 0.2 * torch.randn(90, 2, 3)
    for record in probe(x, labels, kind="logistic", penalties=(1e-4, 1e-2)):
        assert record["score"] > 0.95
        assert record["control"] < 0.7
        assert record["baseline"] > 0.4
    constant = probe(x, torch.zeros_like(labels), kind="logistic", positions=[0])
    assert constant[0]["score"] == 1.0
    assert constant[0]["selectivity"] == 0.0


def test_the_penalty_is_chosen_by_fits_that_never_saw_the_samples_they_are_judged_on() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels = torch.randint(3, (120,))
    x = torch.nn.functional.one_hot(labels, 3) + 1.2 * torch.randn(120, 3)
    fitted = torch.randperm(120, generator=torch.Generator().manual_seed(0))[30:]  # as `probe` divides them
    x[fitted[-1]] *= 1000  # one of the last quarter, on which the penalty is chosen
    penalties = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4)
    features, known, cut = x[fitted].double().numpy(), labels[fitted].numpy(), 90 - 22
    hits = [
        make_pipeline(StandardScaler(), LogisticRegression(C=1 / (p * cut), max_iter=2000))
        .fit(features[:cut], known[:cut])
        .score(features[cut:], known[cut:])
        for p in penalties
    ]
    [record] = probe(x, labels, kind="logistic", penalties=penalties[::-1], test_fraction=0.25)
    assert record["fitted"] == 90
    assert record["penalty"] == penalties[int(np.argmax(hits))]


def test_a_control_by_type_exposes_what_identity_alone_gives() -> None:
    ids = torch.randint(5, (120, 1))
    x = torch.nn.functional.one_hot(ids, 5).float()
    y = torch.randn(5, 2)[ids]
    by_type, shuffled = probe(x, y, types=ids)[0], probe(x, y)[0]
    assert by_type["score"] == shuffled["score"] > 0.99
    assert by_type["control"] > 0.99  # any function of the token can be read off its identity
    assert shuffled["control"] < 0.2


@pytest.mark.parametrize("batch_size", [None, 7])
def test_layers_of_our_models(batch_size: int | None) -> None:
    config = LanguageConfig(vocab_size=11, dim=16, heads=2, layers=("mssa", "softmax"), second="ista", max_length=8)
    model = LanguageModel(config).train()
    ids = torch.randint(11, (60, 4))
    records = probe_model(model, ids, ids, kind="logistic", positions=[0], penalties=(1e-3,), batch_size=batch_size)
    assert [r["layer"] for r in records] == ["embed", "block00", "block01"]
    assert records[0]["score"] > 0.7
    assert records[0]["selectivity"] < 0.3  # token identity has no selectivity against a control by type
    assert model.training


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_layers_of_hugging_face_models(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    model = hugging_face(transformers, family)
    ids = torch.randint(13, (240, 6))
    before = torch.nn.functional.one_hot(ids, 13).float()
    records = probe_model(model, ids, before, positions=[5], batch_size=100)
    assert [r["layer"] for r in records] == ["embed", "block00", "block01"]
    assert records[0]["score"] > 0.9
    same = probe_model(model, {"input_ids": ids}, before, positions=[5], types=ids)
    assert same[0]["score"] == pytest.approx(records[0]["score"])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def hugging_face(transformers: Any, family: str) -> Any:
    if family == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=13, n_embd=24, n_layer=2, n_head=2, n_positions=40, bos_token_id=0, eos_token_id=0
        )
        config._attn_implementation = "eager"
        return transformers.GPT2LMHeadModel(config).eval()
    config = transformers.LlamaConfig(
        vocab_size=13,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=40,
    )
    config._attn_implementation = "eager"
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "linear"}, "kind"),
        ({"protocol": "train"}, "protocol"),
        ({"test_fraction": 1.0}, "test_fraction"),
        ({"positions": [3]}, "positions"),
        ({"positions": []}, "positions"),
        ({"penalties": []}, "penalties"),
        ({"penalties": [-1.0]}, "penalties"),
        ({"penalties": [float("nan")]}, "penalties"),
        ({"kind": "logistic", "targets": torch.zeros(80, 3, dtype=torch.long), "penalties": [0.0]}, "penalties"),
        ({"targets": torch.zeros(80, 2, 1)}, "targets"),
        ({"types": torch.zeros(80, 2)}, "types"),
        ({"kind": "logistic"}, "integer label"),
        ({"kind": "logistic", "protocol": "paper"}, "paper"),
        ({"features": torch.full((80, 3, 6), torch.nan)}, "finite"),
        ({"features": torch.zeros(3, 3, 6), "targets": torch.zeros(3, 3, 1)}, "at least 4"),
        ({"features": torch.zeros(3)}, "features"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    x, y = linear_world()
    with pytest.raises(ValueError, match=message):
        probe(**{"features": x, "targets": y, **change})


@pytest.mark.parametrize(
    ("count", "batch_size", "message"), [(0, None, "no sequence"), (8, 0, "batch_size"), (8, -3, "batch_size")]
)
def test_nothing_to_run_is_named(count: int, batch_size: int | None, message: str) -> None:
    model = SequenceRegressor(RegressorConfig(layers=("linear",), dim=8, heads=2, input_dim=3))
    with pytest.raises(ValueError, match=message):
        probe_model(model, torch.randn(count, 5, 3), torch.randn(count, 5, 1), batch_size=batch_size)


def test_an_empty_sequence_is_named() -> None:
    model = SequenceRegressor(RegressorConfig(layers=("linear",), dim=8, heads=2, input_dim=3))
    with pytest.raises(ValueError, match="empty sequence"):
        probe_model(model, torch.randn(8, 0, 3), torch.randn(8, 0, 1))
