r"""A mixture of low-dimensional Gaussians with noise: its density, score and optimal denoiser, in closed form.

Data that white-box transformers are derived from (arXiv 2306.01129, section 2.2; arXiv 2404.02446, section 2): a clean
point lies on one of K subspaces, all as likely, and is Gaussian there; what is seen is that point with noise,

$$z = x + \sigma e, \qquad x = U_k a, \quad a \sim N(0, s^2 I_p), \quad e \sim N(0, I_d).$$

| symbol      | argument      | shape / unit                                                    |
|-------------|---------------|-----------------------------------------------------------------|
| U_1 ... U_K | `subspaces`   | `[h, d, p]`, each with orthonormal columns; they may overlap    |
| s           | `signal`      | standard deviation of a coordinate of the signal                |
| sigma       | `noise`       | standard deviation of a coordinate of the noise                 |
| tau         | `temperature` | what inner products are divided by before a softmax over tokens |
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class SubspaceMixture:
    """Noisy points near subspaces; every method computes in the dtype of `subspaces`, float64 if an oracle is wanted.

    Attributes:
        subspaces: `[h, d, p]`, orthonormal columns.
        signal: s > 0.
        noise: sigma > 0.
    """

    subspaces: Tensor
    signal: float = 1.0
    noise: float = 0.1

    def __post_init__(self) -> None:
        u = self.subspaces
        if u.dim() != 3 or not u.is_floating_point() or u.shape[2] > u.shape[1]:
            raise ValueError(f"subspaces: needs floating bases [h, d, p] with p <= d, got {u.dtype} {tuple(u.shape)}")
        error = (u.mT @ u - torch.eye(u.shape[2], dtype=u.dtype, device=u.device)).abs().max()
        if not float(error) < 1e3 * torch.finfo(u.dtype).eps:
            raise ValueError("subspaces: columns must be orthonormal; take torch.linalg.qr(subspaces).Q")
        if not self.signal > 0 or not self.noise > 0:
            raise ValueError(f"signal={self.signal}, noise={self.noise}: both must be positive")

    @property
    def shrinkage(self) -> float:
        """s^2 / (s^2 + sigma^2): what is kept of a point whose subspace is known."""
        return self.signal**2 / (self.signal**2 + self.noise**2)

    def sample(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Draw `count` points: clean `[n, d]`, noisy `[n, d]`, and the subspace of each `[n]`."""
        h, d, p = self.subspaces.shape
        labels = torch.randint(h, (count,), generator=generator)
        signal = torch.randn(count, p, generator=generator, dtype=torch.float64)
        noise = torch.randn(count, d, generator=generator, dtype=torch.float64)
        labels, signal, noise = (x.to(self.subspaces.device) for x in (labels, signal, noise))
        clean = torch.einsum("ndp,np->nd", self.subspaces[labels], self.signal * signal.to(self.subspaces.dtype))
        return clean, clean + self.noise * noise.to(clean.dtype), labels

    def log_density(self, z: Tensor) -> Tensor:
        r"""log q(z) of noisy points `[..., d]` -> `[...]`, in nats."""
        d, p = self.subspaces.shape[1:]
        wide, narrow = self.signal**2 + self.noise**2, self.noise**2
        constant = d * math.log(2 * math.pi) + p * math.log(wide) + (d - p) * math.log(narrow)
        outside = z.square().sum(-1) / (2 * narrow)
        return self._evidence(z).logsumexp(-1) - math.log(len(self.subspaces)) - outside - constant / 2

    def memberships(self, z: Tensor) -> Tensor:
        r"""P(k | z) `[..., h]`: softmax over heads of s^2 / (2 sigma^2 (s^2 + sigma^2)) ||U_k^T z||^2."""
        return self._evidence(z).softmax(-1)

    def denoised(self, z: Tensor) -> Tensor:
        r"""E[x | z], the denoiser of least squared error: s^2 / (s^2 + sigma^2) sum_k P(k | z) U_k U_k^T z."""
        w = self._project(z)
        return self.shrinkage * torch.einsum("...h,...hp,hdp->...d", self.memberships(z), w, self.subspaces)

    def score(self, z: Tensor) -> Tensor:
        r"""The gradient of log q at `[..., d]`, by Tweedie's formula E[x | z] = z + sigma^2 score(z)."""
        return (self.denoised(z) - z) / self.noise**2

    def attended(self, z: Tensor, temperature: float) -> Tensor:
        r"""What MSSA with these subspaces, output tied, does to a token among infinitely many of this mixture.

        Softmax attention over tokens is then a mean under a tilted Gaussian mixture, which is Gaussian again. With
        S_kj = s^2 U_k^T U_j U_j^T U_k + sigma^2 I, the covariance of component j as head k sees it, and w_k = U_k^T z,

        $$\mathrm{MSSA}_\infty(z) = \sum_k U_k \sum_j v_{kj}\, S_{kj} w_k / \tau, \qquad
          v_{k\cdot} = \mathrm{softmax}_j\big(w_k^\top S_{kj} w_k / 2 \tau^2\big).$$

        For subspaces orthogonal to each other v_kk is a sigmoid of s^2 ||w_k||^2 / (2 tau^2) - log(K - 1): each head
        asks by itself what the posterior asks of all heads together, at an inverse temperature that equals the
        posterior's where tau^2 = sigma^2 (s^2 + sigma^2).

        Args:
            z: `[..., d]`.
            temperature: tau > 0; sqrt(p) in the published model.
        """
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}: must be positive")
        u = self.subspaces
        overlap = torch.einsum("kdp,jdq->kjpq", u, u)
        identity = torch.eye(u.shape[2], dtype=u.dtype, device=u.device)
        covariance = self.signal**2 * overlap @ overlap.mT + self.noise**2 * identity
        w = self._project(z)
        spread = torch.einsum("kjpq,...kq->...kjp", covariance, w)
        weight = (torch.einsum("...kp,...kjp->...kj", w, spread) / (2 * temperature**2)).softmax(-1)
        return torch.einsum("...kj,...kjp,kdp->...d", weight, spread, u) / temperature

    def _project(self, z: Tensor) -> Tensor:
        if z.shape[-1:] != self.subspaces.shape[1:2]:
            raise ValueError(f"z: needs points [..., {self.subspaces.shape[1]}], got {tuple(z.shape)}")
        return torch.einsum("...d,hdp->...hp", z, self.subspaces)

    def _evidence(self, z: Tensor) -> Tensor:
        return self.shrinkage / (2 * self.noise**2) * self._project(z).square().sum(-1)


def random_subspaces(
    heads: int, dim: int, dim_head: int, *, orthogonal: bool = True, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Bases `[h, d, p]` with orthonormal columns, drawn uniformly; `orthogonal` to each other or each by itself.

    Raises:
        ValueError: they have no room to be orthogonal.
    """
    if orthogonal and heads * dim_head > dim:
        raise ValueError(f"orthogonal: {heads} subspaces of {dim_head} dimensions do not fit in dim={dim}; lower one")
    generator = torch.Generator().manual_seed(seed)
    shape = (1, dim, heads * dim_head) if orthogonal else (heads, dim, dim_head)
    frame = torch.linalg.qr(torch.randn(*shape, generator=generator, dtype=torch.float64)).Q
    if orthogonal:
        frame = frame[0].unflatten(1, (heads, dim_head)).movedim(1, 0)
    return frame.to(dtype).contiguous()
