"""Any model by one string."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from unrolled.errors import MissingData, MissingExtra
from unrolled.models import CRATE, create_model
from unrolled.models.resolve import model_folder, resolve_model


def test_registered_and_timm_names() -> None:
    assert isinstance(resolve_model("crate_nano_patch2_8"), CRATE)
    assert isinstance(resolve_model("timm:crate_nano_patch2_8"), CRATE)
    vit = resolve_model("timm:vit_tiny_patch16_224", num_classes=5, img_size=32)
    assert isinstance(vit, VisionTransformer)
    assert vit(torch.zeros(1, 3, 32, 32)).shape == (1, 5)


def test_model_arguments_reach_the_model() -> None:
    model = resolve_model("crate_nano_patch2_8", num_classes=3, step_size=0.2)
    assert model.blocks[0].ista.step_size == pytest.approx(0.2)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize(
    ("spec", "fragment"),
    [
        ("crate_tinny_patch16_224", "crate_tiny_patch16_224"),
        ("timm:vit_tiny_patch16_225", "timm:vit_tiny_patch16_225' is not known; did you mean vit_tiny_patch16_224"),
        ("hub:some/thing", "hf:ORG/NAME"),
        ("no.such.module:factory", "no module"),
        ("json:no_such_function", "no function"),
        ("collections:OrderedDict", "not an nn.Module"),
        ("", "names no model"),
        ("local:", "names no model"),
    ],
)
def test_what_is_not_known_is_a_value_error_that_helps(spec: str, fragment: str) -> None:
    with pytest.raises(ValueError, match=fragment):
        resolve_model(spec)


def test_an_argument_the_model_does_not_take_is_named() -> None:
    with pytest.raises(ValueError, match=r"model_args.*stepsize"):
        resolve_model("crate_nano_patch2_8", stepsize=0.2)


def test_local_folder_and_run_folder(tmp_path: Path) -> None:
    model = create_model("crate_nano_patch2_8", num_classes=4, step_size=0.3).eval()
    model.save_pretrained(tmp_path / "run" / "model")
    images = torch.rand(2, 1, 8, 8)
    for folder in (tmp_path / "run" / "model", tmp_path / "run"):
        again = resolve_model(f"local:{folder}", pretrained=True).eval()
        torch.testing.assert_close(again(images), model(images))
    untrained = resolve_model(f"local:{tmp_path / 'run'}").eval()
    assert untrained.blocks[0].ista.step_size == pytest.approx(0.3)
    assert not torch.equal(untrained(images), model(images))
    assert resolve_model(f"local:{tmp_path / 'run'}", num_classes=7, pretrained=True)(images).shape == (2, 7)


def test_local_folders_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="no folder"):
        resolve_model(f"local:{tmp_path / 'absent'}")
    with pytest.raises(MissingData, match=r"config\.json"):
        resolve_model(f"local:{tmp_path}")
    (tmp_path / "runs/one").mkdir(parents=True)
    (tmp_path / "runs/one/config.json").write_text("{}")
    with pytest.raises(MissingData, match=r"give one of the folders in it, such as .*runs/one"):
        resolve_model(f"local:{tmp_path / 'runs'}")
    (tmp_path / "graph").mkdir()
    (tmp_path / "graph/net.onnx").touch()
    with pytest.raises(MissingData, match=r"an ONNX graph; give the file .*net\.onnx"):
        resolve_model(f"local:{tmp_path / 'graph'}")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        resolve_model(f"local:{tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps({"hidden": 3}))
    with pytest.raises(ValueError, match="architecture"):
        resolve_model(f"local:{tmp_path}")
    assert model_folder(tmp_path) == tmp_path
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "os:getcwd", "model_args": {}}))
    with pytest.raises(ValueError, match="would import os and call getcwd, which no file may do"):
        resolve_model(f"local:{tmp_path}")


def test_weights_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="no weights for crate_nano_patch2_8"):
        resolve_model("crate_nano_patch2_8", pretrained=True)
    folder = create_model("crate_nano_patch2_8").save_pretrained(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(MissingData, match="is missing"):
        resolve_model(f"local:{tmp_path}", pretrained=True)


def test_a_factory_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_models.py").write_text(
        "from torch import nn\n\n\ndef tiny(num_classes=2, width=4):\n    return nn.Linear(width, num_classes)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    model = resolve_model("own_models:tiny", num_classes=3, width=5)
    assert model(torch.zeros(1, 5)).shape == (1, 3)
    with pytest.raises(ValueError, match=r"model_args.*depth"):
        resolve_model("own_models:tiny", depth=2)


def test_a_hugging_face_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8
    )
    saved = transformers.ViTModel(config).eval()
    saved.save_pretrained(tmp_path)
    images = torch.rand(1, 3, 16, 16)
    for spec in (f"hf:{tmp_path}", f"local:{tmp_path}"):
        again = resolve_model(spec, pretrained=True)
        torch.testing.assert_close(again(images).last_hidden_state, saved(images).last_hidden_state)
    assert resolve_model(f"hf:{tmp_path}", num_classes=5)(images).logits.shape == (1, 5)
    with pytest.raises(MissingData, match="hf:"):
        resolve_model(f"hf:{tmp_path / 'absent'}")


def test_hugging_face_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"unrolled\[hf\]"):
        resolve_model("hf:org/name")
