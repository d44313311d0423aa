"""Studies: each published claim as what is computed and a range fixed beforehand; `quick` always exists.

A study is a module with a `STUDY` record (`unrolled.studies.study.Study`): its question, its configuration, the cells
it computes, its claims and its report. They are found by name: `unrolled.studies.load("demo")`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from unrolled.errors import suggestion
from unrolled.plugins import load_plugin, plugins

if TYPE_CHECKING:
    from unrolled.studies.study import Study

# name -> module of this package; a new study is one line here
STUDIES: dict[str, str] = {
    "crate-ablations": "crate.ablations",
    "crate-aligned": "crate.aligned",
    "crate-attribution": "crate.attribution",
    "crate-bytes": "crate.bytes",
    "crate-causal": "crate.causal",
    "crate-characters": "crate.characters",
    "crate-codes": "crate.codes",
    "crate-denoising": "crate.denoising",
    "crate-emergence": "crate.emergence",
    "crate-family": "crate.family",
    "crate-hour": "crate.hour",
    "crate-mae-layers": "crate.mae_layers",
    "crate-minutes": "crate.minutes",
    "crate-pretrain": "crate.pretrain",
    "crate-text": "crate.text",
    "crate-transfer": "crate.transfer",
    "demo": "demo",
    "mesa-binding": "mesa.binding",
    "mesa-compressed": "mesa.compressed",
    "mesa-controls": "mesa.controls",
    "mesa-depth": "mesa.depth",
    "mesa-few-shot": "mesa.few_shot",
    "mesa-floors": "mesa.floors",
    "mesa-interpolation": "mesa.interpolation",
    "mesa-language": "mesa.language",
    "mesa-linearise": "mesa.linearise",
    "mesa-one-step": "mesa.one_step",
    "mesa-probes": "mesa.probes",
    "mesa-stability": "mesa.stability",
    "mesa-worlds": "mesa.worlds",
    "platonic-brain": "platonic.brain",
    "platonic-captions": "platonic.captions",
    "platonic-causes": "platonic.causes",
    "platonic-colour": "platonic.colour",
    "platonic-downstream": "platonic.downstream",
    "platonic-implications": "platonic.implications",
    "platonic-language": "platonic.language",
    "platonic-measures": "platonic.measures",
    "platonic-pmi": "platonic.pmi",
    "platonic-samples": "platonic.samples",
    "platonic-saturation": "platonic.saturation",
    "platonic-stitching": "platonic.stitching",
    "platonic-translation": "platonic.translation",
    "platonic-vision": "platonic.vision",
    "platonic-vision-language": "platonic.vision_language",
    "platonic-whitebox": "platonic.whitebox",
}


def study_names() -> list[str]:
    """Every name `load` takes: this package's, then those that other packages add."""
    return [*STUDIES, *(name for name in plugins("studies") if name not in STUDIES)]


def load(name: str) -> Study:
    """The study called `name`.

    Raises:
        ValueError: there is no such study; the nearest name is suggested.
    """
    if name in STUDIES:
        study: Study = importlib.import_module(f"unrolled.studies.{STUDIES[name]}").STUDY
        return study
    added: Study | None = load_plugin("studies", name)
    if added is None:
        raise ValueError(f"study: unknown study {name!r}; {suggestion(name, study_names())}")
    return added
