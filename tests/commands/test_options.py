"""A verb's flags are the fields of one dataclass: help, config.yaml and Python say the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from cyclopts import App

from unrolled import cli
from unrolled.commands.options import flags_of, verb
from unrolled.harness import OutputFlags, flags_in_order, settings_of, write_settings
from unrolled.subjects.options import OneModelFlags, Reading


@dataclass(frozen=True, kw_only=True)
class Flags(OneModelFlags, OutputFlags):
    model: str = field(kw_only=False)
    many: tuple[int, ...] = (1, 2)
    """Several."""
    kind: Literal["a", "b"] = "a"
    seed: int = 3
    """Of something else here."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed}: give at least 0")


@verb
def look(options: Flags) -> list[Flags]:
    """Look."""
    return [options]


def parsed(*tokens: str) -> Flags:
    app = App(result_action="return_value")
    app.command(look)
    return app(["look", *tokens], exit_on_error=False, print_error=False)[0]  # type: ignore[no-any-return]


def test_arguments_come_first_then_what_is_the_verbs_own() -> None:
    names = [item.name for item in flags_in_order(Flags)]
    assert names[:3] == ["model", "many", "kind"]
    assert names.index("pretrained") < names.index("seed") < names.index("out"), "where it was first declared"


def test_a_verb_gets_its_dataclass_from_flags_and_from_python() -> None:
    found = parsed("m", "--many", "4", "5", "--kind", "b", "--model-args.a", "1", "--json")
    assert type(found) is Flags
    assert found == Flags("m", many=(4, 5), kind="b", model_args={"a": "1"}, json=True)
    assert parsed("--model", "m") == Flags("m") == look(Flags("m"))[0]
    with pytest.raises(ValueError, match="--seed -1: give at least 0"):
        parsed("m", "--seed", "-1")


def test_help_is_what_the_field_says_here_or_where_it_comes_from() -> None:
    hints = flags_of(Flags).__annotations__

    def said(name: str) -> str:
        return next(each.help for each in hints[name].__metadata__ if each.help)

    assert said("seed") == "Of something else here."
    assert said("pretrained").startswith("Load the weights that timm has")


@pytest.mark.parametrize("name", sorted(cli.VERBS))
def test_help_shows_every_flag(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.run([name, "--help"]) == 0
    text = capsys.readouterr().out
    arguments = cli.build([name])[name].assemble_argument_collection()
    shown = [argument.name for argument in arguments if argument.show]
    assert [flag for flag in shown if f"{flag} " not in text] == []
    assert shown


def test_settings_are_all_flags_but_those_of_the_output(tmp_path: Path) -> None:
    options = Flags("m", weights=Path("w"), out=tmp_path, quiet=True)
    settings = settings_of(options)
    assert not {"out", "json", "quiet"} & set(settings)
    write_settings(tmp_path, settings)
    kept: dict[str, Any] = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert list(kept) == [item.name for item in flags_in_order(Flags) if item.name in kept]
    assert (kept["model"], kept["many"], kept["weights"], kept["model_args"]) == ("m", [1, 2], "w", {})


def test_a_reading_takes_what_a_verb_knows_of_it() -> None:
    reading = Reading.of(Flags("m", pretrained=True, seed=5), model="n", layers=("norm",))
    assert (reading.model, reading.pretrained, reading.seed, reading.layers) == ("n", True, 5, ("norm",))
    assert reading.batch_size == 64


def test_colours_are_enough_for_the_regions_that_may_be_asked_for() -> None:
    from unrolled.commands.segment.options import MOST
    from unrolled.commands.segment.overlays import COLOURS

    assert len(COLOURS) == MOST


def test_a_file_of_the_verb_that_segment_was_says_which_it_is_now(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    former = {"images": [], "model": "vit_nano_patch4_32", "method": ["pca"], "refine": False, "frames": 100,
              "eval": "masks", "measure": [], "confidence": "order", "data_dir": "gone", "limit": 5}  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(former))
    assert cli.run(["segment", "x.png", "--config", str(path)]) == 2
    assert f"unrolled segment-eval --config {path}" in capsys.readouterr().err
    assert cli.run(["segment-eval", "--config", str(path), "--quiet"]) == 3
    assert "gone" in capsys.readouterr().err.splitlines()[-1]
    path.write_text(yaml.safe_dump({**former, "eval": None, "images": [str(tmp_path / "no.png")]}))
    assert cli.run(["segment", "--config", str(path), "--quiet"]) in (2, 3)
    assert "no.png" in capsys.readouterr().err
