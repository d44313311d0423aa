"""A sparse autoencoder: a dictionary that is fitted to the tokens of a model after the fact."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unrolled.ops.rows import unit_rows

_AUXILIARY = 1 / 32  # weight of what dead atoms make of the residual, as published


class SparseAutoencoder(nn.Module):
    r"""k atoms a token: a TopK sparse autoencoder (Gao et al., arXiv 2406.04093, section 2).

    $$a = \mathrm{TopK}\big(\mathrm{ReLU}(E (x - b) / s)\big), \qquad \hat x = b + s\, D a$$

    | symbol | attribute    | shape                                                       |
    |--------|--------------|-------------------------------------------------------------|
    | D      | `dictionary` | `[d, m]`, atoms as columns, of norm 1                       |
    | E      | `encoder`    | `[m, d]`, starts at D^T                                     |
    | b      | `centre`     | `[d]`, starts at the mean token                             |
    | s      | `scale`      | root mean square entry of x - b where it was fitted         |
    | k      | `k`          | codes of a token that may differ from 0                     |

    Departures: the ReLU before TopK, which the published code has and its equation leaves out; no bias of the encoder
    besides E b; tokens are divided by one number for all, s, not each by its norm, so that x is rebuilt as it is.
    """

    scale: Tensor

    def __init__(self, dim: int, atoms: int, k: int, *, seed: int = 0) -> None:
        """Build it with random atoms.

        Args:
            dim: d, width of the tokens.
            atoms: m.
            k: at most `atoms`.
            seed: of the atoms.

        Raises:
            ValueError: a size below 1, or `k` above `atoms`.
        """
        super().__init__()
        if dim < 1 or not 1 <= k <= atoms:
            raise ValueError(f"dim={dim}, atoms={atoms}, k={k}: must be at least 1, and k at most atoms")
        self.k = k
        rows = unit_rows(torch.randn(atoms, dim, generator=torch.Generator().manual_seed(seed)))
        self.dictionary = nn.Parameter(rows.mT.contiguous())
        self.encoder = nn.Parameter(rows.clone())
        self.centre = nn.Parameter(torch.zeros(dim))
        self.register_buffer("scale", torch.ones(()))

    def encode(self, x: Tensor) -> Tensor:
        """Codes `[..., m]` of tokens `[..., d]`, at most k of them above 0."""
        return largest(self.matches(x).relu(), self.k)

    def decode(self, codes: Tensor) -> Tensor:
        """Tokens `[..., d]` from codes `[..., m]`."""
        return self.centre + self.scale * F.linear(codes, self.dictionary)

    def forward(self, x: Tensor) -> Tensor:
        """What k atoms say of the tokens, the same shape."""
        return self.decode(self.encode(x))

    def matches(self, x: Tensor) -> Tensor:
        """How well every atom fits `[..., m]`, before k are chosen."""
        return F.linear((x - self.centre) / self.scale, self.encoder)


def largest(x: Tensor, k: int) -> Tensor:
    """`x` with all but the k entries of largest magnitude in the last dimension set to 0."""
    if k >= x.shape[-1]:
        return x
    places = x.detach().abs().topk(k, dim=-1).indices
    return torch.zeros_like(x).scatter(-1, places, x.gather(-1, places))


def fit_autoencoder(
    tokens: Tensor,
    atoms: int,
    k: int,
    *,
    steps: int = 2000,
    batch: int = 1024,
    rate: float = 2e-3,
    dead_after: int = 50,
    seed: int = 0,
) -> SparseAutoencoder:
    """Fit a `SparseAutoencoder` by Adam to the squared error, atoms kept at norm 1.

    An atom that no token of the last `dead_after` batches used is dead: the best d / 2 of the dead ones are also
    fitted to what the living leave over, with a weight of 1/32, until tokens choose them (the published auxiliary
    loss).

    Args:
        tokens: `[n, d]`, float32 or float64.
        atoms: m.
        k: codes of a token that may differ from 0.
        steps: of the optimiser; the rate falls to 0 linearly over the last fifth.
        batch: tokens of a step, drawn with repetition.
        rate: of Adam, in units in which tokens have entries of about 1.
        dead_after: batches after which an unused atom is dead.
        seed: of the first atoms and of the batches.

    Raises:
        ValueError: `tokens` is no finite `[n, d]` that varies, or a size that `SparseAutoencoder` refuses.
    """
    if tokens.dim() != 2 or not tokens.is_floating_point() or not bool(torch.isfinite(tokens).all()):
        raise ValueError(f"tokens: needs finite floats [n, d], got {tokens.dtype} {tuple(tokens.shape)}")
    n, dim = tokens.shape
    model = SparseAutoencoder(dim, atoms, k, seed=seed).to(tokens)
    mean = tokens.mean(0)
    spread = (tokens - mean).square().mean().sqrt()
    if not float(spread) > 0:
        raise ValueError("tokens: are all the same, so there is nothing to code")
    with torch.no_grad():
        model.centre.copy_(mean)
        model.scale.copy_(spread)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(seed + 1)
    unused = torch.zeros(atoms, dtype=torch.int64, device=tokens.device)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, 5 * (1 - step / steps))
        x = tokens[torch.randint(n, (batch,), generator=generator).to(tokens.device)]
        loss, used = _loss(model, x, unused >= dead_after)
        unused = torch.where(used, 0, unused + 1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        _along_sphere(model.dictionary)
        optimizer.step()
        with torch.no_grad():
            model.dictionary.copy_(unit_rows(model.dictionary.mT).mT)
    return model.requires_grad_(False).eval()


def _loss(model: SparseAutoencoder, x: Tensor, dead: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error over `scale` squared, with the dead atoms' share of it, and which atoms [m] were used."""
    matches = model.matches(x).relu()
    codes = largest(matches, model.k)
    residual = (x - model.decode(codes)) / model.scale
    loss = residual.square().mean()
    if bool(dead.any()):
        revived = largest(matches[:, dead], max(1, x.shape[1] // 2))
        left = residual.detach()
        loss = loss + _AUXILIARY * (left - F.linear(revived, model.dictionary[:, dead])).square().mean()
    return loss, (codes > 0).any(0)


def _along_sphere(dictionary: nn.Parameter) -> None:
    """Take from the gradient what would change the atoms' norms."""
    assert dictionary.grad is not None
    atoms = dictionary.detach()
    dictionary.grad -= atoms * (atoms * dictionary.grad).sum(0)
