"""Which classes a classifier takes for which, and its worst errors: those it is surest of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unrolled.tables import Tabular

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CLASSES = 2000
"""Above it nothing is counted: the table would have more than four million numbers."""


@dataclass(frozen=True)
class Mistake:
    """An image by its index, its class, the one it was taken for, and that one's probability."""

    index: int
    label: int
    predicted: int
    confidence: float


@dataclass(frozen=True, repr=False)
class Confusion(Tabular):
    """What became of the images of each class.

    Attributes:
        classes: names [c].
        counts: int64 [c, c], images of a class (row) by the class they were taken for (column).
        worst: images taken for another class, the surest first.
    """

    classes: list[str]
    counts: Tensor
    worst: list[Mistake]

    @property
    def accuracy(self) -> float:
        """Share of images taken for what they are."""
        return float(self.counts.diagonal().sum() / self.counts.sum().clamp(min=1))

    def records(self) -> list[dict[str, Any]]:
        """A row for each class with images: how many, how many right, and what it is most often taken for otherwise."""
        rows = []
        for place, (name, row) in enumerate(zip(self.classes, self.counts.tolist(), strict=True)):
            right, images = row[place], sum(row)
            if not images:
                continue
            row[place] = 0
            most = max(row)
            rows.append({
                "class": name, "images": images, "right": right, "accuracy": right / images,
                "taken_for": self.classes[row.index(most)] if most else None, "taken_for_times": most,
            })  # fmt: skip
        return rows

    def confused(self, most: int = 10) -> list[tuple[str, str, int]]:
        """Class, another it was taken for, and how many images: the commonest first."""
        wrong = self.counts.clone().fill_diagonal_(0)
        places = wrong.flatten().argsort(descending=True, stable=True)[:most].tolist()  # of equals the first
        pairs = [divmod(place, len(self.classes)) for place in places]
        return [(self.classes[a], self.classes[b], int(wrong[a, b])) for a, b in pairs if wrong[a, b]]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the share of each class's images by what they were taken for as a map; see `figures.Panel.plot`."""
        return self.panel().plot(ax)

    def panel(self) -> Any:
        """The same as a `figures.HeatMap`, in %; classes without images are empty rows."""
        from unrolled.figures import HeatMap

        counts = self.counts.double()
        return HeatMap(
            title="Taken for, % of a class's images", values=(100 * counts / counts.sum(1, keepdim=True)).numpy(),
            rows=self.classes, columns=self.classes, row_label="is", column_label="taken for",
        )  # fmt: skip

    def __repr__(self) -> str:
        most = "".join(f"; {a} taken for {b} {count} times" for a, b, count in self.confused(1))
        images = int(self.counts.sum())
        return f"Confusion({len(self.classes)} classes, {images:,} images, {100 * self.accuracy:.2f} % right{most})"


class Decisions:
    """Collects a `Confusion` batch by batch, in memory of c x c numbers.

    Args:
        classes: c.
        worst: how many errors to keep.
    """

    def __init__(self, classes: int, worst: int = 10) -> None:
        self._counts = torch.zeros(classes, classes, dtype=torch.float64)
        self._worst = torch.zeros(0, 4, dtype=torch.float64)  # confidence, index, label, predicted
        self._most = worst

    def add(self, logits: Tensor, labels: Tensor, indices: Tensor) -> None:
        """Count a batch.

        Args:
            logits: [b, c].
            labels: integers [b].
            indices: [b], which images they are.
        """
        confidence, predicted = (values.cpu() for values in logits.detach().softmax(-1).max(-1))
        labels = labels.cpu()
        self._counts.index_put_((labels, predicted), torch.ones(len(labels), dtype=torch.float64), accumulate=True)
        wrong = predicted != labels
        rows = torch.stack([part.double() for part in (confidence, indices.cpu(), labels, predicted)], 1)[wrong]
        self._worst = self._surest(torch.cat([self._worst, rows]))

    def _surest(self, rows: Tensor) -> Tensor:
        order = rows[:, 1].argsort()  # of equally sure ones the first, in whatever batches they came
        rows = rows[order]
        return rows[rows[:, 0].argsort(descending=True, stable=True)][: self._most]

    def result(
        self, classes: Sequence[str], *, reduce: Callable[[Tensor], Tensor] | None = None, rank: int = 0, world: int = 1
    ) -> Confusion:
        """What was collected, by all processes (a collective call) where `reduce` sums a float64 tensor over them."""
        counts, worst = self._counts, self._worst
        if reduce is not None and world > 1:
            every = torch.zeros(world, self._most, 5, dtype=torch.float64)
            every[rank, : len(worst), :4] = worst
            every[rank, : len(worst), 4] = 1  # the rest are empty places
            counts, every = reduce(counts), reduce(every).flatten(0, 1)
            worst = self._surest(every[every[:, 4] > 0][:, :4])
        mistakes = [Mistake(int(i), int(label), int(p), float(sure)) for sure, i, label, p in worst.tolist()]
        return Confusion([str(name) for name in classes], counts.long().cpu(), mistakes)
