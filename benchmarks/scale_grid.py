"""What `unrolled align-grid` costs for 200 models x 12 layers x 10,000 samples: time, memory, disk.

    python -m benchmarks.scale_grid [--models 8] [--tile 4] [--layers 12] [--n 10000] [--d 384] [--folder DIR]

Feature folders as `unrolled extract` writes them (float16) are simulated: layers share a signal, the more of it the
later the layer, and every fourth model none of it. A process of its own then compares all pairs by mutual k-NN with
p-values (null "moments"), one thread, in tiles of half the models by half unless `--tile` says otherwise. Every model
is prepared once and every tile is compared once, so what 200 models cost follows from three tiles: `of_200`, a
prediction, and a bad one where three tiles have few of the pairs that must be relabelled. `--models 200 --tile 8` runs
all of it; begun again with the same `--folder` it goes on. CPU seconds, since other work may share the cores. Prints
one JSON object; finished tiles and their seconds are logged to standard error as they come.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.timing import machine
from unrolled.alignment import embedding as module
from unrolled.alignment import get_metric
from unrolled.alignment.models import model_grid
from unrolled.alignment.prepared import load_prepared
from unrolled.instruments import FeatureSet

K, ALL = 10, 200


def write_models(folder: Path, models: int, layers: int, n: int, d: int) -> None:
    signal = torch.randn(n, 16, generator=torch.Generator().manual_seed(0))
    for i in range(models):
        generator = torch.Generator().manual_seed(i + 1)
        values = {}
        for layer in range(layers):
            share = 0.0 if i % 4 == 3 else (layer + 1) / layers
            mixed = share * signal @ torch.randn(16, d, generator=generator)
            values[f"block{layer:02d}"] = (mixed + 2 * torch.randn(n, d, generator=generator)).half()
        FeatureSet(layers=values, model=f"m{i:03d}", data="simulated").save(folder / f"m{i:03d}")


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(folder: Path, tile: int | None) -> dict[str, Any]:
    """Compare all models of the folder; costs of each step."""
    torch.set_num_threads(1)
    features, kept = sorted((folder / "features").iterdir()), folder / "tiles"
    tile = tile or len(features) // 2
    prepared, compared = [time.process_time()], [time.process_time()]

    def on_prepared(done: int, of: int) -> None:
        prepared.append(time.process_time())
        compared[0] = prepared[-1]
        log("prepared", done, of)

    def on_progress(done: int, of: int) -> None:
        compared.append(time.process_time())
        log("tiles", done, of)

    def log(what: str, done: int, of: int) -> None:
        print(f"{what} {done} of {of}, {time.process_time():.1f} CPU seconds so far", file=sys.stderr, flush=True)

    result = model_grid(
        {path.name: path for path in features}, ("mutual_knn",), options={"k": K}, null="moments", tile=tile,
        folder=kept, on_prepared=on_prepared, on_progress=on_progress,
    )  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    count = len(features)
    spent = [after - before for before, after in pairwise(prepared)]
    each = median(spent) if spent else None  # what `--folder` holds already is not prepared again
    tiles = [after - before for before, after in pairwise(compared)]
    files = sorted((kept / "prepared").iterdir())
    record: dict[str, Any] = {
        "models": count, "pairs": len(result.pairs), "tile": tile, "prepare_seconds_a_model": each,
        "prepare_seconds": sum(spent), "pairs_seconds": sum(tiles), "tile_seconds": tiles,
        "peak_mib": peak, "features_mib_a_model": size(folder / "features") / count / 2**20,
        "prepared_mib_a_model": size(kept / "prepared") / count / 2**20,
        "relabelled_pairs": sum("relabelling" in pair.p_method for pair in result.pairs),
        "significant": sum(pair.p_value < 1e-3 for pair in result.pairs),
    }  # fmt: skip
    if len(tiles) == 3:  # pairs within the first half, between the halves, within the second
        blocks = -(-ALL // tile)
        full, half = tiles[1], (tiles[0] + tiles[2]) / 2
        record["of_200"] = {
            "prepare_hours": None if each is None else ALL * each / 3600,
            "pairs_hours": (blocks * (blocks - 1) / 2 * full + blocks * half) / 3600,
            "features_gib": ALL * record["features_mib_a_model"] / 2**10,
            "prepared_gib": ALL * record["prepared_mib_a_model"] / 2**10,
        }
        record["relabelling_seconds_a_tile"] = relabelling(files, tile)
        record["dense_seconds_a_pair"] = dense_pair(files)
    return record


def relabelling(files: list[Path], tile: int) -> float:
    """CPU seconds of one relabelling of a full tile, all its layers at once, as null "permutation" does it."""
    metric = get_metric("mutual_knn", k=K)
    sides = [[e for file in part for e in load_prepared(file)[0].of(metric)] for part in (files[:tile], files[tile:])]
    orders = (torch.randperm(sides[0][0].n) for _ in range(3))
    start = time.process_time()
    for _ in metric.null_grids(*sides, orders):
        pass
    return (time.process_time() - start) / 3


def dense_pair(files: list[Path]) -> float:
    """CPU seconds of one pair of models by products of dense n x n matrices, which larger samples once took."""
    metric = get_metric("mutual_knn", k=K)
    left, right = (load_prepared(file)[0].of(metric) for file in files[:2])
    before, module._SPARSER = module._SPARSER, left[0].n
    start = time.process_time()
    metric.grid(left, right)
    module._SPARSER = before
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--tile", type=int)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--d", type=int, default=384)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        json.dump(measure(arguments.measure, arguments.tile), sys.stdout)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        write_models(folder / "features", arguments.models, arguments.layers, arguments.n, arguments.d)
        command = [sys.executable, "-m", "benchmarks.scale_grid", "--measure", str(folder)]
        command += ["--tile", str(arguments.tile)] if arguments.tile else []
        measured = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    record = {"machine": machine(), "layers": arguments.layers, "n": arguments.n, "d": arguments.d, **measured}
    json.dump(record, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
