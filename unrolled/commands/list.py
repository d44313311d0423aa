"""`unrolled list`."""

from __future__ import annotations

import difflib
import json as json_module
from fnmatch import fnmatch
from typing import Annotated, Literal

from cyclopts import Parameter

from unrolled.commands.common import Device, check_counts, choose_device, named, table
from unrolled.commands.settings import AsJson


def list_(
    pattern: str = "*",
    *,
    compare: Annotated[tuple[str, ...] | None, Parameter(consume_multiple=True, negative="")] = None,
    match: Literal["parameters", "flops"] | None = None,
    batch_size: int = 16,
    device: Device = "auto",
    json: AsJson = False,
) -> None:
    """List this package's models: name, parameters, source and the weights that can be had.

    Sources that begin with "text:" are of language models, for `train --task lm` or `mlm`; their parameters are those
    with the vocabulary of GPT-2 or RoBERTa. All others are models of images.

    Every other timm model can be used too (`timm:NAME`), and Hugging Face ones (`hf:ORG/NAME`).

        unrolled list
        unrolled list "crate_*_224" --json
        unrolled list --compare crate_tiny_patch16_224 timm:vit_tiny_patch16_224
        unrolled list --compare crate_tiny_patch16_224 timm:vit_tiny_patch16_224 --match flops

    Parameters
    ----------
    pattern
        Names to show, with the wildcards * and ?.
    compare
        Image models whose parameters, operations and measured throughput to tabulate instead.
    match
        With `--compare`: make the other models as wide as gives them the parameters, or the operations, of the first.
    batch_size
        Images a batch, for the throughput of `--compare`.
    device
        Where `--compare` measures.
    """
    from unrolled.catalogue import ModelInfo, catalogue, matching
    from unrolled.plugins import plugins

    check_counts(batch_size=batch_size)
    if compare is not None:
        if len(compare) < (2 if match else 1):
            raise ValueError(
                f"--compare: name the models{', the first and those to be matched to it' if match else ''}"
            )
        if pattern != "*":
            raise ValueError(f"pattern={pattern!r}: --compare takes whole names; leave the pattern out")
        _compare(compare, match, batch_size, device, json)
        return
    if match:
        raise ValueError(f"--match {match}: name the models with --compare, first the one to be matched")
    models = matching(pattern)
    models += [
        ModelInfo(name, _count(name), f"added by {point.dist.name if point.dist else point.module}", "")
        for name, point in plugins("models").items()
        if fnmatch(name, pattern)
    ]
    if not models:
        near = difflib.get_close_matches(pattern, catalogue(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(catalogue())}"
        raise ValueError(f"pattern={pattern!r} matches no model; {hint}")
    if json:
        print(json_module.dumps([model._asdict() for model in models], indent=2))
        return
    width = max(len(model.name) for model in models)
    print(f"{'name':<{width}}  {'parameters':>11}  {'weights':<8}  source")
    for model in models:
        print(f"{model.name:<{width}}  {model.parameters:>11,}  {model.weights or '-':<8}  {model.source}")


def _count(name: str) -> int:
    """Parameters of a model that another package adds."""
    import torch

    from unrolled.models import create_model

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in create_model(name).parameters())


def _compare(
    names: tuple[str, ...], match: Literal["parameters", "flops"] | None, batch_size: int, device: Device, json: bool
) -> None:
    import torch

    from unrolled.models.compare import compare
    from unrolled.models.encoder import list_language_models
    from unrolled.provenance import environment

    texts = {model.name for model in list_language_models()}.intersection(names)
    if texts:
        raise ValueError(f"--compare: {', '.join(sorted(texts))}: a language model; only models of images are compared")
    where = choose_device(device)
    rows = compare(tuple(map(named, names)), batch_size=batch_size, device=where, match=match)
    known = environment()
    machine = known["gpus"][where.index or 0] if where.type == "cuda" else str(known["cpu"] or where.type)
    if where.type == "cpu":
        machine += f", {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
    if json:
        settings = {
            "device": str(where),
            "machine": machine,
            "batch_size": batch_size,
            "precision": "fp32",
            "match": match,
        }
        print(json_module.dumps({**settings, "models": [row._asdict() for row in rows]}, indent=2))
        return
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
    print(table(["name", "width", "parameters", "GFLOPs/image", "images/s", "input"], cells))
    print(f"Inference in fp32 on {machine}; batch {batch_size}, best of 7, models taking turns.")
    if match:
        print(f"Widths after the first are those nearest in {'operations' if match == 'flops' else match} to it.")
    print("FLOPs: products, convolutions and attention as run; a multiplication and an addition are two.")
