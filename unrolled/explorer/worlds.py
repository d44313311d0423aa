r"""A linear world learned in context: gradient-descent layers, a mesa layer, and exact ridge regression.

The world: y = w . phi(x) + noise, x in [-1, 1], with the first `features` Legendre polynomials scaled to be orthonormal
for uniform x, so that 2 features are straight lines and more are curves. The examples (phi(x_i), y_i) are the context;
what stands on the page for every x is the prediction for a query phi(x) without a target.

- A gradient-descent layer is linear self-attention with fixed weights on tokens [phi; r], r the error so far (a query
  begins with r = 0). One layer adds -eta sum_j r_j (phi_j . phi) to r: one gradient step on the examples' squared error
  (arXiv 2309.05858, Proposition 1, with all examples seen; arXiv 2212.07677).
- The mesa layer solves the ridge regression in one layer (`unrolled.ops.mesa`).
- The exact answer is `unrolled.theory.in_context.ridge_regression`, another code path.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MOST_FEATURES, MOST_POINTS, MOST_LAYERS = 8, 100, 40
GRID = 121
AVERAGED = 200
"""Random worlds behind the curve of errors."""


@dataclass(frozen=True, kw_only=True)
class World:
    """What a page asks for.

    Attributes:
        features: d, 1 to 8.
        examples: how many are drawn, where `points` is None.
        noise: standard deviation of what is added to every y.
        layers: gradient-descent layers.
        step: eta times the largest eigenvalue of the examples' Gram matrix; above 2 the layers diverge.
        ridge: None takes noise^2 d, the best for this world (its weights have variance 1 / d).
        seed: of weights, examples and noise.
        points: (x, y) set by hand, instead of drawn ones.
    """

    features: int = 3
    examples: int = 12
    noise: float = 0.2
    layers: int = 12
    step: float = 1.0
    ridge: float | None = None
    seed: int = 0
    points: tuple[tuple[float, float], ...] | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("features", 1, MOST_FEATURES),
            ("examples", 1, MOST_POINTS),
            ("layers", 1, MOST_LAYERS),
            ("seed", 0, 2**31 - 1),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ValueError(f"{name}: give a whole number from {low} to {high}")
        for name, most in (("noise", 2.0), ("step", 3.0)):
            if not _number(getattr(self, name), 0.0, most):
                raise ValueError(f"{name}: give a number from 0 to {most:g}")
        if self.ridge is not None and not _number(self.ridge, 1e-6, 1e3):
            raise ValueError("ridge: give a number from 0.000001 to 1000, or none")
        if self.points is not None:
            if len(self.points) > MOST_POINTS:
                raise ValueError(f"points: at most {MOST_POINTS}")
            for point in self.points:
                if len(point) != 2 or not _number(point[0], -1, 1) or not _number(point[1], -10, 10):
                    raise ValueError("points: each is x from -1 to 1 and y from -10 to 10")

    @classmethod
    def from_request(cls, asked: Any) -> World:
        """From the JSON of a request.

        Raises:
            ValueError: no object, unknown or ill-typed entries.
        """
        if not isinstance(asked, dict):
            raise ValueError("world: expected an object of settings")
        unknown = sorted(set(asked) - set(cls.__dataclass_fields__))
        if unknown:
            raise ValueError(f"world: unknown setting {unknown[0]!r}")
        given = dict(asked)
        points = given.get("points")
        if points is not None:
            if not isinstance(points, list) or not all(isinstance(point, list) for point in points):
                raise ValueError("points: expected a list of [x, y]")
            given["points"] = tuple(tuple(point) for point in points)
        return cls(**given)

    @property
    def best_ridge(self) -> float:
        """noise^2 d: posterior mean and ridge regression are then one; kept above zero."""
        return max(self.noise**2 * self.features, 1e-6)


def legendre(x: Tensor, features: int) -> Tensor:
    """phi(x), `[..., features]`: Legendre polynomials with mean square 1 over [-1, 1]."""
    values = [torch.ones_like(x), x]
    for degree in range(1, features - 1):
        values.append(((2 * degree + 1) * x * values[-1] - degree * values[-2]) / (degree + 1))
    scale = torch.tensor([math.sqrt(2 * degree + 1) for degree in range(features)], dtype=x.dtype)
    return torch.stack(values[:features], -1) * scale


def descent_layer(features: int, step_size: float) -> Any:
    """Linear self-attention whose fixed weights make one gradient step on tokens [phi; r]."""
    from unrolled.layers import LinearSelfAttention

    layer = LinearSelfAttention(features + 1, 1, dim_head=features, dim_value=1).double()
    identity = torch.eye(features, dtype=torch.float64)
    with torch.no_grad():
        for projection in (layer.query, layer.key, layer.value, layer.output):
            projection.weight.zero_()
        layer.query.weight[:, :features] = identity
        layer.key.weight[:, :features] = identity
        layer.value.weight[0, features] = -step_size
        layer.output.weight[features, 0] = 1.0
    return layer


@torch.no_grad()
def descend(phi: Tensor, y: Tensor, queries: Tensor, step_size: float, layers: int) -> Tensor:
    """Predictions for the queries before and after every layer, `[layers + 1, m]`.

    Args:
        phi: float64 `[n, d]` of the examples.
        y: `[n]`.
        queries: `[m, d]`.
        step_size: eta.
        layers: how many.
    """
    layer = descent_layer(phi.shape[1], step_size)
    context = torch.cat([phi, y[:, None]], -1)[None]
    asked = torch.cat([queries, torch.zeros(len(queries), 1, dtype=phi.dtype)], -1)[None]
    out = [-asked[0, :, -1]]
    for _ in range(layers):
        _, state = layer(context, return_state=True)  # sum of v k^T over the examples: all see all of them
        context, asked = (
            tokens + layer.merge(layer.heads_of(layer.query(tokens)) @ state.mT) for tokens in (context, asked)
        )
        out.append(-asked[0, :, -1])
    return torch.stack(out)


@torch.no_grad()
def mesa_prediction(phi: Tensor, y: Tensor, queries: Tensor, ridge: float) -> Tensor:
    """What one mesa layer answers at the queries after the examples, `[m]`: queries bring no key and no value."""
    from unrolled.ops import mesa

    keys = torch.cat([phi, torch.zeros_like(queries)])[None, None]
    values = torch.cat([y, torch.zeros(len(queries), dtype=y.dtype)])[None, None, :, None]
    answers: Tensor = mesa(torch.cat([phi, queries])[None, None], keys, values, ridge)
    return answers[0, 0, len(phi) :, 0]


def run(world: World) -> dict[str, Any]:
    """Everything the page draws; numbers are plain lists."""
    from unrolled.theory.in_context import ridge_regression

    generator = torch.Generator().manual_seed(world.seed)
    weights = torch.randn(world.features, generator=generator, dtype=torch.float64) / math.sqrt(world.features)
    x = torch.rand(world.examples, generator=generator, dtype=torch.float64) * 2 - 1
    noise = torch.randn(world.examples, generator=generator, dtype=torch.float64)
    y = legendre(x, world.features) @ weights + world.noise * noise
    if world.points is not None:
        table = torch.tensor(world.points, dtype=torch.float64).reshape(-1, 2)
        x, y = table[:, 0], table[:, 1]
    phi, grid = legendre(x, world.features), torch.linspace(-1, 1, GRID, dtype=torch.float64)
    queries = legendre(grid, world.features)
    ridge = world.best_ridge if world.ridge is None else world.ridge
    largest = float(torch.linalg.eigvalsh(phi.mT @ phi)[-1]) if len(phi) else 0.0
    step_size = world.step / largest if largest > 0 else 0.0
    layers = descend(phi, y, queries, step_size, world.layers)
    exact = queries @ ridge_regression(phi, y[:, None], ridge)[0] if len(phi) else torch.zeros(GRID, dtype=phi.dtype)
    mesa = mesa_prediction(phi, y, queries, ridge) if len(phi) else torch.zeros_like(exact)
    generated = world.points is None
    return {
        "points": [[_plain(a), _plain(b)] for a, b in zip(x.tolist(), y.tolist(), strict=True)],
        "x": _list(grid),
        "truth": _list(queries @ weights) if generated else None,
        "layers": [_list(row) for row in layers],
        "ridge_line": _list(exact),
        "mesa": _list(mesa),
        "mesa_gap": float((mesa - exact).abs().max()),
        "gap": [_plain(float(value)) for value in (layers - exact).square().mean(-1).sqrt()],
        "ridge": _plain(ridge),
        "step_size": _plain(step_size),
        "average": average(world),
    }


@torch.no_grad()
def average(world: World) -> dict[str, Any]:
    """Mean squared error on new inputs, without their noise, over `AVERAGED` random worlds of these settings."""
    generator = torch.Generator().manual_seed(1)
    d, n = world.features, world.examples if world.points is None else max(1, len(world.points))
    weights = torch.randn(AVERAGED, d, 1, generator=generator, dtype=torch.float64) / math.sqrt(d)
    x = torch.rand(AVERAGED, n + 64, generator=generator, dtype=torch.float64) * 2 - 1
    phi = legendre(x, d)
    truth = phi @ weights
    seen, new = phi[:, :n], phi[:, n:]
    y = truth[:, :n] + world.noise * torch.randn(AVERAGED, n, 1, generator=generator, dtype=torch.float64)
    gram, cross = seen.mT @ seen, seen.mT @ y
    step = world.step / torch.linalg.eigvalsh(gram)[:, -1, None, None]
    learned = torch.zeros_like(cross)
    errors = []
    for layer in range(world.layers + 1):
        errors.append((new @ learned - truth[:, n:]).square().mean(1))
        if layer < world.layers:
            learned = learned + step * (cross - gram @ learned)
    ridge = world.best_ridge if world.ridge is None else world.ridge
    exact = torch.linalg.solve(gram + ridge * torch.eye(d, dtype=torch.float64), cross)
    return {
        "worlds": AVERAGED,
        "examples": n,
        "layers": [_plain(float(error.mean())) for error in errors],
        "ridge": _plain(float((new @ exact - truth[:, n:]).square().mean())),
    }


def _number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _list(values: Tensor) -> list[float]:
    return [_plain(value) for value in values.tolist()]


def _plain(value: float) -> float:
    return float(f"{value:.5g}")
