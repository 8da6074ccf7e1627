"""When the queue thinks that jobs start and end, and why they wait."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from scepsy_hpc.cluster.jobs.slurm import ask_squeue
from scepsy_hpc.cluster.site import Site

_FORMAT = "%i|%T|%S|%e|%r"


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """One job as squeue shows it; Unix seconds, None where Slurm does not say.

    ``start_s`` of a job that waits is expected, ``end_s`` is its time limit's. ``reason`` says why
    it waits.
    """

    job_id: str
    state: str
    start_s: float | None = None
    end_s: float | None = None
    reason: str = ""


def queued_jobs(job_ids: Iterable[str], site: Site, timeout_s: float = 30.0) -> list[QueuedJob]:
    """These jobs, as far as squeue knows them; none where it does not answer."""
    try:
        done = ask_squeue(["-o", _FORMAT, "-j", ",".join(job_ids)], site, timeout_s)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [line.split("|", 4) for line in done.stdout.splitlines()]
    return [
        QueuedJob(job_id, state, _unix_s(start), _unix_s(end), "" if reason == "None" else reason)
        for job_id, state, start, end, reason in (row for row in rows if len(row) == 5)
    ]


def _unix_s(text: str) -> float | None:
    """Slurm writes local times, and N/A or Unknown."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
