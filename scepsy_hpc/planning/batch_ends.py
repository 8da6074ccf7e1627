"""When simulated batches end: enough of them to say within which time 95% of all do.

A batch of few tasks may hold a run that is far longer than all others, or not, so its makespan has
no mean and deviation to go by: the 95th percentile is that of many batches, by an order statistic
that is an upper bound in 95 of 100 cases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scepsy_hpc.planning.case import Case

FEWEST = 60
"""Of fewer than 59 batches no order statistic bounds the 95th percentile."""

_MOST = 1000
_PART = 0.25  # of the calls, beyond which only the fewest batches are simulated
_P95_DEVIATIONS = 1.645  # of a normal distribution


@dataclass(slots=True)
class LastEnd:
    """Recorder of a simulation that keeps when the last run so far has ended (s)."""

    end_s: float = 0.0
    is_done: bool = False

    def start_run(self, workflow: int, traced: int, now_s: float, is_ok: bool) -> int:
        """Runs are not told apart."""
        return 0

    def end_run(self, run: int, workflow: int, start_s: float, now_s: float, is_ok: bool) -> None:
        """A run has ended."""
        self.end_s = now_s

    def start_call(self, run: int, deployment: int, replica: int, now_s: float) -> int:
        """Calls are not told apart."""
        return 0

    def end_call(self, call: int, deployment: int, start_s: float, now_s: float) -> None:
        """Calls do not count."""


def makespans_s(case: Case, seed: int, max_calls: int) -> list[float]:
    """Makespans (s) of batches under seeds from ``seed`` on, as many as ``max_calls`` allow."""
    found: list[float] = []
    calls = 0
    while len(found) < _MOST:
        most = max_calls if len(found) < FEWEST else _PART * max_calls
        if found and calls * (1.0 + 1.0 / len(found)) > most:
            break
        last = LastEnd()
        simulation = case.simulation(last, seed + len(found))
        simulation.run()
        calls += simulation.num_calls
        found.append(last.end_s)
    return found


def p95_s(found_s: Sequence[float]) -> float:
    """Upper bound of the 95th percentile of makespans (s): never below what 95% of these need.

    Of fewer than ``FEWEST`` the normal distribution with their mean and deviation is taken, or the
    longest of them, whichever is more.
    """
    seen = np.sort(np.array(found_s))
    if len(seen) >= FEWEST:
        return float(seen[_bounding(len(seen))])
    if len(seen) < 2:
        return float(seen[-1])
    spread_s = float(seen.std(ddof=1)) * math.sqrt(1.0 + 1.0 / len(seen))
    return max(float(seen.mean()) + _P95_DEVIATIONS * spread_s, float(seen[-1]))


def _bounding(number: int) -> int:
    """Index of the least of so many sorted values at or above their 95th percentile, at 95%."""
    from scipy.special import bdtr

    below = np.arange(number)
    return int(np.argmax(bdtr(below.astype(np.float64), number, 0.95) >= 0.95))


def few_flag(name: str, number: int) -> list[str]:
    """Where so few batches say what 95% of them keep."""
    if number >= FEWEST:
        return []
    return [
        f"{name}: makespan_s: few_batches: what 95% of batches keep is taken from {number} "
        f"simulated ones, not {FEWEST}; more take more calls (--check-calls)"
    ]
