"""Probes: what a linear map can read off the tokens of each layer, on sequences it was not fitted on.

A probe's score alone says little: a rich layer lets a probe memorise. Every record therefore carries a control, the
same probe on targets that the model cannot know, and the difference, its *selectivity* (Hewitt and Liang, 2019).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from unrolled.instruments.trace import trace
from unrolled.modes import evaluating

Record = dict[str, Any]
Kind = Literal["ridge", "logistic"]
Protocol = Literal["held-out", "paper"]

# penalties tried on part of the fitting sequences, relative to the features' mean square times their number
PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
# penalty of the paper's probes, absolute
PAPER_PENALTY = 1e-3
LAYERS = ("embed", "*block??")
_VALIDATION = 0.25


class Readout(NamedTuple):
    """A fitted linear readout, x -> (x - mean) @ weight + bias.

    Attributes:
        mean: [..., 1, d].
        weight: [..., d, e].
        bias: [..., 1, e].
        penalty: relative penalty chosen, [...].
    """

    mean: Tensor
    weight: Tensor
    bias: Tensor
    penalty: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """[..., n, d] -> [..., n, e]."""
        return (widen(x) - self.mean) @ self.weight + self.bias


def probe(
    features: Tensor,
    targets: Tensor,
    *,
    kind: Kind = "ridge",
    positions: Sequence[int] | None = None,
    pooled: bool = False,
    types: Tensor | None = None,
    protocol: Protocol = "held-out",
    test_fraction: float = 0.25,
    penalties: Sequence[float] | None = None,
    seed: int = 0,
) -> list[Record]:
    """Fit and score probes from features to targets.

    Sequences, never tokens, are divided into a fitting and a test part. The penalty is chosen on a quarter of the
    fitting part, then the probe is fitted on all of it.

    Args:
        features: [b, n, d], or [b, d] for one vector a sample.
        targets: for "ridge" [b, n, e] or [b, n]; for "logistic" integers [b, n]. Without n if features have none.
        kind: "ridge" regression, scored by R^2, or "logistic", scored by accuracy.
        positions: of the tokens to probe, negative ones from the end; default all.
        pooled: one probe for all positions instead of one for each.
        types: identity of each token, integers [b, n]. The control's target is then a random function of it, as in
            Hewitt and Liang; without types, targets are shuffled among sequences.
        protocol: "held-out", or "paper": that of arXiv 2309.05858, which fits and scores on the same sequences with
            penalty 0.001 and no intercept ("ridge" only).
        test_fraction: share of sequences kept for the score.
        penalties: tried instead of `PENALTIES`, relative in the same way.
        seed: of the division and of the control.

    Returns:
        a record for each position: `position` (None if pooled or without positions), `score`, `control`, `selectivity`,
        `error` (mean squared error of a coordinate, or the share of wrong labels), `baseline` (error of the fitting
        part's mean or commonest label), `penalty`, `fitted` and `tested` (numbers of samples).

    Raises:
        ValueError: shapes that do not fit, too few sequences, or values that are not finite.
    """
    alone = features.ndim == 2
    features, targets, types = _check(features, targets, types, kind, protocol, test_fraction)
    count, length = features.shape[:2]
    chosen = range(length) if positions is None else [_position(p, length) for p in positions]
    if not len(chosen):
        raise ValueError("positions: is empty; name at least one token, or pass None for all")
    index = torch.as_tensor(list(chosen), device=features.device)
    features, targets = features[:, index].detach(), targets[:, index].detach()
    generator = torch.Generator().manual_seed(seed)
    division = _divide(count, test_fraction, generator) if protocol == "held-out" else None
    control = _control(targets, None if types is None else types[:, index], generator)
    parts = [slice(None)] if pooled else [slice(i, i + 1) for i in range(len(index))]
    score = _ridge_score if kind == "ridge" else _logistic_score
    tried = PENALTIES if penalties is None else tuple(penalties)
    # a logistic probe divides by its penalty
    if not tried or not all(0 <= p < float("inf") and (p > 0 or kind == "ridge") for p in tried):
        raise ValueError(f"penalties={tried}: name at least one, all finite and positive (0 is allowed for ridge)")
    records = []
    for part in parts:
        position = None if pooled or alone else int(index[part])
        real, false = (score(features[:, part], y[:, part], division, tried) for y in (targets, control))
        records.append(
            {"position": position, **real, "control": false["score"], "selectivity": real["score"] - false["score"]}
        )
    return records


def probe_model(
    model: nn.Module,
    inputs: Tensor | Mapping[str, Any],
    targets: Tensor,
    *,
    layers: str | Sequence[str] = LAYERS,
    batch_size: int | None = None,
    **options: Any,
) -> list[Record]:
    """`probe` on every layer of a model: ours, timm's or a Hugging Face one.

    Args:
        model: any model `unrolled.trace` knows; it is run in evaluation mode and given back in its own.
        inputs: its input [b, n, ...], or a mapping of keyword arguments whose values start with the batch.
        targets: as in `probe`, at every position of the input.
        layers: names or patterns of `unrolled.trace`.
        batch_size: run the model on so many sequences at a time.
        **options: of `probe`. If the inputs are token ids, `types` defaults to them: the control is then a random
            function of the current token, which early layers hold, so that it can score higher than the target.

    Returns:
        the records of `probe`, each with its `layer`, in the order of the model.
    """
    if isinstance(inputs, Tensor) and inputs.ndim == 2 and not inputs.is_floating_point():
        options.setdefault("types", inputs)
    values = activations(model, inputs, layers=layers, batch_size=batch_size)
    return [{"layer": name, **record} for name, value in values.items() for record in probe(value, targets, **options)]


def activations(
    model: nn.Module,
    inputs: Tensor | Mapping[str, Any],
    *,
    layers: str | Sequence[str] = LAYERS,
    batch_size: int | None = None,
    keep: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Tokens of every layer by name, without gradients, in evaluation mode.

    Args:
        model, inputs, layers, batch_size: as in `probe_model`.
        keep: what to keep of each tensor, to save memory.

    Returns:
        name -> [b, n, d], or what `keep` made of it, for all sequences.
    """
    reduce = None if keep is None else (lambda _, value: keep(value).clone())
    with evaluating(model), torch.no_grad(), trace(model, patterns=layers, reduce=reduce) as recorded:
        for _ in run(model, inputs, batch_size):
            pass
    return {name: value if isinstance(value, Tensor) else torch.cat(value) for name, value in recorded.items()}


def run(model: nn.Module, inputs: Tensor | Mapping[str, Any], batch_size: int | None = None) -> Iterator[Any]:
    """Outputs of the model, `batch_size` sequences at a time; a Hugging Face model is told to keep no cache."""
    config = getattr(model, "config", None)
    extra = {"use_cache": False} if hasattr(config, "use_cache") else {}
    values = {"": inputs} if isinstance(inputs, Tensor) else dict(inputs)
    count = len(next(iter(values.values())))
    step = check_batches(count, batch_size)
    for start in range(0, count, step):
        part = {key: value[start : start + step] for key, value in values.items()}
        yield model(part[""], **extra) if isinstance(inputs, Tensor) else model(**part, **extra)


def check_batches(count: int, batch_size: int | None) -> int:
    """How many of `count` sequences to take at a time.

    Raises:
        ValueError: there are none, or a batch of fewer than one.
    """
    if count < 1:
        raise ValueError("inputs: hold no sequence; give at least one")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1, or None for all sequences at once")
    return batch_size or count


def fit_readout(x: Tensor, y: Tensor, *, penalties: Sequence[float] = PENALTIES, groups: int | None = None) -> Readout:
    """Ridge regression with an intercept, its penalty chosen on the last quarter of the samples.

    Args:
        x: features [..., n, d]; samples that belong together follow each other.
        y: targets [..., n, e].
        penalties: relative to the features' mean square times n.
        groups: number of equal groups of samples that must not be divided; n if None.

    Returns:
        the readout, fitted on all n samples in float64.
    """
    x, y = widen(x), widen(y)
    n = x.shape[-2]
    size = n // (groups or n)
    cut = n - max(1, round(_VALIDATION * (groups or n))) * size
    penalties = tuple(penalties)
    best = 0
    if len(penalties) > 1 and cut >= 2:
        trials = _ridge_path(x[..., :cut, :], y[..., :cut, :], penalties)
        errors = [float((readout(x[..., cut:, :]) - y[..., cut:, :]).square().mean()) for readout in trials]
        best = int(np.argmin(errors))
    return next(_ridge_path(x, y, penalties[best : best + 1]))


def widen(x: Tensor) -> Tensor:
    """In float64; on the CPU if the tensor's device has no such type."""
    return x.cpu().double() if x.device.type == "mps" else x.double()


def _ridge_path(x: Tensor, y: Tensor, penalties: Sequence[float]) -> Iterator[Readout]:
    """One readout for each penalty, from one decomposition."""
    mean, bias = x.mean(-2, keepdim=True), y.mean(-2, keepdim=True)
    left, values, right = torch.linalg.svd(x - mean, full_matrices=False)
    shared = left.mT @ (y - bias)
    scale = values.square().sum(-1, keepdim=True) / x.shape[-1]
    floor = torch.finfo(x.dtype).tiny  # constant features: the readout is the mean
    for penalty in penalties:
        gains = values / (values.square() + penalty * scale + floor)
        weight = right.mT @ (gains[..., None] * shared)
        yield Readout(mean, weight, bias, torch.full(x.shape[:-2], penalty, dtype=x.dtype))


def _ridge_score(x: Tensor, y: Tensor, division: tuple[Tensor, Tensor] | None, penalties: Sequence[float]) -> Record:
    fit, test = (x, x) if division is None else (x[division[0]], x[division[1]])
    want, truth = (y, y) if division is None else (y[division[0]], y[division[1]])
    groups = len(fit)
    fit, test, want, truth = (widen(part.flatten(0, 1)) for part in (fit, test, want, truth))
    if division is None:
        gram = fit.mT @ fit + PAPER_PENALTY * torch.eye(fit.shape[-1], dtype=fit.dtype, device=fit.device)
        predicted, penalty = test @ torch.linalg.solve(gram, fit.mT @ want), PAPER_PENALTY
    else:
        readout = fit_readout(fit, want, penalties=penalties, groups=groups)
        predicted, penalty = readout(test), float(readout.penalty)
    error = float((predicted - truth).square().mean())
    baseline = float((want.mean(0) - truth).square().mean())
    return {
        "score": 1 - error / baseline if baseline > 0 else float(error == 0),
        "error": error,
        "baseline": baseline,
        "penalty": penalty,
        "fitted": len(fit),
        "tested": len(test),
    }


def _logistic_score(x: Tensor, y: Tensor, division: tuple[Tensor, Tensor] | None, penalties: Sequence[float]) -> Record:
    from sklearn.linear_model import LogisticRegression

    assert division is not None
    fit, test = (x[part].flatten(0, 1).cpu().double() for part in division)
    want, truth = (y[part].flatten().cpu().numpy() for part in division)
    labels, counts = np.unique(want, return_counts=True)
    commonest = labels[counts.argmax()]
    cut = len(want) - max(1, round(_VALIDATION * len(division[0]))) * x.shape[1]

    def solve(rows: slice, penalty: float) -> Callable[[Tensor], Any]:
        chosen = want[rows]
        if len(np.unique(chosen)) < 2:
            return lambda part: np.full(len(part), chosen[0])
        # standardised by what is fitted: the choice of the penalty knows nothing of the samples it is judged on
        mean, spread = fit[rows].mean(0), fit[rows].std(0, correction=0)
        spread[spread == 0] = 1
        model = LogisticRegression(C=1 / (penalty * len(chosen)), max_iter=2000)
        with warnings.catch_warnings():  # scikit-learn takes many classes for a regression; these are token ids
            warnings.filterwarnings("ignore", message=".*regression problem.*", category=UserWarning)
            model.fit(((fit[rows] - mean) / spread).numpy(), chosen)
        return lambda part: model.predict(((part - mean) / spread).numpy())

    best = penalties[0]
    if len(penalties) > 1 and cut >= 2:
        hits = [float((solve(slice(cut), p)(fit[cut:]) == want[cut:]).mean()) for p in penalties]
        best = penalties[len(hits) - 1 - int(np.argmax(hits[::-1]))]  # of equals the strongest
    right = float((solve(slice(None), best)(test) == truth).mean())
    return {
        "score": right,
        "error": 1 - right,
        "baseline": float((truth != commonest).mean()),
        "penalty": best,
        "fitted": len(want),
        "tested": len(truth),
    }


def _control(targets: Tensor, types: Tensor | None, generator: torch.Generator) -> Tensor:
    """Targets of the same distribution that the features cannot know, or know by the token's identity alone."""
    if types is None:
        # a permutation that leaves no sequence in place
        order = torch.randperm(len(targets), generator=generator)
        shifted = torch.empty_like(order)
        shifted[order] = order.roll(1)
        return targets[shifted.to(targets.device)]
    _, names = types.unique(return_inverse=True)
    flat = targets.flatten(0, 1)
    drawn = torch.randint(len(flat), (int(names.max()) + 1,), generator=generator).to(flat.device)
    return flat[drawn[names]]


def _divide(count: int, test_fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices of the fitting and of the test sequences."""
    order = torch.randperm(count, generator=generator)
    tested = max(1, round(test_fraction * count))
    return order[tested:], order[:tested]


def _position(position: int, length: int) -> int:
    if not -length <= position < length:
        raise ValueError(f"positions: {position} is outside the {length} positions of the features")
    return position % length


def _check(
    features: Tensor, targets: Tensor, types: Tensor | None, kind: str, protocol: str, test_fraction: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    if kind not in ("ridge", "logistic"):
        raise ValueError(f"kind={kind!r}: choose 'ridge' or 'logistic'")
    if protocol not in ("held-out", "paper"):
        raise ValueError(f"protocol={protocol!r}: choose 'held-out' or 'paper'")
    if protocol == "paper" and kind == "logistic":
        raise ValueError("protocol='paper' is for ridge probes; use protocol='held-out'")
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction={test_fraction}: must lie between 0 and 1")
    if features.ndim == 2:
        features, targets = features[:, None], targets[:, None]
        types = None if types is None else types[:, None]
    if features.ndim != 3:
        raise ValueError(f"features: must be [b, n, d] or [b, d], not {tuple(features.shape)}")
    if targets.shape[:2] != features.shape[:2]:
        raise ValueError(f"targets: {tuple(targets.shape)} do not fit features {tuple(features.shape)}")
    if types is not None and types.shape != features.shape[:2]:
        raise ValueError(f"types: {tuple(types.shape)} do not fit features {tuple(features.shape)}")
    if features.shape[0] < 4 or features.shape[1] < 1:
        raise ValueError(
            f"features: {features.shape[0]} sequences of {features.shape[1]}; a probe needs at least 4 of 1"
        )
    if kind == "ridge":
        targets = targets if targets.ndim == 3 else targets[..., None]
    elif targets.ndim != 2 or targets.is_floating_point():
        raise ValueError("targets: a logistic probe needs one integer label a token; use kind='ridge'")
    if not torch.isfinite(features).all() or not torch.isfinite(targets).all():
        raise ValueError("features and targets must be finite")
    return features, targets.to(features.device), None if types is None else types.to(features.device)
