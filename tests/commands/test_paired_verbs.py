"""`unrolled extract` and `unrolled align` on images with captions and on texts, with tiny random models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from unrolled import cli
from unrolled.catalogue import shipped_text
from unrolled.instruments import FeatureSet

transformers = pytest.importorskip("transformers")
WORDS = ["[PAD]", "[UNK]", "grey", "dark", "light", "patch", "a", "of"]
CRATE = "crate_nano_patch2_8"
SAVED = str(shipped_text("mesanet_nano.bytes"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT, 24 images with two captions each, and files of texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("paired")
    config = transformers.BertConfig(
        vocab_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(root / "bert")
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]")
    tokenizer.save_pretrained(root / "bert")
    generator = np.random.default_rng(0)
    (root / "photos").mkdir()
    captions = {}
    for i in range(24):
        pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "photos" / f"{i:02d}.png")
        captions[f"{i:02d}.png"] = [" ".join(generator.choice(WORDS[2:], 5)) for _ in range(2)]
    (root / "photos" / "captions.json").write_text(json.dumps(captions))
    lines = [" ".join(generator.choice(WORDS[2:], 6)) for _ in range(30)]
    (root / "lines.txt").write_text("\n".join(lines) + "\n")
    (root / "lines.tsv").write_text("\n".join(f"{line}\t{line} patch" for line in lines) + "\n")
    return root


def extract(out: Path, spec: str, *flags: str) -> int:
    return cli.run(["extract", spec, "--quiet", "--json", "--out", str(out), *flags])


def photos(place: Path) -> list[str]:
    return ["--data", "folder", "--data-dir", str(place / "photos")]


def test_captions_and_images_become_paired_features(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert extract(tmp_path / "t", f"hf:{place / 'bert'}", *photos(place), "--side", "text") == 0
    first = json.loads(capsys.readouterr().out)
    assert first["layers"] == {"embed": 16, "block00": 16, "block01": 16}
    assert (first["samples"], first["reused"]) == (24, False)
    assert extract(tmp_path / "t", f"hf:{place / 'bert'}", *photos(place), "--side", "text") == 0
    assert json.loads(capsys.readouterr().out)["reused"] is True
    assert extract(tmp_path / "t1", f"hf:{place / 'bert'}", *photos(place), "--side", "text", "--captions", "1") == 0
    assert json.loads(capsys.readouterr().out)["checksum"] != first["checksum"]
    assert extract(tmp_path / "i", CRATE, *photos(place), "--side", "image") == 0
    capsys.readouterr()
    assert FeatureSet.load(tmp_path / "i").data == FeatureSet.load(tmp_path / "t").data
    assert cli.run(["align", str(tmp_path / "i"), str(tmp_path / "t"), "--k", "5", "--draws", "20", "--resamples", "0",
                    "--quiet", "--out", str(tmp_path / "a")]) == 0  # fmt: skip


def test_align_feeds_images_to_one_model_and_captions_to_the_other(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--k", "5", "--draws", "20", "--resamples", "0", "--quiet", "--json", "--out", str(tmp_path)]
    assert cli.run(["align", CRATE, f"hf:{place / 'bert'}", *photos(place), "--side", "image", *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n"] == 24
    rows, columns = found["comparisons"][0]["layers"]
    assert (len(rows), columns) == (6, ["embed", "block00", "block01"])
    settings: dict[str, Any] = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (settings["side"], settings["captions"]) == ("image", None)


@pytest.mark.parametrize("name", ["lines.txt", "lines.tsv"])
def test_two_text_models_on_a_file_of_texts(
    name: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--texts", str(place / name), "--k", "3", "--draws", "20", "--resamples", "0", "--quiet", "--json"]
    bert = f"hf:{place / 'bert'}"
    assert cli.run(["align", bert, bert, *flags, "--out", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    score = found["comparisons"][0]["score"]
    assert found["n"] == 30
    assert score == pytest.approx(1) if name == "lines.txt" else 0.3 < score < 1


def test_language_models_of_this_package_read_texts(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--texts", str(place / "lines.txt"), "--k", "3", "--draws", "20", "--resamples", "0", "--quiet", "--json"]
    for other in ("mesanet_nano.bytes", f"hf:{place / 'bert'}"):
        assert cli.run(["align", "crate_gpt_nano.bytes", other, *flags, "--out", str(tmp_path / other[:2])]) == 0
        assert json.loads(capsys.readouterr().out)["n"] == 30
    assert extract(tmp_path / "f", "crate_gpt_nano.bytes", *photos(place), "--side", "text") == 0
    assert list(json.loads(capsys.readouterr().out)["layers"].values()) == [128] * 5


def test_all_of_a_division_is_for_paired_data_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["extract", CRATE, "--split", "all"]) == 2
    assert "paired data" in capsys.readouterr().err
    assert cli.run(["align", CRATE, CRATE, "--split", "all"]) == 2
    assert "paired data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["given:minilm"],
            "given:minilm takes texts, and the data are images; give paired data that have texts, such as "
            "--data flickr8k, or --texts, a file of them",
        ),
        (["mesanet_nano.bytes"], "mesanet_nano.bytes takes texts, and the data are images; give paired data"),
        ([SAVED], f"{SAVED} takes texts, and the data are images; give paired data"),
        (["given:resnet20"], "--data-dir: the folder that holds"),
        (
            ["given:resnet20", "--data", "digits", "--weights", "crate_nano_patch4_32.cifar10"],
            "--weights: given:resnet20 comes as it is",
        ),
        (["given:minilm", "--data", "flickr8k"], "--data-dir"),
        (["given:minilm", "--texts", "nowhere.txt"], "no file nowhere.txt"),
    ],
)
def test_what_is_missing_is_said(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["extract", *flags]) in (2, 3)
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("models", [["extract", SAVED], ["align", SAVED, CRATE], ["extract", CRATE, "--side", "text"]])
def test_a_corpus_is_no_list_of_texts(models: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*models, "--data", "tinyshakespeare"]) == 2
    said = capsys.readouterr().err
    assert "error: --data: tinyshakespeare is a corpus, one long text" in said
    assert "give --texts, a file with one text a line" in said


def test_an_empty_line_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lines.txt").write_text("a patch\n\na patch\n")
    assert cli.run(["extract", "given:minilm", "--texts", str(tmp_path / "lines.txt")]) == 2
    assert "'line 2'" in capsys.readouterr().err


def test_given_models_on_shared_pairs(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not (shared / "data" / "weights").is_dir():
        pytest.skip("the given weights are not here")
    flags = ["--data", "flickr8k", "--split", "all", "--data-dir", str(shared / "data"), "--images", "200", "--quiet"]
    assert cli.run(["align", "given:glove", "given:stories260k", "--side", "text", *flags, "--draws", "20", "--json",
                    "--resamples", "0", "--out", str(tmp_path)]) == 0  # fmt: skip
    found = json.loads(capsys.readouterr().out)["comparisons"][0]
    assert found["score"] > 2 * found["chance"]


def test_networks_of_images_see_data_that_are_no_pairs(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model of torchvision, whose strings only `open_encoder` reads, and one of the shared folder."""
    grid = tmp_path / "models.yaml"
    squeezed = "{model: tv:squeezenet1_1, layers: 'features.?'}"
    grid.write_text(f"models:\n  torchvision: {squeezed}\n  ours: {CRATE}\n")
    flags = ["--images", "16", "--k", "3", "--quiet", "--json", "--out", str(tmp_path / "out")]
    assert cli.run(["align-grid", str(grid), *flags, "--image-size", "32"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["pairs"][0]["n"], found["models"]["torchvision"]["random"]) == (16, True)
    if not (shared / "data" / "weights").is_dir():
        pytest.skip("the given weights are not here")
    flags += ["--draws", "5", "--resamples", "0", "--data", "digits", "--data-dir", str(shared / "data")]
    assert cli.run(["align", "given:resnet20", CRATE, *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n"], found["random"], len(found["comparisons"][0]["layers"][0])) == (16, ["B"], 9)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (
            ["given:resnet20", "given:glove"],
            "m1: given:glove takes texts; give it `side: text`, and --data flickr8k or",
        ),
        (
            [CRATE, SAVED],
            f"m1: {SAVED} takes texts; give it `side: text`, and --data flickr8k or",
        ),
        (
            ["{model: tv:resnet18, side: text}", CRATE],
            "m0: tv:resnet18 takes images; give it `side: image`, not `side:",
        ),
        (
            ["{model: hf:BERT, side: text2}", CRATE],
            "m0: 24 of photos, 24 captioned images: `side: text2` is for pairs",
        ),
    ],
)
def test_a_line_of_a_grid_that_feeds_a_model_wrongly_is_named(
    entries: list[str], words: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = tmp_path / "models.yaml"
    lines = [f"  m{i}: {entry}" for i, entry in enumerate(entries)]
    grid.write_text("models:\n" + "\n".join(lines).replace("BERT", str(place / "bert")) + "\n")
    assert cli.run(["align-grid", str(grid), *photos(place), "--split", "all", "--out", str(tmp_path / "out")]) == 2
    assert f"error: {grid}, {words}" in capsys.readouterr().err


def test_a_grid_compares_models_of_both_sides(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = tmp_path / "models.yaml"
    bert = f"hf:{place / 'bert'}"
    grid.write_text(f"models:\n  words: {{model: '{bert}', side: text}}\n  crate: {CRATE}\n  other: {CRATE}\n")
    flags = ["--k", "3", "--out", str(tmp_path / "out"), "--quiet", "--json"]
    assert cli.run(["align-grid", str(grid), *photos(place), "--split", "all", *flags]) == 0
    pairs = json.loads(capsys.readouterr().out)["pairs"]
    assert [(pair["a"], pair["b"], pair["n"]) for pair in pairs] == [
        ("words", "crate", 24), ("words", "other", 24), ("crate", "other", 24)
    ]  # fmt: skip
    grid.write_text(f"models:\n  words: {{model: '{bert}', side: txt}}\n  crate: {CRATE}\n")
    assert cli.run(["align-grid", str(grid), *photos(place), *flags]) == 2
    assert "side must be" in capsys.readouterr().err
