"""Weights that ship with the package: there, small, loadable without a network, and as good as their cards say."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import unrolled
from unrolled.catalogue import learnt_from
from unrolled.commands.complete import CompleteOptions
from unrolled.commands.explain import ExplainOptions
from unrolled.models import registry
from unrolled.models.resolve import resolve_model

FILES = sorted(registry._SHIPPED_FOLDER.glob("*.safetensors"))
NAMES = [file.name.removesuffix(".safetensors") for file in FILES]
TEXTS = sorted(folder for folder in registry._SHIPPED_FOLDER.iterdir() if folder.is_dir())
TEXT_NAMES = [folder.name for folder in TEXTS]
COMPLETES = "crate_mae_nano_patch4_32.cifar10_long"


def test_what_is_registered_is_there() -> None:
    registered = {f"{name}.{tag}" for name, tags in registry._SHIPPED.items() for tag in tags}
    assert registered == set(NAMES)
    assert {"crate_nano_patch4_32.cifar10", "crate_mae_nano_patch4_32.cifar10"} <= registered


@pytest.mark.parametrize("name", [*NAMES, *TEXT_NAMES])
def test_commands_of_a_card_are_about_its_weights(name: str) -> None:
    defaults = {"explain": ExplainOptions.model, "complete": CompleteOptions.model}
    single, folder = registry._SHIPPED_FOLDER / f"{name}.md", registry._SHIPPED_FOLDER / name / "README.md"
    card = (single if single.is_file() else folder).read_text(encoding="utf-8")
    commands = re.findall(
        r"`(?:unrolled|python -m benchmarks\.)\s*(complete|explain|completion|trace|generate) ([^`]+)`", card
    )
    for verb, arguments in commands:
        assert name in arguments.split() or defaults.get(verb) == name, f"{verb} {arguments}"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", [*NAMES, *TEXT_NAMES])
def test_weights_load_without_a_network(name: str) -> None:
    model = unrolled.create_model(name, pretrained=True)
    random = unrolled.create_model(name)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), random.parameters(), strict=True))
    same = resolve_model(name, pretrained=True).state_dict()
    assert all(torch.equal(value, same[key]) for key, value in model.state_dict().items())


def test_a_wrong_tag_names_the_right_one() -> None:
    with pytest.raises(ValueError, match="did you mean crate_nano_patch4_32"):
        unrolled.create_model("crate_nano_patch4_32.cifar11", pretrained=True)
    with pytest.raises(ValueError, match="none ship"):
        unrolled.create_model("vit_nano_patch4_32.cifar10")


def test_verbs_take_the_weights_data_and_classes_from_the_name(tmp_path: Path) -> None:
    from unrolled.subjects.models import class_names, open_model
    from unrolled.subjects.options import Reading
    from unrolled.subjects.runs import data_of, shipped

    name = "crate_nano_patch4_32.cifar10"
    assert (shipped(name), shipped("crate_nano_patch4_32"), shipped(str(tmp_path))) == ("cifar10", None, None)
    assert all(shipped(each) == "cifar10" for each in NAMES)
    trained = unrolled.create_model(name, pretrained=True)
    opened = open_model(Reading(model=name))
    assert all(torch.equal(a, b) for a, b in zip(opened.parameters(), trained.parameters(), strict=True))
    assert data_of(name).data == "cifar10"
    assert data_of(name, data="digits").data == "digits"
    assert next(iter(class_names(opened, Reading(model=name))))[3] == "cat"


@pytest.mark.parametrize("name", TEXT_NAMES)
def test_language_models_are_listed_opened_and_go_on_with_a_text(name: str) -> None:
    from unrolled.catalogue import catalogue
    from unrolled.models.encoder import list_language_models
    from unrolled.subjects.options import OneModelFlags
    from unrolled.subjects.texts import open_reader, reads_text
    from unrolled.subjects.writers import open_writer

    size, _, tag = name.partition(".")
    assert tag in catalogue()[size].weights
    assert tag in list_language_models(size)[0].weights
    flags = OneModelFlags(model=name)
    reader, writer = open_reader(flags), open_writer(name)
    assert reader.causal
    assert not reader.random
    prompt = writer.encode("the ")
    options: Any = {"temperature": 0.0, "top_k": None, "seed": 0, "device": torch.device("cpu")}
    words = writer.decode(list(writer.write(prompt, 30, **options)))
    assert len(set(words)) > 4  # letters and spaces, not one byte again and again
    with pytest.raises(ValueError, match=rf"no such weights; did you mean .*{re.escape(name)}"):
        unrolled.from_pretrained(f"{name}s")
    with pytest.raises(ValueError, match=rf"no such weights; did you mean .*{re.escape(name)}"):
        open_writer(f"{name}s")
    with pytest.raises(ValueError, match=rf"give {re.escape(name)}, which ships"):
        open_writer(size)
    assert reads_text(SimpleNamespace(model=name, text=None, texts=None, data=None, data_dir=None))


def test_a_folder_of_the_name_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unrolled.subjects.runs import named

    monkeypatch.chdir(tmp_path)
    name = TEXT_NAMES[0]
    assert Path(named(name).removeprefix("local:")) == TEXTS[0]
    (tmp_path / name).mkdir()
    assert named(name) == f"local:{name}"


@pytest.mark.parametrize("shape", ["./{}", "{}/", "{}/.", "*{}", "{}*", "../weights/{}"])
def test_what_looks_like_a_shipped_name_is_none(shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unrolled.catalogue import shipped_tags, shipped_text

    monkeypatch.chdir(tmp_path)
    assert shipped_text(shape.format(TEXT_NAMES[0])) is None
    for size in ("*", "**", "a**", "/etc", "..", "", "mesanet_nan?"):
        assert shipped_tags(size) == []


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_a_card_says_data_recipe_accuracy_and_limits(file: Path) -> None:
    check_card(file, file.with_suffix(".md"), unrolled.create_model(file.name.rsplit(".", 1)[0]))


@pytest.mark.parametrize("folder", TEXTS, ids=TEXT_NAMES)
def test_the_card_of_a_language_model_says_it_too(folder: Path) -> None:
    assert {file.name for file in folder.iterdir()} == {
        "README.md", "SHA256SUMS", "config.json", "model.safetensors", "tokenizer.json"
    }  # fmt: skip
    check_card(folder / "model.safetensors", folder / "README.md", unrolled.create_model(folder.name))
    rows = re.findall(r"^\| ([\w-]+) \| \d\.\d+ \|", (folder / "README.md").read_text(), re.MULTILINE)
    assert rows == [*learnt_from(folder), "mean"]  # the corpora that it is measured on are those it learnt from


def check_card(file: Path, card_file: Path, model: torch.nn.Module) -> None:
    assert file.stat().st_size <= 6 * 2**20
    card = card_file.read_text()
    assert card.count("---") >= 2
    for part in ("| data |", "| recipe |", "| good for |", "**Limits.**", "measured on"):
        assert part in card
    parameters = sum(value.numel() for value in model.parameters())
    assert f"{parameters:,} parameters" in card


def test_the_autoencoder_comes_as_it_was_trained(tmp_path: Path) -> None:
    import timm

    for name, step in (("crate_mae_nano_patch4_32.cifar10", "softmax"), (COMPLETES, "derived")):
        model = timm.create_model(name, pretrained=True)
        assert (model.encoder, model.norm_pix_loss) == ("visible", False)
        assert model.blocks[0].attn.compression == step
    assert timm.create_model("crate_mae_nano_patch4_32").encoder == "full"
    assert unrolled.create_model(name, pretrained=True, encoder="full").encoder == "full"


def measured(name: str, shared: Path, score: Callable[..., Any]) -> tuple[dict[str, float], str]:
    """What `score` says of the weights on the test images, and their card."""
    from unrolled.data import eval_loader, eval_transform, model_input, open_images

    model = unrolled.create_model(name, pretrained=True)
    cfg = model_input(model)
    transform = eval_transform(
        cfg["input_size"], cfg["mean"], cfg["std"], interpolation=cfg["interpolation"], crop_pct=cfg["crop_pct"]
    )
    source = open_images("cifar10", "test", data_dir=shared / "data")
    assert model.num_classes == 0 or list(source.classes) == list(model.pretrained_cfg["label_names"])
    scores = score(model, eval_loader(source, transform, batch_size=500))
    return scores, (registry._SHIPPED_FOLDER / f"{name}.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["crate_mae_nano_patch4_32.cifar10", COMPLETES])
def test_the_autoencoder_completes_as_well_as_its_card_says(name: str, shared: Path) -> None:
    from unrolled.train.tasks.masked import evaluate_masked

    scores, card = measured(name, shared, lambda model, loader: evaluate_masked(model, model, loader, mask_ratio=0.75))
    said = float(re.search(r"\| mean squared error on the removed patches \| ([\d.]+)", card)[1])  # type: ignore[index]
    assert scores["loss"] == pytest.approx(said, abs=2e-3)
    assert scores["loss"] < 0.6 * scores["visible_mean_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if "mae" not in name])
def test_the_classifier_is_as_accurate_as_its_card_says(name: str, shared: Path) -> None:
    from unrolled.train import evaluate

    scores, card = measured(name, shared, evaluate)
    said = float(re.search(r"\| accuracy \| ([\d.]+) %", card)[1]) / 100  # type: ignore[index]
    assert scores["accuracy"] == pytest.approx(said, abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("folder", TEXTS, ids=TEXT_NAMES)
def test_the_language_model_spends_as_many_bits_as_its_card_says(folder: Path, shared: Path) -> None:
    from unrolled.instruments.sequences.context import token_losses
    from unrolled.studies.language import bits, excerpts, opened

    model: Any = unrolled.from_pretrained(folder.name)
    rows = excerpts(opened("tinyshakespeare", shared / "data")["test"], model.config.max_length, 50_000)
    measured_bits = bits(float(token_losses(model, rows[:, :-1], rows[:, 1:], batch_size=64).mean()))
    stated = float(re.search(r"\| tinyshakespeare \| ([\d.]+)", (folder / "README.md").read_text())[1])  # type: ignore[index]
    assert measured_bits == pytest.approx(stated, abs=2e-3)
