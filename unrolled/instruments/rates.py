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

Source: arXiv 2306.01129, section 3.1 and figures 3 and 4; the paper plots `subspace_rate` and `nonzero`.
The effective rank is Roy and Vetterli's (2007).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from unrolled.instruments.anatomy import FIRST_NORM, child, find_stacks, head_subspaces, unwrap
from unrolled.instruments.control import untrained_control
from unrolled.instruments.readouts.probes import widen
from unrolled.instruments.trace import Trace
from unrolled.theory import coding_rate, normalize_tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = ("z", "half", "next")
# where the key without a suffix is taken from
PLAIN = {"rate": "half", "subspace_rate": "half", "effective_rank": "half", "nonzero": "next", "l1": "next"}
PUBLISHED_EPS = 0.1  # the published hook's constant 0.01 stands where the definition has eps^2
CHUNK = 32

Protocol = Literal["paper", "published"]
Row = dict[str, float]
_TITLES = {
    "subspace_rate": "Rᶜ, coding rate in the subspaces (nats)",
    "rate": "R, coding rate of all tokens (nats)",
    "effective_rank": "effective rank of the tokens",
    "nonzero": "share of non-zero entries",
    "l1": "mean absolute entry",
    "incoherence": "incoherence of the heads' subspaces",
}


class LayerRows(list[Row]):
    """Rows of `layerwise`, one a layer, which can be drawn."""

    def plot(self, ax: Axes | None = None, *, quantity: str = "subspace_rate", label: str = "model") -> Axes:
        """Draw a quantity against the layers, with one standard error of the mean over images as bars.

        Args:
            ax: see `unrolled.figures.Panel.plot`; drawn on twice, it shows two models.
            quantity: a key of the rows.
            label: name of the line.

        Raises:
            ValueError: the rows do not have the quantity.
        """
        from unrolled.figures import LineChart, Series

        if not self or quantity not in self[0]:
            raise ValueError(f"quantity={quantity!r}: choose one of {', '.join(self[0]) if self else 'none, no rows'}")
        error = [row[f"{quantity}_se"] for row in self] if f"{quantity}_se" in self[0] else None
        line = Series(label=label, x=[row["layer"] for row in self], y=[row[quantity] for row in self], error=error)
        return LineChart(title=_TITLES.get(quantity, quantity), x_label="layer", series=[line]).plot(ax)


def layerwise(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    eps: float = 0.1,
    protocol: Protocol = "paper",
    *,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
) -> LayerRows:
    """Measure every layer of `model` on `images`, in fixed memory however many there are.

    Args:
        model: CRATE, a timm ViT, or any transformer whose blocks `trace` understands and whose heads' subspaces are
            known: those of white-box attention, or a plain transformer's per-head value projections. It runs in eval
            mode and is left as it was.
        images: preprocessed images `[b, c, h, w]`, or an iterable of batches: tensors, `(images, labels)` or objects
            with `.images`. They are moved to the model's device and dtype.
        eps: distortion of the coding rates, > 0.
        protocol: `"paper"`, or `"published"`: `subspace_rate` is then what the published code computes, on the
            projections U_k^T LN(Z) that attention reads, each head's tokens divided by their norms, with 0.01 in place
            of eps^2 whatever `eps` is. Everything else is the same under both.
        batch_size: images in one forward pass; default: batches as they come, tensors in chunks of 32.
        device: where to run; default: where the model is. The model is moved back afterwards.

    Returns:
        A list, which has `.plot()`, of one flat dictionary of floats for each layer. `layer` counts from 0; `rate`,
        `subspace_rate`, `effective_rank`, `nonzero` and `l1` are means over images, each also with the suffixes `_z`,
        `_half` and `_next`, and every one of these again with `_std` (unbiased standard deviation over images, 0 for a
        single one) and `_se` (standard error of the mean). `incoherence` and `images` (how many) have no spread.

    Raises:
        ValueError: no images, wrong shape, non-finite pixels or activations, unknown protocol, or a model without known
            layers.
    """
    return _measure([model], images, eps, protocol, batch_size, device)[0]


def trace_report(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    eps: float = 0.1,
    protocol: Protocol = "paper",
    *,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    control: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """`layerwise` of a model and, side by side on the same images, of its untrained control.

    An untrained CRATE already compresses and sparsifies; only what goes beyond the control was learned.

    Args:
        model: as in `layerwise`.
        images: as in `layerwise`; read once, so a generator will do.
        eps: as in `layerwise`.
        protocol: as in `layerwise`.
        batch_size: as in `layerwise`.
        device: as in `layerwise`.
        control: also measure `untrained_control(model, seed)`.
        seed: of the control's weights.

    Returns:
        `{"protocol", "eps", "images", "seed", "layers", "control"}`: the settings, the rows of the model and those of
        the control (None without).

    Raises:
        ValueError: as `layerwise` and `untrained_control`.
    """
    models = [model, untrained_control(model, seed)] if control else [model]
    rows = _measure(models, images, eps, protocol, batch_size, device)
    return {
        "protocol": protocol,
        "eps": eps,
        "images": int(rows[0][0]["images"]),
        "seed": seed,
        "layers": rows[0],
        "control": rows[1] if control else None,
    }


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
    kept = s > s.amax(-1, keepdim=True) * max(subspaces.shape[-2:]) * torch.finfo(_full(subspaces).dtype).eps
    basis = u * kept[:, None, :]
    overlap = torch.einsum("idp,jdq->ijpq", basis, basis).square().sum((-2, -1))
    rank = kept.sum(-1).clamp_min(1)
    cosine = (overlap / torch.minimum(rank[:, None], rank[None, :])).clamp(0, 1).sqrt()
    h = len(cosine)
    if h < 2:
        return 1.0
    return float(1 - (cosine.sum() - cosine.diagonal().sum()) / (h * (h - 1)))


def _spectral(u: Tensor, eps: float) -> dict[str, Tensor]:
    """`rate` and `effective_rank` of tokens `u` [b, n, d], both from one spectrum of the smaller Gram matrix.

    The Gram matrix squares the singular values, so that in float32 those below some thousandths of the largest drown in
    its rounding; in float64 what is lost is below what rounding the tokens themselves has added. Zero tokens: both 0.
    """
    n, d = u.shape[-2:]
    wide = widen(u)
    spectrum = torch.linalg.eigvalsh(wide @ wide.mT if n <= d else wide.mT @ wide).clamp_min(0)
    rate = 0.5 * (d / (n * eps**2) * spectrum).log1p().sum(-1)
    # roots of what rounding left, of the products and of the tokens, would add up to a rank that is not there
    products = spectrum.amax(-1, keepdim=True) * max(n, d) * torch.finfo(wide.dtype).eps
    tokens = spectrum.sum(-1, keepdim=True) * torch.finfo(u.dtype).eps ** 2
    singular = torch.where(spectrum > products + tokens, spectrum, 0).sqrt()
    total = singular.sum(-1, keepdim=True)
    entropy = torch.special.entr(singular / torch.where(total > 0, total, 1)).sum(-1)
    rank = torch.where(total[..., 0] > 0, entropy.exp(), 0)
    return {"rate": rate.to(u.device, u.dtype), "effective_rank": rank.to(u.device, u.dtype)}


def _project(z: Tensor, subspaces: Tensor) -> Tensor:
    """U_k^T z for every head: `[b, n, d]`, `[h, d, p]` -> `[b, h, n, p]`, contiguous for the products that follow."""
    h, d, p = subspaces.shape
    w = z.flatten(0, 1) @ subspaces.transpose(0, 1).reshape(d, h * p)
    return w.view(*z.shape[:2], h, p).transpose(1, 2).contiguous()


class _Meter:
    """Measures one model while it runs: only the current layer's tokens are ever held."""

    def __init__(self, model: nn.Module, eps: float, protocol: Protocol) -> None:
        if protocol not in ("paper", "published"):
            raise ValueError(f"protocol={protocol!r}: choose 'paper' or 'published'")
        if not eps > 0:
            raise ValueError(f"eps={eps}: must be positive")
        self.model, self.eps = model, eps
        stacks = find_stacks(unwrap(model))
        if not stacks:
            raise ValueError(f"model: {type(model).__name__} has no transformer blocks to measure")
        stack = stacks[0]
        self.names = [stack.name(index) for index in range(len(stack.blocks))]
        # name of an activation -> what to do with it: (layer, point) pairs
        self.points: dict[str, list[tuple[int, str]]] = {f"{stack.prefix}embed": [(0, "z")]}
        self.projections: dict[str, int] = {}
        for index, (path, block) in enumerate(stack.blocks):
            self.points[f"{self.names[index]}/half"] = [(index, "half")]
            self.points[self.names[index]] = [(index, "next"), (index + 1, "z")]
            if protocol == "published":
                self.projections[_norm_path(path, block)] = index
        self.points[self.names[-1]].pop()
        codes = {f"{name}/ista": index for index, name in enumerate(self.names)}
        self.codes = {name: index for name, index in codes.items() if name in Trace(model).names}
        self.trace = Trace(model, patterns=[*self.points, *self.projections, *self.codes], reduce=self._reduce)
        self.blocks = [block for _, block in stack.blocks]
        self.subspaces: list[Tensor] = []
        self.values: dict[tuple[int, str], Tensor] = {}
        self.spread = _Spread()

    def run(self, images: Tensor) -> None:
        """One forward pass; every image adds one observation of every quantity of every layer."""
        if not self.subspaces:
            self.subspaces = [_full(head_subspaces(block)) for block in self.blocks]
        first = next((p for p in self.model.parameters() if p.is_floating_point()), images)
        images = images.to(first.device)
        if images.is_floating_point():
            images = images.to(first.dtype)
        self.values = {}
        with torch.no_grad(), self.trace:
            self.model(images)
        keys = sorted(self.values)
        self.spread.add(keys, torch.stack([self.values[key] for key in keys]).double().cpu().numpy())
        self.values = {}

    def _reduce(self, name: str, tensor: Tensor) -> None:
        z = _full(tensor)
        if z.dim() == 4:  # a grid of tokens
            z = z.flatten(1, 2)
        if z.dim() != 3:
            raise ValueError(f"model: {name} has shape {tuple(tensor.shape)}, needs tokens [b, n, d]")
        if not bool(torch.isfinite(z).all()):  # checked here: an eigenvalue solver does not survive it
            raise ValueError(f"model: the tokens at {name} are not finite")
        if name in self.codes:
            self.values[self.codes[name], "nonzero"] = _nonzero(z)
        if name in self.projections:
            layer = self.projections[name]
            w = normalize_tokens(_project(z, self.subspaces[layer]))
            self.values[layer, "subspace_rate"] = coding_rate(w, PUBLISHED_EPS).sum(-1)
        if name in self.points:
            u = normalize_tokens(z)
            shared = {**_spectral(u, self.eps), "nonzero": _nonzero(z), "l1": z.abs().mean((1, 2))}
            for layer, point in self.points[name]:
                # R of the projections of one head is that head's term of R^c
                rate = coding_rate(_project(u, self.subspaces[layer]), self.eps).sum(-1)
                for key, value in {**shared, "subspace_rate": rate}.items():
                    self.values[layer, f"{key}_{point}"] = value

    def rows(self) -> LayerRows:
        """What `layerwise` returns."""
        found = self.spread.result()
        rows = LayerRows()
        for layer in range(len(self.names)):
            row: Row = {"layer": float(layer)}
            for key, point in PLAIN.items():
                keys = {key: (layer, key) if (layer, key) in found else (layer, f"{key}_{point}")}
                keys |= {f"{key}_{p}": (layer, f"{key}_{p}") for p in POINTS}
                for name, source in keys.items():
                    if source not in found:
                        raise ValueError(
                            f"model: {self.names[layer]} has no tokens at Z+half: its halves run in parallel"
                        )
                    for suffix, value in zip(("", "_std", "_se"), found[source], strict=True):
                        row[name + suffix] = value
            row["incoherence"] = incoherence(self.subspaces[layer])
            row["images"] = float(self.spread.count)
            rows.append(row)
        return rows


class _Spread:
    """Mean and variance of many quantities in one pass (Chan, Golub and LeVeque's update of Welford's)."""

    def __init__(self) -> None:
        self.count = 0
        self.keys: list[tuple[int, str]] = []
        self.mean = self.squares = np.zeros(0)

    def add(self, keys: list[tuple[int, str]], values: np.ndarray) -> None:
        """Take in `values` [quantities, images]."""
        if not self.count:
            self.keys, self.mean, self.squares = keys, np.zeros(len(keys)), np.zeros(len(keys))
        assert keys == self.keys
        n, mean = values.shape[1], values.mean(1)
        total, delta = self.count + n, mean - self.mean
        self.squares = self.squares + ((values - mean[:, None]) ** 2).sum(1) + delta**2 * self.count * n / total
        self.mean = self.mean + delta * n / total
        self.count = total

    def result(self) -> dict[tuple[int, str], tuple[float, float, float]]:
        """Mean, unbiased standard deviation and standard error of each quantity."""
        std = np.sqrt(self.squares / max(self.count - 1, 1))
        columns = zip(self.mean.tolist(), std.tolist(), (std / math.sqrt(self.count)).tolist(), strict=True)
        return dict(zip(self.keys, columns, strict=True))


def _measure(
    models: list[nn.Module],
    images: Tensor | Iterable[Any],
    eps: float,
    protocol: Protocol,
    batch_size: int | None,
    device: torch.device | str | None,
) -> list[LayerRows]:
    meters = [_Meter(model, eps, protocol) for model in models]
    with _settled(models, device):
        for batch in _batches(images, batch_size):
            for meter in meters:
                meter.run(batch)
    if not meters[0].spread.count:
        raise ValueError("images: there are none")
    return [meter.rows() for meter in meters]


@contextmanager
def _settled(models: list[nn.Module], device: torch.device | str | None) -> Iterator[None]:
    """Models in eval mode and on `device`; afterwards as they were, module by module."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    homes = [next((p.device for p in model.parameters()), None) for model in models]
    try:
        for model in models:
            model.eval()
            if device is not None:
                model.to(device)
        yield
    finally:
        for model, home in zip(models, homes, strict=True):
            if device is not None and home is not None:
                model.to(home)
        for module, mode in modes:
            module.training = mode


def _batches(images: Tensor | Iterable[Any], batch_size: int | None) -> Iterator[Tensor]:
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    if isinstance(images, Tensor):
        images, batch_size = [images], batch_size or CHUNK
    for item in images:
        batch = getattr(item, "images", item)
        if isinstance(batch, Mapping):
            batch = batch.get("images", batch.get("pixel_values"))
        elif isinstance(batch, list | tuple):
            batch = batch[0] if batch else None
        if not isinstance(batch, Tensor):
            raise ValueError(
                f"images: a batch must be a tensor, (images, labels) or have .images, got {type(item).__name__}"
            )
        if not batch.is_floating_point() or batch.dim() != 4:
            raise ValueError(
                f"images: needs preprocessed floating images [b, c, h, w], got {batch.dtype} {tuple(batch.shape)}"
            )
        if not bool(torch.isfinite(batch).all()):
            raise ValueError("images: some pixels are NaN or infinite")
        yield from (part for part in batch.split(batch_size or max(len(batch), 1)) if len(part))


def _norm_path(path: str, block: nn.Module) -> str:
    norm = child(block, FIRST_NORM)
    if norm is None:
        raise ValueError(f"protocol='published': {path} has no norm before its attention; use protocol='paper'")
    return next(f"{path}.{name}" for name, module in block.named_children() if module is norm)


def _nonzero(z: Tensor) -> Tensor:
    return (z != 0).flatten(1).sum(1, dtype=torch.int32) / (z.shape[1] * z.shape[2])


def _full(tensor: Tensor) -> Tensor:
    """float32 at least: half precision has too few digits for determinants."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
