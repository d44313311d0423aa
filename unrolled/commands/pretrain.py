"""`unrolled pretrain`."""

from __future__ import annotations

from unrolled.commands.options import AsJson, RecipeName, verb
from unrolled.commands.train import run_training
from unrolled.train.config import DistillConfig, MaskedConfig


@verb
def pretrain(config: MaskedConfig, *, recipe: RecipeName = None, json: AsJson = False) -> None:
    """Pretrain on images without their labels, by completing images of which most patches were removed.

    Everything about the run goes into one folder. Ctrl-C saves and stops; the same command with `--resume auto` goes
    on, bit for bit. What comes out is for `unrolled finetune --weights RUN`, `eval`, `trace`, `complete` and `segment`.
    The other way, self-distillation, has flags of its own: `unrolled pretrain --task simdino --help`.

        unrolled pretrain --data cifar10 --data-dir data --out runs/mae
        unrolled pretrain --recipe mae_nano --model vit_mae_nano_patch4_32 --data-dir data
        unrolled pretrain --task simdino --data cifar10 --data-dir data --out runs/simdino
        unrolled finetune --weights runs/mae --data cifar10 --data-dir data
    """
    run_training("pretrain", config, json=json)


@verb
def pretrain_distilled(config: DistillConfig, *, recipe: RecipeName = None, json: AsJson = False) -> None:
    """Pretrain on images without their labels, by self-distillation.

    Views of an image agree with a teacher, while the coding rate of the features keeps them from collapsing. Everything
    about the run goes into one folder. Ctrl-C saves and stops; the same command with `--resume auto` goes on, bit for
    bit. What comes out is for `unrolled finetune --weights RUN`, `eval`, `trace` and `segment`.

        unrolled pretrain --task simdino --data cifar10 --data-dir data --out runs/simdino
        unrolled finetune --weights runs/simdino --data cifar10 --data-dir data
    """
    run_training("pretrain", config, json=json)
