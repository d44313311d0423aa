"""What README, docs, cards and help show can be typed: Python is run in a small form, command lines are parsed."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import re
import shlex
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from cyclopts import CycloptsError
from PIL import Image

import unrolled
from tests.readme_tree import ROOT
from unrolled import cli

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += sorted((ROOT / "unrolled" / "weights").glob("*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
# longer first; what is too large to run in a test, and what makes it small
SMALLER = {
    'vit_tiny_patch16_224"': 'vit_tiny_patch16_224", img_size=32, depth=12, embed_dim=24',
    "crate_tiny_patch16_224": "crate_nano_patch4_32",
    "224, 224": "32, 32",
    "(prompt, 50)": "(prompt, 5)",
    "seed=1,": "seed=1, max_steps=2, quiet=True,",
}
# what only shows how to work with it, and is no dependency
OPTIONAL = {"captum", "nnsight", "transformer_lens"}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(*languages: str) -> list[Any]:
    found = []
    for page in PAGES:
        for number, (language, code) in enumerate(FENCE.findall(page.read_text(encoding="utf-8"))):
            if language in languages:
                found.append(pytest.param(code, id=f"{name_of(page)}-{number}"))
    return found


def lines(code: str) -> list[str]:
    return [line.strip() for line in code.splitlines() if shlex.split(line, comments=True)]


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    kinds = {language for page in PAGES for language, _ in FENCE.findall(page.read_text(encoding="utf-8"))}
    assert kinds <= {"python", "bash", "", "text"}  # text: the tree, see `test_readme`


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the examples take for granted."""
    from unrolled.data.tokens import ByteTokenizer
    from unrolled.models import LanguageModel, language_config

    folder = tmp_path_factory.mktemp("place")
    config = language_config("crate_gpt_nano", vocab_size=256, dim=8, heads=2, layers=("mssa",), max_length=16)
    LanguageModel(config).save_pretrained(folder / "runs" / "lm" / "model")
    ByteTokenizer().save(folder / "runs" / "lm" / "model" / "tokenizer.json")
    for number in range(20):
        photo = folder / "photos" / ("cat", "dog")[number % 2] / f"{number}.png"
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((40, 40), 80).convert("RGB").save(photo)
    if importlib.util.find_spec("transformer_lens"):
        _tiny_gpt2(folder / "openai-community" / "gpt2")
    (folder / "runs" / "digits").mkdir()
    (folder / "runs" / "digits" / "config.yaml").write_text("data: digits\n")
    return folder


def _tiny_gpt2(folder: Path) -> None:
    """A model of the hub with random weights, where its name finds it offline."""
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    config = transformers.GPT2Config(n_embd=24, n_layer=3, n_head=3, vocab_size=50, bos_token_id=1, eos_token_id=1)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    words = Tokenizer(WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    special = {"unk_token": "?", "pad_token": "a", "eos_token": "b", "bos_token": "b"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "export.md"], ids=name_of)
def test_python_runs(page: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page follow each other, as a reader types them; those of docs/export.md: `models/test_export`."""
    monkeypatch.chdir(place)
    module = ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", module)  # where dataclasses look names up
    names = vars(module)
    names |= {name: torch.randn(20, 4) for name in ("features_a", "features_b")}
    absent: set[str] = set()
    for number, (language, code) in enumerate(FENCE.findall(page.read_text(encoding="utf-8"))):
        if language != "python":
            continue
        wanted = OPTIONAL & set(re.findall(r"^(?:import|from) (\w+)", code, flags=re.MULTILINE))
        if missing := {module for module in wanted if importlib.util.find_spec(module) is None}:
            absent |= missing
            continue
        for large, small in SMALLER.items():
            code = code.replace(large, small)
        example = tmp_path / f"example{number}.py"  # nnsight reads the source of what runs
        example.write_text(code, encoding="utf-8")
        exec(compile(code, str(example), "exec", dont_inherit=True), names)
    plt.close("all")
    if absent:
        pytest.skip(f"blocks with {', '.join(sorted(absent))}: not installed here")


EXAMPLES = [path for path in sorted((ROOT / "unrolled").rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", EXAMPLES, ids=name_of)
def test_examples_in_docstrings_run(path: Path) -> None:
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    done = doctest.testmod(module)
    assert done.attempted
    assert not done.failed


def test_docstrings_have_examples() -> None:
    assert len(EXAMPLES) >= 4


COUNTED = re.compile(r"`(\w+_(?:patch\d+_\d+|nano|base)[\w.]*)`[^|\n]* \| ([\d,]{5,}) \|")


def test_numbers_of_parameters_are_those_of_the_models() -> None:
    from unrolled import create_model
    from unrolled.catalogue import catalogue, matching
    from unrolled.train import recipes

    named: dict[str, int] = {}
    for page in PAGES:
        for name, number in COUNTED.findall(page.read_text(encoding="utf-8")):
            if name in recipes():  # of which a table may say how large its network is
                continue
            named[name] = int(number.replace(",", ""))
            assert named[name] == matching(name)[0].parameters, f"{page}: {name}"
    assert len(named) >= 4
    crate, vit = (catalogue()[f"{kind}_nano_patch4_32"].parameters for kind in ("crate", "vit"))
    assert f"{vit / crate:.1f} times the parameters" in (ROOT / "docs/cifar10.md").read_text(encoding="utf-8")
    for card in sorted((ROOT / "unrolled/weights").glob("*.md")):
        count = sum(parameter.numel() for parameter in create_model(card.stem).parameters())
        size = card.with_suffix(".safetensors").stat().st_size / 1e6
        text = card.read_text(encoding="utf-8")
        assert f"{count:,} parameters, {size:.1f} MB" in text, card


@pytest.mark.parametrize("code", blocks("bash", ""))
def test_command_lines_are_understood(code: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for line in lines(code):
        understand(line)


def examples() -> list[str]:
    found = []
    for verb in cli.VERBS.values():
        module, name = verb.function.split(":")
        for line in (getattr(importlib.import_module(module), name).__doc__ or "").splitlines():
            if re.match(r"\s+(unrolled|torchrun) ", line):
                found.append(line.strip())
    return found


@pytest.mark.parametrize("line", examples())
def test_the_examples_of_help_are_understood(line: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    understand(line)


def understand(line: str) -> None:
    """Raise if a command line names what is not there."""
    words = shlex.split(line, comments=True)
    words = words[: words.index("|")] if "|" in words else words  # what comes after is another program's
    if words[0] == "torchrun":
        words = words[words.index("-m") + 1 :]
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert set(words[1:]) <= set(targets), line
    elif words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for extra in re.findall(r"\[(.*?)\]", line):
            assert set(extra.split(",")) <= extras.keys(), line
    elif words[:2] == ["python", "-m"]:
        assert (ROOT / Path(*words[2].split("."))).with_suffix(".py").is_file(), line
    else:
        assert words[0] == "unrolled", line
        cli.build(words[1:]).parse_args(words[1:], exit_on_error=False, print_error=False)


MENTION = re.compile(r"`((?:unrolled|python -m|make|pip install) [^`|]+)`")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_the_text_exist(page: Path) -> None:
    """Of `unrolled VERB --flag ...` in a sentence, which need not be complete, the verb and its flags."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for mention in set(MENTION.findall(text)):
        words = shlex.split(mention)
        if words[0] != "unrolled":
            understand(mention)
            continue
        if words[1].startswith("-"):
            continue
        assert words[1] in {*cli.VERBS, "VERB"}, mention
        known = flags_of(words[1:])
        for flag in (word for word in words if word.startswith("--")):
            assert words[1] == "VERB" or flag in known or flag.split(".")[0] in known, f"{page.name}: {mention}"


def flags_of(words: list[str]) -> set[str]:
    """The flags of a verb, or of the study that is named after it."""
    if words[0] == "VERB":
        return set()
    app = cli.build(words[:1])[words[0]]
    if words[0] == "study":
        name = "mesa-floors" if words[1:] in ([], ["NAME"]) or words[1] == "NAME" else words[1]
        app = cli.build(["study", name])["study"][name]
    arguments = app.assemble_argument_collection(parse_docstring=True)
    flags = {name for argument in arguments for name in (*argument.names, *argument.negatives)}
    return {*flags, "--help", "--debug", "--trust"}


def test_the_check_sees_what_is_wrong() -> None:
    for line in ("unrolled fly", "unrolled train --fly", "make fly", "pip install 'unrolled[fly]'", "ls"):
        with pytest.raises((AssertionError, CycloptsError)):
            understand(line)


def test_what_is_public_is_listed_and_there() -> None:
    listed = dir(unrolled)
    assert listed == sorted(unrolled.__all__)
    assert {"compare", "create_model", "from_pretrained", "list_models", "trace"} <= set(listed)
    for name in listed:
        assert getattr(unrolled, name) is not None
    folders = {path.parent.name for path in (ROOT / "unrolled").glob("*/__init__.py")}
    modules = {name for name, home in unrolled._EXPORTS.items() if home is None}
    assert modules == folders - {"commands", "explorer"} | {"alignment", "errors"}


@pytest.mark.parametrize("part", ["", ".train", ".data", ".instruments"])
def test_lazy_modules_list_what_they_export(part: str) -> None:
    module = importlib.import_module(f"unrolled{part}")
    assert dir(module) == sorted(module.__all__)
    assert not {"Any", "importlib", "annotations"} & set(dir(module))


def test_a_model_is_a_timm_model() -> None:
    """README: `features_only`, `img_size`, ... work; docs/recipes.md: timm reads the folder of a run."""
    import timm

    model = unrolled.create_model("crate_nano_patch4_32", img_size=48, num_classes=3)
    assert model(torch.randn(2, 3, 48, 48)).shape == (2, 3)
    maps = unrolled.create_model("crate_nano_patch4_32", features_only=True)(torch.randn(1, 3, 32, 32))
    assert [tuple(each.shape) for each in maps] == [(1, 96, 8, 8)] * len(maps)
    assert unrolled.create_model("crate_nano_patch4_32", in_chans=1)(torch.randn(1, 1, 32, 32)).shape == (1, 10)
    assert timm.is_model("crate_nano_patch4_32")


def test_timm_reads_the_model_of_a_run(tmp_path: Path) -> None:
    import timm

    from unrolled.train import TrainConfig, fit

    args = {"depth": 1, "embed_dim": 16, "num_heads": 2}
    config = TrainConfig(
        model_args=args, max_steps=1, batch_size=32, accelerator="cpu", quiet=True, out=tmp_path / "run"
    )
    trained = fit(config).model
    found = timm.create_model(f"local-dir:{tmp_path / 'run' / 'model'}", pretrained=True)
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(found.eval()(images), trained.eval()(images))


def test_a_trace_may_be_of_text() -> None:
    """README: of images or of text; those of timm and Hugging Face are in `instruments/test_trace`."""
    from unrolled.models import LanguageModel, language_config

    model = LanguageModel(language_config("crate_gpt_nano", vocab_size=50, dim=16, heads=2, layers=("mssa", "softmax")))
    with unrolled.trace(model.eval()) as t:
        model(torch.randint(0, 50, (1, 8)))
    assert {"embed", "block00/attn", "block00/half", "block00", "block01", "head"} <= set(t)
