"""What `crate-codes` computes: codes of a layer's tokens, what each is worth, and which atoms two of them share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from unrolled.instruments.autoencoder import SparseAutoencoder, fit_autoencoder, largest
from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.crate.compared import NetworksConfig
from unrolled.studies.kinds import DEPTH
from unrolled.studies.networks import Data, Network, OfNetwork
from unrolled.studies.pictures import Pictures, as_input, pictures
from unrolled.studies.study import AtLeast, Budgets, Count, Distinct

KINDS = ("crate", "vit")
Sort = Literal["own", "random", "autoencoder"]
SORTS: tuple[Sort, ...] = ("own", "random", "autoencoder")
_BATCH, _SHUFFLES = 250, 20
_RIDGE = 1e-6  # of the mean eigenvalue
_WIDTH = 96  # of the tokens of these kinds


@dataclass(kw_only=True)
class CodesConfig(NetworksConfig):
    """Networks are the roster's, trained once for all studies."""

    budgets: ClassVar[Budgets] = {
        "quick": {
            **{"data": "digits", "seeds": (0, 1), "images": 1280, "workers": 1, "fitted": 200, "tested": 100},
            **{"steps": 20, "ks": (4, 16), "wide": 192},
        },
        "cpu": {},
        "gpu": {"device": "cuda", "images": 1_280_000, "workers": 1, "fitted": 20_000, "tested": 5000, "steps": 20_000},
    }

    data: Data = "cifar10"
    """What networks are trained on."""
    layer: Annotated[int, AtLeast(0)] = DEPTH - 2
    """The layer whose outgoing tokens are coded, from 0; the last has none behind it to feel a splice."""
    ks: Annotated[tuple[Annotated[int, AtLeast(1)], ...], Distinct()] = (4, 8, 16, 32)
    """Codes of a token that are not 0; claims are judged at the second."""
    wide: Annotated[int, AtLeast(_WIDTH)] = 384
    """Atoms of further autoencoders that are wider than the tokens, which are 96 wide, at the k that is judged."""
    fitted: Annotated[int, AtLeast(50)] = 2000
    """Training images whose tokens dictionaries are fitted to."""
    tested: Annotated[int, AtLeast(50)] = 600
    """Test images on which everything is measured."""
    steps: Count = 2000
    """Steps of an autoencoder, of 1,024 tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer >= DEPTH - 1:
            raise ValueError(f"layer={self.layer}: must be below {DEPTH - 1}, so that a layer reads what is spliced in")
        if len(self.ks) < 2 or list(self.ks) != sorted(self.ks) or self.ks[-1] > _WIDTH:
            raise ValueError(f"ks={self.ks}: give at least two, growing, at most {_WIDTH}, the width of tokens")

    @property
    def k(self) -> int:
        """At which claims are judged."""
        return self.ks[1]


@dataclass(frozen=True, kw_only=True)
class Codes(OfNetwork):
    """Codes of the tokens that leave a layer, at most k of a token not 0, and what they are worth.

    Attributes:
        layer: from 0.
        sort: `own`, the k largest entries of the token itself, which in CRATE are ISTA's codes; `random`, those of the
            token turned by a random rotation; or an `autoencoder` of TopK. The first two are read out by a ridge
            regression fitted to the same tokens as the autoencoder, so that none wants for a decoder.
        k: codes of a token that are not 0.
        atoms: how many there are; the width of the tokens but for wide autoencoders.
        fitted: training images.
        tested: test images.
        steps: of the autoencoder.
        draw: seed of the autoencoder or the rotation.
    """

    layer: int
    sort: Sort
    k: int
    atoms: int
    fitted: int
    tested: int
    steps: int
    draw: int

    def compute(self, context: Context) -> Result:
        """What the codes are worth on test images.

        `variance`: of the tokens that is rebuilt (`plain`: with what is left out set to 0, of own codes); `recovered`:
        share of the loss that comes back when the rebuilt tokens stand in for the true ones, 0 with the mean token
        everywhere; `selectivity` and `shuffled`: share of the variance of an atom's mean over an image that classes
        explain, mean over atoms, and with shuffled labels; `used`: share of atoms that any test token uses; `nonzero`:
        codes of a token that are not 0, before k are chosen where they are the token's own.
        """
        from unrolled.instruments.codes import class_selectivity, explained_variance

        model = self.network.load(context)
        coder = self._fit(model, context).to(context.device)
        path = self.file(context, ".pt")
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(coder.state_dict(), path)
        test = self.tests(context)
        tokens = tokens_of(model, test, self.layer, context)
        flat = tokens.flatten(0, 1)
        codes = coder.encode(tokens)
        rebuilt = coder.decode(codes)
        mean = coder.centre.expand_as(tokens)
        losses = [self._loss(model, test, context, each) for each in (None, rebuilt, mean)]
        by_image = codes[:, 1:].mean(1).cpu()
        generator = torch.Generator().manual_seed(0)
        orders = [torch.randperm(len(test.labels), generator=generator) for _ in range(_SHUFFLES)]
        shuffled = torch.stack([class_selectivity(by_image, test.labels[order]).nanmean() for order in orders])
        return {
            "variance": explained_variance(flat, rebuilt.flatten(0, 1)),
            "plain": explained_variance(flat, codes.flatten(0, 1)) if self.sort == "own" else None,
            # an untrained network may lose nothing by the mean token
            "recovered": (losses[2] - losses[1]) / (losses[2] - losses[0]) if losses[2] > losses[0] else None,
            **{"loss": losses[0], "spliced": losses[1], "ablated": losses[2]},
            "selectivity": float(class_selectivity(by_image, test.labels).nanmean()),
            "shuffled": float(shuffled.mean()),
            "used": float((codes != 0).flatten(0, 1).any(0).double().mean()),
            "nonzero": float((flat if self.sort == "own" else codes.flatten(0, 1)).ne(0).double().sum(-1).mean()),
        }

    def load(self, context: Context) -> Coder | SparseAutoencoder:
        """What was fitted."""
        state = torch.load(self.file(context, ".pt"), weights_only=True)
        dim = len(state["centre"])
        coder: Coder | SparseAutoencoder
        coder = SparseAutoencoder(dim, self.atoms, self.k) if self.sort == "autoencoder" else Coder(dim, self.k)
        coder.load_state_dict(state)
        return coder.requires_grad_(False).to(context.device)

    def tests(self, context: Context) -> Pictures:
        """The test images."""
        return pictures(self.network.data, "test", context.data_dir).first(self.tested)

    def _fit(self, model: nn.Module, context: Context) -> Coder | SparseAutoencoder:
        train = pictures(self.network.data, "train", context.data_dir).first(self.fitted)
        tokens = tokens_of(model, train, self.layer, context).flatten(0, 1)
        if self.sort == "autoencoder":
            return fit_autoencoder(tokens, self.atoms, self.k, steps=self.steps, seed=self.draw)
        return Coder(tokens.shape[1], self.k, turn=self.draw if self.sort == "random" else None).to(tokens).fit(tokens)

    def _loss(self, model: nn.Module, test: Pictures, context: Context, tokens: Tensor | None) -> float:
        """Mean cross-entropy with `tokens` in the place of those that leave the layer."""
        import unrolled
        from unrolled.instruments.edits import patch

        total = 0.0
        for start in range(0, len(test.labels), _BATCH):
            part = slice(start, start + _BATCH)
            images, labels = as_input(test.images[part]).to(context.device), test.labels[part]
            with torch.no_grad():
                if tokens is None:
                    logits = model(images)
                else:
                    with unrolled.edit(model, {place(self.layer): patch(tokens[part])}):
                        logits = model(images)
            total += float(nn.functional.cross_entropy(logits.cpu().double(), labels, reduction="sum"))
        return total / len(test.labels)


class Coder(nn.Module):
    """The k largest entries of a token, turned or not, and the affine map that best brings the token back."""

    rotation: Tensor
    decoder: Tensor
    centre: Tensor

    def __init__(self, dim: int, k: int, *, turn: int | None = None) -> None:
        super().__init__()
        self.k = k
        rotation = torch.eye(dim)
        if turn is not None:
            rotation = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(turn)))[0]
        self.register_buffer("rotation", rotation)
        self.register_buffer("decoder", torch.eye(dim + 1)[:, :dim].contiguous())
        self.register_buffer("centre", torch.zeros(dim))

    def fit(self, tokens: Tensor) -> Coder:
        """Fit the map to tokens `[n, d]`."""
        codes = self._with_one(self.encode(tokens)).double()
        gram = codes.mT @ codes
        penalty = _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        self.decoder.copy_(torch.linalg.solve(gram + penalty, codes.mT @ tokens.double()))
        self.centre.copy_(tokens.mean(0))
        return self

    def encode(self, x: Tensor) -> Tensor:
        """Codes `[..., d]` of tokens `[..., d]`."""
        return largest(x @ self.rotation, self.k)

    def decode(self, codes: Tensor) -> Tensor:
        """Tokens `[..., d]` from codes `[..., d]`."""
        return self._with_one(codes) @ self.decoder

    def _with_one(self, codes: Tensor) -> Tensor:
        return torch.cat([codes, torch.ones_like(codes[..., :1])], -1)


def place(layer: int) -> str:
    """Of the tokens that leave a layer, as `unrolled.edit` and `unrolled.trace` name it."""
    return f"block{layer:02d}"


def tokens_of(model: nn.Module, shown: Pictures, layer: int, context: Context) -> Tensor:
    """Tokens [n, t, d] that leave a layer."""
    from unrolled.instruments.trace import trace

    parts = []
    for images in shown.images.split(_BATCH):
        with torch.no_grad(), trace(model, patterns=place(layer)) as tokens:
            model(as_input(images).to(context.device))
        parts.append(tokens[place(layer)])
    return torch.cat(parts)


@dataclass(frozen=True, kw_only=True)
class Lasso(OfNetwork):
    """Whether ISTA's codes A say by their dictionary D what they code, the tokens X that the step is given."""

    layer: int
    tested: int

    def compute(self, context: Context) -> Result:
        """`variance` of X that D A explains, `loss`, the lasso's of A over that of X itself, and share of `nonzero`.

        At its start, A = X, the step's lasso has the value that `loss` is relative to; below 1 the step descends.
        """
        from unrolled.instruments.anatomy import find_stacks
        from unrolled.instruments.codes import explained_variance
        from unrolled.theory import lasso

        model = self.network.load(context)
        block: Any = find_stacks(model)[0].blocks[self.layer][1]
        seen: list[Tensor] = []
        hook = block.ista.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        test = pictures(self.network.data, "test", context.data_dir).first(self.tested)
        codes = tokens_of(model, test, self.layer, context)
        hook.remove()
        target, dictionary, sparsity = torch.cat(seen), block.ista.dictionary.detach(), float(block.ista.sparsity)
        values = [float(lasso(each, target, dictionary, sparsity).double().mean()) for each in (codes, target)]
        return {
            "variance": explained_variance(target.flatten(0, 1), (codes @ dictionary.mT).flatten(0, 1)),
            "loss": values[0] / values[1],
            "nonzero": float((codes != 0).double().mean()),
        }


@dataclass(frozen=True, kw_only=True)
class Agreement(Cell):
    """Which atoms two codes of the same patches share: correlation of their best matching, beside chance."""

    pair: tuple[Codes, Codes]

    @property
    def needs(self) -> Sequence[Cell]:
        """What was fitted."""
        return self.pair

    def require(self, context: Context) -> None:
        """The images."""
        for each in self.pair:
            each.require(context)

    def compute(self, context: Context) -> Result:
        """`correlation`, mean over matched atoms, and `chance`: the other's codes are of other images, places kept."""
        from unrolled.instruments.codes import match_atoms

        sides = []
        for each in self.pair:
            model = each.network.load(context)
            sides.append(each.load(context).encode(tokens_of(model, each.tests(context), each.layer, context)))
        first, second = sides
        order = torch.randperm(len(second), generator=torch.Generator().manual_seed(0))
        return {
            "correlation": float(match_atoms(first.flatten(0, 1), second.flatten(0, 1)).correlation.mean()),
            "chance": float(match_atoms(first.flatten(0, 1), second[order].flatten(0, 1)).correlation.mean()),
        }

    @property
    def sort(self) -> str:
        """What differs between the two: `draw`, `seed` or `kind`."""
        one, other = self.pair
        if one.network == other.network:
            return "draw"
        return "seed" if one.network.kind == other.network.kind else "kind"


def codes_of(config: CodesConfig, network: Network, sort: Sort, k: int, *, wide: bool = False, draw: int = 0) -> Codes:
    """A cell of this configuration."""
    return Codes(
        network=network,
        layer=config.layer,
        sort=sort,
        k=k,
        atoms=config.wide if wide else _WIDTH,
        fitted=config.fitted,
        tested=config.tested,
        steps=config.steps if sort == "autoencoder" else 0,
        draw=draw,
    )


def pairs(config: CodesConfig) -> Iterator[Agreement]:
    """Of one network two autoencoders; of every two seeds own codes and autoencoders; of every two kinds the same."""
    every = {kind: [config.network(kind, config.data, seed) for seed in config.seeds] for kind in KINDS}
    for kind in KINDS:
        for network in every[kind]:
            yield Agreement(pair=_two(config, "autoencoder", network, network, other=1))
        for one, other in combinations(every[kind], 2):
            for sort in ("own", "autoencoder"):
                yield Agreement(pair=_two(config, sort, one, other))
    for one, other in zip(*every.values(), strict=True):
        for sort in ("own", "autoencoder"):
            yield Agreement(pair=_two(config, sort, one, other))


def _two(config: CodesConfig, sort: Any, one: Network, another: Network, *, other: int = 0) -> tuple[Codes, Codes]:
    return codes_of(config, one, sort, config.k), codes_of(config, another, sort, config.k, draw=other)


def cells(config: CodesConfig) -> Iterator[Cell]:
    """Codes of every sort and size of trained networks, and of untrained CRATEs; lassos; agreements."""
    for seed in config.seeds:
        for kind in KINDS:
            network = config.network(kind, config.data, seed)
            yield network
            for k in config.ks:
                for sort in SORTS:
                    yield codes_of(config, network, sort, k)
            yield codes_of(config, network, "autoencoder", config.k, wide=True)
        untrained = config.network("crate", config.data, seed, trained=False)
        for sort in ("own", "autoencoder"):
            yield codes_of(config, untrained, sort, config.k)
        for network in (config.network("crate", config.data, seed), untrained):
            yield Lasso(network=network, layer=config.layer, tested=config.tested)
    yield from pairs(config)
