"""`unrolled extract` and `unrolled align` as a user meets them, on a few digits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from unrolled import cli
from unrolled.data import open_images
from unrolled.instruments import FeatureSet

CRATE, VIT = "crate_nano_patch2_8", "vit_nano_patch2_8"


def extract(folder: Path, *flags: str, model: str = CRATE) -> int:
    return cli.run(["extract", model, "--images", "40", "--quiet", "--out", str(folder), *flags])


def arrays(folder: Path, n: int = 60) -> tuple[Path, Path, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(n, 8)).astype(np.float32)
    y = x @ generator.normal(size=(8, 5)).astype(np.float32)
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    return folder / "x.npy", folder / "y.npy", x, y


# --- extract


def test_extract_keeps_features_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert extract(tmp_path, "--json") == 0
    first = json.loads(capsys.readouterr().out)
    found = FeatureSet.load(tmp_path)
    assert (found.samples, len(found), found.pooling) == (40, 6, "mean")
    assert found.model == CRATE
    assert found.data.startswith("digits (test), 40 of 360 images")
    source = open_images("digits", "test")
    assert found.indices is not None
    assert found.labels is not None
    assert found.indices.tolist() == np.linspace(0, 359, 40).round().astype(int).tolist(), "rows of the split"
    assert found.labels.tolist() == [source.load(int(row))[1] for row in found.indices]
    assert extract(tmp_path, "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert (first["reused"], again["reused"]) == (False, True)
    assert again["checksum"] == first["checksum"] == found.checksum
    assert extract(tmp_path, "--config", str(tmp_path / "config.yaml"), "--pool", "cls", "--json") == 0
    assert json.loads(capsys.readouterr().out)["reused"] is False
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["pool"] == "cls"


def test_extract_mends_a_damaged_folder(tmp_path: Path) -> None:
    assert extract(tmp_path) == 0
    path = tmp_path / "features.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert extract(tmp_path) == 0
    assert FeatureSet.load(tmp_path).samples == 40


def test_extract_of_several_patterns(tmp_path: Path) -> None:
    assert extract(tmp_path, "--layers", "block0[12]/half", "--layers", "norm", model=VIT) == 0
    assert list(FeatureSet.load(tmp_path)) == ["block01/half", "block02/half", "norm"]


def test_a_pattern_without_a_match_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert extract(tmp_path, "--layers", "blok*") == 2
    assert "block05" in capsys.readouterr().err


# --- align


def test_align_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--images", "40", "--k", "5", "--draws", "20", "--resamples", "10", "--quiet", "--out", str(tmp_path)]
    assert cli.run(["align", CRATE, VIT, "--metric", "mutual_knn", "--metric", "cka", "--held-out", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["metric", "score", "chance", "p"]
    assert [line.split()[0] for line in lines[1:]] == ["mutual_knn", "cka", "p:", "mutual_knn:", "cka:"]
    assert all("block0" in line for line in lines[1:3])
    assert lines[3] == "p: 20 relabellings"
    assert all("along A from" in line for line in lines[4:])  # the best pair is not all there is
    results = json.loads((tmp_path / "report.json").read_text())["results"]
    assert results["n"] == 40
    assert np.shape(results["comparisons"][0]["scores"]) == (6, 6)
    page = (tmp_path / "report.html").read_text()
    assert page.count('class="fig"') >= 2  # a map of every metric
    assert "judged on the other" in page
    assert cli.run(["align", CRATE, VIT, "--config", str(tmp_path / "config.yaml"), *flags, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert [each["score"] for each in again["comparisons"]] == [each["score"] for each in results["comparisons"]]


def test_layers_of_each_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--images", "40", "--draws", "5", "--resamples", "0", "--json", "--quiet"]
    flags += ["--layers", "layer*", "--layers-b", "norm", "--out", str(tmp_path)]
    assert cli.run(["align", "timm:resnet10t", "vit_nano_patch4_32", *flags, "--image-size", "32"]) == 0
    found = json.loads(capsys.readouterr().out)["comparisons"][0]
    assert found["layers"] == [["layer1", "layer2", "layer3", "layer4"], ["norm"]]


def test_align_arrays_agrees_with_the_library(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from unrolled import alignment

    a, b, x, y = arrays(tmp_path)
    save_file({"one": torch.from_numpy(x), "two": torch.randn(60, 3)}, tmp_path / "x.safetensors")
    flags = ["--draws", "50", "--json", "--quiet", "--out", str(tmp_path / "out")]
    for first in (a, tmp_path / "x.safetensors"):
        assert cli.run(["align", str(first), str(b), *flags]) == 0
        found = json.loads(capsys.readouterr().out)["comparisons"][0]
        assert found["score"] == pytest.approx(alignment.mutual_knn(x, y, k=10))
        assert found["p_value"] == pytest.approx(1 / 51)
        assert found["interval"][0] < found["score"] < found["interval"][1]
        assert found["best"] == ["x" if first == a else "one", "y"]
    np.save(tmp_path / "stack.npy", np.stack([x, x[::-1]], 1))
    assert cli.run(["align", str(tmp_path / "stack.npy"), str(a), "--null", "moments", *flags]) == 0
    found = json.loads(capsys.readouterr().out)["comparisons"][0]
    assert found["best"] == ["layer00", "x"]
    assert found["p_value"] < 1e-6
    assert "Pearson III" in found["p_method"]
    assert found["score"] == pytest.approx(1)


def test_align_a_feature_folder_with_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert extract(tmp_path / "f") == 0
    flags = ["--images", "40", "--k", "3", "--draws", "10", "--quiet", "--out", str(tmp_path / "out")]
    assert cli.run(["align", str(tmp_path / "f"), VIT, *flags]) == 0
    assert extract(tmp_path / "g", "--split", "train", model=VIT) == 0
    capsys.readouterr()
    assert cli.run(["align", str(tmp_path / "f"), str(tmp_path / "g"), *flags]) == 2
    assert "not paired" in capsys.readouterr().err


def test_metrics_are_taken_with_hyphens_and_have_their_neighbours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, _, _ = arrays(tmp_path)
    flags = ["--metric", "Mutual-kNN", "--k", "3", "--draws", "5", "--resamples", "0", "--out", str(tmp_path / "out")]
    assert cli.run(["align", str(a), str(b), *flags]) == 0
    assert "\nmutual_knn  " in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "report.json").read_text())["results"]["comparisons"][0]
    assert found["metric"] == "MutualKNN(k=3)"


def test_a_metric_that_cannot_be_computed_names_side_and_layer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, _, _, _ = arrays(tmp_path)
    np.savez(tmp_path / "flat.npz", one=np.ones((60, 3), np.float32), two=np.ones((60, 2), np.float32))
    np.savez(tmp_path / "even.npz", one=np.eye(60, dtype=np.float32))  # all rows equally far from each other
    flags = ["--quiet", "--draws", "5", "--out", str(tmp_path / "out")]
    assert cli.run(["align", str(a), str(tmp_path / "flat.npz"), *flags]) == 2
    assert f"error: B ({tmp_path}/flat.npz): all layers have zero variance (one, two)" in capsys.readouterr().err
    assert cli.run(["align", str(tmp_path / "even.npz"), str(a), "--metric", "rsa", *flags]) == 2
    assert f"error: A ({tmp_path}/even.npz): one has no similarity structure" in capsys.readouterr().err
    np.save(tmp_path / "single.npy", np.arange(60.0)[:, None])
    assert cli.run(["align", str(a), str(tmp_path / "single.npy"), "--metric", "rsa", *flags]) == 2
    assert f"error: B ({tmp_path}/single.npy): single has 1 column" in capsys.readouterr().err


def test_bad_features_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, _, y = arrays(tmp_path)

    def refused(first: Path, second: Path, *flags: str, code: int = 2) -> str:
        assert cli.run(["align", str(first), str(second), "--quiet", "--out", str(tmp_path / "o"), *flags]) == code
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        return message

    np.save(tmp_path / "short.npy", y[:-3])
    assert "60 samples" in (message := refused(a, tmp_path / "short.npy"))
    assert "57" in message
    y[[4, 9]] = np.nan
    np.save(tmp_path / "nan.npy", y)
    assert "(4, 9)" in (message := refused(a, tmp_path / "nan.npy"))
    assert "nan.npy" in message
    assert "--k 60" in refused(a, b, "--k", "60")
    assert "--draws 0" in refused(a, b, "--draws", "0")
    assert "mutual_knn" in refused(a, b, "--metric", "mutual_nn")
    np.save(tmp_path / "object.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    assert "pickled" in refused(a, tmp_path / "object.npy", code=1)
    (tmp_path / "cut.npy").write_bytes(a.read_bytes()[:-50])
    assert "cut.npy is truncated" in refused(a, tmp_path / "cut.npy", code=1)
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00\x00")
    assert "cut.safetensors: truncated" in refused(a, tmp_path / "cut.safetensors", code=1)
    assert "no such file" in refused(a, tmp_path / "absent.npy", code=3)
    assert not (tmp_path / "o").exists()


def test_many_samples_are_estimated_and_other_metrics_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from unrolled.alignment import scale as alignment_scale
    from unrolled.instruments.features import files as feature_files

    monkeypatch.setattr(alignment_scale, "LARGE", 50)
    monkeypatch.setattr(feature_files, "_MAPPED", 1)
    x, y, *_ = arrays(tmp_path, n=1200)
    out = ["--out", str(tmp_path / "out"), "--quiet"]
    assert cli.run(["align", str(x), str(y), "--metric", "mutual_knn", "--metric", "unbiased_cka", *out, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["comparisons"]
    assert "sampled queries" in first["metric"]
    assert first["p_value"] < 0.01
    assert second["p_value"] is None
    assert "over the choice of queries alone" in (tmp_path / "out" / "report.html").read_text()
    assert cli.run(["align", str(x), str(y), "--metric", "svcca", *out]) == 2
    assert "take mutual_knn or unbiased_cka" in capsys.readouterr().err
    assert cli.run(["align", str(x), str(y), "--held-out", *out]) == 2
    assert "--held-out: needs at most 50 samples" in capsys.readouterr().err


@pytest.mark.parametrize("flag", [["--held-out"], ["--side", "text"], ["--layers-b", "norm"], ["--captions", "2"]])
def test_flags_for_two_models_are_refused_beside_a_grid(flag: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["align-grid", "models.yaml", *flag]) == 2
    assert f"Unknown option: {flag[0]}" in capsys.readouterr().err


def test_help_names_every_metric(capsys: pytest.CaptureFixture[str]) -> None:
    from unrolled.alignment import METRICS

    assert cli.run(["align", "--help"]) == 0
    words = capsys.readouterr().out.replace(",", " ").replace(".", " ").split()
    assert {*METRICS, "unbiased_cka"} <= set(words)


def test_the_default_folder_drops_the_suffix_of_both_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays(tmp_path)
    monkeypatch.chdir(tmp_path)
    flags = ["--null", "moments", "--resamples", "0", "--quiet"]
    assert cli.run(["align", "x.npy", "y.npy", *flags]) == 0
    assert (tmp_path / "runs" / "align-x-y" / "report.html").is_file()


def test_layers_are_named_after_one_flag_and_a_masked_autoencoder_is_shown_whole_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert extract(tmp_path / "layers", "--layers", "block01", "norm") == 0
    assert len(FeatureSet.load(tmp_path / "layers")) == 2
    capsys.readouterr()
    runs = []
    for name in ("one", "two"):
        out = str(tmp_path / name)
        flags = ["--images", "40", "--layers", "norm", "--quiet", "--json", "--out", out]
        assert (
            cli.run(["align", "crate_mae_nano_patch4_32", "crate_mae_nano_patch4_32", "--data", "digits", *flags]) == 0
        )
        runs.append(json.loads(capsys.readouterr().out))
    one, two = ([each["score"] for each in run["comparisons"]] for run in runs)
    assert one == two


def test_a_file_that_is_called_like_an_argument_keeps_its_name() -> None:
    from unrolled.commands.align.dependence import noted

    sides = {"features_a": "A (m)", "features_b": "B (features_a.npy)"}
    words = "features_b: features_a.npy has 1 column; features_a has 2 and runs/features_a-2 none"
    with (
        pytest.raises(ValueError, match=r"^B \(features_a\.npy\): features_a\.npy has 1 column; A \(m\) has 2 and ru"),
        noted([], sides, quiet=True),
    ):
        raise ValueError(words)
