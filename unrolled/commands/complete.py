"""`unrolled complete`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unrolled.commands.options import verb
from unrolled.harness import Answer, OutputFlags, Run
from unrolled.reading import Json
from unrolled.subjects.models import choose_device, open_model, origin
from unrolled.subjects.options import PictureFlags
from unrolled.terminal import table

if TYPE_CHECKING:
    from torch import Tensor

    from unrolled.report import Report
    from unrolled.subjects.pictures import Pixels

_GREY = 128
_NAMES = ("input", "mask", "completion", "prediction", "inpainting")
_RATIOS = ("psnr", "psnr_inpainting", "psnr_mean_colour")
_FLATTERED = (
    "This model predicts patches normalised one by one. They are shown with the mean and variance of the true patches, "
    "which it does not know: these pictures and their PSNR flatter it, the loss does not."
)


@dataclass(frozen=True, kw_only=True)
class CompleteOptions(PictureFlags, OutputFlags):
    """Flags of `unrolled complete`."""

    images: tuple[Path, ...] = field(kw_only=False)
    """Pictures, or folders of them."""
    model: str = "crate_mae_nano_patch4_32.cifar10_long"
    """A masked autoencoder: `crate_mae_*`, `vit_mae_*` or a folder with one. The default is small and comes trained."""
    mask_ratio: float = 0.75
    """Share of the patches to remove, in (0, 1)."""
    image_size: int | None = None
    """What the shorter side becomes, in pixels; default: the model's own. Positions are interpolated."""
    seed: int = 0
    """Which patches are removed; and of random weights."""
    out: Path | None = None
    """Where pictures, config.yaml, report.html and report.json go; default: runs/complete-MODEL-PICTURE, with a number
    behind it where that holds the result of another model or picture of the same name."""

    def __post_init__(self) -> None:
        if not self.images:
            raise ValueError("images: give at least one picture, or a folder of them")
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"--mask-ratio {self.mask_ratio:g}: must lie between 0 and 1, both excluded")


@verb
def complete(options: CompleteOptions) -> None:
    """Remove patches of pictures and let a masked autoencoder fill them in.

    Writes the input, what was left of it, its completion, the bare prediction, and a completion without learning, at
    the size the model sees. The error on the removed patches stands beside those of filling them with the mean colour
    of the others and by harmonic inpainting, where every removed pixel is the mean of its neighbours.

        unrolled complete cat.jpg
        unrolled complete cat.jpg --model crate_mae_base_patch16_224 --weights models/crate-mae
        unrolled complete cat.jpg --model runs/mae --mask-ratio 0.5 --seed 3
    """
    from PIL import Image

    from unrolled.commands.sheets import sheet
    from unrolled.data.pictures import find_pictures, read_picture
    from unrolled.models import MaskedAutoencoder
    from unrolled.subjects.pictures import prepare, stems

    paths = find_pictures(options.images)
    where = choose_device(options.device)
    network = open_model(options)
    if not isinstance(network, MaskedAutoencoder):
        raise ValueError(f"--model {options.model}: is no masked autoencoder; see `unrolled list '*mae*'`")
    network = network.to(where)
    prepared = prepare(network, image_size=options.image_size)
    subject = paths[0].stem if len(paths) == 1 else f"{len(paths)}-pictures"
    run = Run(options, "complete", options.model, subject)
    rows: list[Json] = []
    shown: list[tuple[str, list[Pixels]]] = []
    for path, name in zip(paths, stems(paths), strict=True):
        pixels = prepared.tensor(read_picture(path))
        pictures, row = completion_of(network, pixels, options.mask_ratio, options.seed, prepared.pixels)
        rows.append({"image": str(path), **row, "files": {kind: f"{name}-{kind}.png" for kind in _NAMES}})
        shown.append((name, pictures))
    for row, (_, pictures) in zip(rows, shown, strict=True):
        for kind, picture in zip(_NAMES, pictures, strict=True):
            Image.fromarray(picture).save(run.folder / row["files"][kind])
    sheet(shown, _NAMES).save(run.folder / "contact-sheet.png")
    result = {"model": options.model, "weights": origin(options), "mask_ratio": options.mask_ratio, "images": rows}
    flattered = bool(network.norm_pix_loss)
    text = table(*_numbers(result)) + (f"\n{_FLATTERED}" if flattered else "")
    run.finish(_report(result, shown, flattered), result, text, seeds=[options.seed])


def completion_of(network: Any, pixels: Tensor, mask_ratio: float, seed: int, back: Any) -> tuple[list[Pixels], Json]:
    """Input, mask, completion, prediction and harmonic inpainting, and the numbers, of one picture `[1, c, h, w]`.

    Args:
        network: a masked autoencoder.
        pixels: normalised.
        mask_ratio: share of the patches removed.
        seed: which of them.
        back: from a normalised image to uint8 `[h, w, 3]`.
    """
    import numpy as np
    import torch

    size = (pixels.shape[2], pixels.shape[3])
    rows, columns = (side // patch for side, patch in zip(size, network.patch_embed.patch_size, strict=True))
    # drawn on the CPU, so that a seed means the same patches on every device
    noise = torch.rand(1, rows * columns, generator=torch.Generator().manual_seed(seed))
    weight = next(network.parameters())
    with torch.no_grad():
        filled, mask = network.complete(pixels.to(weight), mask_ratio, noise.to(weight.device))
        loss, prediction, _ = network(pixels.to(weight), mask_ratio, noise.to(weight.device))
        if network.norm_pix_loss:
            prediction = _rescaled(network.patchify(pixels.to(weight)), prediction)
        bare = network.unpatchify(prediction, size)
    if not bool(bare.isfinite().all()):
        raise ValueError("--weights: the model predicts NaN or infinite pixels; are these its weights?")
    gone = mask[0, 0].bool().cpu().numpy()
    original, completion = back(pixels[0]), back(filled[0])
    left = np.where(gone[..., None], np.uint8(_GREY), original)
    mean, inpainting = original[~gone].mean(0), _inpainted(original, gone)
    row = {
        "size": list(size),
        "grid": [rows, columns],
        "removed": round(float(gone.mean()) * rows * columns),
        "loss": float(loss),
        "psnr": _psnr(original[gone], completion[gone]),
        "psnr_mean_colour": _psnr(original[gone], mean),
        "psnr_inpainting": _psnr(original[gone], inpainting[gone]),
    }
    return [original, left, completion, back(bare[0]), inpainting], row


def _inpainted(original: Pixels, gone: Any) -> Pixels:
    """The picture uint8 `[h, w, 3]` with the removed pixels as the membrane over the others."""
    import torch

    from unrolled.theory.inpainting import harmonic

    image, removed = torch.from_numpy(original).movedim(-1, 0)[None].float(), torch.from_numpy(gone)[None, None]
    return harmonic(image, removed)[0].round().clamp(0, 255).byte().movedim(0, -1).numpy()


def _rescaled(target: Tensor, prediction: Tensor) -> Tensor:
    """Normalised patches with the mean and variance of the true ones."""
    import torch

    variance, mean = torch.var_mean(target, -1, keepdim=True)
    return prediction * (variance + 1e-6).sqrt() + mean


def _psnr(true: Any, guess: Any) -> float | None:
    """Peak signal-to-noise ratio in dB of 8-bit pixels; None where they are the same."""
    error = float(((true.astype(float) - guess) ** 2).mean())
    return None if error == 0 else 10 * math.log10(255**2 / error)


def _numbers(result: Answer) -> tuple[list[str], list[list[str]]]:
    columns = ["image", "patches", "removed", "loss", "PSNR dB", "of inpainting", "of the mean colour"]
    rows = [
        [
            Path(row["image"]).name,
            "{} x {}".format(*row["grid"]),
            str(row["removed"]),
            f"{row['loss']:.4g}",
            *("exact" if row[key] is None else f"{row[key]:.2f}" for key in _RATIOS),
        ]
        for row in result["images"]
    ]
    return columns, rows


def _report(result: Answer, shown: list[tuple[str, list[Pixels]]], normalised: bool) -> Report:
    from unrolled.commands.sheets import grid_section
    from unrolled.report import Report

    report = Report(f"Completions by {result['model']}", question="What does the model put where patches were removed?")
    headline = (
        f"{len(shown)} picture{'s' if len(shown) > 1 else ''}, {result['mask_ratio']:.0%} of the patches removed. "
    )
    if result["weights"] == "random":
        headline += "The weights are random, so the completion means nothing."
    else:
        headline += f"Weights: {result['weights']}."
    report.headline(headline)
    panels = [
        (name, f"{name}: the input, what was left, its completion, the prediction, inpainting.", pictures, _NAMES)
        for name, pictures in shown
    ]
    caption = (
        "Grey patches were removed. The prediction covers all patches, the completion keeps those that were left. "
        "Inpainting learnt nothing: every removed pixel is the mean of its neighbours."
    )
    if normalised:
        caption += " " + _FLATTERED
    grid_section(report, "Pictures", panels, caption)
    report.section("Numbers").table(
        *_numbers(result),
        caption="Loss: mean squared error on the removed patches in the model's units. PSNR: on the removed patches, "
        "beside those of harmonic inpainting and of filling them with the mean colour of the others."
        + (" With the mean and variance of the true patches, which this model is not told." if normalised else ""),
    )
    return report
