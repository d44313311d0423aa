"""What `crate-denoising` measures on synthetic data: compression steps beside the score, stacks of them, the way back.

Tokens are points of a `SubspaceMixture` of which everything is known, so every number has an exact reference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from unrolled.layers.mssa import MSSA
from unrolled.studies.cells import Cell, Context, Result
from unrolled.theory import subspace_coding_rate_gradient
from unrolled.theory.denoising import SubspaceMixture, random_subspaces

STEPS = {
    "softmax over heads": "sum_k softmax_k(||U_k^T z||^2 / 2 sigma^2) U_k U_k^T z - z, each token by itself",
    "R^c of a token": "-grad R^c of each token by itself, as if it were all there is",
    "R^c of all tokens": "-grad R^c of all tokens together, the compression term as defined",
    "MSSA(Z) - Z": "the derived step: attention over tokens, minus the tokens",
    "a MSSA(Z) - Z": "the same with the best output scale a, which a learned W is free to have",
    "a MSSA(Z) - Z, unlimited": "the same among infinitely many tokens, in closed form",
    "MSSA(Z)": "the published step, added to the tokens",
}
STACKS = ("published", "published, random subspaces", "derived", "R^c of all tokens", "R^c of a token", "score")


def mixture(*, heads: int, dim: int, dim_head: int, noise: float, orthogonal: bool, seed: int) -> SubspaceMixture:
    """Subspaces drawn from `seed`, signal of unit variance in every direction of a subspace, in float64."""
    u = random_subspaces(heads, dim, dim_head, orthogonal=orthogonal, seed=seed)
    return SubspaceMixture(subspaces=u, signal=1.0, noise=noise)


def attention(subspaces: Tensor, scale: float = 1.0) -> MSSA:
    """MSSA in float64 with these subspaces `[h, d, p]`, its output tied to them."""
    heads, dim, dim_head = subspaces.shape
    layer = MSSA(dim, heads, dim_head=dim_head, output="tied", scale=scale, dtype=torch.float64)
    layer.subspaces.weight.data = subspaces.mT.flatten(0, 1).contiguous()
    return layer.requires_grad_(False)


def published_temperature(z: Tensor, dim_head: int) -> float:
    """tau of raw tokens that is sqrt(p) for tokens scaled to a mean square norm of d, as LayerNorm leaves them."""
    return float(dim_head**0.5 * z.square().mean())


def attend(z: Tensor, subspaces: Tensor, temperature: float) -> Tensor:
    """MSSA of tokens `[..., n, d]` with logits divided by `temperature`: the layer's sqrt(p) and a change of unit."""
    unit = (subspaces.shape[-1] ** 0.5 / temperature) ** 0.5
    step: Tensor = attention(subspaces)(unit * z) / unit
    return step


def compression_steps(z: Tensor, known: SubspaceMixture, *, temperature: float, eps: float) -> dict[str, Tensor]:
    """The steps of `STEPS` at tokens `z` `[n, d]`."""
    u = known.subspaces
    w = torch.einsum("nd,hdp->nhp", z, u)
    heads = (w.square().sum(-1) / (2 * known.noise**2)).softmax(-1)
    attended = attend(z[None], u, temperature)[0]
    limit, best = known.attended(z, temperature), known.denoised(z)
    steps = (
        torch.einsum("nh,nhp,hdp->nd", heads, w, u) - z,
        -subspace_coding_rate_gradient(z[:, None], u, eps)[:, 0],
        -subspace_coding_rate_gradient(z, u, eps),
        attended - z,
        _fitted(attended, best) - z,
        _fitted(limit, best) - z,
        attended,
    )
    return dict(zip(STEPS, steps, strict=True))


@dataclass(frozen=True, kw_only=True)
class Steps(Cell):
    """Every step beside sigma^2 times the true score, on one draw of tokens.

    Attributes:
        seed: of subspaces and tokens.
        heads: K.
        dim: d.
        dim_head: p.
        noise: sigma, in units of the signal's standard deviation.
        tokens: n.
        orthogonal: the subspaces to each other.
        temperature: in units of the published one.
        eps: distortion in units of the noise's norm, sigma sqrt(d).
    """

    seed: int
    heads: int
    dim: int
    dim_head: int
    noise: float
    tokens: int
    orthogonal: bool = True
    temperature: float = 1.0
    eps: float = 1.0

    def compute(self, context: Context) -> Result:
        """How each step compares.

        Returns:
            `steps`: for each, `cosine` (mean over tokens), `error` (of the best common multiple of it, relative to the
            score) and `removed` (share of what the best denoiser removes of the squared error, by the best multiple);
            `noisy_error` and `best_error`, mean squared errors per signal energy; `temperature`, the absolute one, and
            `matched`, the one at which gates are as sharp as the posterior.
        """
        known = mixture(
            heads=self.heads,
            dim=self.dim,
            dim_head=self.dim_head,
            noise=self.noise,
            orthogonal=self.orthogonal,
            seed=self.seed,
        )
        clean, z, _ = known.sample(self.tokens, torch.Generator().manual_seed(self.seed))
        target = known.denoised(z) - z
        tau = self.temperature * published_temperature(z, self.dim_head)
        energy = float(clean.square().sum())
        noisy, best = float((z - clean).square().sum()) / energy, float((z + target - clean).square().sum()) / energy
        rows = {}
        steps = compression_steps(z, known, temperature=tau, eps=self.eps * self.noise * self.dim**0.5)
        for name, step in steps.items():
            along = float((step * target).sum() / (step.norm() * target.norm()))
            multiple = (step * (clean - z)).sum() / step.square().sum()
            left = float((z + multiple.clamp_min(0) * step - clean).square().sum()) / energy
            rows[name] = {
                "cosine": float(F.cosine_similarity(step, target, dim=-1).mean()),
                "error": max(0.0, 1 - max(0.0, along) ** 2) ** 0.5,
                "removed": (noisy - left) / (noisy - best),
            }
        matched = self.noise * (1 + self.noise**2) ** 0.5
        return {"steps": rows, "noisy_error": noisy, "best_error": best, "temperature": tau, "matched": matched}


def normalized(z: Tensor) -> Tensor:
    """LayerNorm without weights, as it is at initialisation."""
    return F.layer_norm(z, z.shape[-1:], eps=1e-12)


def stack_step(kind: str, known: SubspaceMixture, other: Tensor, *, rate: float) -> Callable[[Tensor], Tensor]:
    """One layer of a stack of `STACKS`, on sets of tokens `[b, n, d]`.

    Args:
        kind: of `STACKS`.
        known: the mixture in the unit of the tokens.
        other: random subspaces `[h, d, p]` for the control.
        rate: kappa, what the step is multiplied by.
    """
    u = known.subspaces
    eps = known.noise * u.shape[1] ** 0.5
    alpha = u.shape[2] / eps**2
    if kind == "published":
        return lambda z: z + rate * attention(u)(normalized(z))
    if kind == "published, random subspaces":
        return lambda z: z + rate * attention(other)(normalized(z))
    if kind == "derived":
        return lambda z: (1 - rate) * z + rate * attend(z, u, published_temperature(z, u.shape[2]))
    if kind == "R^c of all tokens":
        return lambda z: z - rate * z.shape[-2] / alpha * subspace_coding_rate_gradient(z, u, eps)
    if kind == "R^c of a token":
        return lambda z: z - rate / alpha * subspace_coding_rate_gradient(z[..., None, :], u, eps)[..., 0, :]
    if kind == "score":
        return lambda z: z + rate * known.noise**2 * known.score(z)
    raise ValueError(f"kind={kind!r}: choose one of {', '.join(STACKS)}")


@dataclass(frozen=True, kw_only=True)
class Stack(Cell):
    """One draw of `sets` sets of `tokens` tokens through `layers` equal layers, and the published ones' way back.

    Attributes:
        seed: of subspaces and tokens.
        heads: K.
        dim: d.
        dim_head: p.
        noise: sigma, in units of the signal's standard deviation.
        tokens: that attend to each other.
        sets: of them.
        layers: of every stack.
        rate: kappa, what steps are multiplied by.
    """

    seed: int
    heads: int
    dim: int
    dim_head: int
    noise: float
    tokens: int
    sets: int
    layers: int
    rate: float

    def compute(self, context: Context) -> Result:
        """`denoised`, and `reversed` as `reverse`."""
        return {**self.denoised(), "reverse": self.reversed()}

    def denoised(self) -> Result:
        """How far tokens are from the clean ones after each of `layers` steps, for every stack.

        Returns:
            `stacks`: for each, `error` and `outside`, lists of layers + 1: squared distance to the clean tokens after
            the best common rescaling, per signal energy, and the share of the tokens' energy outside their own
            subspaces; `best`: the error of the optimal denoiser, and `best_outside`.
        """
        known, other, clean, z, subspaces = self._drawn()
        stacks = {}
        for kind in STACKS:
            step, state = stack_step(kind, known, other, rate=self.rate), z
            errors, outside = [_error(state, clean)], [_outside(state, subspaces)]
            for _ in range(self.layers):
                state = step(state)
                errors.append(_error(state, clean))
                outside.append(_outside(state, subspaces))
            stacks[kind] = {"error": errors, "outside": outside}
        best = known.denoised(z)
        return {"stacks": stacks, "best": _error(best, clean), "best_outside": _outside(best, subspaces)}

    def reversed(self, iterations: tuple[int, ...] = (2, 5, 20)) -> Result:
        """The published encoder's steps Z + MSSA(LN Z), and the decoder's Y - MSSA(LN Y) back through its subspaces.

        The decoder's step is the first iteration Y_1 of Y_{i+1} = Z' - MSSA(LN Y_i), Y_0 = Z', whose fixed point is the
        exact inverse of the encoder's step, where it converges.

        Returns:
            Relative errors ||Y - Z_l|| / ||Z_l|| by encoder layer l = 0 to `layers`: `none` (the code itself, not
            reversed), `rescaled` (the best multiple of the code), `decoder`, `random` (a decoder with other subspaces),
            and `iterations`, by their number.
        """
        from unrolled.layers import CRATEDecoderBlock

        known, other, _, z, _ = self._drawn()
        forward = attention(known.subspaces, self.rate)
        states = [z]
        for _ in range(self.layers):
            states.append(states[-1] + forward(normalized(states[-1])))

        def decoder(subspaces: Tensor) -> Callable[[Tensor], Tensor]:
            block = CRATEDecoderBlock(
                self.dim, self.heads, dim_head=self.dim_head, output="tied", scale=self.rate, dtype=torch.float64
            )
            block.attn = attention(subspaces, self.rate)
            block.norm1, block.linear = torch.nn.Identity(), torch.nn.Identity()  # type: ignore[assignment]
            block.norm2.eps = 1e-12
            return lambda y: block.requires_grad_(False)(y)  # type: ignore[no-any-return]

        def inverse(count: int) -> Callable[[Tensor], Tensor]:
            def back(target: Tensor) -> Tensor:
                y = target
                for _ in range(count):
                    y = target - forward(normalized(y))
                return y

            return back

        def errors(step: Callable[[Tensor], Tensor]) -> list[float]:
            y, each = states[-1], [0.0]
            for state in states[-2::-1]:
                y = step(y)
                each.append(float((y - state).norm() / state.norm()))
            return each[::-1]

        code = states[-1]
        return {
            "none": [float((code - state).norm() / state.norm()) for state in states],
            "rescaled": [float((_fitted(code, state) - state).norm() / state.norm()) for state in states],
            "decoder": errors(decoder(known.subspaces)),
            "random": errors(decoder(other)),
            "iterations": {str(count): errors(inverse(count)) for count in iterations},
        }

    def _drawn(self) -> tuple[SubspaceMixture, Tensor, Tensor, Tensor, Tensor]:
        """The mixture, other subspaces, clean and noisy tokens `[b, n, d]`, and the own bases of each.

        Tokens are scaled to a mean square norm of d.
        """
        known = mixture(
            heads=self.heads, dim=self.dim, dim_head=self.dim_head, noise=self.noise, orthogonal=True, seed=self.seed
        )
        other = random_subspaces(self.heads, self.dim, self.dim_head, seed=self.seed + 10_000)
        unit = (self.dim / (self.dim_head + self.dim * self.noise**2)) ** 0.5
        scaled = SubspaceMixture(subspaces=known.subspaces, signal=unit, noise=unit * self.noise)
        clean, z, labels = scaled.sample(self.sets * self.tokens, torch.Generator().manual_seed(self.seed))
        subspaces = scaled.subspaces[labels]
        return scaled, other, *(each.unflatten(0, (self.sets, self.tokens)) for each in (clean, z, subspaces))


def _fitted(z: Tensor, target: Tensor) -> Tensor:
    """The multiple of `z` nearest to `target`."""
    return (z * target).sum() / z.square().sum() * z


def _error(z: Tensor, clean: Tensor) -> float:
    return float((_fitted(z, clean) - clean).square().sum() / clean.square().sum())


def _outside(z: Tensor, subspaces: Tensor) -> float:
    inside = torch.einsum("bnd,bndp->bnp", z, subspaces).square().sum()
    return float(1 - inside / z.square().sum())
