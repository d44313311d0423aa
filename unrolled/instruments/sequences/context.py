"""What a sequence model makes of its context: how much it helps, how tokens are bound, and whether layers descend.

Models are met through `unrolled.trace`: ours and Hugging Face causal language models alike. Inputs are token ids [b, n]
or observations [b, n, d]; ids are represented by the rows of the model's own embedding table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unrolled.instruments.anatomy import unwrap
from unrolled.instruments.readouts.probes import (
    LAYERS,
    PAPER_PENALTY,
    Protocol,
    Readout,
    Record,
    activations,
    check_batches,
    fit_readout,
    probe,
    run,
    widen,
)
from unrolled.instruments.sequences.parts import last_token_attention, last_token_sensitivity
from unrolled.modes import evaluating
from unrolled.theory.in_context import ridge_regression

# penalties of the in-context least squares, relative to the mean square of the context's keys
_CONTEXT_RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


def token_losses(
    model: nn.Module, inputs: Tensor, targets: Tensor | None = None, *, batch_size: int | None = None
) -> Tensor:
    """Loss of every prediction.

    Args:
        model: returns logits or predictions [b, n, ...], or an object with `logits`.
        inputs: token ids [b, n] or observations [b, n, d].
        targets: ids [b, n] or values [b, n, e]; the next input if None, and then one prediction fewer.
        batch_size: run the model on so many sequences at a time.

    Returns:
        [b, n] or [b, n - 1]: cross-entropy in nats for ids, 1/2 |error|^2 for values.
    """
    discrete = not inputs.is_floating_point()
    if targets is None:
        if not discrete and inputs.ndim != 3:
            raise ValueError(f"inputs: observations must be [b, n, d], not {tuple(inputs.shape)}")
        targets = inputs[:, 1:]
    if targets.shape[1] < 1:
        raise ValueError(f"inputs: {inputs.shape[1]} tokens; a loss needs at least one token and the one after it")
    step = check_batches(len(inputs), batch_size)
    losses = []
    with evaluating(model), torch.no_grad():
        for truth, out in zip(targets.split(step), run(model, inputs, step), strict=True):
            predicted = getattr(out, "logits", out)[:, : truth.shape[1]]
            if discrete:
                losses.append(F.cross_entropy(predicted.float().mT, truth, reduction="none"))
            elif predicted.shape != truth.shape:
                raise ValueError(
                    f"targets: are [b, n, e] = {list(truth.shape)}, but the model predicts {list(predicted.shape)}; "
                    "give one value for every predicted one"
                )
            else:
                losses.append(0.5 * (predicted - truth).square().sum(-1))
    return torch.cat(losses)


def in_context_score(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor | None = None,
    *,
    early: int = 50,
    late: int = 500,
    window: int = 1,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """How much lower the loss is late in the context than early: L(late) - L(early), negative if context helps.

    Args:
        model, inputs, targets, batch_size: as in `token_losses`.
        early, late: positions, counted from 0; the paper's protocol is one position each. The defaults are for text of
            some hundred tokens; for sequences of 50 steps take e.g. 5 and 45.
        window: average so many positions from each of them on, for less noise.

    Returns:
        `score`, its `standard_error` over sequences (paired), `early` and `late` (mean losses), `sequences`, and
        `curve`: the mean loss at every position.

    Raises:
        ValueError: the sequences are too short for the positions.
    """
    losses = token_losses(model, inputs, targets, batch_size=batch_size)
    return score_of(losses, early=early, late=late, window=window)


def score_of(losses: Tensor, *, early: int, late: int, window: int = 1) -> dict[str, Any]:
    """`in_context_score` of losses [b, n] that are known already."""
    losses = widen(losses)
    if not 0 <= early < late:
        raise ValueError(f"early={early}, late={late}: must be 0 <= early < late")
    if window < 1 or late + window > losses.shape[1]:
        raise ValueError(
            f"late={late}, window={window}: there are only {losses.shape[1]} predictions; "
            "give longer inputs or smaller positions"
        )
    first, last = (losses[:, p : p + window].mean(1) for p in (early, late))
    change, count = last - first, len(losses)
    return {
        "score": float(change.mean()),
        "standard_error": float(change.std() / count**0.5) if count > 1 else float("nan"),
        "early": float(first.mean()),
        "late": float(last.mean()),
        "sequences": count,
        "curve": losses.mean(0).tolist(),
    }


def token_binding(
    model: nn.Module,
    inputs: Tensor,
    *,
    states: Tensor | None = None,
    lags: int = 5,
    position: int = -1,
    layer: str = "block00",
    attention: bool = False,
    protocol: Protocol = "held-out",
    directions: int = 4,
    batch_size: int | None = None,
    seed: int = 0,
) -> list[Record]:
    """Which earlier tokens a layer has copied into a later one (arXiv 2309.05858, figures 2 and 14 to 17).

    Args:
        model: as in `probe_model`.
        inputs: ids [b, n] or observations [b, n, d].
        states: what is to be found, [b, n, e]; the observations, or the embeddings of the ids, if None.
        lags: look for the tokens 0, 1, ..., `lags` back.
        position: of the token looked at.
        layer: name in `unrolled.trace` of the layer whose output is read.
        attention: also report the attention weights of that layer (see `unrolled.trace`).
        protocol: as in `probe`.
        directions: random directions from which the sensitivity is estimated; 0 leaves it out.
        batch_size: run the model on so many sequences at a time.
        seed: of the probes and directions.

    Returns:
        a record for each lag: `lag`; `score`, `error`, `baseline`, `control`, `selectivity` of the probe as in `probe`;
        `before`, the score of the same probe on the tokens that enter the first block, and `gain = score - before`;
        `sensitivity`, the root mean square over sequences of the Frobenius norm of d token / d earlier token, both as
        vectors of the residual stream; with `attention`, `attention` (mean over heads) and `attention_heads`.

    Raises:
        ValueError: `position` leaves no room for the lags, or as in `probe`.
    """
    length = inputs.shape[1]
    if not -length <= position < length or position % length < lags or lags < 0:
        raise ValueError(f"position={position}: must be one of {length}, with lags={lags} tokens before it")
    if directions < 0:
        raise ValueError(f"directions={directions}: must be 0 (no sensitivity) or more")
    at = position % length
    states = _states(model, inputs, states)
    inputs, states = inputs[:, : at + 1], states[:, : at + 1]
    values = activations(model, inputs, layers=["embed", layer], batch_size=batch_size, keep=lambda z: z[:, at])
    weights = last_token_attention(model, inputs, layer, batch_size) if attention else None
    norms = last_token_sensitivity(model, inputs, layer, directions, batch_size, seed) if directions else None
    records = []
    for lag in range(lags + 1):
        [after], [before] = (
            probe(values[name], states[:, at - lag], protocol=protocol, seed=seed) for name in (layer, "embed")
        )
        record = {"lag": lag, **after, "position": at, "before": before["score"]}
        record["gain"] = after["score"] - before["score"]
        if norms is not None:
            record["sensitivity"] = float(norms[at - lag])
        if weights is not None:
            record["attention"] = float(weights[:, at - lag].mean())
            record["attention_heads"] = weights[:, at - lag].tolist()
        records.append(record)
    return records


def mesa_descent(
    model: nn.Module,
    inputs: Tensor,
    *,
    states: Tensor | None = None,
    position: int | None = None,
    pairs: int = 8,
    layers: str | Sequence[str] = LAYERS,
    protocol: Protocol = "held-out",
    test_fraction: float = 0.25,
    batch_size: int | None = None,
    seed: int = 0,
) -> list[Record]:
    r"""Does the residual stream descend the least-squares objective of its own context, layer by layer?

    A layer's tokens are read by a linear readout g, fitted to the next state. What the layer has made of its context is
    then a function from queries to predictions: the last token u is replaced by earlier tokens and g is read again. Its
    value of the mesa-objective is

    $$ L = \frac1m \sum_{t'} \tfrac12 |s_{t'+1} - g(z(s_0, \dots, s_{t-1}, u = s_{t'}))|^2 $$

    over m earlier tokens whose successors the context shows. A layer that takes a descent step lowers it. A model that
    knows the answer from training rather than from context lowers as much the same sum for pairs of *another* sequence,
    which is the control (`foreign`): only the difference is learned in context.

    Args:
        model: as in `probe_model`.
        inputs: ids [b, n] or tokens [b, n, d].
        states: s, [b, n, e]; the tokens, or the embeddings of the ids, if None. Constructed tokens need it.
        position: t, of the last token used; the last one that has a successor if None.
        pairs: m.
        layers: names or patterns of `unrolled.trace`.
        protocol: "held-out" fits the readouts on other sequences than are scored; "paper" on the same ones, with the
            paper's penalty.
        test_fraction: share of the sequences that is scored.
        batch_size: run the model on so many sequences at a time.
        seed: of the division.

    Returns:
        a record for each layer. Errors are divided by that of the mean state, so 1 knows nothing and 0 everything:
        `context` (the mesa-objective), `foreign` (the control), `in_context = foreign - context`, `next` (of the true
        next state), and `optimum` (squared distance from the exact minimiser's prediction, divided by that
        prediction's spread). A last record, of the layer "minimiser", holds the same for ridge regression on the
        context itself, its penalty chosen on the fitting sequences.

    Raises:
        ValueError: too few sequences or tokens.
    """
    count, length = inputs.shape[:2]
    at = length - 2 if position is None else position
    if not 2 <= at < length - 1:
        raise ValueError(
            f"position={at}: must lie between 2 and {length - 2}, so that there is a context and a next state"
        )
    if pairs < 1 or count < 8:
        raise ValueError(f"pairs={pairs} must be at least 1, and {count} sequences at least 8")
    if protocol not in ("held-out", "paper"):
        raise ValueError(f"protocol={protocol!r}: choose 'held-out' or 'paper'")
    states = widen(_states(model, inputs, states))
    if not 0 < test_fraction < 1 or count - round(test_fraction * count) < 4:
        raise ValueError(f"test_fraction={test_fraction}: must lie between 0 and 1 and leave 4 sequences for fitting")
    if not torch.isfinite(states).all():
        raise ValueError("states: must be finite")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    tested = max(2, round(test_fraction * count))
    test, fit = order[:tested], order[tested:] if protocol == "held-out" else order[:tested]
    asked = torch.linspace(0, at - 2, min(pairs, at - 1)).round().long().unique()
    start = at // 2
    fitted = activations(
        model, inputs[fit, : at + 1], layers=layers, batch_size=batch_size, keep=lambda z: z[:, start : at + 1]
    )
    last = activations(model, inputs[test, : at + 1], layers=layers, batch_size=batch_size, keep=lambda z: z[:, at])
    other = test.roll(1)
    queried = _ask(model, inputs, test, test, at, asked, layers, batch_size)
    foreign = _ask(model, inputs, test, other, at, asked, layers, batch_size)
    want = states[fit, start + 1 : at + 2]
    maps = _minimisers(states, fit, test, at)
    optimum = _apply(maps, states[test, at])
    truth = {
        "context": states[test][:, asked + 1],
        "foreign": states[other][:, asked + 1],
        "next": states[test, at + 1],
        "optimum": optimum,
    }
    mean = want.mean((0, 1))
    scale = {
        name: (value - (optimum.mean(0) if name == "optimum" else mean)).square().sum(-1).mean()
        for name, value in truth.items()
    }
    if not all(value > 0 for value in scale.values()):
        raise ValueError("states: do not differ between sequences, so there is nothing to predict; give varied inputs")

    def record(layer: str, **read: Tensor) -> Record:
        errors = {
            name: float((read[name] - value).square().sum(-1).mean() / scale[name]) for name, value in truth.items()
        }
        return {"layer": layer, "position": at, **errors, "in_context": errors["foreign"] - errors["context"]}

    records = []
    for name, z in fitted.items():
        read = _readout(z, want, protocol)
        now = read(last[name])
        records.append(record(name, context=read(queried[name]), foreign=read(foreign[name]), next=now, optimum=now))
    queries, others = states[test][:, asked], states[other][:, asked]
    least = {"context": queries @ maps.mT, "foreign": others @ maps.mT, "next": optimum, "optimum": optimum}
    return [*records, record("minimiser", **least)]


def _readout(z: Tensor, want: Tensor, protocol: Protocol) -> Readout:
    x, y = widen(z.flatten(0, 1)), want.flatten(0, 1)
    if protocol == "held-out":
        return fit_readout(x, y, groups=len(z))
    gram = x.mT @ x + PAPER_PENALTY * torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    zero, penalty = torch.zeros_like(x[:1]), torch.tensor(PAPER_PENALTY)
    return Readout(zero, torch.linalg.solve(gram, x.mT @ y), torch.zeros_like(y[:1]), penalty)


def _ask(
    model: nn.Module,
    inputs: Tensor,
    contexts: Tensor,
    sources: Tensor,
    at: int,
    asked: Tensor,
    layers: str | Sequence[str],
    batch_size: int | None,
) -> dict[str, Tensor]:
    """Tokens [b, m, d] of every layer at position `at`, where tokens `asked` of `sources` stand in the contexts."""
    variants = inputs[contexts, : at + 1].repeat_interleave(len(asked), dim=0)
    variants[:, at] = inputs[sources][:, asked].flatten(0, 1)
    values = activations(model, variants, layers=layers, batch_size=batch_size, keep=lambda z: z[:, at])
    return {name: z.unflatten(0, (len(contexts), len(asked))) for name, z in values.items()}


def _minimisers(states: Tensor, fit: Tensor, test: Tensor, at: int) -> Tensor:
    """Ridge regression from each state to its successor within s_0..s_at, [b, e, e], with the best common penalty."""

    def solve(rows: Tensor, ridge: float) -> Tensor:
        keys, values = states[rows, :at], states[rows, 1 : at + 1]
        scale = keys.square().sum((-2, -1)) / keys.shape[-1]
        floor = torch.finfo(keys.dtype).tiny
        return ridge_regression(keys, values, (ridge * scale + floor)[:, None].expand(-1, keys.shape[-1]))

    def error(ridge: float) -> float:
        return float((_apply(solve(fit, ridge), states[fit, at]) - states[fit, at + 1]).square().mean())

    return solve(test, min(_CONTEXT_RIDGES, key=error))


def _apply(maps: Tensor, states: Tensor) -> Tensor:
    return (maps @ states[..., None])[..., 0]


def _states(model: nn.Module, inputs: Tensor, states: Tensor | None) -> Tensor:
    """[b, n, e]: `states`, or the observations, or the embeddings of token ids."""
    if states is None and inputs.is_floating_point():
        states = inputs
    elif states is None:
        inner: Any = unwrap(model)
        table = inner.get_input_embeddings() if hasattr(inner, "get_input_embeddings") else None
        table = table if table is not None else getattr(inner, "embed", None)
        if not isinstance(table, nn.Embedding):
            raise ValueError(
                "states: cannot find the model's embedding table; pass what the tokens stand for, [b, n, e]"
            )
        states = table.weight.detach()[inputs]
    if states.ndim != 3 or states.shape[:2] != inputs.shape[:2]:
        raise ValueError(f"states: {tuple(states.shape)} do not fit inputs {tuple(inputs.shape)}; must be [b, n, e]")
    return states
