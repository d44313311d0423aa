"""Jobs in several processes: the same results as in one, as they finish, and an end when something goes wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from unrolled.studies.processes import finished


def square(number: int) -> tuple[int, int, int]:
    return number * number, os.getpid(), torch.get_num_threads()


def leave_a_file(folder: Path, name: str) -> None:
    if name == "bad":
        raise ValueError("this job is bad")
    time.sleep(0.2)
    (folder / name).touch()


def wait_long(folder: Path, name: str) -> None:
    (folder / name).write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(120)


@pytest.mark.parametrize(("workers", "count"), [(1, 3), (4, 1), (2, 0)])
def test_one_worker_or_one_job_stays_in_this_process_and_in_order(workers: int, count: int) -> None:
    jobs = [(n,) for n in range(count)]
    found = list(finished(square, jobs, workers=workers))
    assert [job for job, _ in found] == jobs
    assert {pid for _, (_, pid, _) in found} <= {os.getpid()}


def test_two_workers_are_other_processes_with_one_thread_each() -> None:
    found = dict(finished(square, [(n,) for n in range(5)], workers=2))
    assert {job: value for job, (value, _, _) in found.items()} == {(n,): n * n for n in range(5)}
    assert os.getpid() not in {pid for _, pid, _ in found.values()}
    assert {threads for _, _, threads in found.values()} == {1}


def test_the_first_error_is_raised_and_jobs_that_wait_never_begin(tmp_path: Path) -> None:
    names = ["bad", *(f"good{n}" for n in range(40))]
    with pytest.raises(ValueError, match="this job is bad"):
        list(finished(leave_a_file, [(tmp_path, name) for name in names], workers=2))
    assert len(list(tmp_path.iterdir())) < 20


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.studies.test_processes import wait_long\n"
        "from unrolled.studies.processes import finished\n"
        "if __name__ == '__main__':\n"
        "    folder = Path(sys.argv[1])\n"
        "    list(finished(wait_long, [(folder, 'a'), (folder, 'b')], workers=2))\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(code, encoding="utf-8")
    signs = tmp_path / "signs"
    signs.mkdir()
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    parent = subprocess.Popen([sys.executable, str(script), str(signs)], env=environment)
    try:
        pids = _until(lambda: [int(text) for path in signs.iterdir() if (text := path.read_text())], 2)
    finally:
        parent.kill()
        parent.wait()
    assert _until(lambda: [pid for pid in pids if not _alive(pid)], 2)


def _until(look, count: int) -> list[int]:  # type: ignore[no-untyped-def]
    end = time.monotonic() + 90
    while time.monotonic() < end:
        if len(found := look()) == count:
            return list(found)
        time.sleep(0.1)
    raise AssertionError(f"fewer than {count} after 90 s")


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
