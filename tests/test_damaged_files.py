"""What this package wrote is used whole or not at all; damage is said in one sentence, in Python and by the verbs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import unrolled
from unrolled import cli
from unrolled.checksums import SUMS, write_sums
from unrolled.data.tokens import ByteTokenizer, load_tokenizer
from unrolled.errors import CorruptFile, MissingData
from unrolled.instruments import FeatureSet
from unrolled.models import LanguageModel, create_model, language_config, load_weights
from unrolled.models.encoder import load_language_model
from unrolled.models.resolve import resolve_model
from unrolled.train import TrainConfig, fit
from unrolled.train.checkpoint import checkpoints, load_checkpoint

TINY = {"depth": 1, "embed_dim": 16, "num_heads": 2}
DIGITS: dict[str, Any] = {"model": "crate_nano_patch2_8", "model_args": TINY, "max_steps": 1, "batch_size": 32}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a language model and features, each in a folder of its own."""
    folder = tmp_path_factory.mktemp("made")
    fit(TrainConfig(**DIGITS, accelerator="cpu", quiet=True, out=folder / "run"))
    config = language_config("crate_gpt_nano", vocab_size=256, dim=8, heads=2, layers=("mssa",), max_length=16)
    LanguageModel(config).save_pretrained(folder / "text")
    ByteTokenizer().save(folder / "text" / "tokenizer.json")
    write_sums(folder / "text")
    FeatureSet(layers={"block00": torch.randn(4, 3)}, model="a", data="b", key="c").save(folder / "features")
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def flip(path: Path, at: float) -> None:
    """One bit, at a share of the file's length."""
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 1
    path.write_bytes(content)


READERS: dict[str, Callable[[Path], Any]] = {
    "run/model/model.safetensors": lambda made: unrolled.from_pretrained(made / "run"),
    "run/model/config.json": lambda made: unrolled.from_pretrained(made / "run" / "model"),
    "text/model.safetensors": lambda made: load_language_model(made / "text"),
    "text/config.json": lambda made: LanguageModel.from_pretrained(made / "text"),
    "text/tokenizer.json": lambda made: load_tokenizer(made / "text"),
    "run/checkpoints/step-00000001/state.safetensors": lambda made: load_checkpoint(newest(made)),
    "run/checkpoints/step-00000001/state.json": lambda made: load_checkpoint(newest(made)),
    "features/features.safetensors": lambda made: FeatureSet.load(made / "features"),
    "features/features.json": lambda made: FeatureSet.load(made / "features"),
}


def newest(made: Path) -> Path:
    return checkpoints(made / "run" / "checkpoints")[0]


@pytest.mark.parametrize("name", READERS)
def test_a_flipped_bit_is_said_wherever_it_is(name: str, made: Path, copy: Path) -> None:
    READERS[name](made)
    whole = (made / name).read_bytes()
    for at in (0.0, 0.03, 0.31, 0.5, 0.77, 0.98):
        (copy / name).write_bytes(whole)
        flip(copy / name, at)
        with pytest.raises(CorruptFile, match=Path(name).name.replace(".", r"\.")):
            READERS[name](copy)


WAYS: dict[str, Callable[[Path], Any]] = {
    "create_model": lambda run: create_model(f"local:{run}", pretrained=True),
    "local-dir": lambda run: create_model(f"local-dir:{run / 'model'}", pretrained=True),
    "timm": lambda run: timm.create_model(f"local-dir:{run / 'model'}", pretrained=True),
    "timm:local-dir": lambda run: resolve_model(f"timm:local-dir:{run / 'model'}", pretrained=True),
    "a run": lambda run: load_weights(create_model("crate_nano_patch2_8", **TINY), run),
    "a file": lambda run: load_weights(
        create_model("crate_nano_patch2_8", **TINY), run / "model" / "model.safetensors"
    ),
    "the class": lambda run: unrolled.models.CRATE.from_pretrained(run / "model"),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_the_weights_checks_them(way: str, copy: Path) -> None:
    flip(copy / "run" / "model" / "model.safetensors", 0.7)
    with pytest.raises(CorruptFile, match=r"model\.safetensors is damaged: it does not have the checksum"):
        WAYS[way](copy / "run")


def test_weights_changed_on_purpose_are_read_once_the_sums_are_gone(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy / "run" / "model"
    # a copy: some versions of safetensors read the file only when a value is asked for
    state = {name: value.clone() for name, value in load_file(folder / "model.safetensors").items()}
    save_file({name: value + 1 for name, value in state.items()}, folder / "model.safetensors")
    with pytest.raises(CorruptFile, match=f"remove {SUMS} if you changed it on purpose"):
        unrolled.from_pretrained(copy / "run")
    (folder / SUMS).unlink()
    assert torch.equal(unrolled.from_pretrained(copy / "run").cls_token, state["cls_token"] + 1)
    assert f"note: {folder} has no {SUMS}" in caplog.text


def test_sums_are_read_by_sha256sum(made: Path) -> None:
    import subprocess

    if not shutil.which("sha256sum"):
        pytest.skip("no sha256sum here")
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", SUMS], cwd=made / "text", check=True)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"0" * 64 + b"  ../../etc/passwd\n", b"md5 x\n" * 10, b"0" * 64 + b"  gone.txt\n"]
)
def test_damaged_sums(content: bytes, copy: Path) -> None:
    (copy / "run" / "model" / SUMS).write_bytes(content)
    with pytest.raises((CorruptFile, MissingData), match=rf"{SUMS} is damaged|gone\.txt is missing"):
        unrolled.from_pretrained(copy / "run")


def test_features_of_another_version_are_read_with_a_note(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    import json

    record = copy / "features" / "features.json"
    document = json.loads(record.read_text())
    del document["record"]
    record.write_text(json.dumps(document))
    assert FeatureSet.load(copy / "features").samples == 4
    assert "has no checksum of its own" in caplog.text


def spoil(folder: Path, value: float) -> None:
    """Write one value into the weights, with sums that vouch for them."""
    state = load_file(folder / "model.safetensors")
    name = sorted(name for name in state if name.startswith("blocks."))[0]
    state[name].view(-1)[0] = value
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    write_sums(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused_in_python(value: float, copy: Path) -> None:
    spoil(copy / "run" / "model", value)
    spoil(copy / "text", value)
    for read in (
        lambda: unrolled.from_pretrained(copy / "run"),
        lambda: unrolled.models.CRATE.from_pretrained(copy / "run" / "model"),
        lambda: create_model(f"local-dir:{copy / 'run' / 'model'}", pretrained=True),
        lambda: load_weights(create_model("crate_nano_patch2_8", **TINY), copy / "run"),
        lambda: load_language_model(copy / "text"),
        lambda: LanguageModel.from_pretrained(copy / "text"),
    ):
        with pytest.raises(CorruptFile, match="are NaN or infinite"):
            read()


VERBS = [
    "eval RUN --samples 50",
    "eval crate_nano_patch2_8 --weights RUN --samples 50 --model-args.depth 1 --model-args.embed-dim 16 "
    "--model-args.num-heads 2",
    "eval RUN/model --data digits --samples 50",
    "trace RUN --images 4",
    "extract RUN --images 4",
    "probe RUN --samples 50 --test-samples 20",
    "align RUN vit_nano_patch2_8 --images 20",
    "segment PICTURE --model RUN",
    "explain PICTURE --model RUN",
    "finetune --weights RUN --max-steps 1 --data digits",
    "train --weights RUN --max-steps 1 --model-args.depth 1 --model-args.embed-dim 16 --model-args.num-heads 2",
]


@pytest.mark.parametrize("line", VERBS)
def test_verbs_refuse_weights_that_are_no_numbers(
    line: str, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(copy / "run" / "model", float("nan"))
    assert run(line, copy, tmp_path) == 1
    assert "are NaN or infinite (blocks.0." in capsys.readouterr().err.splitlines()[-1]


def test_eval_of_a_stopped_run_refuses_them_too(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from unrolled.train.checkpoint import save_checkpoint

    tensors, state = load_checkpoint(newest(copy))
    tensors["model/cls_token"][0, 0, 0] = float("nan")
    save_checkpoint(newest(copy).parent, state.pop("step"), tensors, state, keep=1)
    shutil.rmtree(copy / "run" / "model")
    assert run("eval RUN --samples 50", copy, tmp_path) == 1
    assert "step-00000001 are NaN or infinite (cls_token)" in capsys.readouterr().err


def run(line: str, copy: Path, tmp_path: Path) -> int:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    words = line.replace("RUN", str(copy / "run")).replace("PICTURE", str(tmp_path / "a.png")).split()
    return cli.run([*words, "--quiet", "--out", str(tmp_path / "out")])


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut": lambda whole: whole[:-40],
    "cut in the header": lambda whole: whole[:20],
    "a header of gigabytes": lambda whole: (2**62).to_bytes(8, "little") + whole[8:],
    "no header": lambda whole: b"\x08" + b"\0" * 7 + b"not json" + whole,
    "shapes that overflow": lambda whole: whole.replace(b"[1,1,16]", b"[9,9,99]"),
    "another dtype": lambda whole: whole.replace(b'"F32"', b'"X99"', 1),
    "another file": lambda _: b"PK\x03\x04" + b"\0" * 100,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_weights_of_a_folder_without_sums(
    damage: str, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (copy / "run" / "model", copy / "text"):
        path = folder / "model.safetensors"
        path.write_bytes(DAMAGE[damage](path.read_bytes()))
        (folder / SUMS).unlink()
    for read in (
        lambda: unrolled.from_pretrained(copy / "run"),
        lambda: unrolled.models.CRATE.from_pretrained(copy / "run" / "model"),
        lambda: load_weights(create_model("crate_nano_patch2_8", **TINY), copy / "run"),
        lambda: unrolled.from_pretrained(copy / "text"),
    ):
        if damage == "shapes that overflow" and b"[9,9,99]" not in (copy / "text" / "model.safetensors").read_bytes():
            continue
        with pytest.raises(CorruptFile, match=r"damaged|fit"):
            read()
    assert run("eval RUN --samples 50", copy, tmp_path) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ")
    assert "--debug" not in said


def test_weights_that_are_not_there(copy: Path) -> None:
    for folder in (copy / "run" / "model", copy / "text"):
        (folder / "model.safetensors").unlink()
        (folder / SUMS).unlink()
        with pytest.raises(MissingData):
            unrolled.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mean", ["x"]),
        ("std", 3),
        ("input_size", [[1], 8, 8]),
        ("input_size", [1, 0, 8]),
        ("num_classes", -3),
        ("num_classes", "ten"),
        ("crop_pct", [1]),
        ("interpolation", {"a": 1}),
        ("label_names", [["<b>"]]),
    ],
)
def test_a_description_that_makes_no_sense_is_named(name: str, value: Any, copy: Path) -> None:
    path = copy / "run" / "model" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for settings in (config, config.get("pretrained_cfg", {})):
        settings[name] = value
    path.write_text(json.dumps(config), encoding="utf-8")
    (path.parent / SUMS).unlink()
    with pytest.raises(CorruptFile, match=f"config.json: {name} must be"):
        unrolled.from_pretrained(copy / "run")
    assert cli.run(["eval", str(copy / "run"), "--quiet"]) == 1
