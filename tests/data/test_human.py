"""Records that people put there by hand: what does not fit together is named, with where it is described."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.records import brain_records, judgement_records
from unrolled.data import human
from unrolled.errors import CorruptFile

BRAIN, COLOUR, THINGS = "brain_92images", "colour93_human", "things1854_human"


@pytest.mark.parametrize(
    ("file", "array", "change", "words"),
    [
        (BRAIN, "human_it", lambda x: x[1:], "human_it is"),
        (BRAIN, "human_it", lambda x: x[:, 1:, 1:], "human_it is"),
        (BRAIN, "monkey_it", lambda x: x[None], "monkey_it is"),
        (BRAIN, "models", lambda x: x[1:], "models is"),
        (BRAIN, "stimuli", lambda x: x[1:], "human_it is"),
        (BRAIN, "human_it_names", lambda x: np.full(x.shape, "A"), "human_it_names must be like"),
        (COLOUR, "missing", lambda x: x[1:], "missing is"),
        (COLOUR, "group_dissimilarity", lambda x: x[:, 1:], "group_dissimilarity is"),
        (THINGS, "group_embeddings", lambda x: x[:, 1:], "group_embeddings is"),
        (THINGS, "group_embeddings", lambda x: x[0], "group_embeddings is"),
        (BRAIN, "stimuli", lambda x: x[..., 0], "stimuli must be"),
        (BRAIN, "stimuli", lambda x: x.astype(float), "stimuli must be"),
        (BRAIN, "stimuli", lambda x: np.uint8(3), "stimuli is one value"),
        (THINGS, "concepts", lambda x: np.array("a"), "concepts is one value"),
    ],
)
def test_arrays_that_do_not_fit_together(
    file: str, array: str, change: Callable[[Any], Any], words: str, tmp_path: Path
) -> None:
    brain_records(tmp_path)
    judgement_records(tmp_path)
    read: dict[str, Callable[[], Any]] = {
        BRAIN: lambda: human.brains(tmp_path),
        COLOUR: lambda: human.colours(tmp_path),
        THINGS: lambda: human.things(tmp_path, 20, 0),
    }
    read[file]()
    (path,) = tmp_path.glob(f"*/{file}.npz")
    with np.load(path) as stored:
        arrays = dict(stored)
    np.savez(path, **{**arrays, array: change(arrays[array])})
    with pytest.raises(CorruptFile, match=f"{file}.npz: {words}.*brain.md"):
        read[file]()


def test_damaged_files_are_named(tmp_path: Path) -> None:
    brain_records(tmp_path)
    judgement_records(tmp_path)
    (path,) = tmp_path.glob(f"*/{BRAIN}.npz")
    for content in (b"", b"\x93NUMPY", path.read_bytes()[:-30]):
        path.write_bytes(content)
        with pytest.raises(CorruptFile, match=BRAIN):
            human.brains(tmp_path)
    (table,) = tmp_path.glob("*/xkcd_colours.tsv")
    table.write_text("name\tL\ta\tb_lab\n" + "x" * 200_000 + "\t1\t1\t1\n")
    with pytest.raises(CorruptFile, match="xkcd_colours"):
        human.colours(tmp_path)
    (path,) = tmp_path.glob(f"*/{COLOUR}.npz")
    with np.load(path) as stored:
        arrays = dict(stored)
    np.savez(path, **{**arrays, "rgb": arrays["rgb"][0]})
    with pytest.raises(CorruptFile, match="rgb is"):
        human.colour_patches(tmp_path, 4)
