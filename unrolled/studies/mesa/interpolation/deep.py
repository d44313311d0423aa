"""Trained linear stacks mixed with gradient steps of as many layers, with their own numbers, and with other stacks.

A stack of L linear layers on tokens [0, s_t, s_t, s_{t-1}] can do L steps of gradient descent on its context: each
layer writes a step's prediction to the first channel, and to one copy of s_t what the step has left of it
(arXiv 2309.05858, Proposition 2, whose layers these are but for the ridge). Step sizes are tuned on other sequences.

What is mixed are products of weights, as of one layer. The same function has many of them: a factor can move between a
head's two products, heads can change places, the first layer can read either copy of s_t, the others can exchange the
two, and nothing reads what the last layer writes beside the prediction. In all of these a stack is brought as near to
the other one as it comes. That a copy can also be mixed continuously into the other channels, which only the clip would
see, is left as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.mesa.compressed import Numbers, compressed, permuted
from unrolled.studies.mesa.constructed import Constructed
from unrolled.studies.mesa.held_out import TEST_SEED, TUNE_SEED, mean_loss
from unrolled.studies.mesa.interpolation.one_layer import noise_like, spread
from unrolled.studies.mesa.weights import products
from unrolled.tasks import LinearDynamics
from unrolled.tasks.dynamics import Teacher

if TYPE_CHECKING:
    from torch import Tensor

    from unrolled.models import SequenceRegressor

_CHANNELS = 4  # of a token: the prediction, s_t, s_t again, s_{t-1}


@dataclass(frozen=True, kw_only=True)
class TunedSteps(Cell):
    """Gradient steps of so many layers, with the step sizes that predict best on sequences that no test sees.

    Attributes:
        layers, clip: as of the stacks that they stand beside.
        dim, teacher: of the world, as of `Constructed`.
        sequences: that choose.
    """

    layers: int
    clip: float
    dim: int
    teacher: Teacher
    sequences: int

    def compute(self, context: Context) -> Result:
        """The step sizes `learned` and `forgotten` (`steps_numbers`), and their `loss` on the sequences that choose."""
        world = LinearDynamics(dim=self.dim, teacher=self.teacher)
        learned, forgotten, loss = tuned_steps(world, self.layers, self.clip, sequences=self.sequences)
        return {"learned": learned.tolist(), "forgotten": forgotten.tolist(), "loss": loss}


@dataclass(frozen=True, kw_only=True)
class MixedStack(Cell):
    """One trained stack on its way to gradient steps, to its own numbers, and to three controls.

    Attributes:
        network: the stack.
        other_seed: of a stack trained alike, which shares nothing but the task.
        test_sequences: held-out sequences; as many others choose the step sizes.
        coefficients: shares of the way, ends included.
    """

    network: Constructed
    other_seed: int
    test_sequences: int
    coefficients: int

    @property
    def other(self) -> Constructed:
        """The stack of the other seed."""
        return replace(self.network, seed=self.other_seed)

    @property
    def steps(self) -> TunedSteps:
        """What it is mixed with, the same for all seeds."""
        network, recipe = self.network, self.network.recipe
        return TunedSteps(
            layers=recipe.layers, clip=recipe.clip, dim=network.dim, teacher=network.teacher,
            sequences=self.test_sequences,
        )  # fmt: skip

    @property
    def needs(self) -> Sequence[Cell]:
        """Both stacks, and the steps."""
        return self.network, self.other, self.steps

    def compute(self, context: Context) -> Result:
        """Losses along every way, at `shares` of it, and `halfway`.

        `to_steps` and its control `to_random`, products as large; `to_numbers` (`Numbers` of the stack) and its control
        `to_shuffled`, the same in other places; `to_other`, the other stack. `cosine` of the stack with the end of
        every way, by layer, and the `step_sizes`.
        """
        import torch

        world, clip, seed = self.network.world, self.network.recipe.clip, self.network.seed
        test = world.sample(self.test_sequences, seed=TEST_SEED)
        inputs, targets = test.inputs.to(context.device), test.targets.to(context.device)
        model, other = self.network.load(context), self.other.load(context)
        trained, numbers = stack_products(model), compressed(model, world.dim)
        sizes = context.result(self.steps)
        steps = steps_numbers(torch.tensor(sizes["learned"]), torch.tensor(sizes["forgotten"]), clip)
        constructed = spread_like(trained, of_numbers(steps, world.dim))
        ends = {
            "to_steps": constructed,
            "to_random": random_stack(constructed, torch.Generator().manual_seed(seed)),
            "to_numbers": of_numbers(numbers, world.dim),
            "to_shuffled": of_numbers(permuted(numbers, seed), world.dim),
            "to_other": aligned(trained, stack_products(other)),
        }
        shares = [place / (self.coefficients - 1) for place in range(self.coefficients)]

        def loss(end: StackProducts, share: float) -> float:
            return mean_loss(trained.mixed(end, share).predict, inputs, targets)

        return {
            "shares": shares,
            **{name: [loss(end, share) for share in shares] for name, end in ends.items()},
            "halfway": {name: loss(end, 0.5) for name, end in ends.items()},
            "cosine": {name: cosines(trained, end) for name, end in ends.items()},
            "step_sizes": {"learned": sizes["learned"], "forgotten": sizes["forgotten"][:-1]},
            "extent": self.network.recipe.extent,
            "zero_loss": mean_loss(lambda x: 0 * x, inputs, targets),
        }


@dataclass(frozen=True)
class StackProducts:
    """What the weights of a stack of linear layers do on tokens of four channels of width d, as products.

    Attributes:
        scores: W_q^T W_k of every head, [layers, h, 4 d, 4 d]; the first layer's are those of the mean of both copies.
        values: P W_v of every head, the same; the last layer's write to the first channel alone.
        clip: tokens are kept within [-clip, clip] after every layer.
    """

    scores: Tensor
    values: Tensor
    clip: float

    def mixed(self, other: StackProducts, share: float) -> StackProducts:
        """(1 - share) of these products and `share` of the other's."""
        return StackProducts(
            (1 - share) * self.scores + share * other.scores,
            (1 - share) * self.values + share * other.values,
            self.clip,
        )

    def predict(self, states: Tensor) -> Tensor:
        """Predictions of s_{t+1} from states [b, t, d]."""
        from unrolled.tasks import constructed_tokens

        z = constructed_tokens(states)
        for scores, values in zip(self.scores.to(states), self.values.to(states), strict=True):
            tokens = z[:, None]  # [b, 1, t, 4 d]
            z = z + ((tokens @ scores @ tokens.mT).tril() @ (tokens @ values.mT)).sum(1)
            z = z.clamp(-self.clip, self.clip)
        return z[..., : states.shape[-1]]


def stack_products(model: SequenceRegressor) -> StackProducts:
    """The `StackProducts` of a model of linear layers on tokens of four channels, float64."""
    import torch

    layers = [products(block.get_submodule("attn")) for block in model.blocks]  # type: ignore[arg-type]
    scores, values = (torch.stack([pair[place] for pair in layers]) for place in (0, 1))
    return _plain(scores, values, float(model.config.clip))


def of_numbers(numbers: Numbers, state_dim: int) -> StackProducts:
    """The same of 16 + 16 numbers a head: each is a multiple of the identity of width `state_dim`."""
    import torch

    eye = torch.eye(state_dim, dtype=torch.float64)

    def blocks(x: Tensor) -> Tensor:
        return torch.kron(x.double().cpu().contiguous(), eye)

    return _plain(blocks(numbers.scores), blocks(numbers.values), numbers.clip)


def _plain(scores: Tensor, values: Tensor, clip: float) -> StackProducts:
    """Products without what cannot act: the first layer's reads beyond its tokens, the last one's writes unread."""
    import torch

    d = scores.shape[-1] // _CHANNELS
    # onto tokens [0, a, a, b]
    mean = torch.zeros(_CHANNELS, _CHANNELS, dtype=scores.dtype)
    mean[1:3, 1:3], mean[3, 3] = 0.5, 1.0
    onto = torch.kron(mean, torch.eye(d, dtype=scores.dtype))
    scores, values = scores.clone(), values.clone()
    scores[0], values[0] = onto @ scores[0] @ onto, values[0] @ onto
    values[-1, :, d:] = 0
    return StackProducts(scores, values, clip)


def steps_numbers(learned: Tensor, forgotten: Tensor, clip: float) -> Numbers:
    """As many layers as there are step sizes, one head each, that do gradient descent on the context.

    With S_t the states before s_t and x_t = s_t at first, layer k adds learned_k sum_t' s_t' (s_{t'-1} . x_t) to the
    prediction and takes forgotten_k S_t S_t^T x_t off x_t. If all are one step size these are as many plain gradient
    steps from zero.

    Args:
        learned, forgotten: step sizes, [layers]; the last of `forgotten` changes nothing.
        clip: as of `Numbers`.
    """
    import torch

    def number(row: int, column: int, of: Tensor) -> Tensor:
        place = torch.zeros(_CHANNELS, _CHANNELS, dtype=of.dtype, device=of.device)
        place[row, column] = 1
        return of[:, None, None, None] * place

    return Numbers(number(2, 3, torch.ones_like(learned)), number(0, 1, learned) - number(2, 3, forgotten), clip)


def tuned_steps(world: LinearDynamics, layers: int, clip: float, *, sequences: int) -> tuple[Tensor, Tensor, float]:
    """Step sizes of `steps_numbers`, [layers] each, that predict best on sequences that no test sees; and their loss.

    Found by L-BFGS from equal small ones, until it is done.
    """
    import torch

    from unrolled.tasks import sequence_loss

    sample = world.sample(sequences, seed=TUNE_SEED)
    sizes = torch.full((2, layers), 0.02).requires_grad_()
    optimizer = torch.optim.LBFGS([sizes], max_iter=200, max_eval=1000, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sequence_loss(steps_numbers(sizes[0], sizes[1], clip).predict(sample.inputs), sample.targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    loss = float(closure().detach())
    learned, forgotten = sizes.detach()
    return learned, forgotten, loss


def spread_like(trained: StackProducts, single: StackProducts) -> StackProducts:
    """A stack of one head a layer, spread over the heads of a trained one (`spread`), its copies of s_t as there."""
    import torch

    def over(stack: StackProducts) -> StackProducts:
        layers = [
            spread(scores, values, stack.scores[layer, 0], stack.values[layer, 0])
            for layer, (scores, values) in enumerate(zip(trained.scores, trained.values, strict=True))
        ]
        return StackProducts(
            torch.stack([scores for scores, _ in layers]), torch.stack([values for _, values in layers]), trained.clip
        )

    return max((over(single), over(_exchanged(single))), key=lambda stack: float(_along(trained, stack).sum()))


def aligned(trained: StackProducts, other: StackProducts) -> StackProducts:
    """The other stack, its heads in the order, with the scales and signs, and its copies as they are most like here."""
    return max(
        (_matched(trained, other), _matched(trained, _exchanged(other))),
        key=lambda stack: float(_along(trained, stack).sum()),
    )


def _matched(trained: StackProducts, other: StackProducts) -> StackProducts:
    """The other stack with every layer's heads in another order, the scale of each that of the head here."""
    import torch
    from scipy.optimize import linear_sum_assignment

    layers = []
    for mine, theirs in zip(_layers(trained), _layers(other), strict=True):
        dots = [torch.einsum("hij,gij->hg", one, two) for one, two in zip(mine, theirs, strict=True)]
        order = torch.as_tensor(linear_sum_assignment((dots[0] * dots[1]).numpy(), maximize=True)[1])
        sign = torch.where(dots[0].gather(1, order[:, None])[:, 0] < 0, -1.0, 1.0)
        scores, values = (x[order] for x in theirs)
        ratios = [v.norm(dim=(-2, -1)) / s.norm(dim=(-2, -1)).clamp_min(1e-300) for s, v in (mine, (scores, values))]
        factor = sign * (ratios[1] / ratios[0].clamp_min(1e-300)).clamp_min(1e-300).sqrt()
        layers.append((scores * factor[:, None, None], values / factor[:, None, None]))
    return StackProducts(torch.stack([s for s, _ in layers]), torch.stack([v for _, v in layers]), other.clip)


def _layers(stack: StackProducts) -> list[tuple[Tensor, Tensor]]:
    return list(zip(stack.scores, stack.values, strict=True))


def _exchanged(stack: StackProducts) -> StackProducts:
    """The same function with the two copies of s_t in each other's place."""
    import torch

    width = stack.scores.shape[-1] // _CHANNELS
    place = torch.arange(_CHANNELS * width).unflatten(0, (_CHANNELS, width))[[0, 2, 1, 3]].flatten()
    return StackProducts(stack.scores[..., place, :][..., place], stack.values[..., place, :][..., place], stack.clip)


def _along(one: StackProducts, other: StackProducts) -> Tensor:
    """Inner product of what two stacks' heads add up to, by layer: it depends on no scale or order of heads."""
    import torch

    dots: list[Any] = [
        torch.einsum("lhij,lgij->lhg", mine, theirs)
        for mine, theirs in ((one.scores, other.scores), (one.values, other.values))
    ]
    total: Tensor = (dots[0] * dots[1]).sum((-2, -1))
    return total


def cosines(one: StackProducts, other: StackProducts) -> list[float]:
    """Of what two stacks' heads add up to, by layer; 1 where the layers are alike but for a factor."""
    lengths = (_along(one, one) * _along(other, other)).sqrt().clamp_min(1e-300)
    values: list[float] = (_along(one, other) / lengths).tolist()
    return values


def random_stack(like: StackProducts, generator: Any) -> StackProducts:
    """Random products with the norm of every matrix of `like`, all of which can act, as in it (`_plain`)."""
    random = _plain(noise_like(like.scores, generator), noise_like(like.values, generator), like.clip)

    def sized(x: Tensor, wanted: Tensor) -> Tensor:
        return x * (wanted.norm(dim=(-2, -1), keepdim=True) / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-300))

    return StackProducts(sized(random.scores, like.scores), sized(random.values, like.values), like.clip)
