r"""What each layer does to the coding rates and the sparsity of its tokens.

Every layer is measured where its objective is defined: at its input Z, after compression at Z+half, and at its output
Z+1. With tokens as rows `z` [n, d], and `u` the same tokens divided by their l2 norms:

| quantity         | definition                                                               | unsuffixed at      |
|------------------|--------------------------------------------------------------------------|--------------------|
| `rate`           | R(u) = 1/2 logdet(I + d / (n eps^2) u^T u), nats                         | Z+half             |
| `subspace_rate`  | R^c(u given the layer's own U_1 ... U_K), nats, heads summed             | Z+half             |
| `effective_rank` | exp of the entropy of the singular values of u, normalised to sum 1      | Z+half             |
| `nonzero`        | non-zero entries of z, as a fraction                                     | after ISTA, or Z+1 |
| `l1`             | mean absolute entry of z, that is l1 norm / (n d)                        | Z+1                |
| `incoherence`    | of the weights: 1 if the head subspaces are orthogonal, 0 if they coincide | -                |

Halves of a block that run in parallel (GPT-J, GPT-NeoX, Falcon, Phi) both read Z, which stands for Z+half. On texts the
tokens of one text are one set, and those of padding are none. Of a plain transformer U_k are its heads' value
projections, one for each head of keys and values.

Source: arXiv 2306.01129, section 3.1 and figures 3 and 4; the paper plots `subspace_rate` and `nonzero`.
The effective rank is Roy and Vetterli's (2007).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unrolled.instruments.control import untrained_control
from unrolled.instruments.feeding import batches_of, settled
from unrolled.instruments.meter import Meter, Protocol, full
from unrolled.instruments.readouts.probes import widen
from unrolled.tables import Tabular

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from unrolled.figures import LineChart, Series

POINTS = ("z", "half", "next")
# where the key without a suffix is taken from
PLAIN = {"rate": "half", "subspace_rate": "half", "effective_rank": "half", "nonzero": "next", "l1": "next"}

Row = dict[str, float]
_TITLES = {
    "subspace_rate": "Rᶜ, coding rate in the subspaces (nats)",
    "rate": "R, coding rate of all tokens (nats)",
    "effective_rank": "effective rank of the tokens",
    "nonzero": "share of non-zero entries",
    "l1": "mean absolute entry",
    "incoherence": "incoherence of the heads' subspaces",
}


class LayerRows(Tabular, list[Row]):
    """Rows of `layerwise`, one a layer, which can be drawn and shown as a table.

    Attributes:
        positions: rows of the layers at the positions that were asked for.
    """

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        super().__init__(rows)
        self.positions: list[Row] = []

    def records(self) -> list[dict[str, Any]]:
        """The rows, the quantities first and then what says more of them."""
        first = ("layer", *PLAIN, "incoherence")
        return [{**{key: row[key] for key in first if key in row}, **row} for row in self]

    def __repr__(self) -> str:
        if not self:
            return "LayerRows(no layers)"
        unit = next((f", {row[key]:.0f} {key}" for row in self for key in ("images", "sequences") if key in row), "")
        values = [f"{key} {self[0][key]:.4g} to {self[-1][key]:.4g}" for key in PLAIN if key in self[0]]
        return f"LayerRows({len(self)} layers{unit}; first to last layer: {', '.join(values)})"

    def panel(
        self, *, quantity: str = "subspace_rate", label: str = "model", control: LayerRows | None = None
    ) -> LineChart:
        """A quantity against the layers, with one standard error of the mean over images as bars.

        Args:
            quantity: a key of the rows.
            label: name of the line.
            control: rows of the untrained control, drawn beside it.

        Raises:
            ValueError: the rows do not have the quantity.
        """
        from unrolled.figures import LineChart

        series = [self._series(quantity, label)]
        if control is not None:
            series.append(replace(control._series(quantity, "untrained"), dashed=True))
        return LineChart(title=_TITLES.get(quantity, quantity), x_label="layer", series=series)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        quantity: str = "subspace_rate",
        label: str = "model",
        control: LayerRows | None = None,
    ) -> Axes:
        """Draw `panel`; see `unrolled.figures.Panel.plot`. Axes that are drawn on twice show two models."""
        return self.panel(quantity=quantity, label=label, control=control).plot(ax)

    def _series(self, quantity: str, label: str) -> Series:
        from unrolled.figures import Series

        if not self or quantity not in self[0]:
            raise ValueError(f"quantity={quantity!r}: choose one of {', '.join(self[0]) if self else 'none, no rows'}")
        error = [row[f"{quantity}_se"] for row in self] if f"{quantity}_se" in self[0] else None
        return Series(label=label, x=[row["layer"] for row in self], y=[row[quantity] for row in self], error=error)


def layerwise(
    model: nn.Module,
    images: Tensor | Mapping[str, Any] | Iterable[Any],
    eps: float = 0.1,
    protocol: Protocol = "paper",
    *,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    stack: str | None = None,
    positions: Sequence[int] = (),
) -> LayerRows:
    """Measure every layer of `model` on images or texts, in fixed memory however many there are.

    Args:
        model: CRATE, a timm ViT, a language model, or any transformer whose blocks `trace` understands and whose heads'
            subspaces are known: those of white-box attention, or a plain transformer's per-head value projections. It
            runs in eval mode and is left as it was.
        images: preprocessed images `[b, c, h, w]`; or token ids `[b, n]`; or a mapping of the model's arguments with
            `input_ids`, whose `attention_mask` says which tokens are no padding, on either side: only these are
            measured. Or an iterable of batches of these: tensors, `(images, labels)`, mappings or objects with
            `.images`. They are moved to the model's device and dtype.
        eps: distortion of the coding rates, > 0.
        protocol: `"paper"`, or `"published"`: `subspace_rate` is then what the published code computes, on the
            projections U_k^T LN(Z) that attention reads, each head's tokens divided by their norms, with 0.01 in place
            of eps^2 whatever `eps` is. Everything else is the same under both.
        batch_size: images or texts in one forward pass; default: batches as they come, tensors in chunks of 32.
        device: where to run; default: where the model is. The model is moved back afterwards.
        stack: of a model with several stacks of blocks, such as an encoder and a decoder, which one, as a trace names
            it; default: the main one, or else the first.
        positions: also measure after so many tokens from the start.

    Returns:
        A list, which has `.plot()`, of one flat dictionary of floats for each layer. `layer` counts from 0; `rate`,
        `subspace_rate`, `effective_rank`, `nonzero` and `l1` are means over samples, each also with the suffixes `_z`,
        `_half` and `_next`, and every one of these again with `_std` (unbiased standard deviation over samples, 0 for a
        single one) and `_se` (standard error of the mean). `incoherence` and `images`, or of texts `sequences` (how
        many), have no spread. `.positions` has a row for each layer and position that a sample reaches: `rate`,
        `subspace_rate` and `effective_rank` of the first so many tokens, `nonzero` and `l1` of those since the position
        before, each with `_se`, and of how many samples.

    Raises:
        ValueError: no samples, wrong shape, non-finite pixels or activations, unknown protocol or stack, or a model
            without known layers.
    """
    return _measure([model], images, eps, protocol, batch_size, device, stack, positions)[0][0]


def trace_report(
    model: nn.Module,
    images: Tensor | Mapping[str, Any] | Iterable[Any],
    eps: float = 0.1,
    protocol: Protocol = "paper",
    *,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    stack: str | None = None,
    positions: Sequence[int] = (),
    control: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """`layerwise` of a model and, side by side on the same samples, of its untrained control.

    An untrained CRATE already compresses and sparsifies; only what goes beyond the control was learned.

    Args:
        model, images, eps, protocol, batch_size, device, stack, positions: as in `layerwise`; the samples are read
            once, so a generator will do.
        control: also measure `untrained_control(model, seed)`.
        seed: of the control's weights.

    Returns:
        `{"protocol", "eps", "images", "seed", "layers", "control"}`: the settings, the rows of the model and those of
        the control (None without). Of texts `sequences` in place of `images`, and `tokens`, how many were measured;
        with several stacks `stack`; `parallel`, how many layers have halves in parallel, if any; with `positions` those
        rows, and those of the control as `positions_control`.

    Raises:
        ValueError: as `layerwise` and `untrained_control`.
    """
    models = [model, untrained_control(model, seed)] if control else [model]
    rows, meters, unit = _measure(models, images, eps, protocol, batch_size, device, stack, positions)
    settings: dict[str, Any] = {"protocol": protocol, "eps": eps, unit: int(rows[0][0][unit])}
    if unit == "sequences":
        settings["tokens"] = meters[0].tokens
    if meters[0].parallel:
        settings["parallel"] = len(meters[0].parallel)
    if meters[0].stack.prefix:
        settings["stack"] = meters[0].stack.prefix.rstrip("/")
    report = {**settings, "seed": seed, "layers": rows[0], "control": rows[1] if control else None}
    if positions:
        report |= {"positions": rows[0].positions, "positions_control": rows[1].positions if control else None}
    return report


def incoherence(subspaces: Tensor) -> float:
    """How far apart the heads' subspaces are: 1 if mutually orthogonal, 0 if they coincide.

    1 minus the mean over pairs of heads of ||Q_i^T Q_j||_F / sqrt(min(r_i, r_j)), with Q an orthonormal basis of the
    span and r its dimension: the root mean square cosine of the principal angles. Random subspaces of dimension p in
    R^d give about 1 - sqrt(p / d).

    Args:
        subspaces: `[h, d, p]`; need not be orthonormal or of full rank. Fewer than two heads are incoherent: 1.

    Returns:
        A number from 0 to 1.
    """
    u, s, _ = torch.linalg.svd(widen(subspaces), full_matrices=False)
    # weights of float32 have that many digits, whatever they are computed in
    significant = s > s.amax(-1, keepdim=True) * max(subspaces.shape[-2:]) * torch.finfo(full(subspaces).dtype).eps
    basis = u * significant[:, None, :]
    overlap = torch.einsum("idp,jdq->ijpq", basis, basis).square().sum((-2, -1))
    rank = significant.sum(-1).clamp_min(1)
    cosine = (overlap / torch.minimum(rank[:, None], rank[None, :])).clamp(0, 1).sqrt()
    h = len(cosine)
    if h < 2:
        return 1.0
    return float(1 - (cosine.sum() - cosine.diagonal().sum()) / (h * (h - 1)))


def _rows(meter: Meter, unit: str) -> LayerRows:
    """What `layerwise` returns; `unit` is the key of the number of samples."""
    stats = meter.spread.result()
    rows = LayerRows()
    for layer in range(len(meter.names)):
        row: Row = {"layer": float(layer)}
        for key, point in PLAIN.items():
            keys = {key: (layer, key) if (layer, key) in stats else (layer, f"{key}_{point}")}
            keys |= {f"{key}_{p}": (layer, f"{key}_{p}") for p in POINTS}
            for name, source in keys.items():
                if source not in stats:
                    raise ValueError(f"model: {meter.names[layer]} has no tokens at {source[1]} that could be found")
                for suffix, value in zip(("", "_std", "_se"), stats[source][:3], strict=True):
                    row[name + suffix] = value
        row["incoherence"] = incoherence(meter.subspaces[layer])
        row[unit] = float(meter.spread.count)
        rows.append(row)
        for position in meter.positions:
            at = [(key, stats[layer, f"{key}@{position}"]) for key in PLAIN if (layer, f"{key}@{position}") in stats]
            if not at:
                continue
            by: Row = {"layer": float(layer), "position": float(position), unit: float(at[0][1][3])}
            for key, (mean, _, error, _) in at:
                by |= {key: mean, f"{key}_se": error}
            rows.positions.append(by)
    return rows


def _measure(
    models: list[nn.Module],
    images: Tensor | Mapping[str, Any] | Iterable[Any],
    eps: float,
    protocol: Protocol,
    batch_size: int | None,
    device: torch.device | str | None,
    stack: str | None,
    positions: Sequence[int],
) -> tuple[list[LayerRows], list[Meter], str]:
    meters = [Meter(model, eps, protocol, stack, positions) for model in models]
    unit = "images"
    with settled(models, device):
        for shown in batches_of(images, batch_size):
            unit = "sequences" if shown.of_text else "images"
            for meter in meters:
                meter.run(shown)
    if not meters[0].spread.count:
        raise ValueError("images: there are none")
    return [_rows(meter, unit) for meter in meters], meters, unit
