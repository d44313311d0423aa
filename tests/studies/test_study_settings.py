"""A study's own settings are flags: `unrolled study NAME --seeds 0 1 --steps 800 --config FILE`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from unrolled import cli, studies
from unrolled.commands import study as verb
from unrolled.commands.options import given, open_flags_of
from unrolled.errors import MissingData
from unrolled.studies.cells import data_missing


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Configurations that the verb was to run."""
    seen: list[Any] = []

    class Nothing:
        reproduced = None

    def run(study: Any, config: Any, **_: Any) -> Any:
        seen.append(config)
        return Nothing()

    monkeypatch.setattr(verb, "run_study", run)
    return seen


@pytest.mark.parametrize("name", studies.STUDIES)
@pytest.mark.parametrize("budget", ["quick", "cpu", "gpu"])
def test_every_study_takes_its_budget_and_its_own_flags(name: str, budget: Any, chosen: list[Any]) -> None:
    config = studies.load(name).config
    assert cli.run(["study", name, "--budget", budget, "--out", "elsewhere"]) == 0
    assert chosen == [config.of_budget(budget, out=Path("elsewhere"))]


@pytest.mark.parametrize("name", studies.STUDIES)
def test_every_setting_is_explained(name: str) -> None:
    config = studies.load(name).config
    flags = open_flags_of(config)
    assert given(flags()) == {}
    for field in dataclasses.fields(flags):
        (parameter,) = field.type.__metadata__  # type: ignore[union-attr]
        assert parameter.help, f"{field.name}: write a docstring below the field"


TOGETHER: list[tuple[str, dict[str, Any], str]] = [
    ("crate-characters", {"families": ("GPT",)}, "^families: 'GPT' is none of GPT-2"),
    ("crate-characters", {"as_long": ("GPT-2",)}, "^as_long: GPT-2 is what"),
    ("crate-characters", {"adamw_rates": (), "muon_rates": ()}, "^adamw_rates, muon_rates"),
    ("crate-denoising", {"dim": 8}, "dim=8"),
    ("crate-denoising", {"rates": (1.0, 0.3)}, "the last must be 1"),
    ("crate-emergence", {"kinds": ("vit",)}, "kinds"),
    ("crate-emergence", {"side": 30}, "side"),
    ("crate-emergence", {"data": "digits"}, "data"),
    ("crate-family", {"sides": (16, 64)}, "sides"),
    ("crate-family", {"sides": (30,)}, "sides"),
    ("crate-hour", {"side": 30}, "side"),
    ("crate-hour", {"other_sides": (30,)}, "other_sides"),
    ("crate-hour", {"other_sides": (64,)}, "other_sides"),
    ("crate-hour", {"vit": "vit_nano"}, "vit='vit_nano'"),
    ("crate-text", {"late": 120, "length": 128}, "late"),
    ("crate-text", {"dim": 4, "heads": 4}, "heads"),
    ("crate-transfer", {"kinds": ("crate", "vit-49")}, "^kinds: 'vit-49' is unknown"),
    ("crate-transfer", {"longer_kinds": ("crate", "vit-49")}, "^longer_kinds: 'vit-49' is unknown"),
    ("crate-transfer", {"source": "digits"}, "targets"),
    ("demo", {"val_fraction": 1.0}, "val_fraction"),
    ("mesa-compressed", {"steps": (1,)}, "steps"),
    ("mesa-depth", {"steps": (1, 2)}, "steps"),
    ("mesa-few-shot", {"both_seeds": 9}, "both_seeds"),
    ("mesa-language", {"early": 8, "late": 256, "length": 256}, "late"),
    ("mesa-probes", {"positions": (50,)}, "positions"),
    ("platonic-brain", {"networks": ("resnet",)}, "networks"),
    ("platonic-captions", {"pairs": 20}, "at least 40"),
    ("platonic-causes", {"tasks": (1,)}, "tasks"),
    ("platonic-causes", {"widths": (8, 4)}, "widths"),
    ("platonic-implications", {"symbols": (99,)}, "symbols"),
    ("platonic-implications", {"private": (2.0,)}, "private"),
    ("platonic-implications", {"neighbours": 16}, "neigh"),
    ("platonic-pmi", {"symbols": (30,)}, "symbols"),
    ("platonic-pmi", {"noise": (1.0,)}, "noise"),
    ("platonic-pmi", {"share_of_true_pairs": 1.0}, "share_of_true_pairs"),
    ("platonic-pmi", {"neighbours": 24}, "neighbours"),
    ("platonic-samples", {"sizes": (1000, 500)}, "sizes"),
    ("platonic-vision", {"k": 2000}, "k=2000"),
    ("platonic-vision-language", {"pairs": 20}, "at least 40"),
    ("platonic-whitebox", {"k": 1000}, "k=1000"),
    ("platonic-whitebox", {"within": 1.0}, "within"),
]


@pytest.mark.parametrize(("name", "given_", "named"), TOGETHER)
def test_settings_that_do_not_go_together_are_refused_by_name(name: str, given_: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        studies.load(name).config(**given_)


def test_flags_stand_above_files_and_files_above_the_budget(tmp_path: Path, chosen: list[Any]) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("seeds: [3, 4]\nsteps: 7\nsizes: [[1, 3], [2, 4]]\nout: null\n", encoding="utf-8")
    flags = ["study", "mesa-one-step", "--budget", "quick", "--config", str(path), "--steps", "5"]
    assert cli.run(flags) == 0
    assert cli.run([*flags, "--sizes", "1", "10", "4", "10", "--only-kept"]) == 0
    one, two = chosen
    assert (one.seeds, one.steps, one.sizes, one.batch_size) == ((3, 4), 5, ((1, 3), (2, 4)), 64)
    assert (two.sizes, two.only_kept, two.out) == (((1, 10), (4, 10)), True, None)


def test_the_configuration_of_a_run_can_be_replayed(tmp_path: Path, chosen: list[Any]) -> None:
    from unrolled.harness import write_settings

    for name in ("mesa-one-step", "crate-transfer", "demo"):
        config = studies.load(name).config.of_budget("quick")
        write_settings(tmp_path / name, vars(config))
        assert yaml.safe_load((tmp_path / name / "config.yaml").read_text(encoding="utf-8"))
        assert cli.run(["study", name, "--config", str(tmp_path / name / "config.yaml")]) == 0
        assert chosen[-1] == config


def test_what_there_is_not_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for flags, word in (
        (["crate-transfer", "--fashon-dir", "x"], "--fashion-dir"),
        (["crate-transfer", "--set", "steps=3"], "a flag of its own"),
        (["mesa-one-step", "--seeds", "one"], "--seeds"),
        (["mesa-one-step", "--steps", "0"], "steps"),
        (["mesa-one-stop", "--budget", "quick"], "mesa-one-step"),
        (["mesa-one-step", "--data-dir", "x"], "--data-dir"),
    ):
        assert cli.run(["study", *flags]) == 2, flags
        assert word in capsys.readouterr().err


def test_missing_images_name_the_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # no such folder: the study stops before it computes anything, naming the flag that there is
    flags = ["study", "crate-transfer", "--data-dir", str(tmp_path), "--out", str(tmp_path / "out")]
    few = ["--kinds", "crate", "--seeds", "0"]  # each cell tries to fetch them
    assert cli.run([*flags, "--kept", str(tmp_path / "kept"), "--targets", "fashion_mnist", *few]) == 3
    assert capsys.readouterr().err.rstrip().endswith("give --fashion-dir")


def test_missing_data_are_told_in_one_sentence_with_the_last_flag() -> None:
    inner = MissingData("data_dir: /x does not exist")
    said = data_missing("cifar10", inner)
    said.__cause__ = inner
    assert str(said) == "data_dir: cifar10 was not found (/x does not exist); give data_dir="
    again = data_missing("cifar10", said, argument="fashion_dir")
    assert str(again) == "data_dir: cifar10 was not found (/x does not exist); give fashion_dir="
