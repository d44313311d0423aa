"""The sparse autoencoder against its equation, a planted dictionary, and atoms that died; what codes are worth."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from unrolled.instruments.autoencoder import SparseAutoencoder, _loss, fit_autoencoder, largest
from unrolled.instruments.codes import class_selectivity, explained_variance, match_atoms


def planted(n: int = 4000, dim: int = 12, atoms: int = 16, k: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens of k atoms each around a centre, and the atoms as rows."""
    generator = torch.Generator().manual_seed(seed)
    dictionary = torch.nn.functional.normalize(torch.randn(atoms, dim, generator=generator), dim=1)
    codes = largest(torch.rand(n, atoms, generator=generator), k) + 0.5
    codes = torch.where(codes > 0.5, codes, 0)
    return codes @ dictionary + 3.0, dictionary


@pytest.mark.parametrize(("dim", "atoms", "k"), [(5, 3, 1), (4, 9, 4), (3, 6, 6)])
def test_codes_and_tokens_are_those_of_the_equation(dim: int, atoms: int, k: int) -> None:
    model = SparseAutoencoder(dim, atoms, k, seed=1).double().requires_grad_(False)
    with torch.no_grad():
        model.centre.copy_(torch.arange(dim))
        model.scale.fill_(2.0)
    x = torch.randn(2, 7, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for token, codes, rebuilt in zip(
        x.reshape(-1, dim), model.encode(x).reshape(-1, atoms), model(x).reshape(-1, dim), strict=True
    ):
        matches = [max(0.0, float(row @ (token - model.centre)) / 2) for row in model.encoder]
        kept = sorted(range(atoms), key=lambda i: -matches[i])[:k]
        slow = torch.tensor([matches[i] if i in kept else 0.0 for i in range(atoms)], dtype=torch.float64)
        torch.testing.assert_close(codes, slow, rtol=1e-12, atol=1e-12)
        atoms_used = sum(float(slow[i]) * model.dictionary[:, i] for i in range(atoms))
        torch.testing.assert_close(rebuilt, model.centre + 2 * atoms_used, rtol=1e-12, atol=1e-12)
    assert model.dictionary.norm(dim=0).tolist() == pytest.approx([1.0] * atoms, abs=1e-6)


def test_its_loss_is_the_squared_error_and_what_dead_atoms_make_of_the_rest() -> None:
    model = SparseAutoencoder(6, 8, 2, seed=3).double()
    x = torch.randn(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    alive, used = _loss(model, x, torch.zeros(8, dtype=torch.bool))
    assert float(alive) == pytest.approx(float((x - model(x)).square().mean()), rel=1e-12)
    assert used.tolist() == (model.encode(x) > 0).any(0).tolist()
    dead = torch.tensor([True, False, True] + [False] * 5)
    matches = model.matches(x).relu() * dead
    left = (x - model(x)).detach()
    extra = (left - matches @ model.dictionary.mT).square().mean()
    assert float(_loss(model, x, dead)[0]) == pytest.approx(float(alive) + float(extra) / 32, rel=1e-12)


def test_a_planted_dictionary_is_found_with_atoms_of_norm_one() -> None:
    tokens, dictionary = planted()
    model = fit_autoencoder(tokens, 16, 2, steps=250, batch=128, rate=5e-3)
    rows = model.dictionary.mT
    assert rows.norm(dim=1).tolist() == pytest.approx([1.0] * 16, abs=1e-5)
    nearest = (dictionary @ rows.mT).max(1).values
    assert float(nearest.median()) > 0.95
    assert explained_variance(tokens, model(tokens)) > 0.9
    assert (model.encode(tokens) > 0).sum(1).max() <= 2
    again, same = (fit_autoencoder(tokens, 16, 2, steps=3, batch=128, seed=9) for _ in range(2))
    assert torch.equal(again.dictionary, same.dictionary)


def test_dead_atoms_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, _ = planted(2000)
    born = SparseAutoencoder.__init__

    def half_dead(self: Any, *args: Any, **kwargs: Any) -> None:
        born(self, *args, **kwargs)
        with torch.no_grad():
            # so weak that TopK never chooses them
            self.encoder[:8] *= 1e-3

    monkeypatch.setattr(SparseAutoencoder, "__init__", half_dead)

    def used(dead_after: int) -> int:
        model = fit_autoencoder(tokens, 16, 2, steps=300, batch=128, dead_after=dead_after, rate=1e-3)
        return int((model.encode(tokens) > 0).any(0).sum())

    assert used(10) > used(10_000)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"tokens": torch.zeros(5, 3, dtype=torch.int64)}, "tokens"),
        ({"tokens": torch.ones(5, 3)}, "tokens"),
        ({"tokens": torch.full((5, 3), torch.nan)}, "tokens"),
        ({"k": 9}, "k="),
        ({"atoms": 0}, "atoms="),
    ],
)
def test_what_cannot_be_fitted_is_named(change: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        fit_autoencoder(**{"tokens": torch.randn(5, 3), "atoms": 8, "k": 2, "steps": 1, **change})


def test_explained_variance_is_one_of_all_and_zero_of_the_mean() -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(5)) + 10
    assert explained_variance(x, x) == 1
    assert explained_variance(x, x.mean(0).expand_as(x)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="variance"):
        explained_variance(torch.ones(3, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="shape"):
        explained_variance(x, x[1:])


def test_selectivity_is_the_share_between_classes_and_of_shuffled_labels_chance() -> None:
    generator = torch.Generator().manual_seed(6)
    labels = torch.arange(5).repeat(40)
    codes = torch.stack([labels.double(), torch.randn(200, generator=generator).double(), torch.ones(200)], 1)
    shares = class_selectivity(codes, labels)
    assert float(shares[0]) == pytest.approx(1)
    groups = [codes[labels == c, 1] for c in range(5)]
    between = sum(len(group) * (group.mean() - codes[:, 1].mean()) ** 2 for group in groups)
    assert float(shares[1]) == pytest.approx(float(between / (codes[:, 1] - codes[:, 1].mean()).square().sum()))
    assert torch.isnan(shares[2])
    shuffled = [
        float(class_selectivity(codes[:, :1], labels[torch.randperm(200, generator=generator)])) for _ in range(300)
    ]
    assert sum(shuffled) / 300 == pytest.approx(4 / 199, abs=0.003)


def test_the_matching_is_the_best_of_all_and_finds_permuted_codes() -> None:
    generator = torch.Generator().manual_seed(7)
    first, second = (torch.randn(30, 4, generator=generator) for _ in range(2))
    second[:, 2] = 1.0  # never changes
    table = torch.corrcoef(torch.cat([first, second], 1).mT.double())[:4, 4:].nan_to_num(0)
    best = max(sum(float(table[i, j]) for i, j in enumerate(order)) for order in permutations(range(4)))
    assert float(match_atoms(first, second).correlation.sum()) == pytest.approx(best, abs=1e-9)
    order = torch.tensor([3, 0, 2, 1])
    again = match_atoms(first, 5 * first[:, order] + 1)
    assert order[again.second].tolist() == again.first.tolist()
    assert again.correlation.tolist() == pytest.approx([1.0] * 4)
    with pytest.raises(ValueError, match="first"):
        match_atoms(first, second[1:])
