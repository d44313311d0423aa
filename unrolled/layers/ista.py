"""ISTA: the sparsification step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unrolled.ops.recording import is_recording


class ISTA(nn.Module):
    r"""One proximal gradient step on the non-negative lasso, started at its own input (arXiv 2306.01129, eq. 17).

    $$Z^{\ell+1} = \mathrm{ReLU}\big(X + \eta D^\top (X - D X) - \eta\lambda\big), \qquad X = Z^{\ell+1/2}$$

    | symbol | attribute    | shape                                                   |
    |--------|--------------|---------------------------------------------------------|
    | D      | `dictionary` | `[d, d]`, acting on columns; a token row x gives x D^T  |
    | eta    | `step_size`  | scalar                                                  |
    | lambda | `sparsity`   | scalar; the threshold is eta * lambda                   |

    Objective: `theory.lasso` with the tokens as target and start; the step is exact (`theory.proximal_step`).

    Departures: none in what is computed. There is no outer skip: the identity is inside the step, as in the published
    model. What differs is how. The step is affine before the ReLU, so it is evaluated in one of two ways that agree
    with the three products of the formula:

    - *two products*: r = X - D X, then X + eta D^T r;
    - *folded*: one product with A = I + eta D^T (I - D), formed inside autograd.

    Counting forward and backward multiplications, n tokens cost 12 n d^2 the first way and 6 n d^2 + 6 d^3 the
    second: with more tokens than d the folded form is cheaper and is used. In eval without gradients A is kept
    between calls. It is rebuilt when the dictionary, step size or sparsity are changed in place, replaced, loaded, or
    moved to another device or dtype, and `train()` drops it. A write through `Tensor.data` is invisible to PyTorch's
    version counter: call `refold()` after one. Graphs that are exported or traced hold the two products, which suit any
    number of tokens.
    """

    step_size: float | Tensor
    sparsity: float | Tensor

    def __init__(
        self,
        dim: int,
        *,
        step_size: float = 0.1,
        sparsity: float = 0.1,
        learn_step_size: bool = False,
        learn_sparsity: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the layer.

        Args:
            dim: d, width of the tokens and number of atoms.
            step_size: eta, > 0.
            sparsity: lambda, >= 0.
            learn_step_size: make eta a parameter that starts at `step_size`.
            learn_sparsity: make lambda a parameter that starts at `sparsity`.
            device: where to put the parameters.
            dtype: their type.

        Raises:
            ValueError: `step_size` is not positive or `sparsity` negative.
        """
        super().__init__()
        if not step_size > 0:
            raise ValueError(f"step_size={step_size}: must be positive")
        if not sparsity >= 0:
            raise ValueError(f"sparsity={sparsity}: must be >= 0")
        self.dim = dim
        self.dictionary = nn.Parameter(torch.empty(dim, dim, device=device, dtype=dtype))
        self.step_size = step_size
        self.sparsity = sparsity
        self._start = {"step_size": step_size, "sparsity": sparsity}
        if learn_step_size:
            self.step_size = nn.Parameter(torch.tensor(step_size, device=device, dtype=dtype))
        if learn_sparsity:
            self.sparsity = nn.Parameter(torch.tensor(sparsity, device=device, dtype=dtype))
        # what was folded (holding the tensors, so that their addresses cannot be reused), its key, and the result
        self._folded: tuple[list[Any], tuple[Any, ...], Tensor, Tensor] | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He-uniform: ||D|| is about 2.8, so that the default step size sits just under 1 / ||D||^2.

        A learned step size or sparsity goes back to where it started.
        """
        nn.init.kaiming_uniform_(self.dictionary)
        for name, value in self._start.items():
            if isinstance(parameter := getattr(self, name), nn.Parameter):
                nn.init.constant_(parameter, value)

    def forward(self, x: Tensor) -> Tensor:
        """Sparsify tokens `[..., n, d]`, normalised by the caller; returns the same shape, non-negative."""
        if is_recording(x):
            return self._two_products(x)
        gradients = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters(recurse=False))
        if not gradients and not self.training and self._cacheable():
            affine, bias = self._cached_fold(x)
            return torch.relu_(F.linear(x, affine, bias))
        # in float16, D X of large tokens overflows although their step does not
        if x.numel() // self.dim > self.dim or _compute_dtype(x) == torch.float16:
            affine, bias = self._fold()
            return torch.relu(F.linear(x, affine, bias))
        return self._two_products(x)

    def _two_products(self, x: Tensor) -> Tensor:
        residual = x - F.linear(x, self.dictionary)
        return torch.relu(x + self.step_size * F.linear(residual, self.dictionary.t()) - self.step_size * self.sparsity)

    def _fold(self) -> tuple[Tensor, Tensor]:
        """A = I + eta D^T (I - D) `[d, d]` and the bias -eta lambda `[d]`, in float32 at least, autocast or not."""
        device = "cpu" if self.dictionary.is_meta else self.dictionary.device.type  # autocast knows no meta device
        with torch.autocast(device, enabled=False):
            d: Tensor = self.dictionary
            d = d.float() if d.dtype in (torch.float16, torch.bfloat16) else d
            identity = torch.eye(self.dim, dtype=d.dtype, device=d.device)
            affine = identity + self.step_size * (d.mT @ (identity - d))
            threshold = torch.as_tensor(self.step_size * self.sparsity, dtype=d.dtype, device=d.device)
            return affine.to(self.dictionary.dtype), -threshold.expand(self.dim).to(self.dictionary.dtype)

    def _cacheable(self) -> bool:
        return not torch.compiler.is_compiling() and not self.dictionary.is_inference()

    def _cached_fold(self, x: Tensor) -> tuple[Tensor, Tensor]:
        sources = [self.dictionary, self.step_size, self.sparsity]
        key = (*map(_identity, sources), _compute_dtype(x))
        if self._folded is None or self._folded[1] != key:
            with torch.inference_mode(False), torch.no_grad():
                affine, bias = (t.to(_compute_dtype(x)).contiguous() for t in self._fold())
            self._folded = (sources, key, affine, bias)
        return self._folded[2], self._folded[3]

    def refold(self) -> None:
        """Forget the folded matrix; the next call in eval builds it anew."""
        self._folded = None

    def train(self, mode: bool = True) -> ISTA:
        """Switch mode as `nn.Module.train`, and forget the folded matrix."""
        self.refold()
        super().train(mode)
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> ISTA:
        self.refold()
        super()._apply(fn, recurse)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles do not carry the folded matrix."""
        return {**self.__dict__, "_folded": None}

    def extra_repr(self) -> str:
        """Sizes, for `print(model)`."""
        return f"dim={self.dim}, step_size={float(self.step_size):g}, sparsity={float(self.sparsity):g}"


def _identity(value: float | Tensor) -> Any:
    """What changes when a number or a tensor does: itself, or the tensor's storage, version, dtype and device."""
    if isinstance(value, Tensor):
        return (value.data_ptr(), value._version, value.dtype, value.device)
    return value


def _compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype a matrix product with `x` runs in, autocast considered."""
    kind = x.device.type
    if x.dtype != torch.float64 and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype
