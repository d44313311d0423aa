"""What `unrolled patch` compares: clean and corrupted inputs in batches, and the answers to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from unrolled.commands.explain import named_class, number_of
from unrolled.commands.sweep import OF_TEXTS, causal_reader, predicted, score_for
from unrolled.reading import Json
from unrolled.subjects.models import choose_device, class_names, open_model, origin
from unrolled.subjects.runs import completed
from unrolled.terminal import progress, say

if TYPE_CHECKING:
    from torch import Tensor, nn

    from unrolled.commands.patch_options import PatchOptions
    from unrolled.instruments.causal import Score

_SHOWN = 20  # pairs that the report lists

Batch = tuple[Any, Any, Any]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs of inputs.

    Attributes:
        options: with what they leave open filled in.
        network: what they are shown to.
        make: batches of (clean, corrupted, targets), from the beginning.
        score: of (output, targets).
        count, total: of the pairs, and of their batches.
        name: of the data, for a folder.
        seen: what they are, in words.
        weights: where they are from.
        table: clean, corrupted, answers of the first pairs.
        details: more for `report.json`.
    """

    options: PatchOptions
    network: nn.Module
    make: Callable[[], Sequence[Batch] | Iterator[Batch]]
    score: Score
    count: int
    total: int
    name: str
    seen: str
    weights: str
    table: list[list[str]]
    details: Json = field(default_factory=dict)

    @property
    def random(self) -> str:
        """What must be said first of random weights."""
        return "The weights are random: nothing here was learned. " if self.weights == "random" else ""

    def batches(self, what: str) -> Iterator[Batch]:
        """Them, with progress."""
        return progress(self.make(), total=self.total, what=what, quiet=self.options.quiet)


def image_pairs(options: PatchOptions) -> Pairs:
    """Two pictures, or images of a data set with their partners."""
    if given := [f for f in ("text", "texts", "other", "others", "length") if getattr(options, f)]:
        raise ValueError(f"--{given[0]}: is of language models; leave it out")
    if options.score in OF_TEXTS:
        score_for(str(options.score))
    if options.image is None and options.other_image is None:
        return _data_pairs(options)
    if options.image is None or options.other_image is None:
        raise ValueError("--image, --other-image: are two pictures; give both")
    if options.pairs or options.data:
        raise ValueError("--image: is in place of data; leave out --data and --pairs")
    return _two_pictures(options)


def _two_pictures(options: PatchOptions) -> Pairs:
    from unrolled.data.pictures import read_picture
    from unrolled.models.masked import whole_images
    from unrolled.subjects.pictures import prepare

    assert options.image is not None
    assert options.other_image is not None
    pictures = [read_picture(path) for path in (options.image, options.other_image)]
    where = choose_device(options.device)
    network = whole_images(open_model(options, head=True)).to(where)
    prepared = prepare(network, image_size=options.image_size)
    clean, corrupted = (prepared.tensor(picture).to(where) for picture in pictures)
    if clean.shape != corrupted.shape:
        raise ValueError(
            f"--other-image: becomes {list(corrupted.shape[-2:])} pixels and --image {list(clean.shape[-2:])}; crop "
            "them to one shape"
        )
    names = list(next(iter(class_names(network, options)), ()))
    answers = _answers(options, names, _says(network, [clean]), _says(network, [corrupted]))
    _check_differ(answers, options)
    batch: Batch = (clean, corrupted, answers.to(where))
    row = [options.image.name, options.other_image.name, *(named_class(int(i), names) for i in answers[0])]
    return Pairs(
        options=options, network=network, make=lambda: [batch], score=score_for(options.score or "logit-difference")[0],
        count=1, total=1, name=options.image.stem, seen="the two pictures", weights=origin(options), table=[row],
    )  # fmt: skip


def _data_pairs(options: PatchOptions) -> Pairs:
    from unrolled.data.sources import Subset, evenly
    from unrolled.models.masked import whole_images
    from unrolled.subjects.images import batches, images_of

    options, subject = completed(options)
    everything = images_of(subject, options.split, quiet=options.quiet)
    if options.pairs:
        clean_rows, other_rows = _numbers(options.pairs, len(everything))
    else:
        clean_rows = evenly(min(options.images, len(everything)), len(everything))
        if len(clean_rows) < 2:
            raise ValueError("--images: give at least 2, or name --pairs")
        labels = None if everything.labels is None else np.asarray(everything.labels)[clean_rows]
        other_rows = clean_rows[partners(len(clean_rows), labels, options.seed)]
    where = choose_device(options.device)
    network = whole_images(open_model(options, classes=len(everything.classes), head=True)).to(where)
    sides = [Subset(everything, rows) for rows in (clean_rows, other_rows)]
    names = list(next(iter(class_names(network, options)), ()))
    fixed = [None if text is None else _class(flag, text, names) for flag, text in _given(options)]

    if everything.labels is not None:
        known = np.asarray(everything.labels)
        both = [torch.as_tensor(known[rows]) for rows in (clean_rows, other_rows)]
        _check_differ(
            torch.stack([_or(value, answer) for value, answer in zip(fixed, both, strict=True)], dim=1), options
        )

    def make() -> Iterator[Batch]:
        loaders = [batches(network, s, image_size=options.image_size, batch_size=options.batch_size) for s in sides]
        for clean, other in zip(*loaders, strict=True):
            answers = torch.stack([clean.labels, other.labels], dim=1)
            for column, value in enumerate(fixed):
                if value is not None:
                    answers[:, column] = value
            yield clean.images.to(where), other.images.to(where), answers.to(where)

    count = len(clean_rows)
    return Pairs(
        options=options, network=network, make=make, score=score_for(options.score or "logit-difference")[0],
        count=count, total=-(-count // options.batch_size), name=subject.data, weights=origin(options),
        seen=f"{count:,} pairs of images of {subject.data} ({options.split} split)",
        table=[[f"image {a}", f"image {b}", *_label_names(everything, (a, b), fixed, names)]
               for a, b in list(zip(clean_rows.tolist(), other_rows.tolist(), strict=True))[:_SHOWN]],
        details={"split": options.split},
    )  # fmt: skip


def _label_names(source: Any, rows: tuple[int, int], fixed: Sequence[int | None], names: list[str]) -> list[str]:
    shown = []
    for row, value in zip(rows, fixed, strict=True):
        if value is None and source.labels is not None:
            shown.append(str(source.classes[int(source.labels[row])]))
        else:
            shown.append("its label" if value is None else named_class(value, names))
    return shown


def partners(count: int, labels: np.ndarray | None, seed: int) -> np.ndarray:
    """For each of `count` samples another one, `[count]`, of another class where no class has more than half."""
    order = np.random.default_rng(seed).permutation(count)
    shift = max(1, count // 2)
    if labels is not None:
        order = order[np.argsort(labels[order], kind="stable")]
        shift = min(int(np.unique(labels, return_counts=True)[1].max()), count - 1)
    partner = np.empty(count, np.int64)
    partner[order] = np.roll(order, -shift)
    return partner


def _numbers(pairs: Sequence[str], count: int) -> tuple[np.ndarray, np.ndarray]:
    rows = []
    for text in pairs:
        sides = text.split(":")
        try:
            rows.append([int(side) for side in sides])
        except ValueError:
            rows.append([])
        if len(rows[-1]) != 2 or not all(0 <= side < count for side in rows[-1]):
            raise ValueError(f"--pairs {text}: give two numbers of images from 0 to {count - 1}, such as 3:17")
    table = np.array(rows, np.int64)
    return table[:, 0], table[:, 1]


def text_pairs(options: PatchOptions) -> Pairs:
    """Texts and what each is corrupted to, of as many tokens."""
    if given := [f for f in ("image", "other_image", "pairs", "data") if getattr(options, f)]:
        raise ValueError(f"--{given[0].replace('_', '-')}: is of images; language models take --text and --other")
    where = choose_device(options.device)
    clean_texts, corrupted_texts, name = _both(options)
    reader = causal_reader(options)
    both = [[torch.tensor(reader.encode(text)[: options.length]) for text in side]
            for side in (clean_texts, corrupted_texts)]  # fmt: skip
    for row, (clean, corrupted) in enumerate(zip(*both, strict=True)):
        if len(clean) != len(corrupted) or not len(clean):
            raise ValueError(
                f"--other: text {row + 1} has {len(corrupted)} tokens, and what it corrupts {len(clean)}; say it in as "
                "many, so that a position means the same in both (--length cuts both)"
            )
        if reader.limit is not None and len(clean) > reader.limit:
            raise ValueError(f"--text: text {row + 1} has {len(clean)} tokens; this model takes {reader.limit}")
    order = sorted(range(len(both[0])), key=lambda row: len(both[0][row]))
    network = reader.module.to(where)
    score_name = options.score or "logit-difference"
    score, factor = score_for(score_name, predicted(reader, both[0]))
    groups = list(_of_one_length(order, [len(text) for text in both[0]], options.batch_size))
    sides = [[torch.stack([side[row] for row in rows]) for rows in groups] for side in both]
    targets: list[Any] = [(ids, factor) for ids in sides[0]]
    table: list[list[str]] = []
    if score_name not in OF_TEXTS:
        says = [_says(network, [reader.given(ids.to(where)) for ids in side]) for side in sides]
        wanted = [None if text is None else _token(reader, flag, text) for flag, text in _given(options)]
        answers = torch.stack([_or(token, answer) for token, answer in zip(wanted, says, strict=True)], dim=1)
        _check_differ(answers, options)
        targets = list(answers.split([len(rows) for rows in groups]))
        rows = [row for group in groups for row in group]
        table = [[clean_texts[row], corrupted_texts[row], *(_shown(reader, int(i)) for i in answers[at])]
                 for at, row in enumerate(rows[:_SHOWN])]  # fmt: skip
    shown: list[Batch] = [
        (reader.given(clean.to(where)), reader.given(corrupted.to(where)), target)
        for clean, corrupted, target in zip(*sides, targets, strict=True)
    ]
    seen = "the pair of texts" if len(order) == 1 else f"{len(order):,} pairs of texts"
    say(f"data: {seen}", quiet=options.quiet)
    return Pairs(
        options=options, network=network, make=lambda: shown, score=score, count=len(order), total=len(shown),
        name=name, seen=seen, weights="random" if reader.random else options.model, table=table,
    )  # fmt: skip


def _both(options: PatchOptions) -> tuple[list[str], list[str], str]:
    """The texts, those they are corrupted to, and a name."""
    from unrolled.data.text import read_lines
    from unrolled.errors import MissingData

    sides = []
    for flag, given, path in (("text", options.text, options.texts), ("other", options.other, options.others)):
        if bool(given) == bool(path):
            raise ValueError(
                f"--{flag}, --{flag}s: give the clean texts and the corrupted ones, each here or in a file"
            )
        if path is not None:
            if not path.expanduser().is_file():
                raise MissingData(f"--{flag}s: there is no file {path}")
            sides.append(read_lines(path.expanduser())[: options.images])
        else:
            sides.append(list(given))
    if len(sides[0]) != len(sides[1]):
        raise ValueError(f"--other: are {len(sides[1])} texts for {len(sides[0])}; give one for each")
    if not sides[0]:
        raise ValueError("--texts: holds no text")
    return sides[0], sides[1], "text" if options.texts is None else options.texts.stem


def _of_one_length(order: Sequence[int], lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    group: list[int] = []
    for row in order:
        if group and (len(group) == size or lengths[row] != lengths[group[0]]):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _says(network: nn.Module, inputs: Sequence[Any]) -> Tensor:
    """The answer with the highest logit to each of the inputs, on the CPU."""
    from unrolled.instruments.causal.scores import logits_of
    from unrolled.instruments.causal.sweeps import call

    answers = []
    with torch.no_grad():
        for each in inputs:
            logits = logits_of(call(network, each))
            answers.append((logits[:, -1] if logits.dim() == 3 else logits).argmax(-1).cpu())
    return torch.cat(answers)


def _given(options: PatchOptions) -> list[tuple[str, str | None]]:
    return [("answer", options.answer), ("against", options.against)]


def _answers(options: PatchOptions, names: list[str], right: Tensor, other: Tensor) -> Tensor:
    """What was asked for, else what the model says, `[b, 2]`."""
    wanted = [None if text is None else _class(flag, text, names) for flag, text in _given(options)]
    return torch.stack([_or(value, answer) for value, answer in zip(wanted, (right, other), strict=True)], dim=1)


def _check_differ(answers: Tensor, options: PatchOptions) -> None:
    """Refuse a difference between an answer and itself, [pairs, 2], which is always 0; say where there are some."""
    if (options.score or "logit-difference") != "logit-difference":
        return
    same = int((answers[:, 0] == answers[:, 1]).sum())
    if same == len(answers):
        raise ValueError(
            "--answer, --against: are the same in every pair, so their logits do not differ; name them, or take "
            "--score probability"
        )
    if same:
        say(f"note: in {same} of {len(answers)} pairs both answers are the same, and their difference is 0")


def _or(value: int | None, answer: Tensor) -> Tensor:
    return answer if value is None else torch.full_like(answer, value)


def _class(flag: str, text: str, names: list[str]) -> int:
    number = number_of(flag, text, names)
    assert number is not None
    return number


def _shown(reader: Any, token: int) -> str:
    return f"token {token}" if reader.decode is None else f"{reader.decode([token])!r} (token {token})"


def _token(reader: Any, flag: str, text: str) -> int:
    ids = reader.pieces(text)
    if len(ids) != 1:
        raise ValueError(f"--{flag} {text!r}: is {len(ids)} tokens of this model; give a text that is one")
    return int(ids[0])
