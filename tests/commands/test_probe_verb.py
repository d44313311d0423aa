from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from unrolled import cli
from unrolled.commands.probe import classify, default_pools
from unrolled.data import eval_transform, model_input, open_images
from unrolled.models import MaskedAutoencoder, create_model
from unrolled.subjects.models import encoder_of, open_body
from unrolled.subjects.options import Reading

FEW = ["--samples", "240", "--test-samples", "100", "--quiet"]


def probe(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert cli.run(["probe", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_layer_is_probed_beside_the_untrained_control(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["crate_nano_patch2_8", "--method", "linear", "knn", "--layers", "block00", "block05", "head", *FEW]
    found = probe(capsys, *flags, "--out", str(tmp_path))
    assert (found["train"], found["test"], found["classes"]) == (240, 100, 10)
    places = {(r["layer"], r["pooling"]) for r in found["probes"]}
    assert places == {*((f"block0{i}", pool) for i in (0, 5) for pool in ("cls", "mean")), ("head", "as it is")}
    methods = {"linear", "knn 20, weighted", "knn 20, plain"}
    assert {r["method"] for r in found["probes"]} == methods
    assert len(found["probes"]) == 2 * 5 * 3
    for record in found["probes"]:
        assert 0 <= record["low"] <= record["accuracy"] <= record["high"] <= 1
    # random features of digits carry the class, and the best probe is named by the held-out part
    best = found["best"]["linear"]
    assert best["accuracy"] > 0.5 > 2 * found["chance"]
    assert best["held_out"] == max(
        r["held_out"] for r in found["probes"] if (r["who"], r["method"]) == ("model", "linear")
    )
    page = (tmp_path / "report.html").read_text()
    assert "fresh weights" in page
    assert "Only a part of the images" in page
    assert not found["reused_features"]

    again = probe(
        capsys, *flags, "--method", "ridge", "--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path)
    )
    assert again["reused_features"]
    assert {r["method"] for r in again["probes"]} >= {"ridge"}


def test_without_a_control_it_is_said_to_be_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["crate_nano_patch2_8", "--method", "ridge", "--pool", "mean", "--layers", "block01", "--no-control", *FEW]
    assert cli.run(["probe", *flags, "--out", str(tmp_path)]) == 0
    assert "not run" in capsys.readouterr().out
    assert "not run" in (tmp_path / "report.html").read_text()


def test_a_masked_autoencoder_is_probed_on_whole_images(tmp_path: Path) -> None:
    network = MaskedAutoencoder(
        image_size=8, patch_size=2, channels=1, dim=16, depth=2, heads=2, dim_head=8, decoder_depth=1
    )
    network.pretrained_cfg = {"input_size": (1, 8, 8), "mean": (0.25,), "std": (0.5,)}
    encoder = encoder_of(network)
    assert default_pools(encoder) == ("cls", "mean")
    assert model_input(encoder)["mean"] == (0.25,)
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(encoder(images), encoder(images))
        # all patches in their order: what the autoencoder's own encoder makes of them
        x = network.patch_embed(images).flatten(1, 2)
        tokens = torch.cat([network.cls_token.expand(3, -1, -1), x], 1) + network.pos_embed
        expected = network.norm(network.blocks(tokens))
        assert torch.allclose(encoder.forward_features(images), expected, atol=1e-6)


def test_weights_with_another_number_of_classes_are_probed(tmp_path: Path) -> None:
    body = create_model("crate_nano_patch2_8", num_classes=7)
    torch.save(body.state_dict(), tmp_path / "seven.pt")
    weights = tmp_path / "seven.pt"
    found = open_body(Reading(model="crate_nano_patch2_8", weights=weights, model_args={"num_classes": 10}))
    images = torch.randn(2, 1, 8, 8) if found.patch_embed.proj.in_channels == 1 else torch.randn(2, 3, 8, 8)  # type: ignore[union-attr]
    with torch.no_grad():
        assert torch.equal(found.forward_features(images), body.eval().forward_features(images))  # type: ignore[operator]


def test_a_model_without_a_class_token_is_pooled_by_the_mean() -> None:
    assert default_pools(create_model("resnet10t")) == ("mean",)


def test_probes_of_pixels_beat_chance_and_shuffled_labels_do_not() -> None:
    train, test = (open_images("digits", split) for split in ("train", "test"))
    transform = eval_transform((1, 8, 8), [0.5], [0.5])

    def pixels(source: Any, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = [source.load(i) for i in range(count)]
        return torch.stack([transform(p).flatten() for p, _ in pairs]), torch.tensor([label for _, label in pairs])

    (x, y), (queries, truth) = pixels(train, 400), pixels(test, 150)
    for score in classify(x, y, queries, truth, methods=("linear", "knn", "ridge")):
        assert score.accuracy > 0.85, score.method
        assert abs(score.held_out - score.accuracy) < 0.1
    shuffled = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(1))]
    for score in classify(x, shuffled, queries, truth, methods=("knn", "ridge")):
        assert score.accuracy < 0.3, score.method


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--samples", "0"], 2, "--samples"),
        (["--layers", "blok*"], 2, "block"),
        (["--method", "svm"], 2, "method"),
        (["--data", "fashion_mnist", "--data-dir", "absent", "--samples", "10"], 3, "fashion_mnist"),
    ],
)
def test_bad_input(
    flags: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("urllib.request.urlopen", _no_network)
    assert cli.run(["probe", "crate_nano_patch2_8", *flags, "--quiet", "--out", str(tmp_path / "out")]) == code
    assert said in capsys.readouterr().err


def _no_network(*_: object, **__: object) -> None:
    raise OSError("no network")
