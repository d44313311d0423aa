"""Any model by one call: by name, run, folder, file or hub, and by timm once both packages are imported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import unrolled
import unrolled.network
from unrolled.errors import MissingData, UnsafeFile
from unrolled.models import CRATE, LanguageModel, MaskedAutoencoder, create_model, from_pretrained, language_config
from unrolled.models.encoder import MaskedLanguageModel

ROOT = Path(__file__).resolve().parents[2]
TINY = {"depth": 1, "embed_dim": 16, "num_heads": 2}

# each exits with an error if the names are not registered, or if a search for timm has spent the hook
ORDERS = {
    "unrolled first": """
import sys, importlib.util, unrolled
assert "timm" not in sys.modules and "torch" not in sys.modules
assert importlib.util.find_spec("timm").name == "timm"
import timm
assert len(sys.meta_path) == before
""",
    "timm first": "import timm; assert not timm.is_model('crate')\nimport unrolled",
    "part of timm first": "import unrolled\nimport timm.layers",
    "our part first": "import unrolled.models\nimport timm",
}
USE = """
import timm
model = timm.create_model("crate_nano_patch4_32.cifar10", pretrained=True, num_classes=3)
assert type(model).__name__ == "CRATE" and model.num_classes == 3
assert {"crate_tiny_patch16_224", "crate_mae_nano_patch4_32"} <= set(timm.list_models("crate*"))
assert "crate_nano_patch4_32.cifar10" in timm.list_pretrained()
"""


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_timm_knows_the_names_in_any_order_of_imports(order: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = f"import sys; before = len(sys.meta_path)\n{ORDERS[order]}\n{USE}"
    command = [sys.executable, "-W", "error::UserWarning:unrolled", "-c", script]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def text_model(name: str) -> LanguageModel:
    kind = {"crate_gpt_nano": LanguageModel, "crate_bert_nano": MaskedLanguageModel}[name]
    return kind(language_config(name, vocab_size=30, dim=8, heads=2, layers=("mssa",), max_length=16)).eval()


SAVED: dict[str, Any] = {
    "of images": lambda: create_model("crate_nano_patch4_32", **TINY),
    "a vit": lambda: create_model("vit_nano_patch4_32", **TINY),
    "masked": lambda: create_model("crate_mae_nano_patch4_32", **TINY, decoder_depth=1),
    "of text": lambda: text_model("crate_gpt_nano"),
    "of masked text": lambda: text_model("crate_bert_nano"),
}


@pytest.mark.parametrize("kind", SAVED)
@pytest.mark.parametrize("place", ["folder", "run", "local:", "path"])
def test_a_saved_model_comes_back(kind: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unrolled.train import TrainConfig
    from unrolled.train.run import save_model

    model = SAVED[kind]()
    folder = tmp_path / "runs" / "one" / ("model" if place == "run" else "")
    if kind == "a vit":
        save_model(model, folder, TrainConfig(model="vit_nano_patch4_32"))
    else:
        model.save_pretrained(folder)
    monkeypatch.chdir(tmp_path)
    source = {"local:": "local:runs/one", "path": folder}.get(place, "runs/one")
    found = from_pretrained(source)
    assert type(found) is type(model)
    assert not found.training
    for name, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)


def test_shipped_and_resized() -> None:
    assert isinstance(from_pretrained("crate_mae_nano_patch4_32.cifar10"), MaskedAutoencoder)
    model = from_pretrained("timm:crate_nano_patch4_32.cifar10", num_classes=3, img_size=64)
    assert isinstance(model, CRATE)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 3)


def test_a_published_checkpoint_by_its_file(tmp_path: Path) -> None:
    source = shutil.copy(ROOT / "unrolled" / "weights" / "crate_nano_patch4_32.cifar10.safetensors", tmp_path / "a.pt")
    with pytest.raises(ValueError, match="damaged"):  # read by what its name says it is, like `convert`
        from_pretrained(source)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the hub: `ORG/NAME` are folders below it, as their repositories would be."""
    import huggingface_hub
    import huggingface_hub.hub_mixin
    import timm.models._hub

    def download(repo_id: str, filename: str, **_: Any) -> str:
        path = tmp_path / repo_id / filename
        if not path.is_file():
            raise huggingface_hub.errors.LocalEntryNotFoundError(f"{repo_id} is not here")
        return str(path)

    monkeypatch.setattr(unrolled.network, "reachable", lambda address: True)
    for module in (huggingface_hub, huggingface_hub.hub_mixin, timm.models._hub):
        monkeypatch.setattr(module, "hf_hub_download", download)
    return tmp_path


@pytest.mark.parametrize("kind", SAVED)
def test_a_repository_of_the_hub(kind: str, hub: Path) -> None:
    model = SAVED[kind]()
    if kind == "a vit":
        timm.models.save_for_hf(model, hub / "org" / "name", safe_serialization=True, model_args=TINY)
    else:
        model.save_pretrained(hub / "org" / "name")
    found = from_pretrained("org/name")
    assert type(found) is type(model)
    for name, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)


def test_a_repository_may_not_name_code(hub: Path) -> None:
    (hub / "org" / "name").mkdir(parents=True)
    (hub / "org" / "name" / "config.json").write_text(json.dumps({"architecture": "os:getcwd"}))
    with pytest.raises(UnsafeFile, match="os"):
        from_pretrained("org/name")


@pytest.mark.parametrize(
    ("source", "error", "said"),
    [
        ("org/nowhere", MissingData, "could not be fetched"),
        ("./nowhere/at/all", MissingData, "there is no folder or file"),
        ("crate_nano_patch2_8", MissingData, "no weights for crate_nano_patch2_8"),
        ("crate_nano_patch4_32.imagenet", ValueError, "there are no such weights"),
        ("crate_nanno_patch4_32", ValueError, "did you mean crate_nano_patch4_32"),
        ("", ValueError, "names no model"),
        ("https://huggingface.co/timm/vit", ValueError, "is an address, and none is opened; .*local:DIR"),
        ("timm:https://x.org/y", ValueError, "is an address"),
        ("http://x/y.pt", ValueError, "is an address"),
        ("file:/tmp/x", ValueError, "is an address"),
        ("pipe:ls", ValueError, "is an address"),
        ("hf_hub:timm/vit", ValueError, r"'hf_hub' is not a known source \(timm's is timm:hf_hub:timm/vit\)"),
        ("local-dir:x", ValueError, r"not a known source \(timm's is timm:local-dir:x\)"),
        ("os.path:join", ValueError, "join cannot be called with no arguments: missing"),
        ("shutil:disk_usage", ValueError, "disk_usage cannot be called with no arguments"),
        ("os:getcwd", ValueError, "getcwd"),
        ("time:sleep", ValueError, "time:sleep': cannot be called with pretrained: "),
        ("platform:uname", ValueError, "uname has no argument `pretrained`"),
        ("/dev/null", ValueError, "/dev/null is a device or a pipe"),
    ],
)
def test_what_is_not_there(source: str, error: type[Exception], said: str, hub: Path) -> None:
    with pytest.raises(error, match=said):
        from_pretrained(source)


@pytest.mark.parametrize("name", [None, 3, Path("crate")])
def test_a_name_is_text(name: Any) -> None:
    with pytest.raises(ValueError, match=r"^name: must be text, a name from `unrolled list`.*; not a "):
        create_model(name)


@pytest.mark.parametrize("kind", SAVED)
def test_the_file_of_weights_stands_for_its_folder(kind: str, tmp_path: Path) -> None:
    model = SAVED[kind]()
    if kind == "a vit":
        timm.models.save_for_hf(model, tmp_path, safe_serialization=True, model_args=TINY)
    else:
        model.save_pretrained(tmp_path)
    found = from_pretrained(tmp_path / "model.safetensors")
    assert type(found) is type(model)
    assert torch.equal(next(found.parameters()), next(model.parameters()))


def test_a_part_of_a_run_names_the_run(tmp_path: Path) -> None:
    run, empty = tmp_path / "run", tmp_path / "pictures"
    for folder in (run / "checkpoints" / "step-1", run / "model", tmp_path / "stopped" / "checkpoints", empty):
        folder.mkdir(parents=True)
    (run / "model" / "config.json").write_text("{}")
    for part in ("checkpoints", "checkpoints/step-1"):
        with pytest.raises(MissingData, match=f"is a part of the run {run}; give that folder"):
            from_pretrained(run / part)
    with pytest.raises(MissingData, match=r"stopped before it had a model.*--resume auto"):
        from_pretrained(tmp_path / "stopped")
    with pytest.raises(MissingData, match=r"holds no config\.json.*; give a run folder") as said:
        from_pretrained(empty)
    assert "resume" not in str(said.value)


def test_pixels_as_they_are_decoded_are_no_input() -> None:
    for name in ("crate_nano_patch4_32", "tost_nano_patch4_32", "cbt_nano_patch4_32", "crate_mae_nano_patch4_32"):
        with pytest.raises(ValueError, match="images: are uint8, need floats: divide by 255"):
            create_model(name)(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"need a tensor .*, not a ndarray"):
        create_model("crate_nano_patch4_32", **TINY)(torch.zeros(1, 3, 32, 32).numpy())


def test_a_language_model_takes_no_arguments(tmp_path: Path) -> None:
    text_model("crate_gpt_nano").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="decides them itself"):
        from_pretrained(tmp_path, num_classes=3)


@pytest.mark.parametrize("spec", ["local:runs/one", "runs/one", "local-dir:runs/one"])
def test_create_model_takes_what_the_command_line_takes(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = create_model("crate_nano_patch4_32", **TINY)
    model.save_pretrained(tmp_path / "runs" / "one")
    monkeypatch.chdir(tmp_path)
    assert torch.equal(unrolled.create_model(spec, pretrained=True).cls_token, model.cls_token)
    assert unrolled.create_model(spec, num_classes=7).num_classes == 7


def test_a_folder_of_the_name_of_a_model_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "crate_nano_patch4_32").mkdir()
    monkeypatch.chdir(tmp_path)
    assert isinstance(create_model("crate_nano_patch4_32", **TINY), CRATE)


def test_other_schemes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "of_my_own.py").write_text("from torch import nn\n\n\ndef made():\n    return nn.Linear(2, 3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert isinstance(create_model("of_my_own:made"), torch.nn.Linear)
    assert isinstance(create_model("timm:vit_nano_patch4_32", **TINY), timm.models.VisionTransformer)
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=8)
    transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    assert isinstance(create_model(f"hf:{tmp_path / 'vit'}", pretrained=True), transformers.ViTModel)
    assert isinstance(from_pretrained(tmp_path / "vit"), transformers.ViTModel)


@pytest.mark.parametrize("source", [None, 3, b"gpt2", "x" * 5000])
def test_what_names_nothing_is_said(source: Any) -> None:
    with pytest.raises(ValueError, match="names no model"):
        unrolled.from_pretrained(source)


def test_a_function_that_cannot_be_called_is_no_model() -> None:
    with pytest.raises(ValueError, match="system cannot be called with"):
        unrolled.from_pretrained("os:system")
