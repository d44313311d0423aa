"""The verbs of the command line, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Verb:
    """A verb: `"module:function"`, imported when it is called, and the line `unrolled --help` shows for it.

    Where the flags depend on what `--task` says, `tasks` has the functions of tasks other than the usual one.
    """

    function: str
    help: str
    tasks: Mapping[str, str] = field(default_factory=dict)


VERBS = {
    "demo": Verb("unrolled.commands.study:demo", "Train a small CRATE and a ViT on bundled digits and report on both."),
    "train": Verb(
        "unrolled.commands.train:train",
        "Train an image classifier or a language model.",
        {"lm": "unrolled.commands.train:train_text", "mlm": "unrolled.commands.train:train_text"},
    ),
    "pretrain": Verb(
        "unrolled.commands.pretrain:pretrain",
        "Pretrain on images without labels: complete, or distil.",
        {"simdino": "unrolled.commands.pretrain:pretrain_distilled"},
    ),
    "finetune": Verb("unrolled.commands.train:finetune", "Fine-tune a classifier on another data set."),
    "eval": Verb(
        "unrolled.commands.eval.dispatch:evaluate",
        "Accuracy of a model or a run on a data set; bits per byte of a language model.",
    ),
    "trace": Verb("unrolled.commands.trace:trace", "What every layer does, beside the untrained control."),
    "ablate": Verb("unrolled.commands.ablate:ablate", "What a model needs its heads, halves and atoms for."),
    "patch": Verb("unrolled.commands.patch:patch", "Which parts of a clean run bring its answer back in another run."),
    "extract": Verb("unrolled.commands.extract:extract", "Features of every layer of a model, pooled and kept."),
    "probe": Verb("unrolled.commands.probe:probe", "How well a simple classifier reads the classes off every layer."),
    "align": Verb("unrolled.commands.align.two:align", "How far two representations agree, beside chance."),
    "align-grid": Verb("unrolled.commands.align.grid:align_grid", "Which of many models agree, beside chance."),
    "translate": Verb(
        "unrolled.commands.translate:translate", "Turn one model's features into another's, without pairs."
    ),
    "brain": Verb("unrolled.commands.brain.compare:brain", "Your model beside brains and people, layer by layer."),
    "segment": Verb("unrolled.commands.segment.paint:segment", "Show which parts of pictures a model tells apart."),
    "segment-eval": Verb("unrolled.commands.segment.score:segment_eval", "Score that against what people marked."),
    "explain": Verb("unrolled.commands.explain:explain", "Which layers, heads and patches one decision is made of."),
    "complete": Verb("unrolled.commands.complete:complete", "Let a masked autoencoder fill in removed patches."),
    "generate": Verb("unrolled.commands.generate:generate", "Continue a text with a language model."),
    "explore": Verb("unrolled.commands.explore:explore", "Look inside models in a browser, on a local page."),
    "convert": Verb("unrolled.commands.convert:convert", "Turn a published checkpoint into safetensors."),
    "study": Verb("unrolled.commands.study:list_studies", "Run a published claim and judge what came out."),
    "gallery": Verb("unrolled.commands.gallery:gallery", "A static site of what studies claimed and found."),
    "list": Verb("unrolled.commands.list:list_", "Models with their parameters, source and weights."),
    "completion": Verb("unrolled.commands.completion:completion", "Install the completion of words by Tab in a shell."),
    "doctor": Verb("unrolled.commands.doctor:doctor", "What of this machine will be used, and what is missing."),
}
