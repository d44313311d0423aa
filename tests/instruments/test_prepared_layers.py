"""Layers prepared once and kept in files, and grids of whole tiles: the numbers of a pair compared alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from unrolled.alignment import models as module
from unrolled.alignment.chance import compare
from unrolled.alignment.embedding import EmbeddingMetric, whole_grids
from unrolled.alignment.layers import prepare_layers
from unrolled.alignment.models import metric_of, model_grid
from unrolled.alignment.prepared import load_prepared, save_prepared
from unrolled.alignment.sparse import sparse_product
from unrolled.errors import CorruptFile
from unrolled.instruments.features.files import Rows, read_features

K = 2
N = 150  # enough for sparse products at K neighbours


def layers_of(seed: int, *, n: int = N, ties: bool = False) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    layers = {f"block{i}": torch.randn(n, 4 + i, generator=generator) for i in range(3)}
    if ties:
        layers["copies"] = torch.randn(6, 3, generator=generator)[torch.randint(6, (n,), generator=generator)]
    layers["constant"] = torch.ones(n, 2)
    return layers


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    paths = {f"m{i}": tmp_path / f"m{i}.npz" for i in range(5)}
    common = layers_of(99)["block2"]
    for i, path in enumerate(paths.values()):
        layers = {name: value.numpy() for name, value in layers_of(i).items()}
        layers["block1"] += 0.4 * i * common[:, :5].numpy()
        np.savez(path, **layers)
    return paths


@pytest.mark.parametrize("name", ["mutual_knn", "cknna", "cycle_knn"])
def test_layers_come_out_of_their_file_as_they_were(name: str, tmp_path: Path) -> None:
    metric = metric_of(name, {"k": K})
    layers = prepare_layers(layers_of(0, ties=True), [metric])
    rows = Rows(N, "digits", torch.arange(N))
    save_prepared(tmp_path / "x.safetensors", layers, rows, shapes=True)
    back, samples = load_prepared(tmp_path / "x.safetensors")
    assert (back.names, back.n, back.constant) == (layers.names, N, ["constant"])
    assert samples[:2] == rows[:2]
    assert torch.equal(samples.indices, rows.indices)
    other = prepare_layers(layers_of(1, ties=True), [metric]).of(metric)
    assert torch.equal(*(metric.grid(side.of(metric), other).nan_to_num(-1) for side in (layers, back)))
    if isinstance(metric, EmbeddingMetric):
        for moments in (metric.null_moments, metric.null_shapes):
            for one, two in zip(moments(layers.of(metric), other), moments(back.of(metric), other), strict=True):
                assert torch.equal(one.nan_to_num(-1), two.nan_to_num(-1))


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    metric = metric_of("mutual_knn", {"k": K})
    path = tmp_path / "x.safetensors"
    save_prepared(path, prepare_layers(layers_of(0), [metric]), Rows(N, "", None), shapes=False)
    arrays = load_file(path)
    arrays["0.1.columns"][3, 1] = N
    save_file(arrays, path)
    with pytest.raises(CorruptFile, match="out of range"):
        load_prepared(path)
    save_file({"x": torch.zeros(3)}, path)
    with pytest.raises(CorruptFile, match="does not hold prepared layers"):
        load_prepared(path)


@pytest.mark.parametrize("name", ["mutual_knn", "cknna"])
def test_the_sparse_product_of_many_layers_is_that_of_each_pair(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unrolled.alignment.sparse._ENTRIES", 40 * N)  # several blocks, the last one short
    metric = metric_of(name, {"k": K})
    left, right = (prepare_layers(layers_of(seed), [metric]).of(metric) for seed in (0, 1))
    assert whole_grids([*left, *right])
    grid = metric.grid(left, right)
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            if a is None or b is None:
                assert bool(grid[i, j].isnan())
            else:
                assert float(grid[i, j]) == pytest.approx(sparse_product(a, b), abs=1e-6)
                assert float(grid[i, j]) == metric.compare(a, b) or name == "cknna"
                assert float(metric.grid([a], [b])) == float(grid[i, j])  # the same in any company
    assert float(metric.grid(left, left)[0, 0]) == pytest.approx(1.0)


@pytest.mark.parametrize("looked_up", [0, N])
@pytest.mark.parametrize("name", ["mutual_knn", "cknna"])
def test_relabelled_grids_of_large_samples_are_those_of_small_ones(
    name: str, looked_up: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric = metric_of(name, {"k": K})
    left, right = (prepare_layers(layers_of(seed), [metric]).of(metric) for seed in (0, 1))
    orders = [torch.randperm(N, generator=torch.Generator().manual_seed(seed)) for seed in range(5)]
    tables = list(metric.null_grids(left, right, orders))
    monkeypatch.setattr("unrolled.alignment.embedding._STACK", 1)  # as if tables took too much memory
    monkeypatch.setattr("unrolled.alignment.embedding._LOOKED_UP", looked_up)
    monkeypatch.setattr("unrolled.alignment.embedding._MOVED", 3 * 3 * N * K)  # two or three orders at a time
    monkeypatch.setattr("unrolled.ops.renamed_products._BLOCK", 3 * 3 * K * 7)  # seven rows at a time
    products = list(metric.null_grids(left, right, orders))
    slow = [metric.grid(left, [None if b is None else metric.relabel(b, order) for b in right]) for order in orders]
    assert len(products) == 5
    for one, two, three in zip(tables, products, slow, strict=True):
        torch.testing.assert_close(one, two, equal_nan=True, rtol=0, atol=1e-6)
        assert torch.equal(two.nan_to_num(-1), three.nan_to_num(-1))


@pytest.mark.parametrize("null", ["permutation", "moments"])
@pytest.mark.parametrize("name", ["mutual_knn", "cknna", "edit_knn"])
def test_a_pair_in_a_tile_is_the_pair_alone(name: str, null: str, models: dict[str, Path]) -> None:
    draws = 20
    grid = model_grid(models, (name,), options={"k": K}, null=null, draws=draws, tile=3)
    for a, b in (("m0", "m1"), ("m2", "m4")):
        pair = next(each for each in grid.pairs if (each.a, each.b) == (a, b))
        alone = compare(
            read_features(models[a]), read_features(models[b]), name, k=K, null=null, draws=draws, resamples=0
        )
        assert (pair.score, pair.layers, pair.p_value) == (alone.score, alone.best, alone.p_value)
        assert pair.chance == pytest.approx(alone.chance, abs=1e-12)


def test_every_model_is_prepared_once_and_not_again_after_a_kill(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = module.prepare_model
    monkeypatch.setattr(module, "prepare_model", lambda name, *rest: read.append(name) or real(name, *rest))
    steps: list[tuple[int, int]] = []
    folder = tmp_path / "tiles"
    asked = {"options": {"k": K}, "null": "moments", "tile": 2, "folder": folder}
    whole = model_grid(models, **asked, on_prepared=lambda done, of: steps.append((done, of)))
    assert read == list(models)
    assert steps == [(i, 5) for i in range(1, 6)]
    for path in list(folder.glob("*.json"))[:2]:
        path.unlink()
    first, second = sorted((folder / "prepared").iterdir())[:2]
    first.unlink()  # the kill came before it was whole
    second.write_bytes(second.read_bytes()[:100])
    assert model_grid(models, **asked).pairs == whole.pairs
    assert len(read) in (6, 7)  # the two, if the missing tiles are of both
    assert model_grid(models, **asked).pairs == whole.pairs
    assert len(read) in (6, 7)


def test_what_is_not_few_numbers_is_prepared_by_the_tile(models: dict[str, Path], tmp_path: Path) -> None:
    both = model_grid(models, ("mutual_knn", "cka"), options={"k": K}, null="moments", tile=2, folder=tmp_path / "t")
    alone = model_grid(models, ("cka",), null="moments", tile=8)
    assert both.of("cka") == alone.pairs
    assert len(list((tmp_path / "t" / "prepared").iterdir())) == 5
    model_grid(models, ("cka",), null="moments", folder=tmp_path / "u")
    assert not (tmp_path / "u" / "prepared").exists()
