"""R^c of many trained networks of one shape: the students of `crate-aligned`, its trials among them."""

from __future__ import annotations

from dataclasses import dataclass

from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.crate.aligned import cells as aligned
from unrolled.studies.crate.hour.networks import shown
from unrolled.studies.pictures import pictures

Student = aligned.Trial | aligned.Scored


@dataclass(frozen=True, kw_only=True)
class Rates(Cell):
    """What the layers of a student make of the first test images of CIFAR-10."""

    network: Student
    looked_at: int
    eps: float

    def require(self, context: Context) -> None:
        """The test images."""
        pictures("cifar10", "test", context.data_dir)

    def compute(self, context: Context) -> Result:
        """By layer `subspace_rate`, `orthonormal`, R^c with orthonormal bases, and `nonzero`; of the student its
        `accuracy`, on the images that it was scored on, the `passes` it learnt for and the `rate`."""
        import unrolled
        from unrolled.instruments.rates import layerwise
        from unrolled.studies.crate.ablations.cells import orthonormal_rates

        folder = self.network.file(context, "-run") / "model"
        model = unrolled.create_model(str(folder), pretrained=True).eval().to(context.device)
        images = pictures("cifar10", "test", context.data_dir).first(self.looked_at).images
        images = shown(model, images).to(context.device)
        rows = layerwise(model, images, eps=self.eps)
        scored = context.result(self.network)
        lesson = self.network.lesson if isinstance(self.network, aligned.Trial) else aligned.Lesson(**scored["chosen"])
        return {
            **{key: [row[key] for row in rows] for key in ("subspace_rate", "nonzero")},
            "orthonormal": orthonormal_rates(model, images, self.eps),
            "accuracy": scored["accuracy"],
            "passes": self.network.epochs,
            "rate": lesson.rate,
        }


def students() -> list[Student]:
    """All that `crate-aligned` trains: of every lesson a trial, of every way to learn three seeds."""
    made = aligned.cells(aligned.AlignedConfig())
    return [cell for cell in dict.fromkeys(made) if isinstance(cell, aligned.Trial | aligned.Scored)]
