"""Neighbour lists of more samples than fit in memory or in one run: written to a folder, block by block."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from unrolled.ops.neighbours import Rows, check_neighbours, load_rows, nearest_neighbours, tile_size
from unrolled.reading import read_object


def neighbours_to_folder(
    x: Rows,
    k: int,
    folder: str | Path,
    *,
    tile: int | None = None,
    normalize: bool = True,
    device: torch.device | str | None = None,
) -> np.ndarray:
    """All n neighbour lists, written block by block to `folder` and continued where an interrupted run stopped.

    The folder holds `indices.npy` ([n, k] int64, memory-mapped) and `progress.json` (the request, and the rows done).
    The result is the same however often the run was interrupted.

    Returns:
        Read-only memory map of the indices.

    Raises:
        ValueError: the folder belongs to another request (n, d, k, normalisation, tile or data differ).
    """
    n = check_neighbours(x, k)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    size = tile_size(n, tile)
    probe = load_rows(x, slice(0, n, max(1, n // 64)), False, torch.device("cpu")).double()
    request = {
        "n": n,
        "d": int(x.shape[1]),
        "k": k,
        "normalize": normalize,
        "tile": size,
        "probe": [float(probe.sum()), float(probe.square().sum())],
    }
    progress, target = folder / "progress.json", folder / "indices.npy"
    done = 0
    if progress.exists():
        state = read_object(progress)
        if state.get("request") != request:
            raise ValueError(
                f"folder {folder} holds neighbours of another request ({state.get('request')}): choose another folder"
            )
        done = int(state["done"])
    store = np.lib.format.open_memmap(target, mode="r+" if done else "w+", dtype=np.int64, shape=(n, k))
    while done < n:
        stop = min(done + size, n)
        neighbours = nearest_neighbours(
            x, k, queries=torch.arange(done, stop), normalize=normalize, tile=size, device=device
        )
        store[done:stop] = neighbours.indices.cpu().numpy()
        store.flush()  # the rows must be on disk before they are declared done
        partial = progress.with_suffix(".part")
        partial.write_text(json.dumps({"request": request, "done": stop}))
        partial.replace(progress)
        done = stop
    stored: np.ndarray = np.load(target, mmap_mode="r", allow_pickle=False)
    return stored
