"""Features: what is kept, how it is pooled, and that a damaged or foreign folder is never taken for whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import unrolled
from unrolled.errors import CorruptFile, MissingData
from unrolled.instruments.features.extraction import FeatureSet, extract, feature_key, layer_names
from unrolled.instruments.features.pooling import POOLINGS, Tokens, spatial_grid
from unrolled.models import create_model


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return create_model("crate_nano_patch2_8")


@pytest.fixture
def images(model: Any) -> Tensor:
    return torch.randn(7, 1, 8, 8).expand(-1, model.patch_embed.proj.in_channels, -1, -1).contiguous()


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_features_are_the_pooled_activations(model: nn.Module, images: Tensor) -> None:
    with torch.no_grad(), unrolled.trace(model.eval()) as recorded:
        model(images)
    found = extract(model, images, pooling="mean", batch_size=3)
    assert list(found) == [name for name in recorded if name.startswith("block") and "/" not in name]
    assert (found.samples, found.dtype, found.pooling) == (7, torch.float32, "mean")
    for name in found:
        torch.testing.assert_close(found[name], recorded[name][:, 1:].mean(1))
    found = extract(model, images, layers=["block00/half", "norm"], pooling="cls")
    torch.testing.assert_close(found["block00/half"], recorded["block00/half"][:, 0])
    assert list(found) == ["block00/half", "norm"]


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 5), padding=st.integers(0, 4), left=st.booleans(), d=st.integers(1, 4))
@pytest.mark.parametrize("name", ["mean", "max", "last"])
def test_padding_does_not_count(name: str, n: int, padding: int, left: bool, d: int) -> None:
    values, noise = torch.randn(2, n, d), torch.full((2, padding, d), 1e3)
    parts = [noise, values] if left else [values, noise]
    mask = torch.cat([torch.full(part.shape[:2], part is values) for part in parts], 1)
    padded = POOLINGS[name](Tokens("x", torch.cat(parts, 1), 0, False, None, mask))
    torch.testing.assert_close(padded, POOLINGS[name](Tokens("x", values, 0, False, None, None)))


def test_a_grid_keeps_places() -> None:
    places = torch.arange(16.0).reshape(1, 16, 1)
    tokens = Tokens("x", torch.cat([torch.zeros(1, 1, 1), places], 1), 1, True, (4, 4), None)
    assert spatial_grid(2)(tokens).tolist() == [[2.5, 4.5, 10.5, 12.5]]
    assert POOLINGS["grid"](tokens).flatten().tolist() == places.flatten().tolist()


def test_batches_of_every_form(model: nn.Module, images: Tensor) -> None:
    whole = extract(model, images)
    halves = images.split(4)
    batches = [SimpleNamespace(images=halves[0], indices=torch.arange(4), skipped=["a.png: cut short"]),
               SimpleNamespace(images=halves[1], indices=torch.arange(4, 7), skipped=[])]  # fmt: skip
    named = extract(model, batches, data="digits", name="mine")
    assert named.skipped == ["a.png: cut short"]
    assert named.indices is not None
    assert named.indices.tolist() == list(range(7))
    for found in (extract(model, halves), extract(model, [(half, None) for half in halves]), named):
        for layer in whole:
            torch.testing.assert_close(found[layer], whole[layer])


def test_a_masked_language_model_by_keyword() -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 3)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return self.table(input_ids)

    batch = {"input_ids": torch.tensor([[1, 2, 0], [3, 4, 5]]), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
    model = Text()
    table = model.table.weight.detach()
    found = extract(model, [batch], layers="table", pooling="mean")["table"]
    torch.testing.assert_close(found, torch.stack([table[1:3].mean(0), table[3:6].mean(0)]))
    torch.testing.assert_close(extract(model, [batch], layers="table", pooling="last")["table"], table[[2, 5]])


def test_feature_maps_of_a_cnn() -> None:
    import timm

    model = timm.create_model("resnet10t", num_classes=3)
    assert layer_names(model, "layer*") == ["layer1", "layer2", "layer3", "layer4"]
    images = torch.randn(2, 3, 32, 32)
    found = extract(model, images, layers="layer*", pooling="mean")
    with torch.no_grad():
        expected = model.eval().forward_features(images).mean((2, 3))
    torch.testing.assert_close(found["layer4"], expected)
    with pytest.raises(ValueError, match="no class token"):
        extract(model, images, layers="layer4", pooling="cls")


def test_the_model_is_left_as_it_was(model: nn.Module, images: Tensor) -> None:
    model.train()
    model.get_submodule("norm").eval()
    modes = [m.training for m in model.modules()]

    def breaking() -> Iterator[Tensor]:
        yield images
        raise OSError("disk")

    before = hooks(model)
    extract(model, images)
    with pytest.raises(OSError, match="disk"):
        extract(model, breaking())
    assert hooks(model) == before
    assert [m.training for m in model.modules()] == modes


def test_precision(model: nn.Module, images: Tensor) -> None:
    found = extract(model, images, dtype=torch.float16, autocast=torch.bfloat16)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found["block00"].float(), extract(model, images)["block00"], atol=0.05, rtol=0.05)


# --- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "blok*"}, "block0"),
        ({"layers": []}, "layers: is empty"),
        ({"pooling": "avg"}, "choose from cls, mean"),
        ({"batch_size": 0}, "batch_size"),
        ({"cache": Path("x"), "pooling": spatial_grid(2)}, "pooling that has a name"),
    ],
)
def test_wrong_arguments_are_named(model: nn.Module, images: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extract(model, images, **options)


def test_wrong_samples_are_named(model: nn.Module, images: Tensor) -> None:
    images[[2, 5]] = float("nan")
    with pytest.raises(ValueError, match=r"block00: NaN or infinite values in 2 of 7 rows \(2, 5\)"):
        extract(model, images)
    with pytest.raises(ValueError, match="not one sample"):
        extract(model, [])
    with pytest.raises(ValueError, match="no tensor"):
        extract(model, ["cat.png"])


# --- on disk


def test_saved_and_read_again(model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    found = extract(model, images, name="mine", data="seven images")
    again = FeatureSet.load(found.save(tmp_path / "a"))
    assert (again.model, again.data, again.pooling, again.key) == ("mine", "seven images", "mean", found.key)
    assert again.checksum == found.checksum
    assert list(again) == list(found)
    assert all(torch.equal(again[name], found[name]) for name in found)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["features.json", "features.safetensors"]


@pytest.mark.parametrize("name", ["features.safetensors", "features.json"])
@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_a_damaged_folder_is_refused_by_name(
    name: str, damage: str, model: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    path = extract(model, images).save(tmp_path) / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-40] if damage == "truncated" else content[:-3] + b"\x01\x02\x03")
    with pytest.raises((CorruptFile, MissingData), match="features"):
        FeatureSet.load(tmp_path)


def test_the_cache_knows_model_weights_data_layers_and_pooling(
    model: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    first = extract(model, images, cache=tmp_path)

    # a hit does not run the model
    handle = model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(AssertionError("ran")))
    try:
        again = extract(model, images, cache=tmp_path)
    finally:
        handle.remove()
    assert again.checksum == first.checksum
    base = feature_key(model, data="a")
    others = [feature_key(model, data="b"), feature_key(model, data="a", pooling="cls"),
              feature_key(model, data="a", layers="norm"), feature_key(model, data="a", inputs="32 px"),
              feature_key(create_model("crate_nano_patch2_8"), data="a")]  # fmt: skip
    assert len({base, *others}) == 6
    assert feature_key(model, data="a") == base
    extract(model, images + 1, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(ValueError, match="data="):
        extract(model, [images], cache=tmp_path)


def test_indices_of_older_folders_are_not_taken_for_rows_of_the_data(tmp_path: Path) -> None:
    FeatureSet(layers={"x": torch.rand(3, 2)}, indices=torch.arange(3), labels=torch.tensor([2, 0, 1])).save(tmp_path)
    found = FeatureSet.load(tmp_path)
    assert found.indices is not None
    assert found.labels is not None
    assert found.labels.tolist() == [2, 0, 1]
    record = json.loads((tmp_path / "features.json").read_text())
    del record["record"]  # the checksum of the rest, which older folders lack
    (tmp_path / "features.json").write_text(json.dumps(record | {"format": "unrolled.features/1"}))
    old = FeatureSet.load(tmp_path)
    assert old.samples == 3
    assert old.indices is None, "they counted what had been drawn"
    with pytest.raises(ValueError, match="labels: 2 for 3"):
        FeatureSet(layers={"x": torch.rand(3, 2)}, labels=torch.arange(2))
