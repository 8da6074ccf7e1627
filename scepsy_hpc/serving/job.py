"""The job behind a results folder: what was submitted, and whether it still lives."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from typing import get_args

import psutil

from scepsy_hpc.cluster.jobs import slurm
from scepsy_hpc.cluster.site import Site
from scepsy_hpc.errors import InputError
from scepsy_hpc.files import record
from scepsy_hpc.formats.status import FinalState, RunStatus
from scepsy_hpc.serving.chain import followers
from scepsy_hpc.serving.run_folder import RunFolder, read_json, write_json

FINAL_STATES = get_args(FinalState)
# A status file is rewritten every second; another node may see it a minute late.
FRESH_S = 90.0


@record
class Job:
    """``ids`` are Slurm's job ids or a process id.

    ``pid``, which started at ``created_s``, is a process on ``host`` that lives as long as the run
    does, where there is one.
    """

    cluster: str
    ids: tuple[str, ...]
    host: str
    pid: int | None = None
    created_s: float | None = None


def remember_job(folder: RunFolder, cluster: str, ids: Sequence[str]) -> None:
    """Note what was submitted."""
    pid = None
    if cluster != "slurm":
        pid = int(ids[0]) if cluster == "local" else os.getpid()
    created_s = None if pid is None else _created_s(pid)
    host = socket.gethostname()
    job = Job(cluster=cluster, ids=tuple(ids), host=host, pid=pid, created_s=created_s)
    write_json(folder.job, job)


def is_alive(folder: RunFolder) -> bool | None:
    """Whether the job of a run lives. None where neither its machine nor the queue can be asked."""
    job, status = read_json(folder.job, Job), read_json(folder.status, RunStatus)
    if job is None or status is None:
        return None if status and _is_fresh(status.updated_s) else False
    if job.cluster == "slurm":
        return _in_queue((*job.ids, *followers(folder)))
    if job.pid is not None and job.host == socket.gethostname():
        return job.created_s is not None and _created_s(job.pid) == job.created_s
    return True if _is_fresh(status.updated_s) else None


def is_pending(job: Job) -> bool:
    """Whether the Slurm job still waits in the queue; False where that is not known."""
    view = slurm.squeue(job.ids, Site())
    return any(view.states.get(job_id) == "PENDING" for job_id in job.ids)


def check_idle(folder: RunFolder) -> None:
    """Raise InputError when a run uses the folder now."""
    status = read_json(folder.status, RunStatus)
    if status is None or status.state in FINAL_STATES or not is_alive(folder):
        return
    raise InputError(
        f"{folder.root}: a run uses this folder now (state {status.state}); wait for it, end it "
        f"with `scepsy stop {folder.root}`, or give another folder with -o"
    )


def _in_queue(ids: Sequence[str]) -> bool | None:
    view = slurm.squeue(ids, Site())
    if not view.known:
        return None
    states = [view.states.get(job_id) for job_id in ids]
    return any(state is not None and not state.startswith(slurm.ENDED) for state in states)


def _is_fresh(updated_s: float) -> bool:
    return time.time() - updated_s < FRESH_S


def _created_s(pid: int) -> float | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None
