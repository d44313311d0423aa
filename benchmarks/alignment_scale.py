"""Alignment of a million samples: time and memory of the sampled estimate, and exact search that is killed and resumed.

    python -m benchmarks.alignment_scale [--n 1000000] [--d 768] [--folder DIR]

Two feature files of float16 (1.5 GB each by default) with a common signal are written to the folder and memory-mapped.
The exact search would take hours on a CPU: here it is killed after two blocks of rows and resumed for another two, and
rows from before and after are checked against float64 products. Prints one JSON object. Memory is what the process
itself holds (RssAnon of Linux); pages of the files come and go as the system likes.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unrolled.alignment.scale import mutual_knn_sampled
from unrolled.ops.neighbour_folder import neighbours_to_folder
from unrolled.ops.neighbours import tile_size

K = 10


def write_features(path: Path, n: int, d: int, seed: int) -> None:
    """Unit rows of a signal that both files share, and noise of their own."""
    if path.is_file() and np.load(path, mmap_mode="r").shape == (n, d):
        return
    store = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(n, d))
    mix = torch.randn(16, d, generator=torch.Generator().manual_seed(seed))
    for start in range(0, n, 50_000):
        rows = min(50_000, n - start)
        common = torch.randn(rows, 16, generator=torch.Generator().manual_seed(start))
        noise = torch.randn(rows, d, generator=torch.Generator().manual_seed(start + seed))
        store[start : start + rows] = torch.nn.functional.normalize(common @ mix + noise, dim=1).half().numpy()
    store.flush()


class Peak:
    """Largest anonymous memory of this process while the block runs, MiB above what it was before."""

    def __enter__(self) -> Peak:
        self.before = self.highest = anonymous_mib()
        self.running = True
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self) -> None:
        while self.running:
            self.highest = max(self.highest, anonymous_mib())
            time.sleep(0.02)

    def __exit__(self, *error: object) -> None:
        self.running = False
        self.thread.join()
        self.mib = self.highest - self.before


def anonymous_mib() -> float:
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def rows_done(folder: Path) -> int:
    progress = folder / "progress.json"
    return int(json.loads(progress.read_text())["done"]) if progress.exists() else 0


def killed_after(path: Path, folder: Path, rows: int) -> float:
    """Search in a process of its own, killed when `rows` are done; seconds from the first block done to the last."""
    command = [sys.executable, "-m", "benchmarks.alignment_scale", "--search", str(path), "--folder", str(folder)]
    first = None
    with subprocess.Popen(command) as process:
        while rows_done(folder) < rows:
            if process.poll() is not None:
                raise RuntimeError("the search ended by itself")
            if first is None and rows_done(folder):
                first = time.perf_counter()
            time.sleep(0.1)
        seconds = time.perf_counter() - (first or time.perf_counter())
        process.send_signal(signal.SIGKILL)
    return seconds


def wrong_rows(path: Path, folder: Path, rows: list[int]) -> int:
    """How many of these rows are not the neighbours that float64 finds (as sets, up to ties within 1e-6)."""
    x, found, wrong = np.load(path, mmap_mode="r"), np.load(folder / "indices.npy", mmap_mode="r"), 0
    queries = torch.nn.functional.normalize(torch.from_numpy(x[rows].astype(np.float64)), dim=1)
    scores = torch.empty(len(rows), len(x), dtype=torch.float64)
    for start in range(0, len(x), 50_000):
        block = torch.nn.functional.normalize(torch.from_numpy(x[start : start + 50_000].astype(np.float64)), dim=1)
        scores[:, start : start + len(block)] = queries @ block.T
    scores[torch.arange(len(rows)), torch.tensor(rows)] = -2
    for own, i in zip(scores, rows, strict=True):
        wrong += bool((own[torch.from_numpy(found[i].copy())] < own.topk(K).values[-1] - 1e-6).any())
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--search", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.search:
        neighbours_to_folder(np.load(arguments.search, mmap_mode="r"), K, arguments.folder)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        paths = folder / "x.npy", folder / "y.npy"
        for seed, path in enumerate(paths, 1):
            write_features(path, arguments.n, arguments.d, seed)
        x, y = (np.load(path, mmap_mode="r") for path in paths)
        record: dict[str, Any] = {"n": arguments.n, "d": arguments.d, "threads": torch.get_num_threads()}
        start = time.perf_counter()
        with Peak() as peak:
            estimate = mutual_knn_sampled(x, y, K)
        record["sampled"] = {
            "queries": estimate.queries, "score": estimate.score, "standard_error": estimate.standard_error,
            "chance": estimate.chance, "seconds": time.perf_counter() - start, "peak_mib": peak.mib,
        }  # fmt: skip
        size, search = tile_size(arguments.n), folder / "search"
        killed_after(paths[0], search, 2 * size)
        before = np.load(search / "indices.npy", mmap_mode="r")[: 2 * size].copy()
        seconds = killed_after(paths[0], search, rows_done(search) + 2 * size)
        after = np.load(search / "indices.npy", mmap_mode="r")[: 2 * size]
        done = rows_done(search)
        rows = np.linspace(0, done - 1, 24).astype(int).tolist()
        record["exact, killed and resumed"] = {
            "tile": size, "rows_done": done, "rows_before_unchanged": bool((before == after).all()),
            "rows_checked": len(rows), "rows_wrong": wrong_rows(paths[0], search, rows),
            "hours_for_all_rows": seconds / size * arguments.n / 3600,
        }  # fmt: skip
    json.dump(record, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
