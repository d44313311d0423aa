"""CRATE-MAE layer by layer, by size, and by what it reconstructs, beside a ViT-MAE of equal parameters.

Claims (arXiv 2404.02446): R^c and the share of non-zeros fall through the encoder, and R^c rises again through the
decoder; the model needs about 30 % of the parameters of a ViT-MAE and completes images about as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from unrolled.studies.base import Budget, Expectation, Study
from unrolled.studies.crate_members import MASKED, Data, Member, MembersConfig, settings_of, trained

if TYPE_CHECKING:
    from torch import Tensor

    from unrolled.report import Report

_SOURCE = "arXiv 2404.02446"
FALLS = Expectation(
    statement="R^c falls through the encoder of a trained CRATE-MAE (last layer over first, less 1)",
    source=f"{_SOURCE}, layer-wise figures",
    published="falls, shown as a figure",
    high=0.0,
)
RISES = Expectation(
    statement="R^c rises through its decoder (last layer over first, less 1)",
    source=f"{_SOURCE}, layer-wise figures",
    published="rises: the decoder is the encoder reversed",
    low=0.0,
)
SPARSER = Expectation(
    statement="The share of non-zeros falls through its encoder (last layer minus first)",
    source=f"{_SOURCE}, layer-wise figures",
    published="falls, shown as a figure",
    high=0.0,
)
PARAMETERS = Expectation(
    statement="CRATE-MAE-B has about 30 % of the parameters of ViT-MAE-B",
    source=f"{_SOURCE}, abstract; sizes in the authors' book",
    published="44.6 M / 143.8 M = 31 %",
    low=0.29,
    high=0.33,
)
AS_GOOD = Expectation(
    statement="At equal parameters CRATE-MAE reconstructs about as well as ViT-MAE (ratio of held-out losses)",
    source=f"{_SOURCE}: comparable, at 30 % of the parameters",
    published="no number",
    high=1.1,
)
LEARNED = Expectation(
    statement="CRATE-MAE reconstructs better than harmonic inpainting, which learns nothing (ratio of held-out losses)",
    source="a control of ours",
    published="-",
    high=1.0,
)
VISIBLE = Expectation(
    statement="A CRATE-MAE whose encoder sees the visible patches only (ratio of its loss to the published form's)",
    source="not published",
    published="-",
)
# the registered models of the claim about size
BASE, VIT_BASE = "crate_mae_base_patch16_224", "vit_mae_base_patch16_224"
SIZES = tuple(f"crate_mae_{size}_patch16_224" for size in ("tiny", "small", "base", "large"))


@dataclass(kw_only=True)
class Config(MembersConfig):
    """Models are the roster's, trained once for all studies; measuring them takes minutes."""

    budgets: ClassVar[dict[Budget, dict[str, Any]]] = {
        "quick": {
            "seeds": (0,),
            "data": "digits",
            "images": 1280,
            "measured": 64,
            "tested": 200,
            "lessons": 100,
            "workers": 1,
            "members": Path("runs/crate-quick"),
        },
        "cpu": {},
        "gpu": {
            "device": "cuda",
            "images": 1_280_000,
            "members": Path("runs/crate-members-gpu"),
            "workers": 1,
        },
    }

    data: Data = "tiny-imagenet-32"
    """What the members are trained on, without labels, and whose held-out images are used."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of weights and training batches; masks on held-out images are always the same."""
    measured: int = 256
    """Held-out images whose layers are measured."""
    tested: int = 1000
    """Held-out images that are completed."""
    lessons: int = 500
    """Training images that the factors of completions in pixels are fitted on."""
    shown: int = 6
    """Completions in the report."""
    out: Path = Path("runs/crate-mae-layers")
    """Where the report goes, and the measured cells, which a second run takes from there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must name at least one, and none twice")
        if min(self.measured, self.tested, self.lessons, self.shown) < 1:
            raise ValueError("measured, tested, lessons and shown must be at least 1")


def run(config: Config, *, on_progress: Callable[[str], None] | None = None) -> Report:
    """Train what is missing of the roster, measure; the report is also written to `config.out`.

    Args:
        config: what to run.
        on_progress: given a line of text for each member.

    Raises:
        MissingData: the images are not in `config.data_dir`.
    """
    from unrolled.studies.crate_mae_baselines import baseline_scores
    from unrolled.studies.crate_mae_features import measure_members
    from unrolled.studies.crate_mae_layers_report import build
    from unrolled.studies.remembered import remembered

    began = time.perf_counter()
    cells = config.out / "cells"
    test, lessons = _images(config)
    layers = measure_members(
        config, MASKED, config.data, config.seeds, images=config.measured, folder=cells, on_progress=on_progress
    )
    settings = {"data": config.data, "tested": config.tested, "lessons": config.lessons}
    patch = 2 if test.shape[-1] < 32 else 4
    baselines = remembered(cells, "baselines", settings, lambda: baseline_scores(test, lessons, patch))
    scores: dict[str, dict[str, list[dict[str, float]]]] = {}
    for kind in MASKED:
        scores[kind] = {"trained": [], "untrained": []}
        for seed in config.seeds:
            for state in ("trained", "untrained"):
                member = Member(kind=kind, data=config.data, seed=seed, trained=state == "trained")

                def compute(member: Member = member) -> dict[str, Any]:
                    from unrolled.studies.crate_mae_baselines import model_scores

                    model = trained(config, member)
                    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
                    return {**model_scores(model, test, lessons), "parameters": size}

                every = {**settings, **settings_of(config, member)}
                scores[kind][state].append(remembered(cells, f"scores-{member.name}", every, compute))
        if on_progress is not None:
            on_progress(f"completed {config.tested} images with {kind}: loss {scores[kind]['trained'][0]['loss']:.3f}")
    found = {
        "layers": layers,
        "baselines": baselines,
        "scores": scores,
        "sizes": {name: parts_of(name) for name in (*SIZES, VIT_BASE)},
    }
    report = build(config, found, pictures_of(config, test, scores), time.perf_counter() - began)
    report.write(config.out)
    return report


def _images(config: Config) -> tuple[Tensor, Tensor]:
    from unrolled.studies.platonic_zoo import pictures

    test = pictures(config.data, "test", config.data_dir).images[: config.tested]
    return test, pictures(config.data, "train", config.data_dir).images[: config.lessons]


def parts_of(name: str) -> dict[str, int]:
    """Parameters of a registered masked autoencoder by part, as numbers of entries.

    `positions` are the fixed tables of sines and cosines, which do not train; `dead` what the published code has
    besides: a second table of positions and an unused linear map between encoder and decoder.
    """
    import torch

    from unrolled.models.registry import create_model

    with torch.device("meta"):
        model: Any = create_model(name)
    parts = dict.fromkeys(("patches", "encoder", "decoder", "prediction", "tokens and norms", "positions"), 0)
    homes = {"patch_embed": "patches", "blocks": "encoder", "decoder_blocks": "decoder", "decoder_pred": "prediction"}
    for key, parameter in model.named_parameters():
        home = "positions" if key == "pos_embed" else homes.get(key.split(".")[0], "tokens and norms")
        parts[home] += parameter.numel()
    parts["trained"] = sum(parts.values()) - parts["positions"]
    parts["total"] = parts["trained"] + parts["positions"]
    dim = model.embed_dim
    parts["dead"] = dim * dim + dim + parts["positions"]
    parts["published"] = parts["total"] + parts["dead"]
    return parts


def vit_mae_parameters(
    *, dim: int, depth: int, decoder_dim: int, decoder_depth: int, patch: int = 16, side: int = 224
) -> int:
    """Entries of a ViT-MAE with a decoder of its own width, positions of both included, MLPs four times as wide."""
    tokens, pixels = 1 + (side // patch) ** 2, 3 * patch**2

    def block(width: int) -> int:
        return 12 * width**2 + 13 * width

    encoder = pixels * dim + dim + dim + tokens * dim + depth * block(dim) + 2 * dim
    decoder = dim * decoder_dim + decoder_dim + decoder_dim + tokens * decoder_dim
    decoder += decoder_depth * block(decoder_dim) + 2 * decoder_dim + decoder_dim * pixels + pixels
    return encoder + decoder


def pictures_of(
    config: Config, test: Tensor, scores: dict[str, dict[str, list[dict[str, float]]]]
) -> list[tuple[str, list[Any]]]:
    """Rows of a grid: label and images uint8 [h, w] or [h, w, 3]; completions without help, by the first seed."""
    import torch

    from unrolled.studies.crate_mae_baselines import completed_by, completed_by_baselines, images_of, masks, patches_of
    from unrolled.studies.crate_members import KINDS
    from unrolled.studies.platonic_zoo import as_input

    patch = 2 if test.shape[-1] < 32 else 4
    chosen = test[: config.shown]
    pixels, removed = as_input(chosen), masks(chosen, patch)
    size = (chosen.shape[2], chosen.shape[3])

    def painted(patches: Tensor) -> list[Any]:
        whole = images_of(patches, patch, size).mul(64).add(127.5).round().clamp(0, 255).to(torch.uint8)
        images = whole.movedim(1, -1).cpu().numpy()
        return [image[..., 0] if image.shape[-1] == 1 else image for image in images]

    whole = patches_of(pixels, patch)
    rows = [("image", painted(whole)), ("visible", painted(whole.masked_fill(removed[..., None], 0.0)))]
    rows += [(name, painted(filled)) for name, filled in completed_by_baselines(pixels, removed, patch).items()]
    for kind in MASKED:
        model = trained(config, Member(kind=kind, data=config.data, seed=config.seeds[0]))
        factor = scores[kind]["trained"][0]["factor"]
        weight = next(model.parameters())
        filled = completed_by(model, pixels.to(weight), removed.to(weight.device), factor)[0]
        rows.append((KINDS[kind].words, painted(filled)))
    return rows


STUDY = Study(
    name="crate-mae-layers",
    title="CRATE-MAE by layer, by size and by what it reconstructs",
    citation="D. Pai et al., Masked Completion via Structured Diffusion with White-Box Transformers, arXiv 2404.02446",
    config=Config,
    run=run,
    expectations=(FALLS, RISES, SPARSER, PARAMETERS, AS_GOOD, LEARNED, VISIBLE),
)
