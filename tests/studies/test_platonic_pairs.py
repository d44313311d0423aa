"""The studies of captioned photos: known agreement is found, chance is told apart, and reports say what was not run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unrolled import studies
from unrolled.data.pairs import PairSource
from unrolled.errors import MissingData
from unrolled.studies import platonic_captions, platonic_features, platonic_vision_language
from unrolled.studies.platonic_features import PairFeatures, damaged, drawn_anew
from unrolled.studies.platonic_vision_language import compare_pair

FAST: dict[str, Any] = {"pairs": 120, "draws": 40, "resamples": 10}


class MadeUp:
    """Random features that share a hidden cause where the models are trained; stands in for photos and captions."""

    def __init__(self, data_dir: Path, n: int = 120) -> None:
        self.cause = torch.randn(n, 6, generator=torch.Generator().manual_seed(0))
        self.data_dir, self.ran = data_dir, 0

    def __len__(self) -> int:
        return len(self.cause)

    def features(self, spec: str, noise: float) -> Tensor:
        self.ran += 1
        generator = torch.Generator().manual_seed(sum(map(ord, spec)))
        mixed = self.cause @ torch.randn(6, 12, generator=generator)
        return mixed + noise * torch.randn(len(self), 12, generator=generator) * mixed.std()

    def images(self, spec: str, *, untrained: int | None = None) -> dict[str, Tensor]:
        if spec == "hf:absent":
            raise MissingData("no network")
        noise = {"given:efficientnet_lite0": 0.2, "given:mobilenet_v1_075": 0.5, "given:tiny_darknet": 0.9}.get(
            spec, 1.6
        )
        last = self.features(spec, 50.0 if untrained is not None else noise)
        return {"first": self.features(spec + "0", 50.0), "last": last}

    def captions(self, spec: str, *, untrained: int | None = None, damage: float = 0.0) -> dict[str, Tensor]:
        each = self.features(spec, 50.0 if untrained is not None else 0.3 + 5 * damage)
        return {"last": torch.stack([each] * 3, 1)}

    def variant(self, spec: str, *, untrained: int | None = None, damage: float = 0.0) -> nn.Module:
        return Speaker(sharp=0.0 if untrained is not None else 4.0 - damage)

    def tokenizer(self, spec: str) -> Any:
        return Letters()


class Speaker(nn.Module):
    """Expects the letter after the one it read; the sharper, the surer."""

    def __init__(self, *, sharp: float) -> None:
        super().__init__()
        self.sharp = nn.Parameter(torch.tensor(sharp))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        logits = self.sharp * nn.functional.one_hot((input_ids + 1) % 27, 27).float()
        return type("Output", (), {"logits": logits})()


class Letters:
    """a to z are 0 to 25, and 26 begins a text."""

    bos_id = 26

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        return [self.bos_id] * bos + [ord(character) - 97 for character in text]


def vision_language(tmp_path: Path, **overrides: Any) -> tuple[Any, MadeUp]:
    from unrolled.studies.platonic_vision_language_report import make_report

    (tmp_path / "text").mkdir(exist_ok=True)
    (tmp_path / "text" / "wikitext2_test.txt").write_text("abcdefghijklmnopqrstuvwxyz" * 20)
    config = platonic_vision_language.Config(**{**FAST, "out": tmp_path / "out", **overrides})
    source = MadeUp(tmp_path)
    found = platonic_vision_language.measure(config, source, lambda line: None)  # type: ignore[arg-type]
    return make_report(config, found, 0.0), source


def test_made_up_features_give_the_order_that_was_put_in(tmp_path: Path) -> None:
    report, _ = vision_language(tmp_path)
    claims = {claim.statement: claim for claim in report.claims}
    assert claims[platonic_vision_language.VISION.statement].reproduced
    assert claims[platonic_vision_language.LANGUAGE.statement].reproduced
    assert claims[platonic_vision_language.UNTRAINED.statement].reproduced
    assert claims[platonic_vision_language.REFERENCES[0].statement].measured.startswith("not run")
    cells = report.results["cells"]
    assert len(cells) == 12 + 2 + 6
    assert all(cell["significant"] for cell in cells if cell["image"] == "given:mobilenet_v1_075")
    assert not any(cell["significant"] for cell in cells if "untrained" in (cell["image_state"], cell["text_state"]))
    assert all(abs(cell["last"]["mutual_knn"]["chance"] - 10 / 119) < 0.02 for cell in cells)
    assert "not run" in report.to_html()


def test_a_second_run_takes_its_cells_from_the_first(tmp_path: Path) -> None:
    report, _ = vision_language(tmp_path, images=("given:efficientnet_lite0",), texts=("given:minilm",), damages=())
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").iterdir()}
    again, _ = vision_language(tmp_path, images=("given:efficientnet_lite0",), texts=("given:minilm",), damages=())
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").iterdir()}
    assert json.dumps(again.results, default=str) == json.dumps(report.results, default=str)


def test_models_that_cannot_be_had_are_not_run(tmp_path: Path) -> None:
    report, _ = vision_language(
        tmp_path, images=("given:efficientnet_lite0",), more_images=("hf:absent",), untrained_images=(),
        texts=("given:minilm",), damages=(),
    )  # fmt: skip
    assert report.results["not_run"] == {"hf:absent": "no network"}
    assert "no network" in report.to_html()


def test_no_agreement_is_not_found_where_there_is_none() -> None:
    config = platonic_vision_language.Config(**FAST)
    left, right = ({"a": torch.randn(120, 8), "b": torch.randn(120, 8)} for _ in range(2))
    found = compare_pair(config, left, right)
    assert found["best"]["p_value"] > 0.02
    assert abs(found["last"]["unbiased_cka"]["score"]) < 0.1


@pytest.mark.parametrize("name", ["platonic-vision-language", "platonic-captions"])
def test_missing_data_says_which_folder(name: str, tmp_path: Path) -> None:
    study = studies.load(name)
    config = study.config.of_budget("quick", data_dir=tmp_path / "nowhere", out=tmp_path)
    with pytest.raises(MissingData, match="data_dir: there is no folder"):
        study.run(config)


def test_settings_that_make_no_sense_are_refused() -> None:
    for module in (platonic_vision_language, platonic_captions):
        with pytest.raises(ValueError, match="at least 40"):
            module.Config(pairs=20)
        with pytest.raises(ValueError, match="at least one"):
            module.Config(images=())


def test_averaging_captions_helps_and_foreign_ones_do_not() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(200, 10, generator=generator)
    each = nn.functional.normalize(image[:, None] + 2 * torch.randn(200, 5, 10, generator=generator), dim=-1)
    columns = platonic_captions.averaged_columns(each, torch.randperm(200, generator=generator))
    assert [len(choices) for choices in columns["averaged"]] == [5, 5, 5, 5, 1]
    torch.testing.assert_close(columns["averaged"][4][0], each.mean(1))
    torch.testing.assert_close(columns["foreign"][0][2], each[:, 2])
    found = platonic_captions.scores(platonic_captions.Config(draws=30), image, columns)
    own, foreign = ([entry["score"] for entry in found[way]] for way in ("averaged", "foreign"))
    assert own == sorted(own)
    assert own[4] > 1.3 * own[0] > 1.3 * foreign[4]
    assert found["averaged"][4]["p_value"] < 0.05


def test_drawn_anew_and_damaged_leave_the_model_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.randn(16, 3, 8, 8)
    fresh = drawn_anew(model, 1, images)
    assert not fresh.training
    mapped = fresh[1](fresh[0](images)).detach()  # type: ignore[index]
    assert float(mapped.mean().abs()) < 0.01
    assert float(mapped.std()) == pytest.approx(1, abs=0.05)
    assert torch.equal(fresh[0].weight, drawn_anew(model, 1)[0].weight)  # type: ignore[index]
    worse = damaged(model, 0.5)
    change = (worse[0].weight - model[0].weight).std() / model[0].weight.std()  # type: ignore[index,operator]
    assert float(change.detach()) == pytest.approx(0.5, abs=0.15)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_captions_of_made_up_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Captioned(MadeUp):
        def __init__(self, **settings: Any) -> None:
            super().__init__(settings["data_dir"])
            captions = [[f"{word} {i}" for word in ("one", "two", "three")] for i in range(len(self))]
            self.pairs = PairSource(ids=[str(i) for i in range(len(self))], captions=captions, description="made up")

        def captions(self, spec: str, **options: Any) -> dict[str, Tensor]:
            views = [self.features(f"{spec}{i}", 2.0) for i in range(3)]
            mixed = [self.cause @ torch.eye(6, 12) + view * 0.3 for view in views]
            return {"last": nn.functional.normalize(torch.stack(mixed, 1), dim=-1)}

        def texts(self, spec: str, texts: list[str], **options: Any) -> dict[str, Tensor]:
            return {"last": self.captions(spec)["last"][:, : len(texts[0].split()) // 2].mean(1)[: len(texts)]}

    monkeypatch.setattr(platonic_features, "PairFeatures", Captioned)
    config = platonic_captions.Config(
        data_dir=tmp_path, pairs=120, photos=120, draws=20, images=("given:efficientnet_lite0",),
        texts=("given:glove",), out=tmp_path / "out",
    )  # fmt: skip
    report = platonic_captions.run(config)
    assert report.results["words"] == [2, 4, 6]
    assert [claim.reproduced for claim in report.claims] == [True, True, True]
    assert (tmp_path / "out" / "report.html").is_file()
    kept = next((tmp_path / "out" / "cells").iterdir()).stat().st_mtime_ns
    platonic_captions.run(config)
    assert next((tmp_path / "out" / "cells").iterdir()).stat().st_mtime_ns == kept


@pytest.mark.slow
def test_both_studies_on_a_few_photos(shared: Path, tmp_path: Path) -> None:
    data = shared / "data"
    if not (data / "flickr8k-2000").is_dir() or not (data / "weights").is_dir():
        pytest.skip("the photos or the weights are not here")
    small: dict[str, Any] = {
        "data_dir": data, "pairs": 44, "images": ("given:squeezenet1_1",), "draws": 20,
        "texts": ("given:glove", "given:stories260k"), "features": tmp_path / "features",
    }  # fmt: skip
    lines: list[str] = []
    config = platonic_vision_language.Config(
        **small, resamples=4, untrained_images=(), damages=(), corpus_bytes=800, out=tmp_path / "a"
    )
    platonic_vision_language.run(config, on_progress=lines.append)
    results = json.loads((tmp_path / "a" / "report.json").read_text())["results"]
    assert results["n"] == 44
    assert len(results["cells"]) == 4
    captions = platonic_captions.run(platonic_captions.Config(**small, photos=44, out=tmp_path / "b"))
    assert [len(cell["scores"]["joined"]) for cell in captions.results["cells"]] == [5, 5]
    assert captions.results["words"] == sorted(captions.results["words"])
    assert any("photos through SqueezeNet" in line for line in lines)
    again = PairFeatures(data_dir=data, count=44, keep=tmp_path / "features")
    assert again.images("given:squeezenet1_1")["features.12"].shape == (44, 512)


def test_an_untrained_network_without_norms_still_tells_photos_apart() -> None:
    from torchvision.models import squeezenet1_1

    fresh = drawn_anew(squeezenet1_1(weights=None).eval(), 0)
    with torch.no_grad():
        features = fresh.features(torch.rand(6, 3, 64, 64)).mean((2, 3))  # type: ignore[operator]
    assert float(features.std()) > 0.01
    assert len(features.unique(dim=0)) == 6
