"""Which models the explorer offers, and the command that starts it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from unrolled.errors import MissingData, MissingExtra
from unrolled.explorer.models import RANDOM, Catalogue, _weights_here
from unrolled.explorer.neighbours import ImageSet

ROOT = Path(__file__).resolve().parents[2]


def save_run(folder: Path, name: str, data: str) -> None:
    from unrolled.models import create_model
    from unrolled.models.registry import CIFAR10
    from unrolled.train import TrainConfig
    from unrolled.train.run import save_model

    classes = CIFAR10 if data == "cifar10" else tuple(map(str, range(10)))
    (folder / "model").mkdir(parents=True)
    save_model(create_model(name, num_classes=10, depth=2), folder / "model", TrainConfig(), classes=classes)
    (folder / "config.yaml").write_text(f"model: {name}\ndata: {data}\n")


def test_runs_are_offered_and_what_is_none_is_not(tmp_path: Path) -> None:
    save_run(tmp_path / "first", "crate_nano_patch4_32", "cifar10")
    save_run(tmp_path / "second", "vit_nano_patch2_8", "digits")
    for name, text in {
        "broken": "{",
        "language": json.dumps({"layers": ["mesa"], "dim": 8, "heads": 1, "vocab_size": 9}),
        "foreign": json.dumps({"architecture": "os:system"}),
        "list": "[]",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    catalogue = Catalogue(runs=tmp_path)
    runs = {key: choice for key, choice in catalogue.choices.items() if choice.group == "Your runs"}
    assert set(runs) == {"run-first", "run-second"}
    assert runs["run-first"].weights == "trained on cifar10"
    assert catalogue.default() == ["run-first", "run-second"], "a white-box model, beside one of another family"
    with catalogue.lock:
        assert catalogue.open("run-first").classes[5] == "dog"
        assert catalogue.open("run-second").classes[5] == "5"


def test_without_anything_trained_random_weights_are_offered_and_repeatable(tmp_path: Path) -> None:
    import torch

    models = []
    for _ in range(2):
        catalogue = Catalogue(runs=tmp_path / "absent")
        assert all(not choice.trained for choice in catalogue.choices.values() if choice.group.startswith("Random"))
        torch.rand(3)
        models.append(catalogue.open("random-crate_nano_patch4_32").network)
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
    assert len(RANDOM) == len([c for c in catalogue.choices.values() if c.group.startswith("Random")])


def test_models_of_one_name_are_both_there(tmp_path: Path) -> None:
    for place in ("a", "b"):
        save_run(tmp_path / place / "same", "crate_nano_patch4_32", "cifar10")
    specs = [str(tmp_path / place / "same") for place in ("a", "b")]
    given = {key: choice.spec for key, choice in Catalogue(specs=specs).choices.items() if key.startswith("given-")}
    assert list(given) == ["given-same", "given-same~2"]
    assert len(set(given.values())) == 2


def test_pretrained_weights_that_would_need_a_network_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MissingData, match="not on this machine"):
        Catalogue(specs=["timm:vit_base_patch8_224"], pretrained=True).check_weights()
    (tmp_path / "weights.safetensors").touch()
    assert _weights_here(SimpleNamespace(file=str(tmp_path / "weights.safetensors")))
    assert not _weights_here(SimpleNamespace(file=str(tmp_path / "none"), url="https://example.org/w.pth"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "w.pth").touch()
    assert _weights_here(SimpleNamespace(url="https://example.org/w.pth"))
    assert not _weights_here(SimpleNamespace(hf_hub_id="nobody/nothing"))
    assert not _weights_here(None)


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(22):
        Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(tmp_path / f"photo-{number:02d}.png")
    (tmp_path / "bad.png").write_bytes(b"no")
    found = ImageSet.folder(tmp_path)
    assert len(found.images) == 22
    assert "1 left out" in found.title
    assert {image.size for image in found.images} == {(30, 30)}
    for path in sorted(tmp_path.glob("photo-*"))[5:]:
        path.unlink()
    with pytest.raises(ValueError, match="at least 20"):
        ImageSet.folder(tmp_path)
    with pytest.raises(MissingData):
        ImageSet.folder(tmp_path / "none")


def test_a_missing_extra_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from unrolled.commands.explore import ExploreOptions, explore

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingExtra, match=r"unrolled\[explore\]"):
        explore(ExploreOptions())
    with pytest.raises(ValueError, match="--port 70000"):
        explore(ExploreOptions(port=70_000))


def test_a_page_and_its_list_need_neither_torch_nor_timm(tmp_path: Path) -> None:
    """They take seconds to import, and a page that waits should say so."""
    pytest.importorskip("uvicorn")
    save_run(tmp_path / "first", "crate_nano_patch4_32", "cifar10")
    code = (
        "import sys, pathlib, uvicorn, unrolled.commands.explore\n"
        "from unrolled.explorer import create_app\n"
        "from unrolled.explorer.models import Catalogue\n"
        "from unrolled.explorer.neighbours import ImageSet\n"
        "from unrolled.explorer.samples import SAMPLES, sample\n"
        "catalogue = Catalogue(runs=pathlib.Path(sys.argv[1]), specs=['timm:vit_tiny_patch16_224'], pretrained=True)\n"
        "create_app(catalogue), ImageSet.digits(), [sample(name) for name in SAMPLES], catalogue.default()\n"
        "assert 'run-first' in catalogue.choices and 'shipped-crate_nano_patch4_32.cifar10' in catalogue.choices\n"
        "print([name for name in ('torch', 'timm', 'sklearn', 'scipy', 'pandas') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert result.stdout.strip() == "[]", result.stderr


def test_a_model_that_cannot_be_opened_ends_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from unrolled.commands.explore import ExploreOptions, explore

    pytest.importorskip("uvicorn")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="crate_nana"):
        explore(ExploreOptions(model=("crate_nana_patch4_32",), port=0, open_=False))
    shown = capsys.readouterr()
    assert "importing torch and timm ..." in shown.err
    assert "opening crate_nana_patch4_32 ..." in shown.err
    with pytest.raises(OSError, match=r"refused|reset"):
        urllib.request.urlopen(shown.out.strip(), timeout=5)
    with pytest.raises(MissingData):
        explore(ExploreOptions(images=Path("nowhere"), port=0, open_=False))


def test_pictures_and_digits_are_those_of_scikit_learn() -> None:
    import numpy as np
    from sklearn.datasets import load_sample_image

    from unrolled.data.builtin import digits as source
    from unrolled.explorer.samples import digits, sample

    images, labels = digits()
    assert (labels == source().labels).all()
    for index in range(0, len(images), 100):
        assert (np.asarray(images[index])[..., 0] == np.asarray(source().load(index)[0])[..., 0]).all()
    assert (np.asarray(sample("flower")) == load_sample_image("flower.jpg")[:420, 60:620]).all()


@pytest.mark.slow
def test_the_command_serves_until_ctrl_c(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    command = [sys.executable, "-m", "unrolled", "explore", "--no-open", "--port", "0", "--runs", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address), process.stderr.read() if process.stderr else ""
            with urllib.request.urlopen(f"{address}api/start", timeout=60) as answer:
                assert json.load(answer)["models"]
            with urllib.request.urlopen(urllib.request.Request(
                f"{address}api/look?model=random-vit_nano_patch4_32&sample=three", data=b"", method="POST"
            ), timeout=60) as answer:  # fmt: skip
                assert json.load(answer)["grid"] == [8, 8]
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def test_a_ctrl_c_that_is_swallowed_still_ends_the_command() -> None:
    from unrolled.commands.explore import _noticed

    before = signal.getsignal(signal.SIGINT)
    with _noticed() as stop:
        with contextlib.suppress(KeyboardInterrupt):  # as an import may do
            signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
    assert signal.getsignal(signal.SIGINT) is before
