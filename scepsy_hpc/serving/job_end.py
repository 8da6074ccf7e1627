"""How long this job may still run, and whether another task fits into that."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import psutil

from scepsy_hpc.formats.plan import Plan
from scepsy_hpc.metrics import percentile
from scepsy_hpc.serving.start import Run

MIN_LENGTHS = 20
"""With fewer tasks that ended the plan's own figure is looked at, too."""
MAX_MARGIN_S = 120.0
_MARGIN_PART = 0.3


@dataclass(frozen=True, slots=True)
class JobEnd:
    """When work must have ended, on the clock ``now_s``; ``planned_s``: a long task as planned.

    ``end_s`` None: nobody said.
    """

    end_s: float | None
    planned_s: float | None = None
    now_s: Callable[[], float] = time.time

    def has_room(self, lengths_s: Sequence[float]) -> bool:
        """Whether a task that begins now is likely to end in time, by the lengths of others."""
        if self.end_s is None:
            return True
        long_s = percentile(lengths_s, 95) or 0.0
        if len(lengths_s) < MIN_LENGTHS:
            long_s = max(long_s, self.planned_s or 0.0)
        return self.end_s - self.now_s() > long_s

    def is_over(self) -> bool:
        """Whether what still runs must be ended now."""
        return self.end_s is not None and self.now_s() >= self.end_s


def job_end_of(run: Run, environment: Mapping[str, str]) -> JobEnd:
    """From Slurm's own word where it gives one, else from the limit that was asked for.

    Some time is kept to end agents and engines in order, before Slurm sends its first signal.
    """
    now_s = time.time()
    # A job has a process of its own, which began with it; a pretended one is just beginning.
    started_s = now_s if run.pretended else psutil.Process().create_time()
    limit_s = run.settings.time_limit_s
    end_s = None if limit_s is None else started_s + limit_s
    told = environment.get("SLURM_JOB_END_TIME", "")
    if told.isdigit() and int(told) > 0:
        end_s = float(told)
    if end_s is not None:
        end_s -= min(MAX_MARGIN_S, _MARGIN_PART * max(end_s - started_s, 0.0))
    return JobEnd(end_s, _planned_s(run.plan))


def _planned_s(plan: Plan) -> float | None:
    for figures in (plan.simulated, plan.predicted):
        if figures is not None and figures.latency_p95_s is not None:
            return figures.latency_p95_s
    return None
