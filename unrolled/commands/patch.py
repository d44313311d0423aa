"""`unrolled patch`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from unrolled.commands.options import verb
from unrolled.commands.patch_options import PatchOptions
from unrolled.commands.sweep import add_places, cells_of, how_many_are_clear, positions_of, store_of, within
from unrolled.harness import Answer, Run
from unrolled.terminal import table

if TYPE_CHECKING:
    from unrolled.commands.patch_pairs import Pairs
    from unrolled.instruments.causal import Effects
    from unrolled.report import Report

_AGREEMENT = ("rank_correlation", "low", "high")


@verb
def patch(options: PatchOptions) -> None:
    """Bring parts of a clean run into a corrupted one, one at a time, and see which bring the answer back.

    Each place is patched by itself (exact), and to first order beside it, with how well the two agree. A random change
    as large as the patch is the control. Intervals are over pairs. Stopped, it goes on when it is called again with the
    same flags.

        unrolled patch runs/cifar10 --images 128
        unrolled patch runs/cifar10 --pairs 3:17 5:9 --places "block*/attn/head*"
        unrolled patch runs/cifar10 --image cat.jpg --other-image dog.jpg --places "block??" --positions each
        unrolled patch hf:gpt2 --text "Paris is the capital of" --other "Rome is the capital of" --positions each
        unrolled patch hf:gpt2 --texts clean.txt --others corrupted.txt --sender block05/attn/head1
    """
    from unrolled.commands.patch_pairs import image_pairs, text_pairs
    from unrolled.subjects.texts import reads_text

    texts = bool(options.other or options.others) or (options.image is None and reads_text(options))
    pairs = text_pairs(options) if texts else image_pairs(options)
    options = replace(pairs.options, score=options.score or "logit-difference")
    run = Run(options, "patch", options.model, pairs.name)
    store = store_of(run, options)
    exact, first_order = _effects(options, pairs, store)
    effects = exact if exact is not None else first_order
    assert effects is not None
    beside = first_order if exact is not None else None
    agreement = None if beside is None or exact is None else exact.agreement(beside, seed=options.seed)
    result: Answer = {
        "model": options.model, "data": pairs.name, "weights": pairs.weights, "pairs": pairs.count,
        "score": options.score, "sender": options.sender, "clean": effects.goal, "corrupted": effects.score,
        "places": effects.records(), **pairs.details,
        "first_order": None if first_order is None else first_order.records(),
        "agreement": None if agreement is None else dict(zip(_AGREEMENT, agreement, strict=True)),
    }  # fmt: skip
    words = _words(options, effects, beside, agreement, pairs)
    run.finish(
        _report(options, result, effects, beside, words, pairs), result,
        f"{table(*cells_of(effects, beside))}\n{words}", seeds=[options.seed],
    )  # fmt: skip
    store.remove()


def _effects(options: PatchOptions, pairs: Pairs, store: Any) -> tuple[Effects | None, Effects | None]:
    """Exact effects, and those to first order, as far as they are asked for."""
    from unrolled.instruments import causal

    positions = positions_of(options.positions)
    if options.sender is not None:
        shown = pairs.batches("path patching")
        return causal.path_patching(
            pairs.network, shown, pairs.score, options.sender, options.places, seed=options.seed, store=store
        ), None
    exact = first_order = None
    if options.method != "attribution":
        exact = causal.patching(
            pairs.network, pairs.batches("patch"), pairs.score, options.places, positions=positions,
            seed=options.seed, store=store,
        )  # fmt: skip
    if options.method != "activation" and options.score != "accuracy":
        first_order = causal.attribution(
            pairs.network, pairs.batches("first order"), pairs.score, options.places, positions=positions,
            seed=options.seed,
        )  # fmt: skip
    return exact, first_order


def _words(
    options: PatchOptions, effects: Effects, first_order: Effects | None,
    agreement: tuple[float, float, float] | None, pairs: Pairs,
) -> str:  # fmt: skip
    """What was found."""
    from unrolled.instruments.causal.scores import SCORES

    largest = max(effects, key=lambda row: abs(row.change))
    label = SCORES[str(options.score)].words
    through = f"{options.sender} through {largest.name}" if options.sender else largest.name
    text = (
        f"{pairs.random}{label}: {effects.goal:.4f} on the clean inputs, {effects.score:.4f} on the corrupted ones. "
        f"{through} changes the latter most when it is patched, by {largest.change:+.4f}"
        f"{within(largest.low, largest.high)}, {largest.share:.3f} of the difference"
    )
    if not math.isnan(largest.control):
        text += f"; a random change as large does {largest.control:+.4f}"
    text += f". {how_many_are_clear(effects)}"
    if agreement is not None and first_order is not None:
        rho, low, high = agreement
        text += (
            " Too few places differ for a rank correlation with the first order."
            if math.isnan(rho)
            else f" To first order (gradient times difference) places rank alike: {rho:.3f}{within(low, high, '.3f')}."
        )
    return text


def _report(
    options: PatchOptions, result: Answer, effects: Effects, first_order: Effects | None, words: str,
    pairs: Pairs,
) -> Report:  # fmt: skip
    from unrolled.report import Fact, Report

    report = Report(
        f"What {result['model']} answers with, place by place",
        question="Which parts of a clean run bring its answer back when they are patched into a corrupted run?",
    )
    facts = [
        Fact(label="On the clean inputs", value=f"{effects.goal:.4f}", detail=pairs.seen),
        Fact(label="On the corrupted inputs", value=f"{effects.score:.4f}", detail=str(result["score"])),
    ]
    if result["agreement"] is not None:
        agreement = result["agreement"]
        facts.append(
            Fact(
                label="First order ranks places alike", value=f"{agreement['rank_correlation']:.3f}",
                detail=f"Spearman's correlation{within(agreement['low'], agreement['high'], '.3f')}, over places",
            )
        )  # fmt: skip
    report.headline(words, facts)
    section = report.section(
        "Every place" if options.sender is None else f"From {options.sender} to every receiver",
        "Change: the score of the corrupted run with the place patched, less without; the places are those of "
        "`unrolled trace`, `blockNN/subspaceK` is what the tokens that enter the block have in the subspace of its "
        "head K, and `@` stands before the only token that is patched. Share: of the difference of the two runs; 1 "
        "brings back all of it. Random change: as far at every token, in a random direction. First order: gradient "
        "times difference. A place that brings the answer back is enough for it here, which does not show that it is "
        "needed; what two places do together is not seen.",
    )
    add_places(section, effects, f"Mean over {pairs.seen}.", first_order)
    if pairs.table:
        report.section("The pairs").table(
            ["clean", "corrupted", "right answer", "other answer"], pairs.table,
            caption=f"The first {len(pairs.table)} of {pairs.count}.",
        )  # fmt: skip
    return report
