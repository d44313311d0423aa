"""`unrolled explain`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from unrolled.commands.options import check_counts, verb
from unrolled.commands.settings import did_you_mean
from unrolled.harness import OutputFlags, Run
from unrolled.reading import Json
from unrolled.subjects.images import batches, images_of
from unrolled.subjects.models import choose_device, class_names, open_model, origin
from unrolled.subjects.options import SHIPPED, PictureFlags, SubjectFlags
from unrolled.subjects.runs import data_for, run_of
from unrolled.terminal import progress, table

if TYPE_CHECKING:
    from torch import Tensor, nn

    from unrolled.instruments.explain import Explanation

DRAWS = 16
_REMOVED = 0.1


@dataclass(frozen=True, kw_only=True)
class ExplainOptions(PictureFlags, SubjectFlags, OutputFlags):
    """Flags of `unrolled explain`."""

    image: Path = field(kw_only=False)
    """A picture."""
    model: str = SHIPPED
    """A run folder, or any classifier by one string (`unrolled list`, timm:NAME, hf:ORG/NAME, local:DIR, ...). The
    default is small and comes trained, on CIFAR-10."""
    target: str | None = None
    """Class to explain, by number or name; default: the predicted one."""
    against: str | None = None
    """Explain the logit of the target minus that of this class."""
    data: str | None = None
    """Data set on whose test images removal is measured too, each for its predicted class; default: that of the run
    folder, if it is at hand."""
    images: int = 50
    """How many of them, drawn evenly; 0: none."""
    seed: int = 0
    """Of weights that are not loaded, and of the patches removed for comparison."""
    out: Path | None = None
    """Where pictures, config.yaml, report.html and report.json go; default: runs/explain-MODEL-PICTURE, with a number
    behind it where that holds the result of another model or picture of the same name."""

    def __post_init__(self) -> None:
        check_counts(0, images=self.images, seed=self.seed)


@verb
def explain(options: ExplainOptions) -> None:
    """Decompose one decision: which layers, heads and patches its logit is made of.

    The terms sum to the logit exactly. Evidence for the class (orange) and against it (blue) is painted on the picture,
    of all layers together and of each; what happens to the logit when those patches are removed stands beside it, and
    what it loses when a head is really removed stands beside the head's term. One
    picture proves little, so the same is measured on many images, against random patches: those of --data, or of the
    run's own data where they are at hand.

        unrolled explain cat.jpg
        unrolled explain cat.jpg --model runs/crate --images 200
        unrolled explain cat.jpg --data cifar10 --data-dir data
        unrolled explain cat.jpg --model timm:vit_tiny_patch16_224 --pretrained --target 281 --against 207
        unrolled explain cat.jpg --model crate_base_patch16_224 --weights models/crate-b16 --json
    """
    import numpy as np

    from unrolled.commands.explain_removed import removed_record, removed_sentence
    from unrolled.commands.explain_report import (
        among_sentence,
        decision_sentence,
        explain_report,
        faithfulness_sentence,
        layer_table,
        paint,
        removals_sentence,
        write_pictures,
    )
    from unrolled.data.pictures import read_picture
    from unrolled.instruments.causal import removed
    from unrolled.instruments.explain import explain_logit
    from unrolled.models import MaskedAutoencoder
    from unrolled.subjects.pictures import canvas, prepare

    picture = read_picture(options.image)
    where = choose_device(options.device)
    network = open_model(options, head=True).to(where)
    if isinstance(network, MaskedAutoencoder):
        raise ValueError(f"model: {options.model} is a masked autoencoder without a class head; finetune it first")
    names = list(next(iter(class_names(network, options)), ()))
    prepared = prepare(network, image_size=options.image_size)
    pixels = prepared.tensor(picture)
    target, against = number_of("target", options.target, names), number_of("against", options.against, names)
    run = Run(options, "explain", options.model, options.image.stem)
    explanation = explain_logit(
        network, pixels, target=target, against=against, prefix=prepared.prefix, grid=prepared.grid(pixels)
    )
    without = removed(network, pixels, explanation, seed=options.seed)
    removals = _removals(network, pixels, explanation, options.seed)
    many, highest = _many(network, prepared.prefix, options)
    views = paint(explanation, np.asarray(canvas(picture)))
    write_pictures(run.folder, views)
    result = {
        "model": options.model, "weights": origin(options), "image": str(options.image), **_record(explanation, names),
        "among": _among(explanation, highest, None if many is None else many["data"]),
        "removed": removed_record(without), "removals": removals, "faithfulness": many,
    }  # fmt: skip
    less = "" if result["against"] is None else f" less that of class {result['against']['name']}"
    random = removals["random"]
    text = (
        f"{decision_sentence(result).rstrip()}\n\n{among_sentence(result)}"
        f"Terms of the logit of class {result['target']['name']}{less}, by layer and head; they sum to it:\n\n"
        f"{table(*layer_table(explanation, text=True))}\n"
        f"\n{removed_sentence(without)}\n"
        f"\nChange of the logit without the {removals['patches']} patches most for it: {removals['most for']:+.3f}; "
        f"without as many random ones: {random['mean']:+.3f} ± {random['std']:.3f}. {removals_sentence(removals)}\n"
        f"{faithfulness_sentence(many)}"
    )
    run.finish(explain_report(result, explanation, views, without), result, text, seeds=[options.seed])


def number_of(flag: str, text: str | None, names: list[str]) -> int | None:
    """The class that a flag names or numbers; None without it."""
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        return int(text)
    if text in names:
        return names.index(text)
    known = did_you_mean(text, names) if names else " The names of this model's classes are not known; give a number."
    raise ValueError(f"--{flag} {text}: is neither a number nor the name of a class.{known}")


def named_class(number: int, names: list[str]) -> str:
    """A class by number, and by name where it has another."""
    return f"{number} ({names[number]})" if number < len(names) and names[number] != str(number) else str(number)


def _removals(network: nn.Module, pixels: Tensor, explanation: Explanation, seed: int) -> Json:
    """The logit when a tenth of the patches become the mean colour: those with most evidence, and random ones."""
    import torch

    from unrolled.instruments.readouts.faithfulness import logits_without

    order = explanation.evidence().flatten().argsort(descending=True)
    count = max(1, round(_REMOVED * len(order)))
    generator = torch.Generator().manual_seed(seed)
    chosen = [order[:count], order[-count:]]
    chosen += [torch.randperm(len(order), generator=generator)[:count] for _ in range(DRAWS)]
    removed = torch.zeros(len(chosen), len(order), dtype=torch.bool).scatter_(1, torch.stack(chosen), True)
    change = logits_without(network, pixels, removed, explanation) - explanation.logit
    random = change[2:]
    return {
        "patches": count,
        "most for": float(change[0]),
        "most against": float(change[1]),
        "random": {"mean": float(random.mean()), "std": float(random.std()), "draws": DRAWS},
    }


def _among(explanation: Explanation, highest: list[float], data: str | None) -> Json:
    """How sure it is of its best class, and of how many of the data's images it is less sure; None without data."""
    best = float(explanation.logits.softmax(-1).max())
    lower = sum(each < best for each in highest) / len(highest) if highest else None
    return {
        "classes": len(explanation.logits),
        "probability": best,
        "lower": lower,
        "images": len(highest),
        "data": data,
    }


def _many(network: nn.Module, prefix: int | None, options: ExplainOptions) -> tuple[Json | None, list[float]]:
    """`faithfulness` on test images of the data that was asked for, or of the run's, and the highest probability of
    each; None where there are none.
    """
    import torch

    from unrolled.data.sources import Subset
    from unrolled.errors import MissingData, MissingExtra
    from unrolled.instruments.readouts.faithfulness import faithfulness
    from unrolled.train.evaluation import logits_of

    if not options.images or not (options.data or run_of(options.model, options.weights).get("data")):
        return None, []
    data = data_for(options)
    try:
        everything = images_of(data, "test", quiet=options.quiet)
    except (MissingData, MissingExtra, OSError, ValueError):
        if options.data is not None:
            raise
        return None, []  # the picture is explained without the data
    source = Subset.evenly(everything, options.images)
    loader = batches(network, source, image_size=data.image_size, batch_size=1, on_error="skip")
    bar = progress(loader, total=len(source), what="many images", quiet=options.quiet)
    highest: list[float] = []

    def images() -> Iterator[Tensor]:
        for batch in bar:
            if len(batch):
                with torch.no_grad():
                    logits = logits_of(network(batch.images.to(next(network.parameters()))))
                highest.append(float(logits.float().softmax(-1).max()))
                yield batch.images

    rows = faithfulness(network, images(), prefix=prefix, seed=options.seed)
    return {"data": data.data, "images": rows[0]["images"], "rows": rows}, highest


def _record(explanation: Explanation, names: list[str]) -> Json:
    probabilities = explanation.logits.softmax(-1)
    order = explanation.logits.argsort(descending=True).tolist()
    best = [{"class": i, "name": named_class(i, names), "logit": float(explanation.logits[i])} for i in order[:5]]

    def class_record(number: int) -> Json:
        return {
            "class": number,
            "name": named_class(number, names),
            "probability": float(probabilities[number]),
            "rank": order.index(number) + 1,
        }

    evidence = explanation.evidence()
    return {
        "target": class_record(explanation.target),
        "against": None if explanation.against is None else class_record(explanation.against),
        "logit": explanation.logit,
        "best": best,
        "read": explanation.read,
        "grid": list(explanation.grid),
        "constant": explanation.constant,
        "embed": float(explanation.embed.sum()),
        "halves": [
            {
                "layer": half.layer,
                "kind": half.kind,
                "replaces": half.replaces,
                "total": half.total,
                "heads": None if half.heads is None else half.heads.tolist(),
                "bias": half.bias,
            }
            for half in explanation.halves
        ],
        "evidence": evidence.tolist(),
        "elsewhere": explanation.logit - float(evidence.sum()),
        "error": explanation.error,
    }
