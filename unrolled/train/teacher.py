"""A trained model that a classifier learns from besides its labels: what its layer, or its logits, say of a batch.

Aligning a layer is representation alignment (REPA, arXiv 2410.06940): a small projector, learned with the model and
thrown away with the run, maps each patch's tokens of the layer onto the teacher's last layer at the same place. The
teacher is frozen, in eval mode, off the autograd graph, and sees the views that the model sees.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unrolled import alignment
from unrolled.data import model_input
from unrolled.data.classes import listed, numbers_of
from unrolled.errors import MissingData, MissingExtra
from unrolled.instruments.anatomy import find_stacks
from unrolled.instruments.features.layout import Layout, check_visible, in_rows
from unrolled.instruments.features.pooling import POOLINGS, Tokens, as_tokens
from unrolled.instruments.trace import trace
from unrolled.models import MaskedAutoencoder, from_pretrained
from unrolled.modes import evaluating
from unrolled.train.evaluation import logits_of
from unrolled.train.regularise import layer_names, main_stack

if TYPE_CHECKING:
    from unrolled.data import Batch, ImageSource
    from unrolled.train.config import TrainConfig

_GREY = (0.299, 0.587, 0.114)  # of red, green and blue, as PIL's "L"
_PROJECTED = ("cosine", "pooled_cosine")
_MOST = 256 * 2**20  # bytes of answers that are remembered


class Answer(NamedTuple):
    """What the teacher says of a batch."""

    target: Tensor | None
    """Float32: of its last layer `[b, g, d]` at the g patches of the aligned one, or their mean `[b, d]`; None where
    nothing is aligned."""
    logits: Tensor | None
    """Float32 `[b, classes]`, in the order of the data's classes; None where nothing is distilled."""


class Teacher:
    """The model that a string names, frozen.

    Attributes:
        module: in eval mode.
        digest: of its weights, 16 hexadecimal digits.
        projector: from `meet` on, what is learned to map the aligned layer's tokens; None where nothing is.
        layer: from `meet` on, the name of the aligned layer in a trace of the model.

    Raises:
        ValueError: the string names no model; it says `teacher`.
        MissingData: there are no such weights.
    """

    def __init__(self, spec: str) -> None:
        self.spec = spec
        try:
            module = from_pretrained(spec)
        except (ValueError, MissingData, MissingExtra) as error:
            named = re.sub(r"^(model|source)(?=[:=])", "teacher", str(error))
            raise type(error)(named if named.startswith("teacher") else f"teacher: {named}") from error
        if isinstance(module, MaskedAutoencoder):
            module = module.classifier(0)
        self.module = module.eval().requires_grad_(False)
        self.digest = _digest(self.module)
        self.projector: nn.Module | None = None
        self.layer = self._last = ""
        self._grid: tuple[int, int] | None = None
        self._layout: Layout | None = None
        self._order: Tensor | None = None
        self._remembered: Answer | None = None

    def meet(self, model: nn.Module, config: TrainConfig, source: ImageSource) -> None:
        """See that it can teach `model`, and draw the projector.

        Raises:
            ValueError: it cannot; the message names the setting.
        """
        self._config = config
        native = source.native_size
        self._ours = model_input(model, native_size=native, image_size=config.image_size)
        self._theirs = model_input(self.module, native_size=native)
        example = torch.zeros(1, *self._ours["input_size"])
        if config.align_weight:
            stack = main_stack(model, "align_weight", config.model)
            wanted = len(stack.blocks) // 2 if config.align_layer is None else config.align_layer
            (self.layer,) = layer_names(stack, [wanted], f"align_layer={wanted}", config.model)
            looking = trace(model, patterns=self.layer), Layout(model, None)
            with torch.no_grad(), evaluating(model), looking[0] as traced, looking[1] as layout:
                model(example)
            self._ours_tokens = ours = layout.tokens(self.layer, traced[self.layer], None)
            if config.align_loss == "cosine" and (drops := _drops_patches(model)):
                raise ValueError(
                    f"align_loss='cosine' compares patches, of which model={config.model!r} drops {drops:.0%} at "
                    "random in training; set patch_drop_rate to 0 in model_args, or choose 'pooled_cosine'"
                )
        try:
            if config.align_weight:
                check_visible(self.module)
                self._layout = Layout(self.module, None)
            self._last = self._last_layer(example) if config.align_weight else ""
            theirs, logits = self._asked(example)
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            size = tuple(self._theirs["input_size"])
            raise ValueError(f"teacher={self.spec!r} says nothing of images of {size} ({error})") from error
        if theirs is not None:
            if config.align_loss == "cosine":
                if ours.grid is None or theirs.grid is None:
                    raise ValueError(
                        f"align_loss='cosine' compares patches, and the tokens of {self.layer} or of the teacher's "
                        f"{self._last} form no grid; choose 'pooled_cosine'"
                    )
                self._grid = ours.grid
            if config.align_loss in _PROJECTED:
                width, wide = ours.values.shape[-1], theirs.values.shape[-1]
                hidden = max(width, wide)
                self.projector = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, wide))
        if config.distil_weight:
            self._order = self._by_class(logits, source)

    @property
    def words(self) -> str:
        """Which weights, and what is learned from them."""
        config = self._config
        parts = [f"{self.spec} (weights {self.digest})"]
        if config.align_weight:
            parts.append(f"its {self._last} for {self.layer} by {config.align_loss}, weight {config.align_weight:g}")
        if config.distil_weight:
            parts.append(f"logits at temperature {config.distil_temperature:g}, weight {config.distil_weight:g}")
        return "; ".join(parts)

    def __call__(self, images: Tensor, indices: Tensor | None = None) -> Answer:
        """What it says of images `[b, c, h, w]` that are normalised for the model it teaches; of those that it
        remembers what it answered then, by their `indices` `[b]`."""
        if self._remembered is not None and indices is not None:
            return Answer(*(None if each is None else each[indices.to(each.device)] for each in self._remembered))
        tokens, logits = self._asked(images)
        target = None if tokens is None else self._target(tokens)
        return Answer(target, None if self._order is None else logits.float()[:, self._order.to(logits.device)])

    def remember(self, batches: Iterable[Batch], count: int, device: torch.device) -> None:
        """Ask about images once that are always seen in the same view; more than 256 MiB of answers are not kept.

        Args:
            batches: of all `count` images, the same in every process and after every resume, so that answers are too.
            count: how many images there are.
            device: where they are asked about, and where answers stay.
        """
        answers: Answer | None = None
        for batch in batches:
            if not len(batch):
                continue
            answer = self(batch.images.to(device))
            if answers is None:
                size = sum(each[0].nbytes for each in answer if each is not None)
                if size * count > _MOST:
                    return
                answers = Answer(*(None if each is None else each.new_zeros(count, *each.shape[1:]) for each in answer))
            for whole, part in zip(answers, answer, strict=True):
                if whole is not None and part is not None:
                    whole[batch.indices.to(device)] = part
        self._remembered = answers

    @torch.no_grad()
    def _asked(self, images: Tensor) -> tuple[Tokens | None, Any]:
        """The tokens of its last layer, if a layer is aligned, and its output."""
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self._config.precision)
        with ExitStack() as listening:
            listening.enter_context(torch.autocast(images.device.type, half, enabled=half is not None))
            if self._layout is not None:
                listening.enter_context(self._layout)
                traced = listening.enter_context(trace(self.module, patterns=self._last))
            output = logits_of(self.module(_as_seen(images, self._ours, self._theirs)))
        return None if self._layout is None else self._layout.tokens(self._last, traced[self._last], None), output

    def misalignment(self, tokens: Tensor, answer: Answer, projector: nn.Module | None) -> Tensor:
        """How far the aligned layer is from what the teacher answered, 0 where they agree.

        Args:
            tokens: of the layer, `[b, n, d]`, on the autograd graph.
            answer: of the same images.
            projector: as processes share it.
        """
        assert answer.target is not None
        ours = self._target(self._tokens(tokens))
        if projector is None:
            loss: Tensor = getattr(alignment, f"{self._config.align_loss}_loss")(ours, answer.target)
            return loss
        return alignment.cosine_loss(projector(ours).flatten(0, -2), answer.target.flatten(0, -2))

    def _target(self, tokens: Tokens) -> Tensor:
        """What is compared of one side, float32: patches on the grid of the aligned layer, or their mean."""
        if self._grid is None:
            return POOLINGS["mean"](tokens).float()
        patches = tokens.values[:, tokens.prefix :].float()
        if tokens.grid == self._grid:
            return patches
        assert tokens.grid is not None
        image = patches.mT.unflatten(2, tokens.grid)
        return F.interpolate(image, self._grid, mode="bilinear", antialias=True).flatten(2).mT

    def _tokens(self, value: Tensor) -> Tokens:
        """Of the aligned layer, which for images of another size has another grid of the same shape."""
        known = self._ours_tokens
        grid = None if known.grid is None else in_rows(value.shape[1] - known.prefix, known.grid)
        last = value.dim() == 4 and value.shape[-1] == known.values.shape[-1] != value.shape[1]
        return as_tokens(self.layer, value, known.prefix, known.class_token, None, grid=grid, channels_last=last)

    def _last_layer(self, example: Tensor) -> str:
        """The last block of a transformer; of another network the last map with more than one place, or its last."""
        stack = next((stack for stack in find_stacks(self.module) if not stack.prefix), None)
        if stack is not None:
            return stack.name(len(stack.blocks) - 1)
        with torch.no_grad(), trace(self.module) as traced:
            self.module(_as_seen(example, self._ours, self._theirs))
        maps = [name for name in traced if traced[name].dim() == 4]
        if not maps:
            raise ValueError("it has no layers of tokens and no maps; align_weight needs one")
        return next((name for name in reversed(maps) if traced[name].shape[2:].numel() > 1), maps[-1])

    def _by_class(self, logits: Any, source: ImageSource) -> Tensor:
        """Which of its logits stand for the data's classes, in their order."""
        classes = list(source.classes)
        count = logits.shape[-1] if isinstance(logits, Tensor) and logits.dim() == 2 else 0
        described: Any = getattr(self.module, "pretrained_cfg", None) or {}
        labels = getattr(getattr(self.module, "config", None), "id2label", None) or {}  # Hugging Face's
        names = list(described.get("label_names") or [labels[number] for number in sorted(labels)])
        order = numbers_of(classes, names) if len(names) == count else numbers_of(classes, classes)
        if (order < 0).any() or (len(names) != count and count != len(classes)):
            its = f"has {count} outputs" + (f" ({listed(names)})" if names else "")
            raise ValueError(f"teacher={self.spec!r} {its}, not {listed(classes)}; leave distil_weight at 0")
        return torch.from_numpy(order)


def divergence(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(taught / T) | softmax(logits / T)) of `[b, classes]`, in nats, the mean over images."""
    ours, theirs = (F.log_softmax(each.float() / temperature, dim=-1) for each in (logits, taught))
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def _as_seen(images: Tensor, ours: dict[str, Any], theirs: dict[str, Any]) -> Tensor:
    """Images normalised as `ours` says, as `theirs` says: the whole view, with nothing more cropped."""
    alike = all(tuple(ours[key]) == tuple(theirs[key]) for key in ("mean", "std"))
    if alike and images.shape[1:] == torch.Size(theirs["input_size"]):
        return images
    mean, std = (images.new_tensor(ours[key]).view(-1, 1, 1) for key in ("mean", "std"))
    pixels = images * std + mean
    channels, *size = theirs["input_size"]
    if pixels.shape[1] != channels:
        grey = pixels.shape[1] == 1
        pixels = pixels.expand(-1, channels, -1, -1) if grey else torch.einsum(
            "bchw,c->bhw", pixels, pixels.new_tensor(_GREY)
        )[:, None]  # fmt: skip
    if pixels.shape[2:] != torch.Size(size):
        mode = "bicubic" if theirs["interpolation"] == "bicubic" else "bilinear"
        pixels = F.interpolate(pixels, size, mode=mode, antialias=True).clamp(0, 1)
    mean, std = (images.new_tensor(theirs[key]).view(-1, 1, 1) for key in ("mean", "std"))
    return (pixels - mean) / std


def _drops_patches(model: nn.Module) -> float:
    """The share of patches that a model leaves out in training."""
    layers = (part for part in model.modules() if type(part).__name__.startswith("PatchDropout"))
    return max((float(getattr(part, "prob", 0.0)) for part in layers), default=0.0)


def _digest(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(
            name.encode() + tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()[:16]
