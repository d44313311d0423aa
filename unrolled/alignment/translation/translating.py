"""From two sets of features whose rows nobody has paired to a map between them, by restarts that can be resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from unrolled.alignment.translation.anchors import rearranged
from unrolled.alignment.translation.fitting import (
    Attempt,
    Pairs,
    Recipe,
    attempt,
    expected_best,
    linear_map,
    procrustes,
    ridge,
)
from unrolled.alignment.translation.frame import Array, Frame, rows_of, unit_rows, varied_rows
from unrolled.alignment.translation.record import KINDS, Kind, Translation, read_recorded

LEAST = 8
"""Rows of each side below which no anchors are looked for."""
_FORMAT = "unrolled.attempt/2"
_RESTART, _CONTROL, _ROWS, _REARRANGED = 0, 1, 2, 3  # streams of random numbers


def translate(
    x: Any,
    y: Any,
    *,
    pairs: tuple[Any, Any] | None = None,
    kind: Kind = "orthogonal",
    restarts: int = 10,
    controls: int = 19,
    seed: int = 0,
    folder: str | Path | None = None,
    recipe: Recipe | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Translation:
    """A linear map from x [n, d_x] to y [m, d_y], the features of two models of different samples of the same kind.

    The method of mini-vec2vec (G. Dar, arXiv 2510.02348), whose core, matching by quadratic assignment of similarities
    within each side, is also that of "It's a (Blind) Match!" (D. Schnaus et al., arXiv 2503.24129):

    1. rows are centred and scaled to unit length on both sides;
    2. k-means finds 20 centroids on each side, quadratic assignment matches them by their inner products; several sets
       of these are the anchors;
    3. a row is described by its cosines with the anchors (its relative code), and its pseudo-partner is the mean of the
       rows of y with the nearest codes; Procrustes turns x to these;
    4. a hundred times: rows of a sample are translated, the mean of their nearest rows of y are the new partners, and
       the map moves half-way to their Procrustes map.

    Departures: rows are first brought into their leading 64 principal directions; assignment starts from FAQ and 2-opt
    compares all exchanges at once; the average of two maps is made orthogonal again; neighbours are a hundredth of y
    instead of 50, since y has hundreds of rows and not tens of thousands; the paper's second refinement, one step with
    500 centroids, is left out; there are restarts, and the one whose rows match most closely is taken.

    Whether the map means anything is tested without pairs. A control is y with its clusters moved: each keeps its size
    and its shape, how coarse and fine differences between them spread stays, and how they lie to each other does not
    (`anchors.rearranged`). The closest match of three attempts on each control is compared with what three of the
    restarts reach on the average; at the first control that matches as closely the test ends (Besag and Clifford 1991),
    and unless it is the twentieth or a later one the record says that no translation was found. At 5 % it passes 15 of
    300 unrelated pairs of made-up features (100 rows of 10 numbers a side: clumps, many, far and nested ones, and
    none; exact interval 2.8 to 8.1 %). Of 100 related pairs 43 were translated, and 40 of these pass, of the others 3
    (`benchmarks/translation_null.py`). Of a structure that k-means and a tree do not see it knows nothing. Closer than
    all controls does not say how good a map is: that takes `Translation.scores` on pairs.

    Args:
        x, y: features, at least 8 rows each, and hundreds for anything to come of it; their rows need not be paired,
            nor equally many. Widths may differ: the map then has orthonormal rows or columns between the frames.
        pairs: few rows [k, d_x] and [k, d_y], k at least 2, that are known to belong together: they are the anchors,
            and together weigh as much as all other rows.
        kind: "orthogonal", or "linear": a ridge regression to the partners under the orthogonal map.
        restarts: attempts from other anchors and samples.
        controls: rearrangements of y, three attempts each; fewer than 19 cannot reach p = 0.05, 0 tests nothing.
        seed: of all that is drawn. One seed gives the same map on one machine with as many threads.
        folder: each attempt is written there, a file each, and read by a later call with the same features and
            settings, which goes on from there and ends the same.
        recipe: the numbers of the method.
        progress: shows how far the attempts are.

    Raises:
        ValueError: naming the argument: bad features or numbers, too few rows, an unknown kind.
    """
    recipe = recipe or Recipe()
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: choose one of {', '.join(KINDS)}")
    for name, value, least in (("restarts", restarts, 1), ("controls", controls, 0), ("seed", seed, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}={value!r}: must be a whole number of at least {least}")
    given = varied_rows(x, "x", least=LEAST), varied_rows(y, "y", least=LEAST)
    sides = [_drawn(rows, recipe.rows, np.random.default_rng([seed, _ROWS, i])) for i, rows in enumerate(given)]
    frames = Frame.of(sides[0], recipe.width), Frame.of(sides[1], recipe.width)
    partners = _paired_rows(pairs, frames)
    known = Pairs(*(frame.codes(rows) for frame, rows in zip(frames, partners, strict=True)))
    left, right = (frame.codes(rows) for frame, rows in zip(frames, sides, strict=True))
    store = _Store(None if folder is None else Path(folder), (left, right, known.x, known.y), recipe, seed)

    places = iter(progress(range(restarts + controls)))
    tried = [
        store.attempt(f"restart-{i:03d}", partial(attempt, left, right, known, recipe, _drawing(seed, _RESTART, i)))
        for i in islice(places, restarts)
    ]
    level = expected_best([each.criterion for each in tried], recipe.tries)
    tested: list[float] = []
    test = seed, min(restarts, recipe.tries), level
    target, other = ((rows - frames[1].mean) / frames[1].length for rows in (sides[1], partners[1]))
    for number, _ in enumerate(places):
        tested.append(_control(left, target, (known.x, other), recipe, number, test, store))
        if tested[-1] >= level:
            break
    chosen = int(np.argmax([each.criterion for each in tried]))
    rotation = tried[chosen].rotation
    translated = unit_rows(left @ rotation)
    return Translation(
        x_frame=frames[0],
        y_frame=frames[1],
        map=rotation if kind == "orthogonal" else linear_map(left, right, rotation, known, recipe),
        kind=kind,
        pairs=len(known),
        restarts=tuple(
            {"restart": i, "anchors": each.anchors, "criterion": each.criterion} for i, each in enumerate(tried)
        ),
        chosen=chosen,
        rotations=np.stack([each.rotation for each in tried]),
        agreement=tuple(float((unit_rows(left @ each.rotation) * translated).sum(1).mean()) for each in tried),
        level=level,
        controls=tuple(tested),
    )


def _control(
    x: Array, y: Array, pairs: tuple[Array, Array], recipe: Recipe, number: int, test: tuple[int, int, float],
    store: _Store,
) -> float:  # fmt: skip
    """The best criterion of some attempts on y with its clusters rearranged; no more once one reaches a level.

    Args:
        x: codes.
        y: features, whose frame is another where they are rearranged.
        pairs: codes of the one side and features of the other.
        recipe: as `attempt`.
        number: of the rearrangement.
        test: the seed, how many attempts, and the level.
        store: of attempts.
    """
    seed, tries, level = test
    both = np.concatenate([y, pairs[1]])
    both = rearranged(both, min(recipe.clusters, len(y) // 2), _drawing(seed, _REARRANGED, number))
    moved, partners = both[: len(y)], both[len(y) :]
    frame = Frame.of(moved, recipe.width)
    target, known = frame.codes(moved), Pairs(pairs[0], frame.codes(partners))
    best = -1.0
    for i in range(tries):
        compute = partial(attempt, x, target, known, recipe, _drawing(seed, _CONTROL, number, i))
        best = max(best, store.attempt(f"control-{number:03d}-{i}", compute).criterion)
        if best >= level:
            break
    return best


def _drawing(*numbers: int) -> np.random.Generator:
    return np.random.default_rng(numbers)


def translate_paired(x: Any, y: Any, *, kind: Kind = "orthogonal", recipe: Recipe | None = None) -> Translation:
    """The map from x [n, d_x] to y [n, d_y] whose rows are pairs: the upper bound of what `translate` can reach.

    Procrustes, or ridge regression for "linear", in the same frames.

    Raises:
        ValueError: as `translate`, or unequal numbers of rows.
    """
    recipe = recipe or Recipe()
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: choose one of {', '.join(KINDS)}")
    left, right = varied_rows(x, "x", least=2), varied_rows(y, "y", least=2)
    if len(left) != len(right):
        raise ValueError(f"x has {len(left)} rows and y {len(right)}: give pairs, row by row")
    frames = Frame.of(left, recipe.width), Frame.of(right, recipe.width)
    a, b = (frame.codes(rows) for frame, rows in zip(frames, (left, right), strict=True))
    fitted = procrustes(a, b) if kind == "orthogonal" else ridge(a, b, recipe.ridge)
    return Translation(*frames, fitted, kind, pairs=len(left))


def _drawn(rows: Array, most: int, generator: np.random.Generator) -> Array:
    """At most so many of them, in order."""
    return rows if len(rows) <= most else rows[np.sort(generator.permutation(len(rows))[:most])]


def _paired_rows(pairs: tuple[Any, Any] | None, frames: tuple[Frame, Frame]) -> tuple[Array, Array]:
    """Features of the known pairs; no rows of none."""
    if pairs is None:
        none = [np.zeros((0, len(frame.mean))) for frame in frames]
        return none[0], none[1]
    if not isinstance(pairs, tuple | list) or len(pairs) != 2:
        raise ValueError("pairs: give two arrays, rows [k, d_x] and their partners [k, d_y]")
    rows = [
        rows_of(each, f"pairs[{i}]", least=2, width=len(frame.mean))
        for i, (each, frame) in enumerate(zip(pairs, frames, strict=True))
    ]
    if len(rows[0]) != len(rows[1]):
        raise ValueError(f"pairs: {len(rows[0])} rows and {len(rows[1])} partners; give as many")
    return rows[0], rows[1]


class _Store:
    """Attempts in files, each with what it follows from; without a folder nothing is kept."""

    def __init__(self, folder: Path | None, arrays: Iterable[Array], recipe: Recipe, seed: int) -> None:
        self._folder = folder
        digest = sha256(json.dumps([asdict(recipe), seed]).encode())
        for array in arrays:
            digest.update(f"{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        self._key = digest.hexdigest()

    def attempt(self, name: str, compute: Callable[[], Attempt]) -> Attempt:
        """The attempt of this name, read or computed and written, whole or not at all."""
        if self._folder is None:
            return compute()
        path = self._folder / f"{name}.safetensors"
        known = self._read(path)
        if known is None:
            known = compute()
            self._write(path, known)
        return known

    def _read(self, path: Path) -> Attempt | None:
        from unrolled.errors import CorruptFile, MissingData

        try:
            arrays, record = read_recorded(path, _FORMAT)
            if record["key"] != self._key:
                return None
            return Attempt(arrays["rotation"], record["anchors"], record["criterion"])
        except (CorruptFile, MissingData, KeyError, TypeError):
            return None

    def _write(self, path: Path, made: Attempt) -> None:
        from safetensors.numpy import save_file

        path.parent.mkdir(parents=True, exist_ok=True)
        record: Mapping[str, Any] = {"key": self._key, "anchors": made.anchors, "criterion": made.criterion}
        part = path.with_suffix(f".{os.getpid()}.part")
        rotation = np.ascontiguousarray(made.rotation)
        save_file({"rotation": rotation}, part, {"format": _FORMAT, "record": json.dumps(record)})
        part.replace(path)
