from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from unrolled import cli
from unrolled.catalogue import shipped_text
from unrolled.commands.eval.classifier import _validation, calibration
from unrolled.commands.eval.report import at_bound
from unrolled.data import eval_loader, eval_transform, open_images, synthetic_images
from unrolled.data.real_labels import RealLabels
from unrolled.data.sources import ImageSource, Subset
from unrolled.errors import CorruptFile, MissingData
from unrolled.subjects.images import batches
from unrolled.subjects.models import open_model
from unrolled.subjects.options import Reading
from unrolled.subjects.runs import DataOf
from unrolled.train.robustness import corruption_errors

TRAIN = ["train", "--max-steps", "6", "--batch-size", "32", "--checkpoint-every", "2", "--keep", "3", "--quiet"]


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code = cli.run(["eval", *arguments, "--json", "--quiet"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return {**json.loads(captured.out), "said": captured.err}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert cli.run([*TRAIN, "--out", str(folder)]) == 0
    return folder


# --- calibration and corruptions


def test_calibration_stands_beside_the_accuracy(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = ask(capsys, str(run_folder), "--out", str(tmp_path))
    of = found["calibration"]
    assert of["samples"] == found["images"]
    assert of["nll"] == pytest.approx(found["loss"], rel=1e-5)
    assert of["accuracy"] == pytest.approx(found["accuracy"])
    fitted = of["temperature"]
    assert fitted["fitted_on"] + fitted["judged_on"] == found["images"]
    assert fitted["before"]["accuracy"] == fitted["after"]["accuracy"]
    page = (tmp_path / "report.html").read_text()
    assert not fitted["validation"], "this run held none out"
    assert "no 50 validation images to fit it on" in page
    assert (tmp_path / "figures").is_dir()
    assert "robustness" not in found


def test_a_temperature_is_fitted_on_validation_images_and_compared_on_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sklearn.metrics import log_loss

    run = tmp_path / "run"
    long = ["--epochs", "1", "--warmup-epochs", "0", "--batch-size", "32", "--no-augment", "--quiet"]
    assert cli.run(["train", *long, "--val-fraction", "0.2", "--out", str(run)]) == 0
    capsys.readouterr()
    found = ask(capsys, str(run), "--out", str(tmp_path / "eval"))
    of = found["calibration"]
    fitted = of["temperature"]
    assert fitted["validation"]
    assert (fitted["fitted_on"], fitted["judged_on"]) == (288, found["images"])
    assert fitted["before"] == {key: value for key, value in of.items() if key != "temperature"}
    assert "288 validation images" in (tmp_path / "eval" / "report.html").read_text()
    # independently: the loss of the validation images is least there
    network = open_model(Reading(model=str(run)))
    source = open_images("digits", "val", val_fraction=0.2)
    with torch.no_grad():
        logits = torch.cat([network(b.images) for b in batches(network, source, image_size=None, batch_size=64)])
    loss = [
        log_loss(source.labels, (logits.double() / (fitted["value"] * factor)).softmax(1).numpy(), labels=range(10))
        for factor in (0.98, 1.0, 1.02)
    ]
    assert fitted["bound"] is None
    assert loss[1] == min(loss)
    # the run's own division, whatever is asked of the evaluation: under another one they were trained on
    again = ask(capsys, str(run), "--out", str(tmp_path / "eval"), "--val-fraction", "0.5", "--split-seed", "0")
    assert again["calibration"]["temperature"]["value"] == fitted["value"]
    assert cli.run(["eval", str(run), "--out", str(tmp_path / "eval"), "--quiet"]) == 0
    assert "fitted on 288 validation images" in capsys.readouterr().out
    assert cli.run(["eval", str(run), "--split", "val", "--out", str(tmp_path / "eval"), "--quiet"]) == 0
    assert "on four fifths of the images" in capsys.readouterr().out


def test_validation_images_are_taken_where_enough_are_of_classes_the_model_knows() -> None:
    own = DataOf("digits", None, None, val_fraction=0.1)
    found = _validation(own, None, lambda source: source)
    assert found is not None
    assert len(found) == 144
    assert len(_validation(own, 20, lambda source: source) or []) == 50, "fewer determine no temperature"
    assert _validation(own, None, lambda source: Subset(source, np.arange(49))) is None
    assert _validation(replace(own, val_fraction=0.0), None, lambda source: source) is None, "there is none"

    def unknown(source: ImageSource) -> ImageSource:
        raise ValueError("none of these classes is known")

    assert _validation(own, None, unknown) is None


@pytest.mark.parametrize("right", [True, False])
def test_a_temperature_at_its_bound_is_said_and_explained(right: bool) -> None:
    labels = torch.arange(200) % 4
    logits = torch.eye(4)[labels if right else (labels + 1) % 4] * 3
    fitted = calibration(logits, labels)["temperature"]
    assert fitted["bound"] == ("low" if right else "high")
    said = at_bound(fitted)
    assert ("lower bound, 0.01" if right else "upper bound, 100") in said
    assert ("all classified correctly" if right else "no better than the same one for every class") in said
    noise = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    small = calibration((torch.eye(4)[labels] + noise) / 1000, labels)["temperature"]
    assert small["bound"] == "low"
    assert f"{small['right']} of the 40 held-out images are classified correctly" in at_bound(small)
    assert small["right"] < 40
    assert calibration(torch.eye(4)[labels] + noise, labels)["temperature"]["bound"] is None


def test_a_bound_is_on_the_page_and_the_terminal(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data", "folder", "--data-dir", str(tmp_path / "images"), "--split", "all"]
    for number in range(10):  # 60 equal images in 10 classes: no probabilities beat equal ones
        (tmp_path / "images" / str(number)).mkdir(parents=True)
        for image in range(6):
            Image.new("RGB", (8, 8), (90, 90, 90)).save(tmp_path / "images" / str(number) / f"{image}.png")
    assert cli.run(["eval", str(run_folder), *flags, "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert "ran into its upper bound" in capsys.readouterr().out
    assert "ran into its upper bound" in (tmp_path / "out" / "report.html").read_text()


def test_corruptions_raise_the_error_and_repeat_exactly(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [str(run_folder), "--robustness", "--robustness-images", "30", "--out", str(tmp_path)]
    first, again = (ask(capsys, *flags)["robustness"] for _ in range(2))
    assert first == again
    assert first["images"] == 30
    assert set(first["corruptions"]) == set(first["relative"])
    assert len(first["corruptions"]["jpeg"]) == 5
    row = first["relative"]["contrast"]
    assert row["increase"] == pytest.approx(row["error"] - first["clean"])
    page = (tmp_path / "report.html").read_text()
    assert "not with published corruption errors" in " ".join(page.split())


class Darkness(nn.Module):
    """Names class 1 where the image, normalised, is darker than its mean."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        dark = -images.mean((1, 2, 3))
        return torch.stack([-dark, dark], 1)


def test_corrupted_images_reach_the_model_normalised() -> None:
    source = synthetic_images(40, size=32, classes=2)
    source.labels = np.zeros(40, np.int64)  # the right answer is "not dark"
    loader = lambda: eval_loader(source, eval_transform((3, 32, 32), (0.0,), (1.0,)), batch_size=16)  # noqa: E731
    model = Darkness().train()
    low, high = (
        corruption_errors(model, loader(), mean=(mean,) * 3, std=(0.5,) * 3, names=["brightness", "gaussian_noise"])
        for mean in (0.2, 0.55)
    )
    assert low["clean"] == 0
    assert high["clean"] > 0.5
    # brighter images are less often dark, the more the brighter
    errors = high["corruptions"]["brightness"]
    assert high["clean"] >= errors[0] >= errors[-1]
    assert errors[-1] < 0.1
    assert model.training
    with pytest.raises(ValueError, match="fog"):
        corruption_errors(model, loader(), mean=(0.0,), std=(1.0,), names=["fog"])


# --- a part of the data


def test_a_part_of_the_split_is_drawn_evenly_and_said_everywhere(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [str(run_folder), "--out", str(tmp_path), "--samples"]
    found = ask(capsys, *flags, "60")
    assert (found["images"], found["samples"], found["samples_of"]) == (60, 60, 360)
    assert "60 images drawn evenly from 360" in (tmp_path / "report.html").read_text()
    assert "samples: 60" in (tmp_path / "config.yaml").read_text()
    assert cli.run(["eval", *flags, "60", "--quiet"]) == 0
    assert "60 images drawn evenly from 360" in capsys.readouterr().out
    assert ask(capsys, *flags, "360")["loss"] == pytest.approx(ask(capsys, *flags[:-1])["loss"])
    for number in ("0", "-3", "361"):
        assert cli.run(["eval", *flags, number]) == 2
        said = capsys.readouterr().err
        assert f"--samples {number}" in said
        assert "360 images" in said


def test_a_folder_sorted_by_class_is_not_measured_on_its_first_class_alone(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        (tmp_path / "images" / str(number)).mkdir(parents=True)
        for image in range(6):
            Image.new("RGB", (8, 8), (100 * number, 0, 0)).save(tmp_path / "images" / str(number) / f"{image}.png")
    flags = [str(run_folder), "--data", "folder", "--data-dir", str(tmp_path / "images"), "--split", "all"]
    flags += ["--out", str(tmp_path / "out")]
    # every image of a class is the same, so that half of each class scores as all of it
    assert ask(capsys, *flags, "--samples", "4")["loss"] == pytest.approx(ask(capsys, *flags)["loss"], rel=1e-5)


# --- ReaL, and folders named by numbers


@pytest.fixture
def validation(tmp_path: Path) -> Path:
    """Eight images in two classes; the numbers in their names have another order than the folders."""
    rng = np.random.default_rng(0)
    for number in range(1, 9):
        folder = tmp_path / "images" / ("n02" if number % 2 else "n01")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"ILSVRC2012_val_{number:08d}.png")
    return tmp_path


def test_real_labels_follow_the_numbers_in_the_names(validation: Path) -> None:
    source = open_images("folder", "all", data_dir=validation / "images")
    lists = [[number] for number in range(1, 9)]
    lists[2] = []
    lists[3] = [4, 40]
    path = validation / "real.json"
    path.write_text(json.dumps(lists))
    real = RealLabels(path, source)
    # n01 has the images 2, 4, 6, 8 and comes first
    everything = torch.arange(8)
    assert real.score(torch.tensor([2, 40, 6, 8, 1, 3, 5, 7]), everything) == (7, 7)
    assert real.score(torch.tensor([1, 2, 3, 4, 5, 6, 7, 8]), everything) == (0, 7)
    with pytest.raises(ValueError, match="reach 40"):
        real.check_classes(40)
    path.write_text(json.dumps(lists[:5]))
    with pytest.raises(ValueError, match="fewer"):
        RealLabels(path, source)
    path.write_text('{"a": 1}')
    with pytest.raises(CorruptFile, match="list of lists"):
        RealLabels(path, source)
    with pytest.raises(MissingData, match="absent"):
        RealLabels(validation / "absent.json", source)


def test_eval_with_real_labels(validation: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = validation / "real.json"
    path.write_text(json.dumps([[0, 1]] * 5 + [[]] * 2 + [[7]]))
    flags = ["crate_nano_patch2_8", "--model-args.num-classes", "10", "--model-args.in-chans", "3", "--data", "folder"]
    flags += ["--data-dir", str(validation / "images"), "--split", "all", "--labels", str(path)]
    found = ask(capsys, *flags, "--out", str(validation / "out"))
    assert (found["images"], found["real"]["images"], found["real"]["without"]) == (8, 6, 2)
    assert 0 <= found["real"]["accuracy"] <= 1
    assert found["calibration"]["temperature"] is None  # eight images are too few
    # of the images 2, 4, 6, 8 and 1, 3, 5, 7 these are 2 and 7, the second of which has no label
    few = ask(capsys, *flags, "--out", str(validation / "out"), "--samples", "2")
    assert (few["images"], few["real"]["images"], few["real"]["without"]) == (2, 1, 1)


def test_class_folders_named_by_numbers_are_the_labels(tmp_path: Path) -> None:
    for number in (0, 1, 2, 9, 10, 11, 100):
        (tmp_path / str(number)).mkdir()
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / str(number) / "a.png")
    whole = open_images("folder", "all", data_dir=tmp_path)
    assert len(whole.classes) == 101
    assert whole.labels is not None
    assert whole.labels.tolist() == [0, 1, 2, 9, 10, 11, 100]
    for index in range(7):
        picture, label = whole.load(index)
        assert np.asarray(picture)[0, 0, 0] == label
    # named by words, or divided into parts, they are counted in order
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "cat" / "a.png")
    assert open_images("folder", "all", data_dir=tmp_path).classes == ["0", "1", "10", "100", "11", "2", "9", "cat"]
    for part in ("train", "test"):
        for number in (2, 10):
            (tmp_path / "parts" / part / str(number)).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / "parts" / part / str(number) / "a.png")
    assert open_images("folder", "test", data_dir=tmp_path / "parts").classes == ["2", "10"]
    with pytest.raises(ValueError, match="train, val or test"):
        open_images("folder", "all", data_dir=tmp_path / "parts")
    with pytest.raises(ValueError, match="divided already"):
        open_images("synthetic", "all")


# --- a run that was interrupted


def test_an_interrupted_run_is_measured_at_its_newest_checkpoint(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "eval")]
    whole = ask(capsys, str(run_folder), *out)
    assert "step" not in whole
    run = tmp_path / "stopped"
    shutil.copytree(run_folder, run)
    shutil.rmtree(run / "model")
    found = ask(capsys, str(run), *out)
    assert found["step"] == 6
    assert "step 6" in found["said"]
    assert found["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert "interrupted" in (tmp_path / "eval" / "report.html").read_text()
    flags = ["--images", "4", "--device", "cpu", "--out", str(tmp_path / "trace")]
    assert cli.run(["trace", str(run), "--json", *flags]) == 0
    traced = json.loads(capsys.readouterr().out)
    assert traced["step"] == 6
    assert cli.run(["trace", str(run_folder), "--json", *flags]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == traced["layers"]
    # a damaged checkpoint is passed over for the one before
    state = run / "checkpoints" / "step-00000006" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-8])
    before = ask(capsys, str(run), *out)
    assert before["step"] == 4
    assert before["loss"] != pytest.approx(whole["loss"], rel=1e-6)
    shutil.rmtree(run / "checkpoints")
    assert cli.run(["eval", str(run), "--quiet"]) == 3
    assert "--resume auto" in capsys.readouterr().err


def test_of_an_interrupted_run_with_an_average_the_average_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert cli.run([*TRAIN, "--ema", "0.5", "--out", str(run)]) == 0
    capsys.readouterr()
    out = ["--out", str(tmp_path / "eval")]
    whole = ask(capsys, str(run), *out)
    shutil.rmtree(run / "model")
    assert ask(capsys, str(run), *out)["loss"] == pytest.approx(whole["loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--robustness-images", "0"], 2, "--robustness-images"),
        (["--labels", "absent.json"], 3, "absent.json"),
        (["--split", "most"], 2, "split"),
    ],
)
def test_bad_input(flags: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["eval", "crate_nano_patch2_8", *flags, "--quiet"]) == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("task", ["mae", "lm"])
@pytest.mark.parametrize("flags", [["--image-size", "64"], ["--pretrained"], ["--model-args.depth", "2"]])
def test_what_a_run_without_classes_would_ignore_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str, flags: list[str]
) -> None:
    (tmp_path / "config.yaml").write_text(f"task: {task}\n")
    assert cli.run(["eval", str(tmp_path), *flags]) != 0
    said = capsys.readouterr().err
    assert flags[0].split(".")[0] in said
    assert "leave it out" in said


def test_scores_on_other_data_than_the_model_knows_come_with_a_warning(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data", "digits", "--samples", "8", "--out", str(tmp_path), "--device", "cpu"]
    said = ask(capsys, "crate_nano_patch4_32.cifar10", *flags)["said"]
    assert "was trained on cifar10" in said
    assert "was trained on" not in ask(capsys, str(run_folder), *flags)["said"]


# --- language models that are no run's


def test_a_language_model_that_ships_is_measured_on_a_corpus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"The {thing} stood in the garden of the old house, and nobody came.\n" for thing in ("tree", "chair")]
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "all.txt").write_text("".join(lines * 300))
    flags = ["--data", "folder", "--data-dir", str(tmp_path / "text"), "--out", str(tmp_path / "out")]
    trained, untrained = (ask(capsys, name, *flags) for name in ("crate_gpt_nano.bytes", "crate_gpt_nano"))
    assert trained["task"] == "lm"
    assert trained["bits_per_byte"] < 4 < untrained["bits_per_byte"]
    assert (trained["weights"], untrained["weights"]) == ("crate_gpt_nano.bytes", "random")
    assert "tinyshakespeare" in trained["learnt_from"]
    assert trained["said"] == ""
    assert (trained["length"], untrained["length"]) == (128, 256)
    assert "crate_gpt_nano has random weights" in untrained["said"]
    assert "random: nothing was learned" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("corpus", "split", "seen"),
    [
        ("tinyshakespeare", "train", True),
        ("tinyshakespeare", "test", False),
        ("wikitext2", "val", True),  # what it learnt is cut from it
        ("wikitext2-small", "test", False),
    ],
)
def test_a_score_of_the_text_that_a_model_learnt_from_comes_with_a_warning(
    corpus: str, split: str, seen: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in ("tinyshakespeare.txt", "wikitext2_train.txt", "wikitext2_valid.txt", "wikitext2_test.txt"):
        (tmp_path / file).write_text("".join(f"This is line {number} of the text.\n" for number in range(1000)))
    flags = ["--data", corpus, "--data-dir", str(tmp_path), "--split", split, "--out", str(tmp_path / "out")]
    found = ask(capsys, "crate_gpt_nano.bytes", *flags, "--samples", "1")
    assert ("crate_gpt_nano.bytes learnt from this text; --split test" in found["said"]) is seen
    assert ("notes" in found) is seen
    page = (tmp_path / "out" / "report.html").read_text()
    assert ("It learnt from this text" in page) is seen
    assert "is not known" not in page


def test_what_another_folder_learnt_from_is_not_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(str(shipped_text("mesanet_nano.bytes")), tmp_path / "mesanet_nano.bytes")
    (tmp_path / "tinyshakespeare.txt").write_text("This is a line of the text.\n" * 1000)
    flags = ["--data", "tinyshakespeare", "--data-dir", str(tmp_path), "--out", str(tmp_path / "out")]
    found = ask(capsys, str(tmp_path / "mesanet_nano.bytes"), *flags, "--samples", "1")
    assert found["length"] == 128  # it could read more; it learnt from so many at a time
    assert "in windows of 128 tokens" in (tmp_path / "out" / "report.html").read_text()
    assert "in training is not known" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--image-size", "64", "--val-fraction", "0"], "--val-fraction, --image-size: are for images"),
        (["--split", "all", "--robustness"], "--split all, --robustness: are for images"),
        (["--unknown-classes", "skip"], "--unknown-classes: is for images, and mesanet_nano.bytes is a language model"),
        (["--split-seed", "0"], "--split-seed: is for images"),
        (["--classes-by", "number"], "--classes-by: is for images"),
        (["--on-error", "skip"], "--on-error: is for images"),
        (["--weights", "crate_nano_patch4_32.cifar10"], "--weights: is for models of images; give a folder or hf:NAME"),
    ],
)
def test_a_language_model_takes_no_flags_of_images(
    flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = ["--data", "tinyshakespeare", "--data-dir", str(tmp_path)]
    assert cli.run(["eval", "mesanet_nano.bytes", *corpus, *flags]) == 2
    assert said in capsys.readouterr().err


def test_a_language_model_without_a_corpus_is_told_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    saved = str(shipped_text("mesanet_nano.bytes"))  # a folder without a run's config.yaml
    for name in ("mesanet_nano.bytes", "mesanet_nano", saved, f"local:{saved}"):
        assert cli.run(["eval", name]) == 2
        said = capsys.readouterr().err
        assert f"--data: {name} is a language model; name a corpus, one of" in said
        assert "images" not in said
