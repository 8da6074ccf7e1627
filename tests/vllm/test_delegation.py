"""A user's jobs hold engines to slices inside a cgroup that root made for them. Needs root."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cpu_throttling import throttled_s
from slurm.account import ensure_user, let_pass
from slurm.mini_slurm import REPOSITORY

from scepsy_hpc.cluster import cpu_slices
from scepsy_hpc.cluster.cpu_slices import PARENT_VARIABLE, SLICE_CORES, SliceGroup

# What a job does: make a group, set its quota, and become a busy loop inside it.
JOB = """
import os
from scepsy_hpc.cluster.cpu_slices import make_group, quota_cores
group = make_group("busy")
group.limit(quota_cores(1, 100))
line = group.enter_command(["sh", "-c", "while :; do :; done"])
os.execv(line[0], line)
"""


@pytest.fixture
def parent() -> Iterator[Path]:
    """A folder of the user's in the CPU controller, gone afterwards."""
    folder = cpu_slices.controller_root() / f"scepsy-test-{os.getpid()}"
    cpu_slices.delegate(folder, ensure_user().pw_uid)
    yield folder
    _withdraw(folder)
    assert not folder.exists()


def _withdraw(parent: Path) -> None:
    """Undo `delegate`: its processes move up, empty groups go."""
    for folder in (*sorted(parent.glob("*/")), parent):
        procs = folder / "cgroup.procs"
        for pid in procs.read_text().split() if procs.exists() else ():
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                (cpu_slices.controller_root() / "cgroup.procs").write_text(pid)
        SliceGroup(folder).remove()


@pytest.fixture
def job(parent: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The job, as a daemon starts it that root has put into the folder."""
    user = ensure_user()
    let_pass(user, [Path(sys.executable), REPOSITORY])
    drop = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    process = subprocess.Popen(
        ["sh", "-c", 'read go; exec "$@"', "sh", *drop, sys.executable, "-c", JOB],
        stdin=subprocess.PIPE,
        cwd="/",
        env={"PATH": os.defpath, "PYTHONPATH": str(REPOSITORY), PARENT_VARIABLE: str(parent)},
    )
    cpu_slices.enter(parent, process.pid)
    yield process
    process.kill()
    process.wait()


def test_a_users_job_is_held_to_its_slice(parent: Path, job: subprocess.Popen[bytes]) -> None:
    """The user sets the quota, and the kernel gives the user's work no more than that."""
    assert job.stdin is not None
    job.stdin.write(b"go\n")
    job.stdin.close()
    group = SliceGroup(parent / "busy")
    _wait_until_throttled(group, job)
    assert group.path.stat().st_uid == ensure_user().pw_uid
    assert _used_cores(job.pid) < SLICE_CORES * 1.2


def _wait_until_throttled(group: SliceGroup, job: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and job.poll() is None:
        if group.path.exists() and throttled_s(group) > 0.2:
            return
        time.sleep(0.1)
    raise AssertionError(f"{group.path} was not throttled; the job's exit code: {job.poll()}")


def _used_cores(pid: int, span_s: float = 3.0) -> float:
    process = psutil.Process(pid)
    before, start_s = process.cpu_times(), time.monotonic()
    time.sleep(span_s)
    after, elapsed_s = process.cpu_times(), time.monotonic() - start_s
    return (after.user + after.system - before.user - before.system) / elapsed_s
