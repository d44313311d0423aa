"""A translation: a linear map between two spaces of features, what it was chosen by, and how well it does on pairs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from unrolled.alignment.translation.frame import Array, Frame, rows_of, unit_rows
from unrolled.tables import Brief, Tabular

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from unrolled.figures import LineChart, Scatter

Kind = Literal["orthogonal", "linear"]
KINDS: tuple[Kind, ...] = ("orthogonal", "linear")
_FORMAT = "unrolled.translation/1"
_LEVEL = 0.05
SIZE = (
    "At 5 %, 15 of 300 unrelated pairs of made-up features pass, clumps and clumps of clumps among them; of other "
    "shapes more may."
)
"""How often the test passes, in words; `benchmarks/translation_null.py` has measured it."""


@dataclass(frozen=True, repr=False)
class Scores(Brief):
    """How well translated rows go to their partners among n.

    Attributes:
        n: pairs, unseen in the fit if it is to count.
        top1: share of translations whose nearest row by cosine is the partner; by chance 1 / n.
        mean_rank: of the partner among all n, 1 at best; by chance (n + 1) / 2. A tie counts half.
        cosine: mean of a translation with its partner.
        shuffled_cosine: the same when partners are relabelled at random, exact.
        ranks: [n] of each partner.
    """

    n: int
    top1: float
    mean_rank: float
    cosine: float
    shuffled_cosine: float
    ranks: Array

    @property
    def chance(self) -> float:
        """`top1` when partners are relabelled at random, exact."""
        return 1 / self.n

    @property
    def chance_rank(self) -> float:
        """`mean_rank` when partners are relabelled at random, exact."""
        return (self.n + 1) / 2

    def to_dict(self) -> dict[str, Any]:
        """Everything but `ranks` as plain values."""
        return {
            "n": self.n, "top1": self.top1, "chance": self.chance, "mean_rank": self.mean_rank,
            "chance_rank": self.chance_rank, "cosine": self.cosine, "shuffled_cosine": self.shuffled_cosine,
        }  # fmt: skip

    def panel(self) -> LineChart:
        """Share of partners among the nearest k, for every k, with the line of chance."""
        from unrolled.figures import LineChart, Series

        ks = np.unique(np.geomspace(1, self.n, 40).round().astype(int))
        shares = [float((self.ranks <= k).mean()) for k in ks]
        return LineChart(
            title=f"share whose partner is among the nearest k of {self.n:,}", x_label="log10 of k",
            series=[
                Series(label="translated", x=np.log10(ks).tolist(), y=shares),
                Series(label="chance", x=np.log10(ks).tolist(), y=(ks / self.n).tolist(), dashed=True),
            ],
        )  # fmt: skip

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw `panel`; see `unrolled.figures.Panel.plot`."""
        return self.panel().plot(ax)


@dataclass(frozen=True, repr=False)
class Translation(Tabular):
    """A map from features of one model to those of another; see `translate`.

    Attributes:
        x_frame, y_frame: what the two sides are brought into.
        map: [w_x, w_y] between the frames.
        kind: "orthogonal" (its singular values are 1) or "linear".
        pairs: known pairs that it was fitted with; 0 without any.
        restarts: of each restart its `seed`, `anchors` and `criterion`, as `Attempt` says.
        chosen: the place of the restart that was taken, which has the largest criterion. None of it knows a pair.
        rotations: [restarts, w_x, w_y], what each of them ended with.
        agreement: of each restart, the mean cosine of its translations of x with those of the chosen one.
        level: what the best of three restarts reaches on the average, which `controls` are compared with.
        controls: the best criterion of three attempts on each rearrangement of y's clusters, up to the first that is as
            high as `level`; see `translate`.
    """

    x_frame: Frame
    y_frame: Frame
    map: Array
    kind: Kind
    pairs: int = 0
    restarts: tuple[dict[str, Any], ...] = ()
    chosen: int = 0
    rotations: Array | None = None
    agreement: tuple[float, ...] = ()
    level: float = 0.0
    controls: tuple[float, ...] = ()

    @property
    def matrix(self) -> Array:
        """[d_x, d_y], from centred features of the one to centred ones of the other."""
        out: Array = self.x_frame.axes @ self.map @ self.y_frame.axes.T
        return out

    @property
    def p_value(self) -> float | None:
        """One over the number of controls up to the first that matches as closely, or over one more than all of them.

        So the data count as one of the controls.
        """
        if not self.controls:
            return None
        return 1 / len(self.controls) if self._reached else 1 / (1 + len(self.controls))

    @property
    def _reached(self) -> bool:
        """Whether a control matches as closely as the data."""
        return any(each >= self.level for each in self.controls)

    @property
    def worked(self) -> bool | None:
        """Whether rows match more closely than the controls at 5 %; None where there were too few to say so."""
        p = self.p_value
        if p is None or (p > _LEVEL and not self._reached):
            return None
        return p <= _LEVEL

    def verdict(self) -> str:
        """In words, what can be said without pairs; a map that some were given to may be good all the same."""
        if not self.restarts:
            return "Fitted to pairs."
        if self.p_value is None:
            return "Not tested: no controls were asked for."
        words = (
            f"rows match at a mean cosine of {self.level:.4f}, with clusters rearranged at {max(self.controls):.4f} at "
            f"most (p = {self.p_value:.2g}, {len(self.controls)} rearrangements)"
        )
        if self.worked is None:
            return f"Not judged, since {len(self.controls)} controls cannot reach p = {_LEVEL}: {words}."
        if self.worked:
            return (
                f"The two spaces match beyond their spread and their clumps: {words}. {SIZE} Only pairs show what the "
                "map is worth."
            )
        if self.pairs:
            return (
                f"The rest of the rows gives no sign of a translation: {words}. That test knows nothing of the "
                f"{self.pairs} pairs given; how held-out pairs fare says what the map is worth."
            )
        return f"No translation was found: {words}. Do not use the map."

    def of_restart(self, number: int) -> Translation:
        """The orthogonal map of another restart, to see by pairs whether the best was chosen.

        Raises:
            ValueError: there is no such restart.
        """
        if self.rotations is None or not 0 <= number < len(self.rotations):
            raise ValueError(f"number={number}: there are {len(self.restarts)} restarts, from 0")
        return Translation(self.x_frame, self.y_frame, self.rotations[number], "orthogonal", self.pairs)

    def apply(self, x: Any) -> Array:
        """Features x [n, d_x] in the space of the other model, float64 [n, d_y], in its units.

        Raises:
            ValueError: no finite numbers [n, d_x].
        """
        rows = rows_of(x, "x", width=len(self.x_frame.mean))
        return self.y_frame.features(self.x_frame.codes(rows) @ self.map)

    def scores(self, x: Any, y: Any) -> Scores:
        """How translations of x [n, d_x] find their partners y [n, d_y], row by row, by cosine of centred rows.

        Raises:
            ValueError: no finite numbers, other widths than fitted, unequal numbers of rows or fewer than 2.
        """
        target = rows_of(y, "y", least=2, width=len(self.y_frame.mean))
        translated = self.apply(x)
        if len(translated) != len(target):
            raise ValueError(f"x has {len(translated)} rows and y {len(target)}: give pairs, row by row")
        left, right = (unit_rows(each - self.y_frame.mean) for each in (translated, target))
        paired = (left * right).sum(1)
        ranks = np.empty(len(left))
        for start in range(0, len(left), 1024):
            part = slice(start, start + 1024)
            cosines = left[part] @ right.T
            rows = np.arange(len(cosines))
            partner = cosines[rows, rows + start][:, None]
            ties = (cosines == partner).sum(1) - 1
            ranks[part] = 1 + (cosines > partner).sum(1) + 0.5 * ties
        shuffled = float(left.mean(0) @ right.mean(0))
        return Scores(
            n=len(left), top1=float((ranks == 1).mean()), mean_rank=float(ranks.mean()), cosine=float(paired.mean()),
            shuffled_cosine=shuffled, ranks=ranks,
        )  # fmt: skip

    def records(self) -> list[dict[str, Any]]:
        """A row a restart, the chosen one marked."""
        return [
            {**each, "agreement": agreement, "chosen": i == self.chosen}
            for i, (each, agreement) in enumerate(zip(self.restarts, self.agreement, strict=True))
        ]

    def __repr__(self) -> str:
        widths = f"{len(self.x_frame.mean)} -> {len(self.y_frame.mean)}"
        return f"Translation({widths}, {self.kind}, {len(self.restarts)} restarts; {self.verdict()})"

    def panel(self) -> Scatter:
        """Restarts by how near they end to the chosen one and how closely their rows match."""
        from unrolled.figures import Scatter

        return Scatter(
            title="restarts",
            x_label="mean cosine of translations with the chosen restart's",
            y_label="criterion",
            x=self.agreement,
            y=[each["criterion"] for each in self.restarts],
            names=["chosen" if i == self.chosen else "" for i in range(len(self.restarts))],
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw `panel`; see `unrolled.figures.Panel.plot`."""
        return self.panel().plot(ax)

    def save(self, path: str | Path) -> None:
        """Write a `.safetensors` file of arrays; the rest stands in its header as JSON.

        Raises:
            ValueError: another suffix.
        """
        from safetensors.numpy import save_file

        path = Path(path)
        if path.suffix != ".safetensors":
            raise ValueError(f"path: {path} must end in .safetensors")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(self._arrays(), path, {"format": _FORMAT, "record": json.dumps(self._header())})

    def _arrays(self) -> dict[str, Array]:
        sides = {"x": self.x_frame, "y": self.y_frame}
        frames = {f"{side}.{name}": getattr(frame, name) for side, frame in sides.items() for name in ("mean", "axes")}
        arrays = {**frames, "map": self.map, **({} if self.rotations is None else {"rotations": self.rotations})}
        return {name: np.ascontiguousarray(array) for name, array in arrays.items()}

    def _header(self) -> dict[str, Any]:
        return {
            "kind": self.kind, "lengths": [self.x_frame.length, self.y_frame.length], "pairs": self.pairs,
            "restarts": list(self.restarts), "chosen": self.chosen, "agreement": list(self.agreement),
            "level": self.level, "controls": list(self.controls),
        }  # fmt: skip

    @classmethod
    def load(cls, path: str | Path) -> Translation:
        """Read what `save` wrote; nothing in it is executed.

        Raises:
            MissingData: no such file.
            CorruptFile: it is damaged, or no translation.
        """
        from unrolled.errors import CorruptFile

        arrays, header = read_recorded(Path(path), _FORMAT)
        try:
            x_frame, y_frame = (
                Frame(arrays[f"{side}.mean"], arrays[f"{side}.axes"], float(length))
                for side, length in zip("xy", header["lengths"], strict=True)
            )
            shape = x_frame.axes.shape[1], y_frame.axes.shape[1]
            if arrays["map"].shape != shape or header["kind"] not in KINDS:
                raise ValueError(f"a map {arrays['map'].shape} between frames {shape}")
            return cls(
                x_frame, y_frame, arrays["map"], header["kind"], int(header["pairs"]), tuple(header["restarts"]),
                int(header["chosen"]), arrays.get("rotations"), tuple(header["agreement"]), float(header["level"]),
                tuple(header["controls"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise CorruptFile(f"{path}: is no whole translation: {error}") from error


def read_recorded(path: Path, form: str) -> tuple[dict[str, Array], dict[str, Any]]:
    """The arrays of a `.safetensors` file of this `form`, and the record in its header.

    Raises:
        MissingData: no such file.
        CorruptFile: it is damaged, or of another form.
    """
    from safetensors import SafetensorError, safe_open

    from unrolled.errors import CorruptFile, MissingData

    if not path.is_file():
        raise MissingData(f"{path}: there is no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != form:
                raise ValueError(f"its format is {metadata.get('format')!r}, not {form!r}")
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(metadata["record"])  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CorruptFile(f"{path}: {error}") from error
