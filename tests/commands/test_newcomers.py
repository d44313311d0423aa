"""What a newcomer gets wrong is answered in one line that names the flag, with exit code 2 or 3."""

from __future__ import annotations

from pathlib import Path

import pytest

from unrolled import cli


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = cli.run(arguments)
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("note: ", "data: "))]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return code, lines[0]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert cli.run(["train", "--max-steps", "1", "--batch-size", "32", "--quiet", "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("list --compare", "--compare: name the models"),
        ("list --compare crate_nano_patch2_8 --match flops", "those to be matched"),
        ("list --compare crate_nano_patch2_8 --batch-size 0", "--batch-size 0"),
        ("list --match flops", "--match flops"),
        ("probe RUN --batch-size 0", "--batch-size 0"),
        ("probe RUN --seed -1", "--seed -1"),
        ("probe RUN --model-args.depth 2", "--model-args: the weights of"),
        ("probe RUN --image-size -8", "--image-size -8"),
        ("probe RUN --samples 5", "--samples: of 5 training images"),
        ("probe RUN --samples 100 --method knn --k 81", "--k 81: more neighbours than the 80"),
        ("eval RUN --batch-size 0", "--batch-size 0"),
        ("eval RUN --workers -1", "--workers -1"),
        ("finetune --weights RUN --task lm", 'Invalid value "lm" for --task. Choose from: "classify"'),
    ],
)
def test_values_no_verb_can_use(
    arguments: str, said: str, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = answer(capsys, *[str(run_folder) if word == "RUN" else word for word in arguments.split()])
    assert code == 2
    assert said in line


def test_weights_that_are_not_there_or_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, line = answer(capsys, "finetune", "--weights", str(tmp_path / "nowhere"))
    assert (code, "weights: there is no folder or file" in line) == (3, True)
    (tmp_path / "a.txt").write_text("hi\n")
    out = ["--out", str(tmp_path / "out"), "--model", "crate_nano_patch2_8"]
    code, line = answer(capsys, "finetune", "--weights", str(tmp_path / "a.txt"), *out)
    assert (code, "a.txt: truncated, damaged, or no checkpoint at all" in line) == (1, True)


@pytest.mark.parametrize(
    "arguments",
    ["train --max-steps 1 --quiet", "finetune --weights RUN --max-steps 1 --quiet", "probe RUN --samples 50 --quiet",
     "eval RUN --samples 60 --quiet"],
)  # fmt: skip
def test_a_folder_that_cannot_be_written_is_named_as_the_flag(
    arguments: str, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    words = [str(run_folder) if word == "RUN" else word for word in arguments.split()]
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        code, line = answer(capsys, *words, "--out", str(out))
        assert code == 2
        assert f"--out {out}: cannot be written" in line


def test_a_file_that_is_missing_elsewhere_is_not_blamed_on_out() -> None:
    error = FileNotFoundError(2, "No such file or directory", "/data/labels.json")
    assert cli.out_refused(error, ["eval", "--out", "/runs/x"]) is None
    assert cli.out_refused(error, ["eval"]) is None
    assert cli.out_refused(ValueError("x"), ["eval", "--out", "x"]) is None
    full = OSError(28, "No space left on device", "/runs/x/report.html")
    assert cli.out_refused(full, ["eval", "--out", "/runs/x"]) is None


def test_run_folders_are_compared(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["list", "--compare", str(run_folder), "vit_nano_patch2_8", "--batch-size", "1"]) == 0
    assert str(run_folder) in capsys.readouterr().out


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on text as far as these verbs look: its model."""
    from unrolled.models import LanguageModel, language_config

    folder = tmp_path_factory.mktemp("runs") / "text"
    config = language_config("crate_gpt_nano", vocab_size=256, dim=8, heads=2, layers=("mssa",), max_length=16)
    LanguageModel(config).save_pretrained(folder / "model")
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        "finetune --weights TEXT",
        "finetune --weights TEXT --model crate_nano_patch2_8 --max-steps 1",
        "train --weights TEXT --max-steps 1",
        "segment PICTURE --model TEXT",
        "explain PICTURE --model TEXT",
        "explain PICTURE --model crate_nano_patch2_8 --weights TEXT",
        "explain PICTURE --model crate_gpt_nano",
        "probe TEXT --samples 50",
    ],
)
def test_a_language_model_is_called_one_where_images_are_shown(
    arguments: str, text_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    known = {"TEXT": str(text_run), "PICTURE": str(tmp_path / "a.png")}
    words = [known.get(word, word) for word in arguments.split()]
    code, line = answer(capsys, *words, "--out", str(tmp_path / "out"), "--quiet")
    assert code == 2
    assert "a language model" in line
    assert ("weights: " if "--weights" in words else "model") in line


def test_weights_of_another_family_are_named_in_words(tmp_path: Path) -> None:
    from unrolled.models import create_model, load_weights

    saved = {name: tmp_path / name for name in ("crate_mae_nano_patch4_32", "tost_nano_patch4_32")}
    for name, folder in saved.items():
        create_model(name).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"weights of a masked autoencoder, and the model is a CRATE; .*finetune"):
        load_weights(create_model("crate_nano_patch4_32"), saved["crate_mae_nano_patch4_32"])
    with pytest.raises(ValueError, match="weights of a ToST, and the model is a ViT; give the model"):
        load_weights(create_model("vit_nano_patch4_32"), saved["tost_nano_patch4_32"])
    with pytest.raises(ValueError, match="another architecture than CRATE: it lacks"):  # as the names cannot tell
        load_weights(create_model("crate_nano_patch4_32", depth=7), _saved_crate(tmp_path))


def _saved_crate(folder: Path) -> Path:
    from unrolled.models import create_model

    create_model("crate_nano_patch4_32").save_pretrained(folder / "crate")
    return folder / "crate"
