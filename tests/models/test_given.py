"""Given models: each has the accuracy, the text or the vectors that its weights' README states."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from unrolled.errors import CorruptFile, MissingData, UnsafeFile
from unrolled.instruments.features.extraction import extract, layer_names
from unrolled.models.given import GIVEN, find_weights, given_names, is_fetched, open_given
from unrolled.models.given.text import StoriesTokenizer, padded, wordpiece


@pytest.fixture
def weights(shared: Path) -> Path:
    if not (shared / "data" / "weights").is_dir():
        pytest.skip("the given weights are not here")
    return shared / "data" / "weights"


def photos(path: Path, indices: range) -> tuple[list[Image.Image], torch.Tensor]:
    if not path.is_file():
        pytest.skip(f"{path.name} is not here")
    with np.load(path) as archive:
        payload, offsets, labels = archive["payload"], archive["offsets"].astype(int), archive["labels"]
        header = archive["header"].tobytes() if "header" in archive.files else b""
    read = [io.BytesIO(header + payload[offsets[i] : offsets[i + 1]].tobytes()) for i in indices]
    return [Image.open(file).convert("RGB") for file in read], torch.tensor(labels[list(indices)].astype(int))


def accuracy(name: str, weights: Path, path: str, indices: range) -> float:
    given = open_given(name, weights)
    assert given.transform is not None
    images, labels = photos(weights.parent / path, indices)
    with torch.no_grad():
        parts = [images[start : start + 50] for start in range(0, len(images), 50)]
        logits = torch.cat([given.module(torch.stack([given.transform(image) for image in part])) for part in parts])
    return float((logits.argmax(1) == labels).float().mean())


# the stated figure less three standard errors of 25 photos
@pytest.mark.parametrize(
    ("name", "least"), [("efficientnet_lite0", 0.64), ("mobilenet_v1_075", 0.60), ("squeezenet1_1", 0.29)]
)
def test_imagenet_networks_recognise_the_sample(name: str, least: float, weights: Path) -> None:
    assert accuracy(name, weights, "imagenet-sample/imagenet_sample_1000.npz", range(0, 1000, 40)) > least


@pytest.mark.parametrize(
    ("name", "stated", "count"), [("resnet20", 0.810, 300), ("resnet56", 0.832, 200), ("vit_d128_p4", 0.717, 300)]
)
def test_cifar_networks_have_the_stated_accuracy(name: str, stated: float, count: int, weights: Path) -> None:
    found = accuracy(name, weights, "cifar10/cifar10_test_jpeg.npz", range(count))
    assert abs(found - stated) < 3 * (stated * (1 - stated) / count) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stated"), [("efficientnet_lite0", 0.856), ("mobilenet_v1_075", 0.830), ("squeezenet1_1", 0.591)]
)
def test_imagenet_networks_have_the_stated_accuracy(name: str, stated: float, weights: Path) -> None:
    found = accuracy(name, weights, "imagenet-sample/imagenet_sample_1000.npz", range(1000))
    assert abs(found - stated) < 0.012


def test_tiny_darknet_gives_photos_of_kin_like_features(weights: Path) -> None:
    # its classes are in Darknet's order, so that labels say nothing: dogs beside dogs, and not beside furniture
    given = open_given("tiny_darknet", weights)
    assert given.transform is not None
    dogs, _ = photos(weights.parent / "imagenet-sample/imagenet_sample_1000.npz", range(160, 220, 10))
    things, _ = photos(weights.parent / "imagenet-sample/imagenet_sample_1000.npz", range(500, 560, 10))
    found = extract(given.module, torch.stack([given.transform(image) for image in dogs + things]), layers="stages.14")[
        "stages.14"
    ]
    alike = torch.nn.functional.normalize(found - found.mean(0), dim=1) @ found.sub(found.mean(0)).T
    assert alike[:6, :6].mean() > alike[:6, 6:].mean()


def test_the_story_teller_tells_its_story(weights: Path) -> None:
    given = open_given("stories260k", weights)
    ids = [1]
    with torch.no_grad():
        for _ in range(45):
            ids.append(int(given.module(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert isinstance(given.tokenizer, StoriesTokenizer)
    text = given.tokenizer.decode(ids)
    assert text.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    )
    assert given.tokenizer.encode(text) == ids


def test_minilm_puts_sentences_of_one_meaning_together(weights: Path) -> None:
    given = open_given("minilm", weights)
    assert given.tokenizer is not None
    batch = given.tokenizer(["A dog runs on the grass.", "A puppy is running outside", "The stock market fell sharply"])
    assert batch["input_ids"][0].tolist() == [101, 1037, 3899, 3216, 2006, 1996, 5568, 1012, 102]
    assert batch["attention_mask"].sum(1).tolist() == [9, 7, 7]
    with torch.no_grad():
        tokens = given.module(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    vectors = torch.nn.functional.normalize((tokens * mask).sum(1) / mask.sum(1), dim=1)
    cosines = vectors @ vectors.T
    assert cosines[0, 1] > 0.6 > 0.2 > cosines[0, 2]


def test_glove_knows_words_and_passes_over_others(weights: Path) -> None:
    given = open_given("glove", weights)
    assert given.tokenizer is not None
    batch = given.tokenizer(["Dog", "puppy zzxqyv", "economy", "zzxqyv"])
    assert batch["attention_mask"].sum(1).tolist() == [1, 1, 1, 0]
    vectors = given.module(**batch)[:, 0]
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(vectors[0], vectors[1], dim=0) > cosine(vectors[0], vectors[2], dim=0)


def test_every_name_opens_and_its_layers_exist(weights: Path) -> None:
    for name in filter(lambda name: not is_fetched(name), GIVEN):
        given = open_given(name, weights)
        assert given.kind == ("vision" if name in given_names("vision") else "text")
        assert len(layer_names(given.module, list(given.layers))) >= len(given.layers)
        assert not given.module.training
        assert given.params > 1000


def test_an_unknown_name_suggests_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'minilm'"):
        open_given("minilm6", tmp_path)


def test_absent_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"has no resnet20_cifar10\.pt"):
        open_given("resnet20", tmp_path)
    with pytest.raises(MissingData, match="no folder"):
        find_weights(tmp_path / "nowhere")
    with pytest.raises(MissingData, match="data_dir"):
        find_weights(None)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(16, 3, 3, 3)}, tmp_path / "resnet20_cifar10.pt")
    torch.save({"conv1.weight": torch.zeros(16, 3, 3, 3)}, tmp_path / "squeezenet1_1_imagenet.pt")
    for name in ("resnet20", "squeezenet1_1"):
        with pytest.raises((CorruptFile, ValueError), match="not"):
            open_given(name, tmp_path)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"conv1.weight": Path("x")}, tmp_path / "vit_d128_p4_cifar10.pt")
    with pytest.raises(UnsafeFile):
        open_given("vit_d128_p4", tmp_path)


def toy_tokenizer() -> StoriesTokenizer:
    pieces = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % byte for byte in range(256))]
    pieces += [b" ", b"a", b"b", b" a", b"ab", b" ab"]
    return StoriesTokenizer(pieces=pieces, scores=[0.0] * 262 + [-2.0, -1.0, -3.0], limit=6)


def test_pieces_with_the_best_score_are_merged_first() -> None:
    tokenizer = toy_tokenizer()
    assert tokenizer.encode("ab", bos=False) == [264]  # " " + "ab", since "ab" merges before " a"
    assert tokenizer.encode("a", bos=False) == [262]
    assert tokenizer.encode("") == [1]


def test_unknown_characters_become_bytes_and_come_back() -> None:
    tokenizer = toy_tokenizer()
    ids = tokenizer.encode("a\u00e9  b")
    assert tokenizer.decode(ids) == "a\u00e9  b"
    assert tokenizer(["a\u00e9  b" * 9])["input_ids"].shape == (1, 6)


def test_padding_is_on_the_right_and_masked() -> None:
    batch = padded([[5, 6], [7]], 0)
    assert batch["input_ids"].tolist() == [[5, 6], [7, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert padded([[]], 0)["attention_mask"].tolist() == [[0]]


def test_wordpiece_reads_uncased_pieces(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "run", "##ning", "dog"]) + "\n")
    found = wordpiece(vocab, limit=5)(["Running DOG", "cat dog dog dog dog"])
    assert found["input_ids"].tolist() == [[2, 4, 5, 6, 3], [2, 1, 6, 6, 3]]
    assert json.dumps(found["attention_mask"].tolist()) == "[[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]"


@pytest.fixture
def models() -> Path:
    """What `make models` fetched, here or where $UNROLLED_MODELS says."""
    folder = Path(os.environ.get("UNROLLED_MODELS", Path(__file__).resolve().parents[2] / "models"))
    if not folder.is_dir():
        pytest.skip("no models were fetched (`make models`)")
    return folder


@pytest.mark.parametrize("name", list(filter(is_fetched, GIVEN)))
def test_fetched_models_open(name: str, models: Path) -> None:
    given = open_given(name, models)
    assert len(layer_names(given.module, list(given.layers))) >= len(given.layers)
    if given.tokenizer is None:
        return
    batch = given.tokenizer(["A dog runs on the grass.", "A puppy is running outside", "The stock market fell sharply"])
    mask = batch["attention_mask"].unsqueeze(-1)
    vectors = torch.nn.functional.normalize((given.module(**batch) * mask).sum(1), dim=1)
    cosines = vectors @ vectors.T
    assert cosines[0, 1] > cosines[0, 2] + 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("efficientnet_lite1", 0.84), ("efficientnet_lite2", 0.85)])
def test_fetched_networks_recognise_the_sample(name: str, least: float, models: Path, weights: Path) -> None:
    given = open_given(name, models)
    assert given.transform is not None
    images, labels = photos(weights.parent / "imagenet-sample/imagenet_sample_1000.npz", range(0, 1000, 5))
    with torch.no_grad():
        parts = [torch.stack([given.transform(image) for image in images[at : at + 25]]) for at in range(0, 200, 25)]
        logits = torch.cat([given.module(part) for part in parts])
    assert float((logits.argmax(1) == labels).float().mean()) > least


@pytest.mark.parametrize(
    ("name", "tensors", "words"),
    [
        ("wordllama", {"embedding.weight": torch.eye(5).half()}, ["<unk>", "<s>", "a", "dog", "cat"]),
        (
            "tokenlearn",
            {
                "embeddings": torch.tensor([[2, 0], [0, 4]], dtype=torch.int8),
                "mapping": torch.tensor([0, 0, 1, 0, 1]), "weights": torch.tensor([0.0, 0.0, 0.5, 1.0, 0.25]),
            },
            ["<pad>", "<unk>", "a", "dog", "cat"],
        ),
    ],
)  # fmt: skip
def test_static_embeddings_read_their_tables(
    name: str, tensors: dict[str, torch.Tensor], words: list[str], tmp_path: Path
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    file = tmp_path / GIVEN[name].file
    file.parent.mkdir()
    save_file(tensors, file)
    ids = {word: number for number, word in enumerate(words)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.enable_padding(length=9)
    inner.save(str(file.parent / "tokenizer.json"))
    given = open_given(name, tmp_path)
    assert given.tokenizer is not None
    batch = given.tokenizer(["a dog", "cat"])
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    found = given.module(**batch)
    if name == "wordllama":
        assert found[0].tolist() == torch.eye(5)[[2, 3]].tolist()
    else:
        assert found[0].tolist() == [[0.0, 2.0], [2.0, 0.0]]
        assert given.tokenizer(["bird"])["attention_mask"].tolist() == [[0]]  # unknown words are passed over
    assert found[1, 1].abs().sum() == 0  # padding
