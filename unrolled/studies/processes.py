"""Independent jobs of a study in several processes of one thread each, their results as they finish."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

Arguments = TypeVar("Arguments", bound=tuple[Any, ...])
Result = TypeVar("Result")


def finished(
    function: Callable[..., Result], jobs: Sequence[Arguments], *, workers: int
) -> Iterator[tuple[Arguments, Result]]:
    """Call `function(*job)` for every job, `workers` at a time; yield each job with its result as it finishes.

    One worker, or one job, stays in this process with the threads it has, in the order of `jobs`. Otherwise the
    function, the jobs and the results travel between processes, so they must be picklable and the function importable.
    The first error is raised here; jobs that have not begun by then, or when the caller stops asking, never begin.
    """
    workers = min(workers, len(jobs))
    if workers < 2:
        for job in jobs:
            yield job, function(*job)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    # spawn: forking a process in which torch has started threads can hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
        futures = {pool.submit(function, *job): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            for future in futures:
                future.cancel()


def _one_thread() -> None:
    """Set up a worker: one thread for torch, and an end when the process that started it is gone."""
    import multiprocessing
    import threading

    import torch

    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
