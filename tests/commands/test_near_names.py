"""A name that is nearly right is said, in Python too; a folder that is missing is found before data are read."""

from pathlib import Path

import pytest

import unrolled
from unrolled import cli
from unrolled.alignment import METRICS, get_metric
from unrolled.data import open_images
from unrolled.errors import nearest, suggestion


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("linear_cka", "cka"),
        ("unbiased CKA", "unbiased_cka"),
        ("Mutual kNN", "mutual_knn"),
        ("mutual_nn", "mutual_knn"),
        ("cca", "svcca"),
        ("ridge", "ridge_predictivity"),
        ("Soft Matching", "soft_matching"),
    ],
)
def test_metrics(name: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"metric='{name}' is not known; did you mean '{meant}'"):
        get_metric(name)


@pytest.mark.parametrize("name", [*METRICS, "unbiased_cka"])
def test_metrics_are_taken_in_any_case_and_with_hyphens(name: str) -> None:
    for spelled in (name.upper(), name.replace("_", "-").title()):
        assert repr(get_metric(spelled)) == repr(get_metric(name))


def test_what_is_near_nothing_is_told_all_there_are() -> None:
    assert nearest("", METRICS) == []
    assert suggestion("zzzz", ["one", "two"]) == "known are one, two"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("CIFAR-10", "cifar10"),
        ("Fashion MNIST", "fashion_mnist"),
        ("digit", "digits"),
        ("tinyshakespear", "tinyshakespeare"),
    ],
)
def test_data(name: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        open_images(name, "test")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("crate_gpt_nano.byte", "did you mean crate_gpt_nano.bytes?"),
        ("crate_mae_nano_patch4_32.cifar10_lon", "did you mean crate_mae_nano_patch4_32.cifar10_long or"),
        ("crate_nano_patch4_33", "did you mean crate_nano_patch4_32?"),
        ("patch4_99", "`unrolled list` shows all"),
    ],
)
def test_models_and_weights_of_the_list(name: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["list", name]) == 2
    assert said in capsys.readouterr().err


def test_models_of_the_hub() -> None:
    with pytest.raises(ValueError, match="model='gpt2' is not known; did you mean hf:gpt2"):
        unrolled.create_model("gpt2")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["trace", "gpt2", "--text", "a"], "did you mean hf:gpt2?"),
        (["trace", "given:minilm", "--data", "digits"], "models of given: are read where features are compared"),
        (["generate", "gpt2"], "did you mean hf:gpt2?"),
        *(
            ([verb, "mesanet_nano.byte"], "there are no such weights; did you mean mesanet_nano.bytes?")
            for verb in ("eval", "trace", "extract", "generate")
        ),
        (["trace", "mesanet_nan.bytes", "--text", "a"], "did you mean mesanet_nano.bytes or"),
        (["eval", "gpt2_nano.bytes"], "none ship for gpt2_nano"),
        # a typo is named before data that are not here
        *(
            ([verb, "crate_nano_patch4_33", "--data", "cifar10", "--data-dir", "nowhere"], "crate_nano_patch4_32")
            for verb in ("eval", "trace", "ablate", "patch", "probe")
        ),
        (
            ["align", "a.npy", "b.npy", "--metric", "linear_cka"],
            "--metric linear_cka is not known; did you mean 'cka'?",
        ),
        (["align", "a.npy", "b.npy", "--metric", "mutual_knn,cka"], "give --metric mutual_knn --metric cka"),
        (["train", "--precision", "fp16", "--accelerator", "cpu"], "use --precision fp32"),
        (["train", "--accelerator", "mps", "--devices", "1"], "use --accelerator auto"),
    ],
)
def test_on_the_command_line(command: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = [] if command[0] == "generate" else ["--out", str(tmp_path / "out"), "--quiet"]
    assert cli.run([*command, *out]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        *([verb, "nowhere/run"] for verb in ("eval", "trace", "ablate", "patch", "extract", "probe")),
        ["align", "nowhere/run", "crate_nano_patch2_8"],
        ["align", "crate_nano_patch2_8", "nowhere/run"],
        *([verb, "crate_nano_patch2_8", "--weights", "nowhere/run"] for verb in ("eval", "trace", "extract", "probe")),
    ],
)
def test_a_missing_folder_is_found_before_data_are_read(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("unrolled.data.images.open_images", lambda *_, **__: pytest.fail("data were opened"))
    assert cli.run([*command, "--data", "cifar10", "--data-dir", "not-there-either"]) == 3
    assert "there is no folder" in capsys.readouterr().err


def test_a_model_of_images_given_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts.txt").write_text("a\nb\nc\n")
    command = ["extract", "crate_nano_patch2_8", "--texts", str(tmp_path / "texts.txt"), "--out", str(tmp_path / "out")]
    assert cli.run(command) == 2
    said = capsys.readouterr().err
    assert "crate_nano_patch2_8 is a model of images, and these are texts; give one of texts, hf:ORG/NAME" in said
