"""`unrolled convert`."""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from unrolled.commands.settings import AsJson
from unrolled.locks import hold


def convert(
    checkpoint: Path,
    out: Path,
    *,
    heads: int | None = None,
    decoder_heads: int | None = None,
    dim_head: int | None = None,
    image_size: str | None = None,
    pool: Literal["cls", "mean"] | None = None,
    step_size: float | None = None,
    sparsity: float | None = None,
    allow: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    force: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    json: AsJson = False,
) -> None:
    """Turn a published checkpoint into a folder with model.safetensors and config.json.

    The folder is what `local:DIR`, `--weights DIR`, `from_pretrained` and timm's `local-dir:DIR` read. Shapes tell most
    of the model; what they cannot tell is asked for. A file that would have to run code to be read is refused.

        unrolled convert crate_small.pth.tar models/crate-small
        unrolled convert checkpoint.pth models/mine --heads 8 --image-size 32

    Parameters
    ----------
    checkpoint
        The published file: .pth, .pth.tar, .pt or .safetensors.
    out
        The folder to write.
    heads
        Number of subspaces; needed when the width is not a published one.
    decoder_heads
        The same for the decoder of a masked autoencoder; default: as `heads`.
    dim_head
        Dimension of a subspace; default: rows of the projection / heads.
    image_size
        Input size in pixels, SIDE or HEIGHTxWIDTH; default: the one it was trained at. Positions are resampled.
    pool
        How tokens are pooled, which the file does not tell; default: cls.
    step_size
        eta of ISTA; default: 0.1, as published.
    sparsity
        lambda of ISTA; default: 0.1, as published.
    allow
        A harmless class the file may construct besides tensors, such as argparse.Namespace; may be repeated.
    force
        Replace a model that is already in the folder.
    """
    size = parse_size(image_size)
    if (out / "config.json").exists() and not force:
        raise ValueError(f"out: {out} already holds a model; choose another folder or give --force")
    from unrolled.models import load_published

    model = load_published(
        checkpoint,
        heads=heads,
        decoder_heads=decoder_heads,
        dim_head=dim_head,
        image_size=size,
        pool=pool,
        step_size=step_size,
        sparsity=sparsity,
        allow=allow,
    )
    report = model.load_report
    print(report, file=sys.stderr)
    save = getattr(model, "save_pretrained", None)
    if save is None:
        raise ValueError(f"checkpoint: a {type(model).__name__} cannot be saved in this format yet")
    hold(out)
    save(out)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if json:
        facts = {
            "folder": str(out),
            "layout": report.layout,  # type: ignore[union-attr]
            "parameters": parameters,
            "missing": report.missing,  # type: ignore[union-attr]
            "ignored": report.ignored,  # type: ignore[union-attr]
            "reshaped": report.reshaped,  # type: ignore[union-attr]
        }
        print(json_module.dumps(facts, indent=2))
    else:
        print(f"{out}: {parameters:,} parameters; use it as local:{out}")


def parse_size(text: str | None) -> int | tuple[int, int] | None:
    """`224` or `224x160` (height x width) as numbers."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"--image-size {text}: give a side such as 224, or HEIGHTxWIDTH such as 224x160")
    return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))
