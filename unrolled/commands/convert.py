"""`unrolled convert`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from unrolled.commands.options import REPEATED, SWITCH, verb
from unrolled.harness import JsonFlags, print_answer
from unrolled.locks import hold
from unrolled.terminal import say


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(JsonFlags):
    """Flags of `unrolled convert`."""

    checkpoint: Path = field(kw_only=False)
    """The published file: .pth, .pth.tar, .pt or .safetensors."""
    out: Path = field(kw_only=False)
    """The folder to write."""
    heads: int | None = None
    """Number of subspaces; needed when the width is not a published one."""
    decoder_heads: int | None = None
    """The same for the decoder of a masked autoencoder; default: as the encoder."""
    dim_head: int | None = None
    """Dimension of a subspace; default: rows of the projection / heads."""
    image_size: str | None = None
    """Input size in pixels, SIDE or HEIGHTxWIDTH; default: the one it was trained at. Positions are resampled."""
    pool: Literal["cls", "mean"] | None = None
    """How tokens are pooled, which the file does not tell; default: cls."""
    step_size: float | None = None
    """eta of ISTA; default: 0.1, as published."""
    sparsity: float | None = None
    """lambda of ISTA; default: 0.1, as published."""
    allow: Annotated[tuple[str, ...], REPEATED] = ()
    """A harmless class the file may construct besides tensors, such as argparse.Namespace; may be repeated."""
    force: Annotated[bool, SWITCH] = False
    """Replace a model that is already in the folder."""


@verb
def convert(options: ConvertOptions) -> None:
    """Turn a published checkpoint into a folder with model.safetensors and config.json.

    The folder is what `local:DIR`, `--weights DIR`, `from_pretrained` and timm's `local-dir:DIR` read. Shapes tell most
    of the model; what they cannot tell is asked for. A file that would have to run code to be read is refused.

        unrolled convert crate_small.pth.tar models/crate-small
        unrolled convert checkpoint.pth models/mine --heads 8 --image-size 32
    """
    size = parse_size(options.image_size)
    if (options.out / "config.json").exists() and not options.force:
        raise ValueError(f"out: {options.out} already holds a model; choose another folder or give --force")
    from unrolled.models import load_published

    model = load_published(
        options.checkpoint, heads=options.heads, decoder_heads=options.decoder_heads, dim_head=options.dim_head,
        image_size=size, pool=options.pool, step_size=options.step_size, sparsity=options.sparsity,
        allow=options.allow,
    )  # fmt: skip
    report = model.load_report
    say(str(report))
    save = getattr(model, "save_pretrained", None)
    if save is None:
        raise ValueError(f"checkpoint: a {type(model).__name__} cannot be saved in this format yet")
    hold(options.out)
    save(options.out)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    facts = {
        "folder": str(options.out),
        "layout": report.layout,  # type: ignore[union-attr]
        "parameters": parameters,
        "missing": report.missing,  # type: ignore[union-attr]
        "ignored": report.ignored,  # type: ignore[union-attr]
        "reshaped": report.reshaped,  # type: ignore[union-attr]
    }
    text = f"{options.out}: {parameters:,} parameters; use it as local:{options.out}"
    print_answer("convert", facts, text, json=options.json)


def parse_size(text: str | None) -> int | tuple[int, int] | None:
    """`224` or `224x160` (height x width) as numbers."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"--image-size {text}: give a side such as 224, or HEIGHTxWIDTH such as 224x160")
    return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))
