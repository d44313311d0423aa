"""Text: parts that never overlap, tokenizers that give the text back, and batches that depend on the step alone."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unrolled.data.text import divide, is_text, open_text, read_lines, text_names
from unrolled.data.tokens import (
    IGNORED,
    ByteTokenizer,
    CharacterTokenizer,
    load_tokenizer,
    mask_tokens,
    masked_windows,
    open_tokenizer,
    token_batches,
    token_windows,
    train_bpe,
)
from unrolled.errors import MissingData

LINES = [f"line {i} has the number {i * i}" for i in range(600)]
BOOK = "\n".join(LINES) + "\n"


def test_the_parts_of_a_corpus_are_all_of_it_and_share_no_line(tmp_path: Path) -> None:
    (tmp_path / "tinyshakespeare.txt").write_text(BOOK)
    (tmp_path / "bronte.txt.gz").write_bytes(gzip.compress(BOOK.encode()))
    for name in ("tinyshakespeare", "bronte"):
        parts = [open_text(name, split, data_dir=tmp_path).text for split in ("train", "val", "test")]
        lines = [part.splitlines() for part in parts]
        assert sorted(lines[0] + lines[1] + lines[2]) == sorted(LINES)
        assert len(lines[0]) > 500
        assert min(len(lines[1]), len(lines[2])) > 20
        assert parts[0] == open_text(name, "train", data_dir=tmp_path).text
    assert "".join(parts[1:]) != BOOK[-len("".join(parts[1:])) :], "blocks are spread over the text, no tail"


def test_published_parts_are_used_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "wikitext2_valid.txt").write_text(BOOK)
    (tmp_path / "wikitext2_test.txt").write_text("published test\n")
    with pytest.raises(MissingData, match="wikitext2-small"):
        open_text("wikitext2", data_dir=tmp_path)
    small = {split: open_text("wikitext2-small", split, data_dir=tmp_path).text for split in ("train", "val", "test")}
    assert small["test"] == "published test\n"
    assert sorted((small["train"] + small["val"]).splitlines()) == sorted(LINES), "nothing is lost or twice"
    (tmp_path / "wikitext2_train.txt").write_text("published train\n")
    assert open_text("wikitext2", "val", data_dir=tmp_path).text == BOOK


def test_a_path_for_a_name_is_told_how_to_read_own_files(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(BOOK)
    for path in (tmp_path, tmp_path / "book.txt"):
        with pytest.raises(ValueError, match=f"data='folder' and data_dir='{tmp_path}'$"):
            open_text(str(path), "train")


def test_a_folder_of_files_is_a_corpus(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text(BOOK)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"first\n" * 50))
    assert open_text("folder", "train", data_dir=tmp_path).text.startswith("first")
    (tmp_path / "test.txt").write_text("held out\n")
    with pytest.raises(ValueError, match="name all of them"):
        open_text("folder", data_dir=tmp_path)
    named = tmp_path / "named"
    (named / "train").mkdir(parents=True)
    (named / "train" / "x.txt").write_text(BOOK)
    (named / "valid.txt").write_text("held out\n")
    assert open_text("folder", "val", data_dir=named).text == "held out\n"
    train, test = (open_text("folder", split, data_dir=named).text for split in ("train", "test"))
    assert sorted((train + test).splitlines()) == sorted(LINES)


def test_a_hub_data_set_on_the_disk_is_a_corpus(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": LINES, "id": list(range(600))})
    datasets.DatasetDict({"train": rows, "validation": rows.select(range(3))}).save_to_disk(str(tmp_path / "set"))
    assert open_text(f"hf:{tmp_path / 'set'}", "val").text == "\n".join(LINES[:3]) + "\n"
    train, test = (open_text(f"hf:{tmp_path / 'set'}", split).text for split in ("train", "test"))
    assert sorted((train + test).splitlines()) == sorted(LINES)


@given(lines=st.lists(st.text(st.characters(exclude_characters="\n\r"), min_size=1), min_size=400, max_size=500))
@settings(max_examples=10, deadline=None)
def test_blocks_keep_every_character(lines: list[str]) -> None:
    text = "\n".join(lines)
    parts = divide(text)
    assert sum(map(len, parts.values())) == len(text)
    assert all(parts.values())


def test_the_share_held_out_may_be_chosen_where_parts_are_cut_from_one_text(tmp_path: Path) -> None:
    text = "".join(f"line {i:05}\n" for i in range(4000))
    (tmp_path / "tinyshakespeare.txt").write_text(text)
    (tmp_path / "brown_sentences.txt").write_text(text)
    for name in ("tinyshakespeare", "brown"):
        parts = [open_text(name, part, data_dir=tmp_path, held_out=0.1).text for part in ("train", "val", "test")]  # type: ignore[arg-type]
        assert [round(len(part) / len(text), 2) for part in parts] == [0.8, 0.1, 0.1]
        assert sorted("".join(parts).splitlines()) == text.splitlines()
        assert open_text(name, data_dir=tmp_path, held_out=0.05) == open_text(name, data_dir=tmp_path)
    for name in ("wikitext2_train", "wikitext2_valid", "wikitext2_test"):
        (tmp_path / f"{name}.txt").write_text(text)
    with pytest.raises(ValueError, match=r"held_out=0\.1: wikitext2 has a validation and a test part of its own"):
        open_text("wikitext2", data_dir=tmp_path, held_out=0.1)
    small = open_text("wikitext2-small", "val", data_dir=tmp_path, held_out=0.1)
    assert round(small.bytes / len(text), 2) == 0.1, "cut from the published validation part"


def test_what_cannot_be_read_is_named_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tinyshakespeare"):
        open_text("shakespear", data_dir=tmp_path)
    with pytest.raises(ValueError, match="data_dir"):
        open_text("brown")
    with pytest.raises(MissingData, match=r"brown_sentences\.txt"):
        open_text("brown", data_dir=tmp_path)
    (tmp_path / "brown_sentences.txt").write_text("one line")
    with pytest.raises(ValueError, match="longer text"):
        open_text("brown", data_dir=tmp_path)
    (tmp_path / "tinyshakespeare.txt").write_text("")
    with pytest.raises(ValueError, match="empty"):
        open_text("tinyshakespeare", data_dir=tmp_path)
    (tmp_path / "bronte.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="UTF-8"):
        open_text("bronte", data_dir=tmp_path)
    (tmp_path / "darwin.txt.gz").write_bytes(gzip.compress(BOOK.encode())[:-20])
    with pytest.raises(ValueError, match="decompressed"):
        open_text("darwin", data_dir=tmp_path)
    assert "wikitext2" in text_names()


def test_what_counts_as_text(tmp_path: Path) -> None:
    assert is_text("brown", None)
    assert not is_text("cifar10", tmp_path)
    assert not is_text(None, None)
    assert not is_text("folder", None)
    assert not is_text("folder", tmp_path / "nowhere")
    assert not is_text("folder", tmp_path)  # empty
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "labels.txt").write_text("cat")
    assert is_text("folder", tmp_path)
    (tmp_path / "picture.JPG").write_bytes(b"")
    assert not is_text("folder", tmp_path)


@pytest.mark.parametrize("name", ["bytes", "characters", "bpe:300"])
@pytest.mark.parametrize("mask", [False, True])
def test_tokenizers_give_the_text_back_and_are_saved(name: str, mask: bool, tmp_path: Path) -> None:
    text = BOOK + "naïve ☃\n"
    tokenizer = open_tokenizer(name, text, mask=mask)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert int(ids.max()) < tokenizer.vocab_size
    assert (tokenizer.mask_id is not None) == mask
    assert not mask or tokenizer.mask_id not in ids.tolist()
    tokenizer.save(tmp_path / "tokenizer.json")
    again = open_tokenizer(str(tmp_path / "tokenizer.json"), "", mask=mask)
    assert torch.equal(again.encode(text), ids)
    assert (again.vocab_size, again.mask_id) == (tokenizer.vocab_size, tokenizer.mask_id)
    with pytest.raises(ValueError, match="unknown token"):
        tokenizer.decode(torch.tensor([tokenizer.vocab_size]))


def test_merges_are_learned_the_same_way_twice_and_shorten_the_text() -> None:
    one, two = (train_bpe(BOOK, 320) for _ in range(2))
    assert one.tokenizer.to_str() == two.tokenizer.to_str()
    assert one.vocab_size <= 320
    assert len(one.encode(BOOK)) < len(BOOK) / 2
    with pytest.raises(ValueError, match="at least 257"):
        train_bpe(BOOK, 256, mask=True)


def test_unknown_characters_and_tokenizers_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"U\+2603.*bytes"):
        CharacterTokenizer.of("abc").encode("a☃")
    with pytest.raises(ValueError, match="bpe:SIZE"):
        open_tokenizer("words", BOOK)
    with pytest.raises(ValueError, match="bpe:2048"):
        open_tokenizer("bpe:many", BOOK)
    with pytest.raises(ValueError, match="training text"):
        CharacterTokenizer.of("")
    with pytest.raises(MissingData, match="does not exist"):
        load_tokenizer(tmp_path)
    for content in ('{"no": "tokenizer"}', '{"type": "characters"}'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(ValueError, match="no tokenizer"):
            load_tokenizer(tmp_path)
    ByteTokenizer().save(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="mask token"):
        open_tokenizer(str(tmp_path), "", mask=True)


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    tokens = torch.arange(1000)
    batch = token_batches(tokens, batch_size=4, length=16, seed=3, step=7)
    assert batch.shape == (4, 17)
    assert (batch.diff() == 1).all()
    torch.manual_seed(99)
    assert torch.equal(batch, token_batches(tokens, batch_size=4, length=16, seed=3, step=7))
    assert not torch.equal(batch, token_batches(tokens, batch_size=4, length=16, seed=3, step=8))
    assert not torch.equal(batch, token_batches(tokens, batch_size=4, length=16, seed=4, step=7))
    assert token_batches(tokens[:17], batch_size=2, length=16, seed=0, step=0).tolist() == [list(range(17))] * 2
    with pytest.raises(ValueError, match="longer text, or a smaller length"):
        token_batches(tokens[:16], batch_size=2, length=16, seed=0, step=0)


@given(count=st.integers(2, 60), length=st.integers(1, 20), data=st.data())
@settings(max_examples=60, deadline=None)
def test_windows_predict_every_token_once_with_enough_context(count: int, length: int, data: st.DataObject) -> None:
    length = min(length, count - 1)
    stride = data.draw(st.integers(1, length))
    predicted = []
    for inputs, targets in token_windows(torch.arange(count), length=length, batch_size=3, stride=stride):
        assert inputs.shape == targets.shape
        for row, after in zip(inputs, targets, strict=True):
            here = after[after != IGNORED]
            predicted += here.tolist()
            assert (after[after != IGNORED] == row[after != IGNORED] + 1).all()
            if row[0] > 0 and len(here):
                assert here[0] - row[0] > length - stride
    assert predicted == list(range(1, count))


@given(count=st.integers(2, 60), length=st.integers(1, 20), batch=st.integers(1, 7))
@settings(max_examples=30, deadline=None)
def test_masks_of_windows_do_not_depend_on_the_batch_and_predict_no_token_twice(
    count: int, length: int, batch: int
) -> None:
    length = min(length, count - 1)
    options = {"vocab_size": count + 1, "mask_id": count, "seed": 3, "share": 0.7}
    tokens = torch.arange(count)
    one, many = (
        [
            torch.cat(parts)
            for parts in zip(*masked_windows(tokens, length=length, batch_size=b, **options), strict=True)
        ]
        for b in (1, batch)
    )
    assert torch.equal(one[0], many[0])
    assert torch.equal(one[1], many[1])
    predicted = one[1][one[1] != IGNORED]
    assert len(predicted.unique()) == len(predicted)
    everything = [t for _, t in masked_windows(tokens, length=length, batch_size=4, **{**options, "share": 1 - 1e-12})]
    assert torch.cat([t[t != IGNORED] for t in everything]).tolist() == list(range(count)), "the last one too"


def test_masking_is_80_10_10_and_a_function_of_the_step() -> None:
    tokens = torch.randint(0, 30, (64, 128))
    inputs, targets = mask_tokens(tokens, vocab_size=31, mask_id=30, seed=0, step=5)
    chosen = targets != IGNORED
    assert torch.equal(targets[chosen], tokens[chosen])
    assert torch.equal(inputs[~chosen], tokens[~chosen])
    assert float(chosen.float().mean()) == pytest.approx(0.15, abs=0.015)
    masked = (inputs == 30) & chosen
    assert float(masked.sum() / chosen.sum()) == pytest.approx(0.8, abs=0.04)
    changed = chosen & ~masked & (inputs != tokens)
    assert float(changed.sum() / chosen.sum()) == pytest.approx(0.1 * 29 / 30, abs=0.03)
    again = mask_tokens(tokens, vocab_size=31, mask_id=30, seed=0, step=5)
    assert torch.equal(again[0], inputs)
    assert torch.equal(again[1], targets)
    _, other = mask_tokens(tokens, vocab_size=31, mask_id=30, seed=0, step=6)
    assert not torch.equal(other, targets)


def test_masking_chooses_something_even_of_one_token() -> None:
    for step in range(20):
        _, targets = mask_tokens(torch.zeros(1, 1, dtype=torch.int64), vocab_size=2, mask_id=1, seed=0, step=step)
        assert (targets != IGNORED).all()
    with pytest.raises(ValueError, match="mask=True"):
        mask_tokens(torch.zeros(1, 4, dtype=torch.int64), vocab_size=2, mask_id=2, seed=0, step=0)
    with pytest.raises(ValueError, match="share"):
        mask_tokens(torch.zeros(1, 4, dtype=torch.int64), vocab_size=2, mask_id=1, seed=0, step=0, share=1.0)


def test_the_shared_corpora_are_read_whole(shared: Path) -> None:
    folder = shared / "data" / "text"
    counts = {"tinyshakespeare": 1_115_394}
    for name in ("tinyshakespeare", "brown", "bronte", "darwin", "wikitext2-small"):
        parts = {split: open_text(name, split, data_dir=folder) for split in ("train", "val", "test")}
        total = sum(len(part.text) for part in parts.values())
        assert total == counts.get(name, total)
        assert all(part.bytes > 20_000 for part in parts.values())


def test_marks_and_line_ends_of_windows_are_no_text(tmp_path: Path) -> None:
    for number, kind in enumerate(("utf-8", "utf-8-sig")):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "a.txt").write_bytes(BOOK.replace("\n", "\r\n" if number else "\n").encode(kind))
    plain, marked = (open_text("folder", data_dir=tmp_path / kind) for kind in ("utf-8", "utf-8-sig"))
    assert plain.text == marked.text
    (tmp_path / "utf-8" / "a.txt").write_bytes(BOOK.encode("utf-16"))
    with pytest.raises(ValueError, match=r"a\.txt: is UTF-16; save it as UTF-8"):
        open_text("folder", data_dir=tmp_path / "utf-8")


def test_a_file_and_its_compressed_copy_are_read_once(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(BOOK)
    once = open_text("folder", data_dir=tmp_path)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(BOOK.encode()))
    again = open_text("folder", data_dir=tmp_path)
    assert again.text == once.text
    assert again.description.endswith(f" (passed over: {again.passed_over})")
    assert again.passed_over == "1 compressed copies of files beside them (a.txt.gz)"


def test_hidden_folders_are_no_text(tmp_path: Path) -> None:
    for part in ("Train", "Validation", "Testing"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "A.TXT").write_text(f"{part} {BOOK}")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "test.txt").write_text("held out\n" * 100)
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "._A.txt").write_bytes(b"\0\5\x16\7\xff")
    parts = {part: open_text("folder", part, data_dir=tmp_path) for part in ("train", "val", "test")}
    assert [text.text.split()[0] for text in parts.values()] == ["Train", "Validation", "Testing"]
    assert "held out" not in parts["train"].text
    assert parts["train"].passed_over == "2 hidden or system entries (.git, __MACOSX)"


def test_lines_are_parted_by_line_ends_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\u2028still one\x0cstill\r\ntwo\n\n".encode())
    assert read_lines(path) == ["one\u2028still one\x0cstill", "two", ""]
