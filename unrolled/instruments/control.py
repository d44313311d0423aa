"""The untrained control: the same architecture with fresh weights."""

from __future__ import annotations

import copy
import inspect
import sys
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn


def untrained_control(model: nn.Module, seed: int = 0) -> nn.Module:
    """A copy of `model` with every parameter initialised anew; what a trace of a trained model is compared with.

    Initialisation is the model's own: `reset_parameters` and `init_weights` of every module that has them, children
    first, so that the whole model has the last word (CRATE, timm). A Hugging Face model is built again from its config,
    inside of other modules too. Models of timm without `init_weights` are initialised as timm does when it builds them.
    What another module does to its weights in its constructor alone, nobody can know: its layers have the
    `reset_parameters` of their kind. Buffers are kept, except those that `reset_parameters` resets, such as running
    statistics.

    Args:
        model: trained or not; it is left as it is.
        seed: of the new weights. The global random state is not touched; the copy is initialised on the CPU, so that
            the same seed gives the same weights on every device.

    Returns:
        The control, on the same devices and in the same dtype and mode as `model`.

    Raises:
        ValueError: a parameter is not reached by any initialisation; it is named.
    """
    devices = {name: p.device for name, p in model.named_parameters()}
    where = next(iter(devices.values()), torch.device("cpu"))
    if len(set(devices.values())) > 1:
        raise ValueError(
            f"model: its parameters lie on several devices, {sorted(map(str, set(devices.values())))}; move it to one"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        control = _rebuilt(model) or _reset(copy.deepcopy(model).cpu())
    for fresh, original in zip(control.parameters(), model.parameters(), strict=True):
        fresh.requires_grad_(original.requires_grad)
    for new, old in zip(control.modules(), model.modules(), strict=True):
        new.training = old.training
    return control.to(where)


def drawn_anew(module: nn.Module, seed: int, images: Tensor | None = None) -> nn.Module:
    """A copy with initial weights: He's for convolutions, else PyTorch's own; norms without one are 1.

    With `images`, batch norms take their means and variances from them, since with those of no data a deep network
    would be almost linear.
    """
    fresh = copy.deepcopy(module)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for part in fresh.modules():
            if isinstance(part, nn.Conv2d):  # PyTorch's own would leave a deep network without norms all but dead
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
                if part.bias is not None:
                    part.bias.zero_()
            elif hasattr(part, "reset_parameters"):
                part.reset_parameters()  # type: ignore[operator]
            else:
                for parameter in part.parameters(recurse=False):
                    parameter.fill_(1.0)
        if images is not None:
            norms = [part for part in fresh.modules() if isinstance(part, nn.BatchNorm2d)]
            for norm in norms:
                norm.momentum = None
                norm.train()
            fresh(images)
            fresh.eval()
    return fresh


def _rebuilt(model: nn.Module) -> nn.Module | None:
    """A Hugging Face model made again from its config, in the dtypes of `model`; None for other models.

    Its own initialisation marks modules as done, so it cannot be run a second time on a copy.
    """
    if not _of_transformers(model):
        return None
    fresh = type(model)(copy.deepcopy(model.config))  # type: ignore[arg-type]
    present = dict(model.named_modules())
    for path in [path for path, _ in fresh.named_modules() if path not in present]:
        parent, _, name = path.rpartition(".")
        if parent in present:  # left out when it was built, as a pooler is
            setattr(fresh.get_submodule(parent), name, None)
    for tensors in (nn.Module.parameters, nn.Module.buffers):
        for new, old in zip(tensors(fresh), tensors(model), strict=True):
            new.data = new.data.to(old.dtype)
    return fresh


def _of_transformers(model: nn.Module) -> bool:
    return any(base.__module__ == "transformers.modeling_utils" for base in type(model).__mro__)


def _reset(model: nn.Module) -> nn.Module:
    # what no initialisation writes is still NaN at the end
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.grad = None
            parameter.fill_(float("nan"))
        _rebuild_inside(model)
        for initialise in _initialisers(model):
            initialise()
    missed = [name for name, parameter in model.named_parameters() if bool(parameter.isnan().any())]
    if missed:
        shown = ", ".join(missed[:5]) + (f" and {len(missed) - 5} more" if len(missed) > 5 else "")
        raise ValueError(f"model: no reset_parameters or init_weights initialises {shown}; give its module one")
    return model


def _rebuild_inside(model: nn.Module) -> None:
    for name, module in model.named_children():
        if (fresh := _rebuilt(module)) is not None:
            setattr(model, name, fresh)
        else:
            _rebuild_inside(module)


def _initialisers(model: nn.Module) -> list[Callable[[], object]]:
    """Every initialising method that can be called without arguments, children before parents."""
    methods: list[Callable[[], object]] = []

    def visit(module: nn.Module) -> None:
        if _of_transformers(module):
            return
        for child in module.children():
            visit(child)
        for name in ("reset_parameters", "_reset_parameters", "init_weights"):
            method = getattr(module, name, None)
            if callable(method) and _needs_nothing(method):
                methods.append(method)
        if hasattr(module, "pretrained_cfg") and not hasattr(module, "init_weights"):
            methods.append(_as_timm_builds(module))

    visit(model)
    return methods


def _as_timm_builds(model: nn.Module) -> Callable[[], object]:
    """What the constructor of a model of timm that has no `init_weights` does to its weights, by timm's habits."""
    source = sys.modules[type(model).__module__]
    if callable(whole := getattr(source, "efficientnet_init_weights", None)):
        return lambda: whole(model)
    if callable(each := getattr(model, "_init_weights", getattr(source, "_init_weights", None))):
        from timm.models import named_apply

        takes = inspect.signature(each).parameters
        built = inspect.signature(type(model)).parameters  # what its constructor hands on, unless told otherwise
        each = partial(each, **{name: built[name].default for name in takes if name in built})
        return lambda: named_apply(each, model) if "name" in takes else model.apply(each)
    warnings.warn(
        f"untrained_control: {type(model).__name__} has no init_weights, so that its layers have PyTorch's initial "
        "weights and not timm's; timm.create_model(..., pretrained=False) has those",
        stacklevel=6,
    )
    return lambda: None


def _needs_nothing(method: Callable[..., object]) -> bool:
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return all(p.default is not p.empty or p.kind in free for p in inspect.signature(method).parameters.values())
