"""What a plan is asked for, and within which limits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """Lowest latency at the workflows' rates; ``rps`` where there is one workflow."""

    rps: float | None = None


@dataclass(frozen=True, slots=True)
class MaxThroughput:
    """Highest rate, then lowest latency at it. Rates of several workflows are its mix."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """Fewest GPUs that work off a batch of one workflow in time."""

    num_tasks: int
    deadline_s: float


Target = Rate | MaxThroughput | Deadline


@dataclass(frozen=True, slots=True)
class Limits:
    """``latency_limit_s`` is on the mean (rate-weighted over workflows).

    ``within_pct``: the fewest GPUs whose value is within so much of the best. ``time_limit_s``:
    how long each search may take, instead of a fixed amount of work.
    """

    num_gpus: int | None = None
    latency_limit_s: float | None = None
    p95_limit_s: float | None = None
    within_pct: float | None = None
    time_limit_s: float | None = None
