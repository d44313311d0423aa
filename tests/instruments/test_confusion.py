"""The confusion matrix and the worst errors, however the images come, and what pages and answers say of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unrolled import cli
from unrolled.instruments.readouts.confusion import Confusion, Decisions


def logits_for(predicted: list[int], confidence: list[float], classes: int) -> torch.Tensor:
    rest = (1 - torch.tensor(confidence)) / (classes - 1)
    probabilities = rest[:, None].repeat(1, classes)
    probabilities[torch.arange(len(predicted)), predicted] = torch.tensor(confidence)
    return probabilities.log()


LABELS, PREDICTED = [0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 0, 1]
SURE = [0.9, 0.6, 0.5, 0.8, 0.7, 0.99]


def collected(batch: int) -> Confusion:
    decisions = Decisions(4, worst=2)
    logits, labels = logits_for(PREDICTED, SURE, 4), torch.tensor(LABELS)
    for part in torch.arange(6).split(batch):
        decisions.add(logits[part], labels[part], part)
    return decisions.result(["a", "b", "c", "d"])


@pytest.mark.parametrize("batch", [1, 4, 6])
def test_it_counts(batch: int) -> None:
    confusion = collected(batch)
    assert confusion.counts.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert confusion.accuracy == 0.5
    assert [(each.index, each.label, each.predicted) for each in confusion.worst] == [(5, 2, 1), (4, 2, 0)]
    assert confusion.worst[0].confidence == pytest.approx(0.99)
    rows = {row["class"]: row for row in confusion.records()}
    assert rows.keys() == {"a", "b", "c"}  # there is no image of d
    assert (rows["a"]["right"], rows["a"]["images"], rows["a"]["taken_for"]) == (1, 2, "b")
    assert rows["b"]["taken_for"] is None
    assert confusion.confused(2) == [("a", "b", 1), ("c", "a", 1)]
    assert repr(confusion) == "Confusion(4 classes, 6 images, 50.00 % right; a taken for b 1 times)"


def test_processes_add_up_to_one() -> None:
    logits, labels = logits_for(PREDICTED, SURE, 4), torch.tensor(LABELS)
    sent: list[list[torch.Tensor]] = [[], []]

    def run(rank: int, reduce: object) -> Confusion:
        decisions = Decisions(4, worst=2)
        part = torch.arange(6)[rank::2]
        decisions.add(logits[part], labels[part], part)
        return decisions.result("abcd", reduce=reduce, rank=rank, world=2)  # type: ignore[arg-type]

    for rank in range(2):  # what each gives away
        run(rank, lambda tensor, rank=rank: sent[rank].append(tensor) or tensor)
    sums = iter([one + other for one, other in zip(*sent, strict=True)])
    both = run(0, lambda _: next(sums))
    alone = collected(6)
    assert torch.equal(both.counts, alone.counts)
    assert both.worst == alone.worst


def test_equally_sure_errors_come_in_the_order_of_the_images() -> None:
    for order in ([0, 1, 2], [2, 0, 1]):
        decisions = Decisions(2, worst=2)
        for index in order:
            decisions.add(torch.tensor([[0.0, 1.0]]), torch.tensor([0]), torch.tensor([index]))
        assert [each.index for each in decisions.result("ab").worst] == [0, 1]


def test_a_run_and_eval_say_it_class_by_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for name in ("night", "<b>day</b>"):
            folder = tmp_path / "data" / split / name.replace("/", "_")
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    run, out = tmp_path / "run", tmp_path / "eval"
    data = ["--data", "folder", "--data-dir", str(tmp_path / "data")]
    steps = ["--max-steps", "2", "--batch-size", "8", "--log-every", "1", "--accelerator", "cpu"]
    assert cli.run(["train", "--model", "crate_nano_patch2_8", *data, *steps, "--out", str(run)]) == 0
    said = capsys.readouterr().err
    assert f"next: unrolled trace {run}" in said
    results = json.loads((run / "report.json").read_text())["results"]
    page = (run / "report.html").read_text()
    assert all(title in page for title in ("Accuracy (%)", "Class by class", "What to try next", "&lt;b&gt;day"))
    assert "<b>day" not in page
    assert cli.run(["eval", str(run), "--json", "--quiet", "--out", str(out), "--device", "cpu"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["classes"] == results["classes"]
    assert sum(row["right"] for row in answer["classes"]) == answer["accuracy"] * answer["images"]
    assert sum(row["images"] for row in answer["classes"]) == 8
    wrong = [each["image"] for each in answer["worst"]]
    assert len(wrong) == 8 * (1 - answer["accuracy"])
    assert all(Path(name).is_file() for name in wrong)
    assert ("Worst errors" in page) == bool(wrong)
    if wrong:
        assert wrong[0] in page.partition("unrolled explain ")[2]
