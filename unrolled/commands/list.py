"""`unrolled list`."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Literal

from unrolled.catalogue import ModelInfo, card_of, catalogue, known_names, matching
from unrolled.commands.options import check_counts, verb
from unrolled.errors import nearest
from unrolled.harness import JsonFlags, print_answer
from unrolled.plugins import plugins
from unrolled.subjects.models import choose_device
from unrolled.subjects.options import Device, MachineFlags
from unrolled.subjects.runs import named
from unrolled.terminal import table


@dataclass(frozen=True, kw_only=True)
class ListOptions(MachineFlags, JsonFlags):
    """Flags of `unrolled list`."""

    pattern: str = field(default="*", kw_only=False)
    """Names to show, with the wildcards * and ?; with a dot also the names of weights that ship (`"*.cifar10"`), with
    the parameters that these have and where their cards are."""
    compare: tuple[str, ...] | None = None
    """Image models whose parameters, operations and measured throughput to tabulate instead."""
    match: Literal["parameters", "flops"] | None = None
    """With `--compare`: make the other models as wide as gives them the parameters, or the operations, of the
    first."""
    batch_size: int = 16
    """Images a batch, for the throughput of `--compare`."""
    device: Device = "auto"
    """Where `--compare` measures."""

    def __post_init__(self) -> None:
        check_counts(batch_size=self.batch_size)
        if self.compare is None:
            if self.match:
                raise ValueError(f"--match {self.match}: name the models with --compare, first the one to be matched")
        elif len(self.compare) < (2 if self.match else 1):
            raise ValueError(
                f"--compare: name the models{', the first and those to be matched to it' if self.match else ''}"
            )
        elif self.pattern != "*":
            raise ValueError(f"pattern={self.pattern!r}: --compare takes whole names; leave the pattern out")


@verb
def list_(options: ListOptions) -> None:
    """List this package's models: name, parameters, source and the weights that can be had.

    Sources that begin with "text:" are of language models, for `train --task lm` or `mlm`; their parameters are those
    with the vocabulary of GPT-2 or RoBERTa, and beside them those without it and without positions: `train` makes these
    tables as large as its tokenizer and `--length` are. All others are models of images.

    Every other timm model can be used too (`timm:NAME`), and Hugging Face ones (`hf:ORG/NAME`).

        unrolled list
        unrolled list "crate_*_224" --json
        unrolled list --compare crate_tiny_patch16_224 timm:vit_tiny_patch16_224
        unrolled list --compare crate_tiny_patch16_224 timm:vit_tiny_patch16_224 --match flops
    """
    if options.compare is not None:
        _compare(options)
        return
    models = [*matching(options.pattern), *_added(options.pattern)]
    if not models:
        added = [model.name for model in _added("*")]
        near = nearest(options.pattern, [*known_names(), *added], 3)
        count = len(catalogue()) + len(added)
        every = '`unrolled list "*.*"` shows all weights'
        if "." not in options.pattern:
            every = f"`unrolled list` shows all {count}"
        hint = f"did you mean {' or '.join(near)}?" if near else every
        raise ValueError(f"pattern={options.pattern!r} matches no model; {hint}")
    width, trained = (max(len(getattr(model, name)) for model in models) for name in ("name", "weights"))
    trained = max(trained, len("weights"))
    # without a column of dashes where there are no language models
    texts = any(model.without_embeddings is not None for model in models)
    inner = "  without embeddings" if texts else ""
    lines = [f"{'name':<{width}}  {'parameters':>11}{inner}  {'weights':<{trained}}  source"]
    for model in models:
        inner = "-" if model.without_embeddings is None else f"{model.without_embeddings:,}"
        lines.append(
            f"{model.name:<{width}}  {model.parameters:>11,}{f'  {inner:>18}' if texts else ''}  "
            f"{model.weights or '-':<{trained}}  {model.source}"
        )
    cards = {model.name: str(card) for model in models if (card := card_of(model.name))}
    lines += [f"card of {name}: {card}" for name, card in cards.items()]
    if any(model.weights and model.name not in cards for model in models):
        lines.append('`unrolled list "*.*"` shows the weights that ship (NAME.TAG), with the parameters that they have')
    rows = [{**model._asdict(), "card": cards.get(model.name)} for model in models]
    print_answer("list", {"models": rows}, "\n".join(lines), json=options.json)


def _added(pattern: str) -> list[ModelInfo]:
    """What other packages add; these are imported, and their models built."""
    points = [point for name, point in plugins("models").items() if fnmatch(name, pattern)]
    if not points:
        return []
    import torch

    from unrolled.models import create_model

    rows = []
    for point in points:
        with torch.device("meta"):
            parameters = sum(parameter.numel() for parameter in create_model(point.name).parameters())
        source = point.dist.name if point.dist else point.module
        rows.append(ModelInfo(point.name, parameters, f"added by {source}", ""))
    return rows


def _compare(options: ListOptions) -> None:
    import torch

    from unrolled.models.compare import compare
    from unrolled.provenance import environment
    from unrolled.subjects.language import is_language_model

    names = options.compare or ()
    if texts := sorted({name for name in names if is_language_model(name)}):
        raise ValueError(f"--compare: {', '.join(texts)}: a language model; only models of images are compared")
    where = choose_device(options.device)
    rows = compare(tuple(map(named, names)), batch_size=options.batch_size, device=where, match=options.match)
    known = environment()
    machine = known["gpus"][where.index or 0] if where.type == "cuda" else str(known["cpu"] or where.type)
    if where.type == "cpu":
        machine += f", {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
    cells = [
        [
            row.name,
            str(row.width or "-"),
            f"{row.parameters:,}",
            f"{row.flops / 1e9:.3f}",
            f"{row.images_per_second:,.{1 if row.images_per_second < 100 else 0}f}",
            " x ".join(map(str, row.input_size)),
        ]
        for row in rows
    ]
    text = (
        f"{table(['name', 'width', 'parameters', 'GFLOPs/image', 'images/s', 'input'], cells)}\n"
        f"Inference in fp32 on {machine}; batch {options.batch_size}, best of 7, models taking turns.\n"
    )
    if options.match:
        nearest = "operations" if options.match == "flops" else options.match
        text += f"Widths after the first are those nearest in {nearest} to it.\n"
    text += "FLOPs: products, convolutions and attention as run; a multiplication and an addition are two."
    facts = {
        "device": str(where), "machine": machine, "batch_size": options.batch_size, "precision": "fp32",
        "match": options.match, "models": [row._asdict() for row in rows],
    }  # fmt: skip
    print_answer("list", facts, text, json=options.json)
