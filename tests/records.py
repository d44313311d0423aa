"""Records of brains and judgements of the same layout as the public ones, made up: few stimuli, three people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

N = 14


def rdm(generator: np.random.Generator, noise: float = 0.0, base: Any = None, n: int = N) -> Any:
    """[n, n] distances of random points, or of `base` with noise."""
    x = generator.normal(size=(n, 6)) if base is None else base + noise * generator.normal(size=base.shape)
    return np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))


def brain_records(data: Path) -> None:
    """`brain-92images`, whose people see the same six features of each picture with noise."""
    generator = np.random.default_rng(0)
    base = generator.normal(size=(N, 6))
    people = ["A", "A", "B", "B", "C", "C"]
    folder = data / "brain-92images"
    folder.mkdir(parents=True)
    np.savez(
        folder / "brain_92images.npz",
        stimuli=generator.integers(0, 256, (N, 20, 20, 3), dtype=np.uint8),
        human_it=np.stack([rdm(generator, 0.5, base) for _ in people]),
        human_it_names=np.array([f"hIT | {who} | Session: {i % 2}" for i, who in enumerate(people)]),
        monkey_it=rdm(generator, 0.3, base),
        models=np.stack([rdm(generator) for _ in range(5)]),
        model_names=np.array(["monkeyIT", "animacy", "HMAX", "V1", "Silhouette"]),
    )


def judgement_records(data: Path, *, things: int = 30, colours: int = 12) -> None:
    """`human-similarity`: ratings of colours by two groups, and embeddings of things by three."""
    generator = np.random.default_rng(1)
    folder = data / "human-similarity"
    folder.mkdir(parents=True)
    rgb = generator.integers(0, 256, (colours, 3))
    groups = np.stack([rdm(generator, 0.2, rgb / 64) for _ in range(2)])
    np.savez(folder / "colour93_human.npz", rgb=rgb.astype(np.uint8), lab=rgb / 2.55, group_dissimilarity=groups,
             missing=np.zeros_like(groups, bool))  # fmt: skip
    rows = [f"colour {i}\t{a}\t{b}\t{c}" for i, (a, b, c) in enumerate((rgb / 2.55).tolist())]
    (folder / "xkcd_colours.tsv").write_text("\n".join(["name\tL\ta\tb_lab", *rows]) + "\n", encoding="utf-8")
    base = generator.normal(size=(things, 9))
    embeddings = np.stack([base + 0.3 * generator.normal(size=base.shape) for _ in range(3)])
    np.savez(folder / "things1854_human.npz", concepts=np.array([f"thing_{i}" for i in range(things)]),
             group_embeddings=embeddings.astype(np.float16))  # fmt: skip
