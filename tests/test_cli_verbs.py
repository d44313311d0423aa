"""What the verbs of the command line do, in this process; one of them in a real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unrolled import cli
from unrolled.catalogue import shipped_text
from unrolled.subjects.runs import data_of

ROOT = Path(__file__).resolve().parents[1]


# --- verbs that look


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["list"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "6,090,856" in rows["crate_tiny_patch16_224"]
    assert "2306.01129" in rows["crate_tiny_patch16_224"]
    assert cli.run(["list", "crate_large*", "--json"]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert {model["name"] for model in models} == {"crate_large_patch16_224", "crate_large_patch8_224"}
    assert models[0]["parameters"] == 77641192


def test_list_has_the_language_models(capsys: pytest.CaptureFixture[str]) -> None:
    from unrolled.models.sequence_config import ENCODERS, LANGUAGE_MODELS

    assert cli.run(["list"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert {*LANGUAGE_MODELS, *ENCODERS} < rows.keys()
    assert rows["crate_gpt_base"].split()[1:3] == ["60,665,088", "21,281,280"]  # without the vocabulary of GPT-2
    assert rows["crate_nano_patch2_8"].split()[2] == "-"
    assert cli.run(["list", "*gpt*", "--json"]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert {model["name"] for model in models} == {name for name in LANGUAGE_MODELS if "gpt" in name}
    assert all(model["source"].startswith("text: ") for model in models)


def test_list_says_where_the_card_of_weights_that_ship_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["list", "*.*", "--json"]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert {"mesanet_nano.bytes", "crate_nano_patch4_32.cifar10"} < {model["name"] for model in models}
    for model in models:
        assert "icence" in Path(model["card"]).read_text(encoding="utf-8"), model["name"]
    assert cli.run(["list", "mesanet_nano.bytes"]) == 0
    assert "card of mesanet_nano.bytes: " in capsys.readouterr().out
    assert cli.run(["list", "mesanet_*"]) == 0
    assert "card of" not in capsys.readouterr().out  # names without weights have none


def test_list_compares_models_of_images_only(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("crate_gpt_nano", "mesanet_nano.bytes", str(shipped_text("mesanet_nano.bytes"))):
        assert cli.run(["list", "--compare", "vit_nano_patch2_8", name]) == 2
        assert f"--compare: {name}: a language model; only models of images" in capsys.readouterr().err


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "datasets" else real(name, *rest)
    )
    assert cli.run(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "torch threads" in text
    assert "pip install 'unrolled[hf]'" in text
    assert cli.run(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["machine"]["device used"]
    assert facts["software"]["torch"]


# --- studies


@pytest.fixture
def fake_study(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A study that takes no time and misses its target; its configurations are recorded."""
    from unrolled import studies
    from unrolled.studies.claim import Claim
    from unrolled.studies.demo import DemoConfig
    from unrolled.studies.study import Study

    class Slow(Study):
        def run(self, config: Any, *, on_progress: Any = None) -> Any:
            seen.append(config)
            if on_progress is not None:
                on_progress("half way")
            return super().run(config)

    seen: list[Any] = []
    claim = Claim(
        statement="It works", source="nobody", published="1.0", value=lambda r, c: 0.5, low=1.0, outside="0", point=True
    )
    study = Slow(
        name="demo",
        title="A study",
        question="Does it work?",
        citation="nobody",
        config=DemoConfig,
        cells=lambda config: (),
        claims=(claim,),
        report=lambda report, config, results: report.headline("It does not work."),
    )
    real = studies.load
    monkeypatch.setattr(studies, "load", lambda name: study if name == "demo" else real(name))
    return seen


def test_a_study_outside_its_tolerance_exits_with_4(
    fake_study: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["study"]) == 0
    assert "demo" in capsys.readouterr().out
    assert cli.run(["study", "demo", "--out", str(tmp_path)]) == 4
    captured = capsys.readouterr()
    assert "NOT reproduced" in captured.out
    assert captured.err.splitlines() == ["half way", f"report: {tmp_path / 'report.html'}"]
    assert cli.run(["study", "demo", "--budget", "quick", "--out", str(tmp_path), "--quiet", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert json.loads(captured.out)["reproduced"] is None  # too small to judge
    assert json.loads(captured.out)["notice"].startswith("Quick budget")
    assert json.loads((tmp_path / "report.json").read_text())["notice"].startswith("Quick budget")
    page = (tmp_path / "report.html").read_text()
    assert 0 < page.index('class="notice"') < page.index("<h1>")
    assert cli.run(["study", "demo", "--budget", "quick", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("Quick budget: checks that the study runs; too small")
    assert fake_study[1].epochs < fake_study[0].epochs
    assert cli.run(["study", "dmo"]) == 2
    assert "'demo'" in capsys.readouterr().err


def test_demo_takes_flags_and_replays_its_configuration(
    fake_study: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["demo", "--seeds", "0", "4", "--epochs", "3", "--out", str(tmp_path)]) == 0
    assert cli.run(["demo", "--config", str(tmp_path / "config.yaml")]) == 0
    first, second = fake_study
    assert first == second
    assert first.seeds == (0, 4)
    assert first.out == tmp_path


# --- verbs that compute, each on a few digits


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training run of a few steps."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    flags = ["--max-steps", "3", "--batch-size", "32", "--log-every", "1", "--quiet", "--model-args.step-size", "0.2"]
    assert cli.run(["train", *flags, "--out", str(folder)]) == 0
    return folder


def test_train_leaves_a_run_that_says_everything(run_folder: Path) -> None:
    for name in ("config.yaml", "metrics.jsonl", "report.html", "report.json", "model/model.safetensors"):
        assert (run_folder / name).is_file(), name
    report = json.loads((run_folder / "report.json").read_text())
    assert report["results"]["test"]["images"] == 360
    assert report["results"]["test"]["step"] == 3
    assert report["provenance"]["config"]["model_args"] == {"step_size": 0.2}


def test_the_configuration_of_a_run_is_replayed(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--config", str(run_folder / "config.yaml"), "--out", str(tmp_path), "--json"]
    assert cli.run(["train", *flags]) == 0
    captured = capsys.readouterr()
    assert all(line.startswith("note: ") for line in captured.err.splitlines())  # the run was quiet
    facts = json.loads(captured.out)
    first = json.loads((run_folder / "report.json").read_text())["results"]
    assert facts["test"]["loss"] == first["test"]["loss"]
    assert facts["report"] == str(tmp_path / "report.html")


def test_eval_of_a_run_repeats_its_test_score(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["eval", str(run_folder), "--out", str(tmp_path / "a"), "--json", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    scores = json.loads(captured.out)
    first = json.loads((run_folder / "report.json").read_text())["results"]["test"]
    assert scores["accuracy"] == pytest.approx(first["accuracy"])
    assert scores["loss"] == pytest.approx(first["loss"], rel=1e-5)
    for name in ("config.yaml", "report.html", "report.json"):
        assert (tmp_path / "a" / name).is_file(), name
    again = ["eval", "--config", str(tmp_path / "a" / "config.yaml"), "--out", str(tmp_path / "b"), "--json", "--quiet"]
    assert cli.run(again) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(scores["loss"])


def test_eval_takes_weights_for_a_registered_name(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model-args.step-size", "0.2", "--weights", str(run_folder), "--out", str(tmp_path), "--json"]
    assert cli.run(["eval", "crate_nano_patch2_8", *flags]) == 0
    first = json.loads((run_folder / "report.json").read_text())["results"]["test"]
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(first["loss"], rel=1e-5)
    assert cli.run(["eval", "crate_nano_patch2_8", "--model-args.num-classes", "7", *flags]) == 2
    assert "head does not fit" in capsys.readouterr().err


def test_a_run_is_measured_on_the_split_it_was_not_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    flags = ["--split-seed", "3", "--val-fraction", "0.2", "--max-steps", "3", "--batch-size", "32", "--quiet"]
    assert cli.run(["train", *flags, "--out", str(run), "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)
    for model in ([str(run)], ["crate_nano_patch2_8", "--weights", str(run)]):
        for split, expected in (("test", trained["test"]), ("val", trained["validation"][-1])):
            out = ["--out", str(tmp_path / "eval"), "--json", "--quiet"]
            assert cli.run(["eval", *model, "--split", split, *out]) == 0
            scores = json.loads(capsys.readouterr().out)
            assert scores["images"] == expected["images"]
            assert scores["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    own = data_of(str(run))
    assert (own.data, own.split_seed, own.val_fraction) == ("digits", 3, 0.2)
    assert data_of(str(run), data="cifar10").split_seed == 0


def test_trace_shows_every_layer_beside_the_control(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--images", "20", "--out", str(tmp_path), "--quiet"]
    assert cli.run(["trace", str(run_folder), *flags]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["layer", "R", "R"]
    assert [row.split()[0] for row in rows] == list("012345")
    assert (tmp_path / "report.html").is_file()
    assert cli.run(["trace", "--config", str(tmp_path / "config.yaml"), "--json", *flags]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["images"] == 20
    assert len(result["layers"]) == len(result["control"]) == 6
    assert f"{result['layers'][0]['rate']:.4g}" == rows[0].split()[1]


@pytest.mark.parametrize(
    ("arguments", "code", "fragment"),
    [
        (["trace", "crate_nano_patch2_9"], 2, "crate_nano_patch2_8"),
        (["trace", "runs/absent"], 3, "runs/absent"),
        (["trace", "crate_nano_patch2_8", "--data", "digit"], 2, "digits"),
        (["trace", "crate_nano_patch2_8", "--images", "0"], 2, "--images"),
        (["eval", "crate_nano_patch2_8", "--model-args.stepsize", "1"], 2, "stepsize"),
        (["eval", "crate_nano_patch2_8", "--weights", "absent.pth"], 3, "absent.pth"),
        (["eval", "crate_nano_patch2_8", "--device", "mps"], 2, "--device"),
        (["train", "--model", "crate_nano_patch2_9", "--out", "OUT"], 2, "crate_nano_patch2_8"),
        (["train", "--data", "digit", "--out", "OUT"], 2, "digits"),
        (["train", "--data", "folder", "--data-dir", "absent", "--out", "OUT"], 3, "absent"),
        (["train", "--resume", "absent", "--out", "OUT"], 3, "no checkpoint at absent"),
        (["finetune", "--out", "OUT"], 2, "weights"),
        (["convert", "absent.pth", "OUT"], 3, "absent.pth"),
    ],
)
def test_what_is_missing_or_unknown_is_named(
    arguments: list[str], code: int, fragment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([str(tmp_path / "out") if word == "OUT" else word for word in arguments]) == code
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ")
    assert fragment in message


def test_convert(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = shared / "golden" / "crate_cls.pth.tar"
    assert cli.run(["convert", str(checkpoint), str(tmp_path), "--json"]) == 2
    assert capsys.readouterr().err.rstrip().endswith("; give --heads")
    assert cli.run(["convert", str(checkpoint), str(tmp_path), "--heads", "4", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == 32650
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", "SHA256SUMS"}
    assert cli.run(["convert", str(checkpoint), str(tmp_path), "--heads", "4"]) == 2
    assert "--force" in capsys.readouterr().err
    assert cli.run(["eval", str(tmp_path), "--out", str(tmp_path / "eval"), "--quiet"]) == 0


def test_only_who_types_force_throws_a_run_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = {"data": "digits", "model": "crate_nano_patch2_8", "max_steps": 1, "out": str(tmp_path / "out")}
    (tmp_path / "theirs.yaml").write_text(json.dumps({**wanted, "force": True}))
    command = ["train", "--config", str(tmp_path / "theirs.yaml"), "--quiet"]
    assert cli.run(command) == 0
    before = (tmp_path / "out" / "metrics.jsonl").read_text()
    assert cli.run(command) == 2
    assert "--force" in capsys.readouterr().err
    assert (tmp_path / "out" / "metrics.jsonl").read_text() == before
    assert cli.run([*command, "--force"]) == 0
