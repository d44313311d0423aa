"""Overcomplete ISTA: the sparsification step of CRATE-alpha."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class OvercompleteISTA(nn.Module):
    r"""Two proximal gradient steps on the non-negative lasso from zero, then back to d dimensions (arXiv 2405.20299).

    $$A_1 = \mathrm{ReLU}(\eta D^\top X - \eta\lambda), \qquad
      A_2 = \mathrm{ReLU}\big(A_1 + \eta D^\top (X - D A_1) - \eta\lambda\big), \qquad
      \mathrm{ODL}(X) = \hat D A_2$$

    | symbol  | attribute    | shape                                                     |
    |---------|--------------|-----------------------------------------------------------|
    | D       | `dictionary` | `[d, m]`, columns are atoms; m = `expansion` * d          |
    | D-hat   | `decoder`    | `[d, m]`; None if not decoupled, and then D is used       |
    | A_2     | `codes(x)`   | `[..., n, m]`, the sparse codes                           |
    | eta     | `step_size`  | scalar                                                    |
    | lambda  | `sparsity`   | scalar; the threshold is eta * lambda                     |

    Objective: `theory.lasso` with the tokens as target; the codes are exact (`theory.proximal_step` twice, from zero).
    That the decoder is another matrix than D is not derived: with `decoupled=False`, ODL(X) is the tokens' sparse
    approximation; with it, a learned readout of the codes.

    Departures: none in what is computed. How: eta multiplies the d-dimensional side, sums ride in the matrix products,
        and the m-dimensional codes are thresholded, and without gradients updated, in place.
    """

    def __init__(
        self,
        dim: int,
        *,
        expansion: int = 4,
        decoupled: bool = True,
        step_size: float = 0.1,
        sparsity: float = 0.1,
        learn_step_size: bool = False,
        learn_sparsity: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the layer.

        Args:
            dim: d, width of the tokens.
            expansion: m / d, atoms for each dimension.
            decoupled: read the codes out with a matrix of its own.
            step_size: eta, > 0.
            sparsity: lambda, >= 0.
            learn_step_size: make eta a parameter that starts at `step_size`.
            learn_sparsity: make lambda a parameter that starts at `sparsity`.
            device: where to put the parameters.
            dtype: their type.

        Raises:
            ValueError: `step_size` or `expansion` is not positive, or `sparsity` negative.
        """
        super().__init__()
        if expansion < 1:
            raise ValueError(f"expansion={expansion}: must be at least 1")
        if not step_size > 0:
            raise ValueError(f"step_size={step_size}: must be positive")
        if not sparsity >= 0:
            raise ValueError(f"sparsity={sparsity}: must be >= 0")
        placed: dict[str, Any] = {"device": device, "dtype": dtype}
        self.dim, self.expansion = dim, expansion
        self.dictionary = nn.Parameter(torch.empty(dim, expansion * dim, **placed))
        self.decoder = nn.Parameter(torch.empty(dim, expansion * dim, **placed)) if decoupled else None
        self._start = {"step_size": step_size, "sparsity": sparsity}
        self.step_size: float | Tensor = step_size
        self.sparsity: float | Tensor = sparsity
        if learn_step_size:
            self.step_size = nn.Parameter(torch.tensor(step_size, **placed))
        if learn_sparsity:
            self.sparsity = nn.Parameter(torch.tensor(sparsity, **placed))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He-uniform with d inputs, as published: ||D|| is about 4.2 at expansion 4, so that eta ||D||^2 < 2.

        A learned step size or sparsity goes back to where it started.
        """
        bound = (6 / self.dim) ** 0.5
        for matrix in (self.dictionary, self.decoder):
            if matrix is not None:
                nn.init.uniform_(matrix, -bound, bound)
        for name, value in self._start.items():
            if isinstance(parameter := getattr(self, name), nn.Parameter):
                nn.init.constant_(parameter, value)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `[..., n, d]`, normalised by the caller, to what their codes say of them, the same shape."""
        return F.linear(self.codes(x), self.dictionary if self.decoder is None else self.decoder)

    def codes(self, x: Tensor) -> Tensor:
        """The sparse codes A_2 `[..., n, m]` of tokens `[..., n, d]`."""
        d, eta = self.dictionary, self.step_size
        threshold = eta * self.sparsity
        rows = x.reshape(-1, self.dim)
        codes = ((eta * rows) @ d).sub_(threshold).relu_()
        residual = eta * torch.addmm(rows, codes, d.t(), alpha=-1)
        if torch.is_grad_enabled():  # the first codes are needed to differentiate
            codes = torch.addmm(codes, residual, d)
        else:  # in-place products are not autocast
            codes.addmm_(residual.to(codes.dtype), d.to(codes.dtype))
        return codes.sub_(threshold).relu_().view(x.shape[:-1] + d.shape[1:])

    def extra_repr(self) -> str:
        """Sizes, for `print(model)`."""
        return (
            f"dim={self.dim}, expansion={self.expansion}, decoupled={self.decoder is not None}, "
            f"step_size={float(self.step_size):g}, sparsity={float(self.sparsity):g}"
        )
