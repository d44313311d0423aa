"""What changes the weights: parameter groups, mixing, and the moving average."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unrolled.errors import nearest
from unrolled.train.config import RunConfig, TrainConfig


def seed_step(seed: int, step: int, rank: int = 0, device: torch.device | str = "cpu") -> None:
    """Make every random draw of this step (dropout, drop path, mixing) a function of `(seed, step, rank)`."""
    words = np.random.SeedSequence([seed, step, rank]).generate_state(2, np.uint32)
    torch.default_generator.manual_seed(int(words[0]) << 32 | int(words[1]))  # torch.manual_seed costs 0.8 ms a call
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.manual_seed(int(words[0]))
    elif kind == "mps":
        torch.mps.manual_seed(int(words[0]))
    np.random.seed(words[0])
    random.seed(int(words[1]))


def build_optimizer(model: nn.Module, config: RunConfig, beside: nn.Module | None = None) -> torch.optim.Optimizer:
    """The timm optimiser `config.optimizer` over two groups: decayed matrices, and everything that must not decay
    (norms, biases, learned scalars, and what `model.no_weight_decay()` names: positions, class token). What is trained
    `beside` the model has two groups of its own.

    `"muon"` is ours (`unrolled.train.muon`), with a third group: the matrices of the layers. The rest is AdamW's.

    Raises:
        ValueError: no such optimiser, it does not take `betas`, or the model has no matrices for Muon.
    """
    from timm.optim import create_optimizer_v2, list_optimizers, param_groups_weight_decay

    if config.optimizer.lower() not in list_optimizers():
        near = nearest(config.optimizer, list_optimizers(), most=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "the usual ones are adamw, sgd, lion and muon"
        raise ValueError(f"optimizer={config.optimizer!r} is not one of timm's; {hint}")
    named: Any = getattr(model, "no_weight_decay", None)
    exempt = named() if callable(named) else ()
    groups = param_groups_weight_decay(model, config.weight_decay, no_weight_decay_list=exempt)
    if beside is not None:
        groups += param_groups_weight_decay(beside, config.weight_decay)
    if config.optimizer.lower() == "muon":
        return _muon(model, config, groups)
    options: dict[str, Any] = {} if config.betas is None else {"betas": tuple(config.betas)}
    if config.optimizer.lower() in ("adam", "adamw") and config.precision != "fp16" and config.strategy != "fsdp":
        options["fused"] = True  # one kernel; it would unscale fp16 gradients itself, after they are clipped
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            groups, opt=config.optimizer, lr=config.lr, weight_decay=config.weight_decay, **options
        )
    except TypeError as error:
        raise ValueError(f"optimizer={config.optimizer!r} does not accept these settings: {error}") from error
    if config.betas is not None and "betas" not in optimizer.param_groups[0]:
        raise ValueError(f"optimizer={config.optimizer!r} has no betas; leave them unset")
    return optimizer


def _muon(model: nn.Module, config: RunConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    from unrolled.train.muon import Muon, layer_matrices

    parameters = dict(model.named_parameters())
    matrices = [parameters[name] for name in layer_matrices(model) if parameters[name].requires_grad]
    if not matrices:
        raise ValueError(
            "optimizer='muon' is for the matrices of a model's layers, and this one has none; use optimizer='adamw'"
        )
    theirs = {id(parameter) for parameter in matrices}
    rest = [{**group, "params": [p for p in group["params"] if id(p) not in theirs]} for group in groups]
    ours = {"params": matrices, "weight_decay": config.weight_decay, "muon": True}
    options: dict[str, Any] = {} if config.betas is None else {"betas": tuple(config.betas)}
    fused = config.strategy != "fsdp"
    return Muon([ours, *(group for group in rest if group["params"])], lr=config.lr, fused=fused, **options)


class Mixing:
    """Mixup and CutMix (timm's), drawn once per batch."""

    def __init__(self, config: TrainConfig, classes: int) -> None:
        from timm.data import Mixup

        self._mixup = Mixup(
            mixup_alpha=config.mixup,
            cutmix_alpha=config.cutmix,
            label_smoothing=config.label_smoothing,
            num_classes=classes,
        )

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images `[b, c, h, w]` and labels `[b]` to mixed copies and soft, smoothed targets `[b, classes]`."""
        from timm.data.mixup import mixup_target

        images = images.clone()
        even = len(images) // 2 * 2  # timm pairs images; the odd one that an undecodable image leaves stays itself
        rest = mixup_target(labels[even:], self._mixup.num_classes, smoothing=self._mixup.label_smoothing)
        if even == 0:
            return images, rest
        _, targets = self._mixup(images[:even], labels[:even])  # mixes the view in place
        return images, torch.cat([targets, rest])


class MovingAverage:
    """Exponential moving average: `average <- decay * average + (1 - decay) * weights`; integer buffers are copied.

    The decay is ramped up as `min(decay, (1 + step) / (10 + step))`. Sharded parameters are averaged shard by shard.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors: dict[str, Tensor] = {name: t.detach().clone() for name, t in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Fold in the weights after the `step`-th (1-based) optimiser step."""
        weight = 1.0 - min(self.decay, (1 + step) / (10 + step))
        floats: tuple[list[Tensor], list[Tensor]] = ([], [])
        for name, tensor in model.state_dict().items():
            average = local(self.tensors[name])
            if average.is_floating_point():
                floats[0].append(average)
                floats[1].append(local(tensor))
            else:
                average.copy_(local(tensor))
        torch._foreach_lerp_(floats[0], floats[1], weight)

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within the block `model` holds the average; afterwards its own weights again, bit for bit."""
        weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        copy_into(model, self.tensors)
        try:
            yield
        finally:
            copy_into(model, weights)


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a sharded tensor; any other tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


@torch.no_grad()
def copy_into(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy same-sharded `tensors` into the model, in place (so that caches keyed on versions notice)."""
    for name, tensor in model.state_dict().items():
        local(tensor).copy_(local(tensors[name]))
