"""Without --out, a verb on pictures never overwrites what it said of another picture or model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unrolled import cli

MODELS = {
    "segment": ["--model", "crate_nano_patch4_32", "--model-args.depth", "2", "--method", "pca"],
    "explain": ["--model", "crate_nano_patch4_32", "--model-args.depth", "2"],
    "complete": ["--model", "crate_mae_nano_patch4_32", "--model-args.depth", "2"],
}


@pytest.mark.parametrize("verb", MODELS)
def test_another_subject_of_the_same_name_gets_a_folder_of_its_own(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, folder in enumerate(("mine", "yours")):
        Path(folder).mkdir()
        noise = np.random.default_rng(number).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(Path(folder) / "cat.png")

    def went_to(*arguments: str) -> str:
        assert cli.run([verb, *arguments, *MODELS[verb], "--device", "cpu"]) == 0
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("report: ")]
        return Path(said[0].removeprefix("report: ")).parent.name

    base = f"{verb}-{MODELS[verb][1]}-cat"
    assert went_to("mine/cat.png") == base
    kept = (tmp_path / "runs" / base / "report.json").read_bytes()
    assert went_to("yours/cat.png") == f"{base}-2"
    assert went_to("mine/cat.png", "--model-args.embed-dim", "48") == f"{base}-3"
    assert (tmp_path / "runs" / base / "report.json").read_bytes() == kept
    # the same again replaces its own, also with other settings
    assert went_to("yours/cat.png", "--seed", "1") == f"{base}-2"
    assert went_to("mine/cat.png", "--model-args.embed-dim", "48") == f"{base}-3"
    assert len(list((tmp_path / "runs").iterdir())) == 3


def test_an_evaluation_on_other_data_does_not_replace_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, folder in enumerate(("one", "other")):
        for place, name in enumerate(("airplane", "cat")):
            for image, part in enumerate(("train", "test")):
                path = Path(folder) / part / name / f"{image}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                noise = np.random.default_rng([number, place, image]).integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(noise).save(path)

    def went_to(data: str, *flags: str) -> str:
        command = ["eval", "crate_nano_patch4_32.cifar10", "--data", "folder", "--data-dir", data, "--device", "cpu"]
        assert cli.run([*command, *flags]) == 0, capsys.readouterr().err
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("report: ")]
        return Path(said[0].removeprefix("report: ")).parent.name

    first, second = went_to("one"), went_to("other")
    assert second == f"{first}-2"
    assert went_to("one", "--batch-size", "3") == first


def test_a_folder_without_a_test_part_is_said_to_be_divided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("airplane", "cat"):
        for image in range(10):
            path = Path("folder") / name / f"{image}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (image, 90, 90)).save(path)
    command = ["eval", "crate_nano_patch4_32.cifar10", "--data", "folder", "--data-dir", "folder", "--device", "cpu"]
    assert cli.run(command) == 0
    assert "4 of its 20 images were drawn; --split all takes all" in capsys.readouterr().err
    assert cli.run([*command, "--split", "all"]) == 0
    assert "--split all" not in capsys.readouterr().err


def test_a_mistyped_run_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import unrolled
    from unrolled.errors import MissingData

    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(MissingData, match="there is no folder or file runs/nope"):
        unrolled.from_pretrained("runs/nope")
