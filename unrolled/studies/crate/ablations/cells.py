"""What `crate-ablations` computes: the roster's networks with MSSA, and what their layers do to R^c and sparsity."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.crate.compared import ComparedConfig
from unrolled.studies.networks import OfNetwork
from unrolled.studies.study import AtLeast, Budgets, Rate

if TYPE_CHECKING:
    from torch import Tensor, nn

ABLATIONS = ("tied", "step-0.02", "step-0.5", "sparsity-0.02", "sparsity-0.5", "learned", "derived", "negated")
SAME_LAYER = ("crate", *ABLATIONS)
# whatever has MSSA, so that R^c means the same
KINDS = (
    *SAME_LAYER,
    *("overcomplete", "decoupled", "alpha", "attention-only"),
    *("registers", "orthogonal", "regularised"),
)


@dataclass(kw_only=True)
class AblationsConfig(ComparedConfig):
    """Budgets change the images; networks are those of the shared roster."""

    budgets: ClassVar[Budgets] = {
        "quick": {
            **{"data": ("digits",), "seeds": (0,), "images": 1280, "workers": 1},
            **{"samples": 32, "draws": 500},
        },
        "cpu": {},
        "gpu": {"device": "cuda", "images": 1_280_000, "workers": 1, "samples": 1000},
    }

    samples: Annotated[int, AtLeast(2)] = 300
    """Test images that layers are measured on; the paper takes 1,000."""
    eps: Rate = 0.1
    """Distortion of the coding rates."""
    draws: Annotated[int, AtLeast(2)] = 4000
    """Permutations and bootstrap samples."""


@dataclass(frozen=True, kw_only=True)
class Layers(OfNetwork):
    """What every layer of a network makes of the first `samples` test images."""

    samples: int
    eps: float

    def compute(self, context: Context) -> Result:
        """By layer: `rate` R, `subspace_rate` R^c, `orthonormal` R^c with orthonormal bases, and `nonzero` entries.

        Rates are in nats an image, on l2-normalised tokens at Z+half; `nonzero` is a fraction, at Z+1.
        """
        from unrolled.instruments.rates import layerwise
        from unrolled.studies.pictures import as_input, pictures

        test = pictures(self.network.data, "test", context.data_dir)
        images = as_input(test.images[: self.samples]).to(context.device)
        model = self.network.load(context)
        rows = layerwise(model, images, eps=self.eps)
        curves = {key: [row[key] for row in rows] for key in ("rate", "subspace_rate", "nonzero")}
        return {**curves, "orthonormal": orthonormal_rates(model, images, self.eps)}


def cells(config: AblationsConfig) -> Iterator[Cell]:
    """All networks with their layers, and those of the untrained network of the first seed."""
    for data in config.data:
        for kind in KINDS:
            networks = [config.network(kind, data, seed) for seed in config.seeds]
            yield from networks
            for each in (*networks, config.network(kind, data, config.seeds[0], trained=False)):
                yield Layers(network=each, samples=config.samples, eps=config.eps)


def orthonormal_rates(model: nn.Module, images: Tensor, eps: float) -> list[float]:
    """R^c of each layer at Z+half with an orthonormal basis of each head's subspace in place of U_k.

    R^c grows with the norm of U_k, which a network sets as it likes; this part of it is taken out. Mean over images, in
    nats.
    """
    import torch

    from unrolled.instruments.anatomy import find_stacks, head_subspaces
    from unrolled.instruments.trace import trace
    from unrolled.theory import normalize_tokens, subspace_coding_rate

    stack = find_stacks(model)[0]
    names = [f"{stack.name(index)}/half" for index in range(len(stack.blocks))]
    bases = {
        name: torch.linalg.qr(head_subspaces(block)).Q for name, (_, block) in zip(names, stack.blocks, strict=True)
    }

    def reduce(name: str, tokens: Tensor) -> Tensor:
        return subspace_coding_rate(normalize_tokens(tokens), bases[name], eps)

    with torch.no_grad(), trace(model, patterns=names, reduce=reduce) as rates:
        for part in images.split(50):
            model(part)
    return [float(torch.cat(rates[name]).mean()) for name in names]
