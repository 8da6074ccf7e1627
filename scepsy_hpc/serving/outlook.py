"""What is to be expected of a run: when its job starts, how fast it is, if its time is enough."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scepsy_hpc.cluster.jobs.queue_times import queued_jobs
from scepsy_hpc.cluster.site import Site
from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.plan import Plan, load_plan
from scepsy_hpc.formats.status import RunOutlook, RunStatus
from scepsy_hpc.serving.chain import followers
from scepsy_hpc.serving.job import Job
from scepsy_hpc.serving.run_folder import RunFolder

_TAIL_BYTES = 256 * 1024
_MOST_ENDS = 200


def outlook(folder: RunFolder, status: RunStatus, job: Job | None) -> RunOutlook:
    """As far as it can be told from here; what cannot is null."""
    rate_rps = recent_rate_rps(folder.results)
    left = None if status.tasks is None else status.tasks.waiting + status.tasks.in_flight
    needed_s = left / rate_rps if left and rate_rps else (0.0 if left == 0 else None)
    found = RunOutlook(
        job_ids=tuple(dict.fromkeys([*(job.ids if job else ()), *followers(folder)])),
        tasks_rps=rate_rps,
        planned_rps=_planned_rps(folder.plan),
        needed_s=needed_s,
    )
    if job is None or job.cluster != "slurm":
        return found
    return _with_queue(found)


def _with_queue(found: RunOutlook) -> RunOutlook:
    jobs = queued_jobs(found.job_ids, Site())
    running = [one for one in jobs if one.state in ("RUNNING", "COMPLETING")]
    pending = [one for one in jobs if one.state == "PENDING"]
    if running and running[0].end_s is not None:
        return replace(found, left_s=max(running[0].end_s - time.time(), 0.0))
    if not running and pending:
        first = pending[0]
        return replace(
            found,
            pending_job=first.job_id,
            pending_reason=first.reason or None,
            expected_start_s=first.start_s,
        )
    return found


def _planned_rps(path: Path) -> float | None:
    try:
        plan = load_plan(path)
    except InputError:
        return None
    return _rate_of(plan)


def _rate_of(plan: Plan) -> float | None:
    rates = [flow.rate_rps for flow in plan.workflows if flow.rate_rps]
    if len(rates) == len(plan.workflows) and rates:
        return sum(rates)
    return plan.predicted.throughput_rps if plan.predicted else None


def recent_rate_rps(results: Path) -> float | None:
    """Tasks a second over the last that ended; None while fewer than two have.

    Reads the end of the file alone.
    """
    ends = sorted(_last_ends(results))[-_MOST_ENDS:]
    if len(ends) < 2 or ends[-1] <= ends[0]:
        return None
    return (len(ends) - 1) / (ends[-1] - ends[0])


def _last_ends(results: Path) -> Sequence[float]:
    try:
        with results.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(size - _TAIL_BYTES, 0))
            lines = stream.read().split(b"\n")
    except OSError:
        return ()
    found = []
    for line in lines[1 if size > _TAIL_BYTES else 0 :]:
        try:
            found.append(float(json.loads(line)["finished_s"]))
        except (ValueError, KeyError, TypeError):
            continue
    return found
