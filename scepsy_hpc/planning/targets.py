"""What a plan is asked for, and within which limits."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_WITHIN_PCT = 2.0
"""What a plan may lie below the best for fewer GPUs: less than a prediction is known to."""

STARTUP_S = 1200.0
"""Engines load weights and compile before the first task: GPUs are held, nothing is done."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Lowest latency at the workflows' rates; ``rps`` where there is one workflow."""

    rps: float | None = None


@dataclass(frozen=True, slots=True)
class MaxThroughput:
    """Highest rate, then lowest latency at it. Rates of several workflows are its mix."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """Fewest GPU-hours that work off a batch of one workflow in time.

    The deadline is for the batch, from its first start to its last end; ``startup_s`` comes before
    it, and its GPU-hours count.
    """

    num_tasks: int
    deadline_s: float
    startup_s: float = STARTUP_S


Target = Rate | MaxThroughput | Deadline


@dataclass(frozen=True, slots=True)
class Limits:
    """``latency_limit_s`` is on the mean (rate-weighted over workflows).

    ``within_pct``: the fewest GPUs whose value is within so much of the best; 0 for the best.
    ``time_limit_s``: how long each search may take, instead of a fixed amount of work.
    """

    num_gpus: int | None = None
    latency_limit_s: float | None = None
    p95_limit_s: float | None = None
    within_pct: float = DEFAULT_WITHIN_PCT
    time_limit_s: float | None = None
