"""Muon: momentum, orthogonalised, for the matrices of the layers; AdamW for everything else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from unrolled.train.checkpoint import like

# of odd quintic polynomials a x + b x^3 + c x^5, whose composition takes [0.01, 1] into [0.977, 1.032]
COEFFICIENTS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
MATRICES = ("weight", "dictionary", "decoder", "original", "original0")  # last parts of their names; tables have others
STACKED = 1 << 24  # elements that are orthogonalised at once


class Muon(torch.optim.Optimizer):
    r"""Momentum orthogonalised by Newton-Schulz (Jordan et al. 2024), scaled as AdamW's steps (arXiv 2502.16982).

    $$B \leftarrow \mu B + (1 - \mu) G, \qquad
      W \leftarrow (1 - \eta\lambda)\, W - 0.2 \sqrt{\max(m, n)}\; \eta\, \mathrm{polar}((1 - \mu) G + \mu B)$$

    for W `[m, n]`, in the groups that say `muon: True`; the others are AdamW's, with the same rate, since the factor
    makes the root mean square of both steps the same. polar(UΣVᵀ) = UVᵀ, to 3.2 % for the singular values above a
    hundredth of the matrix's norm.

    Departure from the published code, which works matrix by matrix in bfloat16: matrices of one shape, or its
    transpose, are one stack, in float32 on anything but CUDA, where bfloat16 is fast. A run on a CPU is therefore the
    same whether or not the CPU knows bfloat16.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        *,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        fused: bool = True,
    ) -> None:
        """Build the optimiser.

        Args:
            groups: of parameters; those with `muon: True` hold matrices `[m, n]` only.
            lr: learning rate η of both kinds.
            weight_decay: decoupled, λ.
            momentum: μ of the matrices.
            betas: of AdamW.
            eps: of AdamW.
            fused: run AdamW as one kernel; sharded parameters cannot.

        Raises:
            ValueError: something other than a matrix is in a group of matrices.
        """
        options = {"weight_decay": weight_decay, "momentum": momentum, "betas": betas, "eps": eps, "fused": fused}
        super().__init__(groups, {"lr": lr, "muon": False, **options})
        for group in self.param_groups:
            if group["muon"] and (shapes := [tuple(p.shape) for p in group["params"] if p.ndim != 2]):
                raise ValueError(f"groups: Muon is for matrices, and {shapes[0]} is the shape of none")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Change the parameters that have a gradient; returns what `closure`, if given, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                (self._step_matrices if group["muon"] else self._step_adamw)(parameters, group)
        return loss

    def _step_matrices(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        momentum, rate = group["momentum"], group["lr"]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        gradients: list[Any] = [parameter.grad for parameter in parameters]
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        updates = orthogonalise(torch._foreach_lerp(gradients, buffers, momentum))
        torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
        scales = [-0.2 * rate * max(parameter.shape) ** 0.5 for parameter in parameters]
        torch._foreach_mul_(updates, scales)
        torch._foreach_add_(parameters, updates)

    def _step_adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not (state := self.state[parameter]):
                state["step"] = torch.zeros((), device=parameter.device if group["fused"] else "cpu")
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters],  # type: ignore[misc]
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonalise(matrices: Iterable[Tensor]) -> list[Tensor]:
    """The polar factor of every matrix `[m, n]`, approximately (see `Muon`), in its own dtype; zero of a zero matrix.

    A sharded matrix is gathered, and its factor sharded alike (a collective call).
    """
    matrices = list(matrices)
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, matrix in enumerate(matrices):
        alike[tuple(sorted(matrix.shape))].append(index)
    factors = list(matrices)
    for (short, long), members in alike.items():
        most = max(1, STACKED // max(1, short * long))
        for start in range(0, len(members), most):
            some = members[start : start + most]
            wide = [m if m.shape[0] == short else m.mT for m in (_gathered(matrices[index]) for index in some)]
            for index, factor in zip(some, newton_schulz(torch.stack(wide)), strict=True):
                matrix = matrices[index]
                factors[index] = like((factor if matrix.shape[0] == short else factor.mT).to(matrix.dtype), matrix)
    return factors


def newton_schulz(x: Tensor) -> Tensor:
    """Five steps of `COEFFICIENTS` on a stack of matrices `[k, m, n]`, m <= n: bfloat16 on CUDA, float32 elsewhere, or
    float64 if that is what they are."""
    if x.dtype != torch.float64:
        x = x.to(torch.bfloat16 if x.is_cuda else torch.float32)
    tiny = torch.finfo(x.dtype).tiny
    x = x / x.abs().amax((-2, -1), keepdim=True).clamp_min(tiny)  # squares of gradients near 1e-20 would vanish
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(tiny)
    for a, b, c in COEFFICIENTS:
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def layer_matrices(model: nn.Module) -> list[str]:
    """Names of the parameters that Muon is for: matrices that multiply tokens inside the numbered layers of a model.

    Not embeddings, positions and class token, patch embedding, head, whatever the model exempts from weight decay,
    convolutions, or tables such as one number for each head and position.
    """
    named: Any = getattr(model, "no_weight_decay", None)
    exempt = named() if callable(named) else ()
    embeddings = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    names = []
    for name, parameter in model.named_parameters():
        *path, last = name.split(".")
        inside = any(part.isdigit() for part in path) and last in MATRICES and name not in exempt
        if inside and parameter.ndim == 2 and id(parameter) not in embeddings:
            names.append(name)
    return names


def _gathered(matrix: Any) -> Tensor:
    whole: Tensor = matrix.full_tensor() if hasattr(matrix, "full_tensor") else matrix
    return whole
