"""The studies of captioned photos: known agreement is found, chance is told apart, and reports say what was not run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unrolled import studies
from unrolled.data.pairs import PairSource
from unrolled.data.sources import evenly
from unrolled.errors import MissingData
from unrolled.instruments.control import drawn_anew
from unrolled.instruments.features import FeatureSet
from unrolled.studies.cells import Context
from unrolled.studies.platonic import captions, photos
from unrolled.studies.platonic.photos import OfJoined, OfPhotos, OfTexts, TextModel, damaged
from unrolled.studies.platonic.vision_language import cells as vision_language

N = 120
NOISE = {"given:efficientnet_lite0": 0.2, "given:mobilenet_v1_075": 0.5, "given:tiny_darknet": 0.9}


def features(spec: str, noise: float) -> Tensor:
    """Random features [N, 12] that share a hidden cause, but for noise."""
    cause = torch.randn(N, 6, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(sum(map(ord, spec)))
    mixed = cause @ torch.randn(6, 12, generator=generator)
    return mixed + noise * torch.randn(N, 12, generator=generator) * mixed.std()


def of_photos(cell: OfPhotos, context: Context) -> FeatureSet:
    noise = 50.0 if cell.image_drawn is not None else NOISE.get(cell.image, 1.6)
    return FeatureSet(layers={"first": features(cell.image + "0", 50.0), "last": features(cell.image, noise)})


def of_texts(cell: OfTexts, context: Context) -> FeatureSet:
    noise = 50.0 if cell.model.text_drawn is not None else 0.3 + 5 * cell.model.damage
    spec = cell.model.text
    cause = features(spec, noise)
    views = torch.stack([cause + 0.6 * features(f"{spec}{i}", 50.0) / 50 for i in range(5)], 1)
    if isinstance(cell, OfJoined):
        return FeatureSet(layers={"last": views[evenly(cell.photos, N), : cell.joined].mean(1)})
    return FeatureSet(layers={"last": views.flatten(0, 1)})


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Photos, captions and models that are not read but made up; settings with which the studies use them."""
    pairs = PairSource(
        ids=[str(i) for i in range(N)], captions=[[f"{word} {i}" for word in "abcde"] for i in range(N)], description=""
    )

    def opened(spec: str, kind: str, context: Context) -> Any:
        if spec == "hf:absent":
            raise MissingData("no network")
        return SimpleNamespace(collate=Letters())

    def module(model: TextModel, context: Context) -> nn.Module:
        return Speaker(sharp=0.0 if model.text_drawn is not None else 4.0 - model.damage)

    for place, name, value in (
        (photos, "open_photos", lambda *_: pairs), (captions, "open_photos", lambda *_: pairs),
        (photos, "opened", opened), (vision_language, "opened", opened), (TextModel, "module", module),
        (OfPhotos, "extract", of_photos), (OfTexts, "extract", of_texts),
    ):  # fmt: skip
        monkeypatch.setattr(place, name, value)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "wikitext2_test.txt").write_text("abcdefghijklmnopqrstuvwxyz" * 20)
    return {"data_dir": tmp_path, "kept": tmp_path / "kept", "out": tmp_path / "out", "pairs": N, "draws": 40}


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


def run(name: str, **settings: Any) -> Any:
    """The report of a study."""
    study = studies.load(name)
    return study.run(study.config(**settings))


def test_made_up_features_give_the_order_that_was_put_in(made_up: dict[str, Any]) -> None:
    report = run("platonic-vision-language", **made_up, resamples=10)
    claims = {claim.statement.split(" (")[0]: claim for claim in report.claims}
    assert claims["Better image networks agree more with language"].measured.startswith("1.00")
    assert claims["Better language models agree more with vision"].measured.startswith("1.00")
    assert claims["Training makes the agreement"].why.endswith("; as expected")
    assert {claim.verdict for claim in claims.values()} <= {"not judged", "reproduced", "undecided"}
    rows = [row for row in report.results["rows"] if row["cell"] == "Compared"]
    assert len(rows) == 12 + 2 + 6
    assert all(abs(row["last"]["mutual_knn"]["chance"] - 10 / 119) < 0.02 for row in rows)
    table = report.sections[0].blocks[1].rows
    adjusted = {tuple(row[:2]): float(row[6]) for row in table[:-1]}
    assert all(p <= 0.05 for (image, _), p in adjusted.items() if image == "MobileNet v1 0.75")
    assert all(p > 0.05 for pair, p in adjusted.items() if any(name.endswith("untrained") for name in pair))
    assert table[-1][0].startswith("models of the hub")
    # this project's own figures are no publication
    assert {claim.verdict for claim in report.claims[:5]} == {"not judged"}
    assert "own earlier number" in report.claims[0].why


def test_models_that_cannot_be_had_are_not_run(made_up: dict[str, Any]) -> None:
    report = run(
        "platonic-vision-language", **made_up, resamples=4, images=("given:efficientnet_lite0",),
        more_images=("hf:absent",), untrained_images=(), texts=("given:minilm",), damages=(),
    )  # fmt: skip
    assert ("hf:absent", "MiniLM-L6", *["not run"] * 7) in report.sections[0].blocks[1].rows
    assert report.sections[-1].title == "Not run"
    assert "no network" in report.to_html()
    measured = [claim.measured for claim in report.claims]
    assert measured[1] == "not run"
    assert "needs the four networks, not 1" in measured[5]
    assert "2 states with bits per byte are too few" in measured[6]


def test_a_report_without_results_says_so(made_up: dict[str, Any]) -> None:
    study = studies.load("platonic-vision-language")
    run("platonic-vision-language", **made_up, resamples=4, images=("given:tiny_darknet",), untrained_images=())
    # other networks, of which only the language model's states are kept
    report = study.run(study.config(**made_up, resamples=4, images=("given:squeezenet1_1",), only_kept=True))  # type: ignore[call-arg]
    assert report.summary == "No image network was compared with MiniLM-L6."
    assert {claim.verdict for claim in report.claims} == {"not run"}


def test_features_are_read_from_the_store_and_damaged_ones_made_again(made_up: dict[str, Any]) -> None:
    cell, context = OfPhotos(image="given:tiny_darknet", pairs=N), Context(store=made_up["kept"])
    cell.compute(context)
    path = cell.file(context, "") / "features.safetensors"
    before = path.stat().st_mtime_ns
    assert list(cell.load(context)) == ["first", "last"]
    assert path.stat().st_mtime_ns == before
    path.write_bytes(path.read_bytes()[:100])
    torch.testing.assert_close(cell.load(context)["last"], features("given:tiny_darknet", 0.9))


def test_no_agreement_is_not_found_where_there_is_none() -> None:
    left, right = ({"a": torch.randn(N, 8), "b": torch.randn(N, 8)} for _ in range(2))
    found = vision_language.compare_layers(left, right, k=10, draws=40, resamples=10, seed=0)
    assert found["best"]["p_value"] > 0.02
    assert abs(found["last"]["unbiased_cka"]["score"]) < 0.1


@pytest.mark.parametrize("name", ["platonic-vision-language", "platonic-captions"])
def test_missing_data_says_which_folder(name: str, tmp_path: Path) -> None:
    study = studies.load(name)
    config = study.config.of_budget("quick", data_dir=tmp_path / "nowhere", out=tmp_path, kept=tmp_path / "kept")
    with pytest.raises(MissingData, match=r"flickr8k-2000 was not found .*nowhere.*; give data_dir="):
        study.run(config)


def test_averaging_captions_helps_and_foreign_ones_do_not() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(200, 10, generator=generator)
    each = nn.functional.normalize(image[:, None] + 2 * torch.randn(200, 5, 10, generator=generator), dim=-1)
    columns = captions.averaged_columns(each, torch.randperm(200, generator=generator))
    assert [len(choices) for choices in columns["averaged"]] == [5, 5, 5, 5, 1]
    torch.testing.assert_close(columns["averaged"][4][0], each.mean(1))
    torch.testing.assert_close(columns["foreign"][0][2], each[:, 2])
    found = captions.scores(image, columns, k=10, draws=30, seed=0)
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


def test_captions_of_made_up_features(made_up: dict[str, Any]) -> None:
    report = run(
        "platonic-captions", **made_up, photos=100, images=("given:efficientnet_lite0",), texts=("given:glove",)
    )  # fmt: skip
    (row,) = [row for row in report.results["rows"] if row["cell"] == "Density"]
    assert (row["words"], row["n"]) == ([2, 4, 6, 8, 10], 100)
    assert [len(row["scores"][way]) for way in captions.WAYS] == [5, 5, 5]
    assert {claim.verdict for claim in report.claims[:2]} == {"undecided"}  # one image network
    assert report.claims[2].verdict == "not judged"
    assert report.claims[2].measured.startswith("0.")


def test_both_studies_share_their_features(made_up: dict[str, Any]) -> None:
    settings = {**made_up, "images": ("given:tiny_darknet",), "texts": ("given:glove",)}
    run("platonic-vision-language", **settings, resamples=4, untrained_images=())
    kept = sorted((made_up["kept"] / "OfPhotos").glob("*/features.json"))
    run("platonic-captions", **settings, photos=N)
    assert sorted((made_up["kept"] / "OfPhotos").glob("*/features.json")) == kept


@pytest.mark.slow
def test_both_studies_on_a_few_photos(shared: Path, tmp_path: Path) -> None:
    data = shared / "data"
    if not (data / "flickr8k-2000").is_dir() or not (data / "weights").is_dir():
        pytest.skip("the photos or the weights are not here")
    small: dict[str, Any] = {
        "data_dir": data, "pairs": 44, "images": ("given:squeezenet1_1",), "draws": 20, "out": tmp_path,
        "texts": ("given:glove", "given:stories260k"), "kept": tmp_path / "kept",
    }  # fmt: skip
    report = run(
        "platonic-vision-language", **small, resamples=4, untrained_images=(), damages=(), corpus_bytes=800
    )  # fmt: skip
    rows = [row for row in report.results["rows"] if row["cell"] == "Compared"]
    assert [row["best"]["n"] for row in rows] == [44] * 4
    report = run("platonic-captions", **small, photos=44)
    assert [len(row["scores"]["joined"]) for row in report.results["rows"]] == [5, 5]
    words = report.results["rows"][0]["words"]
    assert words == sorted(words)
    again = OfPhotos(image="given:squeezenet1_1", pairs=44).load(Context(store=tmp_path / "kept", data_dir=data))
    assert again["features.12"].shape == (44, 512)


def test_an_untrained_network_without_norms_still_tells_photos_apart() -> None:
    from torchvision.models import squeezenet1_1

    fresh = drawn_anew(squeezenet1_1(weights=None).eval(), 0)
    with torch.no_grad():
        features = fresh.features(torch.rand(6, 3, 64, 64)).mean((2, 3))  # type: ignore[operator]
    assert float(features.std()) > 0.01
    assert len(features.unique(dim=0)) == 6
